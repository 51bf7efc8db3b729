//! The second half of a pass: starts the orders that are due, at the pace.
//!
//! An order is in one stage at a time. `decide` chooses what follows when it is dequeued, looked up or
//! refused:
//!
//! ```text
//!             dequeued: start               committed             slot free
//!   ┌────────┐ ───────────▶ ┌────────────────┐ ───▶ ┌───────┐ ───────────▶ ┌───────────┐
//!   │ queued │              │ writing intent │      │ ready │              │ in flight │
//!   └────────┘ ─────────────│────────────────│────▶ └───────┘              └───────────┘
//!    ▲      │ or: look up   └────────────────┘       │ │ │                   │       │
//!    │      │                   ▲                    │ │ │                   │       │ answered
//!    │      │                   └─── looked up: start ─┼─┼───────────────────┘       ▼
//!    │      │                                        │ │ │  not sent       ┌────────────────┐
//!    └──────┼──── look-up not sent ──────────────────┘ │ └───────────────▶ │ writing result │ ──▶ done
//!           └──── or: anything else ───────────────────┼─────────────────▶ └────────────────┘
//! ```
//!
//! The intent of a start is committed before the start is sent, and its result after the answer. Many
//! orders share a commit, and none waits for another's answer while a slot is free. Once the next pass is
//! due, none is dequeued. While a slot is free, a request without an answer does not hold up the next pass:
//! it stays in flight over as many passes as it takes. An order leaves the pipeline when nothing more is
//! to be written about it, or when it has moved on meanwhile.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use super::conclusion::Conclusion;
use super::context::{Context, Stage};
use super::in_flight::Requests;
use super::poll_due::reached;
use super::start_commits::{Committed, StartCommits};
use super::start_request::{Answer, Request};
use super::{Reconciler, Report};
use crate::clock::Clock;
use crate::decide::Occasion;
use crate::order::Timestamp;
use crate::pace::Call;
use crate::process::Stop;
use crate::store::{NewOrders, StartCandidate, Transition};
use crate::upstream::{RequestKind, Upstream};

/// The orders that are being started, by stage.
struct StartPipeline<'a, U, C> {
    reconciler: &'a mut Reconciler<U, C>,
    context: Rc<Context<U, C>>,
    requests: Rc<Requests>,
    stop: &'a Stop,
    is_usable: bool,
    report: Report,
    /// Number of answers to polls that have come meanwhile. With the first, the next pass is due, which
    /// decides about their orders.
    poll_answers: usize,
    are_orders_new: bool,
    /// Set if an order was dequeued and its start was not sent.
    has_withdrawn: bool,
    /// Moment at which the next pass is due. Nothing is dequeued from then on.
    until: Timestamp,
    commits: StartCommits,
    /// Requests that wait for a slot, with the uptime by which each has to be sent.
    ready: VecDeque<(Request, StartCandidate, Duration)>,
    /// The first error. Nothing is dequeued after it.
    error: Option<anyhow::Error>,
}

impl<U: Upstream, C: Clock> Reconciler<U, C> {
    /// Starts what is due until the next pass is due, the upstream goes down, or nothing is left. If the
    /// upstream cannot be used, only takes the answers to what is in flight, until it can.
    pub(super) async fn start_due(
        &mut self,
        is_usable: bool,
        stop: &Stop,
    ) -> anyhow::Result<Report> {
        let now = self.context.clock.now();
        self.recover_rate(now);
        let pipeline = StartPipeline {
            context: self.context.clone(),
            requests: self.requests.clone(),
            stop,
            is_usable,
            report: Report::default(),
            poll_answers: 0,
            are_orders_new: false,
            has_withdrawn: false,
            until: self.starts_until(now),
            commits: StartCommits::default(),
            ready: VecDeque::new(),
            error: None,
            reconciler: self,
        };
        pipeline.run().await
    }
}

