//! The store as the reconciler uses it: leadership, the orders that it works on, and the record of what it did.

use std::pin::pin;

use futures_util::TryStreamExt;

use super::leadership::Lock;
use super::queries::{self, Read};
use super::write::Write;
use super::{
    Cursor, Engine, Filter, LeadError, Leadership, NewOrders, OpenOrders, OrderChange, Recorded,
    StartCandidate, Store, StoreError, call, read, sqlite,
};
use crate::order::{Order, Status, Timestamp};
use crate::reconciler_state::ReconcilerState;

impl Store {
    /// Takes leadership unless another program has it. From then on a previous leader cannot record
    /// anything.
    pub async fn try_lead(&self) -> Result<Option<Leadership>, LeadError> {
        self.try_lead_once().await.map_err(|error| {
            // The error follows from that.
            let reason = call!(self.engine.retirement()).reason();
            reason.map_or(error, LeadError::Open)
        })
    }

    async fn try_lead_once(&self) -> Result<Option<Leadership>, LeadError> {
        let lock = match &self.engine {
            Engine::Sqlite(engine) => engine.try_lock_lead()?.map(Lock::Sqlite),
            #[cfg(feature = "postgres")]
            Engine::Postgres(engine) => engine.try_lock_lead().await?.map(Lock::Postgres),
        };
        let Some(lock) = lock else {
            return Ok(None);
        };
        let epoch = self.queue().write(|reply| Write::Lead { reply }).await?;
        Ok(Some(Leadership::new(epoch, lock)))
    }

    /// Records the reconciler's changes in one transaction. A change whose order is no longer in
    /// the expected state has no effect and is counted as a conflict.
    ///
    /// # Errors
    /// [`StoreError::Deposed`] if another reconciler has become leader.
    pub async fn record(
        &self,
        lead: &Leadership,
        mut changes: Vec<OrderChange>,
        now: Timestamp,
    ) -> Result<Recorded, StoreError> {
        // Key order: neighbours share pages. The sort is stable, so an adoption stays before its
        // outcome.
        changes.sort_by_key(|change| change.seq);
        let write = |reply| Write::Record {
            epoch: lead.epoch,
            changes,
            now,
            reply,
        };
        lead.note_loss(self.queue().write(write).await)
    }

    /// Returns the oldest open order after sequence number `after`.
    pub async fn next_open(&self, after: i64) -> Result<Option<Order>, StoreError> {
        let open = Filter {
            statuses: vec![Status::Created, Status::Processing],
            attention: None,
        };
        let mut pages = pin!(self.pages(open, Cursor::bare(after), 1));
        let page = pages.try_next().await?;
        Ok(page.and_then(|(orders, _)| orders.into_iter().next()))
    }

    /// Returns the reconciler's last heartbeat.
    pub async fn heartbeat(&self) -> Result<ReconcilerState, StoreError> {
        read!(self, Statement, heartbeat())
    }

    /// Replaces the reconciler's heartbeat.
    pub async fn write_heartbeat(
        &self,
        lead: &Leadership,
        heartbeat: ReconcilerState,
    ) -> Result<(), StoreError> {
        let write = |reply| Write::Heartbeat {
            epoch: lead.epoch,
            heartbeat: Box::new(heartbeat),
            reply,
        };
        lead.note_loss(self.queue().write(write).await)
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

    /// Clamps times of open orders that lie ahead of the clock: past events to `now`, and the next
    /// attempt to at most the longest backoff from `now`. Works in batches, so that other writers
    /// are not blocked for long.
    pub async fn clamp_times(&self, lead: &Leadership, now: Timestamp) -> Result<(), StoreError> {
        for status in [Status::Created, Status::Processing] {
            let mut after = 0;
            loop {
                let seqs = read!(self, Statement, with_times_ahead(status, after, now))?;
                let Some(last) = seqs.last() else {
                    break;
                };
                after = *last;
                let write = |reply| Write::ClampTimes {
                    epoch: lead.epoch,
                    seqs,
                    now,
                    reply,
                };
                lead.note_loss(self.queue().write(write).await)?;
            }
        }
        Ok(())
    }

    /// Returns the sequence number of the newest order; 0 if there is none.
    pub(super) async fn newest_seq(&self) -> Result<i64, StoreError> {
        read!(self, Statement, newest_seq())
    }
}
