//! The simulator: stands in for the order process service, over HTTP.
//!
//! What it does is decided in `model`, which is pure and can be called without HTTP. Here are the
//! requests and answers, the time, the randomness, and the order in which things happen; the
//! file that tells of them is in `record`.

pub mod crash;
pub mod faults;
pub mod model;
pub mod record;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Buf;
use futures_util::{Stream, TryStreamExt};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use url::form_urlencoded;
use warp::http::header::{CONTENT_TYPE, HeaderValue};
use warp::http::{HeaderMap, Method, Response, StatusCode};
use warp::path::FullPath;
use warp::{Filter, Reply};

use crate::clock::{Clock, SystemClock};
use model::{Answer, Did, Model, Request};
use record::{Asked, Entry, Record};

/// The only path there is.
const PATH: &str = "/order_process";

/// The largest body of a start, in bytes: far above any order id, far below the memory.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// What a simulator can be told to do otherwise.
#[derive(Clone, Debug)]
pub struct Options {
    /// A process runs a random whole number of seconds below this; at 0 or 1 it ends at once.
    pub max_duration_secs: u32,
    /// Where the randomness comes from, to repeat a run; drawn if there is none.
    pub seed: Option<u64>,
    /// The file that the record is added to.
    pub log: Option<PathBuf>,
}

/// Serves the simulator until `stop`. It begins without any process.
///
/// # Errors
/// The record cannot be opened.
pub async fn serve(
    listener: TcpListener,
    options: Options,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let simulator = Arc::new(Simulator::new(&options)?);
    let others = std::future::ready(());
    crate::server::serve(listener, warp::service(routes(simulator)), stop, others).await;
    Ok(())
}

struct Simulator(Mutex<State>);

/// What must change together for the record to have the order in which things happened.
struct State {
    model: Model,
    rng: fastrand::Rng,
    record: Option<Record>,
}

/// A request that never reaches the model: the HTTP status, and why.
type Astray = (StatusCode, &'static str);

impl Simulator {
    fn new(options: &Options) -> anyhow::Result<Self> {
        let seed = options.seed.unwrap_or_else(|| fastrand::u64(..));
        let max_duration_secs = options.max_duration_secs;
        let mut record = options.log.as_deref().map(Record::open).transpose()?;
        if let Some(record) = &mut record {
            record.write(&Entry {
                at: SystemClock.now(),
                request: None,
                answer: None,
                did: Did::BeganLife {
                    seed,
                    max_duration_secs,
                },
            });
        }
        log::info!("simulator: seed {seed}, processes of less than {max_duration_secs} s");
        Ok(Self(Mutex::new(State {
            model: Model::new(max_duration_secs),
            rng: fastrand::Rng::with_seed(seed),
            record,
        })))
    }

    /// Does what is asked for, and records it before anyone can see the answer.
    fn answer(&self, request: Result<Request<'_>, Astray>) -> Answer {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let State { model, rng, record } = &mut *state;
        let at = SystemClock.now();
        let answer = match &request {
            Ok(request) => model.answer(request, at, &mut |n| rng.u64(..n)),
            Err((status, reason)) => text(*status, reason),
        };
        let Some(record) = record else {
            return answer;
        };
        let entry = Entry {
            at,
            request: Some(request.as_ref().map_or(Asked::Other, Asked::from)),
            answer: Some(answer.status),
            did: answer.did,
        };
        // The request has had its effect: for the client this is an answer that says nothing.
        if !record.write(&entry) {
            let failure = StatusCode::INTERNAL_SERVER_ERROR;
            return text(failure, "the record cannot be written");
        }
        Answer {
            did: entry.did,
            ..answer
        }
    }
}

/// An answer in words.
fn text(status: StatusCode, reason: &str) -> Answer {
    Answer {
        status: status.as_u16(),
        content_type: Some("text/plain"),
        body: format!("{reason}\n").into_bytes(),
        did: Did::Refused {
            reason: reason.to_owned(),
        },
    }
}

fn routes(
    simulator: Arc<Simulator>,
) -> impl Filter<Extract = (impl Reply,), Error = warp::Rejection> + Clone {
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    // The path is compared as a whole: warp's own filters would allow a slash at its end.
    warp::method()
        .and(warp::path::full())
        .and(query)
        .and(warp::header::headers_cloned())
        .and(warp::body::stream())
        .then(
            move |method, path: FullPath, query: String, headers, body| {
                let simulator = simulator.clone();
                async move { respond(&simulator, &method, path.as_str(), &query, &headers, body).await }
            },
        )
}

async fn respond(
    simulator: &Simulator,
    method: &Method,
    path: &str,
    query: &str,
    headers: &HeaderMap,
    body: impl Stream<Item = Result<impl Buf, warp::Error>>,
) -> Response<Vec<u8>> {
    let answer = match (path, method) {
        (PATH, &Method::GET | &Method::HEAD) => {
            let order_id = parameter(query, "order_id");
            simulator.answer(Ok(Request::of_get(order_id.as_deref())))
        }
        (PATH, &Method::POST) => {
            let content_type = headers
                .get(CONTENT_TYPE)
                .and_then(|value| value.to_str().ok());
            let callback_url = parameter(query, "callback_url");
            let callback_url = callback_url.as_deref();
            simulator.answer(match &read(body).await {
                Ok(body) => Ok(Request::Start {
                    content_type,
                    body,
                    callback_url,
                }),
                Err(astray) => Err(*astray),
            })
        }
        (PATH, _) => simulator.answer(Err((StatusCode::METHOD_NOT_ALLOWED, "method not allowed"))),
        _ => simulator.answer(Err((StatusCode::NOT_FOUND, "404 page not found"))),
    };
    let mut response = Response::new(answer.body);
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or_default();
    if let Some(content_type) = answer.content_type {
        let value = HeaderValue::from_static(content_type);
        response.headers_mut().insert(CONTENT_TYPE, value);
    }
    response
}

/// The first parameter of that name.
fn parameter(query: &str, name: &str) -> Option<String> {
    form_urlencoded::parse(query.as_bytes())
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.into_owned())
}

