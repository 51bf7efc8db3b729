//! Polling: which processes to observe, by look-ups or by a list, and when.
//!
//! Each poll costs the upstream time, and one that meets a completion can crash it. The budget for
//! polls is a share of the upstream's time. Within it an order is looked up just after each whole
//! second of its process, because processes run for whole seconds.

use std::collections::HashMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::order::Timestamp;

/// Cost of a look-up to the upstream, measured on the real one.
const LOOK_UP_COST: Duration = Duration::from_micros(50);

/// Cost of each entry of a list to the upstream, in nanoseconds, measured on the real one.
const LIST_ENTRY_COST_NS: u64 = 500;

/// Number of look-ups that are preferred to a list whose length is not known.
const LOOK_UPS_DEFAULT: usize = 20;

/// Polls take one part in this many of the upstream's time as long as that delays no outcome by much.
/// A process that ends while a list is read can crash the upstream, so more lists shorten an
/// incarnation; with far fewer, outcomes are observed late.
const POLL_BUDGET_DIVISOR: u32 = 4_000;

/// Polls take at most one part in this many of the upstream's time where [`POLL_BUDGET_DIVISOR`]
/// would delay outcomes.
const POLL_BUDGET_MAX_DIVISOR: u32 = 20;

/// An outcome is observed late by at most one part in this many of the mean duration of a process, if
/// [`POLL_BUDGET_MAX_DIVISOR`] allows.
const DELAY_DIVISOR: u32 = 5;

/// Longest pause between two polls that the budget leads to, unless [`POLL_BUDGET_MAX_DIVISOR`]
/// demands more.
const POLL_PAUSE_MAX: Duration = Duration::from_secs(60);

/// Unit of the duration of a process, in milliseconds.
const PERIOD_MS: i64 = 1_000;

/// Delay of a look-up after a whole second of the process, in milliseconds: 15, plus 0 to 19 by order. In the
/// very millisecond of the completion a look-up could collide with it, and look-ups of orders that were
/// started together would collide with each other.
const JITTER_MS: (i64, i64) = (15, 20);

/// Largest number of processes that are looked up each on a schedule of its own. With more, one is due
/// at almost any time, and polls follow the common schedule.
const INDIVIDUAL_SCHEDULES_MAX: usize = 32;

/// Number of outcomes at which those observed so far are made to count half.
const SAMPLES_MAX: f64 = 1_000.0;

/// Each outcome shortens the longest duration by one part in this many, unless it confirms it: a process
/// that ran for long in a former configuration does not count for ever.
const LONGEST_DECAY_DIVISOR: u32 = 1_000;

/// Longest duration of a process while none was observed to end: the service's default limit of ten
/// minutes, and a tenth more.
const LONGEST_ASSUMED: Duration = Duration::from_secs(660);

/// An open order whose process is polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PollTarget {
    /// Position in the order of creation.
    pub seq: i64,
    /// Moment since which the process is known to run. `None` if it is not known to: the order is then
    /// included in every poll.
    pub running_since: Option<Timestamp>,
}

/// The requests of a poll.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PollPlan {
    /// A look-up for each of these, by their index among the targets.
    LookUps(Vec<usize>),
    /// One list of all processes.
    List,
}

/// Returns the cost of so many look-ups to the upstream.
pub fn look_ups_cost(orders: usize) -> Duration {
    LOOK_UP_COST * u32::try_from(orders).unwrap_or(u32::MAX)
}

/// Returns the cost of a list of so many entries to the upstream.
pub fn list_cost(entries: u64) -> Duration {
    LOOK_UP_COST + Duration::from_nanos(entries.saturating_mul(LIST_ENTRY_COST_NS))
}

/// Returns the number of look-ups that cost the upstream no more than the list, if each request costs
/// at least `request_cost`.
fn look_ups_max(entries: Option<u64>, request_cost: Duration) -> usize {
    let Some(entries) = entries else {
        return match request_cost.is_zero() {
            true => LOOK_UPS_DEFAULT,
            false => 1,
        };
    };
    let list = list_cost(entries).max(request_cost);
    let look_ups = list.as_nanos() / LOOK_UP_COST.max(request_cost).as_nanos();
    usize::try_from(look_ups).unwrap_or(usize::MAX - 1)
}

/// Durations of processes, estimated from polls while most still run: the time for which processes were
/// observed, divided by the number that ended in it (the maximum likelihood estimate for censored
/// exponential lifetimes; Epstein and Sobel, 1953).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Durations {
    observed_seconds: f64,
    ended: f64,
    longest: Duration,
}

impl Durations {
    /// Adds the time since a process was last polled.
    pub fn on_observed(&mut self, time: Duration) {
        self.observed_seconds += time.as_secs_f64();
    }

    /// Counts a process that has ended at this age.
    pub fn on_ended(&mut self, age: Duration) {
        self.ended += 1.0;
        if self.ended >= SAMPLES_MAX {
            self.ended /= 2.0;
            self.observed_seconds /= 2.0;
        }
        self.longest = age.max(self.longest - self.longest / LONGEST_DECAY_DIVISOR);
    }

    /// Returns the mean duration; `None` while no process was observed to end.
    pub fn mean(&self) -> Option<Duration> {
        (self.ended > 0.0).then(|| self.mean_if_one_ended())
    }

    /// Returns the mean duration, or what it would be if a first process ended now.
    fn mean_if_one_ended(&self) -> Duration {
        let seconds = self.observed_seconds / self.ended.max(1.0);
        Duration::try_from_secs_f64(seconds).unwrap_or(POLL_PAUSE_MAX)
    }

