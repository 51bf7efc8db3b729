//! Idle cost of both programs, with a million settled orders, and their time from start to ready.

use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::Bench;
use crate::databases::MILLION;
use crate::http::Connection;
use crate::programs::Program;
use crate::table::{Goal, Line, Unit};

/// Delay after which startup work is certainly over.
const STARTUP: Duration = Duration::from_secs(3);

const MEASURED: Duration = Duration::from_secs(20);

/// Timeout for the programs to become ready.
const TIMEOUT: Duration = Duration::from_secs(10);

pub fn run(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let scratch = bench.scratch()?;
    let database = scratch.path().join("orders.db");
    MILLION.copy(bench, &database)?;
    let simulator = Program::simulator(scratch.path(), &[])?;
    let began_at = Instant::now();
    let api = Program::api(&database)?;
    let answer = Connection::open(&api.url)?.get("/readyz")?;
    ensure!(answer.status == 200, "{answer:?}");
    let api_ready = began_at.elapsed();
    let began_at = Instant::now();
    let reconciler = Program::reconciler(&database, &simulator.url, &[])?;
    while !reconciler.logged().contains("became leader") {
        ensure!(began_at.elapsed() < TIMEOUT, "the reconciler does not lead");
        std::thread::sleep(Duration::from_millis(1));
    }
    let reconciler_ready = began_at.elapsed();
    std::thread::sleep(STARTUP);
    let before = (api.cpu_seconds()?, reconciler.cpu_seconds()?);
    let began_at = Instant::now();
    std::thread::sleep(MEASURED);
    let percent = 100.0 / began_at.elapsed().as_secs_f64();
    let api_cpu = (api.cpu_seconds()? - before.0) * percent;
    let reconciler_cpu = (reconciler.cpu_seconds()? - before.1) * percent;
    let line = |what: &str, unit, value: f64, below| {
        Line::new(what, unit, vec![value]).goal(Goal::Below(below))
    };
    let millis = |while_: Duration| while_.as_secs_f64() * 1e3;
    Ok(vec![
        line("api idle, of a core", Unit::PercentOfCore, api_cpu, 0.5),
        line(
            "reconciler idle, of a core",
            Unit::PercentOfCore,
            reconciler_cpu,
            0.5,
        ),
        line("api idle, memory", Unit::MiB, api.anonymous_mib()?, 25.0),
        line(
            "reconciler idle, memory",
            Unit::MiB,
            reconciler.anonymous_mib()?,
            25.0,
        ),
        line("api ready", Unit::Millis, millis(api_ready), 100.0),
        line(
            "reconciler ready",
            Unit::Millis,
            millis(reconciler_ready),
            100.0,
        ),
    ])
}
