//! The reconciler: observes open orders, decides, settles, and starts what is due.
//!
//! `run` only loops; one turn of it is a `pass`. What to do about an order is decided in `decide`,
//! how fast in `pace`; here the decisions take effect. A pass assumes nothing about the one before
//! it: it may have died at any point. Orders are never served from here, and the API is not
//! known: the two meet in the database alone.

mod schedule;
mod start;

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Context;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio_util::sync::CancellationToken;

pub use self::schedule::{Schedule, ScheduleError};
use crate::clock::Clock;
use crate::decide::{Action, Look, OpenOrder, Phase, Policy, decide};
use crate::order::{Observed, OrderId, Reason, Timestamp};
use crate::pace::{self, Failure, Observation, Reach, Reachability, StartPace, backoff};
use crate::store::{Change, Heartbeat, LeaderLock, Step, Store, Trouble};
use crate::upstream::{Entry, Upstream};

/// Changes in one transaction. It takes some ten milliseconds, which another process' writes can
/// wait.
const BATCH_MAX: usize = 2_000;

/// How often to look for orders that were created by another process.
const WATCH_INTERVAL: Duration = Duration::from_millis(20);

/// How often a standby tries to take the lead.
const STANDBY_INTERVAL: Duration = Duration::from_millis(250);

/// How old the heartbeat may become while nothing happens. Each costs a disk flush.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);

/// How late a pass may be before something is wrong: far longer than one takes, in which requests
/// run into their timeouts, and than the heartbeat is old while nothing happens.
const OVERDUE_AFTER: Duration = Duration::from_secs(60);

/// When the list cannot be used, this many orders are looked up one by one instead.
const INSTEAD_OF_LIST_MAX: usize = 500;

/// How long after the stop signal the answer to a start is waited for.
pub const ABANDON_AFTER: Duration = Duration::from_secs(20);

/// What a reconciler is told by its operator.
#[derive(Clone, Debug)]
pub struct Settings {
    /// When passes begin.
    pub schedule: Schedule,
    /// Starts per second at most; 0 for no ceiling.
    pub start_rate: f64,
    /// Requests to the upstream at once.
    pub max_in_flight: usize,
    /// How long a request may take.
    pub request_timeout: Duration,
    /// How often an order may be started.
    pub max_starts: u32,
}

/// Asks a reconciler to end.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// Nothing new is begun any more.
    pub begun: CancellationToken,
    /// Answers are not waited for any more.
    pub abandon: CancellationToken,
}

/// What one pass did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Orders whose process was looked for.
    pub observed: usize,
    /// Processes started.
    pub started: usize,
    /// Processes found to exist already.
    pub adopted: usize,
    /// Orders that reached FULFILLED or FAILED.
    pub settled: usize,
    /// Starts that the upstream refused.
    pub refused: usize,
    /// Starts without a usable answer.
    pub unanswered: usize,
    /// Orders that were newly found to need looking at, or still do.
    pub flagged: usize,
    /// Changes that came too late.
    pub overtaken: usize,
    /// Orders that could have been started if there had been time.
    pub left: bool,
    /// Whether the upstream gave no usable answer in the end, although one was needed.
    pub unreachable: bool,
}

impl Report {
    fn is_eventful(&self) -> bool {
        self.started + self.adopted + self.settled + self.refused + self.unanswered + self.flagged
            > 0
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "observed={}", self.observed)?;
        for (name, count) in [
            ("started", self.started),
            ("adopted", self.adopted),
            ("settled", self.settled),
            ("refused", self.refused),
            ("unanswered", self.unanswered),
            ("flagged", self.flagged),
            ("overtaken", self.overtaken),
        ] {
            if count > 0 {
                write!(f, " {name}={count}")?;
            }
        }
        Ok(())
    }
}

/// What the reconciler acts on.
struct World<U, C> {
    store: Store,
    upstream: U,
    clock: C,
    settings: Settings,
}

/// Carries orders through the order process service, one pass at a time.
pub struct Reconciler<U, C> {
    world: World<U, C>,
    pace: StartPace,
    reachability: Reachability,
    heartbeat: Heartbeat,
    heartbeat_written_at: Option<Timestamp>,
    next_look_at: Option<Timestamp>,
    /// The place of the order that was last asked about only to hear whether anyone answers.
    probed: i64,
}

