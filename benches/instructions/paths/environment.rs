//! Environment of a path: a database of its own, with the same orders in each run, and a runtime.

use std::net::Ipv4Addr;
use std::sync::Arc;

use order_service::api::Api;
use order_service::order::{OrderId, Timestamp};
use order_service::server::ConnectionStats;
use order_service::site::Site;
use order_service::store::{DatabaseUrl, Leadership, Mode, NoFaults, OrderChange, Store};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// Time of all events.
pub(super) const NOW: Timestamp = Timestamp(1_795_341_600_000);

/// A database and a runtime.
pub(super) struct Environment {
    runtime: Runtime,
    /// Store with synchronous writes, on the calling thread.
    pub store: Store,
    // Last, so that the folder is removed after all files are closed.
    _folder: TempDir,
}

impl Environment {
    /// Creates an environment with this many orders, all CREATED.
    pub fn new(orders: usize) -> Self {
        // Preferably in memory: flushes take no time there.
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let folder = folder.expect("there is room for a temporary folder");
        let path = DatabaseUrl::from(folder.path().join("orders.db"));
        let store = Store::open(&path, Mode::Synchronous(Arc::new(NoFaults)));
        // The threads of a small machine. With a single thread, the API would not read orders on
        // it.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("threads can be started");
        let env = Self {
            runtime,
            store: store.expect("an empty folder takes a database"),
            _folder: folder,
        };
        for id in ids().take(orders) {
            let id = OrderId::new(id).expect("a UUID is an id");
            let created = env.wait_for(env.store.create(id, NOW));
            created.expect("the database can be written");
        }
        env
    }

    /// Returns an API on this database.
    pub fn api(&self) -> Arc<Api> {
        let _entered = self.runtime.enter();
        let site = Site::new(Ipv4Addr::LOCALHOST.into(), &[]);
        let connections = ConnectionStats::within(0);
        Api::new(
            self.store.clone(),
            site,
            connections,
            CancellationToken::new(),
        )
    }

    /// Runs a future to completion on the runtime.
    pub fn wait_for<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Acquires leadership, which is required to record changes.
    pub fn lead(&self) -> Leadership {
        let lead = self.wait_for(self.store.try_lead());
        let lead = lead.expect("the database can be written");
        lead.expect("another process leads")
    }

    /// Records changes, and checks that none conflicts.
    pub fn record(&self, lead: &Leadership, changes: Vec<OrderChange>) {
        let all = changes.len();
        let recorded = self.wait_for(lead.record(changes, NOW));
        let recorded = recorded.expect("the database can be written");
        assert_eq!(recorded.changed, all);
    }
}

/// Returns ids like those of callers: random UUIDs, identical in each run.
pub(super) fn ids() -> impl Iterator<Item = String> {
    let mut draws = fastrand::Rng::with_seed(5);
    std::iter::repeat_with(move || {
        let bits = draws.u128(..);
        format!(
            "{:08x}-{:04x}-4{:03x}-a{:03x}-{:012x}",
            bits >> 96,
            bits >> 80 & 0xffff,
            bits >> 64 & 0xfff,
            bits >> 48 & 0xfff,
            bits & 0xffff_ffff_ffff
        )
    })
}
