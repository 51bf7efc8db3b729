//! One seed: orders are created and passes run under faults; in some seeds only requests about some orders
//! fail then, which must not hold up the others; then without faults every order has to settle within
//! [`PASSES_TO_SETTLE`] passes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::{FutureExt, TryStreamExt};
use order_service::clock::{Clock, SteadyClock};
use order_service::decide::LostProcess;
use order_service::order::{Order, OrderId, Reason, ResolvedBy, Status};
use order_service::process::Stop;
use order_service::reconciler::{Occurrences, Reconciler, Settings, Trace};
use order_service::store::{
    AttentionFilter, Creation, Cursor, DatabaseUrl, Filter, Leadership, Mode, OperatorResult,
    Resolution, Store,
};
use rusqlite::Connection;

#[cfg(feature = "postgres")]
use crate::database::postgres::Server;
use crate::environment::{
    Environment, FailingOrders, Fault, FaultRates, Handle, RandomWriteFaults, RecentFaults,
};
use crate::limits::Limit;
use crate::trace::{EarlyPasses, Stages, count_decision};

/// Maximum number of passes, one a second, until every order is settled once there are no more faults:
/// the longest backoff, two absences, and the longest process.
const PASSES_TO_SETTLE: u32 = 700;

/// Maximum time between two passes: the schedule's second, and a second in which a step of the clock
/// may go unnoticed.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// Maximum difference between the clock of a program and that of its schedule.
const DRIFT_MAX: Duration = Duration::from_millis(10);

/// The totals of one run, or of many.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub seeds: u64,
    pub passes: u64,
    pub requests: u64,
    pub writes: u64,
    pub orders: u64,
    pub crashes: u64,
    pub incarnations: u64,
    pub virtual_ms: u64,
    pub faults: BTreeMap<String, u64>,
}

impl Totals {
    pub fn add(&mut self, other: &Self) {
        self.seeds += other.seeds;
        self.passes += other.passes;
        self.requests += other.requests;
        self.writes += other.writes;
        self.orders += other.orders;
        self.crashes += other.crashes;
        self.incarnations += other.incarnations;
        self.virtual_ms += other.virtual_ms;
        for (name, count) in &other.faults {
            *self.faults.entry(name.clone()).or_default() += count;
        }
    }
}

struct Run {
    env: Rc<Environment>,
    write_faults: Arc<RandomWriteFaults>,
    store: Store,
    settings: Settings,
    totals: Totals,
    stages: Rc<RefCell<Stages>>,
    /// Clock of the program that runs, and the schedule of its passes.
    clock: SteadyClock<Handle>,
    occurrences: Occurrences,
    created: u64,
    early_passes: EarlyPasses,
    /// Set if leadership ends with the connection of the leader.
    leads_by_connection: bool,
    _folder: tempfile::TempDir,
}

/// The database of a run.
pub enum RunDatabase {
    /// A new file.
    Sqlite,
    /// The database of a server, which is emptied for each run.
    #[cfg(feature = "postgres")]
    Postgres(Server),
}

impl RunDatabase {
    /// Returns a database of one of the engines.
    ///
    /// # Panics
    /// On PostgreSQL in builds without it.
    pub fn new(is_on_postgres: bool) -> Self {
        if !is_on_postgres {
            return Self::Sqlite;
        }
        #[cfg(feature = "postgres")]
        return Self::Postgres(Server::start());
        #[cfg(not(feature = "postgres"))]
        panic!("the feature postgres is missing: scripts/simulate --postgres builds with it");
    }
}

pub fn run(seed: u64, database: &RunDatabase, is_verbose: bool) -> Totals {
    let mut run = Run::new(seed, database, is_verbose);
    run.run_with_faults();
    if run.env.draws.below(4) == 0 {
        run.run_with_failing_orders();
    }
    run.run_without_faults();
    run.totals.seeds = 1;
    run.totals.orders = run.created;
    run.totals.requests = run.env.requests.get();
    run.totals.incarnations = run.env.incarnations.get();
    run.totals.writes = run.write_faults.writes.load(Ordering::Relaxed);
    run.totals.faults = run.env.faults.borrow().clone();
    run.totals.virtual_ms = (run.env.time().0 - 1_800_000_000_000).unsigned_abs();
    run.totals
}

