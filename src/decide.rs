//! The decision about an open order, given what was observed: one pure table.
//!
//! No clock, no network, no database: the moment comes in, the action goes out. `reconciler` carries it
//! out; `pace` chooses how fast and how often.

use std::time::Duration;

use crate::order::{Observed, Outcome, Reason, Timestamp};
use crate::pace::StartClass;

/// An order that is not settled, without its id: no decision depends on that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenOrder {
    /// Position in the order of creation.
    pub seq: i64,
    /// Its status, and what belongs to it.
    pub phase: Phase,
    /// Set if it is on record that an answer has shown its process.
    pub is_observed: bool,
    /// A start that was written down and whose outcome is not known.
    pub intent: Option<Intent>,
    /// Number of starts that may have taken effect. The current intent counts unless its answer shows
    /// that it had no effect.
    pub starts: u32,
    /// Set if an operator has requested another start, whatever the policy.
    pub restart_requested: bool,
    /// Number of failed attempts in a row.
    pub attempts: u32,
    /// End of its backoff.
    pub next_attempt_at: Option<Timestamp>,
    /// Reason why it needs attention.
    pub attention: Option<Reason>,
}

/// The status of an open order, and what belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// CREATED.
    Created,
    /// PROCESSING.
    Processing {
        /// Moment at which its start was accepted or its process adopted. An absence counts only if its
        /// request was sent at least one request timeout later.
        confirmed_at: Timestamp,
        /// Moment at which the request was sent whose answer was the first absence in a row; `None` if the
        /// last answer showed the process.
        missed_at: Option<Timestamp>,
    },
}

/// A start that is about to be sent. It is on disk before the start is sent, so that neither a crash
/// nor a lost answer hides that a process may exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intent {
    /// Moment at which it was written.
    pub written_at: Timestamp,
    /// Moment at which its answer was given up; `None` if the program crashed before that, or could not
    /// write it down.
    pub given_up_at: Option<Timestamp>,
    /// HTTP status of the answer, if there was one. It was then an error that does not concern the order.
    pub answer: Option<u16>,
}

/// Returns whether a start may have taken effect, by the HTTP status of its answer alone. A server error
/// may come from a gateway that had passed the start on.
pub fn is_in_doubt(answer: Option<u16>) -> bool {
    answer.is_none_or(|answer| answer >= 500)
}

impl Intent {
    /// Returns whether an absence in the answer to a request sent at `began_at` shows that this start had
    /// no effect: one request timeout after it was given up it has either arrived or never will. If
    /// the moment was not written down, it was before this run began.
    fn has_expired(&self, began_at: Timestamp, policy: &Policy) -> bool {
        let given_up_at = self.given_up_at.unwrap_or(self.written_at);
        began_at >= policy.visible_from(given_up_at)
    }
}

/// The observation of an order's process in one answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// State of the process in the answer.
    pub observed: Observed,
    /// Moment at which the request was sent. Anything later may be missing in the answer.
    pub began_at: Timestamp,
}

/// The settings that a decision depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Timeout of a request to the upstream.
    pub request_timeout: Duration,
    /// Largest number of starts of an order.
    pub max_starts: u32,
    /// Policy for an order whose process was forgotten.
    pub lost_process: LostProcess,
    /// Beginning of this run: the program was started, the clock was set, or a pass failed. A request of
    /// an earlier run may have been sent, and given up, just before.
    pub run_began_at: Timestamp,
}

impl Policy {
    /// Returns the moment from which on answers show everything up to `at`: one request timeout later,
    /// because reads may lag by that much. Clocks of different runs cannot be compared, so an
    /// earlier moment counts from the beginning of this run.
    fn visible_from(&self, at: Timestamp) -> Timestamp {
        at.max(self.run_began_at).after(self.request_timeout)
    }
}

/// The policy for an order whose process was forgotten. It is unknown whether that process had done its
/// work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LostProcess {
    /// Start it again, which may repeat the work.
    Restart,
    /// Leave it PROCESSING until an operator decides.
    Hold,
    /// Settle it as FAILED; hold it if no answer is on record that has shown its process, because there
    /// may never have been one.
    Fail,
}

