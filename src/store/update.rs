//! Changes of orders as SQL, which every engine runs: one conditional UPDATE for each kind of transition, whose
//! text names the members of [`Values`] as `:at`, and those of operators' decisions and of times.

use super::queries::numbers;
use super::rows::Value::{Integer, Numbers};
use super::rows::{Columns, Database};
use super::{OperatorResult, Resolution, Transition};
use crate::messages::PROCESS_LOST;
use crate::order::{OrderId, Reason, Status, Timestamp};
use crate::pace::BACKOFF_MAX;

/// A conditional UPDATE of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Update {
    /// Its assignments.
    pub set: &'static str,
    /// The state that the order has to be in.
    pub condition: &'static str,
    /// The statement for the order with the number `:seq`.
    pub sql: &'static str,
}

macro_rules! update {
    ($first:expr $(, $set:expr)* => $condition:expr) => {
        Update {
            set: concat!($first $(, ", ", $set)*),
            condition: $condition,
            sql: concat!(
                "UPDATE orders SET ", $first, $(", ", $set,)* " WHERE seq = :seq AND ", $condition
            ),
        }
    };
}

/// Assignments that end an intent.
macro_rules! without_intent {
    () => {
        "intent_at = NULL, given_up_at = NULL, start_answer = NULL"
    };
}

/// Assignments that end attention, and failed attempts in a row.
macro_rules! without_attention {
    () => {
        "released_at = NULL, attempts = 0, next_attempt_at = NULL, \
         attention = NULL, attention_since = NULL, attention_detail = NULL"
    };
}

/// Assignments of attention for the reason `:word`, since it began.
macro_rules! with_attention {
    () => {
        "attention_since = CASE WHEN attention IS NOT DISTINCT FROM :word \
                           THEN attention_since ELSE :at END, \
         attention = :word, attention_detail = :detail"
    };
}

/// Assignments of one more failed attempt.
macro_rules! with_attempt {
    () => {
        "attempts = attempts + 1, next_attempt_at = :next"
    };
}

/// Assignments of the status `:word`, which is a new one.
macro_rules! with_status {
    () => {
        "status = :word, updated_at = CASE WHEN updated_at > :at THEN updated_at ELSE :at END"
    };
}

/// Assignments of the status `:word`, in which nothing else is known of an order.
macro_rules! settled {
    () => {
        concat!(
            with_status!(),
            ", confirmed_at = NULL, process_seen = false, missed_at = NULL, ",
            without_intent!(),
            ", ",
            without_attention!()
        )
    };
}

macro_rules! is_open {
    () => {
        "status IN ('CREATED', 'PROCESSING')"
    };
}

/// Condition for orders whose process was lost, as far as is known, and not refused since.
macro_rules! is_lost {
    () => {
        "status = 'PROCESSING' AND (attention IN ('process_lost', 'max_starts') \
         OR attention = 'upstream_unreachable' AND missed_at IS NOT NULL AND intent_at IS NULL)"
    };
}

impl Transition {
    /// Returns the UPDATE that makes this transition.
    pub(super) fn update(&self) -> Update {
        match self {
            Self::Intended { .. } => update!(
                "starts = starts + 1, intent_at = :at, given_up_at = NULL, start_answer = NULL"
                => concat!(is_open!(), " AND intent_at IS NOT DISTINCT FROM :moment")
            ),
            Self::Counted { .. } => {
                update!("starts = starts + :difference" => "intent_at = :moment")
            }
            Self::Started { .. } | Self::Adopted => update!(
                with_status!(), "confirmed_at = :at, process_seen = :is_observed",
                without_intent!(), without_attention!()
                => "status = 'CREATED'"
            ),
            // The order stays PROCESSING, with another process.
            Self::Restarted { .. } => update!(
                "confirmed_at = :at, process_seen = :is_observed, missed_at = NULL",
                without_intent!(), without_attention!()
                => "status = 'PROCESSING' AND intent_at IS NOT NULL"
            ),
            Self::Withdrawn => update!(
                "starts = starts - 1, intent_at = NULL"
                => "intent_at IS NOT NULL AND given_up_at IS NULL"
            ),
            Self::GivenUp { .. } => update!(
                "given_up_at = :at, start_answer = :answer_status, starts = starts + :difference",
                with_attempt!(), with_attention!()
                => "intent_at IS NOT NULL AND given_up_at IS NULL"
            ),
            Self::ProcessObserved => update!("process_seen = true" => "status = 'PROCESSING'"),
            Self::Settled(_) | Self::FailedByPolicy => {
                update!(settled!() => "status = 'PROCESSING'")
            }
            // The upstream did answer, so no attempt counts as failed.
            Self::Missed { .. } => update!(
                "missed_at = :moment, attempts = 0, next_attempt_at = NULL", with_attention!()
                => "status = 'PROCESSING'"
            ),
            Self::Flagged(_) => update!(
                "process_seen = process_seen OR :word = 'unknown_status' AND status = 'PROCESSING', \
                 missed_at = CASE WHEN :word = 'unknown_status' THEN NULL ELSE missed_at END",
                without_intent!(), with_attempt!(), with_attention!()
                => is_open!()
            ),
            Self::Delayed(_) => update!(with_attempt!(), with_attention!() => is_open!()),
            Self::Cleared => update!(
                "process_seen = true, missed_at = NULL", without_attention!()
                => "status = 'PROCESSING'"
            ),
        }
    }

