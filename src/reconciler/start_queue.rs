//! The queue of the orders that are due to be started: round-robin over three classes.
//!
//! The starts themselves are in `start.rs`.

use std::collections::VecDeque;

use anyhow::Context as _;

use crate::order::Timestamp;
use crate::pace::{PollTarget, RoundRobin, StartClass};
use crate::store::{StartCandidate, Store, StoreError};

/// Number of orders read at once. At a thousand starts a second they last one second.
const READ_AHEAD: usize = 1_000;

/// The orders that are due, by class; each queue is oldest first.
#[derive(Default)]
pub(super) struct StartQueue {
    /// Orders whose process was forgotten.
    forgotten: VecDeque<StartCandidate>,
    /// Orders without a failed attempt. A start that was not sent does not count as one.
    new: ReadAhead,
    /// Orders whose start was given up, and had no effect.
    given_up: VecDeque<StartCandidate>,
    /// Orders whose earlier start was refused or throttled.
    refused: ReadAhead,
    round_robin: RoundRobin,
}

/// A queue that is read from the store as it is needed.
#[derive(Default)]
struct ReadAhead {
    orders: VecDeque<StartCandidate>,
    after: i64,
    is_all_read: bool,
}

impl StartQueue {
    /// Removes all orders. The round-robin goes on.
    pub fn clear(&mut self) {
        let round_robin = self.round_robin;
        *self = Self {
            round_robin,
            ..Self::default()
        };
    }

    /// Begins a pass: new orders are read afresh, unless there is no work.
    pub fn begin_pass(&mut self, has_work: bool) {
        for queue in [&mut self.new, &mut self.refused] {
            *queue = ReadAhead {
                is_all_read: !has_work,
                ..ReadAhead::default()
            };
        }
    }

    /// Replaces the polled orders by those of them that are to be started again. The others keep their
    /// positions.
    pub fn update(&mut self, polled: &[PollTarget], to_repeat: Vec<StartCandidate>) {
        let is_kept = |kept: &StartCandidate| {
            let found = polled.binary_search_by_key(&kept.order.seq, |order| order.seq);
            found.is_err()
        };
        let (forgotten, given_up): (Vec<_>, Vec<_>) = to_repeat
            .into_iter()
            .partition(|next| next.order.start_class() == StartClass::Forgotten);
        for (queue, added) in [
            (&mut self.forgotten, forgotten),
            (&mut self.given_up, given_up),
        ] {
            queue.retain(is_kept);
            queue.extend(added);
            queue.make_contiguous().sort_by_key(|next| next.order.seq);
        }
    }

    /// Reads more orders into the queues that are empty.
    pub async fn fill(
        &mut self,
        store: &Store,
        now: Timestamp,
        max_starts: u32,
    ) -> anyhow::Result<()> {
        for (queue, has_failed) in [(&mut self.new, false), (&mut self.refused, true)] {
            let read = |after| store.startable(now, max_starts, has_failed, after, READ_AHEAD);
            let filled = queue.fill(read).await;
            filled.context("reading the orders that are due failed")?;
        }
        Ok(())
    }

    /// Removes the next order and returns it.
    pub fn pop(&mut self) -> Option<StartCandidate> {
        let mut round_robin = self.round_robin;
        let class = round_robin.next(|class| match class {
            StartClass::Forgotten => !self.forgotten.is_empty(),
            StartClass::New => !self.new.orders.is_empty(),
            StartClass::Retry => !self.given_up.is_empty() || !self.refused.orders.is_empty(),
        })?;
        self.round_robin = round_robin;
        let queue = match class {
            StartClass::Forgotten => &mut self.forgotten,
            StartClass::New => &mut self.new.orders,
            StartClass::Retry => {
                let queues = [&mut self.given_up, &mut self.refused.orders];
                let waiting = queues.into_iter().filter(|queue| !queue.is_empty());
                waiting.min_by_key(|queue| queue.front().map(|next| next.order.seq))?
            }
        };
        queue.pop_front()
    }

    /// Puts back an order whose process was forgotten and that was not looked up after all.
    pub fn put_back(&mut self, forgotten: StartCandidate) {
        self.forgotten.push_front(forgotten);
    }

    /// Returns whether there is no order.
    pub fn is_empty(&self) -> bool {
        let queues = [
            &self.forgotten,
            &self.new.orders,
            &self.given_up,
            &self.refused.orders,
        ];
        queues.into_iter().all(VecDeque::is_empty)
    }
}

impl ReadAhead {
    /// Reads more orders if there is none.
    async fn fill<F>(&mut self, read: impl FnOnce(i64) -> F) -> Result<(), StoreError>
    where
        F: Future<Output = Result<Vec<StartCandidate>, StoreError>>,
    {
        if self.orders.is_empty() && !self.is_all_read {
            self.orders = read(self.after).await?.into();
            self.is_all_read = self.orders.len() < READ_AHEAD;
            self.after = self.orders.back().map_or(self.after, |last| last.order.seq);
        }
        Ok(())
    }
}
