//! An order and an event as their readers see them: the JSON objects, and the path that leads to
//! an order.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use warp::http::header::HeaderValue;

use crate::clock::Rfc3339;
use crate::order::{Event, Order, OrderId, Status};

/// What an order takes as JSON, about, in bytes.
pub(super) const ORDER_BYTES: usize = 180;

/// An order as clients see it.
#[derive(Serialize)]
pub(super) struct OrderJson<'a> {
    id: &'a str,
    status: Status,
    created_at: Rfc3339,
    updated_at: Rfc3339,
    starts: u32,
    attention: Option<AttentionJson<'a>>,
}

#[derive(Serialize)]
struct AttentionJson<'a> {
    reason: &'a str,
    since: Rfc3339,
    detail: &'a str,
    next_attempt_at: Option<Rfc3339>,
}

impl<'a> OrderJson<'a> {
    pub fn new(order: &'a Order) -> Self {
        Self {
            id: order.id.as_str(),
            status: order.status,
            created_at: Rfc3339(order.created_at),
            updated_at: Rfc3339(order.updated_at),
            starts: order.starts,
            attention: order.attention.as_ref().map(|attention| AttentionJson {
                reason: attention.reason.as_str(),
                since: Rfc3339(attention.since),
                detail: &attention.detail,
                next_attempt_at: attention.next_attempt_at.map(Rfc3339),
            }),
        }
    }
}

/// One order.
pub(super) fn order(order: &Order) -> Vec<u8> {
    let mut body = Vec::with_capacity(ORDER_BYTES);
    write_order(&mut body, order);
    body
}

/// Appends an order.
///
/// # Panics
/// Never: strings and numbers can be written to memory.
pub fn write_order(body: &mut Vec<u8>, order: &Order) {
    serde_json::to_writer(body, &OrderJson::new(order))
        .expect("strings and numbers can be written to memory");
}

/// What an event takes as JSON, about, in bytes.
pub(super) const EVENT_BYTES: usize = 140;

/// A change of an order's status as clients see it.
#[derive(Serialize)]
struct EventJson<'a> {
    seq: i64,
    order_id: &'a str,
    from: Option<Status>,
    to: Status,
    at: Rfc3339,
    reason: &'a str,
}

/// Appends an event.
pub(super) fn write_event(body: &mut Vec<u8>, event: &Event) {
    let event = EventJson {
        seq: event.seq,
        order_id: event.order_id.as_str(),
        from: event.from,
        to: event.to,
        at: Rfc3339(event.at),
        reason: event.reason.as_str(),
    };
    serde_json::to_writer(body, &event).expect("strings and numbers can be written to memory");
}

/// What needs no escape in a path segment (RFC 3986, section 2.3).
const PATH_ESCAPES: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// What the path of each order begins with.
const ORDERS: &str = "/order/";

/// The path of an order, as a header.
pub(super) fn location(id: &OrderId) -> HeaderValue {
    let id = id.as_str();
    let mut path = String::with_capacity(ORDERS.len() + id.len());
    path.push_str(ORDERS);
    path.extend(utf8_percent_encode(id, PATH_ESCAPES));
    HeaderValue::try_from(path).unwrap_or_else(|_| HeaderValue::from_static("/order"))
}
