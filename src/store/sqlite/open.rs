//! Opening of a database file: path resolution, creation, migration, checks and the start-up lock.
//!
//! Every reason for which a file is unusable becomes a one-line error that says what to do. The
//! files of a database are in `store/sqlite/file.rs`.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use r2d2_sqlite::SqliteConnectionManager;
use rusqlite::config::DbConfig;
use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension, Transaction, TransactionBehavior,
};

use super::file::{self, Identity, OpenedFile, WRITE_LOCK, file_error, lock_file, with_suffix};
use super::open_error::{FileError, START_TIMEOUT};
use crate::store::lines::BoxError;
use crate::store::relocation::{Purpose, Relocation};
use crate::store::{OpenError, OpenReason, Retirement};

/// Migrations, oldest first: the first creates the schema in an empty file, each later one leads
/// from one format to the next. They are only added, never changed.
const MIGRATIONS: &[&str] = &[
    include_str!("../../../sql/006_schema.sql"),
    include_str!("../../../sql/007_epoch.sql"),
    include_str!("../../../sql/008_relocation.sql"),
];

/// Format that the first migration creates. No release has written an earlier one.
const FORMAT_FIRST: i64 = 6;

/// Format that this program writes, stored as the file's `user_version`.
pub(super) const FORMAT: i64 = FORMAT_FIRST + MIGRATIONS.len() as i64 - 1;

/// The first format that can say that the orders are in another database.
const FORMAT_WITH_RELOCATION: i64 = 8;

/// The `application_id` of the files of this program: "OrdS".
const APPLICATION_ID: i64 = 0x4f72_6453;

/// Interval between attempts to take a lock while this program starts.
const START_RETRY: Duration = Duration::from_millis(10);

/// Page cache of the writing connection, in KiB: the inner pages of ten million orders' indexes. No
/// larger, because SQLite scans all of it after a commit that has split a page.
const WRITER_CACHE_KIB: i64 = 8 * 1024;

/// Page cache of a reading connection, in KiB. The pool has several.
const READER_CACHE_KIB: i64 = 1024;

/// Page cache for reading a whole file, in KiB: the inner pages of a million orders' indexes, and
/// not much more.
const READ_ONLY_CACHE_KIB: i64 = 16 * 1024;

/// Maximum wait for programs that lock the file without taking our locks.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Capacity of a connection's prepared-statement cache: more than the number of distinct
/// statements.
const STATEMENTS_KEPT: usize = 64;

/// Flags of a connection that only reads.
pub(super) const READ_ONLY: OpenFlags =
    OpenFlags::SQLITE_OPEN_READ_ONLY.union(OpenFlags::SQLITE_OPEN_NO_MUTEX);

/// Opens the file, creating or migrating it if needed, and begins a new history if the file is a
/// different one than before. Returns the writing connection. Safe to call in several programs at
/// once.
pub(super) fn prepare(
    path: &Path,
    purpose: Purpose,
) -> Result<(OpenedFile, Connection), OpenError> {
    let path = absolute(path)?;
    // A path that is still a symbolic link after resolution is dangling.
    if path.is_symlink() || path.exists() && !path.is_file() {
        return Err(OpenError::new(path.display(), FileError::NotAFile));
    }
    file::must_have_one_name(&path)?;
    refuse_other_files(&path)?;
    // The change to WAL mode does not wait for other connections.
    let lock = lock_file(&path, WRITE_LOCK)?;
    lock_within(&lock, START_TIMEOUT).map_err(|error| match error {
        TryLockError::WouldBlock => OpenError::new(path.display(), FileError::Locked),
        TryLockError::Error(error) => file::lock_error(&path, WRITE_LOCK, error),
    })?;
    let other = |error: io::Error| file_error(&path, error);
    file::create(&path).map_err(other)?;
    // Before SQLite opens the file; its identity is checked again at the end.
    let database = Identity::of(&path).map_err(other)?;
    let migrated = migrate(&path, database, &purpose);
    let (db, format) = migrated.map_err(|error| file_error(&path, error))?;
    // SQLite keeps its files open for as long as this connection is.
    let file = OpenedFile::new(path.clone(), database).map_err(other)?;
    let name = path.display();
    match (format, purpose) {
        // Nobody may have meant to begin with an empty one.
        (0, Purpose::Use) => log::warn!("created the database {name}"),
        (0, _) => log::info!("created the database {name}"),
        (FORMAT, _) => log::info!("using the database {name}"),
        (older, _) => log::info!("using the database {name}, migrated from format {older}"),
    }
    Ok((file, db))
}

