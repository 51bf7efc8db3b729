//! The ways in which one request can fail, and what each does to its answer.

use serde::{Deserialize, Serialize};

use crate::simulator::model::{Answer, Asked, Did, Draw};

/// A failure that is injected into one request. Its word in JSON is in [`Fault::as_str`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// It has its effect; then the connection is reset instead of an answer.
    AnswerLost,
    /// The connection is reset before the request has any effect.
    Reset,
    /// It has its effect, and is never answered.
    NeverAnswered,
    /// It has no effect, and is never answered.
    Ignored,
    /// The answer is right but late.
    SlowHeaders,
    /// The answer's body is right but comes in pieces, slowly.
    Trickled,
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
    /// Found, with a Location elsewhere.
    #[serde(rename = "302")]
    Elsewhere,
    /// A web page with status 200. The request may have had its effect.
    Html,
    /// The body breaks off at any byte, and so does the connection.
    Cut,
    /// The body breaks off at any byte, but ends as if it were whole.
    CutEnded,
    /// The list lacks entries.
    Omitted,
    /// The list has entries twice, some of them with another status the second time.
    Repeated,
    /// The list is in another order: sorted.
    Reordered,
    /// A status that nobody has heard of.
    UnknownStatus,
    /// The service ends, and forgets everything.
    Crash,
}

impl Fault {
    /// Every fault.
    pub const ALL: [Self; 20] = [
        Self::AnswerLost,
        Self::Reset,
        Self::NeverAnswered,
        Self::Ignored,
        Self::SlowHeaders,
        Self::Trickled,
        Self::InternalError,
        Self::BadGateway,
        Self::Unavailable,
        Self::TooMany,
        Self::Unauthorized,
        Self::Elsewhere,
        Self::Html,
        Self::Cut,
        Self::CutEnded,
        Self::Omitted,
        Self::Repeated,
        Self::Reordered,
        Self::UnknownStatus,
        Self::Crash,
    ];

    /// Its word in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AnswerLost => "answer_lost",
            Self::Reset => "reset",
            Self::NeverAnswered => "never_answered",
            Self::Ignored => "ignored",
            Self::SlowHeaders => "slow_headers",
            Self::Trickled => "trickled",
            Self::InternalError => "500",
            Self::BadGateway => "502",
            Self::Unavailable => "503",
            Self::TooMany => "429",
            Self::Unauthorized => "401",
            Self::Elsewhere => "302",
            Self::Html => "html",
            Self::Cut => "cut",
            Self::CutEnded => "cut_ended",
            Self::Omitted => "omitted",
            Self::Repeated => "repeated",
            Self::Reordered => "reordered",
            Self::UnknownStatus => "unknown_status",
            Self::Crash => "crash",
        }
    }

    /// Whether it can befall such a request: the answer to a start has no body, and only a list
    /// has entries.
    pub const fn befalls(self, asked: Asked) -> bool {
        match self {
            Self::Omitted | Self::Repeated | Self::Reordered => matches!(asked, Asked::List),
            Self::Trickled | Self::Cut | Self::CutEnded | Self::UnknownStatus => {
                matches!(asked, Asked::List | Asked::LookUp)
            }
            _ => !matches!(asked, Asked::Other),
        }
    }

    /// Whether the request has its effect all the same. Behind a gateway both is possible, and the
    /// client cannot tell.
    pub fn lets_it_happen(self, draw: &mut Draw) -> bool {
        match self {
            Self::Reset
            | Self::Ignored
            | Self::TooMany
            | Self::Unauthorized
            | Self::Elsewhere
            | Self::Crash => false,
            Self::InternalError | Self::BadGateway | Self::Unavailable | Self::Html => draw(2) == 1,
            _ => true,
        }
    }

    /// Whether the client gets any answer.
    pub const fn is_answered(self) -> bool {
        !matches!(
            self,
            Self::AnswerLost | Self::Reset | Self::NeverAnswered | Self::Ignored | Self::Crash
        )
    }

    /// Does to a right answer what the fault does; nothing if it is not a matter of the answer.
    pub fn spoil(self, answer: &mut Answer, draw: &mut Draw) {
        match self {
            Self::InternalError => replace(answer, 500, TEXT, "internal server error\n"),
            Self::BadGateway => replace(answer, 502, HTML, BAD_GATEWAY),
            Self::Unavailable => replace(answer, 503, TEXT, "service unavailable\n"),
            Self::TooMany => replace(answer, 429, TEXT, "too many requests\n"),
            Self::Unauthorized => replace(answer, 401, TEXT, "unauthorized\n"),
            Self::Elsewhere => replace(answer, 302, TEXT, "found\n"),
            Self::Html => replace(answer, 200, HTML, PORTAL),
            Self::Cut | Self::CutEnded => {
                // At least the last byte is missing.
                let length = draw((answer.body.len() as u64).max(1)) as usize;
                answer.body.truncate(length);
            }
            Self::Omitted | Self::Repeated | Self::Reordered | Self::UnknownStatus => {
                self.respell(answer, draw);
            }
            _ => {}
        }
    }

    /// Does to the entries of a list, as `(order id, status)`, what the fault does.
    pub fn rearrange(self, entries: &mut Vec<(String, String)>, draw: &mut Draw) {
        if entries.is_empty() {
            return;
        }
        // From a single one to all of them.
        let share = 1 << draw(11);
        let some = draw(entries.len() as u64) as usize;
        let mut places = 0..;
        let mut chosen = |draw: &mut Draw| places.next() == Some(some) || draw(1_024) < share;
        match self {
            Self::Omitted => entries.retain(|_| !chosen(draw)),
            Self::Repeated => {
                let mut again: Vec<_> = Vec::new();
                for (order_id, status) in &*entries {
                    if chosen(draw) {
                        let status =
                            [status.as_str(), "RUNNING", "SUCCEEDED", "FAILED"][draw(4) as usize];
                        again.push((order_id.clone(), status.to_owned()));
                    }
                }
                for entry in again {
                    entries.insert(draw(entries.len() as u64 + 1) as usize, entry);
                }
            }
            Self::Reordered => entries.sort(),
            Self::UnknownStatus => {
                for (_, status) in entries {
                    if chosen(draw) {
                        *status = UNHEARD_OF[draw(UNHEARD_OF.len() as u64) as usize].to_owned();
                    }
                }
            }
            _ => {}
        }
    }

    /// The same with an answer in JSON: a list, or a single process.
    fn respell(self, answer: &mut Answer, draw: &mut Draw) {
        #[derive(Serialize, Deserialize)]
        struct Entry {
            order_id: String,
            status: String,
        }
        let of_pair = |(order_id, status)| Entry { order_id, status };
        let is_list = matches!(answer.did, Did::Listed { .. });
        let read = if is_list {
            serde_json::from_slice(&answer.body)
        } else {
            serde_json::from_slice(&answer.body).map(|entry: Entry| vec![entry])
        };
        // There is no process in `{}`, and nothing to spoil.
        let Ok(read) = read else { return };
        let mut entries = read.into_iter().map(|e| (e.order_id, e.status)).collect();
        self.rearrange(&mut entries, draw);
        let mut entries = entries.into_iter().map(of_pair);
        let written = if is_list {
            serde_json::to_vec(&entries.collect::<Vec<_>>())
        } else {
            serde_json::to_vec(&entries.next())
        };
        answer.body = written.unwrap_or_default();
    }
}

