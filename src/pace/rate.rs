//! The start rate: when each start may leave, and how many per second the upstream is known to take.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Call, requested_pause};
use crate::order::Timestamp;
use crate::upstream::Failure;

/// Longest delay of a start that the next ones make up for, in milliseconds. Timers are late by a
/// millisecond or two at every start; without this the rate would stay that much below its ceiling.
const CATCH_UP_MAX_MS: f64 = 10.0;

/// Largest jitter of a start, in milliseconds.
const JITTER_MAX_MS: f64 = 20.0;

/// Largest jitter of a start while the upstream limits the rate, as a share of the interval: with
/// unequal gaps, starts would be throttled.
const RATE_LIMITED_JITTER: f64 = 0.05;

/// The golden ratio less one. Its multiples, modulo 1, are spread more evenly than random numbers.
const GOLDEN_RATIO_CONJUGATE: f64 = 0.618_033_988_749_894_9;

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
        let position = (self.jitter_position + GOLDEN_RATIO_CONJUGATE).fract();
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
const DOUBLING_INTERVAL: Duration = Duration::from_secs(1);

/// Lowest rate that overload leads to, in starts per second.
const RATE_MIN: f64 = 0.5;

/// Highest rate, in starts per second: more than were ever sent.
const RATE_MAX: f64 = 50_000.0;

/// Share of the rate by which overload reduces it: a request that was throttled or timed out (the complement
/// of CUBIC's beta, RFC 9438, section 4.6). The limit is where the rate was too high, so a little less is
/// enough.
const OVERLOAD_REDUCTION: f64 = 0.1;

/// Like [`OVERLOAD_REDUCTION`], for overload within [`DOUBLING_INTERVAL`] after the last reduction: the
/// limit is far below the rate.
const REPEATED_OVERLOAD_REDUCTION: f64 = 0.5;

/// Share of one overloaded request that each usable answer makes up for: rarer ones have another cause than the
/// rate, and would be as frequent at any lower one. Not those with `Retry-After`, which names a limit.
const TOLERATED_SHARE: f64 = 0.05;

/// Largest number of overloaded requests in a row that are made up for.
const TOLERATED_MAX: f64 = 2.0;

/// Time after overload until the rate is back where it was too high, at a rate of one start per second or
/// more.
const OVERLOAD_RECOVERY: Duration = Duration::from_secs(20);

/// Start rate after a restart of the upstream, as a share of [`RATE_INITIAL`] or of the ceiling. It is
/// so low that the orders that a restarted service has forgotten do not crash it again, and that
/// another restart soon after costs little.
const RESTART_SHARE: f64 = 0.025;

/// Time after a restart of the upstream until the rate has doubled.
const RESTART_RECOVERY: Duration = Duration::from_secs(10);

/// The start rate. It doubles while starts are accepted and polls find the upstream alive; overload
/// and restarts of the upstream reduce it. A reduced rate rises along a cubic function of the time
/// since (CUBIC, RFC 9438, section 4.2, with starts per second for a window): quickly to just below
/// where it was too high, slowly around that, and ever faster beyond.
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
    /// Beginning of the current doubling interval.
    #[serde(rename = "step_at")]
    interval_began_at: Timestamp,
    /// Number of starts since then.
    #[serde(rename = "sent")]
    starts_in_interval: u32,
    #[serde(skip)]
    tolerance: Tolerance,
}

/// Number of overloaded requests that do not reduce the rate, of starts and of polls: a token bucket that
/// usable answers fill, as in the retry throttling of gRPC (proposal A6).
#[derive(Clone, Debug, Default, PartialEq)]
struct Tolerance {
    starts: f64,
    polls: f64,
}

impl Tolerance {
    fn of(&mut self, call: Call) -> &mut f64 {
        match call.is_start() {
            true => &mut self.starts,
            false => &mut self.polls,
        }
    }
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
    /// Time from the reduction to the inflection of the curve.
    #[serde(rename = "plateau_after")]
    time_to_plateau: Duration,
    /// Time after the inflection in which the rate grows by `growth` times the plateau.
    #[serde(rename = "unit")]
    time_scale: Duration,
    growth: f64,
    #[serde(rename = "is_restart")]
    is_upstream_restart: bool,
    /// Detail of the answer or of the timeout; empty after a restart.
    reason: String,
}

/// Cause of a reduction of the start rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReductionCause<'a> {
    /// The upstream was restarted.
    Restart,
    /// The upstream throttled a request, or did not answer it in time; with the detail of that failure.
    Overload(&'a str),
}

impl StartRate {
    /// Returns the initial rate, under a ceiling in starts per second; 0 means no ceiling.
    pub fn new(ceiling: f64, now: Timestamp) -> Self {
        Self {
            rate: RATE_INITIAL,
            ceiling: (ceiling > 0.0).then_some(ceiling),
            reduction: None,
            interval_began_at: now,
            starts_in_interval: 0,
            tolerance: Tolerance::default(),
        }
    }

