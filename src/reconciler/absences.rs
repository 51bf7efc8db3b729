//! The orders about which a poll was not certain: the list lacks them, or their own look-up failed.

use super::look_ups::LOOK_UPS_MAX;
use super::observations::Observations;
use super::{Decision, Reconciler, effects};
use crate::clock::Clock;
use crate::decide::{Action, Occasion, Policy};
use crate::order::Timestamp;
use crate::process::Stop;
use crate::store::{OrderChange, Transition};
use crate::upstream::Upstream;

impl<U: Upstream, C: Clock> Reconciler<U, C> {
    /// Looks up the orders that the list lacks and that would be failed or flagged for it. Those that are
    /// to be restarted are looked up just before their start.
    pub(super) async fn confirm_absences(
        &mut self,
        observations: &mut Observations,
        occasion: Occasion,
        stop: &Stop,
    ) {
        let now = self.context.clock.now();
        let policy = self.context.policy();
        let unconfirmed = observations.take_unconfirmed(&policy, |order, observation| {
            let decision = self.context.decide(order, occasion, Some(observation), now);
            matches!(decision.action, Action::Fail | Action::Flag(_))
        });
        let indexes = unconfirmed.iter().map(|(index, _)| *index).collect();
        self.look_up_each(observations, indexes, LOOK_UPS_MAX, stop)
            .await;
        observations.unconfirmed = unconfirmed;
        observations
            .unconfirmed
            .retain(|(index, _)| !observations.looked_up.contains_key(index));
    }
}

/// Returns the decision to mark the process as missing, if `decision` finds no process. It is marked once,
/// so that the next poll does not count it towards another restart of the upstream.
pub(super) fn newly_missing<'a>(decision: &Decision<'a>, policy: &Policy) -> Option<Decision<'a>> {
    let is_new = matches!(decision.action, Action::Start | Action::Flag(_))
        && !decision.order.is_marked_missing()
        && decision
            .observation
            .is_some_and(|observation| decision.order.is_missing_in(observation, policy));
    is_new.then_some(Decision {
        action: Action::MarkMissing,
        ..*decision
    })
}

/// Returns the changes of the orders whose look-up failed or has not been made.
pub(super) fn undetermined(observations: &Observations, now: Timestamp) -> Vec<OrderChange> {
    let failed = observations.failures.iter().filter_map(|(index, failure)| {
        let (order, id) = (
            observations.orders.order(*index),
            observations.orders.ids().get(*index),
        );
        let step = effects::delayed(&order, id, failure, now)?;
        let seq = order.seq;
        Some(OrderChange { seq, step })
    });
    let mut changes: Vec<OrderChange> = failed.collect();
    for (index, began_at) in &observations.unconfirmed {
        let order = observations.orders.order(*index);
        if !order.is_marked_missing() {
            let (seq, began_at) = (order.seq, *began_at);
            let step = Transition::Missed { began_at };
            changes.push(OrderChange { seq, step });
        }
    }
    changes
}