impl Run {
    fn new(seed: u64, database: &RunDatabase, is_verbose: bool) -> Self {
        let folder = tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .unwrap();
        let draws = crate::environment::Draws::new(seed ^ 0x5eed);
        let timeout = Duration::from_millis(500 + draws.below(5) * 500);
        let duration = [0, 1, 5, 30][draws.below(4) as usize];
        let env = Environment::new(seed, duration, timeout, is_verbose);
        let write_faults = RandomWriteFaults::none(&env);
        let path = folder.path().join("orders.db");
        let url = match database {
            RunDatabase::Sqlite => DatabaseUrl::from(path.clone()),
            #[cfg(feature = "postgres")]
            RunDatabase::Postgres(server) => server.empty(),
        };
        let store = Store::open(&url, Mode::Synchronous(write_faults.clone())).unwrap();
        let (lost_process, policy) = [
            (LostProcess::Restart, "restart"),
            (LostProcess::Restart, "restart"),
            (LostProcess::Hold, "hold"),
            (LostProcess::Fail, "fail"),
        ][draws.below(4) as usize];
        let settings = Settings {
            start_rate: [None, Some(5.0), Some(50.0)][draws.below(3) as usize],
            max_in_flight: [1, 2, 8][draws.below(3) as usize],
            request_timeout: timeout,
            max_starts: [1, 3, 5, 1_000][draws.below(4) as usize],
            lost_process,
            ..Settings::default()
        };
        {
            let mut oracle = env.oracle.borrow_mut();
            match database {
                RunDatabase::Sqlite => oracle.read_from(Connection::open(path).unwrap()),
                #[cfg(feature = "postgres")]
                RunDatabase::Postgres(server) => oracle.read_from(server.clone()),
            }
            oracle.policy = policy;
            oracle.max_starts = settings.max_starts;
        }
        env.max_in_flight.set(settings.max_in_flight);
        env.log(|| format!("{settings:?}, processes below {duration} s"));
        let clock = SteadyClock::new(Handle(env.clone()));
        let occurrences = Occurrences::new(settings.schedule.clone(), clock.now());
        Self {
            clock,
            occurrences,
            env,
            write_faults,
            store,
            settings,
            totals: Totals::default(),
            stages: Rc::default(),
            created: 0,
            early_passes: EarlyPasses::default(),
            leads_by_connection: !matches!(database, RunDatabase::Sqlite),
            _folder: folder,
        }
    }

    /// Draws fault rates: high ones of two kinds of fault, low ones of all others.
    fn draw_fault_rates(&self) -> FaultRates {
        let draws = &self.env.draws;
        let any = || Fault::ALL[draws.below(Fault::ALL.len() as u64) as usize];
        let main = [any(), any()];
        let faults = Fault::ALL
            .into_iter()
            .filter(|fault| *fault != Fault::None)
            .map(|fault| {
                let share = if main.contains(&fault) {
                    60 + draws.below(240)
                } else {
                    draws.below(12)
                };
                (fault, share)
            })
            .collect();
        FaultRates {
            faults,
            crash: [0, 0, 3, 15][draws.below(4) as usize],
            write_fault: [0, 0, 10][draws.below(3) as usize],
            step: [0, 0, 5, 30][draws.below(4) as usize],
            limit: (draws.below(4) == 0).then(|| Limit::draw(draws)),
            failing: (draws.below(4) == 0).then(|| FailingOrders::draw(draws)),
        }
    }

    fn set_fault_rates(&self, fault_rates: FaultRates) {
        self.env.log(|| format!("{fault_rates:?}"));
        self.write_faults
            .crash
            .store(fault_rates.crash, Ordering::Relaxed);
        self.write_faults
            .fault
            .store(fault_rates.write_fault, Ordering::Relaxed);
        self.env.limit.borrow_mut().clone_from(&fault_rates.limit);
        *self.env.fault_rates.borrow_mut() = fault_rates;
    }

    /// Runs passes under faults.
    fn run_with_faults(&mut self) {
        let env = self.env.clone();
        let passes = 10 + env.draws.below(50);
        let most = [3, 12, 40][env.draws.below(3) as usize];
        let mut reconciler = self.reconciler();
        for pass in 0..passes {
            if pass % 10 == 0 {
                self.set_fault_rates(self.draw_fault_rates());
            }
            for _ in 0..env.draws.below(6) {
                if self.created < most {
                    self.create();
                }
            }
            if env.draws.permille(40) {
                env.end_incarnation();
            }
            if env.draws.permille(60) {
                self.resolve_held_order();
            }
            reconciler = self.pass(reconciler);
            self.wait_for_pass(&reconciler);
        }
    }

    /// Runs passes while some orders always fail, and checks that these do not hold up the others.
    fn run_with_failing_orders(&mut self) {
        let failing = FailingOrders::draw(&self.env.draws);
        self.set_fault_rates(failing.alone());
        let is_failing = |order: &Order| failing.fault_of(order.id.as_str()).is_some();
        let are_settled = self.run_until_settled(is_failing);
        assert!(are_settled, "{failing:?} held up others");
    }

