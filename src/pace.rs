//! How fast to start, how to look and when to look again, how long to back off: pure functions of
//! `now` and of what happened before.
//!
//! The order process service dies under load and takes all it knows with it, so a request that
//! need not be made is better not made. What to do about an order is decided in `decide`.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use crate::order::{OrderId, Timestamp};

/// The wait after a first failure.
const BACKOFF_BASE: Duration = Duration::from_secs(1);

/// Long enough that an operator sees the order in today's logs, short enough that mending the
/// upstream helps at once.
pub const BACKOFF_MAX: Duration = Duration::from_secs(300);

/// How late a start may be made up for. Timers are late by a millisecond or two at every start;
/// without this the pace would stay that much below its ceiling.
const LATENESS_MADE_UP_MS: f64 = 10.0;

/// What a look-up costs the upstream, measured on the real one.
const LOOK_UP_COST: Duration = Duration::from_micros(50);

/// What each entry of the list costs the upstream, in nanoseconds, measured on the real one.
const LIST_ENTRY_COST_NS: u64 = 500;

/// While the length of the list is not known, this many orders are looked up one by one.
const LOOK_UPS_UNSEEN: usize = 20;

/// Looks may take one part in this many of the upstream's time.
const LOOK_SHARE: u32 = 20;

/// More processes than this must be missing for a restart of the upstream to be suspected.
const MISSING_MIN: usize = 10;

/// And more than one in this many of those that were known.
const MISSING_SHARE: usize = 3;

/// Failures in a row, over different orders, after which it is not the orders' fault.
const FAILURES_TO_DOWN: u32 = 3;

/// How long an order waits after its `attempts`th failure in a row: doubling from one second to
/// [`BACKOFF_MAX`], of which the order's own half is taken away at most, so that orders that
/// failed together do not come back together ("equal jitter").
pub fn backoff(id: &OrderId, attempts: u32) -> Duration {
    let doublings = attempts.saturating_sub(1).min(16);
    let full = (BACKOFF_BASE * 2u32.pow(doublings)).min(BACKOFF_MAX);
    let mut hasher = DefaultHasher::new();
    (id, attempts).hash(&mut hasher);
    let share = (hasher.finish() % 1_000) as f64 / 1_000.0;
    full.mul_f64(1.0 - share / 2.0)
}

/// Keeps starts below a ceiling: the generic cell rate algorithm (ITU-T I.371), with one start as
/// the cell.
#[derive(Clone, Debug)]
pub struct StartPace {
    /// Between two starts, in milliseconds.
    interval: f64,
    /// When the next start is due, in milliseconds since the epoch.
    next: f64,
}

impl StartPace {
    /// A pace of at most `rate` starts per second; zero means no ceiling.
    pub fn new(rate: f64) -> Self {
        Self {
            interval: if rate > 0.0 { 1_000.0 / rate } else { 0.0 },
            next: 0.0,
        }
    }

    /// When the next start may leave: `now` or later.
    pub fn next_at(&self, now: Timestamp) -> Timestamp {
        let now_ms = now.0 as f64;
        // Further ahead than one interval it only is when the clock was set back.
        if self.next <= now_ms || self.next > now_ms + self.interval {
            now
        } else {
            Timestamp(self.next.ceil() as i64)
        }
    }

    /// Takes note of a start that leaves at `now`.
    pub fn started(&mut self, now: Timestamp) {
        let now_ms = now.0 as f64;
        let from = if self.next > now_ms + self.interval {
            now_ms
        } else {
            self.next.max(now_ms - LATENESS_MADE_UP_MS)
        };
        self.next = from + self.interval;
    }
}

/// How to observe a number of orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observation {
    /// One look-up for each.
    LookUps,
    /// One list of all processes.
    List,
}

/// The way that costs the upstream less. `list_entries` is the length of the list when it was
/// last seen.
pub fn how_to_look(orders: usize, list_entries: Option<u64>) -> Observation {
    let by_list = match list_entries {
        None => orders > LOOK_UPS_UNSEEN,
        Some(entries) => look_ups_cost(orders) > list_cost(entries),
    };
    if by_list {
        Observation::List
    } else {
        Observation::LookUps
    }
}

