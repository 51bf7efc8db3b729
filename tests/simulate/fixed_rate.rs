//! A client of the order process service with a fixed start rate, window and poll interval, in virtual
//! time. Idealised: its requests take no time.
//!
//! The crash model was fitted with it, and the learned pace is compared with it.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use order_service::order::Timestamp;
use order_service::simulator::crash::{Access, CrashModel, Hazard};

/// Downtime after a crash: that of the measured service, which missed 50 starts at each crash.
pub const RESTART: Duration = Duration::from_secs(1);

/// Interval of starts without a rate, in milliseconds: faster than the real service can take them.
const UNLIMITED_INTERVAL_MS: f64 = 0.05;

/// Maximum duration of a run.
const DURATION_MAX: Duration = Duration::from_secs(2 * 86_400);

#[derive(Clone, Copy, Debug)]
pub enum Polling {
    ListEvery(Duration),
    LookUpsPerSecond(u64),
}

/// The settings of a client.
#[derive(Clone, Copy, Debug)]
pub struct FixedRateClient {
    /// Start rate; 0 for as fast as possible.
    pub starts_per_second: f64,
    /// Maximum number of processes that run at once.
    pub window: usize,
    pub polling: Polling,
}

/// The orders of a run.
#[derive(Clone, Copy, Debug)]
pub enum Load {
    /// This many orders, each started again until its outcome was seen.
    Orders(usize),
    /// A new order for each start, for this time; forgotten orders are not started again.
    NewOrdersFor(Duration),
}

#[derive(Clone, Debug, Default)]
pub struct Run {
    /// Time of the last outcome seen.
    pub took: Duration,
    /// Lengths of the incarnations in starts, the last one unfinished.
    pub incarnations: Vec<u64>,
    pub starts: u64,
    pub seen: u64,
    pub forgotten: u64,
    /// Orders that were started more than five times.
    pub over_max_starts: u64,
}

struct Process {
    order: usize,
    ends_at: Timestamp,
    incarnation: usize,
}

/// The service, which crashes by the crash model, or never.
struct Service {
    crash: Option<CrashModel>,
    ends: BinaryHeap<Reverse<Timestamp>>,
    down_until: Timestamp,
    incarnations: Vec<u64>,
}

impl Service {
    /// Returns whether the service is up: a completion since the last call may have crashed it.
    fn is_up(&mut self, now: Timestamp, rng: &mut fastrand::Rng) -> bool {
        let Some(crash) = &mut self.crash else {
            return true;
        };
        while let Some(&Reverse(end)) = self.ends.peek()
            && end <= now
        {
            self.ends.pop();
            if crash.is_fatal(Access::Completion, end, &mut |n| rng.u64(..n)) {
                self.crash(end);
                break;
            }
        }
        now >= self.down_until
    }

    /// Returns whether this access crashes the service.
    fn is_fatal(&mut self, access: Access, now: Timestamp, rng: &mut fastrand::Rng) -> bool {
        let crash = self.crash.as_mut();
        let is_fatal =
            crash.is_some_and(|crash| crash.is_fatal(access, now, &mut |n| rng.u64(..n)));
        if is_fatal {
            self.crash(now);
        }
        is_fatal
    }

    fn crash(&mut self, now: Timestamp) {
        self.ends.clear();
        if let Some(crash) = &mut self.crash {
            crash.forget_everything();
        }
        self.incarnations.push(0);
        self.down_until = now.after(RESTART);
    }

    fn processes(&mut self) -> &mut u64 {
        self.incarnations
            .last_mut()
            .expect("there is always an incarnation")
    }
}

/// Runs the client until the load is done. Processes take whole seconds below `max_secs`; without a
/// hazard the service never crashes.
pub fn run(
    client: FixedRateClient,
    load: Load,
    max_secs: u64,
    hazard: Option<&Hazard>,
    seed: u64,
) -> Run {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut service = Service {
        crash: hazard.map(|hazard| CrashModel::new(hazard.clone())),
        ends: BinaryHeap::new(),
        down_until: Timestamp(0),
        incarnations: vec![0],
    };
    let (orders, duration) = match load {
        Load::Orders(orders) => (orders, DURATION_MAX),
        Load::NewOrdersFor(duration) => (0, duration),
    };
    let is_endless = orders == 0;
    let mut run = Run::default();
    let mut waiting: VecDeque<usize> = (0..orders).collect();
    let mut tries = vec![0_u32; orders];
    let mut open: VecDeque<Process> = VecDeque::new();
    let start_every = match client.starts_per_second {
        rate if rate > 0.0 => 1_000.0 / rate,
        _ => UNLIMITED_INTERVAL_MS,
    };
    let poll_every = match client.polling {
        Polling::ListEvery(every) => every.as_millis() as f64,
        Polling::LookUpsPerSecond(0) => f64::INFINITY,
        Polling::LookUpsPerSecond(rate) => 1_000.0 / rate as f64,
    };
    // Polls are out of phase with the starts.
    let (mut start_at, mut poll_at) = (0.0_f64, poll_every.min(1e12) * rng.f64());
    while is_endless || run.seen < orders as u64 {
        let may_start = (is_endless || !waiting.is_empty()) && open.len() < client.window;
        if !may_start {
            start_at = start_at.max(poll_at);
        }
        let is_start = may_start && start_at <= poll_at;
        let now = Timestamp(if is_start { start_at } else { poll_at } as i64);
        if now.since(Timestamp(0)) >= duration {
            break;
        }
        let is_up = service.is_up(now, &mut rng);
        let incarnation = service.incarnations.len();
        if is_endless
            && open
                .front()
                .is_some_and(|process| process.incarnation != incarnation)
        {
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
                run.over_max_starts += u64::from(*tries == 6);
            }
            run.starts += 1;
            *service.processes() += 1;
            let processes = *service.processes() as usize;
            let ends_at = now.after(Duration::from_secs(rng.u64(..max_secs)));
            open.push_back(Process {
                order,
                ends_at,
                incarnation,
            });
            if !service.is_fatal(Access::Start { processes }, now, &mut rng) {
                service.ends.push(Reverse(ends_at));
            }
            continue;
        }
        let polled = match client.polling {
            Polling::ListEvery(_) => {
                poll_at += poll_every - 10.0 + 20.0 * rng.f64();
                let entries = *service.processes() as usize;
                if !is_up || service.is_fatal(Access::List { entries }, now, &mut rng) {
                    continue;
                }
                open.len()
            }
            Polling::LookUpsPerSecond(_) => {
                poll_at += poll_every;
                if !is_up || service.is_fatal(Access::LookUp, now, &mut rng) {
                    continue;
                }
                open.len().min(1)
            }
        };
        let mut missing = Vec::new();
        for _ in 0..polled {
            let Some(process) = open.pop_front() else {
                break;
            };
            if process.incarnation != incarnation {
                run.forgotten += 1;
                missing.push(process.order);
            } else if process.ends_at <= now {
                run.seen += 1;
                run.took = now.since(Timestamp(0));
            } else {
                open.push_back(process);
            }
        }
        // Forgotten orders go first.
        for order in missing.into_iter().rev() {
            waiting.push_front(order);
        }
    }
    run.forgotten += open.len() as u64;
    run.incarnations = service.incarnations;
    run
}
