//! The simulator over real connections: the answers that a client gets, and their entries in the record.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::record::read_record;
use super::*;

/// Sends a request in the present incarnation.
fn ask(simulator: &Simulator, request: &Request<'_>) -> Option<Answer> {
    let delivery = simulator.answer(&simulator.incarnation(), request);
    delivery.map(|sent| sent.answer)
}

/// Starts a process: the effect, unless the simulator crashed.
fn start(simulator: &Simulator, order_id: usize) -> Option<Effect> {
    let body = format!("{{\"order_id\":\"{order_id}\"}}");
    let request = Request::Start {
        content_type: Some("application/json"),
        body: body.as_bytes(),
        callback_url: None,
    };
    ask(simulator, &request).map(|answer| answer.effect)
}

fn options(log: &Path) -> Options {
    Options {
        max_duration_secs: 600,
        seed: Some(1),
        log: Some(log.to_owned()),
        ..Options::default()
    }
}

/// Sends the bytes of a request. Returns the answer's status, content type and body.
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
    let simulator = Arc::new(Simulator::new(&options(&log)).unwrap());
    let served = tokio::spawn(serve(listener, None, simulator, stop.clone()));
    let start = "POST /order_process HTTP/1.1\r\nContent-Type: application/json\r\n\
        Content-Length: 19\r\nHost: localhost\r\nConnection: close\r\n\r\n{\"order_id\":\"a/ 1\"}";
    let of = |line| format!("{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let entry = r#"{"order_id":"a/ 1","status":"RUNNING"}"#;
    let (json, text) = ("application/json", "text/plain");
    let (list, other) = (Some(RequestKind::List), Some(RequestKind::Other));
    let (none, nowhere) = ("method not allowed\n", "404 page not found\n");
    for (request, status, content_type, body, kind) in [
        (start.to_owned(), 200, "", "", Some(RequestKind::Start)),
        (
            of("GET /order_process?order_id=a%2F+1"),
            200,
            json,
            entry,
            Some(RequestKind::LookUp),
        ),
        (
            of("GET /order_process?order_id="),
            200,
            json,
            &*format!("[{entry}]"),
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
            (kind, Some(status)),
            "{request}"
        );
    }
    let first = read_record(&log).unwrap().swap_remove(0).effect;
    assert_eq!(
        first,
        Effect::BeganIncarnation {
            seed: 1,
            max_duration_secs: 600
        }
    );
    stop.cancel();
    served.await.unwrap().unwrap();
}

#[test]
#[cfg(target_os = "linux")]
fn an_answer_that_cannot_be_recorded_is_a_500() {
    // Opens like any file; every write to it fails.
    let simulator = Simulator::new(&options(Path::new("/dev/full"))).unwrap();
    assert_eq!(ask(&simulator, &Request::List).unwrap().status, 500);
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
        let simulator = Arc::new(Simulator::new(&options).unwrap());
        let listen = || TcpListener::bind("127.0.0.1:0");
        let (listener, control) = (listen().await.unwrap(), listen().await.unwrap());
        let stop = CancellationToken::new();
        Self {
            address: listener.local_addr().unwrap(),
            control: control.local_addr().unwrap(),
            served: tokio::spawn(serve(listener, Some(control), simulator, stop.clone())),
            stop,
            folder,
        }
    }

    async fn start(&self, order_id: &str) -> (Vec<u8>, Option<ErrorKind>) {
        raw(self.address, &starting(order_id)).await
    }

    async fn get(&self, query: &str) -> (Vec<u8>, Option<ErrorKind>) {
        raw(self.address, &get(&format!("/order_process{query}"))).await
    }

    /// Sends a request to the control address. Returns the status and the body of the answer.
    async fn control(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nContent-Length: {length}\r\nHost: localhost\r\n\
             Connection: close\r\n\r\n{body}"
        );
        let (status, _, body) = exchange(self.control, &request).await;
        (status, body)
    }

    fn entries(&self) -> Vec<Entry> {
        read_record(&self.folder.path().join("record")).unwrap()
    }

    fn last(&self) -> Entry {
        self.entries().pop().unwrap()
    }

    async fn end(self) {
        self.stop.cancel();
        self.served.await.unwrap().unwrap();
    }
}

fn starting(order_id: &str) -> String {
    let body = format!("{{\"order_id\":\"{order_id}\"}}");
    let length = body.len();
    format!(
        "POST /order_process HTTP/1.1\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\nHost: localhost\r\nConnection: close\r\n\r\n{body}"
    )
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
}

