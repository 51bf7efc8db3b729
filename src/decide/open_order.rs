//! An open order, as far as decisions depend on it, and an observation of its process.

use super::{LostProcess, Policy};
use crate::order::{Observed, Reason, Timestamp};
use crate::pace::StartClass;

/// An order that is not settled, without its id: no decision depends on that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenOrder {
    /// Position in the order of creation.
    pub seq: i64,
    /// Its status, and what belongs to it.
    pub phase: Phase,
    /// Set if it is on record that an answer has shown its process.
    pub is_observed: bool,
    /// A start that was written down and whose outcome is not known.
    pub intent: Option<Intent>,
    /// Number of starts that may have taken effect. The current intent counts unless its answer shows
    /// that it had no effect.
    pub starts: u32,
    /// Set if an operator has requested another start, whatever the policy.
    pub restart_requested: bool,
    /// Number of failed attempts in a row.
    pub attempts: u32,
    /// End of its backoff, or of the pause that the last answer has asked for.
    pub next_attempt_at: Option<Timestamp>,
    /// Reason why it needs attention.
    pub attention: Option<Reason>,
}

/// The status of an open order, and what belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// CREATED.
    Created,
    /// PROCESSING.
    Processing {
        /// Moment at which its start was accepted or its process adopted. An absence counts only if its
        /// request was sent at least one request timeout later.
        confirmed_at: Timestamp,
        /// Moment at which the request was sent whose answer was the first absence in a row; `None` if the
        /// last answer showed the process.
        missed_at: Option<Timestamp>,
    },
}

/// A start that is about to be sent. It is on disk before the start is sent, so that neither a crash
/// nor a lost answer hides that a process may exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intent {
    /// Moment at which it was written.
    pub written_at: Timestamp,
    /// Moment at which its answer was given up; `None` if the program crashed before that, or could not
    /// write it down.
    pub given_up_at: Option<Timestamp>,
    /// HTTP status of the answer, if there was one.
    pub answer_status: Option<u16>,
}

/// The observation of an order's process in one answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// State of the process in the answer.
    pub observed: Observed,
    /// Moment at which the request was sent. Anything later may be missing in the answer.
    pub began_at: Timestamp,
}

/// Returns whether a start may have taken effect, by the HTTP status of its answer alone. A server error, or
/// a success that is not the upstream's own, may come from a gateway that had passed the start on.
pub fn is_in_doubt(answer_status: Option<u16>) -> bool {
    answer_status.is_none_or(|status| matches!(status, 200..=299 | 500..))
}

impl OpenOrder {
    /// Returns whether its backoff is over.
    pub fn is_due(&self, now: Timestamp) -> bool {
        self.next_attempt_at.is_none_or(|at| at <= now)
    }

    /// Returns whether its last request failed.
    pub fn last_request_failed(&self) -> bool {
        self.attempts > 0
    }

    /// Returns whether two or more look-ups of its process have failed in a row. Perhaps only look-ups of this
    /// order fail, as where a firewall refuses its id in a query, and a list shows its process.
    pub fn do_look_ups_fail(&self) -> bool {
        let is_unreachable = self.attention == Some(Reason::UpstreamUnreachable);
        is_unreachable && self.intent.is_none() && self.attempts >= 2
    }

    /// Returns the class in which it waits for its start.
    pub fn start_class(&self) -> StartClass {
        match self.phase {
            Phase::Processing { .. } => StartClass::Forgotten,
            Phase::Created if !self.last_request_failed() && self.intent.is_none() => {
                StartClass::New
            }
            Phase::Created => StartClass::Retry,
        }
    }

    /// Returns whether `starts` includes the current intent.
    pub fn is_intent_counted(&self) -> bool {
        self.intent
            .is_some_and(|intent| is_in_doubt(intent.answer_status))
    }

    /// Returns whether an absence, late enough, excludes the current intent from `starts`. That is so
    /// after an answer that left it in doubt. An intent without an answer remains counted, and so does one of
    /// an earlier incarnation of the upstream, which the absence does not concern, and any if only one start
    /// is allowed.
    pub fn is_intent_discounted(&self, policy: &Policy) -> bool {
        self.intent.is_some_and(|intent| {
            let is_current = policy
                .process_forgotten_at
                .is_none_or(|at| at < intent.written_at);
            let status = intent.answer_status;
            let is_answered = status.is_some() && is_in_doubt(status);
            is_answered && is_current && policy.max_starts > 1
        })
    }

    /// Returns whether its process was lost, as far as is known, also if a later look-up has failed.
    pub fn is_lost(&self) -> bool {
        let is_processing = self.phase != Phase::Created;
        match self.attention {
            Some(Reason::ProcessLost | Reason::MaxStarts) => is_processing,
            Some(Reason::UpstreamUnreachable | Reason::StartRefused) => {
                self.is_marked_missing() && self.intent.is_none()
            }
            Some(Reason::UnknownStatus) | None => false,
        }
    }

    /// Returns the reason for which it waits for an operator's decision. A failed request does not change that.
    pub fn held_for(&self, policy: &Policy) -> Option<Reason> {
        let is_restarted = policy.lost_process == LostProcess::Restart;
        self.attention.filter(|reason| match reason {
            _ if self.restart_requested => false,
            Reason::MaxStarts => true,
            // A process that was missing once is looked up again at once.
            Reason::ProcessLost => self.attempts > 0 && !is_restarted,
            _ => false,
        })
    }

    /// Marks its process as missing in the answer to a request sent at `began_at`.
    pub fn mark_missing(&mut self, began_at: Timestamp) {
        if let Phase::Processing { missed_at, .. } = &mut self.phase {
            *missed_at = Some(began_at);
            self.attention = Some(Reason::ProcessLost);
            (self.attempts, self.next_attempt_at) = (0, None);
        }
    }

    /// Returns whether its process is marked as missing.
    pub fn is_marked_missing(&self) -> bool {
        matches!(
            self.phase,
            Phase::Processing {
                missed_at: Some(_),
                ..
            }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{NOW, intent, order, processing};
    use super::*;

    #[test]
    fn an_order_waits_for_its_start_among_new_failed_or_forgotten_ones() {
        let new = order(Phase::Created, None);
        assert_eq!(new.start_class(), StartClass::New);
        let mut refused = new;
        refused.attempts = 1;
        assert_eq!(refused.start_class(), StartClass::Retry);
        let unanswered = order(Phase::Created, intent(Some(0), None));
        assert_eq!(unanswered.start_class(), StartClass::Retry);
        for intent in [None, intent(Some(0), None)] {
            assert_eq!(
                order(processing(None), intent).start_class(),
                StartClass::Forgotten
            );
        }
    }

    #[test]
    fn a_missing_process_is_flagged_at_once_and_only_where_there_was_one() {
        let mut in_backoff = order(processing(None), None);
        in_backoff.attempts = 3;
        in_backoff.next_attempt_at = Some(Timestamp(NOW.0 + 1));
        let mut missing = in_backoff;
        missing.mark_missing(NOW);
        let expected = OpenOrder {
            phase: processing(Some(NOW.0)),
            attempts: 0,
            next_attempt_at: None,
            attention: Some(Reason::ProcessLost),
            ..in_backoff
        };
        assert_eq!(missing, expected);
        assert!(missing.is_marked_missing() && !in_backoff.is_marked_missing());
        let created = order(Phase::Created, intent(Some(0), None));
        let mut unchanged = created;
        unchanged.mark_missing(NOW);
        assert_eq!(unchanged, created);
    }
}
