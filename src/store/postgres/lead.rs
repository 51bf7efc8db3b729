//! The lock of the reconciler that leads: one of a session, which the server lets go when the
//! connection ends. It is tried, never waited for: a session that waits holds a snapshot, which would
//! keep vacuum from its work.

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

/// The session on which a standby tries to take the lock.
#[derive(Default)]
pub(super) struct Standby(Mutex<Option<Session>>);

impl Standby {
    /// Takes the lock, if no one else has it.
    pub async fn try_take(&self, connector: &Arc<Connector>) -> Result<Option<LeaderLock>, Error> {
        let mut kept = self.0.lock().await;
        let session = match kept.take().filter(|session| !session.is_closed()) {
            Some(session) => session,
            None => connector.session().await?,
        };
        if session.try_lock(LEADER_LOCK).await? {
            return Ok(Some(LeaderLock(Box::new(session))));
        }
        *kept = Some(session);
        Ok(None)
    }
}
