//! Virtual time, and the points where the pass touches the world: each request to the upstream and
//! each write may go wrong in every way there is, as the seed draws it.
//!
//! Nothing here knows what is right; what was really told and done is noted for `oracle`.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use order_service::clock::Clock;
use order_service::order::{Observed, OrderId, Timestamp};
use order_service::pace::{list_cost, look_ups_cost};
use order_service::simulator::crash::{Access, CrashModel};
use order_service::simulator::model::Model;
use order_service::store::{Gate, Passage};
use order_service::upstream::{Cause, Entry, Failure, StartError, Upstream};

use crate::limits::Limit;
use crate::oracle::{Arrival, Oracle};
use crate::past::Past;

/// Numbers from a seed (SplitMix64; Steele, Lea and Flood, 2014).
#[derive(Debug)]
pub struct Draws(AtomicU64);

impl Draws {
    /// The seed is the state itself. Were it multiplied by the step, the next seed's numbers would
    /// be this one's but for the first, and runs of neighbouring seeds nearly the same run.
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

    /// True in so many of a thousand cases.
    pub fn permille(&self, share: u64) -> bool {
        self.below(1_000) < share
    }
}

/// What goes wrong with a request. The order is that of the coverage table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    None,
    /// No connection.
    Unreachable,
    /// It never arrives, and nobody says so.
    Lost,
    /// It takes effect only after its answer was given up.
    Late,
    /// It takes effect, and the answer is lost.
    AnswerLost,
    /// A server error. A start may have taken effect.
    Error,
    /// A refusal, without effect.
    Refused,
    /// The list is cut, or names entries twice or not at all.
    BadList,
    /// A status that nobody knows.
    OddStatus,
    /// The upstream dies right after it.
    Death,
    /// The answer takes long to arrive, a list up to a minute.
    Slow,
    /// The answer is not the upstream's own, which the request may have reached or not.
    Foreign,
    /// A look-up or a list is answered from a state up to one request timeout old.
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
        Self::OddStatus,
        Self::Death,
        Self::Slow,
        Self::Foreign,
        Self::Lagging,
    ];
}

/// The kinds of fault that were injected in this pass and in the one before.
pub static RECENT: Recent = Recent {
    this_pass: AtomicU16::new(0),
    last_pass: AtomicU16::new(0),
};

/// One bit for each kind of fault.
pub struct Recent {
    this_pass: AtomicU16,
    last_pass: AtomicU16,
}

impl Recent {
    pub fn begin_pass(&self) {
        let bits = self.this_pass.swap(0, Ordering::Relaxed);
        self.last_pass.store(bits, Ordering::Relaxed);
    }

    fn add(&self, fault: Fault) {
        self.this_pass
            .fetch_or(1 << fault as u16, Ordering::Relaxed);
    }

    /// `None` stands for none at all.
    pub fn faults(&self) -> impl Iterator<Item = Fault> {
        let bits = self.this_pass.load(Ordering::Relaxed) | self.last_pass.load(Ordering::Relaxed);
        let is_recent = move |fault: &Fault| match fault {
            Fault::None => bits == 0,
            fault => bits & (1 << *fault as u16) != 0,
        };
        Fault::ALL.into_iter().filter(is_recent)
    }
}

/// How often what goes wrong, in a thousand.
#[derive(Clone, Debug, Default)]
pub struct Weather {
    pub faults: Vec<(Fault, u64)>,
    /// The program dies at a touch of the world.
    pub death: u64,
    /// A write is refused, or not heard of.
    pub write_fault: u64,
    /// The clock is set back or forward at a touch of the world.
    pub step: u64,
    /// The upstream limits the rate of requests.
    pub limit: Option<Limit>,
}

/// An upstream that may die of its work, and is down for a while then.
struct Fragile {
    crash: Option<CrashModel>,
    down_until: Timestamp,
}

