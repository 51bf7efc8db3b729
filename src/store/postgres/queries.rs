//! Queries on one session: orders, the journal, the heartbeat, and what was pruned. Those that need
//! several statements are called inside a transaction that reads one snapshot.
//!
//! `status || ''` keeps a statement off the index of statuses, which without statistics is chosen
//! although it would read every order of a status.

use futures_util::future::try_join;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::error::Error;
use super::session::Session;
use crate::decide::OpenOrder;
use crate::journal_stats::JournalStats;
use crate::order::{Event, Order, OrderId, Status, Timestamp};
use crate::order_details::{COUNTED_AHEAD_MAX, OrderDetails};
use crate::pace::{BACKOFF_MAX, StartClass};
use crate::reconciler_state::ReconcilerState;
use crate::store::cursor::{Extent, Histories, Sequence};
use crate::store::filter::{PageRows, prunable, startable, waits_for_start};
use crate::store::rows::{
    Columns, ENTRY, EVENT, HEARTBEAT, HISTORIES, OPEN_ORDER, OUTAGE, PRUNED, entry_of, event_of,
    extent_of, extent_query, heartbeat_of, history_of, needs_operator, open_order_of,
    order_columns, order_of, order_view_columns, order_view_of, outage_of, prune_counts_of,
    start_candidate_of,
};
use crate::store::{Cursor, Filter, OrderView, Page, PruneCounts, StartCandidate, StatsSnapshot};

/// Number of orders read in one query: some milliseconds of work.
pub(super) const READ_MAX: usize = 10_000;

/// Number of orders corrected in one transaction.
const BATCH_MAX: i64 = 2_000;

/// Query for the orders with these ids, with the columns of the heartbeat that readers need, and the
/// batches that created them.
pub(super) const ORDER_VIEWS: &str = concat!(
    "SELECT ",
    order_view_columns!(),
    ", batch FROM orders CROSS JOIN heartbeat WHERE orders.id = ANY ($1)"
);

pub(super) async fn find(session: &Session, id: &OrderId) -> Result<Option<OrderView>, Error> {
    let rows = session
        .query(ORDER_VIEWS, &[&[id.as_str()].as_slice()])
        .await?;
    rows.first().map(order_view_of).transpose()
}

pub(super) async fn newest_seq(session: &Session) -> Result<i64, Error> {
    let sql = "SELECT coalesce(max(seq), 0) FROM orders";
    session.value(sql, &[]).await
}

pub(super) async fn count(session: &Session, status: Status) -> Result<u64, Error> {
    let sql = "SELECT count(*) FROM orders WHERE status = $1";
    let count: i64 = session.value(sql, &[&status.as_str()]).await?;
    Ok(count.unsigned_abs())
}

async fn oldest_open(session: &Session) -> Result<Option<Order>, Error> {
    const SQL: &str = "\
        (SELECT seq, id FROM orders WHERE status = 'CREATED' ORDER BY seq LIMIT 1) \
        UNION ALL \
        (SELECT seq, id FROM orders WHERE status = 'PROCESSING' ORDER BY seq LIMIT 1) \
        ORDER BY seq LIMIT 1";
    match session.query(SQL, &[]).await?.first() {
        Some(row) => Ok(find(session, &row.id(1)?).await?.map(|found| found.order)),
        None => Ok(None),
    }
}

/// See [`Store::has_work`](crate::store::Store::has_work).
pub(super) async fn has_work(
    session: &Session,
    now: Timestamp,
    max_starts: u32,
) -> Result<bool, Error> {
    const SQL: &str = concat!(
        "SELECT EXISTS (SELECT 1 FROM orders WHERE status = 'PROCESSING') \
         OR EXISTS (SELECT 1 FROM orders WHERE status = 'CREATED' \
                    AND (intent_at IS NOT NULL OR ",
        startable!("$1", "$2"),
        "))"
    );
    session
        .value(SQL, &[&max_starts_of(max_starts), &now.0])
        .await
}

