//! Histories of a database and the extents of its sequences: the input of the rules in
//! `store/cursor.rs`. A database begins a new history whenever it is opened in a different file.

use rusqlite::{Connection, OptionalExtension};

use crate::store::cursor::{Extent, Histories, Sequence};
use crate::store::rows::{HISTORIES, extent_of, extent_query, history_of};

/// Reads the extent of a sequence.
pub(super) fn extent(db: &Connection, sequence: Sequence) -> rusqlite::Result<Extent> {
    db.prepare_cached(extent_query(sequence))?
        .query_row([], |row| extent_of(row, sequence))
}

/// Returns the histories, after beginning a new one if `file` differs from that of the last.
pub(super) fn histories(db: &Connection, file: &str) -> rusqlite::Result<Histories> {
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
    db.prepare(HISTORIES)?
        .query_map([], |row| history_of(row))?
        .collect::<rusqlite::Result<_>>()
        .map(Histories::new)
}
