//! The time until many orders settle under each kind of upstream, and the number of their starts. The
//! reconciler is the real one, over a real database; the upstream is the simulator's model, which
//! crashes as the real one does, is killed, limits the rate of requests, or none of these.

use std::rc::Rc;
use std::time::Duration;

use order_service::order::{OrderId, Status, Timestamp};
use order_service::process::Stop;
use order_service::reconciler::{Reconciler, Settings};
use order_service::simulator::crash::{CrashModel, Hazard};
use order_service::store::{Creation, DatabaseUrl, Mode, Store};
use rusqlite::Connection;

use crate::environment::{Environment, Handle, RandomWriteFaults};
use crate::fixed_rate::{self, FixedRateClient, Load, Polling};
use crate::limits::{Kind, Limit};
use crate::run::{drive, ready};

/// The default of `--request-timeout`.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Number of starts above which an order needs an operator: the default of `--max-starts`.
const STARTS_MAX: u32 = 5;

/// Warm-up: starts are counted against a limit after this time.
const WARM_UP: Duration = Duration::from_secs(60);

/// An upstream, and the orders to settle.
#[derive(Clone, Debug)]
pub struct Case {
    name: &'static str,
    orders: usize,
    /// Creations per second; all at once if `None`.
    per_second: Option<usize>,
    /// Exclusive upper bound of process durations, in whole seconds.
    max_secs: u32,
    /// Ceiling of the start rate; 0 for none.
    ceiling: f64,
    crashes: bool,
    limit: Option<Limit>,
    /// Times at which the upstream is killed, in seconds, the last first.
    kills: &'static [u64],
}

impl Case {
    const fn new(name: &'static str) -> Self {
        Self {
            name,
            orders: 10_000,
            per_second: None,
            max_secs: 600,
            ceiling: 0.0,
            crashes: false,
            limit: None,
            kills: &[],
        }
    }

    /// Returns a case with processes of 0 to 9 s and an upstream limited to five starts a second.
    fn limited(name: &'static str, kind: Kind, status: u16, counts_polls: bool) -> Self {
        Self {
            orders: 1_500,
            max_secs: 10,
            limit: Some(Limit::new(kind, status, counts_polls)),
            ..Self::new(name)
        }
    }
}

fn cases() -> Vec<Case> {
    let crashes = |name, ceiling| Case {
        crashes: true,
        ceiling,
        ..Case::new(name)
    };
    let steady = |case| Case {
        orders: 72_000,
        per_second: Some(20),
        ..case
    };
    let killed = |name, ceiling| Case {
        orders: 3_000,
        max_secs: 30,
        kills: &[45, 25, 10],
        ceiling,
        ..Case::new(name)
    };
    let bucket = |burst| Kind::TokenBucket { rate: 5.0, burst };
    let window = |limit, secs| Kind::FixedWindow {
        limit,
        window: Duration::from_secs(secs),
    };
    vec![
        crashes("crashes", 0.0),
        crashes("crashes, 50/s", 50.0),
        Case::new("robust"),
        Case {
            ceiling: 50.0,
            ..Case::new("robust, 50/s")
        },
        Case {
            orders: 2_000,
            max_secs: 5,
            ..Case::new("short")
        },
        Case {
            kills: &[60],
            ..Case::new("forgotten")
        },
        killed("killed", 0.0),
        killed("killed, 50/s", 50.0),
        Case::limited("429, bucket", bucket(5.0), 429, false),
        Case::limited("503, no burst", bucket(1.0), 503, false),
        Case::limited("429, polls too", bucket(5.0), 429, true),
        Case::limited("429, 5 in 1 s", window(5, 1), 429, false),
        Case::limited("429, 300 in 60 s", window(300, 60), 429, false),
        Case::limited("503, 50 in 10 s", window(50, 10), 503, true),
        steady(Case::new("steady robust")),
        steady(crashes("steady crashes", 0.0)),
    ]
}

/// Results of a run.
#[derive(Clone, Copy, Debug, Default)]
struct Figures {
    seconds: f64,
    starts_per_order: f64,
    over_max_starts: f64,
    crashes: f64,
    /// Mean time from the creation of an order to its end.
    order_seconds: f64,
    /// Share of the starts that the limit throttled.
    throttled: f64,
    /// Share of the starts admitted by the limit that was used.
    used: f64,
    /// Share of the upstream's time that polls took.
    polls: f64,
}

