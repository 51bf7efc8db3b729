//! Polling: which processes to look at, by look-ups or by a list, and when.
//!
//! Each look costs the upstream time, and one that meets the end of a process can crash it. The budget
//! is a share of the upstream's time. Within it an order is looked up just after each whole second that
//! its process has lasted, because processes last whole seconds.

use std::collections::HashMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::BACKOFF_BASE;
use crate::order::Timestamp;

/// Cost of a look-up to the upstream, measured on the real one.
const LOOK_UP_COST: Duration = Duration::from_micros(50);

/// Cost of each entry of a list to the upstream, in nanoseconds, measured on the real one.
const LIST_ENTRY_COST_NS: u64 = 500;

/// Number of look-ups that are preferred to a list whose length is not known.
const LOOK_UPS_UNSEEN: usize = 20;

/// Looks take one part in this many of the upstream's time as long as that delays no outcome by
/// much. A process that ends while a list is read can crash the upstream, so that each list costs some
/// of an incarnation; far fewer of them, and outcomes are seen late.
const GENTLE_SHARE: u32 = 4_000;

/// Where that would delay outcomes, looks may take one part in this many of its time, and no more.
const LARGEST_SHARE: u32 = 20;

/// An outcome is seen later by one part in this many of the duration of a process, at most, if the
/// share allows.
const DELAY_SHARE: u32 = 5;

/// Longest pause between two looks that the budget leads to, unless [`LARGEST_SHARE`] demands more.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Unit of the duration of a process.
const PERIOD_MS: i64 = 1_000;

/// Time after a whole second of a process at which it is looked at, in milliseconds: the first of these
/// numbers and up to the second more, by order. In the very millisecond in which it ends, a look could
/// meet its end, and the looks of orders started together would meet each other.
const JITTER_MS: (i64, i64) = (15, 20);

/// With more processes than this, a look is always due for one of them, and looks follow the schedule.
const FEW: usize = 32;

/// Outcomes after which those seen so far count half.
const ENDED_MAX: f64 = 1_000.0;

/// Each outcome shortens the longest duration by one part in this many, unless it confirms it: a
/// process that ran for long in a former configuration does not count for ever.
const LONGEST_FADES: u32 = 1_000;

/// Longest duration of a process while none was seen to end: as configured by default, and a little.
const LONGEST_ASSUMED: Duration = Duration::from_secs(660);

/// An order that should have a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PollTarget {
    /// Its number in the order of creation.
    pub seq: i64,
    /// Since when its process has been known to run. Nothing if that is in doubt: it is then
    /// looked at whenever others are.
    pub running_since: Option<Timestamp>,
}

/// A way to observe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PollPlan {
    /// A look-up for each of these, by their index among the watched.
    LookUps(Vec<usize>),
    /// One list of all processes.
    List,
}

/// Returns the cost of so many look-ups to the upstream.
pub fn look_ups_cost(orders: usize) -> Duration {
    LOOK_UP_COST * u32::try_from(orders).unwrap_or(u32::MAX)
}

/// Returns the cost of a list of so many entries to the upstream.
pub fn list_cost(entries: u64) -> Duration {
    LOOK_UP_COST + Duration::from_nanos(entries.saturating_mul(LIST_ENTRY_COST_NS))
}

/// Number of look-ups that cost the upstream no more than the list, if each request costs `least`.
fn look_ups_max(entries: Option<u64>, least: Duration) -> usize {
    let Some(entries) = entries else {
        return if least.is_zero() { LOOK_UPS_UNSEEN } else { 1 };
    };
    let list = list_cost(entries).max(least);
    let look_ups = list.as_nanos() / LOOK_UP_COST.max(least).as_nanos();
    usize::try_from(look_ups).unwrap_or(usize::MAX - 1)
}

/// Durations of processes, estimated from looks at them while most still run: the time that they were
/// observed for by the number that ended in it (the maximum likelihood estimate for censored
/// exponential lifetimes; Epstein and Sobel, 1953).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Durations {
    observed_seconds: f64,
    ended: f64,
    longest: Duration,
}

