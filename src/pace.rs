//! Limits of the requests to the upstream: start rate, running processes, polls, backoff. Pure
//! functions of `now` and of what happened before.
//!
//! The upstream crashes under load and loses its in-memory state, so every request has a cost. [`Pace`] is
//! asked before each start and each poll, but not before a probe, or a look-up because of a start's answer.
//! The results of all come back to it. `decide` chooses what to do about an order.
//!
//! - `rate`: starts per second.
//! - `incarnations`: processes that run at once.
//! - `polling`: which orders to poll, and when. `list_timeout`: how long a list may take.
//! - `round_robin`: which order is started next.
//! - `availability`: whether requests may be sent at all. `throttling`: which kinds are answered 429.
//! - `backoff`: how long an order waits after a failure.

mod availability;
mod backoff;
mod incarnations;
mod list_timeout;
mod polling;
mod rate;
mod round_robin;
mod throttling;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::availability::{
    Call, CircuitBreaker, RequestResults, UpstreamState, requested_pause,
};
pub use self::backoff::{BACKOFF_MAX, backoff};
pub use self::incarnations::{Incarnations, is_upstream_restart};
use self::list_timeout::ListTimeout;
use self::polling::Polling;
pub use self::polling::{Durations, PollPlan, PollTarget, list_cost, look_ups_cost};
use self::rate::Gcra;
pub use self::rate::{ReductionCause, StartRate};
pub use self::round_robin::{RoundRobin, StartClass};
pub use self::throttling::{Throttled, Throttling};
use crate::order::{Observed, Timestamp};
use crate::upstream::{Cause, Failure, RequestKind};

/// Largest cost of polls that a rate limit of the upstream counts: it makes a pause of 10 s, and starts wait for it.
/// However low the limit, orders in doubt have to be polled.
const RATE_LIMITED_POLL_COST_MAX: Duration = Duration::from_millis(500);

/// Time in which an intent is written, about: as many orders as start in it are staged ahead.
const INTENT_WRITE_TIME: Duration = Duration::from_millis(2);

/// A process that runs for this many times as long as any that ended lately is stuck. It does not
/// occupy a place in the window for ever.
const STUCK_FACTOR: u32 = 2;

/// The limits of the upstream that were learned, kept for a later run.
///
/// They are stored with the heartbeat: serialised names are those of earlier versions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LearnedLimits {
    /// Start rate; `None` before the first run.
    pub rate: Option<StartRate>,
    /// Restarts of the upstream, and the number of processes between them.
    #[serde(rename = "lives")]
    pub incarnations: Incarnations,
    /// Durations of processes.
    pub durations: Durations,
    /// End of the pause that the upstream has asked for.
    #[serde(rename = "resting_until")]
    pub paused_until: Option<Timestamp>,
    /// End of the last pause of starts that it has asked for.
    pub starts_paused_until: Option<Timestamp>,
    /// Number of processes that run, and of orders that are being started; a later run counts its own.
    #[serde(rename = "in_flight")]
    pub running: u64,
    /// The requests that are answered 429.
    pub throttling: Throttling,
}

impl LearnedLimits {
    /// Returns the window, if it is full.
    pub fn full_window(&self) -> Option<u64> {
        self.incarnations.full_window(self.running)
    }

    /// Returns the end of the pause of all requests, or of starts, if it lies ahead.
    pub fn starts_paused_until(&self, now: Timestamp) -> Option<Timestamp> {
        let paused_until = self.paused_until.max(self.starts_paused_until);
        paused_until.filter(|at| *at > now)
    }

    /// Returns the time in which this many orders are started at the present rate; `None` while that is not
    /// known: the window is full, or the upstream accepts no start.
    pub fn wait(&self, orders: u64, now: Timestamp) -> Option<Duration> {
        let is_blocked = self.full_window().is_some() || self.throttling.starts(now).is_some();
        let rate = self.rate.as_ref().filter(|_| !is_blocked)?;
        let wait = Duration::try_from_secs_f64(orders as f64 / rate.rate());
        Some(wait.unwrap_or(Duration::MAX))
    }
}

/// A limit of the starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartLimit<'a> {
    /// This many processes run, and no more may.
    Window(u64),
    /// The start rate is reduced.
    Reduction(ReductionCause<'a>),
    /// The ceiling of the start rate.
    Ceiling,
}

/// The limiter of starts and polls, and all that it has learned.
#[derive(Clone, Debug)]
pub struct Pace {
    /// Largest number of requests at once, of all kinds.
    max_requests: usize,
    breaker: CircuitBreaker,
    rate: StartRate,
    gcra: Gcra,
    incarnations: Incarnations,
    durations: Durations,
    polling: Polling,
    list_timeout: ListTimeout,
    /// Number of processes that are known to run.
    running: u64,
    /// Set if starts may not be answered: the last one may have taken effect without a usable answer, was
    /// denied, or was answered with `Retry-After`.
    are_starts_in_doubt: bool,
    /// Set if the rate limit of the upstream counts polls too.
    are_polls_limited: bool,
    throttling: Throttling,
}

