//! The rescue of the write-ahead log once it, its index or the database was moved, removed or replaced.

use rusqlite::Connection;

use super::checkpoint::Checkpointer;
use super::file::{FilesChanged, OpenedFile};

/// The open files of a database, whose log is rescued once if their paths lead elsewhere.
pub(super) struct LogRescue {
    pub file: OpenedFile,
    /// True if the log's contents are in the database; `None` unless a file was moved, removed or
    /// replaced.
    is_rescued: Option<bool>,
}

impl LogRescue {
    pub fn new(file: OpenedFile) -> Self {
        Self {
            file,
            is_rescued: None,
        }
    }

    /// Checks that the paths still lead to the open files. If not, copies the log into the database
    /// through the descriptors that are still open, because the next program finds the database
    /// alone. No program of ours opens the files meanwhile: the write lock is held.
    pub fn check_files(
        &mut self,
        db: &Connection,
        checkpointer: &mut Checkpointer,
    ) -> Result<(), FilesChanged> {
        let checked = self.file.check();
        if let Err(FilesChanged::Moved(path)) = &checked {
            if self.is_rescued != Some(true) && self.file.may_be_checkpointed() {
                let is_rescued = checkpointer.rescue(db);
                // A long read blocks it, and each write tries again.
                if self.is_rescued.replace(is_rescued) != Some(is_rescued) {
                    log::warn!(
                        "{} was moved, removed or replaced; write-ahead log checkpointed \
                         completely={is_rescued}",
                        path.display()
                    );
                }
            }
        } else {
            self.is_rescued = None;
        }
        checked
    }
}
