//! Pruning of orders that settled long ago, with their journal entries, and the totals kept of
//! them.
//!
//! The newest order and the order of the newest entry stay: SQLite assigns the greatest existing
//! number plus one, so while these exist no number is assigned twice.

use rusqlite::{Connection, OptionalExtension, params, params_from_iter};

use super::database::result;
use crate::order::{Status, Timestamp};
use crate::store::PruneCounts;
use crate::store::filter::prunable;
use crate::store::queries::base;
use crate::store::rows::{ADD_TO_PRUNED, Columns, ENTRY, entry_of, pruned_values};

/// Condition for orders that may be pruned: settled before the time `?1`.
const PRUNABLE: &str = prunable!("?1");

/// Deletes those of these orders that may be pruned, and adds them and their entries to the totals
/// of pruned records.
pub(super) fn prune(
    db: &Connection,
    seqs: &[i64],
    settled_before: Timestamp,
    now: Timestamp,
) -> rusqlite::Result<PruneCounts> {
    let mut history = result(base(db))?;
    let mut removed = PruneCounts::default();
    let (mut last_order, mut last_entry) = (0, 0);
    let status = format!("SELECT status FROM orders WHERE {PRUNABLE} AND seq = ?2");
    let entries = format!("SELECT {ENTRY} FROM journal WHERE order_seq = ?1 ORDER BY seq");
    for &seq in seqs {
        let status = db
            .prepare_cached(&status)?
            .query_row(params![settled_before.0, seq], |row| row.status(0))
            .optional()?;
        match status {
            Some(Status::Fulfilled) => removed.fulfilled += 1,
            Some(Status::Failed) => removed.failed += 1,
            // Another program has pruned it.
            _ => continue,
        }
        for entry in db
            .prepare_cached(&entries)?
            .query_map([seq], |row| entry_of(row))?
        {
            let entry = entry?;
            history.add(&entry, now);
            removed.entries += 1;
            last_entry = last_entry.max(entry.seq);
        }
        last_order = last_order.max(seq);
        db.prepare_cached("DELETE FROM journal WHERE order_seq = ?1")?
            .execute([seq])?;
        db.prepare_cached("DELETE FROM orders WHERE seq = ?1")?
            .execute([seq])?;
    }
    history.drop_old_minutes(now);
    let values = pruned_values(removed, last_order, last_entry, &history)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    db.prepare_cached(ADD_TO_PRUNED)?
        .execute(params_from_iter(values))?;
    Ok(removed)
}
