//! Load generators: wrk for the maximum rate, and one with a constant rate.
//!
//! wrk sends a request once the previous one is answered: it measures throughput, but hides the
//! latency that independent clients would see. Latency at a rate is therefore measured by a
//! separate generator: each request is due at a fixed time, on a free connection, and its latency
//! counts from then, even if it was sent later.

use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::databases::Ids;
use crate::http::Connection;

/// Number of connections of wrk, which one thread keeps busy.
pub const CONNECTIONS: u64 = 64;

/// The requests of wrk.
#[derive(Clone, Copy)]
pub enum Script<'a> {
    /// New orders with ids of this kind.
    Create(Ids),
    /// Orders from a file of ids, drawn at random.
    Get(&'a Path),
    /// `GET /livez`: the cheapest request.
    Live,
}

/// A result of wrk.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Requests that were answered.
    pub requests: u64,
    /// Answered requests per second.
    pub per_second: f64,
}

/// Sends requests as fast as the server answers. Fails if one was rejected or not answered.
pub fn wrk(url: &str, script: Script<'_>, during: Duration) -> anyhow::Result<Load> {
    let mut command = Command::new("wrk");
    command.args(["--threads", "1", "--connections"]);
    command.arg(CONNECTIONS.to_string());
    command.args(["--duration", &format!("{}s", during.as_secs())]);
    command.args(["--script", "benches/bench/load.lua", url]);
    match script {
        Script::Create(ids) => command.env("KIND", ids.name()),
        Script::Get(ids) => command.env("KIND", "get").env("IDS", ids),
        Script::Live => command.env("KIND", "live"),
    };
    let now = std::time::UNIX_EPOCH.elapsed()?.as_millis();
    command.env("NOW", now.to_string());
    command.env("SEED", fastrand::u32(..).to_string());
    let output = command.output()?;
    let output_text = String::from_utf8_lossy(&output.stdout);
    read_wrk(&output_text).with_context(|| {
        format!(
            "wrk printed: {output_text}{}",
            String::from_utf8_lossy(&output.stderr)
        )
    })
}

fn read_wrk(text: &str) -> anyhow::Result<Load> {
    let mut lines = text.lines();
    let line = lines.find_map(|line| line.strip_prefix("result: "));
    let numbers: Vec<u64> = line
        .context("no result")?
        .split(' ')
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let [requests, micros, refused, failed] = numbers[..] else {
        anyhow::bail!("the result has not four numbers");
    };
    ensure!(refused == 0, "{refused} requests were refused");
    ensure!(failed == 0, "{failed} requests failed");
    Ok(Load {
        requests,
        per_second: requests as f64 / (micros as f64 / 1e6),
    })
}

/// Creations at a constant rate.
#[derive(Clone, Copy, Debug)]
pub struct SustainedLoad {
    /// Creations per second.
    pub rate: u64,
    /// Duration of the load.
    pub during: Duration,
    /// Number of connections: more than ever wait at once.
    pub connections: u64,
}

impl SustainedLoad {
    /// Creates orders at this rate, and returns the latencies from the time each request was due, in
    /// milliseconds, sorted. Fails if one is not answered with 201.
    pub fn create(self, url: &str) -> anyhow::Result<Vec<f64>> {
        let total = self.rate * self.during.as_secs();
        let next = AtomicU64::new(0);
        let waits = Mutex::new(Vec::new());
        let began_at = Instant::now();
        let prefix = fastrand::u64(..);
        let caller = || -> anyhow::Result<()> {
            let mut connection = Connection::open(url)?;
            let mut own = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= total {
                    break;
                }
                let due = Duration::from_secs_f64(number as f64 / self.rate as f64);
                std::thread::sleep(due.saturating_sub(began_at.elapsed()));
                connection.create(&format!("sustained-{prefix:016x}-{number}"))?;
                own.push(began_at.elapsed().saturating_sub(due).as_secs_f64() * 1e3);
            }
            let mut waits = waits
                .lock()
                .map_err(|_| anyhow::anyhow!("a caller panicked"))?;
            waits.extend(own);
            Ok(())
        };
        std::thread::scope(|scope| {
            let callers: Vec<_> = (0..self.connections).map(|_| scope.spawn(caller)).collect();
            callers
                .into_iter()
                .try_for_each(|caller| match caller.join() {
                    Ok(result) => result,
                    Err(_) => anyhow::bail!("a caller panicked"),
                })
        })?;
        let mut waits = waits.into_inner()?;
        waits.sort_by(f64::total_cmp);
        Ok(waits)
    }
}
