//! What the store answers, whichever engine it is on.

use std::fmt;
use std::ops::AddAssign;

use crate::decide::OpenOrder;
use crate::order::{Order, OrderId, Reason, ResolvedBy, Status, Timestamp};
use crate::reconciler_state::ReconcilerState;

/// What came of the creation of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Creation {
    /// It is on disk.
    Created(Order),
    /// There was one with this id already.
    Exists(Order),
}

/// An order, and what its readers have to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderView {
    /// The order.
    pub order: Order,
    /// When the reconciler looks at processes next, at the earliest, if it ever did.
    pub next_look_at: Option<Timestamp>,
}

/// An order that may be started, or started again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartCandidate {
    /// Its id.
    pub id: OrderId,
    /// All else about it.
    pub order: OpenOrder,
}

/// What came of an operator's decision about one order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperatorResult {
    /// It will be, or was, done.
    Done,
    /// There is no such order.
    Missing,
    /// The order is settled, in this status; that never changes.
    Settled(Status),
    /// The order is in this status, and nothing is wrong that this would mend.
    NotInTrouble(Status, Option<Reason>),
}

/// How much was removed, or would be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Orders that were FULFILLED.
    pub fulfilled: u64,
    /// Orders that were FAILED.
    pub failed: u64,
    /// Their entries of the journal.
    pub entries: u64,
}

impl Removed {
    /// All orders.
    pub fn orders(&self) -> u64 {
        self.fulfilled + self.failed
    }

    /// Orders that were in this status.
    pub fn in_status(&self, status: Status) -> u64 {
        match status {
            Status::Created | Status::Processing => 0,
            Status::Fulfilled => self.fulfilled,
            Status::Failed => self.failed,
        }
    }
}

impl AddAssign for Removed {
    fn add_assign(&mut self, other: Self) {
        self.fulfilled += other.fulfilled;
        self.failed += other.failed;
        self.entries += other.entries;
    }
}

/// Everything that is told of the whole, as of one moment.
#[derive(Clone, Debug)]
pub struct StatsSnapshot {
    /// What was removed.
    pub pruned: Removed,
    /// Numbers of orders with attention, by the reason that is stored with each and by who brings it on.
    pub attention: Vec<(Reason, ResolvedBy, u64)>,
    /// The oldest order that is open.
    pub oldest_open: Option<Order>,
    /// What the reconciler last told of itself.
    pub heartbeat: ReconcilerState,
}

/// What the database takes on disk, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// The file itself.
    pub database: u64,
    /// The write-ahead log beside it.
    pub log: u64,
}

/// How much there is in a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseSummary {
    /// Orders in each status.
    pub orders: Vec<(Status, u64)>,
    /// The newest entry of the journal; 0 if there is none.
    pub newest_seq: i64,
    /// What was removed from it.
    pub pruned: Removed,
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

/// Something that is not as it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The order it is about, if it is about one.
    pub order: Option<String>,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
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
