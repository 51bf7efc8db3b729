//! Correction of times of open orders that lie ahead of the clock, because the clock was set back
//! or because the database comes from a machine whose clock was ahead.
//!
//! The reconciler corrects them once, at the beginning of a run, so no other code has to handle
//! them. The times in the journal stay as written.

use rusqlite::{Connection, params};

use crate::order::{Status, Timestamp};
use crate::pace::BACKOFF_MAX;

/// Number of orders corrected in one transaction.
const BATCH_MAX: usize = 2_000;

/// Returns the sequence numbers of the first orders after `after` with an impossible time.
pub(super) fn with_times_ahead(
    db: &Connection,
    status: Status,
    after: i64,
    now: Timestamp,
) -> rusqlite::Result<Vec<i64>> {
    const SQL: &str = "SELECT seq FROM orders INDEXED BY orders_by_status \
         WHERE status = ?1 AND seq > ?2 \
         AND (intent_at > ?3 OR given_up_at > ?3 OR confirmed_at > ?3 OR missed_at > ?3 \
              OR next_attempt_at > ?4) \
         ORDER BY seq LIMIT ?5";
    let latest = now.after(BACKOFF_MAX);
    db.prepare_cached(SQL)?
        .query_map(
            params![status.as_str(), after, now.0, latest.0, BATCH_MAX as i64],
            |row| row.get(0),
        )?
        .collect()
}

pub(super) fn clamp(db: &Connection, seqs: &[i64], now: Timestamp) -> rusqlite::Result<()> {
    const SQL: &str = "UPDATE orders SET \
             intent_at = min(intent_at, ?2), given_up_at = min(given_up_at, ?2), \
             confirmed_at = min(confirmed_at, ?2), missed_at = min(missed_at, ?2), \
             next_attempt_at = min(next_attempt_at, ?3) \
         WHERE seq = ?1";
    let latest = now.after(BACKOFF_MAX);
    let mut update = db.prepare_cached(SQL)?;
    for seq in seqs {
        update.execute(params![seq, now.0, latest.0])?;
    }
    Ok(())
}
