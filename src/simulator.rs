//! The simulator: stands in for the order process service, over HTTP.
//!
//! What it does is decided in `model`, what goes wrong in `faults`, how it dies in `crash`: these
//! are pure and can be called without HTTP. Here are the requests and answers, the time, the
//! randomness, and the order in which things happen. Connections are next door in `connections`,
//! the address that breaks and mends it in `control`, the file that tells of it all in `record`.

mod connections;
mod control;
pub mod crash;
pub mod faults;
pub mod model;
pub mod record;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderMap};
use hyper::{Method, StatusCode};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use url::form_urlencoded;

use crate::clock::{Clock, SystemClock};
use crate::order::Timestamp;
use connections::Sent;
use crash::{CrashModel, Hazard, Touch};
use faults::{Fault, Faults};
use model::{Answer, Asked, Did, Model, Request};
use record::{Entry, Record};

/// The only path there is.
const PATH: &str = "/order_process";

/// The largest body of a start, in bytes: far above any order id, far below the memory.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// Makes the seed of the faults another than that of the processes. Any number would do.
const FAULT_SEED: u64 = 0x000f_a017;

/// What a simulator can be told to do otherwise.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// A process runs a random whole number of seconds below this; at 0 or 1 it ends at once.
    pub max_duration_secs: u32,
    /// Where the randomness comes from, to repeat a run; drawn if there is none.
    pub seed: Option<u64>,
    /// The file that the record is added to.
    pub log: Option<PathBuf>,
    /// What goes wrong, until the control address says otherwise.
    pub faults: Faults,
}

/// Serves the simulator until `stop`. It begins without any process. At `control`, if there is
/// such a listener, it can be broken and mended while it runs.
///
/// # Errors
/// The record cannot be opened.
pub async fn serve(
    listener: TcpListener,
    control: Option<TcpListener>,
    options: Options,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let simulator = Arc::new(Simulator::new(&options)?);
    let controlled = control::serve(control, simulator.clone(), stop.clone());
    let (served, ()) = tokio::join!(
        connections::serve(listener, simulator, stop.clone()),
        controlled
    );
    served
}

struct Simulator(Mutex<State>);

/// What must change together for the record to have the order in which things happened.
struct State {
    model: Model,
    crash: CrashModel,
    faults: Faults,
    seed: u64,
    max_duration_secs: u32,
    rng: fastrand::Rng,
    /// Of the faults: the processes go on to end as the seed says, whatever goes wrong.
    fault_rng: fastrand::Rng,
    record: Option<Record>,
    /// Cancelled when the service dies, and with it every connection.
    life: CancellationToken,
    /// When this life is to end, if that is known.
    life_ends_at: Option<Timestamp>,
    /// How long it stays dead.
    restart_after: Duration,
}

