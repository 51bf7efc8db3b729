//! The beginning and the end of the programs, and the API and the reconciler in one process, for `serve`
//! and `dev`.

use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::api::Api;
use crate::process::{Stop, drain, unless_stopped};
use crate::reconciler::ReconcilerThread;
use crate::store::{DatabaseUrl, Mode, Store};

/// Opens the database, which may migrate it first. Returns `None` if the program shuts down before.
pub async fn open(url: &DatabaseUrl, stop: &Stop) -> anyhow::Result<Option<Store>> {
    let url = url.clone();
    let opened = unless_stopped(stop, move || Store::open(&url, Mode::Threaded)).await?;
    Ok(opened.transpose()?)
}

/// Runs the API, the reconciler or both until they have shut down. They shut down once the database must not
/// be used any longer.
///
/// # Errors
/// The reconciler failed, or the database must not be used: then only that.
pub async fn run(
    api: Option<(TcpListener, Arc<Api>)>,
    reconciler: Option<ReconcilerThread>,
    store: &Store,
    stop: &Stop,
) -> anyhow::Result<()> {
    let mut outcome = Ok(());
    let ended = CancellationToken::new();
    let reconciled = async {
        if let Some(mut reconciler) = reconciler {
            outcome = reconciler.ended().await;
        }
        if outcome.is_err() {
            stop.requested.cancel();
        }
        ended.cancel();
    };
    let served = async {
        if let Some((listener, api)) = api {
            // Until the reconciler has ended, `/healthz` says why the program still runs.
            let others = ended.cancelled();
            api.serve(listener, stop.requested.clone(), others).await;
        }
    };
    let mut program = Box::pin(drain(stop, async {
        tokio::join!(served, reconciled);
        store.checkpoint().await;
    }));
    tokio::select! {
        biased;
        reason = store.retired() => {
            stop.requested.cancel();
            // An error of the program follows from that.
            program.await;
            return Err(reason.into());
        }
        () = &mut program => {}
    }
    drop(program);
    outcome
}