const TEXT: &str = "text/plain";
const HTML: &str = "text/html";
const BAD_GATEWAY: &str = "<html><body><h1>502 Bad Gateway</h1></body></html>\n";
const PORTAL: &str = "<!doctype html>\n<html><body><h1>Please sign in</h1></body></html>\n";

/// Statuses that the contract does not have, in ways that a lenient client could take for one.
const UNHEARD_OF: [&str; 5] = ["PAUSED", "CANCELLED", "running", "SUCCEEDED ", ""];

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

    fn listed(count: usize) -> Answer {
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
    fn every_fault_has_the_word_that_json_has_for_it() {
        for fault in Fault::ALL {
            let word = format!("\"{}\"", fault.as_str());
            assert_eq!(serde_json::to_string(&fault).unwrap(), word);
        }
    }

    #[test]
    fn a_cut_can_be_at_every_byte_and_never_leaves_the_whole() {
        let whole = listed(2);
        for length in 0..whole.body.len() {
            let mut answer = whole.clone();
            Fault::Cut.spoil(&mut answer, &mut |n| (length as u64).min(n - 1));
            assert_eq!(answer.body, whole.body[..length]);
        }
        let mut answer = whole.clone();
        Fault::CutEnded.spoil(&mut answer, &mut |n| n - 1);
        assert_eq!(answer.body.len(), whole.body.len() - 1);
    }

    #[test]
    fn a_spoilt_list_is_still_json_but_not_the_same() {
        let whole = listed(100);
        let all = entries(&whole);
        for seed in 0..200 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut spoilt = |fault: Fault| {
                let mut answer = whole.clone();
                fault.spoil(&mut answer, &mut |n| rng.u64(..n));
                entries(&answer)
            };
            let omitted = spoilt(Fault::Omitted);
            assert!(omitted.len() < all.len() && omitted.iter().all(|e| all.contains(e)));
            let repeated = spoilt(Fault::Repeated);
            assert!(repeated.len() > all.len() && all.iter().all(|e| repeated.contains(e)));
            let reordered = spoilt(Fault::Reordered);
            assert!(reordered != all && reordered.is_sorted());
            let unheard = spoilt(Fault::UnknownStatus);
            assert_eq!(unheard.len(), all.len());
            assert!(unheard.iter().any(|(_, status)| status != "RUNNING"));
        }
    }

    #[test]
    fn a_look_up_can_tell_an_unheard_of_status_too() {
        let mut model = Model::new(600);
        assert!(model.start("a1", NOW, &mut |n| n - 1));
        let mut told = |order_id| {
            let mut answer = model.answer(&Request::LookUp { order_id }, NOW, &mut |_| 0);
            Fault::UnknownStatus.spoil(&mut answer, &mut |_| 0);
            String::from_utf8(answer.body).unwrap()
        };
        assert_eq!(told("a1"), r#"{"order_id":"a1","status":"PAUSED"}"#);
        assert_eq!(told("a2"), "{}");
    }
}
