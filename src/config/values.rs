//! Parsers of the values of flags. An error says what to write instead.

use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use clap::builder::PossibleValue;

use crate::decide::LostProcess;
use crate::site::is_host;
use crate::store::{DatabaseUrl, DatabaseUrlError};

/// Maximum of `--request-timeout`.
const REQUEST_TIMEOUT_MAX: Duration = Duration::from_secs(600);

/// Minimum of `--start-rate`, in starts per second: a start each 17 minutes.
const START_RATE_MIN: f64 = 0.001;

/// Maximum of `--max-in-flight`, above any reasonable number of concurrent requests.
pub(super) const IN_FLIGHT_MAX: usize = 1_024;

pub(super) fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "write an IP address and a port, such as 127.0.0.1:8080".to_owned())
}

pub(super) fn parse_host(text: &str) -> Result<String, String> {
    let host = text.trim();
    match is_host(host) {
        true => Ok(host.to_owned()),
        false => {
            Err("write a host name without a scheme or port, such as orders.example".to_owned())
        }
    }
}

/// Returns a parser of whole numbers in a range.
pub(super) fn whole<T>(range: RangeInclusive<T>) -> impl Fn(&str) -> Result<T, String> + Clone
where
    T: FromStr + PartialOrd + Display + Clone,
{
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        let (least, most) = (range.start(), range.end());
        number.ok_or_else(|| format!("write a whole number from {least} to {most}"))
    }
}

pub(super) fn parse_rate(text: &str) -> Result<f64, String> {
    let is_rate = |rate: &f64| *rate == 0.0 || (START_RATE_MIN..f64::INFINITY).contains(rate);
    let rate = text.parse().ok().filter(is_rate);
    rate.ok_or_else(|| {
        format!(
            "write a number of starts per second from {START_RATE_MIN}, such as 50 or 0.5; 0 for no ceiling"
        )
    })
}

pub(super) fn parse_timeout(text: &str) -> Result<humantime::Duration, String> {
    let timeout = humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write a number with a unit, such as 5s or 500ms"))?;
    if timeout.as_millis() == 0 || timeout > REQUEST_TIMEOUT_MAX {
        let longest = humantime::format_duration(REQUEST_TIMEOUT_MAX);
        return Err(format!("write a duration from 1ms to {longest}"));
    }
    Ok(timeout.into())
}

pub(super) fn parse_age(text: &str) -> Result<Duration, String> {
    const EXPECTED: &str = "write a number with a unit, such as 90d or 12h";
    let age = humantime::parse_duration(text).map_err(|error| format!("{error}; {EXPECTED}"))?;
    if age.is_zero() {
        return Err(format!("the duration is zero; {EXPECTED}"));
    }
    // `m` is a minute, and `M` a month.
    let units = text.split(|c: char| !c.is_ascii_alphabetic());
    if units.into_iter().any(|unit| unit.eq_ignore_ascii_case("m")) {
        return Err("write min for minutes, or month for months".to_owned());
    }
    Ok(age)
}

/// Returns the path of a file that may be written as a database is. What another scheme would be is part of
/// its name, as in `orders-10:00.db`.
pub(super) fn file_of_backup(file: PathBuf) -> Result<PathBuf, String> {
    match file.to_str().map(str::parse) {
        None | Some(Err(DatabaseUrlError::Scheme(_))) => Ok(file),
        Some(Ok(DatabaseUrl::Sqlite(path))) => Ok(path),
        #[cfg(feature = "postgres")]
        Some(Ok(DatabaseUrl::Postgres(_))) => {
            Err("a backup is a file; write sqlite:FILE or a path".to_owned())
        }
        Some(Err(error)) => Err(error.to_string()),
    }
}

impl ValueEnum for LostProcess {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self {
            Self::Restart => "Start it again, which may repeat its work",
            Self::Hold => "Leave it PROCESSING, with attention process_lost",
            Self::Fail => "Settle it as FAILED; hold it if no poll has seen its process",
        };
        Some(PossibleValue::new(self.as_str()).help(help))
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::super::OrderReconciler;
    use super::*;

    #[test]
    fn the_help_has_the_limits_in_force() {
        let command = OrderReconciler::command();
        let run = command.find_subcommand("run").unwrap();
        let longest = humantime::format_duration(REQUEST_TIMEOUT_MAX);
        for (flag, limit) in [
            ("max-in-flight", format!("1 to {IN_FLIGHT_MAX}")),
            ("request-timeout", format!("from 1ms to {longest}")),
        ] {
            let mut arguments = run.get_arguments();
            let argument = arguments.find(|argument| argument.get_long() == Some(flag));
            let help = argument.and_then(|argument| argument.get_help()).unwrap();
            assert!(help.to_string().contains(&limit), "{flag}: {help}");
        }
    }

    #[test]
    fn a_number_out_of_range_is_refused() {
        for rate in ["-1", "inf", "NaN", "fast", "", "1e-20"] {
            assert!(parse_rate(rate).is_err(), "{rate}");
        }
        assert_eq!(
            ["0", "0.001", "0.5"].map(parse_rate),
            [Ok(0.0), Ok(0.001), Ok(0.5)]
        );
        for timeout in ["0s", "5", "11m", "-1s", ""] {
            assert!(parse_timeout(timeout).is_err(), "{timeout}");
        }
        assert_eq!(
            parse_timeout("500ms"),
            Ok(Duration::from_millis(500).into())
        );
        for age in [
            "0s",
            "0d",
            "90",
            "-90d",
            "d",
            "90 parsecs",
            "forever",
            "",
            "3m",
            "1M",
        ] {
            assert!(parse_age(age).is_err(), "{age}");
        }
        let day = Duration::from_secs(86_400);
        assert_eq!(parse_age("90d"), Ok(90 * day));
        assert_eq!(parse_age("1d 12h"), Ok(36 * day / 24));
        assert_eq!(parse_age("1440min"), Ok(day));
    }
}
