//! Files of a database: their names, permissions and identities, and the lock files.
//!
//! Two programs see each other's orders only if both have the same three files open: the database,
//! its write-ahead log and the index of that log. SQLite finds them by name, so a second name for
//! one of them, or a different file under its name, loses orders.

use std::fmt;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::ErrorCode;
use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statvfs, statx};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::open_error::FileError;
use crate::store::lines::BoxError;
use crate::store::{OpenError, OpenReason};

/// Permissions of a new database: its group may read it, others may not. The umask may remove some.
const DATABASE_MODE: u32 = 0o640;

/// Permissions of a lock file that only its owner may open.
const LOCK_MODE: u32 = 0o600;

/// Permissions of a lock file beside a database that its group may write.
const LOCK_MODE_SHARED: u32 = 0o660;

/// Permission bit: the file's group may write it.
const GROUP_WRITES: u32 = 0o020;

/// Suffixes of the files that SQLite has open: the database, its write-ahead log and the log's
/// index.
const OPENED: [&str; 3] = ["", "-wal", "-shm"];

/// Number of files that a store opens, with some margin. If this many cannot be opened, the limit
/// of open files is the cause of a failure.
const OPEN_FILES: usize = 64;

/// Suffixes of all files that SQLite may keep beside a database.
const LOGS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// Lock file of the queue for the write lock: its holder is the next to write.
pub(super) const QUEUE_LOCK: &str = "-turn";

/// Lock file that a program locks while it writes, and while it sets up the database.
pub(super) const WRITE_LOCK: &str = "-write";

/// Lock file that the leader locks.
pub(super) const LEADER_LOCK: &str = "-leader";

/// Returns the files that SQLite may keep beside a database at this path.
pub(in crate::store) fn log_files(database: &Path) -> [PathBuf; 3] {
    LOGS.map(|suffix| with_suffix(database, suffix))
}

/// Returns the lock files beside a database at this path.
pub(in crate::store) fn lock_files(database: &Path) -> [PathBuf; 3] {
    [QUEUE_LOCK, WRITE_LOCK, LEADER_LOCK].map(|suffix| with_suffix(database, suffix))
}

/// An existing database: its path, and the identities of its files when they were opened.
#[derive(Clone, Debug)]
pub(super) struct OpenedFile {
    pub path: PathBuf,
    opened: [(PathBuf, Identity); 3],
}

/// Device, inode and creation time of a file. Inode numbers are often reused for the next new file,
/// so the creation time is needed; some file systems have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    born: Duration,
}

impl Identity {
    pub fn of(path: &Path) -> io::Result<Self> {
        Ok(Self::from(&fs::metadata(path)?))
    }
}

impl From<&fs::Metadata> for Identity {
    fn from(file: &fs::Metadata) -> Self {
        let born = file.created().ok();
        let born = born.and_then(|born| born.duration_since(std::time::UNIX_EPOCH).ok());
        Self {
            device: file.dev(),
            inode: file.ino(),
            born: born.unwrap_or_default(),
        }
    }
}

/// Writes the form that is stored in the database.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let born = self.born.as_nanos();
        write!(f, "{}-{}-{born}", self.device, self.inode)
    }
}

/// Reasons why the files of a database must not be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum FilesChanged {
    /// The path of one of the files no longer leads to the file that was opened.
    #[error("{} is no longer the file that was opened; put it back, or restart the program", .0.display())]
    Moved(PathBuf),
    /// The database has a second hard link.
    #[error("{} has got a second name, a hard link; remove that", .0.display())]
    Linked(PathBuf),
}

impl OpenedFile {
    /// Records the identities of the log and its index, which SQLite must have open, and of the
    /// database.
    pub fn new(path: PathBuf, database: Identity) -> io::Result<Self> {
        let [_, log, index] = OPENED.map(|suffix| with_suffix(&path, suffix));
        let (of_log, of_index) = (Identity::of(&log)?, Identity::of(&index)?);
        Ok(Self {
            opened: [(path.clone(), database), (log, of_log), (index, of_index)],
            path,
        })
    }