impl<U: Upstream, C: Clock> Reconciler<U, C> {
    /// A reconciler that goes on where an earlier one stopped.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn new(store: Store, upstream: U, clock: C, settings: Settings) -> anyhow::Result<Self> {
        let mut heartbeat = store.heartbeat()?;
        heartbeat.leader_since = Some(clock.now());
        Ok(Self {
            pace: StartPace::new(settings.start_rate),
            reachability: Reachability::new(heartbeat.reach.clone()),
            heartbeat,
            heartbeat_written_at: None,
            next_look_at: None,
            probed: 0,
            world: World {
                store,
                upstream,
                clock,
                settings,
            },
        })
    }

    /// One turn: observe, decide, settle, and then start what is due, until the next look is due.
    ///
    /// # Errors
    /// The database cannot be read or written. Nothing is lost: the next pass takes it up.
    pub async fn pass(&mut self, stop: &Stop) -> anyhow::Result<Report> {
        let mut report = Report::default();
        let now = self.world.clock.now();
        if self.reachability.not_before().is_some_and(|at| at > now) {
            report.unreachable = true;
        } else if self.is_answered().await? {
            let due = if self.next_look_at.is_none_or(|at| at <= now) {
                self.observe(&mut report, stop).await?
            } else {
                Vec::new()
            };
            if !self.reachability.is_down() {
                self.start_due(due, &mut report, stop).await?;
            }
            report.unreachable = self.reachability.is_down();
        } else {
            report.unreachable = true;
        }
        self.tell(&report).await?;
        Ok(report)
    }

    /// Whether it makes sense to ask anything: while the upstream is down, one look-up finds out
    /// whenever a look is due, of another order each time in case it is the order's fault.
    async fn is_answered(&mut self) -> anyhow::Result<bool> {
        if !self.reachability.is_down() {
            return Ok(true);
        }
        let now = self.world.clock.now();
        if self.next_look_at.is_some_and(|at| at > now) {
            return Ok(false);
        }
        let store = &self.world.store;
        let next = match store.next_open(self.probed)? {
            None => store.next_open(0)?,
            next => next,
        };
        let Some((seq, id)) = next else {
            return Ok(true);
        };
        self.probed = seq;
        let result = self.world.upstream.look_up(&id).await;
        self.note(result.as_ref().err());
        if result.is_err() {
            self.next_look_at = Some(self.world.settings.schedule.next_after(now));
        }
        Ok(result.is_ok())
    }

    /// Looks for the processes of all orders that should have one, and records what was seen.
    /// Returns the orders that are to be started again.
    async fn observe(
        &mut self,
        report: &mut Report,
        stop: &Stop,
    ) -> anyhow::Result<Vec<OpenOrder>> {
        let began_at = self.world.clock.now();
        let schedule = &self.world.settings.schedule;
        self.next_look_at = Some(schedule.next_after(began_at));
        let orders = self.world.store.watched()?;
        if orders.is_empty() {
            return Ok(Vec::new());
        }
        report.observed = orders.len();
        let mut sight = Sight::new(orders);
        let cost = match pace::how_to_look(sight.orders.len(), self.heartbeat.list_entries) {
            Observation::LookUps => {
                self.look_up_each(&mut sight, usize::MAX, stop).await;
                pace::look_ups_cost(sight.orders.len())
            }
            Observation::List => {
                self.read_list(&mut sight, stop).await;
                pace::list_cost(self.heartbeat.list_entries.unwrap_or(0))
            }
        };
        let rested = began_at.after(pace::pause_after(cost));
        self.next_look_at = self.next_look_at.max(Some(rested));
        if sight.is_complete {
            self.heartbeat.last_seen_at = Some(began_at);
        }
        self.settle(sight, report).await
    }

    /// Asks for each order that is due, up to `limit` of them, unless the upstream goes down.
    async fn look_up_each(&mut self, sight: &mut Sight, limit: usize, stop: &Stop) {
        let now = self.world.clock.now();
        let mut failures = Vec::new();
        let mut waiting: Vec<usize> = (0..sight.orders.len())
            .filter(|&at| sight.looks[at].is_none() && sight.orders[at].is_due(now))
            .collect();
        // Not always the same ones first when there are more than may be asked for.
        if waiting.len() > limit {
            let from = now.0.unsigned_abs() as usize % waiting.len();
            waiting.rotate_left(from);
            waiting.truncate(limit);
            sight.is_complete = false;
        }
        let mut waiting = waiting.into_iter();
        let world = &self.world;
        let mut asked = FuturesUnordered::new();
        loop {
            while asked.len() < world.settings.max_in_flight
                && !self.reachability.is_down()
                && !stop.begun.is_cancelled()
                && let Some(at) = waiting.next()
            {
                let id = sight.orders[at].id.clone();
                asked.push(async move {
                    let began_at = world.clock.now();
                    let result = world.upstream.look_up(&id).await;
                    (at, began_at, result)
                });
            }
            let Some((at, began_at, result)) = asked.next().await else {
                break;
            };
            note(
                &mut self.reachability,
                world.clock.now(),
                result.as_ref().err(),
            );
            match result {
                Ok(observed) => sight.looks[at] = Some(Look { observed, began_at }),
                Err(failure) => failures.push((at, failure)),
            }
        }
        if waiting.next().is_some() || !failures.is_empty() {
            sight.is_complete = false;
        }
        // An upstream that is down is no order's fault, and stored once.
        if !self.reachability.is_down() {
            sight.failures = failures;
        }
    }

    /// Reads the list of all processes. If it cannot be used, some orders are looked up instead,
    /// so that a list that never works cannot strand anyone.
    async fn read_list(&mut self, sight: &mut Sight, stop: &Stop) {
        let began_at = self.world.clock.now();
        let mut index: HashMap<&str, usize> = HashMap::with_capacity(sight.orders.len());
        for (at, order) in sight.orders.iter().enumerate() {
            index.insert(order.id.as_str(), at);
        }
        let mut told: Vec<Option<Observed>> = vec![None; sight.orders.len()];
        let result = self
            .world
            .upstream
            .list(|entry: Entry<'_>| {
                let Some(&at) = index.get(&*entry.order_id) else {
                    return;
                };
                let observed = Observed::of_status(&entry.status);
                match &mut told[at] {
                    // Named twice and differently: that says nothing.
                    Some(earlier) if *earlier != observed => *earlier = Observed::Unknown,
                    Some(_) => {}
                    slot => *slot = Some(observed),
                }
            })
            .await;
        let not_told = if result.is_ok() {
            Some(Observed::Absent)
        } else {
            None
        };
        for (at, told) in told.into_iter().enumerate() {
            sight.looks[at] = told
                .or_else(|| not_told.clone())
                .map(|observed| Look { observed, began_at });
        }
        self.note(result.as_ref().err());
        match result {
            Ok(entries) => self.heartbeat.list_entries = Some(entries),
            Err(failure) => {
                sight.is_complete = false;
                if !self.reachability.is_down() {
                    log::warn!("{}; some orders are looked up instead", failure.detail);
                    self.look_up_each(sight, INSTEAD_OF_LIST_MAX, stop).await;
                }
            }
        }
    }

    /// Decides about each order and records the decisions, some thousands at a time.
    async fn settle(
        &mut self,
        sight: Sight,
        report: &mut Report,
    ) -> anyhow::Result<Vec<OpenOrder>> {
        let now = self.world.clock.now();
        let policy = self.world.policy();
        let mut changes = Vec::new();
        for (at, failure) in &sight.failures {
            let order = &sight.orders[*at];
            let detail = failure.detail.clone();
            let trouble = trouble(order, Reason::UpstreamUnreachable, detail, now);
            changes.push(Change {
                seq: order.seq,
                step: Step::Delayed(trouble),
            });
        }
        let mut due = Vec::new();
        for (order, look) in sight.orders.into_iter().zip(sight.looks) {
            let look = look.unwrap_or(Look {
                observed: Observed::Unknown,
                began_at: now,
            });
            let action = decide(&order, &look, &policy, now);
            if action == Action::Start {
                due.push(order);
            } else {
                let mut steps = Vec::new();
                effects(&order, action, &look.observed, now, report, &mut steps);
                let seq = order.seq;
                changes.extend(steps.into_iter().map(|step| Change { seq, step }));
            }
        }
        let mut changes = changes.into_iter();
        loop {
            let batch: Vec<Change> = changes.by_ref().take(BATCH_MAX).collect();
            if batch.is_empty() {
                break;
            }
            let recorded = self
                .world
                .store
                .record(batch, now)
                .await
                .context("what was observed could not be recorded")?;
            report.overtaken += recorded.overtaken;
        }
        Ok(due)
    }

    /// Takes note of an answer, or of why there was none.
    fn note(&mut self, failure: Option<&Failure>) {
        note(&mut self.reachability, self.world.clock.now(), failure);
    }

    /// Leaves a heartbeat and a log line, if there is anything to tell.
    async fn tell(&mut self, report: &Report) -> anyhow::Result<()> {
        if report.is_eventful() {
            log::info!("pass: {report}");
        }
        let now = self.world.clock.now();
        let is_news = report.is_eventful() || self.heartbeat.reach != *self.reachability.reach();
        self.heartbeat.reach = self.reachability.reach().clone();
        self.heartbeat.last_pass_at = Some(now);
        let schedule = &self.world.settings.schedule;
        self.heartbeat.next_pass_at = Some(schedule.next_after(now));
        let is_old = self
            .heartbeat_written_at
            .is_none_or(|at| now.since(at) >= HEARTBEAT_INTERVAL || at > now);
        if is_news || is_old {
            let heartbeat = self.heartbeat.clone();
            self.world.store.write_heartbeat(heartbeat).await?;
            self.heartbeat_written_at = Some(now);
        }
        Ok(())
    }
}

