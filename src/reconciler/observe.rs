//! The first half of a pass: polls the processes of open orders, decides, and records.
//!
//! Orders are looked up in `look_ups.rs`, or many polled by a list in `list.rs`. `observations.rs` has the answers,
//! and `decide` chooses what follows from them. The second half, the starts, is in `start.rs`.

use anyhow::Context as _;

use super::absences::{newly_missing, undetermined};
use super::conclusion::add_transitions;
use super::observations::Observations;
use super::running::still_runs;
use super::{Reconciler, Report};
use crate::clock::Clock;
use crate::decide::{Action, Occasion};
use crate::order::Timestamp;
use crate::pace::PollPlan;
use crate::process::Stop;
use crate::store::{OrderChange, StartCandidate};
use crate::upstream::Upstream;

/// Number of changes in one transaction. It takes some ten milliseconds, during which the writes of
/// other programs wait.
const CHANGES_PER_TRANSACTION_MAX: usize = 2_000;

impl<U: Upstream, C: Clock> Reconciler<U, C> {
    /// Polls the open orders that are due, and records the changes. Queues those that are to be started
    /// again. Without work, nothing is read.
    pub(super) async fn observe(&mut self, has_work: bool, stop: &Stop) -> anyhow::Result<Report> {
        let began_at = self.context.clock.now();
        self.polled_at = Some(began_at);
        (self.has_polled_all, self.has_gap) = (false, false);
        let (orders, others_running) = match has_work {
            true => self.orders_to_poll(began_at).await?,
            false => Default::default(),
        };
        let is_schedule_frequent = self.is_schedule_frequent(began_at);
        let pace = &mut self.pace;
        let is_down = pace.breaker().is_down();
        let needs_list = |index: &usize| {
            let order = orders.order(*index);
            is_down || order.is_due(began_at) && order.do_look_ups_fail()
        };
        let indexes = match pace.plan(orders.targets(), is_schedule_frequent, began_at) {
            PollPlan::LookUps(indexes) if !indexes.iter().any(needs_list) => indexes,
            _ => {
                return self
                    .observe_by_list(orders, others_running, began_at, stop)
                    .await;
            }
        };
        let (orders, not_chosen) = self.split(orders, &indexes, began_at);
        let mut observations = Observations::new(orders, others_running + not_chosen);
        let all = (0..observations.orders.len()).collect();
        self.look_up_each(&mut observations, all, usize::MAX, stop)
            .await;
        self.process_observations(observations, began_at, stop)
            .await
    }

    /// Processes the observations of a poll: reports them to the pace, decides about each order, and
    /// records the changes.
    pub(super) async fn process_observations(
        &mut self,
        mut observations: Observations,
        began_at: Timestamp,
        stop: &Stop,
    ) -> anyhow::Result<Report> {
        let now = self.context.clock.now();
        let mut report = Report {
            observed: observations.orders.len(),
            ..Report::default()
        };
        let occasion = self.note_forgotten(&observations, began_at);
        self.confirm_absences(&mut observations, occasion, stop)
            .await;
        self.has_gap |= !observations.is_complete;
        let is_answered = match observations.entries {
            // A list includes the orders whose look-up is in flight.
            Some(_) => observations.is_each_tried,
            None => self.requests.look_ups.is_empty(),
        };
        if is_answered && !self.has_gap {
            let last = &mut self.heartbeat.state.last_observed_at;
            *last = last.filter(|at| *at <= now).max(Some(began_at));
        }
        self.has_polled_all = observations.is_each_tried;
        report.is_absence_early = observations.is_any_absence_early(&self.context.policy());
        let decided = self.decide_all(&observations, occasion, began_at).await;
        if decided.is_ok() {
            for (order, observation) in observations.observed() {
                self.pace
                    .on_observed(order, &observation.observed, observation.began_at);
            }
        }
        // Also if nothing could be recorded: the requests were sent all the same.
        self.report_poll(&observations, began_at);
        let (running, recorded) = decided?;
        report += recorded;
        self.pace.set_running(observations.others_running + running);
        if report.missed > 0 && occasion == Occasion::Poll {
            self.pace.poll_soon(self.context.clock.now());
        }
        Ok(report)
    }

    /// Decides about each order and records the changes, [`CHANGES_PER_TRANSACTION_MAX`] at a time. Returns
    /// the number of processes that run and are not stuck.
    async fn decide_all(
        &mut self,
        observations: &Observations,
        occasion: Occasion,
        began_at: Timestamp,
    ) -> anyhow::Result<(u64, Report)> {
        let (now, policy) = (self.context.clock.now(), self.context.policy());
        let stuck_threshold = self.pace.stuck_threshold();
        let mut running = 0;
        let mut changes = undetermined(observations, &policy, now);
        let mut report = Report::default();
        let mut transitions = Vec::new();
        let mut to_repeat = Vec::new();
        for (index, mut order) in observations.orders.orders().enumerate() {
            let observation = observations.observation(index);
            let is_running = still_runs(&order, observation, &policy, stuck_threshold, began_at);
            running += u64::from(is_running);
            let decision = self.context.decide(&order, occasion, observation, now);
            if decision.action == Action::Wait {
                continue;
            }
            let id = observations.orders.ids().get(index);
            let missed = newly_missing(&decision, &policy);
            for decision in missed.iter().chain([&decision]) {
                add_transitions(decision, id, None, now, &mut transitions);
            }
            let (action, seq) = (decision.action, order.seq);
            let to_change = |transition| OrderChange { seq, transition };
            changes.extend(transitions.drain(..).map(to_change));
            // The answer of a look-up in flight decides anew.
            if action == Action::Start && !self.requests.look_ups.contains(seq) {
                if let Some(observation) = observation.filter(|_| missed.is_some()) {
                    order.mark_missing(observation.began_at);
                }
                let id = observations.orders.ids().order_id(index);
                to_repeat.push(StartCandidate { id, order });
            }
            if changes.len() >= CHANGES_PER_TRANSACTION_MAX {
                report += self.record(std::mem::take(&mut changes), now).await?;
            }
        }
        report += self.record(changes, now).await?;
        self.queue.update(observations.orders.targets(), to_repeat);
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