/// How long to leave the upstream alone after looks that cost it `cost`, for them to stay within
/// their share of its time.
pub fn pause_after(cost: Duration) -> Duration {
    cost * LOOK_SHARE
}

/// What looking these orders up costs the upstream.
pub fn look_ups_cost(orders: usize) -> Duration {
    LOOK_UP_COST * u32::try_from(orders).unwrap_or(u32::MAX)
}

/// What a list of this many entries costs the upstream.
pub fn list_cost(entries: u64) -> Duration {
    LOOK_UP_COST + Duration::from_nanos(entries.saturating_mul(LIST_ENTRY_COST_NS))
}

/// Whether the upstream must have been restarted, given how many of the processes that were known
/// are missing all at once.
pub fn is_restart(missing: usize, known: usize) -> bool {
    missing > MISSING_MIN && missing * MISSING_SHARE > known
}

/// Whether the upstream gives usable answers, and since when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// It was not asked yet.
    Unknown,
    /// It answers.
    Up {
        /// Since when.
        since: Timestamp,
    },
    /// It does not.
    Down {
        /// Since when.
        since: Timestamp,
        /// What was seen instead of an answer.
        detail: String,
    },
}

/// Keeps the upstream's reach from what single requests met.
#[derive(Clone, Debug)]
pub struct Reachability {
    reach: Reach,
    failures_in_a_row: u32,
    first_failure_at: Option<Timestamp>,
    not_before: Option<Timestamp>,
    /// Whether a request met a usable answer, and whether one did not, since this was last asked.
    met: Met,
}

/// What requests met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Met {
    /// A usable answer.
    pub answer: bool,
    /// None.
    pub failure: bool,
}

impl Reachability {
    /// Goes on from what an earlier run knew.
    pub fn new(reach: Reach) -> Self {
        Self {
            reach,
            failures_in_a_row: 0,
            first_failure_at: None,
            not_before: None,
            met: Met::default(),
        }
    }

    /// What requests have met since this was last asked.
    pub fn take_met(&mut self) -> Met {
        std::mem::take(&mut self.met)
    }

    /// What is known.
    pub fn reach(&self) -> &Reach {
        &self.reach
    }

    /// Whether it is known to be down.
    pub fn is_down(&self) -> bool {
        matches!(self.reach, Reach::Down { .. })
    }

    /// Whether the upstream has asked to be left alone for longer than until `now`. A longer wait
    /// than any that is granted comes from a clock that was set back, and does not count.
    pub fn is_resting(&self, now: Timestamp) -> bool {
        self.not_before
            .is_some_and(|at| at > now && at <= now.after(BACKOFF_MAX))
    }

    /// Whether anything may be asked at `now`.
    pub fn may_ask(&self, now: Timestamp) -> bool {
        !self.is_down() && !self.is_resting(now)
    }

    /// Takes note of a usable answer. Tells whether this is a change.
    pub fn answered(&mut self, now: Timestamp) -> bool {
        self.met.answer = true;
        self.failures_in_a_row = 0;
        self.first_failure_at = None;
        if matches!(self.reach, Reach::Up { .. }) {
            return false;
        }
        self.reach = Reach::Up { since: now };
        true
    }

    /// Takes note of a request without a usable answer. `certain` says that it cannot be due to
    /// what was asked, as when no connection can be made. Tells whether the upstream counts as
    /// down from now on and did not before.
    pub fn failed(&mut self, now: Timestamp, failure: &Failure) -> bool {
        self.met.failure = true;
        self.failures_in_a_row += 1;
        let since = *self.first_failure_at.get_or_insert(now);
        if let Some(wait) = failure.retry_after {
            self.not_before = Some(now.after(wait.min(BACKOFF_MAX)));
        }
        match &mut self.reach {
            Reach::Down { detail, .. } => {
                detail.clone_from(&failure.detail);
                false
            }
            _ if failure.certain || self.failures_in_a_row >= FAILURES_TO_DOWN => {
                self.reach = Reach::Down {
                    since,
                    detail: failure.detail.clone(),
                };
                true
            }
            _ => false,
        }
    }
}

