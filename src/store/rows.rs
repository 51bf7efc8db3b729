//! Rows of all engines as orders, events and the heartbeat: the SQL of their columns, and the functions
//! that read these columns by index. A row that violates the schema is an error.

use std::borrow::Cow;
use std::fmt::Display;

use serde::de::DeserializeOwned;

use super::cursor::{Extent, History, Sequence};
use super::{OrderView, Outage, PruneCounts, StartCandidate};
use crate::decide::{Intent, LostProcess, OpenOrder, Phase};
use crate::journal_stats::JournalEntry;
use crate::order::{
    Attention, Event, EventReason, Order, OrderId, Reason, ResolvedBy, Status, Timestamp,
};
use crate::pace::UpstreamState;
use crate::reconciler_state::ReconcilerState;

/// Columns of a row, as an engine returns them.
pub(super) trait Columns {
    /// Error of the engine.
    type Error;

    /// Returns the error for a value that the schema refuses and another program wrote.
    fn invalid(column: usize, why: impl Display) -> Self::Error;

    fn integer(&self, column: usize) -> Result<Option<i64>, Self::Error>;

    fn text(&self, column: usize) -> Result<Option<&str>, Self::Error>;

    fn boolean(&self, column: usize) -> Result<bool, Self::Error>;

    /// Returns the value of a column that is never NULL.
    fn number(&self, column: usize) -> Result<i64, Self::Error> {
        let value = self.integer(column)?;
        value.ok_or_else(|| Self::invalid(column, "a number is missing"))
    }

    /// Returns a count, which the schema keeps from being negative.
    fn count<T: TryFrom<i64>>(&self, column: usize) -> Result<T, Self::Error> {
        let value = self.number(column)?;
        T::try_from(value).map_err(|_| Self::invalid(column, format_args!("{value} is no count")))
    }

    fn time(&self, column: usize) -> Result<Option<Timestamp>, Self::Error> {
        Ok(self.integer(column)?.map(Timestamp))
    }

    /// Returns the text of a column that is never NULL.
    fn word(&self, column: usize) -> Result<&str, Self::Error> {
        let value = self.text(column)?;
        value.ok_or_else(|| Self::invalid(column, "a text is missing"))
    }

    /// Returns the value of a JSON text, or the default if another version wrote it.
    fn json<T: DeserializeOwned + Default>(&self, column: usize) -> Result<T, Self::Error> {
        let value = self.text(column)?;
        let value = value.and_then(|text| serde_json::from_str(text).ok());
        Ok(value.unwrap_or_default())
    }

    fn id(&self, column: usize) -> Result<OrderId, Self::Error> {
        OrderId::new(self.word(column)?).map_err(|error| Self::invalid(column, error))
    }

    fn status(&self, column: usize) -> Result<Status, Self::Error> {
        let word = self.word(column)?;
        word.parse().map_err(|error| Self::invalid(column, error))
    }

    fn reason(&self, column: usize) -> Result<Option<Reason>, Self::Error> {
        Ok(self.text(column)?.and_then(Reason::from_word))
    }

    fn event_reason(&self, column: usize) -> Result<EventReason, Self::Error> {
        let word = self.word(column)?;
        EventReason::from_word(word).ok_or_else(|| {
            Self::invalid(
                column,
                format_args!("{word:?} is no reason for a journal entry"),
            )
        })
    }

    /// Reads the value of [`needs_operator`].
    fn resolved_by(&self, column: usize) -> Result<ResolvedBy, Self::Error> {
        Ok(match self.boolean(column)? {
            true => ResolvedBy::Operator,
            false => ResolvedBy::Itself,
        })
    }
}

/// A value for a placeholder of a statement.
#[derive(Clone, Debug)]
pub(super) enum Value<'a> {
    Null,
    Integer(i64),
    Text(Cow<'a, str>),
    /// Numbers for the condition that [`Database::among`] returns.
    Numbers(&'a [i64]),
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text.into())
    }
}

impl From<Option<Timestamp>> for Value<'_> {
    fn from(time: Option<Timestamp>) -> Self {
        time.map_or(Self::Null, |time| Self::Integer(time.0))
    }
}

