//! Which orders to look at, how, and when again: looks cost the upstream time, and may kill it.
//!
//! A look at a process tells most when it is likely to have ended since the last one. When looking
//! at all of them is cheap, all are looked at.

use std::collections::HashMap;
use std::time::Duration;

use super::durations::Durations;
use crate::order::Timestamp;

/// What a look-up costs the upstream, measured on the real one.
const LOOK_UP_COST: Duration = Duration::from_micros(50);

/// What each entry of the list costs the upstream, in nanoseconds, measured on the real one.
const LIST_ENTRY_COST_NS: u64 = 500;

/// While the length of the list is not known, this many orders are looked up one by one.
const LOOK_UPS_UNSEEN: usize = 20;

/// Looks take one part in this many of the upstream's time as long as that delays no outcome by
/// much. A process that ends while a list is read can kill it, so that each list costs some of a
/// life; far fewer of them, and outcomes are seen late.
const GENTLE_SHARE: u32 = 4_000;

/// Where that would delay outcomes, looks may take one part in this many of its time, and no more.
const LARGEST_SHARE: u32 = 20;

/// An outcome is seen later by one part in this many of the time that a process takes, at most, if
/// the share allows.
const DELAY_SHARE: u32 = 5;

/// A process is looked at when it has ended since the last look with this probability.
const NEWS_MIN: f64 = 0.05;

/// And after this time in any case: nothing that was learned of other processes is certain.
const LOOK_AT_LEAST_EVERY: Duration = Duration::from_secs(60);

/// An order that should have a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watched {
    /// Its place in the order of creation.
    pub seq: i64,
    /// Since when its process has been known to run. Nothing if that is in doubt: it is then
    /// looked at whenever others are.
    pub running_since: Option<Timestamp>,
}

/// How to observe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// By a look-up for each of these, told by their place among the watched.
    LookUps(Vec<usize>),
    /// By one list of all processes.
    List,
}

/// What looking so many orders up costs the upstream.
pub fn look_ups_cost(orders: usize) -> Duration {
    LOOK_UP_COST * u32::try_from(orders).unwrap_or(u32::MAX)
}

/// What a list of so many entries costs the upstream.
pub fn list_cost(entries: u64) -> Duration {
    LOOK_UP_COST + Duration::from_nanos(entries.saturating_mul(LIST_ENTRY_COST_NS))
}

/// How many look-ups cost the upstream no more than the list.
fn look_ups_max(entries: Option<u64>) -> usize {
    let Some(entries) = entries else {
        return LOOK_UPS_UNSEEN;
    };
    let look_ups = list_cost(entries).as_nanos() / LOOK_UP_COST.as_nanos();
    usize::try_from(look_ups).unwrap_or(usize::MAX - 1)
}

/// When which order was last looked at.
#[derive(Clone, Debug)]
pub struct Looks {
    /// What was confirmed later was known at that moment; what was before has yet to be looked at.
    began_at: Timestamp,
    /// When the last look began, of whichever orders.
    last_at: Option<Timestamp>,
    /// Not again before.
    next_at: Timestamp,
    /// When all were last looked at, and those that were looked at on their own.
    all_at: Option<Timestamp>,
    each_at: HashMap<i64, Timestamp>,
}

impl Looks {
    /// No order was looked at before `now`.
    pub fn new(now: Timestamp) -> Self {
        Self {
            began_at: now,
            last_at: None,
            next_at: now,
            all_at: None,
            each_at: HashMap::new(),
        }
    }

    /// Whether anything may be looked at.
    pub fn are_due(&self, now: Timestamp) -> bool {
        now >= self.next_at
    }

    /// When anything may be looked at again.
    pub fn next_at(&self) -> Timestamp {
        self.next_at
    }

    /// When the process was last known to run, if it was looked at or confirmed in this run.
    pub fn last_known(&self, seq: i64, running_since: Timestamp) -> Option<Timestamp> {
        let looked_at = self.all_at.max(self.each_at.get(&seq).copied());
        let confirmed_at = (running_since >= self.began_at).then_some(running_since);
        looked_at.max(confirmed_at)
    }

