//! The decision about an open order, given what was observed: one pure table.
//!
//! No clock, no network, no database: the moment comes in, the action goes out. `reconciler` carries it
//! out; `pace` chooses how fast and how often. `decide/open_order.rs` has the order and its observation, and
//! `decide/policy.rs` the settings and which absences count by them.

mod open_order;
mod policy;

pub use self::open_order::{Intent, Observation, OpenOrder, Phase, is_in_doubt};
pub use self::policy::{LostProcess, Policy};
use crate::order::{Observed, Outcome, Reason, Timestamp};

/// The occasion of a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Occasion {
    /// A poll. One absence may be a transient error.
    Poll,
    /// A poll that lacks so many processes that the upstream must have been restarted. One absence is
    /// then enough.
    UpstreamRestart,
    /// The order has reached the head of the start queue.
    Dequeue,
    /// Its start was refused, so that the intent is withdrawn. A process may exist.
    Refusal,
}

/// The action for an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Do nothing for now.
    Wait,
    /// Start it: at the head of the start queue at once, otherwise put it into the queue.
    Start,
    /// Look it up, and decide again.
    LookUp,
    /// Record a process that was not known: the order is PROCESSING.
    Adopt,
    /// Record how the process ended.
    Settle(Outcome),
    /// Record a process that was not known, and how it ended.
    AdoptAndSettle(Outcome),
    /// Record that the process was observed.
    MarkObserved,
    /// Record that the process is missing, and poll again in the next pass.
    MarkMissing,
    /// Settle the order as FAILED, because its process was forgotten and the policy demands it.
    Fail,
    /// Record why the order needs attention, and begin a backoff.
    Flag(Reason),
    /// Record that the order needs no attention any more.
    ClearAttention,
}

/// Decides about one order: the whole behaviour of the service towards it. `observation` is `None` if
/// nothing was observed.
pub fn decide(
    order: &OpenOrder,
    occasion: Occasion,
    observation: Option<&Observation>,
    policy: &Policy,
    now: Timestamp,
) -> Action {
    use Phase::{Created, Processing};
    let Some(observation) = observation else {
        return match (order.phase, order.intent, occasion) {
            // Without an intent there is no start of ours that may have taken effect, so nothing needs to
            // be observed first: the upstream refuses a second process.
            (Created, None, _) => start_if_allowed(order, policy, now),
            // The observation that put it into the queue has shown that its earlier start had no effect.
            (Created, Some(_), Occasion::Dequeue) => start_if_allowed(order, policy, now),
            // Its process may be there again meanwhile.
            (Processing { .. }, _, Occasion::Dequeue) => Action::LookUp,
            _ => Action::Wait,
        };
    };
    match (order.phase, order.intent, &observation.observed) {
        // An outcome is final, whatever else is known.
        (_, _, Observed::Succeeded) => on_outcome(order, Outcome::Succeeded, observation, policy),
        (_, _, Observed::Failed) => on_outcome(order, Outcome::Failed, observation, policy),

        // A slow list is older than what is known by now.
        (Processing { .. }, _, Observed::Running | Observed::Unrecognised(_))
            if order.is_newer_than(observation, policy) =>
        {
            Action::Wait
        }

        // A process exists that was not known: after a crash, a lost answer, a restored backup,
        // or by another client.
        (Created, _, Observed::Running | Observed::Unrecognised(_)) => Action::Adopt,
        (Processing { .. }, Some(_), Observed::Running | Observed::Unrecognised(_)) => {
            Action::Adopt
        }

        // An earlier start may still be on its way.
        (_, Some(intent), Observed::Absent)
            if !intent.has_expired(observation.began_at, policy) =>
        {
            Action::Wait
        }
        (_, None, Observed::Absent) if occasion == Occasion::Refusal => {
            Action::Flag(Reason::StartRefused)
        }
        (Created, _, Observed::Absent) => start_if_allowed(order, policy, now),

        (Processing { .. }, None, Observed::Running) => {
            if order.attention.is_some() || order.last_request_failed() || order.is_marked_missing()
            {
                Action::ClearAttention
            } else if policy.lost_process == LostProcess::Fail && !order.is_observed {
                Action::MarkObserved
            } else {
                Action::Wait
            }
        }
        (Processing { .. }, None, Observed::Unrecognised(_)) => {
            flag(order, Reason::UnknownStatus, now)
        }

        // A start that was sent after an earlier process was forgotten has had no effect.
        (Processing { .. }, Some(_), Observed::Absent) => on_process_lost(order, policy, now),
        // So soon after the process was confirmed, an answer may not show it yet.
        (Processing { .. }, None, Observed::Absent)
            if !order.is_missing_in(observation, policy) =>
        {
            Action::Wait
        }
        // One absence may be a transient error; two in two passes are not, nor one among many.
        (Processing { missed_at, .. }, None, Observed::Absent) => match missed_at {
            // An earlier absence has put the order into the queue.
            _ if occasion == Occasion::Dequeue => on_process_lost(order, policy, now),
            None if occasion == Occasion::Poll => Action::MarkMissing,
            Some(missed_at) if missed_at >= observation.began_at => Action::Wait,
            _ => on_process_lost(order, policy, now),
        },
    }
}

/// Returns the action for an outcome. One that was observed before the order's last start was visible is
/// that of an earlier process, which is not adopted again.
fn on_outcome(
    order: &OpenOrder,
    outcome: Outcome,
    observation: &Observation,
    policy: &Policy,
) -> Action {
    let is_known = match order.phase {
        Phase::Created => false,
        Phase::Processing { .. } => {
            order.intent.is_none() || order.is_newer_than(observation, policy)
        }
    };
    if is_known {
        Action::Settle(outcome)
    } else {
        Action::AdoptAndSettle(outcome)
    }
}

/// Returns the action for an order without a process: to start it, unless it was started as often as is
/// allowed, or its backoff lasts.
fn start_if_allowed(order: &OpenOrder, policy: &Policy, now: Timestamp) -> Action {
    let discounted = u32::from(order.is_intent_discounted(policy));
    let starts = order.starts.saturating_sub(discounted);
    if starts >= policy.max_starts && !order.restart_requested {
        flag(order, Reason::MaxStarts, now)
    } else if order.is_due(now) {
        Action::Start
    } else {
        Action::Wait
    }
}

/// Returns the action for an order whose process was forgotten, by the policy.
fn on_process_lost(order: &OpenOrder, policy: &Policy, now: Timestamp) -> Action {
    match policy.lost_process {
        _ if order.restart_requested => start_if_allowed(order, policy, now),
        LostProcess::Restart => start_if_allowed(order, policy, now),
        LostProcess::Fail if order.is_observed => Action::Fail,
        LostProcess::Hold | LostProcess::Fail => flag(order, Reason::ProcessLost, now),
    }
}

/// Returns the action to flag an order; again only when its backoff is over, so that a lasting reason is
/// not written in every pass.
fn flag(order: &OpenOrder, reason: Reason, now: Timestamp) -> Action {
    if order.attention == Some(reason) && !order.is_due(now) {
        Action::Wait
    } else {
        Action::Flag(reason)
    }
}

#[cfg(test)]
mod tests;
