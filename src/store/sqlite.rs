//! Orders in one SQLite file.
//!
//! Reads use a small pool of connections. All writes of this process go through one writer
//! (`writer`, on a thread of its own: `writer_thread`), which commits many at once under the lock of
//! `write_lock`, and whose log is checkpointed in `checkpoint`. `open` opens and checks a file, `permits`
//! limits the reads of a runtime's worker threads, `file` knows the files of a database, `row_mapping`
//! converts rows.
//! `read_only` is the read-only connection of the operator's commands.

mod check;
mod checkpoint;
mod commits;
mod copy;
mod file;
mod histories;
mod journal;
mod lead;
mod lines;
mod log_rescue;
mod open;
mod open_error;
mod open_orders;
mod operator;
mod orders;
mod page;
mod permits;
mod prune;
mod read_only;
mod row_mapping;
mod stats;
mod times;
mod write_error;
mod write_lock;
mod writer;
mod writer_thread;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use r2d2_sqlite::SqliteConnectionManager;
use rusqlite::Connection;
use tokio::sync::SemaphorePermit;

pub(super) use self::copy::{CopySide, address};
pub(super) use self::file::{lock_files, log_files};
pub(super) use self::lead::LeaderLock;
use self::open::Purpose;
pub(super) use self::open::holds_orders;
pub(super) use self::open_error::FileError;
use self::permits::Reads;
pub(super) use self::read_only::ReadOnlyFile;
use self::writer_thread::Writer;
use super::cursor::{Histories, Sequence};
use super::mode::Mode;
use super::queue::Queue;
use super::{
    Cursor, DatabaseInfo, Filter, OpenError, OpenOrders, OrderView, Page, StartCandidate,
    StatsSnapshot, StoreError,
};
use crate::journal_stats::JournalStats;
use crate::order::{Event, OrderId, Status, Timestamp};
use crate::order_details::OrderDetails;
use crate::reconciler_state::ReconcilerState;

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Unreadable(Box::new(error))
    }
}

impl From<r2d2::Error> for StoreError {
    fn from(error: r2d2::Error) -> Self {
        Self::Unreadable(Box::new(error))
    }
}

/// Orders in one SQLite file. The methods are those of [`Store`](super::Store).
#[derive(Clone)]
pub(super) struct Engine {
    inner: Arc<Inner>,
    reads: Reads,
    #[cfg(test)]
    is_polling_off: bool,
}

struct Inner {
    path: PathBuf,
    /// The path as text.
    address: String,
    histories: Histories,
    readers: r2d2::Pool<SqliteConnectionManager>,
    writer: Writer,
}

impl Engine {
    pub fn open(path: &Path, mode: Mode) -> Result<Self, OpenError> {
        let (file, db, histories) = open::prepare(path, Purpose::Use)?;
        let readers = open::readers(&file)?;
        let writer = Writer::start(db, file.clone(), mode)?;
        // All connections opened by now use one file.
        file.check().map_err(|error| file.error(error))?;
        let inner = Inner {
            address: file.path.display().to_string(),
            path: file.path,
            histories,
            readers,
            writer,
        };
        Ok(Self {
            inner: Arc::new(inner),
            reads: Reads::Unlimited,
            #[cfg(test)]
            is_polling_off: false,
        })
    }

    /// Opens an existing database.
    pub fn open_existing(path: &Path) -> Result<Self, OpenError> {
        open::must_exist(path)?;
        Self::open(path, Mode::Threaded)
    }

    pub fn for_short_reads(&self) -> Self {
        self.with(Reads::short())
    }

    pub fn for_long_reads(&self) -> Self {
        self.with(Reads::long())
    }

    fn with(&self, reads: Reads) -> Self {
        Self {
            reads,
            ..self.clone()
        }
    }

