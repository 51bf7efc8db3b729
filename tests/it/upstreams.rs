//! The client and the reconciler with scripted upstreams, down to the bytes. Well-behaved upstreams are
//! tested in `lifecycle`.
//!
//! Most tests run the reconciler's passes in the test's process, on a clock that skips waits. Programs are
//! started to test exit codes, environment, logs and shutdown.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::environment::{Program, TestEnvironment, create, lead, orders, ready, record, until};
use futures_util::StreamExt;
use order_service::clock::{Clock, SystemClock};
use order_service::decide::LostProcess;
use order_service::order::{Order, OrderId, Outcome, Reason, Status};
use order_service::process::Stop;
use order_service::reconciler::{Reconciler, Settings, run_once};
use order_service::store::{Filter, Mode, NoFaults, Store, Transition};
use order_service::upstream::HttpUpstream;

use self::scripted::{GZIP, ReceivedRequest, Reply, Scripted, SkippingClock, answer, process};

mod observations;
mod scripted;
mod starts;
mod transport;
mod unanswered;

/// The client's timeout: long enough for an answer on a busy machine, since a request that misses it
/// changes what a test observes.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The client's timeout with an upstream that never answers: no answer can miss it. Long enough for a
/// request to arrive.
const TIMEOUT_WHEN_SILENT: Duration = Duration::from_millis(500);

/// The request timeout in the reconciler's settings, on its own clock: much longer than the client's, so
/// that a wait for it is not mistaken for the client's timeout.
const TIMEOUT_IN_RULES: Duration = Duration::from_secs(20);

/// Number of passes after which a test gives up. Backoffs grow to five minutes.
const PASSES_MAX: usize = 1_000;

/// Orders in a database of their own.
struct Orders {
    env: TestEnvironment,
    store: Store,
}

impl Orders {
    /// Creates an order that is CREATED or PROCESSING.
    async fn one(is_created: bool) -> Self {
        match is_created {
            true => Self::created(&["a1"]).await,
            false => Self::processing(&["a1"]).await,
        }
    }

    /// Creates CREATED orders.
    async fn created(ids: &[impl AsRef<str>]) -> Self {
        let env = TestEnvironment::in_memory();
        let store = Store::open(
            &env.database().into(),
            Mode::Synchronous(Arc::new(NoFaults)),
        )
        .unwrap();
        let orders = Self { env, store };
        for id in ids {
            orders.create(id.as_ref()).await;
        }
        orders
    }

    /// Creates PROCESSING orders, started a moment ago.
    async fn processing(ids: &[impl AsRef<str>]) -> Self {
        let orders = Self::created(ids).await;
        let steps = [
            Transition::Intended { previous: None },
            Transition::Started { is_observed: false },
        ];
        let all = orders.all().into_iter();
        let changes = all.flat_map(|order| steps.clone().map(|step| (order.seq, step)));
        record(&orders.store, changes, SystemClock.now()).await;
        orders
    }

    async fn create(&self, id: &str) {
        create(&self.store, id, SystemClock.now()).await;
    }

    /// Returns a reconciler whose passes the test runs.
    async fn reconciler(&self, upstream: &Scripted) -> Passes<'_> {
        self.reconciler_with(upstream, settings()).await
    }

    async fn reconciler_with(&self, upstream: &Scripted, settings: Settings) -> Passes<'_> {
        Passes {
            orders: self,
            settings: settings.clone(),
            clock: upstream.clock.clone(),
            reconciler: Reconciler::new(
                self.store.clone(),
                lead(&self.store).await,
                HttpUpstream::new(&upstream.url.parse().unwrap(), None, upstream.timeout).unwrap(),
                upstream.clock.clone(),
                settings,
            )
            .await
            .unwrap(),
        }
    }

    /// Runs one reconciler until nothing is due. Returns true if the upstream could be used.
    async fn once(&self, upstream: &Scripted) -> bool {
        let reconciler = self.reconciler(upstream).await.reconciler;
        let is_usable = run_once(reconciler, &Stop::default()).await.unwrap();
        is_usable.unwrap()
    }

    fn order(&self, id: &str) -> Order {
        let id = OrderId::new(id).unwrap();
        ready(self.store.find(&id)).unwrap().unwrap().order
    }

    fn all(&self) -> Vec<Order> {
        orders(&self.store, Filter::default())
    }
}

