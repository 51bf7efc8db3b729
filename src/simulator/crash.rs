//! A model of the crashes of the real order process service.
//!
//! Pure: time and randomness are arguments, an event takes constant time, and the state is a few sums.
//! `simulator` feeds it, or a simulation in virtual time.
//!
//! The real service writes its map without holding the lock when a process completes. Go's map detects
//! that, and ends the program, when another access begins during the write. So a completion is
//! dangerous, other accesses only beside one, and the risk depends on how long a write takes: usually
//! 0.02 µs, but microseconds while the map grows, because every write then moves some old buckets.

use super::model::{Draw, Effect, Model};
use crate::order::Timestamp;

/// An access to the map of processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A process ended, and its outcome was written.
    Completion,
    /// A process was added.
    Start {
        /// Number of processes, including this one.
        processes: usize,
    },
    /// One process was read, or a start was refused because there is one.
    LookUp,
    /// All processes were read.
    List {
        /// Number of processes.
        entries: usize,
    },
}

impl Access {
    /// Returns the access of a request with this effect; `processes` is their number after it.
    pub const fn of(effect: &Effect, processes: usize) -> Option<Self> {
        match effect {
            Effect::Started { .. } | Effect::StartedForEver { .. } => {
                Some(Self::Start { processes })
            }
            Effect::Exists { .. } | Effect::LookedUp { .. } | Effect::Unknown { .. } => {
                Some(Self::LookUp)
            }
            Effect::Listed { entries } => Some(Self::List { entries: *entries }),
            Effect::BeganIncarnation { .. } | Effect::Crashed | Effect::Refused { .. } => None,
        }
    }
}

/// Durations of accesses. The defaults are fitted to incarnations measured on the real service;
/// `scripts/simulate` checks the fit.
#[derive(Clone, Debug, PartialEq)]
pub struct Hazard {
    /// Duration of a write while the map does not grow, in microseconds.
    pub write_us: f64,
    /// Duration of a write while the map grows, in microseconds.
    pub growing_write_us: f64,
    /// Time between two steps of a list, in microseconds. Each step checks for a concurrent write.
    pub list_step_us: f64,
    /// Writes per old bucket until the map has grown.
    pub writes_per_bucket: f64,
}

impl Default for Hazard {
    fn default() -> Self {
        Self {
            write_us: 0.02,
            growing_write_us: 5.0,
            list_step_us: 0.5,
            // Each write moves its own bucket, unless that was moved before, and the next one in
            // sequence: it takes writes to 1 - 1/e of the buckets.
            writes_per_bucket: 0.63,
        }
    }
}

/// Entries at which the map first grows: 6.5 for each of 2 buckets. It grows again at each doubling:
/// 832, 1,664, 3,328, 6,656, …
const FIRST_GROWTH: usize = 13;

/// Number of buckets at [`FIRST_GROWTH`].
const FIRST_BUCKETS: usize = 2;

/// Width of the spread of accesses that are due at the same time, in microseconds: the integral of a
/// weight that halves each millisecond in both directions. Processes take whole seconds and starts come
/// at a steady rate, so completions and starts collide far more often than at random.
const SPREAD_US: f64 = 3_000.0;

/// Time after which a weight that halves each millisecond counts as zero, in milliseconds.
const DECAYED_AFTER_MS: i64 = 200;

const US_PER_MS: f64 = 1_000.0;

/// The crash risk of one incarnation of the service.
#[derive(Clone, Debug, Default)]
pub struct CrashModel {
    hazard: Hazard,
    /// Writes left until the map has grown.
    growth_writes_left: f64,
    recent: RecentAccesses,
    /// End of the list that takes longest, in milliseconds since 1970.
    list_ends_at_ms: f64,
}

/// Sums over the accesses of the last milliseconds, weighted by half for each millisecond of age.
#[derive(Clone, Debug, Default)]
struct RecentAccesses {
    /// Time of the last update, in milliseconds since 1970.
    at_ms: i64,
    /// Number of accesses.
    accesses: f64,
    /// Duration of all writes, in microseconds.
    writes_us: f64,
    /// Number of completions.
    completions: f64,
    /// Duration of the writes of completions, in microseconds.
    completions_us: f64,
}

