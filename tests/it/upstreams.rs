//! The client and the reconciler against upstreams that answer as a test has scripted, down to
//! the bytes. What a well-behaved upstream makes of orders is in `life`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use order_service::clock::{Clock, SystemClock};
use order_service::order::{Order, OrderId, Outcome, Reason, Status};
use order_service::store::{Change, Creation, Filter, Mode, OpenGate, Step, Store};
use percent_encoding::percent_decode_str;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::world::{PATIENCE, Program, World};

/// The timeout that most of these tests give a request.
const TIMEOUT: Duration = Duration::from_millis(800);

/// A request as it came in.
#[derive(Clone, Debug)]
struct Asked {
    method: String,
    target: String,
    headers: BTreeMap<String, String>,
    body: String,
    connection: usize,
    at: Instant,
}

impl Asked {
    fn is_start(&self) -> bool {
        self.method == "POST"
    }

    fn is_list(&self) -> bool {
        self.method == "GET" && self.target == "/order_process"
    }

    /// The order that is looked up.
    fn looked_up(&self) -> Option<String> {
        let id = self.target.strip_prefix("/order_process?order_id=")?;
        Some(percent_decode_str(id).decode_utf8().unwrap().into_owned())
    }

    /// The order that is asked about, unless it is the list.
    fn order_id(&self) -> Option<String> {
        if self.is_start() {
            let body: serde_json::Value = serde_json::from_str(&self.body).ok()?;
            body["order_id"].as_str().map(str::to_owned)
        } else {
            self.looked_up()
        }
    }
}

/// What a scripted upstream does with a request.
#[derive(Clone, Debug)]
enum Reply {
    /// A proper answer, with these header lines.
    Answer(u16, &'static str, String),
    /// Exactly these bytes, and then the end of the connection.
    Bytes(String),
    /// Nothing, for as long as the client waits.
    Silence,
    /// The end of the connection.
    HangUp,
    /// The same, but later.
    Later(Duration, Box<Reply>),
}

fn answer(status: u16, body: impl Into<String>) -> Reply {
    Reply::Answer(status, "", body.into())
}

fn process(id: &str, status: &str) -> String {
    serde_json::json!({ "order_id": id, "status": status }).to_string()
}

type Script = dyn Fn(&Asked, &[Asked]) -> Reply + Send + Sync;

/// An upstream that does as it is told, and remembers what it was asked.
struct Scripted {
    url: String,
    address: String,
    seen: Arc<Mutex<Vec<Asked>>>,
    connections: Arc<Mutex<usize>>,
}

impl Scripted {
    /// `script` sees each request, and those before it.
    async fn new(script: impl Fn(&Asked, &[Asked]) -> Reply + Send + Sync + 'static) -> Self {
        Self::at("127.0.0.1:0", script).await
    }

    async fn at(
        address: &str,
        script: impl Fn(&Asked, &[Asked]) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let connections = Arc::new(Mutex::new(0));
        let script: Arc<Script> = Arc::new(script);
        let upstream = Self {
            url: format!("http://{address}"),
            address,
            seen: seen.clone(),
            connections: connections.clone(),
        };
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let number = {
                    let mut connections = connections.lock().unwrap();
                    *connections += 1;
                    *connections
                };
                let connection = serve(stream, number, script.clone(), seen.clone());
                tokio::spawn(connection);
            }
        });
        upstream
    }

    fn asked(&self) -> Vec<Asked> {
        self.seen.lock().unwrap().clone()
    }

    /// All that was asked about one order.
    fn asked_about(&self, id: &str) -> Vec<Asked> {
        let mut asked = self.asked();
        asked.retain(|asked| asked.order_id().as_deref() == Some(id));
        asked
    }

    fn starts(&self) -> usize {
        self.asked().iter().filter(|asked| asked.is_start()).count()
    }

    fn connections(&self) -> usize {
        *self.connections.lock().unwrap()
    }
}

