//! A thread that waits for the lead, and runs a reconciler.

use std::time::Duration;

use anyhow::Context;
use tokio::sync::oneshot;

use super::{Reconciler, Settings, run, run_once};
use crate::process::Stop;
use crate::store::{LeadError, Leadership, Store};
use crate::upstream::HttpUpstream;

/// Interval at which a standby tries to take the lead.
const STANDBY_INTERVAL: Duration = Duration::from_millis(250);

/// Pause before this program tries to lead again, after it could not read the last heartbeat.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// A handle to the reconciler's thread. A pass blocks the thread while it reads the database, so only its own
/// requests run beside it: handing each to another thread would take as long as the request itself.
pub struct ReconcilerThread<T = ()>(oneshot::Receiver<anyhow::Result<T>>);

impl ReconcilerThread {
    /// Spawns a thread that waits for the lead, and then reconciles until `stop`.
    pub fn spawn(
        store: Store,
        upstream: HttpUpstream,
        settings: Settings,
        stop: Stop,
    ) -> anyhow::Result<Self> {
        Self::begin(async move || {
            while let Some(lead) = lead(&store, &stop).await? {
                let (store, upstream, settings) =
                    (store.clone(), upstream.clone(), settings.clone());
                let clock = store.clock();
                match Reconciler::new(store, lead, upstream, clock, settings).await {
                    Ok(reconciler) => run(reconciler, &stop).await?,
                    // A failover of the database may last longer than a read waits for.
                    Err(error) => {
                        log::error!("gave up leadership: {:#}", anyhow::Error::from(error));
                        let stopped = stop.requested.cancelled();
                        let _ = tokio::time::timeout(RETRY_INTERVAL, stopped).await;
                    }
                }
            }
            Ok(())
        })
    }
}

impl ReconcilerThread<Option<bool>> {
    /// Spawns a thread that tries every order that is due once. Its result is that of [`run_once`]. The caller
    /// leads.
    pub fn once(
        store: Store,
        lead: Leadership,
        upstream: HttpUpstream,
        settings: Settings,
        stop: Stop,
    ) -> anyhow::Result<Self> {
        Self::begin(async move || {
            let clock = store.clock();
            let reconciler = Reconciler::new(store, lead, upstream, clock, settings).await?;
            run_once(reconciler, &stop).await
        })
    }
}

impl<T: Send + 'static> ReconcilerThread<T> {
    fn begin<F>(work: impl FnOnce() -> F + Send + 'static) -> anyhow::Result<Self>
    where
        F: Future<Output = anyhow::Result<T>>,
    {
        let (done, result) = oneshot::channel();
        let work = move || {
            let runtime = reconciler_runtime()?;
            let result = runtime.block_on(work());
            runtime.shutdown_background();
            result
        };
        std::thread::Builder::new()
            .name("reconciler".to_owned())
            .spawn(move || {
                // If nothing waits any more, the program has shut down.
                let _ = done.send(work());
            })
            .context("spawning the reconciler's thread failed")?;
        Ok(Self(result))
    }

    /// Waits for the end of the thread, and returns its result.
    ///
    /// # Errors
    /// The thread ended with an error, or panicked.
    pub async fn ended(&mut self) -> anyhow::Result<T> {
        match (&mut self.0).await {
            Ok(result) => result.context("the reconciler failed"),
            Err(_) => anyhow::bail!("the reconciler panicked"),
        }
    }
}

/// Returns a runtime for a reconciler: one thread, which the store may block.
pub fn reconciler_runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the reconciler's runtime failed")
}

/// Waits until this program leads. Returns `None` if the program shuts down first.
pub async fn lead(store: &Store, stop: &Stop) -> anyhow::Result<Option<Leadership>> {
    let mut is_standby_logged = false;
    let mut logged = None;
    while !stop.requested.is_cancelled() {
        match store.try_lead().await {
            Ok(Some(lead)) => {
                log::info!("became leader");
                return Ok(Some(lead));
            }
            Ok(None) => {
                logged = None;
                if !std::mem::replace(&mut is_standby_logged, true) {
                    log::info!("standing by leader=other");
                }
            }
            Err(LeadError::Open(error)) => return Err(error.into()),
            Err(LeadError::Store(error)) => {
                let error = format!("{:#}", anyhow::Error::new(error));
                if logged.as_ref() != Some(&error) {
                    log::error!(
                        "taking the lead failed; retrying every {STANDBY_INTERVAL:?}: {error}"
                    );
                    logged = Some(error);
                }
            }
        }
        tokio::select! {
            () = stop.requested.cancelled() => {}
            () = tokio::time::sleep(STANDBY_INTERVAL) => {}
        }
    }
    Ok(None)
}
