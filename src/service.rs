//! The API and the reconciler in one process, for `serve` and `dev`.

use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::api::Api;
use crate::process::{Exit, Stop, drain};
use crate::reconciler::ReconcilerThread;
use crate::store::Store;

/// Serves the API beside the reconciler until both have shut down.
///
/// # Errors
/// The reconciler failed.
pub async fn run(
    listener: TcpListener,
    api: Arc<Api>,
    store: Store,
    mut reconciler: ReconcilerThread,
    stop: &Stop,
) -> anyhow::Result<Exit> {
    let mut outcome = Ok(Exit::Done);
    let ended = CancellationToken::new();
    let reconciled = async {
        if let Err(error) = reconciler.ended().await {
            outcome = Err(error);
            stop.requested.cancel();
        }
        ended.cancel();
    };
    // Until the reconciler has ended, `/healthz` says why the program still runs.
    let served = api.serve(listener, stop.requested.clone(), ended.cancelled());
    drain(stop, async {
        tokio::join!(served, reconciled);
        store.checkpoint().await;
    })
    .await;
    outcome
}
