//! Orders in a PostgreSQL database that several machines share.
//!
//! One thread drives all connections. Reads of one statement share a few of them, each answering many
//! callers, and lookups of orders share statements too (`lookups`); a read of several statements has a
//! connection to itself.
//! Writes go through one writer (`writer`), which commits many in one `batch`: `row_work` changes
//! existing rows, and `changes` has the reconciler's changes among them.
//! `readers` repeats reads on new connections, `database` runs shared queries, and `dialect` translates them.
//! `connect` opens sessions and checks their server, with `settings`, `schema` and `history`.
//! `lead` elects the leader, and `listen` receives the commits of other programs.

mod address;
mod batch;
mod changes;
mod connect;
mod copy;
mod database;
mod dialect;
mod error;
mod history;
mod lead;
mod lines;
mod listen;
mod lookups;
mod open_error;
mod readers;
mod row_work;
mod schema;
mod session;
mod settings;
mod writer;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Mutex, Semaphore, mpsc, oneshot};
use tokio::time::Instant;

pub use self::address::{PostgresUrl, PostgresUrlError};
use self::connect::Connector;
use self::error::Error;
pub(super) use self::lead::LeaderLock;
use self::lead::Standby;
pub(super) use self::lines::LineSession;
use self::listen::Listener;
use self::lookups::Lookup;
pub(super) use self::open_error::ServerError;
use self::session::Session;
use self::writer::Writer;
use super::Retirement;
use super::mode::Mode;
use super::queries::{self, Read};
use super::queue::Queue;
use super::relocation::Purpose;
use super::rows::{open_order_columns, open_order_of};
use super::writer_state::WriterState;
use super::{Changes, DatabaseInfo, DatabaseSize, Durability, OpenError, OpenOrders, StoreError};

/// Number of connections that reads of one statement share, besides those of lookups.
const SHARED_READERS: usize = 2;

/// Number of connections for reads of several statements.
const SNAPSHOT_READERS: usize = 3;

/// Time limit of a read, repetitions on new connections included. A failover takes some seconds.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Time limit of reading the size of the database.
const SIZE_TIMEOUT: Duration = Duration::from_secs(2);

/// Time limit of a read of all orders.
const LONG_READ_TIMEOUT: Duration = Duration::from_secs(600);

/// Time limit of attempts to reach the server while a program starts.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// Time limit for an attempt on one connection, which is given up with it: its server may hang for ever.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(4);

/// Pause before another attempt to connect, to read or to run a transaction.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// Query for the first open orders after `$1`.
const NEXT_OPEN: &str = concat!(
    "SELECT ",
    open_order_columns!(),
    " FROM ((SELECT * FROM orders WHERE status = 'PROCESSING' AND seq > $1 ORDER BY seq LIMIT $2) \
     UNION ALL \
     (SELECT * FROM orders WHERE intent_at IS NOT NULL AND status || '' = 'CREATED' AND seq > $1 \
      ORDER BY seq LIMIT $2)) AS open \
     ORDER BY seq LIMIT $2"
);

/// Query for the size of the tables and indexes, in bytes.
const SIZE: &str = "SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_class \
                    WHERE relnamespace = 'order_service'::regnamespace AND relkind = 'r'";

/// Orders in one PostgreSQL database. The methods are those of [`Store`](super::Store).
#[derive(Clone)]
pub(super) struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    connector: Arc<Connector>,
    runtime: Handle,
    queue: Queue,
    /// Set if callers wait on their own threads, so that each answer is ready at once.
    is_synchronous: bool,
    /// The connection of lookups first, then those that other reads of one statement share.
    readers: [Mutex<Option<Arc<Session>>>; 1 + SHARED_READERS],
    next_reader: AtomicUsize,
    lookups: mpsc::UnboundedSender<Lookup>,
    snapshots: Semaphore,
    idle_snapshots: std::sync::Mutex<Vec<Session>>,
    standby: Standby,
    listener: Arc<Listener>,
    /// Ends the thread that drives the connections when it is dropped.
    _stop: oneshot::Sender<()>,
}

impl Engine {
    pub fn open(url: &PostgresUrl, mode: Mode) -> Result<Self, OpenError> {
        if let Mode::ReadOnly = mode {
            let connector = Connector::new(url, Purpose::Read)?;
            let (thread, session) = start(connector, |connector| async move {
                repeat(|| connector.session_for_reading()).await
            })?;
            let queue = Queue::read_only(thread.connector.clock().clone());
            return Ok(Self::new(thread, queue, false, vec![session]));
        }
        let must_exist = matches!(mode, Mode::Existing);
        let connector = Connector::new(url, Purpose::Use)?;
        let (thread, session) = start(connector, move |connector| async move {
            repeat(|| connector.prepare(must_exist)).await
        })?;
        let (connector, runtime) = (&thread.connector, &thread.runtime);
        if !must_exist && !connector.is_replicated() {
            log::warn!(
                "what is acknowledged is on the disk of one server alone: no standby has to flush it \
                 (synchronous_standby_names, synchronous_commit)"
            );
        }
        let state = WriterState::new(
            connector.clock().clone(),
            "the server cannot be reached, or does not answer",
        );
        let is_synchronous = matches!(mode, Mode::Synchronous(_));
        let mut writer = Writer::new(connector.clone(), session, state.clone());
        let queue = match mode {
            Mode::Synchronous(faults) => {
                let (writes, mut waiting) = mpsc::unbounded_channel();
                runtime.spawn(async move {
                    while let Some((write, done)) = waiting.recv().await {
                        let done: std::sync::mpsc::Sender<()> = done;
                        let (_, mut nothing) = mpsc::channel(1);
                        writer.commit(write, &mut nothing).await;
                        let _ = done.send(());
                    }
                });
                Queue::synchronous(state, faults, move |write| {
                    let (done, wait) = std::sync::mpsc::channel();
                    let _ = writes.send((write, done));
                    let _ = wait.recv();
                })
            }
            _ => {
                let (queue, _, waiting) = Queue::new(state);
                runtime.spawn(writer.run(waiting));
                queue
            }
        };
        Ok(Self::new(thread, queue, is_synchronous, Vec::new()))
    }

