//! Who leads: a lock beside the database, and the epoch in it.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::file::{Identity, LEADER_LOCK, beside, lock_file};
use crate::store::OpenError;

/// The lock of the reconciler that leads. The operating system takes it back when the process ends,
/// however that happens.
#[derive(Debug)]
pub(in crate::store) struct LeaderLock {
    file: File,
    path: PathBuf,
}

impl LeaderLock {
    /// Takes the lead on the database at `path`, if no one else has it.
    pub fn try_take(path: &Path) -> Result<Option<Self>, OpenError> {
        let file = lock_file(path, LEADER_LOCK)?;
        match file.try_lock() {
            Ok(()) => {
                let path = beside(path, LEADER_LOCK);
                Ok(Some(Self { file, path }).filter(|lock| !lock.is_lost()))
            }
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(OpenError::LockFile {
                path: beside(path, LEADER_LOCK),
                source,
            }),
        }
    }

    /// Returns whether there is another file at the path of the lock, which another reconciler may hold.
    /// While there is none, no one else can hold it.
    pub fn is_lost(&self) -> bool {
        match (self.file.metadata(), fs::metadata(&self.path)) {
            (Ok(held), Ok(found)) => Identity::from(&held) != Identity::from(&found),
            _ => false,
        }
    }

    /// The path of the lock.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Begins the next epoch: another leader has taken over.
pub(super) fn begin_epoch(db: &Connection) -> rusqlite::Result<i64> {
    db.prepare_cached("UPDATE heartbeat SET epoch = epoch + 1 RETURNING epoch")?
        .query_row([], |row| row.get(0))
}

/// Returns whether an epoch is the present one: no other leader has taken over since.
pub(super) fn is_present(db: &Connection, epoch: i64) -> rusqlite::Result<bool> {
    let present: i64 = db
        .prepare_cached("SELECT epoch FROM heartbeat")?
        .query_row([], |row| row.get(0))?;
    Ok(present == epoch)
}
