//! The simulation: the reconciler's real pass on one thread, over a real database, against the
//! simulator's model in memory. Time, faults and crashes are drawn from a seed, which repeats the run
//! exactly.
//!
//! - `environment`: virtual time, and the faults of requests, writes and the clock.
//! - `database`: the committed rows, on each engine; `cluster` is the PostgreSQL server.
//! - `history`: the upstream's recent past, from which lagging reads are answered.
//! - `oracle`: the invariants, checked after every step.
//! - `run`: one seed from the first order to the last.
//! - `pace`: the time until many orders settle under each kind of upstream, which may have `limits`,
//!   compared with clients of a `fixed_rate`.
//! - `fit`: the model of the upstream's crashes, compared with measurements.
//!
//! `scripts/simulate` runs 5,000 seeds and checks that the pace keeps to limits and that the crash model
//! fits the measurements; `--seeds N` runs N seeds, `--seed S` repeats one and prints its events;
//! `--postgres` runs them on PostgreSQL, in builds with that feature, and compares each run with the
//! same one on SQLite;
//! `scripts/simulate pace` prints figures for each kind of upstream. A debug build runs 20 seeds.

#![allow(clippy::unwrap_used, reason = "a simulation may fail anywhere")]

#[cfg(feature = "postgres")]
#[path = "../it/cluster.rs"]
#[allow(dead_code, reason = "the other tests use more of it")]
mod cluster;
mod database;
mod environment;
mod fit;
mod fixed_rate;
mod history;
mod limits;
mod oracle;
mod pace;
mod run;
mod trace;

use std::num::NonZero;
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Number of seeds without arguments: a few seconds of `cargo test`, and a minute in release.
const SEEDS: u64 = if cfg!(debug_assertions) { 20 } else { 5_000 };

/// Number of seeds on PostgreSQL, where one takes some seconds of processor time.
const POSTGRES_SEEDS: u64 = 300;

/// Number of seeds of the comparison with measurements.
const FIT_SEEDS: u64 = 3;

/// Number of seeds of each case of `scripts/simulate pace`.
const PACE_SEEDS: u64 = 100;

