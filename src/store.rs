//! Durable orders, their journal and the reconciler's heartbeat. The only place that knows SQL.
//!
//! Reads use a small pool; every write of this process goes through one writer (`store/writer.rs`)
//! that commits many at once, and whose log is folded back in `store/fold.rs`. How a file is opened
//! and checked is in `store/open.rs`, which files a database consists of in `store/file.rs`, what the reconciler records is in `store/record.rs`, how the
//! journal is read in `store/journal.rs`, what an operator decides in `store/operate.rs`, what is
//! told of the whole in `store/history.rs`, which orders are on a page in `store/page.rs`, what is
//! removed in `store/prune.rs`, and from which positions readers go on in `store/cursor.rs`, how rows
//! are read in `store/rows.rs`, who is woken by a commit in `store/commits.rs`, and which the
//! reconciler watches in `store/watched.rs`. What looks at a file from beside, to copy or check it,
//! is in `store/inspect.rs`. The methods speak of orders, not of SQL.

mod check;
mod commits;
mod cursor;
mod file;
mod fold;
mod history;
mod inspect;
mod journal;
mod open;
mod operate;
mod page;
mod prune;
mod record;
mod rows;
mod times;
mod watched;
mod writer;
mod writing;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use r2d2_sqlite::SqliteConnectionManager;
use rusqlite::{Connection, OptionalExtension, params};

pub use self::check::Finding;
pub use self::commits::Commits;
pub use self::cursor::{Cursor, Gone};
use self::cursor::{Extent, Histories, Sequence};
pub use self::history::{Glance, Sizes};
pub use self::inspect::{Contents, CopyError, Inspection};
pub use self::open::{DatabasePath, DatabasePathError, LeaderLock, OpenError};
pub use self::operate::Decided;
pub use self::page::{AttentionFilter, Filter};
pub use self::prune::Removed;
pub use self::record::{Change, Recorded, Step, Trouble};
use self::rows::{
    FOUND, OPEN_ORDER, found_of, heartbeat, id_of, start_candidate_of, write_heartbeat,
};
pub use self::watched::Watchlist;
use self::writer::Writer;
pub use self::writer::{Gate, Mode, OpenGate, Passage};
pub use self::writing::{COMMITTED_AT_ONCE, COMMITTED_WITHIN_US, Writing};
use crate::decide::OpenOrder;
use crate::journal_stats::JournalStats;
use crate::order::{EventReason, Order, OrderId, Status, Timestamp};
use crate::order_details::OrderDetails;
use crate::reconciler_state::ReconcilerState;

/// Store errors, grouped by what the caller may do next: try again, but look first after
/// [`StoreError::OutcomeUnknown`], and begin anew after [`StoreError::Gone`].
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
    /// A reader that goes on from this position might miss something.
    #[error(transparent)]
    Gone(#[from] Gone),
}

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

/// What came of the creation of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Creation {
    /// It is on disk.
    Created(Order),
    /// There was one with this id already.
    Exists(Order),
}

/// An order, and what its readers have to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The order.
    pub order: Order,
    /// When the reconciler looks at processes next, at the earliest, if it ever did.
    pub next_look_at: Option<Timestamp>,
}

/// An order that may be started, or started again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartCandidate {
    /// Its id.
    pub id: OrderId,
    /// All else about it.
    pub order: OpenOrder,
}

/// The orders on one file, shared by everything in this process.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    histories: Histories,
    readers: r2d2::Pool<SqliteConnectionManager>,
    writer: Writer,
}

impl Store {
    /// Opens the database, creates and migrates it where needed, and checks that it is one that
    /// this program can trust.
    pub fn open(path: &DatabasePath, mode: Mode) -> Result<Self, OpenError> {
        let (file, db, histories) = open::prepare(path)?;
        let readers = open::readers(&file)?;
        let writer = Writer::start(db, file.clone(), mode)?;
        // All that is open now belongs to one file.
        file.check().map_err(|error| file.error(error))?;
        Ok(Self {
            inner: Arc::new(Inner {
                path: file.path,
                histories,
                readers,
                writer,
            }),
        })
    }

    /// Opens a database that must be there already.
    pub fn open_existing(path: &DatabasePath) -> Result<Self, OpenError> {
        open::must_exist(path)?;
        Self::open(path, Mode::Threaded)
    }

