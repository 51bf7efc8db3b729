//! The backoff of an order whose attempts fail.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

/// Backoff after a first failure.
pub(super) const BACKOFF_BASE: Duration = Duration::from_secs(1);

/// Longest backoff: long enough that an operator sees the order in today's logs, short enough that
/// an order proceeds soon after the upstream is repaired.
pub const BACKOFF_MAX: Duration = Duration::from_secs(300);

/// Returns how long an order waits after its `attempts`th failure in a row: one second, doubled with each
/// further failure up to [`BACKOFF_MAX`], less a share of up to one half that depends on the id, so
/// that orders that failed together do not return together ("equal jitter").
pub fn backoff(id: &str, attempts: u32) -> Duration {
    let doublings = attempts.saturating_sub(1).min(16);
    let full = (BACKOFF_BASE * 2u32.pow(doublings)).min(BACKOFF_MAX);
    let mut hasher = DefaultHasher::new();
    (id, attempts).hash(&mut hasher);
    let share = (hasher.finish() % 1_000) as f64 / 1_000.0;
    full.mul_f64(1.0 - share / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_up_to_five_minutes_and_differs_between_orders() {
        for attempts in 1..40 {
            let full = Duration::from_secs(1 << (attempts - 1).min(16)).min(BACKOFF_MAX);
            let wait = backoff("a1", attempts);
            assert!(wait <= full && wait >= full / 2, "{attempts}: {wait:?}");
        }
        let waits: std::collections::HashSet<_> =
            (0..100).map(|n| backoff(&format!("a{n}"), 5)).collect();
        assert!(waits.len() > 50);
    }
}
