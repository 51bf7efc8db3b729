//! Results of the store, common to all engines.

use std::fmt;
use std::ops::AddAssign;

use super::{Cursor, WriterStats};
use crate::decide::OpenOrder;
use crate::order::{Attention, Order, OrderId, Reason, ResolvedBy, Status, Timestamp, words};
use crate::reconciler_state::ReconcilerState;

/// An outage of the upstream, shown as attention on open orders.
pub(super) struct Outage {
    pub since: Timestamp,
    pub detail: String,
    pub next_pass_at: Option<Timestamp>,
}

impl Outage {
    /// Returns the attention of an open order that has none of its own.
    pub fn attention(&self, created_at: Timestamp) -> Attention {
        Attention {
            reason: Reason::UpstreamUnreachable,
            by: ResolvedBy::Itself,
            since: self.since.max(created_at),
            detail: self.detail.clone(),
            next_attempt_at: self.next_pass_at,
        }
    }
}

/// Result of the creation of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Creation {
    /// The order was created and is on disk.
    Created(Order),
    /// An order with this id existed already.
    Exists(Order),
}

/// An order, and the time of the next poll.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderView {
    /// The order.
    pub order: Order,
    /// Earliest time of the reconciler's next poll; `None` before its first one, or if it was not read.
    pub next_poll_at: Option<Timestamp>,
}

impl OrderView {
    /// Returns a view of an order of which the time of the next poll is not known.
    pub fn new(order: Order) -> Self {
        Self {
            order,
            next_poll_at: None,
        }
    }
}

/// An order that may be started or restarted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartCandidate {
    /// Its id.
    pub id: OrderId,
    /// Its state.
    pub order: OpenOrder,
}

/// A page of orders, from one snapshot.
pub(super) struct Page {
    pub orders: Vec<Order>,
    /// Cursor after the last of them.
    pub next: Cursor,
    /// Sequence number of the newest order of all.
    pub newest: i64,
}

/// An operator's decision about one order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// Start an order that waits for an operator or whose start the upstream refuses, whatever the
    /// policy, as soon as a poll does not find its process.
    Restart,
    /// Settle an order whose process was lost as FAILED.
    Fail,
}

/// Result of an operator's decision about one order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperatorResult {
    /// The decision was recorded or had been recorded before.
    Done,
    /// There is no such order.
    Missing,
    /// The order is settled, with this status, which is final.
    Settled(Status),
    /// The order has this status, and nothing that the decision would resolve.
    NothingToResolve(Status, Option<Reason>),
}

/// Numbers of orders and entries that were, or would be, pruned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PruneCounts {
    /// Number of FULFILLED orders.
    pub fulfilled: u64,
    /// Number of FAILED orders.
    pub failed: u64,
    /// Number of journal entries of these orders.
    pub entries: u64,
}

impl PruneCounts {
    /// Returns the number of orders.
    pub fn orders(&self) -> u64 {
        self.fulfilled + self.failed
    }

    /// Returns the number of orders in a status.
    pub fn in_status(&self, status: Status) -> u64 {
        match status {
            Status::Created | Status::Processing => 0,
            Status::Fulfilled => self.fulfilled,
            Status::Failed => self.failed,
        }
    }
}

impl AddAssign for PruneCounts {
    fn add_assign(&mut self, other: Self) {
        self.fulfilled += other.fulfilled;
        self.failed += other.failed;
        self.entries += other.entries;
    }
}

/// Statistics over all orders, from one snapshot.
#[derive(Clone, Debug)]
pub struct StatsSnapshot {
    /// Orders and entries pruned so far.
    pub pruned: PruneCounts,
    /// Number of orders with attention, by stored reason and by the party that resolves it.
    pub attention: Vec<(Reason, ResolvedBy, u64)>,
    /// The oldest open order.
    pub oldest_open: Option<Order>,
    /// The reconciler's last heartbeat.
    pub heartbeat: ReconcilerState,
}

words! {
    /// Durability of an acknowledged commit.
    pub enum Durability {
        /// The disk of one machine.
        Disk = "disk",
        /// A standby as well.
        Replicated = "replicated",
    }
}

/// A description of a database, and of its use by this program.
#[derive(Debug)]
pub struct DatabaseInfo {
    /// Address of the database: the absolute path of its file, or a URL without a password.
    pub address: String,
    /// Name of the engine, in lower case.
    pub engine: &'static str,
    /// Durability of an acknowledged commit.
    pub durability: Durability,
    /// Counters of this program's writer, and the length of its queue.
    pub writer: WriterStats,
    /// Number of connections to the server that were lost; `None` where there is no server.
    pub reconnects: Option<u64>,
    /// Number of journal entries that this program has written and that a standby lacked that was promoted.
    pub lost_entries: u64,
}

/// The size of a database, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct DatabaseSize {
    /// Size of the database file, or of all tables and indexes; 0 if it cannot be read.
    pub database: u64,
    /// Size of the write-ahead log beside the file; `None` on a server.
    pub log: Option<u64>,
}

/// Number of orders and entries in a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseSummary {
    /// Number of orders in each status.
    pub orders: Vec<(Status, u64)>,
    /// Sequence number of the newest journal entry; 0 if there is none.
    pub newest_seq: i64,
    /// Orders and entries pruned so far.
    pub pruned: PruneCounts,
}

impl fmt::Display for DatabaseSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let orders: Vec<_> = self
            .orders
            .iter()
            .map(|(status, count)| format!("{count} {status}"))
            .collect();
        writeln!(f, "  {:<8} {}", "orders", orders.join(", "))?;
        writeln!(f, "  {:<8} up to entry {}", "journal", self.newest_seq)?;
        match self.pruned.orders() {
            0 => Ok(()),
            orders => {
                let (name, entries) = ("pruned", self.pruned.entries);
                let noun = if orders == 1 { "order" } else { "orders" };
                writeln!(
                    f,
                    "  {name:<8} {orders} {noun} and {entries} entries, before"
                )
            }
        }
    }
}

/// A violation found by the check of a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The order concerned, if any.
    pub order: Option<String>,
    /// Description of the violation.
    pub what: String,
    /// Action for the operator.
    pub to_do: &'static str,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(id) = &self.order {
            write!(f, "order {id:?}: ")?;
        }
        write!(f, "{}; {}", self.what, self.to_do)
    }
}
