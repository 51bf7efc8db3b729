//! The simulator's HTTP server: serves while the service runs, resets every connection when it
//! crashes, refuses connections until it restarts.
//!
//! Reads requests and applies faults to connections; `simulator` chooses answers and faults. It has an
//! accept loop of its own, because `server` never breaks a connection. Like the real service it has no
//! limits but those of the system.

use std::future::{pending, ready};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE, LOCATION, RETRY_AFTER};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, sleep};
use tokio_util::sync::CancellationToken;
use url::form_urlencoded;

use super::faults::Fault;
use super::model::Request;
use super::{Delivery, Simulator};

/// The only path that is served.
const PATH: &str = "/order_process";

/// Maximum size of the body of a start, in bytes: far above any order id, far below the memory.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// Backlog of connections that are not accepted yet: the default maximum of Linux.
const BACKLOG: u32 = 4096;

/// Time for requests in flight to finish at shutdown. All but those that a fault delays are answered
/// at once.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Interval of the checks for a crash that no request causes.
const TICK: Duration = Duration::from_millis(10);

/// Pause before a failed accept or listen is retried.
const PAUSE: Duration = Duration::from_millis(20);

/// Time for the part of a cut body to be sent before the connection is closed.
const FLUSH_PAUSE: Duration = Duration::from_millis(20);

/// Delay of a slow answer: long enough to be noticed, and within the usual client timeout of five
/// seconds.
const LATE: Duration = Duration::from_secs(1);

/// `Retry-After` of a 503 and a 429, in seconds.
const RETRY_AFTER_SECS: &str = "2";

/// The target of a redirect: a reserved host that never resolves (RFC 2606).
const ELSEWHERE: &str = "http://elsewhere.invalid/order_process";

/// Serves one incarnation after the other, until `stop`.
pub(super) async fn serve(
    mut listener: TcpListener,
    simulator: Arc<Simulator>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let address = listener
        .local_addr()
        .context("cannot read the simulator's address")?;
    loop {
        serve_incarnation(&listener, &simulator, &stop).await;
        if stop.is_cancelled() {
            return Ok(());
        }
        drop(listener);
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            again = listen_again(address, simulator.restart_after()) => listener = again,
        }
        simulator.begin_incarnation();
        log::warn!("restarted processes=0");
    }
}

/// Listens at the same address again, and refuses connections until then.
async fn listen_again(address: SocketAddr, after: Duration) -> TcpListener {
    let begun = tokio::time::Instant::now();
    loop {
        // A socket that is bound but does not listen keeps the port from others.
        let socket = bind(address);
        tokio::time::sleep_until(begun + after).await;
        match socket.and_then(|socket| socket.listen(BACKLOG)) {
            Ok(listener) => return listener,
            Err(error) => log::debug!("cannot listen on {address} again: {error}"),
        }
        sleep(PAUSE).await;
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    // Connections of the last incarnation may still be in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// Serves until the incarnation ends, which resets every connection, or until `stop`, which lets requests in
/// flight finish.
async fn serve_incarnation(
    listener: &TcpListener,
    simulator: &Arc<Simulator>,
    stop: &CancellationToken,
) {
    let incarnation = simulator.incarnation();
    let mut connections = JoinSet::new();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            () = incarnation.cancelled() => break,
            _ = tick.tick() => simulator.tick(),
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let (simulator, incarnation) = (simulator.clone(), incarnation.clone());
                    connections.spawn(serve_client(stream, incarnation, simulator, stop.clone()));
                }
                Err(error) => {
                    log::debug!("accept: {error}");
                    sleep(PAUSE).await;
                }
            },
        }
    }
    let ended = async { while connections.join_next().await.is_some() {} };
    // Dropping the rest closes its connections.
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, ended).await;
}

