//! Faults, and the random numbers that choose them.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use order_service::store::{WriteFate, WriteFaults};

use super::Environment;
use crate::limits::Limit;

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
    /// The answer is that of another service; the request may have reached the upstream or not.
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

/// Orders whose starts and look-ups all have the same fault.
#[derive(Clone, Copy, Debug)]
pub struct FailingOrders {
    /// One order in this many, the first one among them.
    every: u64,
    fault: Fault,
}

impl FailingOrders {
    pub fn draw(draws: &Draws) -> Self {
        let faults = [Fault::Lost, Fault::Error, Fault::Refused, Fault::Foreign];
        Self {
            every: [2, 3, 10][draws.below(3) as usize],
            fault: faults[draws.below(4) as usize],
        }
    }

    /// Returns fault rates without any other fault.
    pub fn alone(self) -> FaultRates {
        FaultRates {
            failing: Some(self),
            ..FaultRates::default()
        }
    }

    /// Returns the fault of all requests about this order.
    pub fn fault_of(&self, id: &str) -> Option<Fault> {
        let number: u64 = id.trim_start_matches('o').parse().ok()?;
        number.is_multiple_of(self.every).then_some(self.fault)
    }
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

    pub fn add(fault: Fault) {
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
    pub failing: Option<FailingOrders>,
}

/// Faults of writes.
pub struct RandomWriteFaults {
    pub draws: Arc<Draws>,
    pub has_crashed: Arc<AtomicBool>,
    /// Chance of a crash, and of a write that fails or whose outcome is lost, in thousandths.
    pub crash: AtomicU64,
    pub fault: AtomicU64,
    pub writes: AtomicU64,
}

impl RandomWriteFaults {
    /// Returns write faults with chances of zero.
    pub fn none(env: &Environment) -> Arc<Self> {
        Arc::new(Self {
            draws: env.draws.clone(),
            has_crashed: env.has_crashed.clone(),
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
            self.has_crashed.store(true, Ordering::Relaxed);
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
        WriteFate::Executed
    }
}
