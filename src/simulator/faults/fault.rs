//! The failures of a single request, and their effects on its answer.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::simulator::model::{Answer, Draw, RequestKind};

/// A failure that is injected into one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The request has its effect; then the connection is reset instead of an answer.
    AnswerLost,
    /// The connection is reset before the request has any effect.
    Reset,
    /// The request has its effect, and is never answered.
    NeverAnswered,
    /// The request has no effect, and is never answered.
    Ignored,
    /// The answer is correct but late.
    SlowHeaders,
    /// Internal server error. The request may have had its effect.
    #[serde(rename = "500")]
    InternalError,
    /// Bad gateway. The request may have had its effect.
    #[serde(rename = "502")]
    BadGateway,
    /// Service unavailable, with Retry-After. The request may have had its effect.
    #[serde(rename = "503")]
    Unavailable,
    /// Too many requests, with Retry-After.
    #[serde(rename = "429")]
    TooMany,
    /// Unauthorized.
    #[serde(rename = "401")]
    Unauthorized,
    /// Found, with a Location on another host.
    #[serde(rename = "302")]
    Elsewhere,
    /// A web page with status 200.
    Html,
    /// The body breaks off at any byte, and so does the connection.
    Cut,
    /// The body breaks off at any byte, but the response ends as if it were whole.
    CutEnded,
    /// The list lacks entries.
    Omitted,
    /// The list has entries twice, some of them with another status the second time.
    Repeated,
    /// A status that the contract does not have.
    UnknownStatus,
}

impl fmt::Display for Fault {
    /// Writes the name of the fault in JSON.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

impl Fault {
    /// Returns whether this kind of request can have the fault: the answer to a start has no body, and
    /// only a list has entries.
    pub const fn applies_to(self, kind: RequestKind) -> bool {
        match self {
            Self::Omitted | Self::Repeated => matches!(kind, RequestKind::List),
            Self::Html | Self::Cut | Self::CutEnded | Self::UnknownStatus => {
                matches!(kind, RequestKind::List | RequestKind::LookUp)
            }
            _ => !matches!(kind, RequestKind::Other),
        }
    }

    /// Draws whether the request has its effect. Behind a gateway both are possible, and the client cannot
    /// tell them apart.
    pub fn has_effect(self, draw: &mut Draw) -> bool {
        match self {
            Self::Reset | Self::Ignored | Self::TooMany | Self::Unauthorized | Self::Elsewhere => {
                false
            }
            Self::InternalError | Self::BadGateway | Self::Unavailable => draw(2) == 1,
            _ => true,
        }
    }

    /// Returns whether the client gets any answer.
    pub const fn is_answered(self) -> bool {
        !matches!(
            self,
            Self::AnswerLost | Self::Reset | Self::NeverAnswered | Self::Ignored
        )
    }

    /// Corrupts a correct answer, unless the fault leaves answers as they are.
    pub fn corrupt(self, answer: &mut Answer, draw: &mut Draw) {
        match self {
            Self::InternalError => replace(answer, 500, TEXT, "internal server error\n"),
            Self::BadGateway => replace(answer, 502, HTML, BAD_GATEWAY),
            Self::Unavailable => replace(answer, 503, TEXT, "service unavailable\n"),
            Self::TooMany => replace(answer, 429, TEXT, "too many requests\n"),
            Self::Unauthorized => replace(answer, 401, TEXT, "unauthorized\n"),
            Self::Elsewhere => replace(answer, 302, TEXT, "found\n"),
            Self::Html => replace(answer, 200, HTML, PORTAL),
            Self::Cut | Self::CutEnded => {
                // Below the length, so that the last byte is always missing.
                let length = draw((answer.body.len() as u64).max(1)) as usize;
                answer.body.truncate(length);
            }
            Self::Omitted | Self::Repeated | Self::UnknownStatus => {
                // The model's answers always parse; `{}` has nothing to change.
                let mut body = serde_json::from_slice(&answer.body).unwrap_or_default();
                match &mut body {
                    Value::Array(entries) => self.rearrange(entries, draw),
                    entry => set_status(entry, unknown_status(draw)),
                }
                answer.body = body.to_string().into_bytes();
            }
            _ => {}
        }
    }

