//! Virtual time, and the faults that the seed draws for each request to the upstream, each write and
//! the clock.
//!
//! This file judges nothing: it reports what was really answered and done to `oracle`.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use order_service::clock::Clock;
use order_service::order::{Observed, OrderId, Timestamp};
use order_service::pace::{list_cost, look_ups_cost};
use order_service::simulator::crash::{Access, CrashModel};
use order_service::simulator::model::Model;
use order_service::store::{WriteFate, WriteFaults};
use order_service::upstream::{Cause, Entry, Failure, StartError, Upstream};

use crate::history::UpstreamHistory;
use crate::limits::Limit;
use crate::oracle::{Arrival, Oracle};

/// A random number generator (SplitMix64; Steele, Lea and Flood, 2014).
#[derive(Debug)]
pub struct Draws(AtomicU64);

impl Draws {
    /// Returns a generator whose state is the seed itself. A seed multiplied by the step would give the
    /// numbers of the next seed but for the first, and nearly the same run.
    pub fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    pub fn next(&self) -> u64 {
        let state = self
            .0
            .load(Ordering::Relaxed)
            .wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.store(state, Ordering::Relaxed);
        let mut bits = state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    pub fn below(&self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    /// Returns true with this chance, in thousandths.
    pub fn permille(&self, share: u64) -> bool {
        self.below(1_000) < share
    }
}

/// A fault of a request, in the order of the coverage table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    None,
    /// The connection fails.
    Unreachable,
    /// The request is lost.
    Lost,
    /// The request takes effect only after its timeout.
    Late,
    /// The request takes effect, and its answer is lost.
    AnswerLost,
    /// A server error; a start may have taken effect.
    Error,
    /// A refusal, without effect.
    Refused,
    /// A list that is cut, or has contradictory entries.
    BadList,
    /// An unknown status.
    UnknownStatus,
    /// The upstream crashes right after the request.
    Crash,
    /// The answer takes long to arrive, a list up to a minute.
    Slow,
    /// The answer is not the upstream's own, and the request may have reached it or not.
    Foreign,
    /// The answer is from a state up to one request timeout old.
    Lagging,
}

impl Fault {
    pub const ALL: [Self; 13] = [
        Self::None,
        Self::Unreachable,
        Self::Lost,
        Self::Late,
        Self::AnswerLost,
        Self::Error,
        Self::Refused,
        Self::BadList,
        Self::UnknownStatus,
        Self::Crash,
        Self::Slow,
        Self::Foreign,
        Self::Lagging,
    ];
}

/// Kinds of fault that were injected in this pass and in the one before, on this thread: sets with one
/// bit for each kind.
pub struct RecentFaults;

thread_local! {
    static RECENT: Cell<[u16; 2]> = const { Cell::new([0; 2]) };
}

impl RecentFaults {
    pub fn begin_pass() {
        let [this_pass, _] = RECENT.get();
        RECENT.set([0, this_pass]);
    }

    fn add(fault: Fault) {
        let [this_pass, last_pass] = RECENT.get();
        RECENT.set([this_pass | 1 << fault as u16, last_pass]);
    }

