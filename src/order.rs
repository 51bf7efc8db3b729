//! The domain types: order ids, statuses, orders, their events (in `order/event.rs`), moments, and
//! observations of their processes.
//!
//! Everything is parsed once, at the edge, and is valid from then on. `decide` chooses what to do about an
//! order.

mod event;
mod rfc3339;
mod words;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;

pub use self::event::{Event, EventReason};
pub use self::rfc3339::Rfc3339;
use self::rfc3339::as_rfc3339;
pub(crate) use self::words::words;

/// Maximum length of an id, in Unicode scalar values. Several UUIDs fit in it, and many index entries fit
/// in a database page.
pub const ID_MAX_CHARS: usize = 128;

/// The id of an order: 1 to [`ID_MAX_CHARS`] Unicode scalar values, none of them a control
/// character, no white space at either end, neither `.` nor `..`. Compared exactly.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct OrderId(Box<str>);

/// Reason why a text cannot be the id of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// It is empty.
    #[error("is empty; it takes 1 to {ID_MAX_CHARS} characters")]
    Empty,
    /// It has more than [`ID_MAX_CHARS`] characters.
    #[error("is longer than {ID_MAX_CHARS} characters")]
    TooLong,
    /// It has a control character (Unicode category Cc).
    #[error("has a control character; any other character will do")]
    Control,
    /// It begins or ends with white space (Unicode property White_Space).
    #[error("begins or ends with white space")]
    Space,
    /// It is `.` or `..`, which clients and proxies remove from a path.
    #[error("is \".\" or \"..\", which cannot stand in a path")]
    Dots,
}

impl OrderId {
    /// Checks a text and returns it as an id.
    pub fn new(text: impl Into<Box<str>>) -> Result<Self, IdError> {
        let text = text.into();
        Self::check(&text)?;
        Ok(Self(text))
    }

    /// Checks that a text can be an id. The error is the first rule that it breaks.
    pub(crate) fn check(text: &str) -> Result<(), IdError> {
        if text.is_empty() {
            return Err(IdError::Empty);
        }
        // A scalar value takes at most four bytes: most texts need no count.
        if text.len() > ID_MAX_CHARS && text.chars().count() > ID_MAX_CHARS {
            return Err(IdError::TooLong);
        }
        // Nearly all ids are of such characters, which break neither rule and are checked many bytes at a time.
        let is_plain = |all, byte: u8| all & byte.is_ascii_graphic();
        if !text.bytes().fold(true, is_plain) {
            if text.chars().any(char::is_control) {
                return Err(IdError::Control);
            }
            if text.starts_with(char::is_whitespace) || text.ends_with(char::is_whitespace) {
                return Err(IdError::Space);
            }
        }
        if matches!(text, "." | "..") {
            return Err(IdError::Dots);
        }
        Ok(())
    }

    /// Returns the id as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for OrderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for OrderId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::new(text)
    }
}

/// A moment, in milliseconds since 1970-01-01T00:00:00Z without leap seconds. serde writes that number.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Returns the moment `delay` later. Saturates.
    pub fn after(self, delay: Duration) -> Self {
        Self(self.0.saturating_add(millis(delay)))
    }

    /// Returns the time since `earlier`, or 0 if that lies ahead.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0).max(0).unsigned_abs())
    }
}

fn millis(delay: Duration) -> i64 {
    i64::try_from(delay.as_millis()).unwrap_or(i64::MAX)
}

words! {
    /// The statuses of an order, in the sequence in which it reaches them.
    pub enum Status {
        /// Accepted; no process is known to exist.
        Created = "CREATED",
        /// Its process exists, or existed when the order process service was last asked about it.
        Processing = "PROCESSING",
        /// Its process has succeeded.
        Fulfilled = "FULFILLED",
        /// Its process has failed.
        Failed = "FAILED",
    }
}

impl Status {
    /// Returns whether the order never changes any more.
    pub const fn is_settled(self) -> bool {
        matches!(self, Self::Fulfilled | Self::Failed)
    }
}

/// A text that is not a status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown status {0:?}; expected CREATED, PROCESSING, FULFILLED or FAILED")]
pub struct UnknownStatus(pub String);

impl FromStr for Status {
    type Err = UnknownStatus;

    fn from_str(text: &str) -> Result<Self, UnknownStatus> {
        Self::from_word(text).ok_or_else(|| UnknownStatus(text.to_owned()))
    }
}

