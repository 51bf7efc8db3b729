//! Checkpoints of the write-ahead log, mostly in the background.
//!
//! SQLite's automatic checkpoints run in the middle of a commit, in small portions that write the
//! same pages repeatedly, and never finish while readers overlap. Here a separate thread copies
//! most of the log while commits continue; the writer copies the remaining frames once they are
//! few, and restarts the log. The log file keeps its size, because a disk flushes overwritten
//! blocks in half the time of appended ones.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::Connection;

use super::file::OpenedFile;
use super::open::writing_connection;
use crate::store::OpenError;

/// Frames in the log from which a checkpoint runs in the background, some 28 MB. A larger value
/// saves writes, since pages that change often are copied once.
const BACKGROUND_FROM: i64 = 7_000;

/// Frames in the log from which the writer checkpoints it alone, some 48 MB: reached only if the
/// background thread cannot keep up, or behind a long read.
const FRAMES_MAX: i64 = 12_000;

/// Maximum size of the log file after a restart of the log, in bytes: a little more than its
/// largest usual size.
const LOG_BYTES_MAX: i64 = 5_000 * FRAMES_MAX;

/// Maximum number of frames that the writer copies itself: some milliseconds of work.
const LEFT_MAX: i64 = 500;

/// Growth of the log, in frames, after which the writer tries again while readers block the
/// checkpoint.
const RETRY_AFTER: i64 = 1_000;

/// Maximum wait of the writer for readers, which are in the middle of a page.
const READERS_TIMEOUT: Duration = Duration::from_millis(50);

/// Interval at which the background thread checks that the files have not moved, and that the database
/// may still be used: a removed log is then checkpointed before the program may crash, and a program
/// whose orders have moved exits, even if nothing is written.
const FILE_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Copies as many frames as possible without waiting.
const COPY: &str = "PRAGMA wal_checkpoint(PASSIVE)";

/// Copies all frames, so that the next commit restarts the log at the start of its file.
const RESTART: &str = "PRAGMA wal_checkpoint(RESTART)";

/// Copies all frames and truncates the log file.
const EMPTY: &str = "PRAGMA wal_checkpoint(TRUNCATE)";

/// Reports the state of the log without copying.
const STATE: &str = "PRAGMA wal_checkpoint(NOOP)";

/// Decides when a checkpoint runs, and on which thread.
pub(super) struct Checkpointer {
    /// Set if the writer shall truncate the log file after the next write, however small it is.
    empty_requested: Arc<AtomicBool>,
    background: Option<SyncSender<()>>,
    /// Locked by the background thread while it copies. No other connection can checkpoint then,
    /// and the writer waits for it rather than let the log grow.
    copying: Arc<Mutex<()>>,
    /// Frames in the log after the last commit. A smaller number means that the log has been
    /// restarted, by whatever program.
    frames: i64,
    /// Frames in the log when the background thread was last woken; 0 after a restart of the log.
    requested_at: i64,
    /// Frames in the log when readers last blocked a checkpoint; 0 after a restart of the log.
    blocked_at: i64,
}

impl Checkpointer {
    /// Leaves all checkpoints to the writer until a background thread is started.
    pub fn new(db: &Connection) -> rusqlite::Result<Self> {
        db.pragma_update(None, "journal_size_limit", LOG_BYTES_MAX)?;
        Ok(Self {
            empty_requested: Arc::default(),
            background: None,
            copying: Arc::default(),
            frames: 0,
            requested_at: 0,
            blocked_at: 0,
        })
    }

    /// Returns the flag that has the log file truncated after the next write.
    pub fn empty_requested(&self) -> Arc<AtomicBool> {
        self.empty_requested.clone()
    }

    /// Starts the background thread, which also calls `on_interval` each second with its connection. It
    /// ends when this value is dropped.
    pub fn start_in_background(
        &mut self,
        file: &OpenedFile,
        on_interval: impl Fn(&Connection) + Send + 'static,
    ) -> Result<(), OpenError> {
        let db = writing_connection(file)?;
        let (request, requests) = sync_channel(1);
        let copying = self.copying.clone();
        std::thread::Builder::new()
            .name("checkpoint".to_owned())
            .spawn(move || copy_in_background(&db, &requests, &copying, on_interval))
            .map_err(|error| file.error(error))?;
        self.background = Some(request);
        Ok(())
    }

