//! Durable creations, 64 connections, a million orders in place, against `GET /livez` of the same
//! program: what the connections and routes take that every request takes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::ensure;

use crate::Bench;
use crate::databases::{Ids, MILLION, Template};
use crate::load::{CONNECTIONS, Load, Script, wrk};
use crate::programs::Program;
use crate::table::{Goal, Line, Unit, alternately};

const ROUNDS: usize = 3;

/// Of one side of one round.
pub const MEASURED: Duration = Duration::from_secs(4);

/// Before the first round, so that no side's first requests are measured.
pub const WARM: Duration = Duration::from_secs(1);

/// How long a creation may be on its way that wrk did not wait for.
const IN_FLIGHT_MAX: Duration = Duration::from_millis(200);

pub fn run(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    Ok(vec![
        created(bench, Ids::Random)?.goal(Goal::RatioAtLeast(0.2)),
        created(bench, Ids::Ordered)?.goal(Goal::RatioAtLeast(0.4)),
    ])
}

fn created(bench: &Bench, ids: Ids) -> anyhow::Result<Line> {
    let scratch = bench.scratch()?;
    let mut ours = Counted::begin(bench, ids, &scratch.path().join("orders.db"))?;
    let url = ours.program.url.clone();
    ours.load(WARM)?;
    wrk(&url, Script::Live, WARM)?;
    let (ours, reference) = alternately(
        ROUNDS,
        |_| Ok(ours.load(MEASURED)?.per_second),
        |_| Ok(wrk(&url, Script::Live, MEASURED)?.per_second),
    )?;
    let what = format!("POST /order, {} ids; GET /livez", ids.word());
    Ok(Line::new(what, Unit::PerSecond, ours).against(reference))
}

/// A server on a million orders whose creations are counted in the database after each load.
struct Counted {
    program: Program,
    database: PathBuf,
    ids: Ids,
    orders: u64,
}

impl Counted {
    fn begin(bench: &Bench, ids: Ids, database: &Path) -> anyhow::Result<Self> {
        let template = Template { ids, ..MILLION };
        template.copy(bench, database)?;
        Ok(Self {
            program: Program::api(database)?,
            database: database.to_owned(),
            ids,
            orders: template.orders,
        })
    }

    fn load(&mut self, during: Duration) -> anyhow::Result<Load> {
        let load = wrk(&self.program.url, Script::Create(self.ids), during)?;
        std::thread::sleep(IN_FLIGHT_MAX);
        let orders = count(&self.database)?;
        let new = orders - self.orders;
        self.orders = orders;
        // Those that wrk did not wait for at its end may be there or not.
        ensure!(
            (load.requests..=load.requests + CONNECTIONS).contains(&new),
            "{} creations were acknowledged and {new} are there",
            load.requests
        );
        Ok(load)
    }
}

/// Orders in a database, whoever writes to it.
pub fn count(database: &Path) -> anyhow::Result<u64> {
    let db = rusqlite::Connection::open(database)?;
    let count: i64 = db.query_row("SELECT count(*) FROM orders", [], |row| row.get(0))?;
    Ok(count.unsigned_abs())
}
