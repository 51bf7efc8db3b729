//! A simulator of the order process service, served over HTTP.
//!
//! `model` answers requests, `faults` injects failures, `crash` decides when the service crashes: these
//! are pure and can be called without HTTP. This file supplies the time and the randomness, and puts
//! all events in one order. `connections` speaks HTTP, `control` serves the address at which faults are
//! set, `record` writes the record file.

mod connections;
mod control;
pub mod crash;
pub mod faults;
pub mod model;
pub mod record;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, SystemClock};
use crate::order::Timestamp;
pub use control::listen as listen_for_control;
use crash::{Access, CrashModel, Hazard};
use faults::{Fault, Faults};
use model::{Answer, Effect, Model, Request, RequestKind};
use record::{Entry, Record};

/// Constant that makes the seed of the faults differ from that of the processes; its value is
/// arbitrary.
const FAULT_SEED: u64 = 0x000f_a017;

/// Settings of a simulator.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Upper bound of the duration of a process, in seconds: a random whole number below this. At 0 or
    /// 1 a process ends at once.
    pub max_duration_secs: u32,
    /// Makes the first process of each incarnation succeed after some seconds, for a first try of the service.
    pub first_succeeds: bool,
    /// Seed of the randomness, to repeat a run; random if absent.
    pub seed: Option<u64>,
    /// File that the record is appended to.
    pub log: Option<PathBuf>,
    /// Faults to inject until the control address sets others.
    pub faults: Faults,
}

/// Serves the simulator until `stop`, and the control address at `control` if there is one.
pub async fn serve(
    listener: TcpListener,
    control: Option<TcpListener>,
    simulator: Arc<Simulator>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let controlled = control::serve(control, simulator.clone(), stop.clone());
    let (served, ()) = tokio::join!(connections::serve(listener, simulator, stop), controlled);
    served
}

/// A simulator, whose faults can be changed while it is served.
pub struct Simulator(Mutex<State>);

/// The whole state, behind one lock so that the record is in the order of the events.
struct State {
    model: Model,
    crash: CrashModel,
    faults: Faults,
    seed: u64,
    max_duration_secs: u32,
    /// Randomness of starts alone: a seed gives processes the same outcomes whatever other requests
    /// and faults there are.
    start_rng: fastrand::Rng,
    rng: fastrand::Rng,
    record: Option<Record>,
    /// Token that is cancelled when the service crashes, and closes every connection.
    incarnation: CancellationToken,
    /// End of this incarnation, fixed by its first start.
    incarnation_ends_at: Option<Timestamp>,
    /// Number of incarnations that have ended since the faults were set.
    incarnations: usize,
    /// Time from a crash to the restart.
    restart_after: Duration,
}

/// An answer, and the fault to inject while it is sent.
struct Delivery {
    answer: Answer,
    fault: Option<Fault>,
}

impl Simulator {
    /// Returns a running simulator without any process.
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
            start_rng: fastrand::Rng::with_seed(seed),
            rng: fastrand::Rng::with_seed(seed ^ FAULT_SEED),
            record: options.log.as_deref().map(Record::open).transpose()?,
            incarnation: CancellationToken::new(),
            incarnation_ends_at: None,
            incarnations: 0,
            restart_after: Duration::ZERO,
        };
        log::info!("started seed={seed} max_duration_secs={max_duration_secs}");
        state.begin_incarnation(SystemClock.now());
        Ok(Self(Mutex::new(state)))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the token of the present incarnation, which is cancelled at its end.
    fn incarnation(&self) -> CancellationToken {
        self.lock().incarnation.clone()
    }

    fn restart_after(&self) -> Duration {
        self.lock().restart_after
    }

    /// Restarts after a crash, without any process.
    fn begin_incarnation(&self) {
        self.lock().begin_incarnation(SystemClock.now());
    }

    /// Ends the incarnation if its time has come, for times without any request.
    fn tick(&self) {
        self.lock().catch_up(SystemClock.now());
    }

    /// Crashes now and restarts after `restart_after`, or after the time that the faults say. Returns
    /// false if the simulator is down already.
    pub fn crash(&self, restart_after: Option<Duration>) -> bool {
        let mut state = self.lock();
        let is_alive = !state.incarnation.is_cancelled();
        if is_alive {
            state.crash(SystemClock.now(), None);
            state.restart_after = restart_after.unwrap_or(state.restart_after);
        }
        is_alive
    }

    /// Returns whether the simulator runs, and has not crashed.
    pub fn is_alive(&self) -> bool {
        !self.incarnation().is_cancelled()
    }

    /// Returns the faults that are injected.
    pub fn faults(&self) -> Faults {
        self.lock().faults.clone()
    }

    /// Sets the faults to inject. Incarnations are counted from here on, the present one from its next start.
    pub fn set_faults(&self, faults: Faults) {
        self.lock().set_faults(faults);
    }

    /// Like [`Self::set_faults`], with changes in JSON as [`Faults::changed`] takes them.
    fn change_faults(&self, changes: &[u8]) -> Result<Faults, String> {
        let mut state = self.lock();
        let faults = state.faults.changed(changes)?;
        state.set_faults(faults.clone());
        Ok(faults)
    }

    /// Processes a request, and records it before the client can see the answer. Returns `None` while
    /// the service is down, and for a connection of an earlier `incarnation`.
    fn answer(&self, incarnation: &CancellationToken, request: &Request<'_>) -> Option<Delivery> {
        let mut state = self.lock();
        let at = SystemClock.now();
        state.catch_up(at);
        if state.incarnation.is_cancelled() || incarnation.is_cancelled() {
            return None;
        }
        state.answer(request, at)
    }
}