/// See [`Store::startable`](crate::store::Store::startable).
pub(super) async fn startable(
    session: &Session,
    now: Timestamp,
    max_starts: u32,
    is_tried: bool,
    after: i64,
    limit: usize,
) -> Result<Vec<StartCandidate>, Error> {
    let sql = format!(
        "SELECT {OPEN_ORDER} FROM orders \
         WHERE status = 'CREATED' AND seq > $1 AND (attempts > 0) = $5 AND {} \
         ORDER BY seq LIMIT $4",
        startable!("$2", "$3")
    );
    let (max_starts, limit) = (max_starts_of(max_starts), limit_of(limit));
    let values: [&(dyn ToSql + Sync); 5] = [&after, &max_starts, &now.0, &limit, &is_tried];
    let rows = session.query(&sql, &values).await?;
    rows.iter().map(start_candidate_of).collect()
}

/// Returns the rows of the first open orders after `after`, [`READ_MAX`] unless they are the last.
pub(super) async fn open_after(session: &Session, after: i64) -> Result<Vec<Row>, Error> {
    let sql = format!(
        "SELECT {OPEN_ORDER} FROM ( \
             (SELECT {OPEN_ORDER} FROM orders WHERE status = 'PROCESSING' AND seq > $1 \
              ORDER BY seq LIMIT $2) \
             UNION ALL \
             (SELECT {OPEN_ORDER} FROM orders WHERE intent_at IS NOT NULL AND status || '' = 'CREATED' \
              AND seq > $1 ORDER BY seq LIMIT $2)) AS open \
         ORDER BY seq LIMIT $2"
    );
    session.query(&sql, &[&after, &limit_of(READ_MAX)]).await
}

/// Returns the sequence numbers of the first orders after `after` with an impossible time.
pub(super) async fn with_times_ahead(
    session: &Session,
    status: Status,
    after: i64,
    now: Timestamp,
) -> Result<Vec<i64>, Error> {
    const SQL: &str = "SELECT seq FROM orders WHERE status = $1 AND seq > $2 \
         AND (intent_at > $3 OR given_up_at > $3 OR confirmed_at > $3 OR missed_at > $3 \
              OR next_attempt_at > $4) \
         ORDER BY seq LIMIT $5";
    let latest = now.after(BACKOFF_MAX).0;
    let values: [&(dyn ToSql + Sync); 5] = [&status.as_str(), &after, &now.0, &latest, &BATCH_MAX];
    seqs(session, SQL, &values).await
}

