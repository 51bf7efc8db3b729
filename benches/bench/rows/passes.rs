//! Passes of the reconciler. The reference of each is its unavoidable work, measured alone: the
//! same requests by the same client, the same reads, the same changes in chunks of the same size.
//!
//! Lists are in random order, like those of the real service.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures_util::FutureExt;
use futures_util::StreamExt;
use order_service::clock::{Clock, ManualClock, SystemClock};
use order_service::order::{Observed, OrderId, Status};
use order_service::pace::StartRate;
use order_service::process::Stop;
use order_service::reconciler::{Reconciler, Settings, reconciler_runtime};
use order_service::store::{DatabaseUrl, Mode, Store};
use order_service::upstream::{Entry, Failure, HttpUpstream, StartError, Upstream};

use crate::Bench;
use crate::databases::{self, CommonStatus, Ids, MILLION, Template};
use crate::programs::Program;
use crate::table::{Goal, Line, Unit, alternately};
use crate::upstream;

const ROUNDS: usize = 3;

/// Number of rounds. Each takes about a millisecond.
const GROWTH_ROUNDS: usize = 50;

/// Number of rounds. Settling a million orders takes twelve seconds.
const SETTLING_ROUNDS: usize = 2;

/// Number of changes per transaction of the reconciler.
const CHUNK: usize = 2_000;

/// Number of requests in flight, except for starts.
const REQUESTS: usize = 8;

/// Number of starts in flight.
const STARTS: usize = 64;

/// Number of open orders in the rows with few.
const FEW: u64 = 1_000;

/// A duration far longer than any measurement.
const NEVER: Duration = Duration::from_secs(1_000_000_000);

/// A duration after which every order is due for its next poll.
const UNTIL_NEXT_POLL: Duration = Duration::from_secs(61);

const TO_START: Template = Template {
    orders: 100_000,
    ids: Ids::Random,
    reached: CommonStatus::Created,
};

const RUNNING: Template = Template {
    orders: 100_000,
    ids: Ids::Random,
    reached: CommonStatus::Processing,
};

const TO_SETTLE: Template = Template {
    orders: 1_000_000,
    ids: Ids::Random,
    reached: CommonStatus::Processing,
};

/// Start rate, in starts per second, that is effectively unlimited here.
const FAST: f64 = 50_000.0;

/// Measures starts at the rate that an earlier run has learned from an upstream that accepted every
/// start. The program itself is measured, from start to exit.
pub fn starts(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let ids = ids_of(TO_START.names(bench)?)?;
    let simulator =
        |scratch: &Path| Program::simulator(scratch, &["--max-order-process-duration", "100000"]);
    let per_second = |took: Duration| TO_START.orders as f64 / took.as_secs_f64();
    let (ours, reference) = alternately(
        ROUNDS,
        |_| {
            let scratch = bench.scratch()?;
            let database = scratch.path().join("orders.db");
            TO_START.copy(bench, &database)?;
            learn_a_fast_upstream(&database)?;
            let simulator = simulator(scratch.path())?;
            let unlimited = ["--start-rate", "0", "--max-in-flight", "64", "--once"];
            let (took, _) = run_once(&database, &simulator.url, &unlimited)?;
            ensure_count(&database, Status::Created, 0)?;
            Ok(per_second(took))
        },
        |_| {
            let scratch = bench.scratch()?;
            let simulator = simulator(scratch.path())?;
            let upstream = client(&simulator.url)?;
            let took = send_all(&ids, STARTS, async |id| upstream.start(id).await.is_ok())?;
            Ok(per_second(took))
        },
    )?;
    Ok(vec![
        Line::new(
            "starts, 64 at once; the same client alone",
            Unit::PerSecond,
            ours,
        )
        .against(reference)
        .goal(Goal::RatioAtLeast(0.7)),
    ])
}

