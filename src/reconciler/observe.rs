//! The first half of a pass: looks for the processes of open orders, decides, and records.
//!
//! Here the upstream is asked. What was answered is kept, and read, in `observations.rs`; what to do
//! about it is `decide`'s choice. The second half, the starts, is in `start.rs`.

use std::time::Duration;

use anyhow::Context as _;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::list_read::{ListAnswer, ListRead};
use super::observations::Observations;
use super::pace_log::note;
use super::{Decision, Reconciler, Report, effects};
use crate::clock::Clock;
use crate::decide::{Action, Observation, Occasion, OpenOrder, Phase, Policy};
use crate::order::{Observed, Reason, Timestamp};
use crate::pace::{Call, PollPlan};
use crate::process::Stop;
use crate::store::{OpenOrders, OrderChange, StartCandidate, Transition};
use crate::upstream::Upstream;

/// Changes in one transaction. It takes some ten milliseconds, which another process' writes can
/// wait.
const BATCH_MAX: usize = 2_000;

/// Orders that a list did not know are looked up before anything is done about them, this many in
/// a pass. The others' turn comes in the next.
const CONFIRMED_MAX: usize = 2_000;

/// Within this time nearly every list is read.
const LIST_HEAD_START: Duration = Duration::from_secs(1);

/// When the list cannot be used, or not yet, this many orders are looked up one by one instead.
const INSTEAD_OF_LIST_MAX: usize = 500;

impl<U: Upstream, C: Clock> Reconciler<U, C> {
    /// Looks for the processes of the orders that should have one, as far as that is due, and
    /// records what was seen. Keeps those that are to be started again.
    ///
    /// A list has a head start: if it is read by then, as nearly all are, what it says comes before
    /// the next starts. Otherwise it is read beside these, and some orders are looked up meanwhile.
    pub(super) async fn observe(&mut self, stop: &Stop) -> anyhow::Result<Report> {
        let began_at = self.context.clock.now();
        self.polled_at = Some(began_at);
        let mut orders = self.context.store.watched().await?;
        let is_often = self.is_often(began_at);
        let plan = self.pace.plan(orders.watched(), is_often, began_at);
        if plan == PollPlan::List && self.list.is_none() {
            let until = began_at.after(self.pace.list_timeout());
            self.pace.on_poll_sent(began_at);
            self.list = Some(ListRead::begin(self.context.clone(), orders, until));
            tokio::select! {
                biased;
                () = stop.requested.cancelled() => {}
                () = ListRead::read_on(&mut self.list) => {}
                () = self.context.clock.deadline(began_at.after(LIST_HEAD_START)) => {}
            }
            return match ListRead::take_answer(&mut self.list) {
                Some(answer) => self.on_list(answer, stop).await,
                None => Ok(Report::default()),
            };
        }
        let (mut limit, mut not_chosen) = (INSTEAD_OF_LIST_MAX, 0);
        if let PollPlan::LookUps(places) = &plan {
            limit = usize::MAX;
            if places.len() < orders.len() {
                let all = self.count_running(&orders, began_at);
                orders = orders.chosen(places);
                not_chosen = all - self.count_running(&orders, began_at);
            }
        }
        let mut seen = Observations::new(orders);
        self.look_up_all(&mut seen, limit, stop).await;
        self.conclude(seen, began_at, not_chosen, stop).await
    }

    /// Takes the list that has ended meanwhile, if one has. What has happened since it began is known
    /// from the orders as they are now.
    pub(super) async fn take_list(&mut self, stop: &Stop) -> anyhow::Result<Report> {
        let Some(mut answer) = ListRead::take_answer(&mut self.list) else {
            return Ok(Report::default());
        };
        let orders = self.context.store.watched().await?;
        answer.snapshot = answer.snapshot.for_orders(&answer.orders, &orders);
        answer.orders = orders;
        self.on_list(answer, stop).await
    }

