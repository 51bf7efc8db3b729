//! The first half of a pass: looks for the processes of open orders, decides, and records.
//!
//! What was seen is kept apart from what is done about it: the choice is `decide`'s. The second
//! half, the starts, is in `start.rs`.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Context;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::{Reconciler, Report, Stop, note};
use crate::clock::Clock;
use crate::decide::{Action, Circumstances, Look, OpenOrder, Phase, decide, row_of};
use crate::order::{Observed, Reason, Timestamp};
use crate::pace::{self, Failure, Pace, Plan, Watched, backoff};
use crate::store::{Change, Step, Trouble};
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
        let mut watched: Vec<Watched> = orders.iter().map(watched).collect();
        let plan = self.pace.plan(&watched, began_at);
        let mut in_flight = 0;
        if let Plan::LookUps(places) = &plan {
            let rest = count_in_flight(&self.pace, &orders, &[], began_at);
            orders = chosen(orders, places);
            watched = chosen(watched, places);
            in_flight = rest - count_in_flight(&self.pace, &orders, &[], began_at);
        }
        report.observed = orders.len();
        let mut sight = Sight::new(orders, watched);
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
        self.learn(&sight, began_at);
        in_flight += count_in_flight(&self.pace, &sight.orders, &sight.looks, began_at);
        self.pace.looked(began_at, sight.cost(), in_flight);
        self.settle(sight, restart_suspected, report).await?;
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
        for (order, look) in sight.orders.iter().zip(&sight.looks) {
            let (Phase::Processing { confirmed_at, .. }, Some(look)) = (order.phase, look) else {
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

    /// Learns from what was seen how long processes take.
    fn learn(&mut self, sight: &Sight, began_at: Timestamp) {
        for (order, look) in sight.watched.iter().zip(&sight.looks) {
            let Some(look) = look else { continue };
            self.pace.learn(order, &look.observed, look.began_at);
            if !sight.is_listed {
                self.pace.saw(order.seq, look.began_at);
            }
        }
        if sight.is_listed && sight.is_complete {
            self.pace.saw_all(began_at);
        }
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
        for (place, (order, look)) in sight.orders.iter().zip(&mut sight.looks).enumerate() {
            let missing = look.take_if(|look| {
                order.is_missing_in(look)
                    && matches!(
                        decide(order, look, &policy, at),
                        Action::Fail | Action::Flag(_)
                    )
            });
            doubtful.extend(missing.map(|look| (place, look.began_at)));
        }
        let places = doubtful.iter().map(|(place, _)| *place).collect();
        self.look_up_each(sight, places, CONFIRMED_MAX, stop).await;
        doubtful.retain(|(place, _)| sight.looks[*place].is_none());
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
        waiting.retain(|&at| sight.looks[at].is_none() && sight.orders[at].is_due(now));
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
                let id = sight.orders[at].id.clone();
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
                Ok(observed) => sight.looks[at] = Some(Look { observed, began_at }),
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
        let mut index: HashMap<&str, usize> = HashMap::with_capacity(sight.orders.len());
        for (at, order) in sight.orders.iter().enumerate() {
            index.insert(order.id.as_str(), at);
        }
        let mut told: Vec<Option<Observed>> = vec![None; sight.orders.len()];
        let result = self
            .world
            .upstream
            .list(&self.world.clock, |entry: Entry<'_>| {
                let Some(&at) = index.get(&*entry.order_id) else {
                    return;
                };
                let observed = Observed::of_status(&entry.status);
                match &mut told[at] {
                    // Named twice and differently: that says nothing.
                    Some(earlier) if *earlier != observed => *earlier = Observed::Unknown,
                    Some(_) => {}
                    slot => *slot = Some(observed),
                }
            })
            .await;
        let not_told = if result.is_ok() {
            Some(Observed::Absent)
        } else {
            None
        };
        for (at, told) in told.into_iter().enumerate() {
            sight.looks[at] = told
                .or_else(|| not_told.clone())
                .map(|observed| Look { observed, began_at });
        }
        self.note(result.as_ref().err());
        sight.is_listed = true;
        match result {
            Ok(entries) => sight.entries = Some(entries),
            Err(failure) => {
                sight.is_complete = false;
                if !self.pace.reach().is_down() {
                    log::warn!("{}; some orders are looked up instead", failure.detail);
                    let all = (0..sight.orders.len()).collect();
                    self.look_up_each(sight, all, INSTEAD_OF_LIST_MAX, stop)
                        .await;
                }
            }
        }
    }

    /// Decides about each order and records the decisions, some thousands at a time.
    async fn settle(
        &mut self,
        sight: Sight,
        restart_suspected: bool,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        let now = self.world.clock.now();
        let policy = self.world.policy();
        let mut changes = Vec::new();
        for (at, failure) in &sight.failures {
            let order = &sight.orders[*at];
            let detail = failure.detail.clone();
            let trouble = trouble(order, Reason::UpstreamUnreachable, detail, now);
            changes.push(Change {
                seq: order.seq,
                step: Step::Delayed(trouble),
            });
        }
        for (at, began_at) in &sight.unconfirmed {
            let order = &sight.orders[*at];
            if !order.is_missed() {
                report.missed += 1;
                let (seq, began_at) = (order.seq, *began_at);
                let step = Step::Missed { began_at };
                changes.push(Change { seq, step });
            }
        }
        let at = Circumstances {
            now,
            restart_suspected,
        };
        let looked_at: Vec<i64> = sight.orders.iter().map(|order| order.seq).collect();
        let mut again = Vec::new();
        for (order, look) in sight.orders.into_iter().zip(sight.looks) {
            let look = look.unwrap_or(Look {
                observed: Observed::Unknown,
                began_at: now,
            });
            let action = decide(&order, &look, &policy, at);
            trace(&order, &look, action);
            let mut steps = Vec::new();
            let stays_missing = matches!(action, Action::Start | Action::Flag(_));
            if stays_missing && order.is_missing_in(&look) && !order.is_missed() {
                // It is news once: the next look must not take it for another restart.
                effects(&order, Action::Miss, &look, now, report, &mut steps);
            }
            effects(&order, action, &look, now, report, &mut steps);
            let seq = order.seq;
            changes.extend(steps.into_iter().map(|step| Change { seq, step }));
            if action == Action::Start {
                again.push(order);
            }
        }
        let mut changes = changes.into_iter();
        loop {
            let batch: Vec<Change> = changes.by_ref().take(BATCH_MAX).collect();
            if batch.is_empty() {
                break;
            }
            let recorded = self
                .world
                .store
                .record(batch, now)
                .await
                .context("what was observed could not be recorded")?;
            report.overtaken += recorded.overtaken.len();
        }
        // Those that were not looked at are still to be started again.
        self.again
            .retain(|order| looked_at.binary_search(&order.seq).is_err());
        self.again.extend(again);
        self.again
            .make_contiguous()
            .sort_by_key(|order| (order.phase == Phase::Created, order.seq));
        Ok(())
    }
}

