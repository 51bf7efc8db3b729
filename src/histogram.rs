//! Histograms: one with buckets so narrow that any quantile can be computed, and one with a few wide
//! buckets for Prometheus.
//!
//! Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Number of buckets of one millisecond each. Above that, each doubling has half as many, so that a
/// quantile is off by one part in 128 at most.
const LINEAR: u64 = 128;

/// A histogram of durations in narrow buckets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HdrHistogram {
    /// Number of durations by bucket; see [`bucket_of`].
    counts: BTreeMap<u64, u64>,
    count: u64,
}

impl HdrHistogram {
    /// Counts a duration.
    pub fn count(&mut self, duration: Duration) {
        *self.counts.entry(bucket_of(millis(duration))).or_default() += 1;
        self.count += 1;
    }

    /// Adds the counts of another histogram.
    pub fn add(&mut self, other: &Self) {
        for (bucket, count) in &other.counts {
            *self.counts.entry(*bucket).or_default() += count;
        }
        self.count += other.count;
    }

    /// Returns the number of durations.
    pub fn total(&self) -> u64 {
        self.count
    }

    /// Returns the duration that a `share` of them, from 0 to 1, did not exceed (the nearest rank), or
    /// `None` if there is none.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let rank = ((share * self.count as f64).ceil() as u64).max(1);
        let mut so_far = 0;
        for (bucket, count) in &self.counts {
            so_far += count;
            if so_far >= rank {
                return Some(Duration::from_millis(middle_of(*bucket)));
            }
        }
        None
    }
}

/// Returns the bucket of a duration in milliseconds: the duration itself while it is short, then its
/// doubling and its first bits (as in HdrHistogram).
fn bucket_of(ms: u64) -> u64 {
    let doubling = (ms / LINEAR).checked_ilog2().map_or(0, |log| log + 1);
    u64::from(doubling) * LINEAR + (ms >> doubling)
}

/// Returns the middle of a bucket, in milliseconds.
fn middle_of(bucket: u64) -> u64 {
    let doubling = bucket / LINEAR;
    let first = (bucket % LINEAR) << doubling;
    first + ((1 << doubling) - 1) / 2
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A histogram as Prometheus has it: the number of values up to each bound, and their sum. The caller
/// chooses the unit of values and the bounds, which are ascending and never change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Histogram {
    /// Number of values above the previous bound and up to this one; last, of those above every bound.
    /// Trailing zeros are left out.
    counts: Vec<u64>,
    sum: u64,
}

impl Histogram {
    /// Counts a value.
    pub fn count(&mut self, bounds: &[u64], value: u64) {
        let index = bounds.partition_point(|bound| *bound < value);
        if self.counts.len() <= index {
            self.counts.resize(index + 1, 0);
        }
        self.counts[index] += 1;
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

    /// Returns the number of values above the previous bound and up to each one; last, of those above all.
    pub fn counts(&self, bounds: &[u64]) -> impl Iterator<Item = u64> {
        let counts = self.counts.iter().copied();
        counts.chain(std::iter::repeat(0)).take(bounds.len() + 1)
    }

    /// Returns the number of values.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Returns the sum of all values.
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
        assert_eq!((histogram.total(), histogram.sum()), (6, 7_200));
        let none = Histogram::default();
        assert_eq!(none.counts(&bounds).collect::<Vec<_>>(), [0, 0, 0]);
    }

    #[test]
    fn buckets_follow_each_other_and_hold_their_middle() {
        let mut last = 0;
        for ms in 0..1_000_000 {
            let bucket = bucket_of(ms);
            assert!(
                bucket == last || bucket == last + 1 || (bucket % LINEAR == LINEAR / 2),
                "{ms}"
            );
            assert!(bucket >= last);
            last = bucket;
            assert_eq!(bucket_of(middle_of(bucket)), bucket);
        }
        assert_eq!(
            bucket_of(middle_of(bucket_of(u64::MAX))),
            bucket_of(u64::MAX)
        );
    }

    proptest! {
        #[test]
        fn a_quantile_is_that_of_the_sorted_durations_within_one_part_in_a_hundred(
            mut times in prop::collection::vec(0u64..100_000_000, 1..200),
            share in 0.0..=1.0f64,
        ) {
            let mut histogram = HdrHistogram::default();
            for ms in &times {
                histogram.count(Duration::from_millis(*ms));
            }
            times.sort_unstable();
            let rank = ((share * times.len() as f64).ceil() as usize).max(1);
            let exact = times[rank - 1] as f64;
            let found = histogram.quantile(share).unwrap().as_millis() as f64;
            prop_assert!((found - exact).abs() <= exact / 100.0, "{} {}", found, exact);
        }

        #[test]
        fn histograms_that_are_added_are_one_of_all(
            first in prop::collection::vec(0u64..1_000_000, 0..50),
            second in prop::collection::vec(0u64..1_000_000, 0..50),
        ) {
            let of = |times: &[u64]| {
                let mut histogram = HdrHistogram::default();
                times.iter().for_each(|ms| histogram.count(Duration::from_millis(*ms)));
                histogram
            };
            let mut sum = of(&first);
            sum.add(&of(&second));
            prop_assert_eq!(sum, of(&[first, second].concat()));
        }
    }
}