impl LostProcess {
    /// All policies.
    pub const ALL: [Self; 3] = [Self::Restart, Self::Hold, Self::Fail];

    /// Returns the word that stands for it in settings, in JSON and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Restart => "restart",
            Self::Hold => "hold",
            Self::Fail => "fail",
        }
    }
}

/// The occasion of a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Occasion {
    /// A poll. One absence may be a transient error.
    Poll,
    /// A poll that lacks so many processes that the upstream must have been restarted. One absence is
    /// then enough.
    UpstreamRestart,
    /// The order has reached the head of the start queue, because of an earlier decision.
    Dequeue,
    /// Its start was refused, so that the intent is withdrawn. A process may exist.
    Refusal,
}

/// The moment of a decision, and what is the same for all orders of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassContext {
    /// The current moment.
    pub now: Timestamp,
    /// Moment at which the upstream was last found to have forgotten a process.
    pub forgot_at: Option<Timestamp>,
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

impl OpenOrder {
    /// Returns whether its backoff is over.
    pub fn is_due(&self, now: Timestamp) -> bool {
        self.next_attempt_at.is_none_or(|at| at <= now)
    }

    /// Returns the class in which it waits for its start.
    pub fn start_class(&self) -> StartClass {
        match self.phase {
            Phase::Processing { .. } => StartClass::Forgotten,
            Phase::Created if self.attempts == 0 && self.intent.is_none() => StartClass::New,
            Phase::Created => StartClass::Retry,
        }
    }

    /// Returns whether `starts` includes the current intent.
    pub fn is_intent_counted(&self) -> bool {
        self.intent.is_some_and(|intent| is_in_doubt(intent.answer))
    }

    /// Returns whether an absence, late enough, excludes the current intent from `starts`. That is so
    /// after a server error. An intent without an answer remains counted, and so does one of an earlier
    /// incarnation of the upstream, which the absence does not concern, and any if only one start is
    /// allowed.
    pub fn is_intent_cleared(&self, policy: &Policy, context: PassContext) -> bool {
        self.intent.is_some_and(|intent| {
            let is_current = context.forgot_at.is_none_or(|at| at < intent.written_at);
            let is_answered = intent.answer.is_some() && is_in_doubt(intent.answer);
            is_answered && is_current && policy.max_starts > 1
        })
    }

    /// Marks its process as missing in the answer to a request sent at `began_at`.
    pub fn mark_missing(&mut self, began_at: Timestamp) {
        if let Phase::Processing { missed_at, .. } = &mut self.phase {
            *missed_at = Some(began_at);
            self.attention = Some(Reason::ProcessLost);
            (self.attempts, self.next_attempt_at) = (0, None);
        }
    }

    /// Returns whether its process is marked as missing.
    pub fn is_missed(&self) -> bool {
        matches!(
            self.phase,
            Phase::Processing {
                missed_at: Some(_),
                ..
            }
        )
    }

    /// Returns whether more is known than this observation shows: its process was found missing by a later
    /// request, or its start was sent so late that the observation may show what was before.
    fn is_newer_than(&self, observation: &Observation, policy: &Policy) -> bool {
        let missed_at = match self.phase {
            Phase::Processing { missed_at, .. } => missed_at,
            Phase::Created => None,
        };
        let sent_at = self.intent.map(|intent| intent.written_at);
        let known_at = missed_at.max(sent_at.map(|at| policy.visible_from(at)));
        known_at.is_some_and(|at| observation.began_at < at)
    }

    /// Returns whether its process was known to exist so early that the answer to a request sent at
    /// `began_at` shows it unless it is gone.
    pub fn is_visible_at(&self, began_at: Timestamp, policy: &Policy) -> bool {
        match self.phase {
            Phase::Processing { confirmed_at, .. } => {
                self.intent.is_none() && began_at >= policy.visible_from(confirmed_at)
            }
            Phase::Created => false,
        }
    }

