//! Ranges of order numbers.

/// Order numbers in a range: half a second's work.
pub(super) const RANGE: i64 = 10_000;

/// Distance between two open orders up to which they are copied together.
const GAP_MAX: i64 = 100;

/// First and last order number.
pub(super) type Range = (i64, i64);

pub(super) const EVERYTHING: Range = (i64::MIN, i64::MAX);

/// Returns the ranges from `first` to the end, of which `newest` is near.
pub(super) fn chunks(first: i64, newest: i64) -> Vec<Range> {
    let mut ranges = Vec::new();
    let mut first = first;
    // From a multiple on, so that each pass has the same.
    let mut last = (first.max(1) - 1) / RANGE * RANGE + RANGE;
    while last < newest {
        ranges.push((first, last));
        first = last + 1;
        last += RANGE;
    }
    ranges.push((first, i64::MAX));
    ranges
}

/// Returns ranges around these order numbers, which are sorted.
pub(super) fn runs(orders: &[i64]) -> Vec<Range> {
    let mut runs: Vec<Range> = Vec::new();
    for &order in orders {
        match runs.last_mut() {
            Some((first, last)) if order - *last <= GAP_MAX && order - *first < RANGE => {
                *last = order
            }
            _ => runs.push((order, order)),
        }
    }
    runs
}
