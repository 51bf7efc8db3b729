//! Read-only access to the rows of a database, for the operator's commands: nothing is created, migrated or
//! written, and programs may use the database meanwhile.

use super::check;
use super::lines::{BoxError, Lines};
#[cfg(feature = "postgres")]
use super::postgres::LineSession;
use super::sqlite::ReadOnlyFile;
use super::{DatabaseSummary, DatabaseUrl, Finding, OpenError, PruneCounts, StoreError, call};
use crate::clock::{Clock, SystemClock};
use crate::order::Timestamp;

/// A database, opened read-only.
pub struct ReadOnlyDatabase(Engine);

enum Engine {
    Sqlite(ReadOnlyFile),
    #[cfg(feature = "postgres")]
    Postgres(LineSession),
}

impl ReadOnlyDatabase {
    /// Opens an existing database.
    pub fn open(url: &DatabaseUrl) -> Result<Self, OpenError> {
        Ok(Self(match url {
            DatabaseUrl::Sqlite(path) => Engine::Sqlite(ReadOnlyFile::open(path)?),
            #[cfg(feature = "postgres")]
            DatabaseUrl::Postgres(url) => Engine::Postgres(LineSession::open(url)?),
        }))
    }

    /// Returns the address of the database: the absolute path of its file, or a URL without a password.
    pub fn address(&self) -> String {
        match &self.0 {
            Engine::Sqlite(file) => file.path().display().to_string(),
            #[cfg(feature = "postgres")]
            Engine::Postgres(session) => session.address().to_owned(),
        }
    }

    /// Checks the invariants of the database, and reports violations through `on_finding`. Each check is one
    /// statement, and so one snapshot.
    pub fn check(&self, mut on_finding: impl FnMut(Finding)) {
        call!(self.0.check(&mut on_finding));
    }

    /// Returns the number of orders and entries, from one snapshot.
    pub fn summary(&self) -> Result<DatabaseSummary, StoreError> {
        self.read(check::summary)
    }

    /// Returns the number of orders and entries that settled before a time and would be pruned.
    pub fn prunable(&self, settled_before: Timestamp) -> Result<PruneCounts, StoreError> {
        self.read(|lines| check::prunable(lines, settled_before))
    }

    /// Returns the time by the clock by which orders are dated; see [`Store::clock`](super::Store::clock).
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Engine::Sqlite(_) => SystemClock.now(),
            #[cfg(feature = "postgres")]
            Engine::Postgres(session) => session.now(),
        }
    }

    fn read<T>(
        &self,
        query: impl FnOnce(&dyn Lines) -> Result<T, BoxError>,
    ) -> Result<T, StoreError> {
        let read = match &self.0 {
            Engine::Sqlite(file) => query(file.lines()),
            #[cfg(feature = "postgres")]
            Engine::Postgres(session) => query(session),
        };
        read.map_err(StoreError::Unreadable)
    }
}
