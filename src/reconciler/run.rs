//! The loops around the pass: on the schedule as leader, or once.

use std::time::Duration;

use anyhow::Context as _;

use super::Reconciler;
use super::context::Context;
use super::list_read::ListRead;
use crate::clock::Clock;
use crate::decide::OpenOrder;
use crate::order::Timestamp;
use crate::process::Stop;
use crate::store::{LeadError, Leadership, Store};
use crate::upstream::Upstream;

/// Interval at which a standby tries to take the lead.
const STANDBY_INTERVAL: Duration = Duration::from_millis(250);

/// Waits until this process leads. Returns `None` if the program shuts down first.
pub async fn lead(store: &Store, stop: &Stop) -> anyhow::Result<Option<Leadership>> {
    let mut is_standby_logged = false;
    let mut logged = None;
    while !stop.requested.is_cancelled() {
        match store.try_lead().await {
            Ok(Some(lead)) => {
                log::info!("became leader");
                return Ok(Some(lead));
            }
            Ok(None) => {
                if !std::mem::replace(&mut is_standby_logged, true) {
                    log::info!("standing by leader=other");
                }
            }
            Err(LeadError::Open(error)) => return Err(error.into()),
            Err(LeadError::Store(error)) => {
                let error = format!("{:#}", anyhow::Error::new(error));
                if logged.as_ref() != Some(&error) {
                    log::error!(
                        "taking the lead failed; retrying every {STANDBY_INTERVAL:?}: {error}"
                    );
                    logged = Some(error);
                }
            }
        }
        tokio::select! {
            () = stop.requested.cancelled() => {}
            () = tokio::time::sleep(STANDBY_INTERVAL) => {}
        }
    }
    Ok(None)
}

/// Makes passes on the schedule, and at once when any process has created an order, until `stop` or
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
    let mut new_orders = new_orders.context("subscribing to new orders failed")?;
    let mut logged = None;
    while !stop.requested.is_cancelled() && reconciler.context.lead.loss().is_none() {
        match reconciler.pass(stop).await {
            Ok(report) => {
                if logged.take().is_some() {
                    log::info!("passes succeed again");
                }
                if report.has_more {
                    continue;
                }
            }
            Err(_) if reconciler.context.lead.loss().is_some() => break,
            Err(error) => {
                let error = format!("{error:#}");
                if logged.as_ref() != Some(&error) {
                    log::error!("pass failed; retrying on schedule: {error}");
                    logged = Some(error);
                }
            }
        }
        let poll_at = reconciler.next_poll_at();
        tokio::select! {
            () = stop.requested.cancelled() => {}
            () = ticks.next(&reconciler.context.clock) => {}
            () = new_orders.next() => {}
            () = poll_due(&reconciler.context.clock, poll_at) => {}
            () = ListRead::read_to_end(&mut reconciler.list) => {}
        }
    }
    ticks.shut_down().await;
    if let Some(loss) = reconciler.context.lead.loss() {
        log::error!("gave up leadership: {loss}");
    } else if !stop.abandon.is_cancelled() {
        reconciler.shut_down().await;
    }
    Ok(())
}

/// Makes passes until every order that is due was tried once. Returns whether the upstream was usable.
/// Waits one request timeout where nothing can be concluded before: if an earlier run has left a start
/// without an outcome, and if a process is absent too soon after its confirmation for that to count.
pub async fn run_once<U: Upstream, C: Clock>(
    mut reconciler: Reconciler<U, C>,
    stop: &Stop,
) -> anyhow::Result<bool> {
    let Context {
        store,
        clock,
        settings,
        ..
    } = &*reconciler.context;
    let due_by = clock.now().after(settings.request_timeout);
    let is_unknown = |order: OpenOrder| order.intent.is_some() && order.is_due(due_by);
    if store.open_orders().await?.orders().any(is_unknown) {
        let why = "a start of an earlier run has no outcome";
        reconciler.wait(why, stop).await;
    }
    let (mut has_waited, mut is_absence_early) = (false, false);
    let is_usable = loop {
        let report = reconciler.pass(stop).await?;
        is_absence_early |= report.is_absence_early;
        if report.unreachable {
            let failure = reconciler.pace.breaker().last_failure();
            log::warn!(
                "the upstream gave no usable answer reason={:?}",
                failure.unwrap_or("it asked for a pause")
            );
            break false;
        }
        if stop.requested.is_cancelled() {
            break true;
        }
        if report.has_more {
            continue;
        }
        if reconciler.list.is_some() {
            tokio::select! {
                () = stop.requested.cancelled() => {}
                () = ListRead::read_to_end(&mut reconciler.list) => {}
            }
            continue;
        }
        if has_waited || !is_absence_early {
            break true;
        }
        has_waited = true;
        let why = "a process is absent too soon after its confirmation";
        reconciler.wait(why, stop).await;
        reconciler.poll_again();
    };
    reconciler.shut_down().await;
    Ok(is_usable)
}

/// Returns when one of a few orders is to be polled; never if there is none.
async fn poll_due(clock: &impl Clock, at: Option<Timestamp>) {
    match at {
        Some(at) => clock.sleep_until(at).await,
        None => std::future::pending().await,
    }
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
}
