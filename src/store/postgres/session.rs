//! A session: a connection, its prepared statements, and the task that drives it.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::Poll;

use bytes::Bytes;
use futures_util::future::{MaybeDone, maybe_done};
use futures_util::{FutureExt, SinkExt, TryStreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{FromSqlOwned, ToSql};
use tokio_postgres::{AsyncMessage, Client, Connection, Row, SimpleQueryMessage, Statement};

use super::dialect::in_dialect;
use super::error::Error;

/// Locks of a transaction or of a session: "OrdS" and a number.
pub(super) const NUMBERING_LOCK: i64 = 0x4f72_6453_0000_0001;
pub(super) const LEADER_LOCK: i64 = 0x4f72_6453_0000_0002;
pub(super) const SCHEMA_LOCK: i64 = 0x4f72_6453_0000_0003;

/// A value for a statement.
pub(super) type StepValue = Box<dyn ToSql + Sync + Send>;

/// Statements with their values, sent together: one round trip for all.
#[derive(Default)]
pub(in crate::store) struct Steps(Vec<(String, Vec<StepValue>)>);

impl Steps {
    /// Adds a statement, and returns its index among the answers.
    pub fn add(&mut self, sql: impl Into<String>, values: Vec<StepValue>) -> usize {
        self.0.push((sql.into(), values));
        self.0.len() - 1
    }
}

/// A connection with its prepared statements. Lasts until it is dropped.
pub(in crate::store) struct Session {
    client: Client,
    statements: Mutex<HashMap<String, Statement>>,
    is_unreplicated: Arc<AtomicBool>,
    is_given_up: AtomicBool,
    timeline: OnceLock<(i32, Arc<AtomicI32>)>,
    server: String,
}

impl Session {
    /// Starts a session on a connection to a server of this name, and the task that drives it. Notifications of other sessions
    /// wake `notified`; `lost` counts connections that end with an error.
    pub fn start<S, T>(
        server: String,
        client: Client,
        mut connection: Connection<S, T>,
        notified: Option<Arc<Notify>>,
        lost: Arc<AtomicU64>,
    ) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let is_unreplicated = Arc::new(AtomicBool::new(false));
        let flag = is_unreplicated.clone();
        tokio::spawn(async move {
            loop {
                match poll_fn(|cx| connection.poll_message(cx)).await {
                    Some(Ok(AsyncMessage::Notice(notice))) => {
                        // The wait for a standby was cancelled; the server reports success all the
                        // same, right after this.
                        if notice.code() == &SqlState::WARNING {
                            flag.store(true, Ordering::Release);
                        }
                        log::debug!("the server reports: {notice}");
                    }
                    Some(Ok(AsyncMessage::Notification(_))) => {
                        if let Some(notified) = &notified {
                            notified.notify_one();
                        }
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => {
                        log::debug!("a connection to the database ended: {error}");
                        lost.fetch_add(1, Ordering::Relaxed);
                        break;
                    }
                    None => break,
                }
            }
            if let Some(notified) = &notified {
                notified.notify_one();
            }
        });
        Self {
            client,
            statements: Mutex::default(),
            is_unreplicated,
            is_given_up: AtomicBool::new(false),
            timeline: OnceLock::new(),
            server,
        }
    }

    /// Host and port of the server, as the address names them.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Returns whether the connection has ended or was given up, or another server has begun a newer
    /// timeline.
    pub fn is_closed(&self) -> bool {
        let is_old = self.timeline.get().is_some_and(|(own, newest)| {
            // The newest of any session of this program.
            newest.load(Ordering::Relaxed) > *own
        });
        is_old || self.is_given_up.load(Ordering::Relaxed) || self.client.is_closed()
    }

    /// Sets the timeline of the server, to be compared with the newest of all servers.
    pub fn set_timeline(&self, own: i32, newest: &Arc<AtomicI32>) {
        // The server has the same one for as long as the connection lasts.
        let _ = self.timeline.set((own, newest.clone()));
    }

    /// Makes others connect anew, because the server does not answer on this connection.
    pub fn give_up(&self) {
        self.is_given_up.store(true, Ordering::Relaxed);
    }

    /// Returns true if a commit since the last call may not have been replicated.
    pub fn take_unreplicated(&self) -> bool {
        self.is_unreplicated.swap(false, Ordering::AcqRel)
    }

    /// Runs statements without values, not prepared.
    pub async fn execute(&self, sql: &str) -> Result<(), Error> {
        Ok(self.client.batch_execute(sql).await?)
    }

    /// Runs statements without values, not prepared, of which the last returns one text.
    pub async fn text(&self, sql: &str) -> Result<String, Error> {
        let messages = self.client.simple_query(sql).await?;
        let text = messages.iter().rev().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        Ok(text.unwrap_or_default().to_owned())
    }

    /// Sends a statement without waiting for its answer, for one that can only fail with the connection.
    pub fn send(&self, sql: &str) {
        let _ = self.client.batch_execute(sql).now_or_never();
    }

    /// Runs a prepared statement, in either dialect. It is sent when the future is polled first, so that those
    /// which are polled together share a round trip.
    pub async fn query(
        &self,
        sql: &str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Error> {
        let statement = self.statement(sql).await?;
        Ok(self.client.query(&statement, values).await?)
    }

    /// Like [`Session::query`], for a statement that has exactly one row.
    pub async fn query_one(&self, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Result<Row, Error> {
        let statement = self.statement(sql).await?;
        Ok(self.client.query_one(&statement, values).await?)
    }

    /// Like [`Session::query_one`], for a row of one value.
    pub async fn value<T: FromSqlOwned>(
        &self,
        sql: &str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<T, Error> {
        Ok(self.query_one(sql, values).await?.try_get(0)?)
    }

    /// Waits for a lock, and keeps it until the transaction ends.
    pub async fn lock(&self, key: i64) -> Result<(), Error> {
        let sql = "SELECT 1 FROM pg_advisory_xact_lock($1)";
        self.query_one(sql, &[&key]).await.map(drop)
    }

    /// Takes a lock that lasts as long as the session, unless another one has it.
    pub async fn try_lock(&self, key: i64) -> Result<bool, Error> {
        self.value("SELECT pg_try_advisory_lock($1)", &[&key]).await
    }

    /// Runs `COPY … TO STDOUT`, and passes its rows on as they arrive.
    pub async fn copy_out(&self, sql: &str, mut row: impl FnMut(&[u8])) -> Result<(), Error> {
        let mut rows = pin!(self.client.copy_out(sql).await?);
        while let Some(bytes) = rows.try_next().await? {
            row(&bytes);
        }
        Ok(())
    }

    /// Runs `COPY … FROM STDIN` with these rows.
    pub async fn copy_in(&self, sql: &str, rows: Bytes) -> Result<(), Error> {
        let mut sink = pin!(self.client.copy_in(sql).await?);
        sink.send(rows).await?;
        sink.finish().await?;
        Ok(())
    }

    /// Sends all statements before it waits for the first answer. The caller opens and ends their
    /// transaction: after a failed statement the server refuses the others until it ends.
    pub async fn pipeline(&self, steps: &Steps) -> Result<Vec<Vec<Row>>, Error> {
        let mut statements = Vec::with_capacity(steps.0.len());
        for (sql, _) in &steps.0 {
            statements.push(self.statement(sql).await?);
        }
        let mut sent: Vec<Pin<Box<MaybeDone<_>>>> = Vec::with_capacity(steps.0.len());
        for ((_, values), statement) in steps.0.iter().zip(&statements) {
            sent.push(Box::pin(maybe_done(self.run(statement, values))));
        }
        // A statement is sent when it is polled first.
        poll_fn(|cx| {
            for step in &mut sent {
                let _ = step.as_mut().poll(cx);
            }
            Poll::Ready(())
        })
        .await;
        let mut answers = Vec::with_capacity(sent.len());
        for step in &mut sent {
            step.as_mut().await;
            let answer = step.as_mut().take_output();
            answers.push(answer.unwrap_or(Err(Error::TimedOut))?);
        }
        Ok(answers)
    }

    async fn run(&self, statement: &Statement, values: &[StepValue]) -> Result<Vec<Row>, Error> {
        let values: Vec<&(dyn ToSql + Sync)> = values.iter().map(|value| &**value as _).collect();
        Ok(self.client.query(statement, &values).await?)
    }

    /// Returns a prepared statement, which is translated and prepared at its first use.
    async fn statement(&self, sql: &str) -> Result<Statement, Error> {
        let kept = self.statements().get(sql).cloned();
        if let Some(statement) = kept {
            return Ok(statement);
        }
        let statement = self.client.prepare(&in_dialect(sql)).await?;
        self.statements().insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }

    fn statements(&self) -> std::sync::MutexGuard<'_, HashMap<String, Statement>> {
        self.statements
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
