//! What the reconciler records about orders: each step one conditional change, with its journal
//! entry in the same transaction.
//!
//! A change names the state that it was decided on; if the order has moved on since, nothing
//! happens, and that is counted rather than an error.

use rusqlite::{Connection, params};

use crate::order::{EventReason, Outcome, Reason, Timestamp};

/// A step of one order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The order's place in the order of creation.
    pub seq: i64,
    /// What happened to it.
    pub step: Step,
}

/// What happened to an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A start is about to be sent, which counts until it is known not to. It takes the place of an
    /// earlier one that is known to have come to nothing, `previous`.
    Intended {
        /// When the earlier intent was written.
        previous: Option<Timestamp>,
    },
    /// The start that was intended then counts no longer, or counts after all.
    Counted {
        /// When the intent was written.
        written_at: Timestamp,
        /// Adds it to the count, or takes it off.
        is_counted: bool,
    },
    /// The intended start of a CREATED order was accepted.
    Started {
        /// Set if a look has seen the process.
        is_seen: bool,
    },
    /// The intended start of an order whose earlier process was forgotten has taken effect.
    Restarted {
        /// Set if a look has seen the new process.
        is_seen: bool,
    },
    /// The intended start came to nothing: it cannot have reached the upstream, or was refused.
    Withdrawn,
    /// The answer to the intended start was given up, or told of trouble.
    GivenUp {
        /// The HTTP status of the answer, if there was one.
        answer: Option<u16>,
        /// Takes it off the count if not set.
        is_counted: bool,
        /// What to show, and when to try again.
        trouble: Trouble,
    },
    /// A process was seen.
    Adopted,
    /// The process of a PROCESSING order was seen.
    Seen,
    /// A process was seen to have ended.
    Settled(Outcome),
    /// A process that was known to exist was missing in the look that began then.
    Missed {
        /// When the look began.
        began_at: Timestamp,
    },
    /// The order's process was forgotten, and the policy is to call that a failure.
    FailedByPolicy,
    /// The order needs looking at. An intent, if it had one, is known to have come to nothing.
    Flagged(Trouble),
    /// A look at the order failed; all else about it stays as it is.
    Delayed(Trouble),
    /// All is well again: the process was seen to run.
    Cleared,
}

/// Why an order needs looking at, and when it is tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// Why.
    pub reason: Reason,
    /// What was seen, in words.
    pub detail: String,
    /// When to try again.
    pub next_attempt_at: Timestamp,
}

/// What became of changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    /// How many took effect.
    pub changed: usize,
    /// The places of the orders that had moved on, one for each change that found one so.
    pub conflicts: Vec<i64>,
}

pub(super) fn record(
    db: &Connection,
    changes: &[Change],
    now: Timestamp,
) -> rusqlite::Result<Recorded> {
    let mut recorded = Recorded::default();
    for Change { seq, step } in changes {
        let (changed, reason) = match step {
            Step::Intended { previous } => (intend(db, *seq, *previous, now)?, None),
            Step::Counted {
                written_at,
                is_counted,
            } => (count(db, *seq, *written_at, *is_counted)?, None),
            Step::Started { is_seen } => (
                to_processing(db, *seq, *is_seen, now)?,
                Some(EventReason::Started),
            ),
            Step::Adopted => (
                to_processing(db, *seq, true, now)?,
                Some(EventReason::Adopted),
            ),
            Step::Restarted { is_seen } => (
                restart(db, *seq, *is_seen, now)?,
                Some(EventReason::Restarted),
            ),
            Step::Seen => (see(db, *seq)?, None),
            Step::Missed { began_at } => (miss(db, *seq, *began_at, now)?, None),
            Step::FailedByPolicy => (
                settle(db, *seq, Outcome::Failed, now)?,
                Some(EventReason::FailedByPolicy),
            ),
            Step::Withdrawn => (withdraw(db, *seq)?, None),
            Step::GivenUp {
                answer,
                is_counted,
                trouble,
            } => {
                let is_given_up = give_up(db, *seq, *answer, *is_counted, trouble, now)?;
                (is_given_up, None)
            }
            Step::Settled(outcome) => {
                let reason = match outcome {
                    Outcome::Succeeded => EventReason::Succeeded,
                    Outcome::Failed => EventReason::Failed,
                };
                (settle(db, *seq, *outcome, now)?, Some(reason))
            }
            Step::Flagged(trouble) => (flag(db, *seq, trouble, now)?, None),
            Step::Delayed(trouble) => (delay(db, *seq, trouble, now)?, None),
            Step::Cleared => (clear(db, *seq)?, None),
        };
        if changed {
            recorded.changed += 1;
            if let Some(reason) = reason {
                journal(db, *seq, reason, now)?;
            }
        } else {
            recorded.conflicts.push(*seq);
        }
    }
    Ok(recorded)
}

