//! Reads of the database, a few at a time. Who asks waits for a permit without a thread, because a read
//! holds one, and a connection to the database: readers that each waited in a thread would use up all
//! threads, and everyone else would wait too.

use tokio::sync::Semaphore;

use crate::store::{Store, StoreError};

/// Reads of a kind that may be made at once. They leave the other connections to the database to
/// everyone else.
const READS_MAX: usize = 2;

/// Reads of one kind.
pub(super) struct Reads {
    store: Store,
    permits: Semaphore,
}

impl Reads {
    pub fn new(store: Store) -> Self {
        Self {
            store,
            permits: Semaphore::new(READS_MAX),
        }
    }

    /// Reads once there is a permit. The permit is held until `read` returns, and no longer.
    pub async fn read<T>(
        &self,
        read: impl FnOnce(&Store) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        // The semaphore is never closed.
        let _permit = self.permits.acquire().await;
        tokio::task::block_in_place(|| read(&self.store))
    }
}