    fn new(thread: Thread, queue: Queue, is_synchronous: bool, idle: Vec<Session>) -> Self {
        let Thread {
            connector,
            runtime,
            stop,
        } = thread;
        runtime.spawn(connector.clone().watch_for_promotions());
        let (lookups, waiting) = mpsc::unbounded_channel();
        let inner = Arc::new(Inner {
            connector,
            runtime,
            queue,
            is_synchronous,
            readers: Default::default(),
            next_reader: AtomicUsize::new(0),
            lookups,
            snapshots: Semaphore::new(SNAPSHOT_READERS),
            idle_snapshots: std::sync::Mutex::new(idle),
            standby: Standby::default(),
            listener: Arc::default(),
            _stop: stop,
        });
        inner.answer_lookups(waiting);
        Self { inner }
    }

    pub fn queue(&self) -> &Queue {
        &self.inner.queue
    }

    pub async fn try_lock_lead(&self) -> Result<Option<LeaderLock>, StoreError> {
        let inner = self.inner.clone();
        let taken = self.inner.on_runtime(async move {
            tokio::time::timeout(READ_TIMEOUT, inner.standby.try_take(&inner.connector))
                .await
                .unwrap_or(Err(Error::TimedOut))
        });
        Ok(taken.await?)
    }

    pub async fn open_orders(&self) -> Result<OpenOrders, StoreError> {
        let mut list = OpenOrders::default();
        loop {
            let after = list.last_seq();
            let rows = self
                .read(Read::Statement, move |session| {
                    let limit = queries::READ_MAX as i64;
                    Box::pin(async move { session.query(NEXT_OPEN, &[&after, &limit]).await })
                })
                .await?;
            for row in &rows {
                let id = row.try_get(0).map_err(Error::from)?;
                let order = open_order_of(row)?;
                list.push(id, order).map_err(Error::value)?;
            }
            if rows.len() < queries::READ_MAX {
                return Ok(list);
            }
        }
    }

    pub fn info(&self) -> DatabaseInfo {
        let connector = &self.inner.connector;
        DatabaseInfo {
            address: connector.address().to_owned(),
            engine: "postgresql",
            durability: match connector.is_replicated() {
                true => Durability::Replicated,
                false => Durability::Disk,
            },
            writer: self.queue().stats(),
            reconnects: Some(connector.lost_connections()),
            lost_entries: connector.own_entries.lost(),
        }
    }

    pub async fn size(&self) -> DatabaseSize {
        let size = self.read(Read::Statement, |session| {
            Box::pin(session.value::<i64>(SIZE, &[]))
        });
        let size = tokio::time::timeout(SIZE_TIMEOUT, size).await;
        DatabaseSize {
            database: size.map_or(0, |size| size.map_or(0, i64::unsigned_abs)),
            log: None,
        }
    }

    /// Subscribes to the commits of this program and of others.
    pub fn changes(&self) -> Result<Changes, StoreError> {
        let own = self.queue().commits();
        let inner = &self.inner;
        let others = inner.listener.subscribe(&inner.connector, &inner.runtime);
        Ok(Changes { own, others })
    }

    pub fn retirement(&self) -> &Retirement {
        self.inner.connector.retirement()
    }
}

/// Opens the first session; a server that cannot be reached is tried again for a while.
async fn repeat<F>(open: impl Fn() -> F) -> Result<Session, Error>
where
    F: Future<Output = Result<Session, Error>>,
{
    let deadline = Instant::now() + OPEN_TIMEOUT;
    loop {
        match open().await {
            Err(error) if error.is_transient() && Instant::now() < deadline => {
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
            result => return result,
        }
    }
}

/// The thread that drives all connections, and the way to more of them.
struct Thread {
    connector: Arc<Connector>,
    runtime: Handle,
    /// Ends the thread when it is dropped.
    stop: oneshot::Sender<()>,
}

/// Starts the thread that drives all connections, and opens the first session on it.
fn start<F>(
    connector: Connector,
    open: impl FnOnce(Arc<Connector>) -> F,
) -> Result<(Thread, Session), OpenError>
where
    F: Future<Output = Result<Session, Error>> + Send + 'static,
{
    let other = |error: std::io::Error| {
        OpenError::new(connector.address(), ServerError::Other(Box::new(error)))
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(other)?;
    let handle = runtime.handle().clone();
    let (stop, stopped) = oneshot::channel::<()>();
    std::thread::Builder::new()
        .name("postgres".to_owned())
        .spawn(move || {
            // It is dropped, not sent.
            let _ = runtime.block_on(stopped);
        })
        .map_err(other)?;
    let connector = Arc::new(connector);
    let opened = on_thread(&handle, open(connector.clone())).unwrap_or(Err(Error::TimedOut));
    let session = opened.map_err(|error| error.into_open_error(connector.address()))?;
    let thread = Thread {
        connector,
        runtime: handle,
        stop,
    };
    Ok((thread, session))
}

/// Runs work on the thread that drives the connections, and blocks the calling thread until it ends.
fn on_thread<T: Send + 'static>(
    runtime: &Handle,
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, std::sync::mpsc::RecvError> {
    let (done, result) = std::sync::mpsc::channel();
    runtime.spawn(async move {
        let _ = done.send(work.await);
    });
    result.recv()
}
