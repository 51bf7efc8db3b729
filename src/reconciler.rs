//! The reconciler: observes open orders, decides, settles, and starts what is due.
//!
//! `run` only loops; one turn of it is a `pass`. What to do about an order is decided in `decide`,
//! how fast in `pace`; here the decisions take effect. A pass assumes nothing about the one before
//! it: it may have died at any point. Orders are never served from here, and the API is not
//! known: the two meet in the database alone.

mod asking;
mod effects;
mod list_read;
mod observations;
mod observe;
mod order_log;
mod schedule;
mod start;
mod start_attempt;
mod start_commits;
mod start_queue;
mod thread;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;

use self::asking::Asking;
pub use self::effects::Decision;
use self::list_read::ListRead;
pub use self::schedule::{Moments, Schedule, ScheduleError};
pub use self::start::Stage;
use self::start_queue::StartQueue;
pub use self::thread::{ReconcilerThread, reconciler_runtime};
use crate::clock::{Clock, SteadyClock};
use crate::decide::{Look, LostProcess, Occasion, OpenOrder, PassContext, Policy, decide};
use crate::messages::span;
use crate::order::{Status, Timestamp};
use crate::pace::{Call, Pace};
use crate::process::Stop;
use crate::reconciler_metrics::PassOutcome;
use crate::reconciler_state::ReconcilerState;
use crate::store::{LeadError, Leadership, StartCandidate, Store};
use crate::upstream::{Failure, Upstream};

/// How often a standby tries to take the lead.
const STANDBY_INTERVAL: Duration = Duration::from_millis(250);

/// How old the heartbeat may become while nothing happens. Each costs a disk flush.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);

/// With a schedule no slower than this, orders are looked at in moments of their own.
const OWN_MOMENT_MAX: Duration = Duration::from_secs(1);

/// How long an upstream that is down is left alone between two probes, at the least. A little less
/// than the usual schedule's second, so that a tick that comes early is not lost.
const PROBE_INTERVAL: Duration = Duration::from_millis(900);

/// Every so many probes of an upstream that is down, the list is tried if it is due to be read:
/// there may be an upstream whose look-ups alone do not work.
const LOOK_INSTEAD_EVERY: u32 = 8;

/// Default ceiling of starts per second where a forgotten process needs an operator.
const GUARDED_RATE: f64 = 50.0;

/// A limit of the start rate is logged if it holds up orders for so long.
const WAIT_LOGGED: Duration = Duration::from_secs(10);

/// And no more often than this.
const WAIT_LOGGED_EVERY: Duration = Duration::from_secs(60);

/// What a reconciler is told by its operator.
#[derive(Clone, Debug)]
pub struct Settings {
    /// When passes begin.
    pub schedule: Schedule,
    /// Starts per second at most; 0 for no ceiling, `None` for the default of [`Self::ceiling`].
    pub start_rate: Option<f64>,
    /// Requests to the upstream at once.
    pub max_in_flight: usize,
    /// How long a request may take.
    pub request_timeout: Duration,
    /// How often an order may be started.
    pub max_starts: u32,
    /// What to do with an order whose process was forgotten.
    pub lost_process: LostProcess,
}

impl Default for Settings {
    /// The defaults of the flags.
    fn default() -> Self {
        Self {
            schedule: Schedule::default(),
            start_rate: None,
            max_in_flight: 8,
            request_timeout: Duration::from_secs(5),
            max_starts: 5,
            lost_process: LostProcess::Restart,
        }
    }
}

impl Settings {
    /// Starts per second at most, 0 without a ceiling. Where a forgotten process is a case for a person,
    /// the default has one: what is started fast is forgotten in great number.
    pub fn ceiling(&self) -> f64 {
        let is_guarded = self.lost_process != LostProcess::Restart || self.max_starts == 1;
        let default = if is_guarded { GUARDED_RATE } else { 0.0 };
        self.start_rate.unwrap_or(default)
    }
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
    /// Processes started in the place of one that the upstream has forgotten.
    pub restarted: usize,
    /// Orders whose process was newly found to be missing.
    pub missed: usize,
    /// Orders settled as FAILED because their process was forgotten.
    pub failed_by_policy: usize,
    /// Orders that reached FULFILLED or FAILED.
    pub settled: usize,
    /// Starts that the upstream refused.
    pub refused: usize,
    /// Starts without a usable answer.
    pub unanswered: usize,
    /// Orders that were newly found to need looking at, or still do.
    pub flagged: usize,
    /// Changes that came too late.
    pub conflicts: usize,
    /// Orders that could have been started if there had been time.
    pub has_more: bool,
    /// Set if a process was missing too soon for that to count.
    pub is_too_soon: bool,
    /// Whether the upstream gave no usable answer in the end, although one was needed.
    pub unreachable: bool,
}

