//! Serves a tower service over HTTP/1.1 so that no client can hold up another, or the shutdown.
//!
//! Owns connections and their limits, and nothing else: it does not know what it serves. What is
//! served is in `api` and in `simulator`.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::header::{HOST, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, Uri, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulConnection, GracefulShutdown};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
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

/// Connections served at once. Each costs a file descriptor and some 10 KiB.
pub const CONNECTIONS_MAX: usize = 2048;

/// Share of the connections that [long answers](LongAnswer) may take, in percent: the others are always
/// left for what is answered at once.
const LONG_PERCENT: usize = 75;

/// Connections above [`CONNECTIONS_MAX`] that are answered once, quickly, and then closed.
const CROWDED_MAX: usize = 256;

/// The buffer of a connection, and with it the largest head of a request, in bytes.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// How long requests in flight may take to finish once the program is told to stop.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(15);

/// How long the last answers may take to leave, once all requests are answered.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);

/// Pause after a failed accept, which happens when file descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What is unusual about a request or its connection, which the served program may answer differently
/// to. It is in the extensions of each such request.
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

impl Default for Occupancy {
    /// All places are free.
    fn default() -> Self {
        Self {
            normal: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            crowded: Arc::new(Semaphore::new(CROWDED_MAX)),
            long: Arc::new(Semaphore::new(CONNECTIONS_MAX * LONG_PERCENT / 100)),
            in_flight: InFlight::default(),
        }
    }
}

impl Occupancy {
    /// Connections that are served, and how many may be.
    pub fn connections(&self) -> (usize, usize) {
        (taken(&self.normal, CONNECTIONS_MAX), CONNECTIONS_MAX)
    }

    /// Connections above that, which are only told that there is no place, and how many may be.
    pub fn crowd(&self) -> (usize, usize) {
        (taken(&self.crowded, CROWDED_MAX), CROWDED_MAX)
    }

    /// A place for an answer that may take long, if there is one.
    pub fn long_answer(&self) -> Option<LongAnswer> {
        let permit = self.long.clone().try_acquire_owned().ok()?;
        Some(LongAnswer {
            _permit: Arc::new(permit),
        })
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
///
/// # Errors
/// The address is in use, not this machine's, or not permitted. The error names address and flag.
pub async fn listen(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!(
            "cannot listen on {address}; {flag} takes another address, or port 0 for a free one"
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
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let graceful = GracefulShutdown::new();
    let in_flight = occupancy.in_flight.clone();
    let places = Places {
        occupancy,
        crowd: Mutex::default(),
    };
    loop {
        let (stream, place) = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            next = places.accept(&listener) => next,
        };
        let connection = connection(stream, place.situation, in_flight.clone(), service.clone());
        tokio::spawn(place.hold(graceful.watch(connection)));
    }
    let drained = async {
        tokio::join!(others, async {
            tokio::select! {
                () = graceful.shutdown() => {}
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
                let draining = Some(Situation::Draining);
                let connection = connection(stream, draining, InFlight::default(), service.clone());
                tokio::spawn(place.hold(connection));
            }
        }
    }
}

/// Serves a connection. Each request has the situation in its extensions, and is in flight until its
/// answer is written or given up.
fn connection<S, B>(
    stream: TcpStream,
    situation: Option<Situation>,
    in_flight: InFlight,
    service: S,
) -> impl GracefulConnection<Error = hyper::Error> + Send
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    // Answers are written whole: waiting to fill a segment would only delay them.
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE_TIMEOUT));
    let is_usual = situation.is_none();
    let service = service_fn(move |mut request: Request<Incoming>| {
        let begun = in_flight.begin();
        if let Some(situation) = normalize_host(&mut request).or(situation) {
            request.extensions_mut().insert(situation);
        }
        // CONNECT names a host instead of a path, and warp expects a path.
        if request.uri().path_and_query().is_none() {
            *request.uri_mut() = Uri::from_static("/");
        }
        let answer = service.clone().call(request);
        async move {
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
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(if is_usual {
            HEAD_TIMEOUT
        } else {
            CROWDED_HEAD_TIMEOUT
        })
        .max_buf_size(HEAD_BYTES_MAX)
        .keep_alive(is_usual)
        .serve_connection(TokioIo::new(Box::pin(stream)), service)
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
    /// Those in the crowd, oldest first: each with the means to send it away.
    crowd: Mutex<VecDeque<CancellationToken>>,
}

/// A connection's place.
struct Place {
    situation: Option<Situation>,
    /// In the crowd: cancelled to end the connection, and once it has ended.
    sent_away: Option<DropGuard>,
    _permit: OwnedSemaphorePermit,
}

impl Place {
    /// Serves a connection until its end, or until it is sent away.
    async fn hold<E: Display>(self, connection: impl Future<Output = Result<(), E>>) {
        let ended = match &self.sent_away {
            None => Some(connection.await),
            Some(sent_away) => sent_away.token().run_until_cancelled(connection).await,
        };
        if let Some(Err(error)) = ended {
            log::debug!("connection: {error}");
        }
    }
}

impl Places {
    /// Waits for a connection, and finds a place for it: one of the normal ones, or one in the
    /// crowd, from which the oldest is sent away if need be: most likely one that has not asked
    /// for anything yet.
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
        if let Ok(permit) = self.occupancy.normal.clone().try_acquire_owned() {
            let place = Place {
                situation: None,
                sent_away: None,
                _permit: permit,
            };
            return (stream, place);
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
        let sent_away = CancellationToken::new();
        let mut crowd = self.crowd();
        crowd.push_back(sent_away.clone());
        // Some of those that are remembered have left by themselves.
        if crowd.len() > 2 * CROWDED_MAX {
            crowd.retain(|sent_away| !sent_away.is_cancelled());
        }
        let place = Place {
            situation: Some(Situation::Crowded),
            sent_away: Some(sent_away.drop_guard()),
            _permit: permit,
        };
        (stream, place)
    }

    fn crowd(&self) -> MutexGuard<'_, VecDeque<CancellationToken>> {
        self.crowd.lock().unwrap_or_else(PoisonError::into_inner)
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
    fn begin(&self) -> Begun {
        self.0.count.fetch_add(1, Ordering::AcqRel);
        Begun(self.0.clone())
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
struct Begun(Arc<InFlightCount>);

impl Drop for Begun {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.none.notify_waiters();
        }
    }
}

/// Raises the limit of open files towards what all connections need together, as far as the system
/// allows without privileges.
pub fn raise_file_limit() {
    let wanted = (CONNECTIONS_MAX + CROWDED_MAX + 256) as u64;
    match rlimit::increase_nofile_limit(wanted) {
        Ok(limit) if limit < wanted => {
            log::warn!(
                "only {limit} files may be open at once; {wanted} would be enough for every connection"
            );
        }
        Ok(_) => {}
        Err(error) => log::warn!("cannot raise the limit of open files: {error}"),
    }
}