impl State {
    fn begin_incarnation(&mut self, now: Timestamp) {
        self.incarnation = CancellationToken::new();
        let effect = Effect::BeganIncarnation {
            seed: self.seed,
            max_duration_secs: self.max_duration_secs,
        };
        self.write(now, None, None, None, &effect);
    }

    fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
        self.incarnations = 0;
        self.incarnation_ends_at = None;
    }

    /// Applies the events up to `now` that need no request: processes end, and the service may crash.
    fn catch_up(&mut self, now: Timestamp) {
        if self.incarnation.is_cancelled() {
            return;
        }
        if self.incarnation_ends_at.is_some_and(|end| end <= now) {
            self.crash(now, None);
        } else if self.faults.crash.like_the_real_one {
            let (model, draw) = (&mut self.model, &mut |n| self.rng.u64(..n));
            if self.crash.catch_up(model, now, draw).is_some() {
                self.crash(now, None);
            }
        } else {
            while self.model.next_completion(now).is_some() {}
        }
    }

    /// Ends the incarnation and closes every connection.
    fn crash(&mut self, now: Timestamp, request: Option<RequestKind>) {
        log::warn!("crashed forgotten_processes={}", self.model.len());
        self.model.forget_everything();
        self.crash.forget_everything();
        self.incarnations += 1;
        self.incarnation_ends_at = None;
        self.restart_after = Duration::from_millis(self.faults.crash.restart_after_ms);
        self.write(now, request, None, None, &Effect::Crashed);
        self.incarnation.cancel();
    }

    fn answer(&mut self, request: &Request<'_>, at: Timestamp) -> Option<Delivery> {
        let kind = RequestKind::from(request);
        let draw = &mut |n| self.rng.u64(..n);
        let fault = self.faults.choose(kind, at, draw);
        let mut answer = match fault.filter(|fault| !fault.has_effect(draw)) {
            Some(fault) => Answer::text(200, &fault.to_string()),
            None if kind == RequestKind::Start => {
                let draw = &mut |n| self.start_rng.u64(..n);
                self.model.answer(request, at, draw)
            }
            None => self.model.answer(request, at, draw),
        };
        if self.incarnation_ends_at.is_none() && matches!(answer.effect, Effect::Started { .. }) {
            self.incarnation_ends_at = self.faults.crash.end_of_incarnation(self.incarnations, at);
        }
        if self.is_fatal(&answer.effect, at) {
            self.crash(at, Some(kind));
            return None;
        }
        if let Some(fault) = fault {
            fault.corrupt(&mut answer, &mut |n| self.rng.u64(..n));
        }
        let status = fault
            .is_none_or(Fault::is_answered)
            .then_some(answer.status);
        // The request has had its effect, so a 500 leaves the client in doubt, as it should.
        if !self.write(at, Some(kind), status, fault, &answer.effect) {
            answer = Answer::text(500, "the record cannot be written");
        }
        Some(Delivery { answer, fault })
    }

    /// Returns whether the access to the map of processes crashes the service, as it can crash the real
    /// one.
    fn is_fatal(&mut self, effect: &Effect, at: Timestamp) -> bool {
        if !self.faults.crash.like_the_real_one {
            return false;
        }
        let access = Access::of(effect, self.model.len());
        access.is_some_and(|access| self.crash.is_fatal(access, at, &mut |n| self.rng.u64(..n)))
    }

    /// Records an event, if there is a record. Returns false if the write failed.
    fn write(
        &mut self,
        at: Timestamp,
        request: Option<RequestKind>,
        answer: Option<u16>,
        fault: Option<Fault>,
        effect: &Effect,
    ) -> bool {
        let Some(record) = &mut self.record else {
            return true;
        };
        let written = record.write(&Entry {
            at,
            request,
            answer,
            fault,
            effect: effect.clone(),
        });
        if let Err(error) = &written {
            log::error!("cannot write the record; an entry is missing: {error}");
        }
        written.is_ok()
    }
}

#[cfg(test)]
mod tests;
