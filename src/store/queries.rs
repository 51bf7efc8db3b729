//! Queries that every engine runs: of orders, the journal, the heartbeat, and what was pruned. Those of several
//! statements are made in one snapshot.
//!
//! The texts are in SQLite's dialect and name the index that its planner has to use; PostgreSQL is sent them
//! without (`postgres/dialect.rs`). `status || ''` keeps PostgreSQL off the index of statuses, which
//! without statistics is chosen although it would read every order of a status.

use futures_util::future::try_join;

use super::cursor::{Extent, Gone, Histories, Sequence};
use super::filter::{PageRows, prunable, startable, waits_for_start};
use super::rows::Value::Integer;
use super::rows::{
    Columns, Database, ENTRY, EVENT, HEARTBEAT, HISTORIES, OUTAGE, PRUNED, Value, entry_of,
    event_of, extent_of, extent_query, heartbeat_of, history_of, needs_operator,
    open_order_columns, open_order_of, order_columns, order_of, order_view_columns, order_view_of,
    outage_of, prune_counts_of, start_candidate_of,
};
use super::{Cursor, Filter, OrderView, Page, PruneCounts, StartCandidate, StatsSnapshot};
use crate::decide::OpenOrder;
use crate::explain::{COUNTED_AHEAD_MAX, OrderDetails};
use crate::journal_stats::JournalStats;
use crate::order::{Event, Order, OrderId, Status, Timestamp};
use crate::pace::{BACKOFF_MAX, StartClass};
use crate::reconciler_state::ReconcilerState;

/// Number of rows read in one query: some milliseconds of work. SQLite's write-ahead log cannot restart
/// during a read.
pub(super) const READ_MAX: usize = 10_000;

/// Number of orders corrected in one transaction.
const CORRECTIONS_PER_TRANSACTION_MAX: i64 = 2_000;

/// Kinds of reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// One statement.
    Statement,
    /// Several statements, in one snapshot.
    Snapshot,
    /// One statement that may read all orders.
    Scan,
}

