//! Batches of writes that share a transaction, and the creations among them.

use std::collections::{HashMap, HashSet};

use tokio_postgres::Row;

use super::changes::NewEntry;
use super::error::Error;
use super::session::{Session, StepValue, Steps};
use crate::order::{Order, OrderId, Status, Timestamp};
use crate::store::queue::Pending;
use crate::store::rows::{order_view_columns, order_view_of};
use crate::store::write::Write;
use crate::store::{Creation, OrderView, StoreError};

pub(super) const COMMIT: &str = "COMMIT";

/// Creates the orders that are not there yet, with their entries; returns the number of the last.
const CREATE: &str = "\
    WITH newest AS MATERIALIZED ( \
        SELECT (SELECT coalesce(max(seq), 0) FROM orders) AS seq, \
               (SELECT coalesce(max(seq), 0) FROM journal) AS entry), \
    created AS ( \
        INSERT INTO orders (seq, id, status, created_at, updated_at, batch) \
        SELECT newest.seq + row_number() OVER (ORDER BY u.number), u.id, 'CREATED', u.at, u.at, $3 \
        FROM newest, unnest($1::text[], $2::bigint[]) WITH ORDINALITY AS u (id, at, number) \
        WHERE (SELECT 1 FROM orders AS o WHERE o.id = u.id) IS NULL \
        RETURNING seq, created_at), \
    entries AS ( \
        INSERT INTO journal (seq, order_seq, at, reason) \
        SELECT (SELECT entry FROM newest) + row_number() OVER (ORDER BY seq), seq, created_at, 'created' \
        FROM created \
        RETURNING seq) \
    SELECT max(seq) FROM entries";

/// Query for the orders with these ids, with the columns of the heartbeat that readers need, and the
/// batches that created them.
pub(super) const ORDER_VIEWS: &str = concat!(
    "SELECT ",
    order_view_columns!(),
    ", batch FROM orders CROSS JOIN heartbeat WHERE orders.id = ANY ($1)"
);

/// Sets the last batch of a writer. Fails, with a division by zero, unless the one before is among
/// these: an attempt that a stalled connection delivers after its repetition has no effect.
pub(super) const SET_LAST_BATCH: &str = "\
    INSERT INTO writers (id, batch) VALUES ($1, $2) \
    ON CONFLICT (id) DO UPDATE SET \
        batch = excluded.batch / (writers.batch = ANY ($3))::integer, used_at = now()";

/// Writes to the log alone, so that the commit waits for the standby: one that has written nothing would
/// report as existing what only the primary has.
pub(super) const EMIT: &str = "SELECT FROM pg_logical_emit_message(true, 'order_service', '')";

/// Writes that share a transaction.
pub(super) struct Batch {
    pub number: i64,
    pub writes: Vec<Pending>,
    /// True if a commit was sent and may have taken effect.
    pub has_unknown_outcome: bool,
    /// True if an attempt has shown that changes may be without effect.
    pub has_conflicts: bool,
}