    /// Returns the identity of the database.
    pub fn database(&self) -> Identity {
        self.opened[0].1
    }

    /// Checks that the paths lead to the opened files, and that the database has no second name.
    pub fn check(&self) -> Result<(), FilesChanged> {
        for (path, identity) in &self.opened {
            let file = fs::metadata(path).map_err(|_| FilesChanged::Moved(path.clone()))?;
            if Identity::from(&file) != *identity {
                return Err(FilesChanged::Moved(path.clone()));
            }
            if *path == self.path && file.nlink() > 1 {
                return Err(FilesChanged::Linked(path.clone()));
            }
        }
        Ok(())
    }

    /// Returns true if our log's contents may be copied into the database: no other program can
    /// have read the database without them and written to it. A program that has opened it found
    /// our index, and reads nothing from the empty log that it created; a program that created an
    /// index of its own shares nothing with us.
    pub fn may_be_checkpointed(&self) -> bool {
        let [_, log, index] = &self.opened;
        match (PathState::at(log), PathState::at(index)) {
            (PathState::Replaced { is_empty }, PathState::Unchanged) => is_empty,
            (PathState::Replaced { .. }, _) | (_, PathState::Replaced { .. }) => false,
            _ => true,
        }
    }

    pub fn error(&self, error: impl Into<BoxError>) -> OpenError {
        file_error(&self.path, error.into())
    }
}

/// Result of looking up the path of a file that was opened.
enum PathState {
    Unchanged,
    Missing,
    Replaced { is_empty: bool },
}

