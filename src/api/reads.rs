//! Limits on concurrent database reads. Requests wait for a permit asynchronously, because each
//! read holds a thread and a database connection: reads that waited in threads would use up all
//! threads and block every other request.

use std::ops::Deref;
use std::sync::Arc;

use futures_util::{Stream, TryStreamExt};
use tokio::sync::{AcquireError, Semaphore, SemaphorePermit};

use crate::order::Order;
use crate::store::{Cursor, Filter, Store, StoreError};

/// Maximum number of concurrent reads per kind. The remaining database connections stay free for
/// other requests.
const READS_MAX: usize = 2;

/// Limiter for reads of one kind.
pub(super) struct ReadLimiter {
    store: Store,
    permits: Semaphore,
}

/// The store, with a permit to read that is released on drop.
pub(super) struct ReadPermit<'a> {
    store: &'a Store,
    // Always `Ok`: the semaphore is never closed.
    _permit: Result<SemaphorePermit<'a>, AcquireError>,
}

impl Deref for ReadPermit<'_> {
    type Target = Store;

    fn deref(&self) -> &Store {
        self.store
    }
}

impl ReadLimiter {
    pub fn new(store: &Store) -> Self {
        Self {
            store: store.for_long_reads(),
            permits: Semaphore::new(READS_MAX),
        }
    }

    /// Waits for a permit.
    pub async fn store(&self) -> ReadPermit<'_> {
        ReadPermit {
            _permit: self.permits.acquire().await,
            store: &self.store,
        }
    }

    /// Like [`Store::pages`], with a permit for each read.
    pub fn pages(
        self: Arc<Self>,
        filter: Filter,
        after: Cursor,
        size: usize,
    ) -> impl Stream<Item = Result<(Vec<Order>, Cursor), StoreError>> {
        let pages = Box::pin(self.store.pages(filter, after, size));
        futures_util::stream::try_unfold((self, pages), async |(reads, mut pages)| {
            let permit = reads.permits.acquire().await;
            let page = pages.try_next().await?;
            drop(permit);
            Ok(page.map(|page| (page, (reads, pages))))
        })
    }
}
