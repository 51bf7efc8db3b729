//! Retention: orders that settled long ago are removed in small batches, beside programs that create
//! and settle others all the time.
//!
//! What may be removed, and what is remembered of it, is the store's business.

use std::fmt;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, SystemClock};
use crate::order::{Rfc3339, Timestamp};
use crate::store::{Removed, Store, StoreError};

/// Orders that are removed in one transaction: some tens of milliseconds of work, for which everyone
/// else who writes has to wait.
pub const BATCH: usize = 1_000;

/// How long others have the database to themselves after each batch. They also get their turn
/// without it; with it, they write about as fast as before.
const PAUSE: Duration = Duration::from_millis(25);

/// How often someone who watches is told how far it is.
const PROGRESS: Duration = Duration::from_secs(5);

/// How a removal ended.
#[derive(Debug)]
pub enum End {
    /// Nothing is left that may go.
    Done,
    /// It was asked to stop. Each batch was removed whole or not at all.
    BrokenOff,
    /// A batch could not be removed.
    Failed(StoreError),
}

/// What came of a removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pruning {
    /// What settled before was removed.
    pub settled_before: Timestamp,
    /// How much was removed, or would be.
    pub removed: Removed,
    /// Bytes in the file that are free for what is to come; nothing if all is still there.
    pub free_bytes: Option<u64>,
}

impl fmt::Display for Pruning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Removed {
            fulfilled,
            failed,
            entries,
        } = self.removed;
        let name = match self.free_bytes {
            None => "to prune",
            Some(_) => "pruned",
        };
        let before = Rfc3339(self.settled_before);
        writeln!(f, "  {:<8} before {before}", "settled")?;
        writeln!(f, "  {name:<8} {fulfilled} FULFILLED, {failed} FAILED")?;
        writeln!(f, "  {:<8} {entries} entries of theirs", "journal")?;
        match self.free_bytes {
            None => Ok(()),
            Some(bytes) => writeln!(
                f,
                "  {:<8} {bytes} bytes in the file, for what is to come",
                "free"
            ),
        }
    }
}

/// The moment that was `age` ago; the beginning of time, if that was later.
pub fn ago(age: Duration, now: Timestamp) -> Timestamp {
    let age = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
    Timestamp(now.0.saturating_sub(age).max(0))
}

/// Removes all orders that settled before a moment, batch by batch, until `stop`. Adds what was
/// removed to `removed`, and has it told now and then.
pub async fn run(
    store: &Store,
    settled_before: Timestamp,
    stop: &CancellationToken,
    removed: &mut Removed,
    mut tell: impl FnMut(&Removed),
) -> End {
    let mut told_at = Instant::now();
    let mut after = 0;
    loop {
        if stop.is_cancelled() {
            return End::BrokenOff;
        }
        let seqs = match store.next_prunable(settled_before, after, BATCH).await {
            Ok(seqs) => seqs,
            Err(error) => return End::Failed(error),
        };
        let Some(last) = seqs.last() else {
            return End::Done;
        };
        after = *last;
        match store.prune(seqs, settled_before, SystemClock.now()).await {
            Ok(batch) => *removed += batch,
            Err(error) => return End::Failed(error),
        }
        if told_at.elapsed() >= PROGRESS {
            told_at = Instant::now();
            tell(removed);
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
    fn an_age_beyond_the_beginning_of_time_reaches_back_to_it() {
        let now = Timestamp(10_000);
        assert_eq!(ago(Duration::from_secs(9), now), Timestamp(1_000));
        assert_eq!(ago(Duration::from_secs(11), now), Timestamp(0));
        assert_eq!(ago(Duration::MAX, now), Timestamp(0));
    }
}
