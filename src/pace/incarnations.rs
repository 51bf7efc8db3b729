//! Restarts of the upstream, and the limit of running processes that follows from them: the window.
//!
//! An incarnation of the upstream lasts from one restart to the next. Its length is measured in
//! processes more than in seconds, because work is what crashes the upstream.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::order::Timestamp;

/// A restart of the upstream is suspected if more processes than this are missing, and more than one in
/// [`MISSING_DIVISOR`].
const MISSING_MIN: usize = 10;

/// A restart of the upstream is suspected if more than one in this many known processes are missing, and more
/// than [`MISSING_MIN`].
const MISSING_DIVISOR: usize = 3;

/// Length of an incarnation before any was observed to end, in processes: half of what the modelled
/// service lives for when this program drives it (`scripts/simulate pace`: starts by crashes). A first
/// restart may be a deployment, and must not bring the work nearly to a halt.
const LENGTH_ASSUMED: f64 = 40_000.0;

/// Weight of the last incarnation in the moving average. Lengths differ by a factor of four.
const LATEST_WEIGHT: f64 = 0.4;

/// The window is one part in this many of an incarnation.
///
/// A crash loses all processes that run. With `W` of them and incarnations of `L` processes, one start
/// in `L/W` is lost, and the throughput that is left is in proportion to `W (1 - W/L)`. It is highest at
/// `W = L/2`, where every other start is lost, and one order in 32 five times in a row, when it would be
/// held. A third still has nine tenths of that throughput, and loses one start in three.
const WINDOW_DIVISOR: f64 = 3.0;

/// Smallest window, in processes. With one of [`MISSING_MIN`] or fewer, an incarnation could end unnoticed.
const WINDOW_MIN: u64 = 16;

/// The incarnations of the upstream, as far as this service has observed them.
///
/// They are stored with the heartbeat: serialised names are those of earlier versions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Incarnations {
    /// Number of processes in the current incarnation; `None` while it is not known.
    processes: Option<u64>,
    /// Moment at which the current incarnation was found to have begun, or was first observed.
    began_at: Option<Timestamp>,
    /// Moment at which a process was last found to have been forgotten, alone or with others.
    #[serde(rename = "forgot_at")]
    process_forgotten_at: Option<Timestamp>,
    /// Number of incarnations that were observed to end.
    #[serde(rename = "ended")]
    restarts: u64,
    /// Moving average of their length, in processes.
    #[serde(rename = "mean")]
    mean_processes: f64,
    /// Moving average of their length, in seconds; 0 until one was observed from beginning to end.
    mean_seconds: f64,
}

impl Incarnations {
    /// Returns the number of processes in the current incarnation, if it is known.
    pub fn processes(&self) -> Option<u64> {
        self.processes
    }

    /// Returns the same incarnations with no moment after `now`, for a clock that was set back.
    #[must_use]
    pub(super) fn clamp_times(mut self, now: Timestamp) -> Self {
        for past in [&mut self.began_at, &mut self.process_forgotten_at] {
            *past = past.map(|at| at.min(now));
        }
        self
    }

    /// Returns the number of incarnations that were observed to end.
    pub fn restarts(&self) -> u64 {
        self.restarts
    }

    /// Returns the moment at which the current incarnation was found to have begun, or was first
    /// observed.
    pub fn began_at(&self) -> Option<Timestamp> {
        self.began_at
    }

    /// Returns the moment at which the upstream was last found to have been restarted.
    pub fn restarted_at(&self) -> Option<Timestamp> {
        self.began_at.filter(|_| self.restarts > 0)
    }

    /// Returns the moment at which the upstream was last found to have forgotten a process, in a restart
    /// or otherwise.
    pub fn process_forgotten_at(&self) -> Option<Timestamp> {
        self.process_forgotten_at.max(self.restarted_at())
    }