fn settings() -> Settings {
    Settings {
        schedule: "* * * * * *".parse().unwrap(),
        start_rate: Some(50.0),
        max_in_flight: 8,
        request_timeout: TIMEOUT_IN_RULES,
        max_starts: 5,
        lost_process: LostProcess::Restart,
    }
}

/// A reconciler, one pass after the other.
struct Passes<'a> {
    orders: &'a Orders,
    settings: Settings,
    clock: SkippingClock,
    reconciler: Reconciler<HttpUpstream, SkippingClock>,
}

impl Passes<'_> {
    /// Runs a pass, and others until no start is in flight. Moves to the next moment of the schedule.
    async fn pass(&mut self) {
        self.reconciler.pass(&Stop::default()).await.unwrap();
        while self.reconciler.has_starts_in_flight() {
            self.reconciler.pass(&Stop::default()).await.unwrap();
        }
        let next = self.settings.schedule.next_after(self.clock.now());
        self.clock.sleep_until(next).await;
    }

    /// Runs passes until `found` returns a value.
    async fn until<T>(&mut self, found: impl Fn(&Orders) -> Option<T>) -> T {
        for _ in 0..PASSES_MAX {
            if let Some(found) = found(self.orders) {
                return found;
            }
            self.pass().await;
        }
        panic!("the condition was not met in time: {:?}", self.orders.all());
    }

    /// Runs passes until `holds` returns true for all orders.
    async fn until_all(&mut self, holds: impl Fn(&[Order]) -> bool) -> Vec<Order> {
        self.until(|orders| Some(orders.all()).filter(|all| holds(all)))
            .await
    }

    async fn until_status(&mut self, id: &str, status: Status) -> Order {
        self.until(|orders| Some(orders.order(id)).filter(|order| order.status == status))
            .await
    }

    async fn until_attention(&mut self, id: &str, reason: Reason) -> Order {
        let found = |order: &Order| reason_of(order) == Some(reason);
        self.until(|orders| Some(orders.order(id)).filter(found))
            .await
    }

    /// Runs passes until a scripted upstream has received matching requests.
    async fn until_asked(
        &mut self,
        upstream: &Scripted,
        holds: impl Fn(&[ReceivedRequest]) -> bool,
    ) -> Vec<ReceivedRequest> {
        self.until(|_| Some(upstream.asked()).filter(|asked| holds(asked)))
            .await
    }
}

/// Returns the exit code and the log of a program that ends by itself.
async fn ended(mut program: Program) -> (Option<i32>, String) {
    let wait = move || (program.wait().code(), program.logged());
    tokio::task::spawn_blocking(wait).await.unwrap()
}

fn reason_of(order: &Order) -> Option<Reason> {
    order.attention.as_ref().map(|attention| attention.reason)
}

/// Waits until a scripted upstream has received matching requests from a program.
async fn until_asked(
    upstream: &Scripted,
    holds: impl Fn(&[ReceivedRequest]) -> bool,
) -> Vec<ReceivedRequest> {
    until(async || upstream.asked(), |asked| holds(asked)).await
}

/// Number of cases that run concurrently: with more, requests miss their timeouts.
const SIDE_BY_SIDE: usize = 4;

/// Runs the cases of a table concurrently, because some of them wait for a timeout.
async fn side_by_side<T, F: Future<Output = ()>>(
    cases: impl IntoIterator<Item = T>,
    check: impl Fn(T) -> F,
) {
    let checks = futures_util::stream::iter(cases).map(check);
    checks
        .for_each_concurrent(SIDE_BY_SIDE, |check| check)
        .await;
}

