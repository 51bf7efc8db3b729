//! The journal: entries that are appended, and pages of events.
//!
//! Events are numbered without gaps in commit order: each number is the greatest so far plus one,
//! assigned inside a write transaction, and these never overlap. A reader that has seen all events
//! up to a cursor misses none by resuming from it, or gets an error (`store/cursor.rs`).

use rusqlite::{Connection, Row, params};

use super::histories::extent;
use crate::order::{Event, EventReason, OrderId, Timestamp};
use crate::store::cursor::{Histories, Sequence};
use crate::store::rows::{EVENT, event_of};
use crate::store::{Cursor, StoreError};

/// Inserts a journal entry.
pub(super) const INSERT_ENTRY: &str =
    "INSERT INTO journal (order_seq, at, reason) VALUES (?1, ?2, ?3)";

/// Appends to the journal.
pub(super) fn journal(
    db: &Connection,
    order_seq: i64,
    reason: EventReason,
    now: Timestamp,
) -> rusqlite::Result<()> {
    db.prepare_cached(INSERT_ENTRY)?
        .execute(params![order_seq, now.0, reason.as_str()])
        .map(drop)
}

/// See [`Store::events`](crate::store::Store::events).
pub(super) fn events(
    db: &Connection,
    histories: &Histories,
    order: Option<&OrderId>,
    after: Cursor,
    limit: usize,
) -> Result<(Vec<Event>, Cursor), StoreError> {
    let mut now = extent(db, Sequence::Journal)?;
    if is_whole(db, order)? {
        // No entry of this order was pruned.
        now.last_pruned = 0;
    }
    let here = histories.resume(after, &now)?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut query = db.prepare_cached(&events_sql(order.is_some()))?;
    let event = |row: &Row<'_>| event_of(row);
    let events = match order {
        None => query.query_map(params![after.seq, limit], event)?,
        Some(id) => query.query_map(params![after.seq, limit, id.as_str()], event)?,
    };
    let events: Vec<_> = events.collect::<rusqlite::Result<_>>()?;
    let next = here.at(events.last().map_or(after.seq, |event| event.seq));
    Ok((events, next))
}

/// Returns true if the events of one existing order are requested: none of them is missing then,
/// because they are pruned together with their order.
fn is_whole(db: &Connection, order: Option<&OrderId>) -> rusqlite::Result<bool> {
    let Some(id) = order else {
        return Ok(false);
    };
    db.prepare_cached("SELECT 1 FROM orders WHERE id = ?1")?
        .exists([id.as_str()])
}

fn events_sql(of_one_order: bool) -> String {
    let of_order = if of_one_order {
        "journal.order_seq = (SELECT seq FROM orders WHERE id = ?3) AND "
    } else {
        ""
    };
    // The join order is fixed, whatever SQLite's planner prefers: the journal is read in its own
    // order, and the ids are looked up.
    format!(
        "SELECT {EVENT} FROM journal CROSS JOIN orders ON orders.seq = journal.order_seq \
         WHERE {of_order}journal.seq > ?1 ORDER BY journal.seq LIMIT ?2"
    )
}

#[cfg(test)]
mod tests {
    use super::super::open;
    use super::*;

    #[test]
    fn events_are_found_through_an_index_and_never_sorted() {
        let db = open::empty().unwrap();
        for (of_one_order, index) in [
            (false, "journal USING INTEGER PRIMARY KEY (rowid>?)"),
            (true, "journal_by_order (order_seq=? AND seq>?)"),
        ] {
            let sql = format!("EXPLAIN QUERY PLAN {}", events_sql(of_one_order));
            let mut query = db.prepare(&sql).unwrap();
            let given = if of_one_order { 3 } else { 2 };
            let lines = query
                .query_map(rusqlite::params_from_iter(vec![0; given]), |row| {
                    row.get::<_, String>(3)
                })
                .unwrap();
            let plan = lines.collect::<Result<Vec<_>, _>>().unwrap().join("; ");
            assert!(plan.contains(index), "{plan}");
            assert!(!plan.contains("SCAN"), "{plan}");
            assert!(!plan.contains("TEMP B-TREE"), "{plan}");
        }
    }
}