/// The failure of a transaction.
pub(super) enum Failure {
    /// An epoch has ended, a change has no effect although all were to have one, or another batch than
    /// expected is the writer's last. The transaction was rolled back.
    Conflict,
    /// The server or the connection failed.
    Error(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl Batch {
    pub fn new(writes: Vec<Pending>) -> Self {
        Self {
            number: fastrand::i64(..),
            writes,
            has_unknown_outcome: false,
            has_conflicts: false,
        }
    }

    /// Returns true if `writers` shows whether the batch was committed.
    pub fn sets_last_batch(&self) -> bool {
        let mut writes = self.writes.iter();
        writes.any(|pending| sets_last_batch(&pending.write))
    }

    /// Completes a batch that an earlier attempt has committed: only the replies to creations are
    /// still missing.
    pub async fn confirm(&mut self, session: &Session) -> Result<(), Failure> {
        let mut steps = Steps::default();
        let found = self.add_found(&mut steps);
        steps.add(EMIT, vec![]);
        steps.add(COMMIT, vec![]);
        self.complete(session, &session.pipeline(&steps).await?, found)
    }

    /// Stores the replies to a transaction that was committed, unless it may not have been replicated.
    pub fn complete(
        &mut self,
        session: &Session,
        answers: &[Vec<Row>],
        found: Option<usize>,
    ) -> Result<(), Failure> {
        if session.take_unreplicated() {
            return Err(Error::TimedOut.into());
        }
        self.has_unknown_outcome = false;
        if let Some(found) = found {
            self.keep_creations(&answers[found])?;
        }
        for pending in &mut self.writes {
            match &mut pending.write {
                Write::Heartbeat { reply, .. }
                | Write::ClampTimes { reply, .. }
                | Write::CheckWritable { reply, .. }
                | Write::CheckFiles { reply } => reply.keep(()),
                Write::Create { .. }
                | Write::Resolve { .. }
                | Write::Lead { .. }
                | Write::Record { .. }
                | Write::Prune { .. } => {}
            }
        }
        Ok(())
    }

    /// Returns the ids to create, each once, with their times.
    fn creations(&self) -> Vec<(&OrderId, Timestamp)> {
        let mut seen = HashSet::new();
        let creations = self
            .writes
            .iter()
            .filter_map(|pending| match &pending.write {
                Write::Create { id, now, .. } => Some((id, *now)),
                _ => None,
            });
        creations.filter(|(id, _)| seen.insert(*id)).collect()
    }

    /// Adds the statements that create orders, and returns the index of the one that reads them.
    pub fn add_creations(&self, steps: &mut Steps) -> Option<usize> {
        let creations = self.creations();
        if creations.is_empty() {
            return None;
        }
        let ids: Vec<String> = creations.iter().map(|(id, _)| id.to_string()).collect();
        let times: Vec<i64> = creations.iter().map(|(_, now)| now.0).collect();
        let values: Vec<StepValue> = vec![Box::new(ids), Box::new(times), Box::new(self.number)];
        steps.add(CREATE, values);
        self.add_found(steps)
    }

    fn add_found(&self, steps: &mut Steps) -> Option<usize> {
        let creations = self.creations();
        let ids: Vec<String> = creations.iter().map(|(id, _)| id.to_string()).collect();
        (!ids.is_empty()).then(|| steps.add(ORDER_VIEWS, vec![Box::new(ids)]))
    }

    /// Stores the replies to creations. Of several with one id, the first has created the order.
    fn keep_creations(&mut self, rows: &[Row]) -> Result<(), Error> {
        let mut found: HashMap<OrderId, (Order, bool)> = HashMap::new();
        for row in rows {
            let OrderView { order, .. } = order_view_of(row)?;
            let is_own = row.try_get::<_, i64>("batch")? == self.number;
            found.insert(order.id.clone(), (order, is_own));
        }
        for pending in &mut self.writes {
            let Write::Create { id, reply, .. } = &mut pending.write else {
                continue;
            };
            let Some((order, is_own)) = found.get_mut(id) else {
                reply.refuse(StoreError::OutcomeUnknown);
                continue;
            };
            reply.keep(match std::mem::take(is_own) {
                true => Creation::Created(Order {
                    status: Status::Created,
                    updated_at: order.created_at,
                    starts: 0,
                    // A fact of all open orders; the next reader of this one will see it.
                    attention: None,
                    ..order.clone()
                }),
                false => Creation::Exists(order.clone()),
            });
        }
        Ok(())
    }
}

pub(super) fn entry_values(entries: &[NewEntry]) -> Vec<StepValue> {
    let orders: Vec<i64> = entries.iter().map(|entry| entry.order_seq).collect();
    let times: Vec<i64> = entries.iter().map(|entry| entry.at.0).collect();
    let reasons: Vec<&str> = entries.iter().map(|entry| entry.reason.as_str()).collect();
    vec![Box::new(orders), Box::new(times), Box::new(reasons)]
}

/// Returns true if `writers` shows whether a write was committed. Creations are shown by the orders
/// themselves, and repeating the others is harmless.
fn sets_last_batch(write: &Write) -> bool {
    match write {
        Write::Record { .. } | Write::Resolve { .. } | Write::Lead { .. } | Write::Prune { .. } => {
            true
        }
        Write::Create { .. }
        | Write::Heartbeat { .. }
        | Write::ClampTimes { .. }
        | Write::CheckWritable { .. }
        | Write::CheckFiles { .. } => false,
    }
}
