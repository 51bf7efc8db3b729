//! How long a list may take, learned from the last one.

use std::time::Duration;

/// A list may take this long in any case: a slow line brings megabytes in it.
const LIST_MIN: Duration = Duration::from_secs(30);

/// And no longer than this: what it says is older than that by then.
const LIST_MAX: Duration = Duration::from_secs(600);

/// It may take so many times as long per entry as the last complete one.
const SLOWER_MAX: u32 = 4;

/// The time that lists take.
#[derive(Clone, Debug, Default)]
pub struct ListTime {
    /// Of the last complete one: its entries, and the time it took.
    last: Option<(u64, Duration)>,
    /// Lists in a row that were not complete in time.
    cut: u32,
}

impl ListTime {
    /// How long the next list may take, if it has about so many entries.
    pub fn limit(&self, entries: Option<u64>) -> Duration {
        let expected = self.last.map_or(Duration::ZERO, |(of_last, took)| {
            let growth = entries.unwrap_or(of_last).max(1) as f64 / of_last.max(1) as f64;
            let seconds = took.as_secs_f64() * growth * f64::from(SLOWER_MAX);
            Duration::try_from_secs_f64(seconds).unwrap_or(LIST_MAX)
        });
        let doubled = 2_u32.saturating_pow(self.cut);
        expected.max(LIST_MIN).saturating_mul(doubled).min(LIST_MAX)
    }

    /// A list was complete.
    pub fn on_complete(&mut self, entries: u64, took: Duration) {
        self.last = Some((entries, took));
        self.cut = 0;
    }

    /// A list was cut off because it took too long.
    pub fn on_cut(&mut self) {
        self.cut += 1;
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
        let mut time = ListTime::default();
        assert_eq!(time.limit(None), s(30));
        assert_eq!(time.limit(Some(1_000_000)), s(30));
        time.on_complete(1_000, s(1));
        assert_eq!(time.limit(Some(1_000)), s(30), "at least");
        assert_eq!(time.limit(Some(20_000)), s(80));
        assert_eq!(time.limit(None), s(30));
        assert_eq!(time.limit(Some(1_000_000)), s(600), "at most");
        time.on_complete(0, s(20));
        assert_eq!((time.limit(Some(0)), time.limit(Some(2))), (s(80), s(160)));
    }

    #[test]
    fn each_list_that_was_cut_doubles_the_time_of_the_next_up_to_ten_minutes() {
        let mut time = ListTime::default();
        for expected in [30, 60, 120, 240, 480, 600, 600] {
            assert_eq!(time.limit(None), s(expected));
            time.on_cut();
        }
        for _ in 0..100 {
            time.on_cut();
        }
        assert_eq!(time.limit(Some(5)), s(600));
        time.on_complete(5, s(2));
        assert_eq!(time.limit(Some(5)), s(30));
    }
}
