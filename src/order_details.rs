//! Everything that is known of one order, read at one moment.
//!
//! Pure. `store` reads it, and `explain` makes sentences of it.

use crate::decide::OpenOrder;
use crate::order::{Order, Timestamp};
use crate::reconciler_state::ReconcilerState;

/// Number up to which the orders that wait in a queue are counted, which bounds the cost of counting.
pub const COUNTED_AHEAD_MAX: u64 = 10_000;

/// Everything that is known of one order.
#[derive(Clone, Debug, PartialEq)]
pub struct OrderDetails {
    /// The order as its readers see it.
    pub order: Order,
    /// The order as the reconciler sees it, while it is open.
    pub open: Option<OpenOrder>,
    /// Its part of the journal, oldest first: the moment, and the word of the reason.
    pub journal: Vec<(Timestamp, String)>,
    /// Number of starts that come before this order's; from [`COUNTED_AHEAD_MAX`] on it may be more.
    pub ahead: u64,
    /// The reconciler's report on itself and on the upstream.
    pub reconciler: ReconcilerState,
}
