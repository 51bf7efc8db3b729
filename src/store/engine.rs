//! What the database engine is, and how its connections are set: for those who measure it.

use rusqlite::Connection;

/// What durability and speed depend on.
const PRAGMAS: [&str; 6] = [
    "journal_mode",
    "synchronous",
    "wal_autocheckpoint",
    "page_size",
    "cache_size",
    "mmap_size",
];

/// Names and values, as this connection has them.
pub(super) fn engine(db: &Connection) -> rusqlite::Result<Vec<(&'static str, String)>> {
    let mut pragmas = Vec::new();
    for pragma in PRAGMAS {
        let value: rusqlite::types::Value =
            db.pragma_query_value(None, pragma, |row| row.get(0))?;
        let value = match value {
            rusqlite::types::Value::Text(text) => text,
            rusqlite::types::Value::Integer(number) => number.to_string(),
            other => format!("{other:?}"),
        };
        pragmas.push(format!("{pragma} = {value}"));
    }
    Ok(vec![
        ("SQLite", rusqlite::version().to_owned()),
        ("pragmas", pragmas.join(", ")),
    ])
}
