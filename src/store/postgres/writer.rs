//! The one writer of a program: a task that takes writes off the queue, many in one transaction.
//!
//! A transaction changes rows first. Then it takes the numbering lock, assigns the numbers and commits.
//! All of that is one round trip, unless an answer decides what is numbered or a write is a rare one
//! (`row_work`). PostgreSQL releases a lock after the commit is durable and visible, so its next holder sees
//! all earlier numbers: numbers have no gaps and follow the order of commits. A transaction that holds the
//! lock does not wait for a row, unless it is a repetition.
//!
//! A transaction whose commit was not answered is repeated until its outcome is known: orders name the
//! batch that created them, and `writers` names the last batch of each program. A repetition takes the lock
//! first, to wait for the commit of its predecessor. It may then wait for a row whose holder waits for the
//! lock: the server ends such a deadlock, and the transaction is repeated.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;

use super::batch::{Batch, COMMIT, EMIT, Failure, SET_LAST_BATCH, entry_values};
use super::changes::NewEntry;
use super::connect::{Connector, SERVER_STATE};
use super::error::Error;
use super::row_work::{RowWork, add_heartbeats, change_one_by_one};
use super::session::{NUMBERING_LOCK, Session, Steps};
use super::{ATTEMPT_TIMEOUT, RETRY_INTERVAL};
use crate::clock::{Clock, SystemClock};
use crate::messages::with_causes;
use crate::store::StoreError;
use crate::store::queue::Pending;
use crate::store::write::Write;
use crate::store::writer_state::WriterState;

/// Time limit of a batch that has begun, repetitions included. Its callers wait a little longer.
const BATCH_TIMEOUT: Duration = Duration::from_millis(9_500);

/// Interval between two checks of the state of the server while nothing is written, because each costs a
/// statement then.
const CHECK_INTERVAL_AT_REST: Duration = Duration::from_secs(5);

const BEGIN: &str = "BEGIN";

/// A statement of its own, so that the next one sees all earlier commits. Returns the time that it took,
/// in microseconds.
const LOCK: &str = "SELECT \
    (extract(epoch FROM clock_timestamp() - statement_timestamp()) * 1000000)::bigint \
    FROM pg_advisory_xact_lock($1)";

/// Fails, with a division by zero, unless all of these epochs are the current one.
const CHECK_EPOCHS: &str = "SELECT CASE WHEN epoch = ALL ($1) THEN 0 ELSE 1 / (epoch - epoch) END \
                            FROM heartbeat WHERE id = 1";

/// Adds entries; returns the number of the last.
const APPEND: &str = "\
    WITH entries AS ( \
        INSERT INTO journal (seq, order_seq, at, reason) \
        SELECT (SELECT coalesce(max(seq), 0) FROM journal) + u.number, u.order_seq, u.at, u.reason \
        FROM unnest($1::bigint[], $2::bigint[], $3::text[]) WITH ORDINALITY \
            AS u (order_seq, at, reason, number) \
        RETURNING seq) \
    SELECT max(seq) FROM entries";

const CHECK_WRITABLE: &str = "INSERT INTO write_probe (id, at) VALUES (1, $1) \
                     ON CONFLICT (id) DO UPDATE SET at = excluded.at";

const LAST_BATCH: &str = "SELECT batch FROM writers WHERE id = $1";

/// The present epoch, and the last batch of a writer.
const PRESENT: &str = "SELECT epoch, (SELECT batch FROM writers WHERE writers.id = $1) \
                       FROM heartbeat WHERE id = 1";

/// The writer of a program.
pub(super) struct Writer {
    connector: Arc<Connector>,
    session: Option<Session>,
    state: WriterState,
    /// Id of this program's row in `writers`.
    id: i64,
    /// Batches of which the row may have the number: the last that was committed, and later ones whose outcome
    /// is unknown.
    possible_last_batches: Vec<i64>,
}

impl Writer {
    pub fn new(connector: Arc<Connector>, session: Session, state: WriterState) -> Self {
        Self {
            connector,
            session: Some(session),
            state,
            id: fastrand::i64(..),
            possible_last_batches: Vec::new(),
        }
    }

