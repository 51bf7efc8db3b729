//! The state that the reconciler reports about itself and the upstream, and what follows from it: whether a
//! reconciler leads and makes progress.
//!
//! Pure. The reconciler writes it with each heartbeat, `store` keeps the last one, and the API, the
//! `health` commands and `explain` read it.

use std::time::Duration;

use crate::decide::LostProcess;
use crate::order::{Rfc3339, Timestamp, words};
use crate::pace::{LearnedLimits, UpstreamState};
use crate::reconciler_metrics::ReconcilerMetrics;

/// Delay of a pass from which on the reconciler counts as stuck: far longer than a pass takes in
/// which requests run into their timeouts, and than the interval between two heartbeats.
const OVERDUE_AFTER: Duration = Duration::from_secs(60);

// The messages below and the help of the metrics call it a minute.
const _: () = assert!(OVERDUE_AFTER.as_secs() == 60);

/// Maximum difference of synchronised clocks. A state that lies further ahead of the reader's clock means
/// that a clock was set back.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(1);

/// The state of the reconciler and of the upstream. It holds for all open orders and is stored once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReconcilerState {
    /// Moment at which the present leader took over; `None` after it has shut down, unless it was killed.
    pub leader_since: Option<Timestamp>,
    /// Moment at which the last leader shut down; `None` while one leads.
    pub led_until: Option<Timestamp>,
    /// The policy of the present or last leader; `None` before the first.
    pub policy: Option<LostProcess>,
    /// The end of the last completed pass.
    pub last_pass_at: Option<Timestamp>,
    /// Moment of the next pass by the schedule; `None` while none is expected: before the first reconciler, and
    /// after a running one was stopped.
    pub next_pass_at: Option<Timestamp>,
    /// Beginning of the last poll that observed all open orders that were due.
    pub last_observed_at: Option<Timestamp>,
    /// The availability of the upstream.
    pub upstream: UpstreamState,
    /// The earliest moment at which orders that are PROCESSING are polled next.
    pub next_poll_at: Option<Timestamp>,
    /// The learned limits of the upstream.
    pub learned: LearnedLimits,
    /// Counters of all reconcilers on this database.
    pub metrics: ReconcilerMetrics,
}

/// The status of the leader of a database, derived from the last heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaderStatus {
    /// The state of the leader.
    pub status: LeaderState,
    /// Beginning of that status, if it is known.
    pub since: Option<Timestamp>,
    /// Reason why no reconciler leads, or why the leader makes no progress.
    pub problem: Option<&'static str>,
}

words! {
    /// The state of a database's leader.
    pub enum LeaderState {
        /// No reconciler leads.
        None = "none",
        /// One leads, or did until it was killed, and its next pass is late.
        Overdue = "overdue",
        /// One leads and makes progress.
        Leading = "leading",
    }
}

impl ReconcilerState {
    /// Returns whether the next pass should have been completed by now, or none is expected because the
    /// reconciler was stopped. After `--once`, the schedule says when the next run is due. Before the first
    /// reconciler, a pass is due once an order was created: `oldest_open` is when the oldest open one was.
    ///
    /// A leader that makes progress reports no moment ahead of the clock for long, because it
    /// notices within a second, or after its pass, that the clock was set back.
    pub fn is_overdue(&self, now: Timestamp, oldest_open: Option<Timestamp>) -> bool {
        let reported_at = self.last_pass_at.max(self.leader_since);
        let is_ahead = reported_at.is_some_and(|at| at > now.after(CLOCK_SKEW_MAX));
        let is_late = |at: Timestamp| now > at.after(OVERDUE_AFTER);
        let is_stopped = self.next_pass_at.is_none() && self.led_until.is_some();
        is_ahead || is_stopped || self.next_pass_at.or(oldest_open).is_some_and(is_late)
    }

    /// Returns the status of the leader. A killed one is detected when its next pass is overdue.
    pub fn leader_status(&self, now: Timestamp) -> LeaderStatus {
        match (self.leader_since, self.led_until) {
            (None, None) => LeaderStatus {
                status: LeaderState::None,
                since: None,
                problem: Some("no reconciler has led on this database yet"),
            },
            (None, ended_at) => LeaderStatus {
                status: LeaderState::None,
                since: ended_at,
                problem: Some("no reconciler runs: the last one has shut down"),
            },
            _ if self.is_overdue(now, None) => {
                let is_set_back = self.next_pass_at.is_some_and(|at| at > now);
                LeaderStatus {
                    status: LeaderState::Overdue,
                    since: self.next_pass_at.filter(|_| !is_set_back),
                    problem: Some(if is_set_back {
                        "the clock was set back, and the reconciler has completed no pass since; one \
                         that makes progress does so within about a minute"
                    } else {
                        "the reconciler was killed, is stuck, or cannot write to the database: its \
                         next pass is more than a minute late"
                    }),
                }
            }
            (since, _) => LeaderStatus {
                status: LeaderState::Leading,
                since,
                problem: None,
            },
        }
    }

    /// Returns a clause that says when the last pass ended that was reported.
    pub fn last_pass(&self) -> String {
        match self.last_pass_at {
            Some(at) => format!("the last reported pass ended at {}", Rfc3339(at)),
            None => "no pass has ended on this database yet".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_is_overdue_a_minute_after_the_reported_time() {
        let mut state = ReconcilerState {
            next_pass_at: Some(Timestamp(1_000)),
            ..ReconcilerState::default()
        };
        for (now, expected) in [(0, false), (1_000, false), (61_000, false), (61_001, true)] {
            assert_eq!(state.is_overdue(Timestamp(now), None), expected, "{now}");
            let oldest_open = state.next_pass_at;
            let never = ReconcilerState::default();
            assert_eq!(never.is_overdue(Timestamp(now), oldest_open), expected);
            assert!(!never.is_overdue(Timestamp(now), None), "nothing waits");
        }
        state.next_pass_at = Some(Timestamp(61_000));
        let oldest_open = Some(Timestamp(0));
        assert!(!state.is_overdue(Timestamp(61_001), oldest_open));
        state.led_until = Some(Timestamp(1_000));
        assert!(!state.is_overdue(Timestamp(61_001), None), "after --once");
        state.next_pass_at = None;
        assert!(state.is_overdue(Timestamp(1_000), None), "stopped");
    }

    #[test]
    fn a_last_pass_ahead_of_the_clock_does_not_count_as_in_time() {
        let mut state = ReconcilerState {
            leader_since: Some(Timestamp(0)),
            last_pass_at: Some(Timestamp(10_000)),
            next_pass_at: Some(Timestamp(11_000)),
            ..ReconcilerState::default()
        };
        for (now, expected) in [(10_000, false), (9_000, false), (8_999, true), (0, true)] {
            assert_eq!(state.is_overdue(Timestamp(now), None), expected, "{now}");
        }
        state.leader_since = Some(Timestamp(12_000));
        assert!(state.is_overdue(Timestamp(10_000), None));
    }
}
