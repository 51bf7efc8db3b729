//! Tables that are copied, with the columns that both engines have.

/// A table, of which all is copied that both engines have.
#[derive(Debug)]
pub(in crate::store) struct Table {
    pub name: &'static str,
    /// Names, as in SQL. The first is a number by which rows are told apart and sorted.
    pub columns: &'static str,
    /// Column with the number of the order that a row belongs to; none if rows belong to no order.
    pub(super) order: Option<&'static str>,
}

impl Table {
    /// Returns the name of each column.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.columns.split(", ")
    }

    pub(super) fn key(&self) -> &'static str {
        self.names().next().unwrap_or_default()
    }
}

pub(super) const ORDERS: Table = Table {
    name: "orders",
    columns: "seq, id, status, created_at, updated_at, starts, intent_at, given_up_at, start_answer, \
              confirmed_at, process_seen, missed_at, released_at, attempts, next_attempt_at, \
              attention, attention_since, attention_detail",
    order: Some("seq"),
};

/// The columns of an order that never change.
pub(super) const CREATIONS: Table = Table {
    name: "orders",
    columns: "seq, id, created_at",
    order: Some("seq"),
};

pub(super) const JOURNAL: Table = Table {
    name: "journal",
    columns: "seq, order_seq, at, reason",
    order: Some("order_seq"),
};

const HEARTBEAT: Table = Table {
    name: "heartbeat",
    columns: "id, epoch, leader_since, led_until, policy, last_pass_at, next_pass_at, last_seen_at, \
              next_look_at, upstream, upstream_since, upstream_detail, learned, tally",
    order: None,
};

pub(super) const PRUNED: Table = Table {
    name: "pruned",
    columns: "id, fulfilled, failed, last_order_seq, entries, last_entry_seq, history",
    order: None,
};

/// Without the file or server of each, which is the database's own.
pub(in crate::store) const HISTORIES: Table = Table {
    name: "histories",
    columns: "number, id, newest_order, newest_entry, pruned",
    order: None,
};

/// Tables whose rows belong to no order: few rows, which are copied and compared together.
pub(super) const OTHERS: [&Table; 3] = [&HEARTBEAT, &PRUNED, &HISTORIES];
