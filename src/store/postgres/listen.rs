//! Notifications of commits by other processes. A poll each second finds what a lost
//! notification has missed.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;

use super::connect::Connector;
use super::session::Session;

/// Interval after which a receiver is woken in any case.
const WAKE_INTERVAL: Duration = Duration::from_secs(1);

/// The receivers of notifications, which a task serves from the first one on.
#[derive(Default)]
pub(super) struct Listener(Mutex<Receivers>);

#[derive(Default)]
struct Receivers {
    all: Vec<Weak<Notify>>,
    is_running: bool,
}

impl Listener {
    /// Wakes a receiver for each commit of another process, and once a second, until it is dropped.
    pub fn subscribe(
        self: &Arc<Self>,
        connector: &Arc<Connector>,
        runtime: &tokio::runtime::Handle,
    ) -> Arc<Notify> {
        let receiver = Arc::new(Notify::new());
        let mut receivers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        receivers.all.push(Arc::downgrade(&receiver));
        if !std::mem::replace(&mut receivers.is_running, true) {
            runtime.spawn(self.clone().run(connector.clone()));
        }
        receiver
    }

    /// Listens while there are receivers.
    async fn run(self: Arc<Self>, connector: Arc<Connector>) {
        let notified = Arc::new(Notify::new());
        let mut session: Option<Session> = None;
        loop {
            if session.as_ref().is_none_or(Session::is_closed) {
                session = match connector.session_with(Some(notified.clone())).await {
                    Ok(session) => match session.execute("LISTEN order_service").await {
                        Ok(()) => Some(session),
                        Err(_) => None,
                    },
                    Err(_) => None,
                };
            }
            // A commit before the session listened is found by the first wake-up.
            if !self.wake_all() {
                return;
            }
            let _ = tokio::time::timeout(WAKE_INTERVAL, notified.notified()).await;
        }
    }

    /// Returns whether there are receivers.
    fn wake_all(&self) -> bool {
        let mut receivers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        receivers.all.retain(|receiver| match receiver.upgrade() {
            Some(receiver) => {
                receiver.notify_one();
                true
            }
            None => false,
        });
        receivers.is_running = !receivers.all.is_empty();
        receivers.is_running
    }
}