impl Report {
    fn is_eventful(&self) -> bool {
        let still = Self {
            observed: self.observed,
            conflicts: self.conflicts,
            has_more: self.has_more,
            is_too_soon: self.is_too_soon,
            unreachable: self.unreachable,
            ..Self::default()
        };
        *self != still
    }

    /// Logs a line with the counts that are not 0; for machines, each count is a field of it.
    fn log(&self) {
        log::info!(
            target: "order_service::pass",
            observed = self.observed, started = self.started, adopted = self.adopted,
            restarted = self.restarted, missed = self.missed,
            failed_by_policy = self.failed_by_policy, settled = self.settled,
            refused = self.refused, unanswered = self.unanswered, flagged = self.flagged,
            conflicts = self.conflicts;
            "{self}"
        );
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "observed={}", self.observed)?;
        for (name, count) in [
            ("started", self.started),
            ("adopted", self.adopted),
            ("restarted", self.restarted),
            ("missed", self.missed),
            ("failed_by_policy", self.failed_by_policy),
            ("settled", self.settled),
            ("refused", self.refused),
            ("unanswered", self.unanswered),
            ("flagged", self.flagged),
            ("conflicts", self.conflicts),
        ] {
            if count > 0 {
                write!(f, " {name}={count}")?;
            }
        }
        Ok(())
    }
}

/// An event inside the reconciler, for whoever watches it at work, as the simulation does.
#[derive(Clone, Copy, Debug)]
pub enum Trace<'a> {
    /// An order was decided about.
    Decided(&'a Decision<'a>),
    /// An order has entered a stage of being started.
    Entered(Stage, &'a StartCandidate),
}

