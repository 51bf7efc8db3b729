//! The verdict, which compares acknowledgements, the orders of the API and the simulator's record.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::time::Duration;

use order_service::simulator::model::Effect;
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::chaos::{BECAME_LEADER, Chaos, NAMES};
use crate::environment::{Client, TestEnvironment, is_settled, status_after};
use crate::load::{Answers, Existence};
#[cfg(feature = "postgres")]
use crate::postgres::{Programs, Servers};

/// Number of failures of each kind that are listed.
const LISTED_MAX: usize = 5;

/// Failures, with the first few of each kind in full.
#[derive(Default)]
struct Failures(BTreeMap<&'static str, Vec<String>>);

impl Failures {
    fn add(&mut self, kind: &'static str, what: impl ToString) {
        self.0.entry(kind).or_default().push(what.to_string());
    }

    /// Returns the number of failures of a kind.
    #[cfg(feature = "postgres")]
    fn count(&self, kind: &str) -> usize {
        self.0.get(kind).map_or(0, Vec::len)
    }

    /// Prints the account, which must find nothing.
    fn account(&mut self, env: &TestEnvironment, database: &str, upstream: &str) {
        let record = env.simulator_log();
        let record = record.to_str().expect("temporary folders have plain names");
        let arguments = ["account", "--database-url", database, "--record", record];
        let arguments = [&arguments[..], &["--order-process-url", upstream]].concat();
        let account = env.run("order-service", &arguments);
        println!("\n{}", account.stdout.trim_end());
        if account.code != Some(0) {
            self.add("the account", format!("{account:?}"));
        }
    }

    fn into_lines(self) -> Vec<String> {
        let line = |(kind, all): (&str, Vec<String>)| {
            let some = all.iter().take(LISTED_MAX).map(String::as_str);
            let some = some.collect::<Vec<_>>().join("; ");
            format!("{kind} ({}): {some}", all.len())
        };
        self.0.into_iter().map(line).collect()
    }
}

/// A summary of the simulator's record.
#[derive(Default)]
struct SimulatorRecord {
    incarnations: u64,
    starts: u64,
    /// Final status of the last process of each order, and the incarnation in which it was started.
    last: HashMap<String, (&'static str, u64)>,
    started_twice: Vec<String>,
    /// Number of starts that were refused because the order had a process.
    refused: u64,
    /// Minimum number of starts that each order has to count: those whose answers did not deny a start.
    expected_starts: HashMap<String, u64>,
}

/// Answers that deny a start. An injected one may be wrong: the process exists.
const DENIALS: [u16; 5] = [302, 401, 429, 500, 503];

impl SimulatorRecord {
    fn read(env: &TestEnvironment) -> Self {
        let mut recorded = Self::default();
        for entry in env.simulator_record() {
            let is_denied = entry.answer.is_some_and(|status| DENIALS.contains(&status));
            match entry.effect {
                Effect::BeganIncarnation { .. } => recorded.incarnations += 1,
                Effect::Started {
                    order_id, outcome, ..
                } => {
                    let expected_starts = recorded
                        .expected_starts
                        .entry(order_id.clone())
                        .or_default();
                    *expected_starts += u64::from(!is_denied);
                    recorded.add_start(order_id, status_after(outcome));
                }
                Effect::StartedForEver { order_id } => recorded.add_start(order_id, "PROCESSING"),
                Effect::Exists { .. } => recorded.refused += 1,
                _ => {}
            }
        }
        recorded
    }

    fn add_start(&mut self, order_id: String, ends_as: &'static str) {
        self.starts += 1;
        let before = self
            .last
            .insert(order_id.clone(), (ends_as, self.incarnations));
        if before.is_some_and(|(_, incarnation)| incarnation == self.incarnations) {
            self.started_twice.push(order_id);
        }
    }
}

/// Prints the summary and the account, and returns the failures.
pub fn verdict(
    runtime: &Runtime,
    env: &TestEnvironment,
    chaos: &Chaos<'_>,
    answers: &Answers,
    seed: u64,
    took: Duration,
) -> Vec<String> {
    let orders = runtime.block_on(all_orders(&chaos.api_url()));
    let recorded = SimulatorRecord::read(env);
    let mut failures = compare(&orders, &recorded, answers);
    print_summary(env, chaos, answers, &orders, &recorded, seed, took);
    let database = env.database_url();
    failures.account(env, &database, &chaos.simulator_url());
    failures.into_lines()
}

/// Like [`verdict`], for a run on PostgreSQL.
#[cfg(feature = "postgres")]
pub fn verdict_on_postgres(
    runtime: &Runtime,
    env: &TestEnvironment,
    (programs, servers): (&Programs<'_>, &Servers),
    answers: &Answers,
    took: Duration,
) -> Vec<String> {
    let orders = runtime.block_on(all_orders(&programs.api_urls()[0]));
    let recorded = SimulatorRecord::read(env);
    let mut failures = compare(&orders, &recorded, answers);
    let lost = failures.count(LOST);
    let numbers = servers.numbers();
    if let [orders, last_order, entries, last_entry] = numbers[..]
        && (orders, entries) != (last_order, last_entry)
    {
        failures.add("gaps among the numbers", format!("{numbers:?}"));
    }
    let longest = |durations: &[Duration]| durations.iter().max().copied().unwrap_or_default();
    println!();
    for (name, what) in [
        (
            "acknowledged",
            answers.count(Existence::Acknowledged).to_string(),
        ),
        ("lost", lost.to_string()),
        ("doubled", failures.count(TWICE).to_string()),
        (
            "refused starts",
            format!("{} of orders with a process", recorded.refused),
        ),
        ("longest wait", format!("{:.2?}", answers.longest)),
        (
            "stale reads",
            format!("{} of {} reads", answers.stale_reads, answers.reads),
        ),
        (
            "promotions",
            format!(
                "{}, {:.2?} at most",
                servers.promotions.len(),
                longest(&servers.promotions)
            ),
        ),
        (
            "restarts",
            format!(
                "{}, {:.2?} at most",
                servers.restarts.len(),
                longest(&servers.restarts)
            ),
        ),
        (
            "orders",
            format!(
                "{}; {} possibly created, {} not created; {} open at most; numbers {numbers:?}",
                orders.len(),
                answers.count(Existence::Possible),
                answers.count(Existence::Excluded),
                servers.max_open
            ),
        ),
        ("answers", answers.summary()),
        ("servers", servers.injected.summary()),
        ("programs", programs.injected.summary()),
        (
            "incarnations",
            format!("{} of the simulator", recorded.incarnations),
        ),
        ("leaders", leaders(env).to_string()),
        ("starts", format!("{} accepted", recorded.starts)),
        ("settled after", format!("{:.1} s", took.as_secs_f64())),
    ] {
        println!("  {name:<14} {what}");
    }
    let port = servers.primary().port();
    let database = format!("postgres://tests@127.0.0.1:{port}/postgres");
    failures.account(env, &database, &programs.simulator_url());
    for (name, text) in logs(env) {
        for line in text.lines().filter(|line| line.contains("panicked")) {
            failures.add("lines in the logs", format!("{name}: {line}"));
        }
    }
    failures.into_lines()
}

/// Kinds of failures that the table of a run names.
const LOST: &str = "acknowledged and lost";
const TWICE: &str = "started twice in one incarnation";

/// Compares acknowledgements, orders and the simulator's record.
fn compare(orders: &[Value], recorded: &SimulatorRecord, answers: &Answers) -> Failures {
    let mut failures = Failures::default();
    for what in &answers.wrong {
        failures.add("wrong answers", what);
    }
    let mut found = HashSet::new();
    for order in orders {
        let id = order["id"].as_str().unwrap_or_default();
        if !found.insert(id) {
            failures.add("listed twice", order);
        }
        if !is_settled(order) || !order["attention"].is_null() {
            failures.add("not settled, or with attention", order);
        }
        match answers.existence.get(id) {
            None => failures.add("not requested", order),
            Some(Existence::Excluded) => failures.add("exists, though nothing was done", order),
            Some(Existence::Acknowledged | Existence::Possible) => {}
        }
        match recorded.last.get(id) {
            None => failures.add("settled without a process", order),
            Some((ends_as, _)) if order["status"] != *ends_as => {
                failures.add("status differs from its last process", order);
            }
            Some(_) => {}
        }
        let counted = order["starts"].as_u64().unwrap_or(0);
        if recorded
            .expected_starts
            .get(id)
            .is_some_and(|n| *n > counted)
        {
            failures.add("started more often than counted", order);
        }
        if answers
            .settled
            .get(id)
            .is_some_and(|settled| order["status"] != **settled)
        {
            failures.add("settled status has changed", order);
        }
    }
    for (id, existence) in &answers.existence {
        if *existence == Existence::Acknowledged && !found.contains(id.as_str()) {
            failures.add(LOST, id);
        }
    }
    for id in recorded
        .last
        .keys()
        .filter(|id| !found.contains(id.as_str()))
    {
        failures.add("a process without an order", id);
    }
    for id in &recorded.started_twice {
        failures.add(TWICE, id);
    }
    if orders.is_empty() {
        failures.add("no orders", "");
    }
    failures
}

async fn all_orders(api: &str) -> Vec<Value> {
    let answer = Client::new().get(format!("{api}/order")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    match answer.json() {
        Value::Array(orders) => orders,
        other => panic!("not an array: {other}"),
    }
}

fn print_summary(
    env: &TestEnvironment,
    chaos: &Chaos<'_>,
    answers: &Answers,
    orders: &[Value],
    recorded: &SimulatorRecord,
    seed: u64,
    took: Duration,
) {
    let injected = &chaos.injected;
    let by_program = |counts: &[u64; 4]| {
        let one = |(name, count): (&&str, &u64)| format!("{name} {count}");
        let all = NAMES.iter().zip(counts).map(one).collect::<Vec<_>>();
        all.join(", ")
    };
    let starts = orders.iter().filter_map(|order| order["starts"].as_u64());
    let most = starts.clone().max().unwrap_or(0);
    let mean = starts.sum::<u64>() as f64 / orders.len().max(1) as f64;
    let accepted = recorded.starts as f64 / orders.len().max(1) as f64;
    println!();
    for (name, what) in [
        ("seed", seed.to_string()),
        (
            "orders",
            format!(
                "{}; {} acknowledged, {} possibly created, {} not created; {} open at most",
                orders.len(),
                answers.count(Existence::Acknowledged),
                answers.count(Existence::Possible),
                answers.count(Existence::Excluded),
                chaos.max_open
            ),
        ),
        ("answers", answers.summary()),
        (
            "incarnations",
            format!("{} of the simulator", recorded.incarnations),
        ),
        ("SIGKILL", by_program(&injected.kills)),
        ("SIGTERM", by_program(&injected.terms)),
        ("SIGSTOP", format!("{} of a reconciler", injected.stops)),
        ("leaders", format!("{}, one after the other", leaders(env))),
        (
            "faults",
            format!(
                "{} crashes, {} other presets",
                injected.crashes, injected.presets
            ),
        ),
        (
            "starts",
            format!("{mean:.2} per order, {accepted:.2} accepted, {most} at most"),
        ),
        ("settled after", format!("{:.1} s", took.as_secs_f64())),
    ] {
        println!("  {name:<14} {what}");
    }
}

/// Returns the errors and panics in the logs, which no fault may cause.
pub fn error_lines(env: &TestEnvironment, chaos: &Chaos<'_>) -> Vec<String> {
    let mut failures = Failures::default();
    let mut explained = 0;
    for (name, text) in logs(env) {
        for line in text.lines() {
            if !line.contains(" ERROR ") && !line.contains("panicked") {
                continue;
            }
            if chaos.injected.stops > 0 && line.contains(WHILE_STOPPED) {
                explained += 1;
            } else {
                failures.add("lines in the logs", format!("{name}: {line}"));
            }
        }
    }
    println!("\n  {explained} errors in the logs, explained by a stopped writer");
    failures.into_lines()
}

/// Error that a stopped reconciler causes: stopped within a write, it blocks all other writers.
const WHILE_STOPPED: &str = "the database cannot be written";

/// Returns the number of times that a reconciler became leader, by the logs.
fn leaders(env: &TestEnvironment) -> usize {
    let logs = logs(env);
    let lines = logs.iter().flat_map(|(_, text)| text.lines());
    lines.filter(|line| line.ends_with(BECAME_LEADER)).count()
}

/// Returns the logs of the programs, with the names of the files.
fn logs(env: &TestEnvironment) -> Vec<(String, String)> {
    let files = fs::read_dir(env.path("")).expect("the folder can be read");
    let mut logs = Vec::new();
    for file in files {
        let path = file.expect("the folder can be read").path();
        let is_log = path.extension().is_some_and(|extension| extension == "log");
        if is_log && path != env.simulator_log() {
            let name = path.file_name().unwrap_or_default();
            let text = fs::read_to_string(&path).expect("a log can be read");
            logs.push((name.to_string_lossy().into_owned(), text));
        }
    }
    logs
}
