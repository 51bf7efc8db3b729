//! The upstream of a pass under test: the simulator's model in memory, with the faults of requests to it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use order_service::clock::{Clock, ManualClock};
use order_service::order::{Observed, OrderId, Timestamp};
use order_service::simulator::model::Model;
use order_service::upstream::{Cause, Entry, Failure, StartError, Upstream};

/// A fault of a request, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Answered,
    /// The connection is refused.
    Refused,
    /// The request takes effect, and its answer is lost.
    AnswerLost,
    /// The request is lost.
    Lost,
    /// The answer has this HTTP status, and the request has no effect. A 2xx is not the upstream's own.
    Status(u16),
    /// A running process has an unknown status.
    UnknownStatus,
    /// A list has each process twice, with the same status, or with another one.
    Twice,
    Contradictory,
    /// A start takes effect, and is answered that a process exists.
    Exists,
    /// The request takes effect, and its answer is not the upstream's own.
    Foreign,
    /// The request has no effect, and the answer has `Retry-After` in seconds.
    Pause(u64),
}

/// Orders whose requests are always throttled: the prefix of their ids, the status, and the seconds of
/// `Retry-After`.
pub(super) type Throttled = (&'static str, u16, Option<u64>);

/// The simulator's model, and the faults of requests to it.
#[derive(Clone)]
pub(super) struct InMemory {
    pub(super) model: Rc<RefCell<Model>>,
    pub(super) clock: ManualClock,
    draws: Rc<Cell<u64>>,
    pub(super) start_fault: Rc<Cell<Fault>>,
    pub(super) look_up_fault: Rc<Cell<Fault>>,
    /// Fault of lists; that of look-ups if `None`.
    pub(super) list_fault: Rc<Cell<Option<Fault>>>,
    /// Orders whose starts always fail: the prefix of their ids, and the fault.
    pub(super) failing: Rc<Cell<Option<(&'static str, Fault)>>>,
    /// Prefix of the ids of orders whose requests are answered with this status and `Retry-After: 20`.
    pub(super) throttled: Rc<Cell<Option<Throttled>>>,
    /// Time that a look-up takes, in milliseconds.
    pub(super) look_up_ms: Rc<Cell<i64>>,
    /// Orders whose look-ups are lost.
    pub(super) lost: Rc<RefCell<Vec<String>>>,
    /// The order whose look-ups have no answer until this is `None`.
    pub(super) unanswered: Rc<RefCell<Option<&'static str>>>,
    /// Lag of reads, in milliseconds, and the start of each process.
    pub(super) lag: Rc<Cell<i64>>,
    began: Rc<RefCell<HashMap<String, Timestamp>>>,
    /// Another upstream behind the same address, which is reached by every other request or so.
    pub(super) other: Rc<RefCell<Option<Model>>>,
    /// Every request, as "start a1", "look_up a1" or "list".
    requests: Rc<RefCell<Vec<String>>>,
}

impl InMemory {
    pub(super) fn new(clock: ManualClock, max_duration_secs: u32) -> Self {
        Self {
            model: Rc::new(RefCell::new(Model::new(max_duration_secs))),
            clock,
            draws: Rc::new(Cell::new(1)),
            start_fault: Rc::new(Cell::new(Fault::Answered)),
            look_up_fault: Rc::new(Cell::new(Fault::Answered)),
            list_fault: Rc::default(),
            failing: Rc::default(),
            throttled: Rc::default(),
            look_up_ms: Rc::default(),
            lost: Rc::default(),
            unanswered: Rc::default(),
            lag: Rc::default(),
            began: Rc::default(),
            other: Rc::default(),
            requests: Rc::default(),
        }
    }

    /// Draws by a linear congruential generator: the same numbers in every run.
    fn draw(&self, below: u64) -> u64 {
        let next = self.draws.get().wrapping_mul(6_364_136_223_846_793_005);
        self.draws.set(next.wrapping_add(1_442_695_040_888_963_407));
        (self.draws.get() >> 33) % below
    }

    /// Records a request, which reaches one of the upstreams.
    fn request(&self, request: String) {
        self.requests.borrow_mut().push(request);
        if self.other.borrow().is_some() && self.draw(2) == 0 {
            self.swap();
        }
    }

    /// Makes the next request reach the other upstream, if there is one.
    pub(super) fn swap(&self) {
        if let Some(other) = &mut *self.other.borrow_mut() {
            std::mem::swap(&mut *self.model.borrow_mut(), other);
        }
    }

    /// Returns the moment as of which reads are answered.
    fn read_at(&self) -> Timestamp {
        Timestamp(self.clock.now().0 - self.lag.get())
    }

    /// Returns whether the process of an order had begun by then.
    fn has_begun(&self, id: &str) -> bool {
        let began = self.began.borrow();
        began.get(id).is_none_or(|began| *began <= self.read_at())
    }

    /// Returns the number of starts received.
    pub(super) fn starts(&self) -> usize {
        let requests = self.requests.borrow();
        requests
            .iter()
            .filter(|request| request.starts_with("start"))
            .count()
    }

    /// Returns the number of starts of an order received.
    pub(super) fn starts_of(&self, id: &str) -> usize {
        let start = format!("start {id}");
        let requests = self.requests.borrow();
        requests.iter().filter(|request| **request == start).count()
    }

    /// Begins a process of the longest duration that no request has started.
    pub(super) fn begin(&self, id: &str) {
        let longest = &mut |below: u64| below - 1;
        let mut model = self.model.borrow_mut();
        assert!(model.start(id, self.clock.now(), longest), "{id}");
    }

    /// Returns the status and the failure of a request about an order that is always throttled.
    fn throttling(&self, id: &OrderId) -> Option<(u16, Failure)> {
        let (_, status, retry_after) = self
            .throttled
            .get()
            .filter(|(prefix, ..)| id.as_str().starts_with(prefix))?;
        let cause = match status {
            429 => Cause::TooManyRequests,
            _ => Cause::ServiceUnavailable,
        };
        let failure = Failure {
            retry_after: retry_after.map(Duration::from_secs),
            ..Failure::new("later", cause)
        };
        Some((status, failure))
    }

    pub(super) fn take_requests(&self) -> Vec<String> {
        self.requests.take()
    }
}

fn failure(detail: &str, certain: bool) -> Failure {
    let cause = match (detail, certain) {
        (_, true) => Cause::NoConnection,
        ("no answer", _) => Cause::Timeout,
        _ => Cause::Unusable,
    };
    Failure::new(detail, cause)
}

/// Returns a failure with `Retry-After`.
fn pause(detail: &str, cause: Cause, seconds: u64) -> Failure {
    Failure {
        retry_after: Some(Duration::from_secs(seconds)),
        ..Failure::new(detail, cause)
    }
}

fn throttled(seconds: u64) -> Failure {
    pause("answered 429", Cause::TooManyRequests, seconds)
}

impl Upstream for InMemory {
    async fn start(&self, id: &OrderId) -> Result<(), StartError> {
        self.request(format!("start {id}"));
        match self.throttling(id) {
            Some((429, failure)) => return Err(StartError::Unavailable(failure)),
            Some((status, failure)) => {
                return Err(StartError::Ambiguous {
                    answer_status: Some(status),
                    failure,
                });
            }
            None => {}
        }
        let ambiguous = |answer_status| StartError::Ambiguous {
            answer_status,
            failure: failure("no answer", false),
        };
        let failing = self.failing.get();
        let fault = failing
            .filter(|(prefix, _)| id.as_str().starts_with(prefix))
            .map_or(self.start_fault.get(), |(_, fault)| fault);
        match fault {
            Fault::Refused => {
                return Err(StartError::Unavailable(failure("connection refused", true)));
            }
            Fault::Lost => return Err(ambiguous(None)),
            Fault::Pause(seconds) => {
                return Err(StartError::Ambiguous {
                    answer_status: Some(503),
                    failure: pause("answered 503", Cause::Unusable, seconds),
                });
            }
            Fault::Status(400) => {
                return Err(StartError::Refused {
                    answer_status: 400,
                    detail: "answered 400".to_owned(),
                });
            }
            Fault::Status(429) => {
                let failure = Failure::new("answered 429", Cause::TooManyRequests);
                return Err(StartError::Unavailable(failure));
            }
            Fault::Status(answer_status @ 200..=299) => {
                return Err(StartError::Unconfirmed {
                    answer_status,
                    failure: failure("<html>", false),
                });
            }
            Fault::Status(status) => return Err(ambiguous(Some(status))),
            _ => {}
        }
        let now = self.clock.now();
        let draw = &mut |below| self.draw(below);
        if fault == Fault::Exists {
            self.model.borrow_mut().start(id.as_str(), now, draw);
        }
        let is_new = self.model.borrow_mut().start(id.as_str(), now, draw);
        if is_new {
            self.began.borrow_mut().insert(id.to_string(), now);
        }
        match (fault, is_new) {
            (Fault::AnswerLost, _) => Err(ambiguous(None)),
            (Fault::Foreign, _) => Err(StartError::Unconfirmed {
                answer_status: 200,
                failure: failure("<html>", false),
            }),
            (_, true) => Ok(()),
            (_, false) => Err(StartError::Refused {
                answer_status: 400,
                detail: "exists".to_owned(),
            }),
        }
    }

    async fn look_up(&self, id: &OrderId) -> Result<Observed, Failure> {
        self.request(format!("look_up {id}"));
        while *self.unanswered.borrow() == Some(id.as_str()) {
            tokio::task::yield_now().await;
        }
        let answered_at = self.clock.now().0 + self.look_up_ms.get();
        self.clock.set(Timestamp(answered_at));
        if let Some((_, failure)) = self.throttling(id) {
            return Err(failure);
        }
        match self.look_up_fault.get() {
            Fault::Answered | Fault::UnknownStatus => {}
            Fault::Status(429) => {
                return Err(Failure::new("answered 429", Cause::TooManyRequests));
            }
            Fault::Pause(seconds) => return Err(throttled(seconds)),
            fault => return Err(failure("no answer", fault == Fault::Refused)),
        }
        if self.lost.borrow().iter().any(|lost| lost == id.as_str()) {
            return Err(failure("no answer", false));
        }
        let model = self.model.borrow();
        let mut status = model.look_up(id.as_str(), self.read_at());
        status = status.filter(|_| self.has_begun(id.as_str()));
        if self.look_up_fault.get() == Fault::UnknownStatus {
            status = status.map(|_| "PAUSED");
        }
        Ok(status.map_or(Observed::Absent, Observed::of_status))
    }

    async fn list(&self, mut on_entry: impl FnMut(Entry<'_>)) -> Result<u64, Failure> {
        self.request("list".to_owned());
        let draw = &mut |below| self.draw(below);
        let mut processes = self.model.borrow().list(self.read_at(), draw);
        processes.retain(|(id, _)| self.has_begun(id));
        let fault = self.list_fault.get().unwrap_or(self.look_up_fault.get());
        match fault {
            Fault::Pause(seconds) => return Err(throttled(seconds)),
            Fault::Status(429) => {
                return Err(Failure::new("answered 429", Cause::TooManyRequests));
            }
            Fault::Status(503) => {
                return Err(Failure::new("answered 503", Cause::ServiceUnavailable));
            }
            _ => {}
        }
        let again = |other: Option<&'static str>| {
            let entries = processes.iter();
            let again = entries.map(|(id, status)| (id.clone(), other.unwrap_or(status)));
            again.collect::<Vec<_>>()
        };
        let again = match fault {
            Fault::Twice => again(None),
            Fault::Contradictory => again(Some("PAUSED")),
            _ => Vec::new(),
        };
        let is_cut = fault != Fault::Answered && again.is_empty();
        processes.extend(again);
        let sent = if is_cut {
            processes.len() / 2
        } else {
            processes.len()
        };
        for (order_id, status) in &processes[..sent] {
            on_entry(Entry {
                order_id: order_id.into(),
                status: (*status).into(),
            });
        }
        if is_cut {
            return Err(failure("cut off", false));
        }
        Ok(processes.len() as u64)
    }
}
