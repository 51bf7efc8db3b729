//! The operator's commands: `backup` with restoration, `check`, and refusals of `restart` and `fail`. What
//! each engine promises of `check` is in `tests/it/store/check.rs`.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use order_service::clock::{Clock, SystemClock};
use order_service::order::Status;
use order_service::store::{DatabaseUrl, Filter, Mode, Store};
use rusqlite::Connection;

use crate::environment::{Client, Ran, TestEnvironment, assert_agree, fill, orders};

fn run(env: &TestEnvironment, arguments: &[&str]) -> Ran {
    env.run("order-service", arguments)
}

/// Returns the file names in the test's folder, without the logs of programs.
fn files(env: &TestEnvironment) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(env.path("."))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.ends_with(".log"))
        .collect();
    names.sort();
    names
}

fn ids(path: &Path) -> Vec<String> {
    let db = Connection::open(path).unwrap();
    let mut query = db.prepare("SELECT id FROM orders ORDER BY seq").unwrap();
    let ids = query.query_map([], |row| row.get(0)).unwrap();
    ids.collect::<Result<_, _>>().unwrap()
}

/// Creates orders as fast as possible while `work` runs. Returns their number.
async fn beside_a_writer(store: &Store, work: impl FnOnce()) -> usize {
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, store) = (stop.clone(), store.clone());
    let writer = tokio::spawn(async move {
        let mut count = 0;
        while !stopped.load(Ordering::Relaxed) {
            let batch: Vec<_> = (count..count + 200).map(|n| format!("w{n}")).collect();
            fill(&store, &batch, 200).await;
            count += batch.len();
        }
        count
    });
    tokio::task::block_in_place(work);
    stop.store(true, Ordering::Relaxed);
    writer.await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_during_constant_writes_is_complete_and_of_one_moment() {
    let env = TestEnvironment::new();
    let store = env.store();
    let before: Vec<_> = (0..5_000).map(|n| format!("o{n}")).collect();
    fill(&store, &before, 500).await;
    let written = beside_a_writer(&store, || {
        for name in ["one.db", "two.db"] {
            let known = ids(&env.database()).len();
            let ran = run(&env, &["backup", name]).assert_code(0);
            assert_eq!(ran.stderr, "");
            let copied = ids(&env.path(name));
            assert!(
                copied.len() >= known,
                "acknowledged orders are in the backup"
            );
            let expected = format!("{} CREATED", copied.len());
            assert!(ran.stdout.contains(&expected), "{expected}: {ran:?}");
            let journal = format!("up to entry {}", copied.len());
            assert!(ran.stdout.contains(&journal), "{journal}: {ran:?}");
            // The first orders, without a gap.
            assert_eq!(ids(&env.database())[..copied.len()], copied[..]);
            let mode: String = Connection::open(env.path(name))
                .unwrap()
                .query_row("PRAGMA journal_mode", [], |row| row.get(0))
                .unwrap();
            assert_eq!(mode, "delete", "the backup is a single file");
        }
    })
    .await;
    assert!(written > 0, "orders were created meanwhile");
    let left: Vec<_> = files(&env)
        .into_iter()
        .filter(|name| !name.starts_with("orders.db"))
        .collect();
    assert_eq!(left, ["one.db", "two.db"], "no other file is left");
}

#[tokio::test]
async fn a_backup_replaces_a_file_only_on_request() {
    let env = TestEnvironment::new();
    fill(&env.store(), &["a1".into()], 1).await;
    fs::write(env.path("copy.db"), "precious").unwrap();
    let ran = run(&env, &["backup", "copy.db"]).assert_code(2);
    assert!(ran.stderr.contains("copy.db: exists"), "{ran:?}");
    assert_eq!(fs::read(env.path("copy.db")).unwrap(), b"precious");
    run(&env, &["backup", "--replace", "copy.db"]).assert_code(0);
    assert_eq!(ids(&env.path("copy.db")), ["a1"]);
    // SQLite would apply the log of an earlier file of this name to the new one.
    fs::write(env.path("other.db-wal"), "old").unwrap();
    let ran = run(&env, &["backup", "other.db"]).assert_code(1);
    assert!(ran.stderr.contains("other.db-wal: exists"), "{ran:?}");
}

