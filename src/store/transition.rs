//! What the reconciler records about orders, as values.
//!
//! A change names the state that it was decided on; if the order has moved on since, nothing
//! happens, and that is counted rather than an error.

use crate::order::{Outcome, Reason, Timestamp};

/// A step of one order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderChange {
    /// The order's place in the order of creation.
    pub seq: i64,
    /// What happened to it.
    pub step: Transition,
}

/// What happened to an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transition {
    /// A start is about to be sent, which counts until it is known not to. It takes the place of an
    /// earlier one that is known to have come to nothing, `previous`.
    Intended {
        /// When the earlier intent was written.
        previous: Option<Timestamp>,
    },
    /// The start that was intended then counts no longer, or counts after all.
    Counted {
        /// When the intent was written.
        written_at: Timestamp,
        /// Adds it to the count, or takes it off.
        is_counted: bool,
    },
    /// The intended start of a CREATED order was accepted.
    Started {
        /// Set if a look has seen the process.
        is_seen: bool,
    },
    /// The intended start of an order whose earlier process was forgotten has taken effect.
    Restarted {
        /// Set if a look has seen the new process.
        is_seen: bool,
    },
    /// The intended start came to nothing: it cannot have reached the upstream, or was refused.
    Withdrawn,
    /// The answer to the intended start was given up, or told of trouble.
    GivenUp {
        /// The HTTP status of the answer, if there was one.
        answer: Option<u16>,
        /// Takes it off the count if not set.
        is_counted: bool,
        /// What to show, and when to try again.
        trouble: AttentionUpdate,
    },
    /// A process was seen.
    Adopted,
    /// The process of a PROCESSING order was seen.
    Seen,
    /// A process was seen to have ended.
    Settled(Outcome),
    /// A process that was known to exist was missing in the look that began then.
    Missed {
        /// When the look began.
        began_at: Timestamp,
    },
    /// The order's process was forgotten, and the policy is to call that a failure.
    FailedByPolicy,
    /// The order needs looking at. An intent, if it had one, is known to have come to nothing.
    Flagged(AttentionUpdate),
    /// A look at the order failed; all else about it stays as it is.
    Delayed(AttentionUpdate),
    /// All is well again: the process was seen to run.
    Cleared,
}

/// Why an order needs looking at, and when it is tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttentionUpdate {
    /// Why.
    pub reason: Reason,
    /// What was seen, in words.
    pub detail: String,
    /// When to try again.
    pub next_attempt_at: Timestamp,
}

/// What became of changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    /// How many took effect.
    pub changed: usize,
    /// The places of the orders that had moved on, one for each change that found one so.
    pub conflicts: Vec<i64>,
}