    /// Runs or requests the checkpoint that the log's size calls for. Requires that no transaction
    /// is open on `db` and that the caller has the write lock.
    pub fn after_commit(&mut self, db: &Connection) {
        let log = Log::after(db, STATE).unwrap_or_default();
        if log.frames < self.frames {
            (self.requested_at, self.blocked_at) = (0, 0);
        }
        self.frames = log.frames;
        let end_from = BACKGROUND_FROM.max(self.blocked_at + RETRY_AFTER);
        let copy_from = BACKGROUND_FROM.max(self.requested_at.max(self.blocked_at) + LEFT_MAX);
        let is_little_left = log.frames - log.copied <= LEFT_MAX;
        if self.empty_requested.swap(false, Ordering::AcqRel) {
            self.end(db, EMPTY);
        } else if log.frames >= self.blocked_at + FRAMES_MAX
            || log.frames >= end_from && is_little_left
        {
            self.end(db, RESTART);
        } else if log.frames >= copy_from
            && let Some(background) = &self.background
        {
            // If the channel is full, the thread has a request already.
            let _ = background.try_send(());
            self.requested_at = log.frames;
        }
    }

    /// Copies the whole log into the database, because that, the log or its index was moved, removed or
    /// replaced. Returns true if no frame is left to copy. Requires the write lock.
    pub fn rescue(&mut self, db: &Connection) -> bool {
        self.frames = Log::after(db, STATE).unwrap_or_default().frames;
        self.end(db, EMPTY)
    }

    /// Copies the remaining frames and ends the log, unless a long read blocks it or another
    /// program is checkpointing, which is over soon: the size is checked again after the next
    /// commit. Returns true if the log was ended.
    fn end(&mut self, db: &Connection, how: &str) -> bool {
        let _copying = self.copying.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = db
            .busy_timeout(READERS_TIMEOUT)
            .and_then(|()| Log::after(db, how));
        let is_blocked = match &ended {
            Ok(log) => log.was_busy && log.frames >= 0,
            Err(_) => true,
        };
        if is_blocked {
            self.blocked_at = self.frames;
        }
        log::debug!(
            "ending a write-ahead log of {} frames: {ended:?}",
            self.frames
        );
        ended.is_ok_and(|log| !log.was_busy)
    }
}

