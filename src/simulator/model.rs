//! An in-memory model of the order process service.
//!
//! Pure: time and randomness are arguments, so that a simulation on one thread can call it directly
//! and repeat a run exactly. `simulator` serves it, `record` writes the file.
//!
//! Answers equal those of the real service byte for byte, mistakes included, because clients have to
//! tolerate them. Callbacks are accepted and never delivered, as for a client behind NAT.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use crate::order::{Timestamp, words};

/// A source of randomness: returns a number below its argument, which is never 0.
pub type Draw<'a> = dyn FnMut(u64) -> u64 + 'a;

const JSON: &str = "application/json";
const TEXT: &str = "text/plain";

/// Duration of a first process that always succeeds, in seconds: long enough to be seen PROCESSING,
/// short enough to wait for. It is capped below the longest duration.
const FIRST_SECS: u64 = 3;

/// The processes of one incarnation of the service. Their number only grows.
#[derive(Debug, Default)]
pub struct Model {
    max_duration_secs: u32,
    first_succeeds: bool,
    /// In the order of their starts: the iteration order of a map could not be repeated.
    processes: Vec<Process>,
    indices: HashMap<Arc<str>, usize>,
    /// Completions that were not taken yet, the earliest on top.
    completions: BinaryHeap<Reverse<Timestamp>>,
}

#[derive(Debug)]
struct Process {
    order_id: Arc<str>,
    /// End of the process; `None` if it runs for ever.
    ends_at: Option<Timestamp>,
    outcome: Status,
}

/// A process as JSON.
#[derive(Serialize)]
struct ProcessView<'a> {
    order_id: &'a str,
    status: Status,
}

words! {
    /// The status of a process.
    pub enum Status {
        /// Still runs.
        Running = "RUNNING",
        /// Ended with success.
        Succeeded = "SUCCEEDED",
        /// Ended with failure.
        Failed = "FAILED",
    }
}

/// A request that the order process service knows.
#[derive(Clone, Copy, Debug)]
pub enum Request<'a> {
    /// All processes.
    List,
    /// The process of one order.
    LookUp {
        /// The order.
        order_id: &'a str,
    },
    /// A new process.
    Start {
        /// The header `Content-Type`.
        content_type: Option<&'a str>,
        /// The JSON body with the order's id.
        body: &'a [u8],
        /// The query parameter `callback_url`.
        callback_url: Option<&'a str>,
    },
    /// A request that the order process service does not support.
    Other {
        /// The HTTP status of the answer.
        status: u16,
        /// The text of the answer.
        reason: &'static str,
    },
}

impl<'a> Request<'a> {
    /// Returns the request of a GET: an empty `order_id` counts as none.
    pub fn of_get(order_id: Option<&'a str>) -> Self {
        match order_id {
            None | Some("") => Self::List,
            Some(order_id) => Self::LookUp { order_id },
        }
    }
}

/// The kind of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestKind {
    /// All processes.
    List,
    /// The process of one order.
    LookUp,
    /// A new process.
    Start,
    /// A request that the order process service does not support.
    Other,
}

impl From<&Request<'_>> for RequestKind {
    fn from(request: &Request<'_>) -> Self {
        match request {
            Request::List => Self::List,
            Request::LookUp { .. } => Self::LookUp,
            Request::Start { .. } => Self::Start,
            Request::Other { .. } => Self::Other,
        }
    }
}

/// An answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The header `Content-Type`.
    pub content_type: Option<&'static str>,
    /// The body, which is not always JSON, even where the content type says so.
    pub body: Vec<u8>,
    /// Effect of the request.
    pub effect: Effect,
}

impl Answer {
    fn of(status: u16, content_type: &'static str, body: Vec<u8>, effect: Effect) -> Self {
        Self {
            status,
            content_type: Some(content_type),
            body,
            effect,
        }
    }

    /// Returns a plain-text answer to a request that has no effect.
    pub fn text(status: u16, reason: &str) -> Self {
        let effect = Effect::Refused {
            reason: reason.to_owned(),
        };
        Self::of(status, TEXT, format!("{reason}\n").into_bytes(), effect)
    }

    /// Returns a 400 whose JSON is formatted without escaping, as the real service does.
    fn refusal(content_type: &'static str, message: &str, effect: Effect) -> Self {
        let body = format!("{{\"message\":\"{message}\"}}").into_bytes();
        Self::of(400, content_type, body, effect)
    }
}

