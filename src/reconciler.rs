//! The reconciler: observes open orders, decides, settles, and starts what is due.
//!
//! `run` loops over passes; a `pass` calls `observe` and then `start_due`. `decide` chooses what to do about an
//! order, and `pace` how fast; here the decisions take effect. A program does not assume that its
//! predecessor ended cleanly: it may have been killed at any point. The reconciler and the API share the
//! database alone.

mod absences;
mod conclusion;
mod context;
mod failed_request;
mod heartbeat;
mod in_flight;
mod list;
mod look_ups;
mod metered;
mod observations;
mod observe;
mod once;
mod order_log;
mod pace_results;
mod pass;
mod poll_due;
mod probe;
mod report;
mod running;
mod schedule;
mod start;
mod start_commits;
mod start_queue;
mod start_request;
mod thread;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;

use self::context::Context;
pub use self::context::{Decision, Stage};
use self::heartbeat::HeartbeatWriter;
use self::in_flight::Requests;
use self::metered::MeteredUpstream;
pub use self::once::run_once;
pub use self::pass::run;
use self::probe::Probe;
pub use self::report::Report;
pub use self::schedule::{Occurrences, Schedule, ScheduleError};
use self::start_queue::StartQueue;
pub use self::thread::{ReconcilerThread, lead, reconciler_runtime};
use crate::clock::{Clock, SteadyClock};
use crate::decide::LostProcess;
use crate::messages::span;
use crate::order::Timestamp;
use crate::pace::Pace;
use crate::store::{Leadership, NewOrders, StartCandidate, Store, StoreError};
use crate::upstream::Upstream;

/// Default ceiling of the start rate, in starts per second, where a forgotten process is not started again.
const CEILING_IF_NOT_RESTARTED: f64 = 50.0;

/// Carries orders through the order process service, one pass at a time.
pub struct Reconciler<U, C> {
    context: Rc<Context<U, C>>,
    /// Set once this run has begun. A run lasts until the program ends or the clock is set.
    has_run_begun: bool,
    pace: Pace,
    heartbeat: HeartbeatWriter,
    /// Beginning of the last poll.
    polled_at: Option<Timestamp>,
    /// Set if that poll has ended, and has tried each order that was due.
    has_polled_all: bool,
    /// Set if the list or a look-up of that poll failed, or a look-up was not sent.
    has_gap: bool,
    /// Set if the last list was throttled, and no look-ups were made in its place yet.
    was_list_throttled: bool,
    /// Moment from which on this pass sends no more look-ups.
    polls_until: Timestamp,
    queue: StartQueue,
    requests: Rc<Requests>,
    /// Set if each order that is due is tried once: passes wait for all answers.
    is_once: bool,
    /// Set while [`run`] makes passes.
    new_orders: Option<NewOrders>,
    /// Uptime at the last log line about waiting orders.
    wait_logged_at: Option<Duration>,
    probe: Probe,
}

impl<U: Upstream, C: Clock> Reconciler<U, C> {
    /// Returns a reconciler that continues where an earlier one stopped.
    pub async fn new(
        store: Store,
        lead: Leadership,
        upstream: U,
        clock: C,
        settings: Settings,
    ) -> Result<Self, StoreError> {
        let mut state = store.heartbeat().await?;
        let now = clock.now();
        state.leader_since = Some(now);
        state.led_until = None;
        state.policy = Some(settings.lost_process);
        state.metrics.on_leadership();
        let pace = Pace::new(
            settings.ceiling(),
            settings.max_in_flight,
            state.learned.clone(),
            state.upstream.clone(),
            now,
        );
        let metrics = state.metrics.clone();
        let process_forgotten_at = pace.incarnations().process_forgotten_at();
        Ok(Self {
            has_run_begun: false,
            pace,
            heartbeat: HeartbeatWriter::new(state),
            polled_at: None,
            has_polled_all: false,
            has_gap: false,
            was_list_throttled: false,
            polls_until: now,
            queue: StartQueue::default(),
            requests: Rc::default(),
            is_once: false,
            new_orders: None,
            wait_logged_at: None,
            probe: Probe::default(),
            context: Rc::new(Context {
                store,
                lead,
                upstream: MeteredUpstream::new(upstream, metrics),
                clock: SteadyClock::new(clock),
                settings,
                unrecorded_until: Cell::new(now),
                process_forgotten_at: Cell::new(process_forgotten_at),
                hook: None,
            }),
        })
    }

