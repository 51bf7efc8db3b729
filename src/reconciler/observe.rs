//! The first half of a pass: looks for the processes of open orders, decides, and records.
//!
//! What was seen is kept in `sight.rs`, apart from what is done about it: the choice is `decide`'s.
//! The second half, the starts, is in `start.rs`.

use std::time::Duration;

use anyhow::Context;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::sight::{Reading, Sight};
use super::{Reconciler, Report, Stop, note};
use crate::clock::Clock;
use crate::decide::{Action, Circumstances, Look, OpenOrder, Phase, decide, row_of};
use crate::order::{Observed, Reason, Timestamp};
use crate::pace::{self, Plan, backoff};
use crate::store::{Change, Startable, Step, Trouble, Watchlist};
use crate::upstream::{Entry, Upstream};

/// Changes in one transaction. It takes some ten milliseconds, which another process' writes can
/// wait.
const BATCH_MAX: usize = 2_000;

/// Orders that a list did not know are looked up before anything is done about them, this many in
/// a pass. The others' turn comes in the next.
const CONFIRMED_MAX: usize = 2_000;

/// When the list cannot be used, this many orders are looked up one by one instead.
const INSTEAD_OF_LIST_MAX: usize = 500;

impl<U: Upstream, C: Clock> Reconciler<U, C> {
    /// Looks for the processes of the orders that should have one, as far as that is due, and
    /// records what was seen. Keeps those that are to be started again.
    pub(super) async fn observe(&mut self, report: &mut Report, stop: &Stop) -> anyhow::Result<()> {
        let began_at = self.world.clock.now();
        self.looked_at = Some(began_at);
        let mut orders = self.world.store.watched()?;
        let plan = self.pace.plan(orders.watched(), began_at);
        let mut not_chosen = 0;
        if let Plan::LookUps(places) = &plan
            && places.len() < orders.len()
        {
            let all = self.count_running(&orders, began_at);
            orders = orders.chosen(places);
            not_chosen = all - self.count_running(&orders, began_at);
        }
        report.observed = orders.len();
        let mut sight = Sight::new(orders);
        match plan {
            Plan::LookUps(_) => {
                let all = (0..sight.orders.len()).collect();
                self.look_up_each(&mut sight, all, usize::MAX, stop).await;
            }
            Plan::List => self.read_list(&mut sight, stop).await,
        }
        if sight.is_complete {
            self.pulse.heartbeat.last_seen_at = Some(began_at);
        }
        let restart_suspected = self.suspect_restart(&sight);
        self.confirm(&mut sight, restart_suspected, stop).await;
        let settled = self
            .settle(&sight, restart_suspected, began_at, report)
            .await;
        // Also if what was seen could not be recorded: the upstream has been asked all the same.
        self.remember(&sight, began_at);
        self.pace.found_running(not_chosen + settled?);
        if report.missed > 0 && !restart_suspected {
            self.pace.look_again(self.world.clock.now());
        }
        Ok(())
    }

