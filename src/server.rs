//! Serves a tower service over HTTP/1.1 so that no client can hold up another, or the shutdown.
//!
//! Owns connections and their limits, and nothing else: it does not know what it serves. What is
//! served is in `api` and in `simulator`.

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

/// How long a client may take for the head of a request. It is the idle limit of a kept-alive
/// connection too, and therefore longer than most clients keep one in their pool.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);

/// The same for a client that came when all places were taken.
const CROWDED_HEAD_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a client may leave the answer unread before the connection is closed.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Connections served at once, if so many files may be open. Each costs some 10 KiB.
pub const CONNECTIONS_MAX: usize = 2048;

/// Connections served at once, however few files may be open.
const CONNECTIONS_MIN: usize = 64;

/// For so many connections there is one more, in the crowd: it is answered once, quickly, and then closed.
const SERVED_PER_CROWDED: usize = 8;

/// Files that are left for what is not a connection to this server: the database, and requests to the
/// upstream.
const OTHER_FILES: usize = 256;

/// Share of the connections that [long answers](LongAnswer) may take, in percent: the others are always
/// left for what is answered at once.
const LONG_PERCENT: usize = 75;

/// One in so many places is left to lists by streams.
const KEPT_FOR_LISTS: usize = 32;

/// The buffer of a connection, and with it the largest head of a request, in bytes.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// How long requests in flight may take to finish once the program is told to stop.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(15);

/// How long the last answers may take to leave, once all requests are answered.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);

/// Pause after a failed accept, which happens when file descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// An unusual condition of a request or its connection, which the served program may answer differently.
/// It is in the extensions of each such request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Situation {
    /// All places are taken.
    Crowded,
    /// The program is about to end.
    Draining,
    /// The request does not say once for which host it is.
    UnclearHost,
}

/// How many places for connections there are and how many are taken: shared by a server and
/// whoever tells of it.
#[derive(Clone)]
pub struct Occupancy {
    served_max: usize,
    crowd_max: usize,
    normal: Arc<Semaphore>,
    crowded: Arc<Semaphore>,
    long: Arc<Semaphore>,
    in_flight: InFlight,
}

/// A place for an answer that may take long, because it is held, or goes on, or is read slowly. One in
/// the extensions of a response is kept until that is written.
#[derive(Clone)]
pub struct LongAnswer {
    _permit: Arc<OwnedSemaphorePermit>,
}

impl Occupancy {
    /// Free places, as many as fit in this limit of open files.
    pub fn within(files: usize) -> Self {
        let for_connections = files.saturating_sub(OTHER_FILES);
        let served_max = (for_connections / (SERVED_PER_CROWDED + 1) * SERVED_PER_CROWDED)
            .clamp(CONNECTIONS_MIN, CONNECTIONS_MAX);
        let crowd_max = served_max / SERVED_PER_CROWDED;
        Self {
            served_max,
            crowd_max,
            normal: Arc::new(Semaphore::new(served_max)),
            crowded: Arc::new(Semaphore::new(crowd_max)),
            long: Arc::new(Semaphore::new(served_max * LONG_PERCENT / 100)),
            in_flight: InFlight::default(),
        }
    }

    /// Connections that are served, and how many may be.
    pub fn connections(&self) -> (usize, usize) {
        (taken(&self.normal, self.served_max), self.served_max)
    }

    /// Connections above that, which are only told that there is no place, and how many may be.
    pub fn crowd(&self) -> (usize, usize) {
        (taken(&self.crowded, self.crowd_max), self.crowd_max)
    }

    /// A place for an answer that may take long, if there is one.
    pub fn long_answer(&self) -> Option<LongAnswer> {
        let permit = self.long.clone().try_acquire_owned().ok()?;
        Some(LongAnswer {
            _permit: Arc::new(permit),
        })
    }

    /// A place for a stream, if there is one. Streams leave some to lists, which are read instead where
    /// there is no stream.
    pub fn stream(&self) -> Option<LongAnswer> {
        match self.long.available_permits() > self.served_max / KEPT_FOR_LISTS {
            true => self.long_answer(),
            false => None,
        }
    }

    /// Requests whose answers are not written yet.
    pub fn requests(&self) -> usize {
        self.in_flight.count()
    }
}

fn taken(places: &Semaphore, max: usize) -> usize {
    max.saturating_sub(places.available_permits())
}

