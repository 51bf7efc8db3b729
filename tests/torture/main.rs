//! The torture test: the real programs under load, while they are killed, stopped, terminated and given
//! faulty answers; then every order is compared with the answers of the API and the simulator's record.
//!
//! - `load`: creates orders over HTTP, and records the answers.
//! - `chaos`: runs the four programs, and injects faults.
//! - `verdict`: the checks at the end.
//! - `postgres`: programs and servers of a run on PostgreSQL, and their faults.
//!
//! `scripts/torture MINUTES` runs it for that long; `cargo test` skips it. `--seed N` repeats the plan,
//! but not the timing of the machine.

#![allow(clippy::unwrap_used, reason = "a torture may fail anywhere")]

mod chaos;
#[cfg(feature = "postgres")]
#[allow(dead_code, reason = "this is what all tests need; here it is a part")]
#[path = "../it/cluster.rs"]
mod cluster;
#[allow(
    dead_code,
    unused_imports,
    reason = "this is what all tests need; here it is a part"
)]
#[path = "../it/environment.rs"]
mod environment;
mod load;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "postgres")]
#[allow(dead_code, reason = "this is what all tests need; here it is a part")]
#[path = "../it/proxy.rs"]
mod proxy;
mod verdict;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use chaos::Chaos;
use environment::TestEnvironment;
use load::Load;
#[cfg(feature = "postgres")]
use postgres::{Plan, Programs, Servers};

/// Number of concurrent clients.
const CALLERS: u64 = 16;

/// Maximum duration of a run: the simulator's record has a line for each request.
const MINUTES_MAX: f64 = 24.0 * 60.0;

/// Maximum time for all orders to settle once there are no more faults: the longest backoff, five minutes,
/// and one more minute.
const SETTLING_MAX: Duration = Duration::from_secs(360);

fn main() -> ExitCode {
    let (mut minutes, mut failovers, mut is_on_postgres) = (None, None::<u32>, false);
    let mut seed = fastrand::u64(..1_000_000_000);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--seed" {
            match arguments.next().and_then(|text| text.parse().ok()) {
                Some(number) => seed = number,
                None => return usage(),
            }
        } else if argument == "--postgres" {
            is_on_postgres = true;
        } else if argument == "--failovers" {
            match arguments.next().and_then(|text| text.parse().ok()) {
                Some(count) => failovers = Some(count),
                None => return usage(),
            }
        } else {
            match argument.parse() {
                Ok(number) if number > 0.0 && number <= MINUTES_MAX => minutes = Some(number),
                // `cargo test WORD` passes the word to every target.
                Err(_) if !argument.starts_with('-') => {
                    println!("torture: skipped, because a test name was given");
                    return ExitCode::SUCCESS;
                }
                _ => return usage(),
            }
        }
    }
    let run: Run = match (is_on_postgres, minutes, failovers) {
        (false, Some(minutes), None) => Box::new(move |env| torture(env, minutes, seed)),
        #[cfg(feature = "postgres")]
        (true, Some(minutes), None) => {
            Box::new(move |env| on_postgres(env, Plan::Minutes(minutes), seed))
        }
        #[cfg(feature = "postgres")]
        (true, None, Some(count)) => {
            Box::new(move |env| on_postgres(env, Plan::Failovers(count), seed))
        }
        (false, None, None) => {
            println!("torture: skipped; scripts/torture MINUTES runs it");
            return ExitCode::SUCCESS;
        }
        _ => return usage(),
    };
    let words: Vec<_> = std::env::args().skip(1).collect();
    println!("torture: {}, seed {seed}", words.join(" "));
    let env = TestEnvironment::new();
    let failures = catch_unwind(AssertUnwindSafe(|| run(&env)))
        .unwrap_or_else(|_| vec!["the run panicked; the reason is above".to_owned()]);
    if failures.is_empty() {
        println!("\n1 passed, 0 failed");
        return ExitCode::SUCCESS;
    }
    println!();
    for failure in &failures {
        println!("  FAILED  {failure}");
    }
    println!("\nthe folder is kept: {}", env.path("").display());
    println!("the same plan again: --seed {seed}");
    println!("\n0 passed, 1 failed");
    // Dropping it would delete the folder.
    std::mem::forget(env);
    ExitCode::FAILURE
}

fn usage() -> ExitCode {
    eprintln!("usage: scripts/torture [--postgres] MINUTES [--seed N]");
    eprintln!("       scripts/torture --postgres --failovers COUNT [--seed N]");
    ExitCode::from(2)
}

/// A run, which returns its failures.
type Run = Box<dyn FnOnce(&TestEnvironment) -> Vec<String>>;

/// Runs the test on PostgreSQL, and returns its failures.
#[cfg(feature = "postgres")]
fn on_postgres(env: &TestEnvironment, plan: Plan, seed: u64) -> Vec<String> {
    let runtime = tokio::runtime::Runtime::new().expect("there is a runtime");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut servers = Servers::begin(rng.fork());
    let handle = runtime.handle().clone();
    let mut programs = Programs::begin(env, handle, &servers, rng.fork());
    let callers = match plan {
        Plan::Minutes(_) => CALLERS,
        // Enough for the load while some of them wait.
        Plan::Failovers(_) => 4 * CALLERS,
    };
    let load = Load::begin(runtime.handle(), programs.api_urls(), callers, rng.fork());
    servers.run(plan, &mut programs, &load);

    let answers = runtime.block_on(load.end());
    let stopped_at = Instant::now();
    let settled = servers.wait_until_settled(SETTLING_MAX);
    let took = stopped_at.elapsed();
    let state = (&programs, &servers);
    let mut failures = verdict::verdict_on_postgres(&runtime, env, state, &answers, took);
    if !settled {
        failures.push(format!("not all orders are settled after {took:?}"));
    }
    failures.extend(programs.end());
    failures
}

/// Runs the test, and returns its failures.
fn torture(env: &TestEnvironment, minutes: f64, seed: u64) -> Vec<String> {
    let runtime = tokio::runtime::Runtime::new().expect("there is a runtime");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut chaos = Chaos::begin(env, runtime.handle().clone(), rng.fork());
    let load = Load::begin(runtime.handle(), vec![chaos.api_url()], CALLERS, rng.fork());
    chaos.run(Duration::from_secs_f64(minutes * 60.0), &load);

    let answers = runtime.block_on(load.end());
    chaos.stop_faults();
    let stopped_at = Instant::now();
    let settled = chaos.wait_until_settled(SETTLING_MAX);
    let took = stopped_at.elapsed();

    let mut failures = chaos.failures();
    if !settled {
        failures.push(format!("not all orders are settled after {took:?}"));
    }
    failures.extend(verdict::verdict(
        &runtime, env, &chaos, &answers, seed, took,
    ));
    failures.extend(chaos.end());
    failures.extend(verdict::error_lines(env, &chaos));
    failures
}
