//! The thread of the one writer of a program, and its start. What it does is in `writer.rs`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::Connection;
use tokio::sync::mpsc;

use super::checkpoint::Checkpointer;
use super::file::OpenedFile;
use super::log_rescue::LogRescue;
use super::open;
use super::write_lock::WriteLock;
use super::writer::Committer;
use crate::clock::DatabaseClock;
use crate::store::Retirement;
use crate::store::mode::Mode;
use crate::store::queue::{Pending, Queue};
use crate::store::write::Write;
use crate::store::writer_state::WriterState;
use crate::store::{OpenError, StoreError};

/// The write queue, and the request to empty the write-ahead log at the next commit.
pub(super) struct Writer {
    pub queue: Queue,
    pub retirement: Retirement,
    empty_requested: Arc<AtomicBool>,
}

impl Writer {
    pub fn start(db: Connection, file: OpenedFile, mode: Mode) -> Result<Self, OpenError> {
        let checkpointer = Checkpointer::new(&db).map_err(|error| file.error(error))?;
        let empty_requested = checkpointer.empty_requested();
        let clock = DatabaseClock::default();
        let state = WriterState::new(
            clock,
            "another program holds the write lock, or the disk does not answer",
        );
        let mut committer = Committer {
            lock: WriteLock::open(&file.path)?,
            db,
            log_rescue: LogRescue::new(file.clone()),
            checkpointer,
            state: state.clone(),
            retirement: Retirement::default(),
        };
        let retirement = committer.retirement.clone();
        let queue = match mode {
            Mode::Synchronous(faults) => {
                let committer = Mutex::new(committer);
                Queue::synchronous(state, faults, move |write| {
                    let (_, mut nothing) = mpsc::channel(1);
                    let mut committer = committer.lock().unwrap_or_else(PoisonError::into_inner);
                    committer.commit(write, &mut nothing);
                })
            }
            _ => {
                let (queue, sender, mut waiting) = Queue::new(state);
                let (opened, weak_sender) = (file.clone(), sender.downgrade());
                let usable = retirement.clone();
                committer
                    .checkpointer
                    .start_in_background(&file, move |db| {
                        // The signal is enough: a later write is refused.
                        let _ = open::must_still_be_usable(db, &opened.path, &usable);
                        // The writer makes the same check at its next commit, and checkpoints the log.
                        if opened.check().is_err()
                            && let Some(sender) = weak_sender.upgrade()
                        {
                            let _ = sender.try_send(Pending::check_files());
                        }
                    })?;
                std::thread::Builder::new()
                    .name("writer".to_owned())
                    .spawn(move || {
                        while let Some(first) = waiting.blocking_recv() {
                            committer.commit(first, &mut waiting);
                        }
                    })
                    .map_err(|error| file.error(error))?;
                queue
            }
        };
        Ok(Self {
            queue,
            retirement,
            empty_requested,
        })
    }

    /// Returns the writer of a file that is only read: it refuses every write.
    pub fn none() -> Self {
        Self {
            queue: Queue::read_only(DatabaseClock::default()),
            retirement: Retirement::default(),
            empty_requested: Arc::default(),
        }
    }

    /// Checkpoints the write-ahead log and truncates it, as far as readers allow.
    pub async fn checkpoint(&self) -> Result<(), StoreError> {
        self.empty_requested.store(true, Ordering::Release);
        self.queue.write(|reply| Write::CheckFiles { reply }).await
    }
}
