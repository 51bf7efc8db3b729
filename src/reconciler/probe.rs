//! The probes of an upstream that is down: one look-up a pass, at times a list, until it answers.

use std::time::Duration;

use super::Reconciler;
use super::in_flight::LookUpAnswer;
use crate::clock::Clock;
use crate::order::{Order, Timestamp};
use crate::pace::Call;
use crate::process::Stop;
use crate::upstream::{Cause, Upstream};

/// Least interval between two probes. A little less than the default schedule's second, so that a tick
/// that comes early is not lost.
const PROBE_INTERVAL: Duration = Duration::from_millis(900);

/// One in this many probes is a list, if a poll is due: perhaps look-ups alone fail.
const LIST_EVERY: u32 = 8;

/// The state of probing.
#[derive(Default)]
pub(super) struct Probe {
    /// Sequence number of the order that was looked up last.
    seq: i64,
    last_at: Option<Timestamp>,
    count: u32,
}

impl Probe {
    /// Makes the next probe due at once.
    pub fn set_due(&mut self) {
        self.last_at = None;
    }
}

impl<U: Upstream, C: Clock> Reconciler<U, C> {
    /// Probes the upstream while it is down: with one look-up a pass, of another order each time in case one
    /// order is the cause, and at most every [`PROBE_INTERVAL`], however many passes new orders cause.
    /// Returns whether the upstream may be used.
    pub(super) async fn probe_if_down(&mut self, stop: &Stop) -> anyhow::Result<bool> {
        if !self.pace.breaker().is_down() {
            return Ok(true);
        }
        let now = self.context.clock.now();
        let is_soon = |at| now.since(at) < PROBE_INTERVAL;
        let requests = self.requests.clone();
        let is_free = requests.slots_in_use() < self.context.settings.max_in_flight;
        if !is_free || self.probe.last_at.is_some_and(is_soon) {
            return Ok(false);
        }
        self.probe.last_at = Some(now);
        self.probe.count = self.probe.count.wrapping_add(1);
        if self.probe.count.is_multiple_of(LIST_EVERY) {
            return Ok(true);
        }
        let next = match self.context.store.next_open(self.probe.seq).await? {
            None => self.context.store.next_open(0).await?,
            next => next,
        };
        let Some(Order { seq, id, .. }) = next else {
            return Ok(true);
        };
        self.probe.seq = seq;
        if requests.contains(seq) || requests.probes.contains(seq) {
            return Ok(false);
        }
        requests.probes.send(seq, self.look_up(id));
        let is_own = |other| other == seq;
        let answer = self.next_answer(&requests.probes, is_own, stop).await;
        let failure = answer.and_then(|(_, answer)| self.on_probe(answer));
        if self.is_once && failure.is_some_and(|cause| cause != Cause::NoConnection) {
            // The order may be the cause, and no later pass probes the next one.
            self.probe.set_due();
            return Box::pin(self.probe_if_down(stop)).await;
        }
        Ok(!self.pace.breaker().is_down())
    }

    /// Reports the probes that were answered since the last pass to the pace.
    pub(super) fn take_probes(&mut self) {
        while let Some((_, answer)) = self.requests.probes.take(|_| true) {
            self.on_probe(answer);
        }
    }

    /// Reports a probe to the pace. Returns the cause of its failure, if it failed.
    fn on_probe(&mut self, (sent_at, result): LookUpAnswer) -> Option<Cause> {
        let failure = result.as_ref().err();
        self.on_result(Call::poll(sent_at), failure);
        failure.map(|failure| failure.cause)
    }
}
