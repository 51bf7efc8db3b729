//! Writes as values: what is to be done, and where its answer goes. How they are carried out is the
//! engine's business; that many share a commit is the queue's (`store/queue.rs`).

use tokio::sync::oneshot;

use super::{Creation, OperatorResult, OrderChange, Recorded, Removed, StoreError};
use crate::order::{OrderId, Timestamp};
use crate::reconciler_state::ReconcilerState;

/// A write, with its caller waiting.
pub(super) enum Write {
    /// Creates an order, if there is none with this id.
    Create {
        id: OrderId,
        now: Timestamp,
        reply: Reply<Creation>,
    },
    /// Requests another start of an order that is held or refused.
    Restart {
        id: OrderId,
        now: Timestamp,
        reply: Reply<OperatorResult>,
    },
    /// Settles an order as FAILED whose process was forgotten.
    Fail {
        id: OrderId,
        now: Timestamp,
        reply: Reply<OperatorResult>,
    },
    /// Begins a new epoch, and answers its number.
    Lead { reply: Reply<i64> },
    /// Records what the reconciler did and saw.
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
    /// Sets right the times of these open orders that lie ahead of the clock.
    SetTimesRight {
        epoch: i64,
        seqs: Vec<i64>,
        now: Timestamp,
        reply: Reply<()>,
    },
    /// Removes these orders, as far as they settled before a moment.
    Prune {
        seqs: Vec<i64>,
        settled_before: Timestamp,
        now: Timestamp,
        reply: Reply<Removed>,
    },
    /// Finds out whether orders can be written.
    Probe { now: Timestamp, reply: Reply<()> },
    /// Changes nothing, and has the writer see to all that it sees to at a commit.
    Nothing { reply: Reply<()> },
    /// Runs statements, for tests.
    #[cfg(test)]
    Sql { sql: String, reply: Reply<()> },
}

impl Write {
    /// Answers the caller: with the answer that was kept, or with the reason why there is none.
    pub fn finish(self, result: Result<(), StoreError>) {
        match self {
            Self::Create { reply, .. } => reply.finish(result),
            Self::Restart { reply, .. } | Self::Fail { reply, .. } => reply.finish(result),
            Self::Lead { reply } => reply.finish(result),
            Self::Record { reply, .. } => reply.finish(result),
            Self::Prune { reply, .. } => reply.finish(result),
            Self::Heartbeat { reply, .. }
            | Self::SetTimesRight { reply, .. }
            | Self::Probe { reply, .. }
            | Self::Nothing { reply } => reply.finish(result),
            #[cfg(test)]
            Self::Sql { reply, .. } => reply.finish(result),
        }
    }
}

/// The place for the answer to a write. It reaches the caller once the write is on disk.
pub(super) struct Reply<T> {
    answer: Option<Result<T, StoreError>>,
    caller: oneshot::Sender<Result<T, StoreError>>,
}

impl<T> Reply<T> {
    /// A reply, and where its answer arrives.
    pub fn new() -> (Self, oneshot::Receiver<Result<T, StoreError>>) {
        let (caller, answer) = oneshot::channel();
        let reply = Self {
            answer: None,
            caller,
        };
        (reply, answer)
    }

    /// Keeps the answer until the commit. A write that is carried out again has another one.
    pub fn keep(&mut self, answer: T) {
        self.answer = Some(Ok(answer));
    }

    /// Keeps the reason why nothing was done, which is no fault of the database.
    pub fn refuse(&mut self, why: StoreError) {
        self.answer = Some(Err(why));
    }

    fn finish(self, result: Result<(), StoreError>) {
        let answer = match result {
            Ok(()) => self.answer.unwrap_or(Err(StoreError::OutcomeUnknown)),
            Err(error) => Err(error),
        };
        // A caller that has gone away wants no answer.
        let _ = self.caller.send(answer);
    }
}
