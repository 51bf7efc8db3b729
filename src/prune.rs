//! Prune: removes orders that settled long ago, in small batches, while other programs write.
//!
//! The store decides which orders may be removed, and what it keeps of them.

use std::fmt;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::order::{Rfc3339, Timestamp};
use crate::store::{PruneCounts, Store, StoreError};

/// Orders per transaction. One takes some tens of milliseconds, during which all other writers
/// wait.
pub const BATCH: usize = 1_000;

/// Pause after each batch. Other writers make progress without it too; with it, they are about as
/// fast as without a prune.
const PAUSE: Duration = Duration::from_millis(25);

/// Interval of progress reports.
const PROGRESS: Duration = Duration::from_secs(5);

/// Result of a prune.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pruning {
    /// Orders that settled before this time were removed.
    pub settled_before: Timestamp,
    /// Numbers of orders and journal entries removed, or that a dry run would remove.
    pub removed: PruneCounts,
    /// True if they were removed, false for a dry run.
    pub is_done: bool,
    /// Free bytes in the file, which SQLite reuses; `None` for a dry run, and as
    /// [`Store::checkpoint`] returns it.
    pub free_bytes: Option<u64>,
}

impl fmt::Display for Pruning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PruneCounts {
            fulfilled,
            failed,
            entries,
        } = self.removed;
        let name = match self.is_done {
            false => "to prune",
            true => "pruned",
        };
        let before = Rfc3339(self.settled_before);
        writeln!(f, "  {:<8} before {before}", "settled")?;
        writeln!(f, "  {name:<8} {fulfilled} FULFILLED, {failed} FAILED")?;
        writeln!(f, "  {:<8} {entries} entries of theirs", "journal")?;
        match self.free_bytes {
            None => Ok(()),
            Some(bytes) => writeln!(
                f,
                "  {:<8} {bytes} bytes in the file, for new orders",
                "free"
            ),
        }
    }
}

/// Returns the time `age` before `now`, or the earliest time if that would underflow.
pub fn ago(age: Duration, now: Timestamp) -> Timestamp {
    let age = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
    Timestamp(now.0.saturating_sub(age).max(0))
}

/// Removes all orders that settled before a time, batch by batch, until `stop` is cancelled. Adds
/// the counts to `removed`, and reports progress at intervals. Returns false if it was cancelled; each batch
/// is atomic.
pub async fn run(
    store: &Store,
    settled_before: Timestamp,
    stop: &CancellationToken,
    removed: &mut PruneCounts,
    mut on_progress: impl FnMut(&PruneCounts),
) -> Result<bool, StoreError> {
    let mut reported_at = Instant::now();
    let mut after = 0;
    loop {
        if stop.is_cancelled() {
            return Ok(false);
        }
        let now = store.clock().now();
        let Some((batch, last)) = store.prune(settled_before, after, BATCH, now).await? else {
            return Ok(true);
        };
        *removed += batch;
        after = last;
        if reported_at.elapsed() >= PROGRESS {
            reported_at = Instant::now();
            on_progress(removed);
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_beyond_1970_means_1970() {
        let now = Timestamp(10_000);
        assert_eq!(ago(Duration::from_secs(9), now), Timestamp(1_000));
        assert_eq!(ago(Duration::from_secs(11), now), Timestamp(0));
        assert_eq!(ago(Duration::MAX, now), Timestamp(0));
    }
}
