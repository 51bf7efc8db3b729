//! Look-ups: those that a poll sends, and their answers, also after the poll has ended.
//!
//! `observe.rs` decides which orders to look up, and what follows.

use std::collections::HashSet;

use super::in_flight::{ANSWER_WAIT, InFlight, LookUpAnswer};
use super::observations::Observations;
use super::{Reconciler, Report};
use crate::clock::Clock;
use crate::decide::Observation;
use crate::order::OrderId;
use crate::pace::Call;
use crate::process::Stop;
use crate::upstream::Upstream;

/// Number of orders that are looked up at once instead of a list, or because it lacks or contradicts them.
/// The others follow in later passes.
pub(super) const LOOK_UPS_MAX: usize = 2_000;

impl<U: Upstream, C: Clock> Reconciler<U, C> {
    /// Looks up the process of an order.
    pub(super) fn look_up(&self, id: OrderId) -> impl Future<Output = LookUpAnswer> + use<U, C> {
        let context = self.context.clone();
        async move {
            let began_at = context.clock.now();
            let result = context.upstream.look_up(&context.clock, &id).await;
            (began_at, result)
        }
    }

    /// Looks up those of these orders that are due and were not observed, `limit` of them at most unless each
    /// order is tried once. Ends early if the upstream goes down, if answers take long, or if none comes for
    /// some time: the look-ups without one stay in flight.
    pub(super) async fn look_up_each(
        &mut self,
        observations: &mut Observations,
        mut waiting: Vec<usize>,
        limit: usize,
        stop: &Stop,
    ) {
        let (now, requests) = (self.context.clock.now(), self.requests.clone());
        waiting.retain(|&index| {
            let is_in_flight = requests
                .look_ups
                .contains(observations.orders.targets()[index].seq);
            !is_in_flight && observations.is_unobserved(index, now)
        });
        // Begin at another order each time, so that none is left out for ever.
        let from = now.0.unsigned_abs() as usize % waiting.len().max(1);
        waiting.rotate_left(from);
        if waiting.len() > limit && !self.is_once {
            waiting.truncate(limit);
            (observations.is_each_tried, self.has_gap) = (false, true);
        }
        // Those that fail again and again, or have no answer, come last, but not each time.
        if from.is_multiple_of(2) {
            waiting.sort_by_key(|&index| {
                let order = observations.orders.order(index);
                (order.last_request_failed(), order.attempts)
            });
        }
        let mut waiting = waiting.into_iter();
        let mut sent = HashSet::new();
        loop {
            while self.may_look_up(stop)
                && let Some(index) = waiting.next()
            {
                let seq = observations.orders.targets()[index].seq;
                sent.insert(seq);
                observations.look_ups += 1;
                self.pace.on_poll_sent(self.context.clock.now());
                let look_up = self.look_up(observations.orders.ids().order_id(index));
                requests.look_ups.send(seq, look_up);
            }
            if sent.is_empty() {
                break;
            }
            let is_sent = |seq| sent.contains(&seq);
            let answer = self.next_answer(&requests.look_ups, is_sent, stop).await;
            let Some((seq, answer)) = answer else {
                break;
            };
            sent.remove(&seq);
            self.on_look_up(observations, seq, answer);
            if self.context.clock.now() >= self.polls_until && !self.is_once {
                break;
            }
        }
        let is_each_sent = waiting.next().is_none();
        self.has_gap |= !is_each_sent;
        observations.is_each_tried &= is_each_sent && sent.is_empty();
    }

    /// Returns whether one more look-up of a poll may be sent now.
    fn may_look_up(&self, stop: &Stop) -> bool {
        let (now, requests) = (self.context.clock.now(), &self.requests);
        let look_ups = requests.look_ups.unanswered();
        (self.is_once || now < self.polls_until)
            && self.pace.may_poll(now, look_ups, requests.slots_in_use())
            && !stop.requested.is_cancelled()
    }

    /// Waits for the answer to one of these look-ups. Returns `None` if none comes in [`ANSWER_WAIT`], unless
    /// `is_once`, or if the program shuts down.
    pub(super) async fn next_answer(
        &self,
        look_ups: &InFlight<i64, LookUpAnswer>,
        is_wanted: impl Fn(i64) -> bool,
        stop: &Stop,
    ) -> Option<(i64, LookUpAnswer)> {
        let clock = &self.context.clock;
        let timeout = clock.deadline(clock.now().after(ANSWER_WAIT));
        tokio::select! {
            biased;
            answer = look_ups.next(is_wanted) => Some(answer),
            () = stop.requested.cancelled() => None,
            () = timeout, if !self.is_once => None,
        }
    }

    /// Reports the answer to a look-up to the pace, and adds it to the observations if they are of its
    /// order.
    pub(super) fn on_look_up(
        &mut self,
        observations: &mut Observations,
        seq: i64,
        (began_at, result): LookUpAnswer,
    ) {
        let index = observations.orders.index_of(seq);
        let is_failing = |index| observations.orders.order(index).last_request_failed();
        let call = Call {
            is_retry: index.is_some_and(is_failing),
            ..Call::poll(began_at)
        };
        self.on_result(call, result.as_ref().err());
        if let Some(index) = index {
            match result {
                Ok(observed) => {
                    let observation = Observation { observed, began_at };
                    observations.looked_up.insert(index, observation);
                }
                Err(failure) => observations.add_failure(index, failure),
            }
        }
    }

    /// Processes the look-ups that were answered since the last pass. Reads their orders again, because they
    /// may have changed since.
    pub(super) async fn take_look_ups(&mut self, stop: &Stop) -> anyhow::Result<Report> {
        let look_ups = &self.requests.look_ups;
        let answers: Vec<_> = std::iter::from_fn(|| look_ups.take(|_| true)).collect();
        let Some(began_at) = answers.iter().map(|(_, (began_at, _))| *began_at).min() else {
            return Ok(Report::default());
        };
        self.pace
            .on_late_look_up(began_at, self.context.clock.now());
        let orders = self.context.store.open_orders().await?;
        let indexes = answers.iter().filter_map(|(seq, _)| orders.index_of(*seq));
        let mut indexes: Vec<usize> = indexes.collect();
        indexes.sort_unstable();
        let (orders, others_running) = self.split(orders, &indexes, began_at);
        let mut observations = Observations::new(orders, others_running);
        for (seq, answer) in answers {
            self.on_look_up(&mut observations, seq, answer);
        }
        self.process_observations(observations, began_at, stop)
            .await
    }
}
