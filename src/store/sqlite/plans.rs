//! Tests of the plans of queries: rows are found through an index, and never sorted.

use rusqlite::{Connection, params_from_iter};

use super::open;
use crate::order::{ResolvedBy, Status};
use crate::store::AttentionFilter::{Any, By, Without};
use crate::store::filter::PageRows;
use crate::store::queries::{ATTENTION, NEXT_PRUNABLE, events_sql, page_sql};
use crate::store::{Filter, prune};

/// Returns the plan of a query on an empty database, which must not sort rows.
fn plan(sql: &str) -> String {
    let db = open::empty(open::FORMAT).unwrap();
    let mut query = db.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
    let values = vec![0; query.parameter_count()];
    let lines = query
        .query_map(params_from_iter(values), |row| row.get::<_, String>(3))
        .unwrap();
    let plan = lines.collect::<Result<Vec<_>, _>>().unwrap().join("; ");
    assert!(!plan.contains("TEMP B-TREE"), "{sql}: {plan}");
    plan
}

#[test]
fn a_page_is_found_through_an_index_and_never_sorted() {
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
        let plan = plan(&page_sql::<Connection>(&rows));
        assert!(plan.contains(index), "{filter:?}: {plan}");
        assert!(!plan.contains("SCAN"), "{filter:?}: {plan}");
    }
    let settled = Filter {
        statuses: vec![Status::Failed],
        attention: Some(Any),
    };
    assert!(PageRows::new(&settled, true).is_none());
}

#[test]
fn events_are_found_through_an_index_and_never_sorted() {
    for (of_one_order, index) in [
        (false, "journal USING INTEGER PRIMARY KEY (rowid>?)"),
        (true, "journal_by_order (order_seq=? AND seq>?)"),
    ] {
        let plan = plan(&events_sql(of_one_order));
        assert!(plan.contains(index), "{plan}");
        assert!(!plan.contains("SCAN"), "{plan}");
    }
}

#[test]
fn orders_to_remove_are_found_in_their_order_and_never_sorted() {
    let plan = plan(NEXT_PRUNABLE);
    let by_seq = "orders USING INTEGER PRIMARY KEY (rowid>?";
    assert!(plan.contains(by_seq), "{plan}");
}

#[test]
fn orders_to_remove_and_their_entries_are_found_by_number_and_never_sorted() {
    for (sql, index) in [
        (
            prune::settled_sql::<Connection>(),
            "orders USING INTEGER PRIMARY KEY (rowid=?)",
        ),
        (
            prune::entries_sql::<Connection>(),
            "journal USING INDEX journal_by_order (order_seq=?)",
        ),
    ] {
        let plan = plan(&sql);
        assert!(plan.contains(index), "{plan}");
    }
}

#[test]
fn orders_are_counted_by_reason_without_reading_each() {
    let db = open::empty(open::FORMAT).unwrap();
    let mut plan = db
        .prepare(&format!("EXPLAIN QUERY PLAN {ATTENTION}"))
        .unwrap();
    let first: String = plan.query_row([], |row| row.get(3)).unwrap();
    assert!(first.contains("COVERING INDEX"), "{first}");
}
