//! The second half of a pass: starts the orders that are due, at the pace.
//!
//! An order is in one stage at a time. What happens to it at its turn, and after each answer, is
//! decided in `decide`:
//!
//! ```text
//!            turn: start                committed             slot free
//!   ┌─────┐ ───────────▶ ┌────────────────┐ ───▶ ┌───────┐ ───────────▶ ┌───────────┐
//!   │ due │              │ writing intent │      │ ready │              │ in flight │
//!   └─────┘ ─────────────│────────────────│────▶ └───────┘              └───────────┘
//!    ▲   │ turn: look up └────────────────┘       │ │ │                   │       │
//!    │   │                   ▲                    │ │ │                   │       │ answered
//!    │   │                   └─── looked up: start ─┼─┼───────────────────┘       ▼
//!    │   │                                        │ │ │  not sent       ┌────────────────┐
//!    └───┼──── look-up not sent ──────────────────┘ │ └───────────────▶ │ writing result │ ──▶ left
//!        └──── turn: anything else ─────────────────┼─────────────────▶ └────────────────┘
//! ```
//!
//! A start is written down before it leaves, and its result after. Many orders share a commit, and
//! none waits for another's answer. The orders themselves leave the pipeline when nothing is left to
//! be written about them, or when they have moved on meanwhile.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::FuturesUnordered;

use super::context::{Context, Stage};
use super::heartbeat::HeartbeatWriter;
use super::list_read::ListRead;
use super::pace_log::note;
use super::start_attempt::{Answer, Call, Outcome};
use super::start_commits::{Committed, StartCommits};
use super::start_queue::StartQueue;
use super::{Reconciler, Report};
use crate::clock::Clock;
use crate::decide::is_in_doubt;
use crate::order::Timestamp;
use crate::pace::{self, Pace};
use crate::process::Stop;
use crate::store::{StartCandidate, Transition};
use crate::upstream::Upstream;

/// How long orders are started in one pass, however far the next one is: between two passes the clock
/// is set right.
const PASS_MAX: Duration = Duration::from_secs(60);

/// Orders that are being started, by stage.
pub(super) struct StartPipeline<'a, U, C> {
    context: &'a Context<U, C>,
    stop: &'a Stop,
    pace: &'a mut Pace,
    heartbeat: &'a mut HeartbeatWriter,
    report: Report,
    /// Read on meanwhile. When it is at its end the next pass is due, which decides about it.
    list: &'a mut Option<ListRead>,
    is_list_read: bool,
    /// When the next pass is due: no order's turn comes any more.
    until: Timestamp,
    due: &'a mut StartQueue,
    commits: StartCommits<'a>,
    ready: VecDeque<(Call, StartCandidate)>,
    in_flight: FuturesUnordered<LocalBoxFuture<'a, (StartCandidate, pace::Call, Answer)>>,
    /// After an error no turn comes any more, and what is under way is waited for.
    error: Option<anyhow::Error>,
}

/// Something that was waited for.
enum Event {
    Answered(StartCandidate, pace::Call, Answer),
    Committed(Committed),
    /// The next turn has come, or the program is to end.
    Turn,
    ListRead,
}

impl<U: Upstream, C: Clock> Reconciler<U, C> {
    /// Starts what is due until the next pass is due, the upstream goes down, or nothing is left.
    pub(super) async fn start_due(&mut self, stop: &Stop) -> anyhow::Result<Report> {
        let now = self.context.clock.now();
        if self.pace.recover(now) {
            log::info!("start rate restored rate={:.1}", self.pace.rate().rate());
        }
        self.queue.begin();
        let mut until = self.context.settings.schedule.next_after(now);
        if let Some(poll_at) = self.next_poll_at() {
            until = until.min(poll_at);
        }
        let pipeline = StartPipeline {
            context: &self.context,
            stop,
            pace: &mut self.pace,
            heartbeat: &mut self.heartbeat,
            report: Report::default(),
            list: &mut self.list,
            is_list_read: false,
            until: until.min(now.after(PASS_MAX)),
            due: &mut self.queue,
            commits: StartCommits::default(),
            ready: VecDeque::new(),
            in_flight: FuturesUnordered::new(),
            error: None,
        };
        pipeline.run().await
    }
}

impl<'a, U: Upstream, C: Clock> StartPipeline<'a, U, C> {
    async fn run(mut self) -> anyhow::Result<Report> {
        loop {
            self.take_turns().await;
            self.send();
            self.commits.begin(self.context);
            match self.next_event().await {
                Some(Event::Answered(order, call, answer)) => {
                    self.on_answered(order, call, answer).await
                }
                Some(Event::Committed(committed)) => self.on_committed(committed),
                Some(Event::Turn) => {}
                Some(Event::ListRead) => self.is_list_read = true,
                None => break,
            }
        }
        let has_more = self.is_list_read || !self.due.is_empty();
        self.report.has_more = has_more && !self.stop.requested.is_cancelled();
        self.error.map_or(Ok(self.report), Err)
    }

