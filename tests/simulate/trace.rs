//! Traces of the reconciler in a run: its decisions by cell of the table, and the stages of its starts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use order_service::decide::{Occasion, OpenOrder, Phase};
use order_service::order::Timestamp;
use order_service::reconciler::{Decision, Stage};

use crate::environment::{Fault, RecentFaults};

/// Number of decisions by cell of the table and kind of fault.
type Decisions = BTreeMap<String, BTreeMap<Fault, u64>>;

static DECISIONS: Mutex<Decisions> = Mutex::new(BTreeMap::new());

/// Number of transitions from one stage of a start to the next.
type Transitions = BTreeMap<(Option<Stage>, Stage), u64>;

static TRANSITIONS: Mutex<Transitions> = Mutex::new(BTreeMap::new());

/// Returns the name of the row of the table that an order is in.
fn row_of(order: &OpenOrder) -> &'static str {
    match (order.phase, order.intent) {
        (Phase::Created, None) => "created",
        (Phase::Created, Some(_)) => "created, intent",
        (Phase::Processing { .. }, Some(_)) => "processing, intent",
        (Phase::Processing { missed_at, .. }, None) => match missed_at {
            None => "processing",
            Some(_) => "processing, missed",
        },
    }
}

pub fn count_decision(decision: &Decision<'_>) {
    let observed = decision.observation.map(|seen| &seen.observed);
    let observed = observed.map_or_else(|| "-".to_owned(), |observed| format!("{observed:?}"));
    let row = row_of(decision.order);
    let occasion = match decision.occasion {
        Occasion::Poll | Occasion::UpstreamRestart => "pass",
        Occasion::Dequeue => "dequeued",
        Occasion::Refusal => "refusal",
    };
    let cell = format!("{row}; {occasion}; {observed}; {:?}", decision.action);
    let mut decisions = DECISIONS.lock().unwrap_or_else(PoisonError::into_inner);
    for fault in RecentFaults::faults() {
        let faults = decisions.entry(cell.clone()).or_default();
        *faults.entry(fault).or_default() += 1;
    }
}

pub fn decisions() -> Decisions {
    DECISIONS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone()
}

pub fn transitions() -> Transitions {
    TRANSITIONS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone()
}

/// The stage of each order while it is started. Checks that transitions are those of the diagram in
/// `src/reconciler/start.rs`, and that no queue waits for longer than its share allows.
#[derive(Default)]
pub struct Stages {
    stages: BTreeMap<i64, Stage>,
    /// Orders that were due when the pass began and are still queued: new ones, and those that were
    /// tried before.
    waiting: [BTreeSet<i64>; 2],
    /// Starts of other queues since the last one of each of these.
    passed_over: [u32; 2],
    /// For each order that was refused or throttled before and is still queued, the other such orders that were
    /// started meanwhile. None is twice: an order that always fails does not hold up the others.
    overtaken_by: BTreeMap<i64, BTreeSet<i64>>,
}

/// Maximum number of starts of other queues between two of each of these: of five starts, two are of
/// new orders, one of an order that was tried before.
const PASSED_OVER_MAX: [u32; 2] = [2, 4];

impl Stages {
    /// Begins a pass. If the clock was set, the queues begin anew.
    pub fn begin(&mut self, waiting: [BTreeSet<i64>; 2], is_clock_set: bool) {
        self.waiting = waiting;
        self.overtaken_by
            .retain(|seq, _| !is_clock_set && self.waiting[1].contains(seq));
        for seq in &self.waiting[1] {
            self.overtaken_by.entry(*seq).or_default();
        }
        for (waiting, passed_over) in self.waiting.iter().zip(&mut self.passed_over) {
            if waiting.is_empty() {
                *passed_over = 0;
            }
        }
    }

    pub fn enter(&mut self, stage: Stage, order: &OpenOrder) {
        use Stage::{Done, InFlight, Queued, Ready, WritingIntent, WritingResult};
        let seq = order.seq;
        let from = self.stages.insert(seq, stage);
        let is_dequeued = matches!(from, None | Some(Queued | Done | WritingResult));
        let is_allowed = match from {
            _ if is_dequeued => matches!(stage, WritingIntent | Ready | WritingResult | Done),
            Some(WritingIntent) => matches!(stage, Ready | Done),
            Some(Ready) => matches!(stage, InFlight | Queued | WritingResult),
            _ => matches!(stage, WritingIntent | WritingResult | Done),
        };
        assert!(is_allowed, "order {seq} goes from {from:?} to {stage:?}");
        if is_dequeued {
            self.check_share(order);
        }
        let mut transitions = TRANSITIONS.lock().unwrap_or_else(PoisonError::into_inner);
        *transitions.entry((from, stage)).or_default() += 1;
    }

    fn check_share(&mut self, order: &OpenOrder) {
        let is_first = order.attempts == 0 && order.next_attempt_at.is_none();
        let is_new = order.phase == Phase::Created && is_first && order.intent.is_none();
        let is_retry = order.phase == Phase::Created && !is_new;
        self.overtaken_by.remove(&order.seq);
        if is_retry && order.intent.is_none() {
            for (waiting, overtaken_by) in &mut self.overtaken_by {
                let is_first = overtaken_by.insert(order.seq);
                assert!(is_first, "{order:?} is started twice before {waiting}");
            }
        }
        for (kind, is_own) in [is_new, is_retry].into_iter().enumerate() {
            let (waiting, passed_over) = (&mut self.waiting[kind], &mut self.passed_over[kind]);
            if is_own {
                let oldest = waiting.first().copied().unwrap_or(i64::MAX);
                // Of those that were tried before, the one that has been due for longest may come first.
                assert!(
                    is_retry || order.seq <= oldest,
                    "{order:?} before order {oldest}"
                );
                waiting.remove(&order.seq);
                *passed_over = 0;
            } else if !waiting.is_empty() {
                *passed_over += 1;
                let most = PASSED_OVER_MAX[kind];
                assert!(
                    *passed_over <= most,
                    "{order:?} is started although {waiting:?} have waited longer"
                );
            }
        }
    }

    /// Checks after a pass that no start but those in flight is in progress.
    pub fn check_no_start_in_progress(&self) {
        for (seq, stage) in &self.stages {
            let is_idle = !matches!(stage, Stage::WritingIntent | Stage::Ready);
            assert!(is_idle, "order {seq} is left in {stage:?}");
        }
    }
}

/// Maximum number of early passes in a row: one that notices that the clock was set back is early, and so is
/// one of a schedule that has not noticed it yet. Some more may follow in the milliseconds by which the clocks
/// of the simulation and of the reconciler differ after a small step.
const EARLY_PASSES_MAX: u32 = 4;

/// Passes in a row that send nothing although a poll time has come, which stays the same.
#[derive(Default)]
pub struct EarlyPasses {
    poll_at: Option<Timestamp>,
    count: u32,
}

impl EarlyPasses {
    /// Counts a pass by the poll time that has come and stays the same, if there is one.
    pub fn on_pass(&mut self, poll_at: Option<Timestamp>) {
        self.count = match poll_at {
            None => 0,
            Some(_) if poll_at == self.poll_at => self.count + 1,
            Some(_) => 1,
        };
        self.poll_at = poll_at;
        assert!(
            self.count <= EARLY_PASSES_MAX,
            "passes are made for a poll time that never changes: {poll_at:?}"
        );
    }
}