/// Runs a query that has exactly one row.
async fn one<D: Database, T: Send>(
    db: &D,
    sql: &str,
    values: &[Value<'_>],
    read: impl FnMut(&D::Row<'_>) -> Result<T, D::Error> + Send,
) -> Result<T, D::Error> {
    let row = db.rows(sql, values, read).await?.pop();
    row.ok_or_else(|| D::Row::invalid(0, "a row is missing"))
}

/// Runs a query for numbers.
pub(super) async fn numbers<D: Database>(
    db: &D,
    sql: &str,
    values: &[Value<'_>],
) -> Result<Vec<i64>, D::Error> {
    db.rows(sql, values, |row| row.number(0)).await
}

/// Query for an order by its id, with the columns of the heartbeat that readers need. One statement,
/// because it is the most frequent read.
pub(super) const ORDER_VIEW: &str = concat!(
    "SELECT ",
    order_view_columns!(),
    " FROM orders CROSS JOIN heartbeat WHERE orders.id = ?1"
);

/// See [`Store::find`](super::Store::find).
pub(super) async fn find<D: Database>(db: &D, id: &OrderId) -> Result<Option<OrderView>, D::Error> {
    let id = [id.as_str().into()];
    let found = db.rows(ORDER_VIEW, &id, |row| order_view_of(row)).await?;
    Ok(found.into_iter().next())
}

pub(super) async fn newest_seq<D: Database>(db: &D) -> Result<i64, D::Error> {
    let sql = "SELECT coalesce(max(seq), 0) FROM orders";
    one(db, sql, &[], |row| row.number(0)).await
}

pub(super) async fn count<D: Database>(db: &D, status: Status) -> Result<u64, D::Error> {
    let sql = "SELECT count(*) FROM orders WHERE status = ?1";
    one(db, sql, &[status.as_str().into()], |row| row.count(0)).await
}

/// See [`Store::next_open`](super::Store::next_open).
pub(super) async fn next_open<D: Database>(db: &D, after: i64) -> Result<Option<Order>, D::Error> {
    const ORDER: &str = order_columns!();
    let of_status = |status| {
        let by_status = "orders INDEXED BY orders_by_status";
        format!("SELECT {ORDER} FROM {by_status} WHERE status = '{status}' AND seq > ?1")
    };
    let selects = [Status::Created, Status::Processing].map(of_status);
    let (sql, after) = (D::merged(&selects, "1"), [Integer(after)]);
    let orders = db.rows(&sql, &after, |row| order_of(row, None));
    Ok(orders.await?.pop())
}

/// See [`Store::has_work`](super::Store::has_work).
pub(super) async fn has_work<D: Database>(
    db: &D,
    now: Timestamp,
    max_starts: u32,
) -> Result<bool, D::Error> {
    const SQL: &str = concat!(
        "SELECT EXISTS (SELECT 1 FROM orders INDEXED BY orders_by_status WHERE status = 'PROCESSING') \
         OR EXISTS (SELECT 1 FROM orders INDEXED BY orders_by_status WHERE status = 'CREATED' \
                    AND (intent_at IS NOT NULL OR ",
        startable!("?1", "?2"),
        "))"
    );
    let values = [Integer(max_starts.into()), Integer(now.0)];
    one(db, SQL, &values, |row| row.boolean(0)).await
}

/// See [`Store::startable`](super::Store::startable).
pub(super) async fn startable<D: Database>(
    db: &D,
    now: Timestamp,
    max_starts: u32,
    has_failed: bool,
    after: i64,
    limit: usize,
) -> Result<Vec<StartCandidate>, D::Error> {
    const NEW: &str = concat!(
        "SELECT ",
        open_order_columns!(),
        " FROM orders INDEXED BY orders_by_status \
         WHERE status = 'CREATED' AND attempts = 0 AND seq > ?1 AND ",
        startable!("?2", "?3"),
        " ORDER BY seq LIMIT ?4"
    );
    // Each has attention. By the index of statuses, every order without an attempt would be read.
    const FAILED: &str = concat!(
        "SELECT ",
        open_order_columns!(),
        " FROM orders INDEXED BY orders_with_attention \
         WHERE attention IS NOT NULL AND status || '' = 'CREATED' AND attempts > 0 AND seq > ?1 AND ",
        startable!("?2", "?3"),
        " ORDER BY seq LIMIT ?4"
    );
    let values = [
        Integer(after),
        Integer(max_starts.into()),
        Integer(now.0),
        limit.into(),
    ];
    let sql = if has_failed { FAILED } else { NEW };
    db.rows(sql, &values, |row| start_candidate_of(row)).await
}

/// Returns the sequence numbers of the first orders after `after` with an impossible time.
pub(super) async fn with_times_ahead<D: Database>(
    db: &D,
    status: Status,
    after: i64,
    now: Timestamp,
) -> Result<Vec<i64>, D::Error> {
    const SQL: &str = "SELECT seq FROM orders INDEXED BY orders_by_status \
         WHERE status = ?1 AND seq > ?2 \
         AND (intent_at > ?3 OR given_up_at > ?3 OR confirmed_at > ?3 OR missed_at > ?3 \
              OR next_attempt_at > ?4) \
         ORDER BY seq LIMIT ?5";
    let latest = now.after(BACKOFF_MAX).0;
    let [after, now, latest, limit] =
        [after, now.0, latest, CORRECTIONS_PER_TRANSACTION_MAX].map(Integer);
    let status = Value::from(status.as_str());
    numbers(db, SQL, &[status, after, now, latest, limit]).await
}

pub(super) async fn heartbeat<D: Database>(db: &D) -> Result<ReconcilerState, D::Error> {
    one(db, HEARTBEAT, &[], |row| heartbeat_of(row)).await
}

async fn pruned<D: Database>(db: &D) -> Result<PruneCounts, D::Error> {
    one(db, PRUNED, &[], |row| prune_counts_of(row)).await
}

/// Query for the first orders that may be pruned: all orders by sequence number. An index by time of
/// settling was rejected: every settlement would have to update it, for one scan a day.
pub(super) const NEXT_PRUNABLE: &str = concat!(
    "SELECT seq FROM orders WHERE seq > ?2 AND ",
    prunable!("?1"),
    " ORDER BY seq LIMIT ?3"
);

/// Returns the sequence numbers of the first `limit` orders after `after` that may be pruned.
pub(super) async fn next_prunable<D: Database>(
    db: &D,
    settled_before: Timestamp,
    after: i64,
    limit: usize,
) -> Result<Vec<i64>, D::Error> {
    let values = [Integer(settled_before.0), Integer(after), limit.into()];
    numbers(db, NEXT_PRUNABLE, &values).await
}

/// Reads the extent of a sequence, and the histories that cursors are compared with.
async fn extent<D: Database>(db: &D, sequence: Sequence) -> Result<(Extent, Histories), D::Error> {
    let extent = one(db, extent_query(sequence), &[], |row| {
        extent_of(row, sequence)
    });
    let histories = db.rows(HISTORIES, &[], |row| history_of(row));
    let (extent, histories) = try_join(extent, histories).await?;
    Ok((extent, Histories::new(histories)))
}

/// See [`Store::pages`](super::Store::pages).
pub(super) async fn page<D: Database>(
    db: &D,
    filter: Filter,
    after: Cursor,
    last: i64,
    limit: usize,
) -> Result<Result<Page, Gone>, D::Error> {
    let outage = db.rows(OUTAGE, &[], |row| outage_of(row));
    let extent = extent(db, Sequence::Orders);
    let ((mut now, histories), outage) = try_join(extent, outage).await?;
    if !filter.takes_settled() {
        // Orders that are not settled are never pruned.
        now.last_pruned = 0;
    }
    let here = match histories.resume(after, &now) {
        Ok(here) => here,
        Err(gone) => return Ok(Err(gone)),
    };
    let outage = outage.first();
    let orders = match PageRows::new(&filter, outage.is_some()) {
        None => Vec::new(),
        Some(rows) => {
            let values = [Integer(after.seq), Integer(last), limit.into()];
            db.rows(&page_sql::<D>(&rows), &values, |row| order_of(row, outage))
                .await?
        }
    };
    Ok(Ok(Page {
        next: here.at(orders.last().map_or(after.seq, |order| order.seq)),
        newest: now.newest,
        orders,
    }))
}

/// Returns the query for a page.
pub(super) fn page_sql<D: Database>(rows: &PageRows) -> String {
    const ORDER: &str = order_columns!();
    let (range, condition) = ("seq > ?1 AND seq <= ?2", rows.condition);
    if rows.is_one_range() {
        let source = match rows.is_stored {
            true => "orders INDEXED BY orders_with_attention WHERE attention IS NOT NULL AND",
            false => "orders WHERE",
        };
        let of_status = rows.of_status("status || ''");
        return format!(
            "SELECT {ORDER} FROM {source} {range}{condition}{of_status} ORDER BY seq LIMIT ?3"
        );
    }
    // One index range per status, merged as they are read.
    let selects = rows.statuses.iter().map(|status| {
        format!(
            "SELECT {ORDER} FROM orders INDEXED BY orders_by_status \
             WHERE status = '{status}' AND {range}{condition}"
        )
    });
    D::merged(&selects.collect::<Vec<_>>(), "?3")
}

/// See [`Store::events`](super::Store::events).
pub(super) async fn events<D: Database>(
    db: &D,
    order: Option<OrderId>,
    after: Cursor,
    limit: usize,
) -> Result<Result<(Vec<Event>, Cursor), Gone>, D::Error> {
    let (mut now, histories) = extent(db, Sequence::Journal).await?;
    let mut values = vec![Integer(after.seq), limit.into()];
    if let Some(id) = &order {
        let sql = "SELECT seq FROM orders WHERE id = ?1";
        let found = numbers(db, sql, &[id.as_str().into()]).await?;
        let Some(order_seq) = found.first() else {
            let here = histories.resume(after, &now);
            return Ok(here.map(|here| (Vec::new(), here)));
        };
        values.push(Integer(*order_seq));
        // Its entries are pruned together with the order, which is there.
        now.last_pruned = 0;
    }
    let here = match histories.resume(after, &now) {
        Ok(here) => here,
        Err(gone) => return Ok(Err(gone)),
    };
    let sql = events_sql(order.is_some());
    let events = db.rows(&sql, &values, |row| event_of(row)).await?;
    let next = here.at(events.last().map_or(after.seq, |event| event.seq));
    Ok(Ok((events, next)))
}

/// Returns the query for events.
pub(super) fn events_sql(of_one_order: bool) -> String {
    let of_order = match of_one_order {
        true => "order_seq = ?3 AND ",
        false => "",
    };
    format!("SELECT {EVENT} FROM journal WHERE {of_order}seq > ?1 ORDER BY seq LIMIT ?2")
}

/// Returns a cursor at the newest event.
pub(super) async fn newest_event<D: Database>(db: &D) -> Result<Cursor, D::Error> {
    let (now, histories) = extent(db, Sequence::Journal).await?;
    Ok(histories.position(now.newest, &now))
}

/// Reads the totals of the pruned entries, by a statement that returns them.
pub(super) async fn base<D: Database>(db: &D, sql: &str) -> Result<JournalStats, D::Error> {
    one(db, sql, &[], |row| {
        serde_json::from_str(row.word(0)?).map_err(|error| D::Row::invalid(0, error))
    })
    .await
}

/// Query for the number of orders by reason, which is answered from the index alone.
pub(super) const ATTENTION: &str = concat!(
    "SELECT attention, ",
    needs_operator!(),
    ", count(*) FROM orders INDEXED BY orders_with_attention \
     WHERE attention IS NOT NULL GROUP BY 1, 2 ORDER BY 1, 2"
);

/// Adds the next journal entries to the statistics, [`READ_MAX`] unless they are the last. If they are,
/// returns the other totals.
///
/// `rebuilt_at` is the number of entries that had been pruned when the statistics were rebuilt from the
/// totals of these, and have only been added to since.
pub(super) async fn update_stats<D: Database>(
    db: &D,
    mut history: JournalStats,
    mut rebuilt_at: Option<i64>,
    now: Timestamp,
) -> Result<(JournalStats, Option<i64>, Option<StatsSnapshot>), D::Error> {
    let (journal, _) = extent(db, Sequence::Journal).await?;
    // The statistics contain the entries pruned up to the last entry that was added. If more were
    // pruned, or if they are empty, they are rebuilt from the totals of the pruned entries.
    if journal.last_pruned > history.last_seq() && rebuilt_at != Some(journal.pruned) {
        history = base(db, "SELECT history FROM pruned WHERE id = 1").await?;
        rebuilt_at = Some(journal.pruned);
    }
    let sql = format!("SELECT {ENTRY} FROM journal WHERE seq > ?1 ORDER BY seq LIMIT ?2");
    let values = [Integer(history.last_seq()), READ_MAX.into()];
    let added = db.rows(&sql, &values, |row| {
        history.add(&entry_of(row)?, now);
        Ok(())
    });
    if added.await?.len() == READ_MAX {
        return Ok((history, rebuilt_at, None));
    }
    let attention = db.rows(ATTENTION, &[], |row| {
        Ok((row.reason(0)?, row.resolved_by(1)?, row.count(2)?))
    });
    let attention = attention.await?.into_iter();
    let stats = StatsSnapshot {
        pruned: pruned(db).await?,
        attention: attention
            .filter_map(|(reason, by, count)| Some((reason?, by, count)))
            .collect(),
        oldest_open: next_open(db, 0).await?,
        heartbeat: heartbeat(db).await?,
    };
    Ok((history, rebuilt_at, Some(stats)))
}

/// Returns the open order with this number; `None` if it is settled or missing.
pub(super) async fn open_order<D: Database>(
    db: &D,
    seq: i64,
) -> Result<Option<OpenOrder>, D::Error> {
    const SQL: &str = concat!(
        "SELECT ",
        open_order_columns!(),
        " FROM orders WHERE seq = ?1 AND status IN ('CREATED', 'PROCESSING')"
    );
    let seq = [Integer(seq)];
    Ok(db.rows(SQL, &seq, |row| open_order_of(row)).await?.pop())
}

/// See [`Store::details`](super::Store::details).
pub(super) async fn details<D: Database>(
    db: &D,
    id: OrderId,
    now: Timestamp,
) -> Result<Option<OrderDetails>, D::Error> {
    let Some(OrderView { order, .. }) = find(db, &id).await? else {
        return Ok(None);
    };
    let open = open_order(db, order.seq).await?;
    let sql = "SELECT at, reason FROM journal WHERE order_seq = ?1 ORDER BY seq";
    let seq = [Integer(order.seq)];
    let journal = db.rows(sql, &seq, |row| {
        Ok((Timestamp(row.number(0)?), row.event_reason(1)?))
    });
    Ok(Some(OrderDetails {
        journal: journal.await?,
        ahead: match &open {
            Some(open) => ahead(db, open, now).await?,
            None => 0,
        },
        open,
        reconciler: heartbeat(db).await?,
        order,
    }))
}

/// Returns the approximate number of starts ahead of a waiting order's. At most
/// [`COUNTED_AHEAD_MAX`] orders are counted in each queue. Orders that wait for an operator, or for
/// the end of their backoff, are not counted.
async fn ahead<D: Database>(db: &D, order: &OpenOrder, now: Timestamp) -> Result<u64, D::Error> {
    let own = order.start_class();
    let mut waiting = [0; StartClass::ALL.len()];
    for class in StartClass::ALL {
        let before = if class == own { order.seq } else { i64::MAX };
        let index = match class {
            StartClass::Forgotten | StartClass::Retry => "orders_with_attention",
            StartClass::New => "orders_by_status",
        };
        let due = waits_for_start(class);
        let sql = format!(
            "SELECT count(*) FROM (SELECT 1 FROM orders INDEXED BY {index} WHERE {due} AND seq < ?1 \
             AND coalesce(next_attempt_at, ?2) <= ?2 LIMIT {COUNTED_AHEAD_MAX}) AS due"
        );
        let values = [Integer(before), Integer(now.0)];
        waiting[class as usize] = one(db, &sql, &values, |row| row.count(0)).await?;
    }
    Ok(own.starts_before(waiting))
}

/// Returns ids that differ from one in case only, and its neighbours in sort order.
pub(super) async fn neighbours<D: Database>(db: &D, id: OrderId) -> Result<Vec<String>, D::Error> {
    let mut found = Vec::new();
    let id = [id.as_str().into()];
    for sql in [
        "SELECT id FROM orders WHERE lower(id) = lower(?1) ORDER BY id LIMIT 3",
        "SELECT id FROM orders WHERE id > ?1 ORDER BY id LIMIT 2",
        "SELECT id FROM orders WHERE id < ?1 ORDER BY id DESC LIMIT 2",
    ] {
        let ids = db.rows(sql, &id, |row| Ok(row.word(0)?.to_owned()));
        found.extend(ids.await?);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::order::EventReason;
    use crate::store::{DatabaseUrl, Mode, Store};

    #[tokio::test]
    async fn all_entries_are_counted_once_also_if_many_are_before_a_pruned_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = DatabaseUrl::from(folder.path().join("orders.db"));
        let store = Store::open(&path, Mode::Threaded).unwrap();
        let count = 3 * READ_MAX;
        let fill = format!(
            "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {count}) \
             INSERT INTO orders (seq, id, status, created_at, updated_at) \
             SELECT n, 'a' || n, 'CREATED', 0, 0 FROM n; \
             INSERT INTO journal (seq, order_seq, at, reason) \
             SELECT seq, seq, 0, 'created' FROM orders; \
             UPDATE pruned SET entries = 1, last_entry_seq = {count}"
        );
        let db = rusqlite::Connection::open(store.info().address).unwrap();
        db.execute_batch(&fill).unwrap();
        let mut history = JournalStats::default();
        for _ in 0..2 {
            let counted = store.update_stats(&mut history, Timestamp(1));
            let limit = std::time::Duration::from_secs(60);
            tokio::time::timeout(limit, counted).await.unwrap().unwrap();
            let created = history.entries_with(EventReason::Created);
            assert_eq!(created, count as u64);
        }
    }
}
