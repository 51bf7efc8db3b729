//! The test harness of a pass: store, upstream and clock, all in memory and on one thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use order_service::clock::{Clock, ManualClock};
use order_service::decide::LostProcess;
use order_service::order::{Order, OrderId, Reason, Status, Timestamp};
use order_service::pace::{Incarnations, LearnedLimits, StartRate};
use order_service::process::Stop;
use order_service::reconciler::{Reconciler, Report, Settings};
use order_service::reconciler_state::ReconcilerState;
use order_service::store::{
    Creation, DatabaseUrl, Mode, NoFaults, Resolution, Store, WriteFate, WriteFaults,
};

use super::in_memory::InMemory;
use crate::environment::{TestEnvironment, lead, ready, write_heartbeat};

/// A disk that can be full.
#[derive(Default)]
pub(super) struct Disk {
    pub(super) is_full: AtomicBool,
}

impl WriteFaults for Disk {
    fn next(&self) -> WriteFate {
        match self.is_full.load(Ordering::Relaxed) {
            true => WriteFate::Refused,
            false => WriteFate::Executed,
        }
    }
}

/// The store, clock, upstream and settings of a reconciler under test.
pub(super) struct Harness {
    _world: TestEnvironment,
    pub(super) store: Store,
    pub(super) clock: ManualClock,
    pub(super) upstream: InMemory,
    pub(super) settings: Settings,
}

/// Returns the limits learned in a run in which the upstream accepted every start at any rate.
pub(super) fn unlimited() -> LearnedLimits {
    let mut rate = StartRate::new(0.0, Timestamp(0));
    let mut now = Timestamp(0);
    while rate.rate() < 10_000.0 {
        now = now.after(Duration::from_secs(1));
        (0..rate.rate() as u32).for_each(|_| rate.on_admitted());
        rate.on_seen_alive(now);
    }
    LearnedLimits {
        rate: Some(rate),
        ..LearnedLimits::default()
    }
}

impl Harness {
    pub(super) fn new(max_duration_secs: u32) -> Self {
        let env = TestEnvironment::in_memory();
        let path = DatabaseUrl::from(env.database());
        let store = Store::open(&path, Mode::Synchronous(Arc::new(NoFaults))).unwrap();
        let clock = ManualClock::new(Timestamp(1_800_000_000_000));
        let harness = Self {
            _world: env,
            store,
            upstream: InMemory::new(clock.clone(), max_duration_secs),
            clock,
            settings: Settings {
                start_rate: Some(0.0),
                max_in_flight: 1,
                lost_process: LostProcess::Hold,
                ..Settings::default()
            },
        };
        harness.has_learned(unlimited());
        harness
    }

    pub(super) fn reconciler(&self) -> Reconciler<InMemory, ManualClock> {
        let (store, upstream) = (self.store.clone(), self.upstream.clone());
        let (clock, settings) = (self.clock.clone(), self.settings.clone());
        block_on(async {
            let lead = lead(&store).await;
            Reconciler::new(store, lead, upstream, clock, settings).await
        })
        .unwrap()
    }

    /// Returns a reconciler whose run began one request timeout ago, so that absences count.
    pub(super) fn old_reconciler(&self) -> Reconciler<InMemory, ManualClock> {
        let reconciler = self.reconciler();
        self.forward(self.settings.request_timeout.as_millis() as i64);
        reconciler
    }

    /// Puts the database on a disk that can be full.
    pub(super) fn on_a_disk(&mut self) -> Arc<Disk> {
        let disk = Arc::new(Disk::default());
        let path = self.store.info().address.parse::<DatabaseUrl>().unwrap();
        self.store = Store::open(&path, Mode::Synchronous(disk.clone())).unwrap();
        disk
    }

    /// Writes a heartbeat with these limits, as an earlier run did.
    pub(super) fn has_learned(&self, learned: LearnedLimits) {
        let heartbeat = ReconcilerState {
            learned,
            ..self.heartbeat()
        };
        block_on(write_heartbeat(&self.store, heartbeat));
    }

    pub(super) fn heartbeat(&self) -> ReconcilerState {
        ready(self.store.heartbeat()).unwrap()
    }

    pub(super) fn incarnations(&self) -> Incarnations {
        self.heartbeat().learned.incarnations
    }

    /// Decides about an order as an operator does.
    pub(super) fn resolve(&self, id: &str, resolution: Resolution) {
        let id = OrderId::new(id).unwrap();
        block_on(self.store.resolve(id, resolution, self.clock.now())).unwrap();
    }

    pub(super) fn create(&self, id: &str) {
        let id = OrderId::new(id).unwrap();
        let creation = block_on(self.store.create(id, self.clock.now())).unwrap();
        assert!(matches!(creation, Creation::Created(_)));
    }

    /// Creates orders with the ids `a0`, `a1`, ….
    pub(super) fn create_many(&self, orders: usize) {
        for n in 0..orders {
            self.create(&format!("a{n}"));
        }
    }

    pub(super) fn order(&self, id: &str) -> Order {
        let id = OrderId::new(id).unwrap();
        ready(self.store.find(&id)).unwrap().unwrap().order
    }

    pub(super) fn reason(&self, id: &str) -> Option<Reason> {
        self.order(id).attention.map(|attention| attention.reason)
    }

    pub(super) fn forward(&self, milliseconds: i64) {
        self.clock.set(Timestamp(self.clock.now().0 + milliseconds));
    }

    pub(super) fn has_settled_all(&self) -> bool {
        let open = [Status::Created, Status::Processing];
        open.iter().all(|status| self.count(*status) == 0)
    }

    pub(super) fn count(&self, status: Status) -> usize {
        ready(self.store.count(status)).unwrap() as usize
    }
}

pub(super) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(future)
}

/// Runs one pass a second for this time, or until the end of a minute in which all orders were settled.
/// Returns the number of missed processes.
pub(super) fn passes(
    harness: &Harness,
    reconciler: &mut Reconciler<InMemory, ManualClock>,
    seconds: u32,
) -> usize {
    let mut missed = 0;
    for second in 0..seconds {
        if second % 60 == 0 && harness.has_settled_all() {
            break;
        }
        missed += pass(reconciler).missed;
        harness.forward(1_000);
    }
    missed
}

pub(super) fn pass(reconciler: &mut Reconciler<InMemory, ManualClock>) -> Report {
    block_on(reconciler.pass(&Stop::default())).unwrap()
}
