//! Changes of open orders as statements: one for each kind of step, with arrays of values.
//!
//! Changes of different orders do not depend on each other; those of one order are carried out one
//! after the other. So the changes of a batch form rounds, and each round has at most one of each
//! order. The conditions are those of `store/sqlite/record.rs`.

use std::collections::HashMap;

use tokio_postgres::Row;

use super::error::Error;
use super::session::{Steps, Value};
use crate::messages::PROCESS_LOST;
use crate::order::{EventReason, Outcome, Reason, Timestamp};
use crate::store::{AttentionUpdate, OrderChange, Recorded, Transition};

/// A change in a batch, and the time at which it is recorded.
#[derive(Clone, Copy)]
pub(super) struct BatchChange<'a> {
    pub change: &'a OrderChange,
    pub now: Timestamp,
}

/// An entry that a change adds to the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NewEntry {
    pub order_seq: i64,
    pub at: Timestamp,
    pub reason: EventReason,
}

/// An UPDATE: its parameters besides `seq` with their types, its assignments, and its condition.
struct UpdateSql {
    columns: &'static [(&'static str, &'static str)],
    set: &'static str,
    condition: &'static str,
}

const fn update(
    columns: &'static [(&'static str, &'static str)],
    set: &'static str,
    condition: &'static str,
) -> UpdateSql {
    UpdateSql {
        columns,
        set,
        condition,
    }
}

impl UpdateSql {
    /// Returns the SQL. The condition on `seq` is repeated because the index needs it.
    fn sql(&self) -> String {
        let (mut arrays, mut names) = ("$1::bigint[]".to_owned(), "seq".to_owned());
        for (number, (column, of)) in (2..).zip(self.columns) {
            arrays.push_str(&format!(", ${number}::{of}[]"));
            names.push_str(&format!(", {column}"));
        }
        let (set, condition) = (self.set, self.condition);
        format!(
            "UPDATE orders AS o SET {set} FROM unnest({arrays}) AS u ({names}) \
             WHERE o.seq = ANY($1) AND o.seq = u.seq AND {condition} RETURNING o.seq"
        )
    }
}

const INTEND: UpdateSql = update(
    &[("previous", "bigint"), ("at", "bigint")],
    "starts = starts + 1, intent_at = u.at, given_up_at = NULL, start_answer = NULL",
    "status IN ('CREATED', 'PROCESSING') AND intent_at IS NOT DISTINCT FROM u.previous",
);

const COUNT: UpdateSql = update(
    &[("written_at", "bigint"), ("difference", "integer")],
    "starts = starts + u.difference",
    "intent_at = u.written_at",
);

const TO_PROCESSING: UpdateSql = update(
    &[("is_observed", "boolean"), ("at", "bigint")],
    "status = 'PROCESSING', updated_at = greatest(updated_at, u.at), \
     intent_at = NULL, given_up_at = NULL, start_answer = NULL, confirmed_at = u.at, \
     process_seen = u.is_observed, released_at = NULL, attempts = 0, next_attempt_at = NULL, \
     attention = NULL, attention_since = NULL, attention_detail = NULL",
    "status = 'CREATED'",
);

const SETTLE: UpdateSql = update(
    &[("outcome", "text"), ("at", "bigint")],
    "status = u.outcome, updated_at = greatest(updated_at, u.at), \
     intent_at = NULL, given_up_at = NULL, start_answer = NULL, \
     confirmed_at = NULL, process_seen = false, missed_at = NULL, released_at = NULL, \
     attempts = 0, next_attempt_at = NULL, \
     attention = NULL, attention_since = NULL, attention_detail = NULL",
    "status = 'PROCESSING'",
);

/// The order stays PROCESSING, with another process.
const RESTART: UpdateSql = update(
    &[("is_observed", "boolean"), ("at", "bigint")],
    "confirmed_at = u.at, process_seen = u.is_observed, \
     missed_at = NULL, intent_at = NULL, given_up_at = NULL, start_answer = NULL, \
     released_at = NULL, attempts = 0, next_attempt_at = NULL, \
     attention = NULL, attention_since = NULL, attention_detail = NULL",
    "status = 'PROCESSING' AND intent_at IS NOT NULL",
);

const MARK_OBSERVED: UpdateSql = update(&[], "process_seen = true", "status = 'PROCESSING'");

const MISS: UpdateSql = update(
    &[("began_at", "bigint"), ("at", "bigint"), ("detail", "text")],
    "missed_at = u.began_at, attempts = 0, next_attempt_at = NULL, \
     attention_since = CASE WHEN attention IS NOT DISTINCT FROM 'process_lost' \
                       THEN attention_since ELSE u.at END, \
     attention = 'process_lost', attention_detail = u.detail",
    "status = 'PROCESSING'",
);

const WITHDRAW: UpdateSql = update(
    &[],
    "starts = starts - 1, intent_at = NULL",
    "intent_at IS NOT NULL AND given_up_at IS NULL",
);

