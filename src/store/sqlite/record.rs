//! Creation of orders and recording of the reconciler's changes, each with its journal entry in the same
//! transaction. The UPDATEs are in `store/update.rs`.

use rusqlite::types::Null;
use rusqlite::{Connection, ToSql, params};

use super::orders::find;
use crate::order::{EventReason, Order, OrderId, Status, Timestamp};
use crate::store::{Creation, OrderChange, Recorded, Transition};

/// Creates an order, unless the id exists.
const INSERT_ORDER: &str = "INSERT INTO orders (id, status, created_at, updated_at) \
                            VALUES (?1, 'CREATED', ?2, ?2) ON CONFLICT (id) DO NOTHING";

pub(super) fn create(db: &Connection, id: &OrderId, now: Timestamp) -> rusqlite::Result<Creation> {
    let created = db
        .prepare_cached(INSERT_ORDER)?
        .execute(params![id.as_str(), now.0])?;
    if created == 0 {
        let found = find(db, id)?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
        return Ok(Creation::Exists(found.order));
    }
    let seq = db.last_insert_rowid();
    journal(db, seq, EventReason::Created, now)?;
    Ok(Creation::Created(Order {
        seq,
        id: id.clone(),
        status: Status::Created,
        created_at: now,
        updated_at: now,
        starts: 0,
        // Attention that concerns all open orders is added by the next read.
        attention: None,
    }))
}

/// Writes a row that is never read.
pub(super) fn probe(db: &Connection, now: Timestamp) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT OR REPLACE INTO write_probe (id, at) VALUES (1, ?1)")?
        .execute([now.0])
        .map(drop)
}

pub(super) fn record(
    db: &Connection,
    changes: &[OrderChange],
    now: Timestamp,
) -> rusqlite::Result<Recorded> {
    let mut recorded = Recorded::default();
    for OrderChange { seq, step } in changes {
        if !change(db, *seq, step, now)? {
            recorded.conflicts.push(*seq);
            continue;
        }
        recorded.changed += 1;
        if let Some(reason) = step.event_reason() {
            journal(db, *seq, reason, now)?;
        }
    }
    Ok(recorded)
}

/// Makes a transition. Returns true if it changed its order.
fn change(db: &Connection, seq: i64, step: &Transition, now: Timestamp) -> rusqlite::Result<bool> {
    let values = step.values(now);
    let mut update = db.prepare_cached(step.update().sql)?;
    for index in 1..=update.parameter_count() {
        let value: &dyn ToSql = match update.parameter_name(index) {
            Some(":seq") => &seq,
            Some(":at") => &values.at,
            Some(":moment") => &values.moment,
            Some(":difference") => &values.difference,
            Some(":answer") => &values.answer,
            Some(":is_observed") => &values.is_observed,
            Some(":word") => &values.word,
            Some(":detail") => &values.detail,
            Some(":next") => &values.next,
            _ => &Null,
        };
        update.raw_bind_parameter(index, value)?;
    }
    Ok(update.raw_execute()? > 0)
}

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

#[cfg(test)]
mod tests {
    use super::super::open;
    use super::*;

    #[test]
    fn no_condition_of_the_schema_has_a_table_built_to_check_it() {
        let db = open::empty().unwrap();
        for sql in [
            INSERT_ORDER,
            INSERT_ENTRY,
            "UPDATE orders SET status = 'FAILED', attention = NULL WHERE seq = 1",
        ] {
            let mut query = db.prepare(&format!("EXPLAIN {sql}")).unwrap();
            let given = vec![0; query.parameter_count()];
            let steps = query
                .query_map(rusqlite::params_from_iter(given), |row| {
                    row.get::<_, String>(1)
                })
                .unwrap();
            let steps: Vec<_> = steps.collect::<Result<_, _>>().unwrap();
            assert!(!steps.is_empty());
            assert!(!steps.contains(&"OpenEphemeral".to_owned()), "{sql}");
        }
    }
}
