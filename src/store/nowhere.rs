//! What is answered where nothing is stored: to measure what serving costs without a database.
//!
//! No order exists, and every one is told of.

use super::{Creation, Found};
use crate::order::{Order, OrderId, Status, Timestamp};

/// An order that was not created.
pub(super) fn created(id: OrderId, now: Timestamp) -> Creation {
    Creation::Created(order(id, Status::Created, now))
}

/// An order that was not looked for.
pub(super) fn found(id: &OrderId) -> Found {
    Found {
        order: order(id.clone(), Status::Fulfilled, Timestamp(0)),
        next_look_at: None,
    }
}

fn order(id: OrderId, status: Status, at: Timestamp) -> Order {
    Order {
        seq: 1,
        id,
        status,
        created_at: at,
        updated_at: at,
        starts: 0,
        attention: None,
    }
}