/// The orders that are looked at, and what was seen of each.
struct Sight {
    orders: Vec<OpenOrder>,
    watched: Vec<Watched>,
    looks: Vec<Option<Look>>,
    /// The orders whose own look-up failed.
    failures: Vec<(usize, Failure)>,
    /// Whether every order was seen.
    is_complete: bool,
    /// Whether the list was read, and its length if it was whole.
    is_listed: bool,
    entries: Option<u64>,
    /// The orders that the list did not know and no look-up has told of, and when the list was
    /// asked for.
    unconfirmed: Vec<(usize, Timestamp)>,
    /// Look-ups that were made.
    look_ups: usize,
}

impl Sight {
    fn new(orders: Vec<OpenOrder>, watched: Vec<Watched>) -> Self {
        Self {
            looks: vec![None; orders.len()],
            orders,
            watched,
            failures: Vec::new(),
            unconfirmed: Vec::new(),
            is_complete: true,
            is_listed: false,
            entries: None,
            look_ups: 0,
        }
    }

    /// What it has cost the upstream.
    fn cost(&self) -> Duration {
        let list = match (self.is_listed, self.entries) {
            (true, entries) => pace::list_cost(entries.unwrap_or(0)),
            (false, _) => Duration::ZERO,
        };
        list + pace::look_ups_cost(self.look_ups)
    }
}

/// What the pace has to know about an order. One about which something is not known is looked at
/// whenever others are.
fn watched(order: &OpenOrder) -> Watched {
    let running_since = match order.phase {
        Phase::Processing {
            confirmed_at,
            missed_at: None,
        } if order.intent.is_none() && order.attention.is_none() => Some(confirmed_at),
        _ => None,
    };
    Watched {
        seq: order.seq,
        running_since,
    }
}

/// Those at these places, which are in ascending order.
fn chosen<T>(all: Vec<T>, places: &[usize]) -> Vec<T> {
    let mut places = places.iter().copied().peekable();
    let is_chosen = |(place, _): &(usize, T)| places.next_if_eq(place).is_some();
    all.into_iter()
        .enumerate()
        .filter(is_chosen)
        .map(|(_, one)| one)
        .collect()
}

/// How many of these orders have a process that runs, as far as is known, and is not stuck.
fn count_in_flight(
    pace: &Pace,
    orders: &[OpenOrder],
    looks: &[Option<Look>],
    now: Timestamp,
) -> u64 {
    let runs = |(place, order): &(usize, &OpenOrder)| {
        let Phase::Processing {
            confirmed_at,
            missed_at: None,
        } = order.phase
        else {
            return false;
        };
        let is_over = looks
            .get(*place)
            .and_then(Option::as_ref)
            .is_some_and(|look| {
                matches!(look.observed, Observed::Succeeded | Observed::Failed)
                    || order.is_missing_in(look)
            });
        !is_over && !pace.is_stuck(confirmed_at, now)
    };
    orders.iter().enumerate().filter(runs).count() as u64
}

/// Tells the log what was decided, and on what.
pub(super) fn trace(order: &OpenOrder, look: &Look, action: Action) {
    log::trace!(
        target: "order_service::decide",
        "{}; {:?}; {action:?}; {}",
        row_of(order),
        look.observed,
        order.id.as_str()
    );
}

/// The steps of an action other than a start.
pub(super) fn effects(
    order: &OpenOrder,
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
            steps.push(Step::Flagged(trouble(order, reason, detail, now)));
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
    reason: Reason,
    detail: String,
    now: Timestamp,
) -> Trouble {
    Trouble {
        reason,
        detail,
        next_attempt_at: now.after(backoff(&order.id, order.attempts + 1)),
    }
}
