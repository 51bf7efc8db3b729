//! Checkpoints of the write-ahead log, for the most part in the background.
//!
//! SQLite would do so itself in the middle of a commit, in small portions that write the same pages
//! again and again, and never to the end while readers overlap. Here a thread of its own copies
//! most of the log while commits go on; the writer copies what has come meanwhile, once that is
//! little, and begins the log anew. The file keeps its size, because a disk flushes what is written
//! over in half the time that it takes for what is appended.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::Connection;

use super::file::OpenedFile;
use super::open::writing_connection;
use crate::store::OpenError;

/// Frames in the log from which a checkpoint runs in the background, some 28 MB.
/// Larger ones save writing: pages that change often are copied once.
const BACKGROUND_FROM: i64 = 7_000;

/// The writer folds it back itself at this many frames, some 48 MB, which is reached only if the
/// background thread cannot keep up, or behind a long read.
const FRAMES_MAX: i64 = 12_000;

/// What the file may keep once the log has begun anew, in bytes: a little more than the largest
/// that is usual.
const KEPT_BYTES_MAX: i64 = 5_000 * FRAMES_MAX;

/// Frames that the writer may be left to copy: some milliseconds' work.
const LEFT_MAX: i64 = 500;

/// While readers are in the way, the writer tries again each time that the log has grown by this
/// many frames.
const AGAIN_AFTER: i64 = 1_000;

/// How long the writer may wait for readers. They are in the middle of a page.
const READERS_WAIT: Duration = Duration::from_millis(50);

/// Interval at which the background thread checks that the files are still in their places: a
/// log that is removed is checkpointed before the program may die, even if no one writes.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Copies what it can without waiting for anyone.
const COPY: &str = "PRAGMA wal_checkpoint(PASSIVE)";

/// Copies everything, so that the log begins anew in its file.
const RESTART: &str = "PRAGMA wal_checkpoint(RESTART)";

/// Copies everything, and leaves nothing in the log's file.
const EMPTY: &str = "PRAGMA wal_checkpoint(TRUNCATE)";

/// Only reports the state of the log.
const LOOK: &str = "PRAGMA wal_checkpoint(NOOP)";

/// Decides when a checkpoint runs, and on which thread.
pub(super) struct Checkpointer {
    /// Set if the writer is to empty the log's file after the next write, however small it is.
    empties_next: Arc<AtomicBool>,
    background: Option<SyncSender<()>>,
    /// Held by the thread while it copies. Nobody else can then, and the writer waits for it rather
    /// than let the log grow.
    copying: Arc<Mutex<()>>,
    /// Frames after the last commit. When there are fewer, the log has begun anew, whoever saw to
    /// that.
    frames: i64,
    /// Frames when the background thread was last asked to copy them; 0 in a log that is new.
    asked_at: i64,
    /// Frames when readers last prevented the end; 0 in a log that is new.
    blocked_at: i64,
}

impl Checkpointer {
    /// Leaves everything to the writer, until there is a background thread.
    pub fn new(db: &Connection) -> rusqlite::Result<Self> {
        db.pragma_update(None, "journal_size_limit", KEPT_BYTES_MAX)?;
        Ok(Self {
            empties_next: Arc::default(),
            background: None,
            copying: Arc::default(),
            frames: 0,
            asked_at: 0,
            blocked_at: 0,
        })
    }

    /// Setting this has the log's file emptied after the next write.
    pub fn empties_next(&self) -> Arc<AtomicBool> {
        self.empties_next.clone()
    }

    /// Starts the thread that does most of the work, and calls `look` each second. It ends with this.
    pub fn start_in_background(
        &mut self,
        file: &OpenedFile,
        look: impl Fn() + Send + 'static,
    ) -> Result<(), OpenError> {
        let db = writing_connection(file)?;
        let (ask, asked) = sync_channel(1);
        let copying = self.copying.clone();
        std::thread::Builder::new()
            .name("checkpoint".to_owned())
            .spawn(move || copy_in_background(&db, &asked, &copying, look))
            .map_err(|error| file.error(error))?;
        self.background = Some(ask);
        Ok(())
    }

