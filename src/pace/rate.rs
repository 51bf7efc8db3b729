//! How many starts per second: when each may leave, and what was learned of how many the upstream
//! can take.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::order::Timestamp;

/// How late a start may be made up for. Timers are late by a millisecond or two at every start;
/// without this the pace would stay that much below its ceiling.
const LATENESS_MADE_UP_MS: f64 = 10.0;

/// Jitter of a start at most, in milliseconds.
const JITTER_MS: f64 = 20.0;

/// Jitter of a start where a limit of their rate was met, as a share of the interval: unequal gaps would
/// be refused.
const REFUSED_JITTER: f64 = 0.05;

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
pub struct Gcra {
    /// Between two starts on average, in milliseconds.
    interval: f64,
    /// When the next start is due, in milliseconds since the epoch.
    next: f64,
    /// Where in its interval that is, from 0 to 1.
    place: f64,
    /// Jitter of a start at most, in milliseconds.
    jitter: f64,
}

impl Gcra {
    /// At most `rate` starts per second.
    pub fn new(rate: f64) -> Self {
        Self {
            interval: 1_000.0 / rate,
            next: 0.0,
            place: 0.0,
            jitter: JITTER_MS.min(1_000.0 / rate),
        }
    }

    /// Changes the rate from now on, in starts per second.
    pub fn set_rate(&mut self, rate: f64, is_refused: bool) {
        self.interval = 1_000.0 / rate;
        self.jitter = match is_refused {
            true => self.interval * REFUSED_JITTER,
            false => self.interval.min(JITTER_MS),
        };
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
    pub fn on_start_sent(&mut self, now: Timestamp) {
        let now_ms = now.0 as f64;
        let from = if self.is_due(now) {
            self.next.clamp(now_ms - LATENESS_MADE_UP_MS, now_ms)
        } else {
            self.next
        };
        let place = (self.place + GOLDEN).fract();
        self.next = from + self.interval + self.jitter * (place - self.place);
        self.place = place;
    }

    fn is_due(&self, now: Timestamp) -> bool {
        self.next <= now.0 as f64
    }
}

/// Start rate of a reconciler that knows nothing of the upstream yet, in starts per second.
const RATE_FIRST: f64 = 500.0;

/// A rate that was used for so long, and after which a look has seen the upstream alive, is doubled.
const STEP: Duration = Duration::from_secs(1);

/// The slowest rate that refusals can lead to, in starts per second.
const RATE_MIN: f64 = 0.5;

/// More starts per second than were ever sent.
const RATE_MAX: f64 = 50_000.0;

/// Share of the rate that a refusal takes away (the complement of CUBIC's beta, RFC 9438, section 4.6).
/// A limit is where the rate was refused, so that a little less is enough.
const REFUSAL_CUT: f64 = 0.1;

/// The same within [`STEP`] after the last reduction: the limit is far below.
const REFUSAL_CUT_AGAIN: f64 = 0.5;

/// Time after a refusal until the rate is back where it was, at a rate of one start per second or more.
const REFUSAL_RECOVERY: Duration = Duration::from_secs(20);

/// Starts per second after a restart of the upstream, as a share of [`RATE_FIRST`] or of the ceiling:
/// slow enough that a service that has just come up is not knocked over by what it has forgotten, and
/// that the next restart costs little if one follows soon.
const RESTART_SHARE: f64 = 0.025;

/// Time after a restart of the upstream until the rate has doubled.
const RESTART_RECOVERY: Duration = Duration::from_secs(10);

/// The start rate: doubled while starts are accepted and the upstream is seen alive, cut by refusals
/// and by restarts of the upstream. A cut rate rises along a cubic function of the time since (CUBIC,
/// RFC 9438, section 4.2, with starts per second for a window): quickly back to just below what was
/// refused, slowly around that, and ever faster once that is passed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartRate {
    /// Starts per second while nothing is cut.
    rate: f64,
    /// Starts per second at most, `None` without a ceiling.
    ceiling: Option<f64>,
    cut: Option<Cut>,
    /// When the last step began, and the starts since.
    step_at: Timestamp,
    sent: u32,
}

