//! Orders that a batch prunes, and the totals that are kept of them.

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

/// Orders that a batch prunes, and the totals that are kept of them.
#[derive(Default)]
pub(super) struct PruneBatch {
    history: Option<JournalStats>,
    seqs: Vec<i64>,
    last_entry: i64,
    /// Reply to each prune.
    counts: Vec<PruneCounts>,
}

impl PruneBatch {
    /// Locks the orders to prune, and adds them up.
    pub async fn read(session: &Session, writes: &[Pending]) -> Result<Self, Error> {
        let mut prunes = Self::default();
        for pending in writes {
            let Write::Prune {
                seqs,
                settled_before,
                now,
                ..
            } = &pending.write
            else {
                continue;
            };
            let mut history = match prunes.history.take() {
                Some(history) => history,
                None => {
                    let history: String = session.value(BASE, &[]).await?;
                    serde_json::from_str(&history).map_err(Error::value)?
                }
            };
            let mut counts = PruneCounts::default();
            let mut own = Vec::new();
            for row in session.query(PRUNABLE, &[&settled_before.0, seqs]).await? {
                let seq: i64 = row.try_get(0)?;
                // An earlier write of this batch removes it.
                if prunes.seqs.contains(&seq) {
                    continue;
                }
                match row.status(1)? {
                    Status::Fulfilled => counts.fulfilled += 1,
                    Status::Failed => counts.failed += 1,
                    Status::Created | Status::Processing => continue,
                }
                own.push(seq);
            }
            let sql = format!(
                "SELECT {ENTRY} FROM journal WHERE order_seq = ANY ($1) ORDER BY order_seq, seq"
            );
            for row in session.query(&sql, &[&own]).await? {
                let entry = entry_of(&row)?;
                history.add(&entry, *now);
                counts.entries += 1;
                prunes.last_entry = prunes.last_entry.max(entry.seq);
            }
            history.drop_old_minutes(*now);
            prunes.history = Some(history);
            prunes.seqs.extend(own);
            prunes.counts.push(counts);
        }
        Ok(prunes)
    }

    pub fn add(&self, steps: &mut Steps) -> Result<(), Error> {
        let Some(history) = &self.history else {
            return Ok(());
        };
        let mut all = PruneCounts::default();
        for counts in &self.counts {
            all += *counts;
        }
        let last_order = self.seqs.iter().copied().max().unwrap_or(0);
        let values = pruned_values(all, last_order, self.last_entry, history);
        let values = values.map_err(Error::value)?;
        steps.add(
            "DELETE FROM journal WHERE order_seq = ANY ($1)",
            vec![Box::new(self.seqs.clone())],
        );
        steps.add(
            "DELETE FROM orders WHERE seq = ANY ($1)",
            vec![Box::new(self.seqs.clone())],
        );
        let values = values.into_iter().map(|value| Box::new(value) as _);
        steps.add(ADD_TO_PRUNED, values.collect());
        Ok(())
    }

    pub fn keep(&self, writes: &mut [Pending]) {
        let prunes = writes
            .iter_mut()
            .filter_map(|pending| match &mut pending.write {
                Write::Prune { reply, .. } => Some(reply),
                _ => None,
            });
        for (reply, counts) in prunes.zip(&self.counts) {
            reply.keep(*counts);
        }
    }
}
