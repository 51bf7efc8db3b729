//! The upstream with counters: every request of the reconciler passes here.
//!
//! Durations are measured by the reconciler's clock, so that a run that repeats repeats its counts.

use std::cell::{RefCell, RefMut};

use crate::clock::Clock;
use crate::order::{Observed, OrderId, Timestamp};
use crate::reconciler_metrics::{AnswerClass, ReconcilerMetrics, UpstreamRequest};
use crate::upstream::{Cause, Entry, Failure, StartError, Upstream};

/// The upstream, and the counters of its requests.
pub(super) struct MeteredUpstream<U> {
    upstream: U,
    metrics: RefCell<ReconcilerMetrics>,
}

impl<U> MeteredUpstream<U> {
    /// Continues the counts of an earlier run.
    pub fn new(upstream: U, metrics: ReconcilerMetrics) -> Self {
        Self {
            upstream,
            metrics: RefCell::new(metrics),
        }
    }

    /// Borrows the counters, to add to them or to read them; never across a wait.
    pub fn metrics(&self) -> RefMut<'_, ReconcilerMetrics> {
        self.metrics.borrow_mut()
    }
}

impl<U: Upstream> MeteredUpstream<U> {
    /// Starts a process, and waits for the answer until `given_up`.
    pub async fn start(
        &self,
        clock: &impl Clock,
        id: &OrderId,
        given_up: impl Future<Output = StartError>,
    ) -> Result<(), StartError> {
        let started = async {
            tokio::select! {
                biased;
                answer = self.upstream.start(id) => answer,
                error = given_up => Err(error),
            }
        };
        let answer_of = |result: &Result<(), StartError>| match result {
            Ok(()) => AnswerClass::Ok,
            Err(StartError::Refused { .. }) => AnswerClass::Refused,
            Err(StartError::Unavailable(_)) => AnswerClass::Unavailable,
            Err(StartError::Doubtful(_)) => AnswerClass::Ambiguous,
            Err(StartError::Ambiguous { failure, .. }) => {
                AnswerClass::of_failure(failure, AnswerClass::Ambiguous)
            }
        };
        self.measured(clock, UpstreamRequest::Start, started, answer_of)
            .await
    }

    /// Looks up the process of one order.
    pub async fn look_up(&self, clock: &impl Clock, id: &OrderId) -> Result<Observed, Failure> {
        let looked_up = self.upstream.look_up(id);
        self.measured(clock, UpstreamRequest::LookUp, looked_up, answer_to_look)
            .await
    }

    /// Reads the list of all processes up to `until`, and calls `on_entry` with each entry as it comes.
    pub async fn list(
        &self,
        clock: &impl Clock,
        until: Timestamp,
        on_entry: impl FnMut(Entry<'_>),
    ) -> Result<u64, Failure> {
        let listed = async {
            tokio::select! {
                biased;
                result = self.upstream.list(on_entry) => result,
                () = clock.deadline(until) => {
                    Err(Failure::new("the list took too long and was cut off", Cause::Unusable))
                }
            }
        };
        self.measured(clock, UpstreamRequest::List, listed, answer_to_look)
            .await
    }

    async fn measured<T>(
        &self,
        clock: &impl Clock,
        kind: UpstreamRequest,
        request: impl Future<Output = T>,
        answer_of: impl FnOnce(&T) -> AnswerClass,
    ) -> T {
        let began_at = clock.now();
        let result = request.await;
        let took = clock.now().since(began_at);
        self.metrics().on_request(kind, answer_of(&result), took);
        result
    }
}

fn answer_to_look<T>(result: &Result<T, Failure>) -> AnswerClass {
    match result {
        Ok(_) => AnswerClass::Ok,
        Err(failure) => AnswerClass::of_failure(failure, AnswerClass::Unusable),
    }
}
