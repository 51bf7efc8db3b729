//! The second half of a pass: starts what is due, oldest first, at the pace.
//!
//! Each start is written down before it leaves and its outcome after; in between anything may
//! happen. Many share a commit, and none waits for another's answer. What was written down and is
//! not sent after all is withdrawn. What an outcome means is decided in `decide`.

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
use crate::store::{Change, Startable, Step, Store};
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
        let mut requests = FuturesUnordered::new();
        // One commit at a time: all that comes meanwhile shares the next.
        let mut recording = FuturesUnordered::new();
        let mut notes = Notes::default();
        let mut intending = 0;
        // What is to be asked as soon as there is a place for a request.
        let mut ready = VecDeque::new();
        let mut first_error = None;
        let mut next = due.pop(world)?;
        loop {
            let now = world.clock.now();
            let may_ask = self.pace.reach().may_ask(now) && !stop.begun.is_cancelled();
            if may_ask {
                while self.pace.may_ask(now, requests.len())
                    && let Some((ask, order)) = ready.pop_front()
                {
                    requests.push(world.ask(ask, order, stop));
                }
            } else {
                due.put_back(next.take());
                for (ask, order) in ready.drain(..).rev() {
                    match ask {
                        Ask::LookUp => due.put_back(Some(order)),
                        Ask::Start => notes.add(Tried::not_sent(order), report),
                    }
                }
            }
            let starting = requests.len() + ready.len() + intending + notes.intended.len();
            let may_start = may_ask && next.is_some() && now < until && first_error.is_none();
            let has_place = self.pace.may_prepare(now, starting);
            let start_at = self.pace.next_start_at(now, starting);
            if may_start && has_place && start_at.is_some_and(|at| at <= now) {
                if let Some(order) = next.take() {
                    self.pace.starts(now);
                    match world.choose_unseen(order) {
                        Ok(tried) => notes.add(tried, report),
                        Err(unseen) => ready.push_back((Ask::LookUp, unseen)),
                    }
                    // Whatever fails, the starts that are under way are waited for.
                    match due.pop(world) {
                        Ok(following) => next = following,
                        Err(error) => first_error = first_error.or(Some(error)),
                    }
                }
                continue;
            }
            if recording.is_empty() && !notes.is_empty() {
                intending = notes.intended.len();
                recording.push(world.record(std::mem::take(&mut notes)));
            }
            let waits_for_pace = may_start && has_place;
            if requests.is_empty() && recording.is_empty() && !waits_for_pace {
                break;
            }
            let wake_at = start_at.unwrap_or(until).min(until);
            tokio::select! {
                biased;
                Some(tried) = requests.next() => {
                    note(&mut self.pace, world.clock.now(), tried.failure.as_ref());
                    if tried.report.started + tried.report.restarted > 0 {
                        self.pace.started();
                    }
                    notes.add(tried, report);
                    // A long pass does not look like none, and readers hear of the upstream now.
                    if let Err(error) = self.pulse.beat(world, &self.pace).await {
                        first_error = first_error.or(Some(error));
                    }
                }
                Some(recorded) = recording.next() => {
                    intending = 0;
                    match recorded {
                        Ok(Noted { overtaken, intended }) => {
                            report.overtaken += overtaken;
                            let starts = intended.into_iter();
                            ready.extend(starts.map(|order| (Ask::Start, order)));
                        }
                        Err(error) => first_error = first_error.or(Some(error)),
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
    again: &'a mut VecDeque<Startable>,
    read: VecDeque<Startable>,
    after: i64,
    is_all_read: bool,
}

impl<'a> Due<'a> {
    fn new(again: &'a mut VecDeque<Startable>) -> Self {
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
    ) -> anyhow::Result<Option<Startable>> {
        if self.read.is_empty() && !self.is_all_read {
            self.read_on(&world.store, world.clock.now(), world.settings.max_starts)?;
        }
        // Orders that have been started before go first, then the oldest.
        let again_is_first = match (self.again.front(), self.read.front()) {
            (Some(again), Some(read)) => {
                again.order.phase != Phase::Created || again.order.seq < read.order.seq
            }
            (again, _) => again.is_some(),
        };
        Ok(if again_is_first {
            self.again.pop_front()
        } else {
            self.read.pop_front()
        })
    }

    /// Gives back an order whose turn has not come.
    fn put_back(&mut self, next: Option<Startable>) {
        if let Some(next) = next {
            let order = &next.order;
            let is_new = order.phase == Phase::Created && order.intent.is_none();
            let place = if is_new {
                &mut self.read
            } else {
                &mut *self.again
            };
            place.push_front(next);
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
            self.after = last.order.seq;
        }
        self.read = read.into();
        Ok(())
    }
}

/// What is asked of the upstream for an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    /// Whether its process is still missing, before it is started again.
    LookUp,
    /// To start a process. The intent is on disk.
    Start,
}

/// An order whose turn has come, and what came of that.
struct Tried {
    next: Startable,
    report: Report,
    /// What is to be recorded.
    steps: Vec<Step>,
    /// Whether it is to be started now.
    is_to_start: bool,
    /// Why the upstream gave no usable answer, if it did not.
    failure: Option<Failure>,
}

impl Tried {
    fn new(next: Startable) -> Self {
        Self {
            next,
            report: Report::default(),
            steps: Vec::new(),
            is_to_start: false,
            failure: None,
        }
    }

    /// A start whose intent is on disk and that is not sent after all.
    fn not_sent(next: Startable) -> Self {
        Self {
            steps: vec![Step::Withdrawn],
            ..Self::new(next)
        }
    }

    /// Records that a request was not answered.
    fn unanswered(&mut self, failure: Failure) {
        self.report.unanswered = 1;
        self.failure = Some(failure);
    }
}

/// What is recorded with the next commit: the outcomes that have come in since the last one, and the
/// intents of those to be started next.
#[derive(Default)]
struct Notes {
    changes: Vec<Change>,
    intended: Vec<Startable>,
}

impl Notes {
    fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    fn add(&mut self, tried: Tried, report: &mut Report) {
        report.started += tried.report.started;
        report.adopted += tried.report.adopted;
        report.restarted += tried.report.restarted;
        report.failed_by_policy += tried.report.failed_by_policy;
        report.settled += tried.report.settled;
        report.refused += tried.report.refused;
        report.unanswered += tried.report.unanswered;
        report.flagged += tried.report.flagged;
        let seq = tried.next.order.seq;
        let steps = tried.steps.into_iter();
        self.changes.extend(steps.map(|step| Change { seq, step }));
        if tried.is_to_start {
            let previous = tried.next.order.intent.map(|intent| intent.written_at);
            let step = Step::Intended { previous };
            self.changes.push(Change { seq, step });
            self.intended.push(tried.next);
        }
    }
}

/// What was recorded: how many orders had moved on meanwhile, and those whose intent is on disk.
struct Noted {
    overtaken: usize,
    intended: Vec<Startable>,
}

impl<U: Upstream, C: Clock> World<U, C> {
    /// Decides once more, now that the order's turn has come. One whose process was forgotten is
    /// given back: it has to be looked up for this. About one with an intent the last look at it
    /// has decided.
    fn choose_unseen(&self, next: Startable) -> Result<Tried, Startable> {
        match (next.order.phase, next.order.intent) {
            (Phase::Processing { .. }, _) => Err(next),
            (Phase::Created, Some(_)) => Ok(Tried {
                is_to_start: true,
                ..Tried::new(next)
            }),
            (Phase::Created, None) => {
                let look = Look {
                    observed: Observed::Unknown,
                    began_at: self.clock.now(),
                };
                let mut tried = Tried::new(next);
                self.choose(&look, &mut tried);
                Ok(tried)
            }
        }
    }

    fn choose(&self, look: &Look, tried: &mut Tried) {
        let at = Circumstances {
            now: self.clock.now(),
            // Otherwise it would not be its turn.
            restart_suspected: true,
        };
        let Startable { id, order } = &tried.next;
        let action = decide(order, look, &self.policy(), at);
        trace(order, || id.as_str(), look, action);
        let (report, steps) = (&mut tried.report, &mut tried.steps);
        effects(order, id.as_str(), action, look, at.now, report, steps);
        tried.is_to_start = action == Action::Start;
    }

    /// Asks the upstream, and decides what the answer means.
    async fn ask(&self, ask: Ask, next: Startable, stop: &Stop) -> Tried {
        let mut tried = Tried::new(next);
        match ask {
            Ask::LookUp => self.look_again(&mut tried).await,
            Ask::Start => self.start(&mut tried, stop).await,
        }
        tried
    }

    /// Looks an order up whose process was forgotten.
    async fn look_again(&self, tried: &mut Tried) {
        let began_at = self.clock.now();
        match self.upstream.look_up(&self.clock, &tried.next.id).await {
            Ok(observed) => self.choose(&Look { observed, began_at }, tried),
            Err(failure) => tried.unanswered(failure),
        }
    }

    /// Sends a start whose intent is on disk.
    async fn start(&self, tried: &mut Tried, stop: &Stop) {
        let Startable { id, order } = &tried.next;
        self.upstream.tally().starts(order.starts_so_far() > 0);
        let given_up = async {
            stop.abandon.cancelled().await;
            StartError::Ambiguous {
                answer: None,
                failure: Failure::new("the program ended before the answer came", false),
            }
        };
        match self.upstream.start(&self.clock, id, given_up).await {
            Ok(()) if order.phase == Phase::Created => {
                tried.report.started = 1;
                tried.steps.push(Step::Started);
            }
            Ok(()) => {
                tried.report.restarted = 1;
                tried.steps.push(Step::Restarted);
            }
            Err(StartError::Unavailable(failure)) => {
                tried.steps.push(Step::Withdrawn);
                tried.unanswered(failure);
            }
            Err(StartError::Ambiguous { answer, failure }) => self.give_up(answer, failure, tried),
            Err(StartError::Refused { answer, detail }) => {
                self.refused(answer, detail, tried).await;
            }
        }
    }

    /// The upstream did not take the start, perhaps because there is a process: only a look-up
    /// can tell.
    async fn refused(&self, answer: u16, detail: String, tried: &mut Tried) {
        let Startable { id, order } = &tried.next;
        log::debug!("order {:?}: {detail}", id.as_str());
        let began_at = self.clock.now();
        let observed = match self.upstream.look_up(&self.clock, id).await {
            Ok(observed) => observed,
            Err(failure) => return self.give_up(Some(answer), failure, tried),
        };
        let now = self.clock.now();
        // Whatever process there is, this start did not make it.
        tried.steps.push(Step::Withdrawn);
        let look = Look { observed, began_at };
        match decide_refused(&look.observed) {
            Action::Flag(reason) => {
                tried.report.refused = 1;
                tried.report.flagged = 1;
                let trouble = trouble(order, id.as_str(), reason, detail, now);
                tried.steps.push(Step::Flagged(trouble));
            }
            // The process that was missing is there again.
            Action::Adopt if order.phase != Phase::Created => tried.steps.push(Step::Cleared),
            action => {
                let order = OpenOrder {
                    intent: None,
                    ..*order
                };
                let (report, steps) = (&mut tried.report, &mut tried.steps);
                effects(&order, id.as_str(), action, &look, now, report, steps);
            }
        }
    }

    /// The outcome of a start is not known. The order is left alone until an absence would count.
    fn give_up(&self, answer: Option<u16>, failure: Failure, tried: &mut Tried) {
        let Startable { id, order } = &tried.next;
        let detail = failure.detail.clone();
        log::debug!("order {:?}: {detail}", id.as_str());
        let now = self.clock.now();
        let mut trouble = trouble(order, id.as_str(), Reason::UpstreamUnreachable, detail, now);
        let counts_from = now.after(self.settings.request_timeout);
        trouble.next_attempt_at = trouble.next_attempt_at.max(counts_from);
        tried.steps.push(Step::GivenUp { answer, trouble });
        tried.unanswered(failure);
    }

    /// Records all of it in one transaction.
    async fn record(&self, notes: Notes) -> anyhow::Result<Noted> {
        let recorded = self
            .record_changes(notes.changes, self.clock.now())
            .await
            .context("starts could not be recorded; none was sent that was not written down")?;
        let mut intended = notes.intended;
        // What has moved on meanwhile is not what was decided about.
        if !recorded.overtaken.is_empty() {
            intended.retain(|next| !recorded.overtaken.contains(&next.order.seq));
        }
        Ok(Noted {
            overtaken: recorded.overtaken.len(),
            intended,
        })
    }
}
