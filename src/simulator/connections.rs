//! The simulator's connections: served while it lives, torn off when it dies, refused until it
//! runs again.
//!
//! Does to a connection what a fault says. It has an accept loop of its own, because `server`
//! never harms a connection. What is answered is decided in `simulator`.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION, RETRY_AFTER};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::MissedTickBehavior;
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;

use super::faults::{Fault, Timings};
use super::model::Answer;
use super::{Simulator, respond};

/// How long a client may take for the head of a request, and keep an idle connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);

/// How long a client may leave the answer unread before the connection is closed.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Connections served at once. Each costs a file descriptor and some 10 KiB.
const CONNECTIONS_MAX: usize = 2048;

/// Connections that the system keeps for us until we accept them; it allows no more by default.
const BACKLOG: u32 = 4096;

/// How long requests in flight may take to finish at the end. They are answered at once, but for
/// what a fault delays.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// How often it is seen whether the service's time has come, when no request asks.
const TICK: Duration = Duration::from_millis(10);

/// Pause after a failure to accept or to listen again.
const PAUSE: Duration = Duration::from_millis(20);

/// How long what was written of a broken body may take to leave before the connection is closed.
const FLUSH_PAUSE: Duration = Duration::from_millis(20);

/// A host that is nobody's (RFC 2606).
const ELSEWHERE: HeaderValue = HeaderValue::from_static("http://elsewhere.invalid/order_process");

/// Serves one life after the other, until `stop`.
pub(super) async fn serve(
    mut listener: TcpListener,
    simulator: Arc<Simulator>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let address = listener
        .local_addr()
        .context("the simulator's address is not known")?;
    loop {
        serve_a_life(&listener, &simulator, &stop).await;
        if stop.is_cancelled() {
            return Ok(());
        }
        drop(listener);
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            again = listen_again(address, simulator.restart_after()) => listener = again,
        }
        simulator.begin_life();
        log::warn!("restarted processes=0");
    }
}

/// Listens at the same address after a while, in which connections are refused.
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
        tokio::time::sleep(PAUSE).await;
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    // Connections of the last life may not be gone yet.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// Serves until the life ends, which ends every connection, or until `stop`, which lets requests
/// in flight finish.
async fn serve_a_life(
    listener: &TcpListener,
    simulator: &Arc<Simulator>,
    stop: &CancellationToken,
) {
    let life = simulator.life();
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            () = life.cancelled() => return,
            _ = tick.tick() => simulator.tick(),
            Some((stream, permit)) = accept(listener, &places) => {
                let line = life.child_token();
                let connection = connection(stream, line.clone(), simulator.clone());
                tokio::spawn(carry(graceful.watch(connection), line, permit));
            }
        }
    }
    tokio::select! {
        () = graceful.shutdown() => {}
        () = tokio::time::sleep(DRAIN_TIMEOUT) => {}
    }
}

/// Serves a connection until it ends or is torn off.
async fn carry(
    connection: impl Future<Output = hyper::Result<()>>,
    line: CancellationToken,
    _place: OwnedSemaphorePermit,
) {
    tokio::select! {
        biased;
        () = line.cancelled() => {}
        result = connection => {
            if let Err(error) = result {
                log::debug!("connection: {error}");
            }
        }
    }
}

/// Waits for a connection and a place for it; nothing if accepting failed.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let permit = places.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, permit)),
        Err(error) => {
            log::debug!("accept: {error}");
            tokio::time::sleep(PAUSE).await;
            None
        }
    }
}