pub(super) fn absolute(path: &Path) -> Result<PathBuf, OpenError> {
    // Symbolic links are followed, so that all users of a database take the same lock files.
    if let Ok(path) = path.canonicalize() {
        return Ok(path);
    }
    let refused = |reason: FileError| Err(OpenError::new(path.display(), reason));
    let Some(name) = path.file_name() else {
        return refused(FileError::NotAFile);
    };
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    match folder.canonicalize() {
        Ok(folder) if folder.is_dir() => Ok(folder.join(name)),
        Ok(folder) => refused(FileError::Folder(
            folder,
            io::ErrorKind::NotADirectory.into(),
        )),
        Err(error) => refused(FileError::Folder(folder.to_owned(), error)),
    }
}

pub(super) fn lock_within(lock: &File, timeout: Duration) -> Result<(), TryLockError> {
    let deadline = Instant::now() + timeout;
    loop {
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(START_RETRY);
            }
            result => return result,
        }
    }
}

/// Migrates a file. Returns the format that it had; 0 if it was empty.
fn migrate(path: &Path, file: Identity, purpose: &Purpose) -> Result<(Connection, i64), BoxError> {
    let mut db = Connection::open_with_flags(path, existing())?;
    // The format is checked before anything in the file is changed.
    let format = format(&db)?;
    pragmas(&db)?;
    let change = Transaction::new(&mut db, TransactionBehavior::Immediate)?;
    upgrade(&change, format, FORMAT)?;
    if let (0, Purpose::Copy(Some(mark))) = (format, purpose) {
        change.execute_batch(mark)?;
    }
    let relocation = Relocation::read(&*change)?;
    if let (Some(relocation), Purpose::Use) = (&relocation, purpose) {
        return Err(OpenReason::Relocated(relocation.clone()).into());
    }
    // Detects a read-only file now and not with the first order.
    change.execute("DELETE FROM write_probe", [])?;
    // One whose orders have moved has no readers.
    if relocation.is_none() {
        begin_history(&change, &file.to_string())?;
    }
    change.commit()?;
    Ok((db, format))
}

/// Returns the format of a file; 0 if the file is empty.
pub(super) fn format(db: &Connection) -> Result<i64, BoxError> {
    // One statement has one snapshot: another program may be creating the file.
    const FORMAT_OF_FILE: &str = "\
        SELECT application_id, user_version, (SELECT count(*) = 0 FROM sqlite_schema) \
        FROM pragma_application_id, pragma_user_version";
    let found = db.query_row(FORMAT_OF_FILE, [], |row| {
        Ok((row.get(0)?, row.get(1)?, row.get::<_, bool>(2)?))
    })?;
    let (id, format, is_empty): (i64, i64, bool) = found;
    let refused = match (id, format) {
        (0, 0) if is_empty => return Ok(0),
        (APPLICATION_ID, FORMAT_FIRST..=FORMAT) => return Ok(format),
        (APPLICATION_ID, 1..FORMAT_FIRST) => FileError::Older(format),
        (APPLICATION_ID, _) if format > FORMAT => FileError::Newer,
        _ => FileError::Foreign,
    };
    Err(OpenReason::from(refused).into())
}

/// Runs the migrations after format `from`, which is 0 if there is no schema yet, up to format `to`.
pub(super) fn upgrade(db: &Connection, from: i64, to: i64) -> rusqlite::Result<()> {
    for (format, migration) in (FORMAT_FIRST..=to).zip(MIGRATIONS) {
        if format > from {
            db.execute_batch(migration)?;
            db.pragma_update(None, "user_version", format)?;
        }
    }
    Ok(())
}

