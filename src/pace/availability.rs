//! Whether the upstream answers: kept from what single requests met.
//!
//! Pure. An upstream that is down is asked by one look-up a pass, and one that has asked for rest
//! gets it; both are told by `Pace`, which every request passes.

use super::BACKOFF_MAX;
use crate::order::Timestamp;
use crate::upstream::{Cause, Failure};

/// Failures in a row, over different orders, after which it is not the orders' fault.
const FAILURES_TO_DOWN: u32 = 3;

/// Whether the upstream gives usable answers, and since when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum UpstreamState {
    /// Not known yet: no usable answer, and too few failures.
    #[default]
    Unknown,
    /// It answers.
    Up {
        /// Since when.
        since: Timestamp,
    },
    /// It does not.
    Down {
        /// Since when.
        since: Timestamp,
        /// What was seen instead of an answer.
        detail: String,
    },
}

impl UpstreamState {
    /// The same, as of no later than `now`.
    #[must_use]
    pub(super) fn no_later_than(mut self, now: Timestamp) -> Self {
        if let Self::Up { since } | Self::Down { since, .. } = &mut self {
            *since = now.min(*since);
        }
        self
    }
}

/// Keeps the upstream's reach from what single requests met.
#[derive(Clone, Debug)]
pub struct CircuitBreaker {
    state: UpstreamState,
    failures_in_a_row: u32,
    /// Whether the last look had no failure that says otherwise.
    are_polls_answered: bool,
    first_failure_at: Option<Timestamp>,
    not_before: Option<Timestamp>,
    /// Whether a request met a usable answer, and whether one did not, since this was last asked.
    results: RequestResults,
    last_failure: Option<String>,
}

/// What requests met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestResults {
    /// A usable answer.
    pub answer: bool,
    /// None.
    pub failure: bool,
}

impl CircuitBreaker {
    /// Goes on from what an earlier run knew.
    pub fn new(state: UpstreamState) -> Self {
        Self {
            state,
            failures_in_a_row: 0,
            are_polls_answered: true,
            first_failure_at: None,
            not_before: None,
            results: RequestResults::default(),
            last_failure: None,
        }
    }

    /// Goes on leaving the upstream alone until a moment that an earlier run was told.
    #[must_use]
    pub fn resting(mut self, until: Option<Timestamp>, now: Timestamp) -> Self {
        self.not_before = until.map(|at| at.min(now.after(BACKOFF_MAX)));
        self
    }

    /// Detail of the last failure since this was made.
    pub fn last_failure(&self) -> Option<&str> {
        self.last_failure.as_deref()
    }

    /// What requests have met since this was last asked.
    pub fn take_results(&mut self) -> RequestResults {
        std::mem::take(&mut self.results)
    }

    /// What is known.
    pub fn state(&self) -> &UpstreamState {
        &self.state
    }

    /// Whether it is known to be down.
    pub fn is_down(&self) -> bool {
        matches!(self.state, UpstreamState::Down { .. })
    }

    /// Returns the moment until which the upstream has asked to be left alone, if that lies ahead.
    pub fn resting_until(&self, now: Timestamp) -> Option<Timestamp> {
        self.not_before.filter(|at| *at > now)
    }

    /// Whether anything may be asked at `now`.
    pub fn may_send(&self, now: Timestamp) -> bool {
        !self.is_down() && self.resting_until(now).is_none()
    }

    /// Takes note of a usable answer. Tells whether this is a change.
    pub fn on_answered(&mut self, now: Timestamp) -> bool {
        self.are_polls_answered = true;
        self.results.answer = true;
        self.failures_in_a_row = 0;
        self.first_failure_at = None;
        if matches!(self.state, UpstreamState::Up { .. }) {
            return false;
        }
        self.state = UpstreamState::Up { since: now };
        true
    }