    /// Returns the values of this transition, which is recorded at `now`.
    pub(super) fn values(&self, now: Timestamp) -> Values<'_> {
        let mut values = Values {
            at: now.0,
            moment: None,
            difference: 0,
            answer_status: None,
            is_observed: true,
            word: "",
            detail: "",
            next: now.0,
        };
        match self {
            Self::Intended { previous } => values.moment = previous.map(|at| at.0),
            Self::Counted {
                written_at,
                is_counted,
            } => {
                values.moment = Some(written_at.0);
                values.difference = if *is_counted { 1 } else { -1 };
            }
            Self::Started { is_observed } => {
                values.is_observed = *is_observed;
                values.word = Status::Processing.as_str();
            }
            Self::Adopted => values.word = Status::Processing.as_str(),
            Self::Restarted { is_observed } => values.is_observed = *is_observed,
            Self::GivenUp {
                answer_status,
                is_counted,
                ..
            } => {
                values.answer_status = answer_status.map(i32::from);
                values.difference = if *is_counted { 0 } else { -1 };
            }
            Self::Settled(outcome) => values.word = outcome.status().as_str(),
            Self::FailedByPolicy => values.word = Status::Failed.as_str(),
            Self::Missed { began_at } => {
                values.moment = Some(began_at.0);
                (values.word, values.detail) = (Reason::ProcessLost.as_str(), PROCESS_LOST);
            }
            Self::Withdrawn
            | Self::ProcessObserved
            | Self::Flagged(_)
            | Self::Delayed(_)
            | Self::Cleared => {}
        }
        if let Self::GivenUp { attention, .. }
        | Self::Flagged(attention)
        | Self::Delayed(attention) = self
        {
            values.word = attention.reason.as_str();
            values.detail = &attention.detail;
            values.next = attention.next_attempt_at.0;
        }
        values
    }
}

/// Clamps times of these open orders that lie ahead of the clock, because the clock was set back or because
/// the database comes from a machine whose clock was ahead. The reconciler does it once, at the beginning of
/// a run, so no other code has to handle them. The times in the journal stay as written.
pub(super) async fn clamp<D: Database>(
    db: &D,
    seqs: &[i64],
    now: Timestamp,
) -> Result<(), D::Error> {
    let sql = format!("{CLAMP_TIMES} {}", D::among("?1"));
    let values = [
        Numbers(seqs),
        Integer(now.0),
        Integer(now.after(BACKOFF_MAX).0),
    ];
    db.rows(&sql, &values, |_| Ok(())).await.map(drop)
}

/// Beginning of the statement that clamps times: past events to the moment `?2`, the next attempt to
/// `?3`. `least` was rejected, because PostgreSQL's ignores NULL and would set a time that is not set.
const CLAMP_TIMES: &str = "UPDATE orders SET \
     intent_at = CASE WHEN intent_at > ?2 THEN ?2 ELSE intent_at END, \
     given_up_at = CASE WHEN given_up_at > ?2 THEN ?2 ELSE given_up_at END, \
     confirmed_at = CASE WHEN confirmed_at > ?2 THEN ?2 ELSE confirmed_at END, \
     missed_at = CASE WHEN missed_at > ?2 THEN ?2 ELSE missed_at END, \
     next_attempt_at = CASE WHEN next_attempt_at > ?3 THEN ?3 ELSE next_attempt_at END \
     WHERE seq";

/// Values of a transition. Its UPDATE names some of them.
pub(super) struct Values<'a> {
    /// Moment at which it is recorded.
    pub at: i64,
    /// Moment of the intent that the order has to have, or at which the poll began.
    pub moment: Option<i64>,
    /// Difference that it makes to the number of starts.
    pub difference: i32,
    /// HTTP status of the answer to the start.
    pub answer_status: Option<i32>,
    /// Set if a poll has observed the process.
    pub is_observed: bool,
    /// Name of the new status, or of the reason for attention.
    pub word: &'static str,
    /// Observation, in words.
    pub detail: &'a str,
    /// Moment of the next attempt.
    pub next: i64,
}

/// Carries out an operator's decision about an order. Returns the number of the order as well if it is FAILED
/// now, for which the journal needs an entry. No HTTP route decides: access to the database is required, because
/// a restart may repeat a payment.
pub(super) async fn resolve<D: Database>(
    db: &D,
    id: &OrderId,
    resolution: Resolution,
    now: Timestamp,
) -> Result<(OperatorResult, Option<i64>), D::Error> {
    const STATUS: &str = "SELECT status, attention FROM orders WHERE id = ?1";
    let values = [id.as_str().into(), Integer(now.0)];
    if let Some(seq) = numbers(db, &resolution.sql(), &values).await?.pop() {
        let failed = (resolution == Resolution::Fail).then_some(seq);
        return Ok((OperatorResult::Done, failed));
    }
    let found = db.rows(STATUS, &values[..1], |row| {
        let status = row.status(0)?;
        Ok(match status.is_settled() {
            true => OperatorResult::Settled(status),
            false => OperatorResult::NothingToResolve(status, row.reason(1)?),
        })
    });
    Ok((found.await?.pop().unwrap_or(OperatorResult::Missing), None))
}

impl Resolution {
    /// Returns the statement that carries out this decision about the order `?1` at the moment `?2`. Its row
    /// is the number of the order, if that was changed.
    fn sql(self) -> String {
        let (set, condition) = match self {
            Self::Restart => (
                "released_at = :at, attempts = 0, next_attempt_at = NULL",
                concat!(
                    "(attention IN ('max_starts', 'start_refused') OR ",
                    is_lost!(),
                    ")"
                ),
            ),
            Self::Fail => (settled!(), is_lost!()),
        };
        let sql = format!("UPDATE orders SET {set} WHERE id = ?1 AND {condition} RETURNING seq");
        sql.replace(":word", "'FAILED'").replace(":at", "?2")
    }
}