    /// The absolute path of the database.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Creates an order, durably.
    pub async fn create(&self, id: OrderId, now: Timestamp) -> Result<Creation, StoreError> {
        self.inner
            .writer
            .write(move |db| create(db, &id, now))
            .await
    }

    /// The order with this id, and what is told beside it.
    pub fn find(&self, id: &OrderId) -> Result<Option<Found>, StoreError> {
        self.read(|db| find(db, id))
    }

    /// The order with this id, without what is told beside it.
    pub fn order(&self, id: &OrderId) -> Result<Option<Order>, StoreError> {
        Ok(self.find(id)?.map(|found| found.order))
    }

    /// All that is known of one order, at one moment. `None` if there is no such order.
    pub fn details(
        &self,
        id: &OrderId,
        now: Timestamp,
    ) -> Result<Option<OrderDetails>, StoreError> {
        self.read(|db| inspect::details(db, id, now))
    }

    /// The place of the newest order in the order of creation; 0 if there is none.
    pub fn newest_seq(&self) -> Result<i64, StoreError> {
        self.read(newest_seq)
    }

    /// At most `limit` orders after the number `after` and up to the number `last`, in the order of
    /// creation, whatever was removed from among them.
    pub fn page(
        &self,
        filter: &Filter,
        after: i64,
        last: i64,
        limit: usize,
    ) -> Result<Vec<Order>, StoreError> {
        self.read(|db| page::page(db, filter, after, last, limit))
    }

    /// Like [`Store::page`], but goes on from a position, and returns the next one.
    ///
    /// # Errors
    /// [`StoreError::Gone`] if some of what follows may have been missed.
    pub fn page_after(
        &self,
        filter: &Filter,
        after: Cursor,
        last: i64,
        limit: usize,
    ) -> Result<(Vec<Order>, Cursor), StoreError> {
        self.snapshot(|db| {
            let mut now = Extent::read(db, Sequence::Orders)?;
            if !filter.takes_settled() {
                // None of these was ever pruned.
                now.last_pruned = 0;
            }
            let here = self.inner.histories.resume(after, &now)?;
            let orders = page::page(db, filter, after.seq, last, limit)?;
            let next = here.at(orders.last().map_or(after.seq, |order| order.seq));
            Ok((orders, next))
        })
    }

    /// How many orders there are in each status.
    pub fn counts(&self) -> Result<Vec<(Status, u64)>, StoreError> {
        self.read(counts)
    }

    /// Returns the number of orders in a status.
    pub fn count(&self, status: Status) -> Result<u64, StoreError> {
        self.read(|db| count(db, status))
    }

    /// How many processes were started in the place of a forgotten one, those of removed orders
    /// included.
    pub fn restarts(&self) -> Result<u64, StoreError> {
        self.read(|db| {
            let db = db.unchecked_transaction()?;
            let left: i64 = db
                .prepare_cached("SELECT count(*) FROM journal WHERE reason = 'restarted'")?
                .query_row([], |row| row.get(0))?;
            let removed = prune::base(&db)?.entries_with(EventReason::Restarted);
            Ok(removed + left.unsigned_abs())
        })
    }

    /// The orders whose process was forgotten and that wait for an operator. Oldest first.
    pub fn lost(&self) -> Result<Vec<OrderId>, StoreError> {
        self.read(operate::lost)
    }

    /// Lets an order that is held, or that the upstream refuses, be started again, whatever the
    /// policy, as soon as its process is not found.
    pub async fn release(&self, id: OrderId, now: Timestamp) -> Result<Decided, StoreError> {
        let write = move |db: &Connection| operate::release(db, &id, now);
        self.inner.writer.write(write).await
    }

    /// Settles an order as FAILED whose process was forgotten.
    pub async fn fail(&self, id: OrderId, now: Timestamp) -> Result<Decided, StoreError> {
        let write = move |db: &Connection| operate::fail(db, &id, now);
        self.inner.writer.write(write).await
    }

    /// The orders whose process has to be observed: PROCESSING, or CREATED with a start of unknown
    /// outcome. Oldest first. They are read some thousands at a time: what another process changes
    /// meanwhile may be seen of one and not of the next.
    pub fn watched(&self) -> Result<Watchlist, StoreError> {
        let mut list = Watchlist::default();
        while self.read(|db| watched::read_on(db, &mut list))? == watched::READ_AT_ONCE {}
        Ok(list)
    }

