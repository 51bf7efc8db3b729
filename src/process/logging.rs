//! The log on standard error: its levels, from `RUST_LOG`, and the format of its lines.

use std::collections::BTreeMap;
use std::io::Write as _;

use clap::ValueEnum;
use log::kv::{self, Key, VisitSource};
use log::{Level, LevelFilter};
use serde::Serialize;
use serde_json::Value;

use super::InvalidSetting;
use crate::clock::{Clock, SystemClock};
use crate::order::Rfc3339;

/// The format of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// The style of text lines on standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineStyle {
    /// `2026-11-28T21:41:29.682Z ERROR program: …`, for programs that run on.
    Dated,
    /// `error: …`, for interactive commands, in the format of clap.
    Plain,
}

/// Default levels.
pub const LOG_DEFAULT: &str = "order_service=info";

/// The parts of the program that log, each with the target `order_service::PART`.
pub const LOG_PARTS: [&str; 12] = [
    "account",
    "api",
    "dev",
    "operator",
    "orders",
    "pass",
    "program",
    "reconciler",
    "server",
    "simulator",
    "store",
    "upstream",
];

/// Sets up the log on standard error, at the levels of `RUST_LOG`, or of `default` if that sets none for this
/// program. Warnings are logged unless a level for them is set.
///
/// # Errors
/// `RUST_LOG` is invalid. The levels are then those of `default`.
pub fn log_to_stderr(
    format: LogFormat,
    style: LineStyle,
    default: &str,
) -> Result<(), InvalidSetting> {
    let filters = std::env::var_os("RUST_LOG").unwrap_or_default();
    let filters = filters.to_string_lossy();
    let is_for_us = sets_own_level(&filters);
    let mut builder = env_logger::Builder::new();
    builder.filter_level(LevelFilter::Warn);
    // Its errors are returned to the caller, which logs them.
    builder.filter_module("rustls_platform_verifier", LevelFilter::Off);
    if !matches!(is_for_us, Ok(true)) {
        builder.parse_filters(default);
    }
    if is_for_us.is_ok() {
        builder.parse_filters(&filters);
    }
    match (format, style) {
        (LogFormat::Text, LineStyle::Plain) => builder.format(|out, record| {
            let style = out.default_level_style(record.level());
            let level = match record.level() {
                Level::Warn => "warning".to_owned(),
                level => level.as_str().to_ascii_lowercase(),
            };
            writeln!(out, "{style}{level}{style:#}: {}", one_line(record))
        }),
        (LogFormat::Text, LineStyle::Dated) => builder.format(|out, record| {
            // Plain unless standard error is a terminal and NO_COLOR is not set.
            let style = out.default_level_style(record.level());
            writeln!(
                out,
                "{} {style}{:5}{style:#} {}: {}",
                Rfc3339(SystemClock.now()),
                record.level(),
                origin(record.target()),
                one_line(record)
            )
        }),
        (LogFormat::Json, _) => builder.format(|out, record| {
            let mut line = JsonLine {
                at: Rfc3339(SystemClock.now()),
                level: record.level().as_str().to_ascii_lowercase(),
                origin: origin(record.target()),
                message: record.args().to_string(),
                fields: Fields::default(),
            };
            let fields = record.key_values().visit(&mut line.fields);
            fields.map_err(std::io::Error::other)?;
            let line = serde_json::to_string(&line).map_err(std::io::Error::other)?;
            writeln!(out, "{line}")
        }),
    };
    builder.init();
    let is_for_us = is_for_us.map_err(|wrong| InvalidSetting(format!("RUST_LOG: {wrong}")))?;
    if !is_for_us && !filters.is_empty() {
        log::warn!(
            target: super::LOG,
            "RUST_LOG sets no level for this program, which logs as if it were unset; expected a level \
             (off, error, warn, info, debug or trace), or order_service=LEVEL, in {filters:?}"
        );
    }
    Ok(())
}

/// Returns the text of a record; a server sends its details on further lines.
fn one_line(record: &log::Record<'_>) -> String {
    record.args().to_string().replace('\n', ", ")
}

/// Returns whether `filters` have a level for this program. Names of other programs are allowed: they may
/// read the same variable.
fn sets_own_level(filters: &str) -> Result<bool, String> {
    const OWN_NAME: &str = "order_service";
    let expected =
        "expected off, error, warn, info, debug or trace, or TARGET=LEVEL, and one \"/\" at most";
    let parsed = env_filter::Builder::new().try_parse(filters).map(drop);
    parsed.map_err(|error| format!("{error}; {expected}"))?;
    let directives = filters.split('/').next().unwrap_or_default().split(',');
    let mut names = directives.map(|directive| directive.split('=').next().unwrap_or(directive));
    let is_own = |name: &str| match name.strip_prefix(OWN_NAME) {
        Some("") => true,
        Some(rest) => rest
            .strip_prefix("::")
            .and_then(|rest| rest.split("::").next())
            .is_some_and(|part| LOG_PARTS.contains(&part)),
        None => false,
    };
    // A name like that of this project's programs is most likely misspelled.
    let is_like_own = |name: &str| {
        let own = [
            OWN_NAME,
            "order-service",
            "order_reconciler",
            "order-reconciler",
        ];
        own.iter().any(|own| name.starts_with(own))
    };
    if let Some(name) = names
        .clone()
        .find(|name| is_like_own(name) && !is_own(name))
    {
        return Err(format!(
            "nothing logs as {name:?}; expected {OWN_NAME}, or {OWN_NAME}:: and one of {}",
            LOG_PARTS.join(", ")
        ));
    }
    Ok(names.any(|name| is_own(name) || name.parse::<LevelFilter>().is_ok()))
}

#[derive(Serialize)]
struct JsonLine<'a> {
    at: Rfc3339,
    level: String,
    origin: &'a str,
    message: String,
    #[serde(flatten)]
    fields: Fields,
}

/// The fields of a line, besides its text.
#[derive(Default, Serialize)]
struct Fields(BTreeMap<String, Value>);

impl<'kvs> VisitSource<'kvs> for Fields {
    fn visit_pair(&mut self, key: Key<'kvs>, value: kv::Value<'kvs>) -> Result<(), kv::Error> {
        let number = value.to_u64().map(Value::from);
        let value = number.unwrap_or_else(|| value.to_string().into());
        self.0.insert(key.to_string(), value);
        Ok(())
    }
}

/// Returns the part of the program that logs with this target.
fn origin(target: &str) -> &str {
    let path = target.strip_prefix("order_service::").unwrap_or(target);
    path.split("::").next().unwrap_or(path)
}
