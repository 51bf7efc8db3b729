//! The pass, and `run`, the loop that makes passes. A pass observes, decides, settles, and then starts what is
//! due until the next pass is due.

use std::time::Duration;

use anyhow::Context as _;
use futures_util::FutureExt;

use super::poll_due::{POLLING_TIME_MAX, reached};
use super::{Reconciler, Report};
use crate::clock::Clock;
use crate::process::Stop;
use crate::reconciler_metrics::PassOutcome;
use crate::store::NewOrders;
use crate::upstream::Upstream;

/// Pause after a failed pass while starts are in flight.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Makes passes on the schedule, and at once when any program has created an order, until `stop` or
/// until the lead is lost.
///
/// # Errors
/// The scheduler or the subscription to new orders cannot be started. A failed pass is repeated.
pub async fn run<U: Upstream, C: Clock>(
    mut reconciler: Reconciler<U, C>,
    stop: &Stop,
) -> anyhow::Result<()> {
    let now = reconciler.context.clock.now();
    let mut ticks = reconciler.context.settings.schedule.ticks(now).await?;
    let new_orders = reconciler.context.store.new_orders().await;
    reconciler.new_orders = Some(new_orders.context("subscribing to new orders failed")?);
    let requests = reconciler.requests.clone();
    let mut logged = None;
    while !stop.requested.is_cancelled() && reconciler.context.lead.loss().is_none() {
        match reconciler.pass(stop).await {
            Ok(report) => {
                if logged.take().is_some() {
                    log::info!("passes succeed again");
                }
                if report.has_more || reconciler.has_starts_in_flight() {
                    continue;
                }
            }
            Err(_) if reconciler.context.lead.loss().is_some() => break,
            // The program shuts down, and logs the reason.
            Err(_) if reconciler.context.store.retired().now_or_never().is_some() => {}
            Err(error) => {
                let error = format!("{error:#}");
                if logged.as_ref() != Some(&error) {
                    log::error!("pass failed; retrying on schedule: {error}");
                    logged = Some(error);
                }
            }
        }
        let next_at = match reconciler.has_starts_in_flight() {
            // The pass has failed, and answers are to be recorded.
            true => Some(reconciler.context.clock.now().after(RETRY_INTERVAL)),
            false => reconciler.next_wake_at(),
        };
        let waited = async {
            tokio::select! {
                () = stop.requested.cancelled() => {}
                () = ticks.next(&reconciler.context.clock) => {}
                () = NewOrders::next_of(&mut reconciler.new_orders) => {}
                () = reached(&reconciler.context.clock, next_at) => {}
                _ = requests.poll_answered(0) => {}
            }
        };
        requests.drive_while(waited).await;
    }
    ticks.shut_down().await;
    if let Some(loss) = reconciler.context.lead.loss() {
        log::error!("gave up leadership: {loss}");
    } else {
        if reconciler.has_starts_in_flight()
            && let Err(error) = requests
                .drive_while(reconciler.start_due(false, stop))
                .await
        {
            log::error!("recording the last answers failed: {error:#}");
        }
        if !stop.abandon.is_cancelled() {
            reconciler.shut_down(None).await;
        }
    }
    Ok(())
}

impl<U: Upstream, C: Clock> Reconciler<U, C> {
    /// Makes one pass, and drives the requests in flight meanwhile.
    ///
    /// # Errors
    /// The database cannot be read or written. Nothing is lost: the next pass repeats the work.
    pub async fn pass(&mut self, stop: &Stop) -> anyhow::Result<Report> {
        let requests = self.requests.clone();
        requests.drive_while(self.pass_and_report(stop)).await
    }

    /// Makes the pass; then counts it, logs its report and writes the heartbeat.
    async fn pass_and_report(&mut self, stop: &Stop) -> anyhow::Result<Report> {
        self.resync_clock();
        let began_at = self.context.clock.now();
        let result = self.observe_and_start(stop).await;
        let outcome = match &result {
            Ok(report) if report.unreachable => PassOutcome::Unreachable,
            Ok(_) => PassOutcome::Ok,
            Err(_) => PassOutcome::Failed,
        };
        let took = self.context.clock.now().since(began_at);
        self.context.upstream.metrics().on_pass(outcome, took);
        if result.is_err() {
            // It may be unrecorded that a start was given up.
            self.context.unrecorded_until.set(self.context.clock.now());
            // The next pass is the schedule's, and polls, unless it is made for the starts in flight.
            self.polled_at = self.polled_at.filter(|_| self.has_starts_in_flight());
        }
        let report = result?;
        report.log();
        if report.is_eventful() && !self.has_starts_in_flight() {
            self.heartbeat.set_due();
        }
        if report.has_more {
            self.log_wait().await?;
        }
        self.heartbeat.state.last_pass_at = Some(self.context.clock.now());
        self.write_heartbeat_if_due(self.requests.for_starts.len())
            .await?;
        Ok(report)
    }

    /// Takes late answers, polls what is due, and starts what is due.
    async fn observe_and_start(&mut self, stop: &Stop) -> anyhow::Result<Report> {
        if !self.has_run_begun {
            self.begin_run().await?;
        }
        self.polls_until = self.context.clock.now().after(POLLING_TIME_MAX);
        self.take_probes();
        let mut report = self.take_list(stop).await?;
        report += self.take_look_ups(stop).await?;
        let now = self.context.clock.now();
        let is_paused = self.pace.breaker().paused_until(now).is_some();
        let is_usable = !is_paused && self.probe_if_down(stop).await?;
        if is_usable {
            let is_poll_due = self.is_poll_due();
            // Without work, this is the one read of a scheduled pass.
            let (store, max_starts) = (&self.context.store, self.context.settings.max_starts);
            let has_work = !is_poll_due || store.has_work(now, max_starts).await?;
            if is_poll_due {
                report += self.observe(has_work, stop).await?;
            }
            self.write_heartbeat_if_due(self.requests.for_starts.len())
                .await?;
            self.queue.begin_pass(has_work);
        }
        if is_usable || self.has_starts_in_flight() {
            report += self.start_due(is_usable, stop).await?;
        }
        let results = self.pace.take_results();
        let is_unanswered = results.has_failure && !results.has_answer;
        report.unreachable |= is_paused || is_unanswered || self.pace.breaker().is_down();
        Ok(report)
    }
}
