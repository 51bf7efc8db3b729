//! Statements of a batch on existing rows: changes of orders, operators' decisions, epochs, corrected
//! times, heartbeats. They may wait for a row, so they run before the numbering lock is taken, except in
//! a repetition.

use std::collections::HashMap;

use tokio_postgres::Row;

use super::changes::{self, BatchChange, NewEntry, Plan};
use super::error::Error;
use super::session::{StepValue, Steps};
use crate::order::EventReason;
use crate::pace::BACKOFF_MAX;
use crate::store::queue::Pending;
use crate::store::rows::{WRITE_HEARTBEAT, heartbeat_values, unresolved_of};
use crate::store::update::CLAMP_TIMES;
use crate::store::write::Write;
use crate::store::{OperatorResult, Resolution};

const STATUS: &str = "SELECT status, attention FROM orders WHERE id = $1";

const BEGIN_EPOCH: &str = "UPDATE heartbeat SET epoch = epoch + 1 WHERE id = 1 RETURNING epoch";

/// Removes the rows of programs that have ended: a later write of one that still runs adds its row anew.
const FORGET_WRITERS: &str = "DELETE FROM writers WHERE used_at < now() - interval '1 day'";

/// Statements of a batch on existing rows.
pub(super) struct RowWork {
    plan: Option<Plan>,
    /// Index of the statement of each operator's decision and each new epoch, by the write's index.
    single: HashMap<usize, usize>,
    /// Set if an answer to these statements decides what is numbered, which takes a round trip of their
    /// own. Otherwise they fail unless all changes take effect.
    pub is_answered_first: bool,
}

impl RowWork {
    pub fn plan(writes: &[Pending], has_conflicts: bool, steps: &mut Steps) -> Self {
        let is_answered = |pending: &Pending| {
            matches!(
                pending.write,
                Write::Resolve { .. } | Write::Lead { .. } | Write::Prune { .. }
            )
        };
        let is_answered_first = has_conflicts || writes.iter().any(is_answered);
        let changes = changes_of(writes);
        let plan = (!changes.is_empty()).then(|| Plan::add(steps, &changes, !is_answered_first));
        let mut single = HashMap::new();
        for (index, pending) in writes.iter().enumerate() {
            match &pending.write {
                Write::Resolve {
                    id,
                    resolution,
                    now,
                    ..
                } => {
                    let values: Vec<StepValue> = vec![Box::new(id.to_string()), Box::new(now.0)];
                    single.insert(index, steps.add(resolution.sql("$1", "$2"), values));
                    steps.add(STATUS, vec![Box::new(id.to_string())]);
                }
                Write::Lead { .. } => {
                    single.insert(index, steps.add(BEGIN_EPOCH, vec![]));
                    steps.add(FORGET_WRITERS, vec![]);
                }
                Write::ClampTimes { seqs, now, .. } => {
                    let latest = now.after(BACKOFF_MAX).0;
                    let values: Vec<StepValue> =
                        vec![Box::new(seqs.clone()), Box::new(now.0), Box::new(latest)];
                    let sql = CLAMP_TIMES.replace("seq = ?1", "seq = ANY (?1)");
                    steps.add(sql, values);
                }
                _ => {}
            }
        }
        Self {
            plan,
            single,
            is_answered_first,
        }
    }

    /// Stores the replies to the writes, and returns the entries that they add to the journal. Without
    /// answers, all changes count as made.
    pub fn finish(
        &self,
        writes: &mut [Pending],
        answers: &[Vec<Row>],
    ) -> Result<Vec<NewEntry>, Error> {
        let count = changes_of(writes).len();
        let took_effect = match &self.plan {
            Some(plan) if self.is_answered_first => plan.took_effect(answers, count)?,
            _ => vec![true; count],
        };
        let mut took_effect = &took_effect[..];
        let mut entries = Vec::new();
        for (index, pending) in writes.iter_mut().enumerate() {
            let answer = self.single.get(&index).map(|step| (&answers[*step], *step));
            match (&mut pending.write, answer) {
                (
                    Write::Record {
                        changes,
                        now,
                        reply,
                        ..
                    },
                    _,
                ) => {
                    let (own, rest) = took_effect.split_at(changes.len());
                    took_effect = rest;
                    reply.keep(changes::recorded(changes, *now, own, &mut entries));
                }
                (
                    Write::Resolve {
                        resolution,
                        now,
                        reply,
                        ..
                    },
                    Some((changed, step)),
                ) => {
                    let Some(row) = changed.first() else {
                        let found = answers[step + 1].first().map(unresolved_of);
                        reply.keep(found.transpose()?.unwrap_or(OperatorResult::Missing));
                        continue;
                    };
                    if *resolution == Resolution::Fail {
                        entries.push(NewEntry {
                            order_seq: row.try_get(0)?,
                            at: *now,
                            reason: EventReason::FailedByOperator,
                        });
                    }
                    reply.keep(OperatorResult::Done);
                }
                (Write::Lead { reply }, Some((rows, _))) => {
                    let row = rows.first().ok_or(Error::value("there is no heartbeat"))?;
                    reply.keep(row.try_get(0)?);
                }
                _ => {}
            }
        }
        Ok(entries)
    }
}

/// Returns all changes of a batch, in the order of its writes.
fn changes_of(writes: &[Pending]) -> Vec<BatchChange<'_>> {
    let records = writes.iter().filter_map(|pending| match &pending.write {
        Write::Record { changes, now, .. } => Some((changes, *now)),
        _ => None,
    });
    records
        .flat_map(|(changes, now)| {
            changes
                .iter()
                .map(move |change| BatchChange { change, now })
        })
        .collect()
}

/// Adds the statements that write heartbeats. Each fails, as `CHECK_EPOCHS` does, unless its epoch is that
/// of the row it replaces, so it needs no transaction. Another transaction may have locked the row, so
/// they run before the numbering lock is taken, except in a repetition.
pub(super) fn add_heartbeats(writes: &[Pending], steps: &mut Steps) -> Result<(), Error> {
    for pending in writes {
        if let Write::Heartbeat {
            epoch, heartbeat, ..
        } = &pending.write
        {
            let values = heartbeat_values(heartbeat).map_err(Error::value)?;
            let mut values: Vec<StepValue> = values
                .into_iter()
                .map(|value| -> StepValue { Box::new(value) })
                .collect();
            values.push(Box::new(*epoch));
            let last = values.len();
            let sql = format!(
                "{WRITE_HEARTBEAT} \
                 AND CASE WHEN epoch = ${last} THEN true ELSE 1 / (epoch - epoch) = 0 END"
            );
            steps.add(sql, values);
        }
    }
    Ok(())
}
