//! The one writer of a process: a task that takes writes off the queue, many in one transaction.
//!
//! A transaction does its work on rows first. Then it takes the numbering lock, gives out the numbers
//! and commits, all in one round trip. PostgreSQL lets go of a lock after the commit is durable and
//! visible, so whoever holds it sees all numbers before, and numbers have no gaps and the order of
//! commits. Who holds it never waits for a row.
//!
//! A transaction whose commit was not answered is repeated until the server says what became of it:
//! orders name the batch that created them, and all else is found by the batch that `writers` names.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;

use super::changes::{self, BatchChange, NewEntry, Plan};
use super::connect::{Connector, NUMBERING_LOCK, SERVER_STATE};
use super::error::Error;
use super::session::{FailedStep, Session, Steps, Value};
use crate::clock::{Clock, SystemClock};
use crate::decide::LostProcess;
use crate::journal_stats::JournalStats;
use crate::order::{EventReason, Order, OrderId, Status, Timestamp};
use crate::pace::{BACKOFF_MAX, UpstreamState};
use crate::reconciler_state::ReconcilerState;
use crate::store::filter::prunable;
use crate::store::queue::{BATCH_MAX, Pending, Shared};
use crate::store::rows::{Columns, ENTRY, entry_of, order_view_columns, order_view_of};
use crate::store::write::Write;
use crate::store::{Creation, OperatorResult, OrderView, PruneCounts, Resolution, StoreError};

/// Time limit for a batch that was begun, repetitions included. Its callers wait a little longer.
const BATCH_TIMEOUT: Duration = Duration::from_millis(9_500);

/// Time limit for an attempt on one connection, which is given up with it: its server may hang for ever.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(4);

/// Pause before a connection is tried again, or a transaction on it.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

const BEGIN: &str = "BEGIN";
const COMMIT: &str = "COMMIT";

/// Its own statement, so that the next one sees what was committed before. Returns the time that it took,
/// in microseconds.
const LOCK: &str = "SELECT \
    (extract(epoch FROM clock_timestamp() - statement_timestamp()) * 1000000)::bigint \
    FROM pg_advisory_xact_lock($1)";

/// Fails if another epoch is present than any of these.
const CHECK_EPOCHS: &str = "SELECT CASE WHEN epoch = ALL ($1) THEN 0 ELSE 1 / (epoch - epoch) END \
                            FROM heartbeat WHERE id = 1";

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

/// The orders with these ids, and the batches that created them.
const FIND_ALL: &str = concat!(
    "SELECT ",
    order_view_columns!(),
    ", batch FROM orders CROSS JOIN heartbeat WHERE orders.id = ANY ($1)"
);

/// Adds entries; returns the number of the last.
const APPEND: &str = "\
    WITH entries AS ( \
        INSERT INTO journal (seq, order_seq, at, reason) \
        SELECT (SELECT coalesce(max(seq), 0) FROM journal) + u.number, u.order_seq, u.at, u.reason \
        FROM unnest($1::bigint[], $2::bigint[], $3::text[]) WITH ORDINALITY \
            AS u (order_seq, at, reason, number) \
        RETURNING seq) \
    SELECT max(seq) FROM entries";

const PROBE: &str = "INSERT INTO write_probe (id, at) VALUES (1, $1) \
                     ON CONFLICT (id) DO UPDATE SET at = excluded.at";

const REMEMBER: &str = "INSERT INTO writers (id, batch) VALUES ($1, $2) \
                        ON CONFLICT (id) DO UPDATE SET batch = excluded.batch, used_at = now()";

const REMEMBERED: &str = "SELECT batch FROM writers WHERE id = $1";

const REQUEST_RESTART: &str = "\
    UPDATE orders SET released_at = $2, attempts = 0, next_attempt_at = NULL \
    WHERE id = $1 AND attention IN ('process_lost', 'max_starts', 'start_refused') RETURNING seq";

const FAIL: &str = "\
    UPDATE orders SET status = 'FAILED', updated_at = greatest(updated_at, $2), \
        intent_at = NULL, given_up_at = NULL, start_answer = NULL, \
        confirmed_at = NULL, process_seen = false, missed_at = NULL, released_at = NULL, \
        attempts = 0, next_attempt_at = NULL, \
        attention = NULL, attention_since = NULL, attention_detail = NULL \
    WHERE id = $1 AND status = 'PROCESSING' AND attention IN ('process_lost', 'max_starts') \
    RETURNING seq";