impl<U, C> World<U, C> {
    fn policy(&self) -> Policy {
        Policy {
            request_timeout: self.settings.request_timeout,
            max_starts: self.settings.max_starts,
        }
    }
}

/// The watched orders, and what was seen of each.
struct Sight {
    orders: Vec<OpenOrder>,
    looks: Vec<Option<Look>>,
    /// The orders whose own look-up failed.
    failures: Vec<(usize, Failure)>,
    /// Whether every order was seen.
    is_complete: bool,
}

impl Sight {
    fn new(orders: Vec<OpenOrder>) -> Self {
        Self {
            looks: vec![None; orders.len()],
            orders,
            failures: Vec::new(),
            is_complete: true,
        }
    }
}

/// Keeps the upstream's reach, and tells the log when it changes.
fn note(reachability: &mut Reachability, now: Timestamp, failure: Option<&Failure>) {
    match failure {
        None => {
            let was_down = reachability.is_down();
            if reachability.answered(now) {
                let again = if was_down { " again" } else { "" };
                log::info!("the upstream answers{again}");
            }
        }
        Some(failure) => {
            if reachability.failed(now, failure) {
                log::warn!(
                    "the upstream is down, and is asked once a pass until it answers: {}",
                    failure.detail
                );
            }
        }
    }
}

