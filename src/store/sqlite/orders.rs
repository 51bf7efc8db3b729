//! Reads of orders: by id, by start eligibility, and counts.

use rusqlite::{Connection, OptionalExtension, params};

use crate::order::{Order, OrderId, Status, Timestamp};
use crate::store::filter::startable;
use crate::store::rows::{
    Columns, OPEN_ORDER, order_view_columns, order_view_of, start_candidate_of,
};
use crate::store::{OrderView, StartCandidate};

/// Query for an order by its id, with the columns of the heartbeat that readers need. One statement,
/// because it is the most frequent read.
const ORDER_VIEW: &str = concat!(
    "SELECT ",
    order_view_columns!(),
    " FROM orders CROSS JOIN heartbeat WHERE orders.id = ?1"
);

pub(super) fn find(db: &Connection, id: &OrderId) -> rusqlite::Result<Option<OrderView>> {
    db.prepare_cached(ORDER_VIEW)?
        .query_row([id.as_str()], |row| order_view_of(row))
        .optional()
}

pub(super) fn count(db: &Connection, status: Status) -> rusqlite::Result<u64> {
    let count: i64 = db
        .prepare_cached("SELECT count(*) FROM orders WHERE status = ?1")?
        .query_row([status.as_str()], |row| row.get(0))?;
    Ok(count.unsigned_abs())
}

pub(super) fn oldest_open(db: &Connection) -> rusqlite::Result<Option<Order>> {
    let id = db
        .prepare_cached(
            "SELECT seq, id FROM orders INDEXED BY orders_by_status WHERE status = 'CREATED' \
             UNION ALL \
             SELECT seq, id FROM orders INDEXED BY orders_by_status WHERE status = 'PROCESSING' \
             ORDER BY seq LIMIT 1",
        )?
        .query_row([], |row| row.id(1))
        .optional()?;
    match id {
        Some(id) => Ok(find(db, &id)?.map(|found| found.order)),
        None => Ok(None),
    }
}

pub(super) fn newest_seq(db: &Connection) -> rusqlite::Result<i64> {
    db.prepare_cached("SELECT coalesce(max(seq), 0) FROM orders")?
        .query_row([], |row| row.get(0))
}

/// See [`Store::has_work`](crate::store::Store::has_work).
pub(super) fn has_work(db: &Connection, now: Timestamp, max_starts: u32) -> rusqlite::Result<bool> {
    const SQL: &str = concat!(
        "SELECT EXISTS (SELECT 1 FROM orders INDEXED BY orders_by_status WHERE status = 'PROCESSING') \
         OR EXISTS (SELECT 1 FROM orders INDEXED BY orders_by_status WHERE status = 'CREATED' \
                    AND (intent_at IS NOT NULL OR ",
        startable!("?1", "?2"),
        "))"
    );
    db.prepare_cached(SQL)?
        .query_row(params![max_starts, now.0], |row| row.get(0))
}

/// See [`Store::startable`](crate::store::Store::startable).
pub(super) fn startable(
    db: &Connection,
    now: Timestamp,
    max_starts: u32,
    is_tried: bool,
    after: i64,
    limit: usize,
) -> rusqlite::Result<Vec<StartCandidate>> {
    let sql = format!(
        "SELECT {OPEN_ORDER} FROM orders INDEXED BY orders_by_status \
         WHERE status = 'CREATED' AND seq > ?1 AND (attempts > 0) = ?5 AND {} \
         ORDER BY seq LIMIT ?4",
        startable!("?2", "?3")
    );
    db.prepare_cached(&sql)?
        .query_map(
            params![after, max_starts, now.0, limit as i64, is_tried],
            |row| start_candidate_of(row),
        )?
        .collect()
}
