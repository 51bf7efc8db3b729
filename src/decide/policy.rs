//! The settings that a decision depends on.

use std::time::Duration;

use crate::order::{Timestamp, words};

/// The settings that a decision depends on, and what else is the same for all orders of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Timeout of a request to the upstream.
    pub request_timeout: Duration,
    /// Largest number of starts of an order.
    pub max_starts: u32,
    /// Policy for an order whose process was forgotten.
    pub lost_process: LostProcess,
    /// Moment until which a start may have been answered or given up without a record: the program was
    /// started, the clock was set, or a pass failed. Earlier moments count as this one.
    pub unrecorded_until: Timestamp,
    /// Moment at which the upstream was last found to have forgotten a process.
    pub process_forgotten_at: Option<Timestamp>,
}

words! {
    /// The policy for an order whose process was forgotten. It is unknown whether that process had done its
    /// work.
    pub enum LostProcess {
        /// Start it again, which may repeat the work.
        Restart = "restart",
        /// Leave it PROCESSING until an operator decides.
        Hold = "hold",
        /// Settle it as FAILED; hold it if no answer is on record that has shown its process, because there
        /// may never have been one.
        Fail = "fail",
    }
}