/// Stores the state learned from an upstream that accepted every start at any rate.
fn learn_a_fast_upstream(database: &Path) -> anyhow::Result<()> {
    let mut now = SystemClock.now();
    let mut rate = StartRate::new(0.0, now);
    while rate.rate() < FAST {
        now = now.after(Duration::from_secs(1));
        (0..rate.rate() as u32).for_each(|_| rate.on_admitted());
        rate.on_seen_alive(now);
    }
    let store = Store::open(&DatabaseUrl::from(database.to_owned()), Mode::Threaded)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let mut heartbeat = runtime.block_on(store.heartbeat())?;
    heartbeat.learned.rate = Some(rate);
    runtime.block_on(async {
        let lead = store.try_lead().await?;
        let lead = lead.context("another reconciler leads")?;
        lead.write_heartbeat(heartbeat).await?;
        Ok(())
    })
}

/// Measures the settling of a million orders from the list, by the program itself.
pub fn settle(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let ended = upstream(TO_SETTLE.names(bench)?, Duration::ZERO)?;
    let mut memory = Vec::new();
    let (ours, reference) = alternately(
        SETTLING_ROUNDS,
        |_| {
            let scratch = bench.scratch()?;
            let database = scratch.path().join("orders.db");
            TO_SETTLE.copy(bench, &database)?;
            let (took, peak) = run_once(&database, &ended.url, &["--once"])?;
            ensure_count(&database, Status::Processing, 0)?;
            memory.push(peak);
            Ok(took.as_secs_f64())
        },
        |_| {
            let scratch = bench.scratch()?;
            let database = scratch.path().join("orders.db");
            TO_SETTLE.copy(bench, &database)?;
            let took = time_of_list(&ended.url)? + time_of_changes(&database)?;
            Ok(took.as_secs_f64())
        },
    )?;
    Ok(vec![
        Line::new(
            "a million settled by a list; list and changes alone",
            Unit::Seconds,
            ours,
        )
        .against(reference)
        .goal(Goal::RatioAtMost(1.3)),
        Line::new("the same, memory", Unit::MiB, memory).goal(Goal::Below(200.0)),
    ])
}

/// Measures a pass without changes.
pub fn idle_pass(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let scratch = bench.scratch()?;
    let database = scratch.path().join("orders.db");
    RUNNING.copy(bench, &database)?;
    let running = upstream(RUNNING.names(bench)?, NEVER)?;
    let store = open(&database)?;
    let mut passes = Passes::new(store.clone(), client(&running.url)?)?;
    passes.next(RUNNING.orders)?;
    let before = ready(store.open_orders())?;
    let (ours, reference) = alternately(
        2 * ROUNDS,
        |_| Ok(millis(passes.next(RUNNING.orders)?)),
        |_| {
            let list = time_of_list(&running.url)?;
            let began_at = Instant::now();
            ensure!(ready(store.open_orders())?.len() as u64 == RUNNING.orders);
            Ok(millis(list + began_at.elapsed()))
        },
    )?;
    let after = ready(store.open_orders())?;
    ensure!(before.orders().eq(after.orders()), "orders were written");
    Ok(vec![
        Line::new(
            "a pass without news, 100,000 open; list and reading alone",
            Unit::Millis,
            ours,
        )
        .against(reference)
        .goal(Goal::RatioAtMost(1.2)),
    ])
}

/// Measures a pass with few open orders, and a million settled ones in the database and in the
/// list.
pub fn few(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let scratch = bench.scratch()?;
    let store = few_open(bench, &MILLION, scratch.path())?;
    let listed = MILLION.names(bench)?.into_iter().chain(few_names());
    let running = upstream(listed.collect(), NEVER)?;
    let mut passes = Passes::new(store, client(&running.url)?)?;
    // The first pass learns the length of the list.
    passes.next(FEW)?;
    let upstream = client(&running.url)?;
    let ids = ids_of(few_names())?;
    let (ours, reference) = alternately(
        3 * ROUNDS,
        |_| Ok(millis(passes.next(FEW)?)),
        |_| {
            let look_up = async |id: &OrderId| upstream.look_up(id).await == Ok(Observed::Running);
            Ok(millis(send_all(&ids, REQUESTS, look_up)?))
        },
    )?;
    Ok(vec![
        Line::new(
            "a pass, 1,000 open, a million settled; look-ups alone",
            Unit::Millis,
            ours,
        )
        .against(reference)
        .goal(Goal::RatioAtMost(1.2)),
    ])
}

