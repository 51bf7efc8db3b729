//! A client of the order process service with a fixed pace, in virtual time: a beat of starts, a
//! window, a period of looks. Idealised: its requests take no time, and it misses no beat.
//!
//! It is what the crash model was fitted with, and what the learned pace is compared with.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use order_service::order::Timestamp;
use order_service::simulator::crash::{Access, CrashModel, Hazard};

/// As long as the measured service took to be started again: 50 starts were missed at each death.
pub const RESTART: Duration = Duration::from_secs(1);

/// A start per 50 µs: more than the real service takes.
const UNLIMITED_INTERVAL_MS: f64 = 0.05;

/// Nobody waits longer than this for an order.
const LONGEST: Duration = Duration::from_secs(2 * 86_400);

#[derive(Clone, Copy, Debug)]
pub enum Looks {
    ListEvery(Duration),
    LookUpsPerSecond(u64),
}

/// How it drives the service.
#[derive(Clone, Copy, Debug)]
pub struct Fixed {
    /// 0 for as fast as it goes.
    pub starts_per_second: f64,
    /// Processes at once.
    pub window: usize,
    pub looks: Looks,
}

/// What there is to do.
#[derive(Clone, Copy, Debug)]
pub enum Load {
    /// So many orders, started again until the outcome of each was seen.
    Orders(usize),
    /// A new order at every beat for so long; what is forgotten is forgotten.
    NewOnesFor(Duration),
}

#[derive(Clone, Debug, Default)]
pub struct Run {
    pub lasted: Duration,
    /// In starts, the last one unfinished.
    pub lives: Vec<u64>,
    pub starts: u64,
    pub seen: u64,
    pub forgotten: u64,
    /// Orders that were started more than five times.
    pub worn_out: u64,
}

struct Process {
    order: usize,
    ends_at: Timestamp,
    life: usize,
}

/// The service: dies as the crash model says, or never.
struct Service {
    crash: Option<CrashModel>,
    ends: BinaryHeap<Reverse<Timestamp>>,
    down_until: Timestamp,
    lives: Vec<u64>,
}

impl Service {
    /// Whether it is there at this moment: it may have died of a completion since the last one.
    fn is_up(&mut self, now: Timestamp, rng: &mut fastrand::Rng) -> bool {
        let Some(crash) = &mut self.crash else {
            return true;
        };
        while let Some(&Reverse(end)) = self.ends.peek()
            && end <= now
        {
            self.ends.pop();
            if crash.is_fatal(Access::Completion, end, &mut |n| rng.u64(..n)) {
                self.die(end);
                break;
            }
        }
        now >= self.down_until
    }

    /// Whether this kills it.
    fn is_fatal(&mut self, access: Access, now: Timestamp, rng: &mut fastrand::Rng) -> bool {
        let crash = self.crash.as_mut();
        let dies = crash.is_some_and(|crash| crash.is_fatal(access, now, &mut |n| rng.u64(..n)));
        if dies {
            self.die(now);
        }
        dies
    }

    fn die(&mut self, now: Timestamp) {
        self.ends.clear();
        if let Some(crash) = &mut self.crash {
            crash.forget_everything();
        }
        self.lives.push(0);
        self.down_until = now.after(RESTART);
    }

    fn processes(&mut self) -> &mut u64 {
        self.lives.last_mut().expect("there is always a life")
    }
}

/// Drives the service until everything is done. Processes take whole seconds below `max_secs`;
/// without a hazard it never dies.
pub fn run(fixed: Fixed, load: Load, max_secs: u64, hazard: Option<&Hazard>, seed: u64) -> Run {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut service = Service {
        crash: hazard.map(|hazard| CrashModel::new(hazard.clone())),
        ends: BinaryHeap::new(),
        down_until: Timestamp(0),
        lives: vec![0],
    };
    let (orders, lasts) = match load {
        Load::Orders(orders) => (orders, LONGEST),
        Load::NewOnesFor(lasts) => (0, lasts),
    };
    let is_endless = orders == 0;
    let mut run = Run::default();
    let mut waiting: VecDeque<usize> = (0..orders).collect();
    let mut tries = vec![0_u32; orders];
    let mut open: VecDeque<Process> = VecDeque::new();
    let start_every = match fixed.starts_per_second {
        rate if rate > 0.0 => 1_000.0 / rate,
        _ => UNLIMITED_INTERVAL_MS,
    };
    let look_every = match fixed.looks {
        Looks::ListEvery(every) => every.as_millis() as f64,
        Looks::LookUpsPerSecond(0) => f64::INFINITY,
        Looks::LookUpsPerSecond(rate) => 1_000.0 / rate as f64,
    };
    // Looks have no beat in common with the starts.
    let (mut start_at, mut look_at) = (0.0_f64, look_every.min(1e12) * rng.f64());
    while is_endless || run.seen < orders as u64 {
        let may_start = (is_endless || !waiting.is_empty()) && open.len() < fixed.window;
        if !may_start {
            start_at = start_at.max(look_at);
        }
        let is_start = may_start && start_at <= look_at;
        let now = Timestamp(if is_start { start_at } else { look_at } as i64);
        if now.since(Timestamp(0)) >= lasts {
            break;
        }
        let is_up = service.is_up(now, &mut rng);
        let life = service.lives.len();
        if is_endless && open.front().is_some_and(|process| process.life != life) {
            run.forgotten += open.len() as u64;
            open.clear();
        }
        if is_start {
            start_at += start_every;
            if !is_up {
                continue;
            }
            let order = waiting.pop_front().unwrap_or_default();
            if let Some(tries) = tries.get_mut(order) {
                *tries += 1;
                run.worn_out += u64::from(*tries == 6);
            }
            run.starts += 1;
            *service.processes() += 1;
            let processes = *service.processes() as usize;
            let ends_at = now.after(Duration::from_secs(rng.u64(..max_secs)));
            open.push_back(Process {
                order,
                ends_at,
                life,
            });
            if !service.is_fatal(Access::Start { processes }, now, &mut rng) {
                service.ends.push(Reverse(ends_at));
            }
            continue;
        }
        let looked_at = match fixed.looks {
            Looks::ListEvery(_) => {
                look_at += look_every - 10.0 + 20.0 * rng.f64();
                let entries = *service.processes() as usize;
                if !is_up || service.is_fatal(Access::List { entries }, now, &mut rng) {
                    continue;
                }
                open.len()
            }
            Looks::LookUpsPerSecond(_) => {
                look_at += look_every;
                if !is_up || service.is_fatal(Access::LookUp, now, &mut rng) {
                    continue;
                }
                open.len().min(1)
            }
        };
        let mut missing = Vec::new();
        for _ in 0..looked_at {
            let Some(process) = open.pop_front() else {
                break;
            };
            if process.life != life {
                run.forgotten += 1;
                missing.push(process.order);
            } else if process.ends_at <= now {
                run.seen += 1;
                run.lasted = now.since(Timestamp(0));
            } else {
                open.push_back(process);
            }
        }
        // Those that were started before go first.
        for order in missing.into_iter().rev() {
            waiting.push_front(order);
        }
    }
    run.forgotten += open.len() as u64;
    run.lives = service.lives;
    run
}
