//! The journal, to which entries are appended.
//!
//! Events are numbered without gaps in commit order: each number is the greatest so far plus one,
//! assigned inside a write transaction, and these never overlap. A reader that has seen all events
//! up to a cursor misses none by resuming from it, or gets an error (`store/cursor.rs`).

use rusqlite::{Connection, params};

use crate::order::{EventReason, Timestamp};

/// Inserts a journal entry.
pub(super) const INSERT_ENTRY: &str =
    "INSERT INTO journal (order_seq, at, reason) VALUES (?1, ?2, ?3)";

/// Appends to the journal.
pub(super) fn journal(
    db: &Connection,
    order_seq: i64,
    reason: EventReason,
    now: Timestamp,
) -> rusqlite::Result<()> {
    db.prepare_cached(INSERT_ENTRY)?
        .execute(params![order_seq, now.0, reason.as_str()])
        .map(drop)
}
