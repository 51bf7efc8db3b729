//! The second half of a pass: starts the orders that are due, at the pace.
//!
//! An order is in one stage at a time. `decide` chooses what follows when it is dequeued, looked up or
//! refused:
//!
//! ```text
//!          dequeued: start               committed             slot free
//!   ┌─────┐ ───────────▶ ┌────────────────┐ ───▶ ┌───────┐ ───────────▶ ┌───────────┐
//!   │ due │              │ writing intent │      │ ready │              │ in flight │
//!   └─────┘ ─────────────│────────────────│────▶ └───────┘              └───────────┘
//!    ▲   │ or: look up   └────────────────┘       │ │ │                   │       │
//!    │   │                   ▲                    │ │ │                   │       │ answered
//!    │   │                   └─── looked up: start ─┼─┼───────────────────┘       ▼
//!    │   │                                        │ │ │  not sent       ┌────────────────┐
//!    └───┼──── look-up not sent ──────────────────┘ │ └───────────────▶ │ writing result │ ──▶ done
//!        └──── or: anything else ───────────────────┼─────────────────▶ └────────────────┘
//! ```
//!
//! The intent of a start is committed before the start is sent, and its result after the answer. Many
//! orders share a commit, and none waits for another's answer while a slot is free. Once the next pass is
//! due, none is dequeued, and the pass waits for the answers in flight. An order leaves the pipeline when
//! nothing more is to be written about it, or when it has moved on meanwhile.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::FuturesUnordered;

use super::context::{Context, Stage};
use super::heartbeat::HeartbeatWriter;
use super::list::ListRead;
use super::pace_log::on_result;
use super::poll_due::reached;
use super::start_attempt::{Answer, Conclusion, Request};
use super::start_commits::{Committed, StartCommits};
use super::start_queue::StartQueue;
use super::{Reconciler, Report};
use crate::clock::Clock;
use crate::decide::{Occasion, is_in_doubt};
use crate::order::Timestamp;
use crate::pace::{self, Pace};
use crate::process::Stop;
use crate::store::{StartCandidate, Transition};
use crate::upstream::Upstream;

/// Time for which one pass starts orders, at most. Between two passes the steady clock is resynced and
/// leadership is checked.
const PASS_MAX: Duration = Duration::from_secs(60);

/// Part of a request timeout, from the beginning of the commit of its intent, within which a start has to
/// leave: the half. A later one is withdrawn. The program may have been suspended meanwhile, and another
/// reconciler may lead, which takes a process that it does not find one request timeout after the
/// intent for one that will never be; the other half is for the way.
const LEAVE_WITHIN: u32 = 2;

/// The orders that are being started, by stage.
pub(super) struct StartPipeline<'a, U, C> {
    context: &'a Context<U, C>,
    stop: &'a Stop,
    pace: &'a mut Pace,
    heartbeat: &'a mut HeartbeatWriter,
    report: Report,
    /// Read meanwhile. When it has ended, the next pass is due, which decides about its orders.
    list: &'a mut Option<ListRead>,
    is_list_read: bool,
    /// Moment at which the next pass is due. Nothing is dequeued from then on.
    until: Timestamp,
    queue: &'a mut StartQueue,
    commits: StartCommits<'a>,
    /// Requests that wait for a slot, with the uptime by which each has to leave.
    ready: VecDeque<(Request, StartCandidate, Duration)>,
    in_flight: FuturesUnordered<LocalBoxFuture<'a, (StartCandidate, pace::Call, Answer)>>,
    /// The first error. Nothing is dequeued after it, and what is in flight is waited for.
    error: Option<anyhow::Error>,
}

