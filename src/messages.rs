//! Texts for people: errors, times, words for a shell and the `detail` of attention, for logs and
//! `explain`.
//!
//! Pure.

use std::time::Duration;

use crate::order::{Observed, Reason, Rfc3339, Timestamp};
use crate::pace::{ReductionCause, StartLimit, Throttled, Throttling};

/// Detail of an order whose process the upstream has forgotten. It is not always on record whether a poll has
/// seen that process.
pub const PROCESS_LOST: &str =
    "the upstream has no process for it; its work may or may not have been done";

/// Formats an error with its causes, each once, on one line; PostgreSQL sends details on further lines.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text.replace('\n', ", ")
}

/// Formats a past moment: `12 s ago (2026-11-22T10:00:00.123Z)`. A moment by another clock may lie ahead.
pub fn past(at: Timestamp, now: Timestamp) -> String {
    if at > now {
        let ahead = span(at.since(now));
        return format!("at {}, {ahead} ahead of the clock", Rfc3339(at));
    }
    format!("{} ago ({})", span(now.since(at)), Rfc3339(at))
}

/// Formats a period that goes on: `for 12 s (since 2026-11-22T10:00:00.123Z)`.
pub fn lasting(since: Timestamp, now: Timestamp) -> String {
    format!("for {} (since {})", span(now.since(since)), Rfc3339(since))
}

/// Formats a future moment: `in 12 s (2026-11-22T10:00:00.123Z)`.
pub fn future(at: Timestamp, now: Timestamp) -> String {
    format!("in {} ({})", span(at.since(now)), Rfc3339(at))
}

/// Formats a duration in one unit, rounded to about two significant digits.
pub fn span(length: Duration) -> String {
    const MINUTE: f64 = 60.0;
    const HOUR: f64 = 60.0 * MINUTE;
    const DAY: f64 = 24.0 * HOUR;
    let seconds = length.as_secs_f64();
    // At least two of the larger unit, so that 90 s is not two minutes; each ends where it would round up.
    match seconds {
        ..9.95 => format!("{seconds:.1} s"),
        ..119.5 => format!("{seconds:.0} s"),
        ..7_170.0 => format!("{:.0} min", seconds / MINUTE),
        ..171_000.0 => format!("{:.0} h", seconds / HOUR),
        _ => format!("{:.0} days", seconds / DAY),
    }
}

/// Describes the cause of a reduced start rate.
pub fn reduction_cause(cause: ReductionCause<'_>) -> &str {
    match cause {
        ReductionCause::Restart => "the upstream was restarted",
        ReductionCause::Overload(detail) => detail,
    }
}

/// Describes the requests that the upstream throttles, if it has done so for some time.
pub fn throttling(throttling: Throttling, now: Timestamp) -> Option<String> {
    let clause = |kind, throttled: Throttled| {
        let (count, since) = (throttled.requests, Rfc3339(throttled.since));
        format!("it throttles {kind}: {count} in a row were answered 429, since {since}")
    };
    let starts = throttling
        .starts(now)
        .map(|throttled| clause("starts", throttled));
    let polls = throttling
        .polls(now)
        .map(|throttled| clause("polls", throttled));
    let clauses: Vec<_> = starts.into_iter().chain(polls).collect();
    (!clauses.is_empty()).then(|| clauses.join("; "))
}

/// Describes a limit of the starts.
pub fn start_limit(limit: StartLimit<'_>) -> String {
    match limit {
        StartLimit::Window(processes) => format!(
            "at most {processes} processes run at once, because the upstream forgets them when it \
             crashes"
        ),
        StartLimit::Reduction(cause) => reduction_cause(cause).to_owned(),
        StartLimit::Ceiling => "the ceiling of the start rate".to_owned(),
    }
}

/// Returns a text from elsewhere without control characters, which would move a terminal's cursor, and
/// without its full stop.
pub fn clean(text: &str) -> String {
    let text = text.trim_end_matches('.');
    text.replace(char::is_control, "\u{fffd}")
}

/// Quotes a word for a shell.
pub fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | ':');
    if word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Returns the `detail` of an order that needs attention. `refusal` is the upstream's answer when it
/// refused a start.
pub fn attention_detail(
    reason: Reason,
    starts: u32,
    observed: Option<&Observed>,
    refusal: Option<&str>,
) -> String {
    match (reason, observed) {
        (Reason::UnknownStatus, Some(Observed::Unrecognised(word))) => {
            format!("unknown process status {word:?}; expected RUNNING, SUCCEEDED or FAILED")
        }
        (Reason::ProcessLost, _) => PROCESS_LOST.to_owned(),
        (Reason::MaxStarts, _) => match starts {
            1 => "it may have been started once and is not started again".to_owned(),
            n => format!("it may have been started {n} times and is not started again"),
        },
        (reason, _) => match refusal {
            Some(refusal) => refusal.to_owned(),
            None => reason.as_str().replace('_', " "),
        },
    }
}