/// Like [`few`], but compares a million with a thousand settled orders, and with an upstream that
/// answers immediately from memory: the cost of the pass itself.
pub fn growth(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let thousand = Template {
        orders: 1_000,
        ..MILLION
    };
    let scratch = [bench.scratch()?, bench.scratch()?];
    let passes = |template, folder: &tempfile::TempDir| {
        Passes::new(few_open(bench, template, folder.path())?, Running)
    };
    let mut many = passes(&MILLION, &scratch[0])?;
    let mut one = passes(&thousand, &scratch[1])?;
    let (ours, reference) = alternately(
        GROWTH_ROUNDS,
        |_| Ok(millis(many.next(FEW)?)),
        |_| Ok(millis(one.next(FEW)?)),
    )?;
    Ok(vec![
        Line::new(
            "a pass, 1,000 open, of a million; of a thousand",
            Unit::Millis,
            ours,
        )
        .against(reference)
        .goal(Goal::RatioAtMost(1.5)),
    ])
}

/// Copies a template, and adds a few PROCESSING orders.
fn few_open(bench: &Bench, template: &Template, folder: &Path) -> anyhow::Result<Store> {
    let database = folder.join("orders.db");
    template.copy(bench, &database)?;
    let store = open(&database)?;
    reconciler_runtime()?.block_on(async {
        let now = SystemClock.now();
        let seqs = databases::create(&store, few_names().collect(), now).await?;
        databases::start(&store, &seqs, now).await
    })?;
    Ok(store)
}

fn few_names() -> impl Iterator<Item = String> {
    (0..FEW).map(|n| format!("open-{n}"))
}

/// An upstream with few processes, which never end.
struct Running;

impl Upstream for Running {
    async fn start(&self, _id: &OrderId) -> Result<(), StartError> {
        Ok(())
    }

    async fn look_up(&self, _id: &OrderId) -> Result<Observed, Failure> {
        Ok(Observed::Running)
    }

