//! The end of the use of a database that a program has open.

use tokio::sync::watch;

use super::OpenError;

/// A signal that a database must not be used any longer by this program, with the reason: its orders have
/// moved, or a later version of the program has migrated it. Clones share the signal.
#[derive(Clone, Debug, Default)]
pub(super) struct Retirement(watch::Sender<Option<OpenError>>);

impl Retirement {
    /// Gives the signal. The first reason is kept.
    pub fn retire(&self, reason: OpenError) {
        self.0.send_if_modified(|kept| {
            let is_first = kept.is_none();
            kept.get_or_insert(reason);
            is_first
        });
    }

    /// Returns the reason if the signal was given.
    pub fn reason(&self) -> Option<OpenError> {
        self.0.borrow().clone()
    }

    /// Waits for the signal, and returns the reason.
    pub async fn retired(&self) -> OpenError {
        let mut signal = self.0.subscribe();
        let reason = signal.wait_for(Option::is_some).await;
        match reason.ok().and_then(|reason| reason.clone()) {
            Some(reason) => reason,
            // The sender, which is ours, is gone: never.
            None => std::future::pending().await,
        }
    }
}
