//! When the order process service dies, the way the real one does it: a hazard as a value.
//!
//! Pure: the time and the randomness come in, an event costs constant time, and nothing is
//! remembered but sums. Who feeds it is `simulator`, or a simulation in virtual time.
//!
//! The real service writes its map without holding the lock when a process completes. The map
//! finds that out, and ends the program, when another access begins while the write lasts. Hence a
//! completion is dangerous, the others only beside one; and what counts is how long a write lasts:
//! 0.02 µs on any day, but microseconds while the map grows, because every write then moves
//! some of the old buckets.

use super::model::{Did, Draw, Model};
use crate::order::Timestamp;

/// An access to the map of processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// A process ended, and its outcome was written.
    Completion,
    /// A process was added.
    Start {
        /// The number of processes with it.
        processes: usize,
    },
    /// One process was read, or a start was refused because there is one.
    LookUp,
    /// All processes were read.
    List {
        /// Their number.
        entries: usize,
    },
}

impl Touch {
    /// The access that a request made, by what it did; `processes` are there after it.
    pub const fn of(did: &Did, processes: usize) -> Option<Self> {
        match did {
            Did::Started { .. } | Did::StartedForEver { .. } => Some(Self::Start { processes }),
            Did::Exists { .. } | Did::Told { .. } | Did::Unknown { .. } => Some(Self::LookUp),
            Did::Listed { entries } => Some(Self::List { entries: *entries }),
            Did::BeganLife { .. } | Did::Crashed | Did::Refused { .. } => None,
        }
    }
}

/// How long accesses last. The defaults are fitted to lives measured on the real service:
/// `scripts/simulate pace` shows how well.
#[derive(Clone, Debug, PartialEq)]
pub struct Hazard {
    /// A write while the map does not grow, in microseconds.
    pub write_us: f64,
    /// A write while the map grows, in microseconds.
    pub growing_write_us: f64,
    /// Between two steps of a list, in microseconds. Each step looks whether a write goes on.
    pub list_step_us: f64,
    /// While the map grows from `n` buckets, it takes this times `n` writes to move them.
    pub writes_per_bucket: f64,
}

impl Default for Hazard {
    fn default() -> Self {
        Self {
            write_us: 0.02,
            growing_write_us: 5.0,
            list_step_us: 0.5,
            // Each write moves the bucket it falls on, unless that was moved before, and the next
            // in turn: 1 - 1/e of the buckets have to be written to.
            writes_per_bucket: 0.63,
        }
    }
}

/// Entries per bucket at which the map grows, and buckets before it first does, as a product:
/// 6.5 × 2. It grows again at each doubling of it: 832, 1,664, 3,328, 6,656, …
const FIRST_GROWTH: usize = 13;

/// Buckets at [`FIRST_GROWTH`].
const FIRST_BUCKETS: usize = 2;

/// What falls off by half each millisecond, in both directions of time, adds up to this many
/// times its peak: two accesses meant for the same moment are a millisecond or so apart. A process
/// takes whole seconds, and starts come at a steady beat: completions and starts often are meant
/// for the same moment, and meet far more often than at random.
const SPREAD_US: f64 = 3_000.0;

/// After so long nothing is left of what fell off by half each millisecond.
const FORGOTTEN_AFTER_MS: i64 = 200;

const US_PER_MS: f64 = 1_000.0;

/// The danger to one life of the service.
#[derive(Clone, Debug, Default)]
pub struct CrashModel {
    hazard: Hazard,
    /// Writes until the map has grown.
    growing_for: f64,
    recent: Recent,
    /// The end of the list that lasts longest, in milliseconds.
    listing_until: f64,
}

/// The accesses of the last milliseconds; each counts half as much after a millisecond.
#[derive(Clone, Debug, Default)]
struct Recent {
    /// When they were last counted, in milliseconds since 1970.
    at_ms: i64,
    /// How many.
    touches: f64,
    /// How long those last that are writes, in microseconds.
    writes_us: f64,
    /// How many of them are completions.
    completions: f64,
    /// How long the completions' writes last, in microseconds.
    completions_us: f64,
}

