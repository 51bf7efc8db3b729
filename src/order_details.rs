//! Everything that is stored about one order, read at one moment.
//!
//! Pure. `store` reads it, and `explain` describes it in sentences.

use crate::decide::OpenOrder;
use crate::order::{Order, Timestamp};
use crate::reconciler_state::ReconcilerState;

/// Maximum count of the orders that wait ahead of another, which bounds the cost of counting.
pub const COUNTED_AHEAD_MAX: u64 = 10_000;

/// Everything that is stored about one order.
#[derive(Clone, Debug, PartialEq)]
pub struct OrderDetails {
    /// The order as its readers see it.
    pub order: Order,
    /// The order as the reconciler sees it, while it is open.
    pub open: Option<OpenOrder>,
    /// Its entries in the journal, oldest first: the moment and the name of the reason.
    pub journal: Vec<(Timestamp, String)>,
    /// Number of orders to be started before it. From [`COUNTED_AHEAD_MAX`] on there may be more.
    pub ahead: u64,
    /// The reconciler's report on itself and on the upstream.
    pub reconciler: ReconcilerState,
}
