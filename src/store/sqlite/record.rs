//! Creation of orders and recording of the reconciler's changes: each is one conditional UPDATE,
//! with its journal entry in the same transaction.

use rusqlite::{Connection, params};

use super::orders::find;
use crate::messages::PROCESS_LOST;
use crate::order::{EventReason, Order, OrderId, Outcome, Reason, Status, Timestamp};
use crate::store::{AttentionUpdate, Creation, OrderChange, Recorded, Transition};

/// Creates an order, unless the id exists.
const INSERT_ORDER: &str = "INSERT INTO orders (id, status, created_at, updated_at) \
                            VALUES (?1, 'CREATED', ?2, ?2) ON CONFLICT (id) DO NOTHING";

pub(super) fn create(db: &Connection, id: &OrderId, now: Timestamp) -> rusqlite::Result<Creation> {
    let created = db
        .prepare_cached(INSERT_ORDER)?
        .execute(params![id.as_str(), now.0])?;
    if created == 0 {
        let found = find(db, id)?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
        return Ok(Creation::Exists(found.order));
    }
    let seq = db.last_insert_rowid();
    journal(db, seq, EventReason::Created, now)?;
    Ok(Creation::Created(Order {
        seq,
        id: id.clone(),
        status: Status::Created,
        created_at: now,
        updated_at: now,
        starts: 0,
        // Attention that concerns all open orders is added by the next read.
        attention: None,
    }))
}

/// Writes a row that is never read.
pub(super) fn probe(db: &Connection, now: Timestamp) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT OR REPLACE INTO write_probe (id, at) VALUES (1, ?1)")?
        .execute([now.0])
        .map(drop)
}

pub(super) fn record(
    db: &Connection,
    changes: &[OrderChange],
    now: Timestamp,
) -> rusqlite::Result<Recorded> {
    let mut recorded = Recorded::default();
    for OrderChange { seq, step } in changes {
        let seq = *seq;
        let changed = match step {
            Transition::Intended { previous } => intend(db, seq, *previous, now),
            Transition::Counted {
                written_at,
                is_counted,
            } => count(db, seq, *written_at, *is_counted),
            Transition::Started { is_observed } => to_processing(db, seq, *is_observed, now),
            Transition::Adopted => to_processing(db, seq, true, now),
            Transition::Restarted { is_observed } => restart(db, seq, *is_observed, now),
            Transition::ProcessObserved => mark_observed(db, seq),
            Transition::Missed { began_at } => miss(db, seq, *began_at, now),
            Transition::FailedByPolicy => settle(db, seq, Outcome::Failed, now),
            Transition::Withdrawn => withdraw(db, seq),
            Transition::GivenUp {
                answer,
                is_counted,
                attention,
            } => give_up(db, seq, *answer, *is_counted, attention, now),
            Transition::Settled(outcome) => settle(db, seq, *outcome, now),
            Transition::Flagged(attention) => flag(db, seq, attention, now),
            Transition::Delayed(attention) => delay(db, seq, attention, now),
            Transition::Cleared => clear(db, seq),
        }?;
        if changed {
            recorded.changed += 1;
            if let Some(reason) = step.event_reason() {
                journal(db, seq, reason, now)?;
            }
        } else {
            recorded.conflicts.push(seq);
        }
    }
    Ok(recorded)
}

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

fn intend(
    db: &Connection,
    seq: i64,
    previous: Option<Timestamp>,
    now: Timestamp,
) -> rusqlite::Result<bool> {
    change(
        db,
        "UPDATE orders SET starts = starts + 1, \
             intent_at = ?2, given_up_at = NULL, start_answer = NULL \
         WHERE seq = ?1 AND status IN ('CREATED', 'PROCESSING') AND intent_at IS ?3",
        params![seq, now.0, previous.map(|at| at.0)],
    )
}

fn count(
    db: &Connection,
    seq: i64,
    written_at: Timestamp,
    is_counted: bool,
) -> rusqlite::Result<bool> {
    change(
        db,
        "UPDATE orders SET starts = starts + iif(?3, 1, -1) WHERE seq = ?1 AND intent_at = ?2",
        params![seq, written_at.0, is_counted],
    )
}

fn to_processing(
    db: &Connection,
    seq: i64,
    is_observed: bool,
    now: Timestamp,
) -> rusqlite::Result<bool> {
    change(
        db,
        "UPDATE orders SET status = 'PROCESSING', updated_at = max(updated_at, ?2), \
             intent_at = NULL, given_up_at = NULL, start_answer = NULL, confirmed_at = ?2, \
             process_seen = ?3, \
             released_at = NULL, attempts = 0, next_attempt_at = NULL, \
             attention = NULL, attention_since = NULL, attention_detail = NULL \
         WHERE seq = ?1 AND status = 'CREATED'",
        params![seq, now.0, is_observed],
    )
}

pub(super) fn settle(
    db: &Connection,
    seq: i64,
    outcome: Outcome,
    now: Timestamp,
) -> rusqlite::Result<bool> {
    change(
        db,
        "UPDATE orders SET status = ?3, updated_at = max(updated_at, ?2), \
             intent_at = NULL, given_up_at = NULL, start_answer = NULL, \
             confirmed_at = NULL, process_seen = 0, missed_at = NULL, released_at = NULL, \
             attempts = 0, next_attempt_at = NULL, \
             attention = NULL, attention_since = NULL, attention_detail = NULL \
         WHERE seq = ?1 AND status = 'PROCESSING'",
        params![seq, now.0, outcome.status().as_str()],
    )
}