    /// At most `limit` orders after the place `after` that have neither a process nor a start of
    /// unknown outcome and may be started now: those that were tried before, or those that were not.
    /// Oldest first.
    pub fn startable(
        &self,
        now: Timestamp,
        max_starts: u32,
        is_tried: bool,
        after: i64,
        limit: usize,
    ) -> Result<Vec<StartCandidate>, StoreError> {
        self.read(|db| {
            let sql = format!(
                "SELECT {OPEN_ORDER} FROM orders INDEXED BY orders_by_status \
                 WHERE status = 'CREATED' AND seq > ?1 AND intent_at IS NULL \
                 AND (attempts > 0) = ?5 AND (starts < ?2 OR released_at IS NOT NULL) \
                 AND (next_attempt_at IS NULL OR next_attempt_at <= ?3) \
                 ORDER BY seq LIMIT ?4"
            );
            db.prepare_cached(&sql)?
                .query_map(
                    params![after, max_starts, now.0, limit as i64, is_tried],
                    start_candidate_of,
                )?
                .collect()
        })
    }

    /// Returns whether there is a start without an outcome whose order may be started again by `due_by`.
    pub fn has_unknown_start(&self, due_by: Timestamp) -> Result<bool, StoreError> {
        const SQL: &str = "SELECT EXISTS (SELECT 1 FROM orders INDEXED BY orders_with_intent \
             WHERE intent_at IS NOT NULL AND coalesce(next_attempt_at, ?1) <= ?1)";
        self.read(|db| {
            db.prepare_cached(SQL)?
                .query_row([due_by.0], |row| row.get(0))
        })
    }

    /// The oldest open order after the place `after`.
    pub fn next_open(&self, after: i64) -> Result<Option<(i64, OrderId)>, StoreError> {
        self.read(|db| next_open(db, after))
    }

    /// Brings a history up to date with the journal, and tells all else that is told of the whole,
    /// as of one moment.
    pub fn glance(&self, history: &mut JournalStats, now: Timestamp) -> Result<Glance, StoreError> {
        self.read(|db| history::glance(db, history, now))
    }

    /// Orders and entries that were removed up to now.
    pub fn pruned(&self) -> Result<Removed, StoreError> {
        self.read(prune::pruned)
    }

    /// The places of the first `limit` orders after the place `after` that settled before a moment
    /// and may be removed.
    pub fn next_prunable(
        &self,
        settled_before: Timestamp,
        after: i64,
        limit: usize,
    ) -> Result<Vec<i64>, StoreError> {
        self.read(|db| prune::next_prunable(db, settled_before, after, limit))
    }

    /// Removes the orders at these places that settled before a moment, with their entries of the
    /// journal, in one transaction. Nothing else is ever removed, nor what numbering needs.
    pub async fn prune(
        &self,
        seqs: Vec<i64>,
        settled_before: Timestamp,
        now: Timestamp,
    ) -> Result<Removed, StoreError> {
        let write = move |db: &Connection| prune::prune(db, &seqs, settled_before, now);
        self.inner.writer.write(write).await
    }

    /// Bytes in the database file that are free for what is to come.
    pub fn free_bytes(&self) -> Result<u64, StoreError> {
        self.read(prune::free_bytes)
    }

    /// What this process has written, and what waits to be.
    pub fn writing(&self) -> Writing {
        self.inner.writer.told()
    }

    /// What the database takes on disk.
    pub fn sizes(&self) -> Sizes {
        history::sizes(&self.inner.path)
    }

    /// Records what the reconciler did and saw, in one transaction. A change of an order that is
    /// not any more as it was read changes nothing.
    pub async fn record(
        &self,
        mut changes: Vec<Change>,
        now: Timestamp,
    ) -> Result<Recorded, StoreError> {
        // Key order: neighbours share pages. Stable, so that an adoption stays before its outcome.
        changes.sort_by_key(|change| change.seq);
        self.inner
            .writer
            .write(move |db| record::record(db, &changes, now))
            .await
    }

    /// What the reconciler last told of itself.
    pub fn heartbeat(&self) -> Result<ReconcilerState, StoreError> {
        self.read(heartbeat)
    }

    /// Replaces what the reconciler tells of itself.
    pub async fn write_heartbeat(&self, heartbeat: ReconcilerState) -> Result<(), StoreError> {
        self.inner
            .writer
            .write(move |db| write_heartbeat(db, &heartbeat))
            .await
    }

