//! Copies of whole databases: moved there and back, killed in between, damaged, compared; and backups of
//! servers.

use std::fs;
use std::time::Duration;

use order_service::journal_stats::JournalStats;
use order_service::order::{OrderId, Outcome, Reason, Timestamp};
use order_service::pace::UpstreamState;
use order_service::reconciler_state::ReconcilerState;
use order_service::store::{
    AttentionUpdate, Cursor, DatabaseUrl, Mode, OrderChange, Store, Transition,
};
use rusqlite::Connection;

#[cfg(feature = "postgres")]
use crate::cluster::cluster;
use crate::environment::{Client, Ran, TestEnvironment, assert_agree, assert_problem, fill, lead};
use crate::events::Events;
use crate::store::all;

/// Engines of a source and a target.
#[derive(Clone, Copy, Debug)]
enum Engine {
    Sqlite,
    #[cfg(feature = "postgres")]
    Postgres,
}

#[cfg(not(feature = "postgres"))]
const PAIRS: [[Engine; 2]; 1] = [[Engine::Sqlite, Engine::Sqlite]];
#[cfg(feature = "postgres")]
const PAIRS: [[Engine; 2]; 4] = [
    [Engine::Sqlite, Engine::Sqlite],
    [Engine::Sqlite, Engine::Postgres],
    [Engine::Postgres, Engine::Sqlite],
    [Engine::Postgres, Engine::Postgres],
];

/// A database that is not there yet.
fn new_url(env: &TestEnvironment, engine: Engine) -> String {
    match engine {
        Engine::Sqlite => format!(
            "sqlite:{}",
            env.path(&format!("{}.db", fastrand::u32(..))).display()
        ),
        #[cfg(feature = "postgres")]
        Engine::Postgres => cluster().url(&cluster().database()),
    }
}

fn open(url: &str) -> Store {
    let url: DatabaseUrl = url.parse().unwrap();
    Store::open(&url, Mode::Threaded).unwrap()
}

fn copy(env: &TestEnvironment, arguments: &[&str]) -> Ran {
    env.run("order-service", &[&["copy"], arguments].concat(), &[])
}

/// Runs statements in a database.
fn run_sql(url: &str, sql: &str) {
    let Some(path) = url.strip_prefix("sqlite:") else {
        #[cfg(feature = "postgres")]
        {
            let (_, database) = url.rsplit_once('/').unwrap();
            let sql = format!("SET search_path = order_service; {sql}");
            let ran = cluster().psql(database, &sql);
            assert!(ran.status.success(), "{ran:?}");
        }
        return;
    };
    Connection::open(path).unwrap().execute_batch(sql).unwrap();
}

fn copied(env: &TestEnvironment, from: &str, to: &str) -> Ran {
    let ran = copy(env, &[from, to]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stdout.contains("equal, and sound"), "{ran:?}");
    ran
}

/// Makes orders in every state, with notes, a heartbeat and what was learned, of which some were pruned.
async fn filled(url: &str) {
    let store = open(url);
    let ids: Vec<_> = (0..40).map(|n| format!("\\o{n}é\u{65e5}")).collect();
    fill(&store, &ids, 40).await;
    let lead = lead(&store).await;
    let trouble = |reason| AttentionUpdate {
        reason,
        detail: "tab\\t and \\N".to_owned(),
        next_attempt_at: Timestamp(2_000_000_000_000),
    };
    for seq in 1..=30 {
        let steps = match seq {
            ..=20 => vec![
                Transition::Intended { previous: None },
                Transition::Started { is_observed: false },
                Transition::Settled([Outcome::Succeeded, Outcome::Failed][seq as usize % 2]),
            ],
            21..=23 => vec![Transition::Intended { previous: None }],
            24 => vec![
                Transition::Intended { previous: None },
                Transition::GivenUp {
                    answer: Some(503),
                    is_counted: true,
                    attention: trouble(Reason::UpstreamUnreachable),
                },
            ],
            25 => vec![Transition::Flagged(trouble(Reason::StartRefused))],
            26 => vec![Transition::Adopted, Transition::ProcessObserved],
            27 => vec![
                Transition::Adopted,
                Transition::Missed {
                    began_at: Timestamp(5),
                },
            ],
            _ => vec![
                Transition::Adopted,
                Transition::Flagged(trouble(Reason::ProcessLost)),
            ],
        };
        let changes = steps.into_iter().map(|step| OrderChange { seq, step });
        let now = Timestamp(1_999_999_999_000 + seq);
        store.record(&lead, changes.collect(), now).await.unwrap();
    }
    let before = Timestamp(1_999_999_999_006);
    let pruned = store
        .prune(before, 0, 10, Timestamp(2_000_000_000_000))
        .await;
    assert_eq!(pruned.unwrap().unwrap().0.orders(), 5);
    let mut heartbeat = ReconcilerState {
        leader_since: Some(Timestamp(7)),
        next_pass_at: Some(Timestamp(8)),
        upstream: UpstreamState::Down {
            since: Timestamp(6),
            detail: "no answer \\ \"here\"".to_owned(),
        },
        ..ReconcilerState::default()
    };
    heartbeat.metrics =
        serde_json::from_value(serde_json::to_value(&heartbeat.metrics).unwrap()).unwrap();
    store.write_heartbeat(&lead, heartbeat).await.unwrap();
    store.checkpoint().await;
}

