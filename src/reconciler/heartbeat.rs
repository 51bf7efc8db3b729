//! Heartbeats: the state of the reconciler and the upstream, written to the database for readers.

use std::time::Duration;

use super::Reconciler;
use crate::clock::Clock;
use crate::order::Timestamp;
use crate::reconciler_state::ReconcilerState;
use crate::upstream::{RequestKind, Upstream};

/// Interval between two heartbeats while nothing changes. Each costs a disk flush.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);

/// The state that heartbeats report, and when it was last written.
pub(super) struct HeartbeatWriter {
    pub state: ReconcilerState,
    written_at: Option<Timestamp>,
}

impl HeartbeatWriter {
    /// Creates a writer that continues from the state of an earlier run.
    pub fn new(state: ReconcilerState) -> Self {
        Self {
            state,
            written_at: None,
        }
    }

    /// Makes the next heartbeat due at once.
    pub fn set_due(&mut self) {
        self.written_at = None;
    }

    /// Moves moments that lie ahead back to `now`, because the clock was set back.
    pub fn clamp_times(&mut self, now: Timestamp) {
        let ReconcilerState {
            leader_since,
            last_pass_at,
            last_observed_at,
            ..
        } = &mut self.state;
        for past in [leader_since, last_pass_at, last_observed_at] {
            *past = past.map(|at| at.min(now));
        }
    }
}

impl<U: Upstream, C: Clock> Reconciler<U, C> {
    /// Writes a final heartbeat: flushes the counters and gives up leadership. `next_pass_at` is when another
    /// run is expected to make a pass.
    pub async fn shut_down(mut self, next_pass_at: Option<Timestamp>) {
        self.heartbeat.state.leader_since = None;
        self.heartbeat.state.led_until = Some(self.context.clock.now());
        if let Err(error) = self
            .write_heartbeat(self.requests.for_starts.len(), next_pass_at)
            .await
        {
            log::debug!("final heartbeat failed: {error:#}");
        }
    }

    /// Writes a heartbeat if the upstream's availability or its pause of starts has changed, or if the last one
    /// is old. `starting` is the number of orders that are being started.
    pub(super) async fn write_heartbeat_if_due(&mut self, starting: usize) -> anyhow::Result<()> {
        let now = self.context.clock.now();
        let HeartbeatWriter { state, written_at } = &self.heartbeat;
        let breaker = self.pace.breaker();
        let starts_paused_until = breaker.kind_paused_until(RequestKind::Start, now);
        let has_changed = state.upstream != *breaker.state()
            || state.learned.starts_paused_until != starts_paused_until;
        if has_changed || written_at.is_none_or(|at| now.since(at) >= HEARTBEAT_INTERVAL) {
            let next_pass_at = self.context.settings.schedule.next_after(now);
            self.write_heartbeat(starting, Some(next_pass_at)).await?;
        }
        Ok(())
    }

    async fn write_heartbeat(
        &mut self,
        starting: usize,
        next_pass_at: Option<Timestamp>,
    ) -> anyhow::Result<()> {
        let (context, pace, now) = (&self.context, &self.pace, self.context.clock.now());
        let HeartbeatWriter { state, written_at } = &mut self.heartbeat;
        state.upstream = pace.breaker().state().clone();
        state.learned = pace.learned(now, starting);
        state.metrics = context.upstream.metrics().clone();
        state.next_pass_at = next_pass_at;
        let may_poll_at = next_pass_at.map(|at| at.max(pace.polls_allowed_from()));
        let paused_until = pace.breaker().kind_paused_until(RequestKind::LookUp, now);
        state.next_poll_at = paused_until.max(may_poll_at);
        context.lead.write_heartbeat(state.clone()).await?;
        *written_at = Some(now);
        Ok(())
    }
}
