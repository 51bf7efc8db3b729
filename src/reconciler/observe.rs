//! The first half of a pass: polls the processes of open orders, decides, and records.
//!
//! The answers are stored in `observations.rs`, and `decide` chooses what follows from them. The second
//! half, the starts, is in `start.rs`.

use std::time::Duration;

use anyhow::Context as _;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::list_read::{ListAnswer, ListRead};
use super::observations::Observations;
use super::pace_log::on_result;
use super::{Decision, Reconciler, Report, effects};
use crate::clock::Clock;
use crate::decide::{Action, Observation, Occasion, OpenOrder, Phase, Policy};
use crate::messages::span;
use crate::order::{Observed, Reason, Timestamp};
use crate::pace::{Call, PollPlan};
use crate::process::Stop;
use crate::store::{OpenOrders, OrderChange, StartCandidate, Transition};
use crate::upstream::Upstream;

/// Number of changes in one transaction. It takes some ten milliseconds, during which the writes of
/// other processes wait.
const BATCH_MAX: usize = 2_000;

/// Number of orders that a list lacks or contradicts and that are looked up in one pass, before anything
/// is done about them. The others follow in later passes.
const CONFIRM_MAX: usize = 2_000;

/// Time for which starts wait for a list. Nearly every list is complete by then.
const LIST_HEAD_START: Duration = Duration::from_secs(1);

/// Number of orders that are looked up in one pass while no list can be used.
const INSTEAD_OF_LIST_MAX: usize = 500;

impl<U: Upstream, C: Clock> Reconciler<U, C> {
    /// Polls the open orders that are due, and records the changes. Queues those that are to be
    /// restarted. Without work there are none, and nothing is read.
    ///
    /// A list has a head start of [`LIST_HEAD_START`], so that its observations nearly always come before
    /// the next starts. A longer list is read while starts are sent and some orders are looked up.
    pub(super) async fn observe(&mut self, has_work: bool, stop: &Stop) -> anyhow::Result<Report> {
        let began_at = self.context.clock.now();
        self.polled_at = Some(began_at);
        let mut orders = match has_work {
            true => self.context.store.open_orders().await?,
            false => OpenOrders::default(),
        };
        let is_frequent = self.is_frequent(began_at);
        let plan = self.pace.plan(orders.targets(), is_frequent, began_at);
        if plan == PollPlan::List && self.list.is_none() {
            let until = began_at.after(self.pace.list_timeout());
            self.pace.on_poll_sent(began_at);
            self.list = Some(ListRead::begin(self.context.clone(), orders, until));
            tokio::select! {
                biased;
                () = stop.requested.cancelled() => {}
                () = ListRead::read_to_end(&mut self.list) => {}
                () = self.context.clock.deadline(began_at.after(LIST_HEAD_START)) => {}
            }
            return match ListRead::take_answer(&mut self.list) {
                Some(answer) => self.on_list(answer, stop).await,
                None => Ok(Report::default()),
            };
        }
        let (mut limit, mut not_chosen) = (INSTEAD_OF_LIST_MAX, 0);
        if let PollPlan::LookUps(indexes) = &plan {
            limit = usize::MAX;
            if indexes.len() < orders.len() {
                let all = self.count_running(&orders, began_at);
                orders = orders.chosen(indexes);
                not_chosen = all - self.count_running(&orders, began_at);
            }
        }
        let mut observations = Observations::new(orders);
        self.look_up_all(&mut observations, limit, stop).await;
        self.process_observations(observations, began_at, not_chosen, stop)
            .await
    }

    /// Processes the list that was completed since the last pass, if there is one. Reads the open orders
    /// again, because they may have changed since the list began.
    pub(super) async fn take_list(&mut self, stop: &Stop) -> anyhow::Result<Report> {
        let Some(mut answer) = ListRead::take_answer(&mut self.list) else {
            return Ok(Report::default());
        };
        let orders = self.context.store.open_orders().await?;
        answer.snapshot = answer.snapshot.for_open_orders(&answer.orders, &orders);
        answer.orders = orders;
        self.on_list(answer, stop).await
    }

    /// Processes a list that has ended. If it failed, looks up some orders instead, so that orders
    /// make progress although no list ever works.
    async fn on_list(&mut self, answer: ListAnswer, stop: &Stop) -> anyhow::Result<Report> {
        let now = self.context.clock.now();
        let ListAnswer {
            began_at, result, ..
        } = answer;
        self.on_result(Call::poll(began_at), result.as_ref().err());
        let entries = result.as_ref().ok().copied();
        self.pace.on_list_ended(entries, now.since(began_at));
        let mut observations = Observations::new(answer.orders);
        observations.add_list(answer.snapshot, entries);
        if let Err(failure) = result
            && !self.pace.breaker().is_down()
        {
            log::warn!(
                "list failed; looking up orders instead reason={:?}",
                failure.detail
            );
            self.look_up_all(&mut observations, INSTEAD_OF_LIST_MAX, stop)
                .await;
        }
        let contradictions = observations.contradictions().collect();
        self.look_up_each(&mut observations, contradictions, CONFIRM_MAX, stop)
            .await;
        self.process_observations(observations, began_at, 0, stop)
            .await
    }