/// Configures a connection for writing: sets the pragmas that durability depends on, and reads them
/// back.
fn pragmas(db: &Connection) -> Result<(), BoxError> {
    // Programs that lock the file without taking our locks are waited for here.
    let deadline = Instant::now() + START_TIMEOUT;
    let mode: String = loop {
        match db.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0)) {
            Err(error) if is_busy(&error) && Instant::now() < deadline => {
                std::thread::sleep(START_RETRY);
            }
            result => break result?,
        }
    };
    let check = |pragma, found: String, wanted| {
        if found == wanted {
            return Ok(());
        }
        Err(OpenReason::from(FileError::Pragma {
            pragma,
            found,
            wanted,
        }))
    };
    check("journal_mode", mode, "wal")?;
    // Checkpoints are run by `store/sqlite/checkpoint.rs`.
    db.execute_batch(
        "PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA wal_autocheckpoint = 0;",
    )?;
    let read = |pragma| {
        db.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0))
            .map(|value| value.to_string())
    };
    // 2 is FULL.
    check("synchronous", read("synchronous")?, "2")?;
    check("foreign_keys", read("foreign_keys")?, "1")?;
    keep_in_memory(db, WRITER_CACHE_KIB)?;
    Ok(())
}

/// Sets the size of a connection's page cache, in KiB, and of its prepared-statement cache.
pub(super) fn keep_in_memory(db: &Connection, cache_kib: i64) -> rusqlite::Result<()> {
    db.pragma_update(None, "cache_size", -cache_kib)?;
    db.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
    // Otherwise SQLite prepares a statement again for each new value of a parameter that a better
    // plan might depend on. None does: this program never runs ANALYZE, so SQLite has no statistics
    // on the distribution of values.
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(())
}

pub(super) fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)
    )
}

/// Opens another writing connection on the prepared file.
pub(super) fn writing_connection(file: &OpenedFile) -> Result<Connection, OpenError> {
    let db =
        Connection::open_with_flags(&file.path, existing()).map_err(|error| file.error(error))?;
    pragmas(&db).map_err(|error| file.error(error))?;
    Ok(db)
}

/// Opens the pool of reading connections. All are opened now and none is ever replaced, so none can
/// end up on a different file.
pub(super) fn readers(file: &OpenedFile) -> Result<r2d2::Pool<SqliteConnectionManager>, OpenError> {
    readers_of(&file.path, existing())
}

/// Like [`readers`], of the file that is at the path now, with these flags.
pub(super) fn readers_of(
    path: &Path,
    flags: OpenFlags,
) -> Result<r2d2::Pool<SqliteConnectionManager>, OpenError> {
    let manager = SqliteConnectionManager::file(path)
        .with_flags(flags)
        .with_init(|db| {
            db.pragma_update(None, "query_only", true)?;
            keep_in_memory(db, READER_CACHE_KIB)
        });
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    r2d2::Pool::builder()
        .max_size(u32::try_from(2 * cores + 2).unwrap_or(u32::MAX))
        .max_lifetime(None)
        .idle_timeout(None)
        .test_on_check_out(false)
        .connection_timeout(START_TIMEOUT)
        // The pool's error contains the last connection error.
        .error_handler(Box::new(r2d2::NopErrorHandler))
        .build(manager)
        .map_err(|error| file_error(path, error))
}

/// Begins a new history if `file` differs from that of the last (`store/cursor.rs`).
fn begin_history(db: &Connection, file: &str) -> rusqlite::Result<()> {
    let begun = db
        .query_row(
            "INSERT INTO histories (file, newest_order, newest_entry, pruned) \
             SELECT ?1, (SELECT coalesce(max(seq), 0) FROM orders), \
                    (SELECT coalesce(max(seq), 0) FROM journal), entries FROM pruned \
             WHERE ?1 IS NOT (SELECT file FROM histories ORDER BY number DESC LIMIT 1) \
             RETURNING id, newest_entry",
            [file],
            |row| Ok((row.get::<_, u32>(0)?, row.get::<_, i64>(1)?)),
        )
        .optional()?;
    if let Some((id, entry @ 1..)) = begun {
        log::warn!(
            "the database is in another file than before: began history={id} after entry={entry}"
        );
    }
    Ok(())
}