impl Durations {
    /// A process was observed for so long since it was last looked at.
    pub fn on_observed(&mut self, time: Duration) {
        self.observed_seconds += time.as_secs_f64();
    }

    /// A process has ended at this age.
    pub fn on_ended(&mut self, age: Duration) {
        self.ended += 1.0;
        if self.ended >= ENDED_MAX {
            self.ended /= 2.0;
            self.observed_seconds /= 2.0;
        }
        self.longest = age.max(self.longest - self.longest / LONGEST_FADES);
    }

    /// Mean duration; `None` while no process was seen to end.
    pub fn mean(&self) -> Option<Duration> {
        (self.ended > 0.0).then(|| self.at_least())
    }

    /// Mean duration, as if one process ended now if none has yet.
    fn at_least(&self) -> Duration {
        let seconds = self.observed_seconds / self.ended.max(1.0);
        Duration::try_from_secs_f64(seconds).unwrap_or(PAUSE_MAX)
    }

    /// Age by which all have ended that were seen to end lately.
    pub fn longest(&self) -> Duration {
        match self.ended > 0.0 {
            true => self.longest,
            false => LONGEST_ASSUMED,
        }
    }
}

/// Polling of the processes of open orders.
#[derive(Clone, Debug)]
pub struct Polling {
    /// What was confirmed later was known at that moment; what was before has yet to be looked at.
    began_at: Timestamp,
    /// The budget allows no look before.
    next_at: Timestamp,
    /// When the next of a few orders is due; `None` if there are none, or many.
    due_at: Option<Timestamp>,
    /// Last look at all orders, and at each that was looked at alone.
    all_at: Option<Timestamp>,
    each_at: HashMap<i64, Timestamp>,
    /// Looks in a row that were refused for their rate, and when the next may be made.
    refused: u32,
    refused_until: Option<Timestamp>,
}

impl Polling {
    /// No order was looked at before `now`.
    pub fn new(now: Timestamp) -> Self {
        Self {
            began_at: now,
            next_at: now,
            due_at: None,
            all_at: None,
            each_at: HashMap::new(),
            refused: 0,
            refused_until: None,
        }
    }

    /// When the budget allows the next look.
    pub fn next_at(&self) -> Timestamp {
        self.next_at.max(self.refused_until.unwrap_or(self.next_at))
    }

    /// When one of a few orders is due, within the budget.
    pub fn due_at(&self) -> Option<Timestamp> {
        self.due_at.map(|at| at.max(self.next_at()))
    }

    /// The process of this order was started.
    pub fn on_started(&mut self, seq: i64, now: Timestamp) {
        let due_at = due_at(seq, now, now);
        self.due_at = Some(self.due_at.map_or(due_at, |at| at.min(due_at)));
    }

    /// A look was refused for its rate. The next one waits for a second, twice as long after each
    /// refusal.
    pub fn on_refused(&mut self, now: Timestamp) {
        if !self.is_refused(now) {
            let pause = BACKOFF_BASE * 2_u32.pow(self.refused.min(6));
            self.refused += 1;
            self.refused_until = Some(now.after(pause.min(PAUSE_MAX)));
        }
    }

    /// A look was answered.
    pub fn on_answered(&mut self) {
        (self.refused, self.refused_until) = (0, None);
    }

    /// Returns whether looks wait because one was refused.
    pub fn is_refused(&self, now: Timestamp) -> bool {
        self.refused_until.is_some_and(|at| at > now)
    }

    /// When the process was last known to run, if it was looked at or confirmed in this run.
    pub fn last_known(&self, seq: i64, running_since: Timestamp) -> Option<Timestamp> {
        let looked_at = self.all_at.max(self.each_at.get(&seq).copied());
        let confirmed_at = (running_since > self.began_at).then_some(running_since);
        looked_at.max(confirmed_at)
    }

