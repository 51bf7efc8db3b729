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
    /// A pace of at most `rate` starts per second.
    pub fn new(rate: f64) -> Self {
        Self {
            interval: 1_000.0 / rate,
            next: 0.0,
        }
    }

    /// Changes the pace from now on, in starts per second.
    pub fn set_rate(&mut self, rate: f64) {
        self.interval = 1_000.0 / rate;
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

/// The pace after a restart of the upstream, in starts per second: slow enough that a service that
/// has just come up is not knocked over by those that it has forgotten.
const RATE_AFTER_RESTART: f64 = 3.0;

/// The slowest pace that overload can lead to, in starts per second.
const RATE_MIN: f64 = 0.5;

/// Without a ceiling, the pace that counts as none, in starts per second: more than the fastest
/// upstream takes.
const RATE_UNLIMITED: f64 = 20_000.0;

/// Below the threshold the pace doubles in this time.
const RATE_DOUBLES_IN: Duration = Duration::from_secs(5);

/// Above the threshold it takes this long from nothing to the ceiling.
const RATE_FULL_IN: Duration = Duration::from_secs(120);

/// One overload is told by several answers: the pace is cut once in this time.
const RATE_CUT_EVERY: Duration = Duration::from_secs(2);

/// How fast this upstream may be driven, as far as is known: halved by overload, back to a few
/// starts per second when it was restarted, and raised while all is quiet; quickly up to half of
/// the pace that brought the trouble, slowly above. (TCP's slow start and congestion avoidance,
/// RFC 5681, with starts per second for a window.)
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearnedRate {
    /// Starts per second.
    rate: f64,
    threshold: f64,
    ceiling: f64,
    changed_at: Timestamp,
}

impl LearnedRate {
    /// A pace below `ceiling` starts per second, of which 0 means none. `known` is what an earlier
    /// run had learned: the pace, the threshold, and when.
    pub fn new(ceiling: f64, known: Option<(f64, f64, Timestamp)>, now: Timestamp) -> Self {
        let ceiling = if ceiling > 0.0 {
            ceiling
        } else {
            RATE_UNLIMITED
        };
        let (rate, threshold, changed_at) = known.unwrap_or((ceiling, ceiling, now));
        let slowest = RATE_MIN.min(ceiling);
        Self {
            rate: rate.clamp(slowest, ceiling),
            threshold: threshold.clamp(slowest, ceiling),
            ceiling,
            changed_at: changed_at.min(now),
        }
    }

    /// Starts per second.
    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// What to keep for a later run.
    pub fn known(&self) -> (f64, f64, Timestamp) {
        (self.rate, self.threshold, self.changed_at)
    }

    /// Whether nothing holds it below its ceiling.
    pub fn is_full(&self) -> bool {
        self.rate >= self.ceiling
    }

    /// Raises the pace by the time since it was last changed.
    pub fn quiet(&mut self, now: Timestamp) {
        let passed = now.since(self.changed_at).as_secs_f64();
        self.changed_at = now;
        if self.rate < self.threshold {
            let doublings = passed / RATE_DOUBLES_IN.as_secs_f64();
            self.rate = (self.rate * doublings.exp2()).min(self.threshold);
        } else {
            let step = self.ceiling * passed / RATE_FULL_IN.as_secs_f64();
            self.rate = (self.rate + step).min(self.ceiling);
        }
    }

    /// The upstream has said that it is overloaded, or has not answered in time. Tells whether
    /// that changes the pace.
    pub fn overloaded(&mut self, now: Timestamp) -> bool {
        if !self.is_full() && now.since(self.changed_at) < RATE_CUT_EVERY {
            return false;
        }
        self.cut_to(self.rate / 2.0, now);
        true
    }

    /// The upstream was restarted: a new life begins.
    pub fn restarted(&mut self, now: Timestamp) {
        self.cut_to(RATE_AFTER_RESTART.min(self.rate), now);
    }

    fn cut_to(&mut self, rate: f64, now: Timestamp) {
        let slowest = RATE_MIN.min(self.ceiling);
        self.threshold = (self.rate / 2.0).max(slowest);
        self.rate = rate.max(slowest);
        self.changed_at = now;
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
    /// Whether it tells that the upstream has too much to do.
    pub is_overload: bool,
    /// How long the upstream asked to be left alone.
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// A failure that tells nothing else.
    pub fn new(detail: impl Into<String>, certain: bool) -> Self {
        Self {
            detail: detail.into(),
            certain,
            is_overload: false,
            retry_after: None,
        }
    }
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
        let rate = LearnedRate::new(0.0, None, Timestamp(7)).rate();
        let mut pace = StartPace::new(rate);
        for _ in 0..200 {
            pace.started(Timestamp(7));
        }
        assert_eq!(pace.next_at(Timestamp(7)), Timestamp(7));
    }

    /// The pace after each of these seconds without trouble.
    fn after_quiet(rate: &mut LearnedRate, from: Timestamp, seconds: i64) -> f64 {
        for second in 1..=seconds {
            rate.quiet(Timestamp(from.0 + second * 1_000));
        }
        rate.rate()
    }

    #[test]
    fn without_trouble_the_pace_is_at_its_ceiling_from_the_first_start() {
        let mut rate = LearnedRate::new(50.0, None, Timestamp(0));
        assert_eq!(rate.rate(), 50.0);
        assert_eq!(after_quiet(&mut rate, Timestamp(0), 100), 50.0);
    }

    #[test]
    fn a_restart_of_the_upstream_leads_to_a_few_starts_per_second_which_rise_again() {
        let mut rate = LearnedRate::new(50.0, None, Timestamp(0));
        rate.restarted(Timestamp(0));
        assert_eq!(rate.rate(), 3.0);
        let soon = after_quiet(&mut rate, Timestamp(0), 5);
        assert!((5.9..6.1).contains(&soon), "doubled: {soon}");
        let half = after_quiet(&mut rate, Timestamp(5_000), 11);
        assert!((25.0..26.0).contains(&half), "slower from here: {half}");
        let later = after_quiet(&mut rate, Timestamp(16_000), 30);
        assert!((36.0..39.0).contains(&later), "{later}");
        assert_eq!(after_quiet(&mut rate, Timestamp(46_000), 60), 50.0);
        assert!(rate.is_full());
        // A second one soon after counts from where the pace was.
        rate.restarted(Timestamp(106_000));
        rate.restarted(Timestamp(107_000));
        assert_eq!(rate.rate(), 3.0);
        assert!(after_quiet(&mut rate, Timestamp(107_000), 4) < 5.0);
    }

    #[test]
    fn overload_halves_the_pace_once_for_each_burst_of_answers() {
        let mut rate = LearnedRate::new(40.0, None, Timestamp(0));
        assert!(rate.overloaded(Timestamp(0)));
        assert!(!rate.overloaded(Timestamp(1)));
        assert_eq!(rate.rate(), 20.0);
        assert!(rate.overloaded(Timestamp(2_000)));
        assert_eq!(rate.rate(), 10.0);
        for second in 2..100 {
            rate.overloaded(Timestamp(second * 2_000));
        }
        assert_eq!(rate.rate(), 0.5);
    }

    #[test]
    fn what_was_learned_survives_a_restart_of_ours_and_a_clock_set_back() {
        let mut rate = LearnedRate::new(50.0, None, Timestamp(0));
        rate.restarted(Timestamp(9_000));
        let again = LearnedRate::new(50.0, Some(rate.known()), Timestamp(9_000));
        assert_eq!(again, rate);
        let mut lower = LearnedRate::new(2.0, Some(rate.known()), Timestamp(5_000));
        assert_eq!(lower.rate(), 2.0);
        assert_eq!(after_quiet(&mut lower, Timestamp(5_000), 10), 2.0);
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
        let failure = |certain| Failure::new("answered 500", certain);
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