impl Recent {
    fn fade(&mut self, now: Timestamp) {
        let passed = now
            .0
            .saturating_sub(self.at_ms)
            .clamp(0, FORGOTTEN_AFTER_MS);
        self.at_ms = self.at_ms.max(now.0);
        if passed == 0 {
            return;
        }
        // A power of two: exact, and the same on every machine.
        let left = 0.5_f64.powi(passed as i32);
        for sum in [
            &mut self.touches,
            &mut self.writes_us,
            &mut self.completions,
            &mut self.completions_us,
        ] {
            *sum *= left;
        }
    }
}

impl CrashModel {
    /// A life that has just begun.
    pub fn new(hazard: Hazard) -> Self {
        Self {
            hazard,
            ..Self::default()
        }
    }

    /// Begins the next life.
    pub fn forget_everything(&mut self) {
        *self = Self::new(self.hazard.clone());
    }

    /// Whether this access kills the service. Accesses come in the order of their moments, the
    /// completions among them: [`Self::catch_up`] brings them.
    pub fn dies(&mut self, touch: Touch, now: Timestamp, draw: &mut Draw) -> bool {
        self.recent.fade(now);
        if let Touch::Start { processes } = touch {
            self.grow(processes);
        }
        let write_us = self.write_us();
        let (chance, lasts_us) = match touch {
            Touch::Completion => {
                let others = self.recent.touches * write_us + self.recent.writes_us;
                let chance = others / SPREAD_US + self.meets_a_list(write_us, now);
                self.recent.completions += 1.0;
                self.recent.completions_us += write_us;
                (chance, write_us)
            }
            Touch::Start { .. } => {
                let meets = self.recent.completions * write_us + self.recent.completions_us;
                (meets / SPREAD_US, write_us)
            }
            Touch::LookUp => (self.recent.completions_us / SPREAD_US, 0.0),
            Touch::List { entries } => {
                let lasts_ms = entries as f64 * self.hazard.list_step_us / US_PER_MS;
                self.listing_until = self.listing_until.max(now.0 as f64 + lasts_ms);
                (self.recent.completions_us / SPREAD_US, 0.0)
            }
        };
        if !matches!(touch, Touch::List { .. }) {
            self.recent.touches += 1.0;
            self.recent.writes_us += lasts_us;
        }
        if lasts_us > 0.0 {
            self.growing_for = (self.growing_for - 1.0).max(0.0);
        }
        chance > 0.0 && happens(chance, draw)
    }

    /// Brings the completions up to `now`; tells when one of them killed the service. After a
    /// death the rest is left: [`Self::forget_everything`] is next, of the model too.
    pub fn catch_up(
        &mut self,
        model: &mut Model,
        now: Timestamp,
        draw: &mut Draw,
    ) -> Option<Timestamp> {
        while let Some(moment) = model.next_completion(now) {
            if self.dies(Touch::Completion, moment, draw) {
                return Some(moment);
            }
        }
        None
    }

    /// The map grows when it has to take one more than 6.5 entries per bucket.
    fn grow(&mut self, processes: usize) {
        let full = processes.saturating_sub(1);
        if full >= FIRST_GROWTH
            && full.is_multiple_of(FIRST_GROWTH)
            && (full / FIRST_GROWTH).is_power_of_two()
        {
            let buckets = full / FIRST_GROWTH * FIRST_BUCKETS;
            self.growing_for = buckets as f64 * self.hazard.writes_per_bucket;
        }
    }

    fn write_us(&self) -> f64 {
        if self.growing_for > 0.0 {
            self.hazard.growing_write_us
        } else {
            self.hazard.write_us
        }
    }

    /// A list lasts for milliseconds, and sees a write that is long enough to meet one of its
    /// steps. A moment is a whole millisecond: the list may end within it.
    fn meets_a_list(&self, write_us: f64, now: Timestamp) -> f64 {
        let overlap = (self.listing_until - now.0 as f64).clamp(0.0, 1.0);
        overlap * (write_us / self.hazard.list_step_us).min(1.0)
    }
}

