//! Changes of open orders as statements: one for each UPDATE of `store/update.rs`, with arrays of values.
//!
//! Changes of different orders do not depend on each other; those of one order are carried out one
//! after the other. So the changes of a batch form rounds, and each round has at most one of each
//! order.

use std::collections::{BTreeMap, HashMap};

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::error::Error;
use super::session::{StepValue, Steps};
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

/// A member of [`Values`]: its name in the texts, its type, and the array of those of several changes.
type Column = (&'static str, &'static str, fn(&[Values<'_>]) -> StepValue);

const COLUMNS: [Column; 8] = [
    ("at", "bigint", |all| array(all, |values| values.at)),
    ("moment", "bigint", |all| array(all, |values| values.moment)),
    ("difference", "integer", |all| {
        array(all, |values| values.difference)
    }),
    ("answer_status", "integer", |all| {
        array(all, |values| values.answer_status)
    }),
    ("is_observed", "boolean", |all| {
        array(all, |values| values.is_observed)
    }),
    ("word", "text", |all| array(all, |values| values.word)),
    ("detail", "text", |all| {
        array(all, |values| values.detail.to_owned())
    }),
    ("next", "bigint", |all| array(all, |values| values.next)),
];

fn array<'a, T>(all: &[Values<'a>], value: impl Fn(&Values<'a>) -> T) -> StepValue
where
    Vec<T>: ToSql + Sync + Send + 'static,
{
    Box::new(all.iter().map(value).collect::<Vec<T>>())
}

/// Returns a statement that runs an UPDATE for these changes, and its values: the sequence numbers, and an
/// array for each of the others that the UPDATE names. The condition on `seq` is repeated because the
/// index needs it. If `all_apply`, the statement fails, with a division by zero, unless all took effect.
fn statement(
    update: Update,
    changes: &[BatchChange<'_>],
    all_apply: bool,
) -> (String, Vec<StepValue>) {
    let seqs: Vec<i64> = changes.iter().map(|each| each.change.seq).collect();
    let values = changes
        .iter()
        .map(|each| each.change.transition.values(each.now));
    let values_of_all: Vec<_> = values.collect();
    let (mut arrays, mut names) = ("$1::bigint[]".to_owned(), "seq".to_owned());
    let mut values: Vec<StepValue> = vec![Box::new(seqs)];
    let (mut set, mut condition) = (update.set.to_owned(), update.condition.to_owned());
    for (name, sql_type, array) in COLUMNS {
        let placeholder = format!(":{name}");
        if !set.contains(&placeholder) && !condition.contains(&placeholder) {
            continue;
        }
        values.push(array(&values_of_all));
        arrays.push_str(&format!(", ${}::{sql_type}[]", values.len()));
        names.push_str(&format!(", {name}"));
        for text in [&mut set, &mut condition] {
            *text = text.replace(&placeholder, &format!("u.{name}"));
        }
    }
    let mut sql = format!(
        "UPDATE orders AS o SET {set} FROM unnest({arrays}) AS u ({names}) \
         WHERE o.seq = ANY($1) AND o.seq = u.seq AND {condition} RETURNING o.seq"
    );
    if all_apply {
        let all = "SELECT 1 / (count(*) = cardinality($1))::integer FROM changed";
        sql = format!("WITH changed AS ({sql}) {all}");
    }
    (sql, values)
}

/// Statements of changes, and the indexes of their answers.
pub(super) struct Plan {
    /// Indexes of the statements, each with its changes by the sequence numbers of their orders.
    statements: Vec<(usize, HashMap<i64, usize>)>,
}

impl Plan {
    /// Adds the statements of these changes to the steps of a transaction.
    pub fn add(steps: &mut Steps, changes: &[BatchChange<'_>], all_apply: bool) -> Self {
        let mut rounds: Vec<BTreeMap<Update, Vec<usize>>> = Vec::new();
        let mut next_round: HashMap<i64, usize> = HashMap::new();
        for (index, BatchChange { change, .. }) in changes.iter().enumerate() {
            let round = next_round.entry(change.seq).or_default();
            if rounds.len() == *round {
                rounds.push(BTreeMap::new());
            }
            let of_kind = rounds[*round].entry(change.transition.update());
            of_kind.or_default().push(index);
            *round += 1;
        }
        let mut statements = Vec::new();
        for (update, mut indexes) in rounds.into_iter().flatten() {
            // Whoever locks rows does so in ascending order.
            indexes.sort_by_key(|index| changes[*index].change.seq);
            let of_kind: Vec<_> = indexes.iter().map(|index| changes[*index]).collect();
            let (sql, values) = statement(update, &of_kind, all_apply);
            let step = steps.add(sql, values);
            let by_seq = indexes
                .iter()
                .map(|index| (changes[*index].change.seq, *index));
            statements.push((step, by_seq.collect()));
        }
        Self { statements }
    }

    /// Returns which changes took effect, by their index in the batch.
    pub fn took_effect(&self, answers: &[Vec<Row>], count: usize) -> Result<Vec<bool>, Error> {
        let mut took_effect = vec![false; count];
        for (step, by_seq) in &self.statements {
            for row in &answers[*step] {
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
    for (OrderChange { seq, transition }, took_effect) in changes.iter().zip(took_effect) {
        if !took_effect {
            recorded.conflicts.push(*seq);
            continue;
        }
        recorded.changed += 1;
        if let Some(reason) = transition.event_reason() {
            entries.push(NewEntry {
                order_seq: *seq,
                at: now,
                reason,
            });
        }
    }
    recorded
}