impl<U: Upstream, C: Clock> Reconciler<U, C> {
    /// Starts what is due until the next pass is due, the upstream goes down, or nothing is left.
    pub(super) async fn start_due(&mut self, stop: &Stop) -> anyhow::Result<Report> {
        let now = self.context.clock.now();
        self.recover_rate(now);
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
            queue: &mut self.queue,
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
            self.dequeue_due().await;
            self.send();
            self.commits.begin(self.context);
            let dequeue_at = self.next_dequeue_at().await;
            if self.in_flight.is_empty() && self.commits.is_idle() && dequeue_at.is_none() {
                break;
            }
            tokio::select! {
                biased;
                Some((order, request, answer)) = self.in_flight.next() => {
                    self.on_answered(order, request, answer).await;
                }
                committed = self.commits.next() => self.on_committed(committed),
                () = ListRead::read_to_end(self.list), if !self.is_list_read => {
                    self.is_list_read = true;
                }
                () = reached(&self.context.clock, dequeue_at) => {}
                () = self.stop.requested.cancelled(), if dequeue_at.is_some() => {}
            }
        }
        let has_more = self.is_list_read || !self.queue.is_empty();
        self.report.has_more = has_more && !self.stop.requested.is_cancelled();
        self.error.map_or(Ok(self.report), Err)
    }

    /// Dequeues orders as far as the rate and the window allow.
    async fn dequeue_due(&mut self) {
        while let Some(at) = self.next_dequeue_at().await
            && at <= self.now()
            && let Some(order) = self.queue.pop()
        {
            let now = self.now();
            self.pace.on_dequeued(now);
            let conclusion = self
                .context
                .conclude(&order, Occasion::Dequeue, None, None, now);
            self.advance(order, conclusion);
        }
    }

    /// Returns when the next order may be dequeued, or `None` if nothing is to be waited for.
    async fn next_dequeue_at(&mut self) -> Option<Timestamp> {
        let now = self.now();
        let (store, max_starts) = (&self.context.store, self.context.settings.max_starts);
        if self.error.is_none() {
            self.error = self.queue.fill(store, now, max_starts).await.err();
        }
        let may_dequeue = self.error.is_none() && !self.is_list_read && now < self.until;
        let has_order = may_dequeue && !self.queue.is_empty();
        let starting = self.starting();
        if !has_order || !self.may_send() || !self.pace.may_stage(now, starting) {
            return None;
        }
        // With the window full, wait for the next pass.
        let at = self.pace.next_start_at(now, starting).unwrap_or(self.until);
        Some(at.min(self.until))
    }

    /// Sends what is ready as far as there are request slots, or returns it if nothing may be sent.
    fn send(&mut self) {
        if !self.may_send() {
            return self.return_ready();
        }
        while self.pace.may_send(self.now(), self.in_flight.len())
            && let Some((request, order, leave_by)) = self.ready.pop_front()
        {
            if self.context.clock.uptime() >= leave_by {
                self.write_result(&order, vec![Transition::Withdrawn]);
                continue;
            }
            self.context.enter(Stage::InFlight, &order);
            let (context, stop) = (self.context, self.stop);
            let sent = pace::Call {
                is_start: request == Request::Start,
                sent_at: self.now(),
            };
            self.in_flight.push(Box::pin(async move {
                let answer = context.send(request, &order, stop).await;
                (order, sent, answer)
            }));
        }
    }

    fn return_ready(&mut self) {
        while let Some((request, order, _)) = self.ready.pop_back() {
            match request {
                Request::LookUp => {
                    self.context.enter(Stage::Due, &order);
                    self.queue.put_back(order);
                }
                Request::Start => self.write_result(&order, vec![Transition::Withdrawn]),
            }
        }
    }

    async fn on_answered(&mut self, order: StartCandidate, request: pace::Call, answer: Answer) {
        let now = self.now();
        match &answer {
            Answer::Accepted { .. } => self.pace.on_start_accepted(order.order.seq, now),
            Answer::Refused { .. } => self.pace.on_start_refused(),
            Answer::Ambiguous { answer, .. } if is_in_doubt(*answer) => {
                self.pace.on_start_in_doubt();
            }
            _ => {}
        }
        let conclusion = self.context.on_answer(&order, answer, now);
        self.report.unanswered += usize::from(conclusion.failure.is_some());
        on_result(self.pace, request, now, conclusion.failure.as_ref());
        self.advance(order, conclusion);
        // A long pass must not look like none, and readers see the upstream's state at once.
        let written = self.heartbeat.write_if_due(self.context, self.pace).await;
        if let Err(error) = written {
            self.error.get_or_insert(error);
        }
    }

    /// Moves an order to the stage that follows from a decision.
    fn advance(&mut self, order: StartCandidate, conclusion: Conclusion) {
        match conclusion.next {
            Some(Request::Start) => {
                self.context.enter(Stage::WritingIntent, &order);
                self.commits.add_intent(order, conclusion.steps);
            }
            Some(Request::LookUp) => {
                self.context.enter(Stage::Ready, &order);
                self.ready
                    .push_back((Request::LookUp, order, Duration::MAX));
            }
            None => self.write_result(&order, conclusion.steps),
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
        for order in committed.dropped {
            self.context.enter(Stage::Done, &order);
        }
        let leave_by = committed.begun_at + self.context.settings.request_timeout / LEAVE_WITHIN;
        for order in committed.intents {
            self.context.enter(Stage::Ready, &order);
            self.ready.push_back((Request::Start, order, leave_by));
        }
    }

    /// Returns the number of dequeued orders whose start has no answer yet.
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
