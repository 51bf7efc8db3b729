//! The operator's commands that read all orders, on each engine. `tests/it/operator.rs` and
//! `tests/it/prune.rs` test them further on SQLite.

use order_service::order::Outcome;
use order_service::store::Transition;

use super::{ENGINES, Factory, TestDatabase, create, execute, record, rows};
use crate::environment::{Ran, TestEnvironment};

/// A database with an order in each status, one of them written by a clock that was set back. No program
/// has it open.
struct OneOfEach {
    env: TestEnvironment,
    address: String,
}

impl OneOfEach {
    async fn new(new_database: Factory) -> Self {
        let TestDatabase { store, env, .. } = new_database();
        for (id, created_at, steps) in [
            ("c", 10, vec![]),
            ("p", 20, vec![(21, Transition::Adopted)]),
            (
                "f",
                30,
                vec![
                    (31, Transition::Adopted),
                    (32, Transition::Settled(Outcome::Succeeded)),
                ],
            ),
            (
                "x",
                50,
                vec![
                    (41, Transition::Adopted),
                    (40, Transition::Settled(Outcome::Failed)),
                ],
            ),
        ] {
            let seq = create(&store, id, created_at).await;
            for (at, step) in steps {
                assert_eq!(record(&store, seq, vec![step], at).await, (1, 0));
            }
        }
        let address = store.info().address;
        Self { env, address }
    }

    fn run(&self, command: &[&str]) -> Ran {
        let arguments = [command, &["--database-url", &self.address]].concat();
        self.env.run("order-service", &arguments)
    }
}

#[tokio::test]
async fn a_sound_database_is_ok_with_its_counts() {
    for new_database in ENGINES {
        let database = OneOfEach::new(*new_database).await;
        let ran = database.run(&["check"]).assert_code(0);
        let ok = format!("ok: {}\n", database.address);
        assert!(ran.stdout.starts_with(&ok), "{ran:?}");
        let counts = "1 CREATED, 1 PROCESSING, 1 FULFILLED, 1 FAILED";
        assert!(ran.stdout.contains(counts), "{ran:?}");
        assert!(ran.stdout.contains("up to entry 9"), "{ran:?}");
    }
}

#[tokio::test]
async fn a_dry_run_reports_the_orders_to_prune_and_changes_nothing() {
    for new_database in ENGINES {
        let database = OneOfEach::new(*new_database).await;
        let ran = database
            .run(&["prune", "--settled-before", "1d", "--dry-run"])
            .assert_code(0);
        // The newest order stays.
        let counts = "to prune 1 FULFILLED, 0 FAILED";
        assert!(ran.stdout.contains(counts), "{ran:?}");
        assert!(ran.stdout.contains("3 entries of theirs"), "{ran:?}");
        let after = database.run(&["check"]);
        assert!(after.stdout.contains("1 FULFILLED"), "{after:?}");
    }
}

#[cfg(feature = "postgres")]
#[test]
fn a_check_requires_an_order_database_and_creates_none() {
    use crate::cluster::cluster;

    let url = cluster().url(&cluster().database());
    for _ in 0..2 {
        let arguments = ["check", "--database-url", &url];
        let ran = TestEnvironment::new()
            .run("order-service", &arguments)
            .assert_code(3);
        assert!(ran.stderr.contains("there is no order database"), "{ran:?}");
    }
}

