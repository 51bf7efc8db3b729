//! Folds the write-ahead log back into the database, for the most part beside the writer.
//!
//! SQLite would do so itself in the middle of a commit, in small portions that write the same pages
//! again and again, and never to the end while readers overlap. Here a thread of its own copies
//! most of the log while commits go on; the writer copies what has come meanwhile and empties it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use rusqlite::Connection;

use super::open::{OpenError, OpenedFile, writing_connection};

/// The log is folded back beside the writer when it has grown to this many bytes. Larger ones save
/// writing: pages that change often are copied once.
const BESIDE_FROM: u64 = 16 * 1024 * 1024;

/// The writer folds it back itself at this size, which is reached only if the thread beside it
/// cannot keep up.
const BYTES_MAX: u64 = 48 * 1024 * 1024;

/// What the writer may be left to copy, in bytes: some milliseconds' work.
const LEFT_MAX: u64 = 2 * 1024 * 1024;

/// How often the thread beside tries to leave less than that.
const ROUNDS_MAX: usize = 4;

/// How long the writer may wait for readers. They are in the middle of a page.
const READERS_WAIT: Duration = Duration::from_millis(50);

/// When the log is folded back, and by whom.
pub(super) struct Fold {
    log: PathBuf,
    /// Whether the writer is to empty the log after the next write, however small it is.
    next: Arc<AtomicBool>,
    beside: Option<SyncSender<()>>,
    /// The size at which the thread beside is asked, and the size at which the writer does it all.
    beside_at: u64,
    at: u64,
}

impl Fold {
    /// Everything is left to the writer, until there is a thread beside it.
    pub fn new(file: &OpenedFile) -> Self {
        Self {
            log: file.beside("-wal"),
            next: Arc::default(),
            beside: None,
            beside_at: BESIDE_FROM,
            at: BYTES_MAX,
        }
    }

    /// Setting this has the log emptied after the next write.
    pub fn next(&self) -> Arc<AtomicBool> {
        self.next.clone()
    }

    /// Starts the thread that does most of the work. It ends with this.
    pub fn start_beside(&mut self, file: &OpenedFile) -> Result<(), OpenError> {
        let db = writing_connection(file)?;
        let (ask, asked) = sync_channel(1);
        let (log, next) = (self.log.clone(), self.next.clone());
        std::thread::Builder::new()
            .name("fold".to_owned())
            .spawn(move || fold_beside(&db, &log, &next, &asked))
            .map_err(|error| file.error(error))?;
        self.beside = Some(ask);
        Ok(())
    }

    /// Does what the size of the log asks for. No transaction is open on `db`, and no one else
    /// writes.
    pub fn after_commit(&mut self, db: &Connection) {
        let bytes = size(&self.log);
        if self.next.swap(false, Ordering::AcqRel) || bytes >= self.at {
            self.empty(db, bytes);
        } else if bytes >= self.beside_at
            && let Some(beside) = &self.beside
        {
            // Once: what comes of it is that `next` is set. A full channel is being seen to.
            let _ = beside.try_send(());
            self.beside_at = u64::MAX;
        }
    }

    /// Copies what is left in the log and empties it. While someone else's long read prevents
    /// that, it is tried only as often as the log has grown as much again.
    fn empty(&mut self, db: &Connection, bytes: u64) {
        let emptied = db
            .busy_timeout(READERS_WAIT)
            .and_then(|()| checkpoint(db, "PRAGMA wal_checkpoint(TRUNCATE)"));
        let grown = if emptied == Ok(0) { 0 } else { bytes };
        self.beside_at = BESIDE_FROM + grown;
        self.at = BYTES_MAX + grown;
        log::debug!("emptying a write-ahead log of {bytes} bytes: {emptied:?}");
    }
}

/// Copies what is in the log whenever it is asked to, and has the writer empty it.
fn fold_beside(db: &Connection, log: &Path, next: &AtomicBool, asked: &Receiver<()>) {
    while asked.recv().is_ok() {
        for _ in 0..ROUNDS_MAX {
            let before = size(log);
            let copied = checkpoint(db, "PRAGMA wal_checkpoint(PASSIVE)");
            if copied != Ok(0) || size(log).saturating_sub(before) <= LEFT_MAX {
                break;
            }
        }
        next.store(true, Ordering::Release);
    }
}

/// Whether something prevented a checkpoint: 0 or 1.
fn checkpoint(db: &Connection, pragma: &str) -> rusqlite::Result<i64> {
    db.query_row(pragma, [], |row| row.get(0))
}

fn size(log: &Path) -> u64 {
    std::fs::metadata(log).map_or(0, |meta| meta.len())
}

#[cfg(test)]
mod tests {
    use super::super::{DatabasePath, Mode, Store};
    use super::*;

    /// What one commit puts into the log, in bytes, at the least.
    const WRITTEN: i64 = 1024 * 1024;

    async fn write(store: &Store) {
        store
            .inner
            .writer
            .write(|db| {
                db.execute_batch("CREATE TABLE IF NOT EXISTS much (what BLOB)")?;
                db.execute("INSERT INTO much VALUES (zeroblob(?1))", [WRITTEN])
            })
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn the_log_is_emptied_while_commits_go_on_and_later_when_someone_reads_for_long() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("orders.db");
        let store = Store::open(&DatabasePath::from(path.clone()), Mode::Threaded).unwrap();
        let log = folder.path().join("orders.db-wal");
        let reach_empty = async || {
            let mut largest = 0;
            while size(&log) >= largest {
                largest = size(&log);
                assert!(largest <= 3 * BYTES_MAX, "it is never emptied");
                write(&store).await;
            }
            largest
        };
        let largest = reach_empty().await;
        assert!((BESIDE_FROM..=BYTES_MAX).contains(&largest), "{largest}");

        let reader = Connection::open(&path).unwrap();
        reader
            .execute_batch("BEGIN; SELECT max(rowid) FROM much")
            .unwrap();
        while size(&log) <= BYTES_MAX {
            write(&store).await;
        }
        reader.execute_batch("COMMIT").unwrap();
        reach_empty().await;
    }
}