    /// Waits for what comes first. `None` if nothing is under way and no turn will come.
    async fn next_event(&mut self) -> Option<Event> {
        let turn_at = self.next_turn_at().await;
        if self.in_flight.is_empty() && self.commits.is_idle() && turn_at.is_none() {
            return None;
        }
        let turn = async {
            match turn_at {
                Some(at) => tokio::select! {
                    biased;
                    () = self.context.clock.sleep_until(at) => {}
                    () = self.stop.requested.cancelled() => {}
                },
                None => std::future::pending().await,
            }
        };
        Some(tokio::select! {
            biased;
            Some((order, call, answer)) = self.in_flight.next() => {
                Event::Answered(order, call, answer)
            }
            committed = self.commits.next() => Event::Committed(committed),
            () = ListRead::read_on(self.list) => Event::ListRead,
            () = turn => Event::Turn,
        })
    }

    /// Moves due orders on whose turn has come.
    async fn take_turns(&mut self) {
        while let Some(at) = self.next_turn_at().await
            && at <= self.now()
            && let Some(order) = self.due.pop()
        {
            let now = self.now();
            self.pace.on_start_sent(now);
            let outcome = self.context.at_turn(&order, now);
            self.conclude(order, outcome);
        }
    }

    /// When the next due order's turn comes. `None` if none is waited for.
    async fn next_turn_at(&mut self) -> Option<Timestamp> {
        let now = self.now();
        let (store, max_starts) = (&self.context.store, self.context.settings.max_starts);
        if self.error.is_none() {
            self.error = self.due.fill(store, now, max_starts).await.err();
        }
        let may_turn = self.error.is_none() && !self.is_list_read && now < self.until;
        let has_turn = may_turn && !self.due.is_empty();
        let starting = self.starting();
        if !has_turn || !self.may_send() || !self.pace.may_stage(now, starting) {
            return None;
        }
        // With the window full, nothing is waited for but the next pass.
        let at = self.pace.next_start_at(now, starting).unwrap_or(self.until);
        Some(at.min(self.until))
    }

    /// Sends what is ready as far as there are slots, or clears it away if nothing may be sent.
    fn send(&mut self) {
        if !self.may_send() {
            return self.clear_ready();
        }
        while self.pace.may_send(self.now(), self.in_flight.len())
            && let Some((call, order)) = self.ready.pop_front()
        {
            self.context.enter(Stage::InFlight, &order);
            let (context, stop) = (self.context, self.stop);
            let sent = pace::Call {
                is_start: call == Call::Start,
                sent_at: self.now(),
            };
            self.in_flight.push(Box::pin(async move {
                let answer = context.call(call, &order, stop).await;
                (order, sent, answer)
            }));
        }
    }

    fn clear_ready(&mut self) {
        while let Some((call, order)) = self.ready.pop_back() {
            match call {
                Call::LookUp => {
                    self.context.enter(Stage::Due, &order);
                    self.due.put_back(order);
                }
                Call::Start => self.write_result(&order, vec![Transition::Withdrawn]),
            }
        }
    }

    async fn on_answered(&mut self, order: StartCandidate, call: pace::Call, answer: Answer) {
        let now = self.now();
        match &answer {
            Answer::Accepted { .. } => self.pace.on_start_accepted(order.order.seq, now),
            Answer::Refused { .. } => self.pace.on_start_refused(),
            Answer::Ambiguous { answer, .. } if is_in_doubt(*answer) => {
                self.pace.on_start_in_doubt();
            }
            _ => {}
        }
        let outcome = self.context.on_answer(&order, answer, now);
        self.report.unanswered += usize::from(outcome.failure.is_some());
        note(self.pace, call, now, outcome.failure.as_ref());
        self.conclude(order, outcome);
        // A long pass does not look like none, and readers hear of the upstream now.
        let written = self.heartbeat.write_if_due(self.context, self.pace).await;
        if let Err(error) = written {
            self.error.get_or_insert(error);
        }
    }

    /// Moves an order on that was decided about.
    fn conclude(&mut self, order: StartCandidate, outcome: Outcome) {
        match outcome.next {
            Some(Call::Start) => {
                self.context.enter(Stage::WritingIntent, &order);
                self.commits.add_intent(order, outcome.steps);
            }
            Some(Call::LookUp) => {
                self.context.enter(Stage::Ready, &order);
                self.ready.push_back((Call::LookUp, order));
            }
            None => self.write_result(&order, outcome.steps),
        }
    }

    fn write_result(&mut self, order: &StartCandidate, steps: Vec<Transition>) {
        let stage = match steps.is_empty() {
            true => Stage::Done,
            false => Stage::WritingResult,
        };
        self.context.enter(stage, order);
        self.commits.add(order, steps);
    }

    fn on_committed(&mut self, committed: Committed) {
        self.report += committed.report;
        if let Some(error) = committed.error {
            self.error.get_or_insert(error);
        }
        for order in committed.left {
            self.context.enter(Stage::Done, &order);
        }
        for order in committed.intents {
            self.context.enter(Stage::Ready, &order);
            self.ready.push_back((Call::Start, order));
        }
    }

    /// Orders that are past their turn and whose start has no answer yet.
    fn starting(&self) -> usize {
        self.commits.intents() + self.ready.len() + self.in_flight.len()
    }

    fn may_send(&self) -> bool {
        self.pace.breaker().may_send(self.now()) && !self.stop.requested.is_cancelled()
    }

    fn now(&self) -> Timestamp {
        self.context.clock.now()
    }
}
