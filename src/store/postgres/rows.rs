//! Rows as orders, as entries of the journal, and as the heartbeat. A row that the schema would refuse
//! is an error here.

use serde::de::DeserializeOwned;
use tokio_postgres::Row;

use super::error::Error;
use crate::decide::{Intent, LostProcess, OpenOrder, Phase};
use crate::journal_stats::JournalEntry;
use crate::order::{
    Attention, Event, EventReason, Order, OrderId, Reason, ResolvedBy, Status, Timestamp,
};
use crate::pace::UpstreamState;
use crate::reconciler_state::ReconcilerState;
use crate::store::{OrderView, Outage, PruneCounts, StartCandidate};

/// True in SQL if an operator has to bring an order on; the rule is that of `store/sqlite/row_mapping.rs`.
macro_rules! needs_operator {
    () => {
        "CASE attention \
         WHEN 'max_starts' THEN released_at IS NULL \
         WHEN 'start_refused' THEN released_at IS NULL AND attempts >= 5 \
         WHEN 'process_lost' THEN released_at IS NULL AND next_attempt_at IS NOT NULL \
         AND (SELECT policy FROM heartbeat WHERE heartbeat.id = 1) IS DISTINCT FROM 'restart' \
         ELSE false END"
    };
}
pub(super) use needs_operator;

/// The columns of an [`Order`], as [`order_of`] reads them.
macro_rules! order_columns {
    () => {
        concat!(
            "seq, orders.id, status, created_at, updated_at, starts, \
             attention, attention_since, attention_detail, next_attempt_at, ",
            needs_operator!()
        )
    };
}
pub(super) use order_columns;

/// The columns of a [`OrderView`], as [`order_view_of`] reads them.
macro_rules! order_view_columns {
    () => {
        concat!(
            order_columns!(),
            ", upstream = 'down', upstream_since, upstream_detail, next_pass_at, next_look_at"
        )
    };
}
pub(super) use order_view_columns;

/// The columns of an [`OpenOrder`], as [`open_order_of`] reads them, and its id.
pub(super) const OPEN_ORDER: &str = "seq, id, status, starts, intent_at, given_up_at, start_answer, \
                                     confirmed_at, attempts, next_attempt_at, attention, \
                                     missed_at, released_at, process_seen";

/// Reads it from three columns.
pub(super) fn outage_of(row: &Row, from: usize) -> Result<Outage, Error> {
    Ok(Outage {
        since: Timestamp(row.try_get(from)?),
        detail: row.try_get(from + 1)?,
        next_pass_at: time(row, from + 2)?,
    })
}

pub(super) fn order_view_of(row: &Row) -> Result<OrderView, Error> {
    let outage = match row.try_get(11)? {
        true => Some(outage_of(row, 12)?),
        false => None,
    };
    Ok(OrderView {
        order: order_of(row, outage.as_ref())?,
        next_poll_at: time(row, 15)?,
    })
}

pub(super) fn order_of(row: &Row, outage: Option<&Outage>) -> Result<Order, Error> {
    let status = status_of(row, 2)?;
    let created_at = Timestamp(row.try_get(3)?);
    let attention = match reason_of(row, 6)? {
        Some(reason) => Some(Attention {
            reason,
            by: resolved_by(row, 10)?,
            since: Timestamp(row.try_get(7)?),
            detail: row.try_get(8)?,
            next_attempt_at: time(row, 9)?,
        }),
        None => outage
            .filter(|_| !status.is_settled())
            .map(|outage| outage.attention(created_at)),
    };
    Ok(Order {
        seq: row.try_get(0)?,
        id: id_of(row, 1)?,
        status,
        created_at,
        updated_at: Timestamp(row.try_get(4)?),
        starts: count(row, 5)?,
        attention,
    })
}

pub(super) fn start_candidate_of(row: &Row) -> Result<StartCandidate, Error> {
    Ok(StartCandidate {
        id: id_of(row, 1)?,
        order: open_order_of(row)?,
    })
}

pub(super) fn open_order_of(row: &Row) -> Result<OpenOrder, Error> {
    let phase = match time(row, 7)? {
        None => Phase::Created,
        Some(confirmed_at) => Phase::Processing {
            confirmed_at,
            missed_at: time(row, 11)?,
        },
    };
    let intent = match time(row, 4)? {
        None => None,
        Some(written_at) => Some(Intent {
            written_at,
            given_up_at: time(row, 5)?,
            answer: match row.try_get::<_, Option<i32>>(6)? {
                None => None,
                Some(answer) => Some(u16::try_from(answer).map_err(Error::value)?),
            },
        }),
    };
    Ok(OpenOrder {
        seq: row.try_get(0)?,
        phase,
        is_seen: row.try_get(13)?,
        intent,
        starts: count(row, 3)?,
        restart_requested: time(row, 12)?.is_some(),
        attempts: count(row, 8)?,
        next_attempt_at: time(row, 9)?,
        attention: reason_of(row, 10)?,
    })
}

/// The columns of an [`Event`], as [`event_of`] reads them.
pub(super) const EVENT: &str =
    "journal.seq, journal.order_seq, orders.id, journal.at, journal.reason";

