//! The removal of orders that settled long ago, each with its entries of the journal, and what is
//! remembered of them.
//!
//! The newest order and the order of the newest entry stay: SQLite gives out the greatest number
//! that there is and one more, so as long as these are there no number is given out twice.

use std::ops::AddAssign;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::history::{ENTRY, entry_of};
use super::rows::{impossible, status_of};
use crate::journal_stats::JournalStats;
use crate::order::{Status, Timestamp};

/// Orders that may be removed: those that settled before a moment, `?1`.
const PRUNABLE: &str = "status IN ('FULFILLED', 'FAILED') AND updated_at < ?1 \
                        AND seq < (SELECT max(seq) FROM orders) \
                        AND seq <> (SELECT order_seq FROM journal ORDER BY seq DESC LIMIT 1)";

/// How much was removed, or would be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Orders that were FULFILLED.
    pub fulfilled: u64,
    /// Orders that were FAILED.
    pub failed: u64,
    /// Their entries of the journal.
    pub entries: u64,
}

impl Removed {
    /// All orders.
    pub fn orders(&self) -> u64 {
        self.fulfilled + self.failed
    }

    /// Orders that were in this status.
    pub fn in_status(&self, status: Status) -> u64 {
        match status {
            Status::Created | Status::Processing => 0,
            Status::Fulfilled => self.fulfilled,
            Status::Failed => self.failed,
        }
    }
}

impl AddAssign for Removed {
    fn add_assign(&mut self, other: Self) {
        self.fulfilled += other.fulfilled;
        self.failed += other.failed;
        self.entries += other.entries;
    }
}

/// Reads how much was removed up to now.
pub(super) fn pruned(db: &Connection) -> rusqlite::Result<Removed> {
    db.prepare_cached("SELECT fulfilled, failed, entries FROM pruned")?
        .query_row([], removed_of)
}

fn removed_of(row: &Row<'_>) -> rusqlite::Result<Removed> {
    let count = |column| row.get::<_, i64>(column).map(i64::unsigned_abs);
    Ok(Removed {
        fulfilled: count(0)?,
        failed: count(1)?,
        entries: count(2)?,
    })
}

/// What the removed entries add up to.
pub(super) fn base(db: &Connection) -> rusqlite::Result<JournalStats> {
    db.prepare_cached("SELECT history FROM pruned")?
        .query_row([], |row| {
            serde_json::from_str(row.get_ref(0)?.as_str()?).map_err(|error| impossible(0, error))
        })
}

/// How much would be removed.
pub(super) fn prunable(db: &Connection, settled_before: Timestamp) -> rusqlite::Result<Removed> {
    let sql = format!(
        "SELECT count(*) FILTER (WHERE status = 'FULFILLED'), \
         count(*) FILTER (WHERE status = 'FAILED'), \
         coalesce(sum((SELECT count(*) FROM journal WHERE order_seq = orders.seq)), 0) \
         FROM orders WHERE {PRUNABLE}"
    );
    db.query_row(&sql, [settled_before.0], removed_of)
}

/// The places of the first `limit` orders after the place `after` that may be removed.
///
/// They are found by looking at every order, in their order: an index by the time of settling would
/// have to be kept by all who settle orders, for the sake of one look a day.
pub(super) fn next_prunable(
    db: &Connection,
    settled_before: Timestamp,
    after: i64,
    limit: usize,
) -> rusqlite::Result<Vec<i64>> {
    db.prepare_cached(&next_prunable_sql())?
        .query_map(params![settled_before.0, after, limit as i64], |row| {
            row.get(0)
        })?
        .collect()
}

fn next_prunable_sql() -> String {
    format!(
        "SELECT seq FROM orders NOT INDEXED WHERE seq > ?2 AND {PRUNABLE} ORDER BY seq LIMIT ?3"
    )
}

/// Removes the orders at these places, as far as they may be removed, and remembers what they and
/// their entries add up to.
pub(super) fn prune(
    db: &Connection,
    seqs: &[i64],
    settled_before: Timestamp,
    now: Timestamp,
) -> rusqlite::Result<Removed> {
    let mut history = base(db)?;
    let mut removed = Removed::default();
    let (mut last_order, mut last_entry) = (0, 0);
    let status = format!("SELECT status FROM orders WHERE {PRUNABLE} AND seq = ?2");
    let entries = format!("SELECT {ENTRY} FROM journal WHERE order_seq = ?1 ORDER BY seq");
    for &seq in seqs {
        let status = db
            .prepare_cached(&status)?
            .query_row(params![settled_before.0, seq], |row| status_of(row, 0))
            .optional()?;
        match status {
            Some(Status::Fulfilled) => removed.fulfilled += 1,
            Some(Status::Failed) => removed.failed += 1,
            // Someone else has removed it.
            _ => continue,
        }
        for entry in db.prepare_cached(&entries)?.query_map([seq], entry_of)? {
            let entry = entry?;
            history.fold(&entry, now);
            removed.entries += 1;
            last_entry = last_entry.max(entry.seq);
        }
        last_order = last_order.max(seq);
        db.prepare_cached("DELETE FROM journal WHERE order_seq = ?1")?
            .execute([seq])?;
        db.prepare_cached("DELETE FROM orders WHERE seq = ?1")?
            .execute([seq])?;
    }
    history.forget(now);
    let history = serde_json::to_string(&history)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    db.prepare_cached(
        "UPDATE pruned SET fulfilled = fulfilled + ?1, failed = failed + ?2, \
         entries = entries + ?3, last_order_seq = max(last_order_seq, ?4), \
         last_entry_seq = max(last_entry_seq, ?5), history = ?6",
    )?
    .execute(params![
        removed.fulfilled as i64,
        removed.failed as i64,
        removed.entries as i64,
        last_order,
        last_entry,
        history
    ])?;
    Ok(removed)
}

/// Bytes in the database file that are free for what is to come.
pub(super) fn free_bytes(db: &Connection) -> rusqlite::Result<u64> {
    let read = |pragma| {
        db.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0))
            .map(i64::unsigned_abs)
    };
    Ok(read("freelist_count")? * read("page_size")?)
}

#[cfg(test)]
mod tests {
    use super::super::open;
    use super::*;

    #[test]
    fn orders_to_remove_are_found_in_their_order_and_never_sorted() {
        let db = open::empty().unwrap();
        let sql = format!("EXPLAIN QUERY PLAN {}", next_prunable_sql());
        let mut query = db.prepare(&sql).unwrap();
        let lines = query
            .query_map([0, 0, 0], |row| row.get::<_, String>(3))
            .unwrap();
        let plan = lines.collect::<Result<Vec<_>, _>>().unwrap().join("; ");
        assert!(
            plan.contains("orders USING INTEGER PRIMARY KEY (rowid>?"),
            "{plan}"
        );
        assert!(!plan.contains("TEMP B-TREE"), "{plan}");
    }
}
