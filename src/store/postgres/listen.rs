//! Notifications of commits by other processes. Where they do not arrive at all, as a test at the beginning
//! of each session shows, polls are as frequent as on SQLite.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;

use super::connect::Connector;
use super::error::Error;
use super::session::Session;

/// Interval between two checks of the session, and for receivers.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Interval between two wake-ups where notifications do not arrive.
const DEAF_WAKE_INTERVAL: Duration = Duration::from_millis(25);

/// Time within which a session hears its own notification, once that is committed.
const HEARD_WITHIN: Duration = Duration::from_secs(1);

/// Receivers of notifications, and the task that wakes them.
#[derive(Default)]
pub(super) struct Listener(Mutex<Receivers>);

#[derive(Default)]
struct Receivers {
    all: Vec<Weak<Notify>>,
    is_running: bool,
}

impl Listener {
    /// Wakes a receiver for each commit of another process, until it is dropped.
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
        let (mut is_deaf, mut is_due) = (false, false);
        loop {
            if session.as_ref().is_none_or(Session::is_closed) {
                let is_first = session.is_none();
                session = connector.session_with(Some(notified.clone())).await.ok();
                if let Some(session) = &session {
                    if !is_first {
                        connector.on_reconnect();
                    }
                    is_deaf = !hears(session, &notified).await;
                }
                // A commit before the session listened is found by this wake-up.
                is_due = true;
            }
            if !self.wake_all(is_due) {
                return;
            }
            let interval = match is_deaf {
                true => DEAF_WAKE_INTERVAL,
                false => CHECK_INTERVAL,
            };
            let heard = tokio::time::timeout(interval, notified.notified()).await;
            is_due = is_deaf || heard.is_ok();
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

/// Makes a session listen, and returns whether it hears a notification of its own. One whose commit is
/// not answered in time, as while a standby is missing, says nothing about those of others.
async fn hears(session: &Session, notified: &Notify) -> bool {
    let is_silent = async {
        session.execute("LISTEN order_service").await?;
        session.execute("NOTIFY order_service").await?;
        let heard = tokio::time::timeout(HEARD_WITHIN, notified.notified()).await;
        Ok::<_, Error>(heard.is_err())
    };
    let is_silent = tokio::time::timeout(2 * HEARD_WITHIN, is_silent).await;
    // A connection that has ended says nothing about the server.
    let is_heard = !matches!(is_silent, Ok(Ok(true))) || session.is_closed();
    if !is_heard {
        log::warn!(
            "notifications of the server do not arrive: looking for changes every \
             {DEAF_WAKE_INTERVAL:?}"
        );
    }
    is_heard
}
