//! What to do about an open order, given what was observed: one pure table.
//!
//! No clock, no network, no database: the moment comes in, the choice goes out. The effects are
//! carried out by `reconciler`, how fast and how often is chosen in `pace`.

use std::time::Duration;

use crate::order::{Observed, Outcome, Reason, Timestamp};
use crate::pace::StartClass;

/// An order that is not settled, as the reconciler knows it. Its id is kept beside it: nothing is
/// decided by that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenOrder {
    /// Its place in the order of creation.
    pub seq: i64,
    /// How far it has come.
    pub phase: Phase,
    /// Set if a look is on record that has seen its process.
    pub is_seen: bool,
    /// The start that was about to be sent and whose outcome is not known.
    pub intent: Option<Intent>,
    /// How many starts were sent that may have taken effect. The present intent counts unless its
    /// answer says that it was not taken.
    pub starts: u32,
    /// Whether an operator wants it started again, whatever the policy.
    pub restart_requested: bool,
    /// Attempts that failed in a row.
    pub attempts: u32,
    /// Not to be tried again before this moment.
    pub next_attempt_at: Option<Timestamp>,
    /// Why it needs looking at.
    pub attention: Option<Reason>,
}

/// How far an open order has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// CREATED.
    Created,
    /// PROCESSING.
    Processing {
        /// When its process was last known to exist: only looks that began one request timeout later
        /// can say that it does not.
        confirmed_at: Timestamp,
        /// When the look began that missed its process first, if the last one did.
        missed_at: Option<Timestamp>,
    },
}

/// A start that was about to be sent. It is durable before the start leaves, so that neither a
/// crash nor a lost answer can make anyone forget that a process may exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intent {
    /// When it was written.
    pub written_at: Timestamp,
    /// When its answer was given up. Nothing if this program died before, or could not write it down.
    pub given_up_at: Option<Timestamp>,
    /// The HTTP status of the answer, if there was one. It then told of trouble, not of the order.
    pub answer: Option<u16>,
}

/// Returns whether a start may have taken effect, by the HTTP status of its answer alone. A server error
/// may be a gateway's, made after the start was passed on.
pub fn is_in_doubt(answer: Option<u16>) -> bool {
    answer.is_none_or(|answer| answer >= 500)
}

impl Intent {
    /// Returns whether an absence that was observed by a look begun at `began_at` is news of this start:
    /// one request timeout after it was given up it has either arrived or never will. If nobody
    /// could write down that it was given up, that was before this run began.
    fn has_expired(&self, began_at: Timestamp, policy: &Policy) -> bool {
        let given_up_at = self.given_up_at.unwrap_or(self.written_at);
        began_at >= policy.visible_from(given_up_at)
    }
}

/// What was observed of an order's process, and when the look began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// What was observed.
    pub observed: Observed,
    /// When the request was sent. What happened later cannot be in the answer.
    pub began_at: Timestamp,
}

/// The settings that the choice depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How long a request to the order process service may take.
    pub request_timeout: Duration,
    /// How often an order may be started.
    pub max_starts: u32,
    /// What to do with an order whose process was forgotten.
    pub lost_process: LostProcess,
    /// When this run began: the program was started, the clock stepped, or a pass failed. What was
    /// sent before may have been sent, and given up, just before.
    pub run_began_at: Timestamp,
}

impl Policy {
    /// Returns the moment from which on looks show all that was so at `at`: one request timeout
    /// later, because reads may lag by that much. By the clock of an earlier run nobody can tell how
    /// long ago `at` was, so it counts from the beginning of this one.
    fn visible_from(&self, at: Timestamp) -> Timestamp {
        at.max(self.run_began_at).after(self.request_timeout)
    }
}

/// What to do with an order whose process was forgotten. Nobody can know whether that process had
/// done its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LostProcess {
    /// Start it again, which may repeat the work.
    Restart,
    /// Leave it PROCESSING until an operator decides.
    Hold,
    /// Settle it as FAILED, or hold it if no look is on record that has seen its process: there may
    /// never have been one.
    Fail,
}

impl LostProcess {
    /// Every policy.
    pub const ALL: [Self; 3] = [Self::Restart, Self::Hold, Self::Fail];

    /// The word that stands for it in settings, in JSON and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Restart => "restart",
            Self::Hold => "hold",
            Self::Fail => "fail",
        }
    }
}