    /// Waits until a read may be made on a runtime's worker thread. It is held until the read ends.
    pub async fn permit(&self) -> Result<Option<SemaphorePermit<'_>>, StoreError> {
        self.reads.permit().await
    }

    #[cfg(test)]
    pub fn without_polls(&self) -> Self {
        Self {
            is_polling_off: true,
            ..self.clone()
        }
    }

    pub fn address(&self) -> &str {
        &self.inner.address
    }

    pub fn try_lock_lead(&self) -> Result<Option<LeaderLock>, OpenError> {
        LeaderLock::try_take(&self.inner.path)
    }

    pub fn queue(&self) -> &Queue {
        &self.inner.writer.queue
    }

    pub fn find(&self, id: &OrderId) -> Result<Option<OrderView>, StoreError> {
        self.read(|db| orders::find(db, id))
    }

    pub fn details(
        &self,
        id: &OrderId,
        now: Timestamp,
    ) -> Result<Option<OrderDetails>, StoreError> {
        self.read(|db| read_only::details(db, id, now))
    }

    pub fn newest_seq(&self) -> Result<i64, StoreError> {
        self.read(orders::newest_seq)
    }

    pub fn page(
        &self,
        filter: &Filter,
        after: Cursor,
        last: i64,
        limit: usize,
    ) -> Result<Page, StoreError> {
        self.snapshot(|db| page::page(db, &self.inner.histories, filter, after, last, limit))
    }

    pub fn count(&self, status: Status) -> Result<u64, StoreError> {
        self.read(|db| orders::count(db, status))
    }

    pub fn open_orders(&self) -> Result<OpenOrders, StoreError> {
        let mut list = OpenOrders::default();
        while self.read(|db| open_orders::read_next(db, &mut list))? == open_orders::READ_MAX {}
        Ok(list)
    }

    pub fn has_work(&self, now: Timestamp, max_starts: u32) -> Result<bool, StoreError> {
        self.read(|db| orders::has_work(db, now, max_starts))
    }

    pub fn startable(
        &self,
        now: Timestamp,
        max_starts: u32,
        is_tried: bool,
        after: i64,
        limit: usize,
    ) -> Result<Vec<StartCandidate>, StoreError> {
        self.read(|db| orders::startable(db, now, max_starts, is_tried, after, limit))
    }

    pub fn update_stats(
        &self,
        history: &mut JournalStats,
        now: Timestamp,
    ) -> Result<StatsSnapshot, StoreError> {
        self.read(|db| stats::update(db, history, now))
    }

    pub fn next_prunable(
        &self,
        settled_before: Timestamp,
        after: i64,
        limit: usize,
    ) -> Result<Vec<i64>, StoreError> {
        self.read(|db| prune::next_prunable(db, settled_before, after, limit))
    }

    pub fn free_bytes(&self) -> Result<u64, StoreError> {
        self.read(prune::free_bytes)
    }

    pub fn info(&self) -> DatabaseInfo {
        stats::info(&self.inner.path)
    }

    pub fn heartbeat(&self) -> Result<ReconcilerState, StoreError> {
        self.read(row_mapping::heartbeat)
    }

    pub fn newest_event(&self) -> Result<Cursor, StoreError> {
        self.read(|db| {
            let now = histories::extent(db, Sequence::Journal)?;
            Ok(self.inner.histories.position(now.newest, &now))
        })
    }

    pub fn events(
        &self,
        order: Option<&OrderId>,
        after: Cursor,
        limit: usize,
    ) -> Result<(Vec<Event>, Cursor), StoreError> {
        self.snapshot(|db| journal::events(db, &self.inner.histories, order, after, limit))
    }

    pub fn with_times_ahead(
        &self,
        status: Status,
        after: i64,
        now: Timestamp,
    ) -> Result<Vec<i64>, StoreError> {
        self.read(|db| times::with_times_ahead(db, status, after, now))
    }

    /// Checkpoints the write-ahead log into the database file. If that fails, the next program that
    /// opens the file does it.
    pub async fn checkpoint(&self) {
        if let Err(error) = self.inner.writer.checkpoint().await {
            log::debug!("the write-ahead log was not checkpointed: {error}");
        }
    }

    fn read<T>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        self.on_connection(|db| Ok(query(db)?))
    }

    /// Runs a query in one read transaction.
    fn snapshot<T>(
        &self,
        query: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.on_connection(|db| query(&*db.unchecked_transaction()?))
    }

    fn on_connection<T>(
        &self,
        query: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.reads.run(|| query(&*self.inner.readers.get()?))
    }
}

/// See [`read_heartbeat`](super::read_heartbeat).
pub(super) fn read_heartbeat(path: &Path) -> Result<ReconcilerState, OpenError> {
    let (db, path) = open::for_reading(path)?;
    row_mapping::heartbeat(&db).map_err(|error| file::file_error(&path, error))
}
