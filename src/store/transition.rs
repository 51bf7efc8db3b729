//! Changes of orders that the reconciler records, as values.
//!
//! A change names the state on which it was decided. If the order is no longer in that state, the
//! change has no effect and is counted as a conflict, not reported as an error.

use crate::order::{EventReason, Outcome, Reason, Timestamp};

/// A change of one order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderChange {
    /// The order's sequence number.
    pub seq: i64,
    /// The change.
    pub transition: Transition,
}

/// Changes of an order's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transition {
    /// Writes an intent: a start is about to be sent, and counts until it is known not to have
    /// taken effect. Replaces the intent `previous`, whose start is known to have had no effect.
    Intended {
        /// Time at which the earlier intent was written.
        previous: Option<Timestamp>,
    },
    /// Corrects whether the start with this intent counts.
    Counted {
        /// Time at which the intent was written.
        written_at: Timestamp,
        /// True to add the start to the count, false to subtract it.
        is_counted: bool,
    },
    /// The intended start of a CREATED order was accepted.
    Started {
        /// True if a poll has observed the process.
        is_observed: bool,
    },
    /// The intended restart of an order whose process was lost has taken effect.
    Restarted {
        /// True if a poll has observed the new process.
        is_observed: bool,
    },
    /// The intended start had no effect: it cannot have reached the upstream, or was refused or throttled (429).
    Withdrawn,
    /// The answer to the intended start did not come in time, or was an error.
    GivenUp {
        /// HTTP status of the answer, if there was one.
        answer_status: Option<u16>,
        /// True if the start still counts.
        is_counted: bool,
        /// Attention to show, and time of the next attempt.
        attention: AttentionUpdate,
    },
    /// A poll has observed the process of a CREATED order.
    Adopted,
    /// A poll has observed the process of a PROCESSING order.
    ProcessObserved,
    /// A poll has observed that the process ended.
    Settled(Outcome),
    /// A poll did not find a process that was known to exist.
    Missed {
        /// Time at which the poll began.
        began_at: Timestamp,
    },
    /// The order's process was lost, and the policy is to settle that as FAILED.
    FailedByPolicy,
    /// The order needs attention. The start of its intent, if any, is known to have had no effect.
    Flagged(AttentionUpdate),
    /// A request about the order failed without an effect; the rest of its state is unchanged.
    Delayed(AttentionUpdate),
    /// The process was observed to run: clears the attention.
    Cleared,
}

impl Transition {
    /// Returns the reason of its journal entry; `None` if it has none.
    pub(super) fn event_reason(&self) -> Option<EventReason> {
        match self {
            Self::Started { .. } => Some(EventReason::Started),
            Self::Adopted => Some(EventReason::Adopted),
            Self::Restarted { .. } => Some(EventReason::Restarted),
            Self::FailedByPolicy => Some(EventReason::FailedByPolicy),
            Self::Settled(Outcome::Succeeded) => Some(EventReason::Succeeded),
            Self::Settled(Outcome::Failed) => Some(EventReason::Failed),
            Self::Intended { .. }
            | Self::Counted { .. }
            | Self::Withdrawn
            | Self::GivenUp { .. }
            | Self::ProcessObserved
            | Self::Missed { .. }
            | Self::Flagged(_)
            | Self::Delayed(_)
            | Self::Cleared => None,
        }
    }
}

/// Attention of an order, and the time of its next attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttentionUpdate {
    /// Reason of the attention.
    pub reason: Reason,
    /// Observation, in words.
    pub detail: String,
    /// Time of the next attempt.
    pub next_attempt_at: Timestamp,
}

/// Result of recording changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    /// Number of changes that took effect.
    pub changed: usize,
    /// Sequence numbers of orders that were no longer in the expected state, one for each change
    /// without effect.
    pub conflicts: Vec<i64>,
}
