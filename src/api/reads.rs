//! Reads of the database, a few at a time. Who asks waits for a permit without a thread, because a read
//! may hold one, and a connection to the database: readers that each waited in a thread would use up
//! all threads, and everyone else would wait too.

use std::ops::Deref;

use tokio::sync::{AcquireError, Semaphore, SemaphorePermit};

use crate::store::Store;

/// Reads of a kind that may be made at once. They leave the other connections to the database to
/// everyone else.
const READS_MAX: usize = 2;

/// Reads of one kind.
pub(super) struct Reads {
    store: Store,
    permits: Semaphore,
}

/// The store, for one who may read. Others may once this is dropped.
pub(super) struct Permitted<'a> {
    store: &'a Store,
    // The semaphore is never closed.
    _permit: Result<SemaphorePermit<'a>, AcquireError>,
}

impl Deref for Permitted<'_> {
    type Target = Store;

    fn deref(&self) -> &Store {
        self.store
    }
}

impl Reads {
    pub fn new(store: &Store) -> Self {
        Self {
            store: store.for_long_reads(),
            permits: Semaphore::new(READS_MAX),
        }
    }

    /// Waits for a permit.
    pub async fn store(&self) -> Permitted<'_> {
        Permitted {
            _permit: self.permits.acquire().await,
            store: &self.store,
        }
    }
}