/// A request without a usable answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What was seen, in words.
    pub detail: String,
    /// Whether it cannot be due to what was asked.
    pub certain: bool,
    /// How long the upstream asked to be left alone.
    pub retry_after: Option<Duration>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> OrderId {
        OrderId::new(text).unwrap()
    }

    #[test]
    fn backoff_doubles_up_to_five_minutes_and_differs_between_orders() {
        for attempts in 1..40 {
            let full = Duration::from_secs(1 << (attempts - 1).min(16)).min(BACKOFF_MAX);
            let wait = backoff(&id("a1"), attempts);
            assert!(wait <= full && wait >= full / 2, "{attempts}: {wait:?}");
        }
        let waits: std::collections::HashSet<_> = (0..100)
            .map(|n| backoff(&id(&format!("a{n}")), 5))
            .collect();
        assert!(waits.len() > 50);
    }

    /// Starts as soon as allowed from 0 to `until` ms, with timers late by `late` ms.
    fn starts_until(pace: &mut StartPace, until: i64, late: i64) -> Vec<i64> {
        let mut now = Timestamp(0);
        let mut starts = Vec::new();
        while now.0 < until {
            let at = pace.next_at(now);
            if at > now {
                now = Timestamp(at.0 + late);
                continue;
            }
            pace.started(now);
            starts.push(now.0);
        }
        starts
    }

    #[test]
    fn starts_keep_to_the_ceiling_and_reach_it_although_timers_are_late() {
        for (rate, late) in [(50.0, 0), (50.0, 2), (0.5, 2), (3_000.0, 1), (7.3, 1)] {
            let starts = starts_until(&mut StartPace::new(rate), 100_000, late);
            let ceiling = (rate * 100.0) as usize + 1 + (rate * 0.01) as usize + 1;
            assert!(starts.len() <= ceiling, "{rate}: {}", starts.len());
            assert!(
                starts.len() as f64 >= rate * 100.0 * 0.99,
                "{rate}: {}",
                starts.len()
            );
        }
    }

    #[test]
    fn a_clock_set_back_does_not_stop_the_starts() {
        let mut pace = StartPace::new(1.0);
        pace.started(Timestamp(1_000_000));
        assert_eq!(pace.next_at(Timestamp(1_000_000)), Timestamp(1_000_990));
        assert_eq!(pace.next_at(Timestamp(5_000)), Timestamp(5_000));
        pace.started(Timestamp(5_000));
        assert_eq!(pace.next_at(Timestamp(5_000)), Timestamp(6_000));
    }

    #[test]
    fn without_a_ceiling_every_start_may_leave_at_once() {
        let mut pace = StartPace::new(0.0);
        for _ in 0..1_000 {
            pace.started(Timestamp(7));
        }
        assert_eq!(pace.next_at(Timestamp(7)), Timestamp(7));
    }

    #[test]
    fn few_orders_are_looked_up_and_many_are_read_from_the_list() {
        assert_eq!(how_to_look(1, None), Observation::LookUps);
        assert_eq!(how_to_look(1_000, None), Observation::List);
        assert_eq!(how_to_look(1_000, Some(1_000)), Observation::List);
        assert_eq!(how_to_look(1_000, Some(1_000_000)), Observation::LookUps);
        assert_eq!(how_to_look(1, Some(0)), Observation::LookUps);
        assert_eq!(pause_after(list_cost(500_000)).as_secs(), 5);
    }

    #[test]
    fn one_failing_order_does_not_count_as_an_upstream_that_is_down() {
        let mut reachability = Reachability::new(Reach::Unknown);
        let failure = |certain| Failure {
            detail: "answered 500".to_owned(),
            certain,
            retry_after: None,
        };
        assert!(reachability.answered(Timestamp(1)));
        for now in 2..10 {
            assert!(!reachability.failed(Timestamp(now), &failure(false)));
            assert!(!reachability.answered(Timestamp(now)));
        }
        assert!(!reachability.failed(Timestamp(11), &failure(false)));
        assert!(!reachability.failed(Timestamp(12), &failure(false)));
        assert!(reachability.failed(Timestamp(13), &failure(false)));
        assert!(!reachability.failed(Timestamp(14), &failure(false)));
        let Reach::Down { since, .. } = reachability.reach() else {
            panic!("it counts as down");
        };
        assert_eq!(*since, Timestamp(11));
        assert!(reachability.answered(Timestamp(15)));
        assert!(reachability.failed(Timestamp(16), &failure(true)));
    }
}
