//! Backup: a complete copy of the database in one file, taken while the programs run.
//!
//! A file gets its final name only once it is complete, checked and flushed, so every backup that
//! exists is valid. A killed backup leaves a partial one, which the next into the same folder removes.
//! The copying of pages is in `store/sqlite/read_only.rs`, that of rows in `store/copy.rs`.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use tempfile::TempPath;

use super::copy::{TransferError, copy_into_file};
use super::sqlite::{ReadOnlyFile, lock_files, log_files};
use super::{DatabaseSummary, DatabaseUrl, Finding, OpenError, ReadOnlyDatabase, StoreError};

/// End of the name of a partial backup.
const PART: &str = ".order-service.part";

/// Interval between two attempts to lock the folder of a backup.
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// Number of such attempts: another backup has the lock for itself only while it removes files. The
/// wait is bounded, because a script may run the whole backup under a lock of the folder, as with
/// `flock(1)`.
const LOCK_TRIES: u32 = 20;

/// A completed backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backup {
    /// Absolute path.
    pub path: PathBuf,
    /// Size in bytes.
    pub bytes: u64,
    /// Summary of its contents.
    pub contents: DatabaseSummary,
}

impl fmt::Display for Backup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  {:<8} {}", "backup", self.path.display())?;
        writeln!(f, "  {:<8} {} bytes", "size", self.bytes)?;
        write!(f, "{}", self.contents)?;
        writeln!(f, "  {:<8} ok", "checked")
    }
}

