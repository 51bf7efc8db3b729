//! Notifications of commits by other programs. If none arrive, as a test at the beginning of each session
//! shows, receivers look for commits at short intervals, as on SQLite.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;

use super::connect::Connector;
use super::error::Error;
use super::session::Session;

/// Interval between two checks of the session, and for receivers.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Interval between two wake-ups if notifications do not arrive.
const UNNOTIFIED_WAKE_INTERVAL: Duration = Duration::from_millis(25);

/// Timeout of a session's own notification, once that is committed.
const NOTIFICATION_TIMEOUT: Duration = Duration::from_secs(1);

/// Receivers of notifications, and the task that wakes them.
#[derive(Default)]
pub(super) struct Listener(Mutex<Receivers>);

#[derive(Default)]
struct Receivers {
    all: Vec<Weak<Notify>>,
    is_running: bool,
}

impl Listener {
    /// Wakes a receiver for each commit of another program, until it is dropped.
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
        let (mut is_unnotified, mut is_due) = (false, false);
        loop {
            if session.as_ref().is_none_or(Session::is_closed) {
                session = connector.session_with(Some(notified.clone())).await.ok();
                if let Some(session) = &session {
                    is_unnotified = !receives_notifications(session, &notified).await;
                }
                // A commit before the session listened is found by this wake-up.
                is_due = true;
            }
            if !self.wake_all(is_due) {
                return;
            }
            let interval = match is_unnotified {
                true => UNNOTIFIED_WAKE_INTERVAL,
                false => CHECK_INTERVAL,
            };
            let woken = tokio::time::timeout(interval, notified.notified()).await;
            is_due = is_unnotified || woken.is_ok();
        }
    }

    /// Wakes all receivers if that is due, and returns whether there are any.
    fn wake_all(&self, is_due: bool) -> bool {
        let mut receivers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        receivers.all.retain(|receiver| match receiver.upgrade() {
            Some(receiver) => {
                if is_due {
                    receiver.notify_one();
                }
                true
            }
            None => false,
        });
        receivers.is_running = !receivers.all.is_empty();
        receivers.is_running
    }
}

/// Makes a session listen, and returns whether it receives a notification of its own. If the commit is not
/// answered in time, for example because a standby is missing, the test is inconclusive and returns true.
async fn receives_notifications(session: &Session, notified: &Notify) -> bool {
    let is_missing = async {
        session.execute("LISTEN order_service").await?;
        session.execute("NOTIFY order_service").await?;
        let received = tokio::time::timeout(NOTIFICATION_TIMEOUT, notified.notified()).await;
        Ok::<_, Error>(received.is_err())
    };
    let is_missing = tokio::time::timeout(2 * NOTIFICATION_TIMEOUT, is_missing).await;
    // Nor does a connection that has ended prove anything about the server.
    let is_received = !matches!(is_missing, Ok(Ok(true))) || session.is_closed();
    if !is_received {
        log::warn!(
            "notifications of the server do not arrive: looking for changes every \
             {UNNOTIFIED_WAKE_INTERVAL:?}"
        );
    }
    is_received
}