/// The steps of an action other than a start.
fn effects(
    order: &OpenOrder,
    action: Action,
    observed: &Observed,
    now: Timestamp,
    report: &mut Report,
    steps: &mut Vec<Step>,
) {
    match action {
        Action::Wait | Action::Start => {}
        Action::Adopt => {
            report.adopted += 1;
            steps.push(Step::Adopted);
        }
        Action::Settle(outcome) => {
            report.settled += 1;
            if matches!(order.phase, Phase::Created { .. }) {
                report.adopted += 1;
                steps.push(Step::Adopted);
            }
            steps.push(Step::Settled(outcome));
        }
        Action::Flag(reason) => {
            report.flagged += 1;
            let detail = flag_detail(order, reason, observed);
            steps.push(Step::Flagged(trouble(order, reason, detail, now)));
        }
        Action::Clear => steps.push(Step::Cleared),
    }
}

fn flag_detail(order: &OpenOrder, reason: Reason, observed: &Observed) -> String {
    match (reason, observed) {
        (Reason::UnknownStatus, Observed::Unrecognised(word)) => {
            format!("its process has the status {word:?}, which this program does not know")
        }
        (Reason::ProcessLost, _) => {
            "the upstream does not know its process any more; it may or may not have done its work"
                .to_owned()
        }
        (Reason::MaxStarts, _) => format!(
            "it may have been started {} times and is not started again",
            order.starts_so_far()
        ),
        (reason, _) => reason.as_str().replace('_', " "),
    }
}