    /// Runs passes without faults until all orders are settled or held.
    fn run_without_faults(&mut self) {
        self.set_fault_rates(FaultRates::default());
        self.run_until_settled(|_| false);
        self.env.oracle.borrow_mut().check_end();
        let restarts = ready(self.store.heartbeat())
            .unwrap()
            .learned
            .incarnations
            .restarts();
        let incarnations = self.env.incarnations.get();
        assert!(
            restarts <= incarnations,
            "{restarts} restarts of the upstream were counted; expected at most {incarnations}"
        );
    }

    /// Runs passes of a new program until all orders but those `excluded` are settled or held. Returns
    /// whether they are within [`PASSES_TO_SETTLE`].
    fn run_until_settled(&mut self, excluded: impl Fn(&Order) -> bool) -> bool {
        let mut reconciler = self.reconciler();
        for _ in 0..PASSES_TO_SETTLE {
            reconciler = self.pass(reconciler);
            if self.are_settled(&excluded) {
                return true;
            }
            self.wait_for_pass(&reconciler);
        }
        false
    }

    /// Returns whether every order is settled, held for an operator, or `excluded`.
    fn are_settled(&self, excluded: impl Fn(&Order) -> bool) -> bool {
        let open = Filter {
            statuses: vec![Status::Created, Status::Processing],
            attention: None,
        };
        let is_held = |order: &Order| {
            let attention = order.attention.as_ref();
            attention.is_some_and(|attention| {
                attention.by == ResolvedBy::Operator
                    && matches!(attention.reason, Reason::ProcessLost | Reason::MaxStarts)
            })
        };
        let pages = self.store.pages(open, Cursor::default(), 1_000);
        let is_done = |order: &Order| is_held(order) || excluded(order);
        ready(pages.try_all(async |(orders, _)| orders.iter().all(is_done))).unwrap()
    }

    /// Waits for the next pass, or for the time of an order's poll if that is earlier. Checks that passes
    /// go on however the clock is set.
    fn wait_for_pass(&mut self, reconciler: &Reconciler<Handle, Handle>) {
        if reconciler.has_starts_in_flight() {
            return;
        }
        let (env, poll_at) = (&self.env, reconciler.next_wake_at());
        let waiting_since = env.time();
        let share = 10 * env.fault_rates.borrow().step;
        let is_poll_due = |clock: &SteadyClock<Handle>| poll_at.is_some_and(|at| at <= clock.now());
        while !self.occurrences.is_due(&self.clock) && !is_poll_due(&self.clock) {
            let wait = self.occurrences.wait(&self.clock);
            let part = 1 + env.draws.below(wait.as_millis() as u64);
            env.move_to(env.time().0 + part as i64);
            env.draw_clock_step(share);
            let waited = env.time().since(waiting_since);
            assert!(waited <= WAIT_MAX, "no pass for {waited:?}");
        }
        // Scheduling delay.
        env.move_to(env.time().0 + env.draws.below(200) as i64);
        env.wake_due();
    }

    /// Becomes leader after the program before, if there was one. The program may crash meanwhile.
    fn lead(&self) -> Leadership {
        loop {
            match drive(&self.env, self.store.try_lead()) {
                Some(Ok(Some(lead))) => return lead,
                // The server notices a moment later that its connection has ended.
                Some(Ok(None)) if self.leads_by_connection => {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                }
                Some(Ok(None)) => panic!("a crashed program still leads"),
                Some(Err(error)) => self.env.log(|| format!("no lead: {error}")),
                None => self.env.log(|| "the program crashes".to_owned()),
            }
        }
    }

    fn reconciler(&mut self) -> Reconciler<Handle, Handle> {
        let handle = Handle(self.env.clone());
        self.clock = SteadyClock::new(handle.clone());
        self.occurrences = Occurrences::new(self.settings.schedule.clone(), self.clock.now());
        let settings = self.settings.clone();
        let stages = self.stages.clone();
        *stages.borrow_mut() = Stages::default();
        let lead = self.lead();
        ready(Reconciler::new(
            self.store.clone(),
            lead,
            handle.clone(),
            handle,
            settings,
        ))
        .unwrap()
        .traced(move |trace| match trace {
            Trace::Decided(decision) => count_decision(decision),
            Trace::Entered(stage, order) => stages.borrow_mut().enter(stage, &order.order),
        })
    }