impl<U: Upstream, C: Clock> StartPipeline<'_, U, C> {
    async fn run(mut self) -> anyhow::Result<Report> {
        loop {
            self.dequeue_due().await;
            self.send();
            self.commits.begin(&self.context);
            let dequeue_at = self.next_dequeue_at().await;
            let is_idle = self.commits.is_idle() && dequeue_at.is_none();
            let is_answered = self.requests.for_starts.is_empty();
            if is_idle && self.ready.is_empty() && (is_answered || self.may_end()) {
                return self.end();
            }
            let needs_orders = is_idle && !self.has_next() && self.may_start();
            let is_waiting = dequeue_at.is_none() && self.now() < self.until;
            let wake_at = dequeue_at.or(self.reconciler.queue_resumes_at());
            let (requests, clock) = (&self.requests, &self.context.clock);
            let new_orders = NewOrders::next_of(&mut self.reconciler.new_orders);
            tokio::select! {
                biased;
                (_, (order, call, answer)) = requests.for_starts.next(|_| true) => {
                    self.on_answered(order, call, answer).await;
                }
                committed = self.commits.next() => self.on_committed(committed),
                count = requests.poll_answered(self.poll_answers) => self.poll_answers = count,
                () = new_orders, if needs_orders => self.are_orders_new = true,
                () = reached(clock, wake_at) => {}
                () = clock.deadline(self.until), if is_waiting => {}
                () = self.stop.requested.cancelled(), if dequeue_at.is_some() => {}
            }
        }
    }

    /// Returns the report, or the first error.
    fn end(mut self) -> anyhow::Result<Report> {
        let has_orders = self.are_orders_new || self.has_withdrawn || self.has_next();
        let has_more = self.poll_answers > 0 || has_orders;
        let breaker = self.reconciler.pace.breaker();
        let paused_until = breaker.kind_paused_until(RequestKind::Start, self.now());
        let may_go_on = paused_until.is_none() && (self.is_usable || self.may_start());
        self.report.has_more = has_more && may_go_on;
        let is_paused = has_more && paused_until.is_some();
        self.report.unreachable = is_paused || self.reconciler.queue_resumes_at().is_some();
        self.error.map_or(Ok(self.report), Err)
    }

    /// Dequeues orders as far as the rate and the window allow.
    async fn dequeue_due(&mut self) {
        let may_look_up = !self.reconciler.are_look_ups_paused();
        while let Some(at) = self.next_dequeue_at().await
            && at <= self.now()
            && let Some(order) = self.reconciler.queue.pop(may_look_up)
        {
            if self.requests.look_ups.contains(order.order.seq) {
                // The answer decides anew.
                continue;
            }
            let (now, context) = (self.now(), &self.context);
            self.reconciler.pace.on_dequeued(now);
            let conclusion = context.conclude(&order, Occasion::Dequeue, None, None, now);
            self.advance(order, conclusion);
        }
    }

    /// Returns when the next order may be dequeued, or `None` if nothing is to be waited for.
    async fn next_dequeue_at(&mut self) -> Option<Timestamp> {
        let now = self.now();
        let starting = self.starting();
        let Reconciler { queue, pace, .. } = &mut *self.reconciler;
        if self.is_usable && self.error.is_none() {
            let (store, max_starts) = (&self.context.store, self.context.settings.max_starts);
            self.error = queue.fill(store, now, max_starts).await.err();
        }
        let may_dequeue =
            self.is_usable && self.error.is_none() && self.poll_answers == 0 && now < self.until;
        let may_stage = may_dequeue && pace.may_stage(now, starting);
        if !may_stage || !self.has_next() || !self.may_start() {
            return None;
        }
        // With the window full, wait for the next pass.
        let at = self.reconciler.pace.next_start_at(now, starting);
        Some(at.unwrap_or(self.until).min(self.until))
    }

    /// Sends what is ready as far as there are request slots. Puts back an order whose look-up may not be sent, and
    /// withdraws the intent of one whose start may not.
    fn send(&mut self) {
        while let Some((request, order, send_by)) = self.ready.pop_front() {
            let is_allowed = self.may_start()
                && (request == Request::Start || !self.reconciler.are_look_ups_paused());
            let (pace, slots) = (&self.reconciler.pace, self.requests.slots_in_use());
            if is_allowed && !pace.may_send(self.now(), slots) {
                return self.ready.push_front((request, order, send_by));
            }
            let is_late = self.context.clock.uptime() >= send_by;
            match request {
                Request::Start if is_late || !is_allowed => self.withdraw(&order),
                Request::LookUp if !is_allowed => {
                    self.context.enter(Stage::Queued, &order);
                    self.reconciler.queue.put_back(order);
                }
                Request::Start | Request::LookUp => {
                    self.context.enter(Stage::InFlight, &order);
                    self.reconciler.send(request, order, self.stop);
                }
            }
        }
    }

    fn withdraw(&mut self, order: &StartCandidate) {
        self.has_withdrawn = true;
        self.write_result(order, vec![Transition::Withdrawn]);
    }

    async fn on_answered(&mut self, order: StartCandidate, call: Call, answer: Answer) {
        let now = self.now();
        if let Answer::Accepted { .. } = answer {
            self.reconciler.pace.on_start_accepted(order.order.seq, now);
        }
        let conclusion = self.context.on_answer(&order, answer, now);
        self.report.unanswered += usize::from(conclusion.failure.is_some());
        self.reconciler.on_result(call, conclusion.failure.as_ref());
        self.advance(order, conclusion);
        // A long pass must not look like none, and readers see the upstream's state at once.
        let starting = self.starting();
        if let Err(error) = self.reconciler.write_heartbeat_if_due(starting).await {
            self.error.get_or_insert(error);
        }
    }

    /// Moves an order to the stage that follows from a decision.
    fn advance(&mut self, order: StartCandidate, conclusion: Conclusion) {
        match conclusion.next {
            Some(Request::Start) => {
                self.context.enter(Stage::WritingIntent, &order);
                self.commits.add_intent(order, conclusion.transitions);
            }
            Some(Request::LookUp) => {
                self.context.enter(Stage::Ready, &order);
                self.ready
                    .push_back((Request::LookUp, order, Duration::MAX));
            }
            None => self.write_result(&order, conclusion.transitions),
        }
    }

    fn write_result(&mut self, order: &StartCandidate, transitions: Vec<Transition>) {
        let stage = match transitions.is_empty() {
            true => Stage::Done,
            false => Stage::WritingResult,
        };
        self.context.enter(stage, order);
        self.commits.add(order, transitions);
    }

    fn on_committed(&mut self, committed: Committed) {
        self.report += committed.report;
        self.error = self.error.take().or(committed.error);
        for order in committed.dropped {
            self.context.enter(Stage::Done, &order);
        }
        for order in committed.intents {
            self.context.enter(Stage::Ready, &order);
            self.ready
                .push_back((Request::Start, order, committed.send_by));
        }
    }

    /// Returns the number of dequeued orders whose start has no answer yet.
    fn starting(&self) -> usize {
        self.commits.intents() + self.ready.len() + self.requests.for_starts.len()
    }

    /// Returns whether the pass may end although there are requests in flight: the next pass has something
    /// to do, and a slot for it.
    fn may_end(&self) -> bool {
        let is_usable_again = !self.is_usable && self.may_start();
        let is_next_due = self.poll_answers > 0 || self.are_orders_new || self.now() >= self.until;
        !self.reconciler.is_once
            && (is_next_due || is_usable_again || self.error.is_some())
            && self.requests.slots_in_use() < self.context.settings.max_in_flight
            && !self.stop.requested.is_cancelled()
    }

    fn has_next(&self) -> bool {
        let may_look_up = !self.reconciler.are_look_ups_paused();
        self.reconciler.queue.has_next(may_look_up)
    }

    fn may_start(&self) -> bool {
        self.reconciler.pace.may_start(self.now()) && !self.stop.requested.is_cancelled()
    }

    fn now(&self) -> Timestamp {
        self.context.clock.now()
    }
}