/// Opens a listening socket at the address that `flag` set.
pub async fn listen(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        anyhow!(
            "cannot listen on {address}: {error}; {flag} takes another address, or port 0 for a free one"
        )
    })
}

/// Serves until `stop`, then lets requests in flight finish, for [`DRAIN_TIMEOUT`] at most. Until
/// they have, and `others` have ended too, new connections are answered as
/// [`Situation::Draining`].
pub async fn serve<S, B>(
    listener: TcpListener,
    service: S,
    occupancy: Occupancy,
    stop: CancellationToken,
    others: impl Future<Output = ()>,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible, Future: Send>,
    S: Clone + Send + 'static,
    B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Unpin + Send + 'static,
{
    // Each connection holds a receiver until its end.
    let (stopping, stopped) = watch::channel(());
    let in_flight = occupancy.in_flight.clone();
    let places = Places {
        occupancy,
        idle: Idle::default(),
        crowd: Mutex::default(),
    };
    loop {
        let (stream, place) = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            next = places.accept(&listener) => next,
        };
        let guest = place.guest(place.situation, &in_flight);
        let stopped = Some(stopped.clone());
        let service = service.clone();
        tokio::spawn(serve_connection(stream, place, guest, stopped, service));
    }
    drop(stopped);
    stopping.send_replace(());
    let drained = async {
        tokio::join!(others, async {
            tokio::select! {
                () = stopping.closed() => {}
                // Who has sent half of a head has asked for nothing yet, and is not waited for.
                () = in_flight.none() => tokio::time::sleep(FLUSH_TIMEOUT).await,
                () = tokio::time::sleep(DRAIN_TIMEOUT) => {
                    log::warn!("requests were still open after {DRAIN_TIMEOUT:?} and are cut off");
                }
            }
        });
    };
    tokio::pin!(drained);
    loop {
        tokio::select! {
            biased;
            () = &mut drained => return,
            (stream, place) = places.accept(&listener) => {
                let guest = place.guest(Some(Situation::Draining), &InFlight::default());
                tokio::spawn(serve_connection(stream, place, guest, None, service.clone()));
            }
        }
    }
}

