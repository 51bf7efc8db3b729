//! The first half of a pass: polls the processes of open orders, decides, and records.
//!
//! The answers are stored in `observations.rs`, and `decide` chooses what follows from them. Many orders are
//! polled by a list, in `list.rs`. The second half, the starts, is in `start.rs`.

use anyhow::Context as _;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::absences::{newly_missing, undetermined};
use super::list::ListRead;
use super::observations::Observations;
use super::pace_log::on_result;
use super::running::still_runs;
use super::{Reconciler, Report, effects};
use crate::clock::Clock;
use crate::decide::{Action, Observation, Occasion};
use crate::order::Timestamp;
use crate::pace::{Call, PollPlan};
use crate::process::Stop;
use crate::store::{OpenOrders, OrderChange, StartCandidate};
use crate::upstream::Upstream;

/// Number of changes in one transaction. It takes some ten milliseconds, during which the writes of
/// other processes wait.
const CHANGES_PER_TRANSACTION_MAX: usize = 2_000;

impl<U: Upstream, C: Clock> Reconciler<U, C> {
    /// Polls the open orders that are due, and records the changes. Queues those that are to be
    /// restarted. Without work there are none, and nothing is read.
    pub(super) async fn observe(&mut self, has_work: bool, stop: &Stop) -> anyhow::Result<Report> {
        let began_at = self.context.clock.now();
        self.polled_at = Some(began_at);
        let mut orders = match has_work {
            true => self
                .in_flight
                .others(self.context.store.open_orders().await?),
            false => OpenOrders::default(),
        };
        let is_frequent = self.is_frequent(began_at);
        let indexes = match self.pace.plan(orders.targets(), is_frequent, began_at) {
            PollPlan::List => return self.observe_by_list(orders, began_at, stop).await,
            PollPlan::LookUps(indexes) => indexes,
        };
        let mut not_chosen = 0;
        if indexes.len() < orders.len() {
            let all = self.count_running(&orders, began_at);
            orders = orders.chosen(&indexes);
            not_chosen = all - self.count_running(&orders, began_at);
        }
        let mut observations = Observations::new(orders);
        let all = (0..observations.orders.len()).collect();
        self.look_up_each(&mut observations, all, stop).await;
        self.process_observations(observations, began_at, not_chosen, stop)
            .await
    }

    /// Processes the observations of a poll: reports them to the pace, decides about each order, and
    /// records the changes.
    pub(super) async fn process_observations(
        &mut self,
        mut observations: Observations,
        began_at: Timestamp,
        not_chosen: u64,
        stop: &Stop,
    ) -> anyhow::Result<Report> {
        let mut report = Report {
            observed: observations.orders.len(),
            ..Report::default()
        };
        if observations.is_complete {
            self.heartbeat.state.last_observed_at = Some(began_at);
        }
        let occasion = self.occasion_of(&observations, began_at);
        self.confirm_absences(&mut observations, occasion, stop)
            .await;
        report.is_absence_early = observations.is_any_absence_early(&self.context.policy());
        let durations = self.pace.durations().clone();
        let decided = self.decide_all(&observations, occasion, began_at).await;
        if decided.is_err() {
            self.pace.restore_durations(durations);
        }
        // Also if nothing could be recorded: the requests were sent all the same.
        self.record_poll(&observations, began_at);
        let (running, recorded) = decided?;
        report += recorded;
        self.pace.set_in_flight(not_chosen + running);
        if report.missed > 0 && occasion == Occasion::Poll {
            self.pace.poll_soon(self.context.clock.now());
        }
        Ok(report)
    }

