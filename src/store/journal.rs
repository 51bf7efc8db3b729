//! The journal as its readers see it: pages of events, and a watch that notices new ones.
//!
//! Events are numbered without gaps in the order in which they are committed: each number is
//! the greatest so far and one more, taken inside a transaction that no other can overlap. Who has
//! seen all events up to one misses none by reading on from there; where some of what follows was
//! removed meanwhile (`store/prune.rs`), that is told and not skipped. They are written in
//! `store/record.rs`.

use r2d2_sqlite::SqliteConnectionManager;
use rusqlite::{Connection, Row, params};

use super::prune::pruned;
use super::rows::{id_of, impossible, status_of};
use super::{Gaps, Place, Store, StoreError, Unbroken};
use crate::order::{Event, EventReason, OrderId, Status, Timestamp};

/// The columns of an [`Event`], as [`event_of`] reads them. The journal comes first whatever
/// SQLite's planner thinks of it: it is read in its own order, and the ids are added.
const EVENT: &str = "SELECT journal.seq, journal.order_seq, orders.id, \
                     journal.from_status, journal.to_status, journal.at, journal.reason \
                     FROM journal CROSS JOIN orders ON orders.seq = journal.order_seq";

impl Store {
    /// The number of the newest event; 0 if there is none.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn newest_event(&self) -> Result<i64, StoreError> {
        self.read(newest_event)
    }

    /// At most `limit` events after a place, in their order: of all orders, or of one. And the gaps
    /// that give the place to go on from.
    ///
    /// # Errors
    /// The database cannot be read, or some may have been missed.
    pub fn events(
        &self,
        order: Option<&OrderId>,
        after: Place,
        limit: usize,
    ) -> Result<(Vec<Event>, Gaps), StoreError> {
        self.read_on(|db| events(db, order, after, limit))
    }

    /// Something that notices events of all orders, whichever process wrote them.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn watch_events(&self) -> Result<EventWatch, StoreError> {
        Ok(EventWatch {
            db: self.inner.readers.get()?,
            version: None,
        })
    }
}

/// Notices events, at the cost of a glance at shared memory while there are none.
pub struct EventWatch {
    db: r2d2::PooledConnection<SqliteConnectionManager>,
    /// The version of the database in which all events were read.
    version: Option<i64>,
}

impl EventWatch {
    /// At most `limit` events after the event `after`. If the database is as it was when there
    /// were fewer than that, it is not read.
    ///
    /// # Errors
    /// The database cannot be read, or some may have been missed.
    pub fn look(&mut self, after: i64, limit: usize) -> Result<Vec<Event>, StoreError> {
        let version = self
            .db
            .prepare_cached("PRAGMA data_version")?
            .query_row([], |row| row.get(0))?;
        if self.version == Some(version) {
            return Ok(Vec::new());
        }
        let db = self.db.unchecked_transaction()?;
        let read = events(&db, None, Place::after(after), limit)?;
        drop(db);
        let (events, _) = read.map_err(StoreError::Gone)?;
        // What is committed since the version was read has another version: it is seen next time.
        self.version = (events.len() < limit).then_some(version);
        Ok(events)
    }
}

fn newest_event(db: &Connection) -> rusqlite::Result<i64> {
    db.prepare_cached("SELECT coalesce(max(seq), 0) FROM journal")?
        .query_row([], |row| row.get(0))
}

fn events(
    db: &Connection,
    order: Option<&OrderId>,
    after: Place,
    limit: usize,
) -> rusqlite::Result<Unbroken<(Vec<Event>, Gaps)>> {
    let gaps = pruned(db)?.entries;
    if gaps.hide_from(after) && !is_whole(db, order)? {
        return Ok(Err(gaps.place(after.seq)));
    }
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut query = db.prepare_cached(&events_sql(order.is_some()))?;
    let events = match order {
        None => query.query_map(params![after.seq, limit], event_of)?,
        Some(id) => query.query_map(params![after.seq, limit, id.as_str()], event_of)?,
    };
    Ok(Ok((events.collect::<rusqlite::Result<_>>()?, gaps)))
}

/// Whether only the events of one order are asked for, and it is there: then so are all of them, for
/// they are removed together with it.
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
    format!("{EVENT} WHERE {of_order}journal.seq > ?1 ORDER BY journal.seq LIMIT ?2")
}

fn event_of(row: &Row<'_>) -> rusqlite::Result<Event> {
    let from = match row.get_ref(3)?.as_str_or_null()? {
        None => None,
        Some(word) => Some(word.parse::<Status>().map_err(|e| impossible(3, e))?),
    };
    let word = row.get_ref(6)?.as_str()?;
    let reason = EventReason::from_name(word)
        .ok_or_else(|| impossible(6, UnknownReason(word.to_owned())))?;
    Ok(Event {
        seq: row.get(0)?,
        order_seq: row.get(1)?,
        order_id: id_of(row, 2)?,
        from,
        to: status_of(row, 4)?,
        at: Timestamp(row.get(5)?),
        reason,
    })
}

/// A reason that the schema's CHECK refuses.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no reason of an event")]
struct UnknownReason(String);

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