/// The outcome of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The order becomes FULFILLED.
    Succeeded,
    /// The order becomes FAILED.
    Failed,
}

impl Outcome {
    /// Returns the status of an order whose process ended so.
    pub const fn status(self) -> Status {
        match self {
            Self::Succeeded => Status::Fulfilled,
            Self::Failed => Status::Failed,
        }
    }
}

/// An observation of an order's process in an answer of the order process service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Observed {
    /// There is no process. Only a complete answer shows that; a failed request never does.
    Absent,
    /// The process runs.
    Running,
    /// The process has succeeded.
    Succeeded,
    /// The process has failed.
    Failed,
    /// The process has this status, which is none of the three.
    Unrecognised(Box<str>),
}

/// Maximum stored length of an unrecognised status, in characters. The rest is cut off.
const STATUS_SHOWN_MAX: usize = 64;

impl Observed {
    /// Returns the observation of a process with this status.
    pub fn of_status(word: &str) -> Self {
        match word {
            "RUNNING" => Self::Running,
            "SUCCEEDED" => Self::Succeeded,
            "FAILED" => Self::Failed,
            other => Self::Unrecognised(other.chars().take(STATUS_SHOWN_MAX).collect()),
        }
    }
}

words! {
    /// Reason why an order needs attention. It is independent of the status.
    pub enum Reason {
        /// The order process service refuses to start a process for it.
        StartRefused = "start_refused",
        /// The order process service gives no usable answer.
        UpstreamUnreachable = "upstream_unreachable",
        /// Its process has a status that this program does not know.
        UnknownStatus = "unknown_status",
        /// The order process service has forgotten its process.
        ProcessLost = "process_lost",
        /// The order was started `--max-starts` times.
        MaxStarts = "max_starts",
    }
}

words! {
    /// The party that resolves the attention of an order.
    pub enum ResolvedBy {
        /// An operator has to decide or to repair something.
        Operator = "operator",
        /// The reconciler, by retrying.
        Itself = "itself",
    }
}

/// The attention that an order needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attention {
    /// Reason why it needs attention.
    pub reason: Reason,
    /// The party that resolves it.
    pub by: ResolvedBy,
    /// Moment since which it lasts without a break.
    #[serde(serialize_with = "as_rfc3339")]
    pub since: Timestamp,
    /// A description for people.
    pub detail: String,
    /// Moment of the reconciler's next attempt, if there is one.
    #[serde(serialize_with = "as_rfc3339")]
    pub next_attempt_at: Option<Timestamp>,
}

/// An order as its readers see it. serde writes it as the API does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Order {
    /// Its sequence number: greater than that of every order created before it.
    #[serde(skip)]
    pub seq: i64,
    /// Its id, chosen by the caller.
    pub id: OrderId,
    /// Its status.
    pub status: Status,
    /// Moment of its creation.
    #[serde(serialize_with = "as_rfc3339")]
    pub created_at: Timestamp,
    /// Moment of the last change of its status.
    #[serde(serialize_with = "as_rfc3339")]
    pub updated_at: Timestamp,
    /// Number of starts sent for it that may have taken effect.
    pub starts: u32,
    /// The attention that it needs, if any.
    pub attention: Option<Attention>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_any_printable_text_of_1_to_128_characters() {
        let long = "é".repeat(ID_MAX_CHARS);
        for good in [
            "a1", "a b", "a/b", "a+b", "\"", "..a", "...", "日本", "🦀", "%2F", "a\u{a0}b", &long,
        ] {
            assert_eq!(OrderId::new(good).unwrap().as_str(), good);
        }
        for (bad, why) in [
            ("", IdError::Empty),
            (&*format!("{long}é"), IdError::TooLong),
            ("a\0", IdError::Control),
            ("a\u{85}b", IdError::Control),
            ("\u{7f}", IdError::Control),
            (" a", IdError::Space),
            ("a\u{3000}", IdError::Space),
            (".", IdError::Dots),
            ("..", IdError::Dots),
        ] {
            assert_eq!(OrderId::new(bad).unwrap_err(), why, "{bad:?}");
        }
    }

    #[test]
    fn a_status_and_a_reason_are_parsed_from_their_names() {
        for status in Status::ALL {
            assert_eq!(status.as_str().parse(), Ok(status));
        }
        assert!("created".parse::<Status>().is_err());
        assert!("".parse::<Status>().is_err());
        for reason in Reason::ALL {
            assert_eq!(Reason::from_word(reason.as_str()), Some(reason));
        }
    }
}
