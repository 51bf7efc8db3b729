//! One attempt to start an order: what follows when it is dequeued, the requests to the upstream, and the
//! handling of their answers.
//!
//! The stages of an attempt, and their order, are in `start.rs`. `decide` chooses what follows when an order is
//! dequeued, looked up or refused; each other answer has one consequence, which `on_answer` chooses.

use super::context::Context;
use super::effects;
use super::in_flight::{Answer, Request};
use crate::clock::Clock;
use crate::decide::{Action, Observation, Occasion, OpenOrder, Phase};
use crate::order::{Observed, Timestamp};
use crate::process::Stop;
use crate::store::{StartCandidate, Transition};
use crate::upstream::{Cause, Failure, StartError, Upstream};

/// The consequences of dequeuing an order, or of an answer.
#[derive(Debug, Default)]
pub(super) struct Conclusion {
    /// The transitions to record; for a start, its intent.
    pub transitions: Vec<Transition>,
    /// The request to send next.
    pub next: Option<Request>,
    /// Reason why the upstream gave no usable answer.
    pub failure: Option<Failure>,
}

impl<U: Upstream, C: Clock> Context<U, C> {
    /// Sends a request and waits for the answer. The wait for the answer to a start ends when `stop` abandons
    /// it.
    pub async fn send(&self, request: Request, candidate: &StartCandidate, stop: &Stop) -> Answer {
        match request {
            Request::LookUp => match self.look_up(candidate).await {
                Ok(observation) => Answer::Observed(observation),
                Err(failure) => Answer::NotObserved(failure),
            },
            Request::Start => self.send_start(candidate, stop).await,
        }
    }

    async fn send_start(&self, candidate: &StartCandidate, stop: &Stop) -> Answer {
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
            }) => Answer::Refused {
                answer_status: Some(answer_status),
                detail,
                observation: self.look_up(candidate).await,
            },
        }
    }

    async fn look_up(&self, candidate: &StartCandidate) -> Result<Observation, Failure> {
        let began_at = self.clock.now();
        let observed = self.upstream.look_up(&self.clock, &candidate.id).await?;
        Ok(Observation { observed, began_at })
    }
}

impl<U, C> Context<U, C> {
    /// Decides what follows from an answer.
    pub fn on_answer(
        &self,
        candidate: &StartCandidate,
        answer: Answer,
        now: Timestamp,
    ) -> Conclusion {
        let mut conclusion = Conclusion::default();
        let transitions = &mut conclusion.transitions;
        match answer {
            Answer::Observed(observation) => {
                return self.conclude(candidate, Occasion::Dequeue, Some(&observation), None, now);
            }
            Answer::Refused {
                detail,
                observation: Ok(observation),
                ..
            } => {
                return self.on_refusal(candidate, &observation, &detail, now);
            }
            Answer::Accepted { is_observed } if candidate.order.phase == Phase::Created => {
                transitions.push(Transition::Started { is_observed });
            }
            Answer::Accepted { is_observed } => {
                transitions.push(Transition::Restarted { is_observed });
            }
            Answer::NotObserved(failure) => {
                let StartCandidate { id, order } = candidate;
                let delayed = effects::delayed(order, id.as_str(), &failure, &self.policy(), now);
                transitions.extend(delayed);
                conclusion.failure = Some(failure);
            }
            Answer::WithoutEffect(failure) => {
                transitions.push(Transition::Withdrawn);
                transitions.extend(effects::postponed(candidate.id.as_str(), &failure, now));
                conclusion.failure = Some(failure);
            }
            Answer::Ambiguous {
                answer_status,
                failure,
            }
            | Answer::Refused {
                answer_status,
                observation: Err(failure),
                ..
            } => {
                let timeout = self.settings.request_timeout;
                let given_up = effects::given_up(candidate, answer_status, &failure, timeout, now);
                transitions.push(given_up);
                conclusion.failure = Some(failure);
            }
        }
        conclusion
    }

    /// Decides about an order whose start was refused. If there is a process, another start made it.
    fn on_refusal(
        &self,
        candidate: &StartCandidate,
        observation: &Observation,
        detail: &str,
        now: Timestamp,
    ) -> Conclusion {
        log::debug!(
            "start refused order={:?} reason={detail:?}",
            candidate.id.as_str()
        );
        let withdrawn = StartCandidate {
            id: candidate.id.clone(),
            order: OpenOrder {
                intent: None,
                ..candidate.order
            },
        };
        let (occasion, observation, detail) = (Occasion::Refusal, Some(observation), Some(detail));
        let mut conclusion = self.conclude(&withdrawn, occasion, observation, detail, now);
        conclusion.transitions.insert(0, Transition::Withdrawn);
        conclusion
    }

    /// Decides about an order, and returns the consequences.
    pub fn conclude(
        &self,
        candidate: &StartCandidate,
        occasion: Occasion,
        observation: Option<&Observation>,
        refusal: Option<&str>,
        now: Timestamp,
    ) -> Conclusion {
        let decision = self.decide(&candidate.order, occasion, observation, now);
        let (id, mut transitions) = (candidate.id.as_str(), Vec::new());
        effects::add_transitions(&decision, id, refusal, now, &mut transitions);
        let next = match decision.action {
            Action::Start => {
                transitions.extend(effects::intent_discounted(&decision));
                let previous = candidate.order.intent.map(|intent| intent.written_at);
                transitions.push(Transition::Intended { previous });
                Some(Request::Start)
            }
            Action::LookUp => Some(Request::LookUp),
            _ => None,
        };
        Conclusion {
            transitions,
            next,
            failure: None,
        }
    }
}