/// Prints the cases whose names begin with `name`, each run with this many seeds.
pub fn compare(name: &str, seeds: u64) {
    println!(
        "{:<17} {:>15} {:>15} {:>8} {:>7} {:>7} {:>9} {:>6} {:>8}",
        "", "settled", "starts/order", "> 5*", "crashes", "order", "throttled", "used", "polls"
    );
    for case in cases().iter().filter(|case| case.name.starts_with(name)) {
        let runs: Vec<Figures> = (0..seeds).map(|seed| reconcile(case, seed)).collect();
        print(case.name, &runs);
        if case.crashes && case.per_second.is_none() {
            let runs: Vec<Figures> = (0..seeds).map(|seed| run_unpaced(case, seed)).collect();
            print("  not paced", &runs);
        }
    }
    println!(
        "\n* orders that were started more than five times; ± is the standard error of {seeds} runs"
    );
}

fn print(name: &str, runs: &[Figures]) {
    let of = |get: fn(&Figures) -> f64| {
        let count = runs.len() as f64;
        let mean = runs.iter().map(get).sum::<f64>() / count;
        let squares: f64 = runs.iter().map(|run| (get(run) - mean).powi(2)).sum();
        (mean, (squares / (count - 1.0).max(1.0) / count).sqrt())
    };
    let ((seconds, seconds_error), (starts, starts_error)) =
        (of(|run| run.seconds), of(|run| run.starts_per_order));
    println!(
        "{name:<17} {seconds:>7.1} ± {seconds_error:>4.1} s {starts:>7.3} ± {starts_error:.3} \
         {:>8.1} {:>7.2} {:>5.1} s {:>8.1}% {:>5.0}% {:>7.3}%",
        of(|run| run.over_max_starts).0,
        of(|run| run.crashes).0,
        of(|run| run.order_seconds).0,
        100.0 * of(|run| run.throttled).0,
        100.0 * of(|run| run.used).0,
        100.0 * of(|run| run.polls).0,
    );
}

/// Runs a client that reads the list every second, and limits the start rate to the ceiling, if any.
fn run_unpaced(case: &Case, seed: u64) -> Figures {
    let client = FixedRateClient {
        starts_per_second: case.ceiling,
        window: usize::MAX,
        polling: Polling::ListEvery(Duration::from_secs(1)),
    };
    let load = Load::Orders(case.orders);
    let run = fixed_rate::run(
        client,
        load,
        case.max_secs.into(),
        Some(&Hazard::default()),
        seed,
    );
    Figures {
        seconds: run.took.as_secs_f64(),
        starts_per_order: run.starts as f64 / case.orders as f64,
        over_max_starts: run.over_max_starts as f64,
        crashes: (run.incarnations.len() - 1) as f64,
        ..Figures::default()
    }
}

/// Returns whether the pace keeps to limits, in a run of some three minutes of each kind. The first counts
/// as warm-up; in a shorter run the search for the limit weighs more than what it finds.
pub fn keeps_to_limits() -> bool {
    let limited = cases().into_iter().filter(|case| case.limit.is_some());
    let keeps = |case: &Case| {
        let case = Case {
            orders: 1_000,
            ..case.clone()
        };
        let figures = reconcile(&case, 1);
        let keeps = figures.throttled < 0.1 && figures.used > 0.9;
        if !keeps {
            println!(
                "the pace does not keep to a limit: {}: {figures:?}",
                case.name
            );
        }
        keeps
    };
    let failing = limited.filter(|case| !keeps(case)).count();
    failing == 0
}

/// Runs the real reconciler from the first order to the last.
fn reconcile(case: &Case, seed: u64) -> Figures {
    let mut run = PaceRun::new(case, seed);
    let began_at = run.env.time();
    let settled_at = run.pass_through(case);
    run.env.oracle.borrow_mut().check_end();
    let took = settled_at.since(began_at).as_secs_f64();
    let starts = run.env.oracle.borrow().starts();
    let warm_at = began_at.after(WARM_UP);
    let [accepted, throttled] = &*run.env.admitted.borrow();
    let last = accepted.last().copied().unwrap_or(warm_at);
    let late = |all: &[Timestamp]| {
        let late = all.iter().filter(|at| (warm_at..=last).contains(at));
        late.count() as f64
    };
    let (accepted, throttled) = (late(accepted), late(throttled));
    let limit = case.limit.as_ref().map_or(0.0, Limit::rate);
    let possible = limit * last.since(warm_at).as_secs_f64();
    Figures {
        seconds: took,
        starts_per_order: f64::from(starts.iter().sum::<u32>()) / case.orders as f64,
        over_max_starts: starts.iter().filter(|starts| **starts > STARTS_MAX).count() as f64,
        crashes: run.env.incarnations.get() as f64,
        order_seconds: run.order_seconds(),
        throttled: throttled / (accepted + throttled).max(1.0),
        used: accepted / possible.max(1.0),
        polls: run.env.polls_cost.get().as_secs_f64() / took,
    }
}

