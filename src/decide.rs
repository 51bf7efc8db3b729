//! What to do about an open order, given what was observed: one pure table.
//!
//! No clock, no network, no database: the moment comes in, the choice goes out. The effects are
//! carried out by `reconciler`, how fast and how often is chosen in `pace`.

use std::time::Duration;

use crate::order::{Observed, OrderId, Outcome, Reason, Timestamp};
use crate::pace::BACKOFF_MAX;

/// An order that is not settled, as the reconciler knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenOrder {
    /// Its place in the order of creation.
    pub seq: i64,
    /// Its id.
    pub id: OrderId,
    /// How far it has come.
    pub phase: Phase,
    /// How many starts were sent that may have taken effect, without the present intent.
    pub starts: u32,
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
    Created {
        /// The start that was about to be sent and whose outcome is not known.
        intent: Option<Intent>,
    },
    /// PROCESSING.
    Processing {
        /// When its process was last known to exist: only looks that began later can say that it
        /// does not.
        confirmed_at: Timestamp,
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
    /// The HTTP status of the upstream's own answer, if there was one. It told of trouble, not of
    /// the order, and that the start was not accepted.
    pub answer: Option<u16>,
}

impl Intent {
    /// Whether an absence that was observed by a look begun at `began_at` is news of this start:
    /// one request timeout after it was given up it has either arrived or never will.
    fn is_void(&self, began_at: Timestamp, policy: &Policy) -> bool {
        let last_seen = self.given_up_at.unwrap_or(self.written_at);
        began_at >= last_seen.after(policy.request_timeout)
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
}

/// The one step to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Nothing, for now.
    Wait,
    /// Send a start.
    Start,
    /// Record a process that already exists: the order is PROCESSING.
    Adopt,
    /// Record how the process ended.
    Settle(Outcome),
    /// Record that the order needs looking at, and leave it in peace for a while.
    Flag(Reason),
    /// Record that all is well again.
    Clear,
}

impl OpenOrder {
    /// Whether its backoff is over. A wait longer than any backoff comes from a clock that was
    /// set back, and does not count.
    pub fn is_due(&self, now: Timestamp) -> bool {
        self.next_attempt_at
            .is_none_or(|at| at <= now || at > now.after(BACKOFF_MAX))
    }

    /// Starts that may have taken effect, with the present intent if it never got an answer.
    pub fn starts_so_far(&self) -> u32 {
        let silent = matches!(
            self.phase,
            Phase::Created {
                intent: Some(Intent { answer: None, .. })
            }
        );
        self.starts + u32::from(silent)
    }
}

