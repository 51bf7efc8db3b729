//! The pace's news for the log: what an answer changes, and what holds up orders.

use std::time::Duration;

use super::Reconciler;
use crate::clock::Clock;
use crate::messages::span;
use crate::order::{Status, Timestamp};
use crate::pace::{Call, Pace};
use crate::upstream::{Failure, Upstream};

/// Wait from which on a limit of the start rate is logged.
const WAIT_LOGGED: Duration = Duration::from_secs(10);

/// Interval between two such lines, at the least.
const WAIT_LOGGED_EVERY: Duration = Duration::from_secs(60);

/// Passes an answer, or the reason why there was none, to the pace, and logs what that changes.
pub(super) fn note(pace: &mut Pace, call: Call, now: Timestamp, failure: Option<&Failure>) {
    let Some(failure) = failure else {
        if pace.on_answered(call, now) {
            log::info!("the upstream answers");
        }
        return;
    };
    let rested_until = pace.breaker().resting_until(now);
    let (is_slower, is_down) = pace.on_failed(call, now, failure);
    if is_slower {
        let (rate, detail) = (pace.rate().rate(), &failure.detail);
        log::info!("start rate reduced rate={rate:.1} reason={detail:?}");
    }
    if let Some(at) = pace
        .breaker()
        .resting_until(now)
        .filter(|at| Some(*at) > rested_until)
    {
        let (wait, detail) = (span(at.since(now)), &failure.detail);
        log::info!("the upstream asked for a pause wait={wait:?} reason={detail:?}");
    }
    if is_down {
        let detail = &failure.detail;
        log::warn!("the upstream is down, and is probed once a pass reason={detail:?}");
    }
}

impl<U: Upstream, C: Clock> Reconciler<U, C> {
    /// Like [`note`], at the present moment.
    pub(super) fn note(&mut self, call: Call, failure: Option<&Failure>) {
        let now = self.context.clock.now();
        note(&mut self.pace, call, now, failure);
    }

    /// Logs what holds up orders that are due, if it holds them up for long.
    pub(super) async fn log_wait(&mut self) -> anyhow::Result<()> {
        let now = self.context.clock.now();
        let is_soon = |at| now.since(at) < WAIT_LOGGED_EVERY;
        let Some(reason) = self.pace.limit_reason() else {
            return Ok(());
        };
        if self.wait_logged_at.is_some_and(is_soon) {
            return Ok(());
        }
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
