//! Virtual time, and the state of everything outside the pass. `environment/faults.rs` has the faults of requests,
//! writes and the clock, `environment/upstream.rs` the requests.
//!
//! This file checks nothing: it reports the real answers and effects to `oracle`.

mod faults;
mod upstream;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use order_service::clock::Clock;
use order_service::order::{OrderId, Timestamp};
use order_service::simulator::crash::{Access, CrashModel};
use order_service::simulator::model::Model;
use order_service::upstream::{Cause, Failure};

pub use self::faults::{Draws, FailingOrders, Fault, FaultRates, RandomWriteFaults, RecentFaults};
use crate::history::UpstreamHistory;
use crate::limits::Limit;
use crate::oracle::{Arrival, Oracle};

/// The crash model of the upstream, and its downtime.
struct CrashState {
    crash: Option<CrashModel>,
    down_until: Timestamp,
}

/// Everything outside the pass.
pub struct Environment {
    now: Cell<i64>,
    /// Offset of the time of day from `now`, in milliseconds.
    clock_offset: Cell<i64>,
    timers: RefCell<BTreeMap<(i64, u64), Waker>>,
    timer_count: Cell<u64>,
    pub draws: Arc<Draws>,
    pub fault_rates: RefCell<FaultRates>,
    pub model: RefCell<Model>,
    history: RefCell<UpstreamHistory>,
    pub oracle: RefCell<Oracle>,
    crash_state: RefCell<CrashState>,
    /// Times at which the upstream is killed, the next one last.
    pub kills: RefCell<Vec<Timestamp>>,
    pub limit: RefCell<Option<Limit>>,
    /// Times of the starts that the limit admitted, and of those that it throttled.
    pub admitted: RefCell<[Vec<Timestamp>; 2]>,
    /// Estimated time that all polls took of the upstream.
    pub polls_cost: Cell<Duration>,
    /// Maximum latency of a request in one direction, in milliseconds.
    travel_ms: Cell<u64>,
    /// Starts that will arrive after their timeout.
    late: RefCell<Vec<(i64, String)>>,
    /// Set once the program has crashed at a crash point.
    pub has_crashed: Arc<AtomicBool>,
    max_duration_secs: u32,
    pub request_timeout: Duration,
    pub faults: RefCell<BTreeMap<String, u64>>,
    pub requests: Cell<u64>,
    /// Maximum number of starts and look-ups in flight, and their number.
    pub max_in_flight: Cell<usize>,
    in_flight: Cell<usize>,
    /// Number of passes so far.
    pub passes: Cell<u64>,
    pub incarnations: Cell<u64>,
    pub is_verbose: bool,
}

impl Environment {
    pub fn new(
        seed: u64,
        max_duration_secs: u32,
        request_timeout: Duration,
        is_verbose: bool,
    ) -> Rc<Self> {
        Rc::new(Self {
            now: Cell::new(1_800_000_000_000),
            clock_offset: Cell::new(0),
            timers: RefCell::default(),
            timer_count: Cell::new(0),
            draws: Arc::new(Draws::new(seed)),
            fault_rates: RefCell::default(),
            model: RefCell::new(Model::new(max_duration_secs)),
            history: RefCell::new(UpstreamHistory::new(request_timeout)),
            oracle: RefCell::new(Oracle::new(request_timeout)),
            crash_state: RefCell::new(CrashState {
                crash: None,
                down_until: Timestamp(0),
            }),
            kills: RefCell::default(),
            limit: RefCell::default(),
            admitted: RefCell::default(),
            polls_cost: Cell::default(),
            travel_ms: Cell::new(30),
            late: RefCell::default(),
            has_crashed: Arc::default(),
            max_duration_secs,
            request_timeout,
            faults: RefCell::default(),
            requests: Cell::new(0),
            max_in_flight: Cell::new(usize::MAX),
            in_flight: Cell::new(0),
            passes: Cell::new(0),
            incarnations: Cell::new(0),
            is_verbose,
        })
    }

    pub fn time(&self) -> Timestamp {
        Timestamp(self.now.get())
    }

    pub fn log(&self, what: impl FnOnce() -> String) {
        if self.is_verbose {
            println!("{:>9} {}", self.now.get() - 1_800_000_000_000, what());
        }
    }

    /// Moves on to the next timer and wakes it. Returns `None` if there is no timer.
    pub fn advance(&self) -> Option<()> {
        let ((at, _), waker) = self.timers.borrow_mut().pop_first()?;
        self.move_to(at);
        waker.wake();
        Some(())
    }

    /// Wakes the timers that are due.
    pub fn wake_due(&self) {
        while let Some(timer) = self.timers.borrow_mut().first_entry()
            && timer.key().0 <= self.now.get()
        {
            timer.remove().wake();
        }
    }

