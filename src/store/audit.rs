//! A database as the operator's commands read it that look at all orders: nothing is created, migrated
//! or written, and programs may use it meanwhile.

use super::check;
use super::lines::{BoxError, Lines};
#[cfg(feature = "postgres")]
use super::postgres::LineSession;
use super::sqlite::LineFile;
use super::{DatabaseSummary, DatabaseUrl, Finding, OpenError, PruneCounts, StoreError};
use crate::order::Timestamp;

/// A database, opened to be checked and counted.
pub struct Audit(Engine);

enum Engine {
    Sqlite(LineFile),
    #[cfg(feature = "postgres")]
    Postgres(LineSession),
}

impl Audit {
    /// Opens an existing database.
    pub fn open(url: &DatabaseUrl) -> Result<Self, OpenError> {
        Ok(Self(match url {
            DatabaseUrl::Sqlite(path) => Engine::Sqlite(LineFile::open(path)?),
            #[cfg(feature = "postgres")]
            DatabaseUrl::Postgres(url) => Engine::Postgres(LineSession::open(url)?),
        }))
    }

    /// Returns the absolute path of the file, or the address without a password.
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
        match &self.0 {
            Engine::Sqlite(file) => file.check(&mut on_finding),
            #[cfg(feature = "postgres")]
            Engine::Postgres(session) => session.check(&mut on_finding),
        }
    }

    /// Returns the number of orders and entries, from one snapshot.
    pub fn summary(&self) -> Result<DatabaseSummary, StoreError> {
        self.read(check::summary)
    }

    /// Returns the number of orders and entries that settled before a time and would be pruned.
    pub fn prunable(&self, settled_before: Timestamp) -> Result<PruneCounts, StoreError> {
        self.read(|lines| check::prunable(lines, settled_before))
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
