//! Pages of orders: which orders are on one, and through which index they are found.

use rusqlite::{Connection, params};

use super::rows::{ORDER, order_of, unreachable};
use crate::order::{Order, Status};

/// Which orders to read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Those with one of these statuses; nothing means any.
    pub statuses: Vec<Status>,
    /// Those that need looking at, or those that do not.
    pub attention: Option<bool>,
}

impl Filter {
    /// Whether settled orders can be among them, and so some that are removed one day. One that
    /// needs looking at is never settled.
    pub(super) fn takes_settled(&self) -> bool {
        let mut statuses = self.statuses.iter();
        self.attention != Some(true)
            && (self.statuses.is_empty() || statuses.any(|status| status.is_settled()))
    }
}

/// See [`Store::page`](super::Store::page).
pub(super) fn page(
    db: &Connection,
    filter: &Filter,
    after: i64,
    last: i64,
    limit: usize,
) -> rusqlite::Result<Vec<Order>> {
    let unreachable = unreachable(db)?;
    let Some(sql) = page_sql(filter, unreachable.is_some()) else {
        return Ok(Vec::new());
    };
    db.prepare_cached(&sql)?
        .query_map(params![after, last, limit as i64], |row| {
            order_of(row, unreachable.as_ref())
        })?
        .collect()
}

/// The query for a page; nothing if no order can be on it.
fn page_sql(filter: &Filter, upstream_is_down: bool) -> Option<String> {
    let mut statuses = if filter.statuses.is_empty() {
        Status::ALL.to_vec()
    } else {
        filter.statuses.clone()
    };
    statuses.sort_unstable();
    statuses.dedup();
    let mut source = "orders";
    let mut condition = "";
    match filter.attention {
        None => {}
        // While the upstream is down, every open order needs looking at, and no other.
        Some(attention) if upstream_is_down => {
            statuses.retain(|status| status.is_settled() != attention);
        }
        Some(true) => {
            source = "orders INDEXED BY orders_with_attention";
            condition = " AND attention IS NOT NULL";
        }
        Some(false) => condition = " AND attention IS NULL",
    }
    let range = "seq > ?1 AND seq <= ?2";
    if statuses.is_empty() {
        return None;
    }
    if statuses.len() == Status::ALL.len() || filter.attention == Some(true) && !upstream_is_down {
        let words: Vec<_> = statuses.iter().map(|s| format!("'{s}'")).collect();
        let of_status = if statuses.len() == Status::ALL.len() {
            String::new()
        } else {
            format!(" AND status IN ({})", words.join(", "))
        };
        return Some(format!(
            "SELECT {ORDER} FROM {source} WHERE {range}{condition}{of_status} ORDER BY seq LIMIT ?3"
        ));
    }
    // One range of the index for each status, merged as they are read.
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
        for (statuses, attention, is_down, index) in [
            (vec![], None, false, by_seq),
            (Status::ALL.to_vec(), None, false, by_seq),
            (vec![Status::Failed], None, false, by_status),
            (open.clone(), None, false, by_status),
            (vec![], Some(true), false, by_attention),
            (open.clone(), Some(true), false, by_attention),
            (vec![], Some(false), false, by_seq),
            (open, Some(false), false, by_status),
            (vec![], Some(true), true, by_status),
            (vec![], Some(false), true, by_status),
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
            attention: Some(true),
        };
        assert_eq!(page_sql(&settled, true), None);
    }
}
