//! The state of a program's writer that its callers share: its counters, and its log lines, of which each
//! failure has one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::StoreError;
use super::writer_stats::{COMMIT_SIZE_BOUNDS, COMMIT_TIME_BOUNDS_US, WriterStats};
use crate::clock::{Clock, DatabaseClock};

/// State shared by the writer and its callers.
#[derive(Clone)]
pub(super) struct WriterState {
    /// Clock by which orders are dated, and the times of failures.
    pub clock: DatabaseClock,
    pub commits: watch::Sender<()>,
    stats: Arc<Mutex<WriterStats>>,
    /// Reason to log when a write is withdrawn.
    blocked_by: &'static str,
    /// Message of the last failure, so that consecutive equal failures are logged once.
    logged_failure: Arc<Mutex<Option<String>>>,
}

impl WriterState {
    pub fn new(clock: DatabaseClock, blocked_by: &'static str) -> Self {
        Self {
            clock,
            commits: watch::Sender::new(()),
            stats: Arc::default(),
            blocked_by,
            logged_failure: Arc::default(),
        }
    }

    /// Counts a commit of this many writes.
    pub fn on_committed(&self, writes: usize, took: Duration) {
        let mut stats = self.stats();
        stats.commit_times.count_us(&COMMIT_TIME_BOUNDS_US, took);
        stats.commit_sizes.count(&COMMIT_SIZE_BOUNDS, writes as u64);
        if stats.failing_since.take().is_some() {
            stats.succeeding_since = Some(self.clock.now());
        }
    }

    /// Counts a wait for the numbering lock, in microseconds.
    #[cfg(feature = "postgres")]
    pub fn on_locked(&self, waited_us: i64) {
        let waited = Duration::from_micros(waited_us.unsigned_abs());
        let lock_waits = &mut self.stats().lock_waits;
        lock_waits.count_us(&COMMIT_TIME_BOUNDS_US, waited);
    }

    /// Counts a write that failed or whose outcome is unknown.
    pub fn on_failed(&self, error: &StoreError) {
        let mut stats = self.stats();
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
    }

    /// Returns the error of a write for which there is no place in the queue.
    pub fn refusal(&self) -> StoreError {
        match self.stats().failing_since {
            None => StoreError::Overloaded,
            // Most of the others were withdrawn, and leave the queue once something can be written.
            Some(_) => StoreError::unwritable("earlier writes could not begin in time"),
        }
    }

    /// Returns the counters; the queue counts the writes that wait.
    pub fn stats(&self) -> MutexGuard<'_, WriterStats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the subscribers to commits, and logs that the database can be written again.
    pub fn report_success(&self) {
        self.commits.send_replace(());
        if self.logged_failure().take().is_some() {
            log::info!("the database can be written again");
        }
    }

    /// Logs that the database cannot be written.
    pub fn report_failure(&self, cause: String) {
        let mut logged = self.logged_failure();
        if logged.as_ref() != Some(&cause) {
            log::error!("the database cannot be written: {cause}");
            *logged = Some(cause);
        }
    }

    /// Logs that a write was withdrawn because nothing can be committed, unless the cause is logged.
    pub fn report_stuck(&self) {
        let is_logged = self.logged_failure().is_some();
        if !is_logged {
            self.report_failure(self.blocked_by.to_owned());
        }
    }

    fn logged_failure(&self) -> MutexGuard<'_, Option<String>> {
        let lock = self.logged_failure.lock();
        lock.unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::store::queue::Queue;
    use crate::store::write::Write;

    #[tokio::test]
    async fn a_full_queue_is_an_overload_unless_nothing_can_be_written() {
        let state = WriterState::new(DatabaseClock::default(), "nothing");
        let (queue, _sender, _waiting) = Queue::new(state.clone());
        let write = || queue.write(|reply| Write::CheckFiles { reply });
        while write().now_or_never().is_none() {}
        assert!(matches!(write().await, Err(StoreError::Overloaded)));
        state.on_failed(&StoreError::OutcomeUnknown);
        assert!(matches!(write().await, Err(StoreError::Unwritable(_))));
    }
}