/// The effect of a request, for the record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "did", rename_all = "snake_case")]
pub enum Effect {
    /// Began to run, without any process.
    #[serde(rename = "began_life")]
    BeganIncarnation {
        /// Seed of the randomness.
        seed: u64,
        /// Exclusive upper bound of the duration of a process, in seconds.
        max_duration_secs: u32,
    },
    /// Returned the status of every process.
    Listed {
        /// Number of processes.
        entries: usize,
    },
    /// Returned the status of a process.
    #[serde(rename = "told")]
    LookedUp {
        /// The order.
        order_id: String,
        /// The status of its process.
        status: Status,
    },
    /// Returned an empty object: the order has no process.
    Unknown {
        /// The order.
        order_id: String,
    },
    /// Started a process.
    Started {
        /// The order.
        order_id: String,
        /// End of the process, in milliseconds since 1970.
        ends_at: Timestamp,
        /// Final status.
        outcome: Status,
        /// Set if the client gave a callback URL.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        callback: bool,
    },
    /// Refused the callback URL, but started a process that never ends.
    StartedForEver {
        /// The order.
        order_id: String,
    },
    /// Refused a start because the order has a process.
    Exists {
        /// The order.
        order_id: String,
    },
    /// Crashed and forgot every process.
    Crashed,
    /// Refused the request, without effect.
    Refused {
        /// The reason.
        reason: String,
    },
}

impl Model {
    /// Returns a service without any process. Processes take whole seconds below `max_duration_secs`;
    /// 0 counts as 1: all processes end at once.
    pub fn new(max_duration_secs: u32) -> Self {
        Self {
            max_duration_secs,
            ..Self::default()
        }
    }

    /// Makes the first process of each incarnation succeed after three seconds, whatever is drawn.
    pub const fn with_first_success(mut self) -> Self {
        self.first_succeeds = true;
        self
    }

    /// Processes a request.
    pub fn answer(&mut self, request: &Request<'_>, now: Timestamp, draw: &mut Draw) -> Answer {
        match *request {
            Request::Other { status, reason } => Answer::text(status, reason),
            Request::List => self.answer_list(now, draw),
            Request::LookUp { order_id } => self.answer_look_up(order_id, now),
            Request::Start {
                content_type,
                body,
                callback_url,
            } => match order_id(content_type, body) {
                Ok(order_id) => self.answer_start(order_id, callback_url, now, draw),
                Err((content_type, reason)) => {
                    let effect = Effect::Refused {
                        reason: reason.into(),
                    };
                    Answer::refusal(content_type, reason, effect)
                }
            },
        }
    }

    fn answer_list(&self, now: Timestamp, draw: &mut Draw) -> Answer {
        let mut body = Vec::new();
        let view = self.shuffled(draw).into_iter().map(|p| p.view(now));
        // Serialising strings to memory cannot fail.
        let _ = serde_json::Serializer::new(&mut body).collect_seq(view);
        let entries = self.len();
        Answer::of(200, JSON, body, Effect::Listed { entries })
    }

    fn answer_look_up(&self, order_id: &str, now: Timestamp) -> Answer {
        let process = self.process(order_id);
        let order_id = order_id.to_owned();
        let Some(process) = process else {
            return Answer::of(200, JSON, b"{}".to_vec(), Effect::Unknown { order_id });
        };
        let body = serde_json::to_vec(&process.view(now)).unwrap_or_default();
        let status = process.status(now);
        Answer::of(200, JSON, body, Effect::LookedUp { order_id, status })
    }

    fn answer_start(
        &mut self,
        order_id: String,
        callback_url: Option<&str>,
        now: Timestamp,
        draw: &mut Draw,
    ) -> Answer {
        let Some((ends_at, process)) = self.add(&order_id, now, draw) else {
            let message = format!("order process for order {order_id} exists");
            return Answer::refusal(JSON, &message, Effect::Exists { order_id });
        };
        let callback_url = callback_url.filter(|url| !url.is_empty());
        if callback_url.is_some_and(|url| !is_callback_url(url)) {
            // The real service validates the URL only after it has added the process.
            process.ends_at = None;
            let effect = Effect::StartedForEver { order_id };
            return Answer::refusal(JSON, "invalid callback url", effect);
        }
        let callback = callback_url.is_some();
        let outcome = process.outcome;
        self.completions.push(Reverse(ends_at));
        Answer {
            status: if callback { 202 } else { 200 },
            content_type: None,
            body: Vec::new(),
            effect: Effect::Started {
                order_id,
                ends_at,
                outcome,
                callback,
            },
        }
    }

    /// Starts a process unless the order has one. Returns whether it did.
    pub fn start(&mut self, order_id: &str, now: Timestamp, draw: &mut Draw) -> bool {
        let ends_at = self.add(order_id, now, draw).map(|(ends_at, _)| ends_at);
        self.completions.extend(ends_at.map(Reverse));
        ends_at.is_some()
    }

