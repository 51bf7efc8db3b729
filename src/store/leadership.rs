//! Leadership: the exclusive right to run the reconciler on a database.
//!
//! A lock keeps others from leading while it is intact. If two programs lead all the same,
//! because a file was deleted or a host was cut off, the database distinguishes them: each leader
//! increments an epoch when it takes over, and each of its writes compares the epoch in its own
//! transaction. So a deposed leader cannot commit anything, even if it does not know that it was
//! deposed.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use super::queries::{self, Read};
use super::write::{Reply, Write};
use super::{
    Engine, LeaderLock, OpenError, OrderChange, Recorded, Store, StoreError, call, read, sqlite,
};
use crate::order::{Status, Timestamp};
use crate::reconciler_state::ReconcilerState;

/// The exclusive right to run the reconciler on a database, and the writes that need it. It ends when
/// this value is dropped or the program ends, for whatever reason.
pub struct Leadership {
    epoch: i64,
    lock: Lock,
    store: Store,
    is_deposed: AtomicBool,
}

/// Lock that keeps other programs from leading.
enum Lock {
    Sqlite(LeaderLock),
    #[cfg(feature = "postgres")]
    Postgres(super::postgres::LeaderLock),
}

impl Store {
    /// Takes leadership unless another program has it. From then on a previous leader cannot record
    /// anything.
    pub async fn try_lead(&self) -> Result<Option<Leadership>, LeadError> {
        self.try_lead_once().await.map_err(|error| {
            // The error follows from that.
            let reason = call!(self.engine.retirement()).get();
            reason.cloned().map_or(error, LeadError::Open)
        })
    }

    async fn try_lead_once(&self) -> Result<Option<Leadership>, LeadError> {
        let lock = match &self.engine {
            Engine::Sqlite(engine) => engine.try_lock_lead()?.map(Lock::Sqlite),
            #[cfg(feature = "postgres")]
            Engine::Postgres(engine) => engine.try_lock_lead().await?.map(Lock::Postgres),
        };
        let Some(lock) = lock else {
            return Ok(None);
        };
        let epoch = self.queue().write(|reply| Write::Lead { reply }).await?;
        Ok(Some(Leadership {
            epoch,
            lock,
            store: self.clone(),
            is_deposed: AtomicBool::new(false),
        }))
    }
}

impl Leadership {
    /// Returns the reason why this leadership has ended, or may have; `None` otherwise.
    pub fn loss(&self) -> Option<Loss> {
        if self.is_deposed.load(Ordering::Acquire) {
            return Some(Loss::Deposed);
        }
        match &self.lock {
            Lock::Sqlite(lock) => lock
                .is_lost()
                .then(|| Loss::LockReplaced(lock.path().to_owned())),
            #[cfg(feature = "postgres")]
            Lock::Postgres(lock) => lock.is_lost().then_some(Loss::ConnectionLost),
        }
    }

    /// Records the reconciler's changes in one transaction. A change whose order is no longer in
    /// the expected state has no effect and is counted as a conflict.
    ///
    /// # Errors
    /// [`StoreError::Deposed`] if another reconciler has become leader.
    pub async fn record(
        &self,
        mut changes: Vec<OrderChange>,
        now: Timestamp,
    ) -> Result<Recorded, StoreError> {
        // Key order: neighbours share pages. The sort is stable, so an adoption stays before its
        // outcome.
        changes.sort_by_key(|change| change.seq);
        let write = |reply| Write::Record {
            epoch: self.epoch,
            changes,
            now,
            reply,
        };
        self.write(write).await
    }

    /// Replaces the reconciler's heartbeat.
    pub async fn write_heartbeat(&self, heartbeat: ReconcilerState) -> Result<(), StoreError> {
        let write = |reply| Write::Heartbeat {
            epoch: self.epoch,
            heartbeat: Box::new(heartbeat),
            reply,
        };
        self.write(write).await
    }

    /// Clamps times of open orders that lie ahead of the clock: past events to `now`, and the next
    /// attempt to at most the longest backoff from `now`. Works in batches, so that other writers
    /// are not blocked for long.
    pub async fn clamp_times(&self, now: Timestamp) -> Result<(), StoreError> {
        let store = &self.store;
        for status in [Status::Created, Status::Processing] {
            let mut after = 0;
            loop {
                let seqs = read!(store, Statement, with_times_ahead(status, after, now))?;
                let Some(last) = seqs.last() else {
                    break;
                };
                after = *last;
                let write = |reply| Write::ClampTimes {
                    epoch: self.epoch,
                    seqs,
                    now,
                    reply,
                };
                self.write(write).await?;
            }
        }
        Ok(())
    }

    /// Executes a write of this leader, and notes whether it was deposed.
    async fn write<T>(&self, write: impl FnOnce(Reply<T>) -> Write) -> Result<T, StoreError> {
        let answer = self.store.queue().write(write).await;
        if let Err(StoreError::Deposed) = answer {
            self.is_deposed.store(true, Ordering::Release);
        }
        answer
    }
}

/// Involuntary end of a leadership.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Loss {
    /// Another reconciler has become leader, or a copy has begun the last part of a move.
    #[error(
        "another reconciler has taken the lead, or the orders are being moved to another database"
    )]
    Deposed,
    /// A different file is at the lock's path, which another reconciler may have locked.
    #[error("{} is not the file that was locked", .0.display())]
    LockReplaced(PathBuf),
    /// The connection that held the lock has ended.
    #[error("the connection that held the lock has ended")]
    ConnectionLost,
}

/// Failures to take leadership, other than that another program leads.
#[derive(Debug, thiserror::Error)]
pub enum LeadError {
    /// The lock file cannot be created.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The database cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
}
