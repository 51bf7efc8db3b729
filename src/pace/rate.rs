//! The start rate: when each start may leave, and how many per second the upstream is known to take.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::order::Timestamp;

/// Longest delay of a start that the next ones make up for, in milliseconds. Timers are late by a
/// millisecond or two at every start; without this the rate would stay that much below its ceiling.
const CATCH_UP_MAX_MS: f64 = 10.0;

/// Largest jitter of a start, in milliseconds.
const JITTER_MAX_MS: f64 = 20.0;

/// Largest jitter of a start while the upstream limits the rate, as a share of the interval: with
/// unequal gaps, starts would be refused.
const RATE_LIMITED_JITTER: f64 = 0.05;

/// The golden ratio less one. Its multiples, modulo 1, are spread more evenly than random numbers.
const GOLDEN: f64 = 0.618_033_988_749_894_9;

/// A rate limiter for starts: the generic cell rate algorithm (ITU-T I.371) with one start as the
/// cell, and with jitter.
///
/// Starts are jittered. Processes run for whole seconds, so evenly spaced starts would collide with
/// completions, and a completion that meets a start can crash the upstream. (Floyd and Jacobson, 1994,
/// found the same of periodic routing messages.)
#[derive(Clone, Debug)]
pub struct Gcra {
    /// Mean interval between two starts, in milliseconds.
    interval_ms: f64,
    /// Moment at which the next start is due, in milliseconds since the epoch.
    next_at_ms: f64,
    /// Position of that moment in its jitter, from 0 to 1.
    jitter_position: f64,
    /// Largest jitter of a start, in milliseconds.
    jitter_ms: f64,
}

impl Gcra {
    /// Creates a limiter that allows `rate` starts per second.
    pub fn new(rate: f64) -> Self {
        Self {
            interval_ms: 1_000.0 / rate,
            next_at_ms: 0.0,
            jitter_position: 0.0,
            jitter_ms: JITTER_MAX_MS.min(1_000.0 / rate),
        }
    }

    /// Sets the rate in starts per second, from the start after the next one on. `is_rate_limited`
    /// keeps the gaps nearly equal.
    pub fn set_rate(&mut self, rate: f64, is_rate_limited: bool) {
        self.interval_ms = 1_000.0 / rate;
        self.jitter_ms = match is_rate_limited {
            true => self.interval_ms * RATE_LIMITED_JITTER,
            false => self.interval_ms.min(JITTER_MAX_MS),
        };
    }

    /// Returns the moment at which the next start may leave: `now` or later.
    pub fn next_at(&self, now: Timestamp) -> Timestamp {
        if self.is_due(now) {
            now
        } else {
            Timestamp(self.next_at_ms.ceil() as i64)
        }
    }

    /// Counts a start, or a poll in its place, that is admitted at `now`.
    pub fn on_admitted(&mut self, now: Timestamp) {
        let now_ms = now.0 as f64;
        let from = if self.is_due(now) {
            self.next_at_ms.clamp(now_ms - CATCH_UP_MAX_MS, now_ms)
        } else {
            self.next_at_ms
        };
        let position = (self.jitter_position + GOLDEN).fract();
        let jitter = self.jitter_ms * (position - self.jitter_position);
        self.next_at_ms = from + self.interval_ms + jitter;
        self.jitter_position = position;
    }

    fn is_due(&self, now: Timestamp) -> bool {
        self.next_at_ms <= now.0 as f64
    }
}

/// Start rate of a reconciler that has learned nothing of the upstream yet, in starts per second.
const RATE_INITIAL: f64 = 500.0;

/// Time for which a rate is used before a poll that finds the upstream alive doubles it.
const STEP: Duration = Duration::from_secs(1);

/// Lowest rate that refusals lead to, in starts per second.
const RATE_MIN: f64 = 0.5;

/// Highest rate, in starts per second: more than were ever sent.
const RATE_MAX: f64 = 50_000.0;

/// Share of the rate by which a refusal reduces it (the complement of CUBIC's beta, RFC 9438, section
/// 4.6). The limit is where the rate was refused, so a little less is enough.
const REFUSAL_REDUCTION: f64 = 0.1;

