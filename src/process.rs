//! The process: logging, signals, exit codes, standard output.
//!
//! Nothing here knows what an order is.

mod logging;

use std::fmt::Display;
use std::fs;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

pub use self::logging::{LOG_DEFAULT, LOG_PARTS, LineStyle, LogFormat, log_to_stderr};
use crate::store::OpenError;

/// The target of this module's log lines. It is public: `RUST_LOG` names it.
const LOG: &str = "order_service::program";

/// The exit code of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Success, also if single orders need attention.
    Done = 0,
    /// The program failed while running, such as when the port is in use, or is not healthy.
    Failed = 1,
    /// A flag or setting is invalid.
    Usage = 2,
    /// The database cannot be used.
    Database = 3,
    /// The order process service gave no usable answer.
    Upstream = 4,
    /// Another reconciler leads.
    NotLeading = 5,
    /// The account found a contradiction, or a held or unknown order.
    Unclean = 6,
}

/// An invalid setting that is only detected when it is used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct InvalidSetting(pub String);

/// Open files of a program beside its connections: those of the database, above all.
const OTHER_FILES: usize = 256;

/// Time limit for shutting down after a stop signal. It covers [`ABANDON_AFTER`] and the last writes.
const STOP_TIMEOUT: Duration = Duration::from_secs(24);

/// Number of serving threads beyond one for each core: while reads of the database block one thread for
/// each core, there is still one that answers.
const SPARE_WORKERS: usize = 1;

/// Runs a program to its end. Returns its exit code, and logs one line if it failed.
pub fn run(work: impl Future<Output = anyhow::Result<Exit>>) -> ExitCode {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores + SPARE_WORKERS)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            log::error!(target: LOG, "starting the runtime failed: {error}");
            return ExitCode::from(Exit::Failed as u8);
        }
    };
    let ended = runtime.block_on(async {
        tokio::select! {
            ended = work => ended,
            // Dropping the work still runs its destructors, which clean up.
            () = EXIT_NOW.notified() => Ok(Exit::Failed),
        }
    });
    let exit = ended.unwrap_or_else(|error| {
        log::error!(target: LOG, "{error:#}");
        if error.is::<InvalidSetting>() {
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

/// Returns the name by which a shell finds this program: as it was typed if it was found through
/// `PATH`, else its path.
pub fn program_name() -> String {
    let typed = std::env::args_os().next().unwrap_or_default();
    let is_path = typed.as_encoded_bytes().contains(&b'/');
    match std::env::current_exe() {
        Ok(path) if is_path => path.to_string_lossy().into_owned(),
        _ => typed.to_string_lossy().into_owned(),
    }
}

/// Raises the limit of open files to what this many connections need, as far as possible without
/// privileges. Returns the number of connections that it allows.
pub fn raise_file_limit(connections: usize) -> usize {
    let wanted = (connections + OTHER_FILES) as u64;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // `None` means unlimited.
    let mut limit = current.unwrap_or(u64::MAX);
    let raised = limit.max(maximum.unwrap_or(u64::MAX).min(wanted));
    if raised > limit {
        let current = Some(raised);
        match setrlimit(Resource::Nofile, Rlimit { current, maximum }) {
            Ok(()) => limit = raised,
            Err(error) => {
                log::warn!(target: LOG, "cannot raise the limit of open files: {error}");
            }
        }
    }
    if limit < wanted {
        log::warn!(
            target: LOG,
            "limit of open files is low limit={limit} wanted={wanted}"
        );
    }
    usize::try_from(limit)
        .unwrap_or(usize::MAX)
        .saturating_sub(OTHER_FILES)
}

/// Prints to standard output. If that is closed or full, the work continues.
pub fn print(text: impl Display) {
    let mut out = io::stdout().lock();
    if let Err(error) = write!(out, "{text}").and_then(|()| out.flush())
        // The reader has closed the pipe.
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        log::warn!(target: LOG, "writing to standard output failed: {error}");
    }
}

/// Prints the result of a health command.
pub fn print_health(found: anyhow::Result<String>) -> Exit {
    match found {
        Ok(words) => {
            print(format_args!("{words}\n"));
            Exit::Done
        }
        Err(error) => {
            log::error!(target: LOG, "{error:#}");
            Exit::Failed
        }
    }
}

/// Notified by the second stop signal: the program exits immediately.
static EXIT_NOW: Notify = Notify::const_new();

/// Time limit for the exit after a second stop signal. A busy program then exits without cleaning up.
const EXIT_NOW_TIMEOUT: Duration = Duration::from_millis(500);

/// A request to shut down, in two stages.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// Cancelled by the first signal. Nothing new begins after it.
    pub requested: CancellationToken,
    /// Cancelled 20 s later. Answers are not waited for after it.
    pub abandon: CancellationToken,
}

/// Time for which answers to starts are waited for after the stop signal.
const ABANDON_AFTER: Duration = Duration::from_secs(20);

/// Returns a stop that follows SIGTERM, Ctrl-C and a terminal that closes (SIGHUP). A second signal exits
/// immediately, unless it is SIGHUP: a shell repeats the one of the kernel.
pub fn stop_on_signals() -> anyhow::Result<Stop> {
    let listen = |kind| signal(kind).context("listening to signals failed");
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
        log::info!(target: LOG, "shutting down; a second SIGTERM or Ctrl-C exits immediately");
        // SIGTERM and Ctrl-C.
        signals.truncate(2);
        stopped.requested.cancel();
        tokio::select! {
            () = tokio::time::sleep(ABANDON_AFTER) => {
                stopped.abandon.cancel();
                any(&mut signals).await;
            }
            () = any(&mut signals) => {}
        }
        EXIT_NOW.notify_one();
        tokio::time::sleep(EXIT_NOW_TIMEOUT).await;
        std::process::exit(Exit::Failed as i32);
    });
    Ok(stop)
}

/// Does work that blocks, on a thread of its own. Returns `None` if the program shuts down before the work
/// is done; the end of the process then ends it.
pub async fn unless_stopped<T: Send + 'static>(
    stop: &Stop,
    work: impl FnOnce() -> T + Send + 'static,
) -> anyhow::Result<Option<T>> {
    tokio::select! {
        done = tokio::task::spawn_blocking(work) => Ok(Some(done?)),
        () = stop.requested.cancelled() => Ok(None),
    }
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

/// Waits for `work`, which ends by itself after the stop signal, and at most 24 s after it.
pub async fn drain(stop: &Stop, work: impl Future<Output = ()>) {
    tokio::select! {
        () = work => {}
        () = async {
            stop.requested.cancelled().await;
            tokio::time::sleep(STOP_TIMEOUT).await;
        } => log::warn!(target: LOG, "shutdown incomplete after={STOP_TIMEOUT:?}"),
    }
}
