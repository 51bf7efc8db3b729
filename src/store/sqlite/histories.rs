//! Histories of a database, by the rules in `store/cursor.rs`: it begins a new one whenever it is opened in a
//! different file.

use rusqlite::{Connection, OptionalExtension};

/// Begins a new history if `file` differs from that of the last.
pub(super) fn begin_history(db: &Connection, file: &str) -> rusqlite::Result<()> {
    let begun = db
        .query_row(
            "INSERT INTO histories (file, newest_order, newest_entry, pruned) \
             SELECT ?1, (SELECT coalesce(max(seq), 0) FROM orders), \
                    (SELECT coalesce(max(seq), 0) FROM journal), entries FROM pruned \
             WHERE ?1 IS NOT (SELECT file FROM histories ORDER BY number DESC LIMIT 1) \
             RETURNING id, newest_entry",
            [file],
            |row| Ok((row.get::<_, u32>(0)?, row.get::<_, i64>(1)?)),
        )
        .optional()?;
    if let Some((id, entry @ 1..)) = begun {
        log::warn!(
            "the database is in another file than before: began history={id} after entry={entry}"
        );
    }
    Ok(())
}
