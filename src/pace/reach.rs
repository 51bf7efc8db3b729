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
pub enum Reach {
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

impl Reach {
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
pub struct Reachability {
    reach: Reach,
    failures_in_a_row: u32,
    /// Whether the last look had no failure that says otherwise.
    does_answer_looks: bool,
    first_failure_at: Option<Timestamp>,
    not_before: Option<Timestamp>,
    /// Whether a request met a usable answer, and whether one did not, since this was last asked.
    met: Met,
    last_failure: Option<String>,
}

/// What requests met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Met {
    /// A usable answer.
    pub answer: bool,
    /// None.
    pub failure: bool,
}

impl Reachability {
    /// Goes on from what an earlier run knew.
    pub fn new(reach: Reach) -> Self {
        Self {
            reach,
            failures_in_a_row: 0,
            does_answer_looks: true,
            first_failure_at: None,
            not_before: None,
            met: Met::default(),
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
    pub fn take_met(&mut self) -> Met {
        std::mem::take(&mut self.met)
    }

    /// What is known.
    pub fn reach(&self) -> &Reach {
        &self.reach
    }

    /// Whether it is known to be down.
    pub fn is_down(&self) -> bool {
        matches!(self.reach, Reach::Down { .. })
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
    pub fn answered(&mut self, now: Timestamp) -> bool {
        self.does_answer_looks = true;
        self.met.answer = true;
        self.failures_in_a_row = 0;
        self.first_failure_at = None;
        if matches!(self.reach, Reach::Up { .. }) {
            return false;
        }
        self.reach = Reach::Up { since: now };
        true
    }

    /// Takes note of a request without a usable answer. Returns whether to report that the upstream
    /// is down: it was not before, or was so when an earlier run ended.
    pub fn failed(&mut self, is_start: bool, now: Timestamp, failure: &Failure) -> bool {
        self.met.failure = true;
        let is_first = self.last_failure.is_none();
        self.last_failure = Some(failure.detail.clone());
        if let Some(wait) = failure.retry_after {
            self.not_before = Some(now.after(wait.min(BACKOFF_MAX)));
        }
        if !is_start {
            self.does_answer_looks = matches!(failure.cause, Cause::TooMany | Cause::Outdated);
        }
        // One that answers looks is there whatever it answers to starts, and so is one that asks for fewer
        // requests. A cache's answer does not say that it is not.
        let is_there = match failure.cause {
            Cause::NoAccess | Cause::Silence => false,
            Cause::TooMany | Cause::Outdated => true,
            Cause::Overload | Cause::Unusable => is_start && self.does_answer_looks,
        };
        if is_there {
            return false;
        }
        self.failures_in_a_row += 1;
        let since = *self.first_failure_at.get_or_insert(now);
        match &mut self.reach {
            Reach::Down { detail, .. } => {
                detail.clone_from(&failure.detail);
                is_first
            }
            _ if failure.cause == Cause::NoAccess || self.failures_in_a_row >= FAILURES_TO_DOWN => {
                self.reach = Reach::Down {
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
        let mut reachability = Reachability::new(Reach::Unknown);
        let failed = |reachability: &mut Reachability, now, cause| {
            reachability.failed(false, Timestamp(now), &failure(cause))
        };
        assert!(reachability.answered(Timestamp(1)));
        for now in 2..10 {
            assert!(!failed(&mut reachability, now, Cause::Unusable));
            assert!(!reachability.answered(Timestamp(now)));
        }
        assert!(!failed(&mut reachability, 11, Cause::Unusable));
        assert!(!failed(&mut reachability, 12, Cause::Silence));
        assert!(failed(&mut reachability, 13, Cause::Unusable));
        assert!(!failed(&mut reachability, 14, Cause::Unusable));
        let Reach::Down { since, .. } = reachability.reach() else {
            panic!("it counts as down");
        };
        assert_eq!(*since, Timestamp(11));
        assert!(reachability.answered(Timestamp(15)));
        assert!(failed(&mut reachability, 16, Cause::NoAccess));
    }

    #[test]
    fn an_upstream_that_refuses_starts_asks_for_fewer_requests_or_is_cached_is_not_down() {
        let mut reachability = Reachability::new(Reach::Unknown);
        reachability.answered(Timestamp(1));
        for now in 2..20 {
            let now = Timestamp(now);
            assert!(!reachability.failed(true, now, &failure(Cause::Unusable)));
            assert!(!reachability.failed(true, now, &failure(Cause::Overload)));
            assert!(!reachability.failed(false, now, &failure(Cause::TooMany)));
            assert!(!reachability.failed(false, now, &failure(Cause::Outdated)));
        }
        assert!(reachability.may_send(Timestamp(20)));
        // Where looks fail too, what starts meet counts.
        let mut failing = Reachability::new(Reach::Unknown);
        assert!(!failing.failed(false, Timestamp(1), &failure(Cause::Overload)));
        assert!(!failing.failed(true, Timestamp(2), &failure(Cause::Overload)));
        assert!(failing.failed(true, Timestamp(3), &failure(Cause::Overload)));
        // One that is silent to starts is.
        for now in 21..23 {
            assert!(!reachability.failed(true, Timestamp(now), &failure(Cause::Silence)));
        }
        assert!(reachability.failed(true, Timestamp(23), &failure(Cause::Silence)));
    }

    #[test]
    fn an_upstream_that_was_down_when_an_earlier_run_ended_is_reported_by_this_one() {
        let detail = "answered 500".to_owned();
        let since = Timestamp(1);
        let mut reachability = Reachability::new(Reach::Down { since, detail });
        assert!(reachability.failed(false, Timestamp(2), &failure(Cause::Unusable)));
        assert!(!reachability.failed(false, Timestamp(3), &failure(Cause::Unusable)));
    }
}
