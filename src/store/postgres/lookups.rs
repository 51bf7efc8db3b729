//! Lookups of orders by id. Those that wait for a connection share its next statement, as writes share a
//! commit: many cost the server little more than one.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use tokio::sync::{mpsc, oneshot};
use tokio_postgres::Row;

use super::batch::ORDER_VIEWS;
use super::error::Error;
use super::{Engine, Inner, READ_TIMEOUT, on_thread};
use crate::messages::with_causes;
use crate::order::OrderId;
use crate::store::rows::order_view_of;
use crate::store::{OrderView, StoreError};

/// Maximum number of orders that a statement finds.
const LOOKUPS_MAX: usize = 256;

/// Index of the connection of lookups among the shared ones. One statement is on its way at a time, since
/// more of them share less: 44,500 lookups per second with one, 42,200 with two, 40,400 with four (64
/// callers, server and API on the same two cores).
const LOOKUP_READER: usize = 0;

type Found = Result<Option<OrderView>, StoreError>;

/// An order to find.
pub(super) struct Lookup {
    id: OrderId,
    reply: oneshot::Sender<Found>,
}

impl Engine {
    pub async fn find(&self, id: &OrderId) -> Found {
        let (reply, found) = oneshot::channel();
        let lookup = Lookup {
            id: id.clone(),
            reply,
        };
        // One that is not taken gets no reply.
        let _ = self.inner.lookups.send(lookup);
        let found = async {
            let found = tokio::time::timeout(READ_TIMEOUT, found).await;
            found.map_or_else(|_| None, Result::ok)
        };
        let found = match self.inner.is_synchronous {
            true => on_thread(&self.inner.runtime, found).ok().flatten(),
            false => found.await,
        };
        found.unwrap_or_else(|| Err(Error::TimedOut.into()))
    }
}

impl Inner {
    /// Answers lookups until the engine is dropped.
    pub fn answer_lookups(self: &Arc<Self>, waiting: mpsc::UnboundedReceiver<Lookup>) {
        self.runtime.spawn(answer(Arc::downgrade(self), waiting));
    }
}

async fn answer(inner: Weak<Inner>, mut waiting: mpsc::UnboundedReceiver<Lookup>) {
    loop {
        let mut lookups = Vec::new();
        waiting.recv_many(&mut lookups, LOOKUPS_MAX).await;
        let Some(inner) = inner.upgrade() else {
            return;
        };
        lookups.retain(|lookup| !lookup.reply.is_closed());
        let ids = lookups.iter().map(|lookup| lookup.id.to_string());
        let ids: Arc<Vec<String>> = Arc::new(ids.collect());
        let found = inner.repeat(READ_TIMEOUT, Some(LOOKUP_READER), move |session| {
            let ids = ids.clone();
            Box::pin(async move { session.query(ORDER_VIEWS, &[&*ids]).await })
        });
        let found = found.await;
        reply(lookups, found);
    }
}

fn reply(lookups: Vec<Lookup>, found: Result<Vec<Row>, Error>) {
    let rows: HashMap<&str, &Row> = match &found {
        Ok(rows) => rows
            .iter()
            .filter_map(|row| Some((row.try_get(1).ok()?, row)))
            .collect(),
        Err(error) => {
            let cause = with_causes(error);
            for lookup in lookups {
                let _ = lookup
                    .reply
                    .send(Err(StoreError::Unreadable(cause.clone().into())));
            }
            return;
        }
    };
    for Lookup { id, reply } in lookups {
        let found = rows
            .get(id.as_str())
            .map(|row| order_view_of(*row))
            .transpose();
        // A caller that has gone away wants no answer.
        let _ = reply.send(found.map_err(StoreError::from));
    }
}
