//! Durable orders, their journal and the reconciler's heartbeat.
//!
//! [`Store`] speaks of orders: it knows neither SQL nor files. What all engines share is beside it:
//! values that are written (`store/write.rs`, `store/transition.rs`) and answered
//! (`store/answers.rs`), the queue of writes (`store/queue.rs`) and what it counts
//! (`store/writer_stats.rs`), which orders a list holds (`store/filter.rs`), from which positions
//! readers go on (`store/cursor.rs`), and the open orders as a pass holds them
//! (`store/open_orders.rs`), and who is woken by what is committed (`store/subscriptions.rs`). The one
//! engine is SQLite, in `store/sqlite.rs`.

mod address;
mod answers;
mod cursor;
mod filter;
mod leadership;
mod open_orders;
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
pub use self::answers::{
    Creation, DatabaseSummary, Finding, OperatorResult, OrderView, Removed, Sizes, StartCandidate,
    StatsSnapshot,
};
pub use self::cursor::{Cursor, Gone};
pub use self::filter::{AttentionFilter, Filter};
use self::leadership::Lock;
pub use self::leadership::{LeadError, Leadership, Loss};
pub use self::open_orders::OpenOrders;
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

/// Store errors, grouped by what the caller may do next: try again, but look first after
/// [`StoreError::OutcomeUnknown`], begin anew after [`StoreError::Gone`], and lead no longer after
/// [`StoreError::Deposed`].
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The write queue is full. Nothing was done.
    #[error("the write queue is full")]
    Overloaded,
    /// Nothing can be written at present. Nothing was done.
    #[error("the database cannot be written")]
    Unwritable(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// Nothing can be read at present.
    #[error("the database cannot be read")]
    Unreadable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The write was begun, and no one can say whether it took effect or will.
    #[error(
        "the database gave no clear answer in time; the write may have taken effect, or may still"
    )]
    OutcomeUnknown,
    /// Another reconciler has taken the lead since. Nothing was recorded.
    #[error("another reconciler leads; nothing was recorded")]
    Deposed,
    /// A reader that goes on from this position might miss something.
    #[error(transparent)]
    Gone(#[from] Gone),
}

/// The orders in one database, shared by everything in this process.
#[derive(Clone)]
pub struct Store {
    engine: Engine,
}

/// The database systems that orders can be kept in.
#[derive(Clone)]
enum Engine {
    Sqlite(sqlite::Engine),
}

impl Store {
    /// Opens the database, creates and migrates it where needed, and checks that it is one that
    /// this program can trust.
    pub fn open(url: &DatabaseUrl, mode: Mode) -> Result<Self, OpenError> {
        let DatabaseUrl::Sqlite(path) = url;
        let engine = Engine::Sqlite(sqlite::Engine::open(path, mode)?);
        Ok(Self { engine })
    }

    /// Opens a database that must be there already.
    pub fn open_existing(url: &DatabaseUrl) -> Result<Self, OpenError> {
        let DatabaseUrl::Sqlite(path) = url;
        let engine = Engine::Sqlite(sqlite::Engine::open_existing(path)?);
        Ok(Self { engine })
    }

    /// The absolute path of the database.
    pub fn path(&self) -> &Path {
        match &self.engine {
            Engine::Sqlite(engine) => engine.path(),
        }
    }

    /// Creates an order, durably.
    pub async fn create(&self, id: OrderId, now: Timestamp) -> Result<Creation, StoreError> {
        self.queue()
            .write(|reply| Write::Create { id, now, reply })
            .await
    }

    /// The order with this id, and what is told beside it.
    pub async fn find(&self, id: &OrderId) -> Result<Option<OrderView>, StoreError> {
        match &self.engine {
            Engine::Sqlite(engine) => engine.find(id),
        }
    }

    /// The order with this id, without what is told beside it.
    pub async fn order(&self, id: &OrderId) -> Result<Option<Order>, StoreError> {
        Ok(self.find(id).await?.map(|found| found.order))
    }

    /// All that is known of one order, at one moment. `None` if there is no such order.
    pub async fn details(
        &self,
        id: &OrderId,
        now: Timestamp,
    ) -> Result<Option<OrderDetails>, StoreError> {
        match &self.engine {
            Engine::Sqlite(engine) => engine.details(id, now),
        }
    }

    /// The place of the newest order in the order of creation; 0 if there is none.
    pub async fn newest_seq(&self) -> Result<i64, StoreError> {
        match &self.engine {
            Engine::Sqlite(engine) => engine.newest_seq(),
        }
    }

    /// At most `limit` orders after the number `after` and up to the number `last`, in the order of
    /// creation, whatever was removed from among them.
    pub async fn page(
        &self,
        filter: &Filter,
        after: i64,
        last: i64,
        limit: usize,
    ) -> Result<Vec<Order>, StoreError> {
        match &self.engine {
            Engine::Sqlite(engine) => engine.page(filter, after, last, limit),
        }
    }

    /// All orders that a filter takes, oldest first, in pages of this size. Between two pages the
    /// database may be written, and each order is as it was when its page was read.
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

