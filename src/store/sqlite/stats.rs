//! What the journal tells that was not told before, and all else that is told of the whole: read
//! as of one moment, at a cost that does not grow with the number of orders.

use std::fs;
use std::path::Path;

use rusqlite::{Connection, Row};

use super::file::beside;
use super::histories::extent;
use super::orders::{find, next_open};
use super::row_mapping::{heartbeat, impossible, needs_operator, reason_of, resolved_by};
use crate::journal_stats::{JournalEntry, JournalStats};
use crate::order::{EventReason, Reason, ResolvedBy, Timestamp};
use crate::store::cursor::Sequence;
use crate::store::{Removed, Sizes, StatsSnapshot};

/// Brings a history up to date, and tells the rest.
///
/// All in one transaction, also where it is the whole journal, which takes about a second for each
/// million entries: read in pieces, entries could be removed between two of them, and no one could
/// say whether these had been counted.
pub(super) fn glance(
    db: &Connection,
    history: &mut JournalStats,
    now: Timestamp,
) -> rusqlite::Result<StatsSnapshot> {
    // One moment for all of it; ends by itself when it is dropped.
    let db = db.unchecked_transaction()?;
    let journal = extent(&db, Sequence::Journal)?;
    // What was removed up to the last entry that was folded in is in the history already. If more
    // was, the history begins anew with all of it, as does one that has nothing in it yet.
    if journal.last_pruned > history.last_seq() {
        *history = base(&db)?;
    }
    fold(&db, history, now)?;
    let oldest_open = match next_open(&db, 0)? {
        Some((_, id)) => find(&db, &id)?.map(|found| found.order),
        None => None,
    };
    Ok(StatsSnapshot {
        pruned: pruned(&db)?,
        attention: attention(&db)?,
        oldest_open,
        heartbeat: heartbeat(&db)?,
    })
}

/// Reads how much was removed up to now.
pub(super) fn pruned(db: &Connection) -> rusqlite::Result<Removed> {
    db.prepare_cached("SELECT fulfilled, failed, entries FROM pruned")?
        .query_row([], removed_of)
}

pub(super) fn removed_of(row: &Row<'_>) -> rusqlite::Result<Removed> {
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

/// The columns of an [`JournalEntry`], as [`entry_of`] reads them. An order is looked up only where it is
/// settled.
pub(super) const ENTRY: &str = "seq, at, reason, \
     CASE WHEN reason IN ('succeeded', 'failed', 'failed_by_policy', 'failed_by_operator') \
     THEN (SELECT created_at FROM orders WHERE orders.seq = journal.order_seq) END";

/// Folds in the entries after the last one.
fn fold(db: &Connection, history: &mut JournalStats, now: Timestamp) -> rusqlite::Result<()> {
    let sql = format!("SELECT {ENTRY} FROM journal WHERE seq > ?1 ORDER BY seq");
    let mut query = db.prepare_cached(&sql)?;
    for entry in query.query_map([history.last_seq()], entry_of)? {
        history.fold(&entry?, now);
    }
    Ok(())
}

pub(super) fn entry_of(row: &Row<'_>) -> rusqlite::Result<JournalEntry> {
    let word = row.get_ref(2)?.as_str()?;
    Ok(JournalEntry {
        seq: row.get(0)?,
        at: Timestamp(row.get(1)?),
        reason: EventReason::from_name(word)
            .ok_or_else(|| impossible(2, UnknownReason(word.into())))?,
        created_at: row.get::<_, Option<i64>>(3)?.map(Timestamp),
    })
}

#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no reason for a journal entry")]
struct UnknownReason(String);

/// Read off the index alone.
const ATTENTION: &str = concat!(
    "SELECT attention, ",
    needs_operator!(),
    ", count(*) FROM orders INDEXED BY orders_with_attention \
     WHERE attention IS NOT NULL GROUP BY 1, 2"
);

/// How many orders there are with each reason that is stored.
fn attention(db: &Connection) -> rusqlite::Result<Vec<(Reason, ResolvedBy, u64)>> {
    let counted = db
        .prepare_cached(ATTENTION)?
        .query_map([], |row| {
            let count = row.get::<_, i64>(2)?.unsigned_abs();
            Ok((reason_of(row, 0)?, resolved_by(row, 1)?, count))
        })?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(counted
        .into_iter()
        .filter_map(|(reason, by, count)| Some((reason?, by, count)))
        .collect())
}

/// What the database at `path` takes; nothing of what is not there.
pub(super) fn sizes(path: &Path) -> Sizes {
    let bytes = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len());
    Sizes {
        database: bytes(path),
        log: bytes(&beside(path, "-wal")),
    }
}

/// See [`Store::restarts`](crate::store::Store::restarts).
pub(super) fn restarts(db: &Connection) -> rusqlite::Result<u64> {
    let db = db.unchecked_transaction()?;
    let left: i64 = db
        .prepare_cached("SELECT count(*) FROM journal WHERE reason = 'restarted'")?
        .query_row([], |row| row.get(0))?;
    let removed = base(&db)?.entries_with(EventReason::Restarted);
    Ok(removed + left.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::super::open;
    use super::*;

    #[test]
    fn orders_are_counted_by_reason_without_a_look_at_each() {
        let db = open::empty().unwrap();
        let mut plan = db
            .prepare(&format!("EXPLAIN QUERY PLAN {ATTENTION}"))
            .unwrap();
        let first: String = plan.query_row([], |row| row.get(3)).unwrap();
        assert!(first.contains("COVERING INDEX"), "{first}");
    }
}
