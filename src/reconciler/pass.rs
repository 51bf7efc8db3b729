//! The pass: observes, decides, settles, and then starts what is due until the next poll is due.

use std::time::Duration;

use anyhow::Context as _;

use super::{Reconciler, Report};
use crate::clock::Clock;
use crate::messages::span;
use crate::order::Timestamp;
use crate::process::Stop;
use crate::reconciler_metrics::PassOutcome;
use crate::upstream::Upstream;

/// Interval of the schedule up to which orders are also polled between its occurrences. A slower
/// schedule is followed exactly.
const FREQUENT_INTERVAL_MAX: Duration = Duration::from_secs(1);

impl<U: Upstream, C: Clock> Reconciler<U, C> {
    /// Makes one pass.
    ///
    /// # Errors
    /// The database cannot be read or written. Nothing is lost: the next pass repeats the work.
    pub async fn pass(&mut self, stop: &Stop) -> anyhow::Result<Report> {
        self.resync_clock();
        let began_at = self.context.clock.now();
        let result = self.run_pass(stop).await;
        let outcome = match &result {
            Ok(report) if report.unreachable => PassOutcome::Unreachable,
            Ok(_) => PassOutcome::Ok,
            Err(_) => PassOutcome::Failed,
        };
        let took = self.context.clock.now().since(began_at);
        self.context.upstream.metrics().on_pass(outcome, took);
        if result.is_err() {
            // It may be unrecorded that a start was given up.
            self.context.run_began_at.set(self.context.clock.now());
        }
        let report = result?;
        if report.is_eventful() {
            report.log();
            self.heartbeat.set_due();
        }
        if report.has_more {
            self.log_wait().await?;
        }
        self.heartbeat.state.last_pass_at = Some(self.context.clock.now());
        self.write_heartbeat_if_due().await?;
        Ok(report)
    }

    async fn run_pass(&mut self, stop: &Stop) -> anyhow::Result<Report> {
        if !self.has_begun {
            self.begin_run().await?;
        }
        let mut report = self.take_list(stop).await?;
        let now = self.context.clock.now();
        let is_resting = self.pace.breaker().resting_until(now).is_some();
        if !is_resting && self.is_usable().await? {
            let is_poll_due = self.is_poll_due();
            // At rest, this is the one read of a scheduled pass.
            let has_work = !is_poll_due || self.has_work().await?;
            if is_poll_due {
                report += self.observe(has_work, stop).await?;
            }
            self.write_heartbeat_if_due().await?;
            self.queue.begin_pass(has_work);
            report += self.start_due(stop).await?;
        }
        let results = self.pace.take_results();
        let is_unanswered = results.failure && !results.answer;
        report.unreachable = is_resting || is_unanswered || self.pace.breaker().is_down();
        Ok(report)
    }

    /// Returns whether there is any order to poll or to start.
    async fn has_work(&self) -> anyhow::Result<bool> {
        let (now, max_starts) = (self.context.clock.now(), self.context.settings.max_starts);
        let has_work = self.context.store.has_work(now, max_starts).await;
        has_work.context("reading whether there is anything to do failed")
    }

    /// Follows a step of the system's clock: resyncs the steady clock and makes a new run begin.
    fn resync_clock(&mut self) {
        let before = self.context.clock.now();
        if self.context.clock.resync() {
            let now = self.context.clock.now();
            let (direction, by) = match now < before {
                true => ("back", before.since(now)),
                false => ("forward", now.since(before)),
            };
            let by = span(by);
            log::warn!("the clock was set {direction} by={by:?}; continuing as after a restart");
            self.has_begun = false;
            self.context.run_began_at.set(now);
        }
    }

    /// Begins a run. After a step of the clock no elapsed time is known, so every wait begins now, and
    /// stored moments that lie ahead are moved back.
    async fn begin_run(&mut self) -> anyhow::Result<()> {
        let now = self.context.clock.now();
        let (store, lead) = (&self.context.store, &self.context.lead);
        let set_right = store.clamp_times(lead, now).await;
        set_right.context("moving back the moments of open orders failed")?;
        self.heartbeat.set_no_later_than(now);
        self.heartbeat.set_due();
        self.pace = self.pace.for_next_run(now);
        self.context
            .forgot_at
            .set(self.pace.incarnations().forgot_at());
        self.polled_at = None;
        self.list = None;
        self.queue.clear();
        self.probe.set_due();
        self.has_begun = true;
        Ok(())
    }

    /// Makes the next pass poll everything.
    pub(super) fn poll_again(&mut self) {
        self.polled_at = None;
        self.pace.poll_soon(self.context.clock.now());
    }

    /// Returns whether a poll is due. Polls follow the schedule, not the passes that new orders cause, and
    /// the pace's polling interval.
    fn is_poll_due(&self) -> bool {
        let now = self.context.clock.now();
        let is_on_schedule = self
            .polled_at
            .is_none_or(|at| self.context.settings.schedule.next_after(at) <= now);
        let is_due = is_on_schedule || self.next_poll_at().is_some_and(|at| at <= now);
        is_due && self.pace.is_poll_due(now)
    }

    /// Returns when an order is to be polled before the schedule's next occurrence, if one is.
    pub fn next_poll_at(&self) -> Option<Timestamp> {
        let polled_at = self.polled_at?;
        self.pace
            .order_due_at()
            .filter(|_| self.is_frequent(polled_at))
    }

    /// Returns whether the schedule's next occurrence is so soon that orders may be polled before it.
    pub(super) fn is_frequent(&self, now: Timestamp) -> bool {
        self.context.settings.schedule.next_after(now).since(now) <= FREQUENT_INTERVAL_MAX
    }
}
