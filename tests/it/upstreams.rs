//! The client and the reconciler against upstreams that answer as a test has scripted, down to
//! the bytes. What a well-behaved upstream makes of orders is in `life`.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use order_service::clock::{Clock, SystemClock};
use order_service::order::{Order, OrderId, Outcome, Reason, Status};
use order_service::store::{Change, Creation, Filter, Mode, OpenGate, Step, Store};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use self::scripted::{Asked, Reply, Scripted, answer, process};
use crate::world::{PATIENCE, Program, World};

mod looks;
mod scripted;
mod starts;
mod way;

/// The timeout that most of these tests give a request.
const TIMEOUT: Duration = Duration::from_millis(800);

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

/// Enough orders for the list to be read.
fn many() -> Vec<String> {
    (0..40).map(|n| format!("order-{n}")).collect()
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
