//! Durable creations, 64 connections, a million orders in place.
//!
//! `server`: our routes over a store that stores nothing, against one bare route that parses the
//! same JSON: a slow server would flatter what follows. Beside it stands how much of that our
//! answer and our connections take, without our other routes and checks. `create`: the built
//! program against that server. `shared`: the built program against the same with one creation a
//! commit.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::Bench;
use crate::databases::{Ids, MILLION, Template};
use crate::load::{CONNECTIONS, Load, Script, wrk};
use crate::programs::Program;
use crate::table::{Goal, Line, Unit, in_turns};

const ROUNDS: usize = 3;

/// Of one side of one round.
const MEASURED: Duration = Duration::from_secs(4);

/// Before the first round, so that no side's first requests are measured.
const WARM: Duration = Duration::from_secs(1);

/// How long a creation may be on its way that wrk did not wait for.
const IN_FLIGHT_MAX: Duration = Duration::from_millis(200);

pub fn server(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let scratch = bench.scratch()?;
    let ours = nowhere(scratch.path())?;
    let bare = Program::reference(&["bare"], scratch.path())?;
    let answer = Program::reference(&["answer"], scratch.path())?;
    let script = Script::Create(Ids::Random);
    let (ours, reference) = rates(&ours.url, &bare.url, script)?;
    let (answer, bare) = rates(&answer.url, &bare.url, script)?;
    Ok(vec![
        Line::new(
            "POST /order, nothing stored; a bare route",
            Unit::PerSecond,
            ours,
        )
        .against(reference)
        .goal(Goal::RatioAtLeast(0.85)),
        Line::new(
            "one route with our answer and connections; a bare route",
            Unit::PerSecond,
            answer,
        )
        .against(bare),
    ])
}

pub fn create(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    Ok(vec![
        created(bench, Ids::Random)?.goal(Goal::RatioAtLeast(0.4)),
        created(bench, Ids::Ordered)?.goal(Goal::RatioAtLeast(0.5)),
    ])
}

fn created(bench: &Bench, ids: Ids) -> anyhow::Result<Line> {
    let scratch = bench.scratch()?;
    let mut ours = Counted::begin(bench, ids, &scratch.path().join("orders.db"), Program::api)?;
    let nowhere = nowhere(scratch.path())?;
    wrk(&nowhere.url, Script::Create(ids), WARM)?;
    ours.load(WARM)?;
    let (ours, reference) = in_turns(
        ROUNDS,
        |_| Ok(ours.load(MEASURED)?.per_second),
        |_| Ok(wrk(&nowhere.url, Script::Create(ids), MEASURED)?.per_second),
    )?;
    let what = format!("POST /order, {} ids; nothing stored", ids.word());
    Ok(Line::new(what, Unit::PerSecond, ours).against(reference))
}

pub fn shared(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let rows = [Ids::Random, Ids::Ordered].map(|ids| against_alone(bench, ids));
    rows.into_iter().collect()
}

fn against_alone(bench: &Bench, ids: Ids) -> anyhow::Result<Line> {
    let scratch = bench.scratch()?;
    let path = |name| scratch.path().join(name);
    let mut ours = Counted::begin(bench, ids, &path("orders.db"), Program::api)?;
    let mut alone = Counted::begin(bench, ids, &path("unshared.db"), |database| {
        let database = database.to_str().context("an odd path")?;
        Program::reference(&["unshared", database], scratch.path())
    })?;
    let (ours, alone) = in_turns(
        ROUNDS,
        |_| Ok(ours.load(MEASURED)?.per_second),
        |_| Ok(alone.load(MEASURED)?.per_second),
    )?;
    let what = format!("POST /order, {} ids; one a commit", ids.word());
    Ok(Line::new(what, Unit::PerSecond, ours)
        .against(alone)
        .goal(Goal::RatioAtLeast(7.0)))
}

/// Our routes over a store that stores nothing.
pub fn nowhere(folder: &Path) -> anyhow::Result<Program> {
    let database = folder.join("nowhere.db");
    let database = database.to_str().context("an odd path")?;
    Program::reference(&["nowhere", database], folder)
}

/// Requests in a second that two servers answer, in turns.
pub fn rates(
    ours: &str,
    reference: &str,
    script: Script<'_>,
) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
    wrk(ours, script, WARM)?;
    wrk(reference, script, WARM)?;
    in_turns(
        ROUNDS,
        |_| Ok(wrk(ours, script, MEASURED)?.per_second),
        |_| Ok(wrk(reference, script, MEASURED)?.per_second),
    )
}

/// A server on a million orders whose creations are counted in the database after each load.
struct Counted {
    program: Program,
    database: std::path::PathBuf,
    ids: Ids,
    orders: u64,
}

impl Counted {
    fn begin(
        bench: &Bench,
        ids: Ids,
        database: &Path,
        serve: impl FnOnce(&Path) -> anyhow::Result<Program>,
    ) -> anyhow::Result<Self> {
        let template = Template { ids, ..MILLION };
        template.copy(bench, database)?;
        Ok(Self {
            program: serve(database)?,
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
