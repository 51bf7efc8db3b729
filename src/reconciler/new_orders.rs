//! Notices orders that were created, by whatever process. What is done about them is
//! `reconciler::run`'s business.

use std::time::Duration;

use crate::store::{Commits, Store, StoreError};

/// The creations of orders, as they come.
pub(super) struct NewOrders {
    store: Store,
    commits: Commits,
    /// Place of the newest order that was noticed.
    newest: i64,
}

impl NewOrders {
    /// Those after the newest order that there is now.
    pub fn after_newest(store: &Store, poll_interval: Duration) -> Result<Self, StoreError> {
        Ok(Self {
            commits: store.commits(poll_interval)?,
            newest: store.newest_seq()?,
            store: store.clone(),
        })
    }

    /// Returns when an order was created since the last call, or is.
    pub async fn next(&mut self) {
        loop {
            self.commits.next().await;
            // While the database cannot be read, the schedule is enough.
            let newest = self.store.newest_seq().unwrap_or(self.newest);
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
    use crate::store::{DatabasePath, Mode};

    async fn create(store: &Store, id: &str) {
        let id = OrderId::new(id).unwrap();
        store.create(id, Timestamp(1)).await.unwrap();
    }

    #[tokio::test]
    async fn orders_of_this_process_are_noticed_without_a_poll_and_those_of_others_by_polls() {
        let folder = tempfile::tempdir().unwrap();
        let path = DatabasePath::from(folder.path().join("orders.db"));
        let [store, other] = [(), ()].map(|()| Store::open(&path, Mode::Threaded).unwrap());
        create(&store, "before").await;
        let mut new_orders = NewOrders::after_newest(&store, Duration::MAX).unwrap();
        let mut polled = NewOrders::after_newest(&store, Duration::from_millis(1)).unwrap();
        assert!(new_orders.next().now_or_never().is_none());
        create(&store, "a1").await;
        create(&store, "a2").await;
        assert!(new_orders.next().now_or_never().is_some());
        store.probe(Timestamp(1)).await.unwrap();
        assert!(new_orders.next().now_or_never().is_none(), "no order");
        polled.next().await;
        create(&other, "a3").await;
        assert!(new_orders.next().now_or_never().is_none());
        polled.next().await;
        // The next wake-up finds it too, whatever brought that.
        store.probe(Timestamp(1)).await.unwrap();
        assert!(new_orders.next().now_or_never().is_some());
    }
}