fn main() -> ExitCode {
    let (mut first, mut count) = (1, None);
    let mut is_verbose = false;
    let mut is_on_postgres = false;
    // Minutes without optimization.
    let mut is_all = !cfg!(debug_assertions);
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.next_if(|argument| argument == "pace").is_some() {
        return compare_paces(arguments);
    }
    while let Some(argument) = arguments.next() {
        is_all = false;
        match argument.as_str() {
            "--postgres" => is_on_postgres = true,
            "--seeds" => match number(arguments.next()) {
                Some(number) => count = Some(number),
                None => return usage(),
            },
            "--first" => match number(arguments.next()) {
                Some(seed) => first = seed,
                None => return usage(),
            },
            "--seed" => match number(arguments.next()) {
                Some(seed) => {
                    (first, count) = (seed, Some(1));
                    is_verbose = true;
                }
                None => return usage(),
            },
            // `cargo test WORD` passes the word to every target.
            word if !word.starts_with('-') => {
                println!("simulate: skipped, because a test name was given");
                return ExitCode::SUCCESS;
            }
            _ => return usage(),
        }
    }
    if is_all && fit::fit(FIT_SEEDS).is_none() {
        println!("the crash model does not fit the measurements");
        return ExitCode::FAILURE;
    }
    if is_all && !pace::keeps_to_limits() {
        return ExitCode::FAILURE;
    }
    let default = if is_on_postgres {
        POSTGRES_SEEDS
    } else {
        SEEDS
    };
    let seeds = first..first + count.unwrap_or(default);
    let began_at = Instant::now();
    match run_all(seeds, is_on_postgres, is_verbose) {
        Ok(total) => report(&total, began_at),
        Err(seed) => {
            let on = if is_on_postgres { " --postgres" } else { "" };
            println!(
                "\nseed {seed} failed; this repeats it:\n\n    scripts/simulate{on} --seed {seed}\n"
            );
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Runs seeds, as many at once as there are processors. Returns a seed that failed, if one did.
fn run_all(seeds: Range<u64>, is_on_postgres: bool, is_verbose: bool) -> Result<run::Totals, u64> {
    let (next, failed) = (AtomicU64::new(seeds.start), Mutex::new(None));
    let total = Mutex::new(run::Totals::default());
    let work = |database: run::RunDatabase| {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end || failed.lock().unwrap().is_some() {
                return;
            }
            let run = || {
                let totals = run::run(seed, &database, is_verbose);
                if is_on_postgres {
                    let on_sqlite = run::run(seed, &run::RunDatabase::Sqlite, false);
                    assert_eq!(totals, on_sqlite, "another run than on SQLite");
                }
                totals
            };
            match std::panic::catch_unwind(AssertUnwindSafe(run)) {
                Ok(totals) => total.lock().unwrap().add(&totals),
                Err(_) => *failed.lock().unwrap() = Some(seed),
            }
        }
    };
    let workers = std::thread::available_parallelism().map_or(1, NonZero::get);
    let workers = workers.min((seeds.end - seeds.start) as usize);
    // Before the first run: a process that is being started holds a copy of the open lock of a leader
    // for a moment, as if that leader had not crashed.
    let databases: Vec<_> = (0..workers)
        .map(|_| run::RunDatabase::new(is_on_postgres))
        .collect();
    std::thread::scope(|scope| {
        for database in databases {
            scope.spawn(|| work(database));
        }
    });
    match failed.into_inner().unwrap() {
        Some(seed) => Err(seed),
        None => Ok(total.into_inner().unwrap()),
    }
}

fn number(text: Option<String>) -> Option<u64> {
    text.and_then(|text| text.parse().ok())
}

fn compare_paces(mut arguments: impl Iterator<Item = String>) -> ExitCode {
    let (mut name, mut seeds) = (String::new(), PACE_SEEDS);
    while let Some(argument) = arguments.next() {
        match (argument.as_str(), arguments.next()) {
            ("--case", Some(case)) => name = case,
            ("--seeds", Some(count)) => match count.parse() {
                Ok(count) if count > 0 => seeds = count,
                _ => return usage(),
            },
            _ => return usage(),
        }
    }
    pace::compare(&name, seeds);
    ExitCode::SUCCESS
}

fn usage() -> ExitCode {
    eprintln!(
        "usage: scripts/simulate [--postgres] [--seeds N] [--first SEED] | [--postgres] --seed SEED | \
         pace [--case NAME] [--seeds N]"
    );
    ExitCode::from(2)
}

fn report(total: &run::Totals, began_at: Instant) {
    println!(
        "{} seeds, {} passes, {} requests, {} writes, {} orders, {} crashes of the program, {} of the \
         upstream, {:.0} s of virtual time each, in {:.1} s",
        total.seeds,
        total.passes,
        total.requests,
        total.writes,
        total.orders,
        total.crashes,
        total.incarnations,
        total.virtual_ms as f64 / 1e3 / total.seeds.max(1) as f64,
        began_at.elapsed().as_secs_f64(),
    );
    println!("\nfaults injected");
    for (name, count) in &total.faults {
        println!("  {name:<24} {count:>9}");
    }
    println!(
        "\ndecisions, by the kinds of fault that were injected in that pass or the one before"
    );
    print!("  {:<70}", "row; occasion; observed; action");
    for fault in environment::Fault::ALL {
        print!(" {:>8.8}", format!("{fault:?}"));
    }
    println!();
    let mut unreached = Vec::new();
    for (cell, counts) in trace::decisions() {
        print!("  {cell:<70}");
        for fault in environment::Fault::ALL {
            let count = counts.get(&fault).copied().unwrap_or(0);
            print!(" {count:>8}");
            if count == 0 {
                unreached.push(format!("{cell} with {fault:?}"));
            }
        }
        println!();
    }
    println!("\ncombinations not reached: {}", unreached.len());
    for pair in unreached {
        println!("  {pair}");
    }
    println!("\ntransitions between the stages of a start");
    for ((from, to), count) in trace::transitions() {
        let from = from.map_or_else(|| "Queued".to_owned(), |stage| format!("{stage:?}"));
        println!("  {:<30} {count:>9}", format!("{from} to {to:?}"));
    }
    println!("\n{} passed, 0 failed", total.seeds);
}
