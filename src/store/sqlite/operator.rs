//! Operator decisions about single orders. They have no HTTP route: access to the file is required,
//! because a restart may repeat a payment.

use rusqlite::{Connection, OptionalExtension, params};

use super::record::{journal, settle};
use super::row_mapping::{id_of, reason_of, status_of};
use crate::order::{EventReason, OrderId, Outcome, Timestamp};
use crate::store::OperatorResult;

/// Requests a restart of an order, whatever the policy, as soon as a poll does not find its
/// process.
pub(super) fn release(
    db: &Connection,
    id: &OrderId,
    now: Timestamp,
) -> rusqlite::Result<OperatorResult> {
    let changed = db
        .prepare_cached(
            "UPDATE orders SET released_at = ?2, attempts = 0, next_attempt_at = NULL \
             WHERE id = ?1 AND attention IN ('process_lost', 'max_starts', 'start_refused')",
        )?
        .execute(params![id.as_str(), now.0])?;
    if changed > 0 {
        return Ok(OperatorResult::Done);
    }
    why_not(db, id)
}

/// Settles an order as FAILED if its process was lost.
pub(super) fn fail(
    db: &Connection,
    id: &OrderId,
    now: Timestamp,
) -> rusqlite::Result<OperatorResult> {
    let seq: Option<i64> = db
        .prepare_cached(
            "SELECT seq FROM orders WHERE id = ?1 AND status = 'PROCESSING' \
             AND attention IN ('process_lost', 'max_starts')",
        )?
        .query_row([id.as_str()], |row| row.get(0))
        .optional()?;
    let Some(seq) = seq else {
        return why_not(db, id);
    };
    settle(db, seq, Outcome::Failed, now)?;
    journal(db, seq, EventReason::FailedByOperator, now)?;
    Ok(OperatorResult::Done)
}

fn why_not(db: &Connection, id: &OrderId) -> rusqlite::Result<OperatorResult> {
    let found = db
        .prepare_cached("SELECT status, attention FROM orders WHERE id = ?1")?
        .query_row([id.as_str()], |row| {
            Ok((status_of(row, 0)?, reason_of(row, 1)?))
        })
        .optional()?;
    Ok(match found {
        None => OperatorResult::Missing,
        Some((status, _)) if status.is_settled() => OperatorResult::Settled(status),
        Some((status, reason)) => OperatorResult::NotInTrouble(status, reason),
    })
}

/// Returns the orders whose process was lost and that wait for an operator.
pub(super) fn lost(db: &Connection) -> rusqlite::Result<Vec<OrderId>> {
    db.prepare_cached(
        "SELECT id FROM orders INDEXED BY orders_with_attention \
         WHERE attention IS NOT NULL AND status = 'PROCESSING' \
         AND attention IN ('process_lost', 'max_starts') ORDER BY seq",
    )?
    .query_map([], |row| id_of(row, 0))?
    .collect()
}
