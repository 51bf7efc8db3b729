//! Read-only access to a database file, for the operator's commands: nothing is created, migrated
//! or written, and programs may use the file meanwhile.

use std::fs::File;
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};

use super::{check, open};
use crate::store::lines::{BoxError, Lines};
use crate::store::{Finding, OpenError};

/// Pages copied between flushes: 8 MiB, which a disk writes in some milliseconds.
const COPIED_AT_ONCE: i32 = 2_048;

/// A SQLite file, opened read-only.
pub(in crate::store) struct ReadOnlyFile {
    db: Connection,
    path: PathBuf,
}

impl ReadOnlyFile {
    /// Opens an existing file.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let (db, path) = open::for_reading(path)?;
        Ok(Self { db, path })
    }

    /// Returns the absolute path of the database.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns its rows.
    pub fn lines(&self) -> &dyn Lines {
        &self.db
    }

    /// Runs all checks.
    pub fn check(&self, on_finding: &mut dyn FnMut(Finding)) {
        check::check(&self.db, on_finding);
    }

    /// Copies a snapshot of the whole database into the file at `to`, which then needs no other
    /// file beside it. The end of the file is not flushed to disk yet. The first program that
    /// writes to it begins a new history, even if the copy replaces the original file.
    ///
    /// All pages are read in one read transaction: otherwise the copy would start over after each
    /// write of another program, and never end beside one that writes all the time. `VACUUM INTO`
    /// reads one snapshot as well, but takes many times longer, because it rebuilds every index,
    /// and until it ends the write-ahead log can only grow.
    ///
    /// Each piece is flushed before the next. With a single flush at the end, every concurrent
    /// commit would wait for the whole file to reach the disk.
    pub fn copy_to(&self, to: &Path) -> Result<(), BoxError> {
        let mut copy = Connection::open(to)?;
        // The copy is worthless until it is complete and flushed, so nothing is journalled.
        copy.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF")?;
        let snapshot = self.db.unchecked_transaction()?;
        // SQLite begins the transaction at the first read.
        snapshot.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
        let file = File::open(to)?;
        let backup = Backup::new(&self.db, &mut copy)?;
        loop {
            match backup.step(COPIED_AT_ONCE)? {
                StepResult::More => file
                    .sync_data()
                    .map_err(|error| format!("the copy cannot be flushed: {error}"))?,
                StepResult::Done => break,
                _ => return Err("the database is locked by another program".into()),
            }
        }
        drop(backup);
        drop(snapshot);
        copy.close().map_err(|(_, error)| error)?;
        // The copied header says that there is a write-ahead log.
        let copy = Connection::open(to)?;
        copy.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(()))?;
        copy.execute_batch("PRAGMA synchronous = OFF; UPDATE histories SET file = ''")?;
        copy.close().map_err(|(_, error)| error)?;
        Ok(())
    }
}