    /// Chooses what to look at now. `watched` is in the order of `seq`; `entries` is the length of
    /// the list, if that is known.
    pub fn plan(
        &mut self,
        watched: &[Watched],
        durations: &Durations,
        entries: Option<u64>,
        now: Timestamp,
    ) -> Plan {
        if self.each_at.len() > watched.len() {
            self.each_at
                .retain(|seq, _| watched.binary_search_by_key(seq, |order| order.seq).is_ok());
        }
        let most = look_ups_max(entries);
        let passed = self.last_at.map_or(Duration::MAX, |at| now.since(at));
        let places: Vec<usize> = if look_ups_cost(watched.len()) * GENTLE_SHARE <= passed {
            (0..watched.len()).collect()
        } else {
            let hazards = durations.hazards();
            let is_due = |order: &Watched| {
                let Some(running_since) = order.running_since else {
                    return true;
                };
                let Some(known_at) = self.last_known(order.seq, running_since) else {
                    return true;
                };
                let (from, to) = (known_at.since(running_since), now.since(running_since));
                hazards.between(from, to) >= NEWS_MIN || now.since(known_at) >= LOOK_AT_LEAST_EVERY
            };
            let due = watched
                .iter()
                .enumerate()
                .filter(|(_, order)| is_due(order));
            // One more than can be looked up is enough to know.
            due.map(|(place, _)| place).take(most + 1).collect()
        };
        if places.len() > most {
            Plan::List
        } else {
            Plan::LookUps(places)
        }
    }

    /// Takes note of looks that began at `now` and cost the upstream `cost`; leaves it alone for
    /// long enough afterwards, given how long a process takes.
    pub fn looked(&mut self, now: Timestamp, cost: Duration, mean: Duration) {
        let gentle = (cost * GENTLE_SHARE).min(mean / DELAY_SHARE);
        let pause = gentle.min(LOOK_AT_LEAST_EVERY).max(cost * LARGEST_SHARE);
        self.last_at = Some(now);
        self.next_at = now.after(pause);
    }

    /// All were looked at.
    pub fn saw_all(&mut self, now: Timestamp) {
        self.all_at = Some(now);
        self.each_at.clear();
    }

    /// This one was looked at.
    pub fn saw(&mut self, seq: i64, now: Timestamp) {
        self.each_at.insert(seq, now);
    }

