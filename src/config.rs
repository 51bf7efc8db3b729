//! The command lines of the programs: flags, each with an environment variable, validated before
//! anything starts.
//!
//! An empty variable counts as unset. The meaning of a setting is documented where it is used. `groups` has
//! the flags that several commands share, `values` the parsers of their values.

// The documentation of a flattened group would become the help of the whole command.
#![allow(
    missing_docs,
    reason = "groups of flags are documented where they are defined"
)]

mod command_line;
mod groups;
mod values;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::{Args, CommandFactory, Parser, Subcommand};

use self::command_line::{parse, simulator_without_simulator};
pub use self::groups::{
    DatabaseArgs, ExistingDatabaseArgs, FaultArgs, ListenArgs, LogArgs, ReconcileArgs,
    UpstreamArgs, order_process_token,
};
use self::values::{file_of_backup, parse_address, parse_age, whole};
use crate::decide::LostProcess;
use crate::order::OrderId;
use crate::reconciler::Settings;
use crate::store::DatabaseUrl;
use crate::upstream::UpstreamUrl;

/// Orders over HTTP, kept in SQLite (or PostgreSQL, if built with it), each carried through an order process service by polling.
///
/// Without a command it does the same as `order-service serve`, and takes its flags.
#[derive(Debug, Parser)]
#[command(
    name = "order-service",
    version,
    max_term_width = 100,
    override_usage = "order-service [OPTIONS] [COMMAND]"
)]
pub struct OrderService {
    #[command(flatten)]
    pub log: LogArgs,
    #[command(subcommand)]
    pub command: ServiceCommand,
}

/// The commands of `order-service`.
#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// Run the API and the reconciler in one process: the smallest deployment
    Serve(Box<ServeArgs>),
    /// Run everything on this machine, with a simulator and a temporary database, to try it out
    Dev(Box<DevArgs>),
    /// Run the HTTP API alone; the program order-reconciler is the other half
    Api(ApiArgs),
    /// Run a simulator of the order process service
    Simulator(SimulatorArgs),
    /// Compare the database with the order process service, as both are now: exit code 0 if the
    /// account is clean, 6 if not, 4 if the service gave no usable answer
    #[command(
        after_help = "Exit codes: 0 if the account is clean; 6 if disagreeing, held or started \
                      twice is above 0, or unknown is, because of a status that is not known; 4 if \
                      the order process service gave no usable answer, and none of the others is \
                      above 0; 1 if it failed, 2 for a wrong setting, 3 if the database cannot be \
                      used."
    )]
    Account(AccountArgs),
    /// Request another start of held or refused orders, which may repeat their work
    Restart(RestartArgs),
    /// Settle orders as FAILED whose process was forgotten
    Fail(FailArgs),
    /// Explain what happened to an order, why it is in its state, and what comes next
    Explain(ExplainArgs),
    /// Copy the database into one checked file, while the programs run
    Backup(BackupArgs),
    /// Move all orders into another database, of either engine, and compare both; an interrupted copy
    /// goes on
    #[command(
        after_help = "TO has to be new, or to have moved to FROM. It cannot be opened by other programs until it is complete, \
                      nor FROM from then on. FROM can be written until all but the open orders are \
                      copied. A backup as FROM stays as it is, and TO then begins a new history. \
                      Passwords come from PGPASSWORD or PGPASSFILE."
    )]
    Copy(CopyArgs),
    /// Check the integrity of a database: exit code 0 if it is sound, 1 if not
    Check(ExistingDatabaseArgs),
    /// Remove orders that settled long ago, with their part of the journal, while the programs run
    #[command(
        after_help = "Open orders are never removed, nor the newest order and that of the newest \
                            event, which the numbering needs. The file does not shrink: its free \
                            space is used for new orders."
    )]
    Prune(PruneArgs),
    /// Check whether the API is healthy: exit code 0 if it is, 1 if not
    Health(ServiceHealthArgs),
}

/// Usage of `order-reconciler`, in its help and in its errors.
const RECONCILER_USAGE: &str =
    "order-reconciler [OPTIONS]\n       order-reconciler health [OPTIONS]";

/// The reconciler alone, without an HTTP server.
#[derive(Debug, Parser)]
#[command(
    name = "order-reconciler",
    version,
    max_term_width = 100,
    override_usage = RECONCILER_USAGE
)]
pub struct OrderReconciler {
    #[command(flatten)]
    pub log: LogArgs,
    #[command(subcommand)]
    pub command: ReconcilerCommand,
}

