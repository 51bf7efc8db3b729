//! Damaged copies, which are found and reported, and damaged sources.

use std::fs;

use rusqlite::Connection;

use super::{Engine, PAIRS, copied, copy, filled, new_url};
use crate::store::{execute, rows};

/// Damages of a copy: a statement for SQLite, and a part of what is reported.
const DAMAGES: &str = r#"
DELETE FROM orders WHERE seq = 6 -> order "\\o5
DELETE FROM orders WHERE seq = 40 -> is missing
DELETE FROM orders WHERE seq > 10 -> order "\\o39é日" is missing
UPDATE orders SET seq = 41 WHERE seq = 40 -> is not in the source
UPDATE orders SET seq = 20000 WHERE seq = 40 -> is missing
UPDATE orders SET id = id || 'x' WHERE seq = 7 -> id =
UPDATE orders SET id = upper(id) WHERE seq = 31 -> id = "\\O30
UPDATE orders SET status = 'FAILED' WHERE status = 'FULFILLED' AND seq = 6 -> status = "FAILED" instead of "FULFILLED"
UPDATE orders SET status = 'FULFILLED' WHERE seq = 7 -> status = "FULFILLED"
UPDATE orders SET created_at = created_at - 1 WHERE seq = 8 -> created_at =
UPDATE orders SET updated_at = updated_at + 1 WHERE seq = 9 -> updated_at =
UPDATE orders SET updated_at = updated_at + 1000000000 WHERE seq = 40 -> updated_at =
UPDATE orders SET starts = starts + 1 WHERE seq = 10 -> starts = "2" instead of "1"
UPDATE orders SET starts = 0 WHERE seq = 21 -> starts = "0" instead of "1"
UPDATE orders SET intent_at = intent_at - 1 WHERE seq = 21 -> intent_at =
UPDATE orders SET intent_at = NULL WHERE seq = 22 -> intent_at = nothing instead of
UPDATE orders SET intent_at = 5 WHERE seq = 40 -> intent_at = "5" instead of nothing
UPDATE orders SET given_up_at = given_up_at + 1 WHERE seq = 24 -> given_up_at =
UPDATE orders SET start_answer = 502 WHERE seq = 24 -> start_answer = "502" instead of "503"
UPDATE orders SET start_answer = NULL WHERE seq = 24 -> start_answer = nothing
UPDATE orders SET confirmed_at = confirmed_at + 1 WHERE seq = 26 -> confirmed_at =
UPDATE orders SET process_seen = 0 WHERE seq = 26 -> process_seen = "0" instead of "1"
UPDATE orders SET process_seen = 1 - process_seen WHERE seq = 28 -> process_seen =
UPDATE orders SET missed_at = 6 WHERE seq = 27 -> missed_at = "6" instead of "5"
UPDATE orders SET missed_at = NULL WHERE seq = 27 -> missed_at = nothing
UPDATE orders SET released_at = 5 WHERE seq = 28 -> released_at = "5"
UPDATE orders SET attempts = attempts + 1 WHERE seq = 24 -> attempts =
UPDATE orders SET next_attempt_at = next_attempt_at + 1 WHERE seq = 25 -> next_attempt_at =
UPDATE orders SET attention = 'max_starts' WHERE seq = 28 -> attention = "max_starts" instead of "process_lost"
UPDATE orders SET attention_since = attention_since + 1 WHERE seq = 28 -> attention_since =
UPDATE orders SET attention_detail = 'tab' WHERE seq = 28 -> attention_detail = "tab"
UPDATE orders SET attention = NULL, attention_since = NULL, attention_detail = NULL WHERE seq = 29 -> attention = nothing
DELETE FROM journal WHERE seq = 60 -> : entry 60 of the journal is missing
DELETE FROM journal WHERE seq = (SELECT max(seq) FROM journal) -> of the journal is missing
DELETE FROM journal WHERE order_seq = 12 -> order "\\o11é日": entry 12 of the journal is missing
INSERT INTO journal (seq, order_seq, at, reason) VALUES (1000, 12, 5, 'failed') -> entry 1000 of the journal is not in the source
UPDATE journal SET seq = 1000 WHERE seq = 60 -> entry 60 of the journal is missing
UPDATE journal SET order_seq = 13 WHERE seq = 12 -> entry 12 of the journal has order_seq
UPDATE journal SET at = at + 1 WHERE seq = 51 -> entry 51 of the journal has at =
UPDATE journal SET reason = 'adopted' WHERE reason = 'started' AND order_seq = 12 -> reason = "adopted" instead of "started"
UPDATE journal SET reason = 'failed_by_operator' WHERE reason = 'failed' AND order_seq = 13 -> reason = "failed_by_operator"
UPDATE heartbeat SET epoch = epoch + 1 -> heartbeat 1 differs in epoch
UPDATE heartbeat SET leader_since = NULL -> heartbeat 1 differs in leader_since
UPDATE heartbeat SET upstream_detail = 'other' -> heartbeat 1 differs in upstream_detail
UPDATE heartbeat SET learned = NULL -> heartbeat 1 differs in learned
UPDATE heartbeat SET tally = '{}' -> heartbeat 1 differs in tally
UPDATE pruned SET fulfilled = fulfilled + 1, failed = failed - 1 -> pruned 1 differs in fulfilled, failed
UPDATE pruned SET last_entry_seq = last_entry_seq - 1 -> pruned 1 differs in last_entry_seq
UPDATE pruned SET history = '{}' -> pruned 1 differs in history
UPDATE histories SET id = 5, newest_entry = 1 -> histories 1 differs in id, newest_entry
"#;

