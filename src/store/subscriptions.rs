//! Subscriptions to commits, by this or any other program.
//!
//! A wake-up does not say what was committed: it makes its receiver read, so a spurious one is
//! harmless.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::Store;

/// Wait after which a receiver is woken in any case, for a commit that the engine has not detected. A little
/// more than the default schedule's second, whose passes read for themselves.
const WAKE_INTERVAL: Duration = Duration::from_millis(1_100);

/// A subscription to changes of orders.
pub struct Changes {
    /// Commits of this program.
    pub(super) own: watch::Receiver<()>,
    /// Commits of other programs, as the engine detects them.
    pub(super) others: Arc<Notify>,
}

impl Changes {
    /// Waits until a commit may have happened since the last call.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.own.changed() => {}
            () = self.others.notified() => {}
            () = tokio::time::sleep(WAKE_INTERVAL) => {}
        }
    }
}

/// A subscription to the creation of orders.
pub struct NewOrders {
    pub(super) store: Store,
    pub(super) changes: Changes,
    /// Sequence number of the newest order reported.
    pub(super) newest: i64,
    /// Set while a wake-up has not been followed by a read.
    pub(super) is_unread: bool,
}

impl NewOrders {
    /// Like `next`. Never returns if there is no subscription.
    pub async fn next_of(subscription: &mut Option<Self>) {
        match subscription {
            Some(subscription) => subscription.next().await,
            None => std::future::pending().await,
        }
    }

    /// Waits until an order has been created since the last call. A wait that is dropped loses nothing.
    pub async fn next(&mut self) {
        loop {
            if !self.is_unread {
                self.changes.next().await;
                self.is_unread = true;
            }
            // While the database cannot be read, the schedule of passes suffices.
            let newest = self.store.newest_seq().await.unwrap_or(self.newest);
            self.is_unread = false;
            if std::mem::replace(&mut self.newest, newest) < newest {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::order::{OrderId, Timestamp};
    use crate::store::{DatabaseUrl, Mode};

    async fn create(store: &Store, id: &str) {
        let id = OrderId::new(id).unwrap();
        store.create(id, Timestamp(1)).await.unwrap();
    }

    /// Returns a subscription to the commits of this program alone.
    fn unpolled(store: &Store) -> Changes {
        Changes {
            own: store.queue().commits(),
            others: Arc::default(),
        }
    }

    #[tokio::test]
    async fn a_receiver_is_woken_after_some_time_also_if_no_commit_was_detected() {
        let folder = tempfile::tempdir().unwrap();
        let path = DatabaseUrl::from(folder.path().join("orders.db"));
        let store = Store::open(&path, Mode::Threaded).unwrap();
        unpolled(&store).next().await;
    }

    #[tokio::test]
    async fn orders_of_this_process_are_noticed_without_a_poll_and_those_of_others_by_polls() {
        let folder = tempfile::tempdir().unwrap();
        let path = DatabaseUrl::from(folder.path().join("orders.db"));
        let [store, other] = [(), ()].map(|()| Store::open(&path, Mode::Threaded).unwrap());
        create(&store, "before").await;
        let mut new_orders = NewOrders {
            changes: unpolled(&store),
            ..store.new_orders().await.unwrap()
        };
        let mut polled = store.new_orders().await.unwrap();
        assert!(new_orders.next().now_or_never().is_none());
        create(&store, "a1").await;
        create(&store, "a2").await;
        assert!(new_orders.next().now_or_never().is_some());
        store.check_writable(Timestamp(1)).await.unwrap();
        assert!(new_orders.next().now_or_never().is_none(), "no order");
        polled.next().await;
        create(&other, "a3").await;
        assert!(new_orders.next().now_or_never().is_none());
        polled.next().await;
        // The next wake-up, whatever its cause, finds it too.
        store.check_writable(Timestamp(1)).await.unwrap();
        assert!(new_orders.next().now_or_never().is_some());
    }
}