/// Like [`REFUSAL_REDUCTION`], for a refusal within [`STEP`] after the last reduction: the limit is far
/// below the rate.
const REPEATED_REFUSAL_REDUCTION: f64 = 0.5;

/// Time after a refusal until the rate is back where it was refused, at a rate of one start per second
/// or more.
const REFUSAL_RECOVERY: Duration = Duration::from_secs(20);

/// Start rate after a restart of the upstream, as a share of [`RATE_INITIAL`] or of the ceiling. It is
/// so low that the orders that a restarted service has forgotten do not crash it again, and that
/// another restart soon after costs little.
const RESTART_SHARE: f64 = 0.025;

/// Time after a restart of the upstream until the rate has doubled.
const RESTART_RECOVERY: Duration = Duration::from_secs(10);

/// The start rate. It doubles while starts are accepted and polls find the upstream alive; refusals
/// and restarts of the upstream reduce it. A reduced rate rises along a cubic function of the time
/// since (CUBIC, RFC 9438, section 4.2, with starts per second for a window): quickly to just below
/// where it was refused, slowly around that, and ever faster beyond.
///
/// It is stored with the heartbeat: serialised names are those of earlier versions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartRate {
    /// Starts per second without a reduction.
    rate: f64,
    /// Highest rate that is configured, in starts per second; `None` without a ceiling.
    ceiling: Option<f64>,
    #[serde(rename = "cut")]
    reduction: Option<Reduction>,
    /// Beginning of the current step.
    #[serde(rename = "step_at")]
    step_began_at: Timestamp,
    /// Number of starts since then.
    #[serde(rename = "sent")]
    starts_in_step: u32,
}

/// A reduction of the start rate, and the curve along which the rate rises again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Reduction {
    at: Timestamp,
    /// Time after the reduction for which the upstream is known to take the rate.
    #[serde(rename = "quiet")]
    healthy_for: Duration,
    /// Rate at the inflection of the curve, in starts per second.
    plateau: f64,
    /// Time after the reduction at which the curve has its inflection.
    plateau_after: Duration,
    /// Time after the inflection in which the rate grows by `growth` times the plateau.
    #[serde(rename = "unit")]
    time_scale: Duration,
    growth: f64,
    is_restart: bool,
    /// Detail of the refusal or of the timeout; empty after a restart.
    reason: String,
}

/// Cause of a reduction of the start rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReductionCause<'a> {
    /// The upstream was restarted.
    Restart,
    /// The upstream refused a request because of the rate, or did not answer it in time; with the
    /// detail of that failure.
    Overload(&'a str),
}

impl StartRate {
    /// Returns the initial rate, under a ceiling in starts per second; 0 means no ceiling.
    pub fn new(ceiling: f64, now: Timestamp) -> Self {
        Self {
            rate: RATE_INITIAL,
            ceiling: (ceiling > 0.0).then_some(ceiling),
            reduction: None,
            step_began_at: now,
            starts_in_step: 0,
        }
    }

    /// Returns a rate that no refusal has reduced yet.
    #[cfg(test)]
    pub fn doubled_to(rate: f64, now: Timestamp) -> Self {
        Self {
            rate,
            ..Self::new(0.0, now)
        }
    }

    /// Resumes from a rate that an earlier run has learned, under the ceiling of this run.
    #[must_use]
    pub fn with_ceiling(mut self, ceiling: f64, now: Timestamp) -> Self {
        self.ceiling = (ceiling > 0.0).then_some(ceiling);
        self.step_began_at = now;
        self.starts_in_step = 0;
        if let Some(reduction) = &mut self.reduction {
            reduction.at = reduction.at.min(now);
        }
        self
    }

    /// Returns the rate in starts per second.
    pub fn rate(&self) -> f64 {
        let unreduced = self.unreduced();
        let Some(reduction) = &self.reduction else {
            return unreduced;
        };
        let since = reduction.healthy_for.as_secs_f64() - reduction.plateau_after.as_secs_f64();
        let cubed = (since / reduction.time_scale.as_secs_f64()).powi(3);
        let rate = reduction.plateau * (1.0 + reduction.growth * cubed);
        rate.clamp(RATE_MIN.min(unreduced), unreduced)
    }