    /// Corrupts one entry of a list, some of them, or all.
    fn rearrange(self, entries: &mut Vec<Value>, draw: &mut Draw) {
        if entries.is_empty() {
            return;
        }
        let share = 1 << draw(11);
        let some = draw(entries.len() as u64) as usize;
        let mut indices = 0..;
        let mut chosen = |draw: &mut Draw| indices.next() == Some(some) || draw(1_024) < share;
        match self {
            Self::Omitted => entries.retain(|_| !chosen(draw)),
            Self::Repeated => {
                let mut again = entries.clone();
                again.retain(|_| chosen(draw));
                for mut entry in again {
                    // One in four keeps its status.
                    if let Some(status) = STATUSES.get(draw(4) as usize) {
                        set_status(&mut entry, status);
                    }
                    entries.insert(draw(entries.len() as u64 + 1) as usize, entry);
                }
            }
            _ => {
                for entry in entries {
                    if chosen(draw) {
                        set_status(entry, unknown_status(draw));
                    }
                }
            }
        }
    }
}

/// Sets the status of an entry, unless it has none.
fn set_status(entry: &mut Value, status: &str) {
    if let Some(old) = entry.get_mut("status") {
        *old = status.into();
    }
}

fn unknown_status(draw: &mut Draw) -> &'static str {
    UNKNOWN_STATUSES[draw(UNKNOWN_STATUSES.len() as u64) as usize]
}

const TEXT: &str = "text/plain";
const HTML: &str = "text/html";
const BAD_GATEWAY: &str = "<html><body><h1>502 Bad Gateway</h1></body></html>\n";
const PORTAL: &str = "<!doctype html>\n<html><body><h1>Please sign in</h1></body></html>\n";

const STATUSES: [&str; 3] = ["RUNNING", "SUCCEEDED", "FAILED"];

/// Statuses that the contract does not have, some of which a lenient client could take for one that it
/// has.
const UNKNOWN_STATUSES: [&str; 5] = ["PAUSED", "CANCELLED", "running", "SUCCEEDED ", ""];

fn replace(answer: &mut Answer, status: u16, content_type: &'static str, body: &str) {
    answer.status = status;
    answer.content_type = Some(content_type);
    answer.body = body.as_bytes().to_vec();
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::order::Timestamp;
    use crate::simulator::model::{Model, Request};

    const NOW: Timestamp = Timestamp(1_000_000);

    fn list(count: usize) -> Answer {
        let mut model = Model::new(600);
        for i in 0..count {
            assert!(model.start(&format!("a{i:03}"), NOW, &mut |n| n - 1));
        }
        model.answer(&Request::List, NOW, &mut |n| n / 2)
    }

    fn entries(answer: &Answer) -> Vec<(String, String)> {
        let entries: Vec<BTreeMap<String, String>> = serde_json::from_slice(&answer.body).unwrap();
        entries
            .into_iter()
            .map(|mut e| (e.remove("order_id").unwrap(), e.remove("status").unwrap()))
            .collect()
    }

    #[test]
    fn a_cut_can_be_at_every_byte_and_never_leaves_the_whole() {
        let whole = list(2);
        for length in 0..whole.body.len() {
            let mut answer = whole.clone();
            Fault::Cut.corrupt(&mut answer, &mut |n| (length as u64).min(n - 1));
            assert_eq!(answer.body, whole.body[..length]);
        }
        let mut answer = whole.clone();
        Fault::CutEnded.corrupt(&mut answer, &mut |n| n - 1);
        assert_eq!(answer.body.len(), whole.body.len() - 1);
    }

    #[test]
    fn a_corrupted_list_is_still_json_but_not_the_same() {
        let whole = list(100);
        let all = entries(&whole);
        for seed in 0..200 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut corrupted = |fault: Fault| {
                let mut answer = whole.clone();
                fault.corrupt(&mut answer, &mut |n| rng.u64(..n));
                entries(&answer)
            };
            let omitted = corrupted(Fault::Omitted);
            assert!(omitted.len() < all.len() && omitted.iter().all(|e| all.contains(e)));
            let repeated = corrupted(Fault::Repeated);
            assert!(repeated.len() > all.len() && all.iter().all(|e| repeated.contains(e)));
            let unknown = corrupted(Fault::UnknownStatus);
            assert_eq!(unknown.len(), all.len());
            assert!(unknown.iter().any(|(_, status)| status != "RUNNING"));
        }
    }

    #[test]
    fn a_look_up_can_have_an_unknown_status_too() {
        let mut model = Model::new(600);
        assert!(model.start("a1", NOW, &mut |n| n - 1));
        let mut body = |order_id| {
            let mut answer = model.answer(&Request::LookUp { order_id }, NOW, &mut |_| 0);
            Fault::UnknownStatus.corrupt(&mut answer, &mut |_| 0);
            String::from_utf8(answer.body).unwrap()
        };
        assert_eq!(body("a1"), r#"{"order_id":"a1","status":"PAUSED"}"#);
        assert_eq!(body("a2"), "{}");
    }
}