/// Everything outside the pass.
pub struct World {
    now: Cell<i64>,
    /// How far the time of day is ahead of that, in milliseconds.
    ahead: Cell<i64>,
    timers: RefCell<BTreeMap<(i64, u64), Waker>>,
    timer_count: Cell<u64>,
    pub draws: Arc<Draws>,
    pub weather: RefCell<Weather>,
    pub model: RefCell<Model>,
    past: RefCell<Past>,
    pub oracle: RefCell<Oracle>,
    fragile: RefCell<Fragile>,
    /// Moments at which the upstream is killed, the next one last.
    pub kills: RefCell<Vec<Timestamp>>,
    pub limit: RefCell<Option<Limit>>,
    /// Moments of the starts that the limit let through, and of those that it refused.
    pub admitted: RefCell<[Vec<Timestamp>; 2]>,
    /// Cost of all looks to the upstream, about.
    pub looks_cost: Cell<Duration>,
    /// Requests take no longer than this on their way, in milliseconds.
    travel_ms: Cell<u64>,
    /// Starts that are still on their way although nobody waits for them.
    late: RefCell<Vec<(i64, String)>>,
    /// Set when the program has died at a touch of the world.
    pub is_dead: Arc<AtomicBool>,
    max_duration_secs: u32,
    pub request_timeout: Duration,
    pub faults: RefCell<BTreeMap<String, u64>>,
    pub requests: Cell<u64>,
    pub lives: Cell<u64>,
    pub is_told: bool,
}

impl World {
    pub fn new(
        seed: u64,
        max_duration_secs: u32,
        request_timeout: Duration,
        is_told: bool,
    ) -> Rc<Self> {
        Rc::new(Self {
            now: Cell::new(1_800_000_000_000),
            ahead: Cell::new(0),
            timers: RefCell::default(),
            timer_count: Cell::new(0),
            draws: Arc::new(Draws::new(seed)),
            weather: RefCell::default(),
            model: RefCell::new(Model::new(max_duration_secs)),
            past: RefCell::new(Past::new(request_timeout)),
            oracle: RefCell::new(Oracle::new(request_timeout)),
            fragile: RefCell::new(Fragile {
                crash: None,
                down_until: Timestamp(0),
            }),
            kills: RefCell::default(),
            limit: RefCell::default(),
            admitted: RefCell::default(),
            looks_cost: Cell::default(),
            travel_ms: Cell::new(30),
            late: RefCell::default(),
            is_dead: Arc::default(),
            max_duration_secs,
            request_timeout,
            faults: RefCell::default(),
            requests: Cell::new(0),
            lives: Cell::new(0),
            is_told,
        })
    }

    pub fn time(&self) -> Timestamp {
        Timestamp(self.now.get())
    }

    pub fn tell(&self, what: impl FnOnce() -> String) {
        if self.is_told {
            println!("{:>9} {}", self.now.get() - 1_800_000_000_000, what());
        }
    }

    /// Moves on to the next timer and wakes it. Nothing if there is none.
    pub fn advance(&self) -> Option<()> {
        let ((at, _), waker) = self.timers.borrow_mut().pop_first()?;
        self.move_to(at);
        waker.wake();
        Some(())
    }