    /// Something has happened after which nothing is known: all are looked at as soon as possible.
    pub fn forget(&mut self, now: Timestamp) {
        *self = Self::new(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: i64) -> Timestamp {
        Timestamp(seconds * 1_000)
    }

    /// Orders whose processes were confirmed at these seconds.
    fn running(since: impl IntoIterator<Item = i64>) -> Vec<Watched> {
        let orders = since.into_iter().enumerate();
        orders
            .map(|(seq, since)| Watched {
                seq: seq as i64,
                running_since: Some(s(since)),
            })
            .collect()
    }

    /// Processes of 0 to 599 s.
    fn ten_minutes() -> Durations {
        let mut durations = Durations::default();
        for duration in 0..600 {
            let duration = Duration::from_secs(duration);
            durations.outlived(Duration::ZERO, duration);
            durations.ended(duration, duration);
        }
        durations
    }

    fn plan(looks: &Looks, watched: &[Watched], entries: Option<u64>, now: Timestamp) -> Plan {
        looks.clone().plan(watched, &ten_minutes(), entries, now)
    }

    #[test]
    fn few_orders_are_looked_up_and_many_are_read_from_the_list() {
        let looks = Looks::new(s(0));
        let how = |orders, entries| plan(&looks, &running(vec![-1; orders]), entries, s(0));
        assert_eq!(how(1, None), Plan::LookUps(vec![0]));
        assert_eq!(how(20, None), Plan::LookUps((0..20).collect()));
        assert_eq!(how(21, None), Plan::List);
        assert_eq!(how(1_000, Some(1_000)), Plan::List);
        assert_eq!(
            how(1_000, Some(1_000_000)),
            Plan::LookUps((0..1_000).collect())
        );
        assert_eq!(how(1, Some(0)), Plan::LookUps(vec![0]));
        assert_eq!(how(0, Some(0)), Plan::LookUps(vec![]));
    }

    #[test]
    fn a_process_just_started_is_less_urgent_than_one_as_old_as_most_that_finished() {
        let mut looks = Looks::new(s(0));
        let watched = running((0..100).map(|n| n * 6));
        looks.saw_all(s(595));
        looks.looked(s(595), Duration::ZERO, Duration::ZERO);
        let Plan::LookUps(places) = plan(&looks, &watched, Some(1_000_000), s(602)) else {
            panic!("the list is too long");
        };
        assert!(places.contains(&0) && places.contains(&5), "{places:?}");
        assert!(places.len() < 40 && !places.contains(&90), "{places:?}");
        // After a minute every one is looked at.
        let after = plan(&looks, &watched, Some(1_000_000), s(656));
        assert_eq!(after, Plan::LookUps((0..100).collect()));
    }

    #[test]
    fn a_handful_of_orders_is_looked_at_every_second_however_young() {
        let mut looks = Looks::new(s(0));
        let watched = running([0, 0, 0, 0, 0]);
        for now in 1..100 {
            assert!(looks.are_due(s(now)));
            assert_eq!(
                plan(&looks, &watched, None, s(now)),
                Plan::LookUps((0..5).collect())
            );
            looks.saw_all(s(now));
            looks.looked(s(now), look_ups_cost(5), Duration::from_secs(300));
        }
    }

    #[test]
    fn an_order_in_doubt_is_looked_at_whenever_any_is() {
        let mut looks = Looks::new(s(0));
        let mut watched = running(vec![0; 50]);
        watched[7].running_since = None;
        looks.saw_all(s(10));
        looks.looked(s(10), Duration::ZERO, Duration::ZERO);
        assert_eq!(
            plan(&looks, &watched, Some(9_999), s(11)),
            Plan::LookUps(vec![7])
        );
    }

    #[test]
    fn what_was_not_looked_at_in_this_run_is_due_and_what_was_confirmed_in_it_is_not() {
        let mut looks = Looks::new(s(100));
        looks.looked(s(100), Duration::ZERO, Duration::ZERO);
        let mut watched = running(vec![90; 30]);
        watched.extend(running(vec![100; 30]).into_iter().map(|order| Watched {
            seq: order.seq + 30,
            ..order
        }));
        let due = plan(&looks, &watched, Some(9_999), s(101));
        assert_eq!(due, Plan::LookUps((0..30).collect()));
        for seq in 0..29 {
            looks.saw(seq, s(101));
        }
        assert_eq!(
            plan(&looks, &watched, Some(9_999), s(102)),
            Plan::LookUps(vec![29])
        );
        looks.forget(s(103));
        assert_eq!(looks.last_known(3, s(90)), None);
        assert!(looks.are_due(s(103)));
    }

    #[test]
    fn the_upstream_is_left_alone_in_proportion_to_what_a_look_cost_it() {
        let pause = |cost_ms: u64, mean_s: u64| {
            let mut looks = Looks::new(s(0));
            let (cost, mean) = (Duration::from_millis(cost_ms), Duration::from_secs(mean_s));
            looks.looked(s(0), cost, mean);
            (1..).find(|ms| looks.are_due(Timestamp(*ms))).unwrap_or(0)
        };
        assert_eq!(pause(3, 300), 12_000, "gentle");
        assert_eq!(pause(3, 5), 1_000, "outcomes would be seen late");
        assert_eq!(pause(500, 200), 40_000, "they still would");
        assert_eq!(pause(500, 5), 10_000, "the share is bounded");
        assert_eq!(pause(500, 100_000), 60_000, "at least every minute");
    }

    #[test]
    fn settled_orders_are_forgotten() {
        let mut looks = Looks::new(s(0));
        for seq in 0..1_000 {
            looks.saw(seq, s(0));
        }
        looks.plan(&running([0, 0]), &ten_minutes(), None, s(1));
        assert_eq!(looks.each_at.len(), 2);
    }
}