    /// Reads the end of a list. If the list cannot be used, some orders are looked up instead, so that
    /// a list that never works cannot strand anyone.
    async fn on_list(&mut self, answer: ListAnswer, stop: &Stop) -> anyhow::Result<Report> {
        let now = self.context.clock.now();
        let ListAnswer {
            began_at, result, ..
        } = answer;
        self.note(Call::poll(began_at), result.as_ref().err());
        let entries = result.as_ref().ok().copied();
        self.pace.on_list_ended(entries, now.since(began_at));
        let mut seen = Observations::new(answer.orders);
        seen.read(answer.snapshot, entries);
        if let Err(failure) = result
            && !self.pace.breaker().is_down()
        {
            log::warn!("{}; some orders are looked up instead", failure.detail);
            self.look_up_all(&mut seen, INSTEAD_OF_LIST_MAX, stop).await;
        }
        let contradictions = seen.contradictions().collect();
        self.look_up_each(&mut seen, contradictions, CONFIRMED_MAX, stop)
            .await;
        self.conclude(seen, began_at, 0, stop).await
    }

    /// Decides about what was seen, and records that.
    async fn conclude(
        &mut self,
        mut seen: Observations,
        began_at: Timestamp,
        not_chosen: u64,
        stop: &Stop,
    ) -> anyhow::Result<Report> {
        let mut report = Report {
            observed: seen.orders.len(),
            ..Report::default()
        };
        if seen.is_complete {
            self.heartbeat.state.last_observed_at = Some(began_at);
        }
        // One process is enough here: what the upstream has answered before is not of this life.
        let forgot_at = self.pace.incarnations().forgot_at();
        if seen.is_any_forgotten(forgot_at, &self.context.policy()) {
            self.pace.on_process_forgotten(self.context.clock.now());
        }
        let occasion = match self.suspect_restart(&seen, began_at) {
            true => Occasion::Restart,
            false => Occasion::Pass,
        };
        self.context
            .forgot_at
            .set(self.pace.incarnations().forgot_at());
        self.confirm(&mut seen, occasion, stop).await;
        report.is_absence_early = seen.is_any_missing_too_soon(&self.context.policy());
        let durations = self.pace.durations().clone();
        let settled = self.settle(&seen, occasion, began_at).await;
        if settled.is_err() {
            self.pace.restore_durations(durations);
        }
        // Also if what was seen could not be recorded: the upstream has been asked all the same.
        self.remember(&seen, began_at);
        let (running, settled) = settled?;
        report += settled;
        self.pace.set_in_flight(not_chosen + running);
        if report.missed > 0 && occasion == Occasion::Pass {
            self.pace.poll_soon(self.context.clock.now());
        }
        Ok(report)
    }

    /// Whether so many processes are newly missing that the upstream must have been restarted.
    fn suspect_restart(&mut self, seen: &Observations, began_at: Timestamp) -> bool {
        let (now, policy) = (self.context.clock.now(), self.context.policy());
        let incarnations = self.pace.incarnations();
        // What was confirmed before the last restart was found may have been forgotten in it: no
        // second one is needed to explain that.
        let restarted_at = incarnations.restarted_at();
        let of_all = seen.missing(None, &policy);
        if !seen.missing(restarted_at, &policy).is_restart() {
            if let Some(entries) = seen.entries {
                self.pace.on_list_complete(entries, began_at, now);
            } else if of_all.known > of_all.missing {
                self.pace.on_seen_alive(began_at);
            }
            return of_all.is_restart();
        }
        let before = match (incarnations.processes(), incarnations.began_at()) {
            (Some(processes), Some(at)) => format!(
                ", after {} s (processes: {processes})",
                now.since(at).as_secs()
            ),
            _ => String::new(),
        };
        let (missing, known) = (of_all.missing, of_all.known);
        let left = seen.entries.unwrap_or((known - missing) as u64);
        self.pace.on_restart(left, now);
        let incarnations = self.pace.incarnations();
        let window = incarnations.window().unwrap_or(0);
        let life = incarnations
            .expected_length(now)
            .map_or(0.0, |(processes, _)| processes);
        log::warn!(
            "the upstream seems to have been restarted{before}: it has forgotten {missing} of \
             {known} processes. A life is taken to last {life:.0} processes, so at most {window} run \
             at once; the start rate is reduced to {:.1}/s",
            self.pace.rate().rate()
        );
        true
    }