    /// Like [`Store::page`], but goes on from a position, and returns the next one.
    ///
    /// # Errors
    /// [`StoreError::Gone`] if some of what follows may have been missed.
    pub async fn page_after(
        &self,
        filter: &Filter,
        after: Cursor,
        last: i64,
        limit: usize,
    ) -> Result<(Vec<Order>, Cursor), StoreError> {
        match &self.engine {
            Engine::Sqlite(engine) => engine.page_after(filter, after, last, limit),
        }
    }

    /// How many orders there are in each status.
    pub async fn counts(&self) -> Result<Vec<(Status, u64)>, StoreError> {
        match &self.engine {
            Engine::Sqlite(engine) => engine.counts(),
        }
    }

    /// Returns the number of orders in a status.
    pub async fn count(&self, status: Status) -> Result<u64, StoreError> {
        match &self.engine {
            Engine::Sqlite(engine) => engine.count(status),
        }
    }

    /// How many processes were started in the place of a forgotten one, those of removed orders
    /// included.
    pub async fn restarts(&self) -> Result<u64, StoreError> {
        match &self.engine {
            Engine::Sqlite(engine) => engine.restarts(),
        }
    }

    /// The orders whose process was forgotten and that wait for an operator. Oldest first.
    pub async fn lost(&self) -> Result<Vec<OrderId>, StoreError> {
        match &self.engine {
            Engine::Sqlite(engine) => engine.lost(),
        }
    }

    /// Lets an order that is held, or that the upstream refuses, be started again, whatever the
    /// policy, as soon as its process is not found.
    pub async fn release(&self, id: OrderId, now: Timestamp) -> Result<OperatorResult, StoreError> {
        self.queue()
            .write(|reply| Write::Restart { id, now, reply })
            .await
    }

    /// Settles an order as FAILED whose process was forgotten.
    pub async fn fail(&self, id: OrderId, now: Timestamp) -> Result<OperatorResult, StoreError> {
        self.queue()
            .write(|reply| Write::Fail { id, now, reply })
            .await
    }

    /// The orders whose process has to be observed: PROCESSING, or CREATED with a start of unknown
    /// outcome. Oldest first. They are read some thousands at a time: what another process changes
    /// meanwhile may be seen of one and not of the next.
    pub async fn watched(&self) -> Result<OpenOrders, StoreError> {
        match &self.engine {
            Engine::Sqlite(engine) => engine.watched(),
        }
    }

