//! Tests of SQLite alone: its file and schema.

use order_service::store::{DatabaseUrl, Mode, Store};

use super::{TestDatabase, create, try_execute};
use crate::environment::{TestEnvironment, ready};

/// Creates an empty database in a new folder.
pub fn new_database() -> TestDatabase {
    new_database_in(TestEnvironment::new())
}

/// Creates an empty database in this folder.
pub fn new_database_in(env: TestEnvironment) -> TestDatabase {
    TestDatabase {
        store: env.store(),
        other: env.store(),
        env,
    }
}

impl TestDatabase {
    /// Removes the leader's lock without its knowledge, so that another reconciler can become leader.
    pub fn break_lock(&self) {
        std::fs::remove_file(self.env.path("orders.db-leader")).unwrap();
    }
}

#[tokio::test]
async fn the_schema_refuses_values_of_other_types_and_entries_of_no_order() {
    let TestDatabase { store, .. } = &new_database();
    create(store, "a1", 10).await;
    for sql in [
        "UPDATE orders SET status = 'PROCESSING', confirmed_at = 1, process_seen = 2",
        "INSERT INTO journal (order_seq, at, reason) VALUES (99, 1, 'created')",
        "INSERT INTO journal (order_seq, at, reason) VALUES (1, 'now', 'created')",
    ] {
        assert!(try_execute(&store.info().address, sql).is_err(), "{sql}");
    }
}

#[test]
fn concurrent_processes_may_create_and_migrate_the_same_file() {
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
