//! Passes of the real reconciler over orders whose processes all run on: nothing is to be done, and
//! nothing is waited for.
//!
//! The upstream answers from memory and at once, so that what is measured is what the pass itself
//! takes: reading the open orders, planning, deciding, and its heartbeat.

use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use order_service::clock::{Clock, SetClock};
use order_service::order::{Observed, OrderId, Timestamp};
use order_service::pace::Failure;
use order_service::reconciler::{Reconciler, Settings, Stop};
use order_service::store::{DatabasePath, Mode, Store};
use order_service::upstream::{Entry, StartError, Upstream};

use super::costs::repeated;
use crate::databases;

/// Orders that are open.
const OPEN: usize = 1_000;

/// How often it is measured.
const PASSES: usize = 50;

/// When the orders are started: later than all that is settled.
const STARTED_AT: Timestamp = Timestamp(1_800_000_000_000);

/// How far apart the passes are, so that each of them looks at all orders.
const INTERVAL: Duration = Duration::from_secs(600);

/// How long a pass takes that looks at a thousand orders beside those that the database has, in
/// milliseconds.
pub fn pass(database: &Path) -> anyhow::Result<f64> {
    let runtime = tokio::runtime::Runtime::new()?;
    let store = Store::open(&DatabasePath::from(database.to_owned()), Mode::Threaded)?;
    let ids: Vec<String> = (0..OPEN).map(|n| format!("open-{n}")).collect();
    runtime.block_on(async {
        let seqs = databases::create(&store, ids.clone(), STARTED_AT).await?;
        databases::start(&store, &seqs, STARTED_AT).await?;
        store.fold().await;
        anyhow::Ok(())
    })?;
    let clock = SetClock::new(STARTED_AT);
    let mut reconciler = Reconciler::new(store, Running(ids), clock.clone(), Settings::default())?;
    let stop = Stop::default();
    repeated(PASSES, |_| {
        clock.set(clock.now().after(INTERVAL));
        let report = runtime.block_on(reconciler.pass(&stop))?;
        ensure!(report.observed == OPEN && report.started == 0, "{report}");
        Ok(())
    })
}

/// An upstream where processes of these orders run, and never end.
struct Running(Vec<String>);

impl Upstream for Running {
    async fn start(&self, _id: &OrderId) -> Result<(), StartError> {
        Ok(())
    }

    async fn look_up(&self, _id: &OrderId) -> Result<Observed, Failure> {
        Ok(Observed::Running)
    }

    async fn list(&self, mut tell: impl FnMut(Entry<'_>)) -> Result<u64, Failure> {
        for id in &self.0 {
            tell(Entry {
                order_id: id.into(),
                status: "RUNNING".into(),
            });
        }
        Ok(self.0.len() as u64)
    }
}