    /// At most `limit` orders after the place `after` that have neither a process nor a start of
    /// unknown outcome and may be started now: those that were tried before, or those that were not.
    /// Oldest first.
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
        }
    }

    /// Returns whether there is a start without an outcome whose order may be started again by `due_by`.
    pub async fn has_unknown_start(&self, due_by: Timestamp) -> Result<bool, StoreError> {
        match &self.engine {
            Engine::Sqlite(engine) => engine.has_unknown_start(due_by),
        }
    }

    /// The oldest open order after the place `after`.
    pub async fn next_open(&self, after: i64) -> Result<Option<(i64, OrderId)>, StoreError> {
        match &self.engine {
            Engine::Sqlite(engine) => engine.next_open(after),
        }
    }

    /// Brings a history up to date with the journal, and tells all else that is told of the whole,
    /// as of one moment.
    pub async fn glance(
        &self,
        history: &mut JournalStats,
        now: Timestamp,
    ) -> Result<StatsSnapshot, StoreError> {
        match &self.engine {
            Engine::Sqlite(engine) => engine.glance(history, now),
        }
    }

    /// Orders and entries that were removed up to now.
    pub async fn pruned(&self) -> Result<Removed, StoreError> {
        match &self.engine {
            Engine::Sqlite(engine) => engine.pruned(),
        }
    }

    /// The places of the first `limit` orders after the place `after` that settled before a moment
    /// and may be removed.
    pub async fn next_prunable(
        &self,
        settled_before: Timestamp,
        after: i64,
        limit: usize,
    ) -> Result<Vec<i64>, StoreError> {
        match &self.engine {
            Engine::Sqlite(engine) => engine.next_prunable(settled_before, after, limit),
        }
    }

    /// Removes the orders at these places that settled before a moment, with their entries of the
    /// journal, in one transaction. Nothing else is ever removed, nor what numbering needs.
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

    /// Bytes in the database file that are free for what is to come.
    pub async fn free_bytes(&self) -> Result<u64, StoreError> {
        match &self.engine {
            Engine::Sqlite(engine) => engine.free_bytes(),
        }
    }

    /// What this process has written, and what waits to be.
    pub fn writer_stats(&self) -> WriterStats {
        self.queue().stats()
    }

    /// What the database takes on disk.
    pub async fn sizes(&self) -> Sizes {
        match &self.engine {
            Engine::Sqlite(engine) => engine.sizes(),
        }
    }

    /// Takes the lead, if no one else has it. Whoever led before can record nothing from then on.
    pub async fn try_lead(&self) -> Result<Option<Leadership>, LeadError> {
        let lock = match &self.engine {
            Engine::Sqlite(engine) => engine.try_lock_lead()?.map(Lock::Sqlite),
        };
        let Some(lock) = lock else {
            return Ok(None);
        };
        let epoch = self.queue().write(|reply| Write::Lead { reply }).await?;
        Ok(Some(Leadership::new(epoch, lock)))
    }

    /// Records what the reconciler did and saw, in one transaction. A change of an order that is
    /// not any more as it was read changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Deposed`] if another reconciler has taken the lead.
    pub async fn record(
        &self,
        lead: &Leadership,
        mut changes: Vec<OrderChange>,
        now: Timestamp,
    ) -> Result<Recorded, StoreError> {
        // Key order: neighbours share pages. Stable, so that an adoption stays before its outcome.
        changes.sort_by_key(|change| change.seq);
        let write = |reply| Write::Record {
            epoch: lead.epoch,
            changes,
            now,
            reply,
        };
        lead.noted(self.queue().write(write).await)
    }

    /// What the reconciler last told of itself.
    pub async fn heartbeat(&self) -> Result<ReconcilerState, StoreError> {
        match &self.engine {
            Engine::Sqlite(engine) => engine.heartbeat(),
        }
    }

    /// Replaces what the reconciler tells of itself.
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

    /// Finds out whether orders can be written, by writing.
    pub async fn probe(&self, now: Timestamp) -> Result<(), StoreError> {
        self.queue()
            .write(|reply| Write::Probe { now, reply })
            .await
    }

    /// Puts everything into the database file itself, for a program that is about to end. If that
    /// cannot be done, the next one to open the file does it.
    pub async fn checkpoint(&self) {
        match &self.engine {
            Engine::Sqlite(engine) => engine.checkpoint().await,
        }
    }

    /// The position of the newest event.
    pub async fn newest_event(&self) -> Result<Cursor, StoreError> {
        match &self.engine {
            Engine::Sqlite(engine) => engine.newest_event(),
        }
    }

    /// Returns at most `limit` events after a position, in their order, and the next position: of
    /// all orders, or of one.
    ///
    /// # Errors
    /// [`StoreError::Gone`] if some of what follows may have been missed.
    pub async fn events(
        &self,
        order: Option<&OrderId>,
        after: Cursor,
        limit: usize,
    ) -> Result<(Vec<Event>, Cursor), StoreError> {
        match &self.engine {
            Engine::Sqlite(engine) => engine.events(order, after, limit),
        }
    }

    /// Sets right the times of open orders by which something is waited for: what has happened did so
    /// by `now`, and no attempt is put off for longer than the longest backoff.
    pub async fn set_times_right(
        &self,
        lead: &Leadership,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        lead.noted(match &self.engine {
            Engine::Sqlite(engine) => engine.set_times_right(lead.epoch, now).await,
        })
    }

    /// Subscribes to changes of orders from now on, by whatever process.
    pub fn changes(&self) -> Result<Changes, StoreError> {
        match &self.engine {
            Engine::Sqlite(engine) => engine.changes(),
        }
    }

    /// Subscribes to the creation of orders after the newest that there is now, by whatever process.
    pub async fn new_orders(&self) -> Result<NewOrders, StoreError> {
        let changes = match &self.engine {
            Engine::Sqlite(engine) => engine.changes_for_new_orders()?,
        };
        Ok(NewOrders {
            changes,
            newest: self.newest_seq().await?,
            store: self.clone(),
        })
    }

    /// A handle on the same orders for reads that may take long, or wait, on one of the worker threads
    /// that serve everyone: SQLite's are made on the calling thread, whose other tasks are handed to
    /// another one meanwhile.
    ///
    /// # Panics
    /// Its reads panic on a runtime of one thread.
    #[must_use]
    pub fn for_long_reads(&self) -> Self {
        let engine = match &self.engine {
            Engine::Sqlite(engine) => Engine::Sqlite(engine.for_long_reads()),
        };
        Self { engine }
    }

    /// A handle on the same orders whose subscriptions hear of this process' commits alone.
    #[cfg(test)]
    pub(crate) fn without_polls(&self) -> Self {
        let engine = match &self.engine {
            Engine::Sqlite(engine) => Engine::Sqlite(engine.without_polls()),
        };
        Self { engine }
    }

    fn queue(&self) -> &Queue {
        match &self.engine {
            Engine::Sqlite(engine) => engine.queue(),
        }
    }

    /// Runs statements in the place of a write.
    #[cfg(test)]
    async fn execute(&self, sql: String) -> Result<(), StoreError> {
        self.queue().write(|reply| Write::Sql { sql, reply }).await
    }
}

/// Reads what the reconciler on a database last reported, without touching the database otherwise.
pub fn read_heartbeat(url: &DatabaseUrl) -> Result<ReconcilerState, OpenError> {
    let DatabaseUrl::Sqlite(path) = url;
    sqlite::read_heartbeat(path)
}
