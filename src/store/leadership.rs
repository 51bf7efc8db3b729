//! Leadership: the exclusive right to run the reconciler on a database.
//!
//! A lock keeps others from leading while it is intact. If two programs lead all the same,
//! because a file was deleted or a host was cut off, the database distinguishes them: each leader
//! increments an epoch when it takes over, and each of its writes compares the epoch in its own
//! transaction. So a deposed leader cannot commit anything, even if it does not know that it was
//! deposed.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{LeaderLock, OpenError, StoreError};

/// The exclusive right to run the reconciler on a database. It ends when this value is dropped or
/// the program ends, for whatever reason.
#[derive(Debug)]
pub struct Leadership {
    pub(super) epoch: i64,
    lock: Lock,
    is_deposed: AtomicBool,
}

/// Lock that keeps other programs from leading.
#[derive(Debug)]
pub(super) enum Lock {
    Sqlite(LeaderLock),
    #[cfg(feature = "postgres")]
    Postgres(super::postgres::LeaderLock),
}

impl Leadership {
    pub(super) fn new(epoch: i64, lock: Lock) -> Self {
        Self {
            epoch,
            lock,
            is_deposed: AtomicBool::new(false),
        }
    }

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

    /// Returns the result of a write of this leader unchanged, after noting whether it was deposed.
    pub(super) fn note_loss<T>(&self, answer: Result<T, StoreError>) -> Result<T, StoreError> {
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
