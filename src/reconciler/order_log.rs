//! The log of each order's transitions, for people.
//!
//! A line is written after the commit, and only for a transition that took effect. The lines have the
//! level `debug` and a target of their own, because each order has several. `order-service dev` shows them.

use std::pin::pin;

use futures_util::TryStreamExt;
use log::Level;

use crate::messages::{quoted, span};
use crate::order::{Order, Outcome, Reason, Timestamp};
use crate::store::{Cursor, Filter, Store, Transition};

/// Log target of these lines.
const TARGET: &str = "order_service::orders";

/// Returns whether these lines are logged.
pub(super) fn is_enabled() -> bool {
    log::log_enabled!(target: TARGET, Level::Debug)
}

/// Logs a transition of an order.
pub(super) async fn log_transition(
    store: &Store,
    seq: i64,
    transition: &Transition,
    now: Timestamp,
) {
    let mut pages = pin!(store.pages(Filter::default(), Cursor::bare(seq - 1), 1));
    let Ok(Some((orders, _))) = pages.try_next().await else {
        return;
    };
    let Some(order) = orders.first().filter(|order| order.seq == seq) else {
        return;
    };
    if let Some(text) = describe(transition, order, now) {
        // Can be pasted into a command.
        log::debug!(target: TARGET, "{} {text}", quoted(order.id.as_str()));
    }
}

/// Describes a transition for the log, or returns `None` if there is nothing to see.
fn describe(transition: &Transition, order: &Order, now: Timestamp) -> Option<String> {
    let took = span(now.since(order.created_at));
    Some(match transition {
        Transition::Started { .. } => "started".to_owned(),
        Transition::Restarted { .. } => "started again: the upstream had forgotten it".to_owned(),
        Transition::Adopted => "has a process already, which is adopted".to_owned(),
        Transition::Settled(Outcome::Succeeded) => format!("FULFILLED after {took}"),
        Transition::Settled(Outcome::Failed) => format!("FAILED after {took}"),
        Transition::FailedByPolicy => format!("FAILED after {took}: the upstream had forgotten it"),
        Transition::Missed { .. } => "is not known to the upstream".to_owned(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::order::{OrderId, Status};

    #[test]
    fn a_missing_process_is_not_said_to_have_been_seen() {
        let order = Order {
            seq: 1,
            id: OrderId::new("a1").unwrap(),
            status: Status::Processing,
            created_at: Timestamp(0),
            updated_at: Timestamp(0),
            starts: 1,
            attention: None,
        };
        let missed = Transition::Missed {
            began_at: Timestamp(1),
        };
        let text = describe(&missed, &order, Timestamp(2));
        assert_eq!(text.as_deref(), Some("is not known to the upstream"));
    }
}
