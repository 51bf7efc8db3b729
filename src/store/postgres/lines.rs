//! The session of the operator's commands. Its rows come as lines of text by COPY, whose format that is; see
//! `store/lines.rs`.

use std::sync::{Arc, mpsc};

use super::connect::Connector;
use super::dialect::without_indexes;
use super::error::Error;
use super::session::Session;
use super::{PostgresUrl, Thread, on_thread, start};
use crate::clock::Clock;
use crate::messages::with_causes;
use crate::order::{EventReason, Timestamp};
use crate::store::check::{Check, SCHEMA};
use crate::store::lines::{BoxError, Lines};
use crate::store::relocation::Purpose;
use crate::store::{Finding, OpenError};

/// Number of bytes that are handed on at once.
const CHUNK: usize = 64 * 1024;

/// Chunks that wait to be taken.
const CHUNKS_WAITING: usize = 4;

/// The planner's choice instead of that for single orders: everything is read.
const PLANS: &str = "SET enable_seqscan = on; SET enable_nestloop = on; SET enable_bitmapscan = on; \
                     SET work_mem = '64MB'";

/// Indexes without which the programs would read whole tables, and triggers that someone has added.
const SCHEMA_FINDINGS: &str = "\
    SELECT NULL, 'the index ' || name || ' is missing, or not valid' \
    FROM (VALUES ('orders_pkey'), ('orders_id_key'), ('orders_by_status'), ('orders_with_intent'), \
                 ('orders_with_attention'), ('journal_pkey'), ('journal_by_order')) AS wanted (name) \
    WHERE NOT EXISTS (SELECT 1 FROM pg_index \
                      WHERE indexrelid = to_regclass('order_service.' || name) AND indisvalid) \
    UNION ALL \
    SELECT NULL, 'the trigger ' || tgname || ' is not ours and may change orders' \
    FROM pg_trigger \
    WHERE NOT tgisinternal AND tgrelid IN (SELECT oid FROM pg_class \
                                           WHERE relnamespace = 'order_service'::regnamespace)";

const UNREADABLE: &str = "repeat the check; if that fails as well, the server's log says more";

/// A connection whose rows are read as lines, and the thread that drives it.
pub(in crate::store) struct LineSession {
    thread: Thread,
    session: Arc<Session>,
}

impl LineSession {
    /// Opens a session that only reads, on a database that must be there.
    pub fn open(url: &PostgresUrl) -> Result<Self, OpenError> {
        Self::connect(
            Connector::new(url, Purpose::Read)?,
            |connector| async move {
                let session = connector.session_for_reading().await?;
                session.execute(PLANS).await?;
                Ok(session)
            },
        )
    }

    /// Starts a thread, and opens the session on it.
    pub(super) fn connect<F>(
        connector: Connector,
        open: impl FnOnce(Arc<Connector>) -> F,
    ) -> Result<Self, OpenError>
    where
        F: Future<Output = Result<Session, Error>> + Send + 'static,
    {
        let (thread, session) = start(connector, open)?;
        Ok(Self {
            thread,
            session: Arc::new(session),
        })
    }

    /// Returns the address of the database, without a password.
    pub fn address(&self) -> &str {
        self.thread.connector.address()
    }

    /// Returns the time by the clock of the server.
    pub fn now(&self) -> Timestamp {
        self.thread.connector.clock().now()
    }

    /// Runs work on the thread, and blocks the calling one until it ends.
    pub(super) fn run<T: Send + 'static, F>(
        &self,
        work: impl FnOnce(Arc<Session>) -> F,
    ) -> Result<T, BoxError>
    where
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let done = on_thread(&self.thread.runtime, work(self.session.clone()));
        Ok(done?.map_err(|error| with_causes(&error))?)
    }

    /// Runs all checks.
    pub fn check(&self, on_finding: &mut dyn FnMut(Finding)) {
        let mut check = Check {
            on_finding,
            unreadable: UNREADABLE,
        };
        check.rule(self, "schema", SCHEMA, SCHEMA_FINDINGS);
        check.everything(self);
    }
}

impl Lines for LineSession {
    fn each(&self, sql: &str, line: &mut dyn FnMut(&[u8])) -> Result<(), BoxError> {
        let sql = format!("COPY ({}) TO STDOUT", line_query(sql));
        let (chunks, received) = mpsc::sync_channel(CHUNKS_WAITING);
        let session = self.session.clone();
        self.thread.runtime.spawn(async move {
            let mut chunk = Vec::with_capacity(CHUNK);
            let read = session.copy_out(&sql, |bytes| {
                chunk.extend_from_slice(bytes);
                if chunk.len() >= CHUNK {
                    // A receiver that has gone away wants no more.
                    let _ = chunks.send(Ok(std::mem::take(&mut chunk)));
                }
            });
            let end = match read.await {
                Ok(()) => Ok(chunk),
                Err(error) => Err(error),
            };
            let _ = chunks.send(end);
        });
        for chunk in received {
            let chunk = chunk.map_err(|error: Error| with_causes(&error))?;
            for row in chunk.split_inclusive(|byte| *byte == b'\n') {
                line(row.strip_suffix(b"\n").unwrap_or(row));
            }
        }
        Ok(())
    }
}

/// Returns a query as PostgreSQL understands it: without the names of indexes, with JSON in columns of
/// text, and with the statuses of entries of the journal, which are not stored.
fn line_query(sql: &str) -> String {
    let sql = without_indexes(sql).replace("history ->", "history::json ->");
    let mut from = String::new();
    let mut to = String::new();
    for reason in EventReason::ALL {
        let word = reason.as_str();
        if let Some(status) = reason.from_status() {
            from += &format!(" WHEN '{word}' THEN '{status}'");
        }
        to += &format!(" WHEN '{word}' THEN '{}'", reason.to_status());
    }
    format!(
        "WITH journal AS NOT MATERIALIZED ( \
             SELECT *, CASE reason{from} END AS from_status, CASE reason{to} END AS to_status \
             FROM order_service.journal) \
         SELECT * FROM ({sql}) AS found"
    )
}