    /// Takes the earliest completion up to `now` that was not taken yet, and returns its time. Each
    /// process completes once, unless it runs for ever. Takes logarithmic time.
    pub fn next_completion(&mut self, now: Timestamp) -> Option<Timestamp> {
        let Reverse(ends_at) = *self.completions.peek()?;
        if ends_at > now {
            return None;
        }
        self.completions.pop();
        Some(ends_at)
    }

    /// Returns the status of an order's process, if there is one.
    pub fn look_up(&self, order_id: &str, now: Timestamp) -> Option<&'static str> {
        Some(self.process(order_id)?.status(now).as_str())
    }

    /// Returns every order id with the status of its process, in a new random order.
    pub fn list(&self, now: Timestamp, draw: &mut Draw) -> Vec<(String, &'static str)> {
        let listed = |process: &Process| {
            let status = process.status(now).as_str();
            (process.order_id.to_string(), status)
        };
        self.shuffled(draw).into_iter().map(listed).collect()
    }

    /// Ends this incarnation and begins the next.
    pub fn forget_everything(&mut self) {
        *self = Self {
            max_duration_secs: self.max_duration_secs,
            first_succeeds: self.first_succeeds,
            ..Self::default()
        };
    }

    /// Returns the number of processes.
    pub fn len(&self) -> usize {
        self.processes.len()
    }

    /// Returns whether there is no process.
    pub fn is_empty(&self) -> bool {
        self.processes.is_empty()
    }

    fn process(&self, order_id: &str) -> Option<&Process> {
        self.indices.get(order_id).map(|&i| &self.processes[i])
    }

    /// Adds a process and returns it with its end, or `None` if the order has one already.
    fn add(
        &mut self,
        order_id: &str,
        now: Timestamp,
        draw: &mut Draw,
    ) -> Option<(Timestamp, &mut Process)> {
        if self.indices.contains_key(order_id) {
            return None;
        }
        let below = u64::from(self.max_duration_secs.max(1));
        // Drawn even if not used, so that the other processes of a seed stay the same.
        let mut secs = draw(below);
        let mut outcome = [Status::Succeeded, Status::Failed][draw(2) as usize];
        if self.first_succeeds && self.is_empty() {
            secs = FIRST_SECS.min(below - 1);
            outcome = Status::Succeeded;
        }
        let duration = Duration::from_secs(secs);
        let order_id: Arc<str> = order_id.into();
        let ends_at = now.after(duration);
        self.indices.insert(order_id.clone(), self.processes.len());
        let process = self.processes.push_mut(Process {
            order_id,
            ends_at: Some(ends_at),
            outcome,
        });
        Some((ends_at, process))
    }

    /// Returns all processes in random order (Fisher–Yates shuffle).
    fn shuffled(&self, draw: &mut Draw) -> Vec<&Process> {
        let mut processes: Vec<_> = self.processes.iter().collect();
        for i in (1..processes.len()).rev() {
            // At most i, so it fits a usize.
            processes.swap(i, draw(i as u64 + 1) as usize);
        }
        processes
    }
}

impl Process {
    fn status(&self, now: Timestamp) -> Status {
        match self.ends_at {
            Some(ends_at) if ends_at <= now => self.outcome,
            _ => Status::Running,
        }
    }

    fn view(&self, now: Timestamp) -> ProcessView<'_> {
        let status = self.status(now);
        ProcessView {
            order_id: &self.order_id,
            status,
        }
    }
}

/// Parses the order id of a start. An error is the content type and the text of the refusal.
fn order_id(
    content_type: Option<&str>,
    body: &[u8],
) -> Result<String, (&'static str, &'static str)> {
    if content_type != Some(JSON) {
        return Err((TEXT, "invalid content type. Valid: application/json"));
    }
    let order_id = match serde_json::from_slice(body) {
        Ok(Value::Object(mut fields)) => fields.remove("order_id").unwrap_or_default(),
        Ok(Value::Null) => Value::Null,
        _ => return Err((JSON, "invalid request body")),
    };
    match order_id {
        Value::String(order_id) if !order_id.is_empty() => Ok(order_id),
        Value::String(_) | Value::Null => Err((JSON, "missing order id")),
        _ => Err((JSON, "invalid request body")),
    }
}

/// Returns whether a URL has a scheme and a host.
fn is_callback_url(url: &str) -> bool {
    let Some((scheme, rest)) = url.split_once("://") else {
        return false;
    };
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
        && !host.is_empty()
        && !url.contains(|c: char| c.is_whitespace() || c.is_control())
}

#[cfg(test)]
mod tests;
