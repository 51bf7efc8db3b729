//! Retention: the orders that `prune` removes and keeps, and totals that do not change. Readers of
//! pruned records are tested in `pruned`.

use std::collections::BTreeSet;
use std::time::Duration;

use order_service::clock::{Clock, SystemClock};
use order_service::journal_stats::JournalStats;
use order_service::order::{OrderId, Outcome, Reason, Timestamp};
use order_service::prune::BATCH;
use order_service::store::{AttentionUpdate, Creation, Filter, Store, Transition};
use rusqlite::Connection;
use serde_json::Value;

use crate::environment::{Client, Program, Ran, TestEnvironment, create, orders, ready, record};
use crate::metrics::{Samples, metrics};

pub const DAY: Duration = Duration::from_secs(86_400);

/// Returns the moment this many days ago.
pub fn days_ago(days: u32) -> Timestamp {
    let now = SystemClock.now();
    Timestamp(now.0 - i64::try_from((DAY * days).as_millis()).unwrap())
}

/// Creates orders at a moment, as fast as possible. Returns their sequence numbers.
pub async fn created(store: &Store, ids: &[String], at: Timestamp) -> Vec<i64> {
    let mut seqs = Vec::new();
    for ids in ids.chunks(500) {
        let creations = ids.iter().map(|id| create(store, id, at));
        seqs.extend(futures_util::future::join_all(creations).await);
    }
    seqs
}

/// Settles orders at a moment, alternately as FULFILLED and FAILED.
pub async fn settle(store: &Store, seqs: &[i64], at: Timestamp) {
    for seqs in seqs.chunks(1_000) {
        let changes = seqs.iter().flat_map(|&seq| {
            let outcome = match seq % 2 {
                0 => Outcome::Succeeded,
                _ => Outcome::Failed,
            };
            [Transition::Adopted, Transition::Settled(outcome)].map(|step| (seq, step))
        });
        record(store, changes, at).await;
    }
}

/// Creates orders and settles them a day later, this many days ago. Returns their sequence numbers.
pub async fn settled(store: &Store, ids: &[String], days: u32) -> Vec<i64> {
    let seqs = created(store, ids, days_ago(days + 1)).await;
    settle(store, &seqs, days_ago(days)).await;
    seqs
}

pub fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{prefix}{n}")).collect()
}

pub fn prune(env: &TestEnvironment, arguments: &[&str]) -> Ran {
    let mut all = vec!["prune"];
    all.extend(arguments);
    env.run("order-service", &all)
}

fn pruned_so_far(store: &Store) -> u64 {
    let stats = ready(store.update_stats(&mut JournalStats::default(), SystemClock.now()));
    stats.unwrap().pruned.orders()
}

/// Prunes orders that settled more than 90 days ago, and checks their number.
#[track_caller]
pub fn pruned(env: &TestEnvironment, orders: u64) {
    let before = pruned_so_far(&env.store());
    let ran = prune(env, &["--settled-before", "90d"]);
    assert_eq!((ran.code, &*ran.stderr), (Some(0), ""), "{ran:?}");
    let after = pruned_so_far(&env.store());
    assert_eq!(after - before, orders, "{ran:?}");
}

#[track_caller]
pub fn is_sound(env: &TestEnvironment) {
    env.run("order-service", &["check"]).assert_code(0);
}

fn ids(store: &Store) -> Vec<String> {
    let all = orders(store, Filter::default());
    all.iter().map(|o| o.id.to_string()).collect()
}

fn database(env: &TestEnvironment) -> Connection {
    Connection::open(env.database()).unwrap()
}

