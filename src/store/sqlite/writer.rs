//! The one writer of a program: takes writes off the queue, and commits many in one transaction.
//!
//! A change of an order and its journal entry, if it has one, are in the same transaction. The UPDATEs are
//! in `store/update.rs`, the thread is in `writer_thread.rs`. Each entry's number is the greatest so far plus
//! one, and write transactions never overlap: numbers have no gaps and follow the order of commits.

use std::time::Instant;

use rusqlite::types::Null;
use rusqlite::{Connection, ToSql, params, params_from_iter};
use tokio::sync::mpsc;

use super::checkpoint::Checkpointer;
use super::database::result;
use super::lead;
use super::log_rescue::LogRescue;
use super::open::{self, BUSY_TIMEOUT};
use super::write_error::{Failure, own_fault};
use super::write_lock::WriteLock;
use crate::order::{EventReason, Order, OrderId, Status, Timestamp};
use crate::reconciler_state::ReconcilerState;
use crate::store::Retirement;
use crate::store::queue::Pending;
use crate::store::rows::{WRITE_HEARTBEAT, heartbeat_values};
use crate::store::write::Write;
use crate::store::writer_state::WriterState;
use crate::store::{Creation, OrderChange, Recorded, StoreError, prune, queries, update};

/// The writing connection and its lock.
pub(super) struct Committer {
    pub db: Connection,
    pub lock: WriteLock,
    pub log_rescue: LogRescue,
    pub checkpointer: Checkpointer,
    pub state: WriterState,
    pub retirement: Retirement,
}

impl Committer {
    /// Commits `first` together with all writes that are queued when the write lock is acquired.
    pub fn commit(&mut self, first: Pending, waiting: &mut mpsc::Receiver<Pending>) {
        let wanted_at = Instant::now();
        let begun = self.begin();
        let mut batch = first.with_queued(waiting);
        match begun {
            Ok(()) => {
                let result = self.apply(&mut batch);
                if result.is_ok() {
                    self.state.on_committed(batch.len(), wanted_at.elapsed());
                }
                self.end();
                self.finish(batch, result);
            }
            Err(error) => self.finish(batch, Err(error)),
        }
    }

    /// Waits for the write lock and begins a transaction.
    fn begin(&mut self) -> Result<(), Failure> {
        self.lock.acquire()?;
        self.begin_transaction()
            .inspect_err(|_| self.lock.release())
    }

    fn begin_transaction(&mut self) -> Result<(), Failure> {
        self.log_rescue
            .check_files(&self.db, &mut self.checkpointer)?;
        self.retirement.get().cloned().map_or(Ok(()), Err)?;
        self.db.busy_timeout(BUSY_TIMEOUT)?;
        Ok(self.db.execute_batch("BEGIN IMMEDIATE")?)
    }

    /// Checkpoints if the log is large enough, and releases the write lock.
    fn end(&mut self) {
        self.checkpointer.after_commit(&self.db);
        self.lock.release();
    }

    /// Rolls the transaction back. SQLite has already done so after some failures.
    fn roll_back(&self) -> rusqlite::Result<()> {
        match self.db.is_autocommit() {
            true => Ok(()),
            false => self.db.execute_batch("ROLLBACK"),
        }
    }

    /// Executes the writes and commits. If one of them fails by its own fault, it is removed and
    /// all others are executed again.
    fn apply(&mut self, batch: &mut Vec<Pending>) -> Result<(), Failure> {
        let mut index = 0;
        while index < batch.len() {
            match execute(&self.db, &mut batch[index].write) {
                Ok(()) => index += 1,
                Err(error) => {
                    self.roll_back()?;
                    let error = own_fault(error)?;
                    open::must_still_be_usable(
                        &self.db,
                        &self.log_rescue.file.path,
                        &self.retirement,
                    )?;
                    log::error!("a write was refused by the database: {error}");
                    let refused = batch.remove(index).write;
                    refused.finish(Err(Failure::from(error).to_store_error()));
                    self.db.execute_batch("BEGIN IMMEDIATE")?;
                    index = 0;
                }
            }
        }
        self.db.execute_batch("COMMIT").map_err(|error| {
            if let Err(error) = self.roll_back() {
                log::error!("a failed commit cannot be rolled back: {error}");
            }
            Failure::of_commit(error)
        })
    }

    /// Completes the callers' replies.
    fn finish(&self, batch: Vec<Pending>, result: Result<(), Failure>) {
        match &result {
            Ok(()) => self.state.report_success(),
            // The program ends, and logs the reason.
            Err(_) if self.retirement.initialized() => {}
            Err(failure) => self.state.report_failure(failure.cause.to_string()),
        }
        for pending in batch {
            let result = result.as_ref().copied().map_err(Failure::to_store_error);
            pending.write.finish(result);
        }
    }
}

