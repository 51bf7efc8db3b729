//! Counters of this program's writer: its commits, and the writes that failed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::StoreError;
use crate::clock::{Clock, DatabaseClock};
use crate::histogram::Histogram;
use crate::order::Timestamp;

/// Bucket bounds of the duration of a commit, in microseconds: from a fast disk to one that hangs.
pub const COMMIT_TIME_BOUNDS_US: [u64; 12] = [
    250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 500_000, 2_500_000, 10_000_000,
];

/// Bucket bounds of the number of writes in a commit, which never exceeds the last.
pub const COMMIT_SIZE_BOUNDS: [u64; 6] = [1, 4, 16, 64, 128, 256];

/// Counters of this program's writer since its start, and the length of its queue.
#[derive(Clone, Debug, Default)]
pub struct WriterStats {
    /// Durations of commits, from the request for the write lock until all is on disk, in
    /// microseconds; bounds in [`COMMIT_TIME_BOUNDS_US`].
    pub commit_times: Histogram,
    /// Numbers of writes per commit; bounds in [`COMMIT_SIZE_BOUNDS`].
    pub commit_sizes: Histogram,
    /// Waits for the numbering lock, in microseconds; bounds in [`COMMIT_TIME_BOUNDS_US`]. Empty where an
    /// engine has no such lock.
    pub lock_waits: Histogram,
    /// Number of writes rejected because the queue was full.
    pub overloaded: u64,
    /// Number of writes that failed without effect.
    pub unwritable: u64,
    /// Number of writes of unknown outcome.
    pub unknown: u64,
    /// Writes in the queue now.
    pub waiting: usize,
    /// Capacity of the queue.
    pub waiting_max: usize,
    /// Time at which writes began to fail; `None` if the last write succeeded.
    pub failing_since: Option<Timestamp>,
    /// Time at which writes succeeded again; `None` if none had failed before.
    pub succeeding_since: Option<Timestamp>,
}

/// Shared counters behind [`WriterStats`], with the clock by which their times are taken.
#[derive(Clone)]
pub(super) struct Counters {
    stats: Arc<Mutex<WriterStats>>,
    clock: DatabaseClock,
}

impl Counters {
    /// Returns counters by this clock.
    pub fn new(clock: DatabaseClock) -> Self {
        Self {
            stats: Arc::default(),
            clock,
        }
    }

    /// Counts a commit of this many writes.
    pub fn on_committed(&self, writes: usize, took: Duration) {
        self.change(|stats| {
            stats.commit_times.count_us(&COMMIT_TIME_BOUNDS_US, took);
            stats.commit_sizes.count(&COMMIT_SIZE_BOUNDS, writes as u64);
            if stats.failing_since.take().is_some() {
                stats.succeeding_since = Some(self.clock.now());
            }
        });
    }

    /// Counts a wait for the numbering lock, in microseconds.
    #[cfg(feature = "postgres")]
    pub fn on_locked(&self, waited_us: i64) {
        let waited = Duration::from_micros(waited_us.unsigned_abs());
        self.change(|stats| stats.lock_waits.count_us(&COMMIT_TIME_BOUNDS_US, waited));
    }

    /// Counts a write that failed or whose outcome is unknown.
    pub fn on_failed(&self, error: &StoreError) {
        self.change(|stats| {
            match error {
                // The database has worked as it should.
                StoreError::Deposed => return,
                // Other writes are executed meanwhile.
                StoreError::Overloaded => {
                    stats.overloaded += 1;
                    return;
                }
                StoreError::Unwritable(_) | StoreError::Unreadable(_) | StoreError::Gone(_) => {
                    stats.unwritable += 1;
                }
                StoreError::OutcomeUnknown => stats.unknown += 1,
            }
            stats.failing_since.get_or_insert_with(|| self.clock.now());
        });
    }

    /// Returns the counters, with the length and capacity of the queue.
    pub fn snapshot(&self, waiting: usize, waiting_max: usize) -> WriterStats {
        WriterStats {
            waiting,
            waiting_max,
            ..self
                .stats
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone()
        }
    }

    fn change(&self, change: impl FnOnce(&mut WriterStats)) {
        change(&mut self.stats.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
