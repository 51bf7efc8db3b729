//! The simulator: stands in for the order process service, over HTTP.
//!
//! What it does is decided in `model`, what goes wrong in `faults`, how it dies in `crash`: these
//! are pure and can be called without HTTP. Here are the requests and answers, the time, the
//! randomness, and the order in which things happen. Connections are next door in `connections`,
//! the address that breaks and mends it in `control`, the file that tells of it all in `record`.

mod connections;
mod control;
pub mod crash;
pub mod faults;
pub mod model;
pub mod record;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderMap};
use hyper::{Method, StatusCode};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use url::form_urlencoded;

use crate::clock::{Clock, SystemClock};
use crate::order::Timestamp;
use connections::Sent;
pub use control::listen as listen_for_control;
use crash::{CrashModel, Hazard, Touch};
use faults::{Fault, Faults};
use model::{Answer, Asked, Did, Model, Request};
use record::{Entry, Record};

/// The only path there is.
const PATH: &str = "/order_process";

/// The largest body of a start, in bytes: far above any order id, far below the memory.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// Makes the seed of the faults another than that of the processes. Any number would do.
const FAULT_SEED: u64 = 0x000f_a017;

/// What a simulator can be told to do otherwise.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// A process runs a random whole number of seconds below this; at 0 or 1 it ends at once.
    pub max_duration_secs: u32,
    /// The first process of each life succeeds after some seconds, for whoever tries it out.
    pub first_succeeds: bool,
    /// Where the randomness comes from, to repeat a run; drawn if there is none.
    pub seed: Option<u64>,
    /// The file that the record is added to.
    pub log: Option<PathBuf>,
    /// What goes wrong, until the control address says otherwise.
    pub faults: Faults,
}

/// Serves the simulator until `stop`. At `control`, if there is such a listener, it can be broken
/// and mended while it runs.
///
/// # Errors
/// The connections cannot be served.
pub async fn serve(
    listener: TcpListener,
    control: Option<TcpListener>,
    simulator: Arc<Simulator>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let controlled = control::serve(control, simulator.clone(), stop.clone());
    let (served, ()) = tokio::join!(
        connections::serve(listener, simulator, stop.clone()),
        controlled
    );
    served
}

/// A simulator, which can be broken and mended while it is served.
pub struct Simulator(Mutex<State>);

/// What must change together for the record to have the order in which things happened.
struct State {
    model: Model,
    crash: CrashModel,
    faults: Faults,
    seed: u64,
    max_duration_secs: u32,
    rng: fastrand::Rng,
    /// Of the faults: the processes go on to end as the seed says, whatever goes wrong.
    fault_rng: fastrand::Rng,
    record: Option<Record>,
    /// Cancelled when the service dies, and with it every connection.
    life: CancellationToken,
    /// The end of this life, once a start has fixed it.
    life_ends_at: Option<Timestamp>,
    /// Lives that have ended since the faults were set.
    lives: usize,
    /// How long it stays dead.
    restart_after: Duration,
}

