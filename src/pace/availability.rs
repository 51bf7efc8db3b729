//! The availability of the upstream: a circuit breaker that is fed with the result of each request.
//!
//! An upstream that is down gets probes alone (`reconciler/probe.rs`). `Retry-After` pauses all requests, but
//! those of one kind if it comes again before one of the kind is answered, and those about one order if others
//! are answered.

use std::time::Duration;

use crate::order::Timestamp;
use crate::upstream::{Cause, Failure};

/// Number of failures in a row after which the upstream counts as down.
const FAILURES_TO_DOWN: u32 = 3;

/// Longest pause that the upstream can ask for. An operator who restores it waits no longer than that for
/// the next request.
const REQUESTED_PAUSE_MAX: Duration = Duration::from_secs(300);

/// Returns the pause that the upstream asked for, as far as it is obeyed.
pub fn requested_pause(failure: &Failure) -> Option<Duration> {
    failure
        .retry_after
        .map(|wait| wait.min(REQUESTED_PAUSE_MAX))
}

/// Kinds of requests, of which the upstream may throttle each alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// Starts.
    Start,
    /// Look-ups.
    LookUp,
    /// Lists.
    List,
}

/// A request to the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Its kind.
    pub kind: RequestKind,
    /// Set if it is about an order whose last request failed too, or was throttled with `Retry-After`.
    pub is_repeated: bool,
    /// Moment at which it was sent.
    pub sent_at: Timestamp,
}

impl Call {
    /// Creates a look-up that was sent at this moment.
    pub const fn poll(sent_at: Timestamp) -> Self {
        Self {
            kind: RequestKind::LookUp,
            is_repeated: false,
            sent_at,
        }
    }

    /// Returns whether it is a start, not a poll.
    pub fn is_start(self) -> bool {
        self.kind == RequestKind::Start
    }
}

/// The availability of the upstream: usable answers or none, and since when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum UpstreamState {
    /// Not known yet: no usable answer, and too few failures.
    #[default]
    Unknown,
    /// The upstream answers.
    Up {
        /// Moment of the first usable answer.
        since: Timestamp,
    },
    /// The upstream does not answer.
    Down {
        /// Moment of the first failure.
        since: Timestamp,
        /// Detail of the last failure.
        detail: String,
    },
}

impl UpstreamState {
    /// Returns the state, since `now` at the latest, for a clock that was set back.
    fn clamp_times(mut self, now: Timestamp) -> Self {
        if let Self::Up { since } | Self::Down { since, .. } = &mut self {
            *since = now.min(*since);
        }
        self
    }
}

/// A circuit breaker for requests to the upstream.
#[derive(Clone, Debug)]
pub struct CircuitBreaker {
    state: UpstreamState,
    failures_in_a_row: u32,
    /// Set if the last poll was answered, or failed in a way that shows that the upstream is there.
    are_polls_answered: bool,
    /// Set if the upstream was down because of starts, and none was answered since.
    are_starts_failing: bool,
    first_failure_at: Option<Timestamp>,
    /// Moment of the last failure that counts.
    counted_at: Option<Timestamp>,
    /// End of the pause that the upstream has asked for.
    paused_until: Option<Timestamp>,
    /// End of the last pause that the upstream has asked for in an answer to each [`RequestKind`]; `None` if
    /// one had a usable answer since.
    kinds_paused_until: [Option<Timestamp>; 3],
    results: RequestResults,
    last_failure: Option<String>,
}

/// The kinds of results among a number of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestResults {
    /// Set if a request had a usable answer.
    pub has_answer: bool,
    /// Set if a request failed.
    pub has_failure: bool,
}

impl CircuitBreaker {
    /// Creates a circuit breaker that resumes from the state of an earlier run, and from the end of the
    /// pause that the upstream had asked for.
    pub fn new(state: UpstreamState, paused_until: Option<Timestamp>, now: Timestamp) -> Self {
        Self {
            state: state.clamp_times(now),
            failures_in_a_row: 0,
            are_polls_answered: true,
            are_starts_failing: false,
            first_failure_at: None,
            counted_at: None,
            paused_until: paused_until.map(|at| at.min(now.after(REQUESTED_PAUSE_MAX))),
            kinds_paused_until: [None; 3],
            results: RequestResults::default(),
            last_failure: None,
        }
    }

