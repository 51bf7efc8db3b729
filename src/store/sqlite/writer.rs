//! The one writer of a process: a thread that takes writes off the queue and commits many at once.
//!
//! Processes queue for the write lock through two advisory locks beside the database, because
//! SQLite's own busy handler sleeps between attempts and can starve a process.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};
use tokio::sync::mpsc;

use super::checkpoint::Checkpointer;
use super::file::{OpenedFile, QUEUE_LOCK, Unsafe, WRITE_LOCK, lock_file};
use super::{lead, operator, prune, record, row_mapping, times};
use crate::clock::DatabaseClock;
use crate::store::queue::{Mode, Pending, Queue, Shared};
use crate::store::write::Write;
use crate::store::{OpenError, StoreError};

/// Maximum wait for programs that write without taking our locks.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The write queue, and the request to empty the write-ahead log at the next commit.
pub(super) struct Writer {
    pub queue: Queue,
    empties_next: Arc<AtomicBool>,
}

impl Writer {
    pub fn start(db: Connection, file: OpenedFile, mode: Mode) -> Result<Self, OpenError> {
        let lock = |suffix| lock_file(&file.path, suffix);
        let checkpointer = Checkpointer::new(&db).map_err(|error| file.error(error))?;
        let empties_next = checkpointer.empties_next();
        let clock = DatabaseClock::default();
        let shared = Shared::new(clock, "another program holds the write lock");
        let mut connected = Connected {
            queue_lock: lock(QUEUE_LOCK)?,
            write_lock: lock(WRITE_LOCK)?,
            db,
            file,
            is_rescued: false,
            checkpointer,
            shared: shared.clone(),
        };
        let queue = match mode {
            Mode::Synchronous(faults) => {
                let connected = Mutex::new(connected);
                Queue::synchronous(shared, faults, move |write| {
                    let (_, mut nothing) = mpsc::channel(1);
                    let mut connected = connected.lock().unwrap_or_else(PoisonError::into_inner);
                    connected.commit(write, &mut nothing);
                })
            }
            Mode::Threaded => {
                let (queue, sender, mut waiting) = Queue::new(shared);
                let file = connected.file.clone();
                let (opened, weak_sender) = (file.clone(), sender.downgrade());
                connected.checkpointer.start_in_background(&file, move || {
                    // The writer makes the same check at its next commit, and checkpoints the log.
                    if opened.check().is_err()
                        && let Some(sender) = weak_sender.upgrade()
                    {
                        let _ = sender.try_send(Pending::nothing());
                    }
                })?;
                std::thread::Builder::new()
                    .name("writer".to_owned())
                    .spawn(move || {
                        while let Some(first) = waiting.blocking_recv() {
                            connected.commit(first, &mut waiting);
                        }
                    })
                    .map_err(|error| file.error(error))?;
                queue
            }
        };
        Ok(Self {
            queue,
            empties_next,
        })
    }

    /// Checkpoints the write-ahead log and truncates it, as far as readers allow.
    pub async fn checkpoint(&self) -> Result<(), StoreError> {
        self.empties_next.store(true, Ordering::Release);
        self.queue.write(|reply| Write::Nothing { reply }).await
    }
}

/// Executes a write inside a transaction. May be called again after a rollback.
fn execute(db: &Connection, write: &mut Write) -> rusqlite::Result<()> {
    match write {
        Write::Create { id, now, reply } => reply.keep(record::create(db, id, *now)?),
        Write::Resolve {
            id,
            resolution,
            now,
            reply,
        } => reply.keep(operator::resolve(db, id, *resolution, *now)?),
        Write::Lead { reply } => reply.keep(lead::begin_epoch(db)?),
        Write::Record {
            epoch,
            changes,
            now,
            reply,
        } => match lead::is_current(db, *epoch)? {
            true => reply.keep(record::record(db, changes, *now)?),
            false => reply.refuse(StoreError::Deposed),
        },
        Write::Heartbeat {
            epoch,
            heartbeat,
            reply,
        } => match lead::is_current(db, *epoch)? {
            true => reply.keep(row_mapping::write_heartbeat(db, heartbeat)?),
            false => reply.refuse(StoreError::Deposed),
        },
        Write::ClampTimes {
            epoch,
            seqs,
            now,
            reply,
        } => match lead::is_current(db, *epoch)? {
            true => reply.keep(times::clamp(db, seqs, *now)?),
            false => reply.refuse(StoreError::Deposed),
        },
        Write::Prune {
            seqs,
            settled_before,
            now,
            reply,
        } => reply.keep(prune::prune(db, seqs, *settled_before, *now)?),
        Write::Probe { now, reply } => reply.keep(record::probe(db, *now)?),
        Write::Nothing { reply } => reply.keep(()),
        #[cfg(test)]
        Write::Sql { sql, reply } => reply.keep(db.execute_batch(sql)?),
    }
    Ok(())
}

