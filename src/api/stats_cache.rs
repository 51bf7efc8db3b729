//! What is told of all orders together, kept in memory: the history that the journal adds up to,
//! brought up to date by what is new whenever it is asked for.
//!
//! Reading the whole journal happens once, at the first request. `stats` and `metrics` report it.

use std::sync::Arc;

use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::clock::{Clock, SystemClock};
use crate::journal_stats::JournalStats;
use crate::order::{Reason, ResolvedBy, Status, Timestamp};
use crate::pace::UpstreamState;
use crate::store::{StatsSnapshot, Store, StoreError};

/// The history, shared by all who ask.
#[derive(Default)]
pub(super) struct StatsCache {
    history: Arc<Mutex<JournalStats>>,
}

/// Everything as of one moment. Others who ask wait until it is dropped.
pub(super) struct Seen {
    pub now: Timestamp,
    pub history: OwnedMutexGuard<JournalStats>,
    pub glance: StatsSnapshot,
}

impl StatsCache {
    /// Brings the history up to date, where waiting holds up no one else. If the caller goes away
    /// meanwhile, that is done for the next one.
    pub async fn look(&self, store: &Store) -> Result<Seen, StoreError> {
        let mut history = self.history.clone().lock_owned().await;
        let store = store.for_long_reads();
        let look = async move {
            let glance = store.glance(&mut history, SystemClock.now()).await?;
            let now = SystemClock.now();
            history.drop_old_minutes(now);
            Ok(Seen {
                now,
                history,
                glance,
            })
        };
        tokio::spawn(look)
            .await
            .unwrap_or_else(|panic| Err(StoreError::Unreadable(panic.into())))
    }
}

impl Seen {
    /// How many orders there are in this status. The history knows of those that were removed, too.
    pub fn orders(&self, status: Status) -> u64 {
        let removed = self.glance.pruned.in_status(status);
        self.history.orders(status).saturating_sub(removed)
    }

    /// Number of orders with this attention, as they themselves say: while the upstream is down, all open
    /// orders without another reason have it.
    pub fn attention(&self, reason: Reason, by: ResolvedBy) -> u64 {
        let stored = self.glance.attention.iter();
        let told = stored
            .clone()
            .filter(|(of, of_by, _)| (*of, *of_by) == (reason, by))
            .map(|(_, _, count)| count)
            .sum();
        let is_down = matches!(self.glance.heartbeat.upstream, UpstreamState::Down { .. });
        if (reason, by) != (Reason::UpstreamUnreachable, ResolvedBy::Itself) || !is_down {
            return told;
        }
        let with_reason: u64 = stored.map(|(_, _, count)| count).sum();
        told + self.history.open().saturating_sub(with_reason)
    }
}
