//! Read-only access to a database, by a session that cannot write.

use super::address::PostgresUrl;
use super::connect::{Connector, Purpose};
use super::error::Error;
use super::open_error::PostgresOpenError;
use super::queries;
use super::session::Session;
use crate::order::{OrderId, Timestamp};
use crate::order_details::OrderDetails;
use crate::store::StoreError;

/// A session that only reads.
pub(in crate::store) struct ReadOnlySession(Session);

impl ReadOnlySession {
    /// Opens a session on a database that must exist.
    pub async fn open(url: &PostgresUrl) -> Result<Self, PostgresOpenError> {
        let connector = Connector::new(url, Purpose::Use)?;
        let session = connector.session_for_reading().await;
        session
            .map(Self)
            .map_err(|error| error.into_open_error(connector.address()))
    }

    /// See [`Store::details`](crate::store::Store::details).
    pub async fn details(
        &self,
        id: &OrderId,
        now: Timestamp,
    ) -> Result<Option<OrderDetails>, StoreError> {
        let Self(session) = self;
        let read = async {
            session
                .execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
                .await?;
            let found = queries::details(session, id, now).await?;
            session.execute("COMMIT").await?;
            Ok::<_, Error>(found)
        };
        Ok(read.await?)
    }

    /// Returns ids that differ from one in case only, and its neighbours in sort order.
    pub async fn neighbours(&self, id: &OrderId) -> Result<Vec<String>, StoreError> {
        const SQL: &str = "\
            (SELECT id FROM orders WHERE lower(id) = lower($1) ORDER BY id LIMIT 3) \
            UNION ALL (SELECT id FROM orders WHERE id > $1 ORDER BY id LIMIT 2) \
            UNION ALL (SELECT id FROM orders WHERE id < $1 ORDER BY id DESC LIMIT 2)";
        let rows = self.0.query(SQL, &[&id.as_str()]).await?;
        let ids = rows.iter().map(|row| Ok(row.try_get(0)?));
        Ok(ids.collect::<Result<_, Error>>()?)
    }
}
