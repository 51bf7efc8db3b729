//! The requests for orders that are being started, and the answers to them.

use crate::decide::Observation;
use crate::pace::Call;
use crate::store::StartCandidate;
use crate::upstream::Failure;

/// A request to the upstream for one order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// A look-up.
    LookUp,
    /// A start, whose intent is on disk.
    Start,
}

/// The upstream's answer to a request.
#[derive(Debug)]
pub(super) enum Answer {
    /// The answer to a look-up.
    Observed(Observation),
    /// The failure of a look-up.
    NotObserved(Failure),
    /// The start was accepted, or a look-up has found the process.
    Accepted { is_observed: bool },
    /// The start had no effect: it cannot have reached the upstream, or was answered 429.
    WithoutEffect(Failure),
    /// The start may have taken effect. `answer_status` is the HTTP status of the answer, if there was one.
    Ambiguous {
        answer_status: Option<u16>,
        failure: Failure,
    },
    /// The start was refused, perhaps because there is a process: `observation` is by a look-up after it.
    Refused {
        answer_status: Option<u16>,
        detail: String,
        observation: Result<Observation, Failure>,
    },
}

/// An order, the request that was sent for it, and the answer.
pub(super) type StartAnswer = (StartCandidate, Call, Answer);
