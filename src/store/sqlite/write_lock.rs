//! The lock that the writers of all programs take in turn.
//!
//! Programs queue for it through two advisory locks beside the database, because SQLite's own busy
//! handler sleeps between attempts and can starve a program.

use std::fs::File;
use std::io;
use std::path::Path;

use super::file::{QUEUE_LOCK, WRITE_LOCK, lock_file};
use crate::store::OpenError;

/// The write lock of a database, and the lock of the program that is next.
pub(super) struct WriteLock {
    queue: File,
    write: File,
}

/// The write lock while it is held, or the lock of the program that is next. Released on drop.
struct LockGuard<'a>(&'a File);

impl Drop for LockGuard<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.unlock() {
            log::error!("the write lock cannot be released: {error}");
        }
    }
}

impl WriteLock {
    /// Opens the locks of the database at `path`, without taking them.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Ok(Self {
            queue: lock_file(path, QUEUE_LOCK)?,
            write: lock_file(path, WRITE_LOCK)?,
        })
    }

    /// Waits for the write lock.
    pub fn acquire(&self) -> io::Result<()> {
        // The program that waits for the write lock holds the queue lock, so the program that has
        // just written cannot overtake it.
        self.queue.lock()?;
        let _guard = LockGuard(&self.queue);
        self.write.lock()
    }

    /// Releases the write lock.
    pub fn release(&self) {
        drop(LockGuard(&self.write));
    }
}
