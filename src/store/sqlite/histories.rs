//! Histories of a database and the extents of its sequences: the input of the rules in
//! `store/cursor.rs`. A database begins a new history whenever it is opened in a different file.

use rusqlite::{Connection, OptionalExtension};

use crate::store::cursor::{Extent, Histories, History, Sequence};

/// Reads the extent of a sequence.
pub(super) fn extent(db: &Connection, sequence: Sequence) -> rusqlite::Result<Extent> {
    let sql = match sequence {
        Sequence::Orders => {
            "SELECT (SELECT coalesce(max(seq), 0) FROM orders), last_order_seq, entries FROM pruned"
        }
        Sequence::Journal => {
            "SELECT (SELECT coalesce(max(seq), 0) FROM journal), last_entry_seq, entries FROM pruned"
        }
    };
    db.prepare_cached(sql)?.query_row([], |row| {
        Ok(Extent {
            sequence,
            newest: row.get(0)?,
            last_pruned: row.get(1)?,
            pruned: row.get(2)?,
        })
    })
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
    db.prepare("SELECT id, newest_order, newest_entry, pruned FROM histories ORDER BY number")?
        .query_map([], |row| {
            Ok(History {
                id: row.get(0)?,
                newest: [row.get(1)?, row.get(2)?],
                pruned: row.get(3)?,
            })
        })?
        .collect::<rusqlite::Result<_>>()
        .map(Histories::new)
}
