//! Pages of orders, and the index by which each is read.

use rusqlite::{Connection, params};

use super::histories::extent;
use super::row_mapping::{ORDER, needs_operator, order_of, outage};
use crate::order::{ResolvedBy, Status};
use crate::store::AttentionFilter::{Any, By, Without};
use crate::store::cursor::{Histories, Sequence};
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
    let orders = match page_sql(filter, outage.is_some()) {
        None => Vec::new(),
        Some(sql) => db
            .prepare_cached(&sql)?
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

/// Returns the query for a page; `None` if no order can match.
fn page_sql(filter: &Filter, upstream_is_down: bool) -> Option<String> {
    let mut statuses = if filter.statuses.is_empty() {
        Status::ALL.to_vec()
    } else {
        filter.statuses.clone()
    };
    statuses.sort_unstable();
    statuses.dedup();
    let by_operator = concat!(" AND ", needs_operator!());
    let by_itself = concat!(" AND NOT ", needs_operator!());
    // While the upstream is down, every open order has attention and no settled order has.
    let (open, is_stored, condition) = match (filter.attention, upstream_is_down) {
        (None, _) => (None, false, ""),
        (Some(Any), true) => (Some(true), false, ""),
        (Some(By(ResolvedBy::Itself)), true) => (Some(true), false, by_itself),
        (Some(Without), true) => (Some(false), false, ""),
        (Some(Without), false) => (None, false, " AND attention IS NULL"),
        (Some(Any), false) => (None, true, ""),
        (Some(By(ResolvedBy::Itself)), false) => (None, true, by_itself),
        (Some(By(ResolvedBy::Operator)), _) => (None, true, by_operator),
    };
    statuses.retain(|status| open.is_none_or(|open| status.is_settled() != open));
    if statuses.is_empty() {
        return None;
    }
    let range = "seq > ?1 AND seq <= ?2";
    let is_any = statuses.len() == Status::ALL.len();
    if is_any || is_stored {
        let source = match is_stored {
            true => "orders INDEXED BY orders_with_attention WHERE attention IS NOT NULL AND",
            false => "orders WHERE",
        };
        let of_status = match is_any {
            true => String::new(),
            false => {
                let words: Vec<_> = statuses.iter().map(|s| format!("'{s}'")).collect();
                format!(" AND status IN ({})", words.join(", "))
            }
        };
        return Some(format!(
            "SELECT {ORDER} FROM {source} {range}{condition}{of_status} ORDER BY seq LIMIT ?3"
        ));
    }
    // One index range per status, merged as they are read.
    let selects: Vec<_> = statuses
        .iter()
        .map(|status| {
            format!(
                "SELECT {ORDER} FROM orders INDEXED BY orders_by_status \
                 WHERE status = '{status}' AND {range}{condition}"
            )
        })
        .collect();
    Some(format!(
        "{} ORDER BY seq LIMIT ?3",
        selects.join(" UNION ALL ")
    ))
}

#[cfg(test)]
mod tests {
    use super::super::open;
    use super::*;

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
            let plan = plan(&db, &page_sql(&filter, is_down).unwrap());
            assert!(plan.contains(index), "{filter:?}: {plan}");
            assert!(!plan.contains("SCAN"), "{filter:?}: {plan}");
            assert!(!plan.contains("TEMP B-TREE"), "{filter:?}: {plan}");
        }
        let settled = Filter {
            statuses: vec![Status::Failed],
            attention: Some(Any),
        };
        assert_eq!(page_sql(&settled, true), None);
    }
}