    /// Looks up those of these orders that are due and were not observed. Ends early if the upstream goes
    /// down.
    pub(super) async fn look_up_each(
        &mut self,
        observations: &mut Observations,
        mut waiting: Vec<usize>,
        stop: &Stop,
    ) {
        let now = self.context.clock.now();
        let mut failures = Vec::new();
        waiting.retain(|&at| observations.is_unobserved(at, now));
        let mut waiting = waiting.into_iter();
        let context = &self.context;
        let mut requests = FuturesUnordered::new();
        loop {
            let starts = self.in_flight.len();
            while self
                .pace
                .may_poll(context.clock.now(), requests.len(), starts)
                && !stop.requested.is_cancelled()
                && let Some(at) = waiting.next()
            {
                let id = observations.orders.ids().order_id(at);
                observations.look_ups += 1;
                self.pace.on_poll_sent(context.clock.now());
                requests.push(async move {
                    let began_at = context.clock.now();
                    let result = context.upstream.look_up(&context.clock, &id).await;
                    (at, began_at, result)
                });
            }
            let answered = ListRead::while_reading(&mut self.list, requests.next()).await;
            let Some((at, began_at, result)) = answered else {
                break;
            };
            let failure = result.as_ref().err();
            on_result(
                &mut self.pace,
                Call::poll(began_at),
                context.clock.now(),
                failure,
            );
            match result {
                Ok(observed) => observations.add_look_up(at, Observation { observed, began_at }),
                Err(failure) => failures.push((at, failure)),
            }
        }
        if waiting.next().is_some() || !failures.is_empty() {
            observations.is_complete = false;
        }
        // That the upstream is down is stored once, not for each order.
        if !self.pace.breaker().is_down() {
            observations.failures.extend(failures);
        }
    }

    /// Decides about each order and records the changes, [`CHANGES_PER_TRANSACTION_MAX`] at a time. Reports
    /// the durations of processes to the pace. Returns the number of processes that run and are not stuck,
    /// by the durations known before.
    async fn decide_all(
        &mut self,
        observations: &Observations,
        occasion: Occasion,
        began_at: Timestamp,
    ) -> anyhow::Result<(u64, Report)> {
        let (now, policy) = (self.context.clock.now(), self.context.policy());
        let stuck_threshold = self.pace.stuck_threshold();
        let mut running = 0;
        let mut changes = undetermined(observations, now);
        let mut report = Report::default();
        let mut steps = Vec::new();
        let mut restarts = Vec::new();
        let orders = observations
            .orders
            .targets()
            .iter()
            .zip(observations.orders.orders());
        for (index, (target, mut order)) in orders.enumerate() {
            let observation = observations.observation(index);
            let is_running = still_runs(&order, observation, &policy, stuck_threshold, began_at);
            running += u64::from(is_running);
            if let Some(observation) = observation {
                self.pace
                    .on_observed(target, &observation.observed, observation.began_at);
            }
            let decision = self.context.decide(&order, occasion, observation, now);
            if decision.action == Action::Wait {
                continue;
            }
            let id = observations.orders.ids().get(index);
            let missed = newly_missing(&decision, &policy);
            for decision in missed.iter().chain([&decision]) {
                effects::apply(decision, id, None, now, &mut steps);
            }
            let (action, seq) = (decision.action, order.seq);
            changes.extend(steps.drain(..).map(|step| OrderChange { seq, step }));
            if action == Action::Start {
                if let Some(observation) = observation.filter(|_| missed.is_some()) {
                    order.mark_missing(observation.began_at);
                }
                let id = observations.orders.ids().order_id(index);
                restarts.push(StartCandidate { id, order });
            }
            if changes.len() >= CHANGES_PER_TRANSACTION_MAX {
                report += self.record(std::mem::take(&mut changes), now).await?;
            }
        }
        report += self.record(changes, now).await?;
        self.queue.update(observations.orders.targets(), restarts);
        Ok((running, report))
    }

    /// Records changes, if there are any, and returns their counts.
    async fn record(&self, changes: Vec<OrderChange>, now: Timestamp) -> anyhow::Result<Report> {
        if changes.is_empty() {
            return Ok(Report::default());
        }
        let recorded = self.context.record_changes(changes, now).await;
        let (_, report) = recorded.context("recording the observations failed")?;
        Ok(report)
    }
}
