//! Statements of a batch on existing rows: changes of orders, operators' decisions, epochs, corrected
//! times, heartbeats. They may wait for a row, so they run before the numbering lock is taken, except in
//! a repetition.

use tokio_postgres::Row;

use super::changes::{self, BatchChange, NewEntry, Plan};
use super::error::Error;
use super::session::{Session, StepValue, Steps};
use crate::order::EventReason;
use crate::store::queue::Pending;
use crate::store::rows::{WRITE_HEARTBEAT, heartbeat_values};
use crate::store::write::Write;
use crate::store::{prune, update};

const BEGIN_EPOCH: &str = "UPDATE heartbeat SET epoch = epoch + 1 WHERE id = 1 RETURNING epoch";

/// Removes the rows of programs that have ended: a later write of one that still runs adds its row anew.
const FORGET_WRITERS: &str = "DELETE FROM writers WHERE used_at < now() - interval '1 day'";

/// Statements of a batch on existing rows.
pub(super) struct RowWork {
    plan: Option<Plan>,
    /// Set if an answer decides what is numbered, or if writes are executed one by one: these statements then
    /// take a round trip of their own. Otherwise they fail unless all changes take effect.
    pub is_answered_first: bool,
}

impl RowWork {
    pub fn plan(writes: &[Pending], has_conflicts: bool, steps: &mut Steps) -> Self {
        let is_answered = |pending: &Pending| {
            matches!(
                pending.write,
                Write::Resolve { .. }
                    | Write::Lead { .. }
                    | Write::ClampTimes { .. }
                    | Write::Prune { .. }
            )
        };
        let is_answered_first = has_conflicts || writes.iter().any(is_answered);
        let changes = changes_of(writes);
        let plan = (!changes.is_empty()).then(|| Plan::add(steps, &changes, !is_answered_first));
        Self {
            plan,
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
        for pending in writes {
            if let Write::Record {
                changes,
                now,
                reply,
                ..
            } = &mut pending.write
            {
                let (own, rest) = took_effect.split_at(changes.len());
                took_effect = rest;
                reply.keep(changes::recorded(changes, *now, own, &mut entries));
            }
        }
        Ok(entries)
    }
}

/// Executes the rare writes of a batch, each by statements of its own, and stores their replies. Adds the entries
/// that the journal needs.
pub(super) async fn change_one_by_one(
    session: &Session,
    writes: &mut [Pending],
    entries: &mut Vec<NewEntry>,
) -> Result<(), Error> {
    for pending in writes {
        match &mut pending.write {
            Write::Resolve {
                id,
                resolution,
                now,
                reply,
            } => {
                let (answer, failed) = update::resolve(session, id, *resolution, *now).await?;
                entries.extend(failed.map(|order_seq| NewEntry {
                    order_seq,
                    at: *now,
                    reason: EventReason::FailedByOperator,
                }));
                reply.keep(answer);
            }
            Write::Lead { reply } => {
                reply.keep(session.value(BEGIN_EPOCH, &[]).await?);
                session.query(FORGET_WRITERS, &[]).await?;
            }
            Write::ClampTimes { seqs, now, .. } => update::clamp(session, seqs, *now).await?,
            Write::Prune {
                seqs,
                settled_before,
                now,
                reply,
            } => reply.keep(prune::prune(session, seqs, *settled_before, *now).await?),
            _ => {}
        }
    }
    Ok(())
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
