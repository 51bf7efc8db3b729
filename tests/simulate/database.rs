//! The committed rows of a database, which the oracle reads with SQL of its own.

use order_service::order::Timestamp;
use rusqlite::Connection;

/// An entry of the journal: its number, the order's id, the statuses before and after, the reason.
pub type Entry = (i64, String, Option<String>, String, String);

/// An order: its id, status, number of starts, and reason for attention.
pub type OrderRow = (String, String, u32, Option<String>);

const DUE: &str = "SELECT seq FROM orders WHERE status = 'CREATED' AND intent_at IS NULL \
                   AND (attempts > 0) = $1 AND coalesce(next_attempt_at, 0) <= $2 \
                   AND (starts < $3 OR released_at IS NOT NULL)";

const INTENT: &str = "SELECT intent_at FROM orders WHERE id = $1";

const ORDERS: &str = "SELECT id, status, starts, attention FROM orders";

/// The committed rows of a database.
pub trait Database {
    /// Returns the orders that may be started now, either those with a failed attempt or the others.
    fn due(&self, now: Timestamp, has_failed: bool, max_starts: u32) -> Vec<i64>;

    /// Returns the time of an order's intent.
    fn intent_at(&self, id: &str) -> Option<i64>;

    /// Returns the entries of the journal after a number.
    fn entries(&self, after: i64) -> Vec<Entry>;

    /// Returns all orders.
    fn orders(&self) -> Vec<OrderRow>;
}

impl Database for Connection {
    fn due(&self, now: Timestamp, has_failed: bool, max_starts: u32) -> Vec<i64> {
        let mut query = self.prepare_cached(DUE).unwrap();
        let seqs = query.query_map((has_failed, now.0, max_starts), |row| row.get(0));
        seqs.unwrap().collect::<Result<_, _>>().unwrap()
    }

    fn intent_at(&self, id: &str) -> Option<i64> {
        self.query_row(INTENT, [id], |row| row.get(0)).unwrap()
    }

    fn entries(&self, after: i64) -> Vec<Entry> {
        let mut query = self
            .prepare_cached(
                "SELECT journal.seq, id, from_status, to_status, reason FROM journal \
                 JOIN orders ON orders.seq = order_seq WHERE journal.seq > $1 ORDER BY journal.seq",
            )
            .unwrap();
        let entries = query.query_map([after], |row| row.try_into());
        entries.unwrap().collect::<Result<_, _>>().unwrap()
    }

    fn orders(&self) -> Vec<OrderRow> {
        let mut query = self.prepare_cached(ORDERS).unwrap();
        let orders = query.query_map([], |row| row.try_into());
        orders.unwrap().collect::<Result<_, _>>().unwrap()
    }
}

#[cfg(feature = "postgres")]
pub mod postgres {
    //! A database of a PostgreSQL cluster of the simulation's own, emptied for each run.

    use std::sync::Arc;

    use order_service::order::Timestamp;
    use order_service::store::{DatabaseUrl, Mode, Store};
    use tokio_postgres::types::ToSql;
    use tokio_postgres::{Client, NoTls, Row};

    use super::{DUE, Database, Entry, INTENT, ORDERS, OrderRow};
    use crate::cluster::{EMPTY, cluster};

    /// A database, and a connection to it.
    #[derive(Clone)]
    pub struct Server(Arc<Inner>);

    struct Inner {
        name: String,
        client: Client,
        runtime: tokio::runtime::Runtime,
    }

    impl Server {
        /// Starts a cluster, and creates the database.
        pub fn start() -> Self {
            let name = cluster().database();
            drop(Store::open(&cluster().database_url(&name), Mode::Threaded).unwrap());
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let url = format!(
                "{}?options=-csearch_path%3Dorder_service",
                cluster().url(&name)
            );
            let client = runtime.block_on(async {
                let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
                tokio::spawn(connection);
                client
            });
            Self(Arc::new(Inner {
                name,
                client,
                runtime,
            }))
        }

        /// Removes everything from the database, and returns its address.
        pub fn empty(&self) -> DatabaseUrl {
            let Inner {
                name,
                client,
                runtime,
            } = &*self.0;
            runtime.block_on(client.batch_execute(EMPTY)).unwrap();
            cluster().database_url(name)
        }

        fn query(&self, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Vec<Row> {
            let Inner {
                client, runtime, ..
            } = &*self.0;
            runtime.block_on(client.query(sql, values)).unwrap()
        }
    }

    impl Database for Server {
        fn due(&self, now: Timestamp, has_failed: bool, max_starts: u32) -> Vec<i64> {
            let max_starts = i32::try_from(max_starts).unwrap();
            let rows = self.query(DUE, &[&has_failed, &now.0, &max_starts]);
            rows.iter().map(|row| row.get(0)).collect()
        }

        fn intent_at(&self, id: &str) -> Option<i64> {
            self.query(INTENT, &[&id])[0].get(0)
        }

        fn entries(&self, after: i64) -> Vec<Entry> {
            // The statuses of an entry follow from its reason.
            const SQL: &str = "\
                SELECT journal.seq, id, \
                    CASE WHEN reason IN ('started', 'adopted') THEN 'CREATED' \
                         WHEN reason <> 'created' THEN 'PROCESSING' END, \
                    CASE reason WHEN 'created' THEN 'CREATED' WHEN 'succeeded' THEN 'FULFILLED' \
                         WHEN 'started' THEN 'PROCESSING' WHEN 'adopted' THEN 'PROCESSING' \
                         WHEN 'restarted' THEN 'PROCESSING' ELSE 'FAILED' END, \
                    reason \
                FROM journal JOIN orders ON orders.seq = order_seq \
                WHERE journal.seq > $1 ORDER BY journal.seq";
            let rows = self.query(SQL, &[&after]);
            let entry = |row: &Row| (row.get(0), row.get(1), row.get(2), row.get(3), row.get(4));
            rows.iter().map(entry).collect()
        }

        fn orders(&self) -> Vec<OrderRow> {
            let rows = self.query(ORDERS, &[]);
            let order = |row: &Row| {
                let starts = u32::try_from(row.get::<_, i32>(2)).unwrap();
                (row.get(0), row.get(1), starts, row.get(3))
            };
            rows.iter().map(order).collect()
        }
    }
}
