//! The consequences of a decision, or of an answer: the transitions to record, and the request to send next.
//!
//! No I/O: the caller records and sends. `decide` chooses what follows when an order is polled, dequeued, looked
//! up or refused; each other answer has one consequence, which `on_answer` chooses. The consequences of
//! failures are in `failed_request.rs`.

use super::context::{Context, Decision};
use super::failed_request::{delayed, given_up};
use super::start_request::{Answer, Request};
use crate::decide::{Action, Observation, Occasion, OpenOrder, Phase};
use crate::messages::attention_detail;
use crate::order::Timestamp;
use crate::pace::backoff;
use crate::store::{AttentionUpdate, StartCandidate, Transition};
use crate::upstream::Failure;

/// The consequences of dequeuing an order, or of an answer.
#[derive(Debug)]
pub(super) struct Conclusion {
    /// The transitions to record; for a start, its intent.
    pub transitions: Vec<Transition>,
    /// The request to send next.
    pub next: Option<Request>,
    /// Reason why the upstream gave no usable answer.
    pub failure: Option<Failure>,
}

impl<U, C> Context<U, C> {
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
        add_transitions(&decision, id, refusal, now, &mut transitions);
        let next = match decision.action {
            Action::Start => {
                transitions.extend(intent_discounted(&decision));
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

    /// Returns the consequences of an answer.
    pub fn on_answer(
        &self,
        candidate: &StartCandidate,
        answer: Answer,
        now: Timestamp,
    ) -> Conclusion {
        let StartCandidate { id, order } = candidate;
        let (id, mut transitions) = (id.as_str(), Vec::new());
        let failure = match answer {
            Answer::Observed(observation) => {
                return self.conclude(candidate, Occasion::Dequeue, Some(&observation), None, now);
            }
            Answer::Refused {
                detail,
                observation,
            } => return self.on_refusal(candidate, &observation, &detail, now),
            Answer::Accepted { is_observed } => {
                transitions.push(match order.phase {
                    Phase::Created => Transition::Started { is_observed },
                    Phase::Processing { .. } => Transition::Restarted { is_observed },
                });
                None
            }
            Answer::NotObserved(failure) => {
                transitions.extend(delayed(order, id, &failure, &self.policy(), now));
                Some(failure)
            }
            Answer::WithoutEffect(failure) => {
                transitions.push(Transition::Withdrawn);
                transitions.extend(delayed(order, id, &failure, &self.policy(), now));
                Some(failure)
            }
            Answer::Ambiguous {
                answer_status,
                failure,
            } => {
                let timeout = self.settings.request_timeout;
                transitions.push(given_up(candidate, answer_status, &failure, timeout, now));
                Some(failure)
            }
        };
        Conclusion {
            transitions,
            next: None,
            failure,
        }
    }

    /// Decides about an order whose start was refused. If there is a process, another start made it.
    fn on_refusal(
        &self,
        candidate: &StartCandidate,
        observation: &Observation,
        detail: &str,
        now: Timestamp,
    ) -> Conclusion {
        let mut withdrawn = candidate.clone();
        withdrawn.order.intent = None;
        let id = candidate.id.as_str();
        log::debug!("start refused order={id:?} reason={detail:?}");
        let (occasion, observation, detail) = (Occasion::Refusal, Some(observation), Some(detail));
        let mut conclusion = self.conclude(&withdrawn, occasion, observation, detail, now);
        conclusion.transitions.insert(0, Transition::Withdrawn);
        conclusion
    }
}

/// Adds the transitions that follow from a decision. `refusal` is the upstream's answer when it refused the
/// order's start.
pub(super) fn add_transitions(
    decision: &Decision<'_>,
    id: &str,
    refusal: Option<&str>,
    now: Timestamp,
    transitions: &mut Vec<Transition>,
) {
    let Decision {
        order, observation, ..
    } = *decision;
    match decision.action {
        Action::Wait | Action::Start | Action::LookUp => {}
        Action::Adopt => adopt(order, transitions),
        Action::AdoptAndSettle(outcome) => {
            adopt(order, transitions);
            transitions.push(Transition::Settled(outcome));
        }
        Action::Settle(outcome) => transitions.push(Transition::Settled(outcome)),
        Action::MarkObserved => transitions.push(Transition::ProcessObserved),
        Action::MarkMissing => {
            let began_at = observation.map_or(now, |observation| observation.began_at);
            transitions.push(Transition::Missed { began_at });
        }
        Action::Fail => {
            transitions.extend(intent_discounted(decision));
            transitions.push(Transition::FailedByPolicy);
        }
        Action::Flag(reason) => {
            transitions.extend(intent_discounted(decision));
            let observed = observation.map(|observation| &observation.observed);
            transitions.push(Transition::Flagged(AttentionUpdate {
                reason,
                detail: attention_detail(reason, order.starts, observed, refusal),
                next_attempt_at: now.after(backoff(id, order.attempts + 1)),
            }));
        }
        Action::ClearAttention => transitions.push(Transition::Cleared),
    }
}

/// Adds the transitions for a process that was found. A start that did not count any more has then taken
/// effect after all.
fn adopt(order: &OpenOrder, transitions: &mut Vec<Transition>) {
    let uncounted = order.intent.filter(|_| !order.is_intent_counted());
    transitions.extend(uncounted.map(|intent| Transition::Counted {
        written_at: intent.written_at,
        is_counted: true,
    }));
    transitions.push(match order.phase {
        Phase::Created => Transition::Adopted,
        Phase::Processing { .. } => Transition::Restarted { is_observed: true },
    });
}

/// Returns the transition that takes the intended start off the count, if the decision does so.
fn intent_discounted(decision: &Decision<'_>) -> Option<Transition> {
    let discounted = decision.order.intent;
    let discounted = discounted.filter(|_| decision.is_intent_discounted)?;
    Some(Transition::Counted {
        written_at: discounted.written_at,
        is_counted: false,
    })
}