    /// Returns whether this observation shows that a process that was known to exist is gone.
    pub fn is_missing_in(&self, observation: &Observation, policy: &Policy) -> bool {
        observation.observed == Observed::Absent && self.is_visible_at(observation.began_at, policy)
    }

    /// Returns whether a process that was known to exist is absent in this observation, too soon after
    /// it was confirmed for that to count.
    pub fn is_missing_too_soon_in(&self, observation: &Observation, policy: &Policy) -> bool {
        let is_known = match self.phase {
            Phase::Processing { confirmed_at, .. } => {
                self.intent.is_none() && observation.began_at >= confirmed_at
            }
            Phase::Created => false,
        };
        is_known
            && observation.observed == Observed::Absent
            && !self.is_visible_at(observation.began_at, policy)
    }
}

/// Decides about one order: the whole behaviour of the service towards it. `observation` is `None` if
/// nothing was observed.
pub fn decide(
    order: &OpenOrder,
    occasion: Occasion,
    observation: Option<&Observation>,
    policy: &Policy,
    context: PassContext,
) -> Action {
    use Phase::{Created, Processing};
    let Some(observation) = observation else {
        return match (order.phase, order.intent, occasion) {
            // Without an intent there is no start of ours that may have taken effect, so nothing needs to
            // be observed first: the upstream refuses a second process.
            (Created, None, _) => start(order, policy, context),
            // The observation that put it into the queue has shown that its earlier start had no effect.
            (Created, Some(_), Occasion::Dequeue) => start(order, policy, context),
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

        // The answer to an earlier start may still be on its way.
        (_, Some(intent), Observed::Absent)
            if !intent.has_expired(observation.began_at, policy) =>
        {
            Action::Wait
        }
        (_, None, Observed::Absent) if occasion == Occasion::Refusal => {
            Action::Flag(Reason::StartRefused)
        }
        (Created, _, Observed::Absent) => start(order, policy, context),

        (Processing { .. }, None, Observed::Running) => {
            if order.attention.is_some() || order.attempts > 0 || order.is_missed() {
                Action::ClearAttention
            } else if policy.lost_process == LostProcess::Fail && !order.is_observed {
                Action::MarkObserved
            } else {
                Action::Wait
            }
        }
        (Processing { .. }, None, Observed::Unrecognised(_)) => {
            flag(order, Reason::UnknownStatus, context.now)
        }

        // A start that was sent after an earlier process was forgotten has had no effect.
        (Processing { .. }, Some(_), Observed::Absent) => on_lost(order, policy, context),
        // So soon after the process was confirmed, an answer may not show it yet.
        (Processing { .. }, None, Observed::Absent)
            if !order.is_missing_in(observation, policy) =>
        {
            Action::Wait
        }
        // One absence may be a transient error; two in two passes are not, nor one among many.
        (Processing { missed_at, .. }, None, Observed::Absent) => match missed_at {
            // An earlier absence has put the order into the queue.
            _ if occasion == Occasion::Dequeue => on_lost(order, policy, context),
            None if occasion == Occasion::Poll => Action::MarkMissing,
            Some(missed_at) if missed_at >= observation.began_at => Action::Wait,
            _ => on_lost(order, policy, context),
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
fn start(order: &OpenOrder, policy: &Policy, context: PassContext) -> Action {
    let cleared = u32::from(order.is_intent_cleared(policy, context));
    let starts = order.starts.saturating_sub(cleared);
    if starts >= policy.max_starts && !order.restart_requested {
        flag(order, Reason::MaxStarts, context.now)
    } else if order.is_due(context.now) {
        Action::Start
    } else {
        Action::Wait
    }
}

/// Returns the action for an order whose process was forgotten, by the policy.
fn on_lost(order: &OpenOrder, policy: &Policy, context: PassContext) -> Action {
    match policy.lost_process {
        _ if order.restart_requested => start(order, policy, context),
        LostProcess::Restart => start(order, policy, context),
        LostProcess::Fail if order.is_observed => Action::Fail,
        LostProcess::Hold | LostProcess::Fail => flag(order, Reason::ProcessLost, context.now),
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