/// A trouble of this order, and when it is tried again.
fn trouble(order: &OpenOrder, reason: Reason, detail: String, now: Timestamp) -> Trouble {
    Trouble {
        reason,
        detail,
        next_attempt_at: now.after(backoff(&order.id, order.attempts + 1)),
    }
}

/// Takes the lead, or waits for it. Nothing if the program is to end first.
///
/// # Errors
/// The lock file beside the database cannot be used.
pub async fn lead(store: &Store, stop: &Stop) -> anyhow::Result<Option<LeaderLock>> {
    let mut told = false;
    loop {
        if let Some(lock) = LeaderLock::try_take(store.path())? {
            log::info!("this reconciler leads");
            return Ok(Some(lock));
        }
        if !told {
            log::info!("another reconciler leads; this one stands by");
            told = true;
        }
        tokio::select! {
            () = stop.begun.cancelled() => return Ok(None),
            () = tokio::time::sleep(STANDBY_INTERVAL) => {}
        }
    }
}

/// Passes on the schedule, and at once when an order was created by any process, until `stop`.
///
/// # Errors
/// The schedule cannot be kept. A pass that fails ends nothing.
pub async fn run<U: Upstream, C: Clock>(
    mut reconciler: Reconciler<U, C>,
    stop: &Stop,
) -> anyhow::Result<()> {
    let mut ticks = reconciler.world.settings.schedule.ticks().await?;
    let mut watch = reconciler.world.store.watch()?;
    let mut trouble = None;
    while !stop.begun.is_cancelled() {
        match reconciler.pass(stop).await {
            Ok(report) => {
                if trouble.take().is_some() {
                    log::info!("passes succeed again");
                }
                if report.left {
                    continue;
                }
            }
            Err(error) => {
                let error = format!("{error:#}");
                if trouble.as_ref() != Some(&error) {
                    log::error!("a pass failed, and is tried again on schedule: {error}");
                    trouble = Some(error);
                }
            }
        }
        loop {
            tokio::select! {
                () = stop.begun.cancelled() => break,
                () = ticks.next() => break,
                () = tokio::time::sleep(WATCH_INTERVAL) => {
                    // While the database cannot be read, the schedule is enough.
                    if watch.has_new_order().unwrap_or(false) {
                        break;
                    }
                }
            }
        }
    }
    ticks.end().await;
    Ok(())
}

/// Passes until every order that is due was tried once. Tells whether the upstream could be used.
///
/// # Errors
/// The database cannot be read or written.
pub async fn run_once<U: Upstream, C: Clock>(
    mut reconciler: Reconciler<U, C>,
    stop: &Stop,
) -> anyhow::Result<bool> {
    loop {
        let report = reconciler.pass(stop).await?;
        if report.unreachable {
            return Ok(false);
        }
        if !report.left || stop.begun.is_cancelled() {
            return Ok(true);
        }
    }
}

/// Whether the next pass should have been completed by now: the program that leads is stuck, or
/// there is none.
pub fn is_overdue(heartbeat: &Heartbeat, now: Timestamp) -> bool {
    heartbeat
        .next_pass_at
        .is_none_or(|at| now > at.after(OVERDUE_AFTER))
}

/// The id of an order and why its start brought trouble, for the log.
fn log_start(id: &OrderId, detail: &str) {
    log::debug!("order {id:?}: {detail}");
}

/// What is known of the upstream, in words, for those who ask how the service is.
pub fn reach_in_words(reach: &Reach) -> (&'static str, Option<Timestamp>, Option<&str>) {
    match reach {
        Reach::Unknown => ("unknown", None, None),
        Reach::Up { since } => ("up", Some(*since), None),
        Reach::Down { since, detail } => ("down", Some(*since), Some(detail)),
    }
}
