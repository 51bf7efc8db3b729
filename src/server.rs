//! An HTTP/1.1 server for a tower service, in which no client can delay another one or the shutdown.
//!
//! Owns connections and their limits, and nothing else: `api` and `simulator` supply the services.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::anyhow;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::header::{HOST, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, Uri, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt::set_socket_linger;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tower_service::Service;

/// Maximum time for a client to send the head of a request. It is also the idle limit of a kept-alive
/// connection, and therefore longer than most clients keep one in their pool.
const HEADER_TIMEOUT: Duration = Duration::from_secs(75);

/// Like [`HEADER_TIMEOUT`], for a connection in the overflow.
const OVERFLOW_HEADER_TIMEOUT: Duration = Duration::from_secs(2);

/// Maximum time for which a client may leave its answer unread before the connection is closed.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum number of connections served at once, if the limit of open files allows it. Each takes about
/// 10 KiB.
pub const CONNECTIONS_MAX: usize = 2048;

/// Maximum number of connections served at once, however low the limit of open files.
const CONNECTIONS_MIN: usize = 64;

/// Number of slots for each one in the overflow, whose connection is answered once, quickly, and then
/// closed.
const SERVED_PER_OVERFLOW: usize = 8;

/// Open files reserved for other uses than connections: the database, and requests to the upstream.
const OTHER_FILES: usize = 256;

/// Maximum share of the slots that [long answers](LongAnswer) may take, in percent: the others are
/// reserved for requests that are answered at once.
const LONG_PERCENT: usize = 75;

/// Divisor of the slots: streams leave one in this many to lists.
const RESERVED_FOR_LISTS: usize = 32;

/// Size of the buffer of a connection, and so of the largest head of a request, in bytes.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Maximum time for requests in flight to finish at shutdown.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(15);

/// Time for the last answers to be sent once all requests are answered.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);

/// Pause before a failed accept is retried: file descriptors may have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// An exceptional state of a connection or its request, stored in the extensions of the request so that
/// the service can answer differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionState {
    /// All slots are taken.
    Overflow,
    /// The server is shutting down.
    Draining,
    /// The request does not name exactly one host.
    AmbiguousHost,
}

/// The slots for connections and their use, shared by a server and the metrics.
#[derive(Clone)]
pub struct ConnectionStats {
    served_max: usize,
    overflow_max: usize,
    normal: Arc<Semaphore>,
    overflow: Arc<Semaphore>,
    long: Arc<Semaphore>,
    in_flight: InFlight,
}

/// A permit for an answer that may take long: a held request, a stream, or a long list. A permit in the
/// extensions of a response is kept until the response is written.
#[derive(Clone)]
pub struct LongAnswer {
    _permit: Arc<OwnedSemaphorePermit>,
}

impl ConnectionStats {
    /// Returns free slots, as many as fit in this limit of open files.
    pub fn within(files: usize) -> Self {
        let for_connections = files.saturating_sub(OTHER_FILES);
        let served_max = (for_connections / (SERVED_PER_OVERFLOW + 1) * SERVED_PER_OVERFLOW)
            .clamp(CONNECTIONS_MIN, CONNECTIONS_MAX);
        let overflow_max = served_max / SERVED_PER_OVERFLOW;
        Self {
            served_max,
            overflow_max,
            normal: Arc::new(Semaphore::new(served_max)),
            overflow: Arc::new(Semaphore::new(overflow_max)),
            long: Arc::new(Semaphore::new(served_max * LONG_PERCENT / 100)),
            in_flight: InFlight::default(),
        }
    }

    /// Returns the number of connections that are served, and its maximum.
    pub fn served(&self) -> (usize, usize) {
        (taken(&self.normal, self.served_max), self.served_max)
    }

    /// Returns the number of connections in the overflow, which get one answer only, and its maximum.
    pub fn overflow(&self) -> (usize, usize) {
        (taken(&self.overflow, self.overflow_max), self.overflow_max)
    }

    /// Takes a permit for a long answer, if there is one.
    pub fn long_answer(&self) -> Option<LongAnswer> {
        let permit = self.long.clone().try_acquire_owned().ok()?;
        Some(LongAnswer {
            _permit: Arc::new(permit),
        })
    }

    /// Takes a permit for a stream, if there is one. Streams leave some permits to lists, which clients
    /// read where they get no stream.
    pub fn stream(&self) -> Option<LongAnswer> {
        match self.long.available_permits() > self.served_max / RESERVED_FOR_LISTS {
            true => self.long_answer(),
            false => None,
        }
    }

    /// Returns the number of requests whose answers are not written yet.
    pub fn requests(&self) -> usize {
        self.in_flight.count()
    }
}

fn taken(slots: &Semaphore, max: usize) -> usize {
    max.saturating_sub(slots.available_permits())
}