const GIVE_UP: UpdateSql = update(
    &[
        ("answer", "integer"),
        ("difference", "integer"),
        ("reason", "text"),
        ("detail", "text"),
        ("next", "bigint"),
        ("at", "bigint"),
    ],
    "given_up_at = u.at, start_answer = u.answer, starts = starts + u.difference, \
     attempts = attempts + 1, next_attempt_at = u.next, \
     attention_since = CASE WHEN attention IS NOT DISTINCT FROM u.reason \
                       THEN attention_since ELSE u.at END, \
     attention = u.reason, attention_detail = u.detail",
    "intent_at IS NOT NULL AND given_up_at IS NULL",
);

const FLAG: UpdateSql = update(
    &[
        ("reason", "text"),
        ("detail", "text"),
        ("next", "bigint"),
        ("at", "bigint"),
    ],
    "intent_at = NULL, given_up_at = NULL, start_answer = NULL, \
     process_seen = process_seen OR (u.reason = 'unknown_status' AND status = 'PROCESSING'), \
     attempts = attempts + 1, next_attempt_at = u.next, \
     attention_since = CASE WHEN attention IS NOT DISTINCT FROM u.reason \
                       THEN attention_since ELSE u.at END, \
     attention = u.reason, attention_detail = u.detail",
    "status IN ('CREATED', 'PROCESSING')",
);

const DELAY: UpdateSql = update(
    &[
        ("reason", "text"),
        ("detail", "text"),
        ("next", "bigint"),
        ("at", "bigint"),
    ],
    "attempts = attempts + 1, next_attempt_at = u.next, \
     attention_since = CASE WHEN attention IS NOT DISTINCT FROM u.reason \
                       THEN attention_since ELSE u.at END, \
     attention = u.reason, attention_detail = u.detail",
    "status IN ('CREATED', 'PROCESSING')",
);

const CLEAR: UpdateSql = update(
    &[],
    "attempts = 0, next_attempt_at = NULL, \
     process_seen = true, missed_at = NULL, released_at = NULL, \
     attention = NULL, attention_since = NULL, attention_detail = NULL",
    "status = 'PROCESSING'",
);

/// Kinds of statements, in the order in which those of a round are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Kind {
    Intend,
    Count,
    ToProcessing,
    Restart,
    MarkObserved,
    Miss,
    Withdraw,
    GiveUp,
    Settle,
    Flag,
    Delay,
    Clear,
}

impl Kind {
    const ALL: [Self; 12] = [
        Self::Intend,
        Self::Count,
        Self::ToProcessing,
        Self::Restart,
        Self::MarkObserved,
        Self::Miss,
        Self::Withdraw,
        Self::GiveUp,
        Self::Settle,
        Self::Flag,
        Self::Delay,
        Self::Clear,
    ];

    fn of(step: &Transition) -> Self {
        match step {
            Transition::Intended { .. } => Self::Intend,
            Transition::Counted { .. } => Self::Count,
            Transition::Started { .. } | Transition::Adopted => Self::ToProcessing,
            Transition::Restarted { .. } => Self::Restart,
            Transition::Withdrawn => Self::Withdraw,
            Transition::GivenUp { .. } => Self::GiveUp,
            Transition::ProcessObserved => Self::MarkObserved,
            Transition::Settled(_) | Transition::FailedByPolicy => Self::Settle,
            Transition::Missed { .. } => Self::Miss,
            Transition::Flagged(_) => Self::Flag,
            Transition::Delayed(_) => Self::Delay,
            Transition::Cleared => Self::Clear,
        }
    }

    fn update(self) -> &'static UpdateSql {
        match self {
            Self::Intend => &INTEND,
            Self::Count => &COUNT,
            Self::ToProcessing => &TO_PROCESSING,
            Self::Restart => &RESTART,
            Self::MarkObserved => &MARK_OBSERVED,
            Self::Miss => &MISS,
            Self::Withdraw => &WITHDRAW,
            Self::GiveUp => &GIVE_UP,
            Self::Settle => &SETTLE,
            Self::Flag => &FLAG,
            Self::Delay => &DELAY,
            Self::Clear => &CLEAR,
        }
    }
}

/// Statements of changes, and the indexes of their answers.
pub(super) struct Plan {
    /// Indexes of the statements, each with its changes by the sequence numbers of their orders.
    statements: Vec<(usize, HashMap<i64, usize>)>,
}