    /// Runs a pass. If the program crashes in it, returns the reconciler of a new program.
    fn pass(&mut self, mut reconciler: Reconciler<Handle, Handle>) -> Reconciler<Handle, Handle> {
        self.totals.passes += 1;
        self.env.passes.set(self.totals.passes);
        RecentFaults::begin_pass();
        // The program's clock ignores the smallest steps.
        let is_clock_set = self.clock.resync();
        let waiting = {
            let oracle = self.env.oracle.borrow();
            [false, true].map(|has_failed| oracle.due(self.clock.now(), has_failed))
        };
        self.stages.borrow_mut().begin(waiting, is_clock_set);
        let stop = Stop::default();
        let requests = self.env.requests.get();
        // The reconciler's clock follows drift at other moments than this one.
        let overdue = reconciler.next_wake_at();
        let overdue = overdue.filter(|at| at.after(DRIFT_MAX) <= self.clock.now());
        let outcome = drive(&self.env, reconciler.pass(&stop));
        // After a failed pass with starts in flight, the loop pauses.
        let is_paused = matches!(outcome, Some(Err(_))) && reconciler.has_starts_in_flight();
        let is_idle = outcome.is_some() && !is_paused && requests == self.env.requests.get();
        let unchanged = overdue.filter(|at| is_idle && reconciler.next_wake_at() == Some(*at));
        self.early_passes.on_pass(unchanged);
        match &outcome {
            Some(result) => self.env.log(|| format!("pass: {result:?}")),
            None => self.env.log(|| "the program crashes".to_owned()),
        }
        self.env.oracle.borrow_mut().check();
        if let Some(result) = outcome {
            self.stages.borrow().check_no_start_in_progress();
            if result.is_ok() && !self.clock.is_stepped() {
                let heartbeat = ready(self.store.heartbeat()).unwrap();
                let now = self.env.time_of_day();
                let problem = heartbeat.leader_status(now).problem;
                assert_eq!(problem, None, "{now:?} {heartbeat:?}");
            }
            return reconciler;
        }
        self.totals.crashes += 1;
        drop(reconciler);
        self.reconciler()
    }

    /// Creates an order as a client. Only an acknowledged order has to be kept.
    fn create(&mut self) {
        let id = OrderId::new(format!("o{}", self.created)).unwrap();
        self.created += 1;
        let creation = self.store.create(id.clone(), self.env.time_of_day());
        let creation = drive(&self.env, creation);
        match creation {
            Some(Ok(Creation::Created(_))) => {
                self.env.oracle.borrow_mut().on_acknowledged(id.as_str());
            }
            Some(Ok(Creation::Exists(order))) => panic!("{order:?} exists"),
            Some(Err(_)) | None => {}
        }
        self.env.oracle.borrow_mut().check();
    }

    /// Restarts or fails a held order as an operator.
    fn resolve_held_order(&self) {
        let processing = Filter {
            statuses: vec![Status::Processing],
            attention: Some(AttentionFilter::Any),
        };
        let is_lost = |order: &Order| {
            let reason = order.attention.as_ref().map(|attention| attention.reason);
            matches!(reason, Some(Reason::ProcessLost | Reason::MaxStarts))
        };
        let pages = self.store.pages(processing, Cursor::default(), 1_000);
        let pages: Vec<_> = ready(pages.try_collect()).unwrap();
        let mut orders = pages.iter().flat_map(|(orders, _)| orders);
        let Some(Order { id, .. }) = orders.find(|order| is_lost(order)) else {
            return;
        };
        let now = self.env.time_of_day();
        // Recorded before, because the decision may take effect without an answer.
        let mut oracle = self.env.oracle.borrow_mut();
        let resolution = if self.env.draws.below(2) == 0 {
            oracle.on_restart_requested(id.as_str());
            Resolution::Restart
        } else {
            oracle.on_failed_by_operator(id.as_str());
            Resolution::Fail
        };
        drop(oracle);
        let decided = self.store.resolve(id.clone(), resolution, now);
        let decided = drive(&self.env, decided);
        assert!(!matches!(decided, Some(Ok(OperatorResult::Missing))));
        self.env.log(|| format!("an operator decides about {id}"));
        self.env.oracle.borrow_mut().check();
    }
}

/// Polls a future to completion and advances the time. Returns `None` if the program crashes.
pub fn drive<T>(env: &Environment, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return Some(value);
        }
        if env.has_crashed.swap(false, Ordering::Relaxed) {
            return None;
        }
        env.advance().expect("a pending future has a timer");
    }
}

/// Returns the result of a read, which is ready at once on either engine in synchronous mode.
pub fn ready<T>(read: impl Future<Output = T>) -> T {
    read.now_or_never()
        .expect("reads are ready at once in synchronous mode")
}