const STATUS: &str = "SELECT status, attention FROM orders WHERE id = $1";

/// Not by `least`, which ignores NULL: a time that is not set stays so.
const CORRECT_TIMES: &str = "\
    UPDATE orders SET \
        intent_at = CASE WHEN intent_at > $2 THEN $2 ELSE intent_at END, \
        given_up_at = CASE WHEN given_up_at > $2 THEN $2 ELSE given_up_at END, \
        confirmed_at = CASE WHEN confirmed_at > $2 THEN $2 ELSE confirmed_at END, \
        missed_at = CASE WHEN missed_at > $2 THEN $2 ELSE missed_at END, \
        next_attempt_at = CASE WHEN next_attempt_at > $3 THEN $3 ELSE next_attempt_at END \
    WHERE seq = ANY ($1)";

const BEGIN_EPOCH: &str = "UPDATE heartbeat SET epoch = epoch + 1 WHERE id = 1 RETURNING epoch";

const WRITE_HEARTBEAT: &str = "\
    UPDATE heartbeat SET leader_since = $1, last_pass_at = $2, next_pass_at = $3, \
        last_seen_at = $4, upstream = $5, upstream_since = $6, upstream_detail = $7, \
        next_look_at = $8, learned = $9, tally = $10, led_until = $11, policy = $12 \
    WHERE id = 1";

const PRUNABLE: &str = concat!(
    "SELECT seq, status FROM orders WHERE ",
    prunable!("$1"),
    " AND seq = ANY ($2) ORDER BY seq FOR UPDATE"
);

const BASE: &str = "SELECT history FROM pruned WHERE id = 1 FOR UPDATE";

const REMEMBER_PRUNED: &str = "\
    UPDATE pruned SET fulfilled = fulfilled + $1, failed = failed + $2, entries = entries + $3, \
        last_order_seq = greatest(last_order_seq, $4), \
        last_entry_seq = greatest(last_entry_seq, $5), history = $6 \
    WHERE id = 1";

/// The writer: its connection, and what it shares with the queue.
pub(super) struct Writer {
    connector: Arc<Connector>,
    session: Option<Session>,
    shared: Shared,
    /// The row of this process in `writers`.
    id: i64,
    /// The last failure, to log each kind once.
    logged_failure: Option<String>,
}

/// Writes that share a transaction.
struct Batch {
    number: i64,
    writes: Vec<Pending>,
    /// True if a commit was sent, and its answer did not say for sure that nothing took effect.
    is_in_doubt: bool,
}

