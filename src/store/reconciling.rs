//! The store as the reconciler reads it: the orders that it works on, and its heartbeat. Its writes are in
//! `store/leadership.rs`.

use super::queries::{self, Read};
use super::{Engine, NewOrders, OpenOrders, StartCandidate, Store, StoreError, read, sqlite};
use crate::order::{Order, Timestamp};
use crate::reconciler_state::ReconcilerState;

impl Store {
    /// Returns the oldest open order after sequence number `after`, with the attention of its own alone.
    pub async fn next_open(&self, after: i64) -> Result<Option<Order>, StoreError> {
        read!(self, Statement, next_open(after))
    }

    /// Returns the reconciler's last heartbeat.
    pub async fn heartbeat(&self) -> Result<ReconcilerState, StoreError> {
        read!(self, Statement, heartbeat())
    }

    /// Subscribes to the creation of orders newer than the newest existing one, by this or any
    /// other program.
    pub async fn new_orders(&self) -> Result<NewOrders, StoreError> {
        Ok(NewOrders {
            changes: self.changes()?,
            newest: self.newest_seq().await?,
            is_unread: false,
            store: self.clone(),
        })
    }

    /// Returns whether there is any order for a pass: one that [`Store::open_orders`] or
    /// [`Store::startable`] would return.
    pub async fn has_work(&self, now: Timestamp, max_starts: u32) -> Result<bool, StoreError> {
        read!(self, Statement, has_work(now, max_starts))
    }

    /// Returns the orders whose process has to be polled: PROCESSING, or CREATED with a start of
    /// unknown outcome, oldest first. They are read some thousands at a time, so a concurrent
    /// change by another program may be visible in one order and not in the next.
    pub async fn open_orders(&self) -> Result<OpenOrders, StoreError> {
        read!(self.open_orders())
    }

    /// Returns at most `limit` orders after sequence number `after` that have neither a process nor a start of
    /// unknown outcome, and about which is to be decided now, oldest first: to start them, or that they were
    /// started `max_starts` times. Those with a failed attempt if `has_failed`, otherwise those without. A start
    /// that was not sent does not count as one.
    pub async fn startable(
        &self,
        now: Timestamp,
        max_starts: u32,
        has_failed: bool,
        after: i64,
        limit: usize,
    ) -> Result<Vec<StartCandidate>, StoreError> {
        read!(
            self,
            Statement,
            startable(now, max_starts, has_failed, after, limit)
        )
    }

    /// Returns the sequence number of the newest order; 0 if there is none.
    pub(super) async fn newest_seq(&self) -> Result<i64, StoreError> {
        read!(self, Statement, newest_seq())
    }
}