/// Copies the log at each request, and calls `on_interval` each second.
fn copy_in_background(
    db: &Connection,
    requests: &Receiver<()>,
    copying: &Mutex<()>,
    on_interval: impl Fn(&Connection),
) {
    loop {
        match requests.recv_timeout(FILE_CHECK_INTERVAL) {
            Ok(()) => {
                let _copying = copying.lock().unwrap_or_else(PoisonError::into_inner);
                if let Err(error) = Log::after(db, COPY) {
                    log::debug!("copying the write-ahead log: {error}");
                }
            }
            Err(RecvTimeoutError::Timeout) => on_interval(db),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// State of the log.
#[derive(Debug, Default)]
struct Log {
    /// True if a checkpoint was blocked.
    was_busy: bool,
    /// Frames in the log, each with a page of the database; -1 if another checkpoint is running.
    frames: i64,
    /// Frames that were copied into the database; -1 if another checkpoint is running.
    copied: i64,
}

impl Log {
    fn after(db: &Connection, checkpoint: &str) -> rusqlite::Result<Self> {
        db.prepare_cached(checkpoint)?.query_row([], |row| {
            Ok(Self {
                was_busy: row.get(0)?,
                frames: row.get(1)?,
                copied: row.get(2)?,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;
    use crate::order::Timestamp;
    use crate::store::{DatabaseUrl, Mode, Store};

    /// Minimum number of pages that one test commit adds to the log.
    const WRITTEN: i64 = 256;

    /// Writes, and returns the number of frames in the log afterwards.
    async fn write(store: &Store, observer: &Connection) -> i64 {
        let bytes = WRITTEN * 4096;
        let enlarge = format!(
            "CREATE TABLE IF NOT EXISTS much (what BLOB); \
             CREATE TRIGGER IF NOT EXISTS enlarge AFTER INSERT ON write_probe \
             BEGIN INSERT INTO much VALUES (zeroblob({bytes})); END"
        );
        observer.execute_batch(&enlarge).unwrap();
        store.check_writable(Timestamp(1)).await.unwrap();
        Log::after(observer, STATE).unwrap().frames
    }

    /// Writes until the log restarts, and returns the greatest number of frames before that.
    async fn largest_until_anew(store: &Store, reader: &Connection) -> i64 {
        let mut largest = 0;
        loop {
            let frames = write(store, reader).await;
            if frames < largest {
                break largest;
            }
            largest = frames;
            assert!(largest <= 4 * FRAMES_MAX, "it never ends");
        }
    }

    #[tokio::test]
    async fn the_log_begins_anew_while_commits_go_on_and_later_when_someone_reads_for_long() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("orders.db");
        let store = Store::open(&DatabaseUrl::from(path.clone()), Mode::Threaded).unwrap();
        let file = folder.path().join("orders.db-wal");
        let bytes = || i64::try_from(file.metadata().unwrap().len()).unwrap();
        let observer = Connection::open(&path).unwrap();
        let largest = largest_until_anew(&store, &observer).await;
        assert!(
            (BACKGROUND_FROM..=FRAMES_MAX + 2 * WRITTEN).contains(&largest),
            "{largest}"
        );
        assert!(bytes() >= BACKGROUND_FROM * 4096, "it is written over");

        let reader = Connection::open(&path).unwrap();
        reader
            .execute_batch("BEGIN; SELECT max(rowid) FROM much")
            .unwrap();
        while write(&store, &observer).await <= 2 * FRAMES_MAX {}
        assert!(bytes() > LOG_BYTES_MAX);
        reader.execute_batch("COMMIT").unwrap();
        largest_until_anew(&store, &observer).await;
        assert!(bytes() <= LOG_BYTES_MAX, "the disk is given back");
    }

    #[test]
    fn readers_count_as_in_the_way_and_another_checkpoint_does_not() {
        /// Reached when the other checkpoint has begun, and again when it may end.
        static UNDER_WAY: Barrier = Barrier::new(2);

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("orders.db");
        let open = || Connection::open(&path).unwrap();
        let (ours, other, reader) = (open(), open(), open());
        ours.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE a (b)")
            .unwrap();
        reader.execute_batch("BEGIN; SELECT b FROM a").unwrap();
        ours.execute_batch("INSERT INTO a VALUES (1)").unwrap();
        let mut checkpointer = Checkpointer::new(&ours).unwrap();
        checkpointer.frames = 7;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let wait_once = |_| {
                    UNDER_WAY.wait();
                    UNDER_WAY.wait();
                    false
                };
                other.busy_handler(Some(wait_once)).unwrap();
                assert!(Log::after(&other, RESTART).unwrap().was_busy);
            });
            UNDER_WAY.wait();
            checkpointer.end(&ours, RESTART);
            assert_eq!(checkpointer.blocked_at, 0);
            UNDER_WAY.wait();
        });
        checkpointer.end(&ours, RESTART);
        assert_eq!(checkpointer.blocked_at, 7);
    }

    #[tokio::test]
    async fn a_log_that_another_writer_has_begun_anew_is_ended_in_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("orders.db");
        let open = || Store::open(&DatabaseUrl::from(path.clone()), Mode::Threaded).unwrap();
        let (ours, other) = (open(), open());
        let observer = Connection::open(&path).unwrap();
        let reader = Connection::open(&path).unwrap();
        write(&ours, &observer).await;
        reader
            .execute_batch("BEGIN; SELECT max(rowid) FROM much")
            .unwrap();
        while write(&ours, &observer).await <= FRAMES_MAX + 2 * WRITTEN {}
        reader.execute_batch("COMMIT").unwrap();
        largest_until_anew(&other, &observer).await;
        let largest = largest_until_anew(&ours, &observer).await;
        assert!(largest <= FRAMES_MAX + 2 * WRITTEN, "{largest}");
    }
}
