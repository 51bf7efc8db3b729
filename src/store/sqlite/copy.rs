//! A file that is copied from or into; see `store/copy.rs`.

use std::fs::File;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, params_from_iter};

use super::file::{OpenedFile, QUEUE_LOCK, WRITE_LOCK, file_error, lock_file};
use super::lead::LeaderLock;
use super::open::{self, BUSY_TIMEOUT};
use crate::store::OpenError;
use crate::store::copy::{Access, HISTORIES, Side, Table};
use crate::store::lines::{BoxError, Lines, fields};
use crate::store::relocation::{Purpose, Relocation};

/// Page cache, in KiB: what a range of orders touches.
const CACHE_KIB: i64 = 64 * 1024;

/// Pages of the write-ahead log after which it is copied into the file: 16 MiB.
const LOG_PAGES: i64 = 4_096;

/// Triggers that have the file refuse writes of every program.
const REFUSE: &str = "\
    CREATE TRIGGER relocated_creation BEFORE INSERT ON orders \
        BEGIN SELECT RAISE(ABORT, 'the orders are in another database'); END; \
    CREATE TRIGGER relocated_change BEFORE UPDATE ON orders \
        BEGIN SELECT RAISE(ABORT, 'the orders are in another database'); END; \
    CREATE TRIGGER relocated_removal BEFORE DELETE ON orders \
        BEGIN SELECT RAISE(ABORT, 'the orders are in another database'); END; \
    CREATE TRIGGER relocated_heartbeat BEFORE UPDATE ON heartbeat \
        BEGIN SELECT RAISE(ABORT, 'the orders are in another database'); END; \
    CREATE TRIGGER relocated_probe BEFORE INSERT ON write_probe \
        BEGIN SELECT RAISE(ABORT, 'the orders are in another database'); END";

const ALLOW: &str = "\
    DROP TRIGGER IF EXISTS relocated_creation; DROP TRIGGER IF EXISTS relocated_change; \
    DROP TRIGGER IF EXISTS relocated_removal; DROP TRIGGER IF EXISTS relocated_heartbeat; \
    DROP TRIGGER IF EXISTS relocated_probe";

/// A file, its connection, and the locks that are held.
pub(in crate::store) struct CopySide {
    db: Connection,
    path: PathBuf,
    /// None for a file that is only read, or belongs to no program: a backup.
    opened: Option<OpenedFile>,
    locks: Vec<File>,
    lead: Option<LeaderLock>,
}

impl CopySide {
    /// Opens a file that is there, whether or not its orders have moved. It is only read.
    pub fn open_to_read(path: &Path) -> Result<Self, OpenError> {
        let (db, path, _) = open::for_copying(path, true)?;
        Ok(Self::new(db, path, None))
    }

    /// Opens a file that is there, whether or not its orders have moved. A backup is only read.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let (db, path, is_backup) = open::for_copying(path, false)?;
        match is_backup {
            true => Ok(Self::new(db, path, None)),
            false => {
                drop(db);
                Self::prepared(&path, Purpose::Copy(None))
            }
        }
    }

    /// Opens a file to copy into; a new one is marked from its first moment on.
    pub fn open_target(path: &Path, incomplete: &Relocation) -> Result<Self, OpenError> {
        let mark = relocate(Some(incomplete));
        let side = Self::prepared(path, Purpose::Copy(Some(mark)))?;
        let set = side.db.pragma_update(None, "wal_autocheckpoint", LOG_PAGES);
        set.map_err(|error| file_error(&side.path, error))?;
        Ok(side)
    }

    /// Makes an empty file, which is worthless until it is finished.
    pub fn new_file(path: &Path) -> Result<Self, OpenError> {
        let made = Connection::open(path).and_then(|db| {
            db.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF")?;
            open::upgrade(&db, 0, open::FORMAT)?;
            db.execute("DELETE FROM histories", [])?;
            Ok(db)
        });
        let db = made.map_err(|error| file_error(path, error))?;
        Ok(Self::new(db, path.to_owned(), None))
    }

    fn prepared(path: &Path, purpose: Purpose) -> Result<Self, OpenError> {
        let (opened, db) = open::prepare(path, purpose)?;
        // Rows arrive in another order than that of their references.
        db.pragma_update(None, "foreign_keys", false)
            .and_then(|()| db.busy_timeout(BUSY_TIMEOUT))
            .and_then(|()| open::keep_in_memory(&db, CACHE_KIB))
            .map_err(|error| opened.error(error))?;
        let path = opened.path.clone();
        Ok(Self::new(db, path, Some(opened)))
    }

    fn new(db: Connection, path: PathBuf, opened: Option<OpenedFile>) -> Self {
        Self {
            db,
            path,
            opened,
            locks: Vec::new(),
            lead: None,
        }
    }
}