    /// Executes all writes until the queue is dropped, and checks the server while there are none.
    pub async fn run(mut self, mut waiting: mpsc::Receiver<Pending>) {
        loop {
            match tokio::time::timeout(CHECK_INTERVAL_AT_REST, waiting.recv()).await {
                Ok(Some(first)) => self.commit(first, &mut waiting).await,
                Ok(None) => return,
                Err(_) => self.check().await,
            }
        }
    }

    /// Checks that the database may still be used, which writes do otherwise.
    async fn check(&mut self) {
        let connector = self.connector.clone();
        let check = async {
            let session = self.session().await?;
            let asked_at = SystemClock.uptime();
            let row = session.query_one(SERVER_STATE, &[]).await?;
            connector.on_server_state(&row, asked_at)
        };
        let checked = tokio::time::timeout(ATTEMPT_TIMEOUT, check).await;
        if let Err(error) = checked.unwrap_or(Err(Error::TimedOut)) {
            log::debug!("the database cannot be checked: {error}");
            self.session = None;
        }
    }

    /// Commits `first` together with all writes that are queued when there is a connection.
    pub async fn commit(&mut self, first: Pending, waiting: &mut mpsc::Receiver<Pending>) {
        let wanted_at = Instant::now();
        // Writes are not claimed yet: their callers withdraw them if this lasts too long.
        let connected = self.connect(waiting).await;
        let batch = Batch::new(first.with_queued(waiting));
        match connected {
            Ok(()) => self.execute(batch, wanted_at).await,
            Err(error) => self.fail(batch, error),
        }
    }