    /// Returns the longest duration that was observed lately.
    pub fn longest(&self) -> Duration {
        match self.ended > 0.0 {
            true => self.longest,
            false => LONGEST_ASSUMED,
        }
    }
}

/// The schedule of polls, and the last poll of each order.
#[derive(Clone, Debug)]
pub struct Polling {
    /// Beginning of the period that this covers: a process confirmed later was known to run at that
    /// moment, one confirmed earlier has yet to be polled.
    began_at: Timestamp,
    /// Earliest moment of the next poll within the budget.
    next_at: Timestamp,
    /// Moment at which the next of a few orders is due; `None` if there are none, or many.
    due_at: Option<Timestamp>,
    /// Last poll of all orders.
    all_polled_at: Option<Timestamp>,
    /// Last look-up of each order since then.
    looked_up_at: HashMap<i64, Timestamp>,
}

impl Polling {
    /// Creates a schedule on which no order was polled before `now`.
    pub fn new(now: Timestamp) -> Self {
        Self {
            began_at: now,
            next_at: now,
            due_at: None,
            all_polled_at: None,
            looked_up_at: HashMap::new(),
        }
    }

    /// Returns the earliest moment of the next poll.
    pub fn next_at(&self) -> Timestamp {
        self.next_at
    }

    /// Returns the moment at which the next of a few orders is due, within the budget.
    pub fn due_at(&self) -> Option<Timestamp> {
        self.due_at.map(|at| at.max(self.next_at))
    }

    /// Schedules the first poll of an order whose process was started at `now`.
    pub fn on_started(&mut self, seq: i64, now: Timestamp) {
        let due_at = look_up_due_at(seq, now, now);
        self.due_at = Some(self.due_at.map_or(due_at, |at| at.min(due_at)));
    }

    /// Returns the last moment at which the process was known to run; `None` if it was neither polled
    /// nor confirmed since `began_at`.
    pub fn last_known_running_at(&self, seq: i64, running_since: Timestamp) -> Option<Timestamp> {
        let polled_at = self.all_polled_at.max(self.looked_up_at.get(&seq).copied());
        let confirmed_at = (running_since > self.began_at).then_some(running_since);
        polled_at.max(confirmed_at)
    }

    /// Plans a poll at `now`. `targets` are in the order of `seq`; `entries` is the length of the list, if
    /// it is known; each request costs the upstream at least `request_cost`. `is_schedule_frequent` says
    /// that each of a few orders may wait for its own poll time.
    pub fn plan(
        &mut self,
        targets: &[PollTarget],
        entries: Option<u64>,
        request_cost: Duration,
        is_schedule_frequent: bool,
        now: Timestamp,
    ) -> PollPlan {
        if self.looked_up_at.len() > targets.len() {
            self.looked_up_at
                .retain(|seq, _| targets.binary_search_by_key(seq, |order| order.seq).is_ok());
        }
        let look_ups_max = look_ups_max(entries, request_cost);
        let have_individual_schedules =
            is_schedule_frequent && targets.len() <= INDIVIDUAL_SCHEDULES_MAX;
        let (mut due, mut next) = (Vec::new(), None::<Timestamp>);
        for (index, order) in targets.iter().enumerate() {
            let known_at = order.running_since.and_then(|since| {
                let known_at = self.last_known_running_at(order.seq, since)?;
                Some((since, known_at))
            });
            let mut at =
                known_at.map(|(since, known_at)| look_up_due_at(order.seq, since, known_at));
            if !have_individual_schedules || at.is_none_or(|at| at <= now) {
                due.push(index);
                at = order
                    .running_since
                    .map(|since| look_up_due_at(order.seq, since, now));
            }
            next = [next, at].into_iter().flatten().min();
            // One more than can be looked up is enough to know.
            if due.len() > look_ups_max {
                break;
            }
        }
        self.due_at = next.filter(|_| have_individual_schedules);
        match due.len() > look_ups_max {
            true => PollPlan::List,
            false => PollPlan::LookUps(due),
        }
    }

    /// Schedules the next poll after one at `now` that has cost the upstream `cost`.
    pub fn on_polled(&mut self, now: Timestamp, cost: Duration, durations: &Durations) {
        let preferred =
            (cost * POLL_BUDGET_DIVISOR).min(durations.mean_if_one_ended() / DELAY_DIVISOR);
        let pause = preferred
            .min(POLL_PAUSE_MAX)
            .max(cost * POLL_BUDGET_MAX_DIVISOR);
        self.next_at = now.after(pause);
    }

    /// Puts off the next poll until `at`, if it is due earlier.
    pub fn postpone(&mut self, at: Timestamp) {
        self.next_at = self.next_at.max(at);
    }

    /// Records a poll of all orders.
    pub fn on_all_polled(&mut self, now: Timestamp) {
        self.all_polled_at = Some(now);
        self.looked_up_at.clear();
    }

    /// Records a look-up of one order.
    pub fn on_looked_up(&mut self, seq: i64, now: Timestamp) {
        self.looked_up_at.insert(seq, now);
    }

    /// Makes all orders due, because nothing is known of their processes any more.
    pub fn reset(&mut self, now: Timestamp) {
        *self = Self::new(now);
    }
}

/// Returns the moment at which a process that is known to have run at `known_at` is to be looked up next:
/// just after it has run for one more whole second.
fn look_up_due_at(seq: i64, running_since: Timestamp, known_at: Timestamp) -> Timestamp {
    let (least, spread) = JITTER_MS;
    let jitter = least + seq.rem_euclid(spread);
    let whole = (known_at.0 - running_since.0).max(0) / PERIOD_MS + 1;
    Timestamp(running_since.0 + whole * PERIOD_MS + jitter)
}

#[cfg(test)]
mod tests;
