//! The one place through which the reconciler asks the upstream, so that everything that is asked
//! is counted.
//!
//! Time is told by the reconciler's clock: what is counted repeats with a run that repeats.

use std::cell::{RefCell, RefMut};

use crate::clock::Clock;
use crate::order::{Observed, OrderId, Timestamp};
use crate::reconciler_metrics::{Answer, Kind, ReconcilerMetrics};
use crate::upstream::{Cause, Entry, Failure, StartError, Upstream};

/// The upstream, and what was counted.
pub(super) struct Asking<U> {
    upstream: U,
    /// Borrowed for an instant only, never across a wait.
    tally: RefCell<ReconcilerMetrics>,
}

impl<U> Asking<U> {
    /// Counts on from what an earlier run had counted.
    pub fn new(upstream: U, tally: ReconcilerMetrics) -> Self {
        Self {
            upstream,
            tally: RefCell::new(tally),
        }
    }

    /// What was counted, to add to it or to read it; to be let go at once.
    pub fn tally(&self) -> RefMut<'_, ReconcilerMetrics> {
        self.tally.borrow_mut()
    }
}

impl<U: Upstream> Asking<U> {
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
            Ok(()) => Answer::Ok,
            Err(StartError::Refused { .. }) => Answer::Refused,
            Err(StartError::Unavailable(_)) => Answer::Unavailable,
            Err(StartError::Doubtful(_)) => Answer::Ambiguous,
            Err(StartError::Ambiguous { failure, .. }) => {
                Answer::of_failure(failure, Answer::Ambiguous)
            }
        };
        self.counted(clock, Kind::Start, started, answer_of).await
    }

    /// Looks one order's process up.
    pub async fn look_up(&self, clock: &impl Clock, id: &OrderId) -> Result<Observed, Failure> {
        let looked_up = self.upstream.look_up(id);
        self.counted(clock, Kind::LookUp, looked_up, answer_to_look)
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
        self.counted(clock, Kind::List, listed, answer_to_look)
            .await
    }

    async fn counted<T>(
        &self,
        clock: &impl Clock,
        kind: Kind,
        request: impl Future<Output = T>,
        answer_of: impl FnOnce(&T) -> Answer,
    ) -> T {
        let began_at = clock.now();
        let result = request.await;
        let took = clock.now().since(began_at);
        self.tally().asked(kind, answer_of(&result), took);
        result
    }
}

fn answer_to_look<T>(result: &Result<T, Failure>) -> Answer {
    match result {
        Ok(_) => Answer::Ok,
        Err(failure) => Answer::of_failure(failure, Answer::Unusable),
    }
}
