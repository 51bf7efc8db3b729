//! What both programs need around their work: logging, signals, exit codes, the reconciler's
//! thread.
//!
//! Nothing here knows what an order is.

mod logging;

use std::fmt::Display;
use std::fs;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

pub use self::logging::{LOG_DEFAULT, LOG_PARTS, LineStyle, log_to_stderr};
use crate::api::Api;
use crate::clock::SystemClock;
use crate::reconciler::{self, ABANDON_AFTER, Reconciler, Settings, Stop};
use crate::store::{OpenError, Store};
use crate::upstream::HttpUpstream;

/// How a program can end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It has done what it should, also if single orders had trouble.
    Done = 0,
    /// It failed while running, as when the port is in use; or it is not healthy.
    Failed = 1,
    /// It was used or configured wrongly.
    Usage = 2,
    /// The database cannot be used.
    Database = 3,
    /// The order process service gave no usable answer.
    Upstream = 4,
    /// Another reconciler leads.
    NotLeading = 5,
    /// The account is not clean.
    Unclean = 6,
}

/// A setting that is only found wrong when it is used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct WrongSetting(pub String);

/// All must be over by then, after a stop signal.
const STOP_TIMEOUT: Duration = Duration::from_secs(24);

/// Threads that serve, beyond one for each core: as many as cores may be in the middle of a look at the
/// database, and there is still one that answers.
const SPARE_WORKERS: usize = 1;

/// Runs a program to its end: its exit code, and one line if it failed.
pub fn run(work: impl Future<Output = anyhow::Result<Exit>>) -> ExitCode {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores + SPARE_WORKERS)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            log::error!("the program cannot be started: {error}");
            return ExitCode::from(Exit::Failed as u8);
        }
    };
    let ended = runtime.block_on(async {
        tokio::select! {
            ended = work => ended,
            // What is dropped with the work still cleans up behind itself.
            () = AT_ONCE.notified() => Ok(Exit::Failed),
        }
    });
    let exit = ended.unwrap_or_else(|error| {
        log::error!("{error:#}");
        if error.is::<WrongSetting>() {
            Exit::Usage
        } else if error.is::<OpenError>() {
            Exit::Database
        } else {
            Exit::Failed
        }
    });
    runtime.shutdown_background();
    ExitCode::from(exit as u8)
}

/// The name by which a shell finds this program: as it was typed if it was found through `PATH`, else
/// its path.
pub fn own_name() -> String {
    let typed = std::env::args_os().next().unwrap_or_default();
    let is_path = typed.as_encoded_bytes().contains(&b'/');
    match std::env::current_exe() {
        Ok(path) if is_path => path.to_string_lossy().into_owned(),
        _ => typed.to_string_lossy().into_owned(),
    }
}

/// Prints to standard output. If that is closed or full, the work goes on: its exit code tells.
pub fn print(text: impl Display) {
    let mut out = io::stdout().lock();
    if let Err(error) = write!(out, "{text}").and_then(|()| out.flush())
        // Whoever reads has read enough.
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        log::warn!("standard output cannot be written: {error}");
    }
}

/// Prints what a health command has found.
pub fn tell_health(found: anyhow::Result<String>) -> Exit {
    match found {
        Ok(words) => {
            print(format_args!("{words}\n"));
            Exit::Done
        }
        Err(error) => {
            log::error!("{error:#}");
            Exit::Failed
        }
    }
}

/// Notified by the second stop signal: the program ends at once.
static AT_ONCE: Notify = Notify::const_new();

/// Time limit for that. A program that is busy exits then without cleaning up.
const AT_ONCE_TIMEOUT: Duration = Duration::from_millis(500);

