//! The beginning and the end of the programs, and the API and the reconciler in one process, for `serve`
//! and `dev`.

use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::api::Api;
use crate::process::{Exit, Stop, drain, unless_stopped};
use crate::reconciler::ReconcilerThread;
use crate::store::{DatabaseUrl, Mode, Store};

/// Opens the database, which takes as long as its migration does, by this program or by another. Returns
/// `None` if the program shuts down before.
pub async fn open(url: &DatabaseUrl, stop: &Stop) -> anyhow::Result<Option<Store>> {
    let url = url.clone();
    let opened = unless_stopped(stop, move || Store::open(&url, Mode::Threaded)).await?;
    Ok(opened.transpose()?)
}

/// Runs a program until it ends by itself, or until it is too old for the database: then it shuts down.
///
/// # Errors
/// The errors of the program; if it is too old, only that.
pub async fn unless_outdated(
    store: &Store,
    stop: &Stop,
    program: impl Future<Output = anyhow::Result<Exit>>,
) -> anyhow::Result<Exit> {
    let mut program = std::pin::pin!(program);
    let outdated = tokio::select! {
        biased;
        outdated = store.outdated() => outdated,
        exit = &mut program => return exit,
    };
    stop.requested.cancel();
    // An error of the program follows from that.
    let _ = program.await;
    Err(outdated.into())
}

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
