//! Writes as values, each with its reply channel. An engine executes them; the queue
//! (`store/queue.rs`) lets many share a commit.

use tokio::sync::oneshot;

use super::{Creation, OperatorResult, OrderChange, PruneCounts, Recorded, Resolution, StoreError};
use crate::order::{OrderId, Timestamp};
use crate::reconciler_state::ReconcilerState;

/// A write, whose caller waits for the reply.
pub(super) enum Write {
    /// Creates an order, unless the id exists.
    Create {
        id: OrderId,
        now: Timestamp,
        reply: Reply<Creation>,
    },
    /// Carries out an operator's decision.
    Resolve {
        id: OrderId,
        resolution: Resolution,
        now: Timestamp,
        reply: Reply<OperatorResult>,
    },
    /// Begins a new epoch, and replies with its number.
    Lead { reply: Reply<i64> },
    /// Records the reconciler's changes.
    Record {
        epoch: i64,
        changes: Vec<OrderChange>,
        now: Timestamp,
        reply: Reply<Recorded>,
    },
    /// Replaces the heartbeat.
    Heartbeat {
        epoch: i64,
        heartbeat: Box<ReconcilerState>,
        reply: Reply<()>,
    },
    /// Clamps times of these open orders that lie ahead of the clock.
    ClampTimes {
        epoch: i64,
        seqs: Vec<i64>,
        now: Timestamp,
        reply: Reply<()>,
    },
    /// Prunes those of these orders that settled before a time.
    Prune {
        seqs: Vec<i64>,
        settled_before: Timestamp,
        now: Timestamp,
        reply: Reply<PruneCounts>,
    },
    /// Checks that orders can be written, by writing a row.
    CheckWritable { now: Timestamp, reply: Reply<()> },
    /// Changes nothing. The writer checks its files and checkpoints the log, as at any commit.
    CheckFiles { reply: Reply<()> },
}

impl Write {
    /// Returns the epoch of the leader whose write this is: nothing is written in a later one.
    pub fn epoch(&self) -> Option<i64> {
        match self {
            Self::Record { epoch, .. }
            | Self::Heartbeat { epoch, .. }
            | Self::ClampTimes { epoch, .. } => Some(*epoch),
            _ => None,
        }
    }

    /// Sends the stored reply, or the error if the commit failed.
    pub fn finish(self, result: Result<(), StoreError>) {
        match self {
            Self::Create { reply, .. } => reply.finish(result),
            Self::Resolve { reply, .. } => reply.finish(result),
            Self::Lead { reply } => reply.finish(result),
            Self::Record { reply, .. } => reply.finish(result),
            Self::Prune { reply, .. } => reply.finish(result),
            Self::Heartbeat { reply, .. }
            | Self::ClampTimes { reply, .. }
            | Self::CheckWritable { reply, .. }
            | Self::CheckFiles { reply } => reply.finish(result),
        }
    }
}

/// Reply to a write, sent to the caller once the write is on disk.
pub(super) struct Reply<T> {
    answer: Option<Result<T, StoreError>>,
    caller: oneshot::Sender<Result<T, StoreError>>,
}

impl<T> Reply<T> {
    /// Returns a reply, and the receiver for it.
    pub fn new() -> (Self, oneshot::Receiver<Result<T, StoreError>>) {
        let (caller, answer) = oneshot::channel();
        let reply = Self {
            answer: None,
            caller,
        };
        (reply, answer)
    }

    /// Stores the value until the commit. Executing the write again replaces it.
    pub fn keep(&mut self, answer: T) {
        self.answer = Some(Ok(answer));
    }

    /// Stores an error that is not a failure of the database, such as a lost leadership.
    pub fn refuse(&mut self, why: StoreError) {
        self.answer = Some(Err(why));
    }

    fn finish(self, result: Result<(), StoreError>) {
        let answer = match result {
            Ok(()) => self.answer.unwrap_or(Err(StoreError::OutcomeUnknown)),
            Err(error) => Err(error),
        };
        // The caller may have gone away.
        let _ = self.caller.send(answer);
    }
}