async fn seqs(
    session: &Session,
    sql: &str,
    values: &[&(dyn ToSql + Sync)],
) -> Result<Vec<i64>, Error> {
    let rows = session.query(sql, values).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

pub(super) async fn heartbeat(session: &Session) -> Result<ReconcilerState, Error> {
    heartbeat_of(&session.query_one(HEARTBEAT, &[]).await?)
}

pub(super) async fn pruned(session: &Session) -> Result<PruneCounts, Error> {
    prune_counts_of(&session.query_one(PRUNED, &[]).await?)
}

pub(super) async fn next_prunable(
    session: &Session,
    settled_before: Timestamp,
    after: i64,
    limit: usize,
) -> Result<Vec<i64>, Error> {
    const SQL: &str = concat!(
        "SELECT seq FROM orders WHERE seq > $2 AND ",
        prunable!("$1"),
        " ORDER BY seq LIMIT $3"
    );
    seqs(session, SQL, &[&settled_before.0, &after, &limit_of(limit)]).await
}

/// Returns the size of the tables and indexes, in bytes.
pub(super) async fn size(session: &Session) -> Result<u64, Error> {
    const SQL: &str = "SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_class \
         WHERE relnamespace = 'order_service'::regnamespace AND relkind = 'r'";
    Ok(session.value::<i64>(SQL, &[]).await?.unsigned_abs())
}

/// Reads the extent of a sequence, and the histories that cursors are compared with.
pub(super) async fn extent(
    session: &Session,
    sequence: Sequence,
) -> Result<(Extent, Histories), Error> {
    let extent = session.query_one(extent_query(sequence), &[]);
    let (extent, histories) = try_join(extent, session.query(HISTORIES, &[])).await?;
    let histories = histories.iter().map(history_of).collect::<Result<_, _>>()?;
    Ok((extent_of(&extent, sequence)?, Histories::new(histories)))
}

/// See [`Store::pages`](crate::store::Store::pages).
pub(super) async fn page(
    session: &Session,
    filter: &Filter,
    after: Cursor,
    last: i64,
    limit: usize,
) -> Result<Page, Error> {
    let extent = extent(session, Sequence::Orders);
    let ((mut now, histories), outage) = try_join(extent, session.query(OUTAGE, &[])).await?;
    if !filter.takes_settled() {
        // Orders that are not settled are never pruned.
        now.last_pruned = 0;
    }
    let here = histories.resume(after, &now)?;
    let outage = outage.first().map(outage_of).transpose()?;
    let orders: Vec<Order> = match PageRows::new(filter, outage.is_some()) {
        None => Vec::new(),
        Some(page) => {
            let values: [&(dyn ToSql + Sync); 3] = [&after.seq, &last, &limit_of(limit)];
            let rows = session.query(&page_sql(&page), &values).await?;
            let orders = rows.iter().map(|row| order_of(row, outage.as_ref()));
            orders.collect::<Result<_, _>>()?
        }
    };
    Ok(Page {
        next: here.at(orders.last().map_or(after.seq, |order| order.seq)),
        newest: now.newest,
        orders,
    })
}

/// Returns the query for a page.
fn page_sql(rows: &PageRows) -> String {
    const ORDER: &str = order_columns!();
    let (range, condition) = ("seq > $1 AND seq <= $2", rows.condition);
    if rows.is_one_range() {
        let stored = match rows.is_stored {
            true => "attention IS NOT NULL AND ",
            false => "",
        };
        let of_status = rows.of_status("status || ''");
        return format!(
            "SELECT {ORDER} FROM orders WHERE {stored}{range}{condition}{of_status} \
             ORDER BY seq LIMIT $3"
        );
    }
    // One index range per status, merged as they are read.
    let selects: Vec<_> = rows
        .statuses
        .iter()
        .map(|status| {
            format!(
                "(SELECT {ORDER} FROM orders WHERE status = '{status}' AND {range}{condition} \
                 ORDER BY seq LIMIT $3)"
            )
        })
        .collect();
    format!(
        "SELECT * FROM ({}) AS merged ORDER BY seq LIMIT $3",
        selects.join(" UNION ALL ")
    )
}

/// See [`Store::events`](crate::store::Store::events).
pub(super) async fn events(
    session: &Session,
    order: Option<&OrderId>,
    after: Cursor,
    limit: usize,
) -> Result<(Vec<Event>, Cursor), Error> {
    let (mut now, histories) = extent(session, Sequence::Journal).await?;
    let order_seq: Option<i64> = match order {
        None => None,
        Some(id) => {
            let sql = "SELECT seq FROM orders WHERE id = $1";
            let rows = session.query(sql, &[&id.as_str()]).await?;
            let Some(row) = rows.first() else {
                return Ok((Vec::new(), histories.resume(after, &now)?));
            };
            // They are removed together with their order, which is there.
            now.last_pruned = 0;
            Some(row.try_get(0)?)
        }
    };
    let here = histories.resume(after, &now)?;
    let rows = match order_seq {
        None => {
            // The page first, and the ids of that alone.
            let sql = format!(
                "SELECT {EVENT} FROM \
                     (SELECT * FROM journal WHERE seq > $1 ORDER BY seq LIMIT $2) AS journal \
                 CROSS JOIN LATERAL \
                     (SELECT id FROM orders WHERE orders.seq = journal.order_seq LIMIT 1) AS orders \
                 ORDER BY journal.seq"
            );
            session.query(&sql, &[&after.seq, &limit_of(limit)]).await?
        }
        Some(order_seq) => {
            let sql = format!(
                "SELECT {EVENT} FROM journal CROSS JOIN LATERAL \
                     (SELECT id FROM orders WHERE orders.seq = $3 LIMIT 1) AS orders \
                 WHERE journal.order_seq = $3 AND journal.seq > $1 ORDER BY journal.seq LIMIT $2"
            );
            let values: [&(dyn ToSql + Sync); 3] = [&after.seq, &limit_of(limit), &order_seq];
            session.query(&sql, &values).await?
        }
    };
    let events = rows.iter().map(event_of).collect::<Result<Vec<_>, _>>()?;
    let next = here.at(events.last().map_or(after.seq, |event| event.seq));
    Ok((events, next))
}

/// Returns a cursor at the newest event.
pub(super) async fn newest_event(session: &Session) -> Result<Cursor, Error> {
    let (now, histories) = extent(session, Sequence::Journal).await?;
    Ok(histories.position(now.newest, &now))
}

/// Reads the totals of the pruned entries.
pub(super) async fn base(session: &Session) -> Result<JournalStats, Error> {
    let sql = "SELECT history FROM pruned WHERE id = 1";
    let history: String = session.value(sql, &[]).await?;
    serde_json::from_str(&history).map_err(Error::value)
}

/// Adds the next journal entries to the statistics, [`READ_MAX`] unless they are the last. If they are,
/// returns the other totals.
pub(super) async fn update_stats(
    session: &Session,
    history: &mut JournalStats,
    now: Timestamp,
) -> Result<Option<StatsSnapshot>, Error> {
    let (journal, _) = extent(session, Sequence::Journal).await?;
    // What was removed up to the last entry that was folded in is in the history already. If more
    // was, the history begins anew with all of it, as does one that has nothing in it yet.
    if journal.last_pruned > history.last_seq() {
        *history = base(session).await?;
    }
    let sql = format!("SELECT {ENTRY} FROM journal WHERE seq > $1 ORDER BY seq LIMIT $2");
    let (after, limit) = (history.last_seq(), limit_of(READ_MAX));
    let entries = session.query(&sql, &[&after, &limit]).await?;
    for row in &entries {
        history.add(&entry_of(row)?, now);
    }
    if entries.len() == READ_MAX {
        return Ok(None);
    }
    const ATTENTION: &str = concat!(
        "SELECT attention, ",
        needs_operator!(),
        ", count(*) FROM orders WHERE attention IS NOT NULL GROUP BY 1, 2 ORDER BY 1, 2"
    );
    let mut attention = Vec::new();
    for row in session.query(ATTENTION, &[]).await? {
        if let Some(reason) = row.reason(0)? {
            let count = row.try_get::<_, i64>(2)?.unsigned_abs();
            attention.push((reason, row.resolved_by(1)?, count));
        }
    }
    Ok(Some(StatsSnapshot {
        pruned: pruned(session).await?,
        attention,
        oldest_open: oldest_open(session).await?,
        heartbeat: heartbeat(session).await?,
    }))
}

/// See [`Store::details`](crate::store::Store::details).
pub(super) async fn details(
    session: &Session,
    id: &OrderId,
    now: Timestamp,
) -> Result<Option<OrderDetails>, Error> {
    let Some(OrderView { order, .. }) = find(session, id).await? else {
        return Ok(None);
    };
    let sql = format!(
        "SELECT {OPEN_ORDER} FROM orders WHERE seq = $1 AND status IN ('CREATED', 'PROCESSING')"
    );
    let open = session.query(&sql, &[&order.seq]).await?;
    let open = open.first().map(open_order_of).transpose()?;
    let sql = "SELECT at, reason FROM journal WHERE order_seq = $1 ORDER BY seq";
    let journal = session.query(sql, &[&order.seq]).await?;
    let journal = journal
        .iter()
        .map(|row| Ok((Timestamp(row.number(0)?), row.try_get(1)?)));
    Ok(Some(OrderDetails {
        ahead: match &open {
            Some(open) => ahead(session, open, now).await?,
            None => 0,
        },
        open,
        journal: journal.collect::<Result<_, Error>>()?,
        reconciler: heartbeat(session).await?,
        order,
    }))
}

/// Returns the approximate number of starts ahead of a waiting order; see
/// [`OrderDetails::ahead`].
async fn ahead(session: &Session, order: &OpenOrder, now: Timestamp) -> Result<u64, Error> {
    let own = order.start_class();
    let mut waiting = Vec::new();
    for class in StartClass::ALL {
        let before = if class == own { order.seq } else { i64::MAX };
        let due = waits_for_start(class);
        let sql = format!(
            "SELECT count(*) FROM (SELECT 1 FROM orders WHERE {due} AND seq < $1 \
             AND coalesce(next_attempt_at, $2) <= $2 LIMIT {COUNTED_AHEAD_MAX}) AS due"
        );
        let count: i64 = session.value(&sql, &[&before, &now.0]).await?;
        waiting.push((class, count.unsigned_abs()));
    }
    own.starts_before(|class| {
        let count = waiting.iter().find(|(of, _)| *of == class);
        Ok(count.map_or(0, |(_, count)| *count))
    })
}

fn max_starts_of(max_starts: u32) -> i32 {
    i32::try_from(max_starts).unwrap_or(i32::MAX)
}

/// Converts a limit to the server's type.
fn limit_of(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}
