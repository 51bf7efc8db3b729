//! Durable orders, their journal and the reconciler's heartbeat.
//!
//! [`Store`] speaks of orders: it knows neither SQL nor files. The parts that all engines share are
//! beside it: the values that are written (`store/write.rs`, `store/transition.rs`) and returned
//! (`store/answers.rs`), the write queue (`store/queue.rs`) and its counters
//! (`store/writer_stats.rs`), the filters of order lists (`store/filter.rs`), the cursors of
//! readers (`store/cursor.rs`), the open orders that a pass works on (`store/open_orders.rs`) and
//! the subscriptions to commits (`store/subscriptions.rs`). The engines are SQLite, in
//! `store/sqlite.rs`, and, in builds with the feature `postgres`, PostgreSQL, in `store/postgres.rs`.

mod address;
mod answers;
mod cursor;
mod filter;
mod leadership;
mod open_orders;
#[cfg(feature = "postgres")]
mod postgres;
mod queue;
mod sqlite;
mod subscriptions;
mod transition;
mod write;
mod writer_stats;

use std::path::Path;
use std::sync::Arc;

use futures_util::Stream;

pub use self::address::{DatabaseUrl, DatabaseUrlError};
use self::answers::Outage;
pub use self::answers::{
    Creation, DatabaseSummary, Finding, OperatorResult, OrderView, Removed, Sizes, StartCandidate,
    StatsSnapshot,
};
pub use self::cursor::{Cursor, Gone};
pub use self::filter::{AttentionFilter, Filter};
use self::leadership::Lock;
pub use self::leadership::{LeadError, Leadership, Loss};
pub use self::open_orders::OpenOrders;
#[cfg(feature = "postgres")]
pub use self::postgres::PostgresOpenError;
use self::queue::Queue;
pub use self::queue::{Mode, NoFaults, WriteFate, WriteFaults};
use self::sqlite::LeaderLock;
pub use self::sqlite::{CopyError, OpenError, ReadOnlyDatabase, lock_files, log_files};
pub use self::subscriptions::{Changes, NewOrders};
pub use self::transition::{AttentionUpdate, OrderChange, Recorded, Transition};
use self::write::Write;
pub use self::writer_stats::{COMMITTED_AT_ONCE, COMMITTED_WITHIN_US, WriterStats};
use crate::journal_stats::JournalStats;
use crate::order::{Event, Order, OrderId, Status, Timestamp};
use crate::order_details::OrderDetails;
use crate::reconciler_state::ReconcilerState;

/// Store errors, grouped by what the caller may do next: retry, but read first after
/// [`StoreError::OutcomeUnknown`]; start over after [`StoreError::Gone`]; give up leadership after
/// [`StoreError::Deposed`].
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The write queue is full. Nothing was written.
    #[error("the write queue is full")]
    Overloaded,
    /// The database cannot be written at present. Nothing was written.
    #[error("the database cannot be written")]
    Unwritable(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// The database cannot be read at present.
    #[error("the database cannot be read")]
    Unreadable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The write has begun and its outcome is unknown: it may have taken effect, or may still do
    /// so.
    #[error(
        "the database gave no clear answer in time; the write may have taken effect, or may still"
    )]
    OutcomeUnknown,
    /// Another reconciler has become leader. Nothing was recorded.
    #[error("another reconciler leads; nothing was recorded")]
    Deposed,
    /// A reader that resumes from this cursor might miss records.
    #[error(transparent)]
    Gone(#[from] Gone),
}

/// A handle on the orders of one database. Clones share connections and the write queue.
#[derive(Clone)]
pub struct Store {
    engine: Engine,
}

/// Supported database engines.
#[derive(Clone)]
enum Engine {
    Sqlite(sqlite::Engine),
    #[cfg(feature = "postgres")]
    Postgres(postgres::Engine),
}

impl Store {
    /// Opens the database, creating or migrating it where needed, and checks that this program can
    /// use it.
    pub fn open(url: &DatabaseUrl, mode: Mode) -> Result<Self, OpenError> {
        let engine = match url {
            DatabaseUrl::Sqlite(path) => Engine::Sqlite(sqlite::Engine::open(path, mode)?),
            #[cfg(feature = "postgres")]
            DatabaseUrl::Postgres(url) => Engine::Postgres(postgres::Engine::open(url, mode)?),
        };
        Ok(Self { engine })
    }

