//! The absences that a poll finds: the orders that stay in doubt, and the restart of the upstream that many
//! forgotten processes show.

use super::failed_request::delayed;
use super::look_ups::LOOK_UPS_MAX;
use super::observations::Observations;
use super::{Decision, Reconciler};
use crate::clock::Clock;
use crate::decide::{Action, Occasion, Policy};
use crate::messages::span;
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

    /// Returns the occasion of the decisions about a poll, and reports to the pace what the upstream has
    /// forgotten.
    pub(super) fn note_forgotten(
        &mut self,
        observations: &Observations,
        began_at: Timestamp,
    ) -> Occasion {
        // One process is enough: answers from before belong to an earlier incarnation.
        let process_forgotten_at = self.pace.incarnations().process_forgotten_at();
        if observations.is_any_forgotten(process_forgotten_at, &self.context.policy()) {
            self.pace.on_process_forgotten(self.context.clock.now());
        }
        let is_upstream_restart = self.note_upstream_restart(observations, began_at);
        let process_forgotten_at = self.pace.incarnations().process_forgotten_at();
        self.context.process_forgotten_at.set(process_forgotten_at);
        match is_upstream_restart {
            true => Occasion::UpstreamRestart,
            false => Occasion::Poll,
        }
    }

    /// Returns whether so many processes are newly missing that the upstream must have been restarted,
    /// and reports that to the pace.
    fn note_upstream_restart(&mut self, observations: &Observations, began_at: Timestamp) -> bool {
        let (now, policy) = (self.context.clock.now(), self.context.policy());
        let incarnations = self.pace.incarnations();
        // A process that was confirmed before the last detected restart may have been lost in that
        // one: its absence does not mean a second restart.
        let restarted_at = incarnations.restarted_at();
        let total = observations.missing(None, &policy);
        if !observations
            .missing(restarted_at, &policy)
            .is_upstream_restart()
        {
            if let Some(entries) = observations.entries {
                self.pace.on_list_complete(entries, began_at, now);
            } else if observations.is_any_process_observed() {
                self.pace.on_seen_alive(began_at);
            }
            return total.is_upstream_restart();
        }
        let before = match (incarnations.processes(), incarnations.began_at()) {
            (Some(processes), Some(at)) => {
                format!(" processes={processes} lived={:?}", span(now.since(at)))
            }
            _ => String::new(),
        };
        let (missing, known) = (total.missing, total.known);
        let left = observations.entries.unwrap_or((known - missing) as u64);
        self.pace.on_upstream_restart(left, now);
        let incarnations = self.pace.incarnations();
        let window = incarnations.window().unwrap_or(0);
        let length = incarnations
            .expected_length(now)
            .map_or(0.0, |(processes, _)| processes);
        log::warn!(
            "the upstream was restarted forgotten={missing} known={known}{before} \
             expected_length={length:.0} window={window} rate={:.1}",
            self.pace.rate().rate()
        );
        true
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
pub(super) fn undetermined(
    observations: &Observations,
    policy: &Policy,
    now: Timestamp,
) -> Vec<OrderChange> {
    let failed = observations.failures.iter().filter_map(|(index, failure)| {
        let (order, id) = (
            observations.orders.order(*index),
            observations.orders.ids().get(*index),
        );
        let transition = delayed(&order, id, failure, policy, now)?;
        let seq = order.seq;
        Some(OrderChange { seq, transition })
    });
    let mut changes: Vec<OrderChange> = failed.collect();
    for (index, began_at) in &observations.unconfirmed {
        let order = observations.orders.order(*index);
        if !order.is_marked_missing() {
            let (seq, began_at) = (order.seq, *began_at);
            let transition = Transition::Missed { began_at };
            changes.push(OrderChange { seq, transition });
        }
    }
    changes
}
