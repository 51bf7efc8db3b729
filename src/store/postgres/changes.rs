//! Changes of open orders as statements: one for each UPDATE of `store/update.rs`, with arrays of values.
//!
//! Changes of different orders do not depend on each other; those of one order are carried out one
//! after the other. So the changes of a batch form rounds, and each round has at most one of each
//! order.

use std::collections::{BTreeMap, HashMap};

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::error::Error;
use super::session::{Steps, Value};
use crate::order::{EventReason, Timestamp};
use crate::store::update::{Update, Values};
use crate::store::{OrderChange, Recorded};

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

/// Returns a statement that runs an UPDATE for many orders, with the arrays of [`values`]. The condition
/// on `seq` is repeated because the index needs it.
fn sql_of(update: Update) -> String {
    let of_arrays = |text: &str| text.replace(':', "u.");
    let (set, condition) = (of_arrays(update.set), of_arrays(update.condition));
    format!(
        "UPDATE orders AS o SET {set} \
         FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::integer[], $5::integer[], \
                     $6::boolean[], $7::text[], $8::text[], $9::bigint[]) \
             AS u (seq, at, moment, difference, answer, is_observed, word, detail, next) \
         WHERE o.seq = ANY($1) AND o.seq = u.seq AND {condition} RETURNING o.seq"
    )
}

/// Statements of changes, and the indexes of their answers.
pub(super) struct Plan {
    /// Indexes of the statements, each with its changes by the sequence numbers of their orders.
    statements: Vec<(usize, HashMap<i64, usize>)>,
}

impl Plan {
    /// Adds the statements of these changes to the steps of a transaction.
    pub fn add(steps: &mut Steps, changes: &[BatchChange<'_>]) -> Self {
        let mut rounds: Vec<BTreeMap<Update, Vec<usize>>> = Vec::new();
        let mut next_round: HashMap<i64, usize> = HashMap::new();
        for (index, BatchChange { change, .. }) in changes.iter().enumerate() {
            let round = next_round.entry(change.seq).or_default();
            if rounds.len() == *round {
                rounds.push(BTreeMap::new());
            }
            let of_kind = rounds[*round].entry(change.step.update());
            of_kind.or_default().push(index);
            *round += 1;
        }
        let mut statements = Vec::new();
        for (update, mut indexes) in rounds.into_iter().flatten() {
            // Whoever locks rows does so in ascending order.
            indexes.sort_by_key(|index| changes[*index].change.seq);
            let of_kind: Vec<_> = indexes.iter().map(|index| changes[*index]).collect();
            let at = steps.add(sql_of(update), values(&of_kind));
            let by_seq = indexes
                .iter()
                .map(|index| (changes[*index].change.seq, *index));
            statements.push((at, by_seq.collect()));
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

/// Returns the values of a statement: the sequence numbers, and an array of each of the values.
fn values(changes: &[BatchChange<'_>]) -> Vec<Value> {
    fn column<'a, T>(of: &[Values<'a>], value: impl Fn(&Values<'a>) -> T) -> Value
    where
        Vec<T>: ToSql + Sync + Send + 'static,
    {
        Box::new(of.iter().map(value).collect::<Vec<T>>())
    }
    let seqs: Vec<i64> = changes.iter().map(|of| of.change.seq).collect();
    let of: Vec<_> = changes
        .iter()
        .map(|of| of.change.step.values(of.now))
        .collect();
    vec![
        Box::new(seqs),
        column(&of, |of| of.at),
        column(&of, |of| of.moment),
        column(&of, |of| of.difference),
        column(&of, |of| of.answer),
        column(&of, |of| of.is_observed),
        column(&of, |of| of.word),
        column(&of, |of| of.detail.to_owned()),
        column(&of, |of| of.next),
    ]
}
