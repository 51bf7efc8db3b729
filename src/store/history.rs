//! What the journal tells that was not told before, and all else that is told of the whole: read
//! as of one moment, at a cost that does not grow with the number of orders.

use std::fs;
use std::path::Path;

use rusqlite::{Connection, Row, params};

use super::open::beside;
use super::rows::{heartbeat, impossible, reason_of};
use super::{Heartbeat, find, next_open};
use crate::history::Entry;
use crate::order::EventReason;
use crate::order::{Order, Reason, Timestamp};

/// Everything that is told of the whole, as of one moment.
#[derive(Clone, Debug)]
pub struct Glance {
    /// The entries of the journal after a place, or the first of them.
    pub entries: Vec<Entry>,
    /// How many orders need looking at, by the reason that is stored with each.
    pub attention: Vec<(Reason, u64)>,
    /// The oldest order that is open.
    pub oldest_open: Option<Order>,
    /// What the reconciler last told of itself.
    pub heartbeat: Heartbeat,
}

/// What the database takes on disk, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// The file itself.
    pub database: u64,
    /// The write-ahead log beside it.
    pub log: u64,
}

/// The first `limit` entries after the place `after`, and the rest of the glance.
pub(super) fn glance(db: &Connection, after: i64, limit: usize) -> rusqlite::Result<Glance> {
    // One moment for all of it; ends by itself when it is dropped.
    let db = db.unchecked_transaction()?;
    let oldest_open = match next_open(&db, 0)? {
        Some((_, id)) => find(&db, &id)?.map(|found| found.order),
        None => None,
    };
    Ok(Glance {
        entries: entries(&db, after, limit)?,
        attention: attention(&db)?,
        oldest_open,
        heartbeat: heartbeat(&db)?,
    })
}

/// At most `limit` entries of the journal after the place `after`.
pub(super) fn entries(db: &Connection, after: i64, limit: usize) -> rusqlite::Result<Vec<Entry>> {
    // An order is looked up only where it is settled.
    db.prepare_cached(
        "SELECT seq, at, reason, \
         CASE WHEN reason IN ('succeeded', 'failed', 'failed_by_policy', 'failed_by_operator') \
         THEN (SELECT created_at FROM orders WHERE orders.seq = journal.order_seq) END \
         FROM journal WHERE seq > ?1 ORDER BY seq LIMIT ?2",
    )?
    .query_map(params![after, limit as i64], entry_of)?
    .collect()
}

fn entry_of(row: &Row<'_>) -> rusqlite::Result<Entry> {
    let word = row.get_ref(2)?.as_str()?;
    Ok(Entry {
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
const ATTENTION: &str = "SELECT attention, count(*) FROM orders INDEXED BY orders_with_attention \
                         WHERE attention IS NOT NULL GROUP BY attention";

/// How many orders there are with each reason that is stored.
fn attention(db: &Connection) -> rusqlite::Result<Vec<(Reason, u64)>> {
    let counted = db
        .prepare_cached(ATTENTION)?
        .query_map([], |row| {
            Ok((reason_of(row, 0)?, row.get::<_, i64>(1)?.unsigned_abs()))
        })?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(counted
        .into_iter()
        .filter_map(|(reason, count)| Some((reason?, count)))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_counted_by_reason_without_a_look_at_each() {
        let db = Connection::open_in_memory().unwrap();
        for migration in [
            include_str!("../../sql/001_orders.sql"),
            include_str!("../../sql/002_learned.sql"),
            include_str!("../../sql/003_tally.sql"),
        ] {
            db.execute_batch(migration).unwrap();
        }
        let mut plan = db
            .prepare(&format!("EXPLAIN QUERY PLAN {ATTENTION}"))
            .unwrap();
        let first: String = plan.query_row([], |row| row.get(3)).unwrap();
        assert!(first.contains("COVERING INDEX"), "{first}");
    }
}
