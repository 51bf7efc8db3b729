//! The beginning of a run, after the program has started or the clock was set. `run`, the loop that makes
//! passes, is in `pass.rs`.

use anyhow::Context as _;

use super::Reconciler;
use crate::clock::Clock;
use crate::messages::span;
use crate::upstream::Upstream;

impl<U: Upstream, C: Clock> Reconciler<U, C> {
    /// Follows a step of the system's clock: resyncs the steady clock and makes a new run begin.
    pub(super) fn resync_clock(&mut self) {
        let before = self.context.clock.now();
        if self.context.clock.resync() {
            let now = self.context.clock.now();
            let (direction, by) = match now < before {
                true => ("back", before.since(now)),
                false => ("forward", now.since(before)),
            };
            let by = span(by);
            log::warn!("the clock was set {direction} by={by:?}; continuing as after a restart");
            self.has_run_begun = false;
            self.context.unrecorded_until.set(now);
        }
    }

    /// Begins a run. After a step of the clock no elapsed time is known, so every wait begins now, and
    /// stored moments that lie ahead are moved back.
    pub(super) async fn begin_run(&mut self) -> anyhow::Result<()> {
        self.requests.clear_polls();
        let now = self.context.clock.now();
        let (store, lead) = (&self.context.store, &self.context.lead);
        let clamped = store.clamp_times(lead, now).await;
        clamped.context("moving back the moments of open orders failed")?;
        self.heartbeat.clamp_times(now);
        self.heartbeat.set_due();
        self.pace = self.pace.for_next_run(now);
        self.context
            .process_forgotten_at
            .set(self.pace.incarnations().process_forgotten_at());
        self.polled_at = None;
        self.queue.clear();
        self.probe.set_due();
        self.has_run_begun = true;
        Ok(())
    }
}
