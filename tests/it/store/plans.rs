//! Generic plans of the statements that the engine prepares, on an empty and on a full database: no
//! sequential scan, no index read from end to end, and no hash or sort of rows that an index would
//! give in order.
//!
//! The statements are those that the server received during every kind of write and read, so none has to
//! be listed here. Limits are constants or parameters of the statements, so a generic plan
//! is the one plan that they have.

use std::collections::BTreeSet;

use futures_util::TryStreamExt;
use order_service::order::{ResolvedBy, Status, Timestamp};
use order_service::pace::UpstreamState;
use order_service::reconciler_state::ReconcilerState;
use order_service::store::{AttentionFilter, Cursor, Filter, Store};
use serde_json::Value;

use super::engines::EnginePair;
use super::{postgres, sqlite};
use crate::cluster::cluster;
use crate::environment::lead;

/// Tables that grow with the number of orders. All others have one row, or one for each process.
const GROWING: [&str; 2] = ["orders", "journal"];

/// Indexes of rows that need attention: few, however many orders there are.
const PARTIAL: [&str; 2] = ["orders_with_intent", "orders_with_attention"];

/// Steps of the random run that makes the server prepare the statements of writes.
const STEPS: usize = 300;

/// Statements in one call of psql, whose argument has a limit.
const EXPLAINED_AT_ONCE: usize = 50;

#[tokio::test]
async fn every_statement_has_one_plan_that_indexes_serve() {
    let database = cluster().database();
    let log = format!("ALTER DATABASE {database} SET log_statement = 'all'");
    assert!(cluster().psql(&database, &log).status.success());
    let (on_sqlite, on_postgres) = (sqlite::new_database(), postgres::new_database_in(&database));
    let mut engines = EnginePair::new(1, &on_sqlite, &on_postgres, &database).await;
    for _ in 0..STEPS {
        engines.step().await;
    }
    engines.compare_all().await;
    drop(engines);
    let (store, since) = (&on_postgres.store, Timestamp(1));
    let lead = lead(store).await;
    let detail = "no answer".to_owned();
    for upstream in [
        UpstreamState::Up { since },
        UpstreamState::Down { since, detail },
    ] {
        let heartbeat = ReconcilerState {
            upstream,
            ..ReconcilerState::default()
        };
        lead.write_heartbeat(heartbeat).await.unwrap();
        read_with_each_filter(store).await;
    }
    let sent = cluster().logged(&database);
    let settings = sent
        .iter()
        .find_map(|message| message.strip_prefix("statement: SET search_path"));
    let settings = format!("SET search_path{}", settings.unwrap());
    let prepared = sent.iter().filter_map(|message| {
        let (_, sql) = message.strip_prefix("execute ")?.split_once(": ")?;
        let is_planned = !matches!(sql, "BEGIN" | "COMMIT") && !sql.starts_with("NOTIFY");
        is_planned.then(|| sql.to_owned())
    });
    let statements: BTreeSet<_> = prepared.collect();
    let statements: Vec<_> = statements.into_iter().collect();
    for begin in ["UPDATE orders AS o", "WITH changed AS (UPDATE orders AS o"] {
        let updates = statements.iter().filter(|sql| sql.starts_with(begin));
        assert_eq!(
            updates.count(),
            12,
            "not every kind of change was made: {statements:#?}"
        );
    }
    let reset = format!("ALTER DATABASE {database} RESET log_statement");
    assert!(cluster().psql(&database, &reset).status.success());
    run(&database, "TRUNCATE orders, journal");
    let mut faults = bad_plans(&database, &settings, &statements, "empty");
    run(&database, FILL);
    assert!(cluster().psql(&database, "VACUUM ANALYZE").status.success());
    faults.extend(bad_plans(&database, &settings, &statements, "full"));
    assert!(faults.is_empty(), "{}", faults.join("\n\n"));
}

/// A hundred thousand orders: of each thousand, five are open, two of them with a start of unknown
/// outcome and one with attention.
const FILL: &str = "\
    INSERT INTO orders (seq, id, status, created_at, updated_at, starts, batch, confirmed_at, \
                        intent_at, attention, attention_since, attention_detail) \
    SELECT n, 'full-' || n, status, n, n, 1, 0, CASE WHEN status = 'PROCESSING' THEN n END, \
           CASE WHEN n % 1000 IN (2, 4) THEN n END, \
           CASE WHEN n % 1000 = 3 THEN 'process_lost' END, CASE WHEN n % 1000 = 3 THEN n END, \
           CASE WHEN n % 1000 = 3 THEN '' END \
    FROM (SELECT n, CASE WHEN n % 1000 IN (1, 2) THEN 'CREATED' \
                         WHEN n % 1000 IN (3, 4, 5) THEN 'PROCESSING' \
                         WHEN n % 2 = 0 THEN 'FULFILLED' ELSE 'FAILED' END AS status \
          FROM generate_series(1, 100000) AS n) AS orders; \
    INSERT INTO journal (seq, order_seq, at, reason) \
    SELECT n, (n + 2) / 3, n, CASE n % 3 WHEN 1 THEN 'created' WHEN 2 THEN 'started' ELSE 'failed' END \
    FROM generate_series(1, 300000) AS n";

