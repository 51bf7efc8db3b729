//! Rows of SQLite as lines of text; see `store/lines.rs`.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use rusqlite::types::ValueRef;

use super::{check, open};
use crate::store::lines::{BoxError, Lines, push_field};
use crate::store::{Finding, OpenError};

/// A file, opened to be checked and counted.
pub(in crate::store) struct LineFile {
    db: Connection,
    path: PathBuf,
}

impl LineFile {
    /// Opens an existing file.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let (db, path) = open::for_reading(path)?;
        Ok(Self { db, path })
    }

    /// Returns the absolute path.
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
}

impl Lines for Connection {
    fn each(&self, sql: &str, line: &mut dyn FnMut(&[u8])) -> Result<(), BoxError> {
        let mut query = self.prepare(sql)?;
        let columns = query.column_count();
        let mut rows = query.query([])?;
        let mut text = Vec::new();
        while let Some(row) = rows.next()? {
            text.clear();
            for column in 0..columns {
                if column > 0 {
                    text.push(b'\t');
                }
                match row.get_ref(column)? {
                    ValueRef::Null => text.extend(b"\\N"),
                    ValueRef::Integer(number) => write!(text, "{number}")?,
                    ValueRef::Real(number) => write!(text, "{number}")?,
                    ValueRef::Text(bytes) | ValueRef::Blob(bytes) => push_field(&mut text, bytes),
                }
            }
            line(&text);
        }
        Ok(())
    }
}
