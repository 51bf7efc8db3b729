//! How long the upstream lives, and how many processes may therefore be in flight at once.
//!
//! A life is counted in processes, not in seconds: what kills the upstream is its work.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::order::Timestamp;

/// How long a life counts as before any was seen to end, in processes: half of what the modelled
/// service lives when this program drives it (`scripts/simulate pace`: starts by deaths). A first
/// restart may be anybody's deployment, and must not bring the work nearly to a halt.
const PROCESSES_ASSUMED: f64 = 40_000.0;

/// How much the last life counts against all before it. Incarnations differ by a factor of four.
const LATEST_WEIGHT: f64 = 0.4;

/// The window is one part in this many of a life.
///
/// A crash costs all that is in flight. With `W` in flight and lives of `L` processes, one start in
/// `L/W` is lost, and what is left of the throughput is in proportion to `W (1 - W/L)`: most at
/// `W = L/2`, where every other start is lost, and one order in 32 five times in a row, when it
/// would be held. A third still has nine tenths of that throughput, and loses one in three.
const WINDOW_SHARE: f64 = 3.0;

/// The smallest window. With fewer processes than may be missing without a restart being suspected,
/// the end of a life would not be seen.
const WINDOW_MIN: u64 = 16;

/// The lives of the upstream, as far as this service has seen them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Incarnations {
    /// Processes in the present life; nothing while that is not known.
    processes: Option<u64>,
    /// When the present life was found to have begun, or was first seen.
    began_at: Option<Timestamp>,
    /// When a process was last found to have been forgotten, with others or alone.
    forgot_at: Option<Timestamp>,
    /// How many were seen to end.
    #[serde(rename = "ended")]
    restarts: u64,
    /// A moving average of those, in processes.
    mean: f64,
    /// The same in seconds; 0 until one was observed from its beginning to its end.
    mean_seconds: f64,
}

impl Incarnations {
    /// Processes in the present life, if that is known.
    pub fn processes(&self) -> Option<u64> {
        self.processes
    }

    /// The same, as of no later than `now`.
    #[must_use]
    pub(super) fn no_later_than(mut self, now: Timestamp) -> Self {
        for past in [&mut self.began_at, &mut self.forgot_at] {
            *past = past.map(|at| at.min(now));
        }
        self
    }

    /// Incarnations that were seen to end.
    pub fn restarts(&self) -> u64 {
        self.restarts
    }

    /// When the present life was found to have begun, or was first seen.
    pub fn began_at(&self) -> Option<Timestamp> {
        self.began_at
    }

    /// When the upstream was last found to have been restarted.
    pub fn restarted_at(&self) -> Option<Timestamp> {
        self.began_at.filter(|_| self.restarts > 0)
    }

    /// When the upstream was last found to have forgotten a process, in a restart or otherwise.
    pub fn forgot_at(&self) -> Option<Timestamp> {
        self.forgot_at.max(self.restarted_at())
    }

    /// Estimated length of a life, in processes and in time; `None` while none was seen to end. The
    /// time is `None` while none was observed from its beginning: the processes are then an
    /// assumption. A life that lasts longer already counts as far as it has come.
    pub fn expected_length(&self, now: Timestamp) -> Option<(f64, Option<Duration>)> {
        if self.restarts == 0 {
            return None;
        }
        let so_far = self.processes.unwrap_or(0) as f64;
        let age = self.began_at.map_or(Duration::ZERO, |at| now.since(at));
        let mean = Some(self.mean_seconds).filter(|mean| *mean > 0.0);
        let time = mean.map(|mean| {
            Duration::try_from_secs_f64(mean)
                .unwrap_or_default()
                .max(age)
        });
        Some((self.mean.max(so_far), time))
    }

    /// How many processes may be in flight; nothing while no life was seen to end.
    pub fn window(&self) -> Option<u64> {
        if self.restarts == 0 {
            return None;
        }
        let life = self.mean.max(self.processes.unwrap_or(0) as f64);
        Some(((life / WINDOW_SHARE) as u64).max(WINDOW_MIN))
    }

    /// A process was started by this service.
    pub fn on_start_accepted(&mut self) {
        if let Some(processes) = &mut self.processes {
            *processes += 1;
        }
    }

    /// A complete list told how many processes there are.
    pub fn on_list_complete(&mut self, entries: u64, now: Timestamp) {
        self.processes = Some(entries);
        self.began_at.get_or_insert(now);
    }

    /// The upstream was found to have forgotten a process.
    pub fn on_process_forgotten(&mut self, now: Timestamp) {
        self.forgot_at = Some(now);
    }