    /// Returns the faults, or [`Fault::None`] if there was none.
    pub fn faults() -> impl Iterator<Item = Fault> {
        let [this_pass, last_pass] = RECENT.get();
        let bits = this_pass | last_pass;
        let is_recent = move |fault: &Fault| match fault {
            Fault::None => bits == 0,
            fault => bits & (1 << *fault as u16) != 0,
        };
        Fault::ALL.into_iter().filter(is_recent)
    }
}

/// Chances of faults, in thousandths.
#[derive(Clone, Debug, Default)]
pub struct FaultRates {
    pub faults: Vec<(Fault, u64)>,
    /// Crashes of the program at a crash point.
    pub crash: u64,
    /// Writes that fail, or whose outcome is lost.
    pub write_fault: u64,
    /// Steps of the clock at a crash point.
    pub step: u64,
    /// Rate limit of the upstream.
    pub limit: Option<Limit>,
}

/// The crash model of the upstream, and its downtime.
struct CrashState {
    crash: Option<CrashModel>,
    down_until: Timestamp,
}

/// Everything outside the pass.
pub struct World {
    now: Cell<i64>,
    /// Offset of the time of day from `now`, in milliseconds.
    ahead: Cell<i64>,
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
    /// Times of the starts that the limit admitted, and of those that it refused.
    pub admitted: RefCell<[Vec<Timestamp>; 2]>,
    /// Estimated time that all polls took of the upstream.
    pub polls_cost: Cell<Duration>,
    /// Maximum latency of a request in one direction, in milliseconds.
    travel_ms: Cell<u64>,
    /// Starts that will arrive after their timeout.
    late: RefCell<Vec<(i64, String)>>,
    /// Set when the program has crashed at a crash point.
    pub is_dead: Arc<AtomicBool>,
    max_duration_secs: u32,
    pub request_timeout: Duration,
    pub faults: RefCell<BTreeMap<String, u64>>,
    pub requests: Cell<u64>,
    pub incarnations: Cell<u64>,
    pub is_verbose: bool,
}

impl World {
    pub fn new(
        seed: u64,
        max_duration_secs: u32,
        request_timeout: Duration,
        is_verbose: bool,
    ) -> Rc<Self> {
        Rc::new(Self {
            now: Cell::new(1_800_000_000_000),
            ahead: Cell::new(0),
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
            is_dead: Arc::default(),
            max_duration_secs,
            request_timeout,
            faults: RefCell::default(),
            requests: Cell::new(0),
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

    /// Lets time pass, and delivers late starts.
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
            _ => Cause::Overload,
        };
        admitted.map_err(|retry_after| {
            let failure = Failure {
                retry_after,
                ..Failure::new(format!("the upstream answered {status}"), cause)
            };
            (status, failure)
        })
    }

    /// Removes the timers of a crashed program.
    pub fn forget_timers(&self) {
        self.timers.borrow_mut().clear();
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
        let died_at = crash_state
            .crash
            .as_mut()
            .and_then(|crash| crash.catch_up(&mut self.model.borrow_mut(), now, draw));
        if let Some(at) = died_at {
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

    fn draw_fault(&self) -> Fault {
        let mut drawn = self.draws.below(1_000);
        let mut fault = Fault::None;
        for (candidate, share) in &self.fault_rates.borrow().faults {
            if drawn < *share {
                fault = *candidate;
                break;
            }
            drawn -= share;
        }
        self.requests.set(self.requests.get() + 1);
        if fault != Fault::None {
            RecentFaults::add(fault);
            *self
                .faults
                .borrow_mut()
                .entry(format!("{fault:?}"))
                .or_default() += 1;
        }
        fault
    }

    /// Returns the time of day, which may be set back or forward.
    pub fn time_of_day(&self) -> Timestamp {
        Timestamp(self.now.get() + self.ahead.get())
    }

    /// Sets the clock back or forward with this chance, in thousandths: by milliseconds, seconds or hours.
    pub fn may_step(&self, share: u64) {
        if share == 0 || !self.draws.permille(share) {
            return;
        }
        let unit = [10, 1_000, 3_600_000][self.draws.below(3) as usize];
        let by = (unit + self.draws.below(11 * unit)) as i64;
        let (by, name) = match self.draws.below(2) {
            0 => (-by, "clock set back"),
            _ => (by, "clock set forward"),
        };
        self.ahead.set(self.ahead.get() + by);
        self.log(|| format!("{name} by {} ms", by.abs()));
        let mut faults = self.faults.borrow_mut();
        *faults.entry(name.to_owned()).or_default() += 1;
    }

    /// A point at which the program may crash, and the clock may be set.
    async fn crash_point(&self) {
        let step = self.fault_rates.borrow().step;
        self.may_step(step);
        if self.draws.permille(self.fault_rates.borrow().crash) {
            *self
                .faults
                .borrow_mut()
                .entry("crash of the program".to_owned())
                .or_default() += 1;
            self.is_dead.store(true, Ordering::Relaxed);
            std::future::pending().await
        }
    }

    fn sleep(self: &Rc<Self>, while_: Duration) -> Sleep {
        let millis = i64::try_from(while_.as_millis()).unwrap();
        Sleep {
            world: self.clone(),
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

/// A timer in virtual time.
pub struct Sleep {
    world: Rc<World>,
    until: i64,
    key: Option<(i64, u64)>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.world.now.get() >= self.until {
            return Poll::Ready(());
        }
        let key = self.key.unwrap_or_else(|| {
            let count = self.world.timer_count.get();
            self.world.timer_count.set(count + 1);
            (self.until, count)
        });
        self.key = Some(key);
        self.world
            .timers
            .borrow_mut()
            .insert(key, context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.world.timers.borrow_mut().remove(&key);
        }
    }
}

/// The clock and the upstream of the pass.
#[derive(Clone)]
pub struct Handle(pub Rc<World>);

impl Clock for Handle {
    fn now(&self) -> Timestamp {
        self.0.time_of_day()
    }

    fn uptime(&self) -> Duration {
        self.0.time().since(Timestamp(0))
    }

    async fn sleep(&self, length: Duration) {
        self.0.crash_point().await;
        self.0.sleep(length).await;
    }
}

fn failure(detail: &str, certain: bool) -> Failure {
    let cause = match (detail, certain) {
        (_, true) => Cause::NoAccess,
        ("no answer", _) => Cause::Timeout,
        _ => Cause::Unusable,
    };
    Failure::new(detail, cause)
}

impl Upstream for Handle {
    async fn start(&self, id: &OrderId) -> Result<(), StartError> {
        let world = &self.0;
        world.crash_point().await;
        world
            .oracle
            .borrow_mut()
            .on_start_sent(id.as_str(), world.time());
        let fault = world.draw_fault();
        world.log(|| format!("start {id} ({fault:?})"));
        let silent = |answer| StartError::Ambiguous {
            answer,
            failure: failure("no answer", false),
        };
        world.travel().await;
        let is_up = world.is_up();
        let admitted = if is_up { world.admit(true) } else { Ok(()) };
        let result = match fault {
            _ if !is_up => Err(StartError::Unavailable(failure("no connection", true))),
            _ if admitted.is_err() => {
                world.travel().await;
                let (status, failure) = admitted.unwrap_err();
                Err(match status {
                    429 => StartError::Unavailable(failure),
                    _ => StartError::Ambiguous {
                        answer: Some(status),
                        failure,
                    },
                })
            }
            Fault::Unreachable => Err(StartError::Unavailable(failure("no connection", true))),
            Fault::Lost => {
                world.sleep(world.request_timeout).await;
                Err(silent(None))
            }
            Fault::Late => {
                world.sleep(world.request_timeout).await;
                let timeout = u64::try_from(world.request_timeout.as_millis()).unwrap();
                let delay = i64::try_from(world.draws.below(timeout)).unwrap();
                let arrival = (world.time().0 + delay, id.as_str().to_owned());
                world.late.borrow_mut().push(arrival);
                Err(silent(None))
            }
            Fault::Error => {
                // From a gateway, before or after it forwarded the start.
                if world.draws.below(2) == 0 && world.take_effect(id.as_str(), Arrival::InTime) {
                    world.oracle.borrow_mut().on_accepted_in_doubt(id.as_str());
                }
                Err(silent(Some(503)))
            }
            Fault::Refused => Err(StartError::Refused {
                answer: 400,
                detail: "answered 400".to_owned(),
            }),
            Fault::Foreign => {
                if world.draws.below(2) == 0 {
                    world.take_effect(id.as_str(), Arrival::InTime);
                }
                Err(StartError::Unconfirmed(failure("<html>", false)))
            }
            fault => {
                let is_new = world.take_effect(id.as_str(), Arrival::InTime);
                let processes = world.model.borrow().len();
                let access = if is_new {
                    Access::Start { processes }
                } else {
                    Access::LookUp
                };
                match fault {
                    _ if !world.survives(access) => Err(silent(None)),
                    Fault::AnswerLost => {
                        world.sleep(world.request_timeout).await;
                        Err(silent(None))
                    }
                    Fault::Crash => {
                        world.end_incarnation();
                        Err(silent(None))
                    }
                    _ => {
                        world.delay(fault, world.request_timeout).await;
                        world.travel().await;
                        if is_new {
                            Ok(())
                        } else {
                            Err(StartError::Refused {
                                answer: 400,
                                detail: "exists".to_owned(),
                            })
                        }
                    }
                }
            }
        };
        world.crash_point().await;
        world.log(|| format!("start {id} answered {result:?}"));
        world
            .oracle
            .borrow_mut()
            .on_start_answered(id.as_str(), &result, world.time());
        result
    }

    async fn look_up(&self, id: &OrderId) -> Result<Observed, Failure> {
        let world = &self.0;
        world.crash_point().await;
        let began_at = world.time();
        let fault = world.draw_fault();
        world.travel().await;
        let result = match fault {
            Fault::Unreachable => Err(failure("no connection", true)),
            Fault::Lost | Fault::Late | Fault::AnswerLost => {
                world.sleep(world.request_timeout).await;
                Err(failure("no answer", false))
            }
            Fault::Error | Fault::Refused | Fault::BadList | Fault::Foreign => {
                Err(failure("answered 500", false))
            }
            Fault::Crash => {
                world.end_incarnation();
                Err(failure("the connection broke", false))
            }
            _ if !world.is_up() => Err(failure("no connection", true)),
            _ if let Err((_, failure)) = world.admit(false) => Err(failure),
            _ if !world.survives(Access::LookUp) => Err(failure("the connection broke", false)),
            Fault::None | Fault::UnknownStatus | Fault::Slow | Fault::Lagging => {
                world.delay(fault, world.request_timeout).await;
                world.on_poll(look_ups_cost(1));
                let read_at = world.read_at(fault, began_at);
                let (model, history) = (world.model.borrow(), world.history.borrow());
                let status = history.look_up(&model, id.as_str(), read_at);
                Ok(match status {
                    None => Observed::Absent,
                    Some("RUNNING") if fault == Fault::UnknownStatus => {
                        Observed::of_status("PAUSED")
                    }
                    Some(status) => Observed::of_status(status),
                })
            }
        };
        world.travel().await;
        world.crash_point().await;
        world.log(|| format!("look-up {id} ({fault:?}) answered {result:?}"));
        if let Ok(observed) = &result {
            let mut oracle = world.oracle.borrow_mut();
            oracle.on_observed(id.as_str(), observed, began_at, true);
        }
        result
    }

    async fn list(&self, mut on_entry: impl FnMut(Entry<'_>)) -> Result<u64, Failure> {
        let world = &self.0;
        world.crash_point().await;
        let began_at = world.time();
        let fault = world.draw_fault();
        world.travel().await;
        match fault {
            Fault::Unreachable => return Err(failure("no connection", true)),
            Fault::Lost | Fault::Late | Fault::AnswerLost => {
                world.sleep(world.request_timeout).await;
                return Err(failure("no answer", false));
            }
            Fault::Error | Fault::Refused | Fault::Foreign => {
                return Err(failure("answered 500", false));
            }
            Fault::None
            | Fault::BadList
            | Fault::UnknownStatus
            | Fault::Crash
            | Fault::Slow
            | Fault::Lagging => {}
        }
        if !world.is_up() {
            return Err(failure("no connection", true));
        }
        if let Err((_, failure)) = world.admit(false) {
            return Err(failure);
        }
        let entries = world.model.borrow().len();
        world.on_poll(list_cost(entries as u64));
        if !world.survives(Access::List { entries }) {
            return Err(failure("the connection broke", false));
        }
        let draws = world.draws.clone();
        let draw = &mut |below| draws.below(below);
        let read_at = world.read_at(fault, began_at);
        let mut processes = {
            let (model, history) = (world.model.borrow(), world.history.borrow());
            history.list(&model, read_at, draw)
        };
        let mut is_whole = true;
        let mut is_complete = true;
        if fault == Fault::BadList {
            // Either cut, or complete with an entry that contradicts another.
            if world.draws.below(2) == 0 {
                let length = world.draws.below(processes.len() as u64 + 1) as usize;
                processes.truncate(length);
                (is_whole, is_complete) = (false, false);
            } else if let Some((id, status)) = processes.first().cloned() {
                let other = if status == "FAILED" {
                    "SUCCEEDED"
                } else {
                    "FAILED"
                };
                processes.push((id, other));
            }
        }
        if fault == Fault::Crash {
            world.end_incarnation();
            processes.truncate(processes.len() / 2);
            (is_whole, is_complete) = (false, false);
        }
        if fault == Fault::UnknownStatus {
            for (_, status) in processes
                .iter_mut()
                .filter(|(_, status)| *status == "RUNNING")
            {
                *status = "PAUSED";
            }
        }
        world.delay(fault, Duration::from_secs(60)).await;
        world.travel().await;
        world.crash_point().await;
        world.log(|| format!("list ({fault:?}) of {}", processes.len()));
        world
            .oracle
            .borrow_mut()
            .on_listed(&processes, is_complete, began_at);
        for (id, status) in &processes {
            on_entry(Entry {
                order_id: id.into(),
                status: (*status).into(),
            });
        }
        if is_whole {
            Ok(processes.len() as u64)
        } else {
            Err(failure("cut off", false))
        }
    }
}

/// Faults of writes.
pub struct RandomWriteFaults {
    pub draws: Arc<Draws>,
    pub is_dead: Arc<AtomicBool>,
    /// Chance of a crash, and of a write that fails or whose outcome is lost, in thousandths.
    pub crash: AtomicU64,
    pub fault: AtomicU64,
    pub writes: AtomicU64,
}

impl RandomWriteFaults {
    /// Returns write faults with chances of zero.
    pub fn calm(world: &World) -> Arc<Self> {
        Arc::new(Self {
            draws: world.draws.clone(),
            is_dead: world.is_dead.clone(),
            crash: 0.into(),
            fault: 0.into(),
            writes: 0.into(),
        })
    }
}

impl WriteFaults for RandomWriteFaults {
    fn next(&self) -> WriteFate {
        self.writes.fetch_add(1, Ordering::Relaxed);
        if self.draws.permille(self.crash.load(Ordering::Relaxed)) {
            self.is_dead.store(true, Ordering::Relaxed);
            return match self.draws.below(2) {
                0 => WriteFate::CrashBefore,
                _ => WriteFate::CrashAfter,
            };
        }
        if self.draws.permille(self.fault.load(Ordering::Relaxed)) {
            return match self.draws.below(2) {
                0 => WriteFate::Refused,
                _ => WriteFate::AckLost,
            };
        }
        WriteFate::Open
    }
}
