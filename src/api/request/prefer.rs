//! The preference `wait` (RFC 7240): the time to wait before responding.
//!
//! Invalid and unknown preferences are ignored, because a preference is not a requirement.

use std::time::Duration;

use warp::http::HeaderMap;
use warp::http::header::HeaderValue;

/// Maximum wait, in seconds: not longer than the idle timeout of common proxies. Longer waits are
/// capped.
const WAIT_MAX_SECS: u64 = 60;

/// A valid preference `wait`, capped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Wait {
    seconds: u64,
}

impl Wait {
    /// Parses the preference in the headers (RFC 7240, section 4.3).
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        // "If any preference is specified more than once, only the first instance is to be
        // considered" (section 2).
        let value = headers
            .get_all("prefer")
            .into_iter()
            .filter_map(|line| line.to_str().ok())
            .flat_map(|line| split(line, ','))
            .find_map(wait)?;
        let is_plain = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
        is_plain.then(|| Self {
            // A number that overflows exceeds the maximum too.
            seconds: value.parse().unwrap_or(u64::MAX).min(WAIT_MAX_SECS),
        })
    }

    pub fn duration(self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    /// Returns the value of `Preference-Applied` (RFC 7240, section 3).
    pub fn applied(self) -> HeaderValue {
        HeaderValue::try_from(format!("wait={}", self.seconds)).expect("a number is ASCII")
    }
}

/// Returns the value of a preference if it is `wait`. Its own parameters are ignored.
fn wait(preference: &str) -> Option<&str> {
    let preference = split(preference, ';').next()?;
    let (name, value) = preference.split_once('=').unwrap_or((preference, ""));
    let value = value.trim();
    // A quoted value is equivalent to a plain one (section 2).
    let value = value
        .strip_prefix('"')
        .and_then(|value| value.strip_suffix('"'))
        .unwrap_or(value);
    name.trim().eq_ignore_ascii_case("wait").then_some(value)
}

/// Splits a text at separators outside of quoted strings.
fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut is_quoted = false;
    let mut is_escaped = false;
    text.split(move |c| {
        let is_literal = is_quoted || c != separator;
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' if is_quoted => is_escaped = true,
            '"' => is_quoted = !is_quoted,
            _ => {}
        }
        !is_literal
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_wait_counts_if_it_is_valid_and_is_capped_at_a_minute() {
        for (lines, seconds) in [
            (&["wait=10"][..], Some(10)),
            (&["WAIT=10"], Some(10)),
            (&["wait = 10"], Some(10)),
            (&["wait=\"10\""], Some(10)),
            (&["respond-async, wait=10"], Some(10)),
            (&["respond-async", "wait=10"], Some(10)),
            (&["wait=10; x=1, wait=20"], Some(10)),
            (&["x=\"a, wait=1; \\\", wait=2\", wait=3"], Some(3)),
            (&[" , ,wait=10,"], Some(10)),
            (&["wait=0"], Some(0)),
            (&["wait=007"], Some(7)),
            (&["wait=60"], Some(60)),
            (&["wait=61"], Some(60)),
            (&["wait=99999999999999999999999"], Some(60)),
            (&["wait=x, wait=10"], None),
            (&["wait"], None),
            (&["wait="], None),
            (&["wait=-1"], None),
            (&["wait=+1"], None),
            (&["wait=1.5"], None),
            (&["wait=10s"], None),
            (&["wait=1 0"], None),
            (&["waits=10"], None),
            (&["x; wait=10"], None),
            (&["x=\"wait=10"], None),
            (&[""], None),
            (&[], None),
        ] {
            let headers: HeaderMap = lines
                .iter()
                .map(|line| ("prefer".parse().unwrap(), HeaderValue::from_static(line)))
                .collect();
            let expected = seconds.map(|seconds| Wait { seconds });
            assert_eq!(Wait::of(&headers), expected, "{lines:?}");
        }
    }
}
