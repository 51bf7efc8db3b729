//! The results of requests: reported to the pace, with log lines about what that changes, and about limits that
//! make orders wait.

use std::time::Duration;

use super::Reconciler;
use crate::clock::Clock;
use crate::messages::{span, start_limit};
use crate::order::{Status, Timestamp};
use crate::pace::{Call, LearnedLimits, requested_pause};
use crate::upstream::{Failure, Upstream};

/// Least wait of orders that is logged.
const LOGGED_WAIT_MIN: Duration = Duration::from_secs(10);

/// Least interval between two such lines.
const WAIT_LOG_INTERVAL: Duration = Duration::from_secs(60);

impl<U: Upstream, C: Clock> Reconciler<U, C> {
    /// Reports the result of a request to the pace, and logs what that changes. `failure` is the reason why
    /// there was no usable answer.
    pub(super) fn on_result(&mut self, call: Call, failure: Option<&Failure>) {
        let (pace, now) = (&mut self.pace, self.context.clock.now());
        let Some(failure) = failure else {
            if pace.on_answered(call, now) {
                log::info!("the upstream is up");
            }
            return;
        };
        let paused_until = pace.breaker().kind_paused_until(call.kind, now);
        let was_down = pace.breaker().is_down();
        let (is_reduced, is_down) = pace.on_failed(call, now, failure);
        if was_down && !pace.breaker().is_down() {
            log::info!("the upstream is up");
        }
        if is_reduced {
            let (rate, detail) = (pace.rate().rate(), &failure.detail);
            log::info!("start rate reduced rate={rate:.1} reason={detail:?}");
        }
        if let Some(at) = pace
            .breaker()
            .kind_paused_until(call.kind, now)
            .filter(|at| Some(*at) > paused_until && requested_pause(failure).is_some())
        {
            let (wait, detail) = (span(at.since(now)), &failure.detail);
            let requests = match pace.breaker().paused_until(now) >= Some(at) {
                true => "all",
                false => call.kind.as_str(),
            };
            log::info!(
                "the upstream asked for a pause requests={requests} wait={wait:?} reason={detail:?}"
            );
        }
        if is_down {
            let detail = &failure.detail;
            log::warn!("the upstream is down; probing once a pass reason={detail:?}");
        }
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
        let uptime = self.context.clock.uptime();
        let is_soon = |at| uptime.saturating_sub(at) < WAIT_LOG_INTERVAL;
        let starting = self.requests.for_starts.len();
        let is_soon = self.wait_logged_at.is_some_and(is_soon);
        let Some(limit) = self.pace.limit(starting).filter(|_| !is_soon) else {
            return Ok(());
        };
        let reason = start_limit(limit);
        let waiting = self.context.store.count(Status::Created).await?;
        let learned = self.pace.learned(now, starting);
        if let Some(line) = wait_line(waiting, &learned, &reason, now) {
            log::info!("{line}");
            self.wait_logged_at = Some(uptime);
        }
        Ok(())
    }
}

/// Returns the line about orders that wait; `None` if they wait only shortly. While the window is full, or
/// no start is accepted, nobody knows for how long.
fn wait_line(
    waiting: u64,
    learned: &LearnedLimits,
    reason: &str,
    now: Timestamp,
) -> Option<String> {
    let time = match learned.wait(waiting, now).zip(learned.rate.as_ref()) {
        Some((wait, _)) if wait < LOGGED_WAIT_MIN => return None,
        Some((wait, rate)) => format!(" rate={:.1} about={:?}", rate.rate(), span(wait)),
        None => String::new(),
    };
    (waiting > 0).then(|| format!("orders wait waiting={waiting}{time} reason={reason:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pace::{Incarnations, StartRate};

    #[test]
    fn orders_that_wait_for_processes_to_end_are_logged_whatever_the_rate() {
        let now = Timestamp(0);
        let mut incarnations = Incarnations::default();
        for _ in 0..30 {
            incarnations.on_list_complete(1, now);
            incarnations.on_upstream_restart(0, now);
        }
        let mut learned = LearnedLimits {
            rate: Some(StartRate::new(500.0, now)),
            incarnations,
            running: 15,
            ..LearnedLimits::default()
        };
        let line = |waiting, learned: &_| wait_line(waiting, learned, "a reason", now);
        assert_eq!(line(4_000, &learned), None);
        let timed = "orders wait waiting=6000 rate=500.0 about=\"12 s\" reason=\"a reason\"";
        assert_eq!(line(6_000, &learned).as_deref(), Some(timed));
        learned.running = 16;
        let full = "orders wait waiting=4000 reason=\"a reason\"";
        assert_eq!(line(4_000, &learned).as_deref(), Some(full));
        assert_eq!(learned.wait(4_000, now), None, "in `/stats`");
        assert_eq!(line(0, &learned), None);
    }
}
