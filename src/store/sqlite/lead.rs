//! Leader election: a lock file beside the database, and the epoch in it.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::file::{Identity, LEADER_LOCK, lock_error, lock_file, with_suffix};
use crate::store::OpenError;

/// The leader's lock. The operating system releases it when the program ends, for whatever reason.
pub(in crate::store) struct LeaderLock {
    file: File,
    path: PathBuf,
}

impl LeaderLock {
    /// Takes the lock beside the database at `path`, unless another program has it.
    pub fn try_take(path: &Path) -> Result<Option<Self>, OpenError> {
        let file = lock_file(path, LEADER_LOCK)?;
        match file.try_lock() {
            Ok(()) => {
                let path = with_suffix(path, LEADER_LOCK);
                Ok(Some(Self { file, path }).filter(|lock| !lock.is_lost()))
            }
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(lock_error(path, LEADER_LOCK, error)),
        }
    }

    /// Returns true if a different file is at the lock's path, which another reconciler may have
    /// locked. While the path is empty, no other program can have the lock.
    pub fn is_lost(&self) -> bool {
        match (self.file.metadata(), fs::metadata(&self.path)) {
            (Ok(held), Ok(found)) => Identity::from(&held) != Identity::from(&found),
            _ => false,
        }
    }

    /// Returns the path of the lock file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Begins the next epoch, which ends the leadership of any previous leader.
pub(super) fn begin_epoch(db: &Connection) -> rusqlite::Result<i64> {
    db.prepare_cached("UPDATE heartbeat SET epoch = epoch + 1 RETURNING epoch")?
        .query_row([], |row| row.get(0))
}

/// Returns the present epoch.
pub(super) fn epoch(db: &Connection) -> rusqlite::Result<i64> {
    db.prepare_cached("SELECT epoch FROM heartbeat")?
        .query_row([], |row| row.get(0))
}
