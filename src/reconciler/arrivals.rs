//! Notices orders that were created, by whatever process.
//!
//! It looks on a thread of its own: looks are frequent and cheap, and a timer of the reconciler's
//! would wake its whole runtime for each. What is done about new orders is `reconciler::run`'s business.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::Notify;

use crate::store::Store;

/// How often to look.
const WATCH_INTERVAL: Duration = Duration::from_millis(25);

/// The creations of orders, as they come.
pub(super) struct Arrivals(Arc<Notify>);

impl Arrivals {
    /// Begins to look, until this is dropped.
    pub fn watch(store: &Store) -> anyhow::Result<Self> {
        let mut watch = store.watch()?;
        let notify = Arc::new(Notify::new());
        let listener = Arc::downgrade(&notify);
        let look = move || {
            while let Some(notify) = listener.upgrade() {
                // While the database cannot be read, the schedule is enough.
                if watch.has_new_order().unwrap_or(false) {
                    notify.notify_one();
                }
                drop(notify);
                std::thread::sleep(WATCH_INTERVAL);
            }
        };
        std::thread::Builder::new()
            .name("arrivals".to_owned())
            .spawn(look)
            .context("new orders cannot be watched for")?;
        Ok(Self(notify))
    }

    /// Returns when an order was created since the last call, or is.
    pub async fn next(&self) {
        self.0.notified().await;
    }
}