/// The failure of a transaction.
enum Failure {
    /// An epoch has ended. Nothing took effect.
    Deposed,
    /// The server or the connection failed.
    Error(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl Writer {
    pub fn new(connector: Arc<Connector>, session: Session, shared: Shared) -> Self {
        Self {
            connector,
            session: Some(session),
            shared,
            id: fastrand::i64(..),
            logged_failure: None,
        }
    }

    /// Carries out all writes until the queue is dropped.
    pub async fn run(mut self, mut waiting: mpsc::Receiver<Pending>) {
        while let Some(first) = waiting.recv().await {
            self.commit(first, &mut waiting).await;
        }
    }

    /// Commits `first` together with all that waits by the time there is a connection.
    pub async fn commit(&mut self, first: Pending, waiting: &mut mpsc::Receiver<Pending>) {
        let wanted_at = Instant::now();
        // Writes are not claimed yet: their callers take them back if this lasts too long.
        let connected = self.connect(waiting).await;
        let mut writes = vec![first];
        while writes.len() < BATCH_MAX
            && let Ok(next) = waiting.try_recv()
        {
            writes.push(next);
        }
        writes.retain(Pending::claim);
        let batch = Batch {
            number: fastrand::i64(..),
            writes,
            is_in_doubt: false,
        };
        match connected {
            Ok(()) => self.execute(batch, wanted_at).await,
            Err(error) => self.fail(batch, error),
        }
    }

    /// Connects, however long that takes while there are callers.
    async fn connect(&mut self, waiting: &mpsc::Receiver<Pending>) -> Result<(), Error> {
        while self.session.as_ref().is_none_or(Session::is_closed) {
            match self.connector.next_session().await {
                Ok(session) => self.session = Some(session),
                Err(error) if error.is_transient() && !waiting.is_closed() => {
                    self.log_failure(&error);
                    tokio::time::sleep(RETRY_INTERVAL).await;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn execute(&mut self, mut batch: Batch, wanted_at: Instant) {
        let deadline = Instant::now() + BATCH_TIMEOUT;
        while !batch.writes.is_empty() {
            let until = deadline.min(Instant::now() + ATTEMPT_TIMEOUT);
            let attempt = tokio::time::timeout_at(until, self.attempt(&mut batch)).await;
            let error = match attempt.unwrap_or(Err(Failure::Error(Error::Silent))) {
                Ok(()) => {
                    let count = batch.writes.len();
                    self.shared
                        .counters
                        .on_committed(count, wanted_at.elapsed());
                    self.finish(batch.writes);
                    return;
                }
                Err(Failure::Deposed) => match self.refuse_deposed(&mut batch).await {
                    Ok(()) => continue,
                    Err(error) => error,
                },
                Err(Failure::Error(error)) => error,
            };
            // Also if only its transaction is to blame: the next one has a session of its own.
            self.session = None;
            if error.is_own_fault() && batch.writes.len() > 1 && !batch.is_in_doubt {
                // None can be distinguished from the others, so each goes alone.
                for write in batch.writes {
                    let alone = Batch {
                        number: fastrand::i64(..),
                        writes: vec![write],
                        is_in_doubt: false,
                    };
                    Box::pin(self.execute(alone, wanted_at)).await;
                }
                return;
            }
            if !error.is_transient() || Instant::now() + RETRY_INTERVAL >= deadline {
                self.fail(batch, error);
                return;
            }
            self.log_failure(&error);
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }

    /// Refuses the writes of epochs that have ended.
    async fn refuse_deposed(&mut self, batch: &mut Batch) -> Result<(), Error> {
        let session = self.session().await?;
        let sql = "SELECT epoch FROM heartbeat WHERE id = 1";
        let present: i64 = session.query_one(sql, &[]).await?.try_get(0)?;
        let (refused, left): (Vec<_>, _) = std::mem::take(&mut batch.writes)
            .into_iter()
            .partition(|pending| epoch_of(&pending.write).is_some_and(|epoch| epoch != present));
        batch.writes = left;
        for pending in refused {
            pending.write.finish(Err(StoreError::Deposed));
        }
        Ok(())
    }

    /// The session, connected anew if the last one has ended.
    async fn session(&mut self) -> Result<&Session, Error> {
        let session = match self.session.take().filter(|session| !session.is_closed()) {
            Some(session) => session,
            None => self.connector.next_session().await?,
        };
        Ok(self.session.insert(session))
    }

    /// Carries out all writes of a batch in one transaction.
    async fn attempt(&mut self, batch: &mut Batch) -> Result<(), Failure> {
        let writer = self.id;
        let (connector, counters) = (self.connector.clone(), self.shared.counters.clone());
        let session = self.session().await?;
        session.take_unreplicated();
        let is_repeated = batch.is_in_doubt;
        let remembers = batch
            .writes
            .iter()
            .any(|pending| is_remembered(&pending.write));
        let mut steps = Steps::default();
        steps.add(BEGIN, vec![]);
        let mut is_locked = false;
        if is_repeated {
            // Its predecessor may be about to commit.
            steps.add(LOCK, vec![Box::new(NUMBERING_LOCK)]);
            let at = steps.add(REMEMBERED, vec![Box::new(writer)]);
            let answers = row_work(session, &steps).await?;
            steps = Steps::default();
            is_locked = true;
            let remembered = answers[at].first().map(|row| row.try_get::<_, i64>(0));
            let remembered = remembered.transpose().map_err(Error::from)?;
            if remembers && remembered == Some(batch.number) {
                return batch.confirm(session, writer).await;
            }
        }
        let rows = RowWork::plan(&batch.writes, &mut steps);
        let mut entries = Vec::new();
        if !rows.is_empty() {
            let answers = row_work(session, &steps).await?;
            steps = Steps::default();
            entries = rows.finish(&mut batch.writes, &answers)?;
            let removals = Removals::read(session, &batch.writes).await?;
            removals.add(&mut steps)?;
            removals.keep(&mut batch.writes);
        }
        add_heartbeats(&batch.writes, &mut steps)?;
        let checked = connector
            .is_check_due()
            .then(|| steps.add(SERVER_STATE, vec![]));
        let lock = (!is_locked).then(|| steps.add(LOCK, vec![Box::new(NUMBERING_LOCK)]));
        let epochs: Vec<i64> = batch
            .writes
            .iter()
            .filter_map(|pending| epoch_of(&pending.write))
            .collect();
        let check = (!epochs.is_empty()).then(|| steps.add(CHECK_EPOCHS, vec![Box::new(epochs)]));
        let found = batch.add_creations(&mut steps);
        // The statement before is that which creates them.
        let mut appended: Vec<usize> = found.map(|found| found - 1).into_iter().collect();
        if !entries.is_empty() {
            appended.push(steps.add(APPEND, entry_values(&entries)));
        }
        for pending in &batch.writes {
            if let Write::Probe { now, .. } = &pending.write {
                steps.add(PROBE, vec![Box::new(now.0)]);
            }
        }
        // A repetition writes something, so that its commit waits for the standby.
        if remembers || is_repeated {
            steps.add(REMEMBER, vec![Box::new(writer), Box::new(batch.number)]);
        }
        if remembers || found.is_some() {
            steps.add("NOTIFY order_service", vec![]);
        }
        steps.add(COMMIT, vec![]);
        // What was in doubt before stays so: an earlier attempt may still be on its way.
        batch.is_in_doubt = true;
        let sent_at = SystemClock.uptime();
        match session.pipeline(&steps).await {
            Ok(answers) => {
                batch.complete(session, &answers, found)?;
                let first = |at: Option<usize>| at.and_then(|at| answers[at].first());
                if let Some(row) = first(lock) {
                    counters.on_locked(row.try_get(0).map_err(Error::from)?);
                }
                for at in appended {
                    if let Some(row) = first(Some(at)) {
                        let newest: Option<i64> = row.try_get(0).map_err(Error::from)?;
                        connector.on_written(newest.unwrap_or(0));
                    }
                }
                if let Some(row) = first(checked) {
                    connector.on_server_state(row, sent_at)?;
                }
                Ok(())
            }
            Err(FailedStep { index, error }) => {
                batch.is_in_doubt = is_repeated || !error.is_rollback();
                match Some(index) == check && is_division_by_zero(&error) {
                    true => Err(Failure::Deposed),
                    false => Err(error.into()),
                }
            }
        }
    }

    /// Answers the callers of writes that were committed.
    fn finish(&mut self, writes: Vec<Pending>) {
        self.shared.commits.send_replace(());
        let was_stuck = self.shared.is_stuck.swap(false, Ordering::AcqRel);
        if self.logged_failure.take().is_some() || was_stuck {
            log::info!("the database can be written again");
        }
        for pending in writes {
            pending.write.finish(Ok(()));
        }
    }

    /// Answers the callers of writes that failed, or that may have.
    fn fail(&mut self, batch: Batch, error: Error) {
        if error.is_own_fault() {
            log::error!("a write was refused by the database: {error}");
        } else {
            self.log_failure(&error);
        }
        let cause: Arc<dyn std::error::Error + Send + Sync> = Arc::new(error);
        for pending in batch.writes {
            pending.write.finish(Err(match batch.is_in_doubt {
                true => StoreError::OutcomeUnknown,
                false => StoreError::Unwritable(cause.clone()),
            }));
        }
    }

    fn log_failure(&mut self, error: &Error) {
        let cause = error.to_string_with_causes();
        if self.logged_failure.as_ref() != Some(&cause) {
            log::error!("the database cannot be written: {cause}");
            self.logged_failure = Some(cause);
        }
    }
}

/// Runs statements of a transaction that is not committed with them.
async fn row_work(session: &Session, steps: &Steps) -> Result<Vec<Vec<Row>>, Failure> {
    let answers = session.pipeline(steps).await;
    Ok(answers.map_err(|failed| failed.error)?)
}

fn is_division_by_zero(error: &Error) -> bool {
    matches!(error, Error::Postgres(error) if error.code() == Some(&SqlState::DIVISION_BY_ZERO))
}

/// The epoch under which a write is valid, if it is a leader's.
fn epoch_of(write: &Write) -> Option<i64> {
    match write {
        Write::Record { epoch, .. }
        | Write::Heartbeat { epoch, .. }
        | Write::ClampTimes { epoch, .. } => Some(*epoch),
        _ => None,
    }
}

/// Returns whether what became of a write is found by the batch in `writers`. Creations are found by
/// the orders themselves.
fn is_remembered(write: &Write) -> bool {
    !matches!(
        write,
        Write::Create { .. } | Write::Probe { .. } | Write::Nothing { .. }
    )
}

impl Batch {
    /// Answers writes that an earlier attempt has committed, whose answers are kept already, but for
    /// those of creations.
    async fn confirm(&mut self, session: &Session, writer: i64) -> Result<(), Failure> {
        let mut steps = Steps::default();
        let found = self.add_found(&mut steps);
        steps.add(REMEMBER, vec![Box::new(writer), Box::new(self.number)]);
        steps.add(COMMIT, vec![]);
        let answers = session.pipeline(&steps).await;
        self.complete(session, &answers.map_err(|failed| failed.error)?, found)
    }

    /// Keeps the answers of a transaction that was committed, unless it may be missing on the standby
    /// that it should be on.
    fn complete(
        &mut self,
        session: &Session,
        answers: &[Vec<Row>],
        found: Option<usize>,
    ) -> Result<(), Failure> {
        if session.take_unreplicated() {
            return Err(Error::Silent.into());
        }
        self.is_in_doubt = false;
        if let Some(found) = found {
            self.keep_creations(&answers[found])?;
        }
        for pending in &mut self.writes {
            match &mut pending.write {
                Write::Heartbeat { reply, .. }
                | Write::ClampTimes { reply, .. }
                | Write::Probe { reply, .. }
                | Write::Nothing { reply } => reply.keep(()),
                #[cfg(test)]
                Write::Sql { reply, .. } => reply.keep(()),
                Write::Create { .. }
                | Write::Resolve { .. }
                | Write::Lead { .. }
                | Write::Record { .. }
                | Write::Prune { .. } => {}
            }
        }
        Ok(())
    }

    /// The ids that are to be created, each once, with the moment.
    fn creations(&self) -> Vec<(&OrderId, Timestamp)> {
        let mut seen = std::collections::HashSet::new();
        let creations = self
            .writes
            .iter()
            .filter_map(|pending| match &pending.write {
                Write::Create { id, now, .. } => Some((id, *now)),
                _ => None,
            });
        creations.filter(|(id, _)| seen.insert(*id)).collect()
    }

    /// Adds the statements that create orders; returns the index of that which finds them.
    fn add_creations(&self, steps: &mut Steps) -> Option<usize> {
        let creations = self.creations();
        if creations.is_empty() {
            return None;
        }
        let ids: Vec<String> = creations.iter().map(|(id, _)| id.to_string()).collect();
        let times: Vec<i64> = creations.iter().map(|(_, now)| now.0).collect();
        let values: Vec<Value> = vec![Box::new(ids), Box::new(times), Box::new(self.number)];
        steps.add(CREATE, values);
        self.add_found(steps)
    }

    fn add_found(&self, steps: &mut Steps) -> Option<usize> {
        let creations = self.creations();
        let ids: Vec<String> = creations.iter().map(|(id, _)| id.to_string()).collect();
        (!ids.is_empty()).then(|| steps.add(FIND_ALL, vec![Box::new(ids)]))
    }

    /// Keeps the answers to creations: the first of a batch that created an order did so.
    fn keep_creations(&mut self, rows: &[Row]) -> Result<(), Error> {
        let mut found: HashMap<OrderId, (Order, bool)> = HashMap::new();
        for row in rows {
            let OrderView { order, .. } = order_view_of(row)?;
            let is_own = row.try_get::<_, i64>(16)? == self.number;
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

/// The statements of a batch on rows that are there, before the numbering lock.
struct RowWork {
    plan: Option<Plan>,
    /// For each decision of an operator and each new epoch: the index of its statement.
    single: HashMap<usize, usize>,
    has_removals: bool,
    has_others: bool,
}

impl RowWork {
    fn plan(writes: &[Pending], steps: &mut Steps) -> Self {
        let changes = changes_of(writes);
        let plan = (!changes.is_empty()).then(|| Plan::add(steps, &changes));
        let mut single = HashMap::new();
        let (mut has_removals, mut has_others) = (false, false);
        for (index, pending) in writes.iter().enumerate() {
            match &pending.write {
                Write::Resolve {
                    id,
                    resolution,
                    now,
                    ..
                } => {
                    let sql = match resolution {
                        Resolution::Restart => REQUEST_RESTART,
                        Resolution::Fail => FAIL,
                    };
                    let values: Vec<Value> = vec![Box::new(id.to_string()), Box::new(now.0)];
                    single.insert(index, steps.add(sql, values));
                    steps.add(STATUS, vec![Box::new(id.to_string())]);
                }
                Write::Lead { .. } => {
                    single.insert(index, steps.add(BEGIN_EPOCH, vec![]));
                }
                Write::ClampTimes { seqs, now, .. } => {
                    has_others = true;
                    let latest = now.after(BACKOFF_MAX).0;
                    let values: Vec<Value> =
                        vec![Box::new(seqs.clone()), Box::new(now.0), Box::new(latest)];
                    steps.add(CORRECT_TIMES, values);
                }
                // Without changes, too, there is an answer to keep.
                Write::Record { .. } => has_others = true,
                Write::Prune { .. } => has_removals = true,
                #[cfg(test)]
                Write::Sql { sql, .. } => {
                    has_others = true;
                    steps.add(sql.clone(), vec![]);
                }
                _ => {}
            }
        }
        Self {
            plan,
            single,
            has_removals,
            has_others,
        }
    }

    fn is_empty(&self) -> bool {
        self.plan.is_none() && self.single.is_empty() && !self.has_removals && !self.has_others
    }

    /// Keeps the answers to the writes; returns the entries that they add to the journal.
    fn finish(&self, writes: &mut [Pending], answers: &[Vec<Row>]) -> Result<Vec<NewEntry>, Error> {
        let count = changes_of(writes).len();
        let took_effect = match &self.plan {
            Some(plan) => plan.took_effect(answers, count)?,
            None => Vec::new(),
        };
        let mut took_effect = &took_effect[..];
        let mut entries = Vec::new();
        for (index, pending) in writes.iter_mut().enumerate() {
            let answer = self.single.get(&index).map(|at| (&answers[*at], *at));
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
                    Some((changed, at)),
                ) => {
                    let Some(row) = changed.first() else {
                        reply.keep(nothing_done(&answers[at + 1])?);
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

/// All changes of a batch, in the order of its writes.
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

/// Why an operator's decision changed nothing.
fn nothing_done(rows: &[Row]) -> Result<OperatorResult, Error> {
    let Some(row) = rows.first() else {
        return Ok(OperatorResult::Missing);
    };
    let status = row.status(0)?;
    Ok(match status.is_settled() {
        true => OperatorResult::Settled(status),
        false => OperatorResult::NothingToResolve(status, row.reason(1)?),
    })
}

fn entry_values(entries: &[NewEntry]) -> Vec<Value> {
    let orders: Vec<i64> = entries.iter().map(|entry| entry.order_seq).collect();
    let times: Vec<i64> = entries.iter().map(|entry| entry.at.0).collect();
    let reasons: Vec<&str> = entries.iter().map(|entry| entry.reason.as_str()).collect();
    vec![Box::new(orders), Box::new(times), Box::new(reasons)]
}

/// The heartbeat is written before the numbering lock is taken, because another transaction may have
/// locked its row.
fn add_heartbeats(writes: &[Pending], steps: &mut Steps) -> Result<(), Error> {
    for pending in writes {
        if let Write::Heartbeat { heartbeat, .. } = &pending.write {
            steps.add(WRITE_HEARTBEAT, heartbeat_values(heartbeat)?);
        }
    }
    Ok(())
}

fn heartbeat_values(heartbeat: &ReconcilerState) -> Result<Vec<Value>, Error> {
    let (upstream, since, detail) = match &heartbeat.upstream {
        UpstreamState::Unknown => ("unknown", None, None),
        UpstreamState::Up { since } => ("up", Some(since.0), None),
        UpstreamState::Down { since, detail } => ("down", Some(since.0), Some(detail.clone())),
    };
    let time = |at: Option<Timestamp>| -> Value { Box::new(at.map(|at| at.0)) };
    Ok(vec![
        time(heartbeat.leader_since),
        time(heartbeat.last_pass_at),
        time(heartbeat.next_pass_at),
        time(heartbeat.last_observed_at),
        Box::new(upstream),
        Box::new(since),
        Box::new(detail),
        time(heartbeat.next_poll_at),
        Box::new(serde_json::to_string(&heartbeat.learned).map_err(Error::value)?),
        Box::new(serde_json::to_string(&heartbeat.metrics).map_err(Error::value)?),
        time(heartbeat.led_until),
        Box::new(heartbeat.policy.map(LostProcess::as_str)),
    ])
}

/// Orders that a batch removes, and what is remembered of them.
#[derive(Default)]
struct Removals {
    history: Option<JournalStats>,
    seqs: Vec<i64>,
    last_entry: i64,
    /// The answer to each write that removes.
    removed: Vec<PruneCounts>,
}

impl Removals {
    /// Reads what the orders to remove add up to, and locks them.
    async fn read(session: &Session, writes: &[Pending]) -> Result<Self, Error> {
        let mut removals = Self::default();
        for pending in writes {
            let Write::Prune {
                seqs,
                settled_before,
                now,
                ..
            } = &pending.write
            else {
                continue;
            };
            let mut history = match removals.history.take() {
                Some(history) => history,
                None => {
                    let row = session.query_one(BASE, &[]).await?;
                    serde_json::from_str(row.try_get(0)?).map_err(Error::value)?
                }
            };
            let mut removed = PruneCounts::default();
            let mut own = Vec::new();
            for row in session.query(PRUNABLE, &[&settled_before.0, seqs]).await? {
                let seq: i64 = row.try_get(0)?;
                // An earlier write of this batch removes it.
                if removals.seqs.contains(&seq) {
                    continue;
                }
                match row.status(1)? {
                    Status::Fulfilled => removed.fulfilled += 1,
                    Status::Failed => removed.failed += 1,
                    Status::Created | Status::Processing => continue,
                }
                own.push(seq);
            }
            let sql = format!(
                "SELECT {ENTRY} FROM journal WHERE order_seq = ANY ($1) ORDER BY order_seq, seq"
            );
            for row in session.query(&sql, &[&own]).await? {
                let entry = entry_of(&row)?;
                history.fold(&entry, *now);
                removed.entries += 1;
                removals.last_entry = removals.last_entry.max(entry.seq);
            }
            history.drop_old_minutes(*now);
            removals.history = Some(history);
            removals.seqs.extend(own);
            removals.removed.push(removed);
        }
        Ok(removals)
    }

    fn add(&self, steps: &mut Steps) -> Result<(), Error> {
        let Some(history) = &self.history else {
            return Ok(());
        };
        let mut all = PruneCounts::default();
        for removed in &self.removed {
            all += *removed;
        }
        let history = serde_json::to_string(history).map_err(Error::value)?;
        steps.add(
            "DELETE FROM journal WHERE order_seq = ANY ($1)",
            vec![Box::new(self.seqs.clone())],
        );
        steps.add(
            "DELETE FROM orders WHERE seq = ANY ($1)",
            vec![Box::new(self.seqs.clone())],
        );
        steps.add(
            REMEMBER_PRUNED,
            vec![
                Box::new(all.fulfilled as i64),
                Box::new(all.failed as i64),
                Box::new(all.entries as i64),
                Box::new(self.seqs.iter().copied().max().unwrap_or(0)),
                Box::new(self.last_entry),
                Box::new(history),
            ],
        );
        Ok(())
    }

    fn keep(&self, writes: &mut [Pending]) {
        let prunes = writes
            .iter_mut()
            .filter_map(|pending| match &mut pending.write {
                Write::Prune { reply, .. } => Some(reply),
                _ => None,
            });
        for (reply, removed) in prunes.zip(&self.removed) {
            reply.keep(*removed);
        }
    }
}
