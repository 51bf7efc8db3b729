//! The consistency check of a database: SQLite's own, and the invariants of orders and their
//! journal that the schema cannot express.
//!
//! The rules are SQL queries along an index, so a million orders take seconds and constant memory.
//! Each finding says what to do.

use rusqlite::{Connection, Row};

use super::open;
use crate::order::OrderId;
use crate::store::Finding;

/// Findings of one kind that are reported one by one; beyond that only their number is. More lines
/// than a screen or two are not read.
const TOLD_MAX: u64 = 50;

const DAMAGED: &str = "the file is damaged: stop the programs, keep a copy of it and its -wal, and \
                       restore the newest backup; then look after the disk";

const BY_HAND: &str = "no program of ours does this: hold the database against the upstream with \
                       `order-service account`, and restore a backup if in doubt";

const SCHEMA: &str = "someone has changed the schema by hand: give it the form that sql/ has, or \
                      restore a backup";

/// Rules beyond the schema: names, and queries that return violations. Their columns are the
/// order's id, or NULL, and a description.
const RULES: [(&str, &str); 8] = [
    ("notes", include_str!("../../../sql/check_orders.sql")),
    (
        "gaps in the journal",
        include_str!("../../../sql/check_gaps.sql"),
    ),
    (
        "what was pruned",
        include_str!("../../../sql/check_pruned.sql"),
    ),
    (
        "histories",
        include_str!("../../../sql/check_histories.sql"),
    ),
    ("changes", include_str!("../../../sql/check_changes.sql")),
    (
        "ends of the journal",
        include_str!("../../../sql/check_ends.sql"),
    ),
    (
        "times and starts",
        include_str!("../../../sql/check_times.sql"),
    ),
    (
        "heartbeat",
        include_str!("../../../sql/check_heartbeat.sql"),
    ),
];

/// Runs all checks. A part that cannot be read is a finding, and ends only its own check.
pub(super) fn check(db: &Connection, tell: &mut dyn FnMut(Finding)) {
    let mut part = |name: &str, to_do, find: &dyn Fn(&mut Found<'_>) -> rusqlite::Result<()>| {
        let mut found = Found {
            tell,
            to_do,
            count: 0,
        };
        let result = find(&mut found);
        found.end();
        if let Err(error) = result {
            tell(Finding {
                order: None,
                what: format!("{name} cannot be checked: {error}"),
                to_do: DAMAGED,
            });
        }
    };
    part("schema", SCHEMA, &|found| schema(db, found));
    part("pages", DAMAGED, &|found| pages(db, found));
    part("references", BY_HAND, &|found| references(db, found));
    part("ids", BY_HAND, &|found| ids(db, found));
    for (name, sql) in RULES {
        part(name, BY_HAND, &|found| {
            each(db, sql, |row| {
                found.add(row.get(0)?, row.get(1)?);
                Ok(())
            })
        });
    }
}

/// Findings of one check.
struct Found<'a> {
    tell: &'a mut dyn FnMut(Finding),
    to_do: &'static str,
    count: u64,
}

impl Found<'_> {
    fn add(&mut self, order: Option<String>, what: String) {
        self.count += 1;
        if self.count <= TOLD_MAX {
            let to_do = self.to_do;
            (self.tell)(Finding { order, what, to_do });
        }
    }

    /// Reports the number of findings beyond the limit.
    fn end(self) {
        if self.count > TOLD_MAX {
            (self.tell)(Finding {
                order: None,
                what: format!("and {} more of this kind", self.count - TOLD_MAX),
                to_do: self.to_do,
            });
        }
    }
}

fn each(
    db: &Connection,
    sql: &str,
    mut row: impl FnMut(&Row<'_>) -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    let mut query = db.prepare(sql)?;
    let mut rows = query.query([])?;
    while let Some(next) = rows.next()? {
        row(next)?;
    }
    Ok(())
}

/// Reports tables and indexes that differ from those of the migrations. A query that names a
/// missing index fails.
fn schema(db: &Connection, found: &mut Found<'_>) -> rusqlite::Result<()> {
    // SQLite's own objects have no SQL text.
    const SCHEMA_OF: &str =
        "SELECT type || ' ' || name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name";
    let read = |db: &Connection| -> rusqlite::Result<Vec<(String, String)>> {
        let mut schema = Vec::new();
        each(db, SCHEMA_OF, |row| {
            schema.push((row.get(0)?, row.get(1)?));
            Ok(())
        })?;
        Ok(schema)
    };
    let wanted = read(&open::empty()?)?;
    let present = read(db)?;
    for (name, sql) in &wanted {
        match present.iter().find(|(other, _)| other == name) {
            None => found.add(None, format!("the {name} is missing")),
            Some((_, other)) if other != sql => {
                found.add(None, format!("the {name} is not as it was made"));
            }
            Some(_) => {}
        }
    }
    for (name, _) in &present {
        // Tables of ANALYZE, such as sqlite_stat1, are harmless.
        let is_known = wanted.iter().any(|(other, _)| other == name);
        if name.starts_with("trigger ") && !is_known {
            found.add(
                None,
                format!("the {name} is not ours and may change orders"),
            );
        }
    }
    Ok(())
}

/// Reports the findings of SQLite: damaged pages, indexes that do not match their tables, rows that
/// violate the schema.
fn pages(db: &Connection, found: &mut Found<'_>) -> rusqlite::Result<()> {
    each(db, "PRAGMA integrity_check", |row| {
        let what: String = row.get(0)?;
        if what != "ok" {
            found.add(None, what.replace('\n', " "));
        }
        Ok(())
    })
}

/// Reports rows that refer to missing rows.
fn references(db: &Connection, found: &mut Found<'_>) -> rusqlite::Result<()> {
    each(db, "PRAGMA foreign_key_check", |row| {
        let (table, number, parent): (String, i64, String) =
            (row.get(0)?, row.get(1)?, row.get(2)?);
        found.add(
            None,
            format!("row {number} of {table} belongs to a row of {parent} that is not there"),
        );
        Ok(())
    })
}

/// Reports invalid ids. A single one makes every list that contains it fail.
fn ids(db: &Connection, found: &mut Found<'_>) -> rusqlite::Result<()> {
    each(db, "SELECT id FROM orders", |row| {
        let id: String = row.get(0)?;
        if let Err(error) = OrderId::new(id.as_str()) {
            found.add(Some(id), format!("its id {error}"));
        }
        Ok(())
    })
}
