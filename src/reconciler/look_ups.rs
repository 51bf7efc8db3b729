//! Look-ups, and their answers after the poll that sent them has ended.

use super::in_flight::{HEAD_START, InFlight, LookUpAnswer};
use super::observations::Observations;
use super::{Reconciler, Report};
use crate::clock::Clock;
use crate::decide::Observation;
use crate::order::OrderId;
use crate::pace::Call;
use crate::process::Stop;
use crate::upstream::Upstream;

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

    /// Waits for the answer to one of these look-ups. Returns `None` if none comes in [`HEAD_START`], unless
    /// each order is tried once, or if the program shuts down.
    pub(super) async fn next_of(
        &self,
        look_ups: &InFlight<i64, LookUpAnswer>,
        is_wanted: impl Fn(i64) -> bool,
        stop: &Stop,
    ) -> Option<(i64, LookUpAnswer)> {
        let clock = &self.context.clock;
        let head_start = clock.deadline(clock.now().after(HEAD_START));
        tokio::select! {
            biased;
            answer = look_ups.next(is_wanted) => Some(answer),
            () = stop.requested.cancelled() => None,
            () = head_start, if !self.is_once => None,
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
        let call = Call {
            is_repeated: index.is_some_and(|at| observations.orders.order(at).attempts > 0),
            ..Call::poll(began_at)
        };
        self.on_result(call, result.as_ref().err());
        if let Some(at) = index {
            match result {
                Ok(observed) => observations.add_look_up(at, Observation { observed, began_at }),
                Err(failure) => observations.add_failure(at, failure),
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
        let orders = self.context.store.open_orders().await?;
        let indexes = answers.iter().filter_map(|(seq, _)| orders.index_of(*seq));
        let mut indexes: Vec<usize> = indexes.collect();
        indexes.sort_unstable();
        let (orders, others_running) = self.choose(orders, &indexes, began_at);
        let mut observations = Observations::new(orders, others_running);
        observations.is_complete = self.requests.look_ups.is_empty();
        for (seq, answer) in answers {
            self.on_look_up(&mut observations, seq, answer);
        }
        self.process_observations(observations, began_at, stop)
            .await
    }
}