/// Returns the address of a file, which need not exist; that of an open one is the same.
pub(in crate::store) fn address(path: &Path) -> Result<String, OpenError> {
    open::absolute(path).map(|path| address_of(&path))
}

fn address_of(path: &Path) -> String {
    format!("sqlite:{}", path.display())
}

/// Returns statements that mark a file.
fn relocate(relocation: Option<&Relocation>) -> String {
    Relocation::statements(relocation, REFUSE, ALLOW)
}

impl Lines for CopySide {
    fn each(&self, sql: &str, line: &mut dyn FnMut(&[u8])) -> Result<(), BoxError> {
        self.db.each(sql, line)
    }
}

impl Side for CopySide {
    fn address(&self) -> String {
        address_of(&self.path)
    }

    fn is_backup(&self) -> bool {
        self.opened.is_none()
    }

    fn begin(&mut self, access: Access) -> Result<(), BoxError> {
        if access == Access::Exclusive
            && let Some(opened) = &self.opened
        {
            // As the writer of a program takes them, so that programs wait in their queue.
            for suffix in [QUEUE_LOCK, WRITE_LOCK] {
                let lock = lock_file(&opened.path, suffix)?;
                open::lock_within(&lock, BUSY_TIMEOUT)?;
                self.locks.push(lock);
            }
            opened.check()?;
        }
        let begin = match (access, self.is_backup()) {
            (Access::Snapshot, _) | (_, true) => "BEGIN",
            _ => "BEGIN IMMEDIATE",
        };
        Ok(self.db.execute_batch(begin)?)
    }

    fn commit(&mut self) -> Result<(), BoxError> {
        self.db.execute_batch("COMMIT")?;
        self.locks.clear();
        Ok(())
    }

    fn execute(&self, sql: &str) -> Result<(), BoxError> {
        Ok(self.db.execute_batch(sql)?)
    }

    fn insert(&self, table: &Table, lines: &[u8]) -> Result<(), BoxError> {
        let mut columns: Vec<_> = table.names().collect();
        let mut values = vec!["?"; columns.len()];
        if table.name == HISTORIES.name {
            columns.push("file");
            values.push("''");
        }
        let (name, columns, values) = (table.name, columns.join(", "), values.join(", "));
        let sql = format!("INSERT INTO {name} ({columns}) VALUES ({values})");
        let mut insert = self.db.prepare_cached(&sql)?;
        for line in lines
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
        {
            // Columns of numbers convert the text.
            insert.execute(params_from_iter(fields(line)))?;
        }
        Ok(())
    }

    fn relocate(&self, to: Option<&Relocation>) -> Result<(), BoxError> {
        self.execute(&relocate(to))
    }

    fn continue_history(&self) -> Result<(), BoxError> {
        if let Some(opened) = &self.opened {
            let sql =
                "UPDATE histories SET file = ?1 WHERE number = (SELECT max(number) FROM histories)";
            self.db.execute(sql, [opened.database().to_string()])?;
        }
        Ok(())
    }

    fn try_lead(&mut self) -> Result<bool, BoxError> {
        if self.lead.is_none() && !self.is_backup() {
            self.lead = LeaderLock::try_take(&self.path)?;
        }
        Ok(self.lead.is_some() || self.is_backup())
    }

    fn finish(&mut self) -> Result<(), BoxError> {
        match self.is_backup() {
            true => Ok(File::open(&self.path)?.sync_all()?),
            false => {
                // As far as readers allow.
                let sql = "PRAGMA wal_checkpoint(TRUNCATE)";
                self.db.query_row(sql, [], |_| Ok(()))?;
                Ok(())
            }
        }
    }
}