    /// Processes the observations of a poll: reports them to the pace, decides about each order, and
    /// records the changes.
    async fn process_observations(
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
        // One process is enough: answers from before belong to an earlier incarnation.
        let forgot_at = self.pace.incarnations().forgot_at();
        if observations.is_any_forgotten(forgot_at, &self.context.policy()) {
            self.pace.on_process_forgotten(self.context.clock.now());
        }
        let occasion = match self.detect_restart(&observations, began_at) {
            true => Occasion::UpstreamRestart,
            false => Occasion::Poll,
        };
        self.context
            .forgot_at
            .set(self.pace.incarnations().forgot_at());
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

    /// Returns whether so many processes are newly missing that the upstream must have been restarted,
    /// and reports that to the pace.
    fn detect_restart(&mut self, observations: &Observations, began_at: Timestamp) -> bool {
        let (now, policy) = (self.context.clock.now(), self.context.policy());
        let incarnations = self.pace.incarnations();
        // A process that was confirmed before the last detected restart may have been lost in that
        // one: its absence does not mean a second restart.
        let restarted_at = incarnations.restarted_at();
        let total = observations.missing(None, &policy);
        if !observations.missing(restarted_at, &policy).is_restart() {
            if let Some(entries) = observations.entries {
                self.pace.on_list_complete(entries, began_at, now);
            } else if total.known > total.missing {
                self.pace.on_seen_alive(began_at);
            }
            return total.is_restart();
        }
        let before = match (incarnations.processes(), incarnations.began_at()) {
            (Some(processes), Some(at)) => {
                format!(" processes={processes} lived={:?}", span(now.since(at)))
            }
            _ => String::new(),
        };
        let (missing, known) = (total.missing, total.known);
        let left = observations.entries.unwrap_or((known - missing) as u64);
        self.pace.on_restart(left, now);
        let incarnations = self.pace.incarnations();
        let window = incarnations.window().unwrap_or(0);
        let length = incarnations
            .expected_length(now)
            .map_or(0.0, |(processes, _)| processes);
        log::warn!(
            "the upstream was restarted forgotten={missing} known={known}{before} \
             expected_length={length:.0} window={window} rate={:.1}",
            self.pace.rate().rate()
        );
        true
    }

    /// Returns the number of these orders for which [`is_running`] is true.
    fn count_running(&self, orders: &OpenOrders, now: Timestamp) -> u64 {
        let stuck_after = self.pace.stuck_after();
        let running = orders
            .orders()
            .filter(|order| is_running(order, stuck_after, now));
        running.count() as u64
    }

    /// Reports the polled orders and the cost of the requests to the pace.
    fn record_poll(&mut self, observations: &Observations, began_at: Timestamp) {
        if observations.is_listed && observations.is_complete {
            self.pace.on_all_polled(began_at);
        } else if !observations.is_listed {
            for (seq, observation) in observations.looked_up() {
                self.pace.on_looked_up(seq, observation.began_at);
            }
        }
        // A long list is followed by a pause all the same.
        let now = self.context.clock.now();
        let is_late = now.since(began_at) > LIST_HEAD_START;
        let polled_at = if is_late { now } else { began_at };
        self.pace
            .on_polled(polled_at, observations.requests(), observations.cost());
    }

    /// Looks up the orders that the list lacks and that would be failed or flagged for it. Those that are
    /// to be restarted are looked up just before their start.
    async fn confirm_absences(
        &mut self,
        observations: &mut Observations,
        occasion: Occasion,
        stop: &Stop,
    ) {
        let now = self.context.clock.now();
        let policy = self.context.policy();
        let unconfirmed = observations.take_unconfirmed(&policy, |order, observation| {
            let decision = self.context.decide(order, occasion, Some(observation), now);
            matches!(decision.action, Action::Fail | Action::Flag(_))
        });
        let indexes = unconfirmed.iter().map(|(index, _)| *index).collect();
        self.look_up_each(observations, indexes, CONFIRM_MAX, stop)
            .await;
        observations.unconfirmed = unconfirmed;
        observations
            .unconfirmed
            .retain(|(index, _)| !observations.looked_up.contains_key(index));
    }

    async fn look_up_all(&mut self, observations: &mut Observations, limit: usize, stop: &Stop) {
        let all = (0..observations.orders.len()).collect();
        self.look_up_each(observations, all, limit, stop).await;
    }

    /// Looks up those of these orders that are due and were not observed, `limit` of them at most. Ends
    /// early if the upstream goes down.
    async fn look_up_each(
        &mut self,
        observations: &mut Observations,
        mut waiting: Vec<usize>,
        limit: usize,
        stop: &Stop,
    ) {
        let now = self.context.clock.now();
        let mut failures = Vec::new();
        waiting.retain(|&at| {
            observations.observation(at).is_none() && observations.orders.order(at).is_due(now)
        });
        // Beyond the limit, begin at another order each time, so that none is left out for ever.
        if waiting.len() > limit {
            let from = now.0.unsigned_abs() as usize % waiting.len();
            waiting.rotate_left(from);
            waiting.truncate(limit);
            observations.is_complete = false;
        }
        let mut waiting = waiting.into_iter();
        let context = &self.context;
        let mut requests = FuturesUnordered::new();
        loop {
            while self.pace.may_poll(context.clock.now(), requests.len())
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

    /// Decides about each order and records the changes, [`BATCH_MAX`] at a time. Reports the durations
    /// of processes to the pace. Returns the number of processes that run and are not stuck, by the
    /// durations known before.
    async fn decide_all(
        &mut self,
        observations: &Observations,
        occasion: Occasion,
        began_at: Timestamp,
    ) -> anyhow::Result<(u64, Report)> {
        let (now, policy) = (self.context.clock.now(), self.context.policy());
        let stuck_after = self.pace.stuck_after();
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
            if is_running(&order, stuck_after, began_at)
                && !observation.is_some_and(|observation| is_over(&order, observation, &policy))
            {
                running += 1;
            }
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
            if changes.len() >= BATCH_MAX {
                report += self.record_batch(std::mem::take(&mut changes), now).await?;
            }
        }
        report += self.record_batch(changes, now).await?;
        self.queue.update(observations.orders.targets(), restarts);
        Ok((running, report))
    }

    /// Records changes, if there are any, and returns their counts.
    async fn record_batch(
        &self,
        changes: Vec<OrderChange>,
        now: Timestamp,
    ) -> anyhow::Result<Report> {
        if changes.is_empty() {
            return Ok(Report::default());
        }
        let recorded = self.context.record_changes(changes, now).await;
        let (_, report) = recorded.context("recording the observations failed")?;
        Ok(report)
    }
}

/// Returns whether the order has a process that runs, as far as is known, and is not stuck.
fn is_running(order: &OpenOrder, stuck_after: Duration, now: Timestamp) -> bool {
    match order.phase {
        Phase::Processing {
            confirmed_at,
            missed_at: None,
        } => now.since(confirmed_at) <= stuck_after,
        _ => false,
    }
}

/// Returns whether the observation shows that the order's process does not run any more.
fn is_over(order: &OpenOrder, observation: &Observation, policy: &Policy) -> bool {
    matches!(observation.observed, Observed::Succeeded | Observed::Failed)
        || order.is_missing_in(observation, policy)
}

/// Returns the decision to mark the process as missing, if `decision` leaves the order without one. It
/// is marked once, so that the next poll does not count it towards another restart.
fn newly_missing<'a>(decision: &Decision<'a>, policy: &Policy) -> Option<Decision<'a>> {
    let is_news = matches!(decision.action, Action::Start | Action::Flag(_))
        && !decision.order.is_missed()
        && decision
            .observation
            .is_some_and(|observation| decision.order.is_missing_in(observation, policy));
    is_news.then_some(Decision {
        action: Action::MarkMissing,
        ..*decision
    })
}

/// Returns the changes of the orders whose look-up failed or has not been made.
fn undetermined(observations: &Observations, now: Timestamp) -> Vec<OrderChange> {
    let failed = observations.failures.iter().map(|(index, failure)| {
        let (order, id) = (
            observations.orders.order(*index),
            observations.orders.ids().get(*index),
        );
        let detail = failure.detail.clone();
        let attention = effects::attention(&order, id, Reason::UpstreamUnreachable, detail, now);
        OrderChange {
            seq: order.seq,
            step: Transition::Delayed(attention),
        }
    });
    let mut changes: Vec<OrderChange> = failed.collect();
    for (index, began_at) in &observations.unconfirmed {
        let order = observations.orders.order(*index);
        if !order.is_missed() {
            let (seq, began_at) = (order.seq, *began_at);
            let step = Transition::Missed { began_at };
            changes.push(OrderChange { seq, step });
        }
    }
    changes
}
