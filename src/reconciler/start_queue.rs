//! The queue of the orders that are due to be started: round-robin over three classes.
//!
//! The starts themselves are in `start.rs`.

use std::collections::VecDeque;

use anyhow::Context as _;

use crate::decide::Phase;
use crate::order::Timestamp;
use crate::pace::{PollTarget, RoundRobin, StartClass};
use crate::store::{StartCandidate, Store, StoreError};

/// Number of orders read at once. At a thousand starts a second they last one second.
const READ_AHEAD: usize = 1_000;

/// The orders that are due, by class.
#[derive(Default)]
pub(super) struct StartQueue {
    /// Orders whose process was forgotten, by [`due_since`]. They are looked up first.
    forgotten: VecDeque<StartCandidate>,
    /// Orders without a failed attempt, oldest first. A start that was not sent does not count as one.
    new: ReadAhead,
    /// Orders whose start was given up, and had no effect, by [`due_since`].
    given_up: VecDeque<StartCandidate>,
    /// Orders whose earlier start was refused or throttled. A pass continues where the last one stopped, and then
    /// begins again with the oldest: those that always fail hold up no younger ones.
    refused: ReadAhead,
    round_robin: RoundRobin,
}

/// A queue that is read from the store as it is needed.
#[derive(Default)]
struct ReadAhead {
    orders: VecDeque<StartCandidate>,
    /// The sequence numbers to read in this pass: after the first of each pair, up to the second. The last pair
    /// is the next.
    ranges: Vec<(i64, i64)>,
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

    /// Begins a pass: new and refused orders are read afresh, unless there is no work.
    pub fn begin_pass(&mut self, has_work: bool) {
        let next = self.refused.orders.front();
        let after = next.map_or(0, |next| next.order.seq - 1);
        for (queue, after) in [(&mut self.new, 0), (&mut self.refused, after)] {
            let mut ranges = vec![(0, after), (after, i64::MAX)];
            ranges.retain(|(after, until)| has_work && after < until);
            *queue = ReadAhead {
                ranges,
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
            queue.make_contiguous().sort_by_key(due_since);
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

    /// Removes the next order and returns it. While look-ups are paused, orders to be looked up first wait.
    pub fn pop(&mut self, may_look_up: bool) -> Option<StartCandidate> {
        let mut round_robin = self.round_robin;
        let class = round_robin.next(|class| self.is_waiting(class, may_look_up))?;
        self.round_robin = round_robin;
        let queue = match class {
            StartClass::Forgotten => &mut self.forgotten,
            StartClass::New => &mut self.new.orders,
            StartClass::Retry => {
                let queues = [&mut self.given_up, &mut self.refused.orders];
                let waiting = queues.into_iter().filter(|queue| !queue.is_empty());
                waiting.min_by_key(|queue| queue.front().map(due_since))?
            }
        };
        queue.pop_front()
    }

    /// Puts back an order whose process was forgotten and that was not looked up after all.
    pub fn put_back(&mut self, forgotten: StartCandidate) {
        let at = due_since(&forgotten);
        let index = self.forgotten.partition_point(|next| due_since(next) < at);
        self.forgotten.insert(index, forgotten);
    }

    /// Returns whether there is an order that [`Self::pop`] would return.
    pub fn has_next(&self, may_look_up: bool) -> bool {
        let is_waiting = |class| self.is_waiting(class, may_look_up);
        StartClass::ALL.into_iter().any(is_waiting)
    }

    fn is_waiting(&self, class: StartClass, may_look_up: bool) -> bool {
        match class {
            StartClass::Forgotten => may_look_up && !self.forgotten.is_empty(),
            StartClass::New => !self.new.orders.is_empty(),
            StartClass::Retry => !self.given_up.is_empty() || !self.refused.orders.is_empty(),
        }
    }
}

/// Returns the moment since which an order is due again, and its sequence number. One that always fails is
/// behind those that were due before its last attempt.
fn due_since(next: &StartCandidate) -> (Option<Timestamp>, i64) {
    let missed_at = match next.order.phase {
        Phase::Processing { missed_at, .. } => missed_at,
        Phase::Created => None,
    };
    (next.order.next_attempt_at.or(missed_at), next.order.seq)
}

impl ReadAhead {
    /// Reads more orders if there is none.
    async fn fill<F>(&mut self, read: impl Fn(i64) -> F) -> Result<(), StoreError>
    where
        F: Future<Output = Result<Vec<StartCandidate>, StoreError>>,
    {
        while self.orders.is_empty()
            && let Some((after, until)) = self.ranges.last_mut()
        {
            let orders = read(*after).await?;
            let last = orders.get(READ_AHEAD - 1).map(|last| last.order.seq);
            let in_range = |next: &StartCandidate| next.order.seq <= *until;
            self.orders = orders.into_iter().filter(in_range).collect();
            match last.filter(|seq| seq < until) {
                Some(last) => *after = last,
                None => _ = self.ranges.pop(),
            }
        }
        Ok(())
    }
}