    /// Lets time pass; what was on its way arrives.
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
            self.die(&mut self.fragile.borrow_mut(), at);
        }
    }

    fn on_look(&self, cost: Duration) {
        self.looks_cost.set(self.looks_cost.get() + cost);
    }

    /// Lets a request through the limit, or says how it is refused.
    fn admit(&self, is_start: bool) -> Result<(), (u16, Failure)> {
        let mut limit = self.limit.borrow_mut();
        let Some(limit) = limit
            .as_mut()
            .filter(|limit| is_start || limit.counts_looks)
        else {
            return Ok(());
        };
        let admitted = limit.admit(self.time());
        if is_start {
            self.admitted.borrow_mut()[usize::from(admitted.is_err())].push(self.time());
        }
        let status = limit.status;
        let cause = match status {
            429 => Cause::TooMany,
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

    /// What a dead program was waiting for does not matter any more.
    pub fn forget_timers(&self) {
        self.timers.borrow_mut().clear();
    }

    /// The upstream dies, and forgets.
    pub fn end_life(&self) {
        self.tell(|| "the upstream dies".to_owned());
        let (mut model, now) = (self.model.borrow_mut(), self.time());
        let fresh = Model::new(self.max_duration_secs);
        let ended = std::mem::replace(&mut *model, fresh);
        self.past.borrow_mut().on_end(ended, now);
        self.oracle.borrow_mut().life_ended(now);
        self.lives.set(self.lives.get() + 1);
    }

    /// From now on requests are quick, and the upstream dies of its work, or of nothing.
    pub fn make_fragile(&self, crash: Option<CrashModel>) {
        self.travel_ms.set(3);
        self.fragile.borrow_mut().crash = crash;
    }

    /// Whether the upstream is there: it may have died of a completion since the last request.
    fn is_up(&self) -> bool {
        let mut fragile = self.fragile.borrow_mut();
        let draw = &mut |below| self.draws.below(below);
        let now = self.time();
        let died_at = fragile
            .crash
            .as_mut()
            .and_then(|crash| crash.catch_up(&mut self.model.borrow_mut(), now, draw));
        if let Some(at) = died_at {
            self.die(&mut fragile, at);
        }
        now >= fragile.down_until
    }

    /// Whether the upstream survives what was asked of it.
    fn survives(&self, access: Access) -> bool {
        let mut fragile = self.fragile.borrow_mut();
        let draw = &mut |below| self.draws.below(below);
        let now = self.time();
        let crash = fragile.crash.as_mut();
        let dies = crash.is_some_and(|crash| crash.is_fatal(access, now, draw));
        if dies {
            self.die(&mut fragile, now);
        }
        !dies
    }

    fn die(&self, fragile: &mut Fragile, at: Timestamp) {
        if let Some(crash) = &mut fragile.crash {
            crash.forget_everything();
        }
        fragile.down_until = at.after(crate::fixed::RESTART);
        self.end_life();
    }

    fn take_effect(&self, id: &str, arrival: Arrival) -> bool {
        let draws = self.draws.clone();
        let draw = &mut |below| draws.below(below);
        let is_new = self.model.borrow_mut().start(id, self.time(), draw);
        self.tell(|| {
            format!(
                "the upstream: start {id}: {}",
                if is_new { "accepted" } else { "exists" }
            )
        });
        if is_new {
            self.past.borrow_mut().on_start(id, self.time());
            self.oracle.borrow_mut().accepted(id, arrival);
        }
        is_new
    }

    /// The moment as of which a read is answered that began at `began_at`.
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
        for (candidate, share) in &self.weather.borrow().faults {
            if drawn < *share {
                fault = *candidate;
                break;
            }
            drawn -= share;
        }
        self.requests.set(self.requests.get() + 1);
        if fault != Fault::None {
            RECENT.add(fault);
            *self
                .faults
                .borrow_mut()
                .entry(format!("{fault:?}"))
                .or_default() += 1;
        }
        fault
    }

    /// The time of day, which may be set back or forward.
    pub fn time_of_day(&self) -> Timestamp {
        Timestamp(self.now.get() + self.ahead.get())
    }

    /// The clock may be set back or forward, by little, by seconds or by hours.
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
        self.tell(|| format!("{name} by {} ms", by.abs()));
        let mut faults = self.faults.borrow_mut();
        *faults.entry(name.to_owned()).or_default() += 1;
    }

    /// A point at which the program may die, and the clock be stepped.
    async fn touch(&self) {
        let step = self.weather.borrow().step;
        self.may_step(step);
        if self.draws.permille(self.weather.borrow().death) {
            *self
                .faults
                .borrow_mut()
                .entry("death of ours".to_owned())
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

    /// The time that a slow answer takes, up to `most`.
    async fn delay(self: &Rc<Self>, fault: Fault, most: Duration) {
        if fault == Fault::Slow {
            let millis = self.draws.below(most.as_millis() as u64);
            self.sleep(Duration::from_millis(millis)).await;
        }
    }

    /// Some time on the way, there or back.
    fn travel(self: &Rc<Self>) -> Sleep {
        self.sleep(Duration::from_millis(
            self.draws.below(self.travel_ms.get()),
        ))
    }
}

/// Returns at its moment.
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

/// The world as the pass knows it.
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
        self.0.touch().await;
        self.0.sleep(length).await;
    }
}

fn failure(detail: &str, certain: bool) -> Failure {
    let cause = match (detail, certain) {
        (_, true) => Cause::NoAccess,
        ("no answer", _) => Cause::Silence,
        _ => Cause::Unusable,
    };
    Failure::new(detail, cause)
}