/// A new entry of the journal.
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
    is_seen: bool,
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
        params![seq, now.0, is_seen],
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

/// The order stays PROCESSING, by another process.
fn restart(db: &Connection, seq: i64, is_seen: bool, now: Timestamp) -> rusqlite::Result<bool> {
    change(
        db,
        "UPDATE orders SET confirmed_at = ?2, process_seen = ?3, \
             missed_at = NULL, intent_at = NULL, given_up_at = NULL, start_answer = NULL, \
             released_at = NULL, attempts = 0, next_attempt_at = NULL, \
             attention = NULL, attention_since = NULL, attention_detail = NULL \
         WHERE seq = ?1 AND status = 'PROCESSING' AND intent_at IS NOT NULL",
        params![seq, now.0, is_seen],
    )
}

fn see(db: &Connection, seq: i64) -> rusqlite::Result<bool> {
    change(
        db,
        "UPDATE orders SET process_seen = 1 WHERE seq = ?1 AND status = 'PROCESSING'",
        params![seq],
    )
}

/// What is shown of an order whose process is missing. That was answered, so that no attempt has failed.
const MISSED: &str =
    "the upstream does not know its process any more; it may or may not have done its work";

fn miss(db: &Connection, seq: i64, began_at: Timestamp, now: Timestamp) -> rusqlite::Result<bool> {
    change(
        db,
        "UPDATE orders SET missed_at = ?2, attempts = 0, next_attempt_at = NULL, \
             attention_since = iif(attention IS ?4, attention_since, ?3), \
             attention = ?4, attention_detail = ?5 \
         WHERE seq = ?1 AND status = 'PROCESSING'",
        params![seq, began_at.0, now.0, Reason::ProcessLost.as_str(), MISSED],
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
    trouble: &Trouble,
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
            trouble.next_attempt_at.0,
            trouble.reason.as_str(),
            trouble.detail,
            answer,
            !is_counted
        ],
    )
}

fn flag(db: &Connection, seq: i64, trouble: &Trouble, now: Timestamp) -> rusqlite::Result<bool> {
    change(
        db,
        "UPDATE orders SET intent_at = NULL, given_up_at = NULL, start_answer = NULL \
         WHERE seq = ?1 AND intent_at IS NOT NULL",
        params![seq],
    )?;
    if trouble.reason == Reason::UnknownStatus {
        see(db, seq)?;
    }
    delay(db, seq, trouble, now)
}

fn delay(db: &Connection, seq: i64, trouble: &Trouble, now: Timestamp) -> rusqlite::Result<bool> {
    change(
        db,
        "UPDATE orders SET attempts = attempts + 1, next_attempt_at = ?3, \
             attention_since = iif(attention IS ?4, attention_since, ?2), \
             attention = ?4, attention_detail = ?5 \
         WHERE seq = ?1 AND status IN ('CREATED', 'PROCESSING')",
        params![
            seq,
            now.0,
            trouble.next_attempt_at.0,
            trouble.reason.as_str(),
            trouble.detail
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

/// Whether the statement found its order as it expected it.
fn change(db: &Connection, sql: &str, params: impl rusqlite::Params) -> rusqlite::Result<bool> {
    Ok(db.prepare_cached(sql)?.execute(params)? > 0)
}
