//! A look at a database file from beside: nothing is created, migrated or written, whatever runs
//! on it meanwhile.
//!
//! For the operator's commands. What is checked is in `store/check.rs`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, params};

use super::check;
use super::file::open_error;
use super::open;
use super::orders::{counts, find};
use super::prune::prunable;
use super::row_mapping::{heartbeat, open_order};
use super::stats::pruned;
use crate::decide::OpenOrder;
use crate::order::{OrderId, Timestamp};
use crate::order_details::{COUNTED_AHEAD_MAX, OrderDetails};
use crate::pace::StartClass;
use crate::store::{
    DatabaseSummary, DatabaseUrl, Finding, OpenError, OrderView, Removed, StoreError,
};

/// Page cache for reading through a whole file, in KiB: the inner pages of a million orders'
/// indexes, and not much more.
const CACHE_KIB: i64 = 16 * 1024;

/// Pages that are copied before they are flushed: 8 MiB, which a disk takes in some milliseconds.
const COPIED_AT_ONCE: i32 = 2_048;

/// How long to wait for someone who holds the file without knowing our locks.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// A database, opened for reading only.
pub struct ReadOnlyDatabase {
    db: Connection,
    path: PathBuf,
}

impl ReadOnlyDatabase {
    /// Opens a database that must be there.
    pub fn open(url: &DatabaseUrl) -> Result<Self, OpenError> {
        let DatabaseUrl::Sqlite(path) = url;
        let (db, path) = open::for_reading(path)?;
        db.busy_timeout(BUSY_TIMEOUT)
            .and_then(|()| db.pragma_update(None, "cache_size", -CACHE_KIB))
            .map_err(|error| open_error(&path, Box::new(error)))?;
        Ok(Self { db, path })
    }

    /// The absolute path of the database.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How much there is in it, at one moment.
    pub fn contents(&self) -> Result<DatabaseSummary, StoreError> {
        let snapshot = self.db.unchecked_transaction()?;
        let newest = "SELECT coalesce(max(seq), 0) FROM journal";
        Ok(DatabaseSummary {
            orders: counts(&snapshot)?,
            newest_seq: snapshot.query_row(newest, [], |row| row.get(0))?,
            pruned: pruned(&snapshot)?,
        })
    }

    /// How much would be removed of what settled before a moment.
    pub fn prunable(&self, settled_before: Timestamp) -> Result<Removed, StoreError> {
        Ok(prunable(&self.db, settled_before)?)
    }

    /// Checks all that is promised of a database, and tells what is not so. Safe beside programs
    /// that write: each check is one statement, and sees one moment.
    pub fn check(&self, mut tell: impl FnMut(Finding)) {
        check::check(&self.db, &mut tell);
    }

    /// All that is known of one order, at one moment. `None` if there is no such order.
    pub fn details(
        &self,
        id: &OrderId,
        now: Timestamp,
    ) -> Result<Option<OrderDetails>, StoreError> {
        Ok(details(&self.db, id, now)?)
    }

    /// Ids that may have been meant by one that does not exist: the same in other letters, and
    /// its neighbours in the order of ids that begin like it.
    pub fn similar_ids(&self, id: &OrderId) -> Result<Vec<String>, StoreError> {
        let id = id.as_str();
        let begins = id.chars().count().div_ceil(2);
        let begins: String = id.chars().take(begins).collect();
        let mut similar: Vec<String> = Vec::new();
        for sql in [
            "SELECT id FROM orders WHERE id = ?1 COLLATE NOCASE ORDER BY id LIMIT 3",
            "SELECT id FROM orders WHERE id > ?1 ORDER BY id LIMIT 2",
            "SELECT id FROM orders WHERE id < ?1 ORDER BY id DESC LIMIT 2",
        ] {
            let mut query = self.db.prepare(sql)?;
            for other in query.query_map([id], |row| row.get::<_, String>(0))? {
                let other = other?;
                let is_alike = other.starts_with(&begins) || other.eq_ignore_ascii_case(id);
                if is_alike && !similar.contains(&other) {
                    similar.push(other);
                }
            }
        }
        Ok(similar)
    }

