//! The settings that a decision depends on, and which absences count by them: an answer shows a process only
//! some time after its start, and reads may lag.

use std::time::Duration;

use super::{Intent, Observation, OpenOrder, Phase};
use crate::order::{Observed, Timestamp, words};

/// The settings that a decision depends on, and what else is the same for all orders of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Timeout of a request to the upstream.
    pub request_timeout: Duration,
    /// Largest number of starts of an order.
    pub max_starts: u32,
    /// Policy for an order whose process was forgotten.
    pub lost_process: LostProcess,
    /// Moment until which a start may have been answered or given up without a record: the program was
    /// started, the clock was set, or a pass failed. Earlier moments count as this one.
    pub unrecorded_until: Timestamp,
    /// Moment at which the upstream was last found to have forgotten a process.
    pub process_forgotten_at: Option<Timestamp>,
}

words! {
    /// The policy for an order whose process was forgotten. It is unknown whether that process had done its
    /// work.
    pub enum LostProcess {
        /// Start it again, which may repeat the work.
        Restart = "restart",
        /// Leave it PROCESSING until an operator decides.
        Hold = "hold",
        /// Settle it as FAILED; hold it if no answer is on record that has shown its process, because there
        /// may never have been one.
        Fail = "fail",
    }
}

impl Policy {
    /// Returns the moment from which on answers show everything up to `at`: one request timeout later,
    /// because reads may lag by that much. A moment before `unrecorded_until` counts as that, also because
    /// clocks of different runs cannot be compared.
    pub(super) fn visible_from(&self, at: Timestamp) -> Timestamp {
        at.max(self.unrecorded_until).after(self.request_timeout)
    }
}

impl Intent {
    /// Returns whether an absence in the answer to a request sent at `began_at` shows that this start had
    /// no effect: one request timeout after it was given up it has either arrived or never will. If
    /// the moment was not written down, it was before `unrecorded_until`.
    pub(super) fn has_expired(&self, began_at: Timestamp, policy: &Policy) -> bool {
        let given_up_at = self.given_up_at.unwrap_or(self.written_at);
        began_at >= policy.visible_from(given_up_at)
    }
}

impl OpenOrder {
    /// Returns whether more is known than this observation shows: its process was found missing by a later
    /// request, or its start was sent so late that the observation may show what was before.
    pub(super) fn is_newer_than(&self, observation: &Observation, policy: &Policy) -> bool {
        let missed_at = match self.phase {
            Phase::Processing { missed_at, .. } => missed_at,
            Phase::Created => None,
        };
        let sent_at = self.intent.map(|intent| intent.written_at);
        let known_at = missed_at.max(sent_at.map(|at| policy.visible_from(at)));
        known_at.is_some_and(|at| observation.began_at < at)
    }

    /// Returns whether its process was known to exist so early that the answer to a request sent at
    /// `began_at` shows it unless it is gone.
    pub fn is_visible_at(&self, began_at: Timestamp, policy: &Policy) -> bool {
        match self.phase {
            Phase::Processing { confirmed_at, .. } => {
                self.intent.is_none() && began_at >= policy.visible_from(confirmed_at)
            }
            Phase::Created => false,
        }
    }

    /// Returns whether this observation shows that a process that was known to exist is gone.
    pub fn is_missing_in(&self, observation: &Observation, policy: &Policy) -> bool {
        observation.observed == Observed::Absent && self.is_visible_at(observation.began_at, policy)
    }

    /// Returns whether a process that was known to exist is absent in this observation, too soon after
    /// it was confirmed for that to count.
    pub fn is_missing_too_soon_in(&self, observation: &Observation, policy: &Policy) -> bool {
        let is_known = match self.phase {
            Phase::Processing { confirmed_at, .. } => {
                self.intent.is_none() && observation.began_at >= confirmed_at
            }
            Phase::Created => false,
        };
        is_known
            && observation.observed == Observed::Absent
            && !self.is_visible_at(observation.began_at, policy)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{NOW, POLICY, check, choose, intent, order, processing};
    use super::super::{Action, Occasion, Phase};
    use super::*;

    #[test]
    fn an_absence_counts_one_request_timeout_after_the_start_timed_out() {
        let early = order(Phase::Created, intent(Some(NOW.0 - 4_999), None));
        check(&early, Observed::Absent, Action::Wait);
        let in_time = order(Phase::Created, intent(Some(NOW.0 - 5_000), None));
        check(&in_time, Observed::Absent, Action::Start);
    }

    #[test]
    fn a_start_without_a_recorded_timeout_timed_out_when_the_run_began_at_the_latest() {
        let unknown = order(Phase::Created, intent(None, None));
        for (unrecorded_until, expected) in [
            (NOW.0 - 5_000, Action::Start),
            (NOW.0 - 4_999, Action::Wait),
        ] {
            let policy = Policy {
                unrecorded_until: Timestamp(unrecorded_until),
                ..POLICY
            };
            let decided = choose(&unknown, Observed::Absent, &policy, Occasion::Poll);
            assert_eq!(decided, expected);
        }
    }

    #[test]
    fn an_absence_counts_one_request_timeout_after_the_process_was_confirmed() {
        let absent = Observation {
            observed: Observed::Absent,
            began_at: NOW,
        };
        // Whether it is missing, and whether it is so too soon.
        let check = |confirmed_at, unrecorded_until, expected: (bool, bool)| {
            let phase = Phase::Processing {
                confirmed_at: Timestamp(confirmed_at),
                missed_at: None,
            };
            let order = order(phase, None);
            let policy = Policy {
                unrecorded_until: Timestamp(unrecorded_until),
                ..POLICY
            };
            let is_missing = order.is_missing_in(&absent, &policy);
            let is_too_soon = order.is_missing_too_soon_in(&absent, &policy);
            assert_eq!((is_missing, is_too_soon), expected);
            for occasion in [Occasion::Poll, Occasion::UpstreamRestart, Occasion::Dequeue] {
                let decided = choose(&order, Observed::Absent, &policy, occasion);
                assert_eq!(decided != Action::Wait, is_missing, "{occasion:?}");
            }
            let running = Observation {
                observed: Observed::Running,
                ..absent
            };
            assert!(!order.is_missing_in(&running, &policy));
            assert!(!order.is_missing_too_soon_in(&running, &policy));
        };
        check(NOW.0 - 5_000, 0, (true, false));
        check(NOW.0 - 4_999, 0, (false, true));
        check(NOW.0, 0, (false, true));
        check(NOW.0 + 1, 0, (false, false));
        // A process that was confirmed before that moment may have been confirmed just before.
        check(0, NOW.0 - 5_000, (true, false));
        check(0, NOW.0 - 4_999, (false, true));
        // Neither with an intent nor for a new order is a process known to exist.
        for order in [
            order(processing(None), intent(None, None)),
            order(Phase::Created, None),
        ] {
            assert!(!order.is_missing_in(&absent, &POLICY));
            assert!(!order.is_missing_too_soon_in(&absent, &POLICY));
        }
    }
}
