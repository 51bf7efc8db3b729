//! An order process service that answers as a test has scripted, down to the bytes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use order_service::clock::{Clock, SystemClock};
use order_service::order::Timestamp;
use percent_encoding::percent_decode_str;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{TIMEOUT, TIMEOUT_WHEN_SILENT};

/// The machine's clock; a sleep advances it instead of waiting. Clones share the time.
#[derive(Clone, Default)]
pub(super) struct SkippingClock(Arc<AtomicI64>);

impl Clock for SkippingClock {
    fn now(&self) -> Timestamp {
        Timestamp(SystemClock.now().0 + self.0.load(Ordering::Relaxed))
    }

    fn uptime(&self) -> Duration {
        SystemClock.uptime() + Duration::from_millis(self.0.load(Ordering::Relaxed).unsigned_abs())
    }

    async fn sleep(&self, length: Duration) {
        let length = length.as_millis() as i64;
        self.0.fetch_add(length, Ordering::Relaxed);
        // Available answers are read before the next request is sent.
        tokio::task::yield_now().await;
    }

    async fn deadline(&self, moment: Timestamp) {
        tokio::time::sleep(moment.since(self.now())).await;
    }
}

/// A request as it came in.
#[derive(Clone, Debug)]
pub(super) struct ReceivedRequest {
    pub method: String,
    pub target: String,
    pub headers: BTreeMap<String, String>,
    pub body: String,
    pub at: Timestamp,
    /// True once the answer is being sent.
    pub is_answered: bool,
}

impl ReceivedRequest {
    pub fn is_start(&self) -> bool {
        self.method == "POST"
    }

    pub fn is_list(&self) -> bool {
        self.method == "GET" && self.target == "/order_process"
    }

    /// Returns the order that is looked up.
    pub fn looked_up(&self) -> Option<String> {
        let id = self.target.strip_prefix("/order_process?order_id=")?;
        Some(percent_decode_str(id).decode_utf8().unwrap().into_owned())
    }

    /// Returns the order of a look-up or start.
    pub fn order_id(&self) -> Option<String> {
        if self.is_start() {
            let body: serde_json::Value = serde_json::from_str(&self.body).ok()?;
            body["order_id"].as_str().map(str::to_owned)
        } else {
            self.looked_up()
        }
    }
}

/// A scripted reaction to a request.
#[derive(Clone, Debug)]
pub(super) enum Reply {
    /// A response with these header lines.
    Answer(u16, &'static str, String),
    /// Exactly these bytes; then the connection is closed.
    Bytes(String),
    /// A response in pieces, with this pause after each.
    Pieces(Duration, Vec<String>),
    /// No response, for as long as the client waits.
    Silence,
    /// The connection is closed.
    HangUp,
    /// Another reaction, delayed.
    Later(Duration, Box<Reply>),
}

/// A header line of compressed answers.
pub(super) const GZIP: &str = "Content-Encoding: gzip\r\n";

pub(super) fn answer(status: u16, body: impl Into<String>) -> Reply {
    Reply::Answer(status, "", body.into())
}

pub(super) fn process(id: &str, status: &str) -> String {
    serde_json::json!({ "order_id": id, "status": status }).to_string()
}

type Script = dyn Fn(&ReceivedRequest, &[ReceivedRequest]) -> Reply + Send + Sync;

/// A scripted upstream that records its requests.
pub(super) struct Scripted {
    pub url: String,
    pub address: String,
    pub clock: SkippingClock,
    /// Timeout of the client.
    pub timeout: Duration,
    pub seen: Arc<Mutex<Vec<ReceivedRequest>>>,
    pub connections: Arc<Mutex<usize>>,
}

impl Scripted {
    /// `script` gets each request with those before it.
    pub async fn new(
        script: impl Fn(&ReceivedRequest, &[ReceivedRequest]) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::at("127.0.0.1:0", script).await
    }

    /// Reacts to every request in the same way.
    pub async fn always(reply: Reply) -> Self {
        let timeout = match reply {
            Reply::Silence => TIMEOUT_WHEN_SILENT,
            _ => TIMEOUT,
        };
        let upstream = Self::new(move |_, _| reply.clone()).await;
        Self {
            timeout,
            ..upstream
        }
    }

