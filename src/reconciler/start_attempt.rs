//! One attempt to start an order: the calls to the upstream, and the reading of their answers.
//!
//! The stages of an attempt, and their order, are in `start.rs`. What an answer means for the order
//! is decided in `decide`.

use super::context::Context;
use super::effects;
use crate::clock::Clock;
use crate::decide::{Action, Observation, Occasion, OpenOrder, Phase, is_in_doubt};
use crate::order::{Observed, Reason, Timestamp};
use crate::process::Stop;
use crate::store::{StartCandidate, Transition};
use crate::upstream::{Cause, Failure, StartError, Upstream};

/// A request to the upstream for one order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    /// A look-up.
    LookUp,
    /// A start, whose intent is on disk.
    Start,
}

/// The upstream's answer to a call.
#[derive(Debug)]
pub(super) enum Answer {
    /// The answer to a look-up.
    Observed(Observation),
    /// None to a look-up.
    NotObserved(Failure),
    /// The start was accepted, or a look has seen the process.
    Accepted { is_seen: bool },
    /// The start cannot have reached the upstream.
    NotSent(Failure),
    /// The start may have taken effect. `answer` is the HTTP status of the answer, if there was one.
    Ambiguous {
        answer: Option<u16>,
        failure: Failure,
    },
    /// The start was refused, perhaps because there is a process: `look` has looked for one.
    Refused { detail: String, look: Observation },
}

/// What follows from an order's turn, or from an answer.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Changes to be recorded; for a start, its intent.
    pub steps: Vec<Transition>,
    /// The call to be made next.
    pub next: Option<Call>,
    /// Why the upstream gave no usable answer.
    pub failure: Option<Failure>,
}

impl<U: Upstream, C: Clock> Context<U, C> {
    /// Asks the upstream. The answer to a start is not waited for when the program has to end.
    pub async fn call(&self, call: Call, candidate: &StartCandidate, stop: &Stop) -> Answer {
        match call {
            Call::LookUp => match self.look_up(candidate).await {
                Ok(look) => Answer::Observed(look),
                Err(failure) => Answer::NotObserved(failure),
            },
            Call::Start => self.start(candidate, stop).await,
        }
    }

    async fn start(&self, candidate: &StartCandidate, stop: &Stop) -> Answer {
        let StartCandidate { id, order } = candidate;
        self.upstream.metrics().on_start_sent(order.starts > 0);
        let given_up = async {
            stop.abandon.cancelled().await;
            StartError::Ambiguous {
                answer: None,
                failure: Failure::new("the program ended before the answer came", Cause::Unusable),
            }
        };
        match self.upstream.start(&self.clock, id, given_up).await {
            Ok(()) => Answer::Accepted { is_seen: false },
            Err(StartError::Unavailable(failure)) => Answer::NotSent(failure),
            Err(StartError::Ambiguous { answer, failure }) => Answer::Ambiguous { answer, failure },
            Err(StartError::Doubtful(failure)) => match self.look_up(candidate).await {
                Ok(look) if look.observed != Observed::Absent => Answer::Accepted { is_seen: true },
                _ => Answer::Ambiguous {
                    answer: None,
                    failure,
                },
            },
            Err(StartError::Refused { answer, detail }) => match self.look_up(candidate).await {
                Ok(look) => Answer::Refused { detail, look },
                Err(failure) => Answer::Ambiguous {
                    answer: Some(answer),
                    failure,
                },
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
    /// Decides about an order whose turn to be started has come.
    pub fn at_turn(&self, candidate: &StartCandidate, now: Timestamp) -> Outcome {
        self.conclude(candidate, Occasion::Dequeue, None, None, now)
    }

    /// Reads an answer.
    pub fn on_answer(&self, candidate: &StartCandidate, answer: Answer, now: Timestamp) -> Outcome {
        let mut outcome = Outcome::default();
        match answer {
            Answer::Observed(look) => {
                return self.conclude(candidate, Occasion::Dequeue, Some(&look), None, now);
            }
            Answer::Refused { detail, look } => {
                return self.on_refusal(candidate, &look, &detail, now);
            }
            Answer::Accepted { is_seen } if candidate.order.phase == Phase::Created => {
                outcome.steps.push(Transition::Started { is_seen });
            }
            Answer::Accepted { is_seen } => {
                outcome.steps.push(Transition::Restarted { is_seen });
            }
            Answer::NotObserved(failure) => outcome.failure = Some(failure),
            Answer::NotSent(failure) => {
                outcome.steps.push(Transition::Withdrawn);
                outcome.failure = Some(failure);
            }
            Answer::Ambiguous { answer, failure } => {
                let step = self.give_up(candidate, answer, failure.detail.clone(), now);
                outcome.steps.push(step);
                outcome.failure = Some(failure);
            }
        }
        outcome
    }

    /// The upstream did not take the start: whatever process there is, this start did not make it.
    fn on_refusal(
        &self,
        candidate: &StartCandidate,
        look: &Observation,
        detail: &str,
        now: Timestamp,
    ) -> Outcome {
        log::debug!("order {:?}: {detail}", candidate.id.as_str());
        let withdrawn = StartCandidate {
            id: candidate.id.clone(),
            order: OpenOrder {
                intent: None,
                ..candidate.order
            },
        };
        let (occasion, look, detail) = (Occasion::Refusal, Some(look), Some(detail));
        let mut outcome = self.conclude(&withdrawn, occasion, look, detail, now);
        outcome.steps.insert(0, Transition::Withdrawn);
        outcome
    }

    /// Decides, and gathers what follows.
    fn conclude(
        &self,
        candidate: &StartCandidate,
        occasion: Occasion,
        look: Option<&Observation>,
        refusal: Option<&str>,
        now: Timestamp,
    ) -> Outcome {
        let decision = self.decide(&candidate.order, occasion, look, now);
        let (id, mut steps) = (candidate.id.as_str(), Vec::new());
        effects::apply(&decision, id, refusal, now, &mut steps);
        let next = match decision.action {
            Action::Start => {
                steps.extend(effects::intent_cleared(&decision));
                let previous = candidate.order.intent.map(|intent| intent.written_at);
                steps.push(Transition::Intended { previous });
                Some(Call::Start)
            }
            Action::LookUp => Some(Call::LookUp),
            _ => None,
        };
        Outcome {
            steps,
            next,
            failure: None,
        }
    }

    /// The outcome of a start is not known: the order is left alone until an absence would count.
    fn give_up(
        &self,
        candidate: &StartCandidate,
        answer: Option<u16>,
        detail: String,
        now: Timestamp,
    ) -> Transition {
        let StartCandidate { id, order } = candidate;
        let id = id.as_str();
        log::debug!("order {id:?}: {detail}");
        let mut trouble = effects::trouble(order, id, Reason::UpstreamUnreachable, detail, now);
        let counts_from = now.after(self.settings.request_timeout);
        trouble.next_attempt_at = trouble.next_attempt_at.max(counts_from);
        Transition::GivenUp {
            answer,
            is_counted: is_in_doubt(answer),
            trouble,
        }
    }
}
