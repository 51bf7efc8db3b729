//! The reconciler's counters: passes, and requests to the upstream.
//!
//! Pure. They are stored with the heartbeat and continued by the next run, so that they only ever
//! rise. The API exposes them, because the reconciler has no HTTP server. Events of orders are counted
//! from the journal (`journal_stats`).

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::histogram::Histogram;
use crate::order::words;
use crate::upstream::{Cause, Failure, RequestKind};

/// Bounds of the durations of requests to the upstream and of passes, in milliseconds: from a service on
/// the same machine to the longest list.
pub const DURATION_BOUNDS_MS: [u64; 14] = [
    5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 120_000, 600_000,
];

words! {
    /// The class of the answer to a request.
    pub enum AnswerClass {
        /// A usable answer: the start was accepted, or the poll succeeded.
        Ok = "ok",
        /// The start was refused.
        Refused = "refused",
        /// The upstream is overloaded: 429, 503, or no answer in time.
        Overload = "overload",
        /// The upstream cannot be reached, or denies access.
        Unavailable = "unavailable",
        /// The start may have taken effect or not.
        Ambiguous = "ambiguous",
        /// The answer to the poll cannot be used.
        Unusable = "unusable",
    }
}

words! {
    /// The outcome of a pass.
    pub enum PassOutcome {
        /// Everything that was due was done.
        Ok = "ok",
        /// The upstream gave no usable answer.
        Unreachable = "unreachable",
        /// The database could not be read or written.
        Failed = "failed",
    }
}

impl AnswerClass {
    /// Returns the class of a failure, or `otherwise` for a cause that has none of its own.
    pub fn of_failure(failure: &Failure, otherwise: Self) -> Self {
        if matches!(
            failure.cause,
            Cause::TooManyRequests | Cause::ServiceUnavailable | Cause::Timeout
        ) {
            Self::Overload
        } else if matches!(failure.cause, Cause::NoConnection | Cause::AccessDenied) {
            Self::Unavailable
        } else {
            otherwise
        }
    }
}

/// The counters of all reconcilers on a database.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReconcilerMetrics {
    /// Number of times that a reconciler became leader.
    pub leaderships: u64,
    /// Durations of passes by outcome, in milliseconds.
    pub passes: BTreeMap<PassOutcome, Histogram>,
    requests: BTreeMap<RequestKind, BTreeMap<AnswerClass, Histogram>>,
    /// Number of starts sent.
    pub starts: u64,
    /// Number of starts sent for an order of which an earlier one may have taken effect.
    pub repeated_starts: u64,
}

impl ReconcilerMetrics {
    /// Counts a reconciler that became leader.
    pub fn on_leadership(&mut self) {
        self.leaderships += 1;
    }

    /// Counts a pass.
    pub fn on_pass(&mut self, outcome: PassOutcome, took: Duration) {
        let passes = self.passes.entry(outcome).or_default();
        passes.count_ms(&DURATION_BOUNDS_MS, took);
    }

    /// Counts a request to the upstream.
    pub fn on_request(&mut self, request: RequestKind, answer: AnswerClass, took: Duration) {
        let requests = self.requests.entry(request).or_default();
        let requests = requests.entry(answer).or_default();
        requests.count_ms(&DURATION_BOUNDS_MS, took);
    }

    /// Counts a start that is sent. `was_sent_before` says that an earlier one of its order may have taken effect.
    pub fn on_start_sent(&mut self, was_sent_before: bool) {
        self.starts += 1;
        self.repeated_starts += u64::from(was_sent_before);
    }

    /// Returns the durations of requests to the upstream by kind and class of answer, in milliseconds.
    pub fn requests(&self) -> impl Iterator<Item = (RequestKind, AnswerClass, &Histogram)> {
        self.requests.iter().flat_map(|(request, answers)| {
            let answers = answers.iter();
            answers.map(|(answer, requests)| (*request, *answer, requests))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_back_and_continued() {
        let mut metrics = ReconcilerMetrics::default();
        metrics.on_leadership();
        metrics.on_pass(PassOutcome::Unreachable, Duration::from_millis(7));
        metrics.on_request(
            RequestKind::LookUp,
            AnswerClass::Ok,
            Duration::from_secs(3_600),
        );
        metrics.on_start_sent(false);
        let text = serde_json::to_string(&metrics).unwrap();
        let mut again: ReconcilerMetrics = serde_json::from_str(&text).unwrap();
        assert_eq!(again, metrics);
        again.on_request(RequestKind::LookUp, AnswerClass::Ok, Duration::ZERO);
        again.on_request(RequestKind::Start, AnswerClass::Refused, Duration::ZERO);
        again.on_start_sent(true);
        assert_eq!((again.starts, again.repeated_starts), (2, 1));
        let requests = again.requests();
        let counts: Vec<_> = requests
            .map(|(request, answer, took)| (request, answer, took.total()))
            .collect();
        let expected = [
            (RequestKind::Start, AnswerClass::Refused, 1),
            (RequestKind::LookUp, AnswerClass::Ok, 2),
        ];
        assert_eq!(counts, expected);
    }

    #[test]
    fn unknown_counters_of_another_version_are_ignored() {
        let metrics: ReconcilerMetrics = serde_json::from_str(r#"{"starts":3,"naps":7}"#).unwrap();
        assert_eq!(metrics.starts, 3);
        assert_eq!(
            serde_json::from_str::<ReconcilerMetrics>("{}").unwrap(),
            ReconcilerMetrics::default()
        );
    }

    #[test]
    fn a_failure_is_classed_by_its_cause() {
        let mut failure = Failure::new("answered 500", Cause::Unusable);
        let of = |failure: &Failure| AnswerClass::of_failure(failure, AnswerClass::Unusable);
        assert_eq!(of(&failure), AnswerClass::Unusable);
        failure.cause = Cause::NoConnection;
        assert_eq!(of(&failure), AnswerClass::Unavailable);
        failure.cause = Cause::ServiceUnavailable;
        assert_eq!(of(&failure), AnswerClass::Overload);
    }
}
