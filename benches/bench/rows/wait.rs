//! Latency for callers.
//!
//! `caller`: one connection that creates orders sequentially, with a million orders stored, against
//! the disk's own flush in the same rounds. `processing`: time from a creation until the order is
//! PROCESSING, with API and reconciler as one program and as two, both otherwise idle.

use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::Bench;
use crate::databases::MILLION;
use crate::http::Connection;
use crate::machine::flushes;
use crate::programs::Program;
use crate::table::{Goal, Line, Unit, alternately, percentile};

const ROUNDS: usize = 3;

/// Duration of a round of creations.
const MEASURED: Duration = Duration::from_secs(5);

/// Duration of a round of flushes.
const FLUSHED: Duration = Duration::from_secs(3);

pub fn caller(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let scratch = bench.scratch()?;
    let database = scratch.path().join("orders.db");
    MILLION.copy(bench, &database)?;
    let program = Program::api(&database)?;
    let mut connection = Connection::open(&program.url)?;
    let mut rng = fastrand::Rng::new();
    let (ours, reference) = alternately(
        ROUNDS,
        |_| creations(&mut connection, &mut rng),
        |_| flushes(scratch.path(), FLUSHED),
    )?;
    let line = |word: &str, share: f64, goal: f64| {
        let of_rounds =
            |rounds: &[Vec<f64>]| rounds.iter().map(|all| percentile(all, share)).collect();
        let what = format!("one caller creates, {word}; fdatasync");
        Line::new(what, Unit::Millis, of_rounds(&ours))
            .against(of_rounds(&reference))
            .goal(Goal::RatioAtMost(goal))
    };
    Ok(vec![line("p50", 0.5, 2.0), line("p99", 0.99, 6.0)])
}

/// Returns the latencies of the creations of one round, in milliseconds, sorted.
pub fn creations(connection: &mut Connection, rng: &mut fastrand::Rng) -> anyhow::Result<Vec<f64>> {
    let mut taken = Vec::new();
    let began_at = Instant::now();
    while began_at.elapsed() < MEASURED {
        let id = format!("{:032x}", rng.u128(..));
        let sent_at = Instant::now();
        connection.create(&id)?;
        taken.push(sent_at.elapsed().as_secs_f64() * 1e3);
    }
    taken.sort_by(f64::total_cmp);
    Ok(taken)
}

/// Number of orders that are polled until they are PROCESSING.
const ORDERS: usize = 200;

/// Maximum pause between two orders, in milliseconds: long enough for the programs to become idle.
const REST_MAX_MS: u64 = 240;

/// Poll interval of an order.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Timeout for an order to become PROCESSING.
const TIMEOUT: Duration = Duration::from_secs(10);

pub fn processing(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let scratch = bench.scratch()?;
    let simulator = Program::simulator(scratch.path(), &["--max-order-process-duration", "1"])?;
    let one = Program::serve(&scratch.path().join("one.db"), &simulator.url)?;
    let mut lines = measure_processing(&one, "one program")?;
    drop(one);
    let database = scratch.path().join("two.db");
    let api = Program::api(&database)?;
    let _reconciler = Program::reconciler(&database, &simulator.url, &[])?;
    lines.extend(measure_processing(&api, "two programs")?);
    Ok(lines)
}

/// Measures the time until single orders are PROCESSING.
pub fn measure_processing(api: &Program, programs: &str) -> anyhow::Result<Vec<Line>> {
    let mut connection = Connection::open(&api.url)?;
    let mut taken = Vec::new();
    for number in 0..ORDERS {
        std::thread::sleep(Duration::from_millis(fastrand::u64(60..REST_MAX_MS)));
        let id = format!("{programs} {number}").replace(' ', "-");
        taken.push(until_processing(&mut connection, &id)?);
    }
    taken.sort_by(f64::total_cmp);
    let line = |word: &str, share| {
        let what = format!("POST /order to PROCESSING, {programs}, {word}");
        Line::new(what, Unit::Millis, vec![percentile(&taken, share)])
    };
    let last = line("p99", 0.99).goal(Goal::Below(50.0));
    Ok(vec![line("p50", 0.5), last])
}

/// Returns the time from the creation request to the first response with PROCESSING, in
/// milliseconds.
fn until_processing(connection: &mut Connection, id: &str) -> anyhow::Result<f64> {
    let sent_at = Instant::now();
    connection.create(id)?;
    loop {
        let answer = connection.get(&format!("/order/{id}"))?;
        let body = String::from_utf8_lossy(&answer.body);
        if !body.contains("\"CREATED\"") {
            ensure!(answer.status == 200, "{answer:?}");
            return Ok(sent_at.elapsed().as_secs_f64() * 1e3);
        }
        ensure!(sent_at.elapsed() < TIMEOUT, "{id} was not started");
        std::thread::sleep(POLL_INTERVAL);
    }
}
