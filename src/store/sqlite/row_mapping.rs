//! Conversion of rows to orders and to the heartbeat. A row that violates the schema is an error.

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::decide::{Intent, LostProcess, OpenOrder, Phase};
use crate::order::{Attention, Order, OrderId, Reason, ResolvedBy, Status, Timestamp};
use crate::pace::UpstreamState;
use crate::reconciler_state::ReconcilerState;
use crate::store::{OrderView, Outage, StartCandidate};

/// SQL expression over an order's columns: true if the order needs an operator. A refused start is
/// retried automatically, but five refusals in a row do not go away. A lost process that was only
/// missed has no next attempt yet; an order that waits for an operator has one. A restart requested
/// by an operator proceeds by itself.
macro_rules! needs_operator {
    () => {
        "CASE attention \
         WHEN 'max_starts' THEN released_at IS NULL \
         WHEN 'start_refused' THEN released_at IS NULL AND attempts >= 5 \
         WHEN 'process_lost' THEN released_at IS NULL AND next_attempt_at IS NOT NULL \
         AND (SELECT policy FROM heartbeat WHERE id = 1) IS NOT 'restart' \
         ELSE 0 END"
    };
}
pub(super) use needs_operator;

/// Columns of an [`Order`], as [`order_of`] reads them.
pub(super) const ORDER: &str = concat!(
    "seq, id, status, created_at, updated_at, starts, \
     attention, attention_since, attention_detail, next_attempt_at, ",
    needs_operator!()
);

/// Query for an order by its id, with the heartbeat's columns that readers need, as [`order_view_of`]
/// reads them. One statement, because it is the most frequent read.
pub(super) const ORDER_VIEW: &str = concat!(
    "SELECT seq, orders.id, status, created_at, updated_at, starts, \
     attention, attention_since, attention_detail, next_attempt_at, ",
    needs_operator!(),
    ", upstream = 'down', upstream_since, upstream_detail, next_pass_at, next_look_at \
     FROM orders CROSS JOIN heartbeat WHERE orders.id = ?1"
);

/// Columns of an [`OpenOrder`], as [`open_order_of`] reads them, and its id.
pub(super) const OPEN_ORDER: &str = "seq, id, status, starts, intent_at, given_up_at, start_answer, \
                          confirmed_at, attempts, next_attempt_at, attention, \
                          missed_at, released_at, process_seen";

pub(super) fn outage(db: &Connection) -> rusqlite::Result<Option<Outage>> {
    db.prepare_cached(
        "SELECT upstream_since, upstream_detail, next_pass_at FROM heartbeat \
         WHERE upstream = 'down'",
    )?
    .query_row([], |row| outage_of(row, 0))
    .optional()
}

/// Reads an order and the time of the next poll from a row of [`ORDER_VIEW`].
pub(super) fn order_view_of(row: &Row<'_>) -> rusqlite::Result<OrderView> {
    let is_down: bool = row.get(11)?;
    let outage = match is_down {
        true => Some(outage_of(row, 12)?),
        false => None,
    };
    Ok(OrderView {
        order: order_of(row, outage.as_ref())?,
        next_poll_at: row.get::<_, Option<i64>>(15)?.map(Timestamp),
    })
}

fn outage_of(row: &Row<'_>, from: usize) -> rusqlite::Result<Outage> {
    Ok(Outage {
        since: Timestamp(row.get(from)?),
        detail: row.get(from + 1)?,
        next_pass_at: row.get::<_, Option<i64>>(from + 2)?.map(Timestamp),
    })
}

pub(super) fn order_of(row: &Row<'_>, outage: Option<&Outage>) -> rusqlite::Result<Order> {
    let status = status_of(row, 2)?;
    let created_at = Timestamp(row.get(3)?);
    let attention = match reason_of(row, 6)? {
        Some(reason) => Some(Attention {
            reason,
            by: resolved_by(row, 10)?,
            since: Timestamp(row.get(7)?),
            detail: row.get(8)?,
            next_attempt_at: row.get::<_, Option<i64>>(9)?.map(Timestamp),
        }),
        None => outage
            .filter(|_| !status.is_settled())
            .map(|outage| outage.attention(created_at)),
    };
    Ok(Order {
        seq: row.get(0)?,
        id: id_of(row, 1)?,
        status,
        created_at,
        updated_at: Timestamp(row.get(4)?),
        starts: row.get(5)?,
        attention,
    })
}

pub(super) fn start_candidate_of(row: &Row<'_>) -> rusqlite::Result<StartCandidate> {
    Ok(StartCandidate {
        id: id_of(row, 1)?,
        order: open_order_of(row)?,
    })
}

/// Returns the open order with this number; `None` if it is settled or missing.
pub(super) fn open_order(db: &Connection, seq: i64) -> rusqlite::Result<Option<OpenOrder>> {
    db.prepare_cached(&format!(
        "SELECT {OPEN_ORDER} FROM orders WHERE seq = ?1 AND status IN ('CREATED', 'PROCESSING')"
    ))?
    .query_row([seq], open_order_of)
    .optional()
}

