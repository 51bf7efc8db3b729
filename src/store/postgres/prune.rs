//! Pruning of orders that settled long ago, and the totals that are kept of them.

use super::error::Error;
use super::session::{Session, Steps};
use crate::journal_stats::JournalStats;
use crate::order::Status;
use crate::store::PruneCounts;
use crate::store::filter::prunable;
use crate::store::queue::Pending;
use crate::store::rows::{ADD_TO_PRUNED, Columns, ENTRY, entry_of, pruned_values};
use crate::store::write::Write;

const PRUNABLE: &str = concat!(
    "SELECT seq, status FROM orders WHERE ",
    prunable!("$1"),
    " AND seq = ANY ($2) ORDER BY seq FOR UPDATE"
);

const BASE: &str = "SELECT history FROM pruned WHERE id = 1 FOR UPDATE";

/// Carries out the prunes among these writes, and stores their replies.
pub(super) async fn prune(session: &Session, writes: &mut [Pending]) -> Result<(), Error> {
    for pending in writes {
        let Write::Prune {
            seqs,
            settled_before,
            now,
            reply,
        } = &mut pending.write
        else {
            continue;
        };
        let history: String = session.value(BASE, &[]).await?;
        let mut history: JournalStats = serde_json::from_str(&history).map_err(Error::value)?;
        let (mut removed, mut last_entry) = (PruneCounts::default(), 0);
        let mut own: Vec<i64> = Vec::new();
        for row in session.query(PRUNABLE, &[&settled_before.0, seqs]).await? {
            match row.status(1)? {
                Status::Fulfilled => removed.fulfilled += 1,
                Status::Failed => removed.failed += 1,
                Status::Created | Status::Processing => continue,
            }
            own.push(row.try_get(0)?);
        }
        let sql = format!(
            "SELECT {ENTRY} FROM journal WHERE order_seq = ANY ($1) ORDER BY order_seq, seq"
        );
        for row in session.query(&sql, &[&own]).await? {
            let entry = entry_of(&row)?;
            history.add(&entry, *now);
            removed.entries += 1;
            last_entry = last_entry.max(entry.seq);
        }
        history.drop_old_minutes(*now);
        let last_order = own.last().copied().unwrap_or(0);
        let values = pruned_values(removed, last_order, last_entry, &history);
        let values = values.map_err(Error::value)?.into_iter();
        let mut steps = Steps::default();
        for sql in [
            "DELETE FROM journal WHERE order_seq = ANY ($1)",
            "DELETE FROM orders WHERE seq = ANY ($1)",
        ] {
            steps.add(sql, vec![Box::new(own.clone())]);
        }
        steps.add(
            ADD_TO_PRUNED,
            values.map(|value| Box::new(value) as _).collect(),
        );
        session.pipeline(&steps).await?;
        reply.keep(removed);
    }
    Ok(())
}
