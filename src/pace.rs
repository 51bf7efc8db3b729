//! How fast to start, which orders to look at, how many processes at once, how long to back off:
//! pure functions of `now` and of what happened before.
//!
//! The order process service dies under load and takes all it knows with it, so a request that
//! need not be made is better not made. [`Pace`] is the one limiter that every request passes.
//! What to do about an order is decided in `decide`.
//!
//! - `rate`: starts per second.
//! - `lives`: processes in flight.
//! - `looks`, with what `durations` has learned: looks. `list_time`: how long a list may take.
//! - `turns`: which order is started next.
//! - `reach`: whether anything may be asked at all.

mod durations;
mod list_time;
mod lives;
mod looks;
mod rate;
mod reach;
mod turns;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::durations::Durations;
use self::list_time::ListTime;
pub use self::lives::Lives;
use self::looks::Looks;
pub use self::looks::{Plan, Watched, list_cost, look_ups_cost};
pub use self::rate::{Beat, LearnedRate};
pub use self::reach::{Failure, Met, Reach, Reachability};
pub use self::turns::{Queue, Turns};
use crate::order::{Observed, Timestamp};

/// The wait after a first failure.
const BACKOFF_BASE: Duration = Duration::from_secs(1);

/// Long enough that an operator sees the order in today's logs, short enough that mending the
/// upstream helps at once.
pub const BACKOFF_MAX: Duration = Duration::from_secs(300);

/// More processes than this must be missing for a restart of the upstream to be suspected.
const MISSING_MIN: usize = 10;

/// And more than one in this many of those that were known.
const MISSING_SHARE: usize = 3;

/// How long it takes to write intents, about: what starts meanwhile is made ready ahead.
const INTENT_TAKES: Duration = Duration::from_millis(2);

/// A process that runs for so many times as long as any that ended lately is stuck. It does not
/// take a place in the window for ever.
const STUCK_AFTER: u32 = 2;

/// What was learned of the upstream, to be kept for a later run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Learned {
    /// Starts per second; nothing before the first run.
    pub rate: Option<LearnedRate>,
    /// How long it lives.
    pub lives: Lives,
    /// How long processes take.
    pub durations: Durations,
}

/// The limiter that every request to the upstream passes, and all that was learned for it.
#[derive(Clone, Debug)]
pub struct Pace {
    /// Requests at once, of all kinds.
    max_requests: usize,
    reach: Reachability,
    rate: LearnedRate,
    beat: Beat,
    lives: Lives,
    durations: Durations,
    looks: Looks,
    list_time: ListTime,
    /// Processes that are known to run.
    in_flight: u64,
    /// Whether starts meet nothing but server errors.
    is_failing: bool,
}

impl Pace {
    /// Goes on from what an earlier run had learned. `ceiling` is in starts per second, 0 for
    /// none; `max_requests` is the number of requests at once.
    pub fn new(
        ceiling: f64,
        max_requests: usize,
        learned: Learned,
        reach: Reach,
        now: Timestamp,
    ) -> Self {
        let rate = match learned.rate {
            Some(rate) => rate.under(ceiling, now),
            None => LearnedRate::new(ceiling, now),
        };
        Self {
            max_requests,
            reach: Reachability::new(reach.no_later_than(now)),
            beat: Beat::new(rate.rate()),
            rate,
            lives: learned.lives.no_later_than(now),
            durations: learned.durations,
            looks: Looks::new(now),
            list_time: ListTime::default(),
            in_flight: 0,
            is_failing: false,
        }
    }

    /// Goes on in another run with what was learned in this one.
    #[must_use]
    pub fn again(&self, now: Timestamp) -> Self {
        let ceiling = self.rate.ceiling().unwrap_or(0.0);
        let reach = self.reach.reach().clone();
        Self {
            list_time: self.list_time.clone(),
            ..Self::new(ceiling, self.max_requests, self.learned(), reach, now)
        }
    }