/// The whole body, unless it is larger than [`BODY_BYTES_MAX`].
async fn read(body: impl Stream<Item = Result<impl Buf, warp::Error>>) -> Result<Vec<u8>, Astray> {
    const BROKEN_OFF: Astray = (StatusCode::BAD_REQUEST, "the body broke off");
    const TOO_LARGE: Astray = (StatusCode::PAYLOAD_TOO_LARGE, "the body is above 1 MiB");
    let mut body = std::pin::pin!(body);
    let mut whole = Vec::new();
    while let Some(mut piece) = body.try_next().await.map_err(|_| BROKEN_OFF)? {
        if whole.len() + piece.remaining() > BODY_BYTES_MAX {
            return Err(TOO_LARGE);
        }
        whole.extend_from_slice(&piece.copy_to_bytes(piece.remaining()));
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::path::Path;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::record::read_record;
    use super::*;

    fn options(log: &Path) -> Options {
        Options {
            max_duration_secs: 600,
            seed: Some(1),
            log: Some(log.to_owned()),
        }
    }

    /// Sends the bytes of a request; the answer's status, content type and body.
    async fn exchange(address: SocketAddr, request: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let content_type = head
            .split("\r\n")
            .find_map(|line| line.strip_prefix("content-type: "));
        let status = head["HTTP/1.1 ".len()..][..3].parse().unwrap();
        (
            status,
            content_type.unwrap_or_default().to_owned(),
            body.to_owned(),
        )
    }

    #[tokio::test]
    async fn it_speaks_http_and_records_what_it_did_before_it_answers() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("record");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let served = tokio::spawn(serve(listener, options(&log), stop.clone()));
        let start = "POST /order_process HTTP/1.1\r\nContent-Type: application/json\r\n\
            Content-Length: 19\r\nHost: s\r\nConnection: close\r\n\r\n{\"order_id\":\"a/ 1\"}";
        let of = |line| format!("{line} HTTP/1.1\r\nHost: s\r\nConnection: close\r\n\r\n");
        let told = r#"{"order_id":"a/ 1","status":"RUNNING"}"#;
        let (json, text) = ("application/json", "text/plain");
        let (list, other) = (Some(Asked::List), Some(Asked::Other));
        let (none, nowhere) = ("method not allowed\n", "404 page not found\n");
        for (request, status, content_type, body, asked) in [
            (start.to_owned(), 200, "", "", Some(Asked::Start)),
            (
                of("GET /order_process?order_id=a%2F+1"),
                200,
                json,
                told,
                Some(Asked::LookUp),
            ),
            (
                of("GET /order_process?order_id="),
                200,
                json,
                &*format!("[{told}]"),
                list,
            ),
            (of("HEAD /order_process"), 200, json, "", list),
            (of("GET /order_process/"), 404, text, nowhere, other),
            (of("PUT /order_process"), 405, text, none, other),
        ] {
            let expected = (status, content_type.to_owned(), body.to_owned());
            assert_eq!(exchange(address, &request).await, expected, "{request}");
            let entry = read_record(&log).unwrap().pop().unwrap();
            assert_eq!(
                (entry.request, entry.answer),
                (asked, Some(status)),
                "{request}"
            );
        }
        let first = read_record(&log).unwrap().swap_remove(0).did;
        assert_eq!(
            first,
            Did::BeganLife {
                seed: 1,
                max_duration_secs: 600
            }
        );
        stop.cancel();
        served.await.unwrap().unwrap();
    }

    #[test]
    fn a_seed_repeats_what_was_drawn() {
        let folder = tempfile::tempdir().unwrap();
        let run = |name| {
            let simulator = Simulator::new(&options(&folder.path().join(name))).unwrap();
            let started = (0..20).map(|i| {
                let answer = simulator.answer(Ok(Request::Start {
                    content_type: Some("application/json"),
                    body: format!("{{\"order_id\":\"{i}\"}}").as_bytes(),
                    callback_url: None,
                }));
                match answer.did {
                    Did::Started { outcome, .. } => outcome,
                    other => panic!("{other:?}"),
                }
            });
            started.collect::<Vec<_>>()
        };
        assert_eq!(run("one"), run("other"));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn an_answer_that_cannot_be_recorded_is_a_500() {
        // Opens like any file; every write to it fails.
        let simulator = Simulator::new(&options(Path::new("/dev/full"))).unwrap();
        assert_eq!(simulator.answer(Ok(Request::List)).status, 500);
    }

    #[test]
    fn a_record_that_cannot_be_opened_is_named() {
        let Err(error) = Simulator::new(&options(Path::new("/nowhere/record"))) else {
            panic!("it was opened");
        };
        assert!(error.to_string().contains("/nowhere/record"), "{error}");
    }
}