/// Serves a connection until the client closes it, until a fault or the end of the `incarnation` resets it, or
/// after `stop` until the request in flight is answered.
async fn serve_client(
    mut stream: TcpStream,
    incarnation: CancellationToken,
    simulator: Arc<Simulator>,
    stop: CancellationToken,
) {
    // Answers are written whole, so Nagle's algorithm would only delay them.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request: hyper::Request<Incoming>| async {
        let delivery = respond(&simulator, &incarnation, request).await;
        deliver(delivery).await
    });
    let is_reset = {
        let io = TokioIo::new(&mut stream);
        let mut connection = pin!(http1::Builder::new().serve_connection(io, service));
        let served = async {
            tokio::select! {
                result = connection.as_mut() => return result,
                () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
            }
            connection.await
        };
        tokio::select! {
            biased;
            () = incarnation.cancelled() => true,
            result = served => result.is_err(),
        }
    };
    if is_reset {
        // Closes with a reset, which discards unsent data. If this fails, the connection is closed in
        // order, and no answer arrives either.
        let _ = stream.set_zero_linger();
    }
}

/// Reads a request and answers it.
async fn respond(
    simulator: &Simulator,
    incarnation: &CancellationToken,
    request: hyper::Request<Incoming>,
) -> Option<Delivery> {
    let (head, body) = request.into_parts();
    let query = head.uri.query().unwrap_or_default();
    let body = match head.method {
        Method::POST => read(body).await,
        _ => Ok(Bytes::new()),
    };
    let order_id = parameter(query, "order_id");
    let callback_url = parameter(query, "callback_url");
    // A trailing slash makes another path.
    let request = match (head.uri.path(), &head.method, &body) {
        (PATH, &Method::GET | &Method::HEAD, _) => Request::of_get(order_id.as_deref()),
        (PATH, &Method::POST, Ok(body)) => Request::Start {
            content_type: head.headers.get(CONTENT_TYPE).and_then(|t| t.to_str().ok()),
            body,
            callback_url: callback_url.as_deref(),
        },
        (PATH, &Method::POST, Err(other)) => *other,
        (PATH, ..) => Request::Other {
            status: 405,
            reason: "method not allowed",
        },
        _ => Request::Other {
            status: 404,
            reason: "404 page not found",
        },
    };
    simulator.answer(incarnation, &request)
}

/// Returns the first query parameter with this name.
fn parameter(query: &str, name: &str) -> Option<String> {
    form_urlencoded::parse(query.as_bytes())
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.into_owned())
}

/// Reads the whole body. A body above [`BODY_BYTES_MAX`] or one that breaks off gives the request to
/// answer instead.
async fn read(body: Incoming) -> Result<Bytes, Request<'static>> {
    let whole = Limited::new(body, BODY_BYTES_MAX).collect().await;
    whole.map(|whole| whole.to_bytes()).map_err(|error| {
        let (status, reason) = match error.is::<LengthLimitError>() {
            true => (413, "the body is above 1 MiB"),
            false => (400, "the body broke off"),
        };
        Request::Other { status, reason }
    })
}

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Returns the response to send, with its fault applied. Never returns if the client is to wait for
/// ever; an error resets the connection.
async fn deliver(delivery: Option<Delivery>) -> io::Result<Response<Body>> {
    let reset = io::Error::from(io::ErrorKind::ConnectionReset);
    let Some(Delivery { answer, fault }) = delivery else {
        return Err(reset);
    };
    let mut response = Response::builder().status(answer.status);
    if let Some(content_type) = answer.content_type {
        response = response.header(CONTENT_TYPE, content_type);
    }
    let bytes = Bytes::from(answer.body);
    let whole = Full::new(bytes.clone()).map_err(|never| match never {});
    let mut body = whole.boxed_unsync();
    match fault {
        Some(Fault::AnswerLost | Fault::Reset) => return Err(reset),
        Some(Fault::NeverAnswered | Fault::Ignored) => return pending().await,
        Some(Fault::SlowHeaders) => sleep(LATE).await,
        Some(Fault::Unavailable | Fault::TooMany) => {
            response = response.header(RETRY_AFTER, RETRY_AFTER_SECS);
        }
        Some(Fault::Elsewhere) => response = response.header(LOCATION, ELSEWHERE),
        Some(Fault::Cut) => {
            let begun = ready(Ok(Frame::data(bytes)));
            let broken = async {
                // The first part is sent meanwhile.
                sleep(FLUSH_PAUSE).await;
                Err(io::ErrorKind::UnexpectedEof.into())
            };
            body = StreamBody::new(stream::once(begun).chain(stream::once(broken))).boxed_unsync();
        }
        _ => {}
    }
    // Fixed header values and a numeric status are always valid.
    Ok(response.body(body).unwrap_or_default())
}