    /// Copies the whole database, as it is at one moment, into the file at `to`, which then needs
    /// no other file beside it. Its end is not flushed to disk yet. The first program that writes to
    /// it begins a new history, even if it takes the place of the file that was copied.
    ///
    /// All pages are read under one read transaction: otherwise the copy would begin again
    /// whenever another process has written, and never end beside one that writes all the time.
    /// `VACUUM INTO` sees one moment as well, but holds on to it many times longer, because it
    /// builds every index anew, and for so long the write-ahead log can only grow.
    ///
    /// Each piece is flushed before the next. If the disk were given all at the end, every commit
    /// beside would wait until it has taken that.
    pub fn copy_to(&self, to: &Path) -> Result<(), CopyError> {
        let mut copy = Connection::open(to)?;
        // It is worth nothing until it is whole and flushed, so none of it is journalled.
        copy.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF")?;
        let snapshot = self.db.unchecked_transaction()?;
        // The transaction begins when something is read.
        snapshot.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
        let file = File::open(to)?;
        let backup = Backup::new(&self.db, &mut copy)?;
        loop {
            match backup.step(COPIED_AT_ONCE)? {
                StepResult::More => file.sync_data()?,
                StepResult::Done => break,
                _ => return Err(CopyError::Locked),
            }
        }
        drop(backup);
        drop(snapshot);
        copy.close().map_err(|(_, error)| error)?;
        // The pages say that there is a write-ahead log beside them.
        let copy = Connection::open(to)?;
        copy.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(()))?;
        copy.execute_batch("PRAGMA synchronous = OFF; UPDATE histories SET file = ''")?;
        copy.close().map_err(|(_, error)| error)?;
        Ok(())
    }
}

/// All that is known of one order, at one moment.
pub(super) fn details(
    db: &Connection,
    id: &OrderId,
    now: Timestamp,
) -> rusqlite::Result<Option<OrderDetails>> {
    let db = db.unchecked_transaction()?;
    let Some(OrderView { order, .. }) = find(&db, id)? else {
        return Ok(None);
    };
    let open = open_order(&db, order.seq)?;
    Ok(Some(OrderDetails {
        ahead: open.map_or(Ok(0), |open| ahead(&db, &open, now))?,
        open,
        journal: journal_of(&db, order.seq)?,
        reconciler: heartbeat(&db)?,
        order,
    }))
}

/// An order's part of the journal, oldest first.
fn journal_of(db: &Connection, order_seq: i64) -> rusqlite::Result<Vec<(Timestamp, String)>> {
    db.prepare("SELECT at, reason FROM journal WHERE order_seq = ?1 ORDER BY seq")?
        .query_map([order_seq], |row| Ok((Timestamp(row.get(0)?), row.get(1)?)))?
        .collect()
}

/// Number of starts that come before that of an order that waits for its turn, about. At most
/// [`COUNTED_AHEAD_MAX`] orders are counted in each queue. One that waits for an operator, or for the end of
/// its backoff, is in nobody's way.
fn ahead(db: &Connection, order: &OpenOrder, now: Timestamp) -> rusqlite::Result<u64> {
    let own = order.start_class();
    own.starts_before(|queue| {
        let before = if queue == own { order.seq } else { i64::MAX };
        let due = match queue {
            StartClass::Forgotten => {
                "orders INDEXED BY orders_with_attention WHERE attention IS NOT NULL \
                 AND status = 'PROCESSING' AND (released_at IS NOT NULL \
                     OR attention = 'process_lost' AND next_attempt_at IS NULL)"
            }
            StartClass::New => {
                "orders INDEXED BY orders_by_status WHERE status = 'CREATED' \
                 AND intent_at IS NULL AND attempts = 0"
            }
            StartClass::Retry => {
                "orders INDEXED BY orders_by_status WHERE status = 'CREATED' \
                 AND intent_at IS NULL AND attempts > 0 \
                 AND (attention IS NOT 'max_starts' OR released_at IS NOT NULL)"
            }
        };
        let sql = format!(
            "SELECT count(*) FROM (SELECT 1 FROM {due} AND seq < ?1 \
             AND coalesce(next_attempt_at, ?2) <= ?2 LIMIT {COUNTED_AHEAD_MAX})"
        );
        db.prepare_cached(&sql)?
            .query_row(params![before, now.0], |row| row.get::<_, i64>(0))
            .map(i64::unsigned_abs)
    })
}

/// Why a copy could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// Someone has held the database for too long.
    #[error("the database is locked by another program")]
    Locked,
    /// What SQLite says: the disk is full, the database is damaged, …. Its own cause says the same
    /// once more.
    #[error("{0}")]
    Sqlite(rusqlite::Error),
    /// The copy cannot be flushed to disk.
    #[error("the copy cannot be flushed: {0}")]
    Flush(std::io::Error),
}

impl From<std::io::Error> for CopyError {
    fn from(error: std::io::Error) -> Self {
        Self::Flush(error)
    }
}

impl From<rusqlite::Error> for CopyError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}
