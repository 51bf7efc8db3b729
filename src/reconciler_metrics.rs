//! What the reconciler counts: its passes, and what it asked of the upstream.
//!
//! Pure. It is kept in the database beside the heartbeat and continued by the next run, so that
//! the counts only ever rise; the API tells them, because nobody can reach the reconciler. What
//! happened to orders is not counted here: the journal tells that (`history`).

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::histogram::Histogram;
use crate::upstream::{Cause, Failure};

/// Upper bounds of what a request to the upstream or a pass may take, in milliseconds: from a
/// service next door to the longest list.
pub const DURATION_BOUNDS_MS: [u64; 14] = [
    5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 120_000, 600_000,
];

/// What was asked of the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpstreamRequest {
    /// To start a process.
    Start,
    /// To tell about one process.
    LookUp,
    /// To tell about all.
    List,
}

/// What came of a request to the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerClass {
    /// A usable answer: the start was accepted, the look told something.
    Ok,
    /// The start was refused.
    Refused,
    /// It has too much to do: 429, 503, or no answer in time.
    Overload,
    /// It cannot be reached, or does not let us in.
    Unavailable,
    /// The start may have taken effect or not.
    Ambiguous,
    /// The look was answered with something that tells nothing.
    Unusable,
}

/// How a pass ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PassOutcome {
    /// All was done that was due.
    Ok,
    /// The upstream gave no usable answer.
    Unreachable,
    /// The database could not be read or written.
    Failed,
}

impl UpstreamRequest {
    /// The word that stands for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::LookUp => "look_up",
            Self::List => "list",
        }
    }
}

impl AnswerClass {
    /// What a request without a usable answer came to, in general or `otherwise`.
    pub fn of_failure(failure: &Failure, otherwise: Self) -> Self {
        if matches!(
            failure.cause,
            Cause::TooMany | Cause::Overload | Cause::Silence
        ) {
            Self::Overload
        } else if failure.cause == Cause::NoAccess {
            Self::Unavailable
        } else {
            otherwise
        }
    }

    /// The word that stands for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::Overload => "overload",
            Self::Unavailable => "unavailable",
            Self::Ambiguous => "ambiguous",
            Self::Unusable => "unusable",
        }
    }
}

impl PassOutcome {
    /// The word that stands for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unreachable => "unreachable",
            Self::Failed => "failed",
        }
    }
}

/// What the reconcilers on a database have counted, all together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReconcilerMetrics {
    leaderships: u64,
    passes: BTreeMap<PassOutcome, Histogram>,
    requests: BTreeMap<UpstreamRequest, BTreeMap<AnswerClass, Histogram>>,
    starts: u64,
    repeated_starts: u64,
}

impl ReconcilerMetrics {
    /// A reconciler has taken the lead.
    pub fn on_leadership(&mut self) {
        self.leaderships += 1;
    }

    /// A pass has ended.
    pub fn on_pass(&mut self, ended: PassOutcome, took: Duration) {
        let passes = self.passes.entry(ended).or_default();
        passes.count_ms(&DURATION_BOUNDS_MS, took);
    }

    /// Something was asked of the upstream.
    pub fn on_request(&mut self, request: UpstreamRequest, answer: AnswerClass, took: Duration) {
        let requests = self.requests.entry(request).or_default();
        let requests = requests.entry(answer).or_default();
        requests.count_ms(&DURATION_BOUNDS_MS, took);
    }

    /// A start is sent; for an order for which one may have taken effect before, it `is_repeated`.
    pub fn on_start_sent(&mut self, is_repeated: bool) {
        self.starts += 1;
        self.repeated_starts += u64::from(is_repeated);
    }

    /// How often a reconciler has taken the lead.
    pub fn leaderships(&self) -> u64 {
        self.leaderships
    }

    /// The durations of passes, in milliseconds, by how they ended.
    pub fn passes(&self) -> impl Iterator<Item = (PassOutcome, &Histogram)> {
        self.passes.iter().map(|(ended, passes)| (*ended, passes))
    }

    /// The durations of requests to the upstream, in milliseconds, by what was asked and what came
    /// of it.
    pub fn requests(&self) -> impl Iterator<Item = (UpstreamRequest, AnswerClass, &Histogram)> {
        self.requests.iter().flat_map(|(request, answers)| {
            let answers = answers.iter();
            answers.map(|(answer, requests)| (*request, *answer, requests))
        })
    }

    /// Starts that were sent.
    pub fn starts_sent(&self) -> u64 {
        self.starts
    }

    /// Those of them that were sent for an order for which one may have taken effect before.
    pub fn repeated_starts_sent(&self) -> u64 {
        self.repeated_starts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_read_back_as_it_was_and_counted_on() {
        let mut metrics = ReconcilerMetrics::default();
        metrics.on_leadership();
        metrics.on_pass(PassOutcome::Unreachable, Duration::from_millis(7));
        metrics.on_request(
            UpstreamRequest::LookUp,
            AnswerClass::Ok,
            Duration::from_secs(3_600),
        );
        metrics.on_start_sent(false);
        let text = serde_json::to_string(&metrics).unwrap();
        let mut again: ReconcilerMetrics = serde_json::from_str(&text).unwrap();
        assert_eq!(again, metrics);
        again.on_request(UpstreamRequest::LookUp, AnswerClass::Ok, Duration::ZERO);
        again.on_request(UpstreamRequest::Start, AnswerClass::Refused, Duration::ZERO);
        again.on_start_sent(true);
        assert_eq!((again.starts_sent(), again.repeated_starts_sent()), (2, 1));
        let requests = again.requests();
        let counts: Vec<_> = requests
            .map(|(request, answer, took)| (request, answer, took.len()))
            .collect();
        let expected = [
            (UpstreamRequest::Start, AnswerClass::Refused, 1),
            (UpstreamRequest::LookUp, AnswerClass::Ok, 2),
        ];
        assert_eq!(counts, expected);
    }

    #[test]
    fn what_another_version_has_counted_and_this_one_does_not_know_is_no_hindrance() {
        let metrics: ReconcilerMetrics = serde_json::from_str(r#"{"starts":3,"naps":7}"#).unwrap();
        assert_eq!(metrics.starts_sent(), 3);
        assert_eq!(
            serde_json::from_str::<ReconcilerMetrics>("{}").unwrap(),
            ReconcilerMetrics::default()
        );
    }

    #[test]
    fn a_failure_counts_by_what_can_be_done_about_it() {
        let mut failure = Failure::new("answered 500", Cause::Unusable);
        let of = |failure: &Failure| AnswerClass::of_failure(failure, AnswerClass::Unusable);
        assert_eq!(of(&failure), AnswerClass::Unusable);
        failure.cause = Cause::NoAccess;
        assert_eq!(of(&failure), AnswerClass::Unavailable);
        failure.cause = Cause::Overload;
        assert_eq!(of(&failure), AnswerClass::Overload);
    }
}