/// The occasion on which an order is decided about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Occasion {
    /// A pass that observes. One absence may be a lapse.
    Pass,
    /// The same, with so many processes missing that the upstream must have been restarted. One
    /// absence is then enough.
    Restart,
    /// The order's turn to be started, which an earlier decision has brought about.
    Dequeue,
    /// A refusal of its start, which is withdrawn. A process may exist.
    Refusal,
}

/// The moment of a choice, and what is the same for all orders by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassContext {
    /// The present moment.
    pub now: Timestamp,
    /// When the upstream was last found to have forgotten a process.
    pub forgot_at: Option<Timestamp>,
}

/// The one step to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Nothing, for now.
    Wait,
    /// Start it: at its turn at once, else when its turn comes.
    Start,
    /// Look it up, and decide again.
    LookUp,
    /// Record a process that exists: the order is PROCESSING.
    Adopt,
    /// Record how the process ended.
    Settle(Outcome),
    /// Record a process that was not known, and how it ended.
    AdoptAndSettle(Outcome),
    /// Record that a look has seen the process.
    MarkSeen,
    /// Record that a process that existed was not found, and look again in the next pass.
    MarkMissing,
    /// Settle the order as FAILED, because its process was forgotten and the policy says so.
    Fail,
    /// Record that the order needs looking at, and leave it in peace for a while.
    Flag(Reason),
    /// Record that all is well again.
    ClearAttention,
}

impl OpenOrder {
    /// Returns whether its backoff is over.
    pub fn is_due(&self, now: Timestamp) -> bool {
        self.next_attempt_at.is_none_or(|at| at <= now)
    }

    /// The queue in which it waits for its turn to be started.
    pub fn start_class(&self) -> StartClass {
        match self.phase {
            Phase::Processing { .. } => StartClass::Forgotten,
            Phase::Created if self.attempts == 0 && self.intent.is_none() => StartClass::New,
            Phase::Created => StartClass::Retry,
        }
    }

    /// Returns whether the present intent counts as a start so far.
    pub fn is_intent_counted(&self) -> bool {
        self.intent.is_some_and(|intent| is_in_doubt(intent.answer))
    }

    /// Returns whether the present intent counts no longer after a look that found no process, late
    /// enough. Silence goes on to count. So does a server error if that look cannot tell, in another
    /// life of the upstream, or if not even a doubtful second start is allowed.
    pub fn is_intent_cleared(&self, policy: &Policy, at: PassContext) -> bool {
        self.intent.is_some_and(|intent| {
            let is_of_this_life = at.forgot_at.is_none_or(|at| at < intent.written_at);
            let is_answered = intent.answer.is_some() && is_in_doubt(intent.answer);
            is_answered && is_of_this_life && policy.max_starts > 1
        })
    }

    /// Takes note that its process was missing in a look that began at `began_at`.
    pub fn mark_missing(&mut self, began_at: Timestamp) {
        if let Phase::Processing { missed_at, .. } = &mut self.phase {
            *missed_at = Some(began_at);
            self.attention = Some(Reason::ProcessLost);
            (self.attempts, self.next_attempt_at) = (0, None);
        }
    }

    /// Whether a process that was known to exist was missing when it was last looked for.
    pub fn is_missed(&self) -> bool {
        matches!(
            self.phase,
            Phase::Processing {
                missed_at: Some(_),
                ..
            }
        )
    }

    /// Returns whether its process was found missing after this look had begun, or its start was sent
    /// so late that the look may show what was before.
    pub fn is_newer_than(&self, observation: &Observation, policy: &Policy) -> bool {
        let missed_at = match self.phase {
            Phase::Processing { missed_at, .. } => missed_at,
            Phase::Created => None,
        };
        let sent_at = self.intent.map(|intent| intent.written_at);
        let known_at = missed_at.max(sent_at.map(|at| policy.visible_from(at)));
        known_at.is_some_and(|at| observation.began_at < at)
    }

    /// Returns whether its process was known to exist so early that a look begun at `began_at` shows it
    /// unless it is gone.
    pub fn is_visible_at(&self, began_at: Timestamp, policy: &Policy) -> bool {
        match self.phase {
            Phase::Processing { confirmed_at, .. } => {
                self.intent.is_none() && began_at >= policy.visible_from(confirmed_at)
            }
            Phase::Created => false,
        }
    }

    /// Returns whether this look says that a process is gone that was known to exist.
    pub fn is_missing_in(&self, observation: &Observation, policy: &Policy) -> bool {
        observation.observed == Observed::Absent && self.is_visible_at(observation.began_at, policy)
    }

