//! The log of each order's transitions, for people.
//!
//! A line is written after the commit, and only for a transition that took effect. The lines have the
//! level `debug` and a target of their own, because each order has several. `order-service dev` shows them.

use std::pin::pin;

use futures_util::TryStreamExt;
use log::Level;

use super::Report;
use super::context::Context;
use crate::messages::span;
use crate::order::{Order, Outcome, Reason, Timestamp};
use crate::store::{Cursor, Filter, OrderChange, Recorded, StoreError, Transition};

/// Log target of these lines.
const TARGET: &str = "order_service::orders";

impl<U, C> Context<U, C> {
    /// Records changes in one transaction, counts them, and logs those that took effect.
    pub(super) async fn record_changes(
        &self,
        changes: Vec<OrderChange>,
        now: Timestamp,
    ) -> Result<(Recorded, Report), StoreError> {
        let logged = log::log_enabled!(target: TARGET, Level::Debug).then(|| changes.clone());
        let mut report = Report::of(&changes);
        let recorded = self.store.record(&self.lead, changes, now).await?;
        report.conflicts = recorded.conflicts.len();
        for OrderChange { seq, step } in logged.into_iter().flatten() {
            // Nothing was recorded of an order that had moved on.
            if !recorded.conflicts.contains(&seq) {
                self.log_step(seq, &step, now).await;
            }
        }
        Ok((recorded, report))
    }

    async fn log_step(&self, seq: i64, step: &Transition, now: Timestamp) {
        let filter = Filter::default();
        let mut pages = pin!(self.store.pages(filter, Cursor::bare(seq - 1), 1));
        let Ok(Some((orders, _))) = pages.try_next().await else {
            return;
        };
        let Some(order) = orders.first().filter(|order| order.seq == seq) else {
            return;
        };
        if let Some(text) = describe(step, order, now) {
            let id = order.id.as_str();
            if id.contains([' ', '"']) {
                log::debug!(target: TARGET, "{id:?} {text}");
            } else {
                log::debug!(target: TARGET, "{id} {text}");
            }
        }
    }
}

/// Describes a transition for the log, or returns `None` if there is nothing to see.
fn describe(step: &Transition, order: &Order, now: Timestamp) -> Option<String> {
    let took = span(now.since(order.created_at));
    Some(match step {
        Transition::Started { .. } => "started".to_owned(),
        Transition::Restarted { .. } => "started again: the upstream had forgotten it".to_owned(),
        Transition::Adopted => "has a process already, which is taken over".to_owned(),
        Transition::Settled(Outcome::Succeeded) => format!("FULFILLED after {took}"),
        Transition::Settled(Outcome::Failed) => format!("FAILED after {took}"),
        Transition::FailedByPolicy => format!("FAILED after {took}: the upstream had forgotten it"),
        Transition::Missed { .. } => "is not known to the upstream any more".to_owned(),
        Transition::GivenUp { attention, .. }
        | Transition::Delayed(attention)
        | Transition::Flagged(attention) => {
            let next = span(attention.next_attempt_at.since(now));
            match attention.reason {
                Reason::UpstreamUnreachable => {
                    format!("is tried again in {next}: {}", attention.detail)
                }
                reason => format!("needs attention, {}: {}", reason.as_str(), attention.detail),
            }
        }
        Transition::Intended { .. }
        | Transition::Counted { .. }
        | Transition::Withdrawn
        | Transition::ProcessObserved
        | Transition::Cleared => return None,
    })
}