pub(super) fn open_order_of(row: &Row<'_>) -> rusqlite::Result<OpenOrder> {
    let time = |column| -> rusqlite::Result<Option<Timestamp>> {
        Ok(row.get::<_, Option<i64>>(column)?.map(Timestamp))
    };
    let phase = match time(7)? {
        None => Phase::Created,
        Some(confirmed_at) => Phase::Processing {
            confirmed_at,
            missed_at: time(11)?,
        },
    };
    let intent = match time(4)? {
        None => None,
        Some(written_at) => Some(Intent {
            written_at,
            given_up_at: time(5)?,
            answer: row.get(6)?,
        }),
    };
    Ok(OpenOrder {
        seq: row.get(0)?,
        phase,
        is_seen: row.get(13)?,
        intent,
        starts: row.get(3)?,
        restart_requested: time(12)?.is_some(),
        attempts: row.get(8)?,
        next_attempt_at: time(9)?,
        attention: reason_of(row, 10)?,
    })
}

pub(super) fn id_of(row: &Row<'_>, column: usize) -> rusqlite::Result<OrderId> {
    let text = row.get_ref(column)?.as_str()?;
    OrderId::new(text).map_err(|error| invalid_value(column, error))
}

pub(super) fn status_of(row: &Row<'_>, column: usize) -> rusqlite::Result<Status> {
    let word = row.get_ref(column)?.as_str()?;
    word.parse().map_err(|error| invalid_value(column, error))
}

pub(super) fn reason_of(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Reason>> {
    Ok(row
        .get_ref(column)?
        .as_str_or_null()?
        .and_then(Reason::from_name))
}

/// Reads the value of [`needs_operator`].
pub(super) fn resolved_by(row: &Row<'_>, column: usize) -> rusqlite::Result<ResolvedBy> {
    Ok(match row.get(column)? {
        true => ResolvedBy::Operator,
        false => ResolvedBy::Itself,
    })
}

/// Returns an error for a value that the schema's CHECKs refuse and another program wrote.
pub(super) fn invalid_value(
    column: usize,
    error: impl std::error::Error + Send + Sync + 'static,
) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
}

pub(super) fn heartbeat(db: &Connection) -> rusqlite::Result<ReconcilerState> {
    db.prepare_cached(
        "SELECT leader_since, last_pass_at, next_pass_at, last_seen_at, \
         upstream, upstream_since, upstream_detail, next_look_at, learned, tally, \
         led_until, policy FROM heartbeat",
    )?
    .query_row([], |row| {
        let time = |column| -> rusqlite::Result<Option<Timestamp>> {
            Ok(row.get::<_, Option<i64>>(column)?.map(Timestamp))
        };
        let upstream = match (row.get_ref(4)?.as_str()?, time(5)?) {
            ("up", Some(since)) => UpstreamState::Up { since },
            ("down", Some(since)) => UpstreamState::Down {
                since,
                detail: row.get(6)?,
            },
            _ => UpstreamState::Unknown,
        };
        Ok(ReconcilerState {
            leader_since: time(0)?,
            led_until: time(10)?,
            policy: policy_of(row, 11)?,
            last_pass_at: time(1)?,
            next_pass_at: time(2)?,
            last_observed_at: time(3)?,
            upstream,
            next_poll_at: time(7)?,
            // State learned by another version is learned again; its counters are lost.
            learned: from_json(row, 8)?,
            metrics: from_json(row, 9)?,
        })
    })
}

fn policy_of(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<LostProcess>> {
    let word = row.get_ref(column)?.as_str_or_null()?;
    let policy = |word| LostProcess::ALL.into_iter().find(|of| of.as_str() == word);
    Ok(word.and_then(policy))
}

fn from_json<T: DeserializeOwned + Default>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    let text = row.get_ref(column)?.as_str_or_null()?;
    let value = text.and_then(|text| serde_json::from_str(text).ok());
    Ok(value.unwrap_or_default())
}

fn to_json(value: &impl Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

pub(super) fn write_heartbeat(
    db: &Connection,
    heartbeat: &ReconcilerState,
) -> rusqlite::Result<()> {
    let (upstream, since, detail) = match &heartbeat.upstream {
        UpstreamState::Unknown => ("unknown", None, None),
        UpstreamState::Up { since } => ("up", Some(since.0), None),
        UpstreamState::Down { since, detail } => ("down", Some(since.0), Some(detail)),
    };
    db.prepare_cached(
        "UPDATE heartbeat SET leader_since = ?1, last_pass_at = ?2, next_pass_at = ?3, \
         last_seen_at = ?4, upstream = ?5, upstream_since = ?6, upstream_detail = ?7, \
         next_look_at = ?8, learned = ?9, tally = ?10, led_until = ?11, policy = ?12",
    )?
    .execute(params![
        heartbeat.leader_since.map(|t| t.0),
        heartbeat.last_pass_at.map(|t| t.0),
        heartbeat.next_pass_at.map(|t| t.0),
        heartbeat.last_observed_at.map(|t| t.0),
        upstream,
        since,
        detail,
        heartbeat.next_poll_at.map(|t| t.0),
        to_json(&heartbeat.learned)?,
        to_json(&heartbeat.metrics)?,
        heartbeat.led_until.map(|t| t.0),
        heartbeat.policy.map(LostProcess::as_str),
    ])
    .map(drop)
}