    /// Returns whether this look does not show a process that was known to exist when it began, too
    /// soon for that to count.
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

/// The row of the table that an order is in, for those who count.
pub fn row_of(order: &OpenOrder) -> &'static str {
    match (order.phase, order.intent) {
        (Phase::Created, None) => "created",
        (Phase::Created, Some(_)) => "created, intent",
        (Phase::Processing { .. }, Some(_)) => "processing, intent",
        (Phase::Processing { missed_at, .. }, None) => match missed_at {
            None => "processing",
            Some(_) => "processing, missed",
        },
    }
}

/// Decides about one order: the whole behaviour of the service towards it. `look` is `None` if nothing
/// was observed.
pub fn decide(
    order: &OpenOrder,
    occasion: Occasion,
    observation: Option<&Observation>,
    policy: &Policy,
    at: PassContext,
) -> Action {
    use Phase::{Created, Processing};
    let Some(observation) = observation else {
        return match (order.phase, order.intent, occasion) {
            // Without an intent there is no start of ours to know about, so nothing needs to be
            // seen first: a start of a process that exists is refused.
            (Created, None, _) => start(order, policy, at),
            // That its earlier start came to nothing was seen by the look that brought its turn about.
            (Created, Some(_), Occasion::Dequeue) => start(order, policy, at),
            // Meanwhile its process may be there again.
            (Processing { .. }, _, Occasion::Dequeue) => Action::LookUp,
            _ => Action::Wait,
        };
    };
    match (order.phase, order.intent, &observation.observed) {
        // An outcome is an outcome, whatever else is known.
        (_, _, Observed::Succeeded) => settle(order, Outcome::Succeeded, observation, policy),
        (_, _, Observed::Failed) => settle(order, Outcome::Failed, observation, policy),

        // What a slow list has said is older than what is known by now.
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
        (Created, _, Observed::Absent) => start(order, policy, at),

        (Processing { .. }, None, Observed::Running) => {
            if order.attention.is_some() || order.attempts > 0 || order.is_missed() {
                Action::ClearAttention
            } else if policy.lost_process == LostProcess::Fail && !order.is_seen {
                Action::MarkSeen
            } else {
                Action::Wait
            }
        }
        (Processing { .. }, None, Observed::Unrecognised(_)) => {
            flag(order, Reason::UnknownStatus, at.now)
        }

        // A start that was sent after an earlier process was forgotten has come to nothing.
        (Processing { .. }, Some(_), Observed::Absent) => lost(order, policy, at),
        // A look that began so soon after the start was confirmed may not show the process yet.
        (Processing { .. }, None, Observed::Absent)
            if !order.is_missing_in(observation, policy) =>
        {
            Action::Wait
        }
        // One absence may be a lapse; two in two passes are not, nor one among many.
        (Processing { missed_at, .. }, None, Observed::Absent) => match missed_at {
            // An earlier one has brought the turn about.
            _ if occasion == Occasion::Dequeue => lost(order, policy, at),
            None if occasion == Occasion::Pass => Action::MarkMissing,
            Some(missed_at) if missed_at >= observation.began_at => Action::Wait,
            _ => lost(order, policy, at),
        },
    }
}

/// Settles an order. An outcome from before its last start was sent is not that of the last process.
fn settle(
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

/// Starts an order unless it was started too often, or has to wait.
fn start(order: &OpenOrder, policy: &Policy, at: PassContext) -> Action {
    let cleared = u32::from(order.is_intent_cleared(policy, at));
    let starts = order.starts.saturating_sub(cleared);
    if starts >= policy.max_starts && !order.restart_requested {
        flag(order, Reason::MaxStarts, at.now)
    } else if order.is_due(at.now) {
        Action::Start
    } else {
        Action::Wait
    }
}

/// What the policy says about an order whose process was forgotten.
fn lost(order: &OpenOrder, policy: &Policy, at: PassContext) -> Action {
    match policy.lost_process {
        _ if order.restart_requested => start(order, policy, at),
        LostProcess::Restart => start(order, policy, at),
        LostProcess::Fail if order.is_seen => Action::Fail,
        LostProcess::Hold | LostProcess::Fail => flag(order, Reason::ProcessLost, at.now),
    }
}

/// Flags an order, again only when its backoff is over: a standing fact is not written every pass.
fn flag(order: &OpenOrder, reason: Reason, now: Timestamp) -> Action {
    if order.attention == Some(reason) && !order.is_due(now) {
        Action::Wait
    } else {
        Action::Flag(reason)
    }
}

#[cfg(test)]
mod tests;
