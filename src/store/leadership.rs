//! The right to be the one reconciler on a database.
//!
//! A lock keeps others from leading, as long as it is what it seems to be. Should two lead all the same,
//! because the lock file was deleted or a host was cut off, the database tells them apart: each leader
//! counts an epoch up when it takes over, and each write of a leader compares it in its own transaction.
//! So nothing is committed for one that no longer leads, whatever it believes.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{LeaderLock, OpenError, StoreError};

/// The right to be the one reconciler on a database. It ends when this is dropped, or the process
/// ends, however that happens.
#[derive(Debug)]
pub struct Leadership {
    pub(super) epoch: i64,
    lock: Lock,
    is_deposed: AtomicBool,
}

/// What keeps others from leading.
#[derive(Debug)]
pub(super) enum Lock {
    Sqlite(LeaderLock),
}

impl Leadership {
    pub(super) fn new(epoch: i64, lock: Lock) -> Self {
        Self {
            epoch,
            lock,
            is_deposed: AtomicBool::new(false),
        }
    }

    /// Returns why this leadership has ended, or may have, if it did.
    pub fn loss(&self) -> Option<Loss> {
        if self.is_deposed.load(Ordering::Acquire) {
            return Some(Loss::Deposed);
        }
        let Lock::Sqlite(lock) = &self.lock;
        lock.is_lost()
            .then(|| Loss::LockReplaced(lock.path().to_owned()))
    }

    /// Passes on the answer to a write of this leader, and takes note if another one leads.
    pub(super) fn noted<T>(&self, answer: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(StoreError::Deposed) = answer {
            self.is_deposed.store(true, Ordering::Release);
        }
        answer
    }
}

/// The end of a leadership that its holder did not want.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Another reconciler has taken the lead.
    Deposed,
    /// There is another file at the path of the lock, which another reconciler may hold.
    LockReplaced(PathBuf),
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deposed => write!(f, "another reconciler has taken the lead"),
            Self::LockReplaced(path) => {
                write!(f, "{} is not the file that was locked", path.display())
            }
        }
    }
}

/// The lead could not be taken, and no one is known to have it.
#[derive(Debug, thiserror::Error)]
pub enum LeadError {
    /// The lock cannot be made.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The database cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
}
