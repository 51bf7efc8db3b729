//! SQLite's rows as [`Columns`], and the queries for one row of them.

use rusqlite::types::Type;
use rusqlite::{Connection, Error, OptionalExtension, Row, params};
use serde::Serialize;

use crate::decide::{LostProcess, OpenOrder};
use crate::reconciler_state::ReconcilerState;
use crate::store::Outage;
use crate::store::rows::{
    Columns, HEARTBEAT, OPEN_ORDER, OUTAGE, heartbeat_of, open_order_of, outage_of,
    upstream_columns,
};

impl Columns for Row<'_> {
    type Error = Error;

    fn invalid(column: usize, why: impl std::fmt::Display) -> Error {
        Error::FromSqlConversionFailure(column, Type::Text, why.to_string().into())
    }

    fn integer(&self, column: usize) -> rusqlite::Result<Option<i64>> {
        self.get(column)
    }

    fn text(&self, column: usize) -> rusqlite::Result<Option<&str>> {
        Ok(self.get_ref(column)?.as_str_or_null()?)
    }

    fn boolean(&self, column: usize) -> rusqlite::Result<bool> {
        self.get(column)
    }
}

/// Returns the outage of the upstream, if there is one.
pub(super) fn outage(db: &Connection) -> rusqlite::Result<Option<Outage>> {
    db.prepare_cached(OUTAGE)?
        .query_row([], |row| outage_of(row))
        .optional()
}

/// Returns the open order with this number; `None` if it is settled or missing.
pub(super) fn open_order(db: &Connection, seq: i64) -> rusqlite::Result<Option<OpenOrder>> {
    db.prepare_cached(&format!(
        "SELECT {OPEN_ORDER} FROM orders WHERE seq = ?1 AND status IN ('CREATED', 'PROCESSING')"
    ))?
    .query_row([seq], |row| open_order_of(row))
    .optional()
}

pub(super) fn heartbeat(db: &Connection) -> rusqlite::Result<ReconcilerState> {
    db.prepare_cached(HEARTBEAT)?
        .query_row([], |row| heartbeat_of(row))
}

fn to_json(value: &impl Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

pub(super) fn write_heartbeat(
    db: &Connection,
    heartbeat: &ReconcilerState,
) -> rusqlite::Result<()> {
    let (upstream, since, detail) = upstream_columns(&heartbeat.upstream);
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