    /// Returns the estimated length of an incarnation, in processes and in time; `None` while none was
    /// observed to end. The time is `None` while none was observed from its beginning: the number of
    /// processes is then an assumption. A current incarnation that is longer than the average counts
    /// as it is.
    pub fn expected_length(&self, now: Timestamp) -> Option<(f64, Option<Duration>)> {
        let processes = self.expected_processes()?;
        let age = self.began_at.map_or(Duration::ZERO, |at| now.since(at));
        let mean = Some(self.mean_seconds).filter(|mean| *mean > 0.0);
        let time = mean.map(|mean| {
            Duration::try_from_secs_f64(mean)
                .unwrap_or_default()
                .max(age)
        });
        Some((processes, time))
    }

    fn expected_processes(&self) -> Option<f64> {
        let so_far = self.processes.unwrap_or(0) as f64;
        (self.restarts > 0).then(|| self.mean_processes.max(so_far))
    }

    /// Returns the number of processes that may run at once; `None` while no incarnation was observed to end.
    pub fn window(&self) -> Option<u64> {
        let length = self.expected_processes()?;
        Some(((length / WINDOW_DIVISOR) as u64).max(WINDOW_MIN))
    }

    /// Returns the window if this many processes fill it.
    pub fn full_window(&self, running: u64) -> Option<u64> {
        self.window().filter(|window| running >= *window)
    }

    /// Counts a process that this service has started.
    pub fn on_start_accepted(&mut self) {
        if let Some(processes) = &mut self.processes {
            *processes += 1;
        }
    }

    /// Records the number of processes in a complete list.
    pub fn on_list_complete(&mut self, entries: u64, now: Timestamp) {
        self.processes = Some(entries);
        self.began_at.get_or_insert(now);
    }

    /// Records that the upstream was found to have forgotten a process.
    pub fn on_process_forgotten(&mut self, now: Timestamp) {
        self.process_forgotten_at = Some(now);
    }

    /// Records that the upstream was found to have been restarted and has `processes` in its new
    /// incarnation. An incarnation of unknown length does not change the average.
    pub fn on_upstream_restart(&mut self, processes: u64, now: Timestamp) {
        let age = self.began_at.map_or(0.0, |at| now.since(at).as_secs_f64());
        if self.restarts == 0 {
            self.mean_processes = LENGTH_ASSUMED;
        }
        if let Some(counted) = self.processes.replace(processes) {
            if self.mean_seconds == 0.0 {
                self.mean_seconds = age;
            }
            // Processes started before the restart was noticed are in the new incarnation.
            let length = counted.saturating_sub(processes) as f64;
            self.mean_processes += (length - self.mean_processes) * LATEST_WEIGHT;
            self.mean_seconds += (age - self.mean_seconds) * LATEST_WEIGHT;
        }
        self.restarts += 1;
        self.began_at = Some(now);
    }
}