    /// Begins a start or a look-up, and checks that not too many are in flight.
    fn begin_request(self: &Rc<Self>) -> InFlight {
        self.in_flight.set(self.in_flight.get() + 1);
        let (requests, most) = (self.in_flight.get(), self.max_in_flight.get());
        assert!(
            requests <= most,
            "{requests} requests are in flight; at most {most} may be"
        );
        InFlight {
            env: self.clone(),
            pass: self.passes.get(),
        }
    }

    /// Advances the time, and delivers late starts.
    pub fn move_to(&self, at: i64) {
        self.now.set(self.now.get().max(at));
        let now = self.now.get();
        let arrived: Vec<_> = {
            let mut late = self.late.borrow_mut();
            let (arrived, rest) = late.drain(..).partition(|(at, _)| *at <= now);
            *late = rest;
            arrived
        };
        for (_, id) in arrived {
            self.take_effect(&id, Arrival::Late);
        }
        while let Some(at) = self.kills.borrow_mut().pop_if(|at| at.0 <= now) {
            self.crash(&mut self.crash_state.borrow_mut(), at);
        }
    }

    fn on_poll(&self, cost: Duration) {
        self.polls_cost.set(self.polls_cost.get() + cost);
    }

    /// Admits a request, or returns the status and failure of the rate limit.
    fn admit(&self, is_start: bool) -> Result<(), (u16, Failure)> {
        let mut limit = self.limit.borrow_mut();
        let Some(limit) = limit
            .as_mut()
            .filter(|limit| is_start || limit.counts_polls)
        else {
            return Ok(());
        };
        let admitted = limit.admit(self.time());
        if is_start {
            self.admitted.borrow_mut()[usize::from(admitted.is_err())].push(self.time());
        }
        let status = limit.status;
        let cause = match status {
            429 => Cause::TooManyRequests,
            _ => Cause::ServiceUnavailable,
        };
        admitted.map_err(|retry_after| {
            let failure = Failure {
                retry_after,
                ..Failure::new(format!("the upstream answered {status}"), cause)
            };
            (status, failure)
        })
    }

    /// Crashes the upstream, which forgets every process.
    pub fn end_incarnation(&self) {
        self.log(|| "the upstream crashes".to_owned());
        let (mut model, now) = (self.model.borrow_mut(), self.time());
        let fresh = Model::new(self.max_duration_secs);
        let ended = std::mem::replace(&mut *model, fresh);
        self.history.borrow_mut().on_end(ended, now);
        self.oracle.borrow_mut().on_incarnation_end(now);
        self.incarnations.set(self.incarnations.get() + 1);
    }

    /// Sets the upstream's crash model, or none, and makes requests quick.
    pub fn set_crash_model(&self, crash: Option<CrashModel>) {
        self.travel_ms.set(3);
        self.crash_state.borrow_mut().crash = crash;
    }

    /// Returns whether the upstream is up: a completion since the last request may have crashed it.
    fn is_up(&self) -> bool {
        let mut crash_state = self.crash_state.borrow_mut();
        let draw = &mut |below| self.draws.below(below);
        let now = self.time();
        let crashed_at = crash_state
            .crash
            .as_mut()
            .and_then(|crash| crash.catch_up(&mut self.model.borrow_mut(), now, draw));
        if let Some(at) = crashed_at {
            self.crash(&mut crash_state, at);
        }
        now >= crash_state.down_until
    }

    /// Returns whether the upstream survives this access.
    fn survives(&self, access: Access) -> bool {
        let mut crash_state = self.crash_state.borrow_mut();
        let draw = &mut |below| self.draws.below(below);
        let now = self.time();
        let crash = crash_state.crash.as_mut();
        let is_fatal = crash.is_some_and(|crash| crash.is_fatal(access, now, draw));
        if is_fatal {
            self.crash(&mut crash_state, now);
        }
        !is_fatal
    }

    fn crash(&self, crash_state: &mut CrashState, at: Timestamp) {
        if let Some(crash) = &mut crash_state.crash {
            crash.forget_everything();
        }
        crash_state.down_until = at.after(crate::fixed_rate::RESTART);
        self.end_incarnation();
    }

    fn take_effect(&self, id: &str, arrival: Arrival) -> bool {
        let draws = self.draws.clone();
        let draw = &mut |below| draws.below(below);
        let is_new = self.model.borrow_mut().start(id, self.time(), draw);
        self.log(|| {
            format!(
                "the upstream: start {id}: {}",
                if is_new { "accepted" } else { "exists" }
            )
        });
        if is_new {
            self.history.borrow_mut().on_start(id, self.time());
            self.oracle.borrow_mut().on_accepted(id, arrival);
        }
        is_new
    }