    /// Returns the detail of the last failure in this run.
    pub fn last_failure(&self) -> Option<&str> {
        self.last_failure.as_deref()
    }

    /// Returns the results of the requests since the last call, at the end of a pass.
    pub fn take_results(&mut self) -> RequestResults {
        std::mem::take(&mut self.results)
    }

    /// Returns the state of the upstream.
    pub fn state(&self) -> &UpstreamState {
        &self.state
    }

    /// Returns whether the upstream is known to be down.
    pub fn is_down(&self) -> bool {
        matches!(self.state, UpstreamState::Down { .. })
    }

    /// Returns the end of the pause that the upstream has asked for, if it lies ahead.
    pub fn paused_until(&self, now: Timestamp) -> Option<Timestamp> {
        self.paused_until.filter(|at| *at > now)
    }

    /// Returns the end of the pause that the upstream has asked for of requests of this kind, if it lies ahead.
    pub fn kind_paused_until(&self, kind: RequestKind, now: Timestamp) -> Option<Timestamp> {
        let paused_until = self
            .paused_until
            .max(self.kinds_paused_until[kind as usize]);
        paused_until.filter(|at| *at > now)
    }

    /// Returns whether requests may be sent at `now`.
    pub fn may_send(&self, now: Timestamp) -> bool {
        !self.is_down() && self.paused_until(now).is_none()
    }

    /// Records a usable answer. Returns whether the upstream was not known to answer before.
    pub fn on_answered(&mut self, call: Call, now: Timestamp) -> bool {
        self.are_polls_answered = true;
        self.are_starts_failing &= !call.is_start();
        self.kinds_paused_until[call.kind as usize] = None;
        self.results.has_answer = true;
        self.failures_in_a_row = 0;
        self.first_failure_at = None;
        if matches!(self.state, UpstreamState::Up { .. }) {
            return false;
        }
        self.state = UpstreamState::Up { since: now };
        true
    }

    /// Returns whether an answer with `Retry-After` concerns its order alone, because others are answered: its
    /// last request was answered so or failed, and a request of the kind had a usable answer since one was
    /// answered so.
    pub fn concerns_order(&self, call: Call, failure: &Failure) -> bool {
        let is_kind_answered = self.kinds_paused_until[call.kind as usize].is_none();
        failure.retry_after.is_some() && call.is_repeated && is_kind_answered
    }