/// A reconciler and its environment.
struct PaceRun {
    env: Rc<Environment>,
    store: Store,
    reconciler: Reconciler<Handle, Handle>,
    created: usize,
    db: Connection,
    _folder: tempfile::TempDir,
}

impl PaceRun {
    fn new(case: &Case, seed: u64) -> Self {
        let folder = tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .unwrap();
        let path = folder.path().join("orders.db");
        let env = Environment::new(seed, case.max_secs, REQUEST_TIMEOUT, false);
        let write_faults = RandomWriteFaults::none(&env);
        let store = Store::open(
            &DatabaseUrl::from(path.clone()),
            Mode::Synchronous(write_faults),
        )
        .unwrap();
        let db = || Connection::open(&path).unwrap();
        env.oracle.borrow_mut().read_from(db());
        env.set_crash_model(case.crashes.then(|| CrashModel::new(Hazard::default())));
        env.limit.borrow_mut().clone_from(&case.limit);
        let times = case.kills.iter().map(|secs| Duration::from_secs(*secs));
        let kills = times.map(|time| env.time().after(time));
        env.kills.replace(kills.collect());
        let settings = Settings {
            start_rate: Some(case.ceiling),
            request_timeout: REQUEST_TIMEOUT,
            max_starts: 1_000,
            ..Settings::default()
        };
        let handle = Handle(env.clone());
        let lead = drive(&env, store.try_lead());
        let lead = lead.expect("nothing goes wrong yet").unwrap().unwrap();
        let reconciler = Reconciler::new(store.clone(), lead, handle.clone(), handle, settings);
        Self {
            reconciler: ready(reconciler).unwrap(),
            env,
            store,
            created: 0,
            db: db(),
            _folder: folder,
        }
    }

    fn create(&mut self, orders: usize) {
        for order in self.created..self.created + orders {
            let id = OrderId::new(format!("order-{order}")).unwrap();
            self.env.oracle.borrow_mut().on_acknowledged(id.as_str());
            let created = drive(&self.env, self.store.create(id, self.env.time()));
            assert!(matches!(created, Some(Ok(Creation::Created(_)))));
        }
        self.created += orders;
    }

    /// Runs passes until all orders are settled, and returns the time of the last one.
    fn pass_through(&mut self, case: &Case) -> Timestamp {
        let stop = Stop::default();
        let per_second = case.per_second.unwrap_or(case.orders);
        let mut due_at = self.env.time();
        loop {
            while due_at <= self.env.time() && self.created < case.orders {
                due_at = due_at.after(Duration::from_secs(1));
                self.create(per_second.min(case.orders - self.created));
            }
            let report = drive(&self.env, self.reconciler.pass(&stop));
            if self.created == case.orders && self.open() == 0 {
                return self.env.time();
            }
            let has_more = report.unwrap().unwrap().has_more;
            if !has_more && !self.reconciler.has_starts_in_flight() {
                self.wait_for_pass();
            }
        }
    }

    /// Waits for the next tick of the schedule, or for the time of an order's poll.
    fn wait_for_pass(&self) {
        let now = self.env.time().0;
        let tick = now - now.rem_euclid(1_000) + 1_000;
        let poll_at = self.reconciler.next_wake_at().map_or(tick, |at| at.0);
        self.env.move_to(tick.min(poll_at.max(now + 1)));
    }

    fn open(&self) -> u64 {
        let count = |status| ready(self.store.count(status)).unwrap();
        count(Status::Created) + count(Status::Processing)
    }

    fn order_seconds(&self) -> f64 {
        let sql = "SELECT avg(updated_at - created_at) / 1e3 FROM orders";
        self.db.query_row(sql, [], |row| row.get(0)).unwrap()
    }
}