    /// Follows a step of the system's clock: resyncs the steady clock and makes a new run begin.
    pub(super) fn resync_clock(&mut self) {
        let before = self.context.clock.now();
        if self.context.clock.resync() {
            let now = self.context.clock.now();
            let (direction, by) = match now < before {
                true => ("back", before.since(now)),
                false => ("forward", now.since(before)),
            };
            let by = span(by);
            log::warn!("the clock was set {direction} by={by:?}; continuing as after a restart");
            self.has_run_begun = false;
            self.context.unrecorded_until.set(now);
        }
    }

    /// Begins a run. After a step of the clock no elapsed time is known, so every wait begins now; but the
    /// backoff of an order lasts until its moment, unless that lies further ahead than the longest one.
    pub(super) async fn begin_run(&mut self) -> anyhow::Result<()> {
        self.requests.clear_polls();
        let now = self.context.clock.now();
        let clamped = self.context.lead.clamp_times(now).await;
        clamped.context("moving back the moments of open orders failed")?;
        self.heartbeat.clamp_times(now);
        self.heartbeat.set_due();
        self.pace = self.pace.for_next_run(now);
        self.context
            .process_forgotten_at
            .set(self.pace.incarnations().process_forgotten_at());
        self.polled_at = None;
        self.queue.clear();
        self.probe.set_due();
        self.has_run_begun = true;
        Ok(())
    }

    /// Returns whether there are requests in flight for orders that are being started. Unless it failed, the
    /// next pass is then due at once and waits for their answers.
    pub fn has_starts_in_flight(&self) -> bool {
        !self.requests.for_starts.is_empty()
    }

    /// Calls `hook` at each decision, and whenever an order enters a stage of being started.
    #[must_use]
    pub fn traced(mut self, hook: impl Fn(Trace<'_>) + 'static) -> Self {
        if let Some(context) = Rc::get_mut(&mut self.context) {
            context.hook = Some(Box::new(hook));
        }
        self
    }
}

/// The operator's settings of a reconciler.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Schedule of the passes.
    pub schedule: Schedule,
    /// Starts per second at most; 0 for no ceiling, `None` for the default of [`Self::ceiling`].
    pub start_rate: Option<f64>,
    /// Number of requests to the upstream in flight, at most.
    pub max_in_flight: usize,
    /// Time limit of a request.
    pub request_timeout: Duration,
    /// Number of starts of an order, at most.
    pub max_starts: u32,
    /// The policy for an order whose process was forgotten.
    pub lost_process: LostProcess,
}

impl Default for Settings {
    /// Returns the defaults of the flags.
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
    /// Returns the ceiling of the start rate, in starts per second; 0 for none. The default has one where
    /// a forgotten process is not started again, because a crash loses the more processes the faster
    /// they were started.
    pub fn ceiling(&self) -> f64 {
        let is_restarted = self.lost_process == LostProcess::Restart && self.max_starts > 1;
        let default = match is_restarted {
            true => 0.0,
            false => CEILING_IF_NOT_RESTARTED,
        };
        self.start_rate.unwrap_or(default)
    }
}

/// An event inside the reconciler, for tests that follow it at work, as the simulation does.
#[derive(Clone, Copy, Debug)]
pub enum Trace<'a> {
    /// A decision about an order.
    Decided(&'a Decision<'a>),
    /// The entry of an order into a stage of being started.
    Entered(Stage, &'a StartCandidate),
}