/// Returns whether the upstream must have been restarted, given the number of known processes and how many
/// of them are missing at once.
pub fn is_upstream_restart(missing: usize, known: usize) -> bool {
    missing > MISSING_MIN && missing * MISSING_DIVISOR > known
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the window after incarnations of so many processes each.
    fn window_after(lengths: &[u64]) -> Option<u64> {
        let mut known = Incarnations::default();
        for (index, processes) in lengths.iter().enumerate() {
            known.on_list_complete(*processes, Timestamp(index as i64 * 600_000));
            known.on_upstream_restart(0, Timestamp(index as i64 * 600_000));
        }
        known.window()
    }

    #[test]
    fn before_the_first_restart_nothing_limits_the_processes_that_run() {
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
    fn the_window_shrinks_with_each_short_incarnation_and_never_to_nothing() {
        assert_eq!(window_after(&[40]), Some(8_005));
        assert_eq!(window_after(&[40, 40]), Some(4_808));
        assert_eq!(window_after(&[40; 30]), Some(16));
        let long = window_after(&[30_000; 20]).unwrap();
        assert!((9_900..=10_100).contains(&long), "{long}");
    }

    #[test]
    fn the_window_grows_while_an_incarnation_is_longer_than_those_before() {
        let mut incarnations = Incarnations::default();
        incarnations.on_list_complete(6_700, Timestamp(0));
        incarnations.on_upstream_restart(0, Timestamp(0));
        assert_eq!(incarnations.window(), Some(8_893));
        for _ in 0..30_000 {
            incarnations.on_start_accepted();
        }
        assert_eq!(incarnations.window(), Some(10_000));
        assert_eq!(incarnations.processes(), Some(30_000));
    }

    #[test]
    fn an_incarnation_has_a_length_in_processes_and_in_time() {
        let mut incarnations = Incarnations::default();
        incarnations.on_list_complete(10, Timestamp(0));
        incarnations.on_list_complete(20_000, Timestamp(599_000));
        incarnations.on_upstream_restart(0, Timestamp(600_000));
        incarnations.on_list_complete(20_000, Timestamp(601_000));
        let (processes, time) = incarnations.expected_length(Timestamp(601_000)).unwrap();
        assert_eq!((processes, time.unwrap().as_secs()), (32_000.0, 600));
        incarnations.on_upstream_restart(0, Timestamp(800_000));
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
    fn an_incarnation_whose_beginning_was_not_observed_has_no_length() {
        let mut incarnations = Incarnations::default();
        incarnations.on_upstream_restart(0, Timestamp(500_000));
        let expected = incarnations.expected_length(Timestamp(900_000));
        assert_eq!(expected, Some((LENGTH_ASSUMED, None)));
        incarnations.on_upstream_restart(0, Timestamp(1_100_000));
        let (_, time) = incarnations.expected_length(Timestamp(1_100_000)).unwrap();
        assert_eq!(
            time.unwrap().as_secs(),
            600,
            "the first one is no part of it"
        );
    }

    #[test]
    fn an_incarnation_counts_its_own_starts_and_not_those_of_the_next() {
        let mut incarnations = Incarnations::default();
        incarnations.on_upstream_restart(30, Timestamp(0));
        let expected =
            |incarnations: &Incarnations| incarnations.expected_length(Timestamp(0)).unwrap().0;
        assert_eq!(
            expected(&incarnations),
            LENGTH_ASSUMED,
            "its length is not known"
        );
        assert_eq!(incarnations.processes(), Some(30));
        for _ in 30..4_020 {
            incarnations.on_start_accepted();
        }
        // Twenty of them were started before the restart was noticed.
        incarnations.on_upstream_restart(20, Timestamp(0));
        assert_eq!(expected(&incarnations), 25_600.0);
        assert_eq!(incarnations.processes(), Some(20));
    }

    #[test]
    fn a_process_that_was_forgotten_alone_ends_no_incarnation_and_is_remembered() {
        let mut incarnations = Incarnations::default();
        incarnations.on_list_complete(3, Timestamp(1_000));
        assert_eq!(incarnations.process_forgotten_at(), None);
        incarnations.on_process_forgotten(Timestamp(2_000));
        assert_eq!(incarnations.process_forgotten_at(), Some(Timestamp(2_000)));
        assert_eq!(
            (incarnations.restarts(), incarnations.restarted_at()),
            (0, None)
        );
        assert_eq!(incarnations.began_at(), Some(Timestamp(1_000)));
        let earlier = incarnations.clone().clamp_times(Timestamp(1_500));
        assert_eq!(earlier.process_forgotten_at(), Some(Timestamp(1_500)));
        incarnations.on_upstream_restart(0, Timestamp(3_000));
        assert_eq!(incarnations.process_forgotten_at(), Some(Timestamp(3_000)));
        // An earlier version stored no `forgot_at`.
        let mut stored = serde_json::to_value(&incarnations).unwrap();
        stored.as_object_mut().unwrap().remove("forgot_at").unwrap();
        let incarnations: Incarnations = serde_json::from_value(stored).unwrap();
        assert_eq!(incarnations.process_forgotten_at(), Some(Timestamp(3_000)));
    }
}