    /// Returns the rate without a reduction, in starts per second.
    fn unreduced(&self) -> f64 {
        self.rate.min(self.ceiling.unwrap_or(RATE_MAX))
    }

    /// Returns the highest rate that is configured, in starts per second; `None` without a ceiling.
    pub fn ceiling(&self) -> Option<f64> {
        self.ceiling
    }

    /// Returns the cause of the current reduction.
    pub fn reduction_cause(&self) -> Option<ReductionCause<'_>> {
        let reduction = self.reduction.as_ref()?;
        Some(match reduction.is_restart {
            true => ReductionCause::Restart,
            false => ReductionCause::Overload(&reduction.reason),
        })
    }

    /// Returns whether the rate is reduced because the upstream refused starts, not because it was
    /// restarted.
    pub fn is_rate_limited(&self) -> bool {
        self.reduction
            .as_ref()
            .is_some_and(|reduction| !reduction.is_restart)
    }

    /// Returns whether a reduction or a ceiling limits the rate.
    pub fn is_limited(&self) -> bool {
        self.reduction.is_some() || self.ceiling.is_some()
    }

    /// Counts a start that is admitted.
    pub fn on_admitted(&mut self) {
        self.starts_in_step = self.starts_in_step.saturating_add(1);
    }

    /// Raises a rate that was reduced by refusals by the time that has passed. Returns whether a
    /// reduction is over.
    pub fn recover(&mut self, now: Timestamp) -> bool {
        let unreduced = self.unreduced();
        let Some(reduction) = &mut self.reduction else {
            return false;
        };
        if !reduction.is_restart {
            reduction.healthy_for = now.since(reduction.at);
        }
        if self.rate() < unreduced {
            return false;
        }
        self.reduction = None;
        (self.step_began_at, self.starts_in_step) = (now, 0);
        true
    }

    /// Raises the rate: a poll that began at `began_at` has found the current incarnation of the
    /// upstream alive.
    pub fn on_seen_alive(&mut self, began_at: Timestamp) {
        if let Some(reduction) = &mut self.reduction {
            reduction.healthy_for = reduction.healthy_for.max(began_at.since(reduction.at));
            return;
        }
        let step = began_at.since(self.step_began_at);
        if step < STEP {
            return;
        }
        // A rate that was not used does not show that the upstream takes it.
        let is_used = f64::from(self.starts_in_step) >= self.rate * step.as_secs_f64() / 2.0;
        if is_used && self.ceiling.is_none_or(|ceiling| self.rate < ceiling) {
            self.rate = (self.rate * 2.0).min(RATE_MAX);
        }
        (self.step_began_at, self.starts_in_step) = (began_at, 0);
    }

    /// Reduces the rate after a request that was sent at `sent_at` and was refused because of the rate,
    /// or timed out. Returns whether it did: a request from before the last reduction does not concern
    /// the reduced rate, and the lowest rate stays.
    pub fn on_overload(&mut self, sent_at: Timestamp, now: Timestamp, detail: &str) -> bool {
        if self
            .reduction
            .as_ref()
            .is_some_and(|last| sent_at <= last.at)
        {
            return false;
        }
        let plateau = self.rate();
        let is_lowest = plateau <= RATE_MIN.min(self.unreduced());
        let is_repeated = |last: &Reduction| now.since(last.at) < STEP;
        let growth = match self.reduction.as_ref().is_some_and(is_repeated) {
            true => REPEATED_REFUSAL_REDUCTION,
            false => REFUSAL_REDUCTION,
        };
        // A slow rate needs longer to show that it is accepted.
        let recovery = REFUSAL_RECOVERY.mul_f64((1.0 / plateau).max(1.0));
        self.reduction = Some(Reduction {
            at: now,
            healthy_for: Duration::ZERO,
            plateau,
            plateau_after: recovery,
            time_scale: recovery,
            growth,
            is_restart: false,
            reason: detail.to_owned(),
        });
        !is_lowest
    }

    /// Reduces the rate after a restart of the upstream.
    pub fn on_restart(&mut self, now: Timestamp) {
        let initial = self.unreduced().min(RATE_INITIAL);
        let plateau = (initial * RESTART_SHARE)
            .max(RATE_MIN.min(initial))
            .min(self.rate());
        self.reduction = Some(Reduction {
            at: now,
            healthy_for: Duration::ZERO,
            plateau,
            plateau_after: Duration::ZERO,
            time_scale: RESTART_RECOVERY,
            growth: 1.0,
            is_restart: true,
            reason: String::new(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the moments of starts that are sent as soon as allowed, from 0 to `until` ms, with timers
    /// that are late by `late` ms.
    fn starts_until(gcra: &mut Gcra, until: i64, late: i64) -> Vec<i64> {
        let mut now = Timestamp(0);
        let mut starts = Vec::new();
        while now.0 < until {
            let at = gcra.next_at(now);
            if at > now {
                now = Timestamp(at.0 + late);
                continue;
            }
            gcra.on_admitted(now);
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
    fn a_pause_is_not_made_up_for() {
        let mut gcra = Gcra::new(50.0);
        let now = Timestamp(60_000);
        gcra.on_admitted(now);
        // The interval and its jitter, less what late timers are allowed.
        assert_eq!(gcra.next_at(now), Timestamp(60_023));
    }

    #[test]
    fn starts_seldom_leave_whole_seconds_after_others() {
        let starts = starts_until(&mut Gcra::new(50.0), 600_000, 0);
        let moments: std::collections::HashSet<i64> = starts.iter().copied().collect();
        // Evenly spaced, every start has others whole seconds later; random ones, 1 in 20 per second.
        let collisions = starts.iter().take(50).map(|start| {
            (1..600)
                .filter(|second| moments.contains(&(start + second * 1_000)))
                .count()
        });
        let collisions: usize = collisions.sum();
        assert!(collisions > 0 && collisions < 50 * 599 / 10, "{collisions}");
        // And none leaves much earlier or later than without jitter.
        let gaps = starts.windows(2).map(|pair| pair[1] - pair[0]);
        assert!(gaps.clone().all(|gap| (11..=34).contains(&gap)));
    }

    #[test]
    fn while_the_upstream_limits_the_rate_the_gaps_between_starts_are_equal() {
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

    /// Returns the rate after so many seconds, in each of which a poll finds the upstream alive.
    fn after_healthy(rate: &mut StartRate, from: Timestamp, seconds: i64) -> f64 {
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
        assert_eq!(after_healthy(&mut rate, Timestamp(0), 100), 500.0);
        for _ in 0..250 {
            rate.on_admitted();
        }
        rate.on_seen_alive(Timestamp(100_500));
        assert_eq!(rate.rate(), 500.0, "a step lasts a second");
        rate.on_seen_alive(Timestamp(101_000));
        assert_eq!(rate.rate(), 1_000.0);
        rate.on_seen_alive(Timestamp(102_000));
        assert_eq!(rate.rate(), 1_000.0);
        // Half of the rate is enough, over the whole of a longer step.
        for (starts, doubled) in [(1_999, 1_000.0), (2_000, 2_000.0)] {
            let mut rate = rate.clone();
            for _ in 0..starts {
                rate.on_admitted();
            }
            rate.on_seen_alive(Timestamp(106_000));
            assert_eq!(rate.rate(), doubled, "{starts}");
        }
    }

    #[test]
    fn a_rate_is_limited_by_its_ceiling_by_a_restart_and_by_refusals() {
        let free = StartRate::new(0.0, Timestamp(0));
        let mut restarted = free.clone();
        restarted.on_restart(Timestamp(0));
        let mut refused = free.clone();
        refused.on_overload(Timestamp(1), Timestamp(1), "answered 429");
        for (rate, expected) in [
            (free, (false, false)),
            (StartRate::new(50.0, Timestamp(0)), (true, false)),
            (restarted, (true, false)),
            (refused, (true, true)),
        ] {
            let limited = (rate.is_limited(), rate.is_rate_limited());
            assert_eq!(limited, expected, "{rate:?}");
        }
    }

    #[test]
    fn after_a_restart_the_rate_rises_as_far_as_polls_have_found_the_upstream_alive() {
        let mut rate = StartRate::new(50.0, Timestamp(0));
        rate.on_restart(Timestamp(0));
        assert_eq!(rate.rate(), 1.25);
        assert_eq!(rate.reduction_cause(), Some(ReductionCause::Restart));
        assert!(
            !rate.recover(Timestamp(60_000)),
            "no poll has found it alive"
        );
        assert_eq!(rate.rate(), 1.25);
        assert_eq!(after_healthy(&mut rate, Timestamp(0), 10), 2.5);
        assert_eq!(after_healthy(&mut rate, Timestamp(10_000), 10), 11.25);
        assert_eq!(after_healthy(&mut rate, Timestamp(20_000), 20), 50.0);
        assert_eq!((rate.reduction_cause(), rate.ceiling()), (None, Some(50.0)));
        // A second restart before the rate is back does not raise it.
        rate.on_restart(Timestamp(40_000));
        rate.on_restart(Timestamp(41_000));
        assert_eq!(rate.rate(), 1.25);
    }

    #[test]
    fn a_refusal_reduces_the_rate_unless_the_request_was_sent_before_the_last_reduction() {
        let mut rate = StartRate::new(40.0, Timestamp(0));
        let refused = |rate: &mut StartRate, sent_at, now| {
            rate.on_overload(Timestamp(sent_at), Timestamp(now), "answered 429")
        };
        assert!(refused(&mut rate, 1, 10));
        assert!(!refused(&mut rate, 9, 11) && !refused(&mut rate, 10, 12));
        let cause = ReductionCause::Overload("answered 429");
        assert_eq!((rate.rate(), rate.reduction_cause()), (36.0, Some(cause)));
        // Repeated soon, it shows that the limit is far below. No healthy second in between undoes that.
        let mut later = rate.clone();
        assert!(refused(&mut later, 11, 1_010));
        assert_eq!(later.rate(), 36.0 * 0.9, "a second after the last one");
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
        // When the refusals end the rate comes back, ever faster.
        assert_eq!(after_healthy(&mut rate, Timestamp(400_000), 1_200), 40.0);
        assert_eq!(rate.reduction_cause(), None);
    }

    #[test]
    fn the_rate_soon_returns_to_just_below_the_refused_one_and_stays_there_for_a_while() {
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
    fn a_rate_below_one_per_second_needs_longer_to_return() {
        for (ceiling, seconds) in [(1.0, 20), (0.8, 25)] {
            let mut rate = StartRate::new(ceiling, Timestamp(0));
            rate.on_overload(Timestamp(1), Timestamp(0), "answered 429");
            assert!(!rate.recover(Timestamp(seconds * 1_000 - 1_000)));
            assert!(rate.recover(Timestamp(seconds * 1_000)), "{ceiling}");
        }
    }

    #[test]
    fn a_ceiling_lets_no_rate_be_learned_that_was_not_used() {
        for (ceiling, learned) in [(400.0, 500.0), (500.0, 500.0), (600.0, 1_000.0)] {
            let mut rate = StartRate::new(ceiling, Timestamp(0));
            for _ in 0..400 {
                rate.on_admitted();
            }
            rate.on_seen_alive(Timestamp(1_000));
            let without_ceiling = rate.with_ceiling(0.0, Timestamp(1_000));
            assert_eq!(without_ceiling.rate(), learned, "{ceiling}");
        }
    }

    #[test]
    fn a_learned_rate_holds_under_another_ceiling_and_a_clock_set_back() {
        let mut rate = StartRate::new(50.0, Timestamp(0));
        rate.on_restart(Timestamp(9_000));
        let mut lower = rate.clone().with_ceiling(1.0, Timestamp(5_000));
        assert_eq!(lower.rate(), 1.0);
        assert_eq!(after_healthy(&mut lower, Timestamp(5_000), 10), 1.0);
        assert_eq!(
            rate.clone().with_ceiling(0.0, Timestamp(9_000)).rate(),
            1.25
        );
        // A rate that was not reduced is not limited by its former ceiling.
        let full = StartRate::new(50.0, Timestamp(0));
        assert_eq!(
            full.clone().with_ceiling(80.0, Timestamp(9_000)).rate(),
            80.0
        );
        assert_eq!(full.with_ceiling(0.0, Timestamp(9_000)).rate(), 500.0);
    }
}
