//! Filters of order lists.

use self::AttentionFilter::{Any, By};
use crate::order::{ResolvedBy, Status};

/// Filter of a list of orders.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Accepted statuses; empty accepts all.
    pub statuses: Vec<Status>,
    /// Accepted attention; `None` accepts orders with and without attention.
    pub attention: Option<AttentionFilter>,
}

/// Filter by attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionFilter {
    /// Orders with attention.
    Any,
    /// Orders with attention that is resolved by this party.
    By(ResolvedBy),
    /// Orders without attention.
    Without,
}

impl Filter {
    /// Returns true if settled orders can match, and so orders that may be pruned later. Orders
    /// with attention are never settled.
    pub(super) fn takes_settled(&self) -> bool {
        let mut statuses = self.statuses.iter();
        !matches!(self.attention, Some(Any | By(_)))
            && (self.statuses.is_empty() || statuses.any(|status| status.is_settled()))
    }
}

/// Condition in SQL for orders that may be pruned: settled before a time, whose placeholder is given.
/// Not by the index of statuses, which would be sorted or read in whole for each batch.
macro_rules! prunable {
    ($before:literal) => {
        concat!(
            "status || '' IN ('FULFILLED', 'FAILED') AND updated_at < ",
            $before,
            " AND seq < (SELECT max(seq) FROM orders) \
             AND seq <> (SELECT order_seq FROM journal ORDER BY seq DESC LIMIT 1)"
        )
    };
}
pub(super) use prunable;