    async fn list(&self, mut on_entry: impl FnMut(Entry<'_>)) -> Result<u64, Failure> {
        for name in few_names() {
            on_entry(Entry {
                order_id: (&*name).into(),
                status: "RUNNING".into(),
            });
        }
        Ok(FEW)
    }
}

/// Runs the reconciler's program until it exits, and returns its duration and its peak anonymous
/// memory, in MiB.
fn run_once(
    database: &Path,
    upstream: &str,
    arguments: &[&str],
) -> anyhow::Result<(Duration, f64)> {
    let began_at = Instant::now();
    let mut program = Program::reconciler(database, upstream, arguments)?;
    let mut peak: f64 = 0.0;
    while !program.has_ended()? {
        peak = peak.max(program.anonymous_mib().unwrap_or(0.0));
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok((began_at.elapsed(), peak))
}

/// Passes in this process, on a clock that is advanced before each.
struct Passes<U> {
    reconciler: Reconciler<U, ManualClock>,
    clock: ManualClock,
    runtime: tokio::runtime::Runtime,
}

impl<U: Upstream> Passes<U> {
    fn new(store: Store, upstream: U) -> anyhow::Result<Self> {
        let clock = ManualClock::new(SystemClock.now());
        let settings = Settings {
            max_in_flight: REQUESTS,
            ..Settings::default()
        };
        let runtime = reconciler_runtime()?;
        let reconciler = runtime.block_on(async {
            let lead = store.try_lead().await?;
            let lead = lead.context("another reconciler leads")?;
            let reconciler = Reconciler::new(store, lead, upstream, clock.clone(), settings);
            anyhow::Ok(reconciler.await?)
        })?;
        Ok(Self {
            reconciler,
            clock,
            runtime,
        })
    }

    /// Runs a pass that polls this many orders without changes, and returns its duration.
    fn next(&mut self, orders: u64) -> anyhow::Result<Duration> {
        self.clock.set(self.clock.now().after(UNTIL_NEXT_POLL));
        let stop = Stop::default();
        let began_at = Instant::now();
        let report = self.runtime.block_on(self.reconciler.pass(&stop))?;
        let took = began_at.elapsed();
        ensure!(
            report.observed as u64 == orders,
            "not all orders were observed"
        );
        ensure!(
            report.to_string() == format!("observed={orders}"),
            "{report}"
        );
        Ok(took)
    }
}

/// Sends a request for each order, at most `at_once` concurrently, on a runtime like the
/// reconciler's, and returns the duration.
fn send_all(
    ids: &[OrderId],
    at_once: usize,
    send: impl AsyncFn(&OrderId) -> bool,
) -> anyhow::Result<Duration> {
    let send = &send;
    let began_at = Instant::now();
    let mut answers = futures_util::stream::iter(ids)
        .map(|id| async move { send(id).await })
        .buffer_unordered(at_once);
    let all = reconciler_runtime()?.block_on(async {
        while let Some(is_expected) = answers.next().await {
            ensure!(is_expected, "the upstream gave an unexpected answer");
        }
        Ok(())
    });
    all.map(|()| began_at.elapsed())
}

/// Reads the upstream's list, and returns the duration.
pub fn time_of_list(url: &str) -> anyhow::Result<Duration> {
    let upstream = client(url)?;
    let began_at = Instant::now();
    let mut entries = 0u64;
    let list = upstream.list(|entry| entries += u64::from(!entry.order_id.is_empty()));
    let listed = reconciler_runtime()?.block_on(list);
    ensure!(listed == Ok(entries), "the list is incomplete");
    Ok(began_at.elapsed())
}

fn time_of_changes(database: &Path) -> anyhow::Result<Duration> {
    let store = open(database)?;
    let seqs: Vec<i64> = ready(store.open_orders())?
        .orders()
        .map(|order| order.seq)
        .collect();
    let mut rng = fastrand::Rng::with_seed(1);
    let began_at = Instant::now();
    reconciler_runtime()?.block_on(async {
        for chunk in seqs.chunks(CHUNK) {
            databases::settle(&store, chunk, SystemClock.now(), &mut rng).await?;
        }
        anyhow::Ok(())
    })?;
    Ok(began_at.elapsed())
}

/// Serves an upstream that lists processes of these orders in random order.
fn upstream(mut ids: Vec<String>, ended_after: Duration) -> anyhow::Result<upstream::Upstream> {
    fastrand::Rng::with_seed(1).shuffle(&mut ids);
    upstream::Upstream::begin(ids, ended_after)
}

fn ids_of(names: impl IntoIterator<Item = String>) -> anyhow::Result<Vec<OrderId>> {
    let ids = names.into_iter().map(|name| Ok(OrderId::new(name)?));
    ids.collect()
}

fn ensure_count(database: &Path, status: Status, orders: u64) -> anyhow::Result<()> {
    let count = ready(open(database)?.count(status))?;
    ensure!(count == orders, "{count} orders are {status}");
    Ok(())
}

fn open(database: &Path) -> anyhow::Result<Store> {
    let path = DatabaseUrl::from(database.to_owned());
    Ok(Store::open(&path, Mode::Threaded)?)
}

fn client(url: &str) -> anyhow::Result<HttpUpstream> {
    HttpUpstream::new(&url.parse()?, None, Duration::from_secs(5))
}

fn millis(took: Duration) -> f64 {
    took.as_secs_f64() * 1e3
}

/// Returns the result of a SQLite read, which completes immediately.
fn ready<T>(read: impl Future<Output = T>) -> T {
    read.now_or_never()
        .expect("SQLite's reads are ready at once")
}
