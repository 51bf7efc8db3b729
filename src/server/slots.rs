//! The slots of a server: their number, the permits of long answers, and the assignment of a slot to each
//! new connection.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::ConnectionState;
use super::requests::{IdleQueue, RequestTracker};
use crate::process;

/// Maximum number of connections served at once, if the limit of open files allows it. Each takes about
/// 10 KiB.
pub const CONNECTIONS_MAX: usize = 2048;

/// Maximum number of connections served at once, however low the limit of open files.
const CONNECTIONS_MIN: usize = 64;

/// Number of slots for each one in the overflow, whose connection is answered once, quickly, and then
/// closed.
const SERVED_PER_OVERFLOW: usize = 8;

/// Maximum share of the slots that [long answers](LongAnswer) may take, in percent: the others are
/// reserved for requests that are answered at once.
const LONG_PERCENT: usize = 75;

/// Divisor of the slots: streams leave one in this many to lists.
const RESERVED_FOR_LISTS: usize = 32;

/// Pause before a failed accept is retried: file descriptors may have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The slots for connections and their use, shared by a server and the metrics.
#[derive(Clone)]
pub struct ConnectionStats {
    served_max: usize,
    overflow_max: usize,
    normal: Arc<Semaphore>,
    overflow: Arc<Semaphore>,
    long: Arc<Semaphore>,
    pub(super) in_flight: TaskTracker,
}

/// A permit for an answer that may take long: a held request, a stream, or a long list. A permit in the
/// extensions of a response is kept until the response is written.
#[derive(Clone)]
pub struct LongAnswer {
    _permit: Arc<OwnedSemaphorePermit>,
}

impl ConnectionStats {
    /// Returns free slots, as many as fit in the limit of open files, which is raised, beside this many
    /// connections that others open.
    pub fn beside(others: usize) -> Self {
        let wanted = CONNECTIONS_MAX + CONNECTIONS_MAX / SERVED_PER_OVERFLOW + others;
        let stats = Self::within(process::raise_file_limit(wanted).saturating_sub(others));
        let max = stats.served_max;
        if max < CONNECTIONS_MAX {
            log::warn!(
                "fewer connections are served at once connections={max} wanted={CONNECTIONS_MAX}"
            );
        }
        stats
    }

    /// Returns free slots for this many connections, those in the overflow included.
    pub fn within(connections: usize) -> Self {
        let served_max = (connections / (SERVED_PER_OVERFLOW + 1) * SERVED_PER_OVERFLOW)
            .clamp(CONNECTIONS_MIN, CONNECTIONS_MAX);
        let overflow_max = served_max / SERVED_PER_OVERFLOW;
        Self {
            served_max,
            overflow_max,
            normal: Arc::new(Semaphore::new(served_max)),
            overflow: Arc::new(Semaphore::new(overflow_max)),
            long: Arc::new(Semaphore::new(served_max * LONG_PERCENT / 100)),
            in_flight: TaskTracker::new(),
        }
    }

    /// Returns the number of connections that are served, and its maximum.
    pub fn served(&self) -> (usize, usize) {
        (taken(&self.normal, self.served_max), self.served_max)
    }

    /// Returns the number of connections in the overflow, which get one answer only, and its maximum.
    pub fn overflow(&self) -> (usize, usize) {
        (taken(&self.overflow, self.overflow_max), self.overflow_max)
    }

    /// Takes a permit for a long answer, if there is one.
    pub fn long_answer(&self) -> Option<LongAnswer> {
        let permit = self.long.clone().try_acquire_owned().ok()?;
        Some(LongAnswer {
            _permit: Arc::new(permit),
        })
    }

    /// Takes a permit for a stream, if there is one. Streams leave some permits to lists, which clients
    /// read where they get no stream.
    pub fn stream(&self) -> Option<LongAnswer> {
        match self.long.available_permits() > self.served_max / RESERVED_FOR_LISTS {
            true => self.long_answer(),
            false => None,
        }
    }

    /// Returns the number of requests whose answers are not written yet.
    pub fn requests(&self) -> usize {
        self.in_flight.len()
    }
}

