//! Read-only access to a database, for `explain`: nothing is created, migrated or written, and programs
//! may use the database meanwhile.

#[cfg(feature = "postgres")]
use super::postgres::ReadOnlySession;
use super::sqlite::ReadOnlyFile;
use super::{DatabaseUrl, OpenError, StoreError};
use crate::order::{OrderId, Timestamp};
use crate::order_details::OrderDetails;

/// A database, opened read-only.
pub struct ReadOnlyDatabase {
    engine: Engine,
    address: String,
}

enum Engine {
    Sqlite(ReadOnlyFile),
    #[cfg(feature = "postgres")]
    Postgres(ReadOnlySession),
}

impl ReadOnlyDatabase {
    /// Opens an existing database.
    pub async fn open(url: &DatabaseUrl) -> Result<Self, OpenError> {
        Ok(match url {
            DatabaseUrl::Sqlite(path) => {
                let file = ReadOnlyFile::open(path)?;
                Self {
                    address: file.path().display().to_string(),
                    engine: Engine::Sqlite(file),
                }
            }
            #[cfg(feature = "postgres")]
            DatabaseUrl::Postgres(url) => Self {
                address: url.to_string(),
                engine: Engine::Postgres(ReadOnlySession::open(url).await?),
            },
        })
    }

    /// Like [`Store::address`](super::Store::address).
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Like [`Store::details`](super::Store::details).
    pub async fn details(
        &self,
        id: &OrderId,
        now: Timestamp,
    ) -> Result<Option<OrderDetails>, StoreError> {
        match &self.engine {
            Engine::Sqlite(file) => file.details(id, now),
            #[cfg(feature = "postgres")]
            Engine::Postgres(session) => session.details(id, now).await,
        }
    }

    /// Returns existing ids similar to one that does not exist: ids that differ in case only, and
    /// its neighbours in sort order that share the first half of it.
    pub async fn similar_ids(&self, id: &OrderId) -> Result<Vec<String>, StoreError> {
        let candidates = match &self.engine {
            Engine::Sqlite(file) => file.neighbours(id)?,
            #[cfg(feature = "postgres")]
            Engine::Postgres(session) => session.neighbours(id).await?,
        };
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
