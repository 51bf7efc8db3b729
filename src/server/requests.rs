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
            .is_some_and(|idle_entry| !idle_entry.leave())
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
    by_number: BTreeMap<u64, CancellationToken>,
    last_number: u64,
}

impl IdleQueue {
    /// Adds a new connection, which is idle until its first request.
    pub fn enter(&self, end: CancellationToken) -> Arc<IdleEntry> {
        let idle_entry = IdleEntry {
            number: AtomicU64::new(0),
            requests: AtomicUsize::new(0),
            queue: self.clone(),
            connection: end,
        };
        idle_entry.enter();
        Arc::new(idle_entry)
    }

    /// Evicts the connection that has been idle longest. Returns false if none is idle.
    pub fn evict_longest(&self) -> bool {
        let longest = self.lock().by_number.pop_first();
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
    number: AtomicU64,
    /// Number of requests in flight. A client may send the next one before it has read an answer.
    requests: AtomicUsize,
    queue: IdleQueue,
    connection: CancellationToken,
}

impl IdleEntry {
    /// Enters the queue at its end.
    fn enter(&self) {
        let mut queue = self.queue.lock();
        queue.last_number += 1;
        let number = queue.last_number;
        queue.by_number.insert(number, self.connection.clone());
        self.number.store(number, Ordering::Relaxed);
    }

    /// Leaves the queue. Returns false if the connection was evicted.
    fn leave(&self) -> bool {
        let mut queue = self.queue.lock();
        let number = self.number.swap(0, Ordering::Relaxed);
        number == 0 || queue.by_number.remove(&number).is_some()
    }
}

impl Drop for IdleEntry {
    fn drop(&mut self) {
        self.leave();
    }
}

/// A counter of the requests whose answers are not written yet.
#[derive(Clone, Default)]
pub(super) struct InFlight(Arc<InFlightCount>);

#[derive(Default)]
struct InFlightCount {
    count: AtomicUsize,
    reached_zero: Notify,
}

impl InFlight {
    fn begin(&self, idle_entry: Option<Arc<IdleEntry>>) -> RequestGuard {
        self.0.count.fetch_add(1, Ordering::AcqRel);
        if let Some(idle_entry) = &idle_entry {
            idle_entry.requests.fetch_add(1, Ordering::Relaxed);
        }
        RequestGuard {
            in_flight: self.0.clone(),
            idle_entry,
        }
    }

    pub fn count(&self) -> usize {
        self.0.count.load(Ordering::Acquire)
    }

    /// Waits until no request is in flight.
    pub async fn wait_until_none(&self) {
        loop {
            // Created before the count is read, so that no notification is missed.
            let reached_zero = self.0.reached_zero.notified();
            if self.count() == 0 {
                return;
            }
            reached_zero.await;
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
        if let Some(idle_entry) = &self.idle_entry
            && idle_entry.requests.fetch_sub(1, Ordering::Relaxed) == 1
        {
            idle_entry.enter();
        }
        if self.in_flight.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.in_flight.reached_zero.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_idle_once_all_of_its_requests_have_ended() {
        let queue = IdleQueue::default();
        let tracker = RequestTracker {
            state: None,
            in_flight: InFlight::default(),
            idle_entry: Some(queue.enter(CancellationToken::new())),
        };
        let [first, second] = [tracker.begin(), tracker.begin()];
        drop(first);
        assert!(!queue.evict_longest());
        drop(second);
        assert!(queue.evict_longest());
        assert!(tracker.begin().is_none());
        assert!(!queue.evict_longest());
    }
}
