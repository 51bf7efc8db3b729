//! Durations, counted: into spans so narrow that any quantile can be told, and into the few wide
//! ones of a histogram.
//!
//! Pure. Whose durations they are, its owner knows.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Below this many milliseconds each is told apart; above, each doubling is divided into half as
/// many spans, so that a quantile is off by one part in 128 at most.
const SPANS: u64 = 128;

/// How many durations of about what length there were.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HdrHistogram {
    /// By span; see [`span_of`].
    counts: BTreeMap<u64, u64>,
    count: u64,
}

impl HdrHistogram {
    /// Counts a duration.
    pub fn count(&mut self, duration: Duration) {
        *self.counts.entry(span_of(millis(duration))).or_default() += 1;
        self.count += 1;
    }

    /// Adds what was counted elsewhere.
    pub fn add(&mut self, other: &Self) {
        for (span, count) in &other.counts {
            *self.counts.entry(*span).or_default() += count;
        }
        self.count += other.count;
    }

    /// How many were counted.
    pub fn len(&self) -> u64 {
        self.count
    }

    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The duration that `share` of them, from 0 to 1, did not exceed; nothing if there is none.
    /// (The nearest rank.)
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let rank = ((share * self.count as f64).ceil() as u64).max(1);
        let mut so_far = 0;
        for (span, count) in &self.counts {
            so_far += count;
            if so_far >= rank {
                return Some(Duration::from_millis(middle_of(*span)));
            }
        }
        None
    }
}

/// The span of a duration in milliseconds: itself while it is short, then the doubling that it is
/// in and its first bits (as in HdrHistogram).
fn span_of(ms: u64) -> u64 {
    let doubling = (ms / SPANS).checked_ilog2().map_or(0, |log| log + 1);
    u64::from(doubling) * SPANS + (ms >> doubling)
}

/// The middle of a span, in milliseconds.
fn middle_of(span: u64) -> u64 {
    let doubling = span / SPANS;
    let first = (span % SPANS) << doubling;
    first + ((1 << doubling) - 1) / 2
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// How many values there were up to each of some bounds, and their sum: a histogram as Prometheus
/// has them. Values are whole numbers in a unit that is its owner's, as are the bounds, which rise
/// and never change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Histogram {
    /// Values above the bound before and up to this one; last those above every bound. Trailing
    /// zeros are left out.
    counts: Vec<u64>,
    sum: u64,
}

impl Histogram {
    /// Counts a value.
    pub fn count(&mut self, bounds: &[u64], value: u64) {
        let place = bounds.partition_point(|bound| *bound < value);
        if self.counts.len() <= place {
            self.counts.resize(place + 1, 0);
        }
        self.counts[place] += 1;
        self.sum = self.sum.saturating_add(value);
    }

    /// Counts a duration, in milliseconds.
    pub fn count_ms(&mut self, bounds: &[u64], duration: Duration) {
        self.count(bounds, millis(duration));
    }

    /// Counts a duration, in microseconds.
    pub fn count_us(&mut self, bounds: &[u64], duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.count(bounds, us);
    }

    /// How many lie above the bound before and up to each of them; last, how many lie above all.
    pub fn counts(&self, bounds: &[u64]) -> impl Iterator<Item = u64> {
        let counts = self.counts.iter().copied();
        counts.chain(std::iter::repeat(0)).take(bounds.len() + 1)
    }

    /// How many were counted.
    pub fn len(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The sum of all values.
    pub fn sum(&self) -> u64 {
        self.sum
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_histogram_counts_up_to_and_including_each_bound() {
        let bounds = [100, 1_000];
        let mut histogram = Histogram::default();
        for ms in [0, 100, 101, 999, 1_000, 5_000] {
            histogram.count_ms(&bounds, Duration::from_millis(ms));
        }
        assert_eq!(histogram.counts(&bounds).collect::<Vec<_>>(), [2, 3, 1]);
        assert_eq!((histogram.len(), histogram.sum()), (6, 7_200));
        let none = Histogram::default();
        assert_eq!(none.counts(&bounds).collect::<Vec<_>>(), [0, 0, 0]);
    }

    #[test]
    fn spans_follow_each_other_and_hold_their_middle() {
        let mut last = 0;
        for ms in 0..1_000_000 {
            let span = span_of(ms);
            assert!(
                span == last || span == last + 1 || (span % SPANS == SPANS / 2),
                "{ms}"
            );
            assert!(span >= last);
            last = span;
            assert_eq!(span_of(middle_of(span)), span);
        }
        assert_eq!(span_of(middle_of(span_of(u64::MAX))), span_of(u64::MAX));
    }

    proptest! {
        #[test]
        fn a_quantile_is_that_of_the_sorted_durations_within_one_part_in_a_hundred(
            mut times in prop::collection::vec(0u64..100_000_000, 1..200),
            share in 0.0..=1.0f64,
        ) {
            let mut spread = HdrHistogram::default();
            for ms in &times {
                spread.count(Duration::from_millis(*ms));
            }
            times.sort_unstable();
            let rank = ((share * times.len() as f64).ceil() as usize).max(1);
            let exact = times[rank - 1] as f64;
            let told = spread.quantile(share).unwrap().as_millis() as f64;
            prop_assert!((told - exact).abs() <= exact / 100.0, "{} {}", told, exact);
        }

        #[test]
        fn spreads_that_are_added_are_one_of_all(
            first in prop::collection::vec(0u64..1_000_000, 0..50),
            second in prop::collection::vec(0u64..1_000_000, 0..50),
        ) {
            let of = |times: &[u64]| {
                let mut spread = HdrHistogram::default();
                times.iter().for_each(|ms| spread.count(Duration::from_millis(*ms)));
                spread
            };
            let mut sum = of(&first);
            sum.add(&of(&second));
            prop_assert_eq!(sum, of(&[first, second].concat()));
        }
    }
}