    /// What to keep for a later run.
    pub fn learned(&self) -> Learned {
        Learned {
            rate: Some(self.rate.clone()),
            lives: self.lives.clone(),
            durations: self.durations.clone(),
        }
    }

    /// Whether the upstream answers.
    pub fn reach(&self) -> &Reachability {
        &self.reach
    }

    /// Starts per second.
    pub fn rate(&self) -> &LearnedRate {
        &self.rate
    }

    /// How long the upstream lives.
    pub fn lives(&self) -> &Lives {
        &self.lives
    }

    /// Whether one more request of any kind may leave now, beside `requests` that have.
    pub fn may_send(&self, now: Timestamp, requests: usize) -> bool {
        requests < self.max_requests && self.reach.may_send(now)
    }

    /// Whether one more order may be made ready to be started now, beside `starting` that are or
    /// have left. At a high rate some are ready before there is a place for their requests, so that
    /// no place is empty while intents are written.
    pub fn may_stage(&self, now: Timestamp, starting: usize) -> bool {
        let ahead = (self.rate.rate() * INTENT_TAKES.as_secs_f64()) as usize;
        let places = match self.is_failing {
            true => 1,
            false => self.max_requests + ahead.min(self.max_requests),
        };
        starting < places && self.reach.may_send(now)
    }

    /// When the next start may leave, `now` or later; nothing while as many processes run as may.
    pub fn next_start_at(&self, now: Timestamp, starting: usize) -> Option<Timestamp> {
        let in_flight = self.in_flight + starting as u64;
        let is_full = self
            .lives
            .window()
            .is_some_and(|window| in_flight >= window);
        (!is_full).then(|| self.beat.next_at(now))
    }

    /// A start leaves now.
    pub fn on_start_sent(&mut self, now: Timestamp) {
        self.beat.started(now);
    }

    /// A start was accepted: there is one more process.
    pub fn on_start_accepted(&mut self) {
        self.is_failing = false;
        self.in_flight += 1;
        self.lives.started();
    }

    /// A start was refused: the upstream takes starts.
    pub fn on_start_refused(&mut self) {
        self.is_failing = false;
    }

    /// A start was answered with a server error, and may have taken effect. Until one is answered
    /// otherwise, one order at a time tries.
    pub fn on_server_error(&mut self) {
        self.is_failing = true;
    }

    /// Raises the rate while all is quiet. Tells whether it has reached its ceiling again.
    pub fn recover(&mut self, now: Timestamp) -> bool {
        let is_full_again = self.rate.quiet(now);
        self.beat.set_rate(self.rate.rate());
        is_full_again
    }

    /// Takes note of a usable answer. Tells whether the upstream had not answered before.
    pub fn answered(&mut self, now: Timestamp) -> bool {
        let was_down = self.reach.is_down();
        let is_news = self.reach.answered(now);
        if was_down {
            // It may have been restarted.
            self.looks.forget(now);
        }
        is_news
    }

    /// Takes note of a request without a usable answer. Tells whether that lowers the rate, and
    /// whether the upstream counts as down from now on and did not before.
    pub fn failed(&mut self, now: Timestamp, failure: &Failure) -> (bool, bool) {
        let is_slower = failure.is_overload && self.rate.overloaded(now, &failure.detail);
        self.beat.set_rate(self.rate.rate());
        (is_slower, self.reach.failed(now, failure))
    }

    /// What requests have met since this was last asked.
    pub fn take_met(&mut self) -> Met {
        self.reach.take_met()
    }

    /// The upstream was found to have been restarted, and to have so many processes now.
    pub fn restarted(&mut self, processes: u64, now: Timestamp) {
        self.rate.restarted(now);
        self.beat.set_rate(self.rate.rate());
        self.lives.restarted(processes, now);
    }

    /// A complete list told how many processes there are.
    pub fn listed(&mut self, entries: u64, now: Timestamp) {
        self.lives.listed(entries, now);
    }