    /// Records a request without a usable answer. Returns whether to report that the upstream is down:
    /// it was not before, or was down already when an earlier run ended.
    pub fn on_failed(&mut self, call: Call, now: Timestamp, failure: &Failure) -> bool {
        let is_start = call.is_start();
        let has_failed = std::mem::replace(&mut self.results.has_failure, true);
        let is_first = self.last_failure.is_none();
        self.last_failure = Some(failure.detail.clone());
        if let Some(pause) = requested_pause(failure) {
            let paused_until = now.after(pause);
            let concerns_order = self.concerns_order(call, failure);
            let of_kind = &mut self.kinds_paused_until[call.kind as usize];
            // A kind of requests that is always answered so waits alone.
            let is_first = of_kind.is_none();
            *of_kind = Some(if concerns_order { now } else { paused_until });
            if is_first && !concerns_order || self.is_down() {
                self.paused_until = Some(paused_until);
            }
        }
        if !is_start {
            self.are_polls_answered =
                matches!(failure.cause, Cause::TooManyRequests | Cause::Stale);
        }
        // An upstream that answers polls is there whatever it answers to starts, and so is one that limits
        // the rate. The answer of a cache does not show that it is not. Starts without an answer or access
        // make it down until a poll shows that they alone fail.
        let do_starts_alone_fail = is_start && self.are_polls_answered;
        let is_reachable = match failure.cause {
            Cause::NoConnection => false,
            Cause::AccessDenied | Cause::Timeout => do_starts_alone_fail && self.are_starts_failing,
            Cause::TooManyRequests | Cause::Stale => true,
            Cause::ServiceUnavailable | Cause::Unusable => do_starts_alone_fail,
        };
        if is_reachable {
            match &mut self.state {
                UpstreamState::Up { .. } => {}
                _ if failure.cause == Cause::TooManyRequests => {
                    self.state = UpstreamState::Up { since: now };
                    self.failures_in_a_row = 0;
                    self.first_failure_at = None;
                }
                UpstreamState::Down { detail, .. } => detail.clone_from(&failure.detail),
                UpstreamState::Unknown => {}
            }
            return false;
        }
        // However many orders always fail, others are polled and started in the same pass, and any answer ends
        // the row. So the requests of a pass count once, and those in flight together; not timeouts in turn, as
        // in a pass of `--once`.
        let is_concurrent = |at| at <= now && call.sent_at <= at;
        let has_counted = self.counted_at.is_some_and(is_concurrent)
            || has_failed && failure.cause != Cause::Timeout;
        if call.is_repeated && has_counted {
            return false;
        }
        self.counted_at = Some(now);
        self.failures_in_a_row += 1;
        let since = *self.first_failure_at.get_or_insert(now);
        match &mut self.state {
            UpstreamState::Down { detail, .. } => {
                detail.clone_from(&failure.detail);
                is_first
            }
            _ if failure.cause == Cause::NoConnection
                || self.failures_in_a_row >= FAILURES_TO_DOWN =>
            {
                self.are_starts_failing |= is_start;
                self.state = UpstreamState::Down {
                    since,
                    detail: failure.detail.clone(),
                };
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(cause: Cause) -> Failure {
        Failure::new("it failed", cause)
    }

    fn start(sent_at: Timestamp) -> Call {
        Call {
            kind: RequestKind::Start,
            ..Call::poll(sent_at)
        }
    }

    #[test]
    fn orders_that_always_fail_are_no_outage_while_others_are_answered() {
        let mut breaker = CircuitBreaker::new(UpstreamState::Unknown, None, Timestamp(1));
        let denied = failure(Cause::AccessDenied);
        let repeated = |now| Call {
            is_repeated: true,
            ..Call::poll(now)
        };
        // However long they take.
        for pass in 0..10 {
            let now = Timestamp(10_000 * pass);
            assert_eq!(breaker.on_answered(Call::poll(now), now), pass == 0);
            for second in 1..10 {
                let now = Timestamp(now.0 + second * 1_000);
                assert!(!breaker.on_failed(repeated(now), now, &denied));
            }
            breaker.take_results();
        }
        // Without an answer, each pass counts.
        for (at, is_down) in [(100_000, false), (100_100, true)] {
            let now = Timestamp(at);
            assert_eq!(breaker.on_failed(repeated(now), now, &denied), is_down);
            assert!(!breaker.on_failed(repeated(now), now, &denied));
            breaker.take_results();
        }
    }

    #[test]
    fn requests_about_failing_orders_that_time_out_together_count_once() {
        let mut breaker = CircuitBreaker::new(UpstreamState::Unknown, None, Timestamp(1));
        let timeout = failure(Cause::Timeout);
        let failed = |breaker: &mut CircuitBreaker, sent_at, now| {
            let call = Call {
                is_repeated: true,
                ..Call::poll(Timestamp(sent_at))
            };
            breaker.on_failed(call, Timestamp(now), &timeout)
        };
        for order in 0..10 {
            assert!(!failed(&mut breaker, 1_000 + order, 6_000 + order));
            breaker.take_results();
        }
        // In one pass, those after them count.
        assert!(!failed(&mut breaker, 6_100, 11_100));
        assert!(failed(&mut breaker, 11_200, 16_200));
        // A clock that was set back delays nothing.
        let mut breaker = CircuitBreaker::new(UpstreamState::Unknown, None, Timestamp(1));
        let downs = [9_000, 2_000, 1_000].map(|now| failed(&mut breaker, now - 500, now));
        assert_eq!(downs, [false, false, true]);
    }

    #[test]
    fn one_failing_order_is_no_outage() {
        let mut breaker = CircuitBreaker::new(UpstreamState::Unknown, None, Timestamp(1));
        let failed = |breaker: &mut CircuitBreaker, now, cause| {
            breaker.on_failed(Call::poll(Timestamp(now)), Timestamp(now), &failure(cause))
        };
        assert!(breaker.on_answered(Call::poll(Timestamp(1)), Timestamp(1)));
        for now in 2..10 {
            assert!(!failed(&mut breaker, now, Cause::Unusable));
            assert!(!breaker.on_answered(Call::poll(Timestamp(now)), Timestamp(now)));
        }
        assert!(!failed(&mut breaker, 11, Cause::Unusable));
        assert!(!failed(&mut breaker, 12, Cause::Timeout));
        assert!(failed(&mut breaker, 13, Cause::Unusable));
        assert!(!failed(&mut breaker, 14, Cause::Unusable));
        let UpstreamState::Down { since, .. } = breaker.state() else {
            panic!("the upstream counts as down");
        };
        assert_eq!(*since, Timestamp(11));
        assert!(breaker.on_answered(Call::poll(Timestamp(15)), Timestamp(15)));
        assert!(failed(&mut breaker, 16, Cause::NoConnection));
    }

    #[test]
    fn an_upstream_that_answers_starts_with_errors_throttles_or_is_cached_is_not_down() {
        let mut breaker = CircuitBreaker::new(UpstreamState::Unknown, None, Timestamp(1));
        breaker.on_answered(Call::poll(Timestamp(1)), Timestamp(1));
        for now in 2..20 {
            let now = Timestamp(now);
            assert!(!breaker.on_failed(start(now), now, &failure(Cause::Unusable)));
            assert!(!breaker.on_failed(start(now), now, &failure(Cause::ServiceUnavailable)));
            assert!(!breaker.on_failed(Call::poll(now), now, &failure(Cause::TooManyRequests)));
            assert!(!breaker.on_failed(Call::poll(now), now, &failure(Cause::Stale)));
        }
        assert!(breaker.may_send(Timestamp(20)));
        let limited = failure(Cause::TooManyRequests);
        let (since, detail) = (Timestamp(1), String::new());
        for state in [
            UpstreamState::Unknown,
            UpstreamState::Down { since, detail },
        ] {
            let mut breaker = CircuitBreaker::new(state, None, since);
            breaker.on_failed(start(Timestamp(2)), Timestamp(2), &limited);
            let since = Timestamp(2);
            assert_eq!(*breaker.state(), UpstreamState::Up { since }, "it is there");
        }
        // Where polls fail too, failures of starts count.
        let mut failing = CircuitBreaker::new(UpstreamState::Unknown, None, Timestamp(1));
        assert!(!failing.on_failed(
            Call::poll(Timestamp(1)),
            Timestamp(1),
            &failure(Cause::ServiceUnavailable)
        ));
        assert!(!failing.on_failed(
            start(Timestamp(2)),
            Timestamp(2),
            &failure(Cause::ServiceUnavailable)
        ));
        assert!(failing.on_failed(
            start(Timestamp(3)),
            Timestamp(3),
            &failure(Cause::ServiceUnavailable)
        ));
        // One that does not answer starts is down.
        for now in 21..23 {
            assert!(!breaker.on_failed(
                start(Timestamp(now)),
                Timestamp(now),
                &failure(Cause::Timeout)
            ));
        }
        assert!(breaker.on_failed(
            start(Timestamp(23)),
            Timestamp(23),
            &failure(Cause::Timeout)
        ));
    }

    #[test]
    fn an_order_or_kind_of_requests_that_is_always_answered_with_retry_after_pauses_no_other() {
        let now = Timestamp(1_000);
        for cause in [Cause::TooManyRequests, Cause::ServiceUnavailable] {
            let mut breaker = CircuitBreaker::new(UpstreamState::Unknown, None, now);
            let retry_after = Some(Duration::from_secs(20));
            let failure = Failure {
                retry_after,
                ..failure(cause)
            };
            let first = Call::poll(now);
            let repeated = Call {
                is_repeated: true,
                ..first
            };
            let later = Timestamp(21_000);
            breaker.on_failed(repeated, now, &failure);
            assert_eq!(breaker.kind_paused_until(RequestKind::LookUp, now), None);
            // Nothing shows that another order would be answered.
            breaker.on_failed(repeated, now, &failure);
            assert_eq!(breaker.paused_until(now), None);
            assert_eq!(
                breaker.kind_paused_until(RequestKind::LookUp, now),
                Some(later)
            );
            breaker.on_answered(first, now);
            breaker.on_failed(first, now, &failure);
            assert_eq!(breaker.paused_until(now), Some(later));
            let paused = |breaker: &CircuitBreaker, kind| breaker.kind_paused_until(kind, later);
            breaker.on_failed(first, later, &failure);
            assert_eq!(paused(&breaker, RequestKind::Start), None);
            assert_eq!(
                paused(&breaker, RequestKind::LookUp),
                Some(Timestamp(41_000))
            );
            breaker.on_answered(start(later), later);
            breaker.on_failed(first, later, &failure);
            assert_eq!(breaker.paused_until(later), None, "of another kind");
            breaker.on_answered(first, later);
            breaker.on_failed(first, later, &failure);
            assert_eq!(breaker.paused_until(later), Some(Timestamp(41_000)));
        }
    }

    #[test]
    fn an_upstream_is_down_only_once_for_starts_that_alone_fail() {
        for cause in [Cause::Timeout, Cause::AccessDenied] {
            let mut breaker = CircuitBreaker::new(UpstreamState::Unknown, None, Timestamp(1));
            let fails = |breaker: &mut CircuitBreaker, call: fn(Timestamp) -> Call, now| {
                breaker.on_failed(call(Timestamp(now)), Timestamp(now), &failure(cause))
            };
            let three = [false, false, true];
            assert_eq!([1, 2, 3].map(|now| fails(&mut breaker, start, now)), three);
            let throttled = failure(Cause::TooManyRequests);
            breaker.on_failed(Call::poll(Timestamp(4)), Timestamp(4), &throttled);
            for now in 5..20 {
                assert!(!fails(&mut breaker, start, now));
            }
            assert!(breaker.may_send(Timestamp(20)), "{cause:?}");
            // Polls fail too.
            let calls = [Call::poll, start, start];
            assert_eq!(calls.map(|call| fails(&mut breaker, call, 20)), three);
            // A later outage may begin with starts.
            breaker.on_answered(start(Timestamp(21)), Timestamp(21));
            assert_eq!(
                [22, 23, 24].map(|now| fails(&mut breaker, start, now)),
                three
            );
        }
    }

    #[test]
    fn an_upstream_that_was_down_when_an_earlier_run_ended_is_reported_by_this_one() {
        let detail = "answered 500".to_owned();
        let since = Timestamp(1);
        let mut breaker = CircuitBreaker::new(UpstreamState::Down { since, detail }, None, since);
        let poll = |at| Call::poll(Timestamp(at));
        assert!(breaker.on_failed(poll(2), Timestamp(2), &failure(Cause::Unusable)));
        assert!(!breaker.on_failed(poll(3), Timestamp(3), &failure(Cause::Unusable)));
        let cached = Failure::new("answered by a cache", Cause::Stale);
        breaker.on_failed(poll(4), Timestamp(4), &cached);
        let detail = cached.detail;
        let expected = UpstreamState::Down { since, detail };
        assert_eq!(
            *breaker.state(),
            expected,
            "with the detail of its last answer"
        );
    }
}
