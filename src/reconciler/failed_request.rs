//! The transitions after a request about an order has failed.

use std::time::Duration;

use crate::decide::{OpenOrder, Policy, is_in_doubt};
use crate::messages::attention_detail;
use crate::order::{Reason, Timestamp};
use crate::pace::{backoff, requested_pause};
use crate::store::{AttentionUpdate, StartCandidate, Transition};
use crate::upstream::{Cause, Failure};

/// Returns the transition that gives up a start without an outcome. The order is not tried again before its
/// absence would show that the start had no effect.
pub(super) fn given_up(
    candidate: &StartCandidate,
    answer_status: Option<u16>,
    failure: &Failure,
    request_timeout: Duration,
    now: Timestamp,
) -> Transition {
    let StartCandidate { id, order } = candidate;
    let (id, detail) = (id.as_str(), &failure.detail);
    log::debug!("start given up order={id:?} reason={detail:?}");
    let mut attention = attention(order, id, failure, now);
    let counts_from = now.after(request_timeout);
    attention.next_attempt_at = attention.next_attempt_at.max(counts_from);
    Transition::GivenUp {
        answer_status,
        is_counted: is_in_doubt(answer_status),
        attention,
    }
}

/// Returns the transition after a request about an order has failed without an effect. There is none if there
/// was no connection: that says nothing about the order.
pub(super) fn delayed(
    order: &OpenOrder,
    id: &str,
    failure: &Failure,
    policy: &Policy,
    now: Timestamp,
) -> Option<Transition> {
    if failure.cause == Cause::NoConnection {
        return None;
    }
    let mut attention = attention(order, id, failure, now);
    if let Some(reason) = order.held_for(policy) {
        let detail = attention_detail(reason, order.starts, None, None);
        (attention.reason, attention.detail) = (reason, detail);
    }
    Some(Transition::Delayed(attention))
}

/// Returns the attention for an order whose request failed, with the moment of its next attempt: after the
/// backoff, and after the pause that the upstream asked for.
fn attention(order: &OpenOrder, id: &str, failure: &Failure, now: Timestamp) -> AttentionUpdate {
    let wait = backoff(id, order.attempts + 1);
    // Soon after the pause: others come first, in case requests about this order are always answered so.
    let after_pause = requested_pause(failure).map(|pause| pause + backoff(id, 1));
    AttentionUpdate {
        reason: Reason::UpstreamUnreachable,
        detail: failure.detail.clone(),
        next_attempt_at: now.after(wait.max(after_pause.unwrap_or_default())),
    }
}