/// Whether something of this chance, from 0 to 1, happens now.
pub(super) fn happens(chance: f64, draw: &mut Draw) -> bool {
    /// All of these are exact as an f64.
    const STEPS: u64 = 1 << 53;
    (draw(STEPS) as f64) < chance * STEPS as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The chance that a touch at `ms` kills, told by the draw that it would take.
    fn chance(crash: &CrashModel, touch: Touch, ms: i64) -> f64 {
        let (mut low, mut high) = (0.0, 1.0);
        while high - low > 1e-12 {
            let point: f64 = (low + high) / 2.0;
            let mut draw = |n: u64| (point * n as f64) as u64;
            if crash.clone().dies(touch, Timestamp(ms), &mut draw) {
                low = point;
            } else {
                high = point;
            }
        }
        low
    }

    /// Never kills.
    fn lucky(n: u64) -> u64 {
        n - 1
    }

    #[test]
    fn without_completions_no_number_of_requests_kills() {
        let mut crash = CrashModel::default();
        let mut never = |_| 0;
        for processes in 1..5_000 {
            let now = Timestamp(processes as i64);
            for touch in [
                Touch::Start { processes },
                Touch::LookUp,
                Touch::List { entries: processes },
            ] {
                assert!(!crash.dies(touch, now, &mut never), "{touch:?}");
            }
        }
    }

    #[test]
    fn a_completion_is_dangerous_beside_another_access_and_most_of_all_while_the_map_grows() {
        let with = |processes| {
            let mut crash = CrashModel::default();
            crash.dies(Touch::Start { processes }, Timestamp(1_000), &mut lucky);
            crash
        };
        let (calm, growing) = (with(6_656), with(6_657));
        let beside = chance(&calm, Touch::Completion, 1_000);
        assert!((1e-6..1e-4).contains(&beside), "{beside}");
        assert!(chance(&growing, Touch::Completion, 1_000) > 100.0 * beside);
        assert!(chance(&calm, Touch::Completion, 1_005) < beside / 30.0);
        assert_eq!(chance(&calm, Touch::Completion, 2_000), 0.0);
    }

    #[test]
    fn the_map_grows_at_each_doubling_and_for_a_few_hundred_writes() {
        for (processes, writes) in [(833, 81), (6_657, 646), (26_625, 2_581)] {
            let mut crash = CrashModel::default();
            let start = Touch::Start { processes };
            crash.dies(start, Timestamp(0), &mut lucky);
            let start = Touch::Start {
                processes: processes + 1,
            };
            let mut count = 1;
            while crash.growing_for > 0.0 {
                crash.dies(start, Timestamp(0), &mut lucky);
                count += 1;
            }
            assert_eq!(count, writes, "{processes}");
        }
        let mut crash = CrashModel::default();
        for processes in [1, 13, 832, 834, 1_000, 6_656] {
            crash.dies(Touch::Start { processes }, Timestamp(0), &mut lucky);
            assert!(crash.growing_for <= 0.0, "{processes}");
        }
    }

    #[test]
    fn a_long_list_is_met_by_the_completions_that_come_while_it_lasts() {
        let mut crash = CrashModel::default();
        let list = Touch::List { entries: 10_000 };
        crash.dies(list, Timestamp(1_000), &mut lucky);
        assert!(chance(&crash, Touch::Completion, 1_004) > 0.01);
        assert_eq!(chance(&crash, Touch::Completion, 1_005), 0.0);
    }

    #[test]
    fn a_death_among_the_completions_is_told_with_its_moment() {
        let mut model = Model::new(10);
        let mut nine_seconds = |n| n - 1;
        for id in ["a1", "a2"] {
            assert!(model.start(id, Timestamp(0), &mut nine_seconds));
        }
        let mut crash = CrashModel::default();
        let died = crash.catch_up(&mut model, Timestamp(20_000), &mut |_| 0);
        assert_eq!(died, Some(Timestamp(9_000)));
    }
}
