//! How many starts per second: when each may leave, and what was learned of how many the upstream
//! can take.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::order::Timestamp;

/// How late a start may be made up for. Timers are late by a millisecond or two at every start;
/// without this the pace would stay that much below its ceiling.
const LATENESS_MADE_UP_MS: f64 = 10.0;

/// The golden ratio, less one: its multiples fill the interval from 0 to 1 more evenly than chance.
const GOLDEN: f64 = 0.618_033_988_749_894_9;

/// Keeps starts below a rate: the generic cell rate algorithm (ITU-T I.371), with one start as the
/// cell.
///
/// The starts keep no beat: each leaves somewhere else in its interval. The upstream's processes
/// last whole seconds, so that those of a steady beat would end in the very moments in which later
/// ones are started, and an end that meets a start can kill the upstream. (Routers whose messages
/// fall into step are known to need the same; Floyd and Jacobson, 1994.)
#[derive(Clone, Debug)]
pub struct Beat {
    /// Between two starts on average, in milliseconds.
    interval: f64,
    /// When the next start is due, in milliseconds since the epoch.
    next: f64,
    /// Where in its interval that is, from 0 to 1.
    place: f64,
}

impl Beat {
    /// At most `rate` starts per second.
    pub fn new(rate: f64) -> Self {
        Self {
            interval: 1_000.0 / rate,
            next: 0.0,
            place: 0.0,
        }
    }

    /// Changes the rate from now on, in starts per second.
    pub fn set_rate(&mut self, rate: f64) {
        self.interval = 1_000.0 / rate;
    }

    /// When the next start may leave: `now` or later.
    pub fn next_at(&self, now: Timestamp) -> Timestamp {
        if self.is_due(now) {
            now
        } else {
            Timestamp(self.next.ceil() as i64)
        }
    }

    /// Takes note of a start that leaves at `now`.
    pub fn started(&mut self, now: Timestamp) {
        let now_ms = now.0 as f64;
        let from = if self.is_due(now) {
            self.next.clamp(now_ms - LATENESS_MADE_UP_MS, now_ms)
        } else {
            self.next
        };
        let place = (self.place + GOLDEN).fract();
        self.next = from + self.interval * (1.0 + place - self.place);
        self.place = place;
    }

    fn is_due(&self, now: Timestamp) -> bool {
        self.next <= now.0 as f64
    }
}

/// The rate after a restart of the upstream, in starts per second: slow enough that a service that
/// has just come up is not knocked over by those that it has forgotten.
const RATE_AFTER_RESTART: f64 = 3.0;

/// The slowest rate that overload can lead to, in starts per second.
const RATE_MIN: f64 = 0.5;

/// Without a ceiling, the rate that counts as none, in starts per second: more than was ever sent,
/// and not much more, because overload leads down from here by halves.
const RATE_UNLIMITED: f64 = 50_000.0;

/// Below the threshold the rate doubles in this time.
const RATE_DOUBLES_IN: Duration = Duration::from_secs(5);

/// Above the threshold it takes this long from nothing to the ceiling.
const RATE_FULL_IN: Duration = Duration::from_secs(120);

/// One overload is told by several answers: the rate is cut once in this time.
const RATE_CUT_EVERY: Duration = Duration::from_secs(2);

/// How fast this upstream may be driven, as far as is known: halved by overload, back to a few
/// starts per second when it was restarted, and raised while all is quiet; quickly up to half of
/// the rate that brought the trouble, slowly above. (TCP's slow start and congestion avoidance,
/// RFC 5681, with starts per second for a window.)
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LearnedRate {
    /// Starts per second.
    rate: f64,
    threshold: f64,
    ceiling: f64,
    changed_at: Timestamp,
    /// What brought it below its ceiling.
    reason: Option<String>,
}

impl LearnedRate {
    /// At the ceiling, in starts per second, of which 0 means none.
    pub fn new(ceiling: f64, now: Timestamp) -> Self {
        let ceiling = ceiling_of(ceiling);
        Self {
            rate: ceiling,
            threshold: ceiling,
            ceiling,
            changed_at: now,
            reason: None,
        }
    }

    /// What an earlier run had learned, under the ceiling of this one.
    #[must_use]
    pub fn under(mut self, ceiling: f64, now: Timestamp) -> Self {
        let was_full = self.is_full();
        self.ceiling = ceiling_of(ceiling);
        let slowest = self.slowest();
        let known = |rate: f64| if was_full { self.ceiling } else { rate };
        self.rate = known(self.rate).clamp(slowest, self.ceiling);
        self.threshold = known(self.threshold).clamp(slowest, self.ceiling);
        self.changed_at = self.changed_at.min(now);
        self
    }

    /// Starts per second.
    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// Starts per second at most; nothing if there is no ceiling.
    pub fn ceiling(&self) -> Option<f64> {
        (self.ceiling < RATE_UNLIMITED).then_some(self.ceiling)
    }

