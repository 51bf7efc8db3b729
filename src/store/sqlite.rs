//! Orders in one SQLite file.
//!
//! - Writes of this program go through one `writer`, on a thread of its own (`writer_thread`), which commits
//!   many at once under the lock of `write_lock`; `write_error` classifies failures. `checkpoint` copies the
//!   write-ahead log into the database, which `log_rescue` requests when a file is gone. `lead` elects the leader.
//! - Reads use a small pool of connections. `database` runs the queries of all engines, `open_orders` reads the
//!   orders to poll, `permits` limits reads on worker threads, `commits` detects commits of other programs.
//! - `open` opens, checks and migrates a database, `file` knows its files, `open_error` says what is wrong.
//! - `read_only` is the connection of the operator's commands, with `lines` and `check`; `copy` is a file that
//!   is copied from or into.

mod check;
mod checkpoint;
mod commits;
mod copy;
mod database;
mod file;
mod lead;
mod lines;
mod log_rescue;
mod open;
mod open_error;
mod open_orders;
mod permits;
#[cfg(test)]
mod plans;
mod read_only;
mod write_error;
mod write_lock;
mod writer;
mod writer_thread;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use r2d2_sqlite::SqliteConnectionManager;
use rusqlite::{Connection, OptionalExtension};
use tokio::sync::SemaphorePermit;

pub(super) use self::copy::{CopySide, address};
pub(super) use self::database::result;
pub(super) use self::file::{lock_files, log_files};
pub(super) use self::lead::LeaderLock;
pub(super) use self::open::holds_orders;
pub(super) use self::open_error::FileError;
use self::open_error::with_advice;
pub(super) use self::permits::Reads;
pub(super) use self::read_only::ReadOnlyFile;
use self::writer_thread::Writer;
use super::Retirement;
use super::mode::Mode;
use super::queries::{self, Read};
use super::queue::Queue;
use super::relocation::Purpose;
use super::rows::{Columns, order_view_of};
use super::{DatabaseInfo, DatabaseSize, Durability, OpenError, OpenOrders, OrderView, StoreError};
use crate::order::OrderId;

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Unreadable(with_advice(error))
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
}

struct Inner {
    path: PathBuf,
    readers: r2d2::Pool<SqliteConnectionManager>,
    writer: Writer,
}

impl Engine {
    pub fn open(path: &Path, mode: Mode) -> Result<Self, OpenError> {
        let (path, readers, writer) = match mode {
            Mode::ReadOnly => {
                let (_db, path) = open::for_reading(path)?;
                let readers = open::readers_of(&path, open::READ_ONLY)?;
                (path, readers, Writer::none())
            }
            mode => {
                if let Mode::Existing = mode {
                    open::must_exist(path)?;
                }
                let (file, db) = open::prepare(path, Purpose::Use)?;
                let readers = open::readers(&file)?;
                let writer = Writer::start(db, file.clone(), mode)?;
                // All connections opened by now use one file.
                file.check().map_err(|error| file.error(error))?;
                (file.path, readers, writer)
            }
        };
        let inner = Inner {
            path,
            readers,
            writer,
        };
        Ok(Self {
            inner: Arc::new(inner),
            reads: Reads::Unlimited,
        })
    }

    /// Returns an engine on the same file whose reads are made so.
    pub fn with(&self, reads: Reads) -> Self {
        Self {
            reads,
            ..self.clone()
        }
    }

    /// Waits until a read may be made on a runtime's worker thread. It is held until the read ends.
    pub async fn permit(&self) -> Result<Option<SemaphorePermit<'_>>, StoreError> {
        self.reads.permit().await
    }

    pub fn try_lock_lead(&self) -> Result<Option<LeaderLock>, OpenError> {
        LeaderLock::try_take(&self.inner.path)
    }

    pub fn queue(&self) -> &Queue {
        &self.inner.writer.queue
    }

    pub fn retirement(&self) -> &Retirement {
        &self.inner.writer.retirement
    }

    /// Like `queries::find`. The most frequent read takes a twentieth fewer instructions without a future
    /// and a list of rows.
    pub fn find(&self, id: &OrderId) -> Result<Option<OrderView>, StoreError> {
        self.read(Read::Statement, |db| {
            let mut query = db.prepare_cached(queries::ORDER_VIEW)?;
            query
                .query_row([id.as_str()], |row| order_view_of(row))
                .optional()
        })
    }

    pub fn open_orders(&self) -> Result<OpenOrders, StoreError> {
        let mut list = OpenOrders::default();
        while self.read(Read::Statement, |db| open_orders::read_next(db, &mut list))?
            == queries::READ_MAX
        {}
        Ok(list)
    }

    pub fn info(&self) -> DatabaseInfo {
        DatabaseInfo {
            address: self.inner.path.display().to_string(),
            engine: "sqlite",
            durability: Durability::Disk,
            writer: self.queue().stats(),
            reconnects: None,
            lost_entries: 0,
        }
    }

    pub async fn size(&self) -> DatabaseSize {
        let bytes = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len());
        let path = &self.inner.path;
        DatabaseSize {
            database: bytes(path),
            log: Some(bytes(&file::with_suffix(path, "-wal"))),
        }
    }

    pub async fn checkpoint(&self) -> Result<u64, StoreError> {
        const FREE_BYTES: &str =
            "SELECT freelist_count * page_size FROM pragma_freelist_count, pragma_page_size";
        self.inner.writer.checkpoint().await?;
        self.read(Read::Statement, |db| {
            db.query_row(FREE_BYTES, [], |row| row.count(0))
        })
    }

    /// Runs a query, in one read transaction if it has several statements.
    pub fn read<T>(
        &self,
        kind: Read,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        self.reads.run(|| {
            let db = self.inner.readers.get()?;
            Ok(match kind {
                Read::Snapshot => query(&*db.unchecked_transaction()?)?,
                Read::Statement | Read::Scan => query(&db)?,
            })
        })
    }
}
