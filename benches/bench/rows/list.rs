//! `GET /order` with a million orders. The reference is one prepared scan in this process, with the
//! same serialiser and a buffer of 64 KiB.
//!
//! Also measures the side effects: memory during one read and during sixteen slow reads, and the
//! growth of the write-ahead log while orders are created during slow reads.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use order_service::api::write_order;
use order_service::order::{Order, OrderId, Timestamp};

use crate::Bench;
use crate::databases::{Ids, MILLION};
use crate::http::{Connection, Drained};
use crate::load::{Script, wrk};
use crate::programs::Program;
use crate::table::{Goal, Line, Unit, alternately};

const ROUNDS: usize = 3;

/// Size of the reference's buffer, in bytes.
const BUFFER: usize = 64 * 1024;

/// Number of concurrent slow readers.
const SLOW_READERS: usize = 16;

/// Pause of a slow reader after each piece of at most 64 KiB: the whole list takes a minute.
const SLOW_PAUSE: Duration = Duration::from_millis(20);

/// Duration for which memory, and then the log, is sampled during slow reads.
const SAMPLED: Duration = Duration::from_secs(5);

pub fn run(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let scratch = bench.scratch()?;
    let database = scratch.path().join("orders.db");
    MILLION.copy(bench, &database)?;
    let program = Program::api(&database)?;
    let at_rest = program.anonymous_mib()?;
    let mut first_bytes = Vec::new();
    let mut growth = Vec::new();
    let (ours, reference) = alternately(
        ROUNDS,
        |_| {
            let (drained, peak) = peak_memory(&program, || read_list(&program))?;
            first_bytes.push(drained.first_byte.as_secs_f64() * 1e3);
            growth.push(peak - at_rest);
            Ok(MILLION.orders as f64 / drained.whole.as_secs_f64())
        },
        |_| scan(&database),
    )?;
    let (slow, log) = read_slowly(&program, &database)?;
    Ok(vec![
        Line::new(
            "GET /order, orders; a scan in process",
            Unit::PerSecond,
            ours,
        )
        .against(reference)
        .goal(Goal::RatioAtLeast(0.5)),
        Line::new("GET /order, first byte", Unit::Millis, first_bytes).goal(Goal::Below(20.0)),
        Line::new("GET /order, memory grown", Unit::MiB, growth).goal(Goal::Below(16.0)),
        Line::new("the same, 16 slow readers", Unit::MiB, vec![slow - at_rest])
            .goal(Goal::Below(16.0)),
        Line::new("log, 16 slow readers and creations", Unit::MiB, vec![log])
            .goal(Goal::Below(64.0)),
    ])
}

/// Reads all orders.
pub fn read_list(program: &Program) -> anyhow::Result<Drained> {
    let mut connection = Connection::open(&program.url)?;
    connection.send_get("/order")?;
    connection.drain(|| {})
}

/// Runs a closure, and returns its result with the program's peak memory meanwhile, in MiB.
fn peak_memory<T: Send>(
    program: &Program,
    work: impl FnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<(T, f64)> {
    let mut peak: f64 = 0.0;
    let done = std::thread::scope(|scope| {
        let work = scope.spawn(work);
        while !work.is_finished() {
            peak = peak.max(program.anonymous_mib()?);
            std::thread::sleep(Duration::from_millis(10));
        }
        match work.join() {
            Ok(done) => done,
            Err(_) => anyhow::bail!("the work panicked"),
        }
    })?;
    Ok((done, peak))
}

/// Reads and serialises orders without a server, and returns the orders per second.
fn scan(database: &Path) -> anyhow::Result<f64> {
    let db = rusqlite::Connection::open(database)?;
    let mut statement = db.prepare(
        "SELECT seq, id, status, created_at, updated_at, starts, \
         attention, attention_since, attention_detail, next_attempt_at FROM orders ORDER BY seq",
    )?;
    let began_at = Instant::now();
    let mut buffer = Vec::with_capacity(BUFFER);
    let mut count = 0;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let order = Order {
            seq: row.get(0)?,
            id: OrderId::new(row.get_ref(1)?.as_str()?)?,
            status: row.get_ref(2)?.as_str()?.parse()?,
            created_at: Timestamp(row.get(3)?),
            updated_at: Timestamp(row.get(4)?),
            starts: row.get(5)?,
            // Settled orders have no attention.
            attention: None,
        };
        write_order(&mut buffer, &order);
        count += 1;
        if buffer.len() >= BUFFER {
            std::hint::black_box(&buffer);
            buffer.clear();
        }
    }
    ensure!(count >= MILLION.orders, "{count} orders were read");
    Ok(count as f64 / began_at.elapsed().as_secs_f64())
}

/// Returns the peak memory with slow readers alone, and the peak size of the log while orders are
/// created during slow reads, both in MiB.
fn read_slowly(program: &Program, database: &Path) -> anyhow::Result<(f64, f64)> {
    let is_over = AtomicBool::new(false);
    let log = database.with_extension("db-wal");
    let pause = || match is_over.load(Ordering::Relaxed) {
        true => {}
        false => std::thread::sleep(SLOW_PAUSE),
    };
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..SLOW_READERS)
            .map(|_| {
                scope.spawn(move || {
                    let mut connection = Connection::open(&program.url)?;
                    connection.send_get("/order")?;
                    connection.drain(pause)
                })
            })
            .collect();
        let measured = (|| {
            let ((), memory) = peak_memory(program, || {
                std::thread::sleep(SAMPLED);
                Ok(())
            })?;
            let load = scope.spawn(|| wrk(&program.url, Script::Create(Ids::Random), SAMPLED));
            let mut longest = 0;
            while !load.is_finished() {
                longest = longest.max(fs::metadata(&log)?.len());
                std::thread::sleep(Duration::from_millis(5));
            }
            anyhow::Ok((memory, longest as f64 / (1024.0 * 1024.0)))
        })();
        is_over.store(true, Ordering::Relaxed);
        for reader in readers {
            match reader.join() {
                Ok(drained) => ensure!(drained?.bytes > 0, "a list is empty"),
                Err(_) => anyhow::bail!("a reader panicked"),
            }
        }
        measured
    })
}