    /// Answers each start, and each other request, in the same way.
    pub async fn answering(start: Reply, other: Reply) -> Self {
        Self::new(move |asked, _| if asked.is_start() { &start } else { &other }.clone()).await
    }

    pub async fn at(
        address: &str,
        script: impl Fn(&ReceivedRequest, &[ReceivedRequest]) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let connections = Arc::new(Mutex::new(0));
        let script: Arc<Script> = Arc::new(script);
        let clock = SkippingClock::default();
        let upstream = Self {
            url: format!("http://{address}"),
            address,
            clock: clock.clone(),
            timeout: TIMEOUT,
            seen: seen.clone(),
            connections: connections.clone(),
        };
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                *connections.lock().unwrap() += 1;
                let connection = serve(stream, script.clone(), seen.clone(), clock.clone());
                tokio::spawn(connection);
            }
        });
        upstream
    }

    pub fn asked(&self) -> Vec<ReceivedRequest> {
        self.seen.lock().unwrap().clone()
    }

    /// Returns all requests about one order.
    pub fn asked_about(&self, id: &str) -> Vec<ReceivedRequest> {
        let mut asked = self.asked();
        asked.retain(|asked| asked.order_id().as_deref() == Some(id));
        asked
    }

    pub fn starts(&self) -> usize {
        self.asked().iter().filter(|asked| asked.is_start()).count()
    }

    pub fn connections(&self) -> usize {
        *self.connections.lock().unwrap()
    }
}

/// Serves one persistent connection.
async fn serve(
    mut stream: TcpStream,
    script: Arc<Script>,
    seen: Arc<Mutex<Vec<ReceivedRequest>>>,
    clock: SkippingClock,
) {
    let mut buffer = Vec::new();
    while let Some(asked) = next_request(&mut stream, &mut buffer, &clock).await {
        let (index, mut reply) = {
            let mut seen = seen.lock().unwrap();
            let reply = script(&asked, &seen);
            seen.push(asked);
            (seen.len() - 1, reply)
        };
        while let Reply::Later(wait, then) = reply {
            tokio::time::sleep(wait).await;
            reply = *then;
        }
        seen.lock().unwrap()[index].is_answered = true;
        match reply {
            Reply::Answer(status, headers, body) => {
                let length = body.len();
                let head = format!("HTTP/1.1 {status} X\r\n{headers}Content-Length: {length}");
                let whole = format!("{head}\r\n\r\n{body}");
                if stream.write_all(whole.as_bytes()).await.is_err() {
                    return;
                }
            }
            Reply::Bytes(bytes) => {
                let _ = stream.write_all(bytes.as_bytes()).await;
                let _ = stream.shutdown().await;
                return;
            }
            Reply::Pieces(pause, pieces) => {
                let head = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".to_owned();
                for piece in std::iter::once(head).chain(pieces) {
                    let _ = stream.write_all(piece.as_bytes()).await;
                    tokio::time::sleep(pause).await;
                }
                return;
            }
            Reply::Silence => {
                let _ = stream.read(&mut [0; 1]).await;
                return;
            }
            Reply::HangUp => return,
            Reply::Later(..) => unreachable!("it was waited for"),
        }
    }
}

async fn next_request(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
    clock: &SkippingClock,
) -> Option<ReceivedRequest> {
    let mut chunk = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(buffer).into_owned();
        if let Some((head, rest)) = text.split_once("\r\n\r\n") {
            let mut lines = head.lines();
            let mut first = lines.next()?.split(' ');
            let headers: BTreeMap<String, String> = lines
                .filter_map(|line| line.split_once(": "))
                .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
                .collect();
            let length = headers.get("content-length").map_or("0", String::as_str);
            let length: usize = length.parse().unwrap();
            if rest.len() >= length {
                let asked = ReceivedRequest {
                    method: first.next()?.to_owned(),
                    target: first.next()?.to_owned(),
                    headers,
                    body: rest[..length].to_owned(),
                    at: clock.now(),
                    is_answered: false,
                };
                buffer.drain(..head.len() + 4 + length);
                return Some(asked);
            }
        }
        match stream.read(&mut chunk).await {
            Ok(read) if read > 0 => buffer.extend_from_slice(&chunk[..read]),
            _ => return None,
        }
    }
}
