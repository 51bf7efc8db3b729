//! What the writer of this process counts: its commits, and the writes that it refused.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::StoreError;
use crate::clock::{Clock, SystemClock};
use crate::histogram::Histogram;
use crate::order::Timestamp;

/// Upper bounds of what a commit may take, in microseconds: from a fast disk to one that hangs.
pub const COMMITTED_WITHIN_US: [u64; 12] = [
    250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 500_000, 2_500_000, 10_000_000,
];

/// Upper bounds of the number of writes in a commit; never more than the last.
pub const COMMITTED_AT_ONCE: [u64; 6] = [1, 4, 16, 64, 128, 256];

/// What the writer of this process has done since it began, and what waits for it.
#[derive(Clone, Debug, Default)]
pub struct WriterStats {
    /// How long commits took, from wanting the turn to write until all was on disk, in
    /// microseconds, by [`COMMITTED_WITHIN_US`].
    pub took: Histogram,
    /// How many writes shared a commit, by [`COMMITTED_AT_ONCE`].
    pub at_once: Histogram,
    /// Writes that were refused because too many were waiting.
    pub overloaded: u64,
    /// Writes that could not be carried out.
    pub unwritable: u64,
    /// Writes whose outcome is not known.
    pub unknown: u64,
    /// Writes that wait now.
    pub waiting: usize,
    /// Writes that may wait.
    pub waiting_max: usize,
    /// The moment at which writes began to fail; nothing while the last one has succeeded.
    pub failing_since: Option<Timestamp>,
    /// The moment at which writes succeeded again, if any had failed before.
    pub succeeding_since: Option<Timestamp>,
}

/// The counts behind [`WriterStats`].
#[derive(Clone, Default)]
pub(super) struct Counts(Arc<Mutex<WriterStats>>);

impl Counts {
    /// So many writes were committed together.
    pub fn committed(&self, writes: usize, took: Duration) {
        self.change(|writing| {
            writing.took.count_us(&COMMITTED_WITHIN_US, took);
            writing.at_once.count(&COMMITTED_AT_ONCE, writes as u64);
            if writing.failing_since.take().is_some() {
                writing.succeeding_since = Some(SystemClock.now());
            }
        });
    }

    /// A caller was told that its write was not done, or perhaps not.
    pub fn refused(&self, error: &StoreError) {
        self.change(|writing| {
            match error {
                // The database has done its part.
                StoreError::Deposed => return,
                // Others are carried out meanwhile.
                StoreError::Overloaded => {
                    writing.overloaded += 1;
                    return;
                }
                StoreError::Unwritable(_) | StoreError::Unreadable(_) | StoreError::Gone(_) => {
                    writing.unwritable += 1;
                }
                StoreError::OutcomeUnknown => writing.unknown += 1,
            }
            writing
                .failing_since
                .get_or_insert_with(|| SystemClock.now());
        });
    }

    /// All of it, with so many that wait of those that may.
    pub fn snapshot(&self, waiting: usize, waiting_max: usize) -> WriterStats {
        WriterStats {
            waiting,
            waiting_max,
            ..self
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone()
        }
    }

    fn change(&self, change: impl FnOnce(&mut WriterStats)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
