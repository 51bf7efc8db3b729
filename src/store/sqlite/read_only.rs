//! Read-only access to a database file, for the operator's commands: nothing is created, migrated
//! or written, and programs may use the file meanwhile.

use std::fs::File;
use std::path::{Path, PathBuf};

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, params};

use super::orders::find;
use super::row_mapping::{heartbeat, open_order};
use super::{check, open};
use crate::decide::OpenOrder;
use crate::order::{OrderId, Timestamp};
use crate::order_details::{COUNTED_AHEAD_MAX, OrderDetails};
use crate::pace::StartClass;
use crate::store::filter::waits_for_start;
use crate::store::lines::{BoxError, Lines};
use crate::store::{Finding, OpenError, OrderView, StoreError};

/// Pages copied between flushes: 8 MiB, which a disk writes in some milliseconds.
const COPIED_AT_ONCE: i32 = 2_048;

/// A SQLite file, opened read-only.
pub(in crate::store) struct ReadOnlyFile {
    db: Connection,
    path: PathBuf,
}

impl ReadOnlyFile {
    /// Opens an existing file.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let (db, path) = open::for_reading(path)?;
        Ok(Self { db, path })
    }

    /// Returns the absolute path of the database.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns its rows.
    pub fn lines(&self) -> &dyn Lines {
        &self.db
    }

    /// Runs all checks.
    pub fn check(&self, on_finding: &mut dyn FnMut(Finding)) {
        check::check(&self.db, on_finding);
    }

    /// Like [`Store::details`](crate::store::Store::details).
    pub fn details(
        &self,
        id: &OrderId,
        now: Timestamp,
    ) -> Result<Option<OrderDetails>, StoreError> {
        Ok(details(&self.db, id, now)?)
    }

    /// Returns ids that differ from one in case only, and its neighbours in sort order.
    pub fn neighbours(&self, id: &OrderId) -> Result<Vec<String>, StoreError> {
        let mut candidates = Vec::new();
        for sql in [
            "SELECT id FROM orders WHERE id = ?1 COLLATE NOCASE ORDER BY id LIMIT 3",
            "SELECT id FROM orders WHERE id > ?1 ORDER BY id LIMIT 2",
            "SELECT id FROM orders WHERE id < ?1 ORDER BY id DESC LIMIT 2",
        ] {
            let mut query = self.db.prepare(sql)?;
            let ids = query.query_map([id.as_str()], |row| row.get(0))?;
            candidates.extend(ids.collect::<rusqlite::Result<Vec<String>>>()?);
        }
        Ok(candidates)
    }

    /// Copies a snapshot of the whole database into the file at `to`, which then needs no other
    /// file beside it. The end of the file is not flushed to disk yet. The first program that
    /// writes to it begins a new history, even if the copy replaces the original file.
    ///
    /// All pages are read in one read transaction: otherwise the copy would start over after each
    /// write of another process, and never end beside one that writes all the time. `VACUUM INTO`
    /// reads one snapshot as well, but takes many times longer, because it rebuilds every index,
    /// and until it ends the write-ahead log can only grow.
    ///
    /// Each piece is flushed before the next. With a single flush at the end, every concurrent
    /// commit would wait for the whole file to reach the disk.
    pub fn copy_to(&self, to: &Path) -> Result<(), BoxError> {
        let mut copy = Connection::open(to)?;
        // The copy is worthless until it is complete and flushed, so nothing is journalled.
        copy.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF")?;
        let snapshot = self.db.unchecked_transaction()?;
        // SQLite begins the transaction at the first read.
        snapshot.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
        let file = File::open(to)?;
        let backup = Backup::new(&self.db, &mut copy)?;
        loop {
            match backup.step(COPIED_AT_ONCE)? {
                StepResult::More => file
                    .sync_data()
                    .map_err(|error| format!("the copy cannot be flushed: {error}"))?,
                StepResult::Done => break,
                _ => return Err("the database is locked by another program".into()),
            }
        }
        drop(backup);
        drop(snapshot);
        copy.close().map_err(|(_, error)| error)?;
        // The copied header says that there is a write-ahead log.
        let copy = Connection::open(to)?;
        copy.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(()))?;
        copy.execute_batch("PRAGMA synchronous = OFF; UPDATE histories SET file = ''")?;
        copy.close().map_err(|(_, error)| error)?;
        Ok(())
    }
}

/// See [`Store::details`](crate::store::Store::details).
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

/// Returns the journal entries of an order, oldest first.
fn journal_of(db: &Connection, order_seq: i64) -> rusqlite::Result<Vec<(Timestamp, String)>> {
    db.prepare("SELECT at, reason FROM journal WHERE order_seq = ?1 ORDER BY seq")?
        .query_map([order_seq], |row| Ok((Timestamp(row.get(0)?), row.get(1)?)))?
        .collect()
}

/// Returns the approximate number of starts ahead of a waiting order's. At most
/// [`COUNTED_AHEAD_MAX`] orders are counted in each queue. Orders that wait for an operator, or for
/// the end of their backoff, are not counted.
fn ahead(db: &Connection, order: &OpenOrder, now: Timestamp) -> rusqlite::Result<u64> {
    let own = order.start_class();
    own.starts_before(|class| {
        let before = if class == own { order.seq } else { i64::MAX };
        let index = match class {
            StartClass::Forgotten => "orders_with_attention",
            StartClass::New | StartClass::Retry => "orders_by_status",
        };
        let due = waits_for_start(class);
        let sql = format!(
            "SELECT count(*) FROM (SELECT 1 FROM orders INDEXED BY {index} WHERE {due} AND seq < ?1 \
             AND coalesce(next_attempt_at, ?2) <= ?2 LIMIT {COUNTED_AHEAD_MAX})"
        );
        db.prepare_cached(&sql)?
            .query_row(params![before, now.0], |row| row.get::<_, i64>(0))
            .map(i64::unsigned_abs)
    })
}
