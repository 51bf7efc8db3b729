//! The simulator: stands in for the order process service, over HTTP.
//!
//! `model` decides what it does, `faults` what goes wrong, `crash` when it dies: these are pure and
//! can be called without HTTP. Here are the time, the randomness, and the order in which things
//! happen. HTTP is next door in `connections`, the address that breaks and mends it in `control`, the
//! file that records it all in `record`.

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
use crash::{CrashModel, Hazard, Touch};
use faults::{Fault, Faults};
use model::{Answer, Asked, Did, Model, Request};
use record::{Entry, Record};

/// Makes the seed of the faults another than that of the processes. Any number would do.
const FAULT_SEED: u64 = 0x000f_a017;

/// Settings of a simulator.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// A process runs a random whole number of seconds below this; at 0 or 1 it ends at once.
    pub max_duration_secs: u32,
    /// The first process of each life succeeds after some seconds, for whoever tries it out.
    pub first_succeeds: bool,
    /// Source of the randomness, to repeat a run; drawn if there is none.
    pub seed: Option<u64>,
    /// File that the record is added to.
    pub log: Option<PathBuf>,
    /// Faults, until the control address sets others.
    pub faults: Faults,
}

/// Serves the simulator until `stop`. At `control`, if there is such a listener, it can be broken
/// and mended while it runs.
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

/// A simulator, which can be broken and mended while it is served.
pub struct Simulator(Mutex<State>);

/// The state behind one lock, so that the record has the order in which things happened.
struct State {
    model: Model,
    crash: CrashModel,
    faults: Faults,
    seed: u64,
    max_duration_secs: u32,
    /// Draws of starts alone: the processes of a seed end the same way, whatever else is asked for
    /// and goes wrong.
    start_rng: fastrand::Rng,
    rng: fastrand::Rng,
    record: Option<Record>,
    /// Cancelled when the service dies, and with it every connection.
    life: CancellationToken,
    /// The end of this life, once a start has fixed it.
    life_ends_at: Option<Timestamp>,
    /// Lives that have ended since the faults were set.
    lives: usize,
    /// Time from a crash until it runs again.
    restart_after: Duration,
}

/// An answer, and what is to go wrong on its way.
struct Sent {
    answer: Answer,
    fault: Option<Fault>,
}

impl Simulator {
    /// Returns a simulator that runs, without any process. Fails if the record cannot be opened.
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

    /// Returns whether it runs, and has not crashed.
    pub fn is_alive(&self) -> bool {
        !self.life().is_cancelled()
    }

    /// Returns what goes wrong.
    pub fn faults(&self) -> Faults {
        self.lock().faults.clone()
    }

    /// Sets what goes wrong. The lives are counted anew, this one from its next start.
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

    /// Does what is asked for, and records it before anyone can see the answer; there is none in
    /// death. What comes over a connection of an earlier `life` is not for the next one.
    fn answer(&self, life: &CancellationToken, request: &Request<'_>) -> Option<Sent> {
        let mut state = self.lock();
        let at = SystemClock.now();
        state.catch_up(at);
        if state.life.is_cancelled() || life.is_cancelled() {
            return None;
        }
        state.answer(request, at)
    }
}

impl State {
    fn begin_life(&mut self, now: Timestamp) {
        self.life = CancellationToken::new();
        let did = Did::BeganLife {
            seed: self.seed,
            max_duration_secs: self.max_duration_secs,
        };
        self.write(now, None, None, None, &did);
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
            let (model, draw) = (&mut self.model, &mut |n| self.rng.u64(..n));
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
        self.write(now, request, None, None, &Did::Crashed);
        self.life.cancel();
    }

    fn answer(&mut self, request: &Request<'_>, at: Timestamp) -> Option<Sent> {
        let asked = Asked::from(request);
        let draw = &mut |n| self.rng.u64(..n);
        let fault = self.faults.choose(asked, at, draw);
        let mut answer = match fault.filter(|fault| !fault.has_effect(draw)) {
            Some(fault) => Answer::text(200, &fault.to_string()),
            None if asked == Asked::Start => {
                let draw = &mut |n| self.start_rng.u64(..n);
                self.model.answer(request, at, draw)
            }
            None => self.model.answer(request, at, draw),
        };
        if self.life_ends_at.is_none() && matches!(answer.did, Did::Started { .. }) {
            self.life_ends_at = self.faults.crash.end_of_life(self.lives, at);
        }
        if self.is_killed_by(&answer.did, at) {
            self.die(at, Some(asked));
            return None;
        }
        if let Some(fault) = fault {
            fault.corrupt(&mut answer, &mut |n| self.rng.u64(..n));
        }
        let status = fault
            .is_none_or(Fault::is_answered)
            .then_some(answer.status);
        // The request has had its effect: for the client a 500 is an answer that says nothing.
        if !self.write(at, Some(asked), status, fault, &answer.did) {
            answer = Answer::text(500, "the record cannot be written");
        }
        Some(Sent { answer, fault })
    }

    /// Returns whether the access to the map of processes ended the service as it can end the real one.
    fn is_killed_by(&mut self, did: &Did, at: Timestamp) -> bool {
        if !self.faults.crash.like_the_real_one {
            return false;
        }
        let touch = Touch::of(did, self.model.len());
        touch.is_some_and(|touch| self.crash.dies(touch, at, &mut |n| self.rng.u64(..n)))
    }

    /// Records what happened, if there is a record; false if that was not possible.
    fn write(
        &mut self,
        at: Timestamp,
        request: Option<Asked>,
        answer: Option<u16>,
        fault: Option<Fault>,
        did: &Did,
    ) -> bool {
        let Some(record) = &mut self.record else {
            return true;
        };
        let written = record.write(&Entry {
            at,
            request,
            answer,
            fault,
            did: did.clone(),
        });
        if let Err(error) = &written {
            log::error!("cannot write the record, which misses an entry: {error}");
        }
        written.is_ok()
    }
}

#[cfg(test)]
mod tests;
