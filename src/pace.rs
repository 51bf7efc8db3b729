//! Limits of the requests to the upstream: start rate, processes in flight, polls, backoff. Pure
//! functions of `now` and of what happened before.
//!
//! The upstream crashes under load and loses its in-memory state, so every request has a cost. [`Pace`]
//! is the one limiter that every request passes. `decide` chooses what to do about an order.
//!
//! - `rate`: starts per second.
//! - `incarnations`: processes in flight.
//! - `polling`: which orders to poll, and when. `list_timeout`: how long a list may take.
//! - `round_robin`: which order is started next.
//! - `availability`: whether requests may be sent at all.

mod availability;
mod incarnations;
mod list_timeout;
mod polling;
mod rate;
mod round_robin;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::availability::{CircuitBreaker, RequestResults, UpstreamState};
pub use self::incarnations::Incarnations;
use self::list_timeout::ListTimeout;
use self::polling::Polling;
pub use self::polling::{Durations, PollPlan, PollTarget, list_cost, look_ups_cost};
use self::rate::Gcra;
pub use self::rate::{ReductionCause, StartRate};
pub use self::round_robin::{RoundRobin, StartClass};
use crate::order::{Observed, Timestamp};
use crate::upstream::{Cause, Failure};

/// Backoff after a first failure.
const BACKOFF_BASE: Duration = Duration::from_secs(1);

/// Longest backoff: long enough that an operator sees the order in today's logs, short enough that
/// an order proceeds soon after the upstream is repaired.
pub const BACKOFF_MAX: Duration = Duration::from_secs(300);

/// A restart of the upstream is suspected if more processes than this are missing.
const MISSING_MIN: usize = 10;

/// A restart of the upstream is suspected if more than one in this many known processes are missing.
const MISSING_SHARE: usize = 3;

/// Largest cost of polls that a rate limit of the upstream counts: a twentieth of the longest pause
/// between two polls. However low the limit, orders in doubt have to be polled.
const LIMITED_COST_MAX: Duration = Duration::from_millis(500);

/// Time in which an intent is written, about: as many orders as start in it are staged ahead.
const INTENT_WRITE_TIME: Duration = Duration::from_millis(2);

/// A process that runs for this many times as long as any that ended lately is stuck. It does not
/// occupy a place in the window for ever.
const STUCK_AFTER: u32 = 2;

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
    pub resting_until: Option<Timestamp>,
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

/// A request to the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Set for a start, not for a poll.
    pub is_start: bool,
    /// Moment at which it was sent.
    pub sent_at: Timestamp,
}

impl Call {
    /// Creates a poll that was sent at this moment.
    pub const fn poll(sent_at: Timestamp) -> Self {
        Self {
            is_start: false,
            sent_at,
        }
    }
}