impl Plan {
    /// Adds the statements of these changes to the steps of a transaction.
    pub fn add(steps: &mut Steps, changes: &[BatchChange<'_>]) -> Self {
        let mut rounds: Vec<HashMap<Kind, Vec<usize>>> = Vec::new();
        let mut next_round: HashMap<i64, usize> = HashMap::new();
        for (index, BatchChange { change, .. }) in changes.iter().enumerate() {
            let round = next_round.entry(change.seq).or_default();
            if rounds.len() == *round {
                rounds.push(HashMap::new());
            }
            let kind = Kind::of(&change.step);
            rounds[*round].entry(kind).or_default().push(index);
            *round += 1;
        }
        let mut statements = Vec::new();
        for mut round in rounds {
            for kind in Kind::ALL {
                let Some(mut indexes) = round.remove(&kind) else {
                    continue;
                };
                // Whoever locks rows does so in ascending order.
                indexes.sort_by_key(|index| changes[*index].change.seq);
                let of_kind: Vec<_> = indexes.iter().map(|index| changes[*index]).collect();
                let at = steps.add(kind.update().sql(), values(kind, &of_kind));
                let by_seq = indexes
                    .iter()
                    .map(|index| (changes[*index].change.seq, *index));
                statements.push((at, by_seq.collect()));
            }
        }
        Self { statements }
    }

    /// Returns which changes took effect, by their index in the batch.
    pub fn took_effect(&self, answers: &[Vec<Row>], count: usize) -> Result<Vec<bool>, Error> {
        let mut took_effect = vec![false; count];
        for (at, by_seq) in &self.statements {
            for row in &answers[*at] {
                if let Some(index) = by_seq.get(&row.try_get(0)?) {
                    took_effect[*index] = true;
                }
            }
        }
        Ok(took_effect)
    }
}

/// Returns the result of the changes of one write, and adds their entries.
pub(super) fn recorded(
    changes: &[OrderChange],
    now: Timestamp,
    took_effect: &[bool],
    entries: &mut Vec<NewEntry>,
) -> Recorded {
    let mut recorded = Recorded::default();
    for (OrderChange { seq, step }, took_effect) in changes.iter().zip(took_effect) {
        if !took_effect {
            recorded.conflicts.push(*seq);
            continue;
        }
        recorded.changed += 1;
        if let Some(reason) = step.event_reason() {
            entries.push(NewEntry {
                order_seq: *seq,
                at: now,
                reason,
            });
        }
    }
    recorded
}

/// Returns the values of a statement: the sequence numbers, and one array for each parameter.
fn values(kind: Kind, changes: &[BatchChange<'_>]) -> Vec<Value> {
    fn column<T>(changes: &[BatchChange<'_>], value: impl Fn(&BatchChange<'_>) -> T) -> Value
    where
        Vec<T>: tokio_postgres::types::ToSql + Sync + Send + 'static,
    {
        Box::new(changes.iter().map(value).collect::<Vec<T>>())
    }
    let at = || column(changes, |of| of.now.0);
    let is_observed = || {
        column(changes, |of| match of.change.step {
            Transition::Started { is_observed } | Transition::Restarted { is_observed } => {
                is_observed
            }
            _ => true,
        })
    };
    let attention = |of: &BatchChange<'_>| match &of.change.step {
        Transition::GivenUp { attention, .. }
        | Transition::Flagged(attention)
        | Transition::Delayed(attention) => attention.clone(),
        _ => AttentionUpdate {
            reason: Reason::ProcessLost,
            detail: String::new(),
            next_attempt_at: of.now,
        },
    };
    let attentions = || -> [Value; 3] {
        [
            column(changes, |of| attention(of).reason.as_str()),
            column(changes, |of| attention(of).detail),
            column(changes, |of| attention(of).next_attempt_at.0),
        ]
    };
    let mut values = vec![column(changes, |of| of.change.seq)];
    match kind {
        Kind::Intend => {
            values.push(column(changes, |of| match of.change.step {
                Transition::Intended { previous } => previous.map(|at| at.0),
                _ => None,
            }));
            values.push(at());
        }
        Kind::Count => {
            values.push(column(changes, |of| match of.change.step {
                Transition::Counted { written_at, .. } => Some(written_at.0),
                _ => None,
            }));
            values.push(column(changes, |of| match of.change.step {
                Transition::Counted { is_counted, .. } => {
                    if is_counted {
                        1
                    } else {
                        -1
                    }
                }
                _ => 0i32,
            }));
        }
        Kind::ToProcessing | Kind::Restart => values.extend([is_observed(), at()]),
        Kind::Settle => {
            values.push(column(changes, |of| match of.change.step {
                Transition::Settled(outcome) => outcome.status().as_str(),
                _ => Outcome::Failed.status().as_str(),
            }));
            values.push(at());
        }
        Kind::Miss => {
            values.push(column(changes, |of| match of.change.step {
                Transition::Missed { began_at } => began_at.0,
                _ => of.now.0,
            }));
            values.push(at());
            values.push(column(changes, |_| PROCESS_LOST));
        }
        Kind::GiveUp => {
            values.push(column(changes, |of| match of.change.step {
                Transition::GivenUp { answer, .. } => answer.map(i32::from),
                _ => None,
            }));
            values.push(column(changes, |of| match of.change.step {
                Transition::GivenUp { is_counted, .. } => {
                    if is_counted {
                        0
                    } else {
                        -1
                    }
                }
                _ => 0i32,
            }));
            values.extend(attentions());
            values.push(at());
        }
        Kind::Flag | Kind::Delay => {
            values.extend(attentions());
            values.push(at());
        }
        Kind::MarkObserved | Kind::Withdraw | Kind::Clear => {}
    }
    values
}