/// The writing connection and its locks.
struct Connected {
    db: Connection,
    file: OpenedFile,
    /// True once the log's contents are in the database, after a file was moved or replaced.
    is_rescued: bool,
    queue_lock: File,
    write_lock: File,
    checkpointer: Checkpointer,
    shared: Shared,
}

/// A lock that is released on drop.
struct LockGuard<'a>(&'a File);

impl Drop for LockGuard<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.unlock() {
            log::error!("the write lock cannot be released: {error}");
        }
    }
}

impl Connected {
    /// Commits `first` together with all writes that are queued when the write lock is acquired.
    fn commit(&mut self, first: Pending, waiting: &mut mpsc::Receiver<Pending>) {
        let wanted_at = Instant::now();
        let begun = self.begin();
        let mut batch = first.with_queued(waiting);
        match begun {
            Ok(()) => {
                let result = self.apply(&mut batch);
                if result.is_ok() {
                    self.shared
                        .counters
                        .on_committed(batch.len(), wanted_at.elapsed());
                }
                self.end();
                self.finish(batch, result);
            }
            Err(error) => self.finish(batch, Err(error)),
        }
    }

    /// Waits for the write lock and begins a transaction.
    fn begin(&mut self) -> Result<(), Failure> {
        // The process that waits for the write lock holds the queue lock, so the process that has
        // just written cannot overtake it.
        self.queue_lock.lock()?;
        let queue_guard = LockGuard(&self.queue_lock);
        self.write_lock.lock()?;
        drop(queue_guard);
        let begun = self.check_files().and_then(|()| {
            self.db.busy_timeout(BUSY_TIMEOUT)?;
            Ok(self.db.execute_batch("BEGIN IMMEDIATE")?)
        });
        if begun.is_err() {
            drop(LockGuard(&self.write_lock));
        }
        begun
    }

    /// Checks that the paths still lead to the open files. If not, copies the log into the database
    /// through the descriptors that are still open, because the next program finds the database
    /// alone. No program of ours opens the files meanwhile: the write lock is held.
    fn check_files(&mut self) -> Result<(), Failure> {
        let checked = self.file.check();
        if let Err(Unsafe::Moved(path)) = &checked {
            if !self.is_rescued && self.file.may_be_checkpointed() {
                self.is_rescued = self.checkpointer.rescue(&self.db);
                log::warn!(
                    "{} was moved: the write-ahead log was checkpointed completely={}",
                    path.display(),
                    self.is_rescued
                );
            }
        } else {
            self.is_rescued = false;
        }
        Ok(checked?)
    }

    /// Checkpoints if the log is large enough, and releases the write lock.
    fn end(&mut self) {
        self.checkpointer.after_commit(&self.db);
        let _guard = LockGuard(&self.write_lock);
    }

    /// Rolls the transaction back. SQLite has already done so after some failures.
    fn roll_back(&self) -> rusqlite::Result<()> {
        if self.db.is_autocommit() {
            Ok(())
        } else {
            self.db.execute_batch("ROLLBACK")
        }
    }