    /// Does what the size of the log asks for. No transaction is open on `db`, and no one else
    /// writes.
    pub fn after_commit(&mut self, db: &Connection) {
        let log = Log::after(db, LOOK).unwrap_or_default();
        if log.frames < self.frames {
            (self.asked_at, self.blocked_at) = (0, 0);
        }
        self.frames = log.frames;
        let end_from = BACKGROUND_FROM.max(self.blocked_at + AGAIN_AFTER);
        let copy_from = BACKGROUND_FROM.max(self.asked_at.max(self.blocked_at) + LEFT_MAX);
        let is_little_left = log.frames - log.copied <= LEFT_MAX;
        if self.empties_next.swap(false, Ordering::AcqRel) {
            self.end(db, EMPTY);
        } else if log.frames >= self.blocked_at + FRAMES_MAX
            || log.frames >= end_from && is_little_left
        {
            self.end(db, RESTART);
        } else if log.frames >= copy_from
            && let Some(background) = &self.background
        {
            // A full channel is being seen to.
            let _ = background.try_send(());
            self.asked_at = log.frames;
        }
    }

    /// Puts all that is in the log into the database, because the log, or the database, is no longer in
    /// its place. Returns whether nothing is left to copy. No one else writes.
    pub fn rescue(&mut self, db: &Connection) -> bool {
        self.frames = Log::after(db, LOOK).unwrap_or_default().frames;
        self.end(db, EMPTY)
    }

    /// Copies what is left in the log, and ends it, unless someone else's long read prevents that, or
    /// another process is copying. That is over soon: what the log's size asks for is asked again
    /// after the next commit. Returns whether it has ended.
    fn end(&mut self, db: &Connection, how: &str) -> bool {
        let _copying = self.copying.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = db
            .busy_timeout(READERS_WAIT)
            .and_then(|()| Log::after(db, how));
        let is_held = match &ended {
            Ok(log) => log.was_busy && log.frames >= 0,
            Err(_) => true,
        };
        if is_held {
            self.blocked_at = self.frames;
        }
        log::debug!(
            "ending a write-ahead log of {} frames: {ended:?}",
            self.frames
        );
        ended.is_ok_and(|log| !log.was_busy)
    }
}

/// Copies what is in the log whenever it is asked to, and calls `look` each second.
fn copy_in_background(db: &Connection, asked: &Receiver<()>, copying: &Mutex<()>, look: impl Fn()) {
    loop {
        match asked.recv_timeout(LOOK_EVERY) {
            Ok(()) => {
                let _copying = copying.lock().unwrap_or_else(PoisonError::into_inner);
                if let Err(error) = Log::after(db, COPY) {
                    log::debug!("copying the write-ahead log: {error}");
                }
            }
            Err(RecvTimeoutError::Timeout) => look(),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// How the log is.
#[derive(Debug, Default)]
struct Log {
    /// Whether something prevented a checkpoint.
    was_busy: bool,
    /// Frames in the log, each with a page of the database; -1 if another checkpoint is under way.
    frames: i64,
    /// Those of them that are in the database too; -1 likewise.
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
    use crate::store::{DatabaseUrl, Mode, Store};

    /// Pages that one commit puts into the log, at the least.
    const WRITTEN: i64 = 256;

    /// Writes, and tells how many frames there are in the log afterwards.
    async fn write(store: &Store, reader: &Connection) -> i64 {
        let bytes = WRITTEN * 4096;
        let sql = format!(
            "CREATE TABLE IF NOT EXISTS much (what BLOB); INSERT INTO much VALUES (zeroblob({bytes}))"
        );
        store.execute(sql).await.unwrap();
        Log::after(reader, LOOK).unwrap().frames
    }

    /// Writes until the log begins anew, and tells how many frames it had at most.
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
        let looker = Connection::open(&path).unwrap();
        let largest = largest_until_anew(&store, &looker).await;
        assert!(
            (BACKGROUND_FROM..=FRAMES_MAX + 2 * WRITTEN).contains(&largest),
            "{largest}"
        );
        assert!(bytes() >= BACKGROUND_FROM * 4096, "it is written over");

        let reader = Connection::open(&path).unwrap();
        reader
            .execute_batch("BEGIN; SELECT max(rowid) FROM much")
            .unwrap();
        while write(&store, &looker).await <= 2 * FRAMES_MAX {}
        assert!(bytes() > KEPT_BYTES_MAX);
        reader.execute_batch("COMMIT").unwrap();
        largest_until_anew(&store, &looker).await;
        assert!(bytes() <= KEPT_BYTES_MAX, "the disk is given back");
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
        let looker = Connection::open(&path).unwrap();
        let reader = Connection::open(&path).unwrap();
        write(&ours, &looker).await;
        reader
            .execute_batch("BEGIN; SELECT max(rowid) FROM much")
            .unwrap();
        while write(&ours, &looker).await <= FRAMES_MAX + 2 * WRITTEN {}
        reader.execute_batch("COMMIT").unwrap();
        largest_until_anew(&other, &looker).await;
        let largest = largest_until_anew(&ours, &looker).await;
        assert!(largest <= FRAMES_MAX + 2 * WRITTEN, "{largest}");
    }
}
