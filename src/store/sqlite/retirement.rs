//! Detects that a file must not be used any longer by a program that has it open.

use std::path::PathBuf;

use rusqlite::Connection;

use super::open;
use crate::store::OpenError;
use crate::store::retirement::Retirement;

/// The signal that a file must not be used any longer, and the check that gives it.
#[derive(Clone)]
pub(super) struct FileRetirement {
    path: PathBuf,
    pub signal: Retirement,
}

impl FileRetirement {
    pub fn new(path: PathBuf) -> Self {
        let signal = Retirement::default();
        Self { path, signal }
    }

    /// Checks that the signal was not given, which takes no time.
    pub fn must_not_be_retired(&self) -> Result<(), OpenError> {
        self.signal.reason().map_or(Ok(()), Err)
    }

    /// Checks that this program may go on using the file. Gives the signal otherwise.
    pub fn check(&self, db: &Connection) -> Result<(), OpenError> {
        open::must_still_be_usable(db, &self.path)
            .inspect_err(|reason| self.signal.retire(reason.clone()))
    }
}