    /// Opens an existing database; fails with [`OpenError::Missing`] if there is none.
    pub fn open_existing(url: &DatabaseUrl) -> Result<Self, OpenError> {
        let engine = match url {
            DatabaseUrl::Sqlite(path) => Engine::Sqlite(sqlite::Engine::open_existing(path)?),
            #[cfg(feature = "postgres")]
            DatabaseUrl::Postgres(url) => Engine::Postgres(postgres::Engine::open_existing(url)?),
        };
        Ok(Self { engine })
    }

    /// Returns the absolute path of the database's file, or its address without a password.
    pub fn path(&self) -> &Path {
        match &self.engine {
            Engine::Sqlite(engine) => engine.path(),
            #[cfg(feature = "postgres")]
            Engine::Postgres(engine) => engine.path(),
        }
    }

    /// Creates an order, and returns once it is on disk.
    pub async fn create(&self, id: OrderId, now: Timestamp) -> Result<Creation, StoreError> {
        self.queue()
            .write(|reply| Write::Create { id, now, reply })
            .await
    }

    /// Returns the order with this id, together with the time of the next poll.
    pub async fn find(&self, id: &OrderId) -> Result<Option<OrderView>, StoreError> {
        match &self.engine {
            Engine::Sqlite(engine) => engine.find(id),
            #[cfg(feature = "postgres")]
            Engine::Postgres(engine) => engine.find(id).await,
        }
    }

    /// Like [`Store::find`], but returns the order alone.
    pub async fn order(&self, id: &OrderId) -> Result<Option<Order>, StoreError> {
        Ok(self.find(id).await?.map(|found| found.order))
    }

    /// Returns the order's row, its journal entries, the starts ahead of it and the heartbeat, from
    /// one snapshot. `None` if there is no such order.
    pub async fn details(
        &self,
        id: &OrderId,
        now: Timestamp,
    ) -> Result<Option<OrderDetails>, StoreError> {
        match &self.engine {
            Engine::Sqlite(engine) => engine.details(id, now),
            #[cfg(feature = "postgres")]
            Engine::Postgres(engine) => engine.details(id, now).await,
        }
    }

    /// Returns the sequence number of the newest order; 0 if there is none.
    pub async fn newest_seq(&self) -> Result<i64, StoreError> {
        match &self.engine {
            Engine::Sqlite(engine) => engine.newest_seq(),
            #[cfg(feature = "postgres")]
            Engine::Postgres(engine) => engine.newest_seq().await,
        }
    }

    /// Returns at most `limit` orders with sequence numbers after `after` and up to `last`, in
    /// order of creation. Pruned orders are skipped silently.
    pub async fn page(
        &self,
        filter: &Filter,
        after: i64,
        last: i64,
        limit: usize,
    ) -> Result<Vec<Order>, StoreError> {
        match &self.engine {
            Engine::Sqlite(engine) => engine.page(filter, after, last, limit),
            #[cfg(feature = "postgres")]
            Engine::Postgres(engine) => engine.page(filter, after, last, limit).await,
        }
    }

    /// A stream of all orders that match the filter, oldest first, in pages of `size`. Each page is
    /// a snapshot of its own: the database may change between two pages.
    pub fn pages(
        &self,
        filter: Filter,
        size: usize,
    ) -> impl Stream<Item = Result<Vec<Order>, StoreError>> {
        let first = Some(Cursor::default());
        futures_util::stream::try_unfold(first, move |after| {
            let (store, filter) = (self.clone(), filter.clone());
            async move {
                let Some(after) = after else {
                    return Ok(None);
                };
                let (page, next) = store.page_after(&filter, after, i64::MAX, size).await?;
                let next = (page.len() == size).then_some(next);
                Ok(Some((page, next)))
            }
        })
    }

    /// Like [`Store::page`], but resumes from a cursor, and returns the next one.
    ///
    /// # Errors
    /// [`StoreError::Gone`] if orders after the cursor may have been missed.
    pub async fn page_after(
        &self,
        filter: &Filter,
        after: Cursor,
        last: i64,
        limit: usize,
    ) -> Result<(Vec<Order>, Cursor), StoreError> {
        match &self.engine {
            Engine::Sqlite(engine) => engine.page_after(filter, after, last, limit),
            #[cfg(feature = "postgres")]
            Engine::Postgres(engine) => engine.page_after(filter, after, last, limit).await,
        }
    }

    /// Returns the number of orders in each status.
    pub async fn counts(&self) -> Result<Vec<(Status, u64)>, StoreError> {
        match &self.engine {
            Engine::Sqlite(engine) => engine.counts(),
            #[cfg(feature = "postgres")]
            Engine::Postgres(engine) => engine.counts().await,
        }
    }