    /// What brought it below its ceiling, in words.
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// Whether nothing holds it below its ceiling.
    pub fn is_full(&self) -> bool {
        self.rate >= self.ceiling
    }

    /// Whether there is a ceiling, or something else that holds it down.
    pub fn is_limited(&self) -> bool {
        self.rate < RATE_UNLIMITED
    }

    /// Raises the rate by the time since it was last changed. Tells whether it has reached its
    /// ceiling again.
    pub fn quiet(&mut self, now: Timestamp) -> bool {
        let passed = now.since(self.changed_at).as_secs_f64();
        self.changed_at = now;
        if self.is_full() {
            return false;
        }
        if self.rate < self.threshold {
            let doublings = passed / RATE_DOUBLES_IN.as_secs_f64();
            self.rate = (self.rate * doublings.exp2()).min(self.threshold);
        } else {
            let step = self.ceiling * passed / RATE_FULL_IN.as_secs_f64();
            self.rate = (self.rate + step).min(self.ceiling);
        }
        if self.is_full() {
            self.reason = None;
        }
        self.is_full()
    }

    /// The upstream has said that it is overloaded, or has not answered in time. Tells whether
    /// that changes the rate.
    pub fn overloaded(&mut self, now: Timestamp, detail: &str) -> bool {
        if !self.is_full() && now.since(self.changed_at) < RATE_CUT_EVERY {
            return false;
        }
        self.cut_to(self.rate / 2.0, now, detail);
        true
    }

    /// The upstream was restarted: a new life begins.
    pub fn restarted(&mut self, now: Timestamp) {
        let rate = RATE_AFTER_RESTART.min(self.rate);
        self.cut_to(rate, now, "the upstream was restarted");
    }

    fn cut_to(&mut self, rate: f64, now: Timestamp, reason: &str) {
        self.threshold = (self.rate / 2.0).max(self.slowest());
        self.rate = rate.max(self.slowest());
        self.changed_at = now;
        self.reason = Some(reason.to_owned());
    }

    fn slowest(&self) -> f64 {
        RATE_MIN.min(self.ceiling)
    }
}

