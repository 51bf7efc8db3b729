//! The requests about an order that is being started: its start, or a look-up before it.

use super::Reconciler;
use super::context::Context;
use crate::clock::Clock;
use crate::decide::Observation;
use crate::order::Observed;
use crate::pace::Call;
use crate::process::Stop;
use crate::store::StartCandidate;
use crate::upstream::{Cause, Failure, RequestKind, StartError, Upstream};

/// A request about one order.
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
    /// The start may have taken effect; or it was refused, and the look-up after it failed. `answer_status` is
    /// the HTTP status of the start's answer, if there was one.
    Ambiguous {
        answer_status: Option<u16>,
        failure: Failure,
    },
    /// The start was refused, perhaps because there is a process: `observation` is by a look-up after it.
    Refused {
        detail: String,
        observation: Observation,
    },
}

/// An order, the request that was sent for it, and the answer.
pub(super) type StartAnswer = (StartCandidate, Call, Answer);

impl<U: Upstream, C: Clock> Reconciler<U, C> {
    /// Sends a request. The wait for the answer to a start ends when `stop` abandons it.
    pub(super) fn send(&self, request: Request, order: StartCandidate, stop: &Stop) {
        let seq = order.order.seq;
        let mut call = Call {
            kind: match request {
                Request::Start => RequestKind::Start,
                Request::LookUp => RequestKind::LookUp,
            },
            is_retry: order.order.last_request_failed(),
            sent_at: self.context.clock.now(),
        };
        let (context, stop) = (self.context.clone(), stop.clone());
        self.requests.for_starts.send(seq, async move {
            let answer = match request {
                Request::Start => context.send_start(&order, &mut call, &stop).await,
                Request::LookUp => {
                    let observed = context.look_up(&order).await;
                    observed.map_or_else(Answer::NotObserved, Answer::Observed)
                }
            };
            (order, call, answer)
        });
    }
}

impl<U: Upstream, C: Clock> Context<U, C> {
    /// Sends a start, and looks up the order if that is refused. If the look-up fails, `call` becomes one.
    async fn send_start(&self, candidate: &StartCandidate, call: &mut Call, stop: &Stop) -> Answer {
        let StartCandidate { id, order } = candidate;
        self.upstream.metrics().on_start_sent(order.starts > 0);
        let given_up = async {
            stop.abandon.cancelled().await;
            StartError::Ambiguous {
                answer_status: None,
                failure: Failure::new("the program ended before the answer came", Cause::Unusable),
            }
        };
        match self.upstream.start(&self.clock, id, given_up).await {
            Ok(()) => Answer::Accepted { is_observed: false },
            Err(StartError::Unavailable(failure)) => Answer::WithoutEffect(failure),
            Err(StartError::Ambiguous {
                answer_status,
                failure,
            }) => Answer::Ambiguous {
                answer_status,
                failure,
            },
            Err(StartError::Unconfirmed {
                answer_status,
                failure,
            }) => match self.look_up(candidate).await {
                Ok(observation) if observation.observed != Observed::Absent => {
                    Answer::Accepted { is_observed: true }
                }
                _ => Answer::Ambiguous {
                    answer_status: Some(answer_status),
                    failure,
                },
            },
            Err(StartError::Refused {
                answer_status,
                detail,
            }) => match self.look_up(candidate).await {
                Ok(observation) => Answer::Refused {
                    detail,
                    observation,
                },
                Err(failure) => {
                    call.kind = RequestKind::LookUp;
                    Answer::Ambiguous {
                        answer_status: Some(answer_status),
                        failure,
                    }
                }
            },
        }
    }

    async fn look_up(&self, candidate: &StartCandidate) -> Result<Observation, Failure> {
        let began_at = self.clock.now();
        let observed = self.upstream.look_up(&self.clock, &candidate.id).await?;
        Ok(Observation { observed, began_at })
    }
}