/// Reasons why a backup failed. A failed backup leaves no files behind.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The target is the database, or a file that belongs to it.
    #[error("{}: is the database itself, or belongs to it; name another file", .0.display())]
    OwnFile(PathBuf),
    /// The target exists.
    #[error("{}: exists; name another file, or add --replace", .0.display())]
    Exists(PathBuf),
    /// A log exists beside the target, which SQLite would read as part of the backup.
    #[error("{}: exists, and SQLite would read it together with the backup; move it away", .0.display())]
    Leftover(PathBuf),
    /// The database cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The copy could not be made: for example, the disk is full or the database is damaged.
    #[error("the copy could not be made")]
    Copy(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The copy could not be read back.
    #[error("the copy could not be read back")]
    ReadBack(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The integrity check of the copy found faults.
    #[error("the copy is not sound, and was not kept; faults: {count}, the first: {first}")]
    Unsound {
        /// Number of findings.
        count: usize,
        /// First finding.
        first: Box<Finding>,
    },
    /// The file, or its folder, is not writable.
    #[error("{path}: cannot be written", path = .path.display())]
    Write {
        /// Path of the file or folder.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

/// Copies the database into a new file at `to`. An existing file is replaced only if `replace` is
/// set. If the future is dropped midway, the partial file is removed.
///
/// # Errors
/// No new file is at `to` after an error.
pub async fn back_up(
    database: &DatabaseUrl,
    to: &Path,
    replace: bool,
) -> Result<Backup, BackupError> {
    // The pages of a file are copied, and the rows of a server's database.
    let file = match database {
        DatabaseUrl::Sqlite(path) => Some(ReadOnlyFile::open(path)?),
        #[cfg(feature = "postgres")]
        DatabaseUrl::Postgres(_) => None,
    };
    let path = file.as_ref().map(ReadOnlyFile::path);
    let target = Target::new(path, to, replace)?;
    let part = target.part(path)?;
    let copy = part.path.to_path_buf();
    let database = database.clone();
    let copied = tokio::task::spawn_blocking(move || -> Result<_, BackupError> {
        match &file {
            // Its sources would repeat the message.
            Some(file) => file
                .copy_to(&copy)
                .map_err(|error| BackupError::Copy(error.to_string().into()))?,
            None => copy_into_file(&database, &copy).map_err(|error| match error {
                TransferError::Open(error) => error.into(),
                error => BackupError::Copy(error.into()),
            })?,
        }
        // From here on only the copy is read, so that the check does not load the database.
        let contents = verify(&copy)?;
        let file = File::open(&copy).and_then(|file| {
            file.sync_all()?;
            file.metadata()
        });
        let bytes = file.map_err(|error| write_error(&copy, error))?.len();
        Ok((contents, bytes))
    });
    let (contents, bytes) = match copied.await {
        Ok(copied) => copied?,
        Err(panic) => return Err(BackupError::ReadBack(panic.into())),
    };
    target.name(part)?;
    Ok(Backup {
        path: target.path(),
        bytes,
        contents,
    })
}

/// Target of a backup.
struct Target {
    folder: PathBuf,
    name: OsString,
    replace: bool,
    _lock: Option<File>,
}

impl Target {
    /// Checks the path before anything is written.
    fn new(database: Option<&Path>, to: &Path, replace: bool) -> Result<Self, BackupError> {
        let folder = match to.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let folder = folder
            .canonicalize()
            .map_err(|error| write_error(folder, error))?;
        let Some(name) = to.file_name() else {
            return Err(write_error(to, io::ErrorKind::IsADirectory.into()));
        };
        let target = Self {
            _lock: remove_abandoned(&folder),
            folder,
            name: name.to_owned(),
            replace,
        };
        let path = target.path();
        if database.is_some_and(|database| is_own(database, &path)) {
            return Err(BackupError::OwnFile(path));
        }
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() => {
                return Err(write_error(&path, io::ErrorKind::IsADirectory.into()));
            }
            Ok(_) if !replace => return Err(BackupError::Exists(path)),
            _ => {}
        }
        for log in log_files(&path) {
            if fs::metadata(&log).is_ok_and(|meta| meta.len() > 0) {
                return Err(BackupError::Leftover(log));
            }
        }
        Ok(target)
    }

    fn path(&self) -> PathBuf {
        self.folder.join(&self.name)
    }

    /// Creates a partial backup in the same folder, readable by those who may read the database; by
    /// its owner alone if that is not a file.
    fn part(&self, database: Option<&Path>) -> Result<Part, BackupError> {
        let made = tempfile::Builder::new()
            .prefix(&self.name)
            .suffix(PART)
            .tempfile_in(&self.folder)
            .and_then(|file| {
                if let Some(database) = database {
                    let permissions = fs::metadata(database)?.permissions();
                    file.as_file().set_permissions(permissions)?;
                }
                Ok(file.into_temp_path())
            });
        let path = made.map_err(|error| write_error(&self.folder, error))?;
        let logs = Logs(path.to_path_buf());
        Ok(Part { path, _logs: logs })
    }

    /// Renames the finished file to its final name, durably.
    fn name(&self, part: Part) -> Result<(), BackupError> {
        let path = self.path();
        let Part { path: part, _logs } = part;
        let named = if self.replace {
            part.persist(&path)
        } else {
            part.persist_noclobber(&path)
        };
        named.map_err(|error| match error.error.kind() {
            io::ErrorKind::AlreadyExists => BackupError::Exists(path.clone()),
            _ => write_error(&path, error.error),
        })?;
        File::open(&self.folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|error| write_error(&self.folder, error))
    }
}

/// Removes the partial backups in a folder unless another backup is being made there, which has the
/// folder locked. Returns a lock that says so of this one. A partial backup itself cannot be locked:
/// over NFS that would lock out SQLite.
fn remove_abandoned(folder: &Path) -> Option<File> {
    let lock = File::open(folder).ok()?;
    if lock.try_lock().is_ok() {
        for entry in fs::read_dir(folder).ok()?.flatten() {
            let path = entry.path();
            if path.to_string_lossy().ends_with(PART) {
                log::info!("removing the partial backup {}", path.display());
                // What cannot be removed hinders nothing.
                let _ = fs::remove_file(&path);
                drop(Logs(path));
            }
        }
    }
    for _ in 0..LOCK_TRIES {
        match lock.try_lock_shared() {
            Ok(()) => return Some(lock),
            Err(TryLockError::WouldBlock) => thread::sleep(LOCK_RETRY_INTERVAL),
            Err(TryLockError::Error(_)) => return None,
        }
    }
    None
}

/// A partial backup. Removed on drop.
struct Part {
    path: TempPath,
    _logs: Logs,
}

/// Files that SQLite keeps beside the file at this path while it is open. Removed on drop.
struct Logs(PathBuf);

impl Drop for Logs {
    fn drop(&mut self) {
        for log in log_files(&self.0) {
            // Usually there is none.
            let _ = fs::remove_file(log);
        }
    }
}

/// Returns true if a path refers to the database, or to a file that belongs to it.
fn is_own(database: &Path, path: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino()));
    let is_same_file = match (identity(database), identity(path)) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    };
    is_same_file
        || path == database
        || log_files(database).iter().any(|log| path == log)
        || lock_files(database).iter().any(|lock| path == lock)
}

/// Checks a copy, and returns a summary of its contents.
fn verify(copy: &Path) -> Result<DatabaseSummary, BackupError> {
    let copy = ReadOnlyDatabase::open(&DatabaseUrl::from(copy.to_owned()))
        .map_err(|error| BackupError::ReadBack(error.into()))?;
    let mut count = 0;
    let mut first = None;
    copy.check(|finding| {
        count += 1;
        first.get_or_insert(finding);
    });
    if let Some(first) = first {
        let first = Box::new(first);
        return Err(BackupError::Unsound { count, first });
    }
    copy.summary()
        .map_err(|error: StoreError| BackupError::ReadBack(error.into()))
}

fn write_error(path: &Path, source: io::Error) -> BackupError {
    BackupError::Write {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_waits_while_another_removes_partial_backups() {
        let folder = tempfile::tempdir().unwrap();
        let other = File::open(folder.path()).unwrap();
        other.lock().unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| remove_abandoned(folder.path()));
            thread::sleep(2 * LOCK_RETRY_INTERVAL);
            other.lock_shared().unwrap();
            assert!(waiting.join().unwrap().is_some(), "it has the lock");
        });
    }
}