/// Returns the absolute path of an existing database.
pub(super) fn must_exist(path: &Path) -> Result<PathBuf, OpenError> {
    let path = absolute(path)?;
    if path.exists() {
        Ok(path)
    } else {
        Err(OpenError::new(path.display(), FileError::Missing))
    }
}

/// Opens a database for reading without creating its other files, and returns its format.
fn open_without_creating_files(path: &Path) -> Result<(Connection, i64), BoxError> {
    // Without a log the file is complete, and SQLite needs no other one to read it.
    let is_complete = !with_suffix(path, "-wal").exists();
    let name = percent_encode(path.as_os_str().as_bytes(), NON_ALPHANUMERIC);
    let uri = format!("file:{name}?immutable={}", u8::from(is_complete));
    let db = Connection::open_with_flags(uri, READ_ONLY | OpenFlags::SQLITE_OPEN_URI)?;
    db.busy_timeout(Duration::ZERO)?;
    let format = format(&db)?;
    Ok((db, format))
}

/// Returns whether a file has orders that may be used.
pub(in crate::store) fn holds_orders(path: &Path) -> bool {
    let found = absolute(path).map(|path| open_without_creating_files(&path));
    match found {
        Ok(Ok((db, format @ FORMAT_FIRST..))) => must_hold_orders(&db, format).is_ok(),
        _ => false,
    }
}

/// Refuses a file that is not a database of this program, before any other file is created for it.
fn refuse_other_files(path: &Path) -> Result<(), OpenError> {
    let is_another = |error: &BoxError| {
        let of_sqlite = error.downcast_ref::<rusqlite::Error>();
        let code = of_sqlite.and_then(rusqlite::Error::sqlite_error_code);
        error.is::<OpenReason>() || code == Some(ErrorCode::NotADatabase)
    };
    match open_without_creating_files(path) {
        Err(error) if is_another(&error) => Err(file_error(path, error)),
        // It is absent, or another program is using it.
        _ => Ok(()),
    }
}

/// Opens a read-only connection on an existing database in a known format. Nothing is migrated: the
/// program that uses the file may be older.
pub(super) fn for_reading(path: &Path) -> Result<(Connection, PathBuf), OpenError> {
    let (db, path, format) = open_for_reading(path)?;
    must_hold_orders(&db, format).map_err(|error| file_error(&path, error))?;
    Ok((db, path))
}

/// Checks that the orders of a database of this format have not moved, and are complete.
fn must_hold_orders(db: &Connection, format: i64) -> Result<(), BoxError> {
    if format >= FORMAT_WITH_RELOCATION
        && let Some(relocation) = Relocation::read(db)?
    {
        return Err(OpenReason::Relocated(relocation).into());
    }
    Ok(())
}

/// Checks that this program may go on using a database that it has open. Gives the signal otherwise.
pub(super) fn must_still_be_usable(
    db: &Connection,
    path: &Path,
    retirement: &Retirement,
) -> Result<(), OpenError> {
    let checked = format(db).and_then(|format| must_hold_orders(db, format));
    match checked.map_err(|error| error.downcast::<OpenReason>()) {
        Err(Ok(reason)) => {
            let reason = OpenError::new(path.display(), *reason);
            let _ = retirement.set(reason.clone());
            Err(reason)
        }
        // Errors of SQLite concern the moment.
        Ok(()) | Err(Err(_)) => Ok(()),
    }
}

