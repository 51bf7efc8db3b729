//! Durable orders, their journal and the reconciler's heartbeat.
//!
//! [`Store`] speaks of orders: it knows neither SQL nor files. Its methods for the reconciler are in
//! `store/reconciling.rs`, leadership and a leader's writes in `store/leadership.rs`, the address of a database
//! in `store/address.rs`, and the errors in `store/error.rs` and `store/open_error.rs`. The parts that all
//! engines share are beside it: the values that are written (`store/write.rs`, `store/transition.rs`) and
//! returned (`store/answers.rs`), the queries (`store/queries.rs`), the columns that they read
//! (`store/rows.rs`), the UPDATEs of orders (`store/update.rs`), the pruning of orders (`store/prune.rs`), the
//! write queue (`store/queue.rs`), its mode (`store/mode.rs`), state (`store/writer_state.rs`) and counters
//! (`store/writer_stats.rs`), the filters of order lists (`store/filter.rs`), the cursors of readers
//! (`store/cursor.rs`), the open orders that a pass works on (`store/open_orders.rs`), the subscriptions to
//! commits (`store/subscriptions.rs`), the read-only access of the operator's commands (`store/read_only.rs`),
//! backups (`store/backup.rs`), the check of all rows (`store/check.rs`), which reads them as lines
//! (`store/lines.rs`), and copies (`store/copy.rs`, `store/relocation.rs`). The engines are SQLite, in
//! `store/sqlite.rs`, and, in builds with the feature `postgres`, PostgreSQL, in `store/postgres.rs`.

mod address;
mod answers;
mod backup;
mod check;
mod copy;
mod cursor;
mod error;
mod filter;
mod leadership;
mod lines;
mod mode;
mod open_error;
mod open_orders;
#[cfg(feature = "postgres")]
mod postgres;
mod prune;
mod queries;
mod queue;
mod read_only;
mod reconciling;
mod relocation;
mod rows;
mod sqlite;
mod subscriptions;
mod transition;
mod update;
mod write;
mod writer_state;
mod writer_stats;

use futures_util::Stream;

pub use self::address::{DatabaseUrl, DatabaseUrlError, may_hold_password};
pub use self::answers::{
    Creation, DatabaseInfo, DatabaseSize, DatabaseSummary, Durability, Finding, OperatorResult,
    OrderView, PruneCounts, Resolution, StartCandidate, StatsSnapshot,
};
use self::answers::{Outage, Page};
pub use self::backup::{Backup, BackupError, back_up};
pub use self::copy::{Moved, TakenBack, TransferError, compare, move_database, take_back};
pub use self::cursor::{Cursor, Gone};
pub use self::error::StoreError;
pub use self::filter::{AttentionFilter, Filter};
pub use self::leadership::{LeadError, Leadership, Loss};
pub use self::mode::{Mode, NoFaults, WriteFate, WriteFaults};
pub use self::open_error::OpenError;
use self::open_error::{OpenReason, Retirement};
pub use self::open_orders::OpenOrders;
use self::queries::Read;
use self::queue::Queue;
pub use self::read_only::ReadOnlyDatabase;
pub use self::relocation::Relocation;
use self::sqlite::{LeaderLock, Reads};
pub use self::subscriptions::{Changes, NewOrders};
pub use self::transition::{AttentionUpdate, OrderChange, Recorded, Transition};
use self::write::Write;
pub use self::writer_stats::{COMMIT_SIZE_BOUNDS, COMMIT_TIME_BOUNDS_US, WriterStats};
use crate::clock::DatabaseClock;
use crate::explain::OrderDetails;
use crate::journal_stats::JournalStats;
use crate::order::{Event, Order, OrderId, Status, Timestamp};

/// A handle on the orders of one database. Clones share connections and the write queue.
#[derive(Clone)]
pub struct Store {
    engine: Engine,
}

/// Calls the method of this name of an engine.
macro_rules! call {
    ($self:ident.$engine:tt.$method:ident($($argument:expr),*) $($await:tt)*) => {
        match &$self.$engine {
            Engine::Sqlite(engine) => engine.$method($($argument),*) $($await)*,
            #[cfg(feature = "postgres")]
            Engine::Postgres(engine) => engine.$method($($argument),*) $($await)*,
        }
    };
}
use call;

