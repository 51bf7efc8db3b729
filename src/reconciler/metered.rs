//! The upstream with counters: every request of the reconciler goes through it.
//!
//! It measures durations by the reconciler's clock, so that a simulation with the same seed has the same
//! counts.

use std::cell::{RefCell, RefMut};

use crate::clock::Clock;
use crate::order::{Observed, OrderId, Timestamp};
use crate::reconciler_metrics::{AnswerClass, ReconcilerMetrics};
use crate::upstream::{Cause, Entry, Failure, RequestKind, StartError, Upstream};

/// The upstream, and the counters of its requests.
pub(super) struct MeteredUpstream<U> {
    upstream: U,
    metrics: RefCell<ReconcilerMetrics>,
}

impl<U> MeteredUpstream<U> {
    /// Creates an upstream that continues the counts of an earlier run.
    pub fn new(upstream: U, metrics: ReconcilerMetrics) -> Self {
        Self {
            upstream,
            metrics: RefCell::new(metrics),
        }
    }

    /// Borrows the counters. The borrow must not be held across an `await`.
    pub fn metrics(&self) -> RefMut<'_, ReconcilerMetrics> {
        self.metrics.borrow_mut()
    }
}

impl<U: Upstream> MeteredUpstream<U> {
    /// Starts a process, and waits for the answer until `abandoned`.
    pub async fn start(
        &self,
        clock: &impl Clock,
        id: &OrderId,
        abandoned: impl Future<Output = StartError>,
    ) -> Result<(), StartError> {
        let answer = async {
            tokio::select! {
                biased;
                answer = self.upstream.start(id) => answer,
                error = abandoned => Err(error),
            }
        };
        let classify = |result: &Result<(), StartError>| match result {
            Ok(()) => AnswerClass::Ok,
            Err(StartError::Refused { .. }) => AnswerClass::Refused,
            Err(StartError::Unavailable(failure)) => {
                AnswerClass::of_failure(failure, AnswerClass::Unavailable)
            }
            Err(StartError::Unconfirmed { .. }) => AnswerClass::Ambiguous,
            Err(StartError::Ambiguous { failure, .. }) => {
                AnswerClass::of_failure(failure, AnswerClass::Ambiguous)
            }
        };
        self.measure(clock, RequestKind::Start, answer, classify)
            .await
    }

    /// Looks up the process of one order.
    pub async fn look_up(&self, clock: &impl Clock, id: &OrderId) -> Result<Observed, Failure> {
        let answer = self.upstream.look_up(id);
        self.measure(clock, RequestKind::LookUp, answer, answer_to_get)
            .await
    }

    /// Reads the list of all processes up to `until`, and calls `on_entry` with each entry as it comes.
    pub async fn list(
        &self,
        clock: &impl Clock,
        until: Timestamp,
        on_entry: impl FnMut(Entry<'_>),
    ) -> Result<u64, Failure> {
        let answer = async {
            tokio::select! {
                biased;
                result = self.upstream.list(on_entry) => result,
                () = clock.deadline(until) => {
                    Err(Failure::new("the list took too long and was cut off", Cause::Unusable))
                }
            }
        };
        self.measure(clock, RequestKind::List, answer, answer_to_get)
            .await
    }

    async fn measure<T>(
        &self,
        clock: &impl Clock,
        kind: RequestKind,
        request: impl Future<Output = T>,
        classify: impl FnOnce(&T) -> AnswerClass,
    ) -> T {
        let began_at = clock.now();
        let result = request.await;
        let took = clock.now().since(began_at);
        self.metrics().on_request(kind, classify(&result), took);
        result
    }
}

fn answer_to_get<T>(result: &Result<T, Failure>) -> AnswerClass {
    match result {
        Ok(_) => AnswerClass::Ok,
        Err(failure) => AnswerClass::of_failure(failure, AnswerClass::Unusable),
    }
}
