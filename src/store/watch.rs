//! Notices orders that were created, by whatever process.
//!
//! It is asked many times a second, for ever, and the answer is nearly always no. What the answer
//! then costs is what an idle reconciler costs.

use std::fs::File;
use std::io;
use std::time::{Duration, SystemTime};

use r2d2_sqlite::SqliteConnectionManager;

use super::file::beside;
use super::{Store, StoreError, newest_seq};

/// How long after the file was written a commit may come to be seen: the flush lies between. Of one
/// that takes longer the schedule takes care. It is also far longer than two writes can have the
/// same time.
const SEEN_WITHIN: Duration = Duration::from_secs(1);

/// Notices orders created by any process, at the cost of a glance at a file's time.
pub struct Watch {
    db: r2d2::PooledConnection<SqliteConnectionManager>,
    /// The write-ahead log, which every commit writes to.
    log: File,
    written_at: SystemTime,
    version: i64,
    newest: i64,
}

impl Watch {
    /// Whether an order was created since this was last asked.
    pub fn has_new_order(&mut self) -> Result<bool, StoreError> {
        // If the file cannot be asked, SQLite can.
        if !self.may_be_news().unwrap_or(true) {
            return Ok(false);
        }
        let version = self
            .db
            .prepare_cached("PRAGMA data_version")?
            .query_row([], |row| row.get(0))?;
        if version == self.version {
            return Ok(false);
        }
        self.version = version;
        let newest = newest_seq(&self.db)?;
        let is_new = newest > self.newest;
        self.newest = newest;
        Ok(is_new)
    }

    /// Whether there may be a commit that was not seen when this was last asked.
    fn may_be_news(&mut self) -> io::Result<bool> {
        let written_at = self.log.metadata()?.modified()?;
        let is_later = written_at != self.written_at;
        self.written_at = written_at;
        // A clock that was set back says nothing.
        let age = written_at.elapsed().unwrap_or_default();
        Ok(is_later || age < SEEN_WITHIN)
    }
}

impl Store {
    /// Something that notices orders created by any process.
    pub fn watch(&self) -> Result<Watch, StoreError> {
        let db = self.inner.readers.get()?;
        // The log is there once something was read.
        newest_seq(&db)?;
        let log = File::open(beside(self.path(), "-wal"))
            .map_err(|error| StoreError::Unreadable(Box::new(error)))?;
        let mut watch = Watch {
            db,
            log,
            written_at: SystemTime::UNIX_EPOCH,
            version: 0,
            newest: 0,
        };
        watch.has_new_order()?;
        Ok(watch)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{DatabasePath, Mode};
    use super::*;
    use crate::order::{OrderId, Timestamp};

    async fn create(store: &Store, id: String) {
        let id = OrderId::new(id).unwrap();
        store.create(id, Timestamp(1)).await.unwrap();
    }

    #[tokio::test]
    async fn each_new_order_is_noticed_however_soon_after_another_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = DatabasePath::from(folder.path().join("orders.db"));
        let store = Store::open(&path, Mode::Threaded).unwrap();
        let other = Store::open(&path, Mode::Threaded).unwrap();
        let mut watch = store.watch().unwrap();
        assert!(!watch.has_new_order().unwrap());
        for n in 0..100 {
            let by = if n % 2 == 0 { &store } else { &other };
            create(by, format!("a{n}")).await;
            assert!(watch.has_new_order().unwrap(), "{n}");
            assert!(!watch.has_new_order().unwrap(), "{n}");
        }
        store.probe(Timestamp(1)).await.unwrap();
        assert!(!watch.has_new_order().unwrap());
        std::thread::sleep(2 * SEEN_WITHIN);
        assert!(!watch.may_be_news().unwrap(), "nothing is asked of SQLite");
        create(&other, "late".to_owned()).await;
        assert!(watch.has_new_order().unwrap());
    }
}