/// Calls the method of this name of a store's engine. Reads of SQLite are ready at once, or as soon as
/// one may be made on a runtime's worker thread.
macro_rules! read {
    ($store:ident.$method:ident($($argument:expr),*)) => {
        match &$store.engine {
            Engine::Sqlite(engine) => {
                let _permit = engine.permit().await?;
                engine.$method($($argument),*)
            }
            #[cfg(feature = "postgres")]
            Engine::Postgres(engine) => engine.$method($($argument),*).await,
        }
    };
    // Runs a query of `store/queries.rs`. A read that PostgreSQL has to repeat evaluates the arguments again.
    ($store:ident, $kind:ident, $query:ident($($argument:expr),*)) => {
        match &$store.engine {
            Engine::Sqlite(engine) => {
                let _permit = engine.permit().await?;
                engine.read(Read::$kind, |db| sqlite::result(queries::$query(db, $($argument),*)))
            }
            #[cfg(feature = "postgres")]
            Engine::Postgres(engine) => {
                let kind = Read::$kind;
                engine.read(kind, move |db| Box::pin(queries::$query(db, $($argument),*))).await
            }
        }
    };
}
use read;

/// Supported database engines.
#[derive(Clone)]
enum Engine {
    Sqlite(sqlite::Engine),
    #[cfg(feature = "postgres")]
    Postgres(postgres::Engine),
}

impl Store {
    /// Opens the database, and checks that this program can use it.
    pub fn open(url: &DatabaseUrl, mode: Mode) -> Result<Self, OpenError> {
        let engine = match url {
            DatabaseUrl::Sqlite(path) => Engine::Sqlite(sqlite::Engine::open(path, mode)?),
            #[cfg(feature = "postgres")]
            DatabaseUrl::Postgres(url) => Engine::Postgres(postgres::Engine::open(url, mode)?),
        };
        Ok(Self { engine })
    }

    /// Creates an order, and returns once it is on disk.
    pub async fn create(&self, id: OrderId, now: Timestamp) -> Result<Creation, StoreError> {
        self.queue()
            .write(|reply| Write::Create { id, now, reply })
            .await
    }

    /// Returns the order with this id, together with the time of the next poll.
    pub async fn find(&self, id: &OrderId) -> Result<Option<OrderView>, StoreError> {
        read!(self.find(id))
    }

    /// Returns the order's row, its journal entries, the starts ahead of it and the heartbeat, from
    /// one snapshot. `None` if there is no such order.
    pub async fn details(
        &self,
        id: &OrderId,
        now: Timestamp,
    ) -> Result<Option<OrderDetails>, StoreError> {
        let id = id.clone();
        read!(self, Snapshot, details(id.clone(), now))
    }

    /// Returns existing ids similar to one that does not exist: ids that differ in case only, and
    /// its neighbours in sort order that share the first half of it.
    pub async fn similar_ids(&self, id: &OrderId) -> Result<Vec<String>, StoreError> {
        let wanted = id.clone();
        let candidates = read!(self, Scan, neighbours(wanted.clone()))?;
        let id = id.as_str();
        let begins = id.chars().count().div_ceil(2);
        let begins: String = id.chars().take(begins).collect();
        let mut similar: Vec<String> = Vec::new();
        for other in candidates {
            let is_alike = other.starts_with(&begins) || other.eq_ignore_ascii_case(id);
            if is_alike && !similar.contains(&other) {
                similar.push(other);
            }
        }
        Ok(similar)
    }

    /// A stream of the orders after a cursor that match the filter, oldest first, in pages of
    /// `size`, each with the cursor to resume from. Each page is a snapshot of its own: the database
    /// may change between two pages. Orders newer than the first page are left out.
    ///
    /// # Errors
    /// [`StoreError::Gone`] if orders after the cursor may have been missed.
    pub fn pages(
        &self,
        filter: Filter,
        after: Cursor,
        size: usize,
    ) -> impl Stream<Item = Result<(Vec<Order>, Cursor), StoreError>> + use<> {
        let first = (self.clone(), filter, Some((after, i64::MAX)));
        futures_util::stream::try_unfold(first, move |(store, filter, rest)| async move {
            let Some((after, last)) = rest else {
                return Ok(None);
            };
            let wanted = filter.clone();
            let Page {
                orders,
                next,
                newest,
            } = read!(store, Snapshot, page(wanted.clone(), after, last, size))??;
            let rest = (orders.len() == size).then_some((next, newest.min(last)));
            Ok(Some(((orders, next), (store, filter, rest))))
        })
    }

    /// Returns the number of orders in a status.
    pub async fn count(&self, status: Status) -> Result<u64, StoreError> {
        read!(self, Statement, count(status))
    }

    /// Carries out an operator's decision about an order.
    pub async fn resolve(
        &self,
        id: OrderId,
        resolution: Resolution,
        now: Timestamp,
    ) -> Result<OperatorResult, StoreError> {
        let write = |reply| Write::Resolve {
            id,
            resolution,
            now,
            reply,
        };
        self.queue().write(write).await
    }