    /// Returns the number of orders in a status.
    pub async fn count(&self, status: Status) -> Result<u64, StoreError> {
        match &self.engine {
            Engine::Sqlite(engine) => engine.count(status),
            #[cfg(feature = "postgres")]
            Engine::Postgres(engine) => engine.count(status).await,
        }
    }

    /// Returns the number of restarts of lost processes, including those of pruned orders.
    pub async fn restarts(&self) -> Result<u64, StoreError> {
        match &self.engine {
            Engine::Sqlite(engine) => engine.restarts(),
            #[cfg(feature = "postgres")]
            Engine::Postgres(engine) => engine.restarts().await,
        }
    }

    /// Returns the orders whose process was lost and that wait for an operator, oldest first.
    pub async fn lost(&self) -> Result<Vec<OrderId>, StoreError> {
        match &self.engine {
            Engine::Sqlite(engine) => engine.lost(),
            #[cfg(feature = "postgres")]
            Engine::Postgres(engine) => engine.lost().await,
        }
    }

    /// Requests a restart of an order that waits for an operator or whose start the upstream
    /// refuses. The order is started again, whatever the policy, as soon as a poll does not find
    /// its process.
    pub async fn release(&self, id: OrderId, now: Timestamp) -> Result<OperatorResult, StoreError> {
        self.queue()
            .write(|reply| Write::Restart { id, now, reply })
            .await
    }

    /// Settles an order as FAILED if its process was lost.
    pub async fn fail(&self, id: OrderId, now: Timestamp) -> Result<OperatorResult, StoreError> {
        self.queue()
            .write(|reply| Write::Fail { id, now, reply })
            .await
    }

    /// Returns the orders whose process has to be polled: PROCESSING, or CREATED with a start of
    /// unknown outcome, oldest first. They are read some thousands at a time, so a concurrent
    /// change by another process may be visible in one order and not in the next.
    pub async fn watched(&self) -> Result<OpenOrders, StoreError> {
        match &self.engine {
            Engine::Sqlite(engine) => engine.watched(),
            #[cfg(feature = "postgres")]
            Engine::Postgres(engine) => engine.watched().await,
        }
    }

    /// Returns at most `limit` orders after sequence number `after` that have neither a process nor
    /// a start of unknown outcome and may be started now, oldest first: those with a previous start
    /// attempt if `is_tried`, otherwise those without.
    pub async fn startable(
        &self,
        now: Timestamp,
        max_starts: u32,
        is_tried: bool,
        after: i64,
        limit: usize,
    ) -> Result<Vec<StartCandidate>, StoreError> {
        match &self.engine {
            Engine::Sqlite(engine) => engine.startable(now, max_starts, is_tried, after, limit),
            #[cfg(feature = "postgres")]
            Engine::Postgres(engine) => {
                engine
                    .startable(now, max_starts, is_tried, after, limit)
                    .await
            }
        }
    }

    /// Returns true if an order with a start of unknown outcome may be started again by `due_by`.
    pub async fn has_unknown_start(&self, due_by: Timestamp) -> Result<bool, StoreError> {
        match &self.engine {
            Engine::Sqlite(engine) => engine.has_unknown_start(due_by),
            #[cfg(feature = "postgres")]
            Engine::Postgres(engine) => engine.has_unknown_start(due_by).await,
        }
    }

    /// Returns the oldest open order after sequence number `after`.
    pub async fn next_open(&self, after: i64) -> Result<Option<(i64, OrderId)>, StoreError> {
        match &self.engine {
            Engine::Sqlite(engine) => engine.next_open(after),
            #[cfg(feature = "postgres")]
            Engine::Postgres(engine) => engine.next_open(after).await,
        }
    }

    /// Adds the new journal entries to the statistics and returns the other totals, all from one
    /// snapshot.
    pub async fn glance(
        &self,
        history: &mut JournalStats,
        now: Timestamp,
    ) -> Result<StatsSnapshot, StoreError> {
        match &self.engine {
            Engine::Sqlite(engine) => engine.glance(history, now),
            #[cfg(feature = "postgres")]
            Engine::Postgres(engine) => engine.glance(history, now).await,
        }
    }

    /// Returns the number of orders and journal entries pruned so far.
    pub async fn pruned(&self) -> Result<Removed, StoreError> {
        match &self.engine {
            Engine::Sqlite(engine) => engine.pruned(),
            #[cfg(feature = "postgres")]
            Engine::Postgres(engine) => engine.pruned().await,
        }
    }

