//! Statistics over all orders: totals of the journal, brought up to date incrementally, and current
//! counts. All are read from one snapshot, at a cost that does not grow with the number of orders.

use std::fs;
use std::path::Path;

use rusqlite::{Connection, Row};

use super::file::with_suffix;
use super::histories::extent;
use super::orders::oldest_open;
use super::row_mapping::heartbeat;
use crate::journal_stats::JournalStats;
use crate::order::{Reason, ResolvedBy, Timestamp};
use crate::store::cursor::Sequence;
use crate::store::rows::{Columns, ENTRY, PRUNED, entry_of, needs_operator, prune_counts_of};
use crate::store::{DatabaseInfo, Durability, PruneCounts, StatsSnapshot};

/// Adds the new journal entries to the statistics, and returns the other totals.
///
/// One transaction, even for the whole journal, which takes about a second per million entries:
/// between two smaller ones entries could be pruned, and it would be unknown whether they had been
/// counted.
pub(super) fn update(
    db: &Connection,
    history: &mut JournalStats,
    now: Timestamp,
) -> rusqlite::Result<StatsSnapshot> {
    // One snapshot for all queries. The transaction ends when it is dropped.
    let db = db.unchecked_transaction()?;
    let journal = extent(&db, Sequence::Journal)?;
    // The statistics contain the entries pruned up to the last entry that was added. If more were
    // pruned, or if they are empty, they are rebuilt from the totals of the pruned entries.
    if journal.last_pruned > history.last_seq() {
        *history = base(&db)?;
    }
    add_new_entries(&db, history, now)?;
    Ok(StatsSnapshot {
        pruned: pruned(&db)?,
        attention: attention(&db)?,
        oldest_open: oldest_open(&db)?,
        heartbeat: heartbeat(&db)?,
    })
}

/// Reads the number of orders and entries pruned so far.
pub(super) fn pruned(db: &Connection) -> rusqlite::Result<PruneCounts> {
    db.prepare_cached(PRUNED)?
        .query_row([], |row| prune_counts_of(row))
}

/// Reads the totals of the pruned entries.
pub(super) fn base(db: &Connection) -> rusqlite::Result<JournalStats> {
    db.prepare_cached("SELECT history FROM pruned")?
        .query_row([], |row| {
            serde_json::from_str(row.word(0)?).map_err(|error| Row::invalid(0, error))
        })
}

/// Adds the entries after the last one that was added.
fn add_new_entries(
    db: &Connection,
    history: &mut JournalStats,
    now: Timestamp,
) -> rusqlite::Result<()> {
    let sql = format!("SELECT {ENTRY} FROM journal WHERE seq > ?1 ORDER BY seq");
    let mut query = db.prepare_cached(&sql)?;
    for entry in query.query_map([history.last_seq()], |row| entry_of(row))? {
        history.add(&entry?, now);
    }
    Ok(())
}

/// Query that is answered from the index alone.
const ATTENTION: &str = concat!(
    "SELECT attention, ",
    needs_operator!(),
    ", count(*) FROM orders INDEXED BY orders_with_attention \
     WHERE attention IS NOT NULL GROUP BY 1, 2"
);

/// Returns the number of orders for each stored reason.
fn attention(db: &Connection) -> rusqlite::Result<Vec<(Reason, ResolvedBy, u64)>> {
    let counted = db
        .prepare_cached(ATTENTION)?
        .query_map([], |row| {
            let count = row.get::<_, i64>(2)?.unsigned_abs();
            Ok((row.reason(0)?, row.resolved_by(1)?, count))
        })?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(counted
        .into_iter()
        .filter_map(|(reason, by, count)| Some((reason?, by, count)))
        .collect())
}

/// Returns a description of the database; the size of a missing file is 0.
pub(super) fn info(path: &Path) -> DatabaseInfo {
    let bytes = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len());
    DatabaseInfo {
        engine: "sqlite",
        durability: Durability::Disk,
        bytes: bytes(path),
        log_bytes: Some(bytes(&with_suffix(path, "-wal"))),
        reconnects: None,
        lost_entries: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::super::open;
    use super::*;

    #[test]
    fn orders_are_counted_by_reason_without_reading_each() {
        let db = open::empty().unwrap();
        let mut plan = db
            .prepare(&format!("EXPLAIN QUERY PLAN {ATTENTION}"))
            .unwrap();
        let first: String = plan.query_row([], |row| row.get(3)).unwrap();
        assert!(first.contains("COVERING INDEX"), "{first}");
    }
}
