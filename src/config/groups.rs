//! Groups of flags that several commands share.

use std::net::SocketAddr;

use clap::Args;
use clap::builder::PossibleValuesParser;

use super::values::{IN_FLIGHT_MAX, parse_address, parse_host, parse_rate, parse_timeout, whole};
use crate::decide::LostProcess;
use crate::process::LogFormat;
use crate::reconciler::{Schedule, Settings};
use crate::simulator::faults::{Faults, presets};
use crate::site::Site;
use crate::store::DatabaseUrl;
use crate::upstream::UpstreamUrl;

/// The database of programs that create it if absent.
#[derive(Debug, Args)]
pub struct DatabaseArgs {
    /// Database, created if it is not there: sqlite:FILE or a path, or, in builds with PostgreSQL,
    /// postgres://USER@HOST:PORT/DATABASE
    #[arg(
        long,
        env = "DATABASE_URL",
        value_name = "URL",
        default_value = "sqlite:orders.db"
    )]
    pub database_url: DatabaseUrl,
}

/// The database of commands that do not create it.
#[derive(Debug, Args)]
pub struct ExistingDatabaseArgs {
    /// Database, and it has to be there: sqlite:FILE or a path, or, in builds with PostgreSQL,
    /// postgres://USER@HOST:PORT/DATABASE
    #[arg(
        long,
        env = "DATABASE_URL",
        value_name = "URL",
        default_value = "sqlite:orders.db"
    )]
    pub database_url: DatabaseUrl,
}

/// The address of the API, and its host names.
#[derive(Debug, Args)]
pub struct ListenArgs {
    /// Address to listen on; port 0 takes a free one, which is printed
    #[arg(
        long,
        env = "LISTEN_ADDR",
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:8080",
        value_parser = parse_address
    )]
    pub listen: SocketAddr,
    /// Name that requests may have as their Host, besides IP addresses and localhost; may be repeated, or
    /// separated by commas. Without any, every Host is accepted; on loopback and by `dev`, only IP addresses
    /// and localhost [default: none]
    #[arg(
        long = "allowed-host",
        env = "ALLOWED_HOSTS",
        value_name = "NAME",
        value_delimiter = ',',
        value_parser = parse_host
    )]
    pub allowed_hosts: Vec<String>,
}

impl ListenArgs {
    /// Returns the host names of the API.
    pub fn site(&self) -> Site {
        Site::new(self.listen.ip(), &self.allowed_hosts)
    }
}

/// The URL of the order process service. Its token comes from `ORDER_PROCESS_TOKEN` alone: every user of
/// the machine could read a flag.
#[derive(Debug, Args)]
pub struct UpstreamArgs {
    /// URL of the order process service; ORDER_PROCESS_TOKEN, if set, is sent as a bearer token
    #[arg(
        long,
        env = "ORDER_PROCESS_URL",
        value_name = "URL",
        default_value = "http://127.0.0.1:8000"
    )]
    pub order_process_url: UpstreamUrl,
}

/// The reconciler's settings.
#[derive(Debug, Args)]
pub struct ReconcileArgs {
    /// When to poll and start: cron with seconds, UTC; a new order is started at once
    #[arg(
        long,
        env = "RECONCILE_SCHEDULE",
        value_name = "CRON",
        default_value_t = Settings::default().schedule
    )]
    pub schedule: Schedule,
    /// Maximum number of starts per second; decimals are allowed, 0 means no ceiling. Default: none, but
    /// 50 where a forgotten process is not started again
    #[arg(
        long,
        env = "START_RATE",
        value_name = "PER SECOND",
        value_parser = parse_rate
    )]
    pub start_rate: Option<f64>,
    /// Maximum number of concurrent starts and look-ups, 1 to 1024; a list is read beside them
    #[arg(
        long,
        env = "MAX_IN_FLIGHT",
        value_name = "REQUESTS",
        default_value_t = Settings::default().max_in_flight,
        value_parser = whole(1..=IN_FLIGHT_MAX)
    )]
    pub max_in_flight: usize,
    /// Timeout of a start or a look-up; for a list the longest silence, with 30 s to 10 min in all.
    /// Connecting may take three quarters of it. A number with a unit (ms, s, m), from 1ms to 10m
    #[arg(
        long,
        env = "REQUEST_TIMEOUT",
        value_name = "DURATION",
        default_value_t = Settings::default().request_timeout.into(),
        value_parser = parse_timeout
    )]
    pub request_timeout: humantime::Duration,
    /// What to do with an order whose process the order process service has forgotten
    #[arg(
        long,
        env = "LOST_PROCESS",
        value_name = "POLICY",
        value_enum,
        default_value_t = Settings::default().lost_process
    )]
    pub lost_process: LostProcess,
    /// Number of starts after which an order is held instead of started again
    #[arg(
        long,
        env = "MAX_STARTS",
        value_name = "STARTS",
        default_value_t = Settings::default().max_starts,
        value_parser = whole(1..=u32::MAX)
    )]
    pub max_starts: u32,
}

impl ReconcileArgs {
    /// Returns the maximum number of connections to the order process service: those of starts and those
    /// of other requests are kept apart.
    pub fn connections(&self) -> usize {
        2 * self.max_in_flight
    }

    /// Returns the settings of the reconciler.
    pub fn settings(&self) -> Settings {
        Settings {
            schedule: self.schedule.clone(),
            start_rate: self.start_rate,
            max_in_flight: self.max_in_flight,
            request_timeout: *self.request_timeout,
            max_starts: self.max_starts,
            lost_process: self.lost_process,
        }
    }
}

/// The log's settings.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// Format of the log on standard error; levels through RUST_LOG
    #[arg(
        long,
        global = true,
        env = "LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text"
    )]
    pub log_format: LogFormat,
}

/// Returns the token for the order process service, if there is one.
///
/// # Errors
/// The token has a character that an HTTP header cannot hold.
pub fn order_process_token() -> Result<Option<String>, &'static str> {
    const INVALID: &str = "ORDER_PROCESS_TOKEN may hold visible ASCII characters only; a carriage \
                         return at its end comes from a file with line ends of Windows";
    match std::env::var("ORDER_PROCESS_TOKEN") {
        Ok(token) if token.is_empty() => Ok(None),
        Ok(token) if token.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(Some(token)),
        Err(std::env::VarError::NotPresent) => Ok(None),
        _ => Err(INVALID),
    }
}

/// The faults of the simulator.
#[derive(Debug, Args)]
pub struct FaultArgs {
    /// Faults of the simulator: none, failing requests, crashes (alternately 2 s and 20 s after its
    /// first start), or periodic outages
    #[arg(
        long,
        env = "SIMULATOR_PRESET",
        value_name = "NAME",
        default_value = "calm",
        value_parser = PossibleValuesParser::new(presets().map(|preset| preset.name))
    )]
    pub preset: String,
    /// Address that controls the simulator's faults: GET and PUT /faults, POST /crash; port 0 takes a
    /// free one, which is printed [default: none]
    #[arg(
        long,
        env = "SIMULATOR_CONTROL",
        value_name = "ADDRESS:PORT",
        value_parser = parse_address
    )]
    pub control: Option<SocketAddr>,
}

impl FaultArgs {
    /// Returns the faults of the preset.
    pub fn faults(&self) -> Faults {
        // The parser accepts known names only.
        Faults::preset(&self.preset).unwrap_or_default()
    }
}
