//! What to do about an open order, given what was observed: one pure table.
//!
//! No clock, no network, no database: the moment comes in, the choice goes out. The effects are
//! carried out by `reconciler`, how fast and how often is chosen in `pace`.

use std::time::Duration;

use crate::order::{Observed, Outcome, Reason, Timestamp};
use crate::pace::Queue;

/// An order that is not settled, as the reconciler knows it. Its id is kept beside it: nothing is
/// decided by that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenOrder {
    /// Its place in the order of creation.
    pub seq: i64,
    /// How far it has come.
    pub phase: Phase,
    /// Whether a look is on record that has seen its process.
    pub is_seen: bool,
    /// The start that was about to be sent and whose outcome is not known.
    pub intent: Option<Intent>,
    /// How many starts were sent that may have taken effect. The present intent counts unless its
    /// answer says that it was not taken.
    pub starts: u32,
    /// Whether an operator wants it started again, whatever the policy.
    pub is_released: bool,
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
    /// When its answer was given up. Nothing if this program died before.
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
    /// Whether an absence that was observed by a look begun at `began_at` is news of this start:
    /// one request timeout after it was given up it has either arrived or never will. If nobody
    /// could write down that it was given up, that was one timeout after the intent at the latest.
    fn has_expired(&self, began_at: Timestamp, policy: &Policy) -> bool {
        let given_up_at = self
            .given_up_at
            .unwrap_or(self.written_at.after(policy.request_timeout));
        began_at >= policy.visible_from(given_up_at)
    }
}

/// What was observed of an order's process, and when the look began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
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
    /// When this run began: the program was started, or the clock stepped. What was sent before may
    /// have been sent just before.
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
    Turn,
    /// A refusal of its start, which is withdrawn. A process may exist.
    Refusal,
}

