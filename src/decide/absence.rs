//! Which absences count: an answer shows a process only some time after its start, and reads may lag.

use super::{Intent, Observation, OpenOrder, Phase, Policy};
use crate::order::{Observed, Timestamp};

impl Policy {
    /// Returns the moment from which on answers show everything up to `at`: one request timeout later,
    /// because reads may lag by that much. Clocks of different runs cannot be compared, so an
    /// earlier moment counts from the beginning of this run.
    pub(super) fn visible_from(&self, at: Timestamp) -> Timestamp {
        at.max(self.run_began_at).after(self.request_timeout)
    }
}

impl Intent {
    /// Returns whether an absence in the answer to a request sent at `began_at` shows that this start had
    /// no effect: one request timeout after it was given up it has either arrived or never will. If
    /// the moment was not written down, it was before this run began.
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