/// A request that never reaches the model: the HTTP status, and why.
type Astray = (StatusCode, &'static str);

impl Simulator {
    fn new(options: &Options) -> anyhow::Result<Self> {
        let seed = options.seed.unwrap_or_else(|| fastrand::u64(..));
        let max_duration_secs = options.max_duration_secs;
        let mut state = State {
            model: Model::new(max_duration_secs),
            crash: CrashModel::new(Hazard::default()),
            faults: options.faults.clone(),
            seed,
            max_duration_secs,
            rng: fastrand::Rng::with_seed(seed),
            fault_rng: fastrand::Rng::with_seed(seed ^ FAULT_SEED),
            record: options.log.as_deref().map(Record::open).transpose()?,
            life: CancellationToken::new(),
            life_ends_at: None,
            restart_after: Duration::ZERO,
        };
        log::info!("simulator: seed {seed}, processes of less than {max_duration_secs} s");
        state.begin_life(SystemClock.now());
        Ok(Self(Mutex::new(state)))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The present life: cancelled when it ends.
    fn life(&self) -> CancellationToken {
        self.lock().life.clone()
    }

    fn restart_after(&self) -> Duration {
        self.lock().restart_after
    }

    /// Runs again after a crash, without any process.
    fn begin_life(&self) {
        self.lock().begin_life(SystemClock.now());
    }

    /// Ends the life if its time has come, without any request.
    fn tick(&self) {
        self.lock().catch_up(SystemClock.now());
    }

    /// Ends the life now, for so long; nothing if it has ended already.
    fn crash(&self, restart_after: Option<Duration>) -> bool {
        let mut state = self.lock();
        let is_alive = !state.life.is_cancelled();
        if is_alive {
            state.die(SystemClock.now(), None);
            state.restart_after = restart_after.unwrap_or(state.restart_after);
        }
        is_alive
    }

    fn faults(&self) -> Faults {
        self.lock().faults.clone()
    }

    /// Changes what goes wrong; what is known of the end of this life is drawn again.
    fn change_faults(&self, changes: &[u8]) -> Result<Faults, String> {
        let mut state = self.lock();
        state.faults = state.faults.changed(changes)?;
        state.plan_end(SystemClock.now());
        Ok(state.faults.clone())
    }

    /// Does what is asked for, and records it before anyone can see the answer. What comes over
    /// a line that is torn, as all are by a crash, is not for the next life.
    fn answer(&self, line: &CancellationToken, request: Result<Request<'_>, Astray>) -> Sent {
        let mut state = self.lock();
        let at = SystemClock.now();
        state.catch_up(at);
        if state.life.is_cancelled() || line.is_cancelled() {
            return Sent::nothing(Fault::Crash);
        }
        match request {
            Ok(request) => state.answer(&request, at),
            Err((status, reason)) => {
                let answer = text(status, reason);
                Sent::whole(state.record(at, Asked::Other, answer, None))
            }
        }
    }
}

impl State {
    fn begin_life(&mut self, now: Timestamp) {
        self.life = CancellationToken::new();
        self.plan_end(now);
        let (seed, max_duration_secs) = (self.seed, self.max_duration_secs);
        self.write(&Entry {
            at: now,
            request: None,
            answer: None,
            fault: None,
            did: Did::BeganLife {
                seed,
                max_duration_secs,
            },
        });
    }

    fn plan_end(&mut self, now: Timestamp) {
        let rng = &mut self.fault_rng;
        self.life_ends_at = self.faults.crash.end_of_life(now, &mut |n| rng.u64(..n));
    }

    /// Brings what happens without a request: processes end, and the service may.
    fn catch_up(&mut self, now: Timestamp) {
        if self.life.is_cancelled() {
            return;
        }
        if self.life_ends_at.is_some_and(|end| end <= now) {
            self.die(now, None);
        } else if self.faults.crash.like_the_real_one {
            let rng = &mut self.fault_rng;
            let (model, draw) = (&mut self.model, &mut |n| rng.u64(..n));
            if self.crash.catch_up(model, now, draw).is_some() {
                self.die(now, None);
            }
        } else {
            while self.model.next_completion(now).is_some() {}
        }
    }

    /// Ends the life, and every connection with it.
    fn die(&mut self, now: Timestamp, request: Option<Asked>) {
        log::info!("crashed, and forgot {} processes", self.model.len());
        self.model.forget_everything();
        self.crash.forget_everything();
        self.restart_after = Duration::from_millis(self.faults.crash.restart_after_ms);
        self.write(&Entry {
            at: now,
            request,
            answer: None,
            fault: Some(Fault::Crash),
            did: Did::Crashed,
        });
        self.life.cancel();
    }

    fn answer(&mut self, request: &Request<'_>, at: Timestamp) -> Sent {
        let asked = Asked::from(request);
        let fault = self.choose(asked, at);
        if fault == Some(Fault::Crash) {
            self.die(at, Some(asked));
            return Sent::nothing(Fault::Crash);
        }
        let answer = if self.happens_in_spite_of(fault) {
            let rng = &mut self.rng;
            self.model.answer(request, at, &mut |n| rng.u64(..n))
        } else {
            without_effect(fault)
        };
        if self.is_killed_by(&answer.did, at) {
            self.die(at, Some(asked));
            return Sent::nothing(Fault::Crash);
        }
        match fault {
            None => Sent::whole(self.record(at, asked, answer, None)),
            Some(fault) => self.spoil(at, asked, answer, fault),
        }
    }

    fn choose(&mut self, asked: Asked, at: Timestamp) -> Option<Fault> {
        let rng = &mut self.fault_rng;
        self.faults.choose(asked, at, &mut |n| rng.u64(..n))
    }

    fn happens_in_spite_of(&mut self, fault: Option<Fault>) -> bool {
        let rng = &mut self.fault_rng;
        fault.is_none_or(|fault| fault.lets_it_happen(&mut |n| rng.u64(..n)))
    }

    /// Whether the access to the map of processes ended the service as it can end the real one.
    fn is_killed_by(&mut self, did: &Did, at: Timestamp) -> bool {
        if !self.faults.crash.like_the_real_one {
            return false;
        }
        let Some(touch) = Touch::of(did, self.model.len()) else {
            return false;
        };
        let rng = &mut self.fault_rng;
        self.crash.dies(touch, at, &mut |n| rng.u64(..n))
    }

    /// Does to an answer what the fault does, and records both.
    fn spoil(&mut self, at: Timestamp, asked: Asked, mut answer: Answer, fault: Fault) -> Sent {
        let whole_bytes = answer.body.len();
        let rng = &mut self.fault_rng;
        fault.spoil(&mut answer, &mut |n| rng.u64(..n));
        let is_chunked = rng.bool();
        Sent {
            answer: self.record(at, asked, answer, Some(fault)),
            fault: Some(fault),
            timings: self.faults.timings,
            whole_bytes,
            is_chunked,
        }
    }

    /// Records what happened; the answer, or another one if that was not possible.
    fn record(
        &mut self,
        at: Timestamp,
        asked: Asked,
        answer: Answer,
        fault: Option<Fault>,
    ) -> Answer {
        if self.record.is_none() {
            return answer;
        }
        let is_answered = fault.is_none_or(Fault::is_answered);
        let entry = Entry {
            at,
            request: Some(asked),
            answer: is_answered.then_some(answer.status),
            fault,
            did: answer.did,
        };
        // The request has had its effect: for the client this is an answer that says nothing.
        if !self.write(&entry) {
            let failure = StatusCode::INTERNAL_SERVER_ERROR;
            return text(failure, "the record cannot be written");
        }
        Answer {
            did: entry.did,
            ..answer
        }
    }

    fn write(&mut self, entry: &Entry) -> bool {
        self.record
            .as_mut()
            .is_none_or(|record| record.write(entry))
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

/// What a fault leaves of a request that it does not let happen. The fault sets the status.
fn without_effect(fault: Option<Fault>) -> Answer {
    text(StatusCode::OK, fault.map_or("", Fault::as_str))
}

/// Reads a request and answers it.
async fn respond(
    simulator: &Simulator,
    line: &CancellationToken,
    request: hyper::Request<Incoming>,
) -> Sent {
    let (head, body) = request.into_parts();
    let query = head.uri.query().unwrap_or_default();
    // The path is compared as a whole: a slash at its end makes it another.
    match (head.uri.path(), &head.method) {
        (PATH, &Method::GET | &Method::HEAD) => {
            let order_id = parameter(query, "order_id");
            simulator.answer(line, Ok(Request::of_get(order_id.as_deref())))
        }
        (PATH, &Method::POST) => {
            let callback_url = parameter(query, "callback_url");
            let callback_url = callback_url.as_deref();
            simulator.answer(
                line,
                match &read(body).await {
                    Ok(body) => Ok(Request::Start {
                        content_type: content_type(&head.headers),
                        body,
                        callback_url,
                    }),
                    Err(astray) => Err(*astray),
                },
            )
        }
        (PATH, _) => simulator.answer(
            line,
            Err((StatusCode::METHOD_NOT_ALLOWED, "method not allowed")),
        ),
        _ => simulator.answer(line, Err((StatusCode::NOT_FOUND, "404 page not found"))),
    }
}

fn content_type(headers: &HeaderMap) -> Option<&str> {
    headers.get(CONTENT_TYPE)?.to_str().ok()
}

/// The first parameter of that name.
fn parameter(query: &str, name: &str) -> Option<String> {
    form_urlencoded::parse(query.as_bytes())
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.into_owned())
}

/// The whole body, unless it is larger than [`BODY_BYTES_MAX`].
async fn read(body: Incoming) -> Result<Bytes, Astray> {
    const BROKEN_OFF: Astray = (StatusCode::BAD_REQUEST, "the body broke off");
    const TOO_LARGE: Astray = (StatusCode::PAYLOAD_TOO_LARGE, "the body is above 1 MiB");
    match Limited::new(body, BODY_BYTES_MAX).collect().await {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(TOO_LARGE),
        Err(_) => Err(BROKEN_OFF),
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::SocketAddr;
    use std::path::Path;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::record::read_record;
    use super::*;

    /// Asks over a line of its own.
    fn ask(simulator: &Simulator, request: Result<Request<'_>, Astray>) -> Sent {
        simulator.answer(&CancellationToken::new(), request)
    }

    fn options(log: &Path) -> Options {
        Options {
            max_duration_secs: 600,
            seed: Some(1),
            log: Some(log.to_owned()),
            faults: Faults::default(),
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
        let served = tokio::spawn(serve(listener, None, options(&log), stop.clone()));
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
                let answer = ask(
                    &simulator,
                    Ok(Request::Start {
                        content_type: Some("application/json"),
                        body: format!("{{\"order_id\":\"{i}\"}}").as_bytes(),
                        callback_url: None,
                    }),
                );
                match answer.answer.did {
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
        assert_eq!(ask(&simulator, Ok(Request::List)).answer.status, 500);
    }

    #[test]
    fn a_record_that_cannot_be_opened_is_named() {
        let Err(error) = Simulator::new(&options(Path::new("/nowhere/record"))) else {
            panic!("it was opened");
        };
        assert!(error.to_string().contains("/nowhere/record"), "{error}");
    }

    /// A simulator that runs, with a control address and a record.
    struct Running {
        address: SocketAddr,
        control: SocketAddr,
        folder: tempfile::TempDir,
        stop: CancellationToken,
        served: tokio::task::JoinHandle<anyhow::Result<()>>,
    }

    impl Running {
        /// Serves with these faults, given as changes in JSON.
        async fn with(faults: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let options = Options {
                faults: Faults::default().changed(faults.as_bytes()).unwrap(),
                ..options(&folder.path().join("record"))
            };
            let listen = || TcpListener::bind("127.0.0.1:0");
            let (listener, control) = (listen().await.unwrap(), listen().await.unwrap());
            let stop = CancellationToken::new();
            Self {
                address: listener.local_addr().unwrap(),
                control: control.local_addr().unwrap(),
                served: tokio::spawn(serve(listener, Some(control), options, stop.clone())),
                stop,
                folder,
            }
        }

        async fn start(&self, order_id: &str) -> (Vec<u8>, Option<ErrorKind>) {
            let body = format!("{{\"order_id\":\"{order_id}\"}}");
            let length = body.len();
            raw(
                self.address,
                &format!(
                    "POST /order_process HTTP/1.1\r\nContent-Type: application/json\r\n\
                     Content-Length: {length}\r\nHost: s\r\nConnection: close\r\n\r\n{body}"
                ),
            )
            .await
        }

        async fn get(&self, query: &str) -> (Vec<u8>, Option<ErrorKind>) {
            raw(self.address, &get(&format!("/order_process{query}"))).await
        }

        /// The status and the body of an answer of the control address.
        async fn control(&self, method: &str, path: &str, body: &str) -> (u16, String) {
            let length = body.len();
            let request = format!(
                "{method} {path} HTTP/1.1\r\nContent-Length: {length}\r\nHost: s\r\n\
                 Connection: close\r\n\r\n{body}"
            );
            let (status, _, body) = exchange(self.control, &request).await;
            (status, body)
        }

        fn record(&self) -> Vec<Entry> {
            read_record(&self.folder.path().join("record")).unwrap()
        }

        fn last(&self) -> Entry {
            self.record().pop().unwrap()
        }

        async fn end(self) {
            self.stop.cancel();
            self.served.await.unwrap().unwrap();
        }
    }

    fn get(path: &str) -> String {
        format!("GET {path} HTTP/1.1\r\nHost: s\r\nConnection: close\r\n\r\n")
    }

    /// Sends the bytes of a request; all that comes back, and the error that it ends with.
    async fn raw(address: SocketAddr, request: &str) -> (Vec<u8>, Option<ErrorKind>) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let mut answer = Vec::new();
        if let Err(error) = stream.write_all(request.as_bytes()).await {
            return (answer, Some(error.kind()));
        }
        let end = stream.read_to_end(&mut answer).await;
        (answer, end.err().map(|error| error.kind()))
    }

    /// Nothing came but a reset.
    const RESET: (Vec<u8>, Option<ErrorKind>) = (Vec::new(), Some(ErrorKind::ConnectionReset));

    #[tokio::test]
    async fn an_answer_that_is_lost_had_its_effect_and_a_request_that_is_reset_had_none() {
        let running = Running::with(r#"{"start":{"answer_lost":1}}"#).await;
        assert_eq!(running.start("a1").await, RESET);
        let entry = running.last();
        assert_eq!((entry.fault, entry.answer), (Some(Fault::AnswerLost), None));
        assert!(matches!(entry.did, Did::Started { .. }));
        running
            .control("PUT", "/faults", r#"{"start":{"answer_lost":0,"reset":1}}"#)
            .await;
        assert_eq!(running.start("a2").await, RESET);
        let entry = running.last();
        assert_eq!((entry.fault, entry.answer), (Some(Fault::Reset), None));
        let (list, _) = running.get("").await;
        let list = String::from_utf8(list).unwrap();
        assert!(list.contains("a1") && !list.contains("a2"), "{list}");
        running.end().await;
    }

    #[tokio::test]
    async fn a_request_that_is_never_answered_keeps_its_connection() {
        let running = Running::with(r#"{"look_up":{"ignored":0.5,"never_answered":0.5}}"#).await;
        let asked = running.get("?order_id=a1");
        let waited = tokio::time::timeout(Duration::from_millis(200), asked).await;
        assert!(waited.is_err(), "{waited:?}");
        assert_eq!(running.last().answer, None);
        running.end().await;
    }

    #[tokio::test]
    async fn each_status_comes_with_what_belongs_to_it() {
        let running = Running::with("{}").await;
        for (fault, status_line, header) in [
            ("500", "HTTP/1.1 500", "text/plain"),
            ("502", "HTTP/1.1 502", "text/html"),
            ("503", "HTTP/1.1 503", "retry-after: 7\r\n"),
            ("429", "HTTP/1.1 429", "retry-after: 7\r\n"),
            ("401", "HTTP/1.1 401", "text/plain"),
            ("302", "HTTP/1.1 302", "location: http://elsewhere.invalid/"),
            ("html", "HTTP/1.1 200", "text/html"),
        ] {
            let only = format!(
                r#"{{"preset":"calm","list":{{"{fault}":1}},"timings":{{"retry_after_secs":7}}}}"#
            );
            assert_eq!(running.control("PUT", "/faults", &only).await.0, 200);
            let (answer, end) = running.get("").await;
            let answer = String::from_utf8(answer).unwrap();
            assert_eq!(end, None, "{fault}");
            assert!(answer.starts_with(status_line), "{answer}");
            assert!(answer.contains(header), "{answer}");
            assert_eq!(running.last().fault.map(Fault::as_str), Some(fault));
        }
        running.end().await;
    }

    #[tokio::test]
    async fn a_cut_body_ends_properly_or_not_in_both_framings() {
        let running = Running::with("{}").await;
        for i in 0..20 {
            running.start(&format!("a{i}")).await;
        }
        for is_ended in [true, false] {
            let fault = if is_ended { "cut_ended" } else { "cut" };
            let only = format!(r#"{{"preset":"calm","list":{{"{fault}":1}}}}"#);
            running.control("PUT", "/faults", &only).await;
            let mut framings = std::collections::HashSet::new();
            for _ in 0..20 {
                let (answer, _) = running.get("").await;
                let answer = String::from_utf8(answer).unwrap();
                let (head, body) = answer.split_once("\r\n\r\n").unwrap();
                let length = head
                    .split("\r\n")
                    .find_map(|line| line.strip_prefix("content-length: "));
                framings.insert(length.is_some());
                let ended_properly = match length {
                    Some(length) => body.len() == length.parse::<usize>().unwrap(),
                    None => body.ends_with("0\r\n\r\n"),
                };
                assert_eq!(ended_properly, is_ended, "{answer}");
                assert!(!body.contains(']'), "{answer}");
            }
            assert_eq!(framings.len(), 2, "{fault} comes in both framings");
        }
        running.end().await;
    }

    #[tokio::test]
    async fn a_slow_answer_is_the_right_one() {
        let faults = r#"{"list":{"trickled":1},"look_up":{"slow_headers":1},
            "timings":{"slow_headers_ms":60,"trickle_pieces":4,"trickle_pause_ms":20}}"#;
        let running = Running::with(faults).await;
        running.start("a1").await;
        let told = r#"{"order_id":"a1","status":"RUNNING"}"#;
        let begun = std::time::Instant::now();
        let (answer, _) = running.get("?order_id=a1").await;
        assert!(begun.elapsed() >= Duration::from_millis(60));
        assert!(String::from_utf8(answer).unwrap().ends_with(told));
        let begun = std::time::Instant::now();
        let (answer, _) = running.get("").await;
        assert!(begun.elapsed() >= Duration::from_millis(60));
        let answer = String::from_utf8(answer).unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let lines: Vec<_> = body.split("\r\n").collect();
        let pieces: Vec<_> = lines.chunks(2).filter_map(|c| c.get(1).copied()).collect();
        assert_eq!(pieces.concat(), format!("[{told}]"));
        assert_eq!(pieces.iter().filter(|piece| !piece.is_empty()).count(), 4);
        running.end().await;
    }

    #[tokio::test]
    async fn a_crash_tears_every_connection_forgets_everything_and_refuses_until_it_runs_again() {
        let running = Running::with(r#"{"look_up":{"ignored":1}}"#).await;
        running.start("a1").await;
        let mut idle = TcpStream::connect(running.address).await.unwrap();
        let address = running.address;
        let waits =
            tokio::spawn(async move { raw(address, &get("/order_process?order_id=a1")).await });
        // Both are known to the simulator once the look-up is in the record.
        while running.record().len() < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let begun = std::time::Instant::now();
        let body = r#"{"restart_after_ms":300}"#;
        assert_eq!(running.control("POST", "/crash", body).await.0, 200);
        assert_eq!(waits.await.unwrap(), RESET);
        let end = idle.read(&mut [0]).await.map_err(|error| error.kind());
        assert_eq!(end, Err(ErrorKind::ConnectionReset));
        let mut refusals = 0;
        while let Err(error) = TcpStream::connect(address).await {
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
            refusals += 1;
            if refusals == 1 {
                assert_eq!(running.control("POST", "/crash", "").await.0, 409);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(refusals > 0 && begun.elapsed() >= Duration::from_millis(300));
        let (list, _) = running.get("").await;
        assert!(list.ends_with(b"[]"));
        let mut did = running.record().into_iter().map(|entry| entry.did);
        assert!(did.any(|did| did == Did::Crashed));
        assert!(matches!(did.next(), Some(Did::BeganLife { .. })));
        running.end().await;
    }

    #[tokio::test]
    async fn it_dies_by_a_request_at_a_moment_and_at_random() {
        for faults in [
            r#"{"list":{"crash":1},"crash":{"restart_after_ms":0}}"#,
            r#"{"crash":{"after_ms":50,"restart_after_ms":0}}"#,
            r#"{"crash":{"mean_life_ms":50,"restart_after_ms":0}}"#,
        ] {
            let running = Running::with(faults).await;
            let lives = |record: &[Entry]| {
                let began = |entry: &&Entry| matches!(entry.did, Did::BeganLife { .. });
                record.iter().filter(began).count()
            };
            loop {
                // Refused, reset or answered: it is only to go on.
                if let Ok(mut stream) = TcpStream::connect(running.address).await {
                    let _ = stream.write_all(get("/order_process").as_bytes()).await;
                    let _ = stream.read_to_end(&mut Vec::new()).await;
                }
                if lives(&running.record()) >= 3 {
                    break;
                }
            }
            running.end().await;
        }
    }

    #[test]
    fn it_dies_as_the_real_one_does() {
        let simulator = Simulator::new(&Options {
            max_duration_secs: 1,
            seed: Some(1),
            faults: Faults::default()
                .changed(br#"{"crash":{"like_the_real_one":true}}"#)
                .unwrap(),
            ..Options::default()
        })
        .unwrap();
        // As fast as possible, with processes that end at once: the real one lives for seconds.
        let mut starts = 0;
        while !simulator.life().is_cancelled() {
            starts += 1;
            assert!(starts < 100_000, "it does not die");
            let body = format!("{{\"order_id\":\"{starts}\"}}");
            ask(
                &simulator,
                Ok(Request::Start {
                    content_type: Some("application/json"),
                    body: body.as_bytes(),
                    callback_url: None,
                }),
            );
        }
        let sent = ask(&simulator, Ok(Request::List));
        assert_eq!(sent.fault, Some(Fault::Crash));
        let torn = simulator.life().child_token();
        simulator.begin_life();
        let sent = simulator.answer(&torn, Ok(Request::List));
        assert_eq!(sent.fault, Some(Fault::Crash));
        let sent = ask(&simulator, Ok(Request::List));
        assert_eq!(sent.answer.body, b"[]");
    }

    #[test]
    fn processes_end_as_the_seed_says_whatever_goes_wrong() {
        let outcomes = |faults: &str| {
            let faults = Faults::default().changed(faults.as_bytes()).unwrap();
            let simulator = Simulator::new(&Options {
                max_duration_secs: 600,
                seed: Some(1),
                faults,
                ..Options::default()
            })
            .unwrap();
            let ends = (0..50).map(|i| {
                let sent = ask(
                    &simulator,
                    Ok(Request::Start {
                        content_type: Some("application/json"),
                        body: format!("{{\"order_id\":\"{i}\"}}").as_bytes(),
                        callback_url: None,
                    }),
                );
                match sent.answer.did {
                    Did::Started { outcome, .. } => outcome,
                    other => panic!("{other:?}"),
                }
            });
            ends.collect::<Vec<_>>()
        };
        let calm = outcomes("{}");
        assert_eq!(
            calm,
            outcomes(r#"{"start":{"answer_lost":0.5,"slow_headers":0.5}}"#)
        );
    }

    #[tokio::test]
    async fn the_control_address_tells_and_changes_the_faults_and_refuses_nonsense() {
        let running = Running::with("{}").await;
        let (status, told) = running.control("GET", "/faults", "").await;
        let told: Faults = serde_json::from_str(&told).unwrap();
        assert_eq!((status, told), (200, Faults::default()));
        let flaky = r#"{"preset":"flaky"}"#;
        assert_eq!(running.control("PUT", "/faults", flaky).await.0, 200);
        let nonsense = r#"{"start":{"lost":1}}"#;
        let (status, why) = running.control("PUT", "/faults", nonsense).await;
        assert_eq!(status, 400);
        assert!(why.contains("unknown variant `lost`"), "{why}");
        let nonsense = r#"{"soon":true}"#;
        assert_eq!(running.control("POST", "/crash", nonsense).await.0, 400);
        let (_, told) = running.control("GET", "/faults", "").await;
        let told: Faults = serde_json::from_str(&told).unwrap();
        assert_eq!(Some(told), Faults::preset("flaky"));
        running.end().await;
    }
}