/// The commands of `order-reconciler`.
#[derive(Debug, Subcommand)]
pub enum ReconcilerCommand {
    /// Start a process for every order and poll for its outcome
    #[command(
        name = "run",
        override_usage = RECONCILER_USAGE,
        after_help = "order-reconciler health checks whether the running reconciler is healthy: \
                      exit code 0 if it is, 1 if not."
    )]
    Run(Box<ReconcilerArgs>),
    /// Check whether the running reconciler is healthy: exit code 0 if it is, 1 if not
    Health(ExistingDatabaseArgs),
}

/// `order-service serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    pub database: DatabaseArgs,
    #[command(flatten)]
    pub listen: ListenArgs,
    #[command(flatten)]
    pub upstream: UpstreamArgs,
    #[command(flatten)]
    pub reconcile: ReconcileArgs,
}

/// `order-service dev`.
#[derive(Debug, Args)]
pub struct DevArgs {
    #[command(flatten)]
    pub listen: ListenArgs,
    /// URL of an order process service to use instead of the simulator, whose flags and SIMULATOR_PRESET
    /// are then rejected; ORDER_PROCESS_TOKEN, if set, is sent as a bearer token
    #[arg(long, env = "ORDER_PROCESS_URL", value_name = "URL")]
    pub order_process_url: Option<UpstreamUrl>,
    #[command(flatten)]
    pub reconcile: ReconcileArgs,
    /// Address that the simulator listens on; port 0 takes a free one, which is printed
    #[arg(
        long,
        env = "SIMULATOR_LISTEN_ADDR",
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:0",
        value_parser = parse_address
    )]
    pub simulator_listen: SocketAddr,
    /// Upper bound of the simulator's process durations, a random whole number of seconds below this;
    /// outcomes are random, but the first process takes 3 s at most and succeeds
    #[arg(
        long,
        env = "MAX_ORDER_PROCESS_DURATION",
        value_name = "SECONDS",
        default_value = "10",
        value_parser = whole(0..=u32::MAX)
    )]
    pub max_order_process_duration: u32,
    /// Seed of the simulator's randomness, to repeat a run [default: drawn, and logged]
    #[arg(
        long,
        env = "SIMULATOR_SEED",
        value_name = "NUMBER",
        value_parser = whole(0..=u64::MAX)
    )]
    pub seed: Option<u64>,
    #[command(flatten)]
    pub faults: FaultArgs,
}

/// `order-service api`.
#[derive(Debug, Args)]
pub struct ApiArgs {
    #[command(flatten)]
    pub database: DatabaseArgs,
    #[command(flatten)]
    pub listen: ListenArgs,
}

/// `order-service simulator`.
#[derive(Debug, Args)]
pub struct SimulatorArgs {
    /// Address to listen on; port 0 takes a free one, which is printed
    #[arg(
        long,
        env = "LISTEN_ADDR",
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:8000",
        value_parser = parse_address
    )]
    pub listen: SocketAddr,
    /// Upper bound of the process durations, a random whole number of seconds below this
    #[arg(
        long,
        env = "MAX_ORDER_PROCESS_DURATION",
        value_name = "SECONDS",
        default_value = "600",
        value_parser = whole(0..=u32::MAX)
    )]
    pub max_order_process_duration: u32,
    /// Seed of the randomness, to repeat a run [default: drawn, and logged]
    #[arg(
        long,
        env = "SIMULATOR_SEED",
        value_name = "NUMBER",
        value_parser = whole(0..=u64::MAX)
    )]
    pub seed: Option<u64>,
    /// File to append a JSON line to for each request and its effect [default: none]
    #[arg(long = "log", env = "SIMULATOR_LOG", value_name = "FILE")]
    pub record: Option<PathBuf>,
    #[command(flatten)]
    pub faults: FaultArgs,
}

/// `order-service account`.
#[derive(Debug, Args)]
pub struct AccountArgs {
    #[command(flatten)]
    pub database: ExistingDatabaseArgs,
    #[command(flatten)]
    pub upstream: UpstreamArgs,
    /// The reconciler's --lost-process: with hold, every order whose process is lost counts as held
    #[arg(
        long,
        env = "LOST_PROCESS",
        value_name = "POLICY",
        value_enum,
        default_value_t = Settings::default().lost_process
    )]
    pub lost_process: LostProcess,
    /// The simulator's record, which shows whether an order was started twice [default: none]
    #[arg(long, env = "SIMULATOR_LOG", value_name = "FILE")]
    pub record: Option<PathBuf>,
}