fn ceiling_of(ceiling: f64) -> f64 {
    if ceiling > 0.0 {
        ceiling.min(RATE_UNLIMITED)
    } else {
        RATE_UNLIMITED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Starts as soon as allowed from 0 to `until` ms, with timers late by `late` ms.
    fn starts_until(beat: &mut Beat, until: i64, late: i64) -> Vec<i64> {
        let mut now = Timestamp(0);
        let mut starts = Vec::new();
        while now.0 < until {
            let at = beat.next_at(now);
            if at > now {
                now = Timestamp(at.0 + late);
                continue;
            }
            beat.started(now);
            starts.push(now.0);
        }
        starts
    }

    #[test]
    fn starts_keep_to_the_ceiling_and_reach_it_although_timers_are_late() {
        for (rate, late) in [(50.0, 0), (50.0, 2), (0.5, 2), (3_000.0, 1), (7.3, 1)] {
            let starts = starts_until(&mut Beat::new(rate), 100_000, late);
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
    fn starts_keep_no_beat_in_which_processes_of_whole_seconds_could_end() {
        let starts = starts_until(&mut Beat::new(50.0), 600_000, 0);
        let moments: std::collections::HashSet<i64> = starts.iter().copied().collect();
        let meets =
            |start: &&i64| (1..600).any(|second| moments.contains(&(*start + second * 1_000)));
        // Of a steady beat, every start has others whole seconds later; by chance 1 in 20 a second.
        let of_the_first = starts.iter().take(50).map(|start| {
            (1..600)
                .filter(|second| moments.contains(&(start + second * 1_000)))
                .count()
        });
        let met: usize = of_the_first.sum();
        assert!(met < 50 * 599 / 10, "{met}");
        assert!(starts.iter().take(50).any(|start| meets(&start)));
        // And none comes much earlier or later than its turn.
        let gaps = starts.windows(2).map(|pair| pair[1] - pair[0]);
        assert!(gaps.clone().all(|gap| (11..=34).contains(&gap)));
    }

    #[test]
    fn without_a_ceiling_every_start_may_leave_at_once() {
        let rate = LearnedRate::new(0.0, Timestamp(7_000));
        assert_eq!(rate.ceiling(), None);
        let mut beat = Beat::new(rate.rate());
        for _ in 0..180 {
            beat.started(Timestamp(7_000));
        }
        assert_eq!(beat.next_at(Timestamp(7_000)), Timestamp(7_000));
        // Nor is a ceiling one that no one reaches.
        let as_good_as_none = LearnedRate::new(1e9, Timestamp(7_000));
        assert_eq!((as_good_as_none.ceiling(), as_good_as_none), (None, rate));
    }

    /// The rate after each of these seconds without trouble.
    fn after_quiet(rate: &mut LearnedRate, from: Timestamp, seconds: i64) -> f64 {
        for second in 1..=seconds {
            rate.quiet(Timestamp(from.0 + second * 1_000));
        }
        rate.rate()
    }

    #[test]
    fn without_trouble_the_rate_is_at_its_ceiling_from_the_first_start() {
        let mut rate = LearnedRate::new(50.0, Timestamp(0));
        assert_eq!(rate.rate(), 50.0);
        assert!(!rate.quiet(Timestamp(1)), "it was full before");
        assert_eq!(after_quiet(&mut rate, Timestamp(1), 100), 50.0);
        assert_eq!((rate.ceiling(), rate.reason()), (Some(50.0), None));
    }

    #[test]
    fn a_restart_of_the_upstream_leads_to_a_few_starts_per_second_which_rise_again() {
        let mut rate = LearnedRate::new(50.0, Timestamp(0));
        rate.restarted(Timestamp(0));
        assert_eq!(rate.rate(), 3.0);
        assert_eq!(rate.reason(), Some("the upstream was restarted"));
        let soon = after_quiet(&mut rate, Timestamp(0), 5);
        assert!((5.9..6.1).contains(&soon), "doubled: {soon}");
        let half = after_quiet(&mut rate, Timestamp(5_000), 11);
        assert!((25.0..26.0).contains(&half), "slower from here: {half}");
        let later = after_quiet(&mut rate, Timestamp(16_000), 30);
        assert!((36.0..39.0).contains(&later), "{later}");
        assert_eq!(after_quiet(&mut rate, Timestamp(46_000), 60), 50.0);
        assert!(rate.is_full());
        assert_eq!(rate.reason(), None);
        // A second one soon after counts from where the rate was.
        rate.restarted(Timestamp(106_000));
        rate.restarted(Timestamp(107_000));
        assert_eq!(rate.rate(), 3.0);
        assert!(after_quiet(&mut rate, Timestamp(107_000), 4) < 5.0);
    }

    #[test]
    fn the_rate_rises_with_the_time_that_passes_however_many_passes_are_made_in_it() {
        let mut often = LearnedRate::new(50.0, Timestamp(0));
        often.restarted(Timestamp(0));
        let mut seldom = often.clone();
        // It doubles up to 16 s, and rises by the second from there.
        for (from, to) in [(0, 10), (10, 16), (16, 46)] {
            after_quiet(&mut often, Timestamp(from * 1_000), to - from);
            seldom.quiet(Timestamp(to * 1_000));
            let ratio = often.rate() / seldom.rate();
            assert!((0.95..1.05).contains(&ratio), "{often:?} {seldom:?}");
        }
    }

    #[test]
    fn it_is_told_once_when_the_rate_has_reached_its_ceiling_again() {
        let mut rate = LearnedRate::new(50.0, Timestamp(0));
        rate.restarted(Timestamp(0));
        let reached = (1..200).filter(|second| rate.quiet(Timestamp(second * 1_000)));
        assert_eq!(reached.count(), 1);
    }

    #[test]
    fn overload_halves_the_rate_once_for_each_burst_of_answers() {
        let mut rate = LearnedRate::new(40.0, Timestamp(0));
        assert!(rate.overloaded(Timestamp(0), "answered 503"));
        assert!(!rate.overloaded(Timestamp(1), "answered 429"));
        assert_eq!((rate.rate(), rate.reason()), (20.0, Some("answered 503")));
        assert!(rate.overloaded(Timestamp(2_000), "answered 429"));
        assert_eq!((rate.rate(), rate.reason()), (10.0, Some("answered 429")));
        for second in 2..100 {
            rate.overloaded(Timestamp(second * 2_000), "answered 503");
        }
        assert_eq!(rate.rate(), 0.5);
    }

    #[test]
    fn what_was_learned_holds_under_another_ceiling_and_a_clock_set_back() {
        let mut rate = LearnedRate::new(50.0, Timestamp(0));
        rate.restarted(Timestamp(9_000));
        assert_eq!(rate.clone().under(50.0, Timestamp(9_000)), rate);
        let mut lower = rate.clone().under(2.0, Timestamp(5_000));
        assert_eq!(lower.rate(), 2.0);
        assert_eq!(after_quiet(&mut lower, Timestamp(5_000), 10), 2.0);
        assert_eq!(rate.under(0.0, Timestamp(9_000)).rate(), 3.0);
        // A rate that nothing had lowered is not held down by the ceiling that it had.
        let full = LearnedRate::new(50.0, Timestamp(0));
        assert_eq!(full.under(80.0, Timestamp(9_000)).rate(), 80.0);
    }
}
