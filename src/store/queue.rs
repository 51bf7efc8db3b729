//! The queue of writes of a process, as its callers see it: how many may wait, for how long, and what
//! an answer that does not come means.
//!
//! A commit costs a disk flush whatever is in it, so everything that waits goes into the next one. An
//! engine's writer takes the writes off the queue and carries them out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::StoreError;
use super::write::{Reply, Write};
use super::writer_stats::{Counts, WriterStats};

/// Writes that may wait. At the speed of a slow disk this is about a second of work.
pub(super) const QUEUE_MAX: usize = 4096;

/// Writes that share a commit at most. More gains nothing and makes the first of them wait.
pub(super) const BATCH_MAX: usize = 256;

/// How long a write may wait for its turn before it is taken back.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// How long a write that has begun may take before its outcome is called unknown.
const COMMIT_MAX: Duration = Duration::from_secs(10);

/// Where writes are carried out.
#[derive(Clone)]
pub enum Mode {
    /// On a thread of their own, many in one commit.
    Threaded,
    /// At once, on the caller's thread, each in a commit of its own, as the gate lets it: for runs
    /// that must be repeatable.
    Synchronous(Arc<dyn WriteFaults>),
}

/// Decides what becomes of each write.
pub trait WriteFaults: Send + Sync {
    /// What becomes of the next one.
    fn next(&self) -> WriteFate;
}

/// What becomes of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteFate {
    /// It is carried out.
    Open,
    /// It is refused, as by a full disk: nothing is done.
    Refused,
    /// It is carried out, and its caller does not hear of it.
    AckLost,
    /// The program dies before it: its caller waits for ever.
    CrashBefore,
    /// The program dies after it: its caller waits for ever.
    CrashAfter,
}

/// Lets every write through.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoFaults;

impl WriteFaults for NoFaults {
    fn next(&self) -> WriteFate {
        WriteFate::Open
    }
}

/// A write that waits.
pub(super) struct Pending {
    pub write: Write,
    claimed: Arc<AtomicBool>,
}

impl Pending {
    /// A write of nothing, for which no one waits.
    pub fn nothing() -> Self {
        let (reply, _) = Reply::new();
        Self {
            write: Write::Nothing { reply },
            claimed: Arc::default(),
        }
    }

    /// Returns whether the caller still waits. From then on it waits to the end.
    pub fn claim(&self) -> bool {
        !self.claimed.swap(true, Ordering::AcqRel)
    }
}

/// What the writer and its callers share.
#[derive(Clone)]
pub(super) struct Shared {
    pub counts: Counts,
    pub commits: watch::Sender<()>,
    /// Whether a write was taken back because no turn came, and none has come since.
    pub is_stuck: Arc<AtomicBool>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            counts: Counts::default(),
            commits: watch::Sender::new(()),
            is_stuck: Arc::default(),
        }
    }
}

/// Carries out a write on the calling thread.
type CarryOut = Box<dyn Fn(Pending) + Send + Sync>;

enum Place {
    Queue(mpsc::Sender<Pending>),
    Synchronous(CarryOut, Arc<dyn WriteFaults>),
}

/// The queue of writes.
pub(super) struct Queue {
    place: Place,
    shared: Shared,
}

impl Queue {
    /// A queue, and the end that its writer takes them from.
    pub fn new(shared: Shared) -> (Self, mpsc::Sender<Pending>, mpsc::Receiver<Pending>) {
        let (sender, waiting) = mpsc::channel(QUEUE_MAX);
        let queue = Self {
            place: Place::Queue(sender.clone()),
            shared,
        };
        (queue, sender, waiting)
    }

    /// No queue: each write is carried out at once.
    pub fn synchronous(
        shared: Shared,
        gate: Arc<dyn WriteFaults>,
        carry_out: impl Fn(Pending) + Send + Sync + 'static,
    ) -> Self {
        Self {
            place: Place::Synchronous(Box::new(carry_out), gate),
            shared,
        }
    }

    /// Returns a receiver that sees a change at each commit from now on.
    pub fn commits(&self) -> watch::Receiver<()> {
        self.shared.commits.subscribe()
    }

    /// What was done, and what waits.
    pub fn stats(&self) -> WriterStats {
        let waiting = match &self.place {
            Place::Queue(queue) => queue.max_capacity() - queue.capacity(),
            Place::Synchronous(..) => 0,
        };
        self.shared.counts.snapshot(waiting, QUEUE_MAX)
    }

    /// Has a write carried out, and returns its answer when it is on disk.
    pub async fn write<T>(&self, write: impl FnOnce(Reply<T>) -> Write) -> Result<T, StoreError> {
        let result = self.try_write(write).await;
        if let Err(error) = &result {
            self.shared.counts.refused(error);
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
        let queue = match &self.place {
            Place::Queue(queue) => queue,
            Place::Synchronous(carry_out, gate) => {
                let passage = gate.next();
                match passage {
                    WriteFate::CrashBefore => return std::future::pending().await,
                    WriteFate::Refused => return Err(unwritable("the gate is closed")),
                    WriteFate::Open | WriteFate::AckLost | WriteFate::CrashAfter => {}
                }
                carry_out(pending);
                return match passage {
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
            // Taken back before it was begun: it will not happen any more.
            if !self.shared.is_stuck.swap(true, Ordering::AcqRel) {
                log::error!(
                    "the database cannot be written: another program holds the turn to write"
                );
            }
            return Err(unwritable("no turn to write came in time"));
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