    /// Returns the sequence numbers of the first `limit` orders after `after` that settled before a
    /// time and may be pruned.
    pub async fn next_prunable(
        &self,
        settled_before: Timestamp,
        after: i64,
        limit: usize,
    ) -> Result<Vec<i64>, StoreError> {
        match &self.engine {
            Engine::Sqlite(engine) => engine.next_prunable(settled_before, after, limit),
            #[cfg(feature = "postgres")]
            Engine::Postgres(engine) => engine.next_prunable(settled_before, after, limit).await,
        }
    }

    /// Prunes those of the given orders that settled before a time, with their journal entries, in
    /// one transaction. Nothing else is ever deleted, and rows that the numbering depends on stay.
    pub async fn prune(
        &self,
        seqs: Vec<i64>,
        settled_before: Timestamp,
        now: Timestamp,
    ) -> Result<Removed, StoreError> {
        let write = |reply| Write::Prune {
            seqs,
            settled_before,
            now,
            reply,
        };
        self.queue().write(write).await
    }

    /// Returns the bytes in the database file that are free for new rows; `None` where there is no file.
    pub async fn free_bytes(&self) -> Result<Option<u64>, StoreError> {
        match &self.engine {
            Engine::Sqlite(engine) => engine.free_bytes().map(Some),
            #[cfg(feature = "postgres")]
            Engine::Postgres(_) => Ok(None),
        }
    }

    /// Returns the counters of this process' writer and the length of its queue.
    pub fn writer_stats(&self) -> WriterStats {
        self.queue().stats()
    }

    /// Returns the sizes of the database's files.
    pub async fn sizes(&self) -> Sizes {
        match &self.engine {
            Engine::Sqlite(engine) => engine.sizes(),
            #[cfg(feature = "postgres")]
            Engine::Postgres(engine) => engine.sizes().await,
        }
    }

    /// Takes leadership unless another process has it. From then on a previous leader cannot record
    /// anything.
    pub async fn try_lead(&self) -> Result<Option<Leadership>, LeadError> {
        let lock = match &self.engine {
            Engine::Sqlite(engine) => engine.try_lock_lead()?.map(Lock::Sqlite),
            #[cfg(feature = "postgres")]
            Engine::Postgres(engine) => engine.try_lock_lead().await?.map(Lock::Postgres),
        };
        let Some(lock) = lock else {
            return Ok(None);
        };
        let epoch = self.queue().write(|reply| Write::Lead { reply }).await?;
        Ok(Some(Leadership::new(epoch, lock)))
    }

    /// Records the reconciler's changes in one transaction. A change whose order is no longer in
    /// the expected state has no effect and is counted as a conflict.
    ///
    /// # Errors
    /// [`StoreError::Deposed`] if another reconciler has become leader.
    pub async fn record(
        &self,
        lead: &Leadership,
        mut changes: Vec<OrderChange>,
        now: Timestamp,
    ) -> Result<Recorded, StoreError> {
        // Key order: neighbours share pages. The sort is stable, so an adoption stays before its
        // outcome.
        changes.sort_by_key(|change| change.seq);
        let write = |reply| Write::Record {
            epoch: lead.epoch,
            changes,
            now,
            reply,
        };
        lead.noted(self.queue().write(write).await)
    }

    /// Returns the reconciler's last heartbeat.
    pub async fn heartbeat(&self) -> Result<ReconcilerState, StoreError> {
        match &self.engine {
            Engine::Sqlite(engine) => engine.heartbeat(),
            #[cfg(feature = "postgres")]
            Engine::Postgres(engine) => engine.heartbeat().await,
        }
    }

    /// Replaces the reconciler's heartbeat.
    pub async fn write_heartbeat(
        &self,
        lead: &Leadership,
        heartbeat: ReconcilerState,
    ) -> Result<(), StoreError> {
        let write = |reply| Write::Heartbeat {
            epoch: lead.epoch,
            heartbeat: Box::new(heartbeat),
            reply,
        };
        lead.noted(self.queue().write(write).await)
    }

    /// Checks that orders can be written, by writing a row.
    pub async fn probe(&self, now: Timestamp) -> Result<(), StoreError> {
        self.queue()
            .write(|reply| Write::Probe { now, reply })
            .await
    }

    /// Checkpoints the write-ahead log into the database file, for a program that is shutting down.
    /// If that fails, the next program that opens the file does it.
    pub async fn checkpoint(&self) {
        match &self.engine {
            Engine::Sqlite(engine) => engine.checkpoint().await,
            // What is committed is on the server.
            #[cfg(feature = "postgres")]
            Engine::Postgres(_) => {}
        }
    }