    /// Executes the writes and commits. If one of them fails by its own fault, it is removed and
    /// all others are executed again.
    fn apply(&mut self, batch: &mut Vec<Pending>) -> Result<(), Failure> {
        let mut index = 0;
        while index < batch.len() {
            match execute(&self.db, &mut batch[index].write) {
                Ok(()) => index += 1,
                Err(error) => {
                    self.roll_back()?;
                    if !is_its_own_fault(&error) {
                        return Err(error.into());
                    }
                    log::error!("a write was refused by the database: {error}");
                    let failure = Failure::from(error);
                    batch
                        .remove(index)
                        .write
                        .finish(Err(failure.to_store_error()));
                    self.db.execute_batch("BEGIN IMMEDIATE")?;
                    index = 0;
                }
            }
        }
        self.db.execute_batch("COMMIT").map_err(|error| {
            if let Err(error) = self.roll_back() {
                log::error!("a failed commit cannot be rolled back: {error}");
            }
            Failure::of_commit(error)
        })
    }

    /// Completes the callers' replies.
    fn finish(&self, batch: Vec<Pending>, result: Result<(), Failure>) {
        match &result {
            Ok(()) => self.shared.report_success(),
            Err(failure) => self.shared.report_failure(failure.cause.to_string()),
        }
        for pending in batch {
            pending.write.finish(match &result {
                Ok(()) => Ok(()),
                Err(failure) => Err(failure.to_store_error()),
            });
        }
    }
}

/// The failure of a write.
struct Failure {
    cause: Arc<dyn std::error::Error + Send + Sync>,
    /// True if nothing was written.
    is_certain: bool,
}

impl Failure {
    /// Returns the failure of a commit. After an I/O error the commit may be complete in the log,
    /// since the effect of a failed flush is unknown; it takes effect if the program dies before
    /// the next commit overwrites it. On a full disk the end of the commit is missing, so it is
    /// certain to have failed.
    fn of_commit(error: rusqlite::Error) -> Self {
        let is_certain = error.sqlite_error_code() == Some(ErrorCode::DiskFull);
        Self {
            is_certain,
            ..Self::from(error)
        }
    }

    fn to_store_error(&self) -> StoreError {
        if self.is_certain {
            StoreError::Unwritable(self.cause.clone())
        } else {
            StoreError::OutcomeUnknown
        }
    }
}

impl<E: std::error::Error + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self {
            cause: Arc::new(error),
            is_certain: true,
        }
    }
}

