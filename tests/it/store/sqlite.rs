//! Promises of SQLite's file and schema beyond the suite.

use order_service::store::{DatabaseUrl, Mode, Store};
use rusqlite::Connection;

use super::{Fresh, create};
use crate::environment::{TestEnvironment, ready};

/// An empty database in a folder of its own.
pub fn fresh() -> Fresh {
    fresh_in(TestEnvironment::new())
}

/// An empty database in this folder.
pub fn fresh_in(env: TestEnvironment) -> Fresh {
    Fresh {
        store: env.store(),
        other: env.store(),
        env,
    }
}

impl Fresh {
    /// Lets another reconciler lead beside the one that does.
    pub fn break_lock(&self) {
        std::fs::remove_file(self.env.path("orders.db-leader")).unwrap();
    }
}

#[tokio::test]
async fn the_schema_refuses_impossible_rows() {
    let Fresh { store, env, .. } = fresh();
    create(&store, "a1", 10).await;
    let db = Connection::open(env.database()).unwrap();
    for change in [
        "status = 'LOST'",
        "status = 'created'",
        "status = NULL",
        "status = 'PROCESSING'",
        "id = ''",
        "updated_at = created_at - 1",
        "starts = -1",
        "confirmed_at = 1",
        "process_seen = 1",
        "status = 'PROCESSING', confirmed_at = 1, process_seen = 2",
        "given_up_at = 1",
        "intent_at = 1, start_answer = 503",
        "attention = 'process_lost'",
        "attention = 'sad', attention_since = 1, attention_detail = ''",
        "status = 'FULFILLED', attempts = 1",
        "status = 'FAILED', intent_at = 1",
        "status = 'FAILED', attention = 'process_lost', attention_since = 1, attention_detail = ''",
        "created_at = 'now'",
    ] {
        let result = db.execute(&format!("UPDATE orders SET {change}"), []);
        assert!(result.is_err(), "{change}");
    }
    for entry in [
        "(1, 1, 'lost')",
        "(99, 1, 'created')",
        "(1, 'now', 'created')",
    ] {
        let insert = format!("INSERT INTO journal (order_seq, at, reason) VALUES {entry}");
        assert!(db.execute(&insert, []).is_err(), "{entry}");
    }
    let second = db.execute("INSERT INTO heartbeat (id) VALUES (2)", []);
    assert!(second.is_err(), "there is one heartbeat");
}

#[test]
fn many_may_create_and_migrate_the_same_file_at_the_same_moment() {
    for _ in 0..10 {
        let env = TestEnvironment::new();
        let path = DatabaseUrl::from(env.database());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let store = Store::open(&path, Mode::Threaded).unwrap();
                    ready(store.newest_event()).unwrap()
                });
            }
        });
    }
}
