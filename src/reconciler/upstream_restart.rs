//! The detection of a restart of the upstream, by the processes that it has forgotten.

use super::Reconciler;
use super::observations::Observations;
use crate::clock::Clock;
use crate::decide::Occasion;
use crate::messages::span;
use crate::order::Timestamp;
use crate::upstream::Upstream;

impl<U: Upstream, C: Clock> Reconciler<U, C> {
    /// Returns the occasion of the decisions about a poll, and reports to the pace what the upstream has
    /// forgotten.
    pub(super) fn detect_occasion(
        &mut self,
        observations: &Observations,
        began_at: Timestamp,
    ) -> Occasion {
        // One process is enough: answers from before belong to an earlier incarnation.
        let process_forgotten_at = self.pace.incarnations().process_forgotten_at();
        if observations.is_any_forgotten(process_forgotten_at, &self.context.policy()) {
            self.pace.on_process_forgotten(self.context.clock.now());
        }
        let is_upstream_restart = self.detect_restart(observations, began_at);
        let process_forgotten_at = self.pace.incarnations().process_forgotten_at();
        self.context.process_forgotten_at.set(process_forgotten_at);
        match is_upstream_restart {
            true => Occasion::UpstreamRestart,
            false => Occasion::Poll,
        }
    }

    /// Returns whether so many processes are newly missing that the upstream must have been restarted,
    /// and reports that to the pace.
    fn detect_restart(&mut self, observations: &Observations, began_at: Timestamp) -> bool {
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
        self.pace.on_restart(left, now);
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