/// Returns true if a statement failed by its own content and not by the state of the database.
fn is_its_own_fault(error: &rusqlite::Error) -> bool {
    !matches!(
        error.sqlite_error_code(),
        Some(
            ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::DatabaseCorrupt
                | ErrorCode::DiskFull
                | ErrorCode::ReadOnly
                | ErrorCode::SystemIoFailure
                | ErrorCode::CannotOpen
                | ErrorCode::OutOfMemory
                | ErrorCode::NotADatabase
                | ErrorCode::PermissionDenied
                | ErrorCode::FileLockingProtocolFailed
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::order::{OrderId, Status, Timestamp};
    use crate::store::queue::QUEUE_MAX;
    use crate::store::{Creation, DatabaseUrl, Store};

    struct Bench {
        _folder: tempfile::TempDir,
        store: Store,
        /// The write lock as another process opens it.
        other: File,
    }

    impl Bench {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("orders.db");
            let store = Store::open(&DatabaseUrl::from(path.clone()), Mode::Threaded).unwrap();
            Self {
                _folder: folder,
                store,
                other: lock_file(&path, WRITE_LOCK).unwrap(),
            }
        }

        /// Number of commits in the write-ahead log: frames whose header gives the size of the
        /// database (SQLite's file format, section 4.1).
        fn commits(&self) -> usize {
            let log = std::fs::read(format!("{}-wal", self.store.address())).unwrap();
            let frames = log.get(32..).unwrap_or_default();
            let frames = frames.chunks_exact(24 + 4096);
            frames.filter(|frame| frame[4..8] != [0; 4]).count()
        }

        fn create(&self, id: &str) -> tokio::task::JoinHandle<Result<Creation, StoreError>> {
            let (store, id) = (self.store.clone(), OrderId::new(id).unwrap());
            tokio::spawn(async move { store.create(id, Timestamp(1)).await })
        }
    }

    #[tokio::test]
    async fn sixty_four_creations_at_once_share_a_commit() {
        let bench = Bench::new();
        bench.other.lock().unwrap();
        let first = bench.create("first");
        // The writer has taken the first write and waits for the write lock.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let rest: Vec<_> = (0..63).map(|n| bench.create(&format!("a{n}"))).collect();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let before = bench.commits();
        bench.other.unlock().unwrap();
        for creation in rest.into_iter().chain([first]) {
            assert!(matches!(creation.await, Ok(Ok(Creation::Created(_)))));
        }
        assert_eq!(bench.commits() - before, 1);
    }

    #[tokio::test]
    async fn a_program_that_ends_leaves_everything_in_the_file_itself() {
        let bench = Bench::new();
        assert!(matches!(bench.create("a1").await, Ok(Ok(_))));
        let log = format!("{}-wal", bench.store.address());
        assert!(std::fs::metadata(&log).unwrap().len() > 0);
        bench.store.checkpoint().await;
        assert_eq!(std::fs::metadata(&log).unwrap().len(), 0);
    }

    #[tokio::test]
    async fn one_bad_row_does_not_fail_the_others_of_its_batch() {
        let bench = Bench::new();
        bench.other.lock().unwrap();
        let good = bench.create("a1");
        let store = bench.store.clone();
        let bad = tokio::spawn(async move {
            let insert = "INSERT INTO orders (id, status, created_at, updated_at) \
                          VALUES ('bad', 'LOST', 0, 0)";
            store.execute(insert.to_owned()).await
        });
        let twice = [bench.create("a2"), bench.create("a2")];
        tokio::time::sleep(Duration::from_millis(50)).await;
        bench.other.unlock().unwrap();
        assert!(matches!(good.await, Ok(Ok(Creation::Created(_)))));
        assert!(matches!(bad.await, Ok(Err(StoreError::Unwritable(_)))));
        let mut created = 0;
        for creation in twice {
            match creation.await.unwrap().unwrap() {
                Creation::Created(_) => created += 1,
                Creation::Exists(order) => assert_eq!(order.id.as_str(), "a2"),
            }
        }
        assert_eq!(created, 1);
        assert_eq!(bench.store.count(Status::Created).await.unwrap(), 2);
    }

    #[tokio::test]
    async fn a_write_that_waits_too_long_is_taken_back_and_never_happens() {
        let bench = Bench::new();
        bench.other.lock().unwrap();
        let late = bench.create("late").await.unwrap();
        assert!(matches!(late, Err(StoreError::Unwritable(_))), "{late:?}");
        assert_eq!(bench.store.writer_stats().unwritable, 1);
        bench.other.unlock().unwrap();
        assert!(matches!(bench.create("next").await, Ok(Ok(_))));
        assert_eq!(bench.store.newest_seq().await.unwrap(), 1);
        let id = OrderId::new("late").unwrap();
        assert_eq!(bench.store.find(&id).await.unwrap(), None);
    }

    #[tokio::test]
    async fn more_writes_than_may_wait_are_refused_at_once() {
        let bench = Bench::new();
        bench.other.lock().unwrap();
        let writes: Vec<_> = (0..QUEUE_MAX + 10)
            .map(|n| bench.create(&format!("a{n}")))
            .collect();
        // The writer has taken one more write off the queue.
        while bench.store.writer_stats().overloaded < 9 {
            tokio::task::yield_now().await;
        }
        bench.other.unlock().unwrap();
        let mut overloaded = 0;
        for write in writes {
            match write.await.unwrap() {
                Err(StoreError::Overloaded) => overloaded += 1,
                created => assert!(matches!(created, Ok(Creation::Created(_)))),
            }
        }
        assert!((1..=10).contains(&overloaded), "{overloaded}");
        let stats = bench.store.writer_stats();
        assert_eq!((stats.overloaded, stats.unwritable), (overloaded, 0));
        assert_eq!((stats.waiting, stats.waiting_max), (0, QUEUE_MAX));
        let created = (QUEUE_MAX + 10) as u64 - overloaded;
        assert_eq!(stats.commit_sizes.sum(), created);
        assert!(stats.commit_sizes.len() < created, "they share commits");
        assert_eq!(stats.commit_times.len(), stats.commit_sizes.len());
    }
}