    /// Chooses what to look at now. `watched` is in the order of `seq`; `entries` is the length of
    /// the list, if that is known; each request costs the upstream `least`. `is_often` says that the
    /// schedule has moments enough for each order to wait for its own.
    pub fn plan(
        &mut self,
        watched: &[PollTarget],
        entries: Option<u64>,
        least: Duration,
        is_often: bool,
        now: Timestamp,
    ) -> PollPlan {
        if self.each_at.len() > watched.len() {
            self.each_at
                .retain(|seq, _| watched.binary_search_by_key(seq, |order| order.seq).is_ok());
        }
        let most = look_ups_max(entries, least);
        let have_moments = is_often && watched.len() <= FEW;
        let (mut due, mut next) = (Vec::new(), None::<Timestamp>);
        for (index, order) in watched.iter().enumerate() {
            let known_at = order.running_since.and_then(|since| {
                let known_at = self.last_known(order.seq, since)?;
                Some((since, known_at))
            });
            let mut at = known_at.map(|(since, known_at)| due_at(order.seq, since, known_at));
            if !have_moments || at.is_none_or(|at| at <= now) {
                due.push(index);
                at = order
                    .running_since
                    .map(|since| due_at(order.seq, since, now));
            }
            next = [next, at].into_iter().flatten().min();
            // One more than can be looked up is enough to know.
            if due.len() > most {
                break;
            }
        }
        self.due_at = next.filter(|_| have_moments);
        match due.len() > most {
            true => PollPlan::List,
            false => PollPlan::LookUps(due),
        }
    }

    /// Looks that began at `now` have cost the upstream `cost`: leaves it alone for long enough.
    pub fn on_polled(&mut self, now: Timestamp, cost: Duration, durations: &Durations) {
        let gentle = (cost * GENTLE_SHARE).min(durations.at_least() / DELAY_SHARE);
        let pause = gentle.min(PAUSE_MAX).max(cost * LARGEST_SHARE);
        self.next_at = now.after(pause);
    }

    /// All were looked at.
    pub fn on_all_polled(&mut self, now: Timestamp) {
        self.all_at = Some(now);
        self.each_at.clear();
    }

    /// This one was looked at.
    pub fn on_order_polled(&mut self, seq: i64, now: Timestamp) {
        self.each_at.insert(seq, now);
    }

    /// Something has happened after which nothing is known: all are looked at as soon as possible.
    pub fn forget(&mut self, now: Timestamp) {
        *self = Self {
            refused: self.refused,
            refused_until: self.refused_until,
            ..Self::new(now)
        };
    }
}