/// Everything that the programs read, with the positions of readers.
async fn contents(url: &str) -> Vec<String> {
    let store = open(url);
    let now = Timestamp(2_000_000_000_000);
    let mut lines = Vec::new();
    for order in all(&store).await {
        lines.push(format!(
            "{:?}",
            store.details(&order.id, now).await.unwrap()
        ));
    }
    let events = store.events(None, Cursor::default(), 1_000).await.unwrap();
    lines.push(format!("{events:?}"));
    let mut stats = JournalStats::default();
    let glance = store.update_stats(&mut stats, now).await.unwrap();
    lines.push(format!("{glance:?} {stats:?}"));
    lines.push(format!("{:?}", store.heartbeat().await.unwrap()));
    store.checkpoint().await;
    lines
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_has_moved_is_the_same_on_every_engine_and_comes_back() {
    for [from, to] in PAIRS {
        let env = TestEnvironment::new();
        let (from, to) = (new_url(&env, from), new_url(&env, to));
        filled(&from).await;
        let before = contents(&from).await;
        copied(&env, &from, &to);
        let compared = copy(&env, &["--verify-only", &from, &to]);
        assert_eq!(compared.code, Some(0), "{compared:?}");
        assert_eq!(compared.stdout, "equal\n");
        assert_eq!(contents(&to).await, before, "{from} {to}");
        // The way back, after it was used.
        let store = open(&to);
        let id = OrderId::new("new").unwrap();
        store.create(id, Timestamp(9)).await.unwrap();
        drop(store);
        let later = contents(&to).await;
        assert_ne!(later, before);
        copied(&env, &to, &from);
        assert_eq!(contents(&from).await, later, "{to} {from}");
        let check = env.run("order-service", &["check", "--database-url", &from], &[]);
        assert_eq!(check.code, Some(0), "{check:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_has_moved_or_is_not_complete_is_refused_in_a_sentence() {
    for [from, to] in PAIRS {
        let env = TestEnvironment::new();
        let (from, to) = (new_url(&env, from), new_url(&env, to));
        filled(&from).await;
        let before = contents(&from).await;
        let refused = |url: &str, says: &str| {
            for arguments in [
                &["order-service", "api", "--listen", "127.0.0.1:0"][..],
                &["order-reconciler", "--once"],
                &["order-service", "check"],
                &["order-service", "prune", "--settled-before", "1d"],
            ] {
                let arguments_all = [&arguments[1..], &["--database-url", url]].concat();
                let ran = env.run(arguments[0], &arguments_all, &[]);
                assert_eq!(ran.code, Some(3), "{arguments:?} {ran:?}");
                assert!(ran.stderr.contains(says), "{arguments:?} {ran:?}");
                assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
            }
        };
        // Programs that run are refused their writes.
        let running = open(&from);
        copied(&env, &from, &to);
        let late = running
            .create(OrderId::new("late").unwrap(), Timestamp(9))
            .await;
        assert!(late.is_err(), "{late:?}");
        assert!(running.probe(Timestamp(9)).await.is_err());
        drop(running);
        let moved = format!("has moved to {to}; ");
        refused(&from, &moved);
        let again = copy(&env, &[&from, &to]);
        assert_eq!(again.code, Some(3), "{again:?}");
        assert!(
            again.stderr.contains("holds an order database already"),
            "{again:?}"
        );
        // As if it had been killed between its last two transactions.
        let mark = format!("INSERT INTO relocation VALUES (1, 'incomplete', '{from}')");
        run_sql(&to, &mark);
        copied(&env, &from, &to);
        // It was not written to since.
        let back = copy(&env, &["--take-back", &from, &to]);
        assert_eq!(back.code, Some(0), "{back:?}");
        assert_eq!(contents(&from).await, before);
        refused(&to, &format!("has moved to {from}; "));
        let back = copy(&env, &["--take-back", &from, &to]);
        assert_eq!(back.code, Some(2), "{back:?}");
        assert!(back.stderr.contains("has not moved"), "{back:?}");
        // What is there already is used.
        copied(&env, &from, &to);
        let store = open(&to);
        store
            .create(OrderId::new("new").unwrap(), Timestamp(9))
            .await
            .unwrap();
        drop(store);
        let back = copy(&env, &["--take-back", &from, &to]);
        assert_eq!(back.code, Some(1), "{back:?}");
        assert!(
            back.stderr.contains("order \"new\" is not in the source"),
            "{back:?}"
        );
        refused(&from, &moved);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_killed_goes_on_and_ends_equal() {
    for [from, to] in PAIRS {
        killed(from, to, 6, 400).await;
    }
}

/// Kills copies at random moments; each is run again, and ends equal.
async fn killed(from: Engine, to: Engine, kills: usize, orders: usize) {
    let env = TestEnvironment::new();
    let (mut from, mut to) = (new_url(&env, from), new_url(&env, to));
    filled(&from).await;
    let ids: Vec<_> = (0..orders).map(|n| format!("more-{n}")).collect();
    fill(&open(&from), &ids, 200).await;
    let mut before = contents(&from).await;
    let mut took = Duration::from_millis(1_500);
    let mut done = 0;
    while done < kills {
        let mut program = env.start("order-service", &["copy", &from, &to], false);
        std::thread::sleep(took.mul_f64(fastrand::f64()));
        if program.ended().is_none() {
            program.signal("KILL");
            done += 1;
        }
        program.wait();
        if fastrand::bool() {
            continue;
        }
        let began = std::time::Instant::now();
        let ran = copy(&env, &[&from, &to]);
        took = began.elapsed();
        match ran.code {
            Some(0) => {}
            // The one that was to be killed was complete.
            Some(3) if ran.stderr.contains("holds an order database already") => {}
            _ => panic!("{ran:?}"),
        }
        let compared = copy(&env, &["--verify-only", &from, &to]);
        assert_eq!(compared.stdout, "equal\n", "{compared:?}");
        assert_eq!(contents(&to).await, before);
        // The way back, with something new.
        let id = OrderId::new(format!("after-{done}")).unwrap();
        open(&to).create(id, Timestamp(9)).await.unwrap();
        before = contents(&to).await;
        std::mem::swap(&mut from, &mut to);
    }
}

/// `ORDER_TEST_KILLS` kills of copies of 20,000 orders.
#[cfg(feature = "postgres")]
#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow; with --features postgres, by hand"]
async fn copies_of_twenty_thousand_orders_that_are_killed_end_equal() {
    let kills = std::env::var("ORDER_TEST_KILLS").ok();
    let kills = kills.map_or(5, |kills| kills.parse().unwrap());
    killed(Engine::Sqlite, Engine::Postgres, kills, 20_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_that_are_created_while_a_copy_runs_are_all_in_it() {
    for [from, to] in PAIRS {
        let env = TestEnvironment::new();
        let (from, to) = (new_url(&env, from), new_url(&env, to));
        filled(&from).await;
        let store = open(&from);
        let writer = tokio::spawn(async move {
            let mut created = Vec::new();
            for number in 0.. {
                let id = OrderId::new(format!("w{number}")).unwrap();
                // Until the orders have moved.
                match store.create(id.clone(), Timestamp(9)).await {
                    Ok(_) => created.push(id),
                    Err(_) => break,
                }
            }
            created
        });
        tokio::task::block_in_place(|| copied(&env, &from, &to));
        let created = writer.await.unwrap();
        let store = open(&to);
        for id in &created {
            assert!(
                store.find(id).await.unwrap().is_some(),
                "{id} was acknowledged"
            );
        }
        assert!(!created.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_reconnects_after_a_move_misses_and_repeats_nothing() {
    for [from, to] in PAIRS {
        let env = TestEnvironment::new();
        let (from, to) = (new_url(&env, from), new_url(&env, to));
        filled(&from).await;
        let client = Client::new();
        let api = |url: &str| {
            let arguments = ["api", "--listen", "127.0.0.1:0", "--database-url", url];
            env.start("order-service", &arguments, true)
        };
        let mut numbers = Vec::new();
        let mut last = None;
        for url in [&from, &to, &from] {
            let program = api(url);
            let mut events = Events::open(&client, &program, "", last.as_deref()).await;
            for n in 0..3 {
                let id = format!("e{}-{n}", numbers.len());
                assert_eq!(client.create(&program.url, &id).await.status, 201);
            }
            // All of the first time, and of each later time what is new.
            let newest = open(url).newest_event().await.unwrap().seq;
            while numbers.last().is_none_or(|last| *last < newest) {
                let (id, _) = events.next_block().await.expect("the stream continues");
                numbers.push(id.split('-').next().unwrap().parse::<i64>().unwrap());
                last = Some(id);
            }
            program.stop();
            let other = if *url == from { &to } else { &from };
            copied(&env, url, other);
        }
        let all = open(&to).events(None, Cursor::default(), 1_000).await;
        let all: Vec<_> = all.unwrap().0.iter().map(|event| event.seq).collect();
        assert_eq!(numbers, all);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_moves_while_it_works_goes_on_and_starts_nothing_twice() {
    for [from, to] in PAIRS {
        let env = TestEnvironment::new();
        let simulator = env.simulator(&["--max-order-process-duration", "2"]);
        let (from, to) = (new_url(&env, from), new_url(&env, to));
        let client = Client::new();
        let serve = |url: &str| {
            let listen = ["serve", "--listen", "127.0.0.1:0", "--database-url", url];
            let upstream = ["--order-process-url", &simulator.url];
            env.start("order-service", &[&listen[..], &upstream].concat(), true)
        };
        let before = serve(&from);
        for n in 0..60 {
            let created = client.create(&before.url, &format!("o{n}")).await;
            assert_eq!(created.status, 201);
        }
        copied(&env, &from, &to);
        let refused = client.create(&before.url, "late").await;
        assert_problem(&refused, 503);
        let after = serve(&to);
        let orders = client.settled(&after.url, 60).await;
        before.kill();
        assert_agree(&env, &orders);
    }
}

/// Damages of a copy: a statement for SQLite, and what is said of it.
const DAMAGES: [(&str, &str); 50] = [
    ("DELETE FROM orders WHERE seq = 6", "order \"\\\\o5"),
    ("DELETE FROM orders WHERE seq = 40", "is missing"),
    (
        "DELETE FROM orders WHERE seq > 10",
        "order \"\\\\o39é日\" is missing",
    ),
    (
        "UPDATE orders SET seq = 41 WHERE seq = 40",
        "is not in the source",
    ),
    ("UPDATE orders SET seq = 20000 WHERE seq = 40", "is missing"),
    ("UPDATE orders SET id = id || 'x' WHERE seq = 7", "id = "),
    (
        "UPDATE orders SET id = upper(id) WHERE seq = 31",
        "id = \"\\\\O30",
    ),
    (
        "UPDATE orders SET status = 'FAILED' WHERE status = 'FULFILLED' AND seq = 6",
        "status = \"FAILED\" instead of \"FULFILLED\"",
    ),
    (
        "UPDATE orders SET status = 'FULFILLED' WHERE seq = 7",
        "status = \"FULFILLED\"",
    ),
    (
        "UPDATE orders SET created_at = created_at - 1 WHERE seq = 8",
        "created_at = ",
    ),
    (
        "UPDATE orders SET updated_at = updated_at + 1 WHERE seq = 9",
        "updated_at = ",
    ),
    (
        "UPDATE orders SET updated_at = updated_at + 1000000000 WHERE seq = 40",
        "updated_at = ",
    ),
    (
        "UPDATE orders SET starts = starts + 1 WHERE seq = 10",
        "starts = \"2\" instead of \"1\"",
    ),
    (
        "UPDATE orders SET starts = 0 WHERE seq = 21",
        "starts = \"0\" instead of \"1\"",
    ),
    (
        "UPDATE orders SET intent_at = intent_at - 1 WHERE seq = 21",
        "intent_at = ",
    ),
    (
        "UPDATE orders SET intent_at = NULL WHERE seq = 22",
        "intent_at = nothing instead of",
    ),
    (
        "UPDATE orders SET intent_at = 5 WHERE seq = 40",
        "intent_at = \"5\" instead of nothing",
    ),
    (
        "UPDATE orders SET given_up_at = given_up_at + 1 WHERE seq = 24",
        "given_up_at = ",
    ),
    (
        "UPDATE orders SET start_answer = 502 WHERE seq = 24",
        "start_answer = \"502\" instead of \"503\"",
    ),
    (
        "UPDATE orders SET start_answer = NULL WHERE seq = 24",
        "start_answer = nothing",
    ),
    (
        "UPDATE orders SET confirmed_at = confirmed_at + 1 WHERE seq = 26",
        "confirmed_at = ",
    ),
    (
        "UPDATE orders SET process_seen = 0 WHERE seq = 26",
        "process_seen = \"0\" instead of \"1\"",
    ),
    (
        "UPDATE orders SET process_seen = 1 - process_seen WHERE seq = 28",
        "process_seen = ",
    ),
    (
        "UPDATE orders SET missed_at = 6 WHERE seq = 27",
        "missed_at = \"6\" instead of \"5\"",
    ),
    (
        "UPDATE orders SET missed_at = NULL WHERE seq = 27",
        "missed_at = nothing",
    ),
    (
        "UPDATE orders SET released_at = 5 WHERE seq = 28",
        "released_at = \"5\"",
    ),
    (
        "UPDATE orders SET attempts = attempts + 1 WHERE seq = 24",
        "attempts = ",
    ),
    (
        "UPDATE orders SET next_attempt_at = next_attempt_at + 1 WHERE seq = 25",
        "next_attempt_at = ",
    ),
    (
        "UPDATE orders SET attention = 'max_starts' WHERE seq = 28",
        "attention = \"max_starts\" instead of \"process_lost\"",
    ),
    (
        "UPDATE orders SET attention_since = attention_since + 1 WHERE seq = 28",
        "attention_since = ",
    ),
    (
        "UPDATE orders SET attention_detail = 'tab' WHERE seq = 28",
        "attention_detail = \"tab\"",
    ),
    (
        "UPDATE orders SET attention = NULL, attention_since = NULL, attention_detail = NULL WHERE seq = 29",
        "attention = nothing",
    ),
    (
        "DELETE FROM journal WHERE seq = 60",
        ": entry 60 of the journal is missing",
    ),
    (
        "DELETE FROM journal WHERE seq = (SELECT max(seq) FROM journal)",
        "of the journal is missing",
    ),
    (
        "DELETE FROM journal WHERE order_seq = 12",
        "order \"\\\\o11é日\": entry 12 of the journal is missing",
    ),
    (
        "INSERT INTO journal (seq, order_seq, at, reason) VALUES (1000, 12, 5, 'failed')",
        "entry 1000 of the journal is not in the source",
    ),
    (
        "UPDATE journal SET seq = 1000 WHERE seq = 60",
        "entry 60 of the journal is missing",
    ),
    (
        "UPDATE journal SET order_seq = 13 WHERE seq = 12",
        "entry 12 of the journal has order_seq",
    ),
    (
        "UPDATE journal SET at = at + 1 WHERE seq = 51",
        "entry 51 of the journal has at = ",
    ),
    (
        "UPDATE journal SET reason = 'adopted' WHERE reason = 'started' AND order_seq = 12",
        "reason = \"adopted\" instead of \"started\"",
    ),
    (
        "UPDATE journal SET reason = 'failed_by_operator' WHERE reason = 'failed' AND order_seq = 13",
        "reason = \"failed_by_operator\"",
    ),
    (
        "UPDATE heartbeat SET epoch = epoch + 1",
        "heartbeat 1 has epoch = ",
    ),
    (
        "UPDATE heartbeat SET leader_since = NULL",
        "heartbeat 1 has leader_since = nothing instead of \"7\"",
    ),
    (
        "UPDATE heartbeat SET upstream_detail = 'other'",
        "upstream_detail = \"other\"",
    ),
    (
        "UPDATE heartbeat SET learned = NULL",
        "heartbeat 1 has learned = nothing",
    ),
    (
        "UPDATE heartbeat SET tally = '{}'",
        "heartbeat 1 has tally = \"{}\"",
    ),
    (
        "UPDATE pruned SET fulfilled = fulfilled + 1, failed = failed - 1",
        "pruned 1 has fulfilled = ",
    ),
    (
        "UPDATE pruned SET last_entry_seq = last_entry_seq - 1",
        "pruned 1 has last_entry_seq = ",
    ),
    (
        "UPDATE pruned SET history = '{}'",
        "pruned 1 has history = \"{}\"",
    ),
    (
        "UPDATE histories SET id = 5, newest_entry = 1",
        "histories 1 has id = \"5\"",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn each_damage_of_a_copy_is_found_and_named() {
    let env = TestEnvironment::new();
    let (from, to) = (new_url(&env, Engine::Sqlite), new_url(&env, Engine::Sqlite));
    filled(&from).await;
    copied(&env, &from, &to);
    let file = to.strip_prefix("sqlite:").unwrap();
    let sound = fs::read(file).unwrap();
    for (damage, says) in DAMAGES {
        let db = Connection::open(file).unwrap();
        let free = "PRAGMA ignore_check_constraints = ON; PRAGMA foreign_keys = OFF; ";
        db.execute_batch(&format!("{free}{damage}")).unwrap();
        assert!(db.changes() > 0, "{damage}");
        db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
            .unwrap();
        drop(db);
        let ran = copy(&env, &["--verify-only", &from, &to]);
        assert_eq!(ran.code, Some(1), "{damage}: {ran:?}");
        assert!(ran.stdout.contains(says), "{damage}: {says}: {ran:?}");
        let back = copy(&env, &["--take-back", &from, &to]);
        assert_eq!(back.code, Some(1), "{damage}: {back:?}");
        fs::write(file, &sound).unwrap();
    }
    let ran = copy(&env, &["--verify-only", &from, &to]);
    assert_eq!(ran.stdout, "equal\n", "{ran:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_sound_does_not_move() {
    for [from, to] in PAIRS {
        if !matches!(from, Engine::Sqlite) {
            continue;
        }
        let env = TestEnvironment::new();
        let (from, to) = (new_url(&env, from), new_url(&env, to));
        filled(&from).await;
        let file = from.strip_prefix("sqlite:").unwrap();
        let db = Connection::open(file).unwrap();
        db.execute(
            "UPDATE orders SET updated_at = updated_at + 1 WHERE seq = 9",
            [],
        )
        .unwrap();
        drop(db);
        let ran = copy(&env, &[&from, &to]);
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(ran.stderr.contains("its updated_at"), "{ran:?}");
        let check = |url: &str| env.run("order-service", &["check", "--database-url", url], &[]);
        let incomplete = check(&to);
        assert_eq!(incomplete.code, Some(3), "{incomplete:?}");
        let says = format!("is an incomplete copy of {from}; ");
        assert!(incomplete.stderr.contains(&says), "{incomplete:?}");
        assert_eq!(check(&from).code, Some(1), "it can be used");
        // Once it is mended, the copy goes on.
        let db = Connection::open(file).unwrap();
        db.execute(
            "UPDATE orders SET updated_at = updated_at - 1 WHERE seq = 9",
            [],
        )
        .unwrap();
        drop(db);
        copied(&env, &from, &to);
    }
}

#[test]
fn a_password_in_an_argument_is_refused_and_not_repeated() {
    let env = TestEnvironment::new();
    for arguments in [
        ["postgres://me:hunter2@localhost/o", "sqlite:o.db"],
        ["sqlite:o.db", "postgres://me:hunter2@localhost/o"],
    ] {
        let ran = copy(&env, &arguments);
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(!ran.stderr.contains("hunter2"), "{ran:?}");
        if cfg!(feature = "postgres") {
            assert!(ran.stderr.contains("may hold no password"), "{ran:?}");
        }
    }
}

#[cfg(feature = "postgres")]
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_a_server_is_a_file_that_is_restored_by_a_copy_any_number_of_times() {
    let env = TestEnvironment::new();
    let from = new_url(&env, Engine::Postgres);
    filled(&from).await;
    let events = |lines: &[String]| lines[..lines.len() - 3].to_vec();
    let before = contents(&from).await;
    let taken = env.run(
        "order-service",
        &["backup", "b.db", "--database-url", &from],
        &[],
    );
    assert_eq!(taken.code, Some(0), "{taken:?}");
    assert!(taken.stdout.contains("checked  ok"), "{taken:?}");
    let backup = fs::read(env.path("b.db")).unwrap();
    for engine in [Engine::Postgres, Engine::Sqlite] {
        let to = new_url(&env, engine);
        let ran = copied(&env, "sqlite:b.db", &to);
        assert!(ran.stdout.contains("restored"), "{ran:?}");
        let after = contents(&to).await;
        assert_eq!(events(&after), events(&before));
        // Readers are told where the two part.
        assert_ne!(after, before);
    }
    assert_eq!(fs::read(env.path("b.db")).unwrap(), backup);
    assert_eq!(contents(&from).await, before, "the server is as it was");
}