/// A reduction of the rate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Cut {
    at: Timestamp,
    /// Time after it for which the upstream is known to be well.
    quiet: Duration,
    /// Rate at the inflection of the curve.
    plateau: f64,
    /// Time after the cut at which the curve has its inflection.
    plateau_after: Duration,
    /// Time from there in which the rate grows by `growth` times itself.
    unit: Duration,
    growth: f64,
    is_restart: bool,
    reason: String,
}

impl StartRate {
    /// The first rate, under a ceiling in starts per second, of which 0 means none.
    pub fn new(ceiling: f64, now: Timestamp) -> Self {
        Self {
            rate: RATE_FIRST,
            ceiling: (ceiling > 0.0).then_some(ceiling),
            cut: None,
            step_at: now,
            sent: 0,
        }
    }

    /// A rate that no refusal has reduced yet.
    #[cfg(test)]
    pub fn doubled_to(rate: f64, now: Timestamp) -> Self {
        Self {
            rate,
            ..Self::new(0.0, now)
        }
    }

    /// The rate that an earlier run had learned, under the ceiling of this one.
    #[must_use]
    pub fn under(mut self, ceiling: f64, now: Timestamp) -> Self {
        self.ceiling = (ceiling > 0.0).then_some(ceiling);
        self.step_at = now;
        self.sent = 0;
        if let Some(cut) = &mut self.cut {
            cut.at = cut.at.min(now);
        }
        self
    }

    /// Starts per second.
    pub fn rate(&self) -> f64 {
        let most = self.most();
        let Some(cut) = &self.cut else { return most };
        let since = cut.quiet.as_secs_f64() - cut.plateau_after.as_secs_f64();
        let cubed = (since / cut.unit.as_secs_f64()).powi(3);
        let rate = cut.plateau * (1.0 + cut.growth * cubed);
        rate.clamp(RATE_MIN.min(most), most)
    }

    fn most(&self) -> f64 {
        self.rate.min(self.ceiling.unwrap_or(RATE_MAX))
    }

    /// Starts per second at most; nothing if there is no ceiling.
    pub fn ceiling(&self) -> Option<f64> {
        self.ceiling
    }

    /// Reason for the present cut, in words.
    pub fn reason(&self) -> Option<&str> {
        self.cut.as_ref().map(|cut| cut.reason.as_str())
    }

    /// Returns whether the upstream refuses starts for their rate.
    pub fn is_refused(&self) -> bool {
        self.cut.as_ref().is_some_and(|cut| !cut.is_restart)
    }

    /// Returns whether something holds the rate down.
    pub fn is_limited(&self) -> bool {
        self.cut.is_some() || self.ceiling.is_some()
    }

    /// A start leaves.
    pub fn on_sent(&mut self) {
        self.sent = self.sent.saturating_add(1);
    }

    /// Raises the rate by the time that has passed. Returns whether a cut is over.
    pub fn recover(&mut self, now: Timestamp) -> bool {
        let most = self.most();
        let Some(cut) = &mut self.cut else {
            return false;
        };
        if !cut.is_restart {
            cut.quiet = now.since(cut.at);
        }
        if self.rate() < most {
            return false;
        }
        self.cut = None;
        (self.step_at, self.sent) = (now, 0);
        true
    }

    /// A look that began at `began_at` has seen the present life of the upstream.
    pub fn on_seen_alive(&mut self, began_at: Timestamp) {
        if let Some(cut) = &mut self.cut {
            cut.quiet = cut.quiet.max(began_at.since(cut.at));
            return;
        }
        let step = began_at.since(self.step_at);
        if step < STEP {
            return;
        }
        let is_used = f64::from(self.sent) >= self.rate * step.as_secs_f64() / 2.0;
        if is_used && self.ceiling.is_none_or(|ceiling| self.rate < ceiling) {
            self.rate = (self.rate * 2.0).min(RATE_MAX);
        }
        (self.step_at, self.sent) = (began_at, 0);
    }