    /// Returns a rate that no overload has reduced yet.
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
        self.interval_began_at = now;
        self.starts_in_interval = 0;
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
        let since = reduction.healthy_for.as_secs_f64() - reduction.time_to_plateau.as_secs_f64();
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
        Some(match reduction.is_upstream_restart {
            true => ReductionCause::Restart,
            false => ReductionCause::Overload(&reduction.reason),
        })
    }

    /// Returns whether the rate is reduced because of overload, not because the upstream was restarted.
    pub fn is_rate_limited(&self) -> bool {
        self.reduction
            .as_ref()
            .is_some_and(|reduction| !reduction.is_upstream_restart)
    }

    /// Returns whether a reduction or a ceiling limits the rate.
    pub fn is_limited(&self) -> bool {
        self.reduction.is_some() || self.ceiling.is_some()
    }

    /// Counts a start that is admitted.
    pub fn on_admitted(&mut self) {
        self.starts_in_interval = self.starts_in_interval.saturating_add(1);
    }

    /// Raises a rate that overload has reduced by the time that has passed. Returns whether a reduction is
    /// over.
    pub fn recover(&mut self, now: Timestamp) -> bool {
        let unreduced = self.unreduced();
        let Some(reduction) = &mut self.reduction else {
            return false;
        };
        if !reduction.is_upstream_restart {
            reduction.healthy_for = now.since(reduction.at);
        }
        if self.rate() < unreduced {
            return false;
        }
        self.reduction = None;
        (self.interval_began_at, self.starts_in_interval) = (now, 0);
        true
    }

    /// Raises the rate: a poll that began at `began_at` has found the current incarnation of the
    /// upstream alive.
    pub fn on_seen_alive(&mut self, began_at: Timestamp) {
        if let Some(reduction) = &mut self.reduction {
            reduction.healthy_for = reduction.healthy_for.max(began_at.since(reduction.at));
            return;
        }
        let used_for = began_at.since(self.interval_began_at);
        if used_for < DOUBLING_INTERVAL {
            return;
        }
        // A rate that was not used does not show that the upstream takes it.
        let is_used =
            f64::from(self.starts_in_interval) >= self.rate * used_for.as_secs_f64() / 2.0;
        if is_used && self.ceiling.is_none_or(|ceiling| self.rate < ceiling) {
            self.rate = (self.rate * 2.0).min(RATE_MAX);
        }
        (self.interval_began_at, self.starts_in_interval) = (began_at, 0);
    }

    /// Records a usable answer.
    pub fn on_answered(&mut self, call: Call) {
        let tolerance = self.tolerance.of(call);
        *tolerance = (*tolerance + TOLERATED_SHARE).min(TOLERATED_MAX);
    }

    /// Reduces the rate after a request that was throttled or timed out. Returns whether it did: a request
    /// from before the last reduction does not concern the reduced rate, rare ones are tolerated, and
    /// the lowest rate stays.
    pub fn on_overload(&mut self, call: Call, now: Timestamp, failure: &Failure) -> bool {
        if self
            .reduction
            .as_ref()
            .is_some_and(|last| call.sent_at <= last.at)
        {
            return false;
        }
        let tolerance = self.tolerance.of(call);
        if requested_pause(failure).is_none() && *tolerance >= 1.0 {
            *tolerance -= 1.0;
            return false;
        }
        let plateau = self.rate();
        let is_lowest = plateau <= RATE_MIN.min(self.unreduced());
        let is_soon_after = |last: &Reduction| now.since(last.at) < DOUBLING_INTERVAL;
        let growth = match self.reduction.as_ref().is_some_and(is_soon_after) {
            true => REPEATED_OVERLOAD_REDUCTION,
            false => OVERLOAD_REDUCTION,
        };
        // A slow rate needs longer to show that it is accepted.
        let recovery = OVERLOAD_RECOVERY.mul_f64((1.0 / plateau).max(1.0));
        self.reduction = Some(Reduction {
            at: now,
            healthy_for: Duration::ZERO,
            plateau,
            time_to_plateau: recovery,
            time_scale: recovery,
            growth,
            is_upstream_restart: false,
            reason: failure.detail.clone(),
        });
        !is_lowest
    }

    /// Reduces the rate after a restart of the upstream.
    pub fn on_upstream_restart(&mut self, now: Timestamp) {
        let initial = self.unreduced().min(RATE_INITIAL);
        let plateau = (initial * RESTART_SHARE)
            .max(RATE_MIN.min(initial))
            .min(self.rate());
        self.reduction = Some(Reduction {
            at: now,
            healthy_for: Duration::ZERO,
            plateau,
            time_to_plateau: Duration::ZERO,
            time_scale: RESTART_RECOVERY,
            growth: 1.0,
            is_upstream_restart: true,
            reason: String::new(),
        });
    }
}

#[cfg(test)]
mod tests;