    /// Takes note of a request without a usable answer. Returns whether to report that the upstream
    /// is down: it was not before, or was so when an earlier run ended.
    pub fn on_failed(&mut self, is_start: bool, now: Timestamp, failure: &Failure) -> bool {
        self.results.failure = true;
        let is_first = self.last_failure.is_none();
        self.last_failure = Some(failure.detail.clone());
        if let Some(wait) = failure.retry_after {
            self.not_before = Some(now.after(wait.min(BACKOFF_MAX)));
        }
        if !is_start {
            self.are_polls_answered = matches!(failure.cause, Cause::TooMany | Cause::Outdated);
        }
        // One that answers looks is there whatever it answers to starts, and so is one that asks for fewer
        // requests. A cache's answer does not say that it is not.
        let is_there = match failure.cause {
            Cause::NoAccess | Cause::Silence => false,
            Cause::TooMany | Cause::Outdated => true,
            Cause::Overload | Cause::Unusable => is_start && self.are_polls_answered,
        };
        if is_there {
            return false;
        }
        self.failures_in_a_row += 1;
        let since = *self.first_failure_at.get_or_insert(now);
        match &mut self.state {
            UpstreamState::Down { detail, .. } => {
                detail.clone_from(&failure.detail);
                is_first
            }
            _ if failure.cause == Cause::NoAccess || self.failures_in_a_row >= FAILURES_TO_DOWN => {
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

    #[test]
    fn one_failing_order_does_not_count_as_an_upstream_that_is_down() {
        let mut breaker = CircuitBreaker::new(UpstreamState::Unknown);
        let failed = |breaker: &mut CircuitBreaker, now, cause| {
            breaker.on_failed(false, Timestamp(now), &failure(cause))
        };
        assert!(breaker.on_answered(Timestamp(1)));
        for now in 2..10 {
            assert!(!failed(&mut breaker, now, Cause::Unusable));
            assert!(!breaker.on_answered(Timestamp(now)));
        }
        assert!(!failed(&mut breaker, 11, Cause::Unusable));
        assert!(!failed(&mut breaker, 12, Cause::Silence));
        assert!(failed(&mut breaker, 13, Cause::Unusable));
        assert!(!failed(&mut breaker, 14, Cause::Unusable));
        let UpstreamState::Down { since, .. } = breaker.state() else {
            panic!("it counts as down");
        };
        assert_eq!(*since, Timestamp(11));
        assert!(breaker.on_answered(Timestamp(15)));
        assert!(failed(&mut breaker, 16, Cause::NoAccess));
    }

    #[test]
    fn an_upstream_that_refuses_starts_asks_for_fewer_requests_or_is_cached_is_not_down() {
        let mut breaker = CircuitBreaker::new(UpstreamState::Unknown);
        breaker.on_answered(Timestamp(1));
        for now in 2..20 {
            let now = Timestamp(now);
            assert!(!breaker.on_failed(true, now, &failure(Cause::Unusable)));
            assert!(!breaker.on_failed(true, now, &failure(Cause::Overload)));
            assert!(!breaker.on_failed(false, now, &failure(Cause::TooMany)));
            assert!(!breaker.on_failed(false, now, &failure(Cause::Outdated)));
        }
        assert!(breaker.may_send(Timestamp(20)));
        // Where looks fail too, what starts meet counts.
        let mut failing = CircuitBreaker::new(UpstreamState::Unknown);
        assert!(!failing.on_failed(false, Timestamp(1), &failure(Cause::Overload)));
        assert!(!failing.on_failed(true, Timestamp(2), &failure(Cause::Overload)));
        assert!(failing.on_failed(true, Timestamp(3), &failure(Cause::Overload)));
        // One that is silent to starts is.
        for now in 21..23 {
            assert!(!breaker.on_failed(true, Timestamp(now), &failure(Cause::Silence)));
        }
        assert!(breaker.on_failed(true, Timestamp(23), &failure(Cause::Silence)));
    }

    #[test]
    fn an_upstream_that_was_down_when_an_earlier_run_ended_is_reported_by_this_one() {
        let detail = "answered 500".to_owned();
        let since = Timestamp(1);
        let mut breaker = CircuitBreaker::new(UpstreamState::Down { since, detail });
        assert!(breaker.on_failed(false, Timestamp(2), &failure(Cause::Unusable)));
        assert!(!breaker.on_failed(false, Timestamp(3), &failure(Cause::Unusable)));
    }
}