#[tokio::test]
async fn a_backup_into_the_database_itself_is_refused_under_every_name() {
    let env = TestEnvironment::new();
    let store = env.store();
    fill(&store, &["a1".into()], 1).await;
    std::os::unix::fs::symlink("orders.db", env.path("link.db")).unwrap();
    fs::hard_link(env.database(), env.path("hard.db")).unwrap();
    for name in [
        "orders.db",
        "./orders.db",
        "link.db",
        "hard.db",
        "orders.db-wal",
        "orders.db-shm",
        "orders.db-leader",
    ] {
        let ran = run(&env, &["backup", "--replace", name]);
        assert_eq!(ran.code, Some(2), "{name}: {ran:?}");
        assert!(ran.stderr.contains("the database itself"), "{ran:?}");
    }
    assert_eq!(orders(&store, Filter::default()).len(), 1);
    // A database with a second name is not written.
    fs::remove_file(env.path("hard.db")).unwrap();
    fill(&store, &["a2".into()], 1).await;
    assert_eq!(ids(&env.database()), ["a1", "a2"]);
}

#[tokio::test]
async fn a_failed_backup_prints_its_reason_in_one_line_and_leaves_no_file() {
    let env = TestEnvironment::new();
    let ran = run(&env, &["backup", "copy.db"]).assert_code(3);
    assert!(ran.stderr.contains("there is no such database"), "{ran:?}");
    fill(&env.store(), &["a1".into()], 1).await;
    let before = files(&env);
    for (file, says) in [
        ("missing/copy.db", "missing: cannot be written"),
        (".", "cannot be written"),
        ("orders.db/copy.db", "cannot be written"),
    ] {
        let ran = run(&env, &["backup", file]);
        assert_eq!(ran.code, Some(1), "{file}: {ran:?}");
        assert!(ran.stderr.contains(says), "{says}: {ran:?}");
        assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
    }
    assert_eq!(run(&env, &["backup"]).code, Some(2));
    // A damaged copy is not kept.
    let db = Connection::open(env.database()).unwrap();
    db.execute_batch("DELETE FROM journal").unwrap();
    drop(db);
    let ran = run(&env, &["backup", "copy.db"]).assert_code(1);
    assert!(ran.stderr.contains("order \"a1\""), "{ran:?}");
    assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
    assert_eq!(files(&env), before);
}