    /// How long a list may take that begins now.
    pub fn list_limit(&self) -> Duration {
        self.list_time.limit(self.lives.processes())
    }

    /// A list has ended after so long: it was complete, with so many entries, or was not.
    pub fn on_list_read(&mut self, entries: Option<u64>, took: Duration) {
        match entries {
            Some(entries) => self.list_time.on_complete(entries, took),
            None if took >= self.list_limit() => self.list_time.on_cut(),
            None => {}
        }
    }

    /// Whether anything may be looked at.
    pub fn are_looks_due(&self, now: Timestamp) -> bool {
        self.looks.are_due(now)
    }

    /// Chooses what to look at. `watched` is in the order of `seq`.
    pub fn plan(&mut self, watched: &[Watched], now: Timestamp) -> Plan {
        self.looks
            .plan(watched, &self.durations, self.lives.processes(), now)
    }

    /// Learns from a look at one of the watched that began at `began_at`.
    pub fn learn(&mut self, order: &Watched, observed: &Observed, began_at: Timestamp) {
        let Some(running_since) = order.running_since else {
            return;
        };
        let Some(known_at) = self.looks.last_known(order.seq, running_since) else {
            return;
        };
        let (from, to) = (known_at.since(running_since), began_at.since(running_since));
        match observed {
            Observed::Running => self.durations.outlived(from, to),
            Observed::Succeeded | Observed::Failed => self.durations.ended(from, to),
            Observed::Absent | Observed::Unrecognised(_) => {}
        }
    }

    /// An order was looked up.
    pub fn saw(&mut self, seq: i64, began_at: Timestamp) {
        self.looks.saw(seq, began_at);
    }

    /// All orders were looked at.
    pub fn saw_all(&mut self, began_at: Timestamp) {
        self.looks.saw_all(began_at);
    }

    /// When the next look may begin.
    pub fn next_look_at(&self) -> Timestamp {
        self.looks.next_at()
    }

    /// Looks that began at `began_at` are over and cost the upstream `cost`.
    pub fn looked(&mut self, began_at: Timestamp, cost: Duration) {
        self.looks.looked(began_at, cost, self.durations.mean());
    }

    /// So many processes are known to run and are not stuck.
    pub fn found_running(&mut self, in_flight: u64) {
        self.in_flight = in_flight;
    }

    /// Something is not as it should be: everything is looked at as soon as possible.
    pub fn look_again(&mut self, now: Timestamp) {
        self.looks.forget(now);
    }

    /// A process that has run for longer than this is stuck.
    pub fn stuck_after(&self) -> Duration {
        self.durations.longest() * STUCK_AFTER
    }
}

/// How long an order waits after its `attempts`th failure in a row: doubling from one second to
/// [`BACKOFF_MAX`], of which the order's own half is taken away at most, so that orders that
/// failed together do not come back together ("equal jitter").
pub fn backoff(id: &str, attempts: u32) -> Duration {
    let doublings = attempts.saturating_sub(1).min(16);
    let full = (BACKOFF_BASE * 2u32.pow(doublings)).min(BACKOFF_MAX);
    let mut hasher = DefaultHasher::new();
    (id, attempts).hash(&mut hasher);
    let share = (hasher.finish() % 1_000) as f64 / 1_000.0;
    full.mul_f64(1.0 - share / 2.0)
}