/// Statements that damage a database on either engine, each followed by a part of the line that reports
/// it.
const DAMAGES: &str = r#"
DELETE FROM histories -> there is no history
UPDATE histories SET newest_order = 99 -> begins after an order that is not there
UPDATE histories SET newest_entry = 99 -> begins after an entry of the journal that is not there
UPDATE orders SET status = 'FAILED', confirmed_at = NULL WHERE id = 'p' -> order "p": it is FAILED, and its journal ends with PROCESSING
UPDATE orders SET status = 'LOST' WHERE id = 'c' -> order "c": it is LOST
UPDATE orders SET updated_at = updated_at + 1 WHERE id = 'f' -> order "f": its updated_at
UPDATE orders SET created_at = created_at - 1 WHERE id = 'c' -> order "c": its created_at
DELETE FROM journal WHERE order_seq = 1 -> order "c": the journal does not know it
DELETE FROM journal WHERE seq = 2 -> the journal leaves out 1 entry before number 3
DELETE FROM journal WHERE seq = 2 -> order "p": its journal begins with "adopted"
INSERT INTO journal (seq, order_seq, at, reason) VALUES (10, 3, 99, 'failed') -> order "f": entry 10 of the journal says "failed" of it when it was FULFILLED
INSERT INTO journal (seq, order_seq, at, reason) VALUES (10, 2, 22, 'restarted') -> order "p": it has 0 starts, and its journal has 1
UPDATE orders SET attention = 'process_lost' WHERE id = 'p' -> order "p": its attention
UPDATE orders SET attempts = 1 WHERE id = 'f' -> order "f": it is settled and has notes
UPDATE orders SET attempts = 1 WHERE id = 'c' -> order "c": it has failed attempts and no attention
UPDATE orders SET process_seen = true WHERE id = 'f' -> order "f": it is settled and has notes
UPDATE orders SET process_seen = true WHERE id = 'c' -> order "c": it has notes of a process that it never had
UPDATE orders SET id = ' c' WHERE id = 'c' -> order " c": its id begins or ends with white space
DELETE FROM orders WHERE id = 'c' -> row 1 of journal belongs to a row of orders that is not there
DELETE FROM heartbeat -> there are 0 heartbeats
DELETE FROM pruned -> there are 0 records of what was pruned
UPDATE pruned SET fulfilled = 1, entries = 3, last_order_seq = 1, last_entry_seq = 3 -> the number of pruned orders contradicts that of their entries
UPDATE pruned SET history = 'x' -> what was pruned cannot be checked:
DROP INDEX orders_with_attention -> the index orders_with_attention is missing
"#;

/// Damages a database, and checks that one line reports it. `unconstrain` first removes the constraints
/// that would reject the damage.
async fn assert_found(new_database: Factory, unconstrain: &str, damage: &str, expected: &str) {
    let database = OneOfEach::new(new_database).await;
    execute(&database.address, &format!("{unconstrain}{damage}"));
    let ran = database.run(&["check"]);
    assert_eq!(ran.code, Some(1), "{damage}: {ran:?}");
    let line = ran.stdout.lines().find(|line| line.contains(expected));
    let line = line.unwrap_or_else(|| panic!("{damage}: {expected}: {ran:?}"));
    assert!(line.contains("; "), "the line has advice: {line}");
}

#[tokio::test]
async fn each_damage_of_a_file_is_found_and_reported_in_one_line() {
    const UNCONSTRAIN: &str = "PRAGMA ignore_check_constraints = ON; PRAGMA foreign_keys = OFF; ";
    const SQLITE_DAMAGES: &str = "
DROP INDEX journal_by_order; CREATE INDEX journal_by_order ON journal (order_seq) -> index journal_by_order is not as it was made
CREATE TRIGGER t AFTER INSERT ON orders BEGIN DELETE FROM orders; END -> trigger t is not ours
";
    for (damage, expected) in rows(DAMAGES).chain(rows(SQLITE_DAMAGES)) {
        assert_found(super::sqlite::new_database, UNCONSTRAIN, damage, expected).await;
    }
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn each_damage_of_a_servers_database_is_found_and_reported_in_one_line() {
    const UNCONSTRAIN: &str = "DO $$ DECLARE r record; BEGIN FOR r IN SELECT conrelid::regclass AS t, conname \
                        FROM pg_constraint WHERE contype = 'c' AND conrelid IN \
                        ('orders'::regclass, 'journal'::regclass) LOOP \
                        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', r.t, r.conname); \
                        END LOOP; END $$; ";
    const POSTGRES_DAMAGES: &str = "
CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; CREATE TRIGGER t AFTER INSERT ON orders EXECUTE FUNCTION f() -> the trigger t is not ours
";
    for (damage, expected) in rows(DAMAGES).chain(rows(POSTGRES_DAMAGES)) {
        assert_found(super::postgres::new_database, UNCONSTRAIN, damage, expected).await;
    }
}