/// Listens at the address that `flag` set.
pub async fn listen(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        anyhow!(
            "cannot listen on {address}: {error}; set {flag} to another address, or to port 0 for a free one"
        )
    })
}

/// Serves until `stop`, then lets requests in flight finish, for [`DRAIN_TIMEOUT`] at most. Until they
/// and `others` have finished, new connections are in the state [`ConnectionState::Draining`].
pub async fn serve<S, B>(
    listener: TcpListener,
    service: S,
    stats: ConnectionStats,
    stop: CancellationToken,
    others: impl Future<Output = ()>,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible, Future: Send>,
    S: Clone + Send + 'static,
    B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Unpin + Send + 'static,
{
    // Each connection keeps a receiver until its end.
    let (stopping, stopped) = watch::channel(());
    let in_flight = stats.in_flight.clone();
    let slots = Slots {
        stats,
        idle: IdleQueue::default(),
        overflow: Mutex::default(),
    };
    loop {
        let (stream, slot) = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            next = slots.accept(&listener) => next,
        };
        let tracker = slot.tracker(slot.state, &in_flight);
        let stopped = Some(stopped.clone());
        let service = service.clone();
        tokio::spawn(serve_connection(stream, slot, tracker, stopped, service));
    }
    drop(stopped);
    stopping.send_replace(());
    let drained = async {
        tokio::join!(others, async {
            tokio::select! {
                () = stopping.closed() => {}
                // Does not wait for connections that have not sent a complete request head.
                () = in_flight.none() => tokio::time::sleep(FLUSH_TIMEOUT).await,
                () = tokio::time::sleep(DRAIN_TIMEOUT) => {
                    log::warn!("drain timed out; open requests are cut off timeout={DRAIN_TIMEOUT:?}");
                }
            }
        });
    };
    tokio::pin!(drained);
    loop {
        tokio::select! {
            biased;
            () = &mut drained => return,
            (stream, slot) = slots.accept(&listener) => {
                let tracker = slot.tracker(Some(ConnectionState::Draining), &InFlight::default());
                tokio::spawn(serve_connection(stream, slot, tracker, None, service.clone()));
            }
        }
    }
}

/// Serves a connection until its end, or until it is evicted. Each request has the state in its
/// extensions, and is in flight until its answer is written or aborted.
async fn serve_connection<S, B>(
    stream: TcpStream,
    slot: Slot,
    tracker: RequestTracker,
    mut stopped: Option<watch::Receiver<()>>,
    service: S,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible, Future: Send>,
    S: Clone + Send + 'static,
    B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Unpin + Send + 'static,
{
    // In HTTP/1.0 the end of the connection is the end of an answer. So whatever ends it, a crash of
    // this program included, resets it, unless the answer was complete.
    let _ = stream.set_zero_linger();
    // Answers are written whole, so Nagle's algorithm would only delay them.
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE_TIMEOUT));
    let mut stream = Box::pin(stream);
    let is_regular = tracker.state.is_none();
    let service = service_fn(move |mut request: Request<Incoming>| {
        let begun = tracker.begin();
        if let Some(state) = normalize_host(&mut request).or(tracker.state) {
            request.extensions_mut().insert(state);
        }
        // CONNECT has a host instead of a path, and warp requires a path.
        if request.uri().path_and_query().is_none() {
            *request.uri_mut() = Uri::from_static("/");
        }
        let answer = begun.is_some().then(|| service.clone().call(request));
        async move {
            let Some(answer) = answer else {
                // The connection was evicted, and is about to be dropped.
                return std::future::pending().await;
            };
            let mut answer = answer.await?;
            let long = answer.extensions_mut().remove::<LongAnswer>();
            // The closure is dropped with the body, which ends the request.
            let written = |body: B| {
                body.map_err(move |error| {
                    let _ = (&begun, &long);
                    error
                })
            };
            Ok::<_, Infallible>(answer.map(written))
        }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(if is_regular {
                HEADER_TIMEOUT
            } else {
                OVERFLOW_HEADER_TIMEOUT
            })
            .max_buf_size(HEAD_BYTES_MAX)
            .keep_alive(is_regular)
            .serve_connection(TokioIo::new(stream.as_mut()), service)
    );
    let served = async {
        if let Some(stopped) = &mut stopped {
            tokio::select! {
                ended = connection.as_mut() => return ended,
                _ = stopped.changed() => connection.as_mut().graceful_shutdown(),
            }
        }
        connection.as_mut().await
    };
    let ended = slot.end.token().run_until_cancelled(served).await;
    if let Some(Err(error)) = &ended {
        log::debug!("connection: {error}");
    }
    if ended.is_some_and(|ended| !ended.is_err_and(|error| cuts_answer(&error))) {
        // The answer was complete: unsent data is still sent.
        let _ = set_socket_linger(stream.get_ref(), None);
    }
}

