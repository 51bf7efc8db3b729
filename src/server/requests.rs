//! Requests in flight, and the queue of the connections without one.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::ConnectionState;

/// The state of a connection that its requests share.
pub(super) struct RequestTracker {
    pub state: Option<ConnectionState>,
    /// The requests whose answers are not written yet.
    pub in_flight: TaskTracker,
    pub idle_entry: Option<Arc<IdleEntry>>,
}

impl RequestTracker {
    /// Begins a request. Returns `None` if the connection was evicted.
    pub fn begin(&self) -> Option<RequestGuard> {
        if let Some(idle_entry) = &self.idle_entry {
            if !idle_entry.leave() {
                return None;
            }
            idle_entry.requests.fetch_add(1, Ordering::Relaxed);
        }
        Some(RequestGuard {
            _in_flight: self.in_flight.token(),
            idle_entry: self.idle_entry.clone(),
        })
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

/// A guard of a request in flight, which ends on drop.
pub(super) struct RequestGuard {
    _in_flight: TaskTrackerToken,
    idle_entry: Option<Arc<IdleEntry>>,
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        if let Some(idle_entry) = &self.idle_entry
            && idle_entry.requests.fetch_sub(1, Ordering::Relaxed) == 1
        {
            idle_entry.enter();
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
            in_flight: TaskTracker::new(),
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