/// Executes a write inside a transaction. May be called again after a rollback.
fn execute(db: &Connection, write: &mut Write) -> rusqlite::Result<()> {
    let is_deposed = match write.epoch() {
        Some(epoch) => epoch != lead::epoch(db)?,
        None => false,
    };
    match write {
        Write::Record { reply, .. } if is_deposed => reply.refuse(StoreError::Deposed),
        Write::Heartbeat { reply, .. } | Write::ClampTimes { reply, .. } if is_deposed => {
            reply.refuse(StoreError::Deposed);
        }
        Write::Create { id, now, reply } => reply.keep(create(db, id, *now)?),
        Write::Resolve {
            id,
            resolution,
            now,
            reply,
        } => {
            let (answer, failed) = result(update::resolve(db, id, *resolution, *now))?;
            if let Some(seq) = failed {
                journal(db, seq, EventReason::FailedByOperator, *now)?;
            }
            reply.keep(answer);
        }
        Write::Lead { reply } => reply.keep(lead::begin_epoch(db)?),
        Write::Record {
            changes,
            now,
            reply,
            ..
        } => reply.keep(record(db, changes, *now)?),
        Write::Heartbeat {
            heartbeat, reply, ..
        } => reply.keep(write_heartbeat(db, heartbeat)?),
        Write::ClampTimes {
            seqs, now, reply, ..
        } => reply.keep(result(update::clamp(db, seqs, *now))?),
        Write::Prune {
            seqs,
            settled_before,
            now,
            reply,
        } => reply.keep(result(prune::prune(db, seqs, *settled_before, *now))?),
        Write::CheckWritable { now, reply } => reply.keep(check_writable(db, *now)?),
        Write::CheckFiles { reply } => reply.keep(()),
    }
    Ok(())
}

/// Creates an order, unless the id exists.
const INSERT_ORDER: &str = "INSERT INTO orders (id, status, created_at, updated_at) \
                            VALUES (?1, 'CREATED', ?2, ?2) ON CONFLICT (id) DO NOTHING";

fn create(db: &Connection, id: &OrderId, now: Timestamp) -> rusqlite::Result<Creation> {
    let created = db
        .prepare_cached(INSERT_ORDER)?
        .execute(params![id.as_str(), now.0])?;
    if created == 0 {
        let found = result(queries::find(db, id))?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
        return Ok(Creation::Exists(found.order));
    }
    let seq = db.last_insert_rowid();
    journal(db, seq, EventReason::Created, now)?;
    Ok(Creation::Created(Order {
        seq,
        id: id.clone(),
        status: Status::Created,
        created_at: now,
        updated_at: now,
        starts: 0,
        // Attention that concerns all open orders is added by the next read.
        attention: None,
    }))
}

/// Records changes and their journal entries. A change whose order has moved on has no effect.
fn record(db: &Connection, changes: &[OrderChange], now: Timestamp) -> rusqlite::Result<Recorded> {
    let mut recorded = Recorded::default();
    for each in changes {
        if !change(db, each, now)? {
            recorded.conflicts.push(each.seq);
            continue;
        }
        recorded.changed += 1;
        if let Some(reason) = each.transition.event_reason() {
            journal(db, each.seq, reason, now)?;
        }
    }
    Ok(recorded)
}

/// Inserts a journal entry.
const INSERT_ENTRY: &str = "INSERT INTO journal (order_seq, at, reason) VALUES (?1, ?2, ?3)";

/// Appends an entry of an order to the journal.
fn journal(db: &Connection, seq: i64, reason: EventReason, now: Timestamp) -> rusqlite::Result<()> {
    let mut insert = db.prepare_cached(INSERT_ENTRY)?;
    insert
        .execute(params![seq, now.0, reason.as_str()])
        .map(drop)
}

/// Makes a change. Returns true if it took effect.
fn change(db: &Connection, change: &OrderChange, now: Timestamp) -> rusqlite::Result<bool> {
    let OrderChange { seq, transition } = change;
    let values = transition.values(now);
    let mut update = db.prepare_cached(transition.update().sql)?;
    for index in 1..=update.parameter_count() {
        let value: &dyn ToSql = match update.parameter_name(index) {
            Some(":seq") => seq,
            Some(":at") => &values.at,
            Some(":moment") => &values.moment,
            Some(":difference") => &values.difference,
            Some(":answer_status") => &values.answer_status,
            Some(":is_observed") => &values.is_observed,
            Some(":word") => &values.word,
            Some(":detail") => &values.detail,
            Some(":next") => &values.next,
            _ => &Null,
        };
        update.raw_bind_parameter(index, value)?;
    }
    Ok(update.raw_execute()? > 0)
}

fn write_heartbeat(db: &Connection, heartbeat: &ReconcilerState) -> rusqlite::Result<()> {
    let values = heartbeat_values(heartbeat);
    let values = values.map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    let mut update = db.prepare_cached(WRITE_HEARTBEAT)?;
    update.execute(params_from_iter(values)).map(drop)
}

/// Writes a row that is never read.
fn check_writable(db: &Connection, now: Timestamp) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT OR REPLACE INTO write_probe (id, at) VALUES (1, ?1)")?
        .execute([now.0])
        .map(drop)
}

#[cfg(test)]
mod tests;