    /// Returns a cursor at the newest event.
    pub async fn newest_event(&self) -> Result<Cursor, StoreError> {
        match &self.engine {
            Engine::Sqlite(engine) => engine.newest_event(),
            #[cfg(feature = "postgres")]
            Engine::Postgres(engine) => engine.newest_event().await,
        }
    }

    /// Returns at most `limit` events after a cursor, of all orders or of one, in journal order,
    /// and the next cursor.
    ///
    /// # Errors
    /// [`StoreError::Gone`] if events after the cursor may have been missed.
    pub async fn events(
        &self,
        order: Option<&OrderId>,
        after: Cursor,
        limit: usize,
    ) -> Result<(Vec<Event>, Cursor), StoreError> {
        match &self.engine {
            Engine::Sqlite(engine) => engine.events(order, after, limit),
            #[cfg(feature = "postgres")]
            Engine::Postgres(engine) => engine.events(order, after, limit).await,
        }
    }

    /// Clamps times of open orders that lie ahead of the clock: past events to `now`, and the next
    /// attempt to at most the longest backoff from `now`.
    pub async fn set_times_right(
        &self,
        lead: &Leadership,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        lead.noted(match &self.engine {
            Engine::Sqlite(engine) => engine.set_times_right(lead.epoch, now).await,
            #[cfg(feature = "postgres")]
            Engine::Postgres(engine) => engine.set_times_right(lead.epoch, now).await,
        })
    }

    /// Subscribes to changes of orders from now on, by this or any other process.
    pub fn changes(&self) -> Result<Changes, StoreError> {
        match &self.engine {
            Engine::Sqlite(engine) => engine.changes(),
            #[cfg(feature = "postgres")]
            Engine::Postgres(engine) => Ok(engine.changes()),
        }
    }

    /// Subscribes to the creation of orders newer than the newest existing one, by this or any
    /// other process.
    pub async fn new_orders(&self) -> Result<NewOrders, StoreError> {
        let changes = match &self.engine {
            Engine::Sqlite(engine) => engine.changes_for_new_orders()?,
            #[cfg(feature = "postgres")]
            Engine::Postgres(engine) => engine.changes(),
        };
        Ok(NewOrders {
            changes,
            newest: self.newest_seq().await?,
            store: self.clone(),
        })
    }

    /// Returns a handle on the same orders for slow reads on a runtime's worker threads. SQLite
    /// reads run on the calling thread; this handle moves that thread's other tasks to another one
    /// for the duration of each read.
    ///
    /// # Panics
    /// Reads of SQLite through it panic on a single-threaded runtime.
    #[must_use]
    pub fn for_long_reads(&self) -> Self {
        let engine = match &self.engine {
            Engine::Sqlite(engine) => Engine::Sqlite(engine.for_long_reads()),
            // Its reads block no thread.
            #[cfg(feature = "postgres")]
            Engine::Postgres(engine) => Engine::Postgres(engine.clone()),
        };
        Self { engine }
    }

    /// Returns a handle whose subscriptions report this process' commits alone.
    #[cfg(test)]
    pub(crate) fn without_polls(&self) -> Self {
        let engine = match &self.engine {
            Engine::Sqlite(engine) => Engine::Sqlite(engine.without_polls()),
            #[cfg(feature = "postgres")]
            Engine::Postgres(engine) => Engine::Postgres(engine.without_polls()),
        };
        Self { engine }
    }

    fn queue(&self) -> &Queue {
        match &self.engine {
            Engine::Sqlite(engine) => engine.queue(),
            #[cfg(feature = "postgres")]
            Engine::Postgres(engine) => engine.queue(),
        }
    }

    /// Runs SQL statements as one write of the queue.
    #[cfg(test)]
    async fn execute(&self, sql: String) -> Result<(), StoreError> {
        self.queue().write(|reply| Write::Sql { sql, reply }).await
    }
}

/// Returns the last heartbeat of the reconciler on a database, without creating or migrating it.
pub async fn read_heartbeat(url: &DatabaseUrl) -> Result<ReconcilerState, OpenError> {
    match url {
        DatabaseUrl::Sqlite(path) => sqlite::read_heartbeat(path),
        #[cfg(feature = "postgres")]
        DatabaseUrl::Postgres(url) => Ok(postgres::read_heartbeat(url).await?),
    }
}
