//! The operator's commands that look at all orders, on PostgreSQL. Those on SQLite are in
//! `tests/it/operator.rs` and `tests/it/prune.rs`.

use order_service::order::Outcome;
use order_service::store::{Mode, Store, Transition};

use super::{create, record};
use crate::cluster::cluster;
use crate::environment::{Ran, TestEnvironment};

/// Fills a database with an order in each status; returns its name.
async fn one_of_each() -> String {
    let database = cluster().database();
    let store = Store::open(&cluster().database_url(&database), Mode::Threaded).unwrap();
    for (id, steps) in [
        ("c", vec![]),
        ("p", vec![Transition::Adopted]),
        (
            "f",
            vec![Transition::Adopted, Transition::Settled(Outcome::Succeeded)],
        ),
        (
            "x",
            vec![Transition::Adopted, Transition::Settled(Outcome::Failed)],
        ),
    ] {
        let seq = create(&store, id, 10).await;
        let count = steps.len();
        if count > 0 {
            assert_eq!(record(&store, seq, steps, 20).await, (count, 0));
        }
    }
    database
}

fn run(database: &str, command: &[&str]) -> Ran {
    let url = cluster().url(database);
    let arguments = [command, &["--database-url", &url]].concat();
    TestEnvironment::new().run("order-service", &arguments, &[])
}

#[tokio::test]
async fn a_sound_database_is_ok_with_its_counts() {
    let database = one_of_each().await;
    let ran = run(&database, &["check"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let address = cluster().url(&database);
    assert!(
        ran.stdout.starts_with(&format!("ok: {address}\n")),
        "{ran:?}"
    );
    let counts = "1 CREATED, 1 PROCESSING, 1 FULFILLED, 1 FAILED";
    assert!(ran.stdout.contains(counts), "{ran:?}");
    assert!(ran.stdout.contains("up to entry 9"), "{ran:?}");
}

#[tokio::test]
async fn a_dry_run_tells_what_would_be_pruned_and_changes_nothing() {
    let database = one_of_each().await;
    let ran = run(&database, &["prune", "--settled-before", "1d", "--dry-run"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    // The newest order stays.
    assert!(
        ran.stdout.contains("to prune 1 FULFILLED, 0 FAILED"),
        "{ran:?}"
    );
    assert!(ran.stdout.contains("3 entries of theirs"), "{ran:?}");
    assert!(run(&database, &["check"]).stdout.contains("1 FULFILLED"));
}

#[test]
fn a_check_needs_a_database_of_ours_and_makes_none() {
    let database = cluster().database();
    for _ in 0..2 {
        let ran = run(&database, &["check"]);
        assert_eq!(ran.code, Some(3), "{ran:?}");
        assert!(ran.stderr.contains("there is no order database"), "{ran:?}");
    }
}

#[tokio::test]
async fn each_thing_that_must_not_be_is_found_and_told_in_one_line() {
    /// What an UPDATE or the schema would refuse.
    const FREE: &str = "DO $$ DECLARE r record; BEGIN FOR r IN SELECT conrelid::regclass AS t, conname \
                        FROM pg_constraint WHERE contype = 'c' AND conrelid IN \
                        ('orders'::regclass, 'journal'::regclass) LOOP \
                        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', r.t, r.conname); \
                        END LOOP; END $$; ";
    for (change, says) in [
        ("DELETE FROM histories", "there is no history"),
        (
            "UPDATE histories SET newest_order = 99",
            "begins after an order that is not there",
        ),
        (
            "UPDATE histories SET newest_entry = 99",
            "begins after an entry of the journal that is not there",
        ),
        (
            "UPDATE orders SET status = 'FAILED', confirmed_at = NULL WHERE id = 'p'",
            "order \"p\": it is FAILED, and its journal ends with PROCESSING",
        ),
        (
            "UPDATE orders SET updated_at = updated_at + 1 WHERE id = 'f'",
            "order \"f\": its updated_at",
        ),
        (
            "UPDATE orders SET created_at = created_at - 1 WHERE id = 'c'",
            "order \"c\": its created_at",
        ),
        (
            "DELETE FROM journal WHERE order_seq = 1",
            "order \"c\": the journal does not know it",
        ),
        (
            "DELETE FROM journal WHERE seq = 2",
            "the journal leaves out 1 entry before number 3",
        ),
        (
            "DELETE FROM journal WHERE seq = 2",
            "order \"p\": its journal begins with \"adopted\"",
        ),
        (
            "INSERT INTO journal VALUES (10, 3, 99, 'failed')",
            "order \"f\": entry 10 of the journal says \"failed\" of it when it was FULFILLED",
        ),
        (
            "INSERT INTO journal VALUES (10, 2, 22, 'restarted')",
            "order \"p\": it has 0 starts, and its journal has 1",
        ),
        (
            "UPDATE orders SET attention = 'process_lost' WHERE id = 'p'",
            "order \"p\": its attention",
        ),
        (
            "UPDATE orders SET attempts = 1 WHERE id = 'f'",
            "order \"f\": it is settled and has notes",
        ),
        (
            "UPDATE orders SET process_seen = true WHERE id = 'c'",
            "order \"c\": it has notes of a process that it never had",
        ),
        (
            "UPDATE orders SET id = ' c' WHERE id = 'c'",
            "order \" c\": its id begins or ends with white space",
        ),
        (
            "DELETE FROM orders WHERE id = 'c'",
            "row 1 of journal belongs to a row of orders that is not there",
        ),
        ("DELETE FROM heartbeat", "there are 0 heartbeats"),
        (
            "DELETE FROM pruned",
            "there are 0 records of what was pruned",
        ),
        (
            "UPDATE pruned SET fulfilled = 1, entries = 3, last_order_seq = 1, last_entry_seq = 3",
            "it was counted otherwise how many orders were pruned",
        ),
        (
            "UPDATE pruned SET history = 'x'",
            "what was pruned cannot be checked: ",
        ),
        (
            "DROP INDEX orders_with_attention",
            "the index orders_with_attention is missing",
        ),
        (
            "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
             CREATE TRIGGER t AFTER INSERT ON orders EXECUTE FUNCTION f()",
            "the trigger t is not ours",
        ),
    ] {
        let database = one_of_each().await;
        let sql = format!("SET search_path = order_service; {FREE}{change}");
        let changed = cluster().psql(&database, &sql);
        assert!(changed.status.success(), "{changed:?}");
        let ran = run(&database, &["check"]);
        assert_eq!(ran.code, Some(1), "{change}: {ran:?}");
        let line = ran.stdout.lines().find(|line| line.contains(says));
        let line = line.unwrap_or_else(|| panic!("{change}: {says}: {ran:?}"));
        assert!(line.contains("; "), "what to do: {line}");
    }
}