/// Like [`for_reading`], but whether or not the orders have moved; also returns whether the file is a
/// backup. A file that `is_only_read`, as a backup is, has to have the present format.
pub(super) fn for_copying(
    path: &Path,
    is_only_read: bool,
) -> Result<(Connection, PathBuf, bool), OpenError> {
    const IS_BACKUP: &str = "SELECT coalesce( \
        (SELECT file = '' FROM histories ORDER BY number DESC LIMIT 1), 0)";
    let (db, path, format) = open_for_reading(path)?;
    let is_backup = db.query_row(IS_BACKUP, [], |row| row.get(0));
    let is_backup = is_backup.map_err(|error| file_error(&path, error))?;
    if format < FORMAT && (is_backup || is_only_read) {
        return Err(OpenError::new(path.display(), FileError::OldFormat));
    }
    Ok((db, path, is_backup))
}

fn open_for_reading(path: &Path) -> Result<(Connection, PathBuf, i64), OpenError> {
    let path = must_exist(path)?;
    if !path.is_file() {
        return Err(OpenError::new(path.display(), FileError::NotAFile));
    }
    refuse_other_files(&path)?;
    let opened = || -> Result<_, BoxError> {
        if file::locks_owner_out(&path).unwrap_or(false) {
            return Err(OpenReason::from(FileError::Unreadable).into());
        }
        let db = Connection::open_with_flags(&path, READ_ONLY)?;
        let format = format(&db)?;
        if format == 0 {
            return Err(OpenReason::from(FileError::Empty).into());
        }
        db.busy_timeout(BUSY_TIMEOUT)?;
        db.pragma_update(None, "cache_size", -READ_ONLY_CACHE_KIB)?;
        Ok((db, format))
    };
    let (db, format) = opened().map_err(|error| file::read_error(&path, error))?;
    Ok((db, path, format))
}

/// Creates an empty in-memory database of this format by running the migrations.
pub(super) fn empty(format: i64) -> rusqlite::Result<Connection> {
    let db = Connection::open_in_memory()?;
    upgrade(&db, 0, format)?;
    Ok(db)
}

/// Flags that open a file and never create one. A connection is used by one thread at a time.
fn existing() -> OpenFlags {
    OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::order::{OrderId, Timestamp};
    use crate::store::{DatabaseUrl, Mode, ReadOnlyDatabase, Store, back_up};

    /// Creates a database of this format with one order.
    fn create(path: &Path, format: i64) {
        let db = Connection::open(path).unwrap();
        upgrade(&db, 0, format).unwrap();
        begin_history(&db, "1").unwrap();
        db.execute_batch(
            "INSERT INTO orders (id, status, created_at, updated_at) \
             VALUES ('a1', 'CREATED', 5, 5); \
             INSERT INTO journal (order_seq, at, reason) VALUES (1, 5, 'created')",
        )
        .unwrap();
    }

    fn format_of(path: impl AsRef<Path>) -> i64 {
        format(&for_reading(path.as_ref()).unwrap().0).unwrap()
    }

    fn assert_sound(url: &DatabaseUrl, format: i64) {
        let mut findings = Vec::new();
        let database = ReadOnlyDatabase::open(url).unwrap();
        database.check(|finding| findings.push(finding));
        assert_eq!(findings, [], "{format}");
    }

    #[tokio::test]
    async fn a_file_of_every_format_is_read_as_it_is_and_brought_up_to_date_by_the_first_use() {
        for format in FORMAT_FIRST..=FORMAT {
            let folder = tempfile::tempdir().unwrap();
            let [path, backup] = ["orders.db", "backup.db"].map(|name| folder.path().join(name));
            create(&path, format);
            let url = DatabaseUrl::from(path.clone());
            assert_sound(&url, format);
            let database = ReadOnlyDatabase::open(&url).unwrap();
            database.prunable(Timestamp(9)).unwrap();
            back_up(&url, &backup, false).await.unwrap();
            assert_sound(&DatabaseUrl::from(backup.clone()), format);
            assert_eq!([&path, &backup].map(format_of), [format; 2]);
            let store = Store::open(&url, Mode::Threaded).unwrap();
            let order = store.find(&OrderId::new("a1").unwrap()).await.unwrap();
            assert_eq!(order.map(|found| found.order.seq), Some(1), "{format}");
            assert_eq!(format_of(&path), FORMAT, "{format}");
            assert_sound(&url, format);
        }
    }
}
