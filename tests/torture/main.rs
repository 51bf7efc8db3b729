//! The torture: the real programs under load, while they are killed, stopped, ended and lied to;
//! then every order is held against what was acknowledged and against the simulator's record.
//!
//! - `load`: creates orders over HTTP, and remembers what was answered for each.
//! - `storm`: the four programs, and what is done to them.
//! - `verdict`: what must hold in the end.
//!
//! `scripts/torture MINUTES` runs it so long; `cargo test` leaves it out. What is drawn comes from
//! `--seed N`, but the machine's timing is its own: a seed repeats the plan, not the run.

#![allow(clippy::unwrap_used, reason = "a torture may fail anywhere")]

mod load;
mod storm;
mod verdict;
#[allow(dead_code, reason = "this is what all tests need; here it is a part")]
#[path = "../it/world.rs"]
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use load::Load;
use storm::Storm;
use world::World;

/// The longest run: the simulator's record has a line for each request.
const MINUTES_MAX: f64 = 24.0 * 60.0;

/// How long all orders may take to settle once nothing goes wrong any more: a backoff of five
/// minutes, and a minute.
const SETTLING_MAX: Duration = Duration::from_secs(360);

fn main() -> ExitCode {
    let mut minutes = None;
    let mut seed = fastrand::u64(..1_000_000_000);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--seed" {
            match arguments.next().and_then(|text| text.parse().ok()) {
                Some(number) => seed = number,
                None => return usage(),
            }
        } else {
            match argument.parse() {
                Ok(number) if number > 0.0 && number <= MINUTES_MAX => minutes = Some(number),
                // `cargo test WORD` asks every target for the tests that have the word in them.
                Err(_) if !argument.starts_with('-') => {
                    println!("torture: not asked for");
                    return ExitCode::SUCCESS;
                }
                _ => return usage(),
            }
        }
    }
    let Some(minutes) = minutes else {
        println!("torture: left out; scripts/torture MINUTES runs it");
        return ExitCode::SUCCESS;
    };
    println!("torture: {minutes} minutes, seed {seed}");
    let world = World::new();
    let failures = catch_unwind(AssertUnwindSafe(|| torture(&world, minutes, seed)))
        .unwrap_or_else(|_| vec!["it broke off; the reason is above".to_owned()]);
    if failures.is_empty() {
        println!("\n1 passed, 0 failed");
        return ExitCode::SUCCESS;
    }
    println!();
    for failure in &failures {
        println!("  FAILED  {failure}");
    }
    println!("\nthe folder is kept: {}", world.path("").display());
    println!("the same plan again: scripts/torture {minutes} --seed {seed}");
    println!("\n0 passed, 1 failed");
    // Its end would delete the folder.
    std::mem::forget(world);
    ExitCode::FAILURE
}

fn usage() -> ExitCode {
    eprintln!("usage: scripts/torture MINUTES [--seed N]");
    ExitCode::from(2)
}

/// Tells what has failed.
fn torture(world: &World, minutes: f64, seed: u64) -> Vec<String> {
    let runtime = tokio::runtime::Runtime::new().expect("there is a runtime");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut storm = Storm::begin(world, runtime.handle().clone(), rng.fork());
    let load = Load::begin(runtime.handle(), storm.api_url(), rng.fork());
    storm.rage(Duration::from_secs_f64(minutes * 60.0), &load);

    let answers = runtime.block_on(load.end());
    storm.calm();
    let calm_at = Instant::now();
    let settled = storm.settle(SETTLING_MAX);
    let took = calm_at.elapsed();

    let mut failures = storm.failures();
    if !settled {
        failures.push(format!("not all orders are settled after {took:?}"));
    }
    failures.extend(verdict::verdict(
        &runtime, world, &storm, &answers, seed, took,
    ));
    failures.extend(storm.end());
    failures.extend(verdict::error_lines(world, &storm));
    failures
}
