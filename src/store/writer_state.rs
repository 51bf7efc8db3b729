//! The state of a program's writer that its callers share, and its log lines: each failure is logged once.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::writer_stats::Counters;
use crate::clock::DatabaseClock;

/// State shared by the writer and its callers.
#[derive(Clone)]
pub(super) struct WriterState {
    pub counters: Counters,
    pub commits: watch::Sender<()>,
    /// Reason to log when a write is withdrawn.
    blocked_by: &'static str,
    /// Message of the last failure, so that consecutive equal failures are logged once.
    logged_failure: Arc<Mutex<Option<String>>>,
}

impl WriterState {
    pub fn new(clock: DatabaseClock, blocked_by: &'static str) -> Self {
        Self {
            counters: Counters::new(clock),
            commits: watch::Sender::new(()),
            blocked_by,
            logged_failure: Arc::default(),
        }
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