    /// How many of these orders have a process that runs, as far as is known, and is not stuck.
    fn count_running(&self, orders: &OpenOrders, now: Timestamp) -> u64 {
        let stuck_after = self.pace.stuck_after();
        let running = orders
            .orders()
            .filter(|order| runs(order, stuck_after, now));
        running.count() as u64
    }

    /// Takes note of what was looked at, and of what that has cost the upstream.
    fn remember(&mut self, seen: &Observations, began_at: Timestamp) {
        if seen.is_listed && seen.is_complete {
            self.pace.on_all_polled(began_at);
        } else if !seen.is_listed {
            for (seq, look) in seen.looked_up() {
                self.pace.on_looked_up(seq, look.began_at);
            }
        }
        // A long list is followed by a pause all the same.
        let now = self.context.clock.now();
        let is_late = now.since(began_at) > LIST_HEAD_START;
        let looked_at = if is_late { now } else { began_at };
        self.pace.on_polled(looked_at, seen.requests(), seen.cost());
    }

    /// Looks up each order that the list did not know before anything is done about it. Those that
    /// are to be started again are looked up just before their start.
    async fn confirm(&mut self, seen: &mut Observations, occasion: Occasion, stop: &Stop) {
        let now = self.context.clock.now();
        let policy = self.context.policy();
        let doubtful = seen.take_doubtful(&policy, |order, look| {
            let decision = self.context.decide(order, occasion, Some(look), now);
            matches!(decision.action, Action::Fail | Action::Flag(_))
        });
        let places = doubtful.iter().map(|(place, _)| *place).collect();
        self.look_up_each(seen, places, CONFIRMED_MAX, stop).await;
        seen.unconfirmed = doubtful;
        seen.unconfirmed
            .retain(|(place, _)| !seen.looked_up.contains_key(place));
    }

    async fn look_up_all(&mut self, seen: &mut Observations, limit: usize, stop: &Stop) {
        let all = (0..seen.orders.len()).collect();
        self.look_up_each(seen, all, limit, stop).await;
    }

    /// Asks for each of these orders that is due and was not seen, up to `limit` of them, unless
    /// the upstream goes down.
    async fn look_up_each(
        &mut self,
        seen: &mut Observations,
        mut waiting: Vec<usize>,
        limit: usize,
        stop: &Stop,
    ) {
        let now = self.context.clock.now();
        let mut failures = Vec::new();
        waiting.retain(|&at| seen.look(at).is_none() && seen.orders.order(at).is_due(now));
        // Not always the same ones first when there are more than may be asked for.
        if waiting.len() > limit {
            let from = now.0.unsigned_abs() as usize % waiting.len();
            waiting.rotate_left(from);
            waiting.truncate(limit);
            seen.is_complete = false;
        }
        let mut waiting = waiting.into_iter();
        let context = &self.context;
        let mut asked = FuturesUnordered::new();
        loop {
            while self.pace.may_poll(context.clock.now(), asked.len())
                && !stop.requested.is_cancelled()
                && let Some(at) = waiting.next()
            {
                let id = seen.orders.ids().order_id(at);
                seen.look_ups += 1;
                self.pace.on_poll_sent(context.clock.now());
                asked.push(async move {
                    let began_at = context.clock.now();
                    let result = context.upstream.look_up(&context.clock, &id).await;
                    (at, began_at, result)
                });
            }
            let answered = ListRead::beside(&mut self.list, asked.next()).await;
            let Some((at, began_at, result)) = answered else {
                break;
            };
            let failure = result.as_ref().err();
            note(
                &mut self.pace,
                Call::poll(began_at),
                context.clock.now(),
                failure,
            );
            match result {
                Ok(observed) => seen.saw(at, Observation { observed, began_at }),
                Err(failure) => failures.push((at, failure)),
            }
        }
        if waiting.next().is_some() || !failures.is_empty() {
            seen.is_complete = false;
        }
        // An upstream that is down is no order's fault, and stored once.
        if !self.pace.breaker().is_down() {
            seen.failures.extend(failures);
        }
    }