/// Creates old open orders, recently settled ones, and twelve that may be pruned.
async fn old_and_new(env: &TestEnvironment) -> Store {
    let store = env.store();
    settled(&store, &names("old", 10), 91).await;
    let old = days_ago(400);
    let open = created(&store, &names("open", 6), old).await;
    let update = |reason| AttentionUpdate {
        reason,
        detail: "refused".into(),
        next_attempt_at: old,
    };
    let steps = [
        vec![],
        vec![Transition::Intended { previous: None }],
        vec![Transition::Flagged(update(Reason::StartRefused))],
        vec![Transition::Adopted],
        vec![Transition::Adopted, Transition::Missed { began_at: old }],
        vec![Transition::Adopted, Transition::Intended { previous: None }],
    ];
    for (seq, steps) in open.into_iter().zip(steps) {
        let changes = steps.into_iter().map(|step| (seq, step));
        record(&store, changes, old).await;
    }
    // Settled recently, and created long ago or recently.
    let late = created(&store, &names("late", 3), old).await;
    settle(&store, &late, days_ago(89)).await;
    settled(&store, &names("older", 2), 300).await;
    settled(&store, &names("new", 3), 1).await;
    store
}

#[tokio::test(flavor = "multi_thread")]
async fn only_orders_that_settled_long_ago_are_pruned() {
    let env = TestEnvironment::new();
    let store = old_and_new(&env).await;
    let all = ids(&store);
    let ran = prune(&env, &["--settled-before", "90d", "--dry-run"]).assert_code(0);
    assert!(
        ran.stdout.contains("to prune 6 FULFILLED, 6 FAILED"),
        "{ran:?}"
    );
    assert!(ran.stdout.contains("36 entries"), "{ran:?}");
    assert_eq!(ids(&store), all, "nothing was changed");
    let ran = prune(&env, &["--settled-before", "90d"]).assert_code(0);
    assert!(
        ran.stdout.contains("pruned   6 FULFILLED, 6 FAILED"),
        "{ran:?}"
    );
    assert!(ran.stdout.contains("36 entries"), "{ran:?}");
    let left: Vec<_> = all
        .into_iter()
        .filter(|id| !id.starts_with("old"))
        .collect();
    assert_eq!(ids(&store), left);
    is_sound(&env);
    // A second prune removes nothing.
    pruned(&env, 0);
    let id = OrderId::new("old1").unwrap();
    let again = store.create(id, SystemClock.now()).await;
    assert!(matches!(again, Ok(Creation::Created(_))), "{again:?}");
    let ran = env.run("order-service", &["check"]);
    assert!(
        ran.stdout.contains("pruned   12 orders and 36 entries"),
        "{ran:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_number_of_an_order_or_an_event_is_ever_given_out_twice() {
    let env = TestEnvironment::new();
    let store = env.store();
    // The newest event is not that of the newest order.
    let seqs = created(&store, &names("a", 20), days_ago(200)).await;
    let others: Vec<_> = seqs.iter().copied().filter(|seq| *seq != 7).collect();
    settle(&store, &others, days_ago(200)).await;
    settle(&store, &[7], days_ago(200)).await;
    pruned(&env, 18);
    let left = orders(&store, Filter::default());
    let left: Vec<_> = left.iter().map(|order| order.seq).collect();
    assert_eq!(left, [7, 20]);
    assert_eq!(ready(store.newest_event()).unwrap().seq, 60);
    assert_eq!(created(&store, &["b".into()], days_ago(150)).await, [21]);
    assert_eq!(ready(store.newest_event()).unwrap().seq, 61);
    // Now each has a newer one, until that is old as well.
    pruned(&env, 2);
    settle(&store, &[21], days_ago(150)).await;
    pruned(&env, 0);
    assert_eq!(created(&store, &["c".into()], days_ago(0)).await, [22]);
    assert_eq!(ready(store.newest_event()).unwrap().seq, 64);
    is_sound(&env);
}

/// Returns the samples that must never decrease.
fn totals(samples: &Samples) -> Vec<(&String, f64)> {
    let is_total = |series: &str| {
        series.contains("_total") && !series.contains("writes_refused")
            || series.contains("order_time_to_settle_seconds")
    };
    let samples = samples.iter();
    let totals = samples.filter(|(series, _)| is_total(series) && !series.contains("pruned"));
    totals.map(|(series, value)| (series, *value)).collect()
}

async fn figures(client: &Client, api: &Program) -> (Samples, Value) {
    let stats = client.get(format!("{}/stats", api.url)).await;
    (metrics(client, &api.url).await, stats.json())
}

#[tokio::test(flavor = "multi_thread")]
async fn totals_survive_a_prune_and_a_restart() {
    let env = TestEnvironment::new();
    let client = Client::new();
    // This API reads the journal before most events, and again after they were pruned.
    let early = env.api(&[]);
    let store = env.store();
    settled(&store, &names("first", 30), 100).await;
    figures(&client, &early).await;
    settled(&store, &names("second", 300), 95).await;
    let open = created(&store, &names("open", 4), days_ago(99)).await;
    let lost = settled(&store, &names("lately", 8), 0).await;
    for step in [
        Transition::Adopted,
        Transition::Intended { previous: None },
        Transition::Restarted { is_observed: true },
    ] {
        record(&store, [(open[0], step)], days_ago(98)).await;
    }
    settle(&store, &open[1..2], days_ago(97)).await;
    let failed = (open[0], Transition::Settled(Outcome::Failed));
    record(&store, [failed], days_ago(97)).await;
    created(&store, &["last".into()], days_ago(0)).await;
    // This one reads all of it.
    let all = env.api(&[]);
    let (before, stats_before) = figures(&client, &all).await;
    pruned(&env, 332);
    let late = env.api(&[]);
    for api in [&all, &early, &late] {
        let (after, stats) = figures(&client, api).await;
        assert_eq!(totals(&after), totals(&before));
        for (status, count) in [("FULFILLED", 4.0), ("FAILED", 4.0), ("CREATED", 3.0)] {
            let series = format!("order_service_orders{{status=\"{status}\"}}");
            assert_eq!(after[&series], count, "{series}: only what is there");
            assert_eq!(stats["orders"][status], count as u64);
        }
        let gone =
            |status| after[&format!("order_service_orders_pruned_total{{status=\"{status}\"}}")];
        assert_eq!(gone("FULFILLED") + gone("FAILED"), 332.0);
        assert_eq!(stats["restarts"]["total"], 1);
        assert_eq!(stats["newest_event"], stats_before["newest_event"]);
        for member in ["per_minute", "time_to_settle"] {
            let settled = |stats: &Value| {
                let minutes = stats["per_minute"].as_array().unwrap().iter();
                minutes
                    .map(|minute| minute["settled"].as_u64().unwrap())
                    .sum::<u64>()
            };
            assert_eq!(settled(&stats), settled(&stats_before), "{member}");
            assert_eq!(stats["time_to_settle"], stats_before["time_to_settle"]);
        }
    }
    assert_eq!(lost.len(), 8);
    let ran = env.run("order-service", &["account"]);
    for line in [
        "acknowledged         343",
        "pruned               332",
        "settled              340",
    ] {
        assert!(ran.stdout.contains(line), "{line}: {ran:?}");
    }
    assert!(ran.stdout.contains("started again          1"), "{ran:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_hour_is_complete_even_if_some_of_it_was_pruned() {
    let env = TestEnvironment::new();
    let client = Client::new();
    let store = env.store();
    let now = SystemClock.now();
    let before = Timestamp(now.0 - 120_000);
    let seqs = created(&store, &names("a", 40), before).await;
    settle(&store, &seqs, Timestamp(before.0 + 1_000)).await;
    created(&store, &["last".into()], now).await;
    let ran = prune(&env, &["--settled-before", "1min"]);
    assert!(ran.stdout.contains("20 FULFILLED, 20 FAILED"), "{ran:?}");
    let api = env.api(&[]);
    let (_, stats) = figures(&client, &api).await;
    assert_eq!(stats["time_to_settle"]["orders"], 40, "{stats}");
    let half = stats["time_to_settle"]["p50_seconds"].as_f64().unwrap();
    assert!((half - 1.0).abs() < 0.01, "{stats}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow; scripts/test all"]
async fn orders_are_created_and_settled_between_the_batches_of_a_prune() {
    let env = TestEnvironment::new();
    let store = env.store();
    settled(&store, &names("old", 12_000), 91).await;
    created(&store, &["last".into()], days_ago(0)).await;
    let simulator = env.simulator(&["--max-order-process-duration", "1"]);
    let api = env.api(&[]);
    let reconciler = env.reconciler(&simulator.url, &["--start-rate", "0"]);
    let client = Client::new();
    let mut removal = env.start(
        "order-service",
        &["prune", "--settled-before", "90d"],
        false,
    );
    let mut meanwhile = 0;
    let (mut counted, _) = figures(&client, &api).await;
    while removal.ended().is_none() {
        let answer = client.create(&api.url, &format!("new{meanwhile}")).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        meanwhile += 1;
        if meanwhile % 50 == 0 {
            let (now, stats) = figures(&client, &api).await;
            for (series, value) in totals(&counted) {
                assert!(now[series] >= value, "{series} has fallen");
            }
            let there = stats["orders"].as_object().unwrap().values();
            let there: u64 = there.map(|count| count.as_u64().unwrap()).sum();
            let removed = pruned_so_far(&store);
            assert!(
                there + removed >= meanwhile as u64 + 12_001,
                "{there} {removed}"
            );
            counted = now;
        }
    }
    assert_eq!(removal.wait().code(), Some(0));
    // Another writer ran between any two batches.
    assert!(meanwhile > 12_000 / BATCH, "{meanwhile} were created");
    assert_eq!(pruned_so_far(&store), 12_000);
    client.settled(&api.url, meanwhile + 1).await;
    is_sound(&env);
    assert_eq!(reconciler.stop(), Some(0));
}

/// Returns the numbers of existing and of pruned orders.
fn there_and_removed(env: &TestEnvironment) -> (u64, u64) {
    let count = "SELECT count(*), (SELECT fulfilled + failed FROM pruned) FROM orders";
    let db = database(env);
    let read = |row: &rusqlite::Row<'_>| Ok((row.get::<_, u32>(0)?, row.get::<_, u32>(1)?));
    let (there, removed) = db.query_row(count, [], read).unwrap();
    (there.into(), removed.into())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow; scripts/test all"]
async fn a_kill_or_a_signal_during_a_prune_leaves_each_batch_whole_or_undone() {
    let env = TestEnvironment::new();
    let store = env.store();
    settled(&store, &names("old", 20_000), 91).await;
    created(&store, &["last".into()], days_ago(0)).await;
    let mut totals = BTreeSet::new();
    for signal in ["KILL", "KILL", "TERM", "INT"] {
        let before = there_and_removed(&env).1;
        let mut removal = env.start(
            "order-service",
            &["prune", "--settled-before", "90d"],
            false,
        );
        while there_and_removed(&env).1 == before {
            assert!(removal.ended().is_none(), "{}", removal.logged());
        }
        removal.signal(signal);
        let printed = removal.rest_of_stdout();
        let code = removal.wait().code();
        let (there, gone) = there_and_removed(&env);
        assert_eq!(there + gone, 20_001, "{signal}");
        assert_eq!(gone % BATCH as u64, 0, "{signal}: a batch is whole");
        assert!(gone > before && gone < 20_000, "{signal}: {gone}");
        totals.insert(gone);
        is_sound(&env);
        if signal != "KILL" {
            assert_eq!(code, Some(1), "{}", removal.logged());
            assert!(
                removal.logged().contains("interrupted"),
                "{}",
                removal.logged()
            );
            assert!(
                printed.contains("pruned   "),
                "the output reports what was done: {printed}"
            );
        }
    }
    assert_eq!(totals.len(), 4);
    let gone = there_and_removed(&env).1;
    pruned(&env, 20_000 - gone);
    is_sound(&env);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_concurrent_prunes_remove_each_order_once() {
    let env = TestEnvironment::new();
    let store = env.store();
    settled(&store, &names("old", 5_000), 91).await;
    created(&store, &["last".into()], days_ago(0)).await;
    let arguments = ["prune", "--settled-before", "90d"];
    let mut both = [0, 1].map(|_| env.start("order-service", &arguments, false));
    for removal in &mut both {
        assert_eq!(removal.wait().code(), Some(0), "{}", removal.logged());
    }
    assert_eq!(there_and_removed(&env), (1, 5_000));
    is_sound(&env);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_finds_missing_records_that_were_not_pruned() {
    for (change, says) in [
        (
            "DELETE FROM journal WHERE order_seq = 12; DELETE FROM orders WHERE seq = 12",
            "leaves out 1 entry besides those that were pruned",
        ),
        (
            "DELETE FROM journal WHERE seq = (SELECT max(seq) - 1 FROM journal)",
            "leaves out 1 entry besides those that were pruned",
        ),
        (
            "UPDATE pruned SET failed = failed + 1",
            "the number of pruned orders contradicts that of their entries",
        ),
        (
            "UPDATE pruned SET last_order_seq = 1000",
            "the newest order was removed",
        ),
        (
            "UPDATE pruned SET last_entry_seq = 1000",
            "the newest entry of the journal was removed",
        ),
        (
            "DELETE FROM pruned",
            "there are 0 records of what was pruned",
        ),
    ] {
        let env = TestEnvironment::new();
        let store = old_and_new(&env).await;
        pruned(&env, 12);
        drop(store);
        is_sound(&env);
        database(&env).execute_batch(change).unwrap();
        let ran = env.run("order-service", &["check"]);
        assert_eq!(ran.code, Some(1), "{change}: {ran:?}");
        assert!(ran.stdout.contains(says), "{change}: {ran:?}");
    }
}

#[tokio::test]
async fn a_prune_can_report_although_the_database_cannot_be_read() {
    let env = TestEnvironment::new();
    let store = env.store();
    for suffix in ["", "-wal", "-shm"] {
        let file = env.path(&format!("orders.db{suffix}"));
        std::fs::write(file, [b'x'; 100_000]).unwrap();
    }
    assert_eq!(store.checkpoint().await, None);
}

#[tokio::test]
async fn a_backup_of_a_pruned_database_is_sound() {
    let env = TestEnvironment::new();
    old_and_new(&env).await;
    pruned(&env, 12);
    env.run("order-service", &["backup", "copy.db"])
        .assert_code(0);
    prune(
        &env,
        &["--settled-before", "1h", "--database-url", "copy.db"],
    )
    .assert_code(0);
    env.run("order-service", &["check", "--database-url", "copy.db"])
        .assert_code(0);
}

#[test]
fn an_invalid_age_is_refused_with_what_would_be_right() {
    let env = TestEnvironment::new();
    for (age, says) in [
        ("90", "time unit needed"),
        ("0s", "the duration is zero"),
        ("-90d", "write a number with a unit, such as 90d"),
        ("soon", "write a number with a unit, such as 90d"),
        ("", "write a number with a unit, such as 90d"),
    ] {
        let ran = prune(&env, &["--settled-before", age]);
        assert_eq!(ran.code, Some(2), "{age}: {ran:?}");
        assert!(ran.stderr.contains(says), "{age}: {ran:?}");
        assert!(ran.stderr.contains("90d or 12h"), "{age}: {ran:?}");
    }
    let ran = prune(&env, &["--dry-run"]).assert_code(2);
    assert!(
        ran.stderr.contains("--settled-before <DURATION>"),
        "{ran:?}"
    );
    for arguments in [
        &["--settled-before", "90d"][..],
        &["--settled-before", "90d", "--dry-run"],
    ] {
        let ran = prune(&env, arguments).assert_code(3);
        assert!(ran.stderr.contains("there is no such database"), "{ran:?}");
        assert!(!env.database().exists());
    }
}
