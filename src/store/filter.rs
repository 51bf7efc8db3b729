//! Filters of order lists, and the rows that they select.

use self::AttentionFilter::{Any, By, Without};
use super::rows::needs_operator;
use crate::order::{ResolvedBy, Status};
use crate::pace::StartClass;

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

/// Condition in SQL for CREATED orders about which is to be decided now: to start them, or that they were
/// started too often. By the placeholders of the maximum number of starts and of the time.
macro_rules! startable {
    ($max_starts:literal, $now:literal) => {
        concat!(
            "intent_at IS NULL AND (attention IS NULL OR attention <> 'max_starts' OR starts < CAST(",
            $max_starts,
            " AS bigint) OR released_at IS NOT NULL) AND (next_attempt_at IS NULL OR next_attempt_at <= ",
            $now,
            ")"
        )
    };
}
pub(super) use startable;

/// Condition in SQL for orders that wait in a class for their start, and for no operator.
/// `status || ''` keeps PostgreSQL off the index of statuses.
pub(super) fn waits_for_start(class: StartClass) -> &'static str {
    match class {
        StartClass::Forgotten => {
            "attention IS NOT NULL AND status || '' = 'PROCESSING' AND (released_at IS NOT NULL \
             OR attention = 'process_lost' AND attempts = 0)"
        }
        StartClass::New => "status = 'CREATED' AND intent_at IS NULL AND attempts = 0",
        StartClass::Retry => {
            "attention IS NOT NULL AND status || '' = 'CREATED' AND intent_at IS NULL \
             AND attempts > 0 AND (attention <> 'max_starts' OR released_at IS NOT NULL)"
        }
    }
}

/// Rows that a page reads from: what both engines' queries for pages have in common.
pub(super) struct PageRows {
    /// Accepted statuses, in order; never empty.
    pub statuses: Vec<Status>,
    /// True if the attention is stored in the rows.
    pub is_stored: bool,
    /// Further condition in SQL; empty, or beginning with `AND`.
    pub condition: &'static str,
}

impl PageRows {
    /// Returns the rows for a filter; `None` if no order can match.
    pub fn new(filter: &Filter, upstream_is_down: bool) -> Option<Self> {
        let mut statuses = match filter.statuses.is_empty() {
            true => Status::ALL.to_vec(),
            false => filter.statuses.clone(),
        };
        statuses.sort_unstable();
        statuses.dedup();
        let by_operator = concat!(" AND ", needs_operator!());
        let by_itself = concat!(" AND NOT ", needs_operator!());
        // While the upstream is down, every open order has attention and no settled order has.
        let (open, is_stored, condition) = match (filter.attention, upstream_is_down) {
            (None, _) => (None, false, ""),
            (Some(Any), true) => (Some(true), false, ""),
            (Some(By(ResolvedBy::Itself)), true) => (Some(true), false, by_itself),
            (Some(Without), true) => (Some(false), false, ""),
            (Some(Without), false) => (None, false, " AND attention IS NULL"),
            (Some(Any), false) => (None, true, ""),
            (Some(By(ResolvedBy::Itself)), false) => (None, true, by_itself),
            (Some(By(ResolvedBy::Operator)), _) => (None, true, by_operator),
        };
        statuses.retain(|status| open.is_none_or(|open| status.is_settled() != open));
        (!statuses.is_empty()).then_some(Self {
            statuses,
            is_stored,
            condition,
        })
    }

    /// Returns true if the rows are one range of an index; otherwise they are one range per status.
    pub fn is_one_range(&self) -> bool {
        self.is_stored || self.statuses.len() == Status::ALL.len()
    }

    /// Returns the condition in SQL for the statuses, as values of this expression, for one range of an
    /// index; empty for all.
    pub fn of_status(&self, expression: &str) -> String {
        if self.statuses.len() == Status::ALL.len() {
            return String::new();
        }
        let words: Vec<_> = self.statuses.iter().map(|s| format!("'{s}'")).collect();
        format!(" AND {expression} IN ({})", words.join(", "))
    }
}