    /// Connects, however long that takes while there are callers.
    async fn connect(&mut self, waiting: &mpsc::Receiver<Pending>) -> Result<(), Error> {
        while self.session.as_ref().is_none_or(Session::is_closed) {
            match self.connector.session().await {
                Ok(session) => self.session = Some(session),
                Err(error) if error.is_transient() && !waiting.is_closed() => {
                    self.state.report_failure(with_causes(&error));
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
            let error = match attempt.unwrap_or(Err(Failure::Error(Error::TimedOut))) {
                Ok(()) => {
                    if batch.sets_last_batch() {
                        self.possible_last_batches = vec![batch.number];
                    }
                    let count = batch.writes.len();
                    self.state.on_committed(count, wanted_at.elapsed());
                    self.finish(batch.writes);
                    return;
                }
                Err(Failure::Conflict) => {
                    let until = deadline.min(Instant::now() + ATTEMPT_TIMEOUT);
                    let refused = tokio::time::timeout_at(until, self.refuse_deposed(&mut batch));
                    match refused.await.unwrap_or(Err(Error::TimedOut)) {
                        Ok(()) => continue,
                        Err(error) => error,
                    }
                }
                Err(Failure::Error(error)) => error,
            };
            // Also if only its transaction is to blame: the next one has a session of its own.
            self.session = None;
            if error.is_own_fault() && batch.writes.len() > 1 && !batch.has_unknown_outcome {
                // None can be distinguished from the others, so each goes alone.
                for write in batch.writes {
                    Box::pin(self.execute(Batch::new(vec![write]), wanted_at)).await;
                }
                return;
            }
            if !error.is_transient() || Instant::now() + RETRY_INTERVAL >= deadline {
                self.fail(batch, error);
                return;
            }
            self.state.report_failure(self.cause(&error));
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }

    /// Formats the error of a transaction.
    fn cause(&self, error: &Error) -> String {
        let mut cause = with_causes(error);
        if matches!(error, Error::TimedOut) && self.connector.is_replicated() {
            cause.push_str(
                "; perhaps its commits wait for a synchronous standby: check that pg_stat_replication lists one",
            );
        }
        cause
    }

    /// Refuses the writes of epochs that have ended, and has the others expect conflicts.
    async fn refuse_deposed(&mut self, batch: &mut Batch) -> Result<(), Error> {
        let writer = self.id;
        let session = self.session().await?;
        let row = session.query_one(PRESENT, &[&writer]).await?;
        let present: i64 = row.try_get(0)?;
        // A server that was promoted may lack the last ones.
        self.possible_last_batches
            .extend(row.try_get::<_, Option<i64>>(1)?);
        let mut writes = batch.writes.iter();
        // It ends the present epoch, too.
        let is_led = writes.any(|pending| matches!(pending.write, Write::Lead { .. }));
        let has_ended = |epoch| is_led || epoch != present;
        let (refused, left): (Vec<_>, _) = std::mem::take(&mut batch.writes)
            .into_iter()
            .partition(|pending| pending.write.epoch().is_some_and(has_ended));
        batch.writes = left;
        batch.has_conflicts = true;
        for pending in refused {
            pending.write.finish(Err(StoreError::Deposed));
        }
        Ok(())
    }

    /// Returns the session, which is replaced if it has ended.
    async fn session(&mut self) -> Result<&Session, Error> {
        let session = match self.session.take().filter(|session| !session.is_closed()) {
            Some(session) => session,
            None => self.connector.session().await?,
        };
        Ok(self.session.insert(session))
    }

    /// Executes all writes of a batch in one transaction.
    async fn attempt(&mut self, batch: &mut Batch) -> Result<(), Failure> {
        let (id, possible_last_batches) = (self.id, self.possible_last_batches.clone());
        let connector = self.connector.clone();
        let session = self.session().await?;
        session.take_unreplicated();
        let had_unknown_outcome = batch.has_unknown_outcome;
        // At rest, a heartbeat is all that is written.
        let is_heartbeat = |pending: &Pending| matches!(pending.write, Write::Heartbeat { .. });
        let is_transaction = had_unknown_outcome || !batch.writes.iter().all(is_heartbeat);
        let mut steps = Steps::default();
        if is_transaction {
            steps.add(BEGIN, vec![]);
        }
        if had_unknown_outcome {
            let last_batch = last_batch(session, std::mem::take(&mut steps), id).await?;
            if batch.sets_last_batch() && last_batch == Some(batch.number) {
                return batch.confirm(session).await;
            }
        }
        let rows = RowWork::plan(&batch.writes, batch.has_conflicts, &mut steps);
        let answers = match rows.is_answered_first {
            true => session.pipeline(&std::mem::take(&mut steps)).await?,
            false => Vec::new(),
        };
        let mut entries = rows.finish(&mut batch.writes, &answers)?;
        change_one_by_one(session, &mut batch.writes, &mut entries).await?;
        let is_check_due = connector.is_check_due();
        let server_state = is_check_due.then(|| steps.add(SERVER_STATE, vec![]));
        add_heartbeats(&batch.writes, &mut steps)?;
        let lock = (is_transaction && !had_unknown_outcome).then(|| add_lock(&mut steps));
        if is_transaction {
            add_epoch_check(&batch.writes, &mut steps);
        }
        let (found, appended) = add_numbered(batch, &entries, &mut steps);
        add_end(
            batch,
            id,
            possible_last_batches,
            found.is_some(),
            &mut steps,
        );
        if is_transaction {
            steps.add(COMMIT, vec![]);
        }
        // What was in doubt before stays so: an earlier attempt may still be on its way.
        batch.has_unknown_outcome = true;
        let sent_at = SystemClock.uptime();
        let answers = session.pipeline(&steps).await.map_err(|error| {
            batch.has_unknown_outcome = had_unknown_outcome || !error.is_rollback();
            match is_division_by_zero(&error) {
                true => Failure::Conflict,
                false => error.into(),
            }
        })?;
        batch.complete(session, &answers, found)?;
        self.on_committed(&answers, lock, &appended, server_state, sent_at)?;
        Ok(())
    }

    /// Takes note of the answers to a transaction that was committed: the time that the lock took, the last
    /// entries of the journal, and the state of the server.
    fn on_committed(
        &self,
        answers: &[Vec<Row>],
        lock: Option<usize>,
        appended: &[usize],
        server_state: Option<usize>,
        sent_at: Duration,
    ) -> Result<(), Error> {
        let first = |step: usize| answers[step].first();
        if let Some(row) = lock.and_then(first) {
            self.state.on_locked(row.try_get(0)?);
        }
        for row in appended.iter().filter_map(|step| first(*step)) {
            let newest: Option<i64> = row.try_get(0)?;
            self.connector.own_entries.on_written(newest.unwrap_or(0));
        }
        if let Some(row) = server_state.and_then(first) {
            // Whatever the state is, this batch was committed.
            let _ = self.connector.on_server_state(row, sent_at);
        }
        Ok(())
    }

    /// Completes the replies to writes that were committed.
    fn finish(&self, writes: Vec<Pending>) {
        self.state.report_success();
        for pending in writes {
            pending.write.finish(Ok(()));
        }
    }

    /// Completes the replies to writes that failed or whose outcome is unknown.
    fn fail(&mut self, batch: Batch, error: Error) {
        if batch.has_unknown_outcome {
            self.possible_last_batches.push(batch.number);
        }
        let cause = self.cause(&error);
        match error.is_own_fault() {
            true => log::error!("a write was refused by the database: {cause}"),
            // The program ends, and logs the reason.
            false if self.connector.retirement().initialized() => {}
            false => self.state.report_failure(cause),
        }
        let cause: Arc<dyn std::error::Error + Send + Sync> = Arc::new(error);
        for pending in batch.writes {
            pending.write.finish(Err(match batch.has_unknown_outcome {
                true => StoreError::OutcomeUnknown,
                false => StoreError::Unwritable(cause.clone()),
            }));
        }
    }
}

/// Begins a transaction by these steps, waits for the commit of any predecessor, which may be on its way,
/// and returns the number of the last batch of a writer.
async fn last_batch(
    session: &Session,
    mut steps: Steps,
    writer: i64,
) -> Result<Option<i64>, Error> {
    add_lock(&mut steps);
    let step = steps.add(LAST_BATCH, vec![Box::new(writer)]);
    let answers = session.pipeline(&steps).await?;
    let last_batch = answers[step].first().map(|row| row.try_get(0));
    Ok(last_batch.transpose()?)
}

/// Adds the statement that takes the numbering lock, and returns its index.
fn add_lock(steps: &mut Steps) -> usize {
    steps.add(LOCK, vec![Box::new(NUMBERING_LOCK)])
}

/// Adds the statement that fails if a write is of an epoch that has ended.
fn add_epoch_check(writes: &[Pending], steps: &mut Steps) {
    let epochs = writes.iter().filter_map(|pending| pending.write.epoch());
    let epochs: Vec<i64> = epochs.collect();
    if !epochs.is_empty() {
        steps.add(CHECK_EPOCHS, vec![Box::new(epochs)]);
    }
}

/// Adds the statements that create orders and append entries. Returns the index of the one that reads the
/// orders, and those of the ones that return the number of the last entry.
fn add_numbered(
    batch: &Batch,
    entries: &[NewEntry],
    steps: &mut Steps,
) -> (Option<usize>, Vec<usize>) {
    let found = batch.add_creations(steps);
    // The statement before is that which creates them.
    let mut appended: Vec<usize> = found.map(|found| found - 1).into_iter().collect();
    if !entries.is_empty() {
        appended.push(steps.add(APPEND, entry_values(entries)));
    }
    (found, appended)
}

/// Adds the checks that rows can be written, and the statements by which a repetition and other programs
/// find out about the batch.
fn add_end(
    batch: &Batch,
    writer: i64,
    possible_last_batches: Vec<i64>,
    has_creations: bool,
    steps: &mut Steps,
) {
    for pending in &batch.writes {
        if let Write::CheckWritable { now, .. } = &pending.write {
            steps.add(CHECK_WRITABLE, vec![Box::new(now.0)]);
        }
    }
    let sets_last_batch = batch.sets_last_batch();
    if sets_last_batch {
        let number = Box::new(batch.number);
        let before = Box::new(possible_last_batches);
        steps.add(SET_LAST_BATCH, vec![Box::new(writer), number, before]);
    }
    if batch.has_unknown_outcome || has_creations {
        steps.add(EMIT, vec![]);
    }
    if sets_last_batch || has_creations {
        steps.add("NOTIFY order_service", vec![]);
    }
}

fn is_division_by_zero(error: &Error) -> bool {
    matches!(error, Error::Postgres(error) if error.code() == Some(&SqlState::DIVISION_BY_ZERO))
}
