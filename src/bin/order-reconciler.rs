//! `order-reconciler`: the reconciler alone, without an HTTP server.

use std::process::ExitCode;

use anyhow::bail;
use order_service::commands::client;
use order_service::config::{self, ReconcilerArgs, ReconcilerCommand};
use order_service::process::{self, Exit, LOG_DEFAULT, LineStyle, Stop};
use order_service::reconciler::{ReconcilerThread, Settings};
use order_service::store::{LeadError, Store};
use order_service::upstream::HttpUpstream;
use order_service::{health, service};

/// Error of `--once` that a signal has ended.
const ONCE_INTERRUPTED: &str = "interrupted; run --once again for the other orders";

fn main() -> ExitCode {
    let config::OrderReconciler { log, command } = config::order_reconciler();
    let style = match &command {
        ReconcilerCommand::Run(_) => LineStyle::Dated,
        ReconcilerCommand::Health(_) => LineStyle::Plain,
    };
    let logs = process::log_to_stderr(log.log_format, style, LOG_DEFAULT);
    process::run(async {
        logs?;
        match command {
            ReconcilerCommand::Run(args) => run(*args).await,
            ReconcilerCommand::Health(args) => {
                let found = health::of_reconciler(&args.database_url);
                Ok(process::print_health(found.await))
            }
        }
    })
}

async fn run(args: ReconcilerArgs) -> anyhow::Result<Exit> {
    let stop = process::stop_on_signals()?;
    process::raise_file_limit(args.reconcile.connections());
    let settings = args.reconcile.settings();
    let upstream = client(&args.upstream.order_process_url, settings.request_timeout)?;
    let Some(store) = service::open(&args.database.database_url, &stop).await? else {
        if args.once {
            bail!(ONCE_INTERRUPTED);
        }
        return Ok(Exit::Done);
    };
    upstream.log_route();
    if args.once {
        return once(store, upstream, settings, &stop).await;
    }
    let thread = ReconcilerThread::spawn(store.clone(), upstream, settings, stop.clone())?;
    service::run(None, Some(thread), &store, &stop).await?;
    Ok(Exit::Done)
}

async fn once(
    store: Store,
    upstream: HttpUpstream,
    settings: Settings,
    stop: &Stop,
) -> anyhow::Result<Exit> {
    let lead = match store.try_lead().await {
        Err(LeadError::Open(error)) => return Err(error.into()),
        lead => lead?,
    };
    let Some(lead) = lead else {
        log::warn!(target: "order_service::reconciler", "another reconciler is the leader; nothing was done");
        return Ok(Exit::NotLeading);
    };
    let mut thread = ReconcilerThread::once(store.clone(), lead, upstream, settings, stop.clone())?;
    tokio::select! {
        biased;
        reason = store.retired() => {
            stop.requested.cancel();
            // An error of the run follows from that.
            let _ = thread.ended().await;
            Err(reason.into())
        }
        is_usable = thread.ended() => match is_usable? {
            Some(true) => Ok(Exit::Done),
            Some(false) => Ok(Exit::Upstream),
            None => bail!(ONCE_INTERRUPTED),
        },
    }
}
