//! Reasons why the file of a database cannot be used.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::store::relocation::Relocation;

/// Maximum wait for a database that another program has locked while this one starts.
pub(super) const START_TIMEOUT: Duration = Duration::from_secs(5);

/// Reasons why the file of a database cannot be used, each one line with the path and what to do.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The folder does not exist, or is not a folder.
    #[error("{path}: the folder {folder} cannot be used", path = .path.display(), folder = .folder.display())]
    Folder {
        /// The database.
        path: PathBuf,
        /// Its folder.
        folder: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The file does not exist.
    #[error("{}: there is no such database; name the one that the service uses", .0.display())]
    Missing(PathBuf),
    /// The path leads to something other than a file.
    #[error("{}: is not a file; name the file of a database", .0.display())]
    NotAFile(PathBuf),
    /// A lock file beside the database cannot be created.
    #[error("{path}: cannot be used: the lock file beside the database cannot be written; check the permissions of its folder, and that it has the database's owner", path = .path.display())]
    LockFile {
        /// The lock file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// Another program has locked the database for too long while this one starts.
    #[error("{}: is locked by another program, for {START_TIMEOUT:?} at least; end that program, or wait for it, and start again", .0.display())]
    Locked(PathBuf),
    /// The file is not an SQLite database.
    #[error("{}: is not an SQLite database; name another file", .0.display())]
    NotADatabase(PathBuf),
    /// The file is the SQLite database of another program.
    #[error("{}: is the SQLite database of another program; name another file", .0.display())]
    Foreign(PathBuf),
    /// The file has a format that no release has written.
    #[error("{path}: has format {format}, from before version 0.2.0, and cannot be read by this version; go on with the program that wrote it, or move the file away to begin with an empty one", path = .path.display())]
    Older {
        /// The database.
        path: PathBuf,
        /// Its format.
        format: i64,
    },
    /// The file was migrated by a newer version of this program.
    #[error("{}: was written by a newer version of this program; use that one, or a backup from before", .0.display())]
    Newer(PathBuf),
    /// The file can be read, but not written.
    #[error("{}: cannot be written; check the permissions of the file and of its folder", .0.display())]
    ReadOnly(PathBuf),
    /// The file has more than one hard link.
    #[error("{}: has several names, which are hard links; remove the others, because programs that use them would not see each other's orders", .0.display())]
    Linked(PathBuf),
    /// The file is a mount of its own, without the files beside it.
    #[error("{}: is a mount of its own; mount its folder instead, because the database has other files beside it", .0.display())]
    Mounted(PathBuf),
    /// The disk is full.
    #[error("{}: the disk is full", .0.display())]
    Full(PathBuf),
    /// The file system has no free inodes.
    #[error("{}: the file system has no inodes left, which `df -i` shows; remove files", .0.display())]
    Inodes(PathBuf),
    /// The process, or the system, has reached its limit of open files.
    #[error("{path}: no more files can be opened; raise the limit, which is `ulimit -n`, or LimitNOFILE= in a unit", path = .path.display())]
    Descriptors {
        /// The database, or a file beside it.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
    /// A pragma did not take effect.
    #[error("{path}: SQLite has {pragma} = {found} where {wanted} is needed; is the file system a network one?", path = .path.display())]
    Pragma {
        /// The database.
        path: PathBuf,
        /// The pragma.
        pragma: &'static str,
        /// Value that it reads back as.
        found: String,
        /// Required value.
        wanted: &'static str,
    },
    /// The orders are in another database.
    #[error("{path}: {relocation}", path = .path.display())]
    Relocated {
        /// The database.
        path: PathBuf,
        /// Where they are.
        relocation: Relocation,
    },
    /// A backup of an earlier format, which is not changed.
    #[error("{}: is a backup of an earlier format; start the service on a copy of it once, and copy that", .0.display())]
    OldBackup(PathBuf),
    /// Any other error of SQLite.
    #[error("{path}: cannot be used", path = .path.display())]
    Other {
        /// The database.
        path: PathBuf,
        /// Error of SQLite.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