/// One connection, kept alive.
async fn serve(
    mut stream: TcpStream,
    connection: usize,
    script: Arc<Script>,
    seen: Arc<Mutex<Vec<Asked>>>,
) {
    let mut buffer = Vec::new();
    while let Some(asked) = next_request(&mut stream, &mut buffer, connection).await {
        let mut reply = {
            let mut seen = seen.lock().unwrap();
            let reply = script(&asked, &seen);
            seen.push(asked);
            reply
        };
        while let Reply::Later(wait, then) = reply {
            tokio::time::sleep(wait).await;
            reply = *then;
        }
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
    connection: usize,
) -> Option<Asked> {
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
                let asked = Asked {
                    method: first.next()?.to_owned(),
                    target: first.next()?.to_owned(),
                    headers,
                    body: rest[..length].to_owned(),
                    connection,
                    at: Instant::now(),
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

/// Orders in a database of their own.
struct Orders {
    world: World,
    store: Store,
}

impl Orders {
    /// CREATED orders.
    async fn created(ids: &[&str]) -> Self {
        let world = World::new();
        let store =
            Store::open(&world.database().into(), Mode::Inline(Arc::new(OpenGate))).unwrap();
        let orders = Self { world, store };
        for id in ids {
            orders.create(id).await;
        }
        orders
    }

    /// PROCESSING orders, started a moment ago.
    async fn processing(ids: &[String]) -> Self {
        let orders = Self::created(&[]).await;
        let mut changes = Vec::new();
        for id in ids {
            let seq = orders.create(id).await;
            changes.push(Change {
                seq,
                step: Step::Intended { previous: None },
            });
            changes.push(Change {
                seq,
                step: Step::Started,
            });
        }
        let recorded = orders.store.record(changes, SystemClock.now()).await;
        assert!(recorded.unwrap().overtaken.is_empty());
        orders
    }

    async fn create(&self, id: &str) -> i64 {
        let id = OrderId::new(id).unwrap();
        match self.store.create(id, SystemClock.now()).await.unwrap() {
            Creation::Created(order) => order.seq,
            Creation::Exists(order) => panic!("it exists: {order:?}"),
        }
    }

    fn reconciler(&self, upstream: &str) -> Program {
        self.world
            .reconciler(upstream, &["--request-timeout", "800ms"])
    }

    /// A reconciler that ends when all that is due was tried once: its exit code and its log.
    async fn once(&self, upstream: &str) -> (Option<i32>, String) {
        ended(self.world.reconciler(upstream, &["--once"])).await
    }

    fn order(&self, id: &str) -> Order {
        let id = OrderId::new(id).unwrap();
        self.store.order(&id).unwrap().unwrap()
    }

    fn all(&self) -> Vec<Order> {
        let filter = Filter::default();
        self.store.page(&filter, 0, i64::MAX, 10_000).unwrap()
    }

    /// Waits until it holds of all orders.
    async fn until(&self, holds: impl Fn(&[Order]) -> bool) -> Vec<Order> {
        until(|| Some(self.all()).filter(|all| holds(all)), || self.all()).await
    }

    async fn until_status(&self, id: &str, status: Status) -> Order {
        let found = || Some(self.order(id)).filter(|order| order.status == status);
        until(found, || self.order(id)).await
    }

    async fn until_attention(&self, id: &str, reason: Reason) -> Order {
        let found = || Some(self.order(id)).filter(|order| reason_of(order) == Some(reason));
        until(found, || self.order(id)).await
    }
}

/// The exit code and the log of a program that ends by itself.
async fn ended(mut program: Program) -> (Option<i32>, String) {
    let wait = move || (program.wait().code(), program.logged());
    tokio::task::spawn_blocking(wait).await.unwrap()
}

fn reason_of(order: &Order) -> Option<Reason> {
    order.attention.as_ref().map(|attention| attention.reason)
}

/// Waits until there is something.
async fn until<T, D: std::fmt::Debug>(
    mut found: impl FnMut() -> Option<T>,
    state: impl Fn() -> D,
) -> T {
    let deadline = Instant::now() + PATIENCE / 3;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "it does not come: {:?}", state());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until a scripted upstream was asked so.
async fn until_asked(upstream: &Scripted, holds: impl Fn(&[Asked]) -> bool) -> Vec<Asked> {
    until(
        || Some(upstream.asked()).filter(|asked| holds(asked)),
        || upstream.asked(),
    )
    .await
}

async fn until_logged(program: &Program, text: &str) {
    let is_logged = || program.logged().contains(text).then_some(());
    until(is_logged, || program.logged()).await;
}

/// How many cases are run side by side: with more, programs miss their timeouts.
const SIDE_BY_SIDE: usize = 4;

/// Runs the cases of a table side by side: each of them mostly waits.
async fn side_by_side<T, F>(cases: impl IntoIterator<Item = T>, check: impl Fn(T) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut checks = JoinSet::new();
    let places = Arc::new(Semaphore::new(SIDE_BY_SIDE));
    for case in cases {
        let (check, places) = (check(case), places.clone());
        checks.spawn(async move {
            let _place = places.acquire().await.unwrap();
            check.await;
        });
    }
    while let Some(checked) = checks.join_next().await {
        checked.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_says_exactly_what_the_upstream_accepts_and_never_names_a_callback() {
    let upstream = Scripted::new(|_, _| answer(200, "")).await;
    let ids = ["a1", "a \"quoted\" one", "é/🦀\\"];
    let orders = Orders::created(&ids).await;
    assert_eq!(orders.once(&upstream.url).await.0, Some(0));
    let asked = upstream.asked();
    // They may overtake each other on their way.
    let mut bodies: Vec<_> = asked.iter().map(|asked| asked.body.clone()).collect();
    bodies.sort();
    let mut expected = ids.map(|id| serde_json::json!({ "order_id": id }).to_string());
    expected.sort();
    assert_eq!(bodies, expected, "nothing is looked up first");
    for asked in &asked {
        assert_eq!((&*asked.method, &*asked.target), ("POST", "/order_process"));
        assert_eq!(asked.headers["content-type"], "application/json");
        assert_eq!(asked.headers["host"], upstream.address);
        assert!(!asked.headers.contains_key("authorization"), "{asked:?}");
        assert!(!asked.headers.contains_key("accept-encoding"), "{asked:?}");
    }
    assert!(
        orders
            .all()
            .iter()
            .all(|order| order.status == Status::Processing)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_path_of_the_url_is_kept_before_the_upstreams_own() {
    let upstream = Scripted::new(|_, _| answer(200, "")).await;
    let orders = Orders::created(&["a1"]).await;
    assert_eq!(
        orders.once(&format!("{}/x/y/", upstream.url)).await.0,
        Some(0)
    );
    assert_eq!(upstream.asked()[0].target, "/x/y/order_process");
}

#[tokio::test(flavor = "multi_thread")]
async fn any_2xx_accepts_a_start_whatever_its_body_says() {
    let cases = [
        answer(200, ""),
        answer(200, "{\"order_id\":\"another\",\"status\":\"FAILED\"}"),
        answer(201, "<html>created</html>"),
        answer(202, "[]"),
        answer(206, "x"),
        Reply::Bytes("HTTP/1.1 204 No Content\r\n\r\n".into()),
        Reply::Bytes("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\ncut".into()),
        Reply::Bytes("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\ncu".into()),
        Reply::Bytes("HTTP/1.0 200 OK\r\n\r\n".into()),
        Reply::Answer(200, "Retry-After: 60\r\n", String::new()),
        // An answer before the answer.
        Reply::Bytes(
            "HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".into(),
        ),
    ];
    side_by_side(cases, |reply| async move {
        let shown = format!("{reply:?}");
        let upstream = Scripted::new(move |asked, _| {
            if asked.is_start() {
                reply.clone()
            } else {
                answer(500, "no look-up is needed")
            }
        })
        .await;
        let orders = Orders::created(&["a1"]).await;
        let (code, log) = orders.once(&upstream.url).await;
        assert_eq!(code, Some(0), "{shown}: {log}");
        let order = orders.order("a1");
        assert_eq!(order.status, Status::Processing, "{shown}: {order:?}");
        assert_eq!(order.starts, 1, "{shown}");
        assert_eq!(order.attention, None, "{shown}");
        assert_eq!(upstream.asked().len(), 1, "{shown}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_never_followed() {
    let canary = Arc::new(Scripted::new(|_, _| answer(200, "{}")).await);
    let cases = [301, 302, 303, 307, 308]
        .into_iter()
        .flat_map(|status| [(status, true), (status, false)]);
    let to: &'static str = format!("Location: {}/order_process\r\n", canary.url).leak();
    side_by_side(cases, |(status, is_start)| async move {
        let upstream = Scripted::new(move |_, _| Reply::Answer(status, to, "moved".into())).await;
        let orders = if is_start {
            Orders::created(&["a1"]).await
        } else {
            Orders::processing(&["a1".into()]).await
        };
        let _reconciler = orders.reconciler(&upstream.url);
        until_asked(&upstream, |asked| asked.len() >= 2).await;
        let order = orders
            .until_attention("a1", Reason::UpstreamUnreachable)
            .await;
        let detail = order.attention.unwrap().detail;
        assert!(detail.contains(&status.to_string()), "{detail}");
        assert!(detail.contains("redirects are not followed"), "{detail}");
        assert_eq!(upstream.starts(), usize::from(is_start));
        let expected = if is_start {
            Status::Created
        } else {
            Status::Processing
        };
        assert_eq!(order.status, expected);
    })
    .await;
    assert_eq!(canary.connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_400_a_look_up_decides_whatever_the_text_claims() {
    let texts = [
        "{\"message\":\"order process for order a1 exists\"}",
        "{\"message\":\"order process for order a\"1 exists\"}",
        "{\"message\":\"missing order id\"}",
        "{\"message\":\"invalid request body\"}",
        "{\"order_id\":\"a1\",\"status\":\"SUCCEEDED\"}",
        "",
    ];
    let looks = [
        (process("a1", "RUNNING"), Status::Processing),
        (process("a1", "SUCCEEDED"), Status::Fulfilled),
        (process("a1", "FAILED"), Status::Failed),
        ("{}".to_owned(), Status::Created),
    ];
    let cases: Vec<_> = texts
        .iter()
        .flat_map(|text| looks.clone().map(|look| (*text, look)))
        .collect();
    side_by_side(cases, |(text, (look, status))| async move {
        let upstream = Scripted::new(move |asked, _| match asked.is_start() {
            true => answer(400, text),
            false => answer(200, look.clone()),
        })
        .await;
        let orders = Orders::created(&["a1"]).await;
        let (code, log) = orders.once(&upstream.url).await;
        assert_eq!(code, Some(0), "single orders may have trouble: {log}");
        let order = orders.order("a1");
        assert_eq!(order.status, status, "{text}");
        assert_eq!(order.starts, 0, "no start of ours made it");
        let methods: Vec<_> = upstream.asked().iter().map(|a| a.method.clone()).collect();
        assert_eq!(methods, ["POST", "GET"], "{text}");
        assert_eq!(
            reason_of(&order),
            (status == Status::Created).then_some(Reason::StartRefused),
            "{text}"
        );
        if let Some(attention) = order.attention {
            let wait = attention.next_attempt_at.unwrap().since(attention.since);
            assert!(wait >= Duration::from_millis(500), "{wait:?}");
            assert!(attention.detail.contains("400"), "{attention:?}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_order_is_tried_again_with_backoff_and_stops_no_other() {
    let upstream = Scripted::new(|asked, _| match asked.order_id() {
        Some(id) if id == "bad" && asked.is_start() => answer(400, "no"),
        Some(id) if id == "bad" => answer(200, "{}"),
        Some(id) if !asked.is_start() => answer(200, process(&id, "RUNNING")),
        _ => answer(200, ""),
    })
    .await;
    let orders = Orders::created(&["bad", "good1", "good2", "good3"]).await;
    let _reconciler = orders.reconciler(&upstream.url);
    for id in ["good1", "good2", "good3"] {
        orders.until_status(id, Status::Processing).await;
    }
    let first = orders.until_attention("bad", Reason::StartRefused).await;
    assert_eq!(first.status, Status::Created);
    until_asked(&upstream, |asked| {
        asked
            .iter()
            .filter(|asked| asked.is_start() && asked.order_id().as_deref() == Some("bad"))
            .count()
            >= 3
    })
    .await;
    let starts: Vec<_> = upstream
        .asked_about("bad")
        .into_iter()
        .filter(Asked::is_start)
        .collect();
    let waits: Vec<_> = starts.windows(2).map(|two| two[1].at - two[0].at).collect();
    assert!(waits[0] >= Duration::from_millis(480), "{waits:?}");
    assert!(waits[1] >= Duration::from_millis(980), "{waits:?}");
    let second = orders.order("bad").attention.unwrap();
    assert_eq!(
        second.since,
        first.attention.unwrap().since,
        "it still is the same trouble"
    );
    // A new order does not wait for it.
    orders.create("good4").await;
    orders.until_status("good4", Status::Processing).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_forgets_no_backoff() {
    let upstream = Scripted::new(|asked, _| match asked.is_start() {
        true => answer(400, "no"),
        false => answer(200, "{}"),
    })
    .await;
    let orders = Orders::created(&["a1"]).await;
    let begun = Instant::now();
    assert_eq!(orders.once(&upstream.url).await.0, Some(0));
    assert_eq!(orders.once(&upstream.url).await.0, Some(0));
    if begun.elapsed() < Duration::from_millis(500) {
        assert_eq!(upstream.starts(), 1);
    }
    let next = orders.order("a1").attention.unwrap().next_attempt_at;
    SystemClock.sleep_until(next.unwrap()).await;
    let before = upstream.starts();
    assert_eq!(orders.once(&upstream.url).await.0, Some(0));
    assert_eq!(upstream.starts(), before + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn once_ends_with_4_when_no_request_met_a_usable_answer_however_few_orders_wait() {
    let cases = [
        Reply::Silence,
        Reply::HangUp,
        answer(500, "trouble"),
        answer(502, "a proxy"),
        answer(503, "down"),
        answer(401, "who?"),
        answer(307, "elsewhere"),
    ];
    let wrong: &'static Mutex<Vec<String>> = Box::leak(Box::default());
    side_by_side(cases, |reply| async move {
        for is_start in [true, false] {
            let scripted = reply.clone();
            let upstream = Scripted::new(move |_, _| scripted.clone()).await;
            let orders = if is_start {
                Orders::created(&["a1"]).await
            } else {
                Orders::processing(&["a1".into()]).await
            };
            let arguments = ["--once", "--request-timeout", "800ms"];
            let (code, log) = ended(orders.world.reconciler(&upstream.url, &arguments)).await;
            assert!(!upstream.asked().is_empty());
            if code != Some(4) {
                let case = format!("{code:?} after {reply:?}, start: {is_start}: {log}");
                wrong.lock().unwrap().push(case);
            }
        }
    })
    .await;
    let wrong = wrong.lock().unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The requests about an order whose first start brought trouble: no second start before a
/// look-up that could have seen the first.
fn assert_looked_up_before_the_second_start(asked: &[Asked], given_up: Instant) {
    assert!(asked[0].is_start(), "{asked:?}");
    let second = asked.iter().skip(1).position(Asked::is_start);
    let before = &asked[1..=second.unwrap_or(asked.len() - 1)];
    if second.is_some() {
        // The upstream's clock and ours are read at different moments.
        let counts_from = given_up + TIMEOUT - Duration::from_millis(5);
        assert!(
            before
                .iter()
                .any(|asked| asked.looked_up().is_some() && asked.at >= counts_from),
            "no absence was seen a request timeout after {given_up:?}: {asked:#?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_meets_trouble_is_repeated_only_after_a_look_up_that_finds_no_process() {
    let trouble = [401, 403, 407, 408, 429, 500, 501, 502, 503, 504, 599];
    let cases = trouble
        .into_iter()
        .flat_map(|status| [(status, true), (status, false)]);
    side_by_side(cases, |(status, took_effect)| async move {
        let upstream = Scripted::new(move |asked, before| {
            if asked.is_start() && !before.iter().any(Asked::is_start) {
                answer(status, "trouble")
            } else if asked.is_start() {
                answer(200, "")
            } else if took_effect || before.iter().filter(|a| a.is_start()).count() > 1 {
                answer(200, process("a1", "RUNNING"))
            } else {
                answer(200, "{}")
            }
        })
        .await;
        let orders = Orders::created(&["a1"]).await;
        let _reconciler = orders.reconciler(&upstream.url);
        // That the upstream is back is only told at the end of the pass.
        let is_well =
            |all: &[Order]| all[0].status == Status::Processing && all[0].attention.is_none();
        orders.until(is_well).await;
        let asked = upstream.asked_about("a1");
        assert_eq!(
            upstream.starts(),
            if took_effect { 1 } else { 2 },
            "{status}: {asked:#?}"
        );
        assert!(asked[1].looked_up().is_some(), "{status}: {asked:#?}");
        assert_looked_up_before_the_second_start(&asked, asked[0].at);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_is_honoured() {
    let cases = [429, 500, 503]
        .into_iter()
        .flat_map(|status| [(status, true), (status, false)]);
    side_by_side(cases, |(status, is_start)| async move {
        let upstream = Scripted::new(move |asked, before| {
            if before.is_empty() {
                Reply::Answer(status, "Retry-After: 3\r\n", "later".into())
            } else if asked.is_start() {
                answer(200, "")
            } else if before.iter().filter(|a| a.is_start()).count() > 1 || !is_start {
                answer(200, process("a1", "RUNNING"))
            } else {
                answer(200, "{}")
            }
        })
        .await;
        let orders = if is_start {
            Orders::created(&["a1"]).await
        } else {
            Orders::processing(&["a1".into()]).await
        };
        let _reconciler = orders.reconciler(&upstream.url);
        let asked = until_asked(&upstream, |asked| asked.len() >= 2).await;
        let wait = asked[1].at - asked[0].at;
        assert!(wait >= Duration::from_millis(2_950), "{status}: {wait:?}");
        let order = orders
            .until(|all| all[0].attention.is_none())
            .await
            .remove(0);
        assert_eq!(order.status, Status::Processing);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_is_honoured_although_another_request_in_flight_succeeds() {
    let upstream = Scripted::new(|asked, before| match (asked.is_start(), before.len()) {
        (true, 0) => Reply::Answer(503, "Retry-After: 3\r\n", "later".into()),
        (true, 1) => Reply::Later(Duration::from_millis(150), Box::new(answer(200, ""))),
        (true, _) => answer(200, ""),
        _ => answer(200, "{}"),
    })
    .await;
    let orders = Orders::created(&["a1", "a2"]).await;
    let arguments = ["--request-timeout", "800ms", "--start-rate", "0"];
    let _reconciler = orders.world.reconciler(&upstream.url, &arguments);
    let asked = until_asked(&upstream, |asked| asked.len() >= 3).await;
    let wait = asked[2].at - asked[0].at;
    assert!(wait >= Duration::from_millis(2_950), "{wait:?}: {asked:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_is_honoured_within_a_pass() {
    let upstream = Scripted::new(|asked, before| match (asked.is_start(), before.len()) {
        (true, 0) => Reply::Answer(500, "Retry-After: 3\r\n", "later".into()),
        (true, _) => answer(200, ""),
        _ => answer(200, "{}"),
    })
    .await;
    let orders = Orders::created(&["a1", "a2"]).await;
    let arguments = ["--max-in-flight", "1"];
    let _reconciler = orders.world.reconciler(&upstream.url, &arguments);
    let asked = until_asked(&upstream, |asked| asked.len() >= 2).await;
    let wait = asked[1].at - asked[0].at;
    assert!(wait >= Duration::from_millis(2_950), "{wait:?}: {asked:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_was_accepted_but_never_answered_is_looked_up_and_not_repeated() {
    let cases = [
        Reply::Silence,
        Reply::HangUp,
        Reply::Bytes("HTTP/1.1 2".into()),
        Reply::Bytes("nonsense\r\n\r\n".into()),
    ];
    side_by_side(cases, |reply| async move {
        let shown = format!("{reply:?}");
        let upstream = Scripted::new(move |asked, _| match asked.is_start() {
            true => reply.clone(),
            false => answer(200, process("a1", "SUCCEEDED")),
        })
        .await;
        let orders = Orders::created(&["a1"]).await;
        let _reconciler = orders.reconciler(&upstream.url);
        let order = orders.until_status("a1", Status::Fulfilled).await;
        assert_eq!(upstream.starts(), 1, "{shown}");
        assert_eq!(order.starts, 1, "{shown}: it was ours");
        assert_eq!(order.attention, None, "a settled order has none");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unanswered_start_is_repeated_only_after_an_absence_seen_a_timeout_after_giving_up() {
    let cases = [
        (Reply::Silence, TIMEOUT),
        (Reply::HangUp, Duration::ZERO),
        // It dribbles: the time is for the whole answer, not for each byte.
        (
            Reply::Later(
                Duration::from_millis(290),
                Box::new(Reply::Bytes("HTTP/1.1".into())),
            ),
            Duration::ZERO,
        ),
    ];
    side_by_side(cases, |(reply, waited)| async move {
        let upstream = Scripted::new(move |asked, before| {
            let starts = before.iter().filter(|asked| asked.is_start()).count();
            match (asked.is_start(), starts) {
                (true, 0) => reply.clone(),
                (true, _) => answer(200, ""),
                (false, 1) => answer(200, "{}"),
                (false, _) => answer(200, process("a1", "RUNNING")),
            }
        })
        .await;
        let orders = Orders::created(&["a1"]).await;
        let _reconciler = orders.reconciler(&upstream.url);
        let order = orders.until_status("a1", Status::Processing).await;
        assert_eq!(order.starts, 2, "the first may have had its effect");
        let asked = upstream.asked_about("a1");
        assert_looked_up_before_the_second_start(&asked, asked[0].at + waited);
        assert_eq!(upstream.starts(), 2);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_intent_and_answer_is_not_answered_with_a_second_start() {
    let upstream = Scripted::new(|asked, _| match asked.is_start() {
        true => Reply::Silence,
        false => answer(200, process("a1", "RUNNING")),
    })
    .await;
    let orders = Orders::created(&["a1"]).await;
    let arguments = ["--request-timeout", "30s"];
    let reconciler = orders.world.reconciler(&upstream.url, &arguments);
    until_asked(&upstream, |asked| asked.len() == 1).await;
    reconciler.kill();
    let _reconciler = orders.reconciler(&upstream.url);
    orders.until_status("a1", Status::Processing).await;
    assert_eq!(upstream.starts(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_in_flight_at_the_stop_is_waited_for_and_recorded() {
    let upstream =
        Scripted::new(|_, _| Reply::Later(Duration::from_millis(1_000), Box::new(answer(200, ""))))
            .await;
    let orders = Orders::created(&["a1", "a2"]).await;
    // Together they would take longer than the schedule's second: only one is in flight.
    let arguments = ["--max-in-flight", "1"];
    let reconciler = orders.world.reconciler(&upstream.url, &arguments);
    until_asked(&upstream, |asked| asked.len() == 1).await;
    reconciler.signal("TERM");
    assert_eq!(ended(reconciler).await.0, Some(0));
    assert_eq!(orders.order("a1").status, Status::Processing);
    assert_eq!(orders.order("a2").status, Status::Created);
    assert_eq!(upstream.asked().len(), 1, "nothing new is begun");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_to_a_look_up_that_is_not_about_this_order_says_nothing() {
    let cases = [
        answer(200, process("a2", "SUCCEEDED")),
        answer(200, process("A1", "SUCCEEDED")),
        answer(200, format!("[{}]", process("a1", "SUCCEEDED"))),
        answer(200, "[]"),
        answer(200, "null"),
        answer(200, ""),
        answer(200, "<html>{}</html>"),
        answer(200, "{\"order_id\":\"a1\"}"),
        answer(200, "{\"message\":\"not now\"}"),
        answer(
            200,
            "{\"order_id\":\"a1\",\"status\":\"SUCCEEDED\",\"status\":\"FAILED\"}",
        ),
        answer(201, process("a1", "SUCCEEDED")),
        answer(204, ""),
        answer(400, process("a1", "SUCCEEDED")),
        answer(404, "{}"),
        answer(500, process("a1", "FAILED")),
        Reply::Bytes("HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{}".into()),
        Reply::Bytes("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n".into()),
        Reply::Bytes("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{\"order_id\":\"a1\"".into()),
        Reply::Silence,
        Reply::HangUp,
    ];
    side_by_side(cases, |reply| async move {
        let shown = format!("{reply:?}");
        let upstream = Scripted::new(move |_, _| reply.clone()).await;
        let orders = Orders::processing(&["a1".into()]).await;
        let _reconciler = orders.reconciler(&upstream.url);
        let asked = until_asked(&upstream, |asked| asked.len() >= 2).await;
        let order = orders
            .until_attention("a1", Reason::UpstreamUnreachable)
            .await;
        assert_eq!(order.status, Status::Processing, "{shown}");
        assert!(asked.iter().all(|asked| !asked.is_start()), "{shown}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_empty_object_is_an_absence_and_it_flags_the_loss() {
    side_by_side(["{}", " {\n}\r\n"], |body| async move {
        let upstream = Scripted::new(move |_, _| answer(200, body)).await;
        let orders = Orders::processing(&["a1".into()]).await;
        let _reconciler = orders.reconciler(&upstream.url);
        let order = orders.until_attention("a1", Reason::ProcessLost).await;
        assert_eq!(order.status, Status::Processing, "nothing goes backwards");
        assert_eq!(upstream.starts(), 0, "it is held");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_that_is_not_known_is_shown_and_leaves_the_order_processing() {
    let ids: Vec<String> = (0..30).map(|n| format!("a{n}")).collect();
    for by_list in [false, true] {
        let ids = if by_list { &ids[..] } else { &ids[..1] };
        let upstream = Scripted::new(move |asked, _| match asked.looked_up() {
            Some(id) => answer(200, process(&id, "PAUSED")),
            None => {
                let list: Vec<_> = (0..30)
                    .map(|n| process(&format!("a{n}"), "PAUSED"))
                    .collect();
                answer(200, format!("[{}]", list.join(",")))
            }
        })
        .await;
        let orders = Orders::processing(ids).await;
        let _reconciler = orders.reconciler(&upstream.url);
        for id in ids {
            let order = orders.until_attention(id, Reason::UnknownStatus).await;
            assert_eq!(order.status, Status::Processing);
            let detail = order.attention.unwrap().detail;
            assert!(detail.contains("PAUSED"), "{detail}");
        }
        assert_eq!(upstream.asked().iter().any(Asked::is_list), by_list);
    }
    // So does one of an order that was never seen to be started.
    let upstream = Scripted::new(|asked, _| match asked.is_start() {
        true => answer(400, "exists"),
        false => answer(200, process("a1", "PAUSED")),
    })
    .await;
    let orders = Orders::created(&["a1"]).await;
    let _reconciler = orders.reconciler(&upstream.url);
    let order = orders.until_attention("a1", Reason::UnknownStatus).await;
    assert_eq!(order.status, Status::Processing);
}

/// Enough orders for the list to be read.
fn many() -> Vec<String> {
    (0..40).map(|n| format!("order-{n}")).collect()
}

/// A list in which the first half of [`many`] has succeeded, without its end.
fn half_a_list() -> String {
    let entries: Vec<_> = many()[..20]
        .iter()
        .map(|id| process(id, "SUCCEEDED"))
        .collect();
    format!("[{}", entries.join(","))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_incomplete_list_says_holds_and_what_it_lacks_is_not_lost() {
    let half = half_a_list();
    let length = half.len();
    let framed =
        |head: &str, body: &str| Reply::Bytes(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{body}"));
    let chunk = format!("{length:x}\r\n{half}\r\n");
    let cases = [
        (
            "shorter than its length",
            framed(&format!("Content-Length: {}", length + 50), &half),
        ),
        (
            "shorter than its length, but whole JSON",
            framed(
                &format!("Content-Length: {}", length + 50),
                &format!("{half}]"),
            ),
        ),
        (
            "chunked without an end",
            framed("Transfer-Encoding: chunked", &chunk),
        ),
        (
            "chunked without an end, but whole JSON",
            framed("Transfer-Encoding: chunked", &format!("{chunk}1\r\n]\r\n")),
        ),
        (
            "a proper answer that is cut JSON",
            answer(200, half.clone()),
        ),
        (
            "cut within an entry",
            answer(200, format!("{half},{{\"order_id\":\"order-3")),
        ),
        ("a comma at the end", answer(200, format!("{half},]"))),
        (
            "something after the end",
            answer(200, format!("{half}]<html>")),
        ),
        (
            "an entry that is no process",
            answer(200, format!("{half},{{\"order_id\":1}}]")),
        ),
        (
            "until the connection ends",
            framed("Connection: close", &half),
        ),
    ];
    side_by_side(cases, |(name, list)| async move {
        let upstream = Scripted::new(move |asked, _| {
            if asked.is_list() {
                list.clone()
            } else {
                // What is looked up instead says nothing either.
                answer(200, "<html>")
            }
        })
        .await;
        let orders = Orders::processing(&many()).await;
        let _reconciler = orders.reconciler(&upstream.url);
        let all = orders
            .until(|all| {
                all[..20]
                    .iter()
                    .all(|order| order.status == Status::Fulfilled)
            })
            .await;
        assert_eq!(all.len(), 40);
        // One more look at least.
        let so_far = upstream.asked().len();
        until_asked(&upstream, |asked| asked.len() > so_far + 1).await;
        for order in &orders.all()[20..] {
            assert_eq!(order.status, Status::Processing, "{name}: {order:?}");
            assert_ne!(
                reason_of(order),
                Some(Reason::ProcessLost),
                "{name}: {order:?}"
            );
        }
        assert_eq!(upstream.starts(), 0, "{name}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_complete_list_lacks_is_lost() {
    let list = format!("{}]", half_a_list());
    let upstream = Scripted::new(move |_, _| answer(200, list.clone())).await;
    let orders = Orders::processing(&many()).await;
    let _reconciler = orders.reconciler(&upstream.url);
    let lost = |order: &Order| reason_of(order) == Some(Reason::ProcessLost);
    let all = orders.until(|all| all[20..].iter().all(lost)).await;
    assert!(
        all[..20]
            .iter()
            .all(|order| order.status == Status::Fulfilled)
    );
    assert_eq!(upstream.starts(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_is_no_list_says_nothing_and_look_ups_take_its_place() {
    let cases = [
        answer(200, "<html>maintenance</html>"),
        answer(200, "{}"),
        answer(200, "null"),
        answer(200, ""),
        answer(200, "[null]"),
        answer(200, "{\"order_processes\":[]}"),
        answer(204, ""),
        answer(206, "[]"),
        answer(404, "[]"),
        answer(500, "[]"),
        Reply::Bytes("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n[]".into()),
        Reply::HangUp,
        // Longer than a silence may be.
        Reply::Silence,
    ];
    side_by_side(cases, |list| async move {
        let shown = format!("{list:?}");
        let upstream = Scripted::new(move |asked, _| match asked.looked_up() {
            Some(id) => answer(200, process(&id, "SUCCEEDED")),
            None => list.clone(),
        })
        .await;
        let orders = Orders::processing(&many()).await;
        let _reconciler = orders.reconciler(&upstream.url);
        orders
            .until(|all| all.iter().all(|order| order.status == Status::Fulfilled))
            .await;
        assert_eq!(upstream.starts(), 0, "{shown}");
        let asked = upstream.asked();
        assert!(asked.iter().any(Asked::is_list), "{shown}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_may_take_longer_than_the_request_timeout_as_long_as_it_is_not_silent() {
    // Raw, as it is dribbled.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        next_request(&mut stream, &mut Vec::new(), 0).await.unwrap();
        let head = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        for (at, id) in many().iter().enumerate() {
            let before = if at == 0 { "[" } else { "," };
            let entry = format!("{before}{}", process(id, "SUCCEEDED"));
            stream.write_all(entry.as_bytes()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
        stream.write_all(b"]").await.unwrap();
    });
    let orders = Orders::processing(&many()).await;
    let begun = Instant::now();
    let _reconciler = orders.reconciler(&url);
    orders
        .until(|all| all.iter().all(|order| order.status == Status::Fulfilled))
        .await;
    assert!(
        begun.elapsed() >= Duration::from_millis(1_600),
        "it was slow"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_a_list_names_twice_and_differently_is_left_as_it_is() {
    let mut entries: Vec<_> = many().iter().map(|id| process(id, "RUNNING")).collect();
    entries.push(process("order-0", "SUCCEEDED"));
    entries.insert(0, process("order-1", "FAILED"));
    entries.push(process("order-2", "SUCCEEDED"));
    entries.push(process("order-2", "RUNNING"));
    // Twice the same is no contradiction.
    entries[4] = process("order-3", "SUCCEEDED");
    entries.push(process("order-3", "SUCCEEDED"));
    let list = format!("[{}]", entries.join(","));
    let upstream = Scripted::new(move |_, _| answer(200, list.clone())).await;
    let orders = Orders::processing(&many()).await;
    let _reconciler = orders.reconciler(&upstream.url);
    orders.until_status("order-3", Status::Fulfilled).await;
    let so_far = upstream.asked().len();
    until_asked(&upstream, |asked| asked.len() > so_far).await;
    for id in ["order-0", "order-1", "order-2"] {
        let order = orders.order(id);
        assert_eq!(order.status, Status::Processing, "{order:?}");
        assert_eq!(order.attention, None, "{order:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_is_down_is_asked_once_a_pass_however_many_orders_wait() {
    let cases = [
        Reply::HangUp,
        answer(503, "down"),
        answer(401, "who?"),
        Reply::Silence,
    ];
    side_by_side(cases, |reply| async move {
        let shown = format!("{reply:?}");
        let upstream = Scripted::new(move |_, _| reply.clone()).await;
        let orders = Orders::processing(&many()).await;
        for n in 0..40 {
            orders.create(&format!("new-{n}")).await;
        }
        let reconciler = orders.reconciler(&upstream.url);
        until_logged(&reconciler, "the upstream is down").await;
        // Those in flight when it was found out.
        tokio::time::sleep(TIMEOUT * 2).await;
        let (asked, connections) = (upstream.asked().len(), upstream.connections());
        let begun = Instant::now();
        let later = until_asked(&upstream, |now| now.len() >= asked + 3).await;
        let took = begun.elapsed();
        assert!(
            took >= Duration::from_millis(1_900),
            "{shown}: three passes in {took:?}"
        );
        assert!(upstream.connections() <= connections + 3, "{shown}");
        let ids: std::collections::BTreeSet<_> =
            later[asked..].iter().map(Asked::looked_up).collect();
        assert_eq!(ids.len(), 3, "another order each time: {ids:?}");
        let times = reconciler.logged().matches("the upstream is down").count();
        assert_eq!(times, 1, "{shown}: {}", reconciler.logged());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn loopback_is_never_reached_through_a_proxy() {
    let names = [
        "127.0.0.1",
        "127.0.0.2",
        "localhost",
        "LOCALHOST",
        "127.1",
        "[::1]",
    ];
    check_not_proxied(&names).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn loopback_written_as_an_ipv6_address_is_never_reached_through_a_proxy() {
    check_not_proxied(&["[::ffff:127.0.0.1]"]).await;
}

async fn check_not_proxied(names: &[&'static str]) {
    let canary = Scripted::new(|_, _| answer(502, "a proxy")).await;
    let proxy: &'static str = canary.url.clone().leak();
    side_by_side(names.iter().copied(), |name| async move {
        let address = match name {
            "[::1]" => "[::1]:0",
            "127.0.0.2" => "127.0.0.2:0",
            _ => "127.0.0.1:0",
        };
        let upstream = Scripted::at(address, |_, _| answer(200, "")).await;
        let port = upstream.address.rsplit(':').next().unwrap().to_owned();
        let orders = Orders::created(&["a1"]).await;
        let database = orders.world.database();
        let url = format!("http://{name}:{port}");
        let arguments = [
            "--once",
            "--database-url",
            database.to_str().unwrap(),
            "--order-process-url",
            &url,
        ];
        let variables = [
            "HTTP_PROXY",
            "http_proxy",
            "HTTPS_PROXY",
            "https_proxy",
            "ALL_PROXY",
            "all_proxy",
        ]
        .map(|variable| (variable, proxy));
        let ran = orders
            .world
            .start_with("order-reconciler", &arguments, &variables, false);
        let (code, log) = ended(ran).await;
        assert_eq!(code, Some(0), "{name}: {log}");
        assert_eq!(upstream.starts(), 1, "{name}");
    })
    .await;
    assert_eq!(canary.connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_is_used_for_what_is_elsewhere() {
    for (variable, url, target) in [
        (
            "HTTPS_PROXY",
            "https://upstream.invalid",
            "upstream.invalid:443",
        ),
        (
            "https_proxy",
            "https://upstream.invalid",
            "upstream.invalid:443",
        ),
        (
            "http_proxy",
            "http://upstream.invalid",
            "http://upstream.invalid/order_process",
        ),
    ] {
        let proxy = Scripted::new(|asked, _| match &*asked.method {
            "POST" => answer(200, ""),
            _ => answer(502, "no tunnel"),
        })
        .await;
        let orders = Orders::created(&["a1"]).await;
        let variables = [(variable, &*proxy.url), ("ORDER_PROCESS_URL", url)];
        let ran = orders
            .world
            .start_with("order-reconciler", &["--once"], &variables, false);
        let (code, log) = ended(ran).await;
        let asked = proxy.asked();
        assert_eq!(asked[0].target, target, "{variable}");
        if url.starts_with("https") {
            assert_eq!(asked[0].method, "CONNECT");
            assert_eq!(code, Some(4), "{log}");
            // Nothing was sent: the order may be started at once when the proxy works.
            assert_eq!(orders.order("a1").starts, 0);
        } else {
            assert_eq!(code, Some(0), "{log}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_is_sent_with_every_request_and_to_the_upstream_alone() {
    let canary = Scripted::new(|_, _| answer(200, "{}")).await;
    let to: &'static str = format!("Location: {}\r\n", canary.url).leak();
    let upstream = Scripted::new(move |asked, before| match asked.is_start() {
        true if before.is_empty() => answer(200, ""),
        true => Reply::Answer(307, to, String::new()),
        false => match asked.looked_up() {
            Some(id) => answer(200, process(&id, "RUNNING")),
            None => answer(200, "[]"),
        },
    })
    .await;
    let orders = Orders::processing(&many()).await;
    orders.create("a1").await;
    let database = orders.world.database();
    let arguments = [
        "--database-url",
        database.to_str().unwrap(),
        "--order-process-url",
        &upstream.url,
        "--lost-process",
        "hold",
    ];
    let variables = [("ORDER_PROCESS_TOKEN", "s3cret~+/=")];
    let reconciler = orders
        .world
        .start_with("order-reconciler", &arguments, &variables, false);
    let asked = until_asked(&upstream, |asked| {
        asked.iter().any(Asked::is_start)
            && asked.iter().any(Asked::is_list)
            && asked.iter().any(|asked| asked.looked_up().is_some())
    })
    .await;
    for asked in asked {
        assert_eq!(
            asked.headers["authorization"], "Bearer s3cret~+/=",
            "{asked:?}"
        );
    }
    assert_eq!(canary.connections(), 0);
    assert!(!reconciler.logged().contains("s3cret"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_upstream_says_cannot_forge_a_line_of_the_log() {
    let upstream = Scripted::new(|_, _| {
        answer(
            503,
            format!(
                "x\r\n2026-01-01T00:00:00.000Z ERROR forged\u{1b}[31m{}",
                "y".repeat(9_000)
            ),
        )
    })
    .await;
    let orders = Orders::created(&["a1"]).await;
    let reconciler = orders.world.start_with(
        "order-reconciler",
        &[],
        &[
            ("RUST_LOG", "order_service=trace"),
            ("ORDER_PROCESS_URL", &upstream.url),
        ],
        false,
    );
    until_logged(&reconciler, "the upstream is down").await;
    reconciler.signal("TERM");
    let (code, log) = ended(reconciler).await;
    assert_eq!(code, Some(0));
    assert!(
        log.lines()
            .all(|line| line.starts_with("20") && line.len() < 1_000),
        "{log}"
    );
    assert!(!log.contains('\u{1b}'), "{log}");
    assert!(
        !log.lines()
            .any(|line| line.contains("ERROR") && line.ends_with("forged")),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn at_most_as_many_requests_are_in_flight_as_allowed() {
    let now_and_most = Arc::new(Mutex::new((0usize, 0usize)));
    let counted = now_and_most.clone();
    let upstream = Scripted::new(move |asked, _| {
        let mut counted = counted.lock().unwrap();
        // Connections are not shared by requests at the same time.
        counted.0 = counted.0.max(asked.connection);
        counted.1 += 1;
        let wait = Duration::from_millis(20);
        let body = asked
            .looked_up()
            .map_or(String::new(), |id| process(&id, "RUNNING"));
        Reply::Later(wait, Box::new(answer(200, body)))
    })
    .await;
    let ids: Vec<String> = (0..60).map(|n| format!("a{n}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let orders = Orders::created(&ids).await;
    let arguments = ["--once", "--max-in-flight", "3", "--start-rate", "0"];
    let reconciler = orders.world.reconciler(&upstream.url, &arguments);
    assert_eq!(ended(reconciler).await.0, Some(0));
    let (connections, requests) = *now_and_most.lock().unwrap();
    assert!(requests >= 60);
    assert!(connections <= 3, "{connections}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settled_order_is_never_asked_about_again() {
    let upstream = Scripted::new(|asked, _| match asked.looked_up() {
        Some(id) if id == "done" => answer(200, process("done", "FAILED")),
        Some(id) => answer(200, process(&id, "RUNNING")),
        None => answer(200, ""),
    })
    .await;
    let orders = Orders::processing(&["done".into(), "open".into()]).await;
    let seq = orders.order("done").seq;
    let step = Step::Settled(Outcome::Succeeded);
    orders
        .store
        .record(vec![Change { seq, step }], SystemClock.now())
        .await
        .unwrap();
    let _reconciler = orders.reconciler(&upstream.url);
    until_asked(&upstream, |asked| asked.len() >= 3).await;
    assert_eq!(upstream.asked_about("done").len(), 0);
    assert_eq!(orders.order("done").status, Status::Fulfilled);
}

/// A pass that starts one order after the other and is far from its end.
async fn in_a_long_pass(upstream: &Scripted, orders: &Orders) -> Program {
    let arguments = ["--schedule", "0 0 0 1 1 *", "--start-rate", "10"];
    let reconciler = orders.world.reconciler(&upstream.url, &arguments);
    // A new order is what wakes it after a failure.
    until(|| upstream.asked().first().map(drop), || "no request").await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    orders.create("one more").await;
    until(
        || (upstream.starts() >= 10).then_some(()),
        || upstream.starts(),
    )
    .await;
    reconciler
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_was_started_is_not_shown_as_waiting_for_the_upstream() {
    let upstream = Scripted::new(|asked, before| match asked.is_start() {
        _ if before.is_empty() => answer(503, "down"),
        true => answer(200, ""),
        false => answer(200, "{}"),
    })
    .await;
    let ids = many();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let orders = Orders::created(&ids).await;
    let _reconciler = in_a_long_pass(&upstream, &orders).await;
    let started = orders.until_status("order-3", Status::Processing).await;
    assert_eq!(started.attention, None, "the upstream has long been back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reconciler_in_the_middle_of_a_long_pass_is_healthy() {
    let upstream = Scripted::new(|_, _| answer(200, "")).await;
    let ids = many();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let orders = Orders::created(&ids).await;
    let _reconciler = in_a_long_pass(&upstream, &orders).await;
    let database = orders.world.database();
    let arguments = ["health", "--database-url", database.to_str().unwrap()];
    let health = orders.world.start("order-reconciler", &arguments, false);
    let (code, log) = ended(health).await;
    assert_eq!(code, Some(0), "it works: {log}");
}