/// Returns whether an answer may have been cut off: its body failed, or the client did not read it.
fn cuts_answer(error: &hyper::Error) -> bool {
    let source = error.source();
    let io = source.and_then(|source| source.downcast_ref::<io::Error>());
    error.is_user() || io.is_some_and(|io| io.kind() == io::ErrorKind::TimedOut)
}

/// Sets `Host` to the host of the request. A target with a host overrides the header (RFC 9112, section
/// 3.2.2); HTTP/1.0 needs neither.
fn normalize_host<B>(request: &mut Request<B>) -> Option<ConnectionState> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let is_clear = match (hosts.next(), hosts.next()) {
        (Some(_), None) => true,
        (None, _) => request.version() == Version::HTTP_10,
        (Some(_), Some(_)) => false,
    };
    if !is_clear {
        return Some(ConnectionState::AmbiguousHost);
    }
    let named = request.uri().authority();
    if let Some(host) = named.and_then(|host| HeaderValue::from_str(host.as_str()).ok()) {
        request.headers_mut().insert(HOST, host);
    }
    None
}

/// The slots of a server.
struct Slots {
    stats: ConnectionStats,
    idle: IdleQueue,
    /// Tokens that end the connections in the overflow, oldest first.
    overflow: Mutex<VecDeque<CancellationToken>>,
}

/// The slot of a connection.
struct Slot {
    state: Option<ConnectionState>,
    /// Queue for times without a request in flight; `None` in the overflow, which is never idle.
    idle: Option<IdleQueue>,
    /// Guard of the token that ends the connection, cancelled at its end too.
    end: DropGuard,
    _permit: OwnedSemaphorePermit,
}

impl Slot {
    fn new(
        state: Option<ConnectionState>,
        idle: Option<IdleQueue>,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            state,
            idle,
            end: CancellationToken::new().drop_guard(),
            _permit: permit,
        }
    }

    /// Returns the tracker of this connection's requests.
    fn tracker(&self, state: Option<ConnectionState>, in_flight: &InFlight) -> RequestTracker {
        let end = self.end.token();
        RequestTracker {
            state,
            in_flight: in_flight.clone(),
            idle_entry: self.idle.as_ref().map(|idle| idle.enter(end.clone())),
        }
    }
}