/// A request that never reaches the model: the HTTP status, and why.
type Astray = (StatusCode, &'static str);

impl Simulator {
    /// One that runs, without any process.
    ///
    /// # Errors
    /// The record cannot be opened.
    pub fn new(options: &Options) -> anyhow::Result<Self> {
        let seed = options.seed.unwrap_or_else(|| fastrand::u64(..));
        let max_duration_secs = options.max_duration_secs;
        let mut model = Model::new(max_duration_secs);
        if options.first_succeeds {
            model = model.with_first_success();
        }
        let mut state = State {
            model,
            crash: CrashModel::new(Hazard::default()),
            faults: options.faults.clone(),
            seed,
            max_duration_secs,
            rng: fastrand::Rng::with_seed(seed),
            fault_rng: fastrand::Rng::with_seed(seed ^ FAULT_SEED),
            record: options.log.as_deref().map(Record::open).transpose()?,
            life: CancellationToken::new(),
            life_ends_at: None,
            lives: 0,
            restart_after: Duration::ZERO,
        };
        log::info!("started seed={seed} max_duration_secs={max_duration_secs}");
        state.begin_life(SystemClock.now());
        Ok(Self(Mutex::new(state)))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The present life: cancelled when it ends.
    fn life(&self) -> CancellationToken {
        self.lock().life.clone()
    }

    fn restart_after(&self) -> Duration {
        self.lock().restart_after
    }

    /// Runs again after a crash, without any process.
    fn begin_life(&self) {
        self.lock().begin_life(SystemClock.now());
    }

    /// Ends the life if its time has come, without any request.
    fn tick(&self) {
        self.lock().catch_up(SystemClock.now());
    }

    /// Ends the life now, for so long, or for as long as the faults say; nothing if it has ended
    /// already.
    pub fn crash(&self, restart_after: Option<Duration>) -> bool {
        let mut state = self.lock();
        let is_alive = !state.life.is_cancelled();
        if is_alive {
            state.die(SystemClock.now(), None);
            state.restart_after = restart_after.unwrap_or(state.restart_after);
        }
        is_alive
    }

    /// Whether it runs, and has not crashed.
    pub fn is_alive(&self) -> bool {
        !self.life().is_cancelled()
    }

    /// What goes wrong.
    pub fn faults(&self) -> Faults {
        self.lock().faults.clone()
    }

    /// Sets what goes wrong. The lives are counted anew, this one from its next start.
    pub fn set_faults(&self, faults: Faults) {
        self.lock().set_faults(faults);
    }

    /// The same with changes in JSON, as [`Faults::changed`] takes them.
    fn change_faults(&self, changes: &[u8]) -> Result<Faults, String> {
        let mut state = self.lock();
        let faults = state.faults.changed(changes)?;
        state.set_faults(faults.clone());
        Ok(faults)
    }

    /// Does what is asked for, and records it before anyone can see the answer. What comes over
    /// a line that is torn, as all are by a crash, is not for the next life.
    fn answer(&self, line: &CancellationToken, request: Result<Request<'_>, Astray>) -> Sent {
        let mut state = self.lock();
        let at = SystemClock.now();
        state.catch_up(at);
        if state.life.is_cancelled() || line.is_cancelled() {
            return Sent::nothing(Fault::Crash);
        }
        match request {
            Ok(request) => state.answer(&request, at),
            Err((status, reason)) => {
                let answer = text(status, reason);
                Sent::whole(state.record(at, Asked::Other, answer, None))
            }
        }
    }
}

impl State {
    fn begin_life(&mut self, now: Timestamp) {
        self.life = CancellationToken::new();
        let (seed, max_duration_secs) = (self.seed, self.max_duration_secs);
        self.write(&Entry {
            at: now,
            request: None,
            answer: None,
            fault: None,
            did: Did::BeganLife {
                seed,
                max_duration_secs,
            },
        });
    }

    fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
        self.lives = 0;
        self.life_ends_at = None;
    }

    /// Brings what happens without a request: processes end, and the service may.
    fn catch_up(&mut self, now: Timestamp) {
        if self.life.is_cancelled() {
            return;
        }
        if self.life_ends_at.is_some_and(|end| end <= now) {
            self.die(now, None);
        } else if self.faults.crash.like_the_real_one {
            let rng = &mut self.fault_rng;
            let (model, draw) = (&mut self.model, &mut |n| rng.u64(..n));
            if self.crash.catch_up(model, now, draw).is_some() {
                self.die(now, None);
            }
        } else {
            while self.model.next_completion(now).is_some() {}
        }
    }

    /// Ends the life, and every connection with it.
    fn die(&mut self, now: Timestamp, request: Option<Asked>) {
        log::warn!("crashed forgotten_processes={}", self.model.len());
        self.model.forget_everything();
        self.crash.forget_everything();
        self.lives += 1;
        self.life_ends_at = None;
        self.restart_after = Duration::from_millis(self.faults.crash.restart_after_ms);
        self.write(&Entry {
            at: now,
            request,
            answer: None,
            fault: Some(Fault::Crash),
            did: Did::Crashed,
        });
        self.life.cancel();
    }

    fn answer(&mut self, request: &Request<'_>, at: Timestamp) -> Sent {
        let asked = Asked::from(request);
        let fault = self.choose(asked, at);
        if fault == Some(Fault::Crash) {
            self.die(at, Some(asked));
            return Sent::nothing(Fault::Crash);
        }
        let answer = if self.happens_in_spite_of(fault) {
            let rng = &mut self.rng;
            self.model.answer(request, at, &mut |n| rng.u64(..n))
        } else {
            without_effect(fault)
        };
        if let Did::Started { .. } = answer.did
            && self.life_ends_at.is_none()
        {
            self.life_ends_at = self.faults.crash.end_of_life(self.lives, at);
        }
        if self.is_killed_by(&answer.did, at) {
            self.die(at, Some(asked));
            return Sent::nothing(Fault::Crash);
        }
        match fault {
            None => Sent::whole(self.record(at, asked, answer, None)),
            Some(fault) => self.spoil(at, asked, answer, fault),
        }
    }

    fn choose(&mut self, asked: Asked, at: Timestamp) -> Option<Fault> {
        let rng = &mut self.fault_rng;
        self.faults.choose(asked, at, &mut |n| rng.u64(..n))
    }

    fn happens_in_spite_of(&mut self, fault: Option<Fault>) -> bool {
        let rng = &mut self.fault_rng;
        fault.is_none_or(|fault| fault.lets_it_happen(&mut |n| rng.u64(..n)))
    }

    /// Whether the access to the map of processes ended the service as it can end the real one.
    fn is_killed_by(&mut self, did: &Did, at: Timestamp) -> bool {
        if !self.faults.crash.like_the_real_one {
            return false;
        }
        let Some(touch) = Touch::of(did, self.model.len()) else {
            return false;
        };
        let rng = &mut self.fault_rng;
        self.crash.dies(touch, at, &mut |n| rng.u64(..n))
    }

    /// Does to an answer what the fault does, and records both.
    fn spoil(&mut self, at: Timestamp, asked: Asked, mut answer: Answer, fault: Fault) -> Sent {
        let whole_bytes = answer.body.len();
        let rng = &mut self.fault_rng;
        fault.spoil(&mut answer, &mut |n| rng.u64(..n));
        let is_chunked = rng.bool();
        Sent {
            answer: self.record(at, asked, answer, Some(fault)),
            fault: Some(fault),
            timings: self.faults.timings,
            whole_bytes,
            is_chunked,
        }
    }

    /// Records what happened; the answer, or another one if that was not possible.
    fn record(
        &mut self,
        at: Timestamp,
        asked: Asked,
        answer: Answer,
        fault: Option<Fault>,
    ) -> Answer {
        if self.record.is_none() {
            return answer;
        }
        let is_answered = fault.is_none_or(Fault::is_answered);
        let entry = Entry {
            at,
            request: Some(asked),
            answer: is_answered.then_some(answer.status),
            fault,
            did: answer.did,
        };
        // The request has had its effect: for the client this is an answer that says nothing.
        if !self.write(&entry) {
            let failure = StatusCode::INTERNAL_SERVER_ERROR;
            return text(failure, "the record cannot be written");
        }
        Answer {
            did: entry.did,
            ..answer
        }
    }

    fn write(&mut self, entry: &Entry) -> bool {
        self.record
            .as_mut()
            .is_none_or(|record| record.write(entry))
    }
}

/// An answer in words.
fn text(status: StatusCode, reason: &str) -> Answer {
    Answer {
        status: status.as_u16(),
        content_type: Some("text/plain"),
        body: format!("{reason}\n").into_bytes(),
        did: Did::Refused {
            reason: reason.to_owned(),
        },
    }
}

/// What a fault leaves of a request that it does not let happen. The fault sets the status.
fn without_effect(fault: Option<Fault>) -> Answer {
    text(StatusCode::OK, fault.map_or("", Fault::as_str))
}

/// Reads a request and answers it.
async fn respond(
    simulator: &Simulator,
    line: &CancellationToken,
    request: hyper::Request<Incoming>,
) -> Sent {
    let (head, body) = request.into_parts();
    let query = head.uri.query().unwrap_or_default();
    // The path is compared as a whole: a slash at its end makes it another.
    match (head.uri.path(), &head.method) {
        (PATH, &Method::GET | &Method::HEAD) => {
            let order_id = parameter(query, "order_id");
            simulator.answer(line, Ok(Request::of_get(order_id.as_deref())))
        }
        (PATH, &Method::POST) => {
            let callback_url = parameter(query, "callback_url");
            let callback_url = callback_url.as_deref();
            simulator.answer(
                line,
                match &read(body).await {
                    Ok(body) => Ok(Request::Start {
                        content_type: content_type(&head.headers),
                        body,
                        callback_url,
                    }),
                    Err(astray) => Err(*astray),
                },
            )
        }
        (PATH, _) => simulator.answer(
            line,
            Err((StatusCode::METHOD_NOT_ALLOWED, "method not allowed")),
        ),
        _ => simulator.answer(line, Err((StatusCode::NOT_FOUND, "404 page not found"))),
    }
}

fn content_type(headers: &HeaderMap) -> Option<&str> {
    headers.get(CONTENT_TYPE)?.to_str().ok()
}

/// The first parameter of that name.
fn parameter(query: &str, name: &str) -> Option<String> {
    form_urlencoded::parse(query.as_bytes())
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.into_owned())
}

/// The whole body, unless it is larger than [`BODY_BYTES_MAX`].
async fn read(body: Incoming) -> Result<Bytes, Astray> {
    const BROKEN_OFF: Astray = (StatusCode::BAD_REQUEST, "the body broke off");
    const TOO_LARGE: Astray = (StatusCode::PAYLOAD_TOO_LARGE, "the body is above 1 MiB");
    match Limited::new(body, BODY_BYTES_MAX).collect().await {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(TOO_LARGE),
        Err(_) => Err(BROKEN_OFF),
    }
}

#[cfg(test)]
mod tests;
