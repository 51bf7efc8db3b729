//! Detection of commits by other programs, by polling the modification time of the write-ahead
//! log.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;

use super::Engine;
use super::file::with_suffix;
use crate::store::{Changes, StoreError};

/// Time after the last write to the log within which a commit may become visible: the flush lies
/// between. It is also far longer than the resolution of file times.
const VISIBLE_WITHIN: Duration = Duration::from_millis(200);

/// Interval between two polls, which are nearly all the work of an idle reconciler: 50 a second take
/// 0.25 % of a core.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

impl Engine {
    /// Subscribes to the commits of this program, which are reported immediately, and to those of
    /// other programs, which a poll detects. The polling thread ends with the subscription.
    pub fn changes(&self) -> Result<Changes, StoreError> {
        let others = Arc::new(Notify::new());
        let changes = Changes {
            own: self.queue().commits(),
            others: others.clone(),
        };
        let listener = Arc::downgrade(&others);
        let mut log = Log::new(&self.inner.path);
        let poll = move || {
            loop {
                std::thread::sleep(POLL_INTERVAL);
                let Some(others) = listener.upgrade() else {
                    break;
                };
                // If the file's time cannot be read, a query decides.
                if log.may_have_commits().unwrap_or(true) {
                    others.notify_one();
                }
            }
        };
        // A thread's sleep and a poll take 50 us of processor time; a runtime timer and a poll 80.
        let thread = std::thread::Builder::new().name("commits".to_owned());
        let spawned = thread.spawn(poll);
        spawned.map_err(|error| StoreError::Unreadable(Box::new(error)))?;
        Ok(changes)
    }
}

/// The write-ahead log, which every commit writes to.
struct Log {
    path: PathBuf,
    written_at: Option<SystemTime>,
}

impl Log {
    fn new(database: &Path) -> Self {
        Self {
            path: with_suffix(database, "-wal"),
            written_at: None,
        }
    }

    /// Returns true if a commit may have become visible since the last call.
    fn may_have_commits(&mut self) -> io::Result<bool> {
        let written_at = self.path.metadata()?.modified()?;
        let is_later = self.written_at.replace(written_at) != Some(written_at);
        // After a clock was set back, file times prove nothing.
        let age = written_at.elapsed().unwrap_or_default();
        Ok(is_later || age < VISIBLE_WITHIN)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use futures_util::FutureExt;

    use super::*;
    use crate::order::Timestamp;
    use crate::store::{DatabaseUrl, Mode, Store};

    /// Opens the stores of two programs.
    fn stores() -> (tempfile::TempDir, [Store; 2]) {
        let folder = tempfile::tempdir().unwrap();
        let path = DatabaseUrl::from(folder.path().join("orders.db"));
        let stores = [(), ()].map(|()| Store::open(&path, Mode::Threaded).unwrap());
        (folder, stores)
    }

    impl Log {
        /// Sets the last write to some time ago.
        fn age(&self) {
            let long_ago = SystemTime::now() - 2 * VISIBLE_WITHIN;
            let file = File::options().write(true).open(&self.path).unwrap();
            file.set_modified(long_ago).unwrap();
        }
    }

    #[tokio::test]
    async fn a_commit_of_this_process_wakes_everyone_once_without_a_poll() {
        let (_folder, [store, other]) = stores();
        let mut receivers = [(), ()].map(|()| Changes {
            own: store.queue().commits(),
            others: Arc::default(),
        });
        store.check_writable(Timestamp(1)).await.unwrap();
        for receiver in &mut receivers {
            assert!(receiver.next().now_or_never().is_some());
            assert!(receiver.next().now_or_never().is_none());
        }
        other.check_writable(Timestamp(1)).await.unwrap();
        assert!(receivers[0].next().now_or_never().is_none());
    }

    #[tokio::test]
    async fn a_poll_finds_each_commit_of_another_process_and_nothing_else() {
        let (_folder, [store, other]) = stores();
        let mut log = Log::new(store.info().address.as_ref());
        other.check_writable(Timestamp(1)).await.unwrap();
        assert!(log.may_have_commits().unwrap());
        assert!(log.may_have_commits().unwrap(), "it may not be visible yet");
        log.age();
        assert!(log.may_have_commits().unwrap());
        assert!(!log.may_have_commits().unwrap());
        other.check_writable(Timestamp(1)).await.unwrap();
        assert!(log.may_have_commits().unwrap());
    }
}
