//! Permits of reads on a runtime's worker threads. Each read holds a thread and a connection until it is
//! answered, so it waits for a permit first, asynchronously: reads that waited in threads would use up
//! all of them and hold up every other request.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::store::StoreError;

/// Maximum number of long reads at a time, per handle. All handles together may make more than there are
/// connections; a read then waits for one in its thread.
const LONG_READS_MAX: usize = 2;

/// Time limit of waiting to make a short read. Others take some microseconds, unless the disk hangs.
const SHORT_READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Kinds of reads of a handle: the thread on which each is made, and how many at a time.
#[derive(Clone)]
pub(in crate::store) enum Reads {
    /// On the calling thread, for threads that may block.
    Unlimited,
    /// On the calling thread, while one worker thread stays free. To hand the thread's other tasks to
    /// another one instead takes 44 us of processor time per read where this takes 22, and at best 46 us
    /// instead of 40 with 64 connections (`scripts/bench get`, alternating runs).
    Short(Arc<Semaphore>),
    /// On the calling thread, after its other tasks were handed to another one, which takes some 20 us.
    Long(Arc<Semaphore>),
}

impl Reads {
    /// Returns the short reads of the current runtime, which needs two worker threads: with one there is no
    /// permit, and each read fails after [`SHORT_READ_TIMEOUT`].
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn short() -> Self {
        let threads = Handle::current().metrics().num_workers();
        Self::Short(Arc::new(Semaphore::new(threads.saturating_sub(1))))
    }

    pub fn long() -> Self {
        Self::Long(Arc::new(Semaphore::new(LONG_READS_MAX)))
    }

    /// Waits for a permit, where one is needed.
    pub async fn permit(&self) -> Result<Option<SemaphorePermit<'_>>, StoreError> {
        Ok(match self {
            Self::Unlimited => None,
            Self::Short(permits) => {
                let permit = tokio::time::timeout(SHORT_READ_TIMEOUT, permits.acquire()).await;
                let late = |_| StoreError::Unreadable("earlier reads have not ended".into());
                // The semaphore is never closed.
                permit.map_err(late)?.ok()
            }
            Self::Long(permits) => permits.acquire().await.ok(),
        })
    }

    /// Makes a read on this thread.
    pub fn run<T>(&self, read: impl FnOnce() -> T) -> T {
        match self {
            Self::Unlimited | Self::Short(_) => read(),
            Self::Long(_) => tokio::task::block_in_place(read),
        }
    }
}