impl PathState {
    fn at((path, identity): &(PathBuf, Identity)) -> Self {
        match fs::metadata(path) {
            Ok(file) if Identity::from(&file) == *identity => Self::Unchanged,
            Ok(file) => Self::Replaced {
                is_empty: file.len() == 0,
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::Missing,
            Err(_) => Self::Replaced { is_empty: false },
        }
    }
}

/// Returns the path of a file beside a database.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Checks that an existing database has one name: SQLite would keep one log for each name, and
/// programs would not see the contents of each other's logs.
pub(super) fn must_have_one_name(path: &Path) -> Result<(), OpenError> {
    if fs::metadata(path).is_ok_and(|file| file.nlink() > 1) {
        return Err(OpenError::new(path.display(), FileError::Linked));
    }
    // Linux before 5.8 does not report mounts.
    let is_mount = statx(CWD, path, AtFlags::empty(), StatxFlags::empty())
        .is_ok_and(|file| file.stx_attributes.contains(StatxAttributes::MOUNT_ROOT));
    if is_mount {
        return Err(OpenError::new(path.display(), FileError::Mounted));
    }
    Ok(())
}

/// Creates an empty database, unless the file exists. An existing file is not even opened: closing it would
/// release SQLite's locks of other connections in this program.
pub(super) fn create(path: &Path) -> io::Result<()> {
    let created = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(DATABASE_MODE)
        .open(path);
    match created {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Opens a lock file beside a database, creating it if needed, for all users who may write the
/// database: whoever can open the file can lock it.
pub(super) fn lock_file(database: &Path, suffix: &str) -> Result<File, OpenError> {
    open_lock(&with_suffix(database, suffix), database)
        .map_err(|error| lock_error(database, suffix, error))
}

/// Returns the error of a lock file beside a database.
pub(super) fn lock_error(database: &Path, suffix: &str, error: io::Error) -> OpenError {
    let path = with_suffix(database, suffix);
    let reason = shortage(&path).unwrap_or(FileError::LockFile(error));
    OpenError::new(path.display(), reason)
}

fn open_lock(path: &Path, database: &Path) -> io::Result<File> {
    let existing = || OpenOptions::new().write(true).open(path);
    match existing() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        opened => return opened,
    }
    let created = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(LOCK_MODE)
        .open(path);
    match created {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => existing(),
        Ok(lock) => {
            // Only a file created here: otherwise root could be tricked into changing the owner of
            // another file.
            if let Ok(database) = fs::metadata(database) {
                share(&lock, &database)?;
            }
            Ok(lock)
        }
        Err(error) => Err(error),
    }
}

/// Gives a new lock file to the owner and group of the database, as far as this program may: a file
/// created by root must not lock out the programs.
fn share(lock: &File, database: &fs::Metadata) -> io::Result<()> {
    let (uid, gid) = (database.uid(), database.gid());
    let made = lock.metadata()?;
    let has_group = made.gid() == gid || fchown(lock, None, Some(gid)).is_ok();
    if made.uid() != uid {
        // Only root may do so; for any other user the group suffices.
        let _ = fchown(lock, Some(uid), None);
    }
    if has_group && database.mode() & GROUP_WRITES != 0 {
        lock.set_permissions(Permissions::from_mode(LOCK_MODE_SHARED))?;
    }
    Ok(())
}

/// Returns whether the files that SQLite creates beside a database to read it would lock its owner out. They
/// get the permissions of the database, but belong to this user.
pub(super) fn locks_owner_out(database: &Path) -> io::Result<bool> {
    let file = File::open(database)?;
    let (found, user) = (file.metadata()?, geteuid());
    // SQLite gives what root creates to the owner of the database.
    if user.is_root() || user.as_raw() == found.uid() || found.mode() & GROUP_WRITES != 0 {
        return Ok(false);
    }
    // In the header of SQLite's file format, 2 stands for a write-ahead log; a backup has none.
    let mut version_to_read = [0];
    file.read_exact_at(&mut version_to_read, 19)?;
    Ok(version_to_read == [2] && !with_suffix(database, "-wal").exists())
}

/// Like [`file_error`], about a file that is only read.
pub(super) fn read_error(path: &Path, error: impl Into<BoxError>) -> OpenError {
    let reason = match open_reason(path, error.into()) {
        OpenReason::File(FileError::ReadOnly) => FileError::Unreadable.into(),
        reason => reason,
    };
    OpenError::new(path.display(), reason)
}

/// Converts an error of SQLite into one that says what an operator can do.
pub(super) fn file_error(path: &Path, error: impl Into<BoxError>) -> OpenError {
    OpenError::new(path.display(), open_reason(path, error.into()))
}

fn open_reason(path: &Path, error: BoxError) -> OpenReason {
    match error.downcast::<OpenReason>() {
        Ok(reason) => *reason,
        Err(error) => reason_of(path, error).into(),
    }
}

fn reason_of(path: &Path, error: BoxError) -> FileError {
    let code = error
        .downcast_ref::<rusqlite::Error>()
        .and_then(rusqlite::Error::sqlite_error_code);
    match code {
        Some(ErrorCode::NotADatabase) => return FileError::NotADatabase,
        Some(ErrorCode::DatabaseCorrupt) => return FileError::Damaged,
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => return FileError::Locked,
        _ => {}
    }
    if let Some(shortage) = shortage(path) {
        return shortage;
    }
    match code {
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => {
            FileError::ReadOnly
        }
        Some(ErrorCode::DiskFull) => FileError::Full,
        _ => FileError::Other(error),
    }
}

/// Returns the exhausted resource, if any, that prevented the file at this path, or one beside it,
/// from being opened. SQLite does not report it.
fn shortage(path: &Path) -> Option<FileError> {
    let folder = path.parent()?;
    let open = |_| File::open(folder);
    if let Err(error) = (0..OPEN_FILES).map(open).collect::<io::Result<Vec<_>>>()
        && let Some(Errno::MFILE | Errno::NFILE) = Errno::from_io_error(&error)
    {
        return Some(FileError::Descriptors(error));
    }
    match tempfile::tempfile_in(folder).map_err(|error| error.kind()) {
        Err(io::ErrorKind::StorageFull) => {
            // Btrfs has no limit of inodes, and reports a total of zero.
            let has_no_inodes =
                statvfs(folder).is_ok_and(|disk| disk.f_files > 0 && disk.f_favail == 0);
            Some(match has_no_inodes {
                true => FileError::Inodes,
                false => FileError::Full,
            })
        }
        _ => None,
    }
}