    /// The upstream was found to have been restarted: what it had begun is over, and it has so
    /// many processes in its new life. A life whose length was not known tells nothing of others.
    pub fn on_restart(&mut self, processes: u64, now: Timestamp) {
        let age = self.began_at.map_or(0.0, |at| now.since(at).as_secs_f64());
        if self.restarts == 0 {
            self.mean = PROCESSES_ASSUMED;
        }
        if let Some(counted) = self.processes.replace(processes) {
            if self.mean_seconds == 0.0 {
                self.mean_seconds = age;
            }
            // What was started before the restart was noticed is of the new life.
            let lived = counted.saturating_sub(processes) as f64;
            self.mean += (lived - self.mean) * LATEST_WEIGHT;
            self.mean_seconds += (age - self.mean_seconds) * LATEST_WEIGHT;
        }
        self.restarts += 1;
        self.began_at = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The window after lives of so many processes each.
    fn window_after(incarnations: &[u64]) -> Option<u64> {
        let mut known = Incarnations::default();
        for (place, processes) in incarnations.iter().enumerate() {
            known.on_list_complete(*processes, Timestamp(place as i64 * 600_000));
            known.on_restart(0, Timestamp(place as i64 * 600_000));
        }
        known.window()
    }

    #[test]
    fn while_no_life_has_ended_nothing_limits_the_processes_in_flight() {
        let mut incarnations = Incarnations::default();
        assert_eq!(incarnations.window(), None);
        incarnations.on_list_complete(1_000_000, Timestamp(0));
        assert_eq!(
            (
                incarnations.window(),
                incarnations.expected_length(Timestamp(1))
            ),
            (None, None)
        );
    }

    #[test]
    fn the_window_shrinks_with_each_short_life_and_never_to_nothing() {
        assert_eq!(window_after(&[40]), Some(8_005));
        assert_eq!(window_after(&[40, 40]), Some(4_808));
        assert_eq!(window_after(&[40; 30]), Some(16));
        let long = window_after(&[30_000; 20]).unwrap();
        assert!((9_900..=10_100).contains(&long), "{long}");
    }

    #[test]
    fn the_window_grows_while_a_life_is_longer_than_those_before() {
        let mut incarnations = Incarnations::default();
        incarnations.on_list_complete(6_700, Timestamp(0));
        incarnations.on_restart(0, Timestamp(0));
        assert_eq!(incarnations.window(), Some(8_893));
        for _ in 0..30_000 {
            incarnations.on_start_accepted();
        }
        assert_eq!(incarnations.window(), Some(10_000));
        assert_eq!(incarnations.processes(), Some(30_000));
    }

    #[test]
    fn a_life_is_told_in_processes_and_in_time() {
        let mut incarnations = Incarnations::default();
        incarnations.on_list_complete(10, Timestamp(0));
        incarnations.on_list_complete(20_000, Timestamp(599_000));
        incarnations.on_restart(0, Timestamp(600_000));
        incarnations.on_list_complete(20_000, Timestamp(601_000));
        let (processes, time) = incarnations.expected_length(Timestamp(601_000)).unwrap();
        assert_eq!((processes, time.unwrap().as_secs()), (32_000.0, 600));
        incarnations.on_restart(0, Timestamp(800_000));
        let (_, time) = incarnations.expected_length(Timestamp(800_000)).unwrap();
        assert_eq!((time.unwrap().as_secs(), incarnations.restarts()), (440, 2));
        assert_eq!(incarnations.began_at(), Some(Timestamp(800_000)));
        let (_, time) = incarnations.expected_length(Timestamp(1_800_000)).unwrap();
        assert_eq!(
            time.unwrap().as_secs(),
            1_000,
            "this one is older than most"
        );
    }

    #[test]
    fn a_life_whose_beginning_was_not_observed_has_no_length() {
        let mut incarnations = Incarnations::default();
        incarnations.on_restart(0, Timestamp(500_000));
        let expected = incarnations.expected_length(Timestamp(900_000));
        assert_eq!(expected, Some((PROCESSES_ASSUMED, None)));
        incarnations.on_restart(0, Timestamp(1_100_000));
        let (_, time) = incarnations.expected_length(Timestamp(1_100_000)).unwrap();
        assert_eq!(
            time.unwrap().as_secs(),
            600,
            "the first one is no part of it"
        );
    }

    #[test]
    fn a_life_counts_what_was_started_in_it_and_not_what_the_next_one_has() {
        let mut incarnations = Incarnations::default();
        incarnations.on_restart(30, Timestamp(0));
        let expected =
            |incarnations: &Incarnations| incarnations.expected_length(Timestamp(0)).unwrap().0;
        assert_eq!(
            expected(&incarnations),
            PROCESSES_ASSUMED,
            "nothing is known of it"
        );
        assert_eq!(incarnations.processes(), Some(30));
        for _ in 30..4_020 {
            incarnations.on_start_accepted();
        }
        // Twenty of them were started before the restart was noticed.
        incarnations.on_restart(20, Timestamp(0));
        assert_eq!(expected(&incarnations), 25_600.0);
        assert_eq!(incarnations.processes(), Some(20));
    }

    #[test]
    fn a_process_that_was_forgotten_alone_ends_no_life_and_is_remembered() {
        let mut incarnations = Incarnations::default();
        incarnations.on_list_complete(3, Timestamp(1_000));
        assert_eq!(incarnations.forgot_at(), None);
        incarnations.on_process_forgotten(Timestamp(2_000));
        assert_eq!(incarnations.forgot_at(), Some(Timestamp(2_000)));
        assert_eq!(
            (incarnations.restarts(), incarnations.restarted_at()),
            (0, None)
        );
        assert_eq!(incarnations.began_at(), Some(Timestamp(1_000)));
        let earlier = incarnations.clone().no_later_than(Timestamp(1_500));
        assert_eq!(earlier.forgot_at(), Some(Timestamp(1_500)));
        incarnations.on_restart(0, Timestamp(3_000));
        assert_eq!(incarnations.forgot_at(), Some(Timestamp(3_000)));
        // A file of an earlier version knows of restarts alone.
        let mut kept = serde_json::to_value(&incarnations).unwrap();
        kept.as_object_mut().unwrap().remove("forgot_at").unwrap();
        let incarnations: Incarnations = serde_json::from_value(kept).unwrap();
        assert_eq!(incarnations.forgot_at(), Some(Timestamp(3_000)));
    }
}