#[tokio::test]
async fn what_a_killed_backup_has_left_is_removed_by_the_next_unless_another_runs() {
    let env = TestEnvironment::new();
    fill(&env.store(), &["a1".into()], 1).await;
    let part = env.path("other.db1b2c3d.order-service.part");
    let journal = env.path("other.db1b2c3d.order-service.part-journal");
    for path in [&part, &journal] {
        fs::write(path, "half").unwrap();
    }
    let folder = fs::File::open(env.path(".")).unwrap();
    folder.lock_shared().unwrap();
    run(&env, &["backup", "one.db"]).assert_code(0);
    assert!(part.exists() && journal.exists(), "another backup runs");
    folder.unlock().unwrap();
    run(&env, &["backup", "two.db"]).assert_code(0);
    assert!(!part.exists() && !journal.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_a_restored_backup_does_not_know_are_adopted() {
    let env = TestEnvironment::new();
    let simulator = env.simulator(&["--max-order-process-duration", "1"]);
    let client = Client::new();
    let api = env.api(&[]);
    for id in ["a1", "a2", "a3"] {
        client.create(&api.url, id).await;
    }
    run(&env, &["backup", "copy.db"]).assert_code(0);
    // After the backup, the orders are started and settled, and the machine dies.
    let reconciler = env.reconciler(&simulator.url, &[]);
    client.settled(&api.url, 3).await;
    reconciler.kill();
    api.kill();
    // As docs/operations.md says: the database is moved away with all its files.
    fs::create_dir(env.path("old")).unwrap();
    for name in files(&env) {
        if name.starts_with("orders.db") {
            fs::rename(env.path(&name), env.path("old").join(&name)).unwrap();
        }
    }
    fs::copy(env.path("copy.db"), env.database()).unwrap();
    let service = env.serve(&simulator.url, &[]);
    let orders = client.settled(&service.url, 3).await;
    // Each process was started once, before the restoration, and is adopted.
    assert_eq!(env.outcomes().len(), 3);
    for order in &orders {
        assert_eq!(order["starts"], 0, "the backup has no start: {order}");
    }
    let mut orders = orders;
    for order in &mut orders {
        order["starts"] = 1.into();
    }
    assert_agree(&env, &orders);
    run(&env, &["check"]).assert_code(0);
    assert_eq!(service.stop(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_during_constant_writes_finds_nothing() {
    let env = TestEnvironment::new();
    let store = env.store();
    let written = beside_a_writer(&store, || {
        for _ in 0..3 {
            run(&env, &["check"]).assert_code(0);
        }
    })
    .await;
    assert!(written > 0, "orders were created meanwhile");
}

#[tokio::test]
async fn a_check_needs_an_existing_database_of_this_service() {
    let env = TestEnvironment::new();
    run(&env, &["check"]).assert_code(3);
    assert!(!env.database().exists());
    fs::write(env.path("noise.db"), "noise".repeat(2_000)).unwrap();
    let foreign = Connection::open(env.path("foreign.db")).unwrap();
    foreign.execute_batch("CREATE TABLE t (x)").unwrap();
    for (name, format) in [("newer.db", 99), ("older.db", 5)] {
        Store::open(&DatabaseUrl::from(env.path(name)), Mode::Threaded).unwrap();
        let other = Connection::open(env.path(name)).unwrap();
        other.pragma_update(None, "user_version", format).unwrap();
    }
    for (name, says) in [
        ("noise.db", "is not an SQLite database"),
        ("foreign.db", "of another program"),
        ("newer.db", "newer version"),
        ("older.db", "has format 5"),
    ] {
        let ran = run(&env, &["check", "--database-url", name]).assert_code(3);
        assert!(ran.stderr.contains(says), "{ran:?}");
    }
}

#[tokio::test]
async fn a_damaged_page_is_found() {
    let env = TestEnvironment::new();
    let store = env.store();
    let many: Vec<_> = (0..2_000).map(|n| format!("o{n}")).collect();
    fill(&store, &many, 500).await;
    store.checkpoint().await;
    drop(store);
    let mut bytes = fs::read(env.database()).unwrap();
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 2_000].fill(0xff);
    fs::write(env.database(), bytes).unwrap();
    let ran = run(&env, &["check"]).assert_code(1);
    assert!(ran.stdout.contains("the file is damaged"), "{ran:?}");
    assert_eq!(run(&env, &["backup", "copy.db"]).code, Some(1));
    assert!(!env.path("copy.db").exists());
}

#[tokio::test]
async fn many_findings_of_one_kind_are_counted() {
    let env = TestEnvironment::new();
    let store = env.store();
    let many: Vec<_> = (0..120).map(|n| format!("o{n}")).collect();
    fill(&store, &many, 60).await;
    let all = orders(&store, Filter::default());
    assert!(all.iter().all(|order| order.status == Status::Created));
    assert!(
        all.iter()
            .all(|order| order.created_at <= SystemClock.now())
    );
    let db = Connection::open(env.database()).unwrap();
    db.execute_batch("UPDATE orders SET updated_at = updated_at + 1")
        .unwrap();
    let ran = run(&env, &["check"]);
    assert_eq!(ran.stdout.lines().count(), 51, "{ran:?}");
    assert!(ran.stdout.contains("and 70 more of this kind"), "{ran:?}");
}

#[tokio::test]
async fn a_command_that_does_not_apply_to_an_order_says_to_which_it_applies() {
    let env = TestEnvironment::new();
    fill(&env.store(), &["a1".into()], 1).await;
    for (command, expected) in [
        ("restart", "an order that is held or refused"),
        ("fail", "a PROCESSING order whose process was forgotten"),
    ] {
        let ran = run(&env, &[command, "a1"]).assert_code(1);
        let says = format!("it is CREATED and needs no operator; expected {expected}\n");
        assert!(ran.stderr.ends_with(&says), "{ran:?}");
    }
}