/// Sends the bytes of a request. Returns all that comes back, and the error that it ends with.
async fn raw(address: SocketAddr, request: &str) -> (Vec<u8>, Option<ErrorKind>) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut answer = Vec::new();
    if let Err(error) = stream.write_all(request.as_bytes()).await {
        return (answer, Some(error.kind()));
    }
    let end = stream.read_to_end(&mut answer).await;
    (answer, end.err().map(|error| error.kind()))
}

/// A reset without an answer.
const RESET: (Vec<u8>, Option<ErrorKind>) = (Vec::new(), Some(ErrorKind::ConnectionReset));

#[tokio::test]
async fn a_lost_answer_had_its_effect_and_a_reset_request_had_none() {
    let running = Running::with(r#"{"start":{"answer_lost":1}}"#).await;
    assert_eq!(running.start("a1").await, RESET);
    let entry = running.last();
    assert_eq!((entry.fault, entry.answer), (Some(Fault::AnswerLost), None));
    assert!(matches!(entry.effect, Effect::Started { .. }));
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
async fn each_status_has_its_headers_and_body() {
    let running = Running::with("{}").await;
    for (fault, status_line, header) in [
        ("500", "HTTP/1.1 500", "text/plain"),
        ("502", "HTTP/1.1 502", "text/html"),
        ("503", "HTTP/1.1 503", "retry-after: 2\r\n"),
        ("429", "HTTP/1.1 429", "retry-after: 2\r\n"),
        ("401", "HTTP/1.1 401", "text/plain"),
        ("302", "HTTP/1.1 302", "location: http://elsewhere.invalid/"),
        ("html", "HTTP/1.1 200", "text/html"),
    ] {
        let only = format!(r#"{{"preset":"calm","list":{{"{fault}":1}}}}"#);
        assert_eq!(running.control("PUT", "/faults", &only).await.0, 200);
        let (answer, end) = running.get("").await;
        let answer = String::from_utf8(answer).unwrap();
        assert_eq!(end, None, "{fault}");
        assert!(answer.starts_with(status_line), "{answer}");
        assert!(answer.contains(header), "{answer}");
        assert_eq!(running.last().fault.unwrap().to_string(), fault);
    }
    running.end().await;
}

#[tokio::test]
async fn a_cut_body_ends_cleanly_or_not() {
    let running = Running::with("{}").await;
    for i in 0..20 {
        running.start(&format!("a{i}")).await;
    }
    for (fault, is_ended) in [("cut", false), ("cut_ended", true)] {
        let only = format!(r#"{{"preset":"calm","list":{{"{fault}":1}}}}"#);
        running.control("PUT", "/faults", &only).await;
        for _ in 0..20 {
            let (answer, _) = running.get("").await;
            let answer = String::from_utf8(answer).unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            let length = format!("content-length: {}", body.len());
            let ended_properly = head.contains(&length) || body.ends_with("0\r\n\r\n");
            assert_eq!(ended_properly, is_ended, "{answer}");
            assert!(!body.contains(']'), "{answer}");
        }
    }
    running.end().await;
}

#[tokio::test]
async fn a_slow_answer_is_complete() {
    let running = Running::with(r#"{"look_up":{"slow_headers":1}}"#).await;
    running.start("a1").await;
    let begun = std::time::Instant::now();
    let (answer, _) = running.get("?order_id=a1").await;
    assert!(begun.elapsed() >= Duration::from_secs(1));
    let entry = r#"{"order_id":"a1","status":"RUNNING"}"#;
    assert!(String::from_utf8(answer).unwrap().ends_with(entry));
    running.end().await;
}

#[tokio::test]
async fn a_crash_resets_every_connection_loses_every_process_and_refuses_until_the_restart() {
    let running = Running::with(r#"{"look_up":{"ignored":1}}"#).await;
    running.start("a1").await;
    let mut idle = TcpStream::connect(running.address).await.unwrap();
    let address = running.address;
    let waits = tokio::spawn(async move { raw(address, &get("/order_process?order_id=a1")).await });
    // Both are known to the simulator once the look-up is in the record.
    while running.entries().len() < 3 {
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
    let mut effects = running.entries().into_iter().map(|entry| entry.effect);
    assert!(effects.any(|effect| effect == Effect::Crashed));
    assert!(matches!(
        effects.next(),
        Some(Effect::BeganIncarnation { .. })
    ));
    running.end().await;
}

#[tokio::test]
async fn it_crashes_repeatedly_after_the_first_start_of_an_incarnation() {
    let running = Running::with(r#"{"crash":{"lives_ms":[10,50],"restart_after_ms":0}}"#).await;
    let began = |entry: &&Entry| matches!(entry.effect, Effect::BeganIncarnation { .. });
    while running.entries().iter().filter(began).count() < 3 {
        // Refused, reset or answered: it is only to go on.
        if let Ok(mut stream) = TcpStream::connect(running.address).await {
            let _ = stream.write_all(starting("a1").as_bytes()).await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    }
    running.end().await;
}

#[tokio::test]
async fn an_incarnation_without_a_start_does_not_end() {
    let running = Running::with(r#"{"crash":{"lives_ms":[1,3600000]}}"#).await;
    for _ in 0..20 {
        assert!(running.get("").await.0.ends_with(b"[]"));
    }
    assert_eq!(running.entries().len(), 21, "no incarnation has ended");
    running.start("a1").await;
    while running.entries().len() < 24 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let effects: Vec<_> = running
        .entries()
        .into_iter()
        .skip(21)
        .map(|entry| entry.effect)
        .collect();
    assert!(matches!(effects[0], Effect::Started { .. }), "{effects:?}");
    assert!(
        matches!(
            effects[1..],
            [Effect::Crashed, Effect::BeganIncarnation { .. }]
        ),
        "{effects:?}"
    );
    running.end().await;
}

#[test]
fn it_crashes_as_the_real_one_does() {
    let simulator = Simulator::new(&Options {
        max_duration_secs: 1,
        seed: Some(1),
        faults: Faults::default()
            .changed(br#"{"crash":{"like_the_real_one":true}}"#)
            .unwrap(),
        ..Options::default()
    })
    .unwrap();
    // As fast as possible, with processes that end at once: the real one runs for seconds.
    let mut starts = 0;
    while !simulator.incarnation().is_cancelled() {
        starts += 1;
        assert!(starts < 100_000, "it does not crash");
        start(&simulator, starts);
    }
    assert_eq!(ask(&simulator, &Request::List), None);
    let torn = simulator.incarnation();
    simulator.begin_incarnation();
    assert!(simulator.answer(&torn, &Request::List).is_none());
    assert_eq!(ask(&simulator, &Request::List).unwrap().body, b"[]");
}

#[test]
fn outcomes_follow_from_the_seed_whatever_the_other_requests_and_faults() {
    let outcomes = |seed, faults: &str, lists| {
        let simulator = Simulator::new(&Options {
            max_duration_secs: 600,
            seed: Some(seed),
            faults: Faults::default().changed(faults.as_bytes()).unwrap(),
            ..Options::default()
        })
        .unwrap();
        let outcome = |order_id| {
            for _ in 0..lists {
                ask(&simulator, &Request::List);
            }
            match start(&simulator, order_id) {
                Some(Effect::Started { outcome, .. }) => outcome,
                other => panic!("{other:?}"),
            }
        };
        (0..50).map(outcome).collect::<Vec<_>>()
    };
    let calm = outcomes(1, "{}", 0);
    assert_eq!(calm, outcomes(1, "{}", 0));
    assert_ne!(calm, outcomes(2, "{}", 0));
    let faults = r#"{"start":{"answer_lost":0.5,"slow_headers":0.5},"list":{"omitted":1}}"#;
    assert_eq!(calm, outcomes(1, faults, 2));
}

#[tokio::test]
async fn the_control_address_shows_and_changes_the_faults_and_refuses_invalid_ones() {
    let running = Running::with("{}").await;
    let (status, body) = running.control("GET", "/faults", "").await;
    let faults: Faults = serde_json::from_str(&body).unwrap();
    assert_eq!((status, faults), (200, Faults::default()));
    let flaky = r#"{"preset":"flaky"}"#;
    assert_eq!(running.control("PUT", "/faults", flaky).await.0, 200);
    let nonsense = r#"{"start":{"lost":1}}"#;
    let (status, why) = running.control("PUT", "/faults", nonsense).await;
    assert_eq!(status, 400);
    assert!(why.contains("unknown variant `lost`"), "{why}");
    let nonsense = r#"{"soon":true}"#;
    assert_eq!(running.control("POST", "/crash", nonsense).await.0, 400);
    let (_, body) = running.control("GET", "/faults", "").await;
    let faults: Faults = serde_json::from_str(&body).unwrap();
    assert_eq!(Some(faults), Faults::preset("flaky"));
    running.end().await;
}