impl Pace {
    /// Resumes from what an earlier run has learned. `ceiling` is in starts per second, 0 for none;
    /// `max_requests` is the largest number of requests at once.
    pub fn new(
        ceiling: f64,
        max_requests: usize,
        learned: LearnedLimits,
        upstream: UpstreamState,
        now: Timestamp,
    ) -> Self {
        let rate = match learned.rate {
            Some(rate) => rate.with_ceiling(ceiling, now),
            None => StartRate::new(ceiling, now),
        };
        Self {
            max_requests,
            breaker: CircuitBreaker::new(
                upstream,
                learned.paused_until,
                learned.starts_paused_until,
                now,
            ),
            gcra: Gcra::new(rate.rate()),
            rate,
            incarnations: learned.incarnations.clamp_times(now),
            durations: learned.durations,
            polling: Polling::new(now),
            list_timeout: ListTimeout::default(),
            running: 0,
            are_starts_in_doubt: false,
            are_polls_limited: false,
            throttling: learned.throttling.clamp_times(now),
        }
    }

    /// Creates the pace of another run, which resumes from what this one has learned.
    #[must_use]
    pub fn for_next_run(&self, now: Timestamp) -> Self {
        let ceiling = self.rate.ceiling().unwrap_or(0.0);
        let upstream = self.breaker.state().clone();
        Self {
            list_timeout: self.list_timeout.clone(),
            ..Self::new(
                ceiling,
                self.max_requests,
                self.learned(now, 0),
                upstream,
                now,
            )
        }
    }

    /// Returns what was learned, for a later run. `starting` is the number of orders that are being started.
    pub fn learned(&self, now: Timestamp, starting: usize) -> LearnedLimits {
        LearnedLimits {
            paused_until: self.breaker.paused_until(now),
            starts_paused_until: self.breaker.kind_paused_until(RequestKind::Start, now),
            rate: Some(self.rate.clone()),
            incarnations: self.incarnations.clone(),
            durations: self.durations.clone(),
            running: self.running + starting as u64,
            throttling: self.throttling,
        }
    }

    /// Returns the circuit breaker.
    pub fn breaker(&self) -> &CircuitBreaker {
        &self.breaker
    }

    /// Returns the start rate.
    pub fn rate(&self) -> &StartRate {
        &self.rate
    }