/// The moment of a choice, and what is the same for all orders by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassContext {
    /// The present moment.
    pub now: Timestamp,
    /// When the upstream was last found to have been restarted.
    pub restarted_at: Option<Timestamp>,
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
    NoteSeen,
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
    pub fn queue(&self) -> Queue {
        match self.phase {
            Phase::Processing { .. } => Queue::Forgotten,
            Phase::Created if self.attempts == 0 && self.intent.is_none() => Queue::New,
            Phase::Created => Queue::Tried,
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
            let is_of_this_life = at.restarted_at.is_none_or(|at| at < intent.written_at);
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
    pub fn is_newer_than(&self, look: &Look, policy: &Policy) -> bool {
        let missed_at = match self.phase {
            Phase::Processing { missed_at, .. } => missed_at,
            Phase::Created => None,
        };
        let sent_at = self.intent.map(|intent| intent.written_at);
        let known_at = missed_at.max(sent_at.map(|at| policy.visible_from(at)));
        known_at.is_some_and(|at| look.began_at < at)
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
    pub fn is_missing_in(&self, look: &Look, policy: &Policy) -> bool {
        look.observed == Observed::Absent && self.is_visible_at(look.began_at, policy)
    }

    /// Returns whether this look does not show a process that was known to exist when it began, too
    /// soon for that to count.
    pub fn is_missing_too_soon_in(&self, look: &Look, policy: &Policy) -> bool {
        let is_known = match self.phase {
            Phase::Processing { confirmed_at, .. } => {
                self.intent.is_none() && look.began_at >= confirmed_at
            }
            Phase::Created => false,
        };
        is_known && look.observed == Observed::Absent && !self.is_visible_at(look.began_at, policy)
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
    look: Option<&Look>,
    policy: &Policy,
    at: PassContext,
) -> Action {
    use Phase::{Created, Processing};
    let Some(look) = look else {
        return match (order.phase, order.intent, occasion) {
            // Without an intent there is no start of ours to know about, so nothing needs to be
            // seen first: a start of a process that exists is refused.
            (Created, None, _) => start(order, policy, at),
            // That its earlier start came to nothing was seen by the look that brought its turn about.
            (Created, Some(_), Occasion::Turn) => start(order, policy, at),
            // Meanwhile its process may be there again.
            (Processing { .. }, _, Occasion::Turn) => Action::LookUp,
            _ => Action::Wait,
        };
    };
    match (order.phase, order.intent, &look.observed) {
        // An outcome is an outcome, whatever else is known.
        (_, _, Observed::Succeeded) => settle(order, Outcome::Succeeded, look, policy),
        (_, _, Observed::Failed) => settle(order, Outcome::Failed, look, policy),

        // What a slow list has said is older than what is known by now.
        (Processing { .. }, _, Observed::Running | Observed::Unrecognised(_))
            if order.is_newer_than(look, policy) =>
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
        (_, Some(intent), Observed::Absent) if !intent.has_expired(look.began_at, policy) => {
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
                Action::NoteSeen
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
        (Processing { .. }, None, Observed::Absent) if !order.is_missing_in(look, policy) => {
            Action::Wait
        }
        // One absence may be a lapse; two in two passes are not, nor one among many.
        (Processing { missed_at, .. }, None, Observed::Absent) => match missed_at {
            // An earlier one has brought the turn about.
            _ if occasion == Occasion::Turn => lost(order, policy, at),
            None if occasion == Occasion::Pass => Action::MarkMissing,
            Some(missed_at) if missed_at >= look.began_at => Action::Wait,
            _ => lost(order, policy, at),
        },
    }
}

/// Settles an order. An outcome from before its last start was sent is not that of the last process.
fn settle(order: &OpenOrder, outcome: Outcome, look: &Look, policy: &Policy) -> Action {
    let is_known = match order.phase {
        Phase::Created => false,
        Phase::Processing { .. } => order.intent.is_none() || order.is_newer_than(look, policy),
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
    if starts >= policy.max_starts && !order.is_released {
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
        _ if order.is_released => start(order, policy, at),
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
mod tests {
    use super::*;

    const POLICY: Policy = Policy {
        request_timeout: Duration::from_millis(5_000),
        max_starts: 5,
        lost_process: LostProcess::Restart,
        run_began_at: Timestamp(0),
    };
    const NOW: Timestamp = Timestamp(1_000_000);
    const AT: PassContext = PassContext {
        now: NOW,
        restarted_at: None,
    };

    fn order(phase: Phase, intent: Option<Intent>) -> OpenOrder {
        OpenOrder {
            seq: 1,
            phase,
            is_seen: true,
            intent,
            starts: 0,
            is_released: false,
            attempts: 0,
            next_attempt_at: None,
            attention: None,
        }
    }

    fn intent(given_up_at: Option<i64>, answer: Option<u16>) -> Option<Intent> {
        Some(Intent {
            written_at: Timestamp(NOW.0 - 10_000),
            given_up_at: given_up_at.map(Timestamp),
            answer,
        })
    }

    fn processing(missed_at: Option<i64>) -> Phase {
        Phase::Processing {
            confirmed_at: Timestamp(NOW.0 - 5_000),
            missed_at: missed_at.map(Timestamp),
        }
    }

    fn unrecognised() -> Observed {
        Observed::of_status("PAUSED")
    }

    /// What is decided on a look that began now, or on none.
    fn choose(
        order: &OpenOrder,
        observed: impl Into<Option<Observed>>,
        policy: &Policy,
        occasion: Occasion,
    ) -> Action {
        let look = observed.into().map(|observed| Look {
            observed,
            began_at: NOW,
        });
        decide(order, occasion, look.as_ref(), policy, AT)
    }

    fn check(order: &OpenOrder, observed: impl Into<Option<Observed>>, expected: Action) {
        let observed = observed.into();
        let action = choose(order, observed.clone(), &POLICY, Occasion::Pass);
        assert_eq!(action, expected, "{order:?} {observed:?}");
    }

    /// The table, cell by cell: every phase in its plain form, against every observation.
    #[test]
    fn every_cell_of_the_table_is_what_it_is_meant_to_be() {
        use Action::{Adopt, AdoptAndSettle, Flag, MarkMissing, Settle, Start, Wait};
        let just_given_up = intent(Some(NOW.0), None);
        let long_given_up = intent(Some(NOW.0 - 5_000), None);
        let unknown_status = Flag(Reason::UnknownStatus);
        // The columns are Unknown, Absent, Running, and a status that is not known.
        let rows = [
            (Phase::Created, None, [Start, Start, Adopt, Adopt]),
            (Phase::Created, just_given_up, [Wait, Wait, Adopt, Adopt]),
            (Phase::Created, long_given_up, [Wait, Start, Adopt, Adopt]),
            (
                processing(None),
                None,
                [Wait, MarkMissing, Wait, unknown_status],
            ),
            (processing(None), just_given_up, [Wait, Wait, Adopt, Adopt]),
            (processing(None), long_given_up, [Wait, Start, Adopt, Adopt]),
            (
                processing(Some(NOW.0 - 50)),
                None,
                [Wait, Start, Action::ClearAttention, unknown_status],
            ),
            (
                processing(Some(NOW.0 - 50)),
                just_given_up,
                [Wait, Wait, Adopt, Adopt],
            ),
            (
                processing(Some(NOW.0 - 50)),
                long_given_up,
                [Wait, Start, Adopt, Adopt],
            ),
        ];
        for (phase, intent, [unknown, absent, running, odd]) in rows {
            let order = order(phase, intent);
            check(&order, None, unknown);
            check(&order, Observed::Absent, absent);
            check(&order, Observed::Running, running);
            check(&order, unrecognised(), odd);
            let settle = match running {
                Adopt => AdoptAndSettle,
                _ => Settle,
            };
            check(&order, Observed::Succeeded, settle(Outcome::Succeeded));
            check(&order, Observed::Failed, settle(Outcome::Failed));
        }
    }

    #[test]
    fn an_absence_counts_one_request_timeout_after_the_start_was_given_up_and_not_before() {
        let early = order(Phase::Created, intent(Some(NOW.0 - 4_999), None));
        check(&early, Observed::Absent, Action::Wait);
        let in_time = order(Phase::Created, intent(Some(NOW.0 - 5_000), None));
        check(&in_time, Observed::Absent, Action::Start);
    }

    #[test]
    fn after_our_own_crash_the_start_counts_as_given_up_as_late_as_it_can_have_been() {
        let long_ago = order(Phase::Created, intent(None, None));
        check(&long_ago, Observed::Absent, Action::Start);
        let mut just_now = long_ago;
        just_now.intent = Some(Intent {
            written_at: Timestamp(NOW.0 - 9_999),
            given_up_at: None,
            answer: None,
        });
        check(&just_now, Observed::Absent, Action::Wait);
    }

    #[test]
    fn an_absence_counts_one_request_timeout_after_the_process_was_confirmed_and_not_before() {
        let absent = Look {
            observed: Observed::Absent,
            began_at: NOW,
        };
        // Whether it is missing, and whether it is so too soon.
        let check = |confirmed_at, run_began_at, expected: (bool, bool)| {
            let phase = Phase::Processing {
                confirmed_at: Timestamp(confirmed_at),
                missed_at: None,
            };
            let order = order(phase, None);
            let policy = Policy {
                run_began_at: Timestamp(run_began_at),
                ..POLICY
            };
            let is_missing = order.is_missing_in(&absent, &policy);
            let is_too_soon = order.is_missing_too_soon_in(&absent, &policy);
            assert_eq!((is_missing, is_too_soon), expected);
            for occasion in [Occasion::Pass, Occasion::Restart, Occasion::Turn] {
                let decided = choose(&order, Observed::Absent, &policy, occasion);
                assert_eq!(decided != Action::Wait, is_missing, "{occasion:?}");
            }
            let running = Look {
                observed: Observed::Running,
                ..absent
            };
            assert!(!order.is_missing_in(&running, &policy));
            assert!(!order.is_missing_too_soon_in(&running, &policy));
        };
        check(NOW.0 - 5_000, 0, (true, false));
        check(NOW.0 - 4_999, 0, (false, true));
        check(NOW.0, 0, (false, true));
        check(NOW.0 + 1, 0, (false, false));
        // What an earlier run has confirmed may have been so just before this one.
        check(0, NOW.0 - 5_000, (true, false));
        check(0, NOW.0 - 4_999, (false, true));
        // With a start under way nothing is known, and of a new order nothing was.
        for order in [
            order(processing(None), intent(None, None)),
            order(Phase::Created, None),
        ] {
            assert!(!order.is_missing_in(&absent, &POLICY));
            assert!(!order.is_missing_too_soon_in(&absent, &POLICY));
        }
    }

    #[test]
    fn a_process_is_lost_after_two_absences_or_one_when_the_upstream_was_restarted() {
        let once = order(processing(None), None);
        assert_eq!(
            choose(&once, Observed::Absent, &POLICY, Occasion::Pass),
            Action::MarkMissing
        );
        assert_eq!(
            choose(&once, Observed::Absent, &POLICY, Occasion::Restart),
            Action::Start
        );
        // The same look seen twice is one absence.
        let same = order(processing(Some(NOW.0)), None);
        assert_eq!(
            choose(&same, Observed::Absent, &POLICY, Occasion::Pass),
            Action::Wait
        );
        let twice = order(processing(Some(NOW.0 - 1)), None);
        assert_eq!(
            choose(&twice, Observed::Absent, &POLICY, Occasion::Pass),
            Action::Start
        );
    }

    #[test]
    fn a_lost_process_is_treated_as_the_policy_says_unless_an_operator_has_decided() {
        let mut lost = order(processing(Some(NOW.0 - 1)), None);
        for (lost_process, action) in [
            (LostProcess::Restart, Action::Start),
            (LostProcess::Hold, Action::Flag(Reason::ProcessLost)),
            (LostProcess::Fail, Action::Fail),
        ] {
            let policy = Policy {
                lost_process,
                ..POLICY
            };
            lost.is_released = false;
            assert_eq!(
                choose(&lost, Observed::Absent, &policy, Occasion::Pass),
                action
            );
            lost.is_released = true;
            assert_eq!(
                choose(&lost, Observed::Absent, &policy, Occasion::Pass),
                Action::Start
            );
            // Only a forgotten one: a process that runs is left alone.
            assert_eq!(
                choose(&lost, Observed::Running, &policy, Occasion::Pass),
                Action::ClearAttention
            );
        }
    }

    #[test]
    fn a_process_that_no_look_has_seen_is_held_where_others_fail_and_noted_when_it_is_seen() {
        for (lost_process, unseen_runs, unseen_is_lost) in [
            (LostProcess::Restart, Action::Wait, Action::Start),
            (
                LostProcess::Hold,
                Action::Wait,
                Action::Flag(Reason::ProcessLost),
            ),
            (
                LostProcess::Fail,
                Action::NoteSeen,
                Action::Flag(Reason::ProcessLost),
            ),
        ] {
            let policy = Policy {
                lost_process,
                ..POLICY
            };
            let decided =
                |order: &OpenOrder, observed| choose(order, observed, &policy, Occasion::Restart);
            let mut order = order(processing(None), None);
            assert_eq!(decided(&order, Observed::Running), Action::Wait);
            order.is_seen = false;
            assert_eq!(decided(&order, Observed::Running), unseen_runs);
            assert_eq!(decided(&order, Observed::Absent), unseen_is_lost);
            // Recording that all is well records that it was seen.
            order.attempts = 1;
            assert_eq!(decided(&order, Observed::Running), Action::ClearAttention);
        }
    }

    #[test]
    fn an_order_in_backoff_is_not_started() {
        let mut order = order(Phase::Created, None);
        order.next_attempt_at = Some(Timestamp(NOW.0 + 1));
        check(&order, Observed::Absent, Action::Wait);
        check(&order, Observed::Running, Action::Adopt);
        order.next_attempt_at = Some(NOW);
        check(&order, None, Action::Start);
    }

    #[test]
    fn whatever_was_wrong_is_cleared_when_the_process_is_seen_to_run() {
        let well = order(processing(None), None);
        check(&well, Observed::Running, Action::Wait);
        let mut flagged = well;
        flagged.attention = Some(Reason::UnknownStatus);
        check(&flagged, Observed::Running, Action::ClearAttention);
        let mut tried = well;
        tried.attempts = 1;
        check(&tried, Observed::Running, Action::ClearAttention);
        let missed = order(processing(Some(1)), None);
        check(&missed, Observed::Running, Action::ClearAttention);
    }

    #[test]
    fn every_row_has_a_name_of_its_own() {
        let some = intent(None, None);
        let rows = [
            (Phase::Created, None, "created"),
            (Phase::Created, some, "created, intent"),
            (processing(None), None, "processing"),
            (processing(Some(1)), None, "processing, missed"),
            (processing(None), some, "processing, intent"),
            (processing(Some(1)), some, "processing, intent"),
        ];
        for (phase, intent, name) in rows {
            assert_eq!(row_of(&order(phase, intent)), name);
        }
    }

    #[test]
    fn an_order_started_as_often_as_allowed_is_held_and_a_silent_intent_counts() {
        let held = Action::Flag(Reason::MaxStarts);
        let mut fresh = order(Phase::Created, None);
        fresh.starts = 5;
        check(&fresh, Observed::Absent, held);
        let mut lost = order(processing(Some(0)), None);
        lost.starts = 5;
        check(&lost, Observed::Absent, held);
        lost.is_released = true;
        check(&lost, Observed::Absent, Action::Start);
        let mut silent = order(Phase::Created, intent(Some(0), None));
        silent.starts = 5;
        check(&silent, Observed::Absent, held);
        let mut answered = order(Phase::Created, intent(Some(0), Some(503)));
        answered.starts = 4;
        check(&answered, Observed::Absent, Action::Start);
    }

    #[test]
    fn a_standing_flag_is_renewed_only_when_its_backoff_is_over() {
        let mut odd = order(processing(None), None);
        odd.attention = Some(Reason::UnknownStatus);
        odd.attempts = 1;
        odd.next_attempt_at = Some(Timestamp(NOW.0 + 1));
        check(&odd, unrecognised(), Action::Wait);
        check(&odd, Observed::Running, Action::ClearAttention);
        odd.next_attempt_at = Some(NOW);
        check(&odd, unrecognised(), Action::Flag(Reason::UnknownStatus));
    }

    #[test]
    fn after_a_refusal_only_a_look_up_decides() {
        let fresh = order(Phase::Created, None);
        let missed = order(processing(Some(1)), None);
        let refused = Action::Flag(Reason::StartRefused);
        let unknown_status = Action::Flag(Reason::UnknownStatus);
        for (observed, of_new, of_missed) in [
            (Observed::Absent, refused, refused),
            (Observed::Running, Action::Adopt, Action::ClearAttention),
            (unrecognised(), Action::Adopt, unknown_status),
        ] {
            let decided = |order| choose(order, observed.clone(), &POLICY, Occasion::Refusal);
            assert_eq!((decided(&fresh), decided(&missed)), (of_new, of_missed));
        }
        for (observed, outcome) in [
            (Observed::Succeeded, Outcome::Succeeded),
            (Observed::Failed, Outcome::Failed),
        ] {
            let decided = |order| choose(order, observed.clone(), &POLICY, Occasion::Refusal);
            assert_eq!(decided(&fresh), Action::AdoptAndSettle(outcome));
            assert_eq!(decided(&missed), Action::Settle(outcome));
        }
    }

    #[test]
    fn at_its_turn_an_order_is_started_at_once_unless_it_had_a_process() {
        let at_turn = |order: &OpenOrder| decide(order, Occasion::Turn, None, &POLICY, AT);
        let expired = intent(Some(NOW.0 - 5_000), None);
        assert_eq!(at_turn(&order(Phase::Created, None)), Action::Start);
        assert_eq!(at_turn(&order(Phase::Created, expired)), Action::Start);
        for phase in [processing(None), processing(Some(1))] {
            for intent in [None, expired] {
                let forgotten = order(phase, intent);
                assert_eq!(at_turn(&forgotten), Action::LookUp);
                let again = choose(&forgotten, Observed::Absent, &POLICY, Occasion::Turn);
                assert_eq!(again, Action::Start);
            }
        }
        let mut worn_out = order(Phase::Created, None);
        worn_out.starts = 5;
        assert_eq!(at_turn(&worn_out), Action::Flag(Reason::MaxStarts));
        let mut in_backoff = order(Phase::Created, None);
        in_backoff.next_attempt_at = Some(Timestamp(NOW.0 + 1));
        assert_eq!(at_turn(&in_backoff), Action::Wait);
    }

    #[test]
    fn a_look_that_is_older_than_what_is_known_brings_no_process_back() {
        for (observed, at_once) in [
            (Observed::Running, Action::ClearAttention),
            (unrecognised(), Action::Flag(Reason::UnknownStatus)),
        ] {
            let missed = order(processing(Some(NOW.0 + 1)), None);
            check(&missed, observed.clone(), Action::Wait);
            let missed = order(processing(Some(NOW.0)), None);
            check(&missed, observed.clone(), at_once);
        }
    }

    #[test]
    fn what_is_seen_so_soon_after_a_second_start_may_be_the_first_process() {
        for (written_at, run_began_at, is_second) in [
            (NOW.0 - 5_000, 0, true),
            (NOW.0 - 4_999, 0, false),
            (0, NOW.0 - 5_000, true),
            (0, NOW.0 - 4_999, false),
        ] {
            let policy = Policy {
                run_began_at: Timestamp(run_began_at),
                ..POLICY
            };
            let begun = Intent {
                written_at: Timestamp(written_at),
                given_up_at: None,
                answer: None,
            };
            let order = order(processing(Some(1)), Some(begun));
            let decided = |observed| choose(&order, observed, &policy, Occasion::Pass);
            let [seen, settled] = match is_second {
                true => [Action::Adopt, Action::AdoptAndSettle(Outcome::Failed)],
                false => [Action::Wait, Action::Settle(Outcome::Failed)],
            };
            assert_eq!(decided(Observed::Running), seen);
            assert_eq!(decided(unrecognised()), seen);
            assert_eq!(decided(Observed::Failed), settled);
        }
    }

    #[test]
    fn a_server_error_counts_as_a_start_until_a_look_in_the_same_life_finds_no_process() {
        let written_at = NOW.0 - 10_000;
        let look = Look {
            observed: Observed::Absent,
            began_at: NOW,
        };
        let decided = |answer, max_starts, restarted_at: Option<i64>| {
            let mut order = order(Phase::Created, intent(Some(0), answer));
            order.starts = max_starts - u32::from(!order.is_intent_counted());
            let policy = Policy {
                max_starts,
                ..POLICY
            };
            let at = PassContext {
                restarted_at: restarted_at.map(Timestamp),
                ..AT
            };
            let is_counted = answer.is_none_or(|answer| answer >= 500);
            assert_eq!(order.is_intent_counted(), is_counted);
            decide(&order, Occasion::Pass, Some(&look), &policy, at)
        };
        let held = Action::Flag(Reason::MaxStarts);
        for answer in [500, 502, 503, 504, 520, 599] {
            for restarted_at in [None, Some(written_at - 1)] {
                assert_eq!(decided(Some(answer), 5, restarted_at), Action::Start);
            }
            // After a clock was set back, what is told of one moment may have been in any order.
            for restarted_at in [written_at, written_at + 1] {
                assert_eq!(decided(Some(answer), 5, Some(restarted_at)), held);
            }
            assert_eq!(decided(Some(answer), 1, None), held);
        }
        for (answer, expected) in [(None, held), (Some(429), Action::Start)] {
            assert_eq!(decided(answer, 5, None), expected);
            assert_eq!(decided(answer, 1, Some(written_at + 1)), expected);
        }
    }
}
