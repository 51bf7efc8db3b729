//! The lock of the reconciler that leads: one of a session, which the server lets go when the
//! connection ends. It is tried, never waited for: a session that waits holds a snapshot, which would
//! keep vacuum from its work.

use std::fmt;
use std::sync::Arc;

use tokio::sync::Mutex;

use super::connect::Connector;
use super::error::Error;
use super::session::{LEADER_LOCK, Session};

/// The lock of the reconciler that leads, and the session that holds it.
pub(in crate::store) struct LeaderLock(Box<Session>);

impl LeaderLock {
    /// Returns whether the connection has ended, after which another reconciler may lead.
    pub fn is_lost(&self) -> bool {
        self.0.is_closed()
    }
}

impl fmt::Debug for LeaderLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LeaderLock")
    }
}

/// The session on which a standby tries to take the lock, and whether there was one before.
#[derive(Default)]
pub(super) struct Standby(Mutex<(Option<Session>, bool)>);

impl Standby {
    /// Takes the lock, if no one else has it.
    pub async fn try_take(&self, connector: &Arc<Connector>) -> Result<Option<LeaderLock>, Error> {
        let (kept, is_next) = &mut *self.0.lock().await;
        let session = match kept.take().filter(|session| !session.is_closed()) {
            Some(session) => session,
            None if *is_next => connector.next_session().await?,
            None => connector.session().await?,
        };
        *is_next = true;
        if session.try_lock(LEADER_LOCK).await? {
            return Ok(Some(LeaderLock(Box::new(session))));
        }
        *kept = Some(session);
        Ok(None)
    }
}
