//! The checks that are SQLite's own: its pages, and its schema. The rules that all engines share are in
//! `store/check.rs`.

use rusqlite::Connection;

use super::open;
use super::open_error::DAMAGED;
use crate::store::Finding;
use crate::store::check::{Check, Findings, SCHEMA};
use crate::store::lines::BoxError;

/// Query for the findings of SQLite: damaged pages, indexes that do not match their tables, rows that
/// violate the schema.
const PAGES: &str = "SELECT NULL, replace(integrity_check, char(10), ' ') FROM pragma_integrity_check \
                     WHERE integrity_check <> 'ok'";

/// Runs all checks.
pub(super) fn check(db: &Connection, on_finding: &mut dyn FnMut(Finding)) {
    let mut check = Check {
        on_finding,
        unreadable: DAMAGED,
    };
    check.part("schema", SCHEMA, |found| schema(db, found));
    check.rule(db, "pages", DAMAGED, PAGES);
    check.everything(db);
}

/// Reports tables and indexes that differ from those of the migrations up to the file's format. A query
/// that names a missing index fails.
fn schema(db: &Connection, found: &mut Findings<'_>) -> Result<(), BoxError> {
    // SQLite's own objects have no SQL text.
    const SCHEMA_OF: &str =
        "SELECT type || ' ' || name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name";
    let read = |db: &Connection| -> rusqlite::Result<Vec<(String, String)>> {
        let mut query = db.prepare(SCHEMA_OF)?;
        let schema = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        schema.collect()
    };
    // Another program may be migrating the file.
    let snapshot = db.unchecked_transaction()?;
    let wanted = read(&open::empty(open::format(&snapshot)?)?)?;
    let present = read(&snapshot)?;
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