    /// Whether so many processes are newly missing that the upstream must have been restarted.
    fn suspect_restart(&mut self, sight: &Sight) -> bool {
        let lives = self.pace.lives();
        // What was confirmed before the last restart was found may have been forgotten in it: no
        // second one is needed to explain that.
        let is_of_this_life = |confirmed_at| {
            let restarted_at = lives.began_at().filter(|_| lives.ended() > 0);
            restarted_at.is_none_or(|at| confirmed_at >= at)
        };
        let (mut known, mut missing) = (0, 0);
        let (mut known_now, mut missing_now) = (0, 0);
        // While nearly none is absent, it makes no difference how many are known.
        let counted = match pace::is_restart(sight.absent(), 0) {
            true => sight.orders.len(),
            false => 0,
        };
        for place in 0..counted {
            let order = sight.orders.order(place);
            let (Phase::Processing { confirmed_at, .. }, Some(look)) =
                (order.phase, sight.look(place))
            else {
                continue;
            };
            if order.intent.is_some() || order.is_missed() || look.observed == Observed::Unknown {
                continue;
            }
            let (is_missing, is_of_this_life) =
                (order.is_missing_in(look), is_of_this_life(confirmed_at));
            known += 1;
            missing += usize::from(is_missing);
            known_now += usize::from(is_of_this_life);
            missing_now += usize::from(is_of_this_life && is_missing);
        }
        let now = self.world.clock.now();
        if !pace::is_restart(missing_now, known_now) {
            if let Some(entries) = sight.entries {
                self.pace.listed(entries, now);
            }
            return pace::is_restart(missing, known);
        }
        let before = match (lives.processes(), lives.began_at()) {
            (Some(processes), Some(at)) => format!(
                ", after {processes} processes and {} s",
                now.since(at).as_secs()
            ),
            _ => String::new(),
        };
        let left = sight.entries.unwrap_or((known - missing) as u64);
        self.pace.restarted(left, now);
        let lives = self.pace.lives();
        let window = lives.window().unwrap_or(0);
        let life = lives.expected(now).map_or(0.0, |(processes, _)| processes);
        log::warn!(
            "the upstream seems to have been restarted{before}: it has forgotten {missing} of \
             {known} processes. A life lasts about {life:.0} processes, so at most {window} run \
             at once; the pace falls to {:.1} starts/s",
            self.pace.rate().rate()
        );
        true
    }

    /// How many of these orders have a process that runs, as far as is known, and is not stuck.
    fn count_running(&self, orders: &Watchlist, now: Timestamp) -> u64 {
        let stuck_after = self.pace.stuck_after();
        let running = orders
            .orders()
            .filter(|order| runs(order, stuck_after, now));
        running.count() as u64
    }

    /// Takes note of what was looked at, and of what that has cost the upstream.
    fn remember(&mut self, sight: &Sight, began_at: Timestamp) {
        if sight.is_listed && sight.is_complete {
            self.pace.saw_all(began_at);
        } else if !sight.is_listed {
            for (seq, look) in sight.looked_up() {
                self.pace.saw(seq, look.began_at);
            }
        }
        self.pace.looked(began_at, sight.cost());
    }

    /// Looks up each order that the list did not know before anything is done about it. Those that
    /// are to be started again are looked up just before their start.
    async fn confirm(&mut self, sight: &mut Sight, restart_suspected: bool, stop: &Stop) {
        if !sight.is_listed {
            return;
        }
        let policy = self.world.policy();
        let at = Circumstances {
            now: self.world.clock.now(),
            restart_suspected,
        };
        let mut doubtful = Vec::new();
        for place in sight.unlisted() {
            let order = sight.orders.order(place);
            if let Some(look) = sight.look(place)
                && order.is_missing_in(look)
                && matches!(
                    decide(&order, look, &policy, at),
                    Action::Fail | Action::Flag(_)
                )
            {
                doubtful.push((place, look.began_at));
            }
        }
        let places: Vec<usize> = doubtful.iter().map(|(place, _)| *place).collect();
        for place in &places {
            sight.forget(*place);
        }
        self.look_up_each(sight, places, CONFIRMED_MAX, stop).await;
        doubtful.retain(|(place, _)| sight.look(*place).is_none());
        sight.unconfirmed = doubtful;
    }

