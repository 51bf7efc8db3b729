//! Tests of commits against real files, with another holder of the write lock.

use std::fs::File;
use std::time::Duration;

use super::super::file::{WRITE_LOCK, lock_file};
use super::super::open;
use super::*;
use crate::order::{OrderId, Status, Timestamp};
use crate::store::queue::QUEUE_MAX;
use crate::store::{DatabaseUrl, Mode, Store};

struct Bench {
    _folder: tempfile::TempDir,
    store: Store,
    /// The write lock as another program opens it.
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
        let log = std::fs::read(format!("{}-wal", self.store.info().address)).unwrap();
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
    let log = format!("{}-wal", bench.store.info().address);
    assert!(std::fs::metadata(&log).unwrap().len() > 0);
    bench.store.checkpoint().await;
    assert_eq!(std::fs::metadata(&log).unwrap().len(), 0);
}

#[tokio::test]
async fn one_bad_row_does_not_fail_the_others_of_its_batch() {
    let bench = Bench::new();
    let refuse = "CREATE TRIGGER refuse BEFORE INSERT ON orders WHEN NEW.id = 'bad' \
                  BEGIN SELECT RAISE(ABORT, 'a bad row'); END";
    let db = Connection::open(bench.store.info().address).unwrap();
    db.execute_batch(refuse).unwrap();
    bench.other.lock().unwrap();
    let good = bench.create("a1");
    let bad = bench.create("bad");
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
    assert_eq!(bench.store.info().writer.unwritable, 1);
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
    while bench.store.info().writer.overloaded < 9 {
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
    let stats = bench.store.info().writer;
    assert_eq!((stats.overloaded, stats.unwritable), (overloaded, 0));
    assert_eq!((stats.waiting, stats.waiting_max), (0, QUEUE_MAX));
    let created = (QUEUE_MAX + 10) as u64 - overloaded;
    assert_eq!(stats.commit_sizes.sum(), created);
    assert!(stats.commit_sizes.total() < created, "they share commits");
    assert_eq!(stats.commit_times.total(), stats.commit_sizes.total());
}

#[test]
fn no_condition_of_the_schema_has_a_table_built_to_check_it() {
    let db = open::empty(open::FORMAT).unwrap();
    for sql in [
        INSERT_ORDER,
        INSERT_ENTRY,
        "UPDATE orders SET status = 'FAILED', attention = NULL WHERE seq = 1",
    ] {
        let mut query = db.prepare(&format!("EXPLAIN {sql}")).unwrap();
        let given = vec![0; query.parameter_count()];
        let steps = query
            .query_map(rusqlite::params_from_iter(given), |row| {
                row.get::<_, String>(1)
            })
            .unwrap();
        let steps: Vec<_> = steps.collect::<Result<_, _>>().unwrap();
        assert!(!steps.is_empty());
        assert!(!steps.contains(&"OpenEphemeral".to_owned()), "{sql}");
    }
}
