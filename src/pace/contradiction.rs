//! Lists that contradict themselves.

use serde::{Deserialize, Serialize};

use crate::order::Timestamp;

/// A list that had orders twice with different statuses. Neither status is believed: the orders are looked up,
/// so their outcomes are late.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contradiction {
    /// Moment at which the list had ended.
    pub at: Timestamp,
    /// Number of open orders that it had twice.
    pub orders: u64,
}

impl Contradiction {
    /// Returns the contradiction of a list that had so many orders twice; `None` if it had none.
    pub(super) fn of(orders: usize, at: Timestamp) -> Option<Self> {
        let orders = orders as u64;
        (orders > 0).then_some(Self { at, orders })
    }
}
