//! Pages of orders, and the index by which each is read.

use rusqlite::{Connection, params};

use super::histories::extent;
use super::row_mapping::outage;
use crate::store::cursor::{Histories, Sequence};
use crate::store::filter::PageRows;
use crate::store::rows::{order_columns, order_of};
use crate::store::{Cursor, Filter, Page, StoreError};

/// See [`Store::pages`](crate::store::Store::pages).
pub(super) fn page(
    db: &Connection,
    histories: &Histories,
    filter: &Filter,
    after: Cursor,
    last: i64,
    limit: usize,
) -> Result<Page, StoreError> {
    let mut now = extent(db, Sequence::Orders)?;
    if !filter.takes_settled() {
        // Orders that are not settled are never pruned.
        now.last_pruned = 0;
    }
    let here = histories.resume(after, &now)?;
    let outage = outage(db)?;
    let orders = match PageRows::new(filter, outage.is_some()) {
        None => Vec::new(),
        Some(rows) => db
            .prepare_cached(&page_sql(&rows))?
            .query_map(params![after.seq, last, limit as i64], |row| {
                order_of(row, outage.as_ref())
            })?
            .collect::<rusqlite::Result<_>>()?,
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
    let (range, condition) = ("seq > ?1 AND seq <= ?2", rows.condition);
    if rows.is_one_range() {
        let source = match rows.is_stored {
            true => "orders INDEXED BY orders_with_attention WHERE attention IS NOT NULL AND",
            false => "orders WHERE",
        };
        let of_status = rows.of_status("status");
        return format!(
            "SELECT {ORDER} FROM {source} {range}{condition}{of_status} ORDER BY seq LIMIT ?3"
        );
    }
    // One index range per status, merged as they are read.
    let selects: Vec<_> = rows
        .statuses
        .iter()
        .map(|status| {
            format!(
                "SELECT {ORDER} FROM orders INDEXED BY orders_by_status \
                 WHERE status = '{status}' AND {range}{condition}"
            )
        })
        .collect();
    format!("{} ORDER BY seq LIMIT ?3", selects.join(" UNION ALL "))
}

#[cfg(test)]
mod tests {
    use super::super::open;
    use super::*;
    use crate::order::{ResolvedBy, Status};
    use crate::store::AttentionFilter::{Any, By, Without};

    fn plan(db: &Connection, sql: &str) -> String {
        let mut query = db.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let lines = query
            .query_map([0, 0, 0], |row| row.get::<_, String>(3))
            .unwrap();
        lines.collect::<Result<Vec<_>, _>>().unwrap().join("; ")
    }

    #[test]
    fn a_page_is_found_through_an_index_and_never_sorted() {
        let db = open::empty().unwrap();
        let by_status = "orders_by_status (status=? AND seq>? AND seq<?)";
        let by_attention = "orders_with_attention (seq>? AND seq<?)";
        let by_seq = "INTEGER PRIMARY KEY (rowid>? AND rowid<?)";
        let open = vec![Status::Created, Status::Processing];
        let (operator, itself) = (By(ResolvedBy::Operator), By(ResolvedBy::Itself));
        for (statuses, attention, is_down, index) in [
            (vec![], None, false, by_seq),
            (Status::ALL.to_vec(), None, false, by_seq),
            (vec![Status::Failed], None, false, by_status),
            (open.clone(), None, false, by_status),
            (vec![], Some(Any), false, by_attention),
            (open.clone(), Some(Any), false, by_attention),
            (vec![], Some(Without), false, by_seq),
            (open.clone(), Some(Without), false, by_status),
            (vec![], Some(Any), true, by_status),
            (vec![], Some(Without), true, by_status),
            (vec![], Some(operator), false, by_attention),
            (open, Some(operator), true, by_attention),
            (vec![], Some(itself), false, by_attention),
            (vec![], Some(itself), true, by_status),
        ] {
            let filter = Filter {
                statuses,
                attention,
            };
            let rows = PageRows::new(&filter, is_down).unwrap();
            let plan = plan(&db, &page_sql(&rows));
            assert!(plan.contains(index), "{filter:?}: {plan}");
            assert!(!plan.contains("SCAN"), "{filter:?}: {plan}");
            assert!(!plan.contains("TEMP B-TREE"), "{filter:?}: {plan}");
        }
        let settled = Filter {
            statuses: vec![Status::Failed],
            attention: Some(Any),
        };
        assert!(PageRows::new(&settled, true).is_none());
    }
}