/// `order-service restart`.
#[derive(Debug, Args)]
#[command(override_usage = "order-service restart [OPTIONS] <ID>...\n       \
                      order-service restart [OPTIONS] --all-lost")]
pub struct RestartArgs {
    /// Ids of the orders
    #[arg(value_name = "ID", required_unless_present = "all_lost")]
    pub ids: Vec<OrderId>,
    /// All orders whose process was forgotten, instead of some by id
    #[arg(long, conflicts_with = "ids")]
    pub all_lost: bool,
    #[command(flatten)]
    pub database: ExistingDatabaseArgs,
}

/// `order-service fail`.
#[derive(Debug, Args)]
pub struct FailArgs {
    /// Ids of the orders
    #[arg(value_name = "ID", required = true)]
    pub ids: Vec<OrderId>,
    #[command(flatten)]
    pub database: ExistingDatabaseArgs,
}

/// `order-service explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// The order
    #[arg(value_name = "ID")]
    pub id: OrderId,
    #[command(flatten)]
    pub database: ExistingDatabaseArgs,
}

/// `order-service backup`.
#[derive(Debug, Args)]
pub struct BackupArgs {
    /// The file to write: a path, or sqlite:FILE
    #[arg(value_name = "FILE", value_parser = PathBufValueParser::new().try_map(file_of_backup))]
    pub file: PathBuf,
    /// Replace an existing file
    #[arg(long)]
    pub replace: bool,
    #[command(flatten)]
    pub database: ExistingDatabaseArgs,
}

/// `order-service copy`.
#[derive(Debug, Args)]
pub struct CopyArgs {
    /// The database to copy: sqlite:FILE, or, in builds with PostgreSQL,
    /// postgres://USER@HOST:PORT/DATABASE
    #[arg(value_name = "FROM")]
    pub from: DatabaseUrl,
    /// The database to copy into
    #[arg(value_name = "TO")]
    pub to: DatabaseUrl,
    /// Compare both row by row, and change nothing: exit code 0 if they are equal, 1 if not
    #[arg(long, conflicts_with = "take_back")]
    pub verify_only: bool,
    /// Undo a move: FROM can be used again, and TO refuses to be opened; refused if TO has changed since,
    /// as `copy TO FROM` then brings everything back
    #[arg(long)]
    pub take_back: bool,
}

/// `order-service prune`.
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Minimum time since an order became FULFILLED or FAILED: a number with a unit, such as 90d or
    /// 12h
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = parse_age
    )]
    pub settled_before: Duration,
    /// Print what would be removed, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub database: ExistingDatabaseArgs,
}

/// `order-service health`.
#[derive(Debug, Args)]
pub struct ServiceHealthArgs {
    /// Address that the program listens on
    #[arg(
        long,
        env = "LISTEN_ADDR",
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:8080",
        value_parser = parse_address
    )]
    pub listen: SocketAddr,
}

/// `order-reconciler`.
#[derive(Debug, Args)]
pub struct ReconcilerArgs {
    /// Poll and start each order that is due once, then exit
    #[arg(long)]
    pub once: bool,
    #[command(flatten)]
    pub database: DatabaseArgs,
    #[command(flatten)]
    pub upstream: UpstreamArgs,
    #[command(flatten)]
    pub reconcile: ReconcileArgs,
}

/// Parses the arguments of `order-service`. Prints and exits on an error, and for help.
pub fn order_service() -> OrderService {
    parse(
        |first| match first {
            None => Some("serve"),
            Some("-h" | "--help" | "-V" | "--version") => None,
            Some(first) => first.starts_with('-').then_some("serve"),
        },
        |name| {
            let tip = "the reconciler alone is the program order-reconciler";
            name.starts_with("reconcil").then(|| tip.to_owned())
        },
        simulator_without_simulator,
    )
}

/// Parses the arguments of `order-reconciler`. Prints and exits on an error, and for help.
pub fn order_reconciler() -> OrderReconciler {
    parse(
        |first| match first {
            None => Some("run"),
            Some("-V" | "--version") => None,
            Some(first) => first.starts_with('-').then_some("run"),
        },
        |name| {
            let is_there = OrderService::command().find_subcommand(name).is_some();
            is_there.then(|| format!("order-service {name} is that command"))
        },
        |_| None,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        OrderService::command().debug_assert();
        OrderReconciler::command().debug_assert();
    }
}
