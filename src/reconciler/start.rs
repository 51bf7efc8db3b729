//! The second half of a pass: starts what is due, oldest first, at the pace.
//!
//! Each start is written down before it leaves and its outcome after; in between anything may
//! happen. What an outcome means is decided in `decide`.

use std::collections::VecDeque;

use anyhow::Context;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::observe::{effects, trace, trouble};
use super::{Reconciler, Report, Stop, World, note};
use crate::clock::Clock;
use crate::decide::{Action, Circumstances, Look, OpenOrder, Phase, decide, decide_refused};
use crate::order::{Observed, Reason, Timestamp};
use crate::pace::Failure;
use crate::store::{Change, Step, Store};
use crate::upstream::{StartError, Upstream};

/// Orders read ahead. At a thousand starts a second this is one second's worth.
const READ_AHEAD: usize = 1_000;

impl<U: Upstream, C: Clock> Reconciler<U, C> {
    /// Starts what is due until the next pass is due, the upstream goes down, or nothing is left.
    pub(super) async fn start_due(
        &mut self,
        report: &mut Report,
        stop: &Stop,
    ) -> anyhow::Result<()> {
        let world = &self.world;
        let now = world.clock.now();
        if self.pace.quiet(now) {
            log::info!("the pace is at its ceiling again");
        }
        let until = world.settings.schedule.next_after(now);
        let mut due = Due::new(&mut self.again);
        let mut in_flight = FuturesUnordered::new();
        let mut first_error = None;
        let mut next = due.pop(world)?;
        loop {
            let now = world.clock.now();
            let may_start = next.is_some()
                && now < until
                && first_error.is_none()
                && self.pace.reach().may_ask(now)
                && !stop.begun.is_cancelled();
            let has_place = self.pace.may_ask(now, in_flight.len());
            let start_at = self.pace.next_start_at(now, in_flight.len());
            if may_start && has_place && start_at.is_some_and(|at| at <= now) {
                if let Some(order) = next.take() {
                    self.pace.starts(now);
                    in_flight.push(world.start(order, stop));
                    // Whatever fails, the starts in flight are waited for.
                    match due.pop(world) {
                        Ok(following) => next = following,
                        Err(error) => first_error = first_error.or(Some(error)),
                    }
                }
                continue;
            }
            let waits_for_pace = may_start && has_place;
            if in_flight.is_empty() && !waits_for_pace {
                break;
            }
            let wake_at = start_at.unwrap_or(until).min(until);
            tokio::select! {
                biased;
                Some(tried) = in_flight.next() => {
                    match tried {
                        Ok(tried) => {
                            note(&mut self.pace, world.clock.now(), tried.failure.as_ref());
                            if tried.report.started + tried.report.restarted > 0 {
                                self.pace.started();
                            }
                            tried.add_to(report);
                        }
                        Err(error) => first_error = first_error.or(Some(error)),
                    }
                    // A long pass does not look like none, and readers hear of the upstream now.
                    if let Err(error) = self.pulse.beat(world, &self.pace).await {
                        first_error = first_error.or(Some(error));
                    }
                }
                () = world.clock.sleep_until(wake_at), if waits_for_pace => {}
                () = stop.begun.cancelled(), if waits_for_pace => {}
            }
        }
        due.put_back(next);
        report.left = !due.is_empty() && !stop.begun.is_cancelled();
        match first_error {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

/// The orders that are due, oldest first, read as they are needed.
struct Due<'a> {
    again: &'a mut VecDeque<OpenOrder>,
    read: VecDeque<OpenOrder>,
    after: i64,
    is_all_read: bool,
}

impl<'a> Due<'a> {
    fn new(again: &'a mut VecDeque<OpenOrder>) -> Self {
        Self {
            again,
            read: VecDeque::new(),
            after: 0,
            is_all_read: false,
        }
    }

    fn pop<U: Upstream, C: Clock>(
        &mut self,
        world: &World<U, C>,
    ) -> anyhow::Result<Option<OpenOrder>> {
        if self.read.is_empty() && !self.is_all_read {
            self.read_on(&world.store, world.clock.now(), world.settings.max_starts)?;
        }
        // Orders that have been started before go first, then the oldest.
        let again_is_first = match (self.again.front(), self.read.front()) {
            (Some(again), Some(read)) => again.phase != Phase::Created || again.seq < read.seq,
            (again, _) => again.is_some(),
        };
        Ok(if again_is_first {
            self.again.pop_front()
        } else {
            self.read.pop_front()
        })
    }

    /// Gives back an order whose turn has not come.
    fn put_back(&mut self, order: Option<OpenOrder>) {
        if let Some(order) = order {
            let is_new = order.phase == Phase::Created && order.intent.is_none();
            let place = if is_new {
                &mut self.read
            } else {
                &mut *self.again
            };
            place.push_front(order);
        }
    }

    fn is_empty(&self) -> bool {
        self.again.is_empty() && self.read.is_empty()
    }

    fn read_on(&mut self, store: &Store, now: Timestamp, max_starts: u32) -> anyhow::Result<()> {
        let read = store
            .startable(now, max_starts, self.after, READ_AHEAD)
            .context("the orders that are due could not be read")?;
        self.is_all_read = read.len() < READ_AHEAD;
        if let Some(last) = read.last() {
            self.after = last.seq;
        }
        self.read = read.into();
        Ok(())
    }
}

/// What came of one start.
#[derive(Default)]
struct Tried {
    report: Report,
    /// Why the upstream gave no usable answer, if it did not.
    failure: Option<Failure>,
}

impl Tried {
    fn add_to(self, report: &mut Report) {
        report.started += self.report.started;
        report.adopted += self.report.adopted;
        report.restarted += self.report.restarted;
        report.failed_by_policy += self.report.failed_by_policy;
        report.settled += self.report.settled;
        report.refused += self.report.refused;
        report.unanswered += self.report.unanswered;
        report.flagged += self.report.flagged;
        report.overtaken += self.report.overtaken;
    }
}

impl<U: Upstream, C: Clock> World<U, C> {
    /// Writes the intent, sends the start, and records what came of it.
    async fn start(&self, order: OpenOrder, stop: &Stop) -> anyhow::Result<Tried> {
        let mut tried = Tried::default();
        if !self.is_to_start(&order, &mut tried).await? {
            return Ok(tried);
        }
        let previous = order.intent.map(|intent| intent.written_at);
        let intended = self
            .record(&order, vec![Step::Intended { previous }], &mut tried)
            .await
            .context("a start could not be written down and was not sent")?;
        if !intended {
            return Ok(tried);
        }
        self.upstream.tally().starts(order.starts_so_far() > 0);
        let given_up = async {
            stop.abandon.cancelled().await;
            StartError::Ambiguous {
                answer: None,
                failure: Failure::new("the program ended before the answer came", false),
            }
        };
        let answer = self.upstream.start(&self.clock, &order.id, given_up).await;
        let steps = match answer {
            Ok(()) if order.phase == Phase::Created => {
                tried.report.started = 1;
                vec![Step::Started]
            }
            Ok(()) => {
                tried.report.restarted = 1;
                vec![Step::Restarted]
            }
            Err(StartError::Unavailable(failure)) => {
                tried.report.unanswered = 1;
                tried.failure = Some(failure);
                vec![Step::Withdrawn]
            }
            Err(StartError::Ambiguous { answer, failure }) => {
                tried.report.unanswered = 1;
                let step = self.given_up(&order, answer, failure.detail.clone());
                tried.failure = Some(failure);
                vec![step]
            }
            Err(StartError::Refused { answer, detail }) => {
                self.refused(&order, answer, detail, &mut tried).await
            }
        };
        self.record(&order, steps, &mut tried)
            .await
            .context("the outcome of a start could not be recorded")?;
        Ok(tried)
    }

    /// Decides once more, now that the order's turn has come. One whose process was forgotten is
    /// looked up for this; about one with an intent the last look at it has decided.
    async fn is_to_start(&self, order: &OpenOrder, tried: &mut Tried) -> anyhow::Result<bool> {
        let began_at = self.clock.now();
        let observed = match (order.phase, order.intent) {
            (Phase::Created, Some(_)) => return Ok(true),
            (Phase::Created, None) => Observed::Unknown,
            (Phase::Processing { .. }, _) => {
                match self.upstream.look_up(&self.clock, &order.id).await {
                    Ok(observed) => observed,
                    Err(failure) => {
                        tried.report.unanswered = 1;
                        tried.failure = Some(failure);
                        return Ok(false);
                    }
                }
            }
        };
        let look = Look { observed, began_at };
        let at = Circumstances {
            now: self.clock.now(),
            // Otherwise it would not be its turn.
            restart_suspected: true,
        };
        let action = decide(order, &look, &self.policy(), at);
        trace(order, &look, action);
        let mut steps = Vec::new();
        effects(order, action, &look, at.now, &mut tried.report, &mut steps);
        self.record(order, steps, tried).await?;
        Ok(action == Action::Start)
    }

    /// The upstream did not take the start, perhaps because there is a process: only a look-up
    /// can tell.
    async fn refused(
        &self,
        order: &OpenOrder,
        answer: u16,
        detail: String,
        tried: &mut Tried,
    ) -> Vec<Step> {
        log::debug!("order {:?}: {detail}", order.id.as_str());
        let began_at = self.clock.now();
        let observed = match self.upstream.look_up(&self.clock, &order.id).await {
            Ok(observed) => observed,
            Err(failure) => {
                tried.report.unanswered = 1;
                let step = self.given_up(order, Some(answer), failure.detail.clone());
                tried.failure = Some(failure);
                return vec![step];
            }
        };
        let now = self.clock.now();
        // Whatever process there is, this start did not make it.
        let mut steps = vec![Step::Withdrawn];
        let look = Look { observed, began_at };
        match decide_refused(&look.observed) {
            Action::Flag(reason) => {
                tried.report.refused = 1;
                tried.report.flagged = 1;
                steps.push(Step::Flagged(trouble(order, reason, detail, now)));
            }
            // The process that was missing is there again.
            Action::Adopt if order.phase != Phase::Created => steps.push(Step::Cleared),
            action => {
                let order = OpenOrder {
                    intent: None,
                    ..order.clone()
                };
                effects(&order, action, &look, now, &mut tried.report, &mut steps);
            }
        }
        steps
    }

    /// The step after a start whose outcome is not known. The order is left alone until an
    /// absence would count.
    fn given_up(&self, order: &OpenOrder, answer: Option<u16>, detail: String) -> Step {
        log::debug!("order {:?}: {detail}", order.id.as_str());
        let now = self.clock.now();
        let mut trouble = trouble(order, Reason::UpstreamUnreachable, detail, now);
        let counts_from = now.after(self.settings.request_timeout);
        trouble.next_attempt_at = trouble.next_attempt_at.max(counts_from);
        Step::GivenUp { answer, trouble }
    }

    /// Records steps of one order. Tells whether they found it as it was read.
    async fn record(
        &self,
        order: &OpenOrder,
        steps: Vec<Step>,
        tried: &mut Tried,
    ) -> anyhow::Result<bool> {
        if steps.is_empty() {
            return Ok(true);
        }
        let seq = order.seq;
        let changes = steps
            .into_iter()
            .map(|step| Change { seq, step })
            .collect::<Vec<_>>();
        let recorded = self.store.record(changes, self.clock.now()).await?;
        tried.report.overtaken += recorded.overtaken;
        Ok(recorded.overtaken == 0)
    }
}