fn run(database: &str, sql: &str) {
    let sql = format!("SET search_path = order_service; {sql}");
    let done = cluster().psql(database, &sql);
    assert!(done.status.success(), "{done:?}");
}

/// Reads a page with every filter.
async fn read_with_each_filter(store: &Store) {
    let attentions = [
        None,
        Some(AttentionFilter::Any),
        Some(AttentionFilter::By(ResolvedBy::Operator)),
        Some(AttentionFilter::By(ResolvedBy::Itself)),
        Some(AttentionFilter::Without),
    ];
    for attention in attentions {
        for set in 0..1 << Status::ALL.len() {
            let statuses = (0..).zip(Status::ALL).filter(|(at, _)| set >> at & 1 == 1);
            let filter = Filter {
                statuses: statuses.map(|(_, status)| status).collect(),
                attention,
            };
            let pages = store.pages(filter, Cursor::default(), 10);
            pages.try_collect::<Vec<_>>().await.unwrap();
        }
    }
}

/// Explains all statements, and returns those with a bad plan.
fn bad_plans(database: &str, settings: &str, statements: &[String], state: &str) -> Vec<String> {
    let mut faults = Vec::new();
    for some in statements.chunks(EXPLAINED_AT_ONCE) {
        for (sql, plan) in some.iter().zip(explain(database, settings, some)) {
            let mut found = BTreeSet::new();
            inspect(&plan, "", &mut found);
            if !found.is_empty() {
                faults.push(format!("{state}: {found:?}\n{sql}\n{}", shown(&plan)));
            }
        }
    }
    faults
}

/// Returns the generic plans of statements, as a session of the engine has them.
fn explain(database: &str, settings: &str, statements: &[String]) -> Vec<Value> {
    let mut script = settings.to_owned();
    for (number, sql) in statements.iter().enumerate() {
        let count = (1..)
            .take_while(|number| sql.contains(&format!("${number}")))
            .count();
        let values = match count {
            0 => String::new(),
            _ => format!("({})", vec!["NULL"; count].join(", ")),
        };
        script.push_str(&format!(
            "; PREPARE p{number} AS {sql}; EXPLAIN (FORMAT JSON) EXECUTE p{number}{values}"
        ));
    }
    let output = cluster().psql(database, &script);
    assert!(output.status.success(), "{output:?}");
    let plans = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Value>();
    let plans: Vec<_> = plans.map(|plan| plan.unwrap()[0]["Plan"].clone()).collect();
    assert_eq!(plans.len(), statements.len());
    plans
}

/// Returns a plan as lines of text.
fn shown(node: &Value) -> String {
    let mut line = text(node, "Node Type").to_owned();
    for member in [
        "Strategy",
        "Relation Name",
        "Index Name",
        "Index Cond",
        "Filter",
    ] {
        if !text(node, member).is_empty() {
            line.push_str(&format!(" {member}={}", text(node, member)));
        }
    }
    for child in children(node) {
        line.push_str(&format!("\n{}", shown(child)).replace('\n', "\n    "));
    }
    line
}

/// Adds the faults of a plan, whose parent is a node of this type.
fn inspect(node: &Value, parent: &str, faults: &mut BTreeSet<String>) {
    let kind = node["Node Type"].as_str().unwrap_or_default();
    let is_hashed = node["Strategy"] == "Hashed";
    if (matches!(kind, "Sort" | "Incremental Sort" | "Hash") || is_hashed) && reads_many(node) {
        faults.insert(kind.to_owned());
    }
    if kind == "Seq Scan" && reads_many(node) {
        faults.insert(format!("{kind} on {}", text(node, "Relation Name")));
    }
    let is_whole = kind.contains("Index") && node["Index Cond"].is_null() && parent != "Limit";
    if is_whole && reads_many(node) {
        faults.insert(format!("whole {}", text(node, "Index Name")));
    }
    for child in children(node) {
        inspect(child, kind, faults);
    }
}

/// Returns true if a part of a plan reads a growing table, other than by an index of few rows or by
/// given keys.
fn reads_many(node: &Value) -> bool {
    let is_scan = text(node, "Node Type").contains("Scan");
    let is_read = GROWING.contains(&text(node, "Relation Name"))
        && !PARTIAL.contains(&text(node, "Index Name"));
    let is_given = ["seq = ", "id = "].iter().any(|key| {
        let by_key = |value| text(node, "Index Cond").contains(&format!("{key}{value}"));
        by_key("$") || by_key("ANY ($") || by_key("journal.") || by_key("orders.")
    });
    is_scan && is_read && !is_given || children(node).any(reads_many)
}

fn children(node: &Value) -> impl Iterator<Item = &Value> {
    node["Plans"].as_array().into_iter().flatten()
}

fn text<'a>(node: &'a Value, member: &str) -> &'a str {
    node[member].as_str().unwrap_or_default()
}
