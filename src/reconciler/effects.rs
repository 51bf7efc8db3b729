//! The changes that follow from a decision about one order. No I/O: the caller records them.

use crate::decide::{Action, Observation, Occasion, OpenOrder, Phase};
use crate::messages::attention_detail;
use crate::order::{Reason, Timestamp};
use crate::pace::backoff;
use crate::store::{AttentionUpdate, Transition};

/// A decision about one order, and what it was based on.
#[derive(Clone, Copy, Debug)]
pub struct Decision<'a> {
    /// The order.
    pub order: &'a OpenOrder,
    /// Why it was decided about.
    pub occasion: Occasion,
    /// What was observed, if anything was.
    pub look: Option<&'a Observation>,
    /// What is to be done.
    pub action: Action,
    /// Set if the start that the order intended counts no longer once no process is found.
    pub is_intent_cleared: bool,
}

/// Adds the steps of a decision. `refusal` is the upstream's answer when it refused the order's start.
pub(super) fn apply(
    decision: &Decision<'_>,
    id: &str,
    refusal: Option<&str>,
    now: Timestamp,
    steps: &mut Vec<Transition>,
) {
    let Decision { order, look, .. } = *decision;
    match decision.action {
        Action::Wait | Action::Start | Action::LookUp => {}
        Action::Adopt => adopt(order, steps),
        Action::AdoptAndSettle(outcome) => {
            adopt(order, steps);
            steps.push(Transition::Settled(outcome));
        }
        Action::Settle(outcome) => {
            steps.push(Transition::Settled(outcome));
        }
        Action::MarkSeen => steps.push(Transition::Seen),
        Action::MarkMissing => {
            let began_at = look.map_or(now, |look| look.began_at);
            steps.push(Transition::Missed { began_at });
        }
        Action::Fail => {
            steps.extend(intent_cleared(decision));
            steps.push(Transition::FailedByPolicy);
        }
        Action::Flag(reason) => {
            steps.extend(intent_cleared(decision));
            let observed = look.map(|look| &look.observed);
            let detail = attention_detail(reason, order.starts, observed, refusal);
            steps.push(Transition::Flagged(trouble(order, id, reason, detail, now)));
        }
        Action::ClearAttention => steps.push(Transition::Cleared),
    }
}

/// Adds the steps for a process that was found: a start that did not count any more has taken effect.
fn adopt(order: &OpenOrder, steps: &mut Vec<Transition>) {
    let uncounted = order.intent.filter(|_| !order.is_intent_counted());
    steps.extend(uncounted.map(|intent| Transition::Counted {
        written_at: intent.written_at,
        is_counted: true,
    }));
    steps.push(match order.phase {
        Phase::Created => Transition::Adopted,
        Phase::Processing { .. } => Transition::Restarted { is_seen: true },
    });
}

/// Returns the step that takes the intended start off the count, if the decision does so. No process was
/// found.
pub(super) fn intent_cleared(decision: &Decision<'_>) -> Option<Transition> {
    let cleared = decision.order.intent;
    let cleared = cleared.filter(|_| decision.is_intent_cleared)?;
    Some(Transition::Counted {
        written_at: cleared.written_at,
        is_counted: false,
    })
}

/// Returns a trouble of this order, with the moment of its next attempt.
pub(super) fn trouble(
    order: &OpenOrder,
    id: &str,
    reason: Reason,
    detail: String,
    now: Timestamp,
) -> AttentionUpdate {
    AttentionUpdate {
        reason,
        detail,
        next_attempt_at: now.after(backoff(id, order.attempts + 1)),
    }
}
