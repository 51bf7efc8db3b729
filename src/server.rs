//! An HTTP/1.1 server for a tower service, in which a slow connection delays neither another one nor the
//! shutdown. A client with enough of them can take all slots.
//!
//! Owns connections and their limits, and nothing else: `api` and `simulator` supply the services. Limits
//! are in `server/slots.rs`, requests in flight in `server/requests.rs`, and the end of a request once
//! its answer is written in `server/unwritten.rs`.

mod requests;
mod slots;
mod unwritten;

use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
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
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service;

use self::requests::{RequestGuard, RequestTracker};
pub use self::slots::{CONNECTIONS_MAX, ConnectionStats, LongAnswer};
use self::slots::{Slot, Slots};
use self::unwritten::{FlushedStream, Unwritten};

/// Maximum time for a client to send the head of a request. It is also the idle limit of a kept-alive
/// connection, and therefore longer than most clients keep one in their pool.
const HEADER_TIMEOUT: Duration = Duration::from_secs(75);

/// Like [`HEADER_TIMEOUT`], for a connection in the overflow.
const OVERFLOW_HEADER_TIMEOUT: Duration = Duration::from_secs(2);

/// Maximum time for which a client may leave its answer unread before the connection is closed.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Size of the buffer of a connection, and so of the largest head of a request, in bytes.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Maximum time for requests in flight to finish at shutdown.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(15);

/// Time for connections to end once all answers are written.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);

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
    let slots = Slots::new(stats);
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
    in_flight.close();
    let drained = async {
        tokio::join!(others, async {
            tokio::select! {
                () = stopping.closed() => {}
                // Does not wait for connections that have not sent a complete request head.
                () = in_flight.wait() => tokio::time::sleep(FLUSH_TIMEOUT).await,
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
                let tracker = slot.tracker(Some(ConnectionState::Draining), &TaskTracker::new());
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
    let unwritten = Unwritten::default();
    let flushed = FlushedStream {
        stream: TokioIo::new(stream.as_mut()),
        unwritten: unwritten.clone(),
    };
    let service = service_fn(move |mut request: Request<Incoming>| {
        let begun = tracker.begin();
        if let Some(state) = normalize_host(&mut request).or(tracker.state) {
            request.extensions_mut().insert(state);
        }
        // CONNECT has a host instead of a path, and warp requires a path.
        if request.uri().path_and_query().is_none() {
            *request.uri_mut() = Uri::from_static("/");
        }
        let begun = begun.map(|guard| (guard, service.clone().call(request)));
        answer(begun, unwritten.clone())
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
            .serve_connection(flushed, service)
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
    let is_complete = match ended {
        Some(ended) => !ended.is_err_and(|error| cuts_answer(&error)),
        // An evicted connection was idle, unless it was in the overflow.
        None => is_regular,
    };
    if is_complete {
        // Unsent data is still sent.
        let _ = set_socket_linger(stream.get_ref(), None);
    }
}

/// Returns the answer to a request, which is in flight until its body is dropped. A request that was not
/// begun gets none: its connection was evicted, and is about to be dropped.
async fn answer<B>(
    begun: Option<(
        RequestGuard,
        impl Future<Output = Result<Response<B>, Infallible>>,
    )>,
    unwritten: Unwritten,
) -> Result<Response<impl Body<Data = Bytes, Error = B::Error>>, Infallible>
where
    B: Body<Data = Bytes>,
{
    let Some((guard, answer)) = begun else {
        return std::future::pending().await;
    };
    let mut answer = answer.await?;
    let long = answer.extensions_mut().remove::<LongAnswer>();
    let kept = unwritten.keep((guard, long));
    // The closure is dropped with the body.
    let keeping = |body: B| {
        body.map_err(move |error| {
            let _ = &kept;
            error
        })
    };
    Ok(answer.map(keeping))
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

#[cfg(test)]
mod tests {
    use std::future::ready;
    use std::net::Ipv4Addr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpSocket;
    use warp::{Filter, Reply};

    use super::*;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

    /// Serves answers of `length` bytes in one part, each with a permit.
    async fn serving(length: usize) -> (ConnectionStats, SocketAddr) {
        let stats = ConnectionStats::within(0);
        let permits = stats.clone();
        let service = warp::service(warp::any().map(move || {
            let mut answer = vec![b'x'; length].into_response();
            let permit = permits.long_answer().unwrap();
            answer.extensions_mut().insert(permit);
            answer
        }));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(serve(listener, service, stats.clone(), stop, ready(())));
        (stats, address)
    }

    fn free_permits(stats: &ConnectionStats) -> usize {
        std::iter::from_fn(|| stats.long_answer())
            .collect::<Vec<_>>()
            .len()
    }

    /// Reads `length` bytes after the head of an answer, of which the first byte was read.
    async fn read_answer(client: &mut TcpStream, length: usize) {
        let mut head = vec![b'H'];
        while !head.ends_with(b"\r\n\r\n") {
            head.push(client.read_u8().await.unwrap());
        }
        let mut body = vec![0; length];
        client.read_exact(&mut body).await.unwrap();
    }

    #[tokio::test]
    async fn a_request_ends_once_its_answer_is_written() {
        // More than the buffers of a socket hold.
        let length = 32 << 20;
        let (stats, address) = serving(length).await;
        let permits = free_permits(&stats);
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(REQUEST).await.unwrap();
        client.read_u8().await.unwrap();
        assert_eq!((stats.requests(), free_permits(&stats)), (1, permits - 1));
        // It is not idle, so the slots are not enough for it and the new connections.
        let (_, slots) = stats.served();
        let mut others = Vec::new();
        for _ in 0..slots {
            let mut other = TcpStream::connect(address).await.unwrap();
            other.write_all(b"GET").await.unwrap();
            others.push(other);
        }
        let evicted = others[0].read(&mut [0]).await;
        assert!(!evicted.is_ok_and(|length| length > 0));
        read_answer(&mut client, length).await;
        while stats.requests() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(free_permits(&stats), permits);
    }

    #[tokio::test]
    async fn an_evicted_connection_delivers_the_answer_that_its_client_has_not_read() {
        // More than the client's buffer holds, and less than that of the server's socket.
        let length = 16 << 10;
        let (stats, address) = serving(length).await;
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut client = socket.connect(address).await.unwrap();
        client.write_all(REQUEST).await.unwrap();
        client.read_u8().await.unwrap();
        while stats.requests() > 0 {
            tokio::task::yield_now().await;
        }
        let (_, slots) = stats.served();
        let mut others = Vec::new();
        for _ in 0..=slots {
            let mut other = TcpStream::connect(address).await.unwrap();
            other.write_all(REQUEST).await.unwrap();
            other.read_u8().await.unwrap();
            others.push(other);
        }
        read_answer(&mut client, length).await;
        assert_eq!(
            client.read_u8().await.unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
    }
}
