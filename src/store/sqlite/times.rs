//! Correction of times of open orders that lie ahead of the clock, because the clock was set back
//! or because the database comes from a machine whose clock was ahead.
//!
//! The reconciler corrects them once, at the beginning of a run, so no other code has to handle
//! them. The times in the journal stay as written.

use rusqlite::{Connection, params};

use crate::order::Timestamp;
use crate::pace::BACKOFF_MAX;
use crate::store::update::CLAMP_TIMES;

pub(super) fn clamp(db: &Connection, seqs: &[i64], now: Timestamp) -> rusqlite::Result<()> {
    let latest = now.after(BACKOFF_MAX);
    let mut update = db.prepare_cached(CLAMP_TIMES)?;
    for seq in seqs {
        update.execute(params![seq, now.0, latest.0])?;
    }
    Ok(())
}