/// Whether the upstream must have been restarted, given how many of the processes that were known
/// are missing all at once.
pub fn is_restart(missing: usize, known: usize) -> bool {
    missing > MISSING_MIN && missing * MISSING_SHARE > known
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_up_to_five_minutes_and_differs_between_orders() {
        for attempts in 1..40 {
            let full = Duration::from_secs(1 << (attempts - 1).min(16)).min(BACKOFF_MAX);
            let wait = backoff("a1", attempts);
            assert!(wait <= full && wait >= full / 2, "{attempts}: {wait:?}");
        }
        let waits: std::collections::HashSet<_> =
            (0..100).map(|n| backoff(&format!("a{n}"), 5)).collect();
        assert!(waits.len() > 50);
    }

    fn pace(learned: Learned, now: Timestamp) -> Pace {
        Pace::new(50.0, 8, learned, Reach::Unknown, now)
    }

    #[test]
    fn no_more_requests_are_made_at_once_than_allowed_and_none_while_it_is_down_or_rests() {
        let now = Timestamp(1_000);
        let mut limiter = pace(Learned::default(), now);
        assert!(limiter.may_send(now, 7) && !limiter.may_send(now, 8));
        let mut failure = Failure::new("answered 503", false);
        failure.is_overload = true;
        failure.retry_after = Some(Duration::from_secs(2));
        assert_eq!(limiter.failed(now, &failure), (true, false));
        assert_eq!(limiter.rate().rate(), 25.0);
        assert!(!limiter.may_send(now, 0) && limiter.may_send(Timestamp(3_000), 0));
        let down = Failure::new("no connection", true);
        assert_eq!(limiter.failed(now, &down), (false, true));
        assert!(!limiter.may_send(Timestamp(3_000), 0));
        assert!(limiter.answered(Timestamp(3_000)) && limiter.may_send(Timestamp(3_000), 0));
    }

    #[test]
    fn orders_are_made_ready_ahead_of_their_places_only_at_a_high_rate() {
        let now = Timestamp(1_000);
        let ready_at_once = |pace: &Pace| (0..).find(|starting| !pace.may_stage(now, *starting));
        for (ceiling, expected) in [(3.0, 8), (50.0, 8), (499.0, 8), (1_500.0, 11), (0.0, 16)] {
            let mut limiter = Pace::new(ceiling, 8, Learned::default(), Reach::Unknown, now);
            assert_eq!(ready_at_once(&limiter), Some(expected), "{ceiling}/s");
            limiter.failed(now, &Failure::new("no connection", true));
            assert_eq!(ready_at_once(&limiter), Some(0), "it is down");
        }
    }

    #[test]
    fn while_starts_meet_server_errors_one_order_at_a_time_tries() {
        let now = Timestamp(1_000);
        let mut limiter = pace(Learned::default(), now);
        for recover in [Pace::on_start_accepted, Pace::on_start_refused] {
            limiter.on_server_error();
            assert!(limiter.may_stage(now, 0) && !limiter.may_stage(now, 1));
            recover(&mut limiter);
            assert!(limiter.may_stage(now, 7));
        }
    }

    #[test]
    fn after_a_restart_of_the_upstream_fewer_processes_run_at_once_also_in_a_later_run() {
        let now = Timestamp(1_000);
        let mut limiter = pace(Learned::default(), now);
        limiter.listed(100, now);
        assert_eq!(limiter.lives().processes(), Some(100));
        limiter.restarted(0, now);
        let mut limiter = pace(limiter.learned(), now);
        assert_eq!((limiter.rate().rate(), limiter.lives().ended()), (3.0, 1));
        assert_eq!(limiter.lives().processes(), Some(0));
        let window = limiter.lives().window().unwrap();
        for _ in 0..window - 1 {
            limiter.on_start_accepted();
        }
        assert_eq!(limiter.next_start_at(now, 0), Some(now));
        assert_eq!(limiter.next_start_at(now, 1), None);
        limiter.on_start_accepted();
        assert_eq!(limiter.next_start_at(now, 0), None);
        limiter.found_running(window - 1);
        assert_eq!(limiter.next_start_at(now, 0), Some(now));
    }

    #[test]
    fn an_upstream_that_answers_again_is_looked_at_at_once() {
        let mut limiter = pace(Learned::default(), Timestamp(0));
        limiter.looked(Timestamp(0), Duration::from_millis(10));
        assert!(!limiter.are_looks_due(Timestamp(10)));
        limiter.answered(Timestamp(10));
        assert!(!limiter.are_looks_due(Timestamp(10)), "it was not down");
        limiter.failed(Timestamp(11), &Failure::new("no connection", true));
        limiter.answered(Timestamp(12));
        assert!(limiter.are_looks_due(Timestamp(12)));
    }

    #[test]
    fn every_start_takes_its_turn_at_a_rate_that_rises_while_all_is_quiet() {
        let mut limiter = pace(Learned::default(), Timestamp(0));
        limiter.restarted(0, Timestamp(0));
        assert_eq!(limiter.next_start_at(Timestamp(0), 0), Some(Timestamp(0)));
        let mut starts = 0;
        let mut reached = 0;
        for now in (0..180_000).map(Timestamp) {
            reached += usize::from(now.0 % 1_000 == 0 && limiter.recover(now));
            if limiter.next_start_at(now, 0) == Some(now) {
                limiter.on_start_sent(now);
                starts += 1;
            }
        }
        // 3/s at first, 50/s at the ceiling, which it is told once to have reached.
        assert!((4_000..8_000).contains(&starts), "{starts}");
        assert_eq!((limiter.rate().rate(), reached), (50.0, 1));
    }

    #[test]
    fn what_requests_met_is_told_once() {
        let mut limiter = pace(Learned::default(), Timestamp(0));
        let (answer, failure) = (true, true);
        limiter.answered(Timestamp(1));
        let met = |answer, failure| Met { answer, failure };
        assert_eq!(limiter.take_met(), met(answer, false));
        limiter.failed(Timestamp(2), &Failure::new("answered 500", false));
        assert_eq!(limiter.take_met(), met(false, failure));
        assert_eq!(limiter.take_met(), met(false, false));
    }

    #[test]
    fn when_something_is_not_as_it_should_be_everything_is_looked_at_at_once() {
        let mut limiter = pace(Learned::default(), Timestamp(0));
        limiter.looked(Timestamp(0), Duration::from_millis(10));
        assert!(!limiter.are_looks_due(Timestamp(10)));
        limiter.look_again(Timestamp(10));
        assert!(limiter.are_looks_due(Timestamp(10)));
    }

    #[test]
    fn it_is_learned_from_looks_how_long_processes_take_and_which_are_stuck() {
        let mut limiter = pace(Learned::default(), Timestamp(0));
        let order = Watched {
            seq: 1,
            running_since: Some(Timestamp(1_000)),
        };
        assert_eq!(limiter.stuck_after(), Duration::from_secs(1_200));
        let before = limiter.learned().durations;
        limiter.learn(&order, &Observed::Absent, Timestamp(5_000));
        assert_eq!(limiter.learned().durations, before);
        limiter.learn(&order, &Observed::Running, Timestamp(5_000));
        limiter.saw(1, Timestamp(5_000));
        limiter.learn(&order, &Observed::Failed, Timestamp(7_000));
        let mut expected = Durations::default();
        expected.outlived(Duration::ZERO, Duration::from_secs(4));
        expected.ended(Duration::from_secs(4), Duration::from_secs(6));
        assert_eq!(limiter.learned().durations, expected);
        assert!(limiter.stuck_after() < Duration::from_secs(20));
        // One that ran before this program did may have ended at any time before.
        let old = Watched {
            seq: 2,
            running_since: Some(Timestamp(-1)),
        };
        limiter.learn(&old, &Observed::Failed, Timestamp(7_000));
        assert_eq!(limiter.learned().durations, expected);
        // A look at all of them is one at this one.
        limiter.saw_all(Timestamp(9_000));
        limiter.learn(&order, &Observed::Running, Timestamp(21_000));
        expected.outlived(Duration::from_secs(8), Duration::from_secs(20));
        assert_eq!(limiter.learned().durations, expected);
    }

    #[test]
    fn a_restart_is_suspected_when_more_than_ten_and_more_than_a_third_are_missing() {
        assert!(!is_restart(10, 10) && is_restart(11, 11));
        assert!(is_restart(11, 32) && !is_restart(11, 33));
        assert!(!is_restart(0, 0));
    }
}