    /// A request that was sent at `sent_at` was refused for its rate, or not answered in time. Returns
    /// whether that reduces the rate: what was sent before the last reduction says nothing about it.
    pub fn on_overload(&mut self, sent_at: Timestamp, now: Timestamp, detail: &str) -> bool {
        if self.cut.as_ref().is_some_and(|cut| sent_at <= cut.at) {
            return false;
        }
        let plateau = self.rate();
        let is_slowest = plateau <= RATE_MIN.min(self.most());
        let is_soon = |cut: &Cut| now.since(cut.at) < STEP;
        let growth = match self.cut.as_ref().is_some_and(is_soon) {
            true => REFUSAL_CUT_AGAIN,
            false => REFUSAL_CUT,
        };
        // A slow rate needs longer to show that it is accepted.
        let recovery = REFUSAL_RECOVERY.mul_f64((1.0 / plateau).max(1.0));
        self.cut = Some(Cut {
            at: now,
            quiet: Duration::ZERO,
            plateau,
            plateau_after: recovery,
            unit: recovery,
            growth,
            is_restart: false,
            reason: detail.to_owned(),
        });
        !is_slowest
    }

    /// The upstream was restarted.
    pub fn on_restart(&mut self, now: Timestamp) {
        let first = self.most().min(RATE_FIRST);
        let plateau = (first * RESTART_SHARE)
            .max(RATE_MIN.min(first))
            .min(self.rate());
        self.cut = Some(Cut {
            at: now,
            quiet: Duration::ZERO,
            plateau,
            plateau_after: Duration::ZERO,
            unit: RESTART_RECOVERY,
            growth: 1.0,
            is_restart: true,
            reason: "the upstream was restarted".to_owned(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Starts as soon as allowed from 0 to `until` ms, with timers late by `late` ms.
    fn starts_until(gcra: &mut Gcra, until: i64, late: i64) -> Vec<i64> {
        let mut now = Timestamp(0);
        let mut starts = Vec::new();
        while now.0 < until {
            let at = gcra.next_at(now);
            if at > now {
                now = Timestamp(at.0 + late);
                continue;
            }
            gcra.on_start_sent(now);
            starts.push(now.0);
        }
        starts
    }

    #[test]
    fn starts_keep_to_the_ceiling_and_reach_it_although_timers_are_late() {
        for (rate, late) in [(50.0, 0), (50.0, 2), (0.5, 2), (3_000.0, 1), (7.3, 1)] {
            let starts = starts_until(&mut Gcra::new(rate), 100_000, late);
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
        let starts = starts_until(&mut Gcra::new(50.0), 600_000, 0);
        let moments: std::collections::HashSet<i64> = starts.iter().copied().collect();
        // Of a steady beat, every start has others whole seconds later; by chance 1 in 20 a second.
        let of_the_first = starts.iter().take(50).map(|start| {
            (1..600)
                .filter(|second| moments.contains(&(start + second * 1_000)))
                .count()
        });
        let met: usize = of_the_first.sum();
        assert!(met > 0 && met < 50 * 599 / 10, "{met}");
        // And none comes much earlier or later than its turn.
        let gaps = starts.windows(2).map(|pair| pair[1] - pair[0]);
        assert!(gaps.clone().all(|gap| (11..=34).contains(&gap)));
    }

    #[test]
    fn where_starts_are_refused_for_their_rate_the_gaps_between_them_are_equal() {
        let mut gcra = Gcra::new(5.0);
        let gaps_of = |gcra: &mut Gcra| {
            let starts = starts_until(gcra, 60_000, 0);
            let gaps: Vec<_> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
            (gaps.iter().min().copied(), gaps.iter().max().copied())
        };
        assert_eq!(gaps_of(&mut gcra), (Some(192), Some(213)));
        let mut gcra = Gcra::new(5.0);
        gcra.set_rate(5.0, true);
        assert_eq!(gaps_of(&mut gcra), (Some(196), Some(207)));
    }

    /// The rate after each of these seconds in which a look has seen the upstream.
    fn after_quiet(rate: &mut StartRate, from: Timestamp, seconds: i64) -> f64 {
        for second in 1..=seconds {
            let now = Timestamp(from.0 + second * 1_000);
            rate.recover(now);
            rate.on_seen_alive(now);
        }
        rate.rate()
    }

    #[test]
    fn a_rate_that_is_not_used_is_not_doubled() {
        let mut rate = StartRate::new(0.0, Timestamp(0));
        assert_eq!(after_quiet(&mut rate, Timestamp(0), 100), 500.0);
        for _ in 0..250 {
            rate.on_sent();
        }
        rate.on_seen_alive(Timestamp(100_500));
        assert_eq!(rate.rate(), 500.0, "a step lasts a second");
        rate.on_seen_alive(Timestamp(101_000));
        assert_eq!(rate.rate(), 1_000.0);
        rate.on_seen_alive(Timestamp(102_000));
        assert_eq!(rate.rate(), 1_000.0);
    }

    #[test]
    fn after_a_restart_the_rate_rises_as_far_as_looks_have_seen_the_new_life() {
        let mut rate = StartRate::new(50.0, Timestamp(0));
        rate.on_restart(Timestamp(0));
        assert_eq!(rate.rate(), 1.25);
        assert_eq!(rate.reason(), Some("the upstream was restarted"));
        assert!(!rate.recover(Timestamp(60_000)), "nothing was seen of it");
        assert_eq!(rate.rate(), 1.25);
        assert_eq!(after_quiet(&mut rate, Timestamp(0), 10), 2.5);
        assert_eq!(after_quiet(&mut rate, Timestamp(10_000), 10), 11.25);
        assert_eq!(after_quiet(&mut rate, Timestamp(20_000), 20), 50.0);
        assert_eq!((rate.reason(), rate.ceiling()), (None, Some(50.0)));
        // A second one in the midst of it does not raise the rate.
        rate.on_restart(Timestamp(40_000));
        rate.on_restart(Timestamp(41_000));
        assert_eq!(rate.rate(), 1.25);
    }

    #[test]
    fn a_refusal_reduces_the_rate_and_those_of_what_was_sent_before_do_not() {
        let mut rate = StartRate::new(40.0, Timestamp(0));
        let refused = |rate: &mut StartRate, sent_at, now| {
            rate.on_overload(Timestamp(sent_at), Timestamp(now), "answered 429")
        };
        assert!(refused(&mut rate, 1, 10));
        assert!(!refused(&mut rate, 9, 11) && !refused(&mut rate, 10, 12));
        assert_eq!((rate.rate(), rate.reason()), (36.0, Some("answered 429")));
        // Another one soon: the limit is far below. However many seconds are quiet in between, none is
        // forgotten.
        assert!(refused(&mut rate, 11, 20));
        assert_eq!(rate.rate(), 18.0);
        for now in 1..400 {
            let (sent_at, now) = (now * 1_000, now * 1_000 + 1);
            rate.recover(Timestamp(sent_at));
            let before = rate.rate();
            let is_reduced = refused(&mut rate, sent_at, now);
            assert_eq!(is_reduced, before > RATE_MIN, "{before}");
            assert!(rate.rate() < before || before == RATE_MIN, "{before}");
        }
        assert_eq!(rate.rate(), RATE_MIN);
        // When the refusals end it comes back, faster and faster.
        assert_eq!(after_quiet(&mut rate, Timestamp(400_000), 1_200), 40.0);
        assert_eq!(rate.reason(), None);
    }

    #[test]
    fn the_rate_is_soon_back_just_below_what_was_refused_and_lingers_there() {
        let mut rate = StartRate::new(40.0, Timestamp(0));
        rate.on_overload(Timestamp(1), Timestamp(0), "answered 429");
        let rates = [10, 15, 20, 25].map(|second| {
            let mut rate = rate.clone();
            rate.recover(Timestamp(second * 1_000));
            rate.rate()
        });
        assert!((39.4..39.6).contains(&rates[0]), "{rates:?}");
        assert!((39.9..40.0).contains(&rates[1]), "{rates:?}");
        assert_eq!(rates[2..], [40.0, 40.0]);
    }

    #[test]
    fn what_was_learned_holds_under_another_ceiling_and_a_clock_set_back() {
        let mut rate = StartRate::new(50.0, Timestamp(0));
        rate.on_restart(Timestamp(9_000));
        let mut lower = rate.clone().under(1.0, Timestamp(5_000));
        assert_eq!(lower.rate(), 1.0);
        assert_eq!(after_quiet(&mut lower, Timestamp(5_000), 10), 1.0);
        assert_eq!(rate.clone().under(0.0, Timestamp(9_000)).rate(), 1.25);
        // A rate that nothing had lowered is not held down by the ceiling that it had.
        let full = StartRate::new(50.0, Timestamp(0));
        assert_eq!(full.clone().under(80.0, Timestamp(9_000)).rate(), 80.0);
        assert_eq!(full.under(0.0, Timestamp(9_000)).rate(), 500.0);
    }
}
