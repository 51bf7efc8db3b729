//! Modes of use of a database: with writes queued for the writer, to read only or, for reproducible runs, with
//! writes one by one while the caller's thread waits, where faults can be injected.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::StoreError;

/// Mode of use of a database. Unless stated otherwise, it is created or migrated where needed.
#[derive(Clone)]
pub enum Mode {
    /// Writes are executed by a writer of its own, with many in one commit.
    Threaded,
    /// Like `Threaded`, but the database must exist.
    Existing,
    /// Every write is refused. The database must exist, it is not migrated, and the locks of a file are not
    /// taken.
    ReadOnly,
    /// Writes are executed immediately, while the caller's thread waits, each in a commit of its own and
    /// subject to injected faults: for reproducible runs.
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
    Executed,
    /// It fails as on a full disk; nothing is written.
    Refused,
    /// It is executed, and its caller gets [`StoreError::OutcomeUnknown`].
    AckLost,
    /// The program crashes before it: its caller waits forever.
    CrashBefore,
    /// The program crashes after it: its caller waits forever.
    CrashAfter,
}

impl WriteFate {
    /// Executes a write with this fate, and returns its answer.
    pub(super) async fn apply<T>(
        self,
        execute: impl FnOnce(),
        mut answer: oneshot::Receiver<Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        match self {
            Self::CrashBefore => return std::future::pending().await,
            Self::Refused => return Err(StoreError::unwritable("refused by an injected fault")),
            Self::Executed | Self::AckLost | Self::CrashAfter => execute(),
        }
        match self {
            Self::CrashAfter => std::future::pending().await,
            Self::AckLost => Err(StoreError::OutcomeUnknown),
            _ => answer.try_recv().unwrap_or(Err(StoreError::OutcomeUnknown)),
        }
    }
}

/// Executes every write.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoFaults;

impl WriteFaults for NoFaults {
    fn next(&self) -> WriteFate {
        WriteFate::Executed
    }
}