    /// Asks for each of these orders that is due and was not seen, up to `limit` of them, unless
    /// the upstream goes down.
    async fn look_up_each(
        &mut self,
        sight: &mut Sight,
        mut waiting: Vec<usize>,
        limit: usize,
        stop: &Stop,
    ) {
        let now = self.world.clock.now();
        let mut failures = Vec::new();
        waiting.retain(|&at| sight.look(at).is_none() && sight.orders.order(at).is_due(now));
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
            while self.pace.may_ask(world.clock.now(), asked.len())
                && !stop.begun.is_cancelled()
                && let Some(at) = waiting.next()
            {
                let id = sight.orders.ids().order_id(at);
                sight.look_ups += 1;
                asked.push(async move {
                    let began_at = world.clock.now();
                    let result = world.upstream.look_up(&world.clock, &id).await;
                    (at, began_at, result)
                });
            }
            let Some((at, began_at, result)) = asked.next().await else {
                break;
            };
            let failure = result.as_ref().err();
            note(&mut self.pace, world.clock.now(), failure);
            match result {
                Ok(observed) => sight.saw(at, Look { observed, began_at }),
                Err(failure) => failures.push((at, failure)),
            }
        }
        if waiting.next().is_some() || !failures.is_empty() {
            sight.is_complete = false;
        }
        // An upstream that is down is no order's fault, and stored once.
        if !self.pace.reach().is_down() {
            sight.failures.extend(failures);
        }
    }

    /// Reads the list of all processes. If it cannot be used, some orders are looked up instead,
    /// so that a list that never works cannot strand anyone.
    async fn read_list(&mut self, sight: &mut Sight, stop: &Stop) {
        let began_at = self.world.clock.now();
        let mut reading = Reading::new(&sight.orders, began_at);
        let tell = |entry: Entry<'_>| reading.tell(&entry);
        let result = self.world.upstream.list(&self.world.clock, tell).await;
        let listed = reading.end();
        self.note(result.as_ref().err());
        sight.read(listed, result.as_ref().ok().copied());
        if let Err(failure) = result
            && !self.pace.reach().is_down()
        {
            log::warn!("{}; some orders are looked up instead", failure.detail);
            let all = (0..sight.orders.len()).collect();
            self.look_up_each(sight, all, INSTEAD_OF_LIST_MAX, stop)
                .await;
        }
    }

    /// Decides about each order and records the decisions, some thousands at a time. Learns from
    /// what was seen how long processes take. Returns how many still run and are not stuck, by what
    /// was known of that before.
    async fn settle(
        &mut self,
        sight: &Sight,
        restart_suspected: bool,
        began_at: Timestamp,
        report: &mut Report,
    ) -> anyhow::Result<u64> {
        let now = self.world.clock.now();
        let policy = self.world.policy();
        let at = Circumstances {
            now,
            restart_suspected,
        };
        let nothing_seen = Look {
            observed: Observed::Unknown,
            began_at: now,
        };
        let stuck_after = self.pace.stuck_after();
        let mut still = 0;
        let mut changes = self.unseen(sight, now, report);
        let mut steps = Vec::new();
        let mut again = Vec::new();
        let orders = sight.orders.watched().iter().zip(sight.orders.orders());
        for (place, (watched, order)) in orders.enumerate() {
            let look = sight.look(place).unwrap_or(&nothing_seen);
            if runs(&order, stuck_after, began_at) && !is_over(&order, look) {
                still += 1;
            }
            self.pace.learn(watched, &look.observed, look.began_at);
            let action = decide(&order, look, &policy, at);
            let id = || sight.orders.ids().get(place);
            trace(&order, id, look, action);
            // As nearly all do.
            if action == Action::Wait {
                continue;
            }
            let id = id();
            let stays_missing = matches!(action, Action::Start | Action::Flag(_));
            if stays_missing && order.is_missing_in(look) && !order.is_missed() {
                // It is news once: the next look must not take it for another restart.
                effects(&order, id, Action::Miss, look, now, report, &mut steps);
            }
            effects(&order, id, action, look, now, report, &mut steps);
            let seq = order.seq;
            changes.extend(steps.drain(..).map(|step| Change { seq, step }));
            if action == Action::Start {
                let id = sight.orders.ids().order_id(place);
                again.push(Startable { id, order });
            }
            if changes.len() >= BATCH_MAX {
                self.record(std::mem::take(&mut changes), now, report)
                    .await?;
            }
        }
        self.record(changes, now, report).await?;
        // Those that were not looked at are still to be started again.
        let looked_at = sight.orders.watched();
        let was_looked_at = |seq: &i64| {
            looked_at
                .binary_search_by_key(seq, |order| order.seq)
                .is_ok()
        };
        self.again.retain(|next| !was_looked_at(&next.order.seq));
        self.again.extend(again);
        self.again
            .make_contiguous()
            .sort_by_key(|next| (next.order.phase == Phase::Created, next.order.seq));
        Ok(still)
    }

    /// What is to be recorded of the orders that were looked for in vain.
    fn unseen(&self, sight: &Sight, now: Timestamp, report: &mut Report) -> Vec<Change> {
        let failed = sight.failures.iter().map(|(place, failure)| {
            let (order, id) = (sight.orders.order(*place), sight.orders.ids().get(*place));
            let detail = failure.detail.clone();
            let trouble = trouble(&order, id, Reason::UpstreamUnreachable, detail, now);
            Change {
                seq: order.seq,
                step: Step::Delayed(trouble),
            }
        });
        let mut changes: Vec<Change> = failed.collect();
        for (place, began_at) in &sight.unconfirmed {
            let order = sight.orders.order(*place);
            if !order.is_missed() {
                report.missed += 1;
                let (seq, began_at) = (order.seq, *began_at);
                let step = Step::Missed { began_at };
                changes.push(Change { seq, step });
            }
        }
        changes
    }

    /// Records changes, if there are any.
    async fn record(
        &self,
        changes: Vec<Change>,
        now: Timestamp,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        if !changes.is_empty() {
            let recorded = self.world.record_changes(changes, now).await;
            let recorded = recorded.context("what was observed could not be recorded")?;
            report.overtaken += recorded.overtaken.len();
        }
        Ok(())
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
fn is_over(order: &OpenOrder, look: &Look) -> bool {
    matches!(look.observed, Observed::Succeeded | Observed::Failed) || order.is_missing_in(look)
}

/// Tells the log what was decided, and on what.
pub(super) fn trace<'a>(order: &OpenOrder, id: impl Fn() -> &'a str, look: &Look, action: Action) {
    log::trace!(
        target: "order_service::decide",
        "{}; {:?}; {action:?}; {}",
        row_of(order),
        look.observed,
        id()
    );
}