impl RecentAccesses {
    fn decay(&mut self, now: Timestamp) {
        let passed = now.0.saturating_sub(self.at_ms).clamp(0, DECAYED_AFTER_MS);
        self.at_ms = self.at_ms.max(now.0);
        if passed == 0 {
            return;
        }
        // Powers of two are exact, and so the same on every machine.
        let left = 0.5_f64.powi(passed as i32);
        for sum in [
            &mut self.accesses,
            &mut self.writes_us,
            &mut self.completions,
            &mut self.completions_us,
        ] {
            *sum *= left;
        }
    }
}

impl CrashModel {
    /// Returns the model of a new incarnation.
    pub fn new(hazard: Hazard) -> Self {
        Self {
            hazard,
            ..Self::default()
        }
    }

    /// Begins the next incarnation.
    pub fn forget_everything(&mut self) {
        *self = Self::new(self.hazard.clone());
    }

    /// Returns whether this access crashes the service. Accesses have to be given in the order of time,
    /// completions included, which [`Self::catch_up`] adds.
    pub fn is_fatal(&mut self, access: Access, now: Timestamp, draw: &mut Draw) -> bool {
        self.recent.decay(now);
        if let Access::Start { processes } = access {
            self.grow(processes);
        }
        let write_us = self.write_us();
        let (chance, duration_us) = match access {
            Access::Completion => {
                let others = self.recent.accesses * write_us + self.recent.writes_us;
                let chance = others / SPREAD_US + self.list_collision(write_us, now);
                self.recent.completions += 1.0;
                self.recent.completions_us += write_us;
                (chance, write_us)
            }
            Access::Start { .. } => {
                let collisions = self.recent.completions * write_us + self.recent.completions_us;
                (collisions / SPREAD_US, write_us)
            }
            Access::LookUp => (self.recent.completions_us / SPREAD_US, 0.0),
            Access::List { entries } => {
                let lasts_ms = entries as f64 * self.hazard.list_step_us / US_PER_MS;
                self.list_ends_at_ms = self.list_ends_at_ms.max(now.0 as f64 + lasts_ms);
                (self.recent.completions_us / SPREAD_US, 0.0)
            }
        };
        if !matches!(access, Access::List { .. }) {
            self.recent.accesses += 1.0;
            self.recent.writes_us += duration_us;
        }
        if duration_us > 0.0 {
            self.growth_writes_left = (self.growth_writes_left - 1.0).max(0.0);
        }
        chance > 0.0 && occurs(chance, draw)
    }

    /// Adds the completions up to `now`, and returns the time of one that crashed the service. The rest
    /// is left: call [`Self::forget_everything`] next, on the model too.
    pub fn catch_up(
        &mut self,
        model: &mut Model,
        now: Timestamp,
        draw: &mut Draw,
    ) -> Option<Timestamp> {
        while let Some(moment) = model.next_completion(now) {
            if self.is_fatal(Access::Completion, moment, draw) {
                return Some(moment);
            }
        }
        None
    }

    /// Starts growing the map if this number of processes exceeds 6.5 entries per bucket.
    fn grow(&mut self, processes: usize) {
        let full = processes.saturating_sub(1);
        if full >= FIRST_GROWTH
            && full.is_multiple_of(FIRST_GROWTH)
            && (full / FIRST_GROWTH).is_power_of_two()
        {
            let buckets = full / FIRST_GROWTH * FIRST_BUCKETS;
            self.growth_writes_left = buckets as f64 * self.hazard.writes_per_bucket;
        }
    }

    fn write_us(&self) -> f64 {
        if self.growth_writes_left > 0.0 {
            self.hazard.growing_write_us
        } else {
            self.hazard.write_us
        }
    }

    /// Returns the chance that a write collides with a list, which is the chance that one of the list's
    /// steps falls into it. Times are whole milliseconds: the list may end within the present one.
    fn list_collision(&self, write_us: f64, now: Timestamp) -> f64 {
        let overlap = (self.list_ends_at_ms - now.0 as f64).clamp(0.0, 1.0);
        overlap * (write_us / self.hazard.list_step_us).min(1.0)
    }
}

