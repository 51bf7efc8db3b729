//! Reasons why the file of a database cannot be used.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rusqlite::ErrorCode;

use crate::store::lines::BoxError;

/// Maximum wait for a database that another program has locked while this one starts.
pub(super) const START_TIMEOUT: Duration = Duration::from_secs(5);

/// Advice about a damaged file. Its log may hold orders that no backup has.
pub(super) const DAMAGED: &str = "the file is damaged: stop the programs, keep a copy of it and its -wal, and restore the newest \
     backup that `check` finds sound; then look after the disk";

/// Adds what to do to an error that tells of damage.
pub(super) fn with_advice(error: rusqlite::Error) -> BoxError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            format!("{error}; {DAMAGED}").into()
        }
        _ => Box::new(error),
    }
}

/// Reasons why the file of a database cannot be used. Each completes a sentence that begins with its path.
#[derive(Debug, thiserror::Error)]
pub(in crate::store) enum FileError {
    /// The folder does not exist, or is not a folder.
    #[error("the folder {} cannot be used", .0.display())]
    Folder(PathBuf, #[source] io::Error),
    #[error("there is no such database; name the one that the service uses")]
    Missing,
    #[error("is empty: it has never been a database; name the one that the service uses")]
    Empty,
    #[error("is not a file; name the file of a database")]
    NotAFile,
    /// The path is that of the lock file.
    #[error(
        "cannot be used: the lock file beside the database cannot be written; check the permissions of its \
         folder, and that it has the database's owner"
    )]
    LockFile(#[source] io::Error),
    /// Another program has locked the database for too long while this one starts.
    #[error(
        "is locked by another program, for {START_TIMEOUT:?} at least; end that program, or wait for it, and \
         start again"
    )]
    Locked,
    #[error("is not an SQLite database; name another file")]
    NotADatabase,
    /// Pages are missing, or their contents are not what SQLite wrote.
    #[error("{DAMAGED}")]
    Damaged,
    #[error("is the SQLite database of another program; name another file")]
    Foreign,
    /// No release has written this format.
    #[error(
        "has format {0}, from before version 0.2.0, and cannot be read by this version; go on with the program \
         that wrote it, or move the file away to begin with an empty one"
    )]
    Older(i64),
    #[error(
        "was written by a newer version of this program; use that one, or a backup from before"
    )]
    Newer,
    #[error(
        "cannot be written; check that the file, its -wal and -shm, and its folder belong to the user of the \
         programs"
    )]
    ReadOnly,
    /// SQLite reads a database through its log, even if that is empty.
    #[error(
        "cannot be read: while no program has it open, that takes permission to create its -wal and -shm for \
         its owner; run the command as its owner, or on a copy in another folder"
    )]
    Unreadable,
    #[error(
        "has several names, which are hard links; remove the others, because programs that use them would not \
         see each other's orders"
    )]
    Linked,
    #[error(
        "is a mount of its own; mount its folder instead, because the database has other files beside it"
    )]
    Mounted,
    #[error("the disk is full")]
    Full,
    #[error("the file system has no inodes left, which `df -i` shows; remove files")]
    Inodes,
    /// The process, or the system, has reached its limit of open files.
    #[error(
        "no more files can be opened; raise the limit, which is `ulimit -n`, or LimitNOFILE= in a unit"
    )]
    Descriptors(#[source] io::Error),
    /// A pragma did not take effect.
    #[error(
        "SQLite has {pragma} = {found} where {wanted} is needed; is the file system a network one?"
    )]
    Pragma {
        pragma: &'static str,
        found: String,
        wanted: &'static str,
    },
    /// The file is only read, and so not migrated.
    #[error("is of an earlier format; start the service on a copy of it once, and use that")]
    OldFormat,
    /// Any other error of SQLite.
    #[error("cannot be used")]
    Other(#[source] BoxError),
}

#[cfg(test)]
mod tests {
    use rusqlite::{Error, ffi};

    use super::*;

    #[test]
    fn an_error_that_tells_of_damage_says_what_to_do() {
        for (code, is_damage) in [
            (ffi::SQLITE_CORRUPT, true),
            (ffi::SQLITE_NOTADB, true),
            (ffi::SQLITE_BUSY, false),
        ] {
            let error = Error::SqliteFailure(ffi::Error::new(code), None);
            let text = with_advice(error).to_string();
            assert_eq!(
                text.contains("restore the newest backup"),
                is_damage,
                "{text}"
            );
        }
    }
}