    /// Returns the time whose state answers a read that began at `began_at`.
    fn read_at(&self, fault: Fault, began_at: Timestamp) -> Timestamp {
        if fault != Fault::Lagging {
            return self.time();
        }
        let lag = self
            .draws
            .below(self.request_timeout.as_millis() as u64 + 1);
        Timestamp(began_at.0 - lag as i64)
    }

    /// Draws the fault of a list, or of a request about an order.
    fn draw_fault(&self, id: Option<&OrderId>) -> Fault {
        let mut drawn = self.draws.below(1_000);
        let mut fault = Fault::None;
        let fault_rates = self.fault_rates.borrow();
        for (candidate, share) in &fault_rates.faults {
            if drawn < *share {
                fault = *candidate;
                break;
            }
            drawn -= share;
        }
        let failing = fault_rates.failing.zip(id);
        if let Some(always) = failing.and_then(|(failing, id)| failing.fault_of(id.as_str())) {
            fault = always;
        }
        self.requests.set(self.requests.get() + 1);
        if fault != Fault::None {
            RecentFaults::add(fault);
            self.count(format!("{fault:?}"));
        }
        fault
    }

    fn count(&self, fault: String) {
        *self.faults.borrow_mut().entry(fault).or_default() += 1;
    }

    /// Returns the time of day, which may be set back or forward.
    pub fn time_of_day(&self) -> Timestamp {
        Timestamp(self.now.get() + self.clock_offset.get())
    }

    /// Sets the clock back or forward with this chance, in thousandths: by milliseconds, seconds or hours.
    pub fn draw_clock_step(&self, share: u64) {
        if share == 0 || !self.draws.permille(share) {
            return;
        }
        let unit = [10, 1_000, 3_600_000][self.draws.below(3) as usize];
        let by = (unit + self.draws.below(11 * unit)) as i64;
        let (by, name) = match self.draws.below(2) {
            0 => (-by, "clock set back"),
            _ => (by, "clock set forward"),
        };
        self.clock_offset.set(self.clock_offset.get() + by);
        self.log(|| format!("{name} by {} ms", by.abs()));
        self.count(name.to_owned());
    }

    /// Marks a point at which the program may crash and the clock may be set.
    async fn reach_crash_point(&self) {
        let step = self.fault_rates.borrow().step;
        self.draw_clock_step(step);
        if self.draws.permille(self.fault_rates.borrow().crash) {
            self.count("crash of the program".to_owned());
            self.has_crashed.store(true, Ordering::Relaxed);
            std::future::pending().await
        }
    }

    fn sleep(self: &Rc<Self>, length: Duration) -> Sleep {
        let millis = i64::try_from(length.as_millis()).unwrap();
        Sleep {
            env: self.clone(),
            until: self.now.get() + millis,
            key: None,
        }
    }

    /// Waits for the time that a slow answer takes, up to `most`.
    async fn delay(self: &Rc<Self>, fault: Fault, most: Duration) {
        if fault == Fault::Slow {
            let millis = self.draws.below(most.as_millis() as u64);
            self.sleep(Duration::from_millis(millis)).await;
        }
    }

    /// Waits for the latency of one direction.
    fn travel(self: &Rc<Self>) -> Sleep {
        self.sleep(Duration::from_millis(
            self.draws.below(self.travel_ms.get()),
        ))
    }
}

/// A guard of a request in flight, which ends on drop.
struct InFlight {
    env: Rc<Environment>,
    /// The pass that sent it.
    pass: u64,
}

impl InFlight {
    /// Counts a request whose answer came in a later pass.
    fn on_answered(&self, what: &str) {
        if self.pass < self.env.passes.get() {
            self.env.count(format!("{what} over passes"));
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.env.in_flight.set(self.env.in_flight.get() - 1);
    }
}

/// A timer in virtual time.
pub struct Sleep {
    env: Rc<Environment>,
    until: i64,
    key: Option<(i64, u64)>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.env.now.get() >= self.until {
            return Poll::Ready(());
        }
        let key = self.key.unwrap_or_else(|| {
            let count = self.env.timer_count.get();
            self.env.timer_count.set(count + 1);
            (self.until, count)
        });
        self.key = Some(key);
        self.env
            .timers
            .borrow_mut()
            .insert(key, context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.env.timers.borrow_mut().remove(&key);
        }
    }
}

/// The clock and the upstream of the pass.
#[derive(Clone)]
pub struct Handle(pub Rc<Environment>);

impl Clock for Handle {
    fn now(&self) -> Timestamp {
        self.0.time_of_day()
    }

    fn uptime(&self) -> Duration {
        self.0.time().since(Timestamp(0))
    }

    async fn sleep(&self, length: Duration) {
        self.0.reach_crash_point().await;
        self.0.sleep(length).await;
    }
}
