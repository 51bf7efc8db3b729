//! The write queue of a process, as its callers see it: its capacity, its timeouts and the meaning
//! of a missing reply.
//!
//! A commit costs one disk flush whatever its size, so all waiting writes go into the next one. An
//! engine's writer takes the writes off the queue and executes them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::StoreError;
use super::write::{Reply, Write};
use super::writer_stats::{Counters, WriterStats};
use crate::clock::DatabaseClock;

/// Maximum number of waiting writes: about a second of work for a slow disk. Further writes fail
/// with [`StoreError::Overloaded`].
pub(super) const QUEUE_MAX: usize = 4096;

/// Maximum number of writes in a commit. More gains nothing and delays the first of them.
const BATCH_MAX: usize = 256;

/// Maximum wait of a write in the queue, after which it is withdrawn.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// Maximum duration of a write that has begun, after which its outcome is reported as unknown.
const COMMIT_MAX: Duration = Duration::from_secs(10);

/// Thread on which writes are executed.
#[derive(Clone)]
pub enum Mode {
    /// A writer thread, with many writes in one commit.
    Threaded,
    /// The caller's thread, immediately, each write in a commit of its own and subject to injected
    /// faults: for reproducible runs.
    Synchronous(Arc<dyn WriteFaults>),
}

/// Injects faults into writes.
pub trait WriteFaults: Send + Sync {
    /// Returns the fate of the next write.
    fn next(&self) -> WriteFate;
}

/// Fate of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteFate {
    /// It is executed.
    Open,
    /// It fails as on a full disk; nothing is written.
    Refused,
    /// It is executed, and its caller gets [`StoreError::OutcomeUnknown`].
    AckLost,
    /// The program crashes before it: its caller waits forever.
    CrashBefore,
    /// The program crashes after it: its caller waits forever.
    CrashAfter,
}

/// Executes every write.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoFaults;

impl WriteFaults for NoFaults {
    fn next(&self) -> WriteFate {
        WriteFate::Open
    }
}

/// A queued write.
pub(super) struct Pending {
    pub write: Write,
    claimed: Arc<AtomicBool>,
}

impl Pending {
    /// Returns a write without changes, whose reply is discarded.
    pub fn nothing() -> Self {
        let (reply, _) = Reply::new();
        Self {
            write: Write::Nothing { reply },
            claimed: Arc::default(),
        }
    }

    /// Returns true if the caller still waits; from then on the write can no longer be withdrawn.
    fn claim(&self) -> bool {
        !self.claimed.swap(true, Ordering::AcqRel)
    }

    /// Takes the writes that are queued behind this one and may share its commit, and returns those whose
    /// callers still wait.
    pub fn with_queued(self, waiting: &mut mpsc::Receiver<Self>) -> Vec<Self> {
        let mut writes = vec![self];
        while writes.len() < BATCH_MAX
            && let Ok(next) = waiting.try_recv()
        {
            writes.push(next);
        }
        writes.retain(Self::claim);
        writes
    }
}

/// State shared by the writer and its callers.
#[derive(Clone)]
pub(super) struct Shared {
    pub counters: Counters,
    pub commits: watch::Sender<()>,
    /// True after a write was withdrawn while nothing was committed, until the next commit.
    pub is_stuck: Arc<AtomicBool>,
    /// Reason to log when a write is taken back.
    pub blocked_by: &'static str,
    /// Message of the last failure, so that consecutive equal failures are logged once.
    logged_failure: Arc<Mutex<Option<String>>>,
}

impl Shared {
    pub fn new(clock: DatabaseClock, blocked_by: &'static str) -> Self {
        Self {
            counters: Counters::new(clock),
            commits: watch::Sender::new(()),
            is_stuck: Arc::default(),
            blocked_by,
            logged_failure: Arc::default(),
        }
    }

    /// Wakes the subscribers to commits, and logs that the database can be written again.
    pub fn report_success(&self) {
        self.commits.send_replace(());
        let was_stuck = self.is_stuck.swap(false, Ordering::AcqRel);
        if self.logged_failure().take().is_some() || was_stuck {
            log::info!("the database can be written again");
        }
    }

    /// Logs that the database cannot be written.
    pub fn report_failure(&self, cause: String) {
        let mut logged = self.logged_failure();
        if logged.as_ref() != Some(&cause) {
            log::error!("the database cannot be written: {cause}");
            *logged = Some(cause);
        }
    }

