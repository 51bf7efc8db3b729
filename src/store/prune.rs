//! Pruning of orders that settled long ago, with their journal entries, and the totals kept of them.
//!
//! The newest order and the order of the newest entry stay: SQLite assigns the greatest existing
//! number plus one, so while these exist no number is assigned twice.

use super::PruneCounts;
use super::filter::prunable;
use super::queries::base;
use super::rows::Value::{Integer, Numbers, Text};
use super::rows::{Columns, Database, ENTRY, entry_of};
use crate::order::{Status, Timestamp};

/// Statement that returns the totals, and locks them: another prune waits, and then does not find the orders
/// of this one.
const LOCK: &str = "UPDATE pruned SET entries = entries WHERE id = 1 RETURNING history";

/// Statement that adds to the totals.
const ADD: &str = "UPDATE pruned SET fulfilled = fulfilled + ?1, failed = failed + ?2, \
     entries = entries + ?3, \
     last_order_seq = CASE WHEN last_order_seq < ?4 THEN ?4 ELSE last_order_seq END, \
     last_entry_seq = CASE WHEN last_entry_seq < ?5 THEN ?5 ELSE last_entry_seq END, \
     history = ?6 WHERE id = 1";

/// Deletes those of these orders that may be pruned, and adds them and their entries to the totals
/// of pruned records.
pub(super) async fn prune<D: Database>(
    db: &D,
    seqs: &[i64],
    settled_before: Timestamp,
    now: Timestamp,
) -> Result<PruneCounts, D::Error> {
    let mut history = base(db, LOCK).await?;
    let mut removed = PruneCounts::default();
    let values = [Integer(settled_before.0), Numbers(seqs)];
    let settled_sql = settled_sql::<D>();
    let settled = db.rows(&settled_sql, &values, |row| {
        match row.status(1)? {
            Status::Fulfilled => removed.fulfilled += 1,
            _ => removed.failed += 1,
        }
        row.number(0)
    });
    let settled = settled.await?;
    let of_settled = [Numbers(&settled)];
    let mut last_entry = 0;
    let entries_sql = entries_sql::<D>();
    let entries = db.rows(&entries_sql, &of_settled, |row| {
        let entry = entry_of(row)?;
        history.add(&entry, now);
        removed.entries += 1;
        last_entry = last_entry.max(entry.seq);
        Ok(())
    });
    entries.await?;
    for rows in ["journal WHERE order_seq", "orders WHERE seq"] {
        let delete = format!("DELETE FROM {rows} {}", D::among("?1"));
        db.rows(&delete, &of_settled, |_| Ok(())).await?;
    }
    history.drop_old_minutes(now);
    let history = serde_json::to_string(&history).map_err(|error| D::Row::invalid(0, error))?;
    let values = [
        Integer(removed.fulfilled as i64),
        Integer(removed.failed as i64),
        Integer(removed.entries as i64),
        Integer(settled.last().copied().unwrap_or(0)),
        Integer(last_entry),
        Text(history.into()),
    ];
    db.rows(ADD, &values, |_| Ok(())).await?;
    Ok(removed)
}

/// Returns the query for those of the orders `?2` that settled before the time `?1`, and their statuses.
pub(super) fn settled_sql<D: Database>() -> String {
    const PRUNABLE: &str = prunable!("?1");
    let among = D::among("?2");
    format!("SELECT seq, status FROM orders WHERE {PRUNABLE} AND seq {among} ORDER BY seq")
}

/// Returns the query for the entries of the orders `?1`.
pub(super) fn entries_sql<D: Database>() -> String {
    let among = D::among("?1");
    format!("SELECT {ENTRY} FROM journal WHERE order_seq {among} ORDER BY order_seq, seq")
}