/// Serves a connection until its end, or until it is sent away. Each request has the situation in its
/// extensions, and is in flight until its answer is written or given up.
async fn serve_connection<S, B>(
    stream: TcpStream,
    place: Place,
    guest: Guest,
    mut stopped: Option<watch::Receiver<()>>,
    service: S,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible, Future: Send>,
    S: Clone + Send + 'static,
    B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Unpin + Send + 'static,
{
    // To HTTP/1.0 the end of a connection is the end of an answer. So it is reset, whatever ends it,
    // the death of this program included, unless all was said.
    let _ = stream.set_zero_linger();
    // Answers are written whole: waiting to fill a segment would only delay them.
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE_TIMEOUT));
    let mut stream = Box::pin(stream);
    let is_usual = guest.situation.is_none();
    let service = service_fn(move |mut request: Request<Incoming>| {
        let begun = guest.begin();
        if let Some(situation) = normalize_host(&mut request).or(guest.situation) {
            request.extensions_mut().insert(situation);
        }
        // CONNECT names a host instead of a path, and warp expects a path.
        if request.uri().path_and_query().is_none() {
            *request.uri_mut() = Uri::from_static("/");
        }
        let answer = begun.is_some().then(|| service.clone().call(request));
        async move {
            let Some(answer) = answer else {
                // The connection has given way, and is about to be dropped.
                return std::future::pending().await;
            };
            let mut answer = answer.await?;
            let long = answer.extensions_mut().remove::<LongAnswer>();
            // The closure is dropped with the body, and ends the request then.
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
            .header_read_timeout(if is_usual {
                HEAD_TIMEOUT
            } else {
                CROWDED_HEAD_TIMEOUT
            })
            .max_buf_size(HEAD_BYTES_MAX)
            .keep_alive(is_usual)
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
    let ended = place.end.token().run_until_cancelled(served).await;
    if let Some(Err(error)) = &ended {
        log::debug!("connection: {error}");
    }
    if ended.is_some_and(|ended| !ended.is_err_and(|error| cuts_answer(&error))) {
        // What is still on its way gets there.
        let _ = set_socket_linger(stream.get_ref(), None);
    }
}

/// Returns whether an answer can have been cut off: its body failed, or the client did not take it.
fn cuts_answer(error: &hyper::Error) -> bool {
    let source = error.source();
    let io = source.and_then(|source| source.downcast_ref::<io::Error>());
    error.is_user() || io.is_some_and(|io| io.kind() == io::ErrorKind::TimedOut)
}

/// Makes `Host` the one host that a request is for. A target with a host stands above the header (RFC
/// 9112, section 3.2.2); HTTP/1.0 needs neither.
fn normalize_host<B>(request: &mut Request<B>) -> Option<Situation> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let is_clear = match (hosts.next(), hosts.next()) {
        (Some(_), None) => true,
        (None, _) => request.version() == Version::HTTP_10,
        (Some(_), Some(_)) => false,
    };
    if !is_clear {
        return Some(Situation::UnclearHost);
    }
    let named = request.uri().authority();
    if let Some(host) = named.and_then(|host| HeaderValue::from_str(host.as_str()).ok()) {
        request.headers_mut().insert(HOST, host);
    }
    None
}

/// The places for connections.
struct Places {
    occupancy: Occupancy,
    idle: Idle,
    /// Those in the crowd, oldest first: each with the means to send it away.
    crowd: Mutex<VecDeque<CancellationToken>>,
}

/// A connection's place.
struct Place {
    situation: Option<Situation>,
    /// The queue that it stands in while no request is in flight on it; a connection in the crowd is never
    /// idle.
    idle: Option<Idle>,
    /// Cancelled to end the connection, and once it has ended.
    end: DropGuard,
    _permit: OwnedSemaphorePermit,
}

impl Place {
    fn new(situation: Option<Situation>, idle: Option<Idle>, permit: OwnedSemaphorePermit) -> Self {
        Self {
            situation,
            idle,
            end: CancellationToken::new().drop_guard(),
            _permit: permit,
        }
    }

    /// The connection at this place.
    fn guest(&self, situation: Option<Situation>, in_flight: &InFlight) -> Guest {
        let end = self.end.token();
        Guest {
            situation,
            in_flight: in_flight.clone(),
            idleness: self.idle.as_ref().map(|idle| idle.enter(end.clone())),
        }
    }
}

impl Places {
    /// Waits for a connection, and finds a place for it: a free one, that of the connection that has
    /// been idle longest, or, if a request is in flight on each, one in the crowd. From there the oldest
    /// is sent away if need be: most likely one that has not asked for anything yet.
    async fn accept(&self, listener: &TcpListener) -> (TcpStream, Place) {
        let stream = loop {
            match listener.accept().await {
                Ok((stream, _)) => break stream,
                Err(error) => {
                    log::debug!("accept: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        };
        if let Some(permit) = self.served().await {
            return (stream, Place::new(None, Some(self.idle.clone()), permit));
        }
        let permit = loop {
            if let Ok(permit) = self.occupancy.crowded.clone().try_acquire_owned() {
                break permit;
            }
            if let Some(oldest) = self.crowd().pop_front() {
                oldest.cancel();
            }
            tokio::task::yield_now().await;
        };
        let place = Place::new(Some(Situation::Crowded), None, permit);
        let mut crowd = self.crowd();
        crowd.push_back(place.end.token().clone());
        // Some of those that are remembered have left by themselves.
        if crowd.len() > 2 * self.occupancy.crowd_max {
            crowd.retain(|sent_away| !sent_away.is_cancelled());
        }
        drop(crowd);
        (stream, place)
    }

    /// A place where a connection is served, unless a request is in flight on each that is.
    async fn served(&self) -> Option<OwnedSemaphorePermit> {
        let places = self.occupancy.normal.clone();
        if let Ok(permit) = places.clone().try_acquire_owned() {
            return Some(permit);
        }
        if !self.idle.end_longest() {
            return None;
        }
        // It comes as soon as that connection's task has run. The semaphore is never closed.
        places.acquire_owned().await.ok()
    }

    fn crowd(&self) -> MutexGuard<'_, VecDeque<CancellationToken>> {
        self.crowd.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection, as its requests see it.
struct Guest {
    situation: Option<Situation>,
    in_flight: InFlight,
    idleness: Option<Arc<Idleness>>,
}

impl Guest {
    /// Begins a request; nothing if the connection has given way to another one.
    fn begin(&self) -> Option<Begun> {
        if self
            .idleness
            .as_ref()
            .is_some_and(|idleness| !idleness.end())
        {
            return None;
        }
        Some(self.in_flight.begin(self.idleness.clone()))
    }
}

/// The connections that no request is in flight on, by since when: the one that has been idle longest
/// gives way to a new one when all places are taken. A client that keeps connections for later has to be
/// ready for that at any time anyway.
#[derive(Clone, Default)]
struct Idle(Arc<Mutex<IdleConnections>>);

#[derive(Default)]
struct IdleConnections {
    /// Each with the means to end it. The numbers grow with time.
    since: BTreeMap<u64, CancellationToken>,
    last: u64,
}

impl Idle {
    /// A new connection, which is idle until its first request.
    fn enter(&self, end: CancellationToken) -> Arc<Idleness> {
        let idleness = Idleness {
            since: AtomicU64::new(0),
            idle: self.clone(),
            connection: end,
        };
        idleness.begin();
        Arc::new(idleness)
    }

    /// Ends the connection that has been idle longest; false if none is idle.
    fn end_longest(&self) -> bool {
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

/// A connection's part in [`Idle`], which it leaves with the drop.
struct Idleness {
    /// Its number there, or 0 while it is not idle.
    since: AtomicU64,
    idle: Idle,
    connection: CancellationToken,
}

impl Idleness {
    fn begin(&self) {
        let mut idle = self.idle.lock();
        idle.last += 1;
        let since = idle.last;
        idle.since.insert(since, self.connection.clone());
        self.since.store(since, Ordering::Relaxed);
    }

    /// Ends it; false if the connection has given way.
    fn end(&self) -> bool {
        let mut idle = self.idle.lock();
        let since = self.since.swap(0, Ordering::Relaxed);
        since == 0 || idle.since.remove(&since).is_some()
    }
}

impl Drop for Idleness {
    fn drop(&mut self) {
        self.end();
    }
}

/// The requests whose answers are not written yet.
#[derive(Clone, Default)]
struct InFlight(Arc<InFlightCount>);

#[derive(Default)]
struct InFlightCount {
    count: AtomicUsize,
    none: Notify,
}

impl InFlight {
    fn begin(&self, idleness: Option<Arc<Idleness>>) -> Begun {
        self.0.count.fetch_add(1, Ordering::AcqRel);
        Begun {
            in_flight: self.0.clone(),
            idleness,
        }
    }

    fn count(&self) -> usize {
        self.0.count.load(Ordering::Acquire)
    }

    /// Returns when there are none.
    async fn none(&self) {
        loop {
            // Before the count is read: it may fall in between.
            let none = self.0.none.notified();
            if self.count() == 0 {
                return;
            }
            none.await;
        }
    }
}

/// A request in flight; it is over when this is dropped.
struct Begun {
    in_flight: Arc<InFlightCount>,
    idleness: Option<Arc<Idleness>>,
}

impl Drop for Begun {
    fn drop(&mut self) {
        if let Some(idleness) = &self.idleness {
            idleness.begin();
        }
        if self.in_flight.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.in_flight.none.notify_waiters();
        }
    }
}

/// Raises the limit of open files towards what all connections need together, as far as the system
/// allows without privileges. Returns the limit.
pub fn raise_file_limit() -> usize {
    let wanted = CONNECTIONS_MAX + CONNECTIONS_MAX / SERVED_PER_CROWDED + OTHER_FILES;
    let limit = getrlimit(Resource::Nofile);
    // None is no limit.
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
            "only {limit_now} files may be open at once; {wanted} would be enough for \
             {CONNECTIONS_MAX} connections"
        );
    }
    usize::try_from(limit_now).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_as_many_places_as_files_may_be_open_for_them() {
        for (files, served, crowd) in [
            (0, 64, 8),
            (256, 64, 8),
            (1_024, 680, 85),
            (2_560, 2_048, 256),
            (usize::MAX, 2_048, 256),
        ] {
            let occupancy = Occupancy::within(files);
            assert_eq!(occupancy.connections(), (0, served), "{files}");
            assert_eq!(occupancy.crowd(), (0, crowd), "{files}");
            let long = std::iter::from_fn(|| occupancy.long_answer());
            assert_eq!(long.collect::<Vec<_>>().len(), served / 4 * 3);
        }
    }
}
