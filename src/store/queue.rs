//! The write queue of a program, as its callers see it: its capacity, its timeouts and the meaning
//! of a missing reply.
//!
//! A commit costs one disk flush whatever its size, so all waiting writes go into the next one. An
//! engine's writer takes the writes off the queue and executes them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::StoreError;
use super::mode::{NoFaults, WriteFaults};
use super::write::{Reply, Write};
use super::writer_state::WriterState;
use super::writer_stats::WriterStats;
use crate::clock::DatabaseClock;

/// Maximum number of waiting writes: about a second of work for a slow disk. Further writes fail
/// with [`StoreError::Overloaded`].
pub(super) const QUEUE_MAX: usize = 4096;

/// Maximum number of writes in a commit. More gains nothing and delays the first of them.
const WRITES_PER_COMMIT_MAX: usize = 256;

/// Maximum wait of a write in the queue, after which it is withdrawn.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// Maximum further wait for a write that has begun by then, after which its outcome is reported as unknown:
/// a caller waits for 15 s at most.
const COMMIT_MAX: Duration = Duration::from_secs(10);

/// A queued write.
pub(super) struct Pending {
    pub write: Write,
    claimed: Arc<AtomicBool>,
}

impl Pending {
    /// Returns a write without changes, whose reply is discarded.
    pub fn check_files() -> Self {
        let (reply, _) = Reply::new();
        Self {
            write: Write::CheckFiles { reply },
            claimed: Arc::default(),
        }
    }

    /// Returns true unless the write was withdrawn; from then on it can no longer be.
    fn claim(&self) -> bool {
        !self.claimed.swap(true, Ordering::AcqRel)
    }

    /// Takes the writes that are queued behind this one and may share its commit, and returns those that
    /// were not withdrawn.
    pub fn with_queued(self, waiting: &mut mpsc::Receiver<Self>) -> Vec<Self> {
        let mut writes = vec![self];
        while writes.len() < WRITES_PER_COMMIT_MAX
            && let Ok(next) = waiting.try_recv()
        {
            writes.push(next);
        }
        writes.retain(Self::claim);
        writes
    }
}

/// The executor of writes.
enum Executor {
    /// The writer behind this queue.
    Queue(mpsc::Sender<Pending>),
    /// This function, subject to faults.
    Synchronous(Box<dyn Fn(Pending) + Send + Sync>, Arc<dyn WriteFaults>),
}

/// The write queue of a program.
pub(super) struct Queue {
    executor: Executor,
    state: WriterState,
}

impl Queue {
    /// Returns a queue, its sender, and the receiver for the writer.
    pub fn new(state: WriterState) -> (Self, mpsc::Sender<Pending>, mpsc::Receiver<Pending>) {
        let (sender, waiting) = mpsc::channel(QUEUE_MAX);
        let executor = Executor::Queue(sender.clone());
        (Self { executor, state }, sender, waiting)
    }

    /// Returns a queue that executes each write immediately, while the caller's thread waits.
    pub fn synchronous(
        state: WriterState,
        faults: Arc<dyn WriteFaults>,
        execute: impl Fn(Pending) + Send + Sync + 'static,
    ) -> Self {
        let executor = Executor::Synchronous(Box::new(execute), faults);
        Self { executor, state }
    }

    /// Returns the queue of a database that is only read: it refuses every write.
    pub fn read_only(clock: DatabaseClock) -> Self {
        let state = WriterState::new(clock, "the database is only read");
        Self::synchronous(state, Arc::new(NoFaults), |pending| {
            let refused = StoreError::unwritable("it was opened to be read");
            pending.write.finish(Err(refused));
        })
    }

    /// Returns the clock by which orders are dated.
    pub fn clock(&self) -> DatabaseClock {
        self.state.clock.clone()
    }

    /// Returns a receiver that changes at each commit from now on.
    pub fn commits(&self) -> watch::Receiver<()> {
        self.state.commits.subscribe()
    }

    /// Returns the writer's counters and the number of waiting writes.
    pub fn stats(&self) -> WriterStats {
        let waiting = match &self.executor {
            Executor::Queue(queue) => queue.max_capacity() - queue.capacity(),
            Executor::Synchronous(..) => 0,
        };
        WriterStats {
            waiting,
            waiting_max: QUEUE_MAX,
            ..self.state.stats().clone()
        }
    }

    /// Executes a write, and returns its reply once it is on disk.
    pub async fn write<T>(&self, write: impl FnOnce(Reply<T>) -> Write) -> Result<T, StoreError> {
        let result = self.try_write(write).await;
        if let Err(error) = &result {
            self.state.on_failed(error);
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
                return faults.next().apply(|| execute(pending), answer).await;
            }
        };
        queue.try_send(pending).map_err(|_| self.state.refusal())?;
        if let Ok(result) = tokio::time::timeout(WAIT_MAX, &mut answer).await {
            return result.unwrap_or(Err(StoreError::OutcomeUnknown));
        }
        if !claimed.swap(true, Ordering::AcqRel) {
            // Withdrawn before execution began: it will never be executed. If others were committed
            // meanwhile, the queue was long, and nothing blocks it.
            if !commits.has_changed().unwrap_or(false) {
                self.state.report_stuck();
            }
            return Err(StoreError::unwritable("the write could not begin in time"));
        }
        match tokio::time::timeout(COMMIT_MAX, answer).await {
            Ok(Ok(result)) => result,
            _ => Err(StoreError::OutcomeUnknown),
        }
    }
}