impl Upstream for Handle {
    async fn start(&self, id: &OrderId) -> Result<(), StartError> {
        let world = &self.0;
        world.touch().await;
        world
            .oracle
            .borrow_mut()
            .start_sent(id.as_str(), world.time());
        let fault = world.draw_fault();
        world.tell(|| format!("start {id} ({fault:?})"));
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
                // A gateway's own, before or after it has passed the start on.
                if world.draws.below(2) == 0 && world.take_effect(id.as_str(), Arrival::InTime) {
                    world.oracle.borrow_mut().accepted_in_doubt(id.as_str());
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
                Err(StartError::Doubtful(failure("<html>", false)))
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
                    Fault::Death => {
                        world.end_life();
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
        world.touch().await;
        world.tell(|| format!("start {id} answered {result:?}"));
        world
            .oracle
            .borrow_mut()
            .start_answered(id.as_str(), &result, world.time());
        result
    }

    async fn look_up(&self, id: &OrderId) -> Result<Observed, Failure> {
        let world = &self.0;
        world.touch().await;
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
            Fault::Death => {
                world.end_life();
                Err(failure("broke off", false))
            }
            _ if !world.is_up() => Err(failure("no connection", true)),
            _ if let Err((_, failure)) = world.admit(false) => Err(failure),
            _ if !world.survives(Access::LookUp) => Err(failure("broke off", false)),
            Fault::None | Fault::OddStatus | Fault::Slow | Fault::Lagging => {
                world.delay(fault, world.request_timeout).await;
                world.on_look(look_ups_cost(1));
                let read_at = world.read_at(fault, began_at);
                let (model, past) = (world.model.borrow(), world.past.borrow());
                let status = past.look_up(&model, id.as_str(), read_at);
                Ok(match status {
                    None => Observed::Absent,
                    Some("RUNNING") if fault == Fault::OddStatus => Observed::of_status("PAUSED"),
                    Some(status) => Observed::of_status(status),
                })
            }
        };
        world.travel().await;
        world.touch().await;
        world.tell(|| format!("look-up {id} ({fault:?}) answered {result:?}"));
        if let Ok(observed) = &result {
            let mut oracle = world.oracle.borrow_mut();
            oracle.observed(id.as_str(), observed, began_at, true);
        }
        result
    }

    async fn list(&self, mut tell: impl FnMut(Entry<'_>)) -> Result<u64, Failure> {
        let world = &self.0;
        world.touch().await;
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
            | Fault::OddStatus
            | Fault::Death
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
        world.on_look(list_cost(entries as u64));
        if !world.survives(Access::List { entries }) {
            return Err(failure("broke off", false));
        }
        let draws = world.draws.clone();
        let draw = &mut |below| draws.below(below);
        let read_at = world.read_at(fault, began_at);
        let mut processes = {
            let (model, past) = (world.model.borrow(), world.past.borrow());
            past.list(&model, read_at, draw)
        };
        let mut is_whole = true;
        let mut is_complete = true;
        if fault == Fault::BadList {
            // Cut somewhere; or, as whole as it looks, with an entry that contradicts another.
            if world.draws.below(2) == 0 {
                let told = world.draws.below(processes.len() as u64 + 1) as usize;
                processes.truncate(told);
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
        if fault == Fault::Death {
            world.end_life();
            processes.truncate(processes.len() / 2);
            (is_whole, is_complete) = (false, false);
        }
        if fault == Fault::OddStatus {
            for (_, status) in processes
                .iter_mut()
                .filter(|(_, status)| *status == "RUNNING")
            {
                *status = "PAUSED";
            }
        }
        world.delay(fault, Duration::from_secs(60)).await;
        world.travel().await;
        world.touch().await;
        world.tell(|| format!("list ({fault:?}) of {}", processes.len()));
        world
            .oracle
            .borrow_mut()
            .listed(&processes, is_complete, began_at);
        for (id, status) in &processes {
            tell(Entry {
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

/// What becomes of writes.
pub struct WriteWeather {
    pub draws: Arc<Draws>,
    pub is_dead: Arc<AtomicBool>,
    /// In a thousand: deaths, and refused or unheard writes.
    pub death: AtomicU64,
    pub fault: AtomicU64,
    pub writes: AtomicU64,
}

impl WriteWeather {
    /// Nothing happens to them for now.
    pub fn calm(world: &World) -> Arc<Self> {
        Arc::new(Self {
            draws: world.draws.clone(),
            is_dead: world.is_dead.clone(),
            death: 0.into(),
            fault: 0.into(),
            writes: 0.into(),
        })
    }
}

impl Gate for WriteWeather {
    fn next(&self) -> Passage {
        self.writes.fetch_add(1, Ordering::Relaxed);
        if self.draws.permille(self.death.load(Ordering::Relaxed)) {
            self.is_dead.store(true, Ordering::Relaxed);
            return match self.draws.below(2) {
                0 => Passage::DeathBefore,
                _ => Passage::DeathAfter,
            };
        }
        if self.draws.permille(self.fault.load(Ordering::Relaxed)) {
            return match self.draws.below(2) {
                0 => Passage::Refused,
                _ => Passage::Unheard,
            };
        }
        Passage::Open
    }
}