/// A connection that `line` tears off.
fn connection(
    stream: TcpStream,
    line: CancellationToken,
    simulator: Arc<Simulator>,
) -> impl hyper_util::server::graceful::GracefulConnection<Error = hyper::Error> {
    // Answers are written whole: waiting to fill a segment would only delay them.
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(Line {
        stream,
        torn: line.clone(),
    });
    stream.set_write_timeout(Some(WRITE_TIMEOUT));
    let service = service_fn(move |request: Request<Incoming>| {
        let (simulator, line) = (simulator.clone(), line.clone());
        async move {
            let sent = respond(&simulator, &line, request).await;
            Ok::<_, Infallible>(sent.over(&line).await)
        }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(Box::pin(stream)), service)
}

/// A client's stream. Dropped after it was torn, it ends with a reset: what was written and not
/// yet sent is thrown away, and the client sees no proper end.
struct Line {
    stream: TcpStream,
    torn: CancellationToken,
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.torn.is_cancelled() {
            // If it fails, the connection is closed in order: no answer comes that way either.
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Line {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Line {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// An answer, and what is to go wrong on its way.
pub(super) struct Sent {
    pub(super) answer: Answer,
    pub(super) fault: Option<Fault>,
    pub(super) timings: Timings,
    /// The length of the body before it was cut.
    pub(super) whole_bytes: usize,
    /// Whether a body that is cut comes in chunks, or with its length before it.
    pub(super) is_chunked: bool,
}

type Body = UnsyncBoxBody<Bytes, io::Error>;

impl Sent {
    /// An answer that nothing happens to.
    pub(super) fn whole(answer: Answer) -> Self {
        Self {
            whole_bytes: answer.body.len(),
            answer,
            fault: None,
            timings: Timings::default(),
            is_chunked: false,
        }
    }

    /// No answer.
    pub(super) fn nothing(fault: Fault) -> Self {
        let answer = super::without_effect(Some(fault));
        Self {
            fault: Some(fault),
            ..Self::whole(answer)
        }
    }

    /// What goes over the line, if anything does.
    async fn over(self, line: &CancellationToken) -> Response<Body> {
        match self.fault {
            Some(Fault::AnswerLost | Fault::Reset | Fault::Crash) => {
                line.cancel();
                std::future::pending().await
            }
            Some(Fault::NeverAnswered | Fault::Ignored) => std::future::pending().await,
            Some(Fault::SlowHeaders) => {
                let delay = Duration::from_millis(self.timings.slow_headers_ms);
                tokio::time::sleep(delay).await;
            }
            _ => {}
        }
        self.into_response()
    }

    fn into_response(self) -> Response<Body> {
        let headers = self.headers();
        let status = StatusCode::from_u16(self.answer.status).unwrap_or_default();
        let mut response = Response::new(self.into_body());
        *response.status_mut() = status;
        response.headers_mut().extend(headers);
        response
    }

    fn headers(&self) -> impl Iterator<Item = (HeaderName, HeaderValue)> + use<> {
        let content_type = self.answer.content_type.map(HeaderValue::from_static);
        let more = match self.fault {
            Some(Fault::Unavailable | Fault::TooMany) => {
                Some((RETRY_AFTER, self.timings.retry_after_secs.into()))
            }
            Some(Fault::Elsewhere) => Some((LOCATION, ELSEWHERE)),
            Some(Fault::Cut) if !self.is_chunked => Some((CONTENT_LENGTH, self.whole_bytes.into())),
            _ => None,
        };
        content_type
            .map(|value| (CONTENT_TYPE, value))
            .into_iter()
            .chain(more)
    }

    fn into_body(self) -> Body {
        let body = Bytes::from(self.answer.body);
        match self.fault {
            Some(Fault::Cut) => in_pieces(vec![body], FLUSH_PAUSE, true),
            Some(Fault::CutEnded) if self.is_chunked => in_pieces(vec![body], FLUSH_PAUSE, false),
            Some(Fault::Trickled) => {
                let pause = Duration::from_millis(self.timings.trickle_pause_ms);
                let pieces = self.timings.trickle_pieces.max(1) as usize;
                let length = body.len().div_ceil(pieces).max(1);
                let piece = |at: usize| body.slice(at..body.len().min(at + length));
                let pieces = (0..body.len()).step_by(length).map(piece).collect();
                in_pieces(pieces, pause, false)
            }
            _ => Full::new(body)
                .map_err(|never| match never {})
                .boxed_unsync(),
        }
    }
}

/// A body in pieces, with a pause after each. It breaks off after the last one, or ends.
fn in_pieces(pieces: Vec<Bytes>, pause: Duration, breaks_off: bool) -> Body {
    let pieces = pieces.into_iter();
    let stream = stream::unfold(
        (pieces, false, breaks_off),
        move |(mut pieces, begun, breaks)| async move {
            if begun {
                // What was written leaves while nothing more comes.
                tokio::time::sleep(pause).await;
            }
            match pieces.next() {
                Some(piece) => Some((Ok(Frame::data(piece)), (pieces, true, breaks))),
                None if breaks => {
                    let broken = io::Error::from(io::ErrorKind::UnexpectedEof);
                    Some((Err(broken), (pieces, true, false)))
                }
                None => None,
            }
        },
    );
    StreamBody::new(stream).boxed_unsync()
}
