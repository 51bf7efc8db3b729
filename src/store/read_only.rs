//! Read-only access to a database, for the operator's commands: nothing is created, migrated or written, and
//! programs may use the database meanwhile.

use super::check;
use super::lines::{BoxError, Lines};
#[cfg(feature = "postgres")]
use super::postgres::LineSession;
use super::sqlite::ReadOnlyFile;
use super::{DatabaseSummary, DatabaseUrl, Finding, OpenError, PruneCounts, StoreError, call};
use crate::clock::{Clock, SystemClock};
use crate::order::{OrderId, Timestamp};
use crate::order_details::OrderDetails;
use crate::reconciler_state::ReconcilerState;

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

    /// Like [`Store::address`](super::Store::address).
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
    pub fn now(&self) -> Result<Timestamp, StoreError> {
        match &self.0 {
            Engine::Sqlite(_) => Ok(SystemClock.now()),
            #[cfg(feature = "postgres")]
            Engine::Postgres(_) => self.read(check::server_time),
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

    /// Like [`Store::heartbeat`](super::Store::heartbeat).
    pub fn heartbeat(&self) -> Result<ReconcilerState, StoreError> {
        call!(self.0.heartbeat())
    }

    /// Like [`Store::details`](super::Store::details).
    pub fn details(
        &self,
        id: &OrderId,
        now: Timestamp,
    ) -> Result<Option<OrderDetails>, StoreError> {
        call!(self.0.details(id, now))
    }

    /// Returns existing ids similar to one that does not exist: ids that differ in case only, and
    /// its neighbours in sort order that share the first half of it.
    pub fn similar_ids(&self, id: &OrderId) -> Result<Vec<String>, StoreError> {
        let candidates = call!(self.0.neighbours(id))?;
        let id = id.as_str();
        let begins = id.chars().count().div_ceil(2);
        let begins: String = id.chars().take(begins).collect();
        let mut similar: Vec<String> = Vec::new();
        for other in candidates {
            let is_alike = other.starts_with(&begins) || other.eq_ignore_ascii_case(id);
            if is_alike && !similar.contains(&other) {
                similar.push(other);
            }
        }
        Ok(similar)
    }
}