impl From<usize> for Value<'_> {
    fn from(limit: usize) -> Self {
        Self::Integer(i64::try_from(limit).unwrap_or(i64::MAX))
    }
}

/// A connection on which the queries of `store/queries.rs` run.
pub(super) trait Database {
    /// Error of the engine.
    type Error;

    type Row<'r>: Columns<Error = Self::Error>;

    /// Runs a query, and returns its rows as `read` returns them. SQLite has run it once this returns.
    fn rows<T: Send>(
        &self,
        sql: &str,
        values: &[Value<'_>],
        read: impl FnMut(&Self::Row<'_>) -> Result<T, Self::Error> + Send,
    ) -> impl Future<Output = Result<Vec<T>, Self::Error>> + Send;

    /// Returns the query for the first rows of SELECTs that are each in the order of `seq`.
    fn merged(selects: &[String], limit: &str) -> String;

    /// Returns the end of a condition: that what is before it is one of the numbers of a placeholder. The
    /// statement is the same for any numbers, because engines keep statements.
    fn among(numbers: &str) -> String;
}

/// SQL expression over an order's columns: true if the order needs an operator. Refused starts, unknown
/// statuses and unusable answers are followed by another attempt, but after five in a row they do not go
/// away; a restart requested by an operator begins the count anew. A lost process that was only missed has
/// no attempts; an order that waits for an operator has. A requested restart proceeds by itself.
macro_rules! needs_operator {
    () => {
        "CASE attention \
         WHEN 'max_starts' THEN released_at IS NULL \
         WHEN 'process_lost' THEN released_at IS NULL AND attempts > 0 \
         AND (SELECT policy FROM heartbeat WHERE heartbeat.id = 1) IS DISTINCT FROM 'restart' \
         ELSE attempts >= 5 END"
    };
}
pub(super) use needs_operator;

/// Columns of an [`Order`], as [`order_of`] reads them.
macro_rules! order_columns {
    () => {
        concat!(
            "seq, orders.id, status, created_at, updated_at, starts, attention, ",
            $crate::store::rows::needs_operator!(),
            ", attention_since, attention_detail, next_attempt_at"
        )
    };
}
pub(super) use order_columns;

/// Columns of an [`OrderView`] in the join with the heartbeat, as [`order_view_of`] reads them.
macro_rules! order_view_columns {
    () => {
        concat!(
            $crate::store::rows::order_columns!(),
            ", upstream = 'down', upstream_since, upstream_detail, next_pass_at, next_look_at"
        )
    };
}
pub(super) use order_view_columns;

/// Query for the outage of the upstream, if there is one, as [`outage_of`] reads it.
pub(super) const OUTAGE: &str = "SELECT upstream_since, upstream_detail, next_pass_at \
                                 FROM heartbeat WHERE id = 1 AND upstream = 'down'";

/// The id of an order, and the columns of an [`OpenOrder`], as [`open_order_of`] reads them.
macro_rules! open_order_columns {
    () => {
        "id, seq, confirmed_at, missed_at, process_seen, intent_at, given_up_at, start_answer, \
         starts, released_at, attempts, next_attempt_at, attention"
    };
}
pub(super) use open_order_columns;

/// Columns of an [`Event`], as [`event_of`] reads them.
pub(super) const EVENT: &str = "reason, seq, order_seq, \
     (SELECT id FROM orders WHERE orders.seq = journal.order_seq), at";

/// Columns of a [`JournalEntry`], as [`entry_of`] reads them. The order is looked up only for
/// entries that settle it.
pub(super) const ENTRY: &str = "seq, at, reason, \
     CASE WHEN reason IN ('succeeded', 'failed', 'failed_by_policy', 'failed_by_operator') \
     THEN (SELECT created_at FROM orders WHERE orders.seq = journal.order_seq) END";

/// Query for what was pruned so far, as [`prune_counts_of`] reads it.
pub(super) const PRUNED: &str = "SELECT fulfilled, failed, entries FROM pruned WHERE id = 1";

/// Query for the histories, oldest first, as [`history_of`] reads them.
pub(super) const HISTORIES: &str =
    "SELECT id, newest_order, newest_entry, pruned FROM histories ORDER BY number";

/// Query for the heartbeat, as [`heartbeat_of`] reads it.
pub(super) const HEARTBEAT: &str = "SELECT leader_since, led_until, policy, last_pass_at, next_pass_at, \
     last_seen_at, upstream, upstream_since, upstream_detail, next_look_at, learned, tally \
     FROM heartbeat WHERE id = 1";

/// Reads an order and the time of the next poll.
pub(super) fn order_view_of<R: Columns>(row: &R) -> Result<OrderView, R::Error> {
    let outage = match row.boolean(11)? {
        true => Some(outage_at(row, 12)?),
        false => None,
    };
    Ok(OrderView {
        order: order_of(row, outage.as_ref())?,
        next_poll_at: row.time(15)?,
    })
}

/// Reads a row of [`OUTAGE`].
pub(super) fn outage_of<R: Columns>(row: &R) -> Result<Outage, R::Error> {
    outage_at(row, 0)
}

fn outage_at<R: Columns>(row: &R, first: usize) -> Result<Outage, R::Error> {
    Ok(Outage {
        since: Timestamp(row.number(first)?),
        detail: row.word(first + 1)?.to_owned(),
        next_pass_at: row.time(first + 2)?,
    })
}

/// Reads an order. While the upstream is down, an open order without attention of its own has that
/// of the outage.
pub(super) fn order_of<R: Columns>(row: &R, outage: Option<&Outage>) -> Result<Order, R::Error> {
    let mut order = Order {
        seq: row.number(0)?,
        id: row.id(1)?,
        status: row.status(2)?,
        created_at: Timestamp(row.number(3)?),
        updated_at: Timestamp(row.number(4)?),
        starts: row.count(5)?,
        attention: None,
    };
    order.attention = match row.reason(6)? {
        Some(reason) => {
            let by = row.resolved_by(7)?;
            // A PROCESSING order that is held is still polled.
            let is_idle = (order.status, reason, by)
                == (Status::Created, Reason::MaxStarts, ResolvedBy::Operator);
            Some(Attention {
                reason,
                by,
                since: Timestamp(row.number(8)?),
                detail: row.word(9)?.to_owned(),
                next_attempt_at: row.time(10)?.filter(|_| !is_idle),
            })
        }
        None => outage
            .filter(|_| !order.status.is_settled())
            .map(|outage| outage.attention(order.created_at)),
    };
    Ok(order)
}

/// Reads an order that may be started.
pub(super) fn start_candidate_of<R: Columns>(row: &R) -> Result<StartCandidate, R::Error> {
    Ok(StartCandidate {
        id: row.id(0)?,
        order: open_order_of(row)?,
    })
}

/// Reads the state of an open order.
pub(super) fn open_order_of<R: Columns>(row: &R) -> Result<OpenOrder, R::Error> {
    Ok(OpenOrder {
        seq: row.number(1)?,
        phase: match row.time(2)? {
            None => Phase::Created,
            Some(confirmed_at) => Phase::Processing {
                confirmed_at,
                missed_at: row.time(3)?,
            },
        },
        is_observed: row.boolean(4)?,
        intent: match row.time(5)? {
            None => None,
            Some(written_at) => Some(Intent {
                written_at,
                given_up_at: row.time(6)?,
                answer_status: match row.integer(7)? {
                    None => None,
                    Some(_) => Some(row.count(7)?),
                },
            }),
        },
        starts: row.count(8)?,
        restart_requested: row.time(9)?.is_some(),
        attempts: row.count(10)?,
        next_attempt_at: row.time(11)?,
        attention: row.reason(12)?,
    })
}

/// Reads an event.
pub(super) fn event_of<R: Columns>(row: &R) -> Result<Event, R::Error> {
    let reason = row.event_reason(0)?;
    Ok(Event {
        seq: row.number(1)?,
        order_seq: row.number(2)?,
        order_id: row.id(3)?,
        from: reason.from_status(),
        to: reason.to_status(),
        at: Timestamp(row.number(4)?),
        reason,
    })
}

/// Reads an entry of the journal, for the statistics.
pub(super) fn entry_of<R: Columns>(row: &R) -> Result<JournalEntry, R::Error> {
    Ok(JournalEntry {
        seq: row.number(0)?,
        at: Timestamp(row.number(1)?),
        reason: row.event_reason(2)?,
        created_at: row.time(3)?,
    })
}

/// Returns the query for the extent of a sequence, as [`extent_of`] reads it.
pub(super) fn extent_query(sequence: Sequence) -> &'static str {
    match sequence {
        Sequence::Orders => {
            "SELECT (SELECT coalesce(max(seq), 0) FROM orders), last_order_seq, entries \
             FROM pruned WHERE id = 1"
        }
        Sequence::Journal => {
            "SELECT (SELECT coalesce(max(seq), 0) FROM journal), last_entry_seq, entries \
             FROM pruned WHERE id = 1"
        }
    }
}

/// Reads the extent of a sequence.
pub(super) fn extent_of<R: Columns>(row: &R, sequence: Sequence) -> Result<Extent, R::Error> {
    Ok(Extent {
        sequence,
        newest: row.number(0)?,
        last_pruned: row.number(1)?,
        pruned: row.number(2)?,
    })
}

/// Reads a history.
pub(super) fn history_of<R: Columns>(row: &R) -> Result<History, R::Error> {
    Ok(History {
        id: row.count(0)?,
        newest: [row.number(1)?, row.number(2)?],
        pruned: row.number(3)?,
    })
}

/// Reads numbers of FULFILLED and FAILED orders, and of entries.
pub(super) fn prune_counts_of<R: Columns>(row: &R) -> Result<PruneCounts, R::Error> {
    Ok(PruneCounts {
        fulfilled: row.count(0)?,
        failed: row.count(1)?,
        entries: row.count(2)?,
    })
}

/// Statement that replaces the heartbeat, with [`heartbeat_values`].
pub(super) const WRITE_HEARTBEAT: &str = "UPDATE heartbeat SET leader_since = ?1, led_until = ?2, \
     policy = ?3, last_pass_at = ?4, next_pass_at = ?5, last_seen_at = ?6, upstream = ?7, \
     upstream_since = ?8, upstream_detail = ?9, next_look_at = ?10, learned = ?11, tally = ?12 \
     WHERE id = 1";

/// Returns the values of a heartbeat.
pub(super) fn heartbeat_values(
    heartbeat: &ReconcilerState,
) -> serde_json::Result<[Value<'static>; 12]> {
    let (upstream, since, detail) = match &heartbeat.upstream {
        UpstreamState::Unknown => ("unknown", None, None),
        UpstreamState::Up { since } => ("up", Some(*since), None),
        UpstreamState::Down { since, detail } => ("down", Some(*since), Some(detail.clone())),
    };
    Ok([
        heartbeat.leader_since.into(),
        heartbeat.led_until.into(),
        heartbeat
            .policy
            .map_or(Value::Null, |policy| policy.as_str().into()),
        heartbeat.last_pass_at.into(),
        heartbeat.next_pass_at.into(),
        heartbeat.last_observed_at.into(),
        upstream.into(),
        since.into(),
        detail.map_or(Value::Null, |detail| Value::Text(detail.into())),
        heartbeat.next_poll_at.into(),
        Value::Text(serde_json::to_string(&heartbeat.learned)?.into()),
        Value::Text(serde_json::to_string(&heartbeat.metrics)?.into()),
    ])
}

/// Reads the heartbeat.
pub(super) fn heartbeat_of<R: Columns>(row: &R) -> Result<ReconcilerState, R::Error> {
    Ok(ReconcilerState {
        leader_since: row.time(0)?,
        led_until: row.time(1)?,
        policy: row.text(2)?.and_then(LostProcess::from_word),
        last_pass_at: row.time(3)?,
        next_pass_at: row.time(4)?,
        last_observed_at: row.time(5)?,
        upstream: match (row.word(6)?, row.time(7)?) {
            ("up", Some(since)) => UpstreamState::Up { since },
            ("down", Some(since)) => UpstreamState::Down {
                since,
                detail: row.word(8)?.to_owned(),
            },
            _ => UpstreamState::Unknown,
        },
        next_poll_at: row.time(9)?,
        // State learned by another version is learned again; its counters are lost.
        learned: row.json(10)?,
        metrics: row.json(11)?,
    })
}