/// The whole behaviour of the service towards one order.
pub fn decide(order: &OpenOrder, look: &Look, policy: &Policy, now: Timestamp) -> Action {
    use Phase::{Created, Processing};
    match (order.phase, &look.observed) {
        // An outcome is an outcome, whatever else is known.
        (_, Observed::Succeeded) => Action::Settle(Outcome::Succeeded),
        (_, Observed::Failed) => Action::Settle(Outcome::Failed),

        // A process exists: after a crash, a lost answer, a restored backup, another client.
        (Created { .. }, Observed::Running | Observed::Unrecognised(_)) => Action::Adopt,

        // The answer to an earlier start may still be on its way.
        (Created { intent: Some(_) }, Observed::Unknown) => Action::Wait,
        (
            Created {
                intent: Some(intent),
            },
            Observed::Absent,
        ) if !intent.is_void(look.began_at, policy) => Action::Wait,

        // Without an intent there is no start of ours to know about, so nothing needs to be seen
        // first: a start of a process that exists is refused.
        (Created { .. }, Observed::Unknown | Observed::Absent) => {
            if order.starts_so_far() >= policy.max_starts {
                flag(order, Reason::MaxStarts, now)
            } else if order.is_due(now) {
                Action::Start
            } else {
                Action::Wait
            }
        }

        (Processing { .. }, Observed::Unknown) => Action::Wait,
        (Processing { .. }, Observed::Running) => {
            if order.attention.is_some() || order.attempts > 0 {
                Action::Clear
            } else {
                Action::Wait
            }
        }
        (Processing { .. }, Observed::Unrecognised(_)) => flag(order, Reason::UnknownStatus, now),

        // A look that began before the start was confirmed cannot have seen the process.
        (Processing { confirmed_at }, Observed::Absent) => {
            if look.began_at > confirmed_at {
                flag(order, Reason::ProcessLost, now)
            } else {
                Action::Wait
            }
        }
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

/// What to do about an order whose start was refused, once a look-up has followed.
pub fn decide_refused(observed: &Observed) -> Action {
    match observed {
        Observed::Succeeded => Action::Settle(Outcome::Succeeded),
        Observed::Failed => Action::Settle(Outcome::Failed),
        Observed::Running | Observed::Unrecognised(_) => Action::Adopt,
        Observed::Absent => Action::Flag(Reason::StartRefused),
        Observed::Unknown => Action::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy {
        request_timeout: Duration::from_millis(5_000),
        max_starts: 5,
    };
    const NOW: Timestamp = Timestamp(1_000_000);

    fn order(phase: Phase) -> OpenOrder {
        OpenOrder {
            seq: 1,
            id: OrderId::new("a1").unwrap(),
            phase,
            starts: 0,
            attempts: 0,
            next_attempt_at: None,
            attention: None,
        }
    }

    fn intent(given_up_at: Option<i64>, answer: Option<u16>) -> Phase {
        Phase::Created {
            intent: Some(Intent {
                written_at: Timestamp(NOW.0 - 10_000),
                given_up_at: given_up_at.map(Timestamp),
                answer,
            }),
        }
    }

    const FRESH: Phase = Phase::Created { intent: None };
    const PROCESSING: Phase = Phase::Processing {
        confirmed_at: Timestamp(NOW.0 - 1),
    };

    fn unrecognised() -> Observed {
        Observed::of_status("PAUSED")
    }

    fn check(order: &OpenOrder, observed: Observed, expected: Action) {
        let look = Look {
            observed,
            began_at: NOW,
        };
        assert_eq!(
            decide(order, &look, &POLICY, NOW),
            expected,
            "{order:?} {look:?}"
        );
    }

    /// The table, cell by cell: every phase in its plain form, against every observation.
    #[test]
    fn every_cell_of_the_table_is_what_it_is_meant_to_be() {
        use Action::{Adopt, Flag, Settle, Start, Wait};
        use Observed::{Absent, Failed, Running, Succeeded, Unknown};
        let settled = [
            (Succeeded, Settle(Outcome::Succeeded)),
            (Failed, Settle(Outcome::Failed)),
        ];
        let tables = [
            (
                FRESH,
                [
                    (Unknown, Start),
                    (Absent, Start),
                    (Running, Adopt),
                    (unrecognised(), Adopt),
                ],
            ),
            // Just given up: its absence says nothing yet.
            (
                intent(Some(NOW.0), None),
                [
                    (Unknown, Wait),
                    (Absent, Wait),
                    (Running, Adopt),
                    (unrecognised(), Adopt),
                ],
            ),
            // Given up a request timeout ago.
            (
                intent(Some(NOW.0 - 5_000), None),
                [
                    (Unknown, Wait),
                    (Absent, Start),
                    (Running, Adopt),
                    (unrecognised(), Adopt),
                ],
            ),
            (
                PROCESSING,
                [
                    (Unknown, Wait),
                    (Absent, Flag(Reason::ProcessLost)),
                    (Running, Wait),
                    (unrecognised(), Flag(Reason::UnknownStatus)),
                ],
            ),
        ];
        for (phase, cells) in tables {
            for (observed, expected) in cells.into_iter().chain(settled.clone()) {
                check(&order(phase), observed, expected);
            }
        }
    }

    #[test]
    fn an_absence_counts_one_request_timeout_after_the_start_was_given_up_and_not_before() {
        check(
            &order(intent(Some(NOW.0 - 4_999), None)),
            Observed::Absent,
            Action::Wait,
        );
        check(
            &order(intent(Some(NOW.0 - 5_000), None)),
            Observed::Absent,
            Action::Start,
        );
    }

    #[test]
    fn after_our_own_crash_an_absence_counts_from_the_writing_of_the_intent() {
        check(&order(intent(None, None)), Observed::Absent, Action::Start);
        let late = Phase::Created {
            intent: Some(Intent {
                written_at: Timestamp(NOW.0 - 4_999),
                given_up_at: None,
                answer: None,
            }),
        };
        check(&order(late), Observed::Absent, Action::Wait);
    }

    #[test]
    fn a_look_that_began_before_the_start_was_confirmed_proves_no_loss() {
        let order = order(Phase::Processing { confirmed_at: NOW });
        check(&order, Observed::Absent, Action::Wait);
    }

    #[test]
    fn an_order_in_backoff_is_not_started_and_a_clock_set_back_does_not_strand_it() {
        let mut order = order(FRESH);
        order.next_attempt_at = Some(Timestamp(NOW.0 + 1));
        check(&order, Observed::Absent, Action::Wait);
        check(&order, Observed::Running, Action::Adopt);
        order.next_attempt_at = Some(NOW);
        check(&order, Observed::Unknown, Action::Start);
        order.next_attempt_at = Some(NOW.after(BACKOFF_MAX * 2));
        check(&order, Observed::Unknown, Action::Start);
    }

    #[test]
    fn an_order_started_as_often_as_allowed_is_held_and_a_silent_intent_counts() {
        let mut fresh = order(FRESH);
        fresh.starts = 5;
        check(&fresh, Observed::Absent, Action::Flag(Reason::MaxStarts));
        let mut silent = order(intent(Some(0), None));
        silent.starts = 4;
        check(&silent, Observed::Absent, Action::Flag(Reason::MaxStarts));
        let mut answered = order(intent(Some(0), Some(503)));
        answered.starts = 4;
        check(&answered, Observed::Absent, Action::Start);
    }

    #[test]
    fn a_standing_flag_is_renewed_only_when_its_backoff_is_over() {
        let mut lost = order(PROCESSING);
        lost.attention = Some(Reason::ProcessLost);
        lost.next_attempt_at = Some(Timestamp(NOW.0 + 1));
        check(&lost, Observed::Absent, Action::Wait);
        check(&lost, Observed::Running, Action::Clear);
        lost.next_attempt_at = Some(NOW);
        check(&lost, Observed::Absent, Action::Flag(Reason::ProcessLost));
    }

    #[test]
    fn after_a_refusal_only_a_look_up_decides() {
        for (observed, expected) in [
            (Observed::Running, Action::Adopt),
            (unrecognised(), Action::Adopt),
            (Observed::Succeeded, Action::Settle(Outcome::Succeeded)),
            (Observed::Failed, Action::Settle(Outcome::Failed)),
            (Observed::Absent, Action::Flag(Reason::StartRefused)),
            (Observed::Unknown, Action::Wait),
        ] {
            assert_eq!(decide_refused(&observed), expected);
        }
    }
}
