//! Which orders a list holds.

use self::AttentionFilter::{Any, By};
use crate::order::{ResolvedBy, Status};

/// Which orders to read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Those with one of these statuses; nothing means any.
    pub statuses: Vec<Status>,
    /// Those whose attention is so; nothing means any or none.
    pub attention: Option<AttentionFilter>,
}

/// Orders by their attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionFilter {
    /// Orders with attention.
    Any,
    /// Orders with attention that are brought on so.
    By(ResolvedBy),
    /// Orders without attention.
    Without,
}

impl Filter {
    /// Returns whether settled orders can be among them, and so some that are removed one day. One with
    /// attention is never settled.
    pub(super) fn takes_settled(&self) -> bool {
        let mut statuses = self.statuses.iter();
        !matches!(self.attention, Some(Any | By(_)))
            && (self.statuses.is_empty() || statuses.any(|status| status.is_settled()))
    }
}
