//! The moments of polls: the schedule's, those of single orders between them, and the pause after a poll.

use std::time::Duration;

use super::Reconciler;
use super::in_flight::ANSWER_WAIT;
use super::observations::Observations;
use crate::clock::Clock;
use crate::order::Timestamp;
use crate::upstream::{RequestKind, Upstream};

/// Interval of the schedule up to which orders are also polled between its occurrences. A slower
/// schedule is followed exactly.
const FREQUENT_INTERVAL_MAX: Duration = Duration::from_secs(1);

/// Time for which one pass sends look-ups, at most: meanwhile nothing is started, and no heartbeat is written.
pub(super) const POLLING_TIME_MAX: Duration = Duration::from_secs(10);

// The help of `reconciler_last_seen_timestamp_seconds` has it in words.
const _: () = assert!(POLLING_TIME_MAX.as_secs() == 10);

/// Time for which one pass starts orders, at most. Between two passes the steady clock is resynced and leadership is
/// checked.
const STARTING_TIME_MAX: Duration = Duration::from_secs(50);

/// Least time for starts after a poll, if orders wait: while look-ups take most of a second, the next order may
/// always be due when a poll ends.
const STARTING_TIME_MIN: Duration = Duration::from_millis(100);

/// Returns when the clock reaches a moment; never if there is none.
pub(super) async fn reached(clock: &impl Clock, at: Option<Timestamp>) {
    match at {
        Some(at) => clock.sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl<U: Upstream, C: Clock> Reconciler<U, C> {
    /// Returns whether a poll is due. Polls follow the schedule, not the passes that new orders cause, and
    /// the pace's polling interval.
    pub(super) fn is_poll_due(&self) -> bool {
        let now = self.context.clock.now();
        let is_on_schedule = self
            .polled_at
            .is_none_or(|at| self.context.settings.schedule.next_after(at) <= now);
        let is_due = is_on_schedule || self.next_order_poll_at().is_some_and(|at| at <= now);
        is_due && self.pace.is_poll_due(now)
    }

    /// Returns when an order may be polled before the schedule's next occurrence, if one is to be.
    fn next_order_poll_at(&self) -> Option<Timestamp> {
        let polled_at = self.polled_at.filter(|at| self.is_schedule_frequent(*at))?;
        self.pace
            .order_due_at(self.context.clock.now().max(polled_at))
    }

    /// Returns when a pass is due that neither the schedule nor a new order causes.
    pub fn next_wake_at(&self) -> Option<Timestamp> {
        let moments = [self.next_order_poll_at(), self.queue_resumes_at()];
        moments.into_iter().flatten().min()
    }

    /// Returns the end of the pause for which the queued orders wait, if there is one.
    pub(super) fn queue_resumes_at(&self) -> Option<Timestamp> {
        let paused_until = |kind| {
            let now = self.context.clock.now();
            self.pace.breaker().kind_paused_until(kind, now)
        };
        let are_look_ups_next = !self.queue.has_next(false);
        let look_ups = paused_until(RequestKind::LookUp).filter(|_| are_look_ups_next);
        let resumes_at = paused_until(RequestKind::Start).max(look_ups);
        resumes_at.filter(|_| self.queue.has_next(true))
    }

    /// Returns whether the upstream has asked for a pause of look-ups, or throttles them.
    pub(super) fn are_look_ups_paused(&self) -> bool {
        let now = self.context.clock.now();
        let paused_until = self
            .pace
            .breaker()
            .kind_paused_until(RequestKind::LookUp, now);
        paused_until.is_some()
    }

    /// Returns until when a pass starts orders: until the next is due.
    pub(super) fn starts_until(&self, now: Timestamp) -> Timestamp {
        let next_at = self.context.settings.schedule.next_after(now);
        let next_at = next_at.min(now.after(STARTING_TIME_MAX));
        let order_poll_at = self
            .next_order_poll_at()
            .map(|at| at.max(now.after(STARTING_TIME_MIN)));
        order_poll_at.map_or(next_at, |at| at.min(next_at))
    }

    /// Returns whether the schedule's next occurrence is so soon that orders may be polled before it.
    pub(super) fn is_schedule_frequent(&self, now: Timestamp) -> bool {
        self.context.settings.schedule.next_after(now).since(now) <= FREQUENT_INTERVAL_MAX
    }

    /// Reports the polled orders and the cost of the requests to the pace.
    pub(super) fn report_poll(&mut self, observations: &Observations, began_at: Timestamp) {
        if observations.entries.is_some() {
            self.pace.on_all_polled(began_at);
        } else {
            for (order, observation) in observations.observed() {
                self.pace.on_looked_up(order.seq, observation.began_at);
            }
        }
        if observations.requests() == 0 {
            return;
        }
        // A long list is followed by a pause all the same.
        let now = self.context.clock.now();
        let is_late = now.since(began_at) > ANSWER_WAIT;
        let polled_at = if is_late { now } else { began_at };
        self.pace
            .on_polled(polled_at, observations.requests(), observations.cost());
    }
}