#[tokio::test(flavor = "multi_thread")]
async fn each_damage_of_a_copy_is_found_and_reported() {
    let (env, [from, to]) = filled([Engine::Sqlite, Engine::Sqlite]).await;
    copied(&env, &from, &to);
    let file = to.strip_prefix("sqlite:").unwrap();
    let undamaged = fs::read(file).unwrap();
    for (damage, expected) in rows(DAMAGES) {
        let db = Connection::open(file).unwrap();
        let unconstrain = "PRAGMA ignore_check_constraints = ON; PRAGMA foreign_keys = OFF; ";
        db.execute_batch(&format!("{unconstrain}{damage}")).unwrap();
        assert!(db.changes() > 0, "{damage}");
        db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
            .unwrap();
        drop(db);
        let ran = copy(&env, &["--verify-only", &from, &to]);
        assert_eq!(ran.code, Some(1), "{damage}: {ran:?}");
        assert!(
            ran.stdout.contains(expected),
            "{damage}: {expected}: {ran:?}"
        );
        let back = copy(&env, &["--take-back", &from, &to]);
        assert_eq!(back.code, Some(1), "{damage}: {back:?}");
        fs::write(file, &undamaged).unwrap();
    }
    let ran = copy(&env, &["--verify-only", &from, &to]);
    assert_eq!(ran.stdout, "equal\n", "{ran:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_error_of_a_database_is_printed_once_with_what_to_do() {
    for engines in PAIRS {
        let (env, [from, to]) = filled(engines).await;
        execute(&from, "ALTER TABLE heartbeat RENAME TO other");
        let cause = match engines[0] {
            Engine::Sqlite => "no such table",
            #[cfg(feature = "postgres")]
            Engine::Postgres => "does not exist",
        };
        for flag in [None, Some("--verify-only")] {
            let arguments: Vec<_> = flag.into_iter().chain([from.as_str(), &to]).collect();
            let ran = copy(&env, &arguments).assert_code(1);
            assert_eq!(ran.stderr.matches(cause).count(), 1, "{ran:?}");
            let to_do = "; run the command again once that is mended\n";
            assert!(ran.stderr.ends_with(to_do), "{ran:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_database_is_not_moved() {
    for engines in PAIRS {
        let (env, [from, to]) = filled(engines).await;
        let damage = "UPDATE orders SET updated_at = updated_at + 1 WHERE seq = 9";
        execute(&from, damage);
        let ran = copy(&env, &[&from, &to]).assert_code(1);
        assert!(ran.stderr.contains("its updated_at"), "{ran:?}");
        let check = |url: &str| env.run("order-service", &["check", "--database-url", url]);
        let incomplete = check(&to).assert_code(3);
        let expected = format!("is an incomplete copy of {from}; ");
        assert!(incomplete.stderr.contains(&expected), "{incomplete:?}");
        assert_eq!(check(&from).code, Some(1), "the source can still be used");
        // Once the source is repaired, the copy resumes.
        execute(&from, &damage.replace('+', "-"));
        copied(&env, &from, &to);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_an_earlier_format_is_not_compared_and_what_it_would_replace_is_reported() {
    let (env, [occupied, _]) = filled([Engine::Sqlite; 2]).await;
    let earlier = new_url(&env, Engine::Sqlite);
    execute(&earlier, include_str!("../../../sql/006_schema.sql"));
    execute(&earlier, "PRAGMA user_version = 6");
    for urls in [[&earlier, &occupied], [&occupied, &earlier]] {
        let ran = copy(&env, &["--verify-only", urls[0], urls[1]]).assert_code(3);
        assert!(ran.stderr.contains("is of an earlier format; "), "{ran:?}");
        assert_eq!(ran.stdout, "", "{ran:?}");
        let ran = copy(&env, &[urls[0], urls[1]]).assert_code(3);
        let expected = format!("{}: holds an order database already", urls[1]);
        assert!(ran.stderr.contains(&expected), "{ran:?}");
    }
}