impl Slots {
    /// Accepts a connection, and assigns a slot: a free one, that of the connection that has been idle
    /// longest, or, if all have a request in flight, one in the overflow. A full overflow evicts its
    /// oldest connection, most likely one that has not sent a request.
    async fn accept(&self, listener: &TcpListener) -> (TcpStream, Slot) {
        let stream = loop {
            match listener.accept().await {
                Ok((stream, _)) => break stream,
                Err(error) => {
                    log::debug!("accept: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        };
        if let Some(permit) = self.take_slot().await {
            return (stream, Slot::new(None, Some(self.idle.clone()), permit));
        }
        let permit = loop {
            if let Ok(permit) = self.stats.overflow.clone().try_acquire_owned() {
                break permit;
            }
            if let Some(oldest) = self.overflow().pop_front() {
                oldest.cancel();
            }
            tokio::task::yield_now().await;
        };
        let slot = Slot::new(Some(ConnectionState::Overflow), None, permit);
        let mut overflow = self.overflow();
        overflow.push_back(slot.end.token().clone());
        // Some of the connections have ended by themselves.
        if overflow.len() > 2 * self.stats.overflow_max {
            overflow.retain(|end| !end.is_cancelled());
        }
        drop(overflow);
        (stream, slot)
    }

    /// Takes a slot, if need be by evicting the connection that has been idle longest. Returns `None` if
    /// all have a request in flight.
    async fn take_slot(&self) -> Option<OwnedSemaphorePermit> {
        let slots = self.stats.normal.clone();
        if let Ok(permit) = slots.clone().try_acquire_owned() {
            return Some(permit);
        }
        if !self.idle.evict_longest() {
            return None;
        }
        // The evicted connection's task releases its permit. The semaphore is never closed.
        slots.acquire_owned().await.ok()
    }

    fn overflow(&self) -> MutexGuard<'_, VecDeque<CancellationToken>> {
        self.overflow.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The state of a connection that its requests share.
struct RequestTracker {
    state: Option<ConnectionState>,
    in_flight: InFlight,
    idle_entry: Option<Arc<IdleEntry>>,
}

impl RequestTracker {
    /// Begins a request. Returns `None` if the connection was evicted.
    fn begin(&self) -> Option<RequestGuard> {
        if self
            .idle_entry
            .as_ref()
            .is_some_and(|idle_entry| !idle_entry.end())
        {
            return None;
        }
        Some(self.in_flight.begin(self.idle_entry.clone()))
    }
}

/// A queue of the connections without a request in flight. When all slots are taken, a new connection
/// evicts the one that has been idle longest: clients that pool connections have to tolerate that at any
/// time anyway.
#[derive(Clone, Default)]
struct IdleQueue(Arc<Mutex<IdleConnections>>);

#[derive(Default)]
struct IdleConnections {
    /// Tokens that end the connections, by a number that grows with time.
    since: BTreeMap<u64, CancellationToken>,
    last: u64,
}

impl IdleQueue {
    /// Adds a new connection, which is idle until its first request.
    fn enter(&self, end: CancellationToken) -> Arc<IdleEntry> {
        let idle_entry = IdleEntry {
            since: AtomicU64::new(0),
            idle: self.clone(),
            connection: end,
        };
        idle_entry.begin();
        Arc::new(idle_entry)
    }

    /// Evicts the connection that has been idle longest. Returns false if none is idle.
    fn evict_longest(&self) -> bool {
        let longest = self.lock().since.pop_first();
        if let Some((_, end)) = &longest {
            end.cancel();
        }
        longest.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, IdleConnections> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's entry in [`IdleQueue`], removed on drop.
struct IdleEntry {
    /// Number in the queue; 0 while a request is in flight.
    since: AtomicU64,
    idle: IdleQueue,
    connection: CancellationToken,
}

impl IdleEntry {
    fn begin(&self) {
        let mut idle = self.idle.lock();
        idle.last += 1;
        let since = idle.last;
        idle.since.insert(since, self.connection.clone());
        self.since.store(since, Ordering::Relaxed);
    }

    /// Leaves the queue. Returns false if the connection was evicted.
    fn end(&self) -> bool {
        let mut idle = self.idle.lock();
        let since = self.since.swap(0, Ordering::Relaxed);
        since == 0 || idle.since.remove(&since).is_some()
    }
}

impl Drop for IdleEntry {
    fn drop(&mut self) {
        self.end();
    }
}

/// A counter of the requests whose answers are not written yet.
#[derive(Clone, Default)]
struct InFlight(Arc<InFlightCount>);

#[derive(Default)]
struct InFlightCount {
    count: AtomicUsize,
    none: Notify,
}

impl InFlight {
    fn begin(&self, idle_entry: Option<Arc<IdleEntry>>) -> RequestGuard {
        self.0.count.fetch_add(1, Ordering::AcqRel);
        RequestGuard {
            in_flight: self.0.clone(),
            idle_entry,
        }
    }

    fn count(&self) -> usize {
        self.0.count.load(Ordering::Acquire)
    }

    /// Waits until no request is in flight.
    async fn none(&self) {
        loop {
            // Created before the count is read, so that no notification is missed.
            let none = self.0.none.notified();
            if self.count() == 0 {
                return;
            }
            none.await;
        }
    }
}

/// A guard of a request in flight, which ends on drop.
struct RequestGuard {
    in_flight: Arc<InFlightCount>,
    idle_entry: Option<Arc<IdleEntry>>,
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        if let Some(idle_entry) = &self.idle_entry {
            idle_entry.begin();
        }
        if self.in_flight.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.in_flight.none.notify_waiters();
        }
    }
}

/// Raises the limit of open files to what all connections need, as far as possible without privileges.
/// Returns the limit.
pub fn raise_file_limit() -> usize {
    let wanted = CONNECTIONS_MAX + CONNECTIONS_MAX / SERVED_PER_OVERFLOW + OTHER_FILES;
    let limit = getrlimit(Resource::Nofile);
    // `None` means unlimited.
    let (now, max) = (
        limit.current.unwrap_or(u64::MAX),
        limit.maximum.unwrap_or(u64::MAX),
    );
    let raised = now.max(max.min(wanted as u64));
    let mut limit_now = now;
    if raised > now {
        let limit = Rlimit {
            current: Some(raised),
            maximum: limit.maximum,
        };
        match setrlimit(Resource::Nofile, limit) {
            Ok(()) => limit_now = raised,
            Err(error) => log::warn!("cannot raise the limit of open files: {error}"),
        }
    }
    if limit_now < wanted as u64 {
        log::warn!(
            "limit of open files is low limit={limit_now} wanted={wanted} \
             connections={CONNECTIONS_MAX}"
        );
    }
    usize::try_from(limit_now).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_as_many_as_the_limit_of_open_files_allows() {
        for (files, served, overflow) in [
            (0, 64, 8),
            (256, 64, 8),
            (1_024, 680, 85),
            (2_560, 2_048, 256),
            (usize::MAX, 2_048, 256),
        ] {
            let stats = ConnectionStats::within(files);
            assert_eq!(stats.served(), (0, served), "{files}");
            assert_eq!(stats.overflow(), (0, overflow), "{files}");
            let long = std::iter::from_fn(|| stats.long_answer());
            assert_eq!(long.collect::<Vec<_>>().len(), served / 4 * 3);
        }
    }
}
