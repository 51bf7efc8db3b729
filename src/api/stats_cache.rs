//! A cache of statistics over all orders: totals of the journal, updated with new events on each
//! request.
//!
//! Only the first request reads the whole journal. `stats` and `metrics` report the figures.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;

use crate::clock::Clock;
use crate::journal_stats::JournalStats;
use crate::order::{Reason, ResolvedBy, Status, Timestamp};
use crate::pace::UpstreamState;
use crate::store::{Cursor, StatsSnapshot, Store, StoreError};

/// Time limit for the statistics: less than the 10 s after which Prometheus gives up a scrape. The first
/// request after a start reads the whole journal.
const READ_TIMEOUT: Duration = Duration::from_secs(8);

/// The cached statistics, shared by all requests.
#[derive(Default)]
pub(super) struct StatsCache {
    /// A cursor of the history whose events are counted, and their statistics.
    journal: Arc<Mutex<(Cursor, JournalStats)>>,
}

/// All statistics as of one moment.
pub(super) struct CachedStats {
    pub now: Timestamp,
    pub journal: JournalStats,
    pub snapshot: StatsSnapshot,
}

impl StatsCache {
    /// Updates the statistics, by a long read. If the caller disconnects, the update still completes and
    /// serves the next caller.
    ///
    /// # Errors
    /// [`StoreError::Unreadable`] also if that takes longer than [`READ_TIMEOUT`].
    pub async fn read(&self, store: &Store) -> Result<CachedStats, StoreError> {
        let read = tokio::time::timeout(READ_TIMEOUT, self.update(store)).await;
        let late = format!("the statistics were not read within {READ_TIMEOUT:?}");
        read.unwrap_or_else(|_| Err(StoreError::Unreadable(late.into())))
    }

    async fn update(&self, store: &Store) -> Result<CachedStats, StoreError> {
        let mut cached = self.journal.clone().lock_owned().await;
        let store = store.for_long_reads();
        let read = async move {
            let clock = store.clock();
            let (counted, journal) = &mut *cached;
            let newest = store.newest_event().await?;
            if !newest.has_history_of(*counted) {
                // The numbers of events that a promoted standby lacks are used again.
                (*counted, *journal) = (newest, JournalStats::default());
            }
            let snapshot = store.update_stats(journal, clock.now()).await?;
            let now = clock.now();
            journal.drop_old_minutes(now);
            // A copy, so that a slow caller holds no lock.
            Ok(CachedStats {
                now,
                journal: journal.clone(),
                snapshot,
            })
        };
        tokio::spawn(read)
            .await
            .unwrap_or_else(|panic| Err(StoreError::Unreadable(panic.into())))
    }
}

impl CachedStats {
    /// Returns the number of orders with this status. The journal's statistics include pruned
    /// orders, which are subtracted.
    pub fn orders(&self, status: Status) -> u64 {
        let removed = self.snapshot.pruned.in_status(status);
        self.journal.orders(status).saturating_sub(removed)
    }

    /// Returns the number of orders with this attention, as stored in the orders. While the
    /// upstream is down, all open orders without another reason have it.
    pub fn attention(&self, reason: Reason, by: ResolvedBy) -> u64 {
        let stored = self.snapshot.attention.iter();
        let count = stored
            .clone()
            .filter(|(other, other_by, _)| (*other, *other_by) == (reason, by))
            .map(|(_, _, count)| count)
            .sum();
        let is_down = matches!(self.snapshot.heartbeat.upstream, UpstreamState::Down { .. });
        if (reason, by) != (Reason::UpstreamUnreachable, ResolvedBy::Itself) || !is_down {
            return count;
        }
        let with_reason: u64 = stored.map(|(_, _, count)| count).sum();
        count + self.journal.open().saturating_sub(with_reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::order::{EventReason, OrderId};
    use crate::store::{DatabaseUrl, Mode};

    #[tokio::test(flavor = "multi_thread")]
    async fn statistics_of_a_lost_history_are_read_again() {
        let cache = StatsCache::default();
        let mut created = Vec::new();
        // Like a promoted standby, the second database has fewer events than were counted.
        for count in [3, 2] {
            let folder = tempfile::tempdir().unwrap();
            let url = DatabaseUrl::from(folder.path().join("orders.db"));
            let store = Store::open(&url, Mode::Threaded).unwrap();
            for n in 0..count {
                let id = OrderId::new(format!("a{n}")).unwrap();
                store.create(id, Timestamp(1)).await.unwrap();
            }
            let cached = cache.read(&store).await.unwrap();
            created.push(cached.journal.entries_with(EventReason::Created));
        }
        assert_eq!(created, [3, 2]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn statistics_in_use_delay_no_other_request() {
        let folder = tempfile::tempdir().unwrap();
        let url = DatabaseUrl::from(folder.path().join("orders.db"));
        let store = Store::open(&url, Mode::Threaded).unwrap();
        let cache = StatsCache::default();
        let in_use = cache.read(&store).await.unwrap();
        let read = tokio::time::timeout(Duration::from_secs(5), cache.read(&store));
        assert!(read.await.is_ok());
        drop(in_use);
    }
}