    /// Returns what limits the starts beside `starting` that are being started, if something does.
    pub fn limit(&self, starting: usize) -> Option<StartLimit<'_>> {
        let running = self.running + starting as u64;
        if let Some(window) = self.incarnations.full_window(running) {
            return Some(StartLimit::Window(window));
        }
        match self.rate.reduction_cause() {
            Some(cause) => Some(StartLimit::Reduction(cause)),
            None => self.rate.ceiling().map(|_| StartLimit::Ceiling),
        }
    }

    /// Returns the incarnations of the upstream.
    pub fn incarnations(&self) -> &Incarnations {
        &self.incarnations
    }

    /// Returns whether one more request of any kind may be sent now, beside `requests` in flight.
    pub fn may_send(&self, now: Timestamp, requests: usize) -> bool {
        requests < self.max_requests && self.breaker.may_send(now)
    }

    /// Returns whether one more order may be staged now, that is, have its intent written, beside
    /// `starting` that are staged or sent. At a high rate some are staged before a request may be sent
    /// for them, so that no slot for requests is empty while intents are written. While starts are in
    /// doubt, one order at a time tries.
    pub fn may_stage(&self, now: Timestamp, starting: usize) -> bool {
        let ahead = (self.rate.rate() * INTENT_WRITE_TIME.as_secs_f64()) as usize;
        let most = match self.are_starts_in_doubt {
            true => 1,
            false => self.max_requests + ahead.min(self.max_requests),
        };
        starting < most && self.may_start(now)
    }

    /// Returns whether starts may be sent now.
    pub fn may_start(&self, now: Timestamp) -> bool {
        let paused_until = self.breaker.kind_paused_until(RequestKind::Start, now);
        !self.breaker.is_down() && paused_until.is_none()
    }

    /// Returns the moment at which the next start may be sent, `now` or later; `None` while the window is
    /// full.
    pub fn next_start_at(&self, now: Timestamp, starting: usize) -> Option<Timestamp> {
        let is_full = matches!(self.limit(starting), Some(StartLimit::Window(_)));
        (!is_full).then(|| self.gcra.next_at(now))
    }

    /// Counts an order that is dequeued now, whether a start or a look-up follows.
    pub fn on_dequeued(&mut self, now: Timestamp) {
        self.rate.on_admitted();
        self.gcra.on_admitted(now);
    }

    /// Counts a poll that is sent now. It takes the place of a start if the rate limit of the upstream
    /// counts polls. However many they are, starts go on soon.
    pub fn on_poll_sent(&mut self, now: Timestamp) {
        let latest = now.after(self.request_cost() + RATE_LIMITED_POLL_COST_MAX);
        if self.are_polls_limited && self.gcra.next_at(now) <= latest {
            self.gcra.on_admitted(now);
        }
    }

    /// Records a start that was accepted: one more process runs.
    pub fn on_start_accepted(&mut self, seq: i64, now: Timestamp) {
        self.polling.on_started(seq, now);
        self.running += 1;
        self.incarnations.on_start_accepted();
    }

    /// Raises a rate that overload has reduced by the time that has passed. Returns whether a reduction is over.
    pub fn recover(&mut self, now: Timestamp) -> bool {
        let is_over = self.rate.recover(now);
        self.are_polls_limited &= self.rate.is_rate_limited();
        self.apply_rate();
        is_over
    }

    fn apply_rate(&mut self) {
        self.gcra
            .set_rate(self.rate.rate(), self.rate.is_rate_limited());
    }

    /// Records a usable answer. Returns whether the upstream was not known to answer before.
    pub fn on_answered(&mut self, call: Call, now: Timestamp) -> bool {
        self.throttling.on_answered(call.kind);
        self.rate.on_answered(call);
        self.are_starts_in_doubt &= !call.is_start();
        if self.breaker.is_down() {
            // It may have been restarted.
            self.polling.reset(now);
            self.are_polls_limited = false;
        }
        self.breaker.on_answered(call, now)
    }

    /// Records a request without a usable answer. Returns whether that reduces the rate, and whether the
    /// upstream counts as down from now on.
    pub fn on_failed(&mut self, call: Call, now: Timestamp, failure: &Failure) -> (bool, bool) {
        let concerns_kind = self.breaker.note_pause(call, now, failure);
        let is_limit = concerns_kind && call.kind != RequestKind::List && failure.is_throttled();
        let is_overload = is_limit || failure.cause == Cause::Timeout;
        let is_reduced = is_overload && self.rate.on_overload(call, now, failure);
        self.apply_rate();
        self.are_polls_limited |= is_limit && !call.is_start();
        let is_doubt = matches!(
            failure.cause,
            Cause::ServiceUnavailable | Cause::Timeout | Cause::AccessDenied | Cause::Unusable
        );
        let is_pause = concerns_kind && requested_pause(failure).is_some();
        self.are_starts_in_doubt |= call.is_start() && (is_doubt || is_pause);
        match failure.cause {
            Cause::TooManyRequests => self.throttling.on_too_many_requests(call.kind, now),
            Cause::NoConnection | Cause::Timeout => {}
            _ => self.throttling.on_answered(call.kind),
        }
        let is_down = self.breaker.on_failed(call, now, failure);
        (is_reduced, is_down)
    }

    /// Returns the results of the requests since the last call.
    pub fn take_results(&mut self) -> RequestResults {
        self.breaker.take_results()
    }

    /// Records that the upstream was found to have been restarted and has `processes` now.
    pub fn on_upstream_restart(&mut self, processes: u64, now: Timestamp) {
        self.rate.on_upstream_restart(now);
        self.apply_rate();
        self.incarnations.on_upstream_restart(processes, now);
    }

    /// Records that the upstream was found to have forgotten a process. It does not change the average
    /// length of incarnations: one process may be forgotten without a restart.
    pub fn on_process_forgotten(&mut self, now: Timestamp) {
        self.incarnations.on_process_forgotten(now);
    }

    /// Records a complete list, which was requested at `began_at`.
    pub fn on_list_complete(&mut self, entries: u64, began_at: Timestamp, now: Timestamp) {
        self.on_seen_alive(began_at);
        self.incarnations.on_list_complete(entries, now);
    }

    /// Records that a poll that began at `began_at` has seen a process of the current incarnation.
    pub fn on_seen_alive(&mut self, began_at: Timestamp) {
        self.rate.on_seen_alive(began_at);
        self.apply_rate();
    }

    /// Returns the timeout of a list that is requested now.
    pub fn list_timeout(&self) -> Duration {
        self.list_timeout.next(self.incarnations.processes())
    }

    /// Learns from the duration of a list. `entries` is `None` if it was not complete.
    pub fn on_list_ended(&mut self, entries: Option<u64>, took: Duration) {
        match entries {
            Some(entries) => self.list_timeout.on_complete(entries, took),
            None if took >= self.list_timeout() => self.list_timeout.on_timeout(),
            None => {}
        }
    }

    /// Returns whether one more look-up of a poll may be sent now, beside `requests` in flight, `look_ups` of
    /// them for polls. A quarter of the slots is left to starts, however long look-ups take;
    /// for one slot see [`Self::on_late_look_up`].
    pub fn may_poll(&self, now: Timestamp, look_ups: usize, requests: usize) -> bool {
        let most = match self.are_polls_limited {
            true => 1,
            false => (self.max_requests * 3 / 4).max(1),
        };
        let paused_until = self.breaker.kind_paused_until(RequestKind::LookUp, now);
        look_ups < most && self.may_send(now, requests) && paused_until.is_none()
    }

    /// Returns whether the budget allows a poll now.
    pub fn is_poll_due(&self, now: Timestamp) -> bool {
        now >= self.polling.next_at()
    }

    /// Returns the moment from which the next of a few orders may be polled; `None` if there are none, or
    /// many, and while the upstream is down.
    pub fn order_due_at(&self, now: Timestamp) -> Option<Timestamp> {
        let due_at = self.polling.due_at().filter(|_| !self.breaker.is_down())?;
        let paused_until = self.breaker.kind_paused_until(RequestKind::LookUp, now);
        paused_until.max(Some(due_at))
    }

    /// Plans a poll. `targets` are in the order of `seq`. `is_schedule_frequent` says that each of a few
    /// orders may wait for its own poll time.
    pub fn plan(
        &mut self,
        targets: &[PollTarget],
        is_schedule_frequent: bool,
        now: Timestamp,
    ) -> PollPlan {
        let (entries, cost) = (self.incarnations.processes(), self.request_cost());
        self.polling
            .plan(targets, entries, cost, is_schedule_frequent, now)
    }

    /// Learns durations from a poll that began at `began_at` and has observed this order.
    pub fn on_observed(&mut self, order: &PollTarget, observed: &Observed, began_at: Timestamp) {
        let Some(running_since) = order.running_since else {
            return;
        };
        let Some(known_at) = self.polling.last_known_running_at(order.seq, running_since) else {
            return;
        };
        let (from, to) = (known_at.since(running_since), began_at.since(running_since));
        if matches!(observed, Observed::Absent | Observed::Unrecognised(_)) {
            return;
        }
        self.durations.on_observed(to.saturating_sub(from));
        if *observed != Observed::Running {
            self.durations.on_ended(to);
        }
    }

    /// Records a look-up of one order that began at `began_at`.
    pub fn on_looked_up(&mut self, seq: i64, began_at: Timestamp) {
        self.polling.on_looked_up(seq, began_at);
    }

    /// Records a poll of all orders that began at `began_at`.
    pub fn on_all_polled(&mut self, began_at: Timestamp) {
        self.polling.on_all_polled(began_at);
    }

    /// Returns the moment from which on the budget allows a poll.
    pub fn polls_allowed_from(&self) -> Timestamp {
        self.polling.next_at()
    }

    /// Returns the least cost of a request to the upstream: if its rate limit counts polls, each takes the
    /// place of a start.
    fn request_cost(&self) -> Duration {
        match self.are_polls_limited {
            true => Duration::from_secs_f64(1.0 / self.rate.rate()),
            false => Duration::ZERO,
        }
    }

    /// Schedules the next poll after one that began at `began_at`, and has cost the upstream `cost` and so
    /// many requests.
    pub fn on_polled(&mut self, began_at: Timestamp, requests: usize, cost: Duration) {
        let of_limit = self
            .request_cost()
            .mul_f64(requests as f64)
            .min(RATE_LIMITED_POLL_COST_MAX);
        let cost = cost.max(of_limit);
        self.polling.on_polled(began_at, cost, &self.durations);
    }

    /// Records a look-up whose answer came so late, `now`, that its poll had ended. If there is one slot, starts
    /// have waited for it: they now have it for as long.
    pub fn on_late_look_up(&mut self, sent_at: Timestamp, now: Timestamp) {
        if self.max_requests == 1 {
            self.polling.postpone(now.after(now.since(sent_at)));
        }
    }

    /// Sets the number of processes that are known to run and are not stuck.
    pub fn set_running(&mut self, running: u64) {
        self.running = running;
    }

    /// Makes all orders due for a poll as soon as possible, because something is not as expected.
    pub fn poll_soon(&mut self, now: Timestamp) {
        self.polling.reset(now);
    }

    /// Returns the age from which on a process that still runs is stuck.
    pub fn stuck_threshold(&self) -> Duration {
        self.durations.longest() * STUCK_FACTOR
    }
}

#[cfg(test)]
mod tests;