/// Returns the ids of enough orders for the list to be read.
fn many() -> Vec<String> {
    (0..40).map(|n| format!("order-{n}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn once_finds_the_upstream_unusable_when_no_request_got_a_usable_answer() {
    let cases = [
        Reply::Silence,
        Reply::HangUp,
        answer(500, "error"),
        answer(502, "a proxy"),
        answer(503, "down"),
        answer(401, "who?"),
        answer(307, "elsewhere"),
    ];
    let cases = cases
        .into_iter()
        .flat_map(|reply| [(reply.clone(), true), (reply, false)]);
    side_by_side(cases, |(reply, is_start)| async move {
        let case = format!("{reply:?}, start: {is_start}");
        let upstream = Scripted::always(reply).await;
        let orders = Orders::one(is_start).await;
        assert!(!orders.once(&upstream).await, "{case}");
        assert!(!upstream.asked().is_empty(), "{case}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn once_is_not_held_up_by_an_order_whose_look_ups_fail_after_an_outage() {
    let orders = Orders::processing(&["failing", "a1", "a2"]).await;
    let down = Scripted::always(answer(401, "who?")).await;
    assert!(!orders.once(&down).await);
    let upstream = Scripted::new(|asked, _| match asked.looked_up() {
        Some(id) if id != "failing" => answer(200, process(&id, "SUCCEEDED")),
        _ => answer(403, "not this one"),
    })
    .await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(orders.once(&upstream).await, "each was tried");
    for id in ["a1", "a2"] {
        assert_eq!(orders.order(id).status, Status::Fulfilled);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn once_is_not_complete_if_a_pause_leaves_orders_unpolled() {
    let ids: Vec<String> = (0..12).map(|n| format!("a{n}")).collect();
    for headers in ["Retry-After: 60\r\n", ""] {
        let orders = Orders::processing(&ids).await;
        let upstream = Scripted::new(move |asked, before| match asked.looked_up() {
            Some(id) if before.is_empty() => answer(200, process(&id, "RUNNING")),
            _ => Reply::Answer(429, headers, "slowly".to_owned()),
        })
        .await;
        // One look-up after the other.
        let few = Settings {
            max_in_flight: 2,
            ..settings()
        };
        let reconciler = orders.reconciler_with(&upstream, few).await.reconciler;
        let is_usable = run_once(reconciler, &Stop::default()).await.unwrap();
        assert_eq!(is_usable, Some(false), "{headers:?}");
        assert_eq!(upstream.asked().len(), 2, "{headers:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn once_ends_with_4_when_no_request_got_a_usable_answer() {
    let upstream = Scripted::new(|_, _| Reply::HangUp).await;
    let orders = Orders::created(&["a1"]).await;
    let program = orders.env.reconciler(&upstream.url, &["--once"]);
    let (code, log) = ended(program).await;
    assert_eq!(code, Some(4), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn once_that_is_stopped_ends_with_1_unless_it_has_tried_all_orders() {
    let upstream = Scripted::always(answer(200, "")).await;
    let orders = Orders::created(&["a1", "a2", "a3"]).await;
    let arguments = ["--once", "--start-rate", "0.1"];
    let program = orders.env.reconciler(&upstream.url, &arguments);
    until_asked(&upstream, |asked| !asked.is_empty()).await;
    program.signal("TERM");
    let (code, log) = ended(program).await;
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("interrupted; run --once again"), "{log}");
    assert!(upstream.starts() < 3);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow; scripts/test all"]
async fn an_upstream_that_is_down_gets_one_request_per_pass_however_many_orders_wait() {
    let cases = [
        Reply::HangUp,
        answer(503, "down"),
        answer(401, "who?"),
        Reply::Silence,
    ];
    side_by_side(cases, |reply| async move {
        let shown = format!("{reply:?}");
        // A request on a connection that was already closed is repeated once.
        let requests = match &reply {
            Reply::HangUp => 2,
            _ => 1,
        };
        let upstream = Scripted::always(reply).await;
        let orders = Orders::processing(&many()).await;
        for n in 0..40 {
            orders.create(&format!("new-{n}")).await;
        }
        let mut reconciler = orders.reconciler(&upstream).await;
        // Several requests are in flight when the upstream is found down.
        reconciler.pass().await;
        let mut ids = std::collections::BTreeSet::new();
        // Probes pause for most of a second, which may span two moments of the schedule.
        for _ in 0..6 {
            let (asked, connections) = (upstream.asked().len(), upstream.connections());
            reconciler.pass().await;
            let asked = upstream.asked().split_off(asked);
            assert!(asked.len() <= requests, "{shown}: {asked:#?}");
            ids.extend(asked.iter().map(ReceivedRequest::looked_up));
            assert!(upstream.connections() <= connections + requests, "{shown}");
        }
        assert!(ids.len() >= 3, "{shown}, another order each time: {ids:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_most_as_many_requests_are_in_flight_as_allowed() {
    let most = Arc::new(AtomicUsize::new(0));
    let in_flight = most.clone();
    let upstream = Scripted::new(move |asked, before| {
        let others = before.iter().filter(|asked| !asked.is_answered).count();
        in_flight.fetch_max(others + 1, Ordering::Relaxed);
        let body = asked
            .looked_up()
            .map_or(String::new(), |id| process(&id, "RUNNING"));
        Reply::Later(Duration::from_millis(20), Box::new(answer(200, body)))
    })
    .await;
    let ids: Vec<String> = (0..60).map(|n| format!("a{n}")).collect();
    let orders = Orders::created(&ids).await;
    let few = Settings {
        start_rate: Some(0.0),
        max_in_flight: 3,
        ..settings()
    };
    let mut reconciler = orders.reconciler_with(&upstream, few).await;
    let is_running = |order: &Order| order.status == Status::Processing;
    reconciler.until_all(|all| all.iter().all(is_running)).await;
    assert!(upstream.starts() >= 60);
    assert_eq!(most.load(Ordering::Relaxed), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settled_order_is_never_polled_again() {
    let upstream = Scripted::new(|asked, _| match asked.looked_up() {
        Some(id) if id == "done" => answer(200, process("done", "FAILED")),
        Some(id) => answer(200, process(&id, "RUNNING")),
        None => answer(200, ""),
    })
    .await;
    let orders = Orders::processing(&["done", "open"]).await;
    let step = Transition::Settled(Outcome::Succeeded);
    let change = (orders.order("done").seq, step);
    record(&orders.store, [change], SystemClock.now()).await;
    let mut reconciler = orders.reconciler(&upstream).await;
    reconciler
        .until_asked(&upstream, |asked| asked.len() >= 3)
        .await;
    assert_eq!(upstream.asked_about("done").len(), 0);
    assert_eq!(orders.order("done").status, Status::Fulfilled);
}

/// Starts a reconciler whose pass starts one order after the other, and waits until it is under way.
async fn in_a_long_pass(upstream: &Scripted, orders: &Orders) -> Program {
    let arguments = ["--schedule", "0 0 0 1 1 *", "--start-rate", "10"];
    let reconciler = orders.env.reconciler(&upstream.url, &arguments);
    until(async || upstream.starts(), |starts| *starts >= 10).await;
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
    let orders = Orders::created(&many()).await;
    let mut reconciler = orders.reconciler(&upstream).await;
    let started = reconciler.until_status("order-3", Status::Processing).await;
    assert_eq!(started.attention, None, "the upstream has long been back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reconciler_in_the_middle_of_a_long_pass_is_healthy() {
    let upstream = Scripted::new(|_, _| answer(200, "")).await;
    let orders = Orders::created(&many()).await;
    let _reconciler = in_a_long_pass(&upstream, &orders).await;
    let database = orders.env.database();
    let arguments = ["health", "--database-url", database.to_str().unwrap()];
    let health = orders.env.start("order-reconciler", &arguments, false);
    let (code, log) = ended(health).await;
    assert_eq!(code, Some(0), "healthy: {log}");
}
