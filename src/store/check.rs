//! The check of a database: the invariants of orders and their journal that the schema cannot
//! express, as queries that every engine runs. The checks of an engine's own are beside it.
//!
//! The queries go along an index, so a million orders take seconds and constant memory. Each finding
//! says what to do.

use std::borrow::Cow;

use super::filter::prunable;
use super::lines::{BoxError, Lines, fields};
use super::{DatabaseSummary, Finding, PruneCounts};
use crate::order::{OrderId, Status, Timestamp};

/// Findings of one kind that are reported one by one; beyond that only their number is. More lines
/// than a screen or two are not read.
const REPORTED_MAX: u64 = 50;

pub(super) const BY_HAND: &str = "no program of ours does this: compare the database with the upstream by \
                                  `order-service account`, and restore a backup if in doubt";

pub(super) const SCHEMA: &str = "someone has changed the schema by hand: give it the form that sql/ has, or \
                                 restore a backup";

/// Rules: names, and queries that return violations. Their columns are the order's id, or NULL, and a
/// description. Queries with `:first` and `:last` concern single orders, those with numbers in this
/// range; the others concern the database as a whole.
const RULES: [(&str, &str); 9] = [
    ("references", include_str!("../../sql/check_references.sql")),
    ("notes", include_str!("../../sql/check_orders.sql")),
    (
        "gaps in the journal",
        include_str!("../../sql/check_gaps.sql"),
    ),
    (
        "what was pruned",
        include_str!("../../sql/check_pruned.sql"),
    ),
    ("histories", include_str!("../../sql/check_histories.sql")),
    ("changes", include_str!("../../sql/check_changes.sql")),
    (
        "ends of the journal",
        include_str!("../../sql/check_ends.sql"),
    ),
    (
        "times and starts",
        include_str!("../../sql/check_times.sql"),
    ),
    ("heartbeat", include_str!("../../sql/check_heartbeat.sql")),
];

/// The ids of all orders: a single one that is invalid makes every list that contains it fail.
const IDS: &str = "SELECT id FROM orders WHERE seq BETWEEN :first AND :last";

/// A check in parts. A part that cannot be read is a finding, and ends only that part.
pub(super) struct Check<'a> {
    pub on_finding: &'a mut dyn FnMut(Finding),
    /// Action for the operator if the database cannot be read.
    pub unreadable: &'static str,
}

impl Check<'_> {
    /// Runs one part.
    pub fn part(
        &mut self,
        name: &str,
        to_do: &'static str,
        find: impl FnOnce(&mut Findings<'_>) -> Result<(), BoxError>,
    ) {
        let mut found = Findings {
            on_finding: self.on_finding,
            to_do,
            count: 0,
        };
        let result = find(&mut found);
        found.end();
        if let Err(error) = result {
            (self.on_finding)(Finding {
                order: None,
                what: format!("{name} cannot be checked: {error}"),
                to_do: self.unreadable,
            });
        }
    }

    /// Checks all orders, and the database as a whole.
    pub fn everything(&mut self, db: &dyn Lines) {
        self.orders(db, i64::MIN, i64::MAX);
        self.whole(db);
    }

    /// Checks the orders with numbers from `first` to `last`.
    pub fn orders(&mut self, db: &dyn Lines, first: i64, last: i64) {
        let within = |sql: &str| {
            let sql = sql.replace(":first", &first.to_string());
            sql.replace(":last", &last.to_string())
        };
        self.part("ids", BY_HAND, |found| {
            db.each(&within(IDS), &mut |line| {
                let id = text(line, 0).unwrap_or_default();
                if let Err(error) = OrderId::new(id.as_str()) {
                    found.add(Some(id), format!("its id {error}"));
                }
            })
        });
        for (name, sql) in RULES.iter().filter(|(_, sql)| sql.contains(":first")) {
            self.rule(db, name, BY_HAND, &within(sql));
        }
    }

    /// Checks what concerns no single order.
    pub fn whole(&mut self, db: &dyn Lines) {
        for (name, sql) in RULES.iter().filter(|(_, sql)| !sql.contains(":first")) {
            self.rule(db, name, BY_HAND, sql);
        }
    }

    /// Runs a part whose findings are the rows of a query: an order's id, or NULL, and a description.
    pub fn rule(&mut self, db: &dyn Lines, name: &str, to_do: &'static str, sql: &str) {
        self.part(name, to_do, |found| {
            db.each(sql, &mut |line| {
                found.add(text(line, 0), text(line, 1).unwrap_or_default());
            })
        });
    }
}

/// Findings of one part.
pub(super) struct Findings<'a> {
    on_finding: &'a mut dyn FnMut(Finding),
    to_do: &'static str,
    count: u64,
}

impl Findings<'_> {
    pub fn add(&mut self, order: Option<String>, what: String) {
        self.count += 1;
        if self.count <= REPORTED_MAX {
            let to_do = self.to_do;
            (self.on_finding)(Finding { order, what, to_do });
        }
    }

    /// Reports the number of findings beyond the limit.
    fn end(self) {
        if self.count > REPORTED_MAX {
            (self.on_finding)(Finding {
                order: None,
                what: format!("and {} more of this kind", self.count - REPORTED_MAX),
                to_do: self.to_do,
            });
        }
    }
}

/// Reads the number of orders and entries, by one statement and so as of one moment.
pub(super) fn summary(db: &dyn Lines) -> Result<DatabaseSummary, BoxError> {
    let count = |status| format!("(SELECT count(*) FROM orders WHERE status = '{status}')");
    let counts = Status::ALL.map(count).join(", ");
    let sql = format!(
        "SELECT fulfilled, failed, entries, (SELECT coalesce(max(seq), 0) FROM journal), {counts} \
         FROM pruned"
    );
    let numbers = numbers(db, &sql)?;
    Ok(DatabaseSummary {
        orders: Status::ALL
            .into_iter()
            .zip(numbers[4..].iter().copied())
            .collect(),
        newest_seq: numbers[3].cast_signed(),
        pruned: prune_counts(&numbers),
    })
}

/// Returns the number of orders and entries that settled before a time and would be pruned.
pub(super) fn prunable(db: &dyn Lines, settled_before: Timestamp) -> Result<PruneCounts, BoxError> {
    let sql = format!(
        concat!(
            "SELECT count(*) FILTER (WHERE status = 'FULFILLED'), \
             count(*) FILTER (WHERE status = 'FAILED'), \
             coalesce(sum((SELECT count(*) FROM journal WHERE order_seq = orders.seq)), 0) \
             FROM orders WHERE ",
            prunable!("{0}")
        ),
        settled_before.0
    );
    Ok(prune_counts(&numbers(db, &sql)?))
}

fn prune_counts(numbers: &[u64]) -> PruneCounts {
    PruneCounts {
        fulfilled: numbers[0],
        failed: numbers[1],
        entries: numbers[2],
    }
}

/// Reads one row of numbers.
fn numbers(db: &dyn Lines, sql: &str) -> Result<Vec<u64>, BoxError> {
    let mut numbers = None;
    db.each(sql, &mut |line| {
        let parsed = fields(line).map(|field| field?.parse().ok());
        numbers = parsed.collect::<Option<Vec<_>>>();
    })?;
    numbers.ok_or_else(|| format!("no row of numbers: {sql}").into())
}

/// Returns a field of a line.
fn text(line: &[u8], index: usize) -> Option<String> {
    fields(line).nth(index).flatten().map(Cow::into_owned)
}