/// The steps of an action other than a start.
pub(super) fn effects(
    order: &OpenOrder,
    id: &str,
    action: Action,
    look: &Look,
    now: Timestamp,
    report: &mut Report,
    steps: &mut Vec<Step>,
) {
    match action {
        Action::Wait | Action::Start => {}
        Action::Adopt if order.phase == Phase::Created => {
            report.adopted += 1;
            steps.push(Step::Adopted);
        }
        Action::Adopt => {
            report.restarted += 1;
            steps.push(Step::Restarted);
        }
        Action::Settle(outcome) => {
            report.settled += 1;
            if order.phase == Phase::Created {
                report.adopted += 1;
                steps.push(Step::Adopted);
            } else if order.intent.is_some() {
                report.restarted += 1;
                steps.push(Step::Restarted);
            }
            steps.push(Step::Settled(outcome));
        }
        Action::Miss => {
            report.missed += 1;
            let began_at = look.began_at;
            steps.push(Step::Missed { began_at });
        }
        Action::Fail => {
            report.failed_by_policy += 1;
            steps.push(Step::FailedByPolicy);
        }
        Action::Flag(reason) => {
            report.flagged += 1;
            let detail = flag_detail(order, reason, &look.observed);
            steps.push(Step::Flagged(trouble(order, id, reason, detail, now)));
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
pub(super) fn trouble(
    order: &OpenOrder,
    id: &str,
    reason: Reason,
    detail: String,
    now: Timestamp,
) -> Trouble {
    Trouble {
        reason,
        detail,
        next_attempt_at: now.after(backoff(id, order.attempts + 1)),
    }
}