    fn logged_failure(&self) -> MutexGuard<'_, Option<String>> {
        let lock = self.logged_failure.lock();
        lock.unwrap_or_else(PoisonError::into_inner)
    }
}

/// Executes a write on the calling thread.
type Execute = Box<dyn Fn(Pending) + Send + Sync>;

/// Where writes are executed.
enum Executor {
    Queue(mpsc::Sender<Pending>),
    Synchronous(Execute, Arc<dyn WriteFaults>),
}

/// The write queue of a process.
pub(super) struct Queue {
    executor: Executor,
    shared: Shared,
}

impl Queue {
    /// Returns a queue, its sender, and the receiver for the writer.
    pub fn new(shared: Shared) -> (Self, mpsc::Sender<Pending>, mpsc::Receiver<Pending>) {
        let (sender, waiting) = mpsc::channel(QUEUE_MAX);
        let queue = Self {
            executor: Executor::Queue(sender.clone()),
            shared,
        };
        (queue, sender, waiting)
    }

    /// Returns a queue that executes each write immediately, on the caller's thread.
    pub fn synchronous(
        shared: Shared,
        faults: Arc<dyn WriteFaults>,
        execute: impl Fn(Pending) + Send + Sync + 'static,
    ) -> Self {
        Self {
            executor: Executor::Synchronous(Box::new(execute), faults),
            shared,
        }
    }

    /// Returns a receiver that changes at each commit from now on.
    pub fn commits(&self) -> watch::Receiver<()> {
        self.shared.commits.subscribe()
    }

    /// Returns the writer's counters and the number of waiting writes.
    pub fn stats(&self) -> WriterStats {
        let waiting = match &self.executor {
            Executor::Queue(queue) => queue.max_capacity() - queue.capacity(),
            Executor::Synchronous(..) => 0,
        };
        self.shared.counters.snapshot(waiting, QUEUE_MAX)
    }

    /// Executes a write, and returns its reply once it is on disk.
    pub async fn write<T>(&self, write: impl FnOnce(Reply<T>) -> Write) -> Result<T, StoreError> {
        let result = self.try_write(write).await;
        if let Err(error) = &result {
            self.shared.counters.on_failed(error);
        }
        result
    }

    async fn try_write<T>(&self, write: impl FnOnce(Reply<T>) -> Write) -> Result<T, StoreError> {
        let (reply, mut answer) = Reply::new();
        let claimed = Arc::new(AtomicBool::new(false));
        let pending = Pending {
            write: write(reply),
            claimed: claimed.clone(),
        };
        let commits = self.commits();
        let queue = match &self.executor {
            Executor::Queue(queue) => queue,
            Executor::Synchronous(execute, faults) => {
                let fate = faults.next();
                match fate {
                    WriteFate::CrashBefore => return std::future::pending().await,
                    WriteFate::Refused => return Err(unwritable("refused by an injected fault")),
                    WriteFate::Open | WriteFate::AckLost | WriteFate::CrashAfter => {}
                }
                execute(pending);
                return match fate {
                    WriteFate::CrashAfter => std::future::pending().await,
                    WriteFate::AckLost => Err(StoreError::OutcomeUnknown),
                    _ => answer.try_recv().unwrap_or(Err(StoreError::OutcomeUnknown)),
                };
            }
        };
        queue
            .try_send(pending)
            .map_err(|_| StoreError::Overloaded)?;
        if let Ok(result) = tokio::time::timeout(WAIT_MAX, &mut answer).await {
            return result.unwrap_or(Err(StoreError::OutcomeUnknown));
        }
        if !claimed.swap(true, Ordering::AcqRel) {
            // Withdrawn before execution began: it will never be executed. If others were committed
            // meanwhile, the queue was long, and nothing blocks it.
            let is_blocked = !commits.has_changed().unwrap_or(false);
            if is_blocked && !self.shared.is_stuck.swap(true, Ordering::AcqRel) {
                let why = self.shared.blocked_by;
                log::error!("the database cannot be written: {why}");
            }
            return Err(unwritable("the write could not begin in time"));
        }
        match tokio::time::timeout(COMMIT_MAX, answer).await {
            Ok(Ok(result)) => result,
            _ => Err(StoreError::OutcomeUnknown),
        }
    }
}

fn unwritable(why: &'static str) -> StoreError {
    let why: Box<dyn std::error::Error + Send + Sync> = why.into();
    StoreError::Unwritable(why.into())
}
