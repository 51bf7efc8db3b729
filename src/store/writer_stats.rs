//! Counters of this program's writer: its commits, and the writes that failed. `store/writer_state.rs` counts.

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
