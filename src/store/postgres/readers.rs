//! Reads on the connections of a program: those of one statement share a few connections, and those of
//! several have one to themselves for as long as that takes. Lost connections are replaced.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::{BoxFuture, join};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::error::Error;
use super::session::Session;
use super::{
    ATTEMPT_TIMEOUT, Engine, Inner, LONG_READ_TIMEOUT, READ_TIMEOUT, RETRY_INTERVAL,
    SHARED_READERS, on_thread,
};
use crate::store::StoreError;
use crate::store::queries::Read;

impl Engine {
    /// Runs a query: one of a single statement on a connection that other reads share.
    pub(in crate::store) async fn read<T: Send + 'static>(
        &self,
        kind: Read,
        query: impl Query<T>,
    ) -> Result<T, StoreError> {
        let (limit, shared) = match kind {
            Read::Statement => {
                let next = self.inner.next_reader.fetch_add(1, Ordering::Relaxed);
                (READ_TIMEOUT, Some(1 + next % SHARED_READERS))
            }
            Read::Snapshot => (READ_TIMEOUT, None),
            Read::Scan => (LONG_READ_TIMEOUT, None),
        };
        let inner = self.inner.clone();
        let read = async move { inner.repeat(limit, shared, query).await };
        Ok(self.inner.on_runtime(read).await?)
    }
}

/// A query on a session, which is repeated on another one if the first is lost.
pub(in crate::store) trait Query<T>:
    for<'a> Fn(&'a Session) -> BoxFuture<'a, Result<T, Error>> + Send + Sync + 'static
{
}

impl<T, Q> Query<T> for Q where
    Q: for<'a> Fn(&'a Session) -> BoxFuture<'a, Result<T, Error>> + Send + Sync + 'static
{
}

impl Inner {
    /// Runs work on the thread that drives the connections. It runs to its end even if the caller stops
    /// waiting, so that no transaction is left open.
    pub(super) fn on_runtime<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> impl Future<Output = Result<T, Error>> {
        let (done, result) = oneshot::channel();
        let work = async move {
            // A caller that has gone away wants no answer.
            let _ = done.send(work.await);
        };
        if self.is_synchronous {
            let _ = on_thread(&self.runtime, work);
        } else {
            self.runtime.spawn(work);
        }
        async { result.await.unwrap_or(Err(Error::TimedOut)) }
    }

    /// Runs a query within a time limit, and again if the connection was lost: on the shared connection
    /// with this index, or in a snapshot on a connection of its own.
    pub(super) async fn repeat<T>(
        &self,
        limit: Duration,
        shared: Option<usize>,
        query: impl Query<T>,
    ) -> Result<T, Error> {
        let deadline = Instant::now() + limit;
        let repeat_until = Instant::now() + READ_TIMEOUT - RETRY_INTERVAL;
        loop {
            let attempt_limit = match limit > READ_TIMEOUT {
                true => limit,
                false => ATTEMPT_TIMEOUT,
            };
            let until = deadline.min(Instant::now() + attempt_limit);
            let attempt = async {
                match shared {
                    Some(index) => self.read(index, until, &query).await,
                    None => self.snapshot(&query).await,
                }
            };
            let result = tokio::time::timeout_at(until, attempt).await;
            match result.unwrap_or(Err(Error::TimedOut)) {
                Err(error) if error.is_transient() && Instant::now() < repeat_until => {
                    tokio::time::sleep(RETRY_INTERVAL).await;
                }
                result => return result,
            }
        }
    }

    /// Runs a query on a shared connection.
    async fn read<T>(
        &self,
        index: usize,
        until: Instant,
        query: &impl Query<T>,
    ) -> Result<T, Error> {
        let session = self.reader(index).await?;
        let result = tokio::time::timeout_at(until, query(&session)).await;
        let result = result.unwrap_or(Err(Error::TimedOut));
        if result.as_ref().is_err_and(Error::is_transient) {
            // Others would meet the same on it.
            session.give_up();
        }
        result
    }

    /// Returns a shared connection, which is replaced if it has ended.
    async fn reader(&self, index: usize) -> Result<Arc<Session>, Error> {
        let mut kept = self.readers[index].lock().await;
        let session = match kept.as_ref() {
            Some(session) if !session.is_closed() => return Ok(session.clone()),
            _ => Arc::new(self.connector.session().await?),
        };
        *kept = Some(session.clone());
        Ok(session)
    }

    /// Runs a query in one snapshot, on a connection that no other read uses.
    async fn snapshot<T>(&self, query: &impl Query<T>) -> Result<T, Error> {
        let _permit = self.snapshots.acquire().await.map_err(Error::value)?;
        let idle = self.idle_snapshots().pop();
        let session = match idle {
            Some(session) if !session.is_closed() => session,
            _ => self.connector.session().await?,
        };
        let begin = session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY");
        // The first statements are sent with it: `join` polls in this order.
        let (begun, result) = join(begin, query(&session)).await;
        begun?;
        // A session whose transaction has failed ends with it.
        if let Ok(_) | Err(Error::Value(_)) = &result {
            session.send("COMMIT");
            self.idle_snapshots().push(session);
        }
        result
    }

    fn idle_snapshots(&self) -> std::sync::MutexGuard<'_, Vec<Session>> {
        let lock = self.idle_snapshots.lock();
        lock.unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