/// The limiter that every request to the upstream passes, and all that it has learned.
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
    in_flight: u64,
    /// Set if the last start had no answer, or a server error.
    are_starts_in_doubt: bool,
    /// Set if the rate limit of the upstream counts polls too.
    are_polls_limited: bool,
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
            breaker: CircuitBreaker::new(upstream, learned.resting_until, now),
            gcra: Gcra::new(rate.rate()),
            rate,
            incarnations: learned.incarnations.no_later_than(now),
            durations: learned.durations,
            polling: Polling::new(now),
            list_timeout: ListTimeout::default(),
            in_flight: 0,
            are_starts_in_doubt: false,
            are_polls_limited: false,
        }
    }

    /// Creates the pace of another run, which resumes from what this one has learned.
    #[must_use]
    pub fn for_next_run(&self, now: Timestamp) -> Self {
        let ceiling = self.rate.ceiling().unwrap_or(0.0);
        let upstream = self.breaker.state().clone();
        Self {
            list_timeout: self.list_timeout.clone(),
            ..Self::new(ceiling, self.max_requests, self.learned(now), upstream, now)
        }
    }

    /// Returns what was learned, for a later run.
    pub fn learned(&self, now: Timestamp) -> LearnedLimits {
        LearnedLimits {
            resting_until: self.breaker.resting_until(now),
            rate: Some(self.rate.clone()),
            incarnations: self.incarnations.clone(),
            durations: self.durations.clone(),
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

    /// Returns what limits the starts, if something does.
    pub fn limit(&self) -> Option<StartLimit<'_>> {
        let window = self.incarnations.window();
        if let Some(window) = window.filter(|window| self.in_flight >= *window) {
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
        starting < most && self.breaker.may_send(now)
    }

    /// Returns the moment at which the next start may be sent, `now` or later; `None` while the window is
    /// full.
    pub fn next_start_at(&self, now: Timestamp, starting: usize) -> Option<Timestamp> {
        let in_flight = self.in_flight + starting as u64;
        let is_full = self
            .incarnations
            .window()
            .is_some_and(|window| in_flight >= window);
        (!is_full).then(|| self.gcra.next_at(now))
    }

    /// Counts a start that is sent now.
    pub fn on_start_sent(&mut self, now: Timestamp) {
        self.rate.on_sent();
        self.gcra.on_sent(now);
    }

    /// Counts a poll that is sent now. It takes the place of a start if the rate limit of the upstream
    /// counts polls.
    pub fn on_poll_sent(&mut self, now: Timestamp) {
        if self.are_polls_limited {
            self.gcra.on_sent(now);
        }
    }

    /// Records a start that was accepted: one more process is in flight.
    pub fn on_start_accepted(&mut self, seq: i64, now: Timestamp) {
        self.polling.on_started(seq, now);
        self.are_starts_in_doubt = false;
        self.in_flight += 1;
        self.incarnations.on_start_accepted();
    }

    /// Records a start that was refused: starts are answered.
    pub fn on_start_refused(&mut self) {
        self.are_starts_in_doubt = false;
    }

    /// Records a start that had no answer, or a server error, and may have taken effect.
    pub fn on_start_in_doubt(&mut self) {
        self.are_starts_in_doubt = true;
    }

    /// Raises a reduced rate by the time that has passed. Returns whether the reduction is over.
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
        if !call.is_start {
            self.polling.on_answered();
        }
        if self.breaker.is_down() {
            // It may have been restarted.
            self.polling.reset(now);
            self.are_polls_limited = false;
        }
        self.breaker.on_answered(now)
    }

    /// Records a request without a usable answer. Returns whether that reduces the rate, and whether the
    /// upstream counts as down from now on.
    pub fn on_failed(&mut self, call: Call, now: Timestamp, failure: &Failure) -> (bool, bool) {
        let is_refused = matches!(failure.cause, Cause::TooManyRequests | Cause::Overload);
        let is_overload = is_refused || failure.cause == Cause::Timeout;
        let is_slower = is_overload && self.rate.on_overload(call.sent_at, now, &failure.detail);
        self.apply_rate();
        if !call.is_start && is_refused {
            self.polling.on_refused(now);
            self.are_polls_limited = true;
        }
        let is_down = self.breaker.on_failed(call.is_start, now, failure);
        (is_slower, is_down)
    }

    /// Returns the results of the requests since the last call.
    pub fn take_results(&mut self) -> RequestResults {
        self.breaker.take_results()
    }

    /// Records that the upstream was found to have been restarted and has `processes` now.
    pub fn on_restart(&mut self, processes: u64, now: Timestamp) {
        self.rate.on_restart(now);
        self.apply_rate();
        self.incarnations.on_restart(processes, now);
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

    /// Returns whether one more poll may be sent now, beside `requests` in flight.
    pub fn may_poll(&self, now: Timestamp, requests: usize) -> bool {
        let is_free = requests == 0 || !self.are_polls_limited;
        is_free && self.may_send(now, requests) && !self.polling.is_refused(now)
    }

    /// Returns whether the budget allows a poll now.
    pub fn is_poll_due(&self, now: Timestamp) -> bool {
        now >= self.polling.next_at()
    }

    /// Returns the moment at which the next of a few orders is to be polled; `None` if there are none, or
    /// many.
    pub fn order_due_at(&self) -> Option<Timestamp> {
        self.polling.due_at()
    }

    /// Plans a poll. `targets` are in the order of `seq`. `is_frequent` says that the schedule is frequent
    /// enough for each of a few orders to wait for its own moment.
    pub fn plan(&mut self, targets: &[PollTarget], is_frequent: bool, now: Timestamp) -> PollPlan {
        let (entries, cost) = (self.incarnations.processes(), self.request_cost());
        self.polling.plan(targets, entries, cost, is_frequent, now)
    }

    /// Learns durations from a poll that began at `began_at` and has observed this order.
    pub fn on_observed(&mut self, order: &PollTarget, observed: &Observed, began_at: Timestamp) {
        let Some(running_since) = order.running_since else {
            return;
        };
        let Some(known_at) = self.polling.last_known(order.seq, running_since) else {
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

    /// Restores the durations that were learned before a poll that could not be recorded. They will be
    /// learned again.
    pub fn restore_durations(&mut self, before: Durations) {
        self.durations = before;
    }

    /// Returns the durations of processes.
    pub fn durations(&self) -> &Durations {
        &self.durations
    }

    /// Records a look-up of one order that began at `began_at`.
    pub fn on_looked_up(&mut self, seq: i64, began_at: Timestamp) {
        self.polling.on_looked_up(seq, began_at);
    }

    /// Records a poll of all orders that began at `began_at`.
    pub fn on_all_polled(&mut self, began_at: Timestamp) {
        self.polling.on_all_polled(began_at);
    }

    /// Returns the earliest moment of the next poll within the budget.
    pub fn next_poll_at(&self) -> Timestamp {
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
            .min(LIMITED_COST_MAX);
        let cost = cost.max(of_limit);
        self.polling.on_polled(began_at, cost, &self.durations);
    }

    /// Sets the number of processes that are known to run and are not stuck.
    pub fn set_in_flight(&mut self, in_flight: u64) {
        self.in_flight = in_flight;
    }

    /// Makes all orders due for a poll as soon as possible, because something is not as expected.
    pub fn poll_soon(&mut self, now: Timestamp) {
        self.polling.reset(now);
    }

    /// Returns the age from which on a process that still runs is stuck.
    pub fn stuck_after(&self) -> Duration {
        self.durations.longest() * STUCK_AFTER
    }
}

/// Returns how long an order waits after its `attempts`th failure in a row: one second, doubled with each
/// further failure up to [`BACKOFF_MAX`], less a share of up to one half that depends on the id, so
/// that orders that failed together do not return together ("equal jitter").
pub fn backoff(id: &str, attempts: u32) -> Duration {
    let doublings = attempts.saturating_sub(1).min(16);
    let full = (BACKOFF_BASE * 2u32.pow(doublings)).min(BACKOFF_MAX);
    let mut hasher = DefaultHasher::new();
    (id, attempts).hash(&mut hasher);
    let share = (hasher.finish() % 1_000) as f64 / 1_000.0;
    full.mul_f64(1.0 - share / 2.0)
}

/// Returns whether the upstream must have been restarted, given the number of known processes and how many
/// of them are missing at once.
pub fn is_restart(missing: usize, known: usize) -> bool {
    missing > MISSING_MIN && missing * MISSING_SHARE > known
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_up_to_five_minutes_and_differs_between_orders() {
        for attempts in 1..40 {
            let full = Duration::from_secs(1 << (attempts - 1).min(16)).min(BACKOFF_MAX);
            let wait = backoff("a1", attempts);
            assert!(wait <= full && wait >= full / 2, "{attempts}: {wait:?}");
        }
        let waits: std::collections::HashSet<_> =
            (0..100).map(|n| backoff(&format!("a{n}"), 5)).collect();
        assert!(waits.len() > 50);
    }

    fn pace(ceiling: f64, learned: LearnedLimits, now: Timestamp) -> Pace {
        Pace::new(ceiling, 8, learned, UpstreamState::Unknown, now)
    }

    /// Creates a start that was sent at this moment.
    fn start(sent_at: Timestamp) -> Call {
        Call {
            is_start: true,
            sent_at,
        }
    }

    fn no_connection() -> Failure {
        Failure::new("no connection", Cause::NoAccess)
    }

    #[test]
    fn no_more_requests_are_made_at_once_than_allowed_and_none_while_it_is_down_or_rests() {
        let now = Timestamp(1_000);
        let mut limiter = pace(50.0, LearnedLimits::default(), now);
        assert!(limiter.may_send(now, 7) && !limiter.may_send(now, 8));
        let mut failure = Failure::new("answered 503", Cause::Overload);
        failure.retry_after = Some(Duration::from_secs(2));
        assert_eq!(limiter.on_failed(start(now), now, &failure), (true, false));
        assert!((44.0..46.0).contains(&limiter.rate().rate()));
        assert!(!limiter.may_send(now, 0) && limiter.may_send(Timestamp(3_000), 0));
        // Another run keeps to the pause too, but not for ever.
        let mut learned = limiter.learned(now);
        assert_eq!(learned.resting_until, Some(Timestamp(3_000)));
        assert!(!pace(50.0, learned.clone(), now).may_send(Timestamp(2_999), 0));
        learned.resting_until = Some(Timestamp(i64::MAX));
        assert!(pace(50.0, learned, now).may_send(now.after(BACKOFF_MAX), 0));
        let call = start(Timestamp(1_500));
        assert_eq!(
            limiter.on_failed(call, now, &no_connection()),
            (false, true)
        );
        assert!(!limiter.may_send(Timestamp(3_000), 0));
        let at = Timestamp(3_000);
        assert!(limiter.on_answered(start(at), at) && limiter.may_send(at, 0));
    }

    #[test]
    fn orders_are_staged_ahead_of_free_slots_only_at_a_high_rate() {
        let now = Timestamp(1_000);
        let staged_at_once = |pace: &Pace| (0..).find(|starting| !pace.may_stage(now, *starting));
        let fast = LearnedLimits {
            rate: Some(StartRate::doubled_to(50_000.0, now)),
            ..LearnedLimits::default()
        };
        for (ceiling, expected) in [(3.0, 8), (50.0, 8), (499.0, 8), (1_500.0, 11), (0.0, 16)] {
            let mut limiter = pace(ceiling, fast.clone(), now);
            assert_eq!(staged_at_once(&limiter), Some(expected), "{ceiling}/s");
            limiter.on_failed(start(now), now, &no_connection());
            assert_eq!(staged_at_once(&limiter), Some(0), "it is down");
        }
    }

    #[test]
    fn while_starts_are_in_doubt_one_order_at_a_time_tries() {
        let now = Timestamp(1_000);
        let mut limiter = pace(50.0, LearnedLimits::default(), now);
        let accepted: fn(&mut Pace) = |pace| pace.on_start_accepted(1, Timestamp(1_000));
        for recover in [accepted, Pace::on_start_refused] {
            limiter.on_start_in_doubt();
            assert!(limiter.may_stage(now, 0) && !limiter.may_stage(now, 1));
            recover(&mut limiter);
            assert!(limiter.may_stage(now, 7));
        }
    }

    #[test]
    fn after_a_restart_of_the_upstream_fewer_processes_run_at_once_also_in_a_later_run() {
        let now = Timestamp(1_000);
        let mut limiter = pace(50.0, LearnedLimits::default(), now);
        limiter.on_list_complete(100, now, now);
        assert_eq!(limiter.incarnations().processes(), Some(100));
        limiter.on_restart(0, now);
        let mut limiter = pace(50.0, limiter.learned(now), now);
        assert_eq!(
            (limiter.rate().rate(), limiter.incarnations().restarts()),
            (1.25, 1)
        );
        assert_eq!(limiter.incarnations().processes(), Some(0));
        let reduction = StartLimit::Reduction(ReductionCause::Restart);
        assert_eq!(limiter.limit(), Some(reduction));
        let window = limiter.incarnations().window().unwrap();
        for seq in 1..window {
            limiter.on_start_accepted(seq as i64, now);
        }
        assert_eq!(limiter.next_start_at(now, 0), Some(now));
        assert_eq!(limiter.next_start_at(now, 1), None);
        limiter.on_start_accepted(0, now);
        assert_eq!(limiter.next_start_at(now, 0), None);
        assert_eq!(limiter.limit(), Some(StartLimit::Window(window)));
        limiter.set_in_flight(window - 1);
        assert_eq!(limiter.next_start_at(now, 0), Some(now));
    }

    #[test]
    fn an_upstream_that_answers_again_is_polled_at_once() {
        let mut limiter = pace(50.0, LearnedLimits::default(), Timestamp(0));
        limiter.on_polled(Timestamp(0), 1, Duration::from_secs(1));
        assert!(!limiter.is_poll_due(Timestamp(10)));
        limiter.on_answered(start(Timestamp(0)), Timestamp(10));
        assert!(!limiter.is_poll_due(Timestamp(10)), "it was not down");
        limiter.on_failed(start(Timestamp(0)), Timestamp(11), &no_connection());
        limiter.on_answered(start(Timestamp(0)), Timestamp(12));
        assert!(limiter.is_poll_due(Timestamp(12)));
    }

    /// Sends starts as they are due for so many seconds to an upstream that accepts `limit` of them per
    /// second and refuses the others, and polls it each second. Returns how many were accepted and
    /// refused.
    fn drive(limiter: &mut Pace, seconds: i64, limit: f64) -> [u32; 2] {
        let mut counts = [0; 2];
        let mut tokens = 1.0_f64;
        let refusal = Failure::new("the upstream answered 429", Cause::Overload);
        for now in (0..seconds * 1_000).map(Timestamp) {
            tokens = (tokens + limit / 1e3).min(1.0);
            if now.0 % 1_000 == 0 {
                limiter.recover(now);
                limiter.on_seen_alive(now);
            }
            if limiter.next_start_at(now, 0) == Some(now) {
                limiter.on_start_sent(now);
                let is_taken = tokens >= 1.0;
                counts[usize::from(!is_taken)] += 1;
                match is_taken {
                    true => tokens -= 1.0,
                    false => {
                        limiter.on_failed(start(now), now, &refusal);
                    }
                }
            }
        }
        counts
    }

    #[test]
    fn an_upstream_that_limits_starts_is_driven_at_its_limit() {
        for limit in [2.0, 5.0, 40.0] {
            let mut limiter = pace(0.0, LearnedLimits::default(), Timestamp(0));
            let [accepted, refused] = drive(&mut limiter, 300, limit);
            let possible = limit * 300.0;
            assert!(
                f64::from(accepted) > 0.9 * possible,
                "{limit}: {accepted} of {possible}"
            );
            assert!(
                refused * 10 < accepted,
                "{limit}: {refused} beside {accepted}"
            );
            let limited_by = limiter.limit();
            assert!(
                matches!(
                    limited_by,
                    Some(StartLimit::Reduction(ReductionCause::Overload(_)))
                ),
                "{limited_by:?}"
            );
        }
    }

    #[test]
    fn starts_that_are_accepted_are_sent_ever_faster() {
        let mut limiter = pace(0.0, LearnedLimits::default(), Timestamp(0));
        assert_eq!((limiter.rate().rate(), limiter.limit()), (500.0, None));
        let [accepted, _] = drive(&mut limiter, 3, 1e6);
        // At most one start per millisecond is possible here.
        assert!((2_000..3_000).contains(&accepted), "{accepted}");
        assert!(limiter.rate().rate() >= 1_000.0);
        let mut under_a_ceiling = pace(50.0, LearnedLimits::default(), Timestamp(0));
        let [accepted, _] = drive(&mut under_a_ceiling, 100, 1e6);
        assert!((4_950..5_010).contains(&accepted), "{accepted}");
        assert_eq!(under_a_ceiling.limit(), Some(StartLimit::Ceiling));
    }

    #[test]
    fn polls_that_a_rate_limit_counts_take_the_places_of_starts() {
        let mut limiter = pace(0.0, LearnedLimits::default(), Timestamp(0));
        let refusal = Failure::new("the upstream answered 429", Cause::Overload);
        limiter.on_failed(start(Timestamp(10)), Timestamp(20), &refusal);
        limiter.on_start_sent(Timestamp(30));
        let due = limiter.next_start_at(Timestamp(30), 0);
        limiter.on_poll_sent(Timestamp(30));
        assert_eq!(
            limiter.next_start_at(Timestamp(30), 0),
            due,
            "polls are not counted"
        );
        assert!(limiter.may_poll(Timestamp(30), 0));
        limiter.on_failed(Call::poll(Timestamp(31)), Timestamp(32), &refusal);
        assert!(!limiter.may_poll(Timestamp(32), 0) && limiter.may_send(Timestamp(32), 0));
        limiter.on_poll_sent(Timestamp(2_000));
        assert!(limiter.next_start_at(Timestamp(2_000), 0) > due);
        limiter.on_polled(Timestamp(2_000), 1, Duration::ZERO);
        assert!(!limiter.is_poll_due(Timestamp(2_080)) && limiter.is_poll_due(Timestamp(2_100)));
        assert!(limiter.may_poll(Timestamp(2_100), 0), "one at a time");
        assert!(!limiter.may_poll(Timestamp(2_100), 1));
        // However many they were and however low the limit, there is another poll soon.
        limiter.on_polled(Timestamp(3_000), 1_000, Duration::ZERO);
        assert!(!limiter.is_poll_due(Timestamp(12_999)));
        assert!(limiter.is_poll_due(Timestamp(13_000)));
    }

    #[test]
    fn the_results_of_requests_are_returned_once() {
        let mut limiter = pace(50.0, LearnedLimits::default(), Timestamp(0));
        let (answer, failure) = (true, true);
        limiter.on_answered(start(Timestamp(0)), Timestamp(1));
        let results = |answer, failure| RequestResults { answer, failure };
        assert_eq!(limiter.take_results(), results(answer, false));
        let unusable = Failure::new("answered 500", Cause::Unusable);
        limiter.on_failed(start(Timestamp(0)), Timestamp(2), &unusable);
        assert_eq!(limiter.take_results(), results(false, failure));
        assert_eq!(limiter.take_results(), results(false, false));
    }

    #[test]
    fn when_something_is_not_as_expected_all_orders_are_due_at_once() {
        let mut limiter = pace(50.0, LearnedLimits::default(), Timestamp(0));
        limiter.on_polled(Timestamp(0), 1, Duration::from_secs(1));
        assert!(!limiter.is_poll_due(Timestamp(10)));
        limiter.poll_soon(Timestamp(10));
        assert!(limiter.is_poll_due(Timestamp(10)));
    }

    #[test]
    fn durations_are_learned_from_polls_and_with_them_which_processes_are_stuck() {
        let mut limiter = pace(50.0, LearnedLimits::default(), Timestamp(0));
        let order = PollTarget {
            seq: 1,
            running_since: Some(Timestamp(1_000)),
        };
        let durations = |limiter: &Pace| limiter.learned(Timestamp(0)).durations;
        assert_eq!(limiter.stuck_after(), Duration::from_secs(1_320));
        let before = durations(&limiter);
        limiter.on_observed(&order, &Observed::Absent, Timestamp(5_000));
        assert_eq!(durations(&limiter), before);
        limiter.on_observed(&order, &Observed::Running, Timestamp(5_000));
        assert_eq!(durations(&limiter).mean(), None);
        limiter.on_looked_up(1, Timestamp(5_000));
        limiter.on_observed(&order, &Observed::Failed, Timestamp(7_000));
        assert_eq!(durations(&limiter).mean(), Some(Duration::from_secs(6)));
        assert_eq!(limiter.stuck_after(), Duration::from_secs(12));
        // A process from before this run may have ended at any time before.
        let old = PollTarget {
            seq: 2,
            running_since: Some(Timestamp(-1)),
        };
        limiter.on_observed(&old, &Observed::Failed, Timestamp(7_000));
        assert_eq!(durations(&limiter).mean(), Some(Duration::from_secs(6)));
        // A poll of all orders includes this one.
        limiter.on_all_polled(Timestamp(9_000));
        limiter.on_observed(&order, &Observed::Running, Timestamp(21_000));
        assert_eq!(durations(&limiter).mean(), Some(Duration::from_secs(18)));
    }

    #[test]
    fn limits_that_an_earlier_version_has_stored_are_read() {
        let stored = r#"{
            "rate": {"rate": 1000.0, "ceiling": 50.0, "cut": {
                "at": 9000, "quiet": {"secs": 0, "nanos": 0}, "plateau": 1.25,
                "plateau_after": {"secs": 0, "nanos": 0}, "unit": {"secs": 10, "nanos": 0},
                "growth": 1.0, "is_restart": true, "reason": "the upstream was restarted"},
                "step_at": 0, "sent": 7},
            "lives": {"processes": 12, "began_at": 9000, "forgot_at": null, "ended": 1,
                "mean": 24060.0, "mean_seconds": 600.0},
            "durations": {"observed_seconds": 20.0, "ended": 2.0,
                "longest": {"secs": 11, "nanos": 0}},
            "resting_until": 10000}"#;
        let learned: LearnedLimits = serde_json::from_str(stored).unwrap();
        assert_eq!(learned.incarnations.restarts(), 1);
        assert_eq!(learned.durations.mean(), Some(Duration::from_secs(10)));
        let as_json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        let written = serde_json::to_string(&learned).unwrap();
        assert_eq!(as_json(&written), as_json(stored));
    }

    #[test]
    fn a_restart_is_suspected_when_more_than_ten_and_more_than_a_third_are_missing() {
        assert!(!is_restart(10, 10) && is_restart(11, 11));
        assert!(is_restart(11, 32) && !is_restart(11, 33));
        assert!(!is_restart(0, 0));
    }
}