/// Draws whether an event with this chance, from 0 to 1, occurs.
pub(super) fn occurs(chance: f64, draw: &mut Draw) -> bool {
    /// Number of steps, all exact as an f64.
    const STEPS: u64 = 1 << 53;
    (draw(STEPS) as f64) < chance * STEPS as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the chance that an access at `ms` is fatal, found by bisecting the draw.
    fn chance(crash: &CrashModel, access: Access, ms: i64) -> f64 {
        let (mut low, mut high) = (0.0, 1.0);
        while high - low > 1e-12 {
            let point: f64 = (low + high) / 2.0;
            let mut draw = |n: u64| (point * n as f64) as u64;
            if crash.clone().is_fatal(access, Timestamp(ms), &mut draw) {
                low = point;
            } else {
                high = point;
            }
        }
        low
    }

    /// Draws that no access is fatal.
    fn lucky(n: u64) -> u64 {
        n - 1
    }

    #[test]
    fn without_completions_requests_never_crash_the_service() {
        let mut crash = CrashModel::default();
        let mut never = |_| 0;
        for processes in 1..5_000 {
            let now = Timestamp(processes as i64);
            for access in [
                Access::Start { processes },
                Access::LookUp,
                Access::List { entries: processes },
            ] {
                assert!(!crash.is_fatal(access, now, &mut never), "{access:?}");
            }
        }
    }

    #[test]
    fn a_completion_is_dangerous_beside_another_access_and_most_of_all_while_the_map_grows() {
        let with = |processes| {
            let mut crash = CrashModel::default();
            crash.is_fatal(Access::Start { processes }, Timestamp(1_000), &mut lucky);
            crash
        };
        let (calm, growing) = (with(6_656), with(6_657));
        let beside = chance(&calm, Access::Completion, 1_000);
        assert!((1e-6..1e-4).contains(&beside), "{beside}");
        assert!(chance(&growing, Access::Completion, 1_000) > 100.0 * beside);
        assert!(chance(&calm, Access::Completion, 1_005) < beside / 30.0);
        assert_eq!(chance(&calm, Access::Completion, 2_000), 0.0);
    }

    #[test]
    fn the_map_grows_at_each_doubling_and_for_a_few_hundred_writes() {
        for (processes, writes) in [(833, 81), (6_657, 646), (26_625, 2_581)] {
            let mut crash = CrashModel::default();
            let start = Access::Start { processes };
            crash.is_fatal(start, Timestamp(0), &mut lucky);
            let start = Access::Start {
                processes: processes + 1,
            };
            let mut count = 1;
            while crash.growth_writes_left > 0.0 {
                crash.is_fatal(start, Timestamp(0), &mut lucky);
                count += 1;
            }
            assert_eq!(count, writes, "{processes}");
        }
        let mut crash = CrashModel::default();
        for processes in [1, 13, 832, 834, 1_000, 6_656] {
            crash.is_fatal(Access::Start { processes }, Timestamp(0), &mut lucky);
            assert!(crash.growth_writes_left <= 0.0, "{processes}");
        }
    }

    #[test]
    fn a_long_list_collides_with_the_completions_during_it() {
        let mut crash = CrashModel::default();
        let list = Access::List { entries: 10_000 };
        crash.is_fatal(list, Timestamp(1_000), &mut lucky);
        assert!(chance(&crash, Access::Completion, 1_004) > 0.01);
        assert_eq!(chance(&crash, Access::Completion, 1_005), 0.0);
    }

    #[test]
    fn a_crash_among_the_completions_is_returned_with_its_time() {
        let mut model = Model::new(10);
        let mut nine_seconds = |n| n - 1;
        for id in ["a1", "a2"] {
            assert!(model.start(id, Timestamp(0), &mut nine_seconds));
        }
        let mut crash = CrashModel::default();
        let crashed_at = crash.catch_up(&mut model, Timestamp(20_000), &mut |_| 0);
        assert_eq!(crashed_at, Some(Timestamp(9_000)));
    }
}