    /// Adds the new journal entries to the statistics and returns the other totals, from one snapshot with
    /// the last entries.
    pub async fn update_stats(
        &self,
        history: &mut JournalStats,
        now: Timestamp,
    ) -> Result<StatsSnapshot, StoreError> {
        let mut rebuilt_at = None;
        loop {
            let before = history.clone();
            let query = read!(
                self,
                Snapshot,
                update_stats(before.clone(), rebuilt_at, now)
            );
            let stats;
            (*history, rebuilt_at, stats) = query?;
            if let Some(stats) = stats {
                return Ok(stats);
            }
        }
    }

    /// Prunes the first `limit` orders after sequence number `after` that settled before a time,
    /// with their journal entries, in one transaction. Nothing else is ever deleted, and rows that
    /// the numbering depends on stay. Returns what was pruned, and the sequence number to go on
    /// after; `None` if no such order is left.
    pub async fn prune(
        &self,
        settled_before: Timestamp,
        after: i64,
        limit: usize,
        now: Timestamp,
    ) -> Result<Option<(PruneCounts, i64)>, StoreError> {
        let seqs = read!(self, Scan, next_prunable(settled_before, after, limit))?;
        let Some(last) = seqs.last().copied() else {
            return Ok(None);
        };
        let write = |reply| Write::Prune {
            seqs,
            settled_before,
            now,
            reply,
        };
        Ok(Some((self.queue().write(write).await?, last)))
    }

    /// Returns a description of the database and of its use by this program, without a read.
    pub fn info(&self) -> DatabaseInfo {
        call!(self.engine.info())
    }

    /// Returns the size of the database.
    pub async fn size(&self) -> DatabaseSize {
        call!(self.engine.size().await)
    }

    /// Checks that orders can be written, by writing a row.
    pub async fn check_writable(&self, now: Timestamp) -> Result<(), StoreError> {
        self.queue()
            .write(|reply| Write::CheckWritable { now, reply })
            .await
    }

    /// Checkpoints the write-ahead log into the database file, for a program that is shutting down.
    /// If that fails, the next program that opens the file does it. Returns the bytes in the file that are
    /// free for new rows; `None` where there is no file, or after a failure.
    pub async fn checkpoint(&self) -> Option<u64> {
        match &self.engine {
            Engine::Sqlite(engine) => {
                let on_failure =
                    |error: &_| log::debug!("the write-ahead log was not checkpointed: {error}");
                engine.checkpoint().await.inspect_err(on_failure).ok()
            }
            // What is committed is on the server.
            #[cfg(feature = "postgres")]
            Engine::Postgres(_) => None,
        }
    }

    /// Returns a cursor at the newest event.
    pub async fn newest_event(&self) -> Result<Cursor, StoreError> {
        read!(self, Snapshot, newest_event())
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
        let order = order.cloned();
        Ok(read!(self, Snapshot, events(order.clone(), after, limit))??)
    }

    /// Subscribes to changes of orders from now on, by this or any other program.
    pub fn changes(&self) -> Result<Changes, StoreError> {
        call!(self.engine.changes())
    }

    /// Returns a handle on the same orders for reads that take microseconds, made on a runtime's worker
    /// threads. A read of SQLite blocks its thread, so they leave one of the threads free: on a
    /// runtime with a single worker thread, all reads of SQLite fail.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn for_short_reads(&self) -> Self {
        self.with_reads(Reads::short)
    }

    /// Returns a handle on the same orders for long reads on a runtime's worker threads. A read of SQLite
    /// blocks its thread, so it hands that thread's other tasks to another one, and each handle makes
    /// two at a time, its clones included; others wait.
    ///
    /// # Panics
    /// Reads of SQLite through it panic on a single-threaded runtime.
    #[must_use]
    pub fn for_long_reads(&self) -> Self {
        self.with_reads(Reads::long)
    }

    fn with_reads(&self, reads: fn() -> Reads) -> Self {
        let engine = match &self.engine {
            Engine::Sqlite(engine) => Engine::Sqlite(engine.with(reads())),
            // Its reads block no thread.
            #[cfg(feature = "postgres")]
            Engine::Postgres(engine) => Engine::Postgres(engine.clone()),
        };
        Self { engine }
    }

    /// Returns the clock by which orders are dated.
    pub fn clock(&self) -> DatabaseClock {
        self.queue().clock()
    }

    /// Waits until this program must not use the database any longer, because its orders have moved or a
    /// later version of the program has migrated it. Returns the reason.
    pub async fn retired(&self) -> OpenError {
        call!(self.engine.retirement().wait().await).clone()
    }

    fn queue(&self) -> &Queue {
        call!(self.engine.queue())
    }
}