    /// Decides about each order and records the decisions, some thousands at a time. Learns from
    /// what was seen how long processes take. Returns how many still run and are not stuck, by what
    /// was known of that before.
    async fn settle(
        &mut self,
        seen: &Observations,
        occasion: Occasion,
        began_at: Timestamp,
    ) -> anyhow::Result<(u64, Report)> {
        let (now, policy) = (self.context.clock.now(), self.context.policy());
        let stuck_after = self.pace.stuck_after();
        let mut still = 0;
        let mut changes = unseen(seen, now);
        let mut report = Report::default();
        let mut steps = Vec::new();
        let mut again = Vec::new();
        let orders = seen.orders.watched().iter().zip(seen.orders.orders());
        for (place, (watched, mut order)) in orders.enumerate() {
            let look = seen.look(place);
            if runs(&order, stuck_after, began_at)
                && !look.is_some_and(|look| is_over(&order, look, &policy))
            {
                still += 1;
            }
            if let Some(look) = look {
                self.pace
                    .on_observed(watched, &look.observed, look.began_at);
            }
            let decision = self.context.decide(&order, occasion, look, now);
            // As nearly all do.
            if decision.action == Action::Wait {
                continue;
            }
            let id = seen.orders.ids().get(place);
            let missed = missed_by(&decision, &policy);
            for decision in missed.iter().chain([&decision]) {
                effects::apply(decision, id, None, now, &mut steps);
            }
            let (action, seq) = (decision.action, order.seq);
            changes.extend(steps.drain(..).map(|step| OrderChange { seq, step }));
            if action == Action::Start {
                if let Some(look) = look.filter(|_| missed.is_some()) {
                    order.mark_missing(look.began_at);
                }
                let id = seen.orders.ids().order_id(place);
                again.push(StartCandidate { id, order });
            }
            if changes.len() >= BATCH_MAX {
                report += self.record(std::mem::take(&mut changes), now).await?;
            }
        }
        report += self.record(changes, now).await?;
        self.queue.update(seen.orders.watched(), again);
        Ok((still, report))
    }

    /// Records changes, if there are any, and counts them.
    async fn record(&self, changes: Vec<OrderChange>, now: Timestamp) -> anyhow::Result<Report> {
        if changes.is_empty() {
            return Ok(Report::default());
        }
        let recorded = self.context.record_changes(changes, now).await;
        let (_, report) = recorded.context("what was observed could not be recorded")?;
        Ok(report)
    }
}

/// Whether the order has a process that runs, as far as is known, and is not stuck.
fn runs(order: &OpenOrder, stuck_after: Duration, now: Timestamp) -> bool {
    match order.phase {
        Phase::Processing {
            confirmed_at,
            missed_at: None,
        } => now.since(confirmed_at) <= stuck_after,
        _ => false,
    }
}

/// Whether this look says that the order's process does not run any more.
fn is_over(order: &OpenOrder, look: &Observation, policy: &Policy) -> bool {
    matches!(look.observed, Observed::Succeeded | Observed::Failed)
        || order.is_missing_in(look, policy)
}

/// The news of a missing process, if a decision leaves the order without one. It is news once: the
/// next look must not take it for another restart.
fn missed_by<'a>(decision: &Decision<'a>, policy: &Policy) -> Option<Decision<'a>> {
    let is_news = matches!(decision.action, Action::Start | Action::Flag(_))
        && !decision.order.is_missed()
        && decision
            .look
            .is_some_and(|look| decision.order.is_missing_in(look, policy));
    is_news.then_some(Decision {
        action: Action::MarkMissing,
        ..*decision
    })
}

/// Changes of the orders that were looked for in vain.
fn unseen(seen: &Observations, now: Timestamp) -> Vec<OrderChange> {
    let failed = seen.failures.iter().map(|(place, failure)| {
        let (order, id) = (seen.orders.order(*place), seen.orders.ids().get(*place));
        let detail = failure.detail.clone();
        let trouble = effects::trouble(&order, id, Reason::UpstreamUnreachable, detail, now);
        OrderChange {
            seq: order.seq,
            step: Transition::Delayed(trouble),
        }
    });
    let mut changes: Vec<OrderChange> = failed.collect();
    for (place, began_at) in &seen.unconfirmed {
        let order = seen.orders.order(*place);
        if !order.is_missed() {
            let (seq, began_at) = (order.seq, *began_at);
            let step = Transition::Missed { began_at };
            changes.push(OrderChange { seq, step });
        }
    }
    changes
}
