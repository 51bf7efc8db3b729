//! Requests in flight, and the queue of the connections without one.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::ConnectionState;

/// The state of a connection that its requests share.
pub(super) struct RequestTracker {
    pub state: Option<ConnectionState>,
    pub in_flight: InFlight,
    pub idle_entry: Option<Arc<IdleEntry>>,
}

impl RequestTracker {
    /// Begins a request. Returns `None` if the connection was evicted.
    pub fn begin(&self) -> Option<RequestGuard> {
        if self
            .idle_entry
            .as_ref()
            .is_some_and(|idle_entry| !idle_entry.end())
        {
            return None;
        }
        Some(self.in_flight.begin(self.idle_entry.clone()))
    }
}

/// A queue of the connections without a request in flight. When all slots are taken, a new connection
/// evicts the one that has been idle longest: clients that pool connections have to tolerate that at any
/// time anyway.
#[derive(Clone, Default)]
pub(super) struct IdleQueue(Arc<Mutex<IdleConnections>>);

#[derive(Default)]
struct IdleConnections {
    /// Tokens that end the connections, by a number that grows with time.
    since: BTreeMap<u64, CancellationToken>,
    last: u64,
}

impl IdleQueue {
    /// Adds a new connection, which is idle until its first request.
    pub fn enter(&self, end: CancellationToken) -> Arc<IdleEntry> {
        let idle_entry = IdleEntry {
            since: AtomicU64::new(0),
            idle: self.clone(),
            connection: end,
        };
        idle_entry.begin();
        Arc::new(idle_entry)
    }

    /// Evicts the connection that has been idle longest. Returns false if none is idle.
    pub fn evict_longest(&self) -> bool {
        let longest = self.lock().since.pop_first();
        if let Some((_, end)) = &longest {
            end.cancel();
        }
        longest.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, IdleConnections> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's entry in [`IdleQueue`], removed on drop.
pub(super) struct IdleEntry {
    /// Number in the queue; 0 while a request is in flight.
    since: AtomicU64,
    idle: IdleQueue,
    connection: CancellationToken,
}

impl IdleEntry {
    fn begin(&self) {
        let mut idle = self.idle.lock();
        idle.last += 1;
        let since = idle.last;
        idle.since.insert(since, self.connection.clone());
        self.since.store(since, Ordering::Relaxed);
    }

    /// Leaves the queue. Returns false if the connection was evicted.
    fn end(&self) -> bool {
        let mut idle = self.idle.lock();
        let since = self.since.swap(0, Ordering::Relaxed);
        since == 0 || idle.since.remove(&since).is_some()
    }
}

impl Drop for IdleEntry {
    fn drop(&mut self) {
        self.end();
    }
}

/// A counter of the requests whose answers are not written yet.
#[derive(Clone, Default)]
pub(super) struct InFlight(Arc<InFlightCount>);

#[derive(Default)]
struct InFlightCount {
    count: AtomicUsize,
    none: Notify,
}

impl InFlight {
    fn begin(&self, idle_entry: Option<Arc<IdleEntry>>) -> RequestGuard {
        self.0.count.fetch_add(1, Ordering::AcqRel);
        RequestGuard {
            in_flight: self.0.clone(),
            idle_entry,
        }
    }

    pub fn count(&self) -> usize {
        self.0.count.load(Ordering::Acquire)
    }

    /// Waits until no request is in flight.
    pub async fn none(&self) {
        loop {
            // Created before the count is read, so that no notification is missed.
            let none = self.0.none.notified();
            if self.count() == 0 {
                return;
            }
            none.await;
        }
    }
}

/// A guard of a request in flight, which ends on drop.
pub(super) struct RequestGuard {
    in_flight: Arc<InFlightCount>,
    idle_entry: Option<Arc<IdleEntry>>,
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        if let Some(idle_entry) = &self.idle_entry {
            idle_entry.begin();
        }
        if self.in_flight.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.in_flight.none.notify_waiters();
        }
    }
}