/// A stop that follows SIGTERM, Ctrl-C and a terminal that closes. A second signal ends the program
/// at once.
pub fn stop_on_signals() -> anyhow::Result<Stop> {
    let listen = |kind| signal(kind).context("signals cannot be listened to");
    let mut signals = vec![
        listen(SignalKind::terminate())?,
        listen(SignalKind::interrupt())?,
    ];
    if !is_ignored(SignalKind::hangup()) {
        signals.push(listen(SignalKind::hangup())?);
    }
    let stop = Stop::default();
    let stopped = stop.clone();
    tokio::spawn(async move {
        any(&mut signals).await;
        log::info!("ending; a second signal ends at once");
        stopped.begun.cancel();
        tokio::select! {
            () = tokio::time::sleep(ABANDON_AFTER) => {
                stopped.abandon.cancel();
                any(&mut signals).await;
            }
            () = any(&mut signals) => {}
        }
        AT_ONCE.notify_one();
        tokio::time::sleep(AT_ONCE_TIMEOUT).await;
        std::process::exit(Exit::Failed as i32);
    });
    Ok(stop)
}

/// Waits for any of these signals.
async fn any(signals: &mut [Signal]) {
    let received = signals.iter_mut().map(|signal| Box::pin(signal.recv()));
    futures_util::future::select_all(received).await;
}

/// Returns whether this program was started with the signal ignored, as `nohup` does it.
fn is_ignored(kind: SignalKind) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut lines = status.lines();
    let mask = lines.find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (kind.as_raw_value() - 1) & 1 == 1)
}

/// Waits for `work` that ends by itself after the stop, but not for ever.
pub async fn drained(stop: &Stop, work: impl Future<Output = ()>) {
    tokio::select! {
        () = work => {}
        () = async {
            stop.begun.cancelled().await;
            tokio::time::sleep(STOP_TIMEOUT).await;
        } => log::warn!("not everything had ended after {STOP_TIMEOUT:?}"),
    }
}

/// Serves the API beside the reconciler, until both have ended.
///
/// # Errors
/// The reconciler ended before it was asked to.
pub async fn serve(
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
            stop.begun.cancel();
        }
        ended.cancel();
    };
    // Until then it can be asked why the program has not ended yet.
    let served = api.serve(listener, stop.begun.clone(), ended.cancelled());
    drained(stop, async {
        tokio::join!(served, reconciled);
        store.fold().await;
    })
    .await;
    outcome
}

/// The reconciler's thread, and what it tells at its end. It has one of its own, so that a pass may
/// read the database without holding up anyone; and its requests are carried out on the same one,
/// because handing each of them to another takes as long as the request.
pub struct ReconcilerThread<T = ()>(oneshot::Receiver<anyhow::Result<T>>);

impl ReconcilerThread {
    /// Waits for the lead, and then reconciles until `stop`.
    pub fn spawn(
        store: Store,
        upstream: HttpUpstream,
        settings: Settings,
        stop: Stop,
    ) -> anyhow::Result<Self> {
        Self::begin(async move || {
            while let Some(lead) = reconciler::lead(&store, &stop).await? {
                let (store, upstream, settings) =
                    (store.clone(), upstream.clone(), settings.clone());
                let reconciler = Reconciler::new(store, upstream, SystemClock, settings)?;
                reconciler::run(reconciler, &lead, &stop).await?;
            }
            Ok(())
        })
    }
}

impl ReconcilerThread<bool> {
    /// Has every order that is due tried once; tells whether the upstream could be used. The caller
    /// has the lead.
    pub fn once(
        store: Store,
        upstream: HttpUpstream,
        settings: Settings,
        stop: Stop,
    ) -> anyhow::Result<Self> {
        Self::begin(async move || {
            let reconciler = Reconciler::new(store, upstream, SystemClock, settings)?;
            reconciler::run_once(reconciler, &stop).await
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
                // If no one waits any more, the program has ended.
                let _ = done.send(work());
            })
            .context("the reconciler's thread cannot be made")?;
        Ok(Self(result))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It ended before it was asked to.
    pub async fn ended(&mut self) -> anyhow::Result<T> {
        match (&mut self.0).await {
            Ok(result) => result.context("the reconciler has ended"),
            Err(_) => anyhow::bail!("the reconciler has panicked"),
        }
    }
}

/// A runtime for a reconciler: one thread, which the store may block.
pub fn reconciler_runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the reconciler's runtime cannot be made")
}