/// Receives the events inside the reconciler.
type Hook = dyn Fn(Trace<'_>);

/// Everything that the reconciler acts on.
struct Context<U, C> {
    store: Store,
    lead: Leadership,
    upstream: Asking<U>,
    /// Set right between passes only.
    clock: SteadyClock<C>,
    settings: Settings,
    /// When this run began: the program was started, the clock stepped, or a pass failed.
    run_began_at: Cell<Timestamp>,
    /// When the upstream was last found to have forgotten a process.
    forgot_at: Cell<Option<Timestamp>>,
    hook: Option<Box<Hook>>,
}

/// Carries orders through the order process service, one pass at a time.
pub struct Reconciler<U, C> {
    context: Rc<Context<U, C>>,
    /// Whether this run has begun: the first, or the one that follows a step of the clock.
    has_begun: bool,
    pace: Pace,
    heartbeat: HeartbeatWriter,
    looked_at: Option<Timestamp>,
    /// The list that is being read.
    list: Option<ListRead>,
    queue: StartQueue,
    /// When it was last logged that orders wait.
    wait_logged_at: Option<Timestamp>,
    /// The place of the order that was last asked about only to hear whether anyone answers.
    probed: i64,
    probed_at: Option<Timestamp>,
    probes: u32,
}

impl<U: Upstream, C: Clock> Reconciler<U, C> {
    /// A reconciler that goes on where an earlier one stopped.
    pub async fn new(
        store: Store,
        lead: Leadership,
        upstream: U,
        clock: C,
        settings: Settings,
    ) -> anyhow::Result<Self> {
        let mut heartbeat = store.heartbeat().await?;
        let now = clock.now();
        heartbeat.leader_since = Some(now);
        heartbeat.led_until = None;
        heartbeat.policy = Some(settings.lost_process);
        heartbeat.metrics.led();
        let pace = Pace::new(
            settings.ceiling(),
            settings.max_in_flight,
            heartbeat.learned.clone(),
            heartbeat.reach.clone(),
            now,
        );
        let tally = heartbeat.metrics.clone();
        let forgot_at = pace.lives().forgot_at();
        Ok(Self {
            has_begun: false,
            pace,
            heartbeat: HeartbeatWriter {
                heartbeat,
                written_at: None,
            },
            looked_at: None,
            list: None,
            queue: StartQueue::default(),
            wait_logged_at: None,
            probed: 0,
            probed_at: None,
            probes: 0,
            context: Rc::new(Context {
                store,
                lead,
                upstream: Asking::new(upstream, tally),
                clock: SteadyClock::new(clock),
                settings,
                run_began_at: Cell::new(now),
                forgot_at: Cell::new(forgot_at),
                hook: None,
            }),
        })
    }

    /// Calls `hook` at each decision, and whenever an order enters a stage of being started.
    #[must_use]
    pub fn traced(mut self, hook: impl Fn(Trace<'_>) + 'static) -> Self {
        if let Some(context) = Rc::get_mut(&mut self.context) {
            context.hook = Some(Box::new(hook));
        }
        self
    }

    /// One turn: observe, decide, settle, and then start what is due, until the next look is due.
    ///
    /// # Errors
    /// The database cannot be read or written. Nothing is lost: the next pass takes it up.
    pub async fn pass(&mut self, stop: &Stop) -> anyhow::Result<Report> {
        self.set_clock_right();
        let began_at = self.context.clock.now();
        let mut report = Report::default();
        let done = self.turn(&mut report, stop).await;
        let ended = match &done {
            Ok(()) if report.unreachable => PassOutcome::Unreachable,
            Ok(()) => PassOutcome::Ok,
            Err(_) => PassOutcome::Failed,
        };
        let took = self.context.clock.now().since(began_at);
        self.context.upstream.tally().passed(ended, took);
        if done.is_err() {
            // That a start was given up may not be on record.
            self.context.run_began_at.set(self.context.clock.now());
        }
        done?;
        if report.is_eventful() {
            report.log();
        }
        if report.has_more {
            self.log_wait().await?;
        }
        self.heartbeat.heartbeat.last_pass_at = Some(self.context.clock.now());
        if report.is_eventful() {
            self.heartbeat.written_at = None;
        }
        self.write_heartbeat_if_due().await?;
        Ok(report)
    }

    /// Logs what holds up orders that are due, if it holds them up for long.
    async fn log_wait(&mut self) -> anyhow::Result<()> {
        let now = self.context.clock.now();
        let is_soon = |at| now.since(at) < WAIT_LOGGED_EVERY;
        let Some(reason) = self.pace.limit() else {
            return Ok(());
        };
        if self.wait_logged_at.is_some_and(is_soon) {
            return Ok(());
        }
        self.wait_logged_at = Some(now);
        let waiting = self.context.store.count(Status::Created).await?;
        let rate = self.pace.rate().rate();
        let wait = Duration::try_from_secs_f64(waiting as f64 / rate).unwrap_or(Duration::MAX);
        if wait >= WAIT_LOGGED {
            let wait = span(wait);
            log::info!(
                "orders wait waiting={waiting} rate={rate:.1} about={wait:?} reason={reason:?}"
            );
        }
        Ok(())
    }

    fn set_clock_right(&mut self) {
        let before = self.context.clock.now();
        if self.context.clock.resync() {
            let now = self.context.clock.now();
            let (way, by) = match now < before {
                true => ("back", before.since(now)),
                false => ("forward", now.since(before)),
            };
            let by = span(by);
            log::warn!("the clock was set {way} by {by}: this reconciler begins as after a start");
            self.has_begun = false;
            self.context.run_began_at.set(now);
        }
    }

    /// Begins a run. By a clock that was stepped nobody can tell how long ago anything was; so all that
    /// has to be waited for is waited for from here on, and what was stored must not lie ahead.
    async fn begin(&mut self) -> anyhow::Result<()> {
        let now = self.context.clock.now();
        let set_right = self
            .context
            .store
            .set_times_right(&self.context.lead, now)
            .await;
        set_right.context("the times of open orders could not be read or set right")?;
        let ReconcilerState {
            leader_since,
            last_pass_at,
            last_seen_at,
            ..
        } = &mut self.heartbeat.heartbeat;
        for past in [leader_since, last_pass_at, last_seen_at] {
            *past = past.map(|at| at.min(now));
        }
        self.heartbeat.written_at = None;
        self.pace = self.pace.again(now);
        self.context.forgot_at.set(self.pace.lives().forgot_at());
        self.looked_at = None;
        self.list = None;
        self.queue.clear();
        self.probed_at = None;
        self.has_begun = true;
        Ok(())
    }

    /// Tells a last time how things are, so that nothing is lost of what was counted, and that it
    /// leads no longer.
    pub async fn end(mut self) {
        self.heartbeat.written_at = None;
        self.heartbeat.heartbeat.leader_since = None;
        self.heartbeat.heartbeat.led_until = Some(self.context.clock.now());
        if let Err(error) = self.write_heartbeat_if_due().await {
            log::debug!("the last heartbeat was not written: {error:#}");
        }
    }

    async fn turn(&mut self, report: &mut Report, stop: &Stop) -> anyhow::Result<()> {
        if !self.has_begun {
            self.begin().await?;
        }
        self.take_list(report, stop).await?;
        let now = self.context.clock.now();
        let is_resting = self.pace.reach().resting_until(now).is_some();
        if !is_resting && self.is_answered().await? {
            if self.is_look_due() {
                self.observe(report, stop).await?;
            }
            self.write_heartbeat_if_due().await?;
            self.start_due(report, stop).await?;
        }
        let met = self.pace.take_met();
        let is_unanswered = met.failure && !met.answer;
        report.unreachable = is_resting || is_unanswered || self.pace.reach().is_down();
        Ok(())
    }

    async fn write_heartbeat_if_due(&mut self) -> anyhow::Result<()> {
        self.heartbeat.write_if_due(&self.context, &self.pace).await
    }

    /// Waits for one request timeout, unless the program is to end.
    async fn wait(&self, why: &str, stop: &Stop) {
        let timeout = self.context.settings.request_timeout;
        log::info!("{why}: waiting for {timeout:?}");
        tokio::select! {
            () = stop.begun.cancelled() => {}
            () = self.context.clock.sleep(timeout) => {}
        }
    }

    /// Makes the next pass look at everything.
    fn look_again(&mut self) {
        self.looked_at = None;
        self.pace.look_again(self.context.clock.now());
    }

    /// Looks are made on schedule, not in passes that new orders bring, and only as often as is
    /// good for the upstream.
    fn is_look_due(&self) -> bool {
        let now = self.context.clock.now();
        let is_on_schedule = self
            .looked_at
            .is_none_or(|at| self.context.settings.schedule.next_after(at) <= now);
        let is_due = is_on_schedule || self.next_look_at().is_some_and(|at| at <= now);
        is_due && self.pace.are_looks_due(now)
    }

    /// When one of a few orders is to be looked at, before the schedule's next moment.
    pub fn next_look_at(&self) -> Option<Timestamp> {
        let looked_at = self.looked_at?;
        self.pace.look_due_at().filter(|_| self.is_often(looked_at))
    }

    /// Returns whether the schedule has its next moment so soon that an order may be looked at in one of
    /// its own: a schedule that is slower than once a second is kept to.
    fn is_often(&self, now: Timestamp) -> bool {
        self.context.settings.schedule.next_after(now).since(now) <= OWN_MOMENT_MAX
    }

    /// Returns when one of a few orders is to be looked at.
    async fn look_due(clock: &impl Clock, at: Option<Timestamp>) {
        match at {
            Some(at) => clock.sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    /// Whether it makes sense to ask anything: while the upstream is down, one look-up a pass finds
    /// out, of another order each time in case it is the order's fault. Passes that new orders
    /// bring do so no more often than every [`PROBE_INTERVAL`].
    async fn is_answered(&mut self) -> anyhow::Result<bool> {
        if !self.pace.reach().is_down() {
            return Ok(true);
        }
        let now = self.context.clock.now();
        let is_soon = |at| now.since(at) < PROBE_INTERVAL;
        if self.probed_at.is_some_and(is_soon) {
            return Ok(false);
        }
        let store = &self.context.store;
        let next = match store.next_open(self.probed).await? {
            None => store.next_open(0).await?,
            next => next,
        };
        let Some((seq, id)) = next else {
            return Ok(true);
        };
        self.probed = seq;
        self.probed_at = Some(now);
        self.probes += 1;
        if self.probes.is_multiple_of(LOOK_INSTEAD_EVERY) {
            return Ok(true);
        }
        let result = self
            .context
            .upstream
            .look_up(&self.context.clock, &id)
            .await;
        self.note(Call::look(now), result.as_ref().err());
        Ok(result.is_ok())
    }

    /// Takes note of an answer, or of why there was none.
    fn note(&mut self, call: Call, failure: Option<&Failure>) {
        let now = self.context.clock.now();
        note(&mut self.pace, call, now, failure);
    }
}

/// The heartbeat, and when it was last written.
struct HeartbeatWriter {
    heartbeat: ReconcilerState,
    written_at: Option<Timestamp>,
}

impl HeartbeatWriter {
    /// Writes the heartbeat if the upstream's reach has changed, or if it is old.
    async fn write_if_due<U, C: Clock>(
        &mut self,
        context: &Context<U, C>,
        pace: &Pace,
    ) -> anyhow::Result<()> {
        let now = context.clock.now();
        let is_news = self.heartbeat.reach != *pace.reach().reach()
            || self.heartbeat.learned.resting_until != pace.reach().resting_until(now);
        let is_old = self
            .written_at
            .is_none_or(|at| now.since(at) >= HEARTBEAT_INTERVAL);
        if is_news || is_old {
            self.heartbeat.reach = pace.reach().reach().clone();
            self.heartbeat.learned = pace.learned(now);
            self.heartbeat.metrics = context.upstream.tally().clone();
            let next_pass_at = context.settings.schedule.next_after(now);
            self.heartbeat.next_pass_at = Some(next_pass_at);
            self.heartbeat.next_look_at = Some(next_pass_at.max(pace.next_look_at()));
            let heartbeat = self.heartbeat.clone();
            context
                .store
                .write_heartbeat(&context.lead, heartbeat)
                .await?;
            self.written_at = Some(now);
        }
        Ok(())
    }
}

impl<U, C> Context<U, C> {
    /// Decides about one order.
    fn decide<'a>(
        &self,
        order: &'a OpenOrder,
        occasion: Occasion,
        look: Option<&'a Look>,
        now: Timestamp,
    ) -> Decision<'a> {
        let (policy, at) = (self.policy(), self.at(now));
        let decision = Decision {
            order,
            occasion,
            look,
            action: decide(order, occasion, look, &policy, at),
            is_intent_cleared: order.is_intent_cleared(&policy, at),
        };
        if let Some(hook) = &self.hook {
            hook(Trace::Decided(&decision));
        }
        decision
    }

    fn at(&self, now: Timestamp) -> PassContext {
        PassContext {
            now,
            forgot_at: self.forgot_at.get(),
        }
    }

    /// An order has entered a stage of being started.
    fn enter(&self, stage: Stage, order: &StartCandidate) {
        if let Some(hook) = &self.hook {
            hook(Trace::Entered(stage, order));
        }
    }

    fn policy(&self) -> Policy {
        Policy {
            request_timeout: self.settings.request_timeout,
            max_starts: self.settings.max_starts,
            lost_process: self.settings.lost_process,
            run_began_at: self.run_began_at.get(),
        }
    }
}

/// Takes note of an answer, or of why there was none, and tells the log what that changes.
fn note(pace: &mut Pace, call: Call, now: Timestamp, failure: Option<&Failure>) {
    let Some(failure) = failure else {
        let was_down = pace.reach().is_down();
        if pace.answered(call, now) {
            let again = if was_down { " again" } else { "" };
            log::info!("the upstream answers{again}");
        }
        return;
    };
    let rested_until = pace.reach().resting_until(now);
    let (is_slower, is_down) = pace.failed(call, now, failure);
    if is_slower {
        let (rate, detail) = (pace.rate().rate(), &failure.detail);
        log::info!("start rate reduced rate={rate:.1} reason={detail:?}");
    }
    if let Some(at) = pace
        .reach()
        .resting_until(now)
        .filter(|at| Some(*at) > rested_until)
    {
        let (wait, detail) = (span(at.since(now)), &failure.detail);
        log::info!("the upstream is left alone for {wait}, as it has asked: {detail}");
    }
    if is_down {
        log::warn!(
            "the upstream is down, and is asked once a pass until it answers: {}",
            failure.detail
        );
    }
}

/// Takes the lead, or waits for it. Nothing if the program is to end first.
pub async fn lead(store: &Store, stop: &Stop) -> anyhow::Result<Option<Leadership>> {
    let mut is_told = false;
    let mut trouble = None;
    while !stop.begun.is_cancelled() {
        match store.try_lead().await {
            Ok(Some(lead)) => {
                log::info!("this reconciler leads");
                return Ok(Some(lead));
            }
            Ok(None) => {
                if !std::mem::replace(&mut is_told, true) {
                    log::info!("another reconciler leads; this one stands by");
                }
            }
            Err(LeadError::Open(error)) => return Err(error.into()),
            Err(LeadError::Store(error)) => {
                let error = error.to_string();
                if trouble.as_ref() != Some(&error) {
                    log::error!("the lead cannot be taken, and is tried again: {error}");
                    trouble = Some(error);
                }
            }
        }
        tokio::select! {
            () = stop.begun.cancelled() => {}
            () = tokio::time::sleep(STANDBY_INTERVAL) => {}
        }
    }
    Ok(None)
}

/// Passes on the schedule, and at once when an order was created by any process, until `stop` or until
/// the lead is lost.
///
/// # Errors
/// The schedule cannot be kept. A pass that fails ends nothing.
pub async fn run<U: Upstream, C: Clock>(
    mut reconciler: Reconciler<U, C>,
    stop: &Stop,
) -> anyhow::Result<()> {
    let now = reconciler.context.clock.now();
    let mut ticks = reconciler.context.settings.schedule.ticks(now).await?;
    let new_orders = reconciler.context.store.new_orders().await;
    let mut new_orders = new_orders.context("new orders cannot be noticed")?;
    let mut trouble = None;
    while !stop.begun.is_cancelled() && reconciler.context.lead.loss().is_none() {
        match reconciler.pass(stop).await {
            Ok(report) => {
                if trouble.take().is_some() {
                    log::info!("passes succeed again");
                }
                if report.has_more {
                    continue;
                }
            }
            Err(_) if reconciler.context.lead.loss().is_some() => break,
            Err(error) => {
                let error = format!("{error:#}");
                if trouble.as_ref() != Some(&error) {
                    log::error!("a pass failed, and is tried again on schedule: {error}");
                    trouble = Some(error);
                }
            }
        }
        let look_at = reconciler.next_look_at();
        tokio::select! {
            () = stop.begun.cancelled() => {}
            () = ticks.next(&reconciler.context.clock) => {}
            () = new_orders.next() => {}
            () = Reconciler::<U, C>::look_due(&reconciler.context.clock, look_at) => {}
            () = ListRead::read_on(&mut reconciler.list) => {}
        }
    }
    ticks.end().await;
    if let Some(loss) = reconciler.context.lead.loss() {
        log::error!("this reconciler gives up the lead: {loss}");
    } else if !stop.abandon.is_cancelled() {
        reconciler.end().await;
    }
    Ok(())
}

/// Passes until every order that is due was tried once. Tells whether the upstream could be used. A
/// start without an outcome that is found is given its time first, and a process that is missing is
/// looked for again when that counts: this run is the only one to wait.
pub async fn run_once<U: Upstream, C: Clock>(
    mut reconciler: Reconciler<U, C>,
    stop: &Stop,
) -> anyhow::Result<bool> {
    let Context {
        store,
        clock,
        settings,
        ..
    } = &*reconciler.context;
    let due_by = clock.now().after(settings.request_timeout);
    if store.has_unknown_start(due_by).await? {
        let why = "a start of an earlier run has no outcome";
        reconciler.wait(why, stop).await;
    }
    let (mut has_waited, mut is_too_soon) = (false, false);
    let is_usable = loop {
        let report = reconciler.pass(stop).await?;
        is_too_soon |= report.is_too_soon;
        if report.unreachable {
            let seen = reconciler.pace.reach().last_failure();
            log::warn!(
                "the order process service gave no usable answer: {}",
                seen.unwrap_or("it is left alone for now, as it has asked for")
            );
            break false;
        }
        if stop.begun.is_cancelled() {
            break true;
        }
        if report.has_more {
            continue;
        }
        if reconciler.list.is_some() {
            tokio::select! {
                () = stop.begun.cancelled() => {}
                () = ListRead::read_on(&mut reconciler.list) => {}
            }
            continue;
        }
        if has_waited || !is_too_soon {
            break true;
        }
        has_waited = true;
        let why = "a process is missing, which does not count so soon";
        reconciler.wait(why, stop).await;
        reconciler.look_again();
    };
    reconciler.end().await;
    Ok(is_usable)
}
