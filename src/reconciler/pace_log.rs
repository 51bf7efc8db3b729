//! The log lines about the pace: changes by answers, and limits that make orders wait.

use std::time::Duration;

use super::Reconciler;
use crate::clock::Clock;
use crate::messages::{span, start_limit};
use crate::order::{Status, Timestamp};
use crate::pace::{Call, Pace};
use crate::upstream::{Failure, Upstream};

/// Least wait of orders that is logged.
const WAIT_LOGGED: Duration = Duration::from_secs(10);

/// Least interval between two such lines.
const WAIT_LOGGED_EVERY: Duration = Duration::from_secs(60);

/// Reports the result of a request to the pace, and logs what that changes. `failure` is the reason why there
/// was no usable answer.
pub(super) fn on_result(pace: &mut Pace, call: Call, now: Timestamp, failure: Option<&Failure>) {
    let Some(failure) = failure else {
        if pace.on_answered(call, now) {
            log::info!("the upstream is up");
        }
        return;
    };
    let paused_until = pace.breaker().resting_until(now);
    let (is_slower, is_down) = pace.on_failed(call, now, failure);
    if is_slower {
        let (rate, detail) = (pace.rate().rate(), &failure.detail);
        log::info!("start rate reduced rate={rate:.1} reason={detail:?}");
    }
    if let Some(at) = pace
        .breaker()
        .resting_until(now)
        .filter(|at| Some(*at) > paused_until)
    {
        let (wait, detail) = (span(at.since(now)), &failure.detail);
        log::info!("the upstream asked for a pause wait={wait:?} reason={detail:?}");
    }
    if is_down {
        let detail = &failure.detail;
        log::warn!("the upstream is down; probing once a pass reason={detail:?}");
    }
}

impl<U: Upstream, C: Clock> Reconciler<U, C> {
    /// Like the function [`on_result`], at the present moment.
    pub(super) fn on_result(&mut self, call: Call, failure: Option<&Failure>) {
        let now = self.context.clock.now();
        on_result(&mut self.pace, call, now, failure);
    }

    /// Restores the start rate if that is due, and logs it.
    pub(super) fn recover_rate(&mut self, now: Timestamp) {
        if self.pace.recover(now) {
            log::info!("start rate restored rate={:.1}", self.pace.rate().rate());
        }
    }

    /// Logs the limit of the start rate, if it makes orders that are due wait for long.
    pub(super) async fn log_wait(&mut self) -> anyhow::Result<()> {
        let now = self.context.clock.now();
        let is_soon = |at| now.since(at) < WAIT_LOGGED_EVERY;
        let Some(limit) = self.pace.limit() else {
            return Ok(());
        };
        if self.wait_logged_at.is_some_and(is_soon) {
            return Ok(());
        }
        let reason = start_limit(limit);
        self.wait_logged_at = Some(now);
        let waiting = self.context.store.count(Status::Created).await?;
        let rate = self.pace.rate().rate();
        let wait = Duration::try_from_secs_f64(waiting as f64 / rate).unwrap_or(Duration::MAX);
        if wait >= WAIT_LOGGED {
            let wait = span(wait);
            log::info!(
                "orders wait waiting={waiting} rate={rate:.1} about={wait:?} reason={reason:?}"
            );
        }
        Ok(())
    }
}
