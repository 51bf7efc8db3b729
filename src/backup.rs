//! The backup: a whole copy of the database in one file, taken while all is running.
//!
//! A file gets its final name when it is complete, checked and flushed, and not before: a backup
//! that exists can be relied on. How pages are copied is in `store/sqlite/read_only.rs`.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tempfile::TempPath;

use crate::store::{
    CopyError, DatabaseSummary, DatabaseUrl, Finding, OpenError, ReadOnlyDatabase, StoreError,
    lock_files, log_files,
};

/// A backup that was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backup {
    /// Its absolute path.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// What is in it.
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

/// Why no backup was taken. Nothing is left of the attempt.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The file to write is the database, or one that belongs to it.
    #[error("{}: is the database itself, or belongs to it; name another file", .0.display())]
    OwnFile(PathBuf),
    /// There is such a file.
    #[error("{}: exists; name another file, or say --replace", .0.display())]
    Exists(PathBuf),
    /// A log that SQLite would take for the backup's.
    #[error("{}: exists, and SQLite would read it together with the backup; move it away", .0.display())]
    Leftover(PathBuf),
    /// The database cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The copy could not be made: the disk is full, the database is damaged, ….
    #[error("the copy could not be made")]
    Copy(#[from] CopyError),
    /// The copy could not be read back.
    #[error("the copy could not be read back")]
    ReadBack(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// What was copied is not sound.
    #[error("the copy has {count} faults and was not kept; the first: {first}")]
    Unsound {
        /// How many findings there are.
        count: usize,
        /// The first one.
        first: Box<Finding>,
    },
    /// The file, or its folder, cannot be written.
    #[error("{path}: cannot be written", path = .path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Copies the database into a new file at `to`; in the place of one that exists only if `replace`
/// says so. If this is dropped midway, what was written is removed.
///
/// # Errors
/// Whatever the reason, there is no file at `to` that was not there before.
pub async fn take(database: &DatabaseUrl, to: &Path, replace: bool) -> Result<Backup, BackupError> {
    let source = ReadOnlyDatabase::open(database)?;
    let target = Target::new(source.path(), to, replace)?;
    let part = target.part(source.path())?;
    let copy = part.path.to_path_buf();
    let copied = tokio::task::spawn_blocking(move || -> Result<_, BackupError> {
        source.copy_to(&copy)?;
        // From here on the database is left alone: it is the copy that is checked.
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

/// Where a backup goes.
struct Target {
    folder: PathBuf,
    name: OsString,
    replace: bool,
}

impl Target {
    /// Finds everything that speaks against the path before anything is done.
    fn new(database: &Path, to: &Path, replace: bool) -> Result<Self, BackupError> {
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
            folder,
            name: name.to_owned(),
            replace,
        };
        let path = target.path();
        if is_own(database, &path) {
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

    /// A file that is not the backup yet, in the same folder, readable by those who may read the
    /// database.
    fn part(&self, database: &Path) -> Result<Part, BackupError> {
        let made = tempfile::Builder::new()
            .prefix(&self.name)
            .suffix(".part")
            .tempfile_in(&self.folder)
            .and_then(|file| {
                let permissions = fs::metadata(database)?.permissions();
                file.as_file().set_permissions(permissions)?;
                Ok(file.into_temp_path())
            });
        let path = made.map_err(|error| write_error(&self.folder, error))?;
        let logs = Logs(path.to_path_buf());
        Ok(Part { path, _logs: logs })
    }

    /// Gives the finished file its name, durably.
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

/// A backup that is not finished. Removed when dropped.
struct Part {
    path: TempPath,
    _logs: Logs,
}

/// What SQLite puts beside the file at this path while it is written. Removed when dropped.
struct Logs(PathBuf);

impl Drop for Logs {
    fn drop(&mut self) {
        for log in log_files(&self.0) {
            // Mostly there is none.
            let _ = fs::remove_file(log);
        }
    }
}

/// Returns whether a path leads to the database, or to a file that belongs to it.
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

/// Checks a copy, and tells what is in it.
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
    copy.contents()
        .map_err(|error: StoreError| BackupError::ReadBack(error.into()))
}

fn write_error(path: &Path, source: io::Error) -> BackupError {
    BackupError::Write {
        path: path.to_owned(),
        source,
    }
}
