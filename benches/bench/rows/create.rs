//! Durable creations on 64 connections, with a million orders stored. The reference is `GET /livez`
//! of the same program: the cost of connections and routing, which every request has.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::ensure;

use crate::Bench;
use crate::databases::{Ids, MILLION, Template};
use crate::load::{CONNECTIONS, Load, Script, wrk};
use crate::programs::Program;
use crate::table::{Goal, Line, Unit, alternately};

const ROUNDS: usize = 3;

/// Duration of one side of a round.
pub const MEASURED: Duration = Duration::from_secs(4);

/// Load before the first round, so that neither side's first requests are measured.
pub const WARM_UP: Duration = Duration::from_secs(1);

/// Maximum duration of creations that are in flight when wrk ends.
const IN_FLIGHT_MAX: Duration = Duration::from_millis(200);

pub fn run(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    Ok(vec![
        measure(bench, Ids::Random)?.goal(Goal::RatioAtLeast(0.2)),
        measure(bench, Ids::Ordered)?.goal(Goal::RatioAtLeast(0.4)),
    ])
}

fn measure(bench: &Bench, ids: Ids) -> anyhow::Result<Line> {
    let scratch = bench.scratch()?;
    let mut ours = CountedServer::begin(bench, ids, &scratch.path().join("orders.db"))?;
    let url = ours.program.url.clone();
    ours.load(WARM_UP)?;
    wrk(&url, Script::Live, WARM_UP)?;
    let (ours, reference) = alternately(
        ROUNDS,
        |_| Ok(ours.load(MEASURED)?.per_second),
        |_| Ok(wrk(&url, Script::Live, MEASURED)?.per_second),
    )?;
    let what = format!("POST /order, {} ids; GET /livez", ids.name());
    Ok(Line::new(what, Unit::PerSecond, ours).against(reference))
}

/// A server with a million orders stored. The creations of each load are counted in its database.
struct CountedServer {
    program: Program,
    database: PathBuf,
    ids: Ids,
    orders: u64,
}

impl CountedServer {
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
        // Requests in flight at the end of wrk may or may not have created their orders.
        ensure!(
            (load.requests..=load.requests + CONNECTIONS).contains(&new),
            "{} creations were acknowledged and {new} are there",
            load.requests
        );
        Ok(load)
    }
}

/// Returns the number of orders in a database, which a program may be writing.
pub fn count(database: &Path) -> anyhow::Result<u64> {
    let db = rusqlite::Connection::open(database)?;
    let count: i64 = db.query_row("SELECT count(*) FROM orders", [], |row| row.get(0))?;
    Ok(count.unsigned_abs())
}