/// Keeps the order PROCESSING, with a new process.
fn restart(db: &Connection, seq: i64, is_observed: bool, now: Timestamp) -> rusqlite::Result<bool> {
    change(
        db,
        "UPDATE orders SET confirmed_at = ?2, process_seen = ?3, \
             missed_at = NULL, intent_at = NULL, given_up_at = NULL, start_answer = NULL, \
             released_at = NULL, attempts = 0, next_attempt_at = NULL, \
             attention = NULL, attention_since = NULL, attention_detail = NULL \
         WHERE seq = ?1 AND status = 'PROCESSING' AND intent_at IS NOT NULL",
        params![seq, now.0, is_observed],
    )
}

fn mark_observed(db: &Connection, seq: i64) -> rusqlite::Result<bool> {
    change(
        db,
        "UPDATE orders SET process_seen = 1 WHERE seq = ?1 AND status = 'PROCESSING'",
        params![seq],
    )
}

fn miss(db: &Connection, seq: i64, began_at: Timestamp, now: Timestamp) -> rusqlite::Result<bool> {
    // The upstream did answer, so no attempt counts as failed.
    change(
        db,
        "UPDATE orders SET missed_at = ?2, attempts = 0, next_attempt_at = NULL, \
             attention_since = iif(attention IS ?4, attention_since, ?3), \
             attention = ?4, attention_detail = ?5 \
         WHERE seq = ?1 AND status = 'PROCESSING'",
        params![
            seq,
            began_at.0,
            now.0,
            Reason::ProcessLost.as_str(),
            PROCESS_LOST
        ],
    )
}

fn withdraw(db: &Connection, seq: i64) -> rusqlite::Result<bool> {
    change(
        db,
        "UPDATE orders SET starts = starts - 1, intent_at = NULL \
         WHERE seq = ?1 AND intent_at IS NOT NULL AND given_up_at IS NULL",
        params![seq],
    )
}

fn give_up(
    db: &Connection,
    seq: i64,
    answer: Option<u16>,
    is_counted: bool,
    attention: &AttentionUpdate,
    now: Timestamp,
) -> rusqlite::Result<bool> {
    change(
        db,
        "UPDATE orders SET given_up_at = ?2, start_answer = ?6, starts = starts - ?7, \
             attempts = attempts + 1, next_attempt_at = ?3, \
             attention_since = iif(attention IS ?4, attention_since, ?2), \
             attention = ?4, attention_detail = ?5 \
         WHERE seq = ?1 AND intent_at IS NOT NULL AND given_up_at IS NULL",
        params![
            seq,
            now.0,
            attention.next_attempt_at.0,
            attention.reason.as_str(),
            attention.detail,
            answer,
            !is_counted
        ],
    )
}

fn flag(
    db: &Connection,
    seq: i64,
    attention: &AttentionUpdate,
    now: Timestamp,
) -> rusqlite::Result<bool> {
    change(
        db,
        "UPDATE orders SET intent_at = NULL, given_up_at = NULL, start_answer = NULL \
         WHERE seq = ?1 AND intent_at IS NOT NULL",
        params![seq],
    )?;
    if attention.reason == Reason::UnknownStatus {
        mark_observed(db, seq)?;
    }
    delay(db, seq, attention, now)
}

fn delay(
    db: &Connection,
    seq: i64,
    attention: &AttentionUpdate,
    now: Timestamp,
) -> rusqlite::Result<bool> {
    change(
        db,
        "UPDATE orders SET attempts = attempts + 1, next_attempt_at = ?3, \
             attention_since = iif(attention IS ?4, attention_since, ?2), \
             attention = ?4, attention_detail = ?5 \
         WHERE seq = ?1 AND status IN ('CREATED', 'PROCESSING')",
        params![
            seq,
            now.0,
            attention.next_attempt_at.0,
            attention.reason.as_str(),
            attention.detail
        ],
    )
}

fn clear(db: &Connection, seq: i64) -> rusqlite::Result<bool> {
    change(
        db,
        "UPDATE orders SET attempts = 0, next_attempt_at = NULL, \
             process_seen = 1, missed_at = NULL, released_at = NULL, \
             attention = NULL, attention_since = NULL, attention_detail = NULL \
         WHERE seq = ?1 AND status = 'PROCESSING'",
        params![seq],
    )
}

/// Executes a conditional statement. Returns true if it changed its order.
fn change(db: &Connection, sql: &str, params: impl rusqlite::Params) -> rusqlite::Result<bool> {
    Ok(db.prepare_cached(sql)?.execute(params)? > 0)
}

#[cfg(test)]
mod tests {
    use super::super::open;
    use super::*;

    #[test]
    fn no_condition_of_the_schema_has_a_table_built_to_check_it() {
        let db = open::empty().unwrap();
        for sql in [
            INSERT_ORDER,
            INSERT_ENTRY,
            "UPDATE orders SET status = 'FAILED', attention = NULL WHERE seq = 1",
        ] {
            let mut query = db.prepare(&format!("EXPLAIN {sql}")).unwrap();
            let given = vec![0; query.parameter_count()];
            let steps = query
                .query_map(rusqlite::params_from_iter(given), |row| {
                    row.get::<_, String>(1)
                })
                .unwrap();
            let steps: Vec<_> = steps.collect::<Result<_, _>>().unwrap();
            assert!(!steps.is_empty());
            assert!(!steps.contains(&"OpenEphemeral".to_owned()), "{sql}");
        }
    }
}