fn taken(slots: &Semaphore, max: usize) -> usize {
    max.saturating_sub(slots.available_permits())
}

/// The slots of a server.
pub(super) struct Slots {
    stats: ConnectionStats,
    idle: IdleQueue,
    /// Tokens that end the connections in the overflow, oldest first.
    overflow: Mutex<VecDeque<CancellationToken>>,
}

/// The slot of a connection.
pub(super) struct Slot {
    pub state: Option<ConnectionState>,
    /// Queue for times without a request in flight; `None` in the overflow, which is never idle.
    idle: Option<IdleQueue>,
    /// Guard of the token that ends the connection, cancelled at its end too.
    pub end: DropGuard,
    _permit: OwnedSemaphorePermit,
}

impl Slot {
    fn new(
        state: Option<ConnectionState>,
        idle: Option<IdleQueue>,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            state,
            idle,
            end: CancellationToken::new().drop_guard(),
            _permit: permit,
        }
    }

    /// Returns the tracker of this connection's requests.
    pub fn tracker(
        &self,
        state: Option<ConnectionState>,
        in_flight: &TaskTracker,
    ) -> RequestTracker {
        let end = self.end.token();
        RequestTracker {
            state,
            in_flight: in_flight.clone(),
            idle_entry: self.idle.as_ref().map(|idle| idle.enter(end.clone())),
        }
    }
}

impl Slots {
    pub fn new(stats: ConnectionStats) -> Self {
        Self {
            stats,
            idle: IdleQueue::default(),
            overflow: Mutex::default(),
        }
    }

    /// Accepts a connection, and assigns a slot: a free one, that of the connection that has been idle
    /// longest, or, if all have a request in flight, one in the overflow. A full overflow evicts its
    /// oldest connection, most likely one that has not sent a request.
    pub async fn accept(&self, listener: &TcpListener) -> (TcpStream, Slot) {
        let stream = loop {
            match listener.accept().await {
                Ok((stream, _)) => break stream,
                Err(error) => {
                    log::debug!("accept: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        };
        if let Some(permit) = self.take_slot().await {
            return (stream, Slot::new(None, Some(self.idle.clone()), permit));
        }
        let permit = loop {
            if let Ok(permit) = self.stats.overflow.clone().try_acquire_owned() {
                break permit;
            }
            if let Some(oldest) = self.overflow().pop_front() {
                oldest.cancel();
            }
            tokio::task::yield_now().await;
        };
        let slot = Slot::new(Some(ConnectionState::Overflow), None, permit);
        let mut overflow = self.overflow();
        overflow.push_back(slot.end.token().clone());
        // Some of the connections have ended by themselves.
        if overflow.len() > 2 * self.stats.overflow_max {
            overflow.retain(|end| !end.is_cancelled());
        }
        drop(overflow);
        (stream, slot)
    }

    /// Takes a slot, if need be by evicting the connection that has been idle longest. Returns `None` if
    /// all have a request in flight.
    async fn take_slot(&self) -> Option<OwnedSemaphorePermit> {
        let slots = self.stats.normal.clone();
        if let Ok(permit) = slots.clone().try_acquire_owned() {
            return Some(permit);
        }
        if !self.idle.evict_longest() {
            return None;
        }
        // The evicted connection's task releases its permit. The semaphore is never closed.
        slots.acquire_owned().await.ok()
    }

    fn overflow(&self) -> MutexGuard<'_, VecDeque<CancellationToken>> {
        self.overflow.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_as_many_as_fit() {
        for (connections, served, overflow) in [
            (0, 64, 8),
            (768, 680, 85),
            (2_304, 2_048, 256),
            (usize::MAX, 2_048, 256),
        ] {
            let stats = ConnectionStats::within(connections);
            assert_eq!(stats.served(), (0, served), "{connections}");
            assert_eq!(stats.overflow(), (0, overflow), "{connections}");
            let long = std::iter::from_fn(|| stats.long_answer());
            assert_eq!(long.collect::<Vec<_>>().len(), served / 4 * 3);
        }
    }
}