    /// Finds out whether orders can be written, by writing.
    pub async fn probe(&self, now: Timestamp) -> Result<(), StoreError> {
        self.inner
            .writer
            .write(move |db| {
                db.prepare_cached("INSERT OR REPLACE INTO write_probe (id, at) VALUES (1, ?1)")?
                    .execute([now.0])
                    .map(drop)
            })
            .await
    }

    /// Puts everything into the database file itself, for a program that is about to end. If that
    /// cannot be done, the next one to open the file does it.
    pub async fn fold(&self) {
        if let Err(error) = self.inner.writer.fold().await {
            log::debug!("the write-ahead log was not folded back: {error}");
        }
    }

    fn read<T>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let db = self.inner.readers.get()?;
        Ok(query(&db)?)
    }

    /// Reads as of one moment.
    fn snapshot<T>(
        &self,
        query: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let db = self.inner.readers.get()?;
        query(&*db.unchecked_transaction()?)
    }
}

/// What the reconciler on a database last told of itself, without touching the file otherwise.
pub fn read_heartbeat(path: &DatabasePath) -> Result<ReconcilerState, OpenError> {
    open::read_only(path, heartbeat)
}

/// Creates an order, if there is none with this id.
const INSERT_ORDER: &str = "INSERT INTO orders (id, status, created_at, updated_at) \
                            VALUES (?1, 'CREATED', ?2, ?2) ON CONFLICT (id) DO NOTHING";

fn create(db: &Connection, id: &OrderId, now: Timestamp) -> rusqlite::Result<Creation> {
    let created = db
        .prepare_cached(INSERT_ORDER)?
        .execute(params![id.as_str(), now.0])?;
    if created == 0 {
        let found = find(db, id)?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
        return Ok(Creation::Exists(found.order));
    }
    let seq = db.last_insert_rowid();
    record::journal(db, seq, EventReason::Created, now)?;
    Ok(Creation::Created(Order {
        seq,
        id: id.clone(),
        status: Status::Created,
        created_at: now,
        updated_at: now,
        starts: 0,
        // A fact of all open orders; the next reader of this one will see it.
        attention: None,
    }))
}

fn find(db: &Connection, id: &OrderId) -> rusqlite::Result<Option<Found>> {
    db.prepare_cached(FOUND)?
        .query_row([id.as_str()], found_of)
        .optional()
}

fn counts(db: &Connection) -> rusqlite::Result<Vec<(Status, u64)>> {
    let mut counts = Vec::new();
    for status in Status::ALL {
        counts.push((status, count(db, status)?));
    }
    Ok(counts)
}

fn count(db: &Connection, status: Status) -> rusqlite::Result<u64> {
    let count: i64 = db
        .prepare_cached("SELECT count(*) FROM orders WHERE status = ?1")?
        .query_row([status.as_str()], |row| row.get(0))?;
    Ok(count.unsigned_abs())
}

fn next_open(db: &Connection, after: i64) -> rusqlite::Result<Option<(i64, OrderId)>> {
    db.prepare_cached(
        "SELECT seq, id FROM orders INDEXED BY orders_by_status \
         WHERE status = 'CREATED' AND seq > ?1 \
         UNION ALL \
         SELECT seq, id FROM orders INDEXED BY orders_by_status \
         WHERE status = 'PROCESSING' AND seq > ?1 \
         ORDER BY seq LIMIT 1",
    )?
    .query_row([after], |row| Ok((row.get(0)?, id_of(row, 1)?)))
    .optional()
}

fn newest_seq(db: &Connection) -> rusqlite::Result<i64> {
    db.prepare_cached("SELECT coalesce(max(seq), 0) FROM orders")?
        .query_row([], |row| row.get(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_condition_of_the_schema_has_a_table_built_to_check_it() {
        let db = open::empty().unwrap();
        for sql in [
            INSERT_ORDER,
            record::INSERT_ENTRY,
            "UPDATE orders SET status = 'FAILED', attention = NULL WHERE seq = 1",
        ] {
            let mut query = db.prepare(&format!("EXPLAIN {sql}")).unwrap();
            let given = vec![0; query.parameter_count()];
            let steps = query
                .query_map(rusqlite::params_from_iter(given), |row| {
                    row.get::<_, String>(1)
                })
                .unwrap();
            let steps: Vec<_> = steps.collect::<Result<_, _>>().unwrap();
            assert!(!steps.is_empty());
            assert!(!steps.contains(&"OpenEphemeral".to_owned()), "{sql}");
        }
    }
}
