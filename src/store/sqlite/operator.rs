//! Operator decisions about single orders. They have no HTTP route: access to the file is required,
//! because a restart may repeat a payment.

use rusqlite::{Connection, OptionalExtension, params};

use super::writer::journal;
use crate::order::{EventReason, OrderId, Timestamp};
use crate::store::rows::unresolved_of;
use crate::store::{OperatorResult, Resolution};

/// See [`Store::resolve`](crate::store::Store::resolve).
pub(super) fn resolve(
    db: &Connection,
    id: &OrderId,
    resolution: Resolution,
    now: Timestamp,
) -> rusqlite::Result<OperatorResult> {
    let changed: Option<i64> = db
        .prepare_cached(&resolution.sql("?1", "?2"))?
        .query_row(params![id.as_str(), now.0], |row| row.get(0))
        .optional()?;
    let Some(seq) = changed else {
        return reason_for_no_change(db, id);
    };
    if resolution == Resolution::Fail {
        journal(db, seq, EventReason::FailedByOperator, now)?;
    }
    Ok(OperatorResult::Done)
}

fn reason_for_no_change(db: &Connection, id: &OrderId) -> rusqlite::Result<OperatorResult> {
    let found = db
        .prepare_cached("SELECT status, attention FROM orders WHERE id = ?1")?
        .query_row([id.as_str()], |row| unresolved_of(row))
        .optional()?;
    Ok(found.unwrap_or(OperatorResult::Missing))
}