pub(super) fn event_of(row: &Row) -> Result<Event, Error> {
    let reason = event_reason_of(row, 4)?;
    Ok(Event {
        seq: row.try_get(0)?,
        order_seq: row.try_get(1)?,
        order_id: id_of(row, 2)?,
        from: from_status(reason),
        to: reason.to_status(),
        at: Timestamp(row.try_get(3)?),
        reason,
    })
}

/// The status before an entry with this reason.
pub(super) fn from_status(reason: EventReason) -> Option<Status> {
    match reason {
        EventReason::Created => None,
        EventReason::Started | EventReason::Adopted => Some(Status::Created),
        EventReason::Succeeded
        | EventReason::Failed
        | EventReason::Restarted
        | EventReason::FailedByPolicy
        | EventReason::FailedByOperator => Some(Status::Processing),
    }
}

/// The columns of a [`JournalEntry`], as [`entry_of`] reads them. An order is looked up only where it
/// is settled.
pub(super) const ENTRY: &str = "seq, at, reason, \
     CASE WHEN reason IN ('succeeded', 'failed', 'failed_by_policy', 'failed_by_operator') \
     THEN (SELECT created_at FROM orders WHERE orders.seq = journal.order_seq) END";

pub(super) fn entry_of(row: &Row) -> Result<JournalEntry, Error> {
    Ok(JournalEntry {
        seq: row.try_get(0)?,
        at: Timestamp(row.try_get(1)?),
        reason: event_reason_of(row, 2)?,
        created_at: time(row, 3)?,
    })
}

fn event_reason_of(row: &Row, column: usize) -> Result<EventReason, Error> {
    let word: &str = row.try_get(column)?;
    EventReason::from_name(word)
        .ok_or_else(|| Error::value(format_args!("{word:?} is no reason for a journal entry")))
}

pub(super) fn prune_counts_of(row: &Row) -> Result<PruneCounts, Error> {
    let count = |column| row.try_get::<_, i64>(column).map(i64::unsigned_abs);
    Ok(PruneCounts {
        fulfilled: count(0)?,
        failed: count(1)?,
        entries: count(2)?,
    })
}

/// The columns of the heartbeat, as [`heartbeat_of`] reads them.
pub(super) const HEARTBEAT: &str = "SELECT leader_since, last_pass_at, next_pass_at, last_seen_at, \
     upstream, upstream_since, upstream_detail, next_look_at, learned, tally, led_until, policy \
     FROM heartbeat WHERE id = 1";

pub(super) fn heartbeat_of(row: &Row) -> Result<ReconcilerState, Error> {
    let upstream = match (row.try_get(4)?, time(row, 5)?) {
        ("up", Some(since)) => UpstreamState::Up { since },
        ("down", Some(since)) => UpstreamState::Down {
            since,
            detail: row.try_get(6)?,
        },
        _ => UpstreamState::Unknown,
    };
    let policy = row.try_get::<_, Option<&str>>(11)?.and_then(|word| {
        LostProcess::ALL
            .into_iter()
            .find(|policy| policy.as_str() == word)
    });
    Ok(ReconcilerState {
        leader_since: time(row, 0)?,
        led_until: time(row, 10)?,
        policy,
        last_pass_at: time(row, 1)?,
        next_pass_at: time(row, 2)?,
        last_observed_at: time(row, 3)?,
        upstream,
        next_poll_at: time(row, 7)?,
        // What another version has learned is learned again; what it has counted is lost.
        learned: from_json(row, 8)?,
        metrics: from_json(row, 9)?,
    })
}

fn from_json<T: DeserializeOwned + Default>(row: &Row, column: usize) -> Result<T, Error> {
    let text: Option<&str> = row.try_get(column)?;
    let value = text.and_then(|text| serde_json::from_str(text).ok());
    Ok(value.unwrap_or_default())
}

pub(super) fn time(row: &Row, column: usize) -> Result<Option<Timestamp>, Error> {
    Ok(row.try_get::<_, Option<i64>>(column)?.map(Timestamp))
}

/// A number of something, which the schema keeps from being negative.
fn count(row: &Row, column: usize) -> Result<u32, Error> {
    u32::try_from(row.try_get::<_, i32>(column)?).map_err(Error::value)
}

pub(super) fn id_of(row: &Row, column: usize) -> Result<OrderId, Error> {
    OrderId::new(row.try_get::<_, &str>(column)?).map_err(Error::value)
}

pub(super) fn status_of(row: &Row, column: usize) -> Result<Status, Error> {
    row.try_get::<_, &str>(column)?
        .parse()
        .map_err(Error::value)
}

pub(super) fn reason_of(row: &Row, column: usize) -> Result<Option<Reason>, Error> {
    let word: Option<&str> = row.try_get(column)?;
    Ok(word.and_then(Reason::from_name))
}

/// The one who brings an order on, by the value of `needs_operator!`.
pub(super) fn resolved_by(row: &Row, column: usize) -> Result<ResolvedBy, Error> {
    Ok(match row.try_get(column)? {
        true => ResolvedBy::Operator,
        false => ResolvedBy::Itself,
    })
}