/// When a process that is known to have run at `known_at` is to be looked at again: just after it has
/// lasted one more whole second.
fn due_at(seq: i64, running_since: Timestamp, known_at: Timestamp) -> Timestamp {
    let (least, spread) = JITTER_MS;
    let jitter = least + seq.rem_euclid(spread);
    let whole = (known_at.0 - running_since.0).max(0) / PERIOD_MS + 1;
    Timestamp(running_since.0 + whole * PERIOD_MS + jitter)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: i64) -> Timestamp {
        Timestamp(seconds * 1_000)
    }

    /// Orders whose processes were confirmed at these seconds.
    fn running(since: impl IntoIterator<Item = i64>) -> Vec<PollTarget> {
        let orders = since.into_iter().enumerate();
        orders
            .map(|(seq, since)| PollTarget {
                seq: seq as i64,
                running_since: Some(s(since)),
            })
            .collect()
    }

    fn plan(
        polling: &Polling,
        watched: &[PollTarget],
        entries: Option<u64>,
        now: Timestamp,
    ) -> PollPlan {
        polling
            .clone()
            .plan(watched, entries, Duration::ZERO, true, now)
    }

    #[test]
    fn few_orders_are_looked_up_and_many_are_read_from_the_list() {
        let polling = Polling::new(s(0));
        let how = |orders, entries| plan(&polling, &running(vec![-1; orders]), entries, s(0));
        assert_eq!(how(1, None), PollPlan::LookUps(vec![0]));
        assert_eq!(how(20, None), PollPlan::LookUps((0..20).collect()));
        assert_eq!(how(21, None), PollPlan::List);
        assert_eq!(how(1_000, Some(1_000)), PollPlan::List);
        assert_eq!(
            how(1_000, Some(1_000_000)),
            PollPlan::LookUps((0..1_000).collect())
        );
        assert_eq!(how(1, Some(0)), PollPlan::LookUps(vec![0]));
        assert_eq!(how(0, Some(0)), PollPlan::LookUps(vec![]));
        // Where each request counts, one list is better than two look-ups, unless it is known to be long.
        let limited = |entries: Option<u64>| {
            let least = Duration::from_millis(200);
            polling
                .clone()
                .plan(&running([-1, -1]), entries, least, true, s(0))
        };
        assert_eq!(limited(None), PollPlan::List);
        assert_eq!(limited(Some(10_000)), PollPlan::List);
        assert_eq!(limited(Some(1_000_000)), PollPlan::LookUps(vec![0, 1]));
    }

    #[test]
    fn an_order_is_looked_at_just_after_each_whole_second_of_its_process() {
        let mut polling = Polling::new(s(0));
        polling.on_started(3, Timestamp(400));
        assert_eq!(polling.due_at(), Some(Timestamp(1_418)));
        let watched = [PollTarget {
            seq: 3,
            running_since: Some(Timestamp(400)),
        }];
        let none = PollPlan::LookUps(vec![]);
        for second in 1..600 {
            let at = Timestamp(418 + second * 1_000);
            assert_eq!(plan(&polling, &watched, None, Timestamp(at.0 - 1)), none);
            let planned = polling.plan(&watched, None, Duration::ZERO, true, at);
            assert_eq!(planned, PollPlan::LookUps(vec![0]));
            polling.on_polled(at, look_ups_cost(1), &Durations::default());
            polling.on_order_polled(3, at);
            assert_eq!(polling.due_at(), Some(Timestamp(at.0 + 1_000)));
        }
    }

    #[test]
    fn many_orders_have_no_moments_of_their_own() {
        let mut polling = Polling::new(s(0));
        let watched = running(vec![0; FEW + 1]);
        polling.on_all_polled(s(1));
        let planned = polling.plan(&watched, Some(100), Duration::ZERO, true, s(1));
        assert_eq!((planned, polling.due_at()), (PollPlan::List, None));
    }

    #[test]
    fn an_order_in_doubt_is_looked_at_whenever_any_is() {
        let mut polling = Polling::new(s(0));
        let mut watched = running(vec![0; 20]);
        watched[7].running_since = None;
        polling.on_all_polled(Timestamp(1_500));
        assert_eq!(
            plan(&polling, &watched, Some(9_999), Timestamp(1_900)),
            PollPlan::LookUps(vec![7])
        );
    }

    #[test]
    fn what_was_not_looked_at_in_this_run_is_due_and_what_was_confirmed_in_it_is_not() {
        let mut polling = Polling::new(s(100));
        let mut watched = running(vec![90; 10]);
        watched.extend(running(vec![101; 10]).into_iter().map(|order| PollTarget {
            seq: order.seq + 10,
            ..order
        }));
        let due = plan(&polling, &watched, Some(9_999), s(102));
        assert_eq!(due, PollPlan::LookUps((0..10).collect()));
        for seq in 0..9 {
            polling.on_order_polled(seq, s(102));
        }
        assert_eq!(
            plan(&polling, &watched, Some(9_999), s(102)),
            PollPlan::LookUps(vec![9])
        );
        polling.forget(s(103));
        assert_eq!(polling.last_known(3, s(90)), None);
    }

    #[test]
    fn the_upstream_is_left_alone_in_proportion_to_the_cost_of_a_look() {
        let pause = |cost_ms: u64, mean_s: u64| {
            let mut polling = Polling::new(s(0));
            let mut durations = Durations::default();
            durations.on_observed(Duration::from_secs(mean_s));
            polling.on_polled(s(0), Duration::from_millis(cost_ms), &durations);
            polling.next_at().0
        };
        assert_eq!(pause(3, 300), 12_000, "gentle");
        assert_eq!(pause(3, 5), 1_000, "outcomes would be seen late");
        assert_eq!(pause(500, 200), 40_000, "they still would");
        assert_eq!(pause(500, 5), 10_000, "the share is bounded");
        assert_eq!(pause(500, 100_000), 60_000, "at least every minute");
        assert_eq!(pause(5_000, 5), 100_000, "ten million entries");
    }

    #[test]
    fn looks_that_are_refused_are_made_ever_more_rarely_until_one_is_answered() {
        let mut polling = Polling::new(s(0));
        let mut now = s(0);
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            polling.on_refused(now);
            polling.on_refused(now);
            let until = now.after(Duration::from_secs(seconds));
            assert_eq!(polling.next_at(), until);
            assert!(polling.is_refused(Timestamp(until.0 - 1)) && !polling.is_refused(until));
            now = until;
        }
        polling.on_answered();
        assert!(!polling.is_refused(s(0)));
        polling.on_refused(now);
        assert_eq!(polling.next_at(), now.after(Duration::from_secs(1)));
        // A limit holds even if all orders are to be looked at anew.
        polling.forget(now);
        assert_eq!(polling.next_at(), now.after(Duration::from_secs(1)));
        let until = polling.next_at();
        polling.on_refused(until);
        assert_eq!(polling.next_at(), until.after(Duration::from_secs(2)));
    }

    #[test]
    fn durations_are_estimated_while_most_processes_still_run() {
        let mut durations = Durations::default();
        // A thousand processes of 0 to 599 s, looked at each second for a minute.
        for second in 1..=60_u64 {
            for process in 0..1_000 {
                match (process * 599 / 1_000_u64).cmp(&(second - 1)) {
                    std::cmp::Ordering::Less => {}
                    std::cmp::Ordering::Equal => {
                        durations.on_observed(Duration::from_secs(1));
                        durations.on_ended(Duration::from_secs(second));
                    }
                    std::cmp::Ordering::Greater => {
                        durations.on_observed(Duration::from_secs(1));
                    }
                }
            }
        }
        let mean = durations.mean().unwrap().as_secs();
        assert!((450..650).contains(&mean), "{mean}");
        assert_eq!(durations.longest(), Duration::from_secs(60));
        // What is seen later counts more.
        for _ in 0..20_000 {
            durations.on_observed(Duration::from_secs(5));
            durations.on_ended(Duration::from_secs(5));
        }
        assert!(durations.mean().unwrap() < Duration::from_secs(6));
        assert!(durations.longest() < Duration::from_secs(6));
    }

    #[test]
    fn the_mean_duration_of_equal_processes_stays_theirs_however_many_end() {
        let mut durations = Durations::default();
        let ten_seconds = Duration::from_secs(10);
        for ended in 1..=2 * ENDED_MAX as u32 {
            durations.on_observed(ten_seconds);
            durations.on_ended(ten_seconds);
            assert_eq!(durations.mean(), Some(ten_seconds), "{ended}");
        }
    }

    #[test]
    fn a_look_up_costs_what_a_list_without_entries_does() {
        assert_eq!(look_ups_cost(3), list_cost(0) * 3);
        let of_entries = list_cost(2_000) - list_cost(0);
        assert_eq!(of_entries, Duration::from_millis(1));
    }

    #[test]
    fn settled_orders_are_forgotten() {
        let mut polling = Polling::new(s(0));
        for seq in 0..1_000 {
            polling.on_order_polled(seq, s(0));
        }
        polling.plan(&running([0, 0]), None, Duration::ZERO, true, s(1));
        assert_eq!(polling.each_at.len(), 2);
    }
}
