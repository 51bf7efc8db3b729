//! Operator decisions about single orders. They have no HTTP route: access to the file is required,
//! because a restart may repeat a payment.

use rusqlite::{Connection, OptionalExtension, params};

use super::record::{journal, settle};
use crate::order::{EventReason, OrderId, Outcome, Timestamp};
use crate::store::rows::unresolved_of;
use crate::store::{OperatorResult, Resolution};

/// See [`Store::resolve`](crate::store::Store::resolve).
pub(super) fn resolve(
    db: &Connection,
    id: &OrderId,
    resolution: Resolution,
    now: Timestamp,
) -> rusqlite::Result<OperatorResult> {
    let is_done = match resolution {
        Resolution::Restart => request_restart(db, id, now)?,
        Resolution::Fail => fail(db, id, now)?,
    };
    match is_done {
        true => Ok(OperatorResult::Done),
        false => nothing_done(db, id),
    }
}

fn request_restart(db: &Connection, id: &OrderId, now: Timestamp) -> rusqlite::Result<bool> {
    let changed = db
        .prepare_cached(
            "UPDATE orders SET released_at = ?2, attempts = 0, next_attempt_at = NULL \
             WHERE id = ?1 AND attention IN ('process_lost', 'max_starts', 'start_refused')",
        )?
        .execute(params![id.as_str(), now.0])?;
    Ok(changed > 0)
}

fn fail(db: &Connection, id: &OrderId, now: Timestamp) -> rusqlite::Result<bool> {
    let seq: Option<i64> = db
        .prepare_cached(
            "SELECT seq FROM orders WHERE id = ?1 AND status = 'PROCESSING' \
             AND attention IN ('process_lost', 'max_starts')",
        )?
        .query_row([id.as_str()], |row| row.get(0))
        .optional()?;
    if let Some(seq) = seq {
        settle(db, seq, Outcome::Failed, now)?;
        journal(db, seq, EventReason::FailedByOperator, now)?;
    }
    Ok(seq.is_some())
}

fn nothing_done(db: &Connection, id: &OrderId) -> rusqlite::Result<OperatorResult> {
    let found = db
        .prepare_cached("SELECT status, attention FROM orders WHERE id = ?1")?
        .query_row([id.as_str()], |row| unresolved_of(row))
        .optional()?;
    Ok(found.unwrap_or(OperatorResult::Missing))
}
