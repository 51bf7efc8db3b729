//! The passes of `order-reconciler --once`: each order that is due is tried once.

use super::Reconciler;
use super::context::Context;
use crate::clock::Clock;
use crate::decide::OpenOrder;
use crate::process::Stop;
use crate::upstream::Upstream;

/// Makes passes until every order that is due was tried once. Returns whether the upstream was usable; `None`
/// if `stop` has left orders untried.
/// Waits one request timeout where nothing can be concluded before: if an earlier run has left a start
/// without an outcome, and if a process is absent too soon after its confirmation for that to count.
pub async fn run_once<U: Upstream, C: Clock>(
    mut reconciler: Reconciler<U, C>,
    stop: &Stop,
) -> anyhow::Result<Option<bool>> {
    reconciler.is_once = true;
    let Context {
        store,
        clock,
        settings,
        ..
    } = &*reconciler.context;
    let due_by = clock.now().after(settings.request_timeout);
    let has_unknown_outcome = |order: OpenOrder| order.intent.is_some() && order.is_due(due_by);
    let mut has_to_wait = store.open_orders().await?.orders().any(has_unknown_outcome);
    let mut why = "a start of an earlier run has no outcome";
    let (mut has_waited, mut is_absence_early) = (false, false);
    let is_usable = loop {
        if std::mem::take(&mut has_to_wait) {
            reconciler.wait(why, stop).await;
            if stop.requested.is_cancelled() {
                break None;
            }
        }
        let report = reconciler.pass(stop).await?;
        is_absence_early |= report.is_absence_early;
        if report.unreachable {
            log::warn!("the upstream gave no usable answer {}", reconciler.reason());
            break Some(false);
        }
        let is_done = !report.has_more && reconciler.has_polled_all;
        if stop.requested.is_cancelled() && !is_done {
            break None;
        }
        if report.has_more {
            continue;
        }
        if !reconciler.requests.lists.is_empty() {
            tokio::select! {
                () = stop.requested.cancelled() => {}
                _ = reconciler.requests.poll_answered(0) => {}
            }
            continue;
        }
        if !reconciler.has_polled_all {
            log::warn!("the upstream left orders unpolled {}", reconciler.reason());
            break Some(false);
        }
        if has_waited || !is_absence_early {
            break Some(true);
        }
        (has_waited, has_to_wait) = (true, true);
        why = "a process is absent too soon after its confirmation, or after the beginning of this run";
        reconciler.poll_again();
    };
    let context = &reconciler.context;
    let next_run_at = context.settings.schedule.next_after(context.clock.now());
    reconciler.shut_down(Some(next_run_at)).await;
    Ok(is_usable)
}

impl<U: Upstream, C: Clock> Reconciler<U, C> {
    /// Waits for one request timeout, unless the program shuts down.
    async fn wait(&self, why: &str, stop: &Stop) {
        let timeout = self.context.settings.request_timeout;
        log::info!("waiting for={timeout:?} reason={why:?}");
        tokio::select! {
            () = stop.requested.cancelled() => {}
            () = self.context.clock.sleep(timeout) => {}
        }
    }

    /// Returns the reason why the upstream cannot be used, as a field of a log line.
    fn reason(&self) -> String {
        let failure = self.pace.breaker().last_failure();
        format!("reason={:?}", failure.unwrap_or("it asked for a pause"))
    }

    /// Makes the next pass poll everything.
    fn poll_again(&mut self) {
        self.polled_at = None;
        self.pace.poll_soon(self.context.clock.now());
    }
}
