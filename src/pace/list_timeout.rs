//! The timeout of lists, learned from the last one.

use std::time::Duration;

/// Shortest timeout: in this time even a slow line brings megabytes.
const TIMEOUT_MIN: Duration = Duration::from_secs(30);

/// Longest timeout: a list that took longer would be out of date.
const TIMEOUT_MAX: Duration = Duration::from_secs(600);

/// A list may take this many times as long per entry as the last complete one.
const SLOWDOWN_MAX: u32 = 4;

/// The timeout of lists.
#[derive(Clone, Debug, Default)]
pub struct ListTimeout {
    /// Number of entries of the last complete list, and the time that it took.
    last: Option<(u64, Duration)>,
    /// Number of lists in a row that timed out.
    timeouts: u32,
}

impl ListTimeout {
    /// Returns the timeout of a list of about so many entries; `None` if their number is not known.
    pub fn next(&self, entries: Option<u64>) -> Duration {
        let expected = self.last.map_or(Duration::ZERO, |(last_entries, took)| {
            let growth = entries.unwrap_or(last_entries).max(1) as f64 / last_entries.max(1) as f64;
            let seconds = took.as_secs_f64() * growth * f64::from(SLOWDOWN_MAX);
            Duration::try_from_secs_f64(seconds).unwrap_or(TIMEOUT_MAX)
        });
        let doubled = 2_u32.saturating_pow(self.timeouts);
        expected
            .max(TIMEOUT_MIN)
            .saturating_mul(doubled)
            .min(TIMEOUT_MAX)
    }

    /// Learns from a complete list.
    pub fn on_complete(&mut self, entries: u64, took: Duration) {
        self.last = Some((entries, took));
        self.timeouts = 0;
    }

    /// Counts a list that timed out.
    pub fn on_timeout(&mut self) {
        self.timeouts += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_list_may_take_four_times_as_long_per_entry_as_the_last_one() {
        let mut timeout = ListTimeout::default();
        assert_eq!(timeout.next(None), s(30));
        assert_eq!(timeout.next(Some(1_000_000)), s(30));
        timeout.on_complete(1_000, s(1));
        assert_eq!(timeout.next(Some(1_000)), s(30), "at least");
        assert_eq!(timeout.next(Some(20_000)), s(80));
        assert_eq!(timeout.next(None), s(30));
        assert_eq!(timeout.next(Some(1_000_000)), s(600), "at most");
        timeout.on_complete(0, s(20));
        let next = (timeout.next(Some(0)), timeout.next(Some(2)));
        assert_eq!(next, (s(80), s(160)));
    }

    #[test]
    fn each_list_that_times_out_doubles_the_timeout_of_the_next_up_to_ten_minutes() {
        let mut timeout = ListTimeout::default();
        for expected in [30, 60, 120, 240, 480, 600, 600] {
            assert_eq!(timeout.next(None), s(expected));
            timeout.on_timeout();
        }
        for _ in 0..100 {
            timeout.on_timeout();
        }
        assert_eq!(timeout.next(Some(5)), s(600));
        timeout.on_complete(5, s(2));
        assert_eq!(timeout.next(Some(5)), s(30));
    }
}
