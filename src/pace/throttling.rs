//! Throttling that lasts: the requests that the upstream answers 429, by kind.
//!
//! An upstream that does so is there, but orders do not proceed: with a quota used up, for hours. A rate
//! limit throttles a start now and then, which the start rate follows. Requests that are answered 503 are
//! reported otherwise: their order gets attention, or the upstream counts as down.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::order::Timestamp;
use crate::upstream::RequestKind;

/// Time without another answer after which requests that are answered 429 are reported: five starts at the
/// lowest rate, and more than a rate limit throttles now and then.
const REPORTED_AFTER: Duration = Duration::from_secs(10);

/// The requests that were answered 429, since one of their kind was answered otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Throttling {
    starts: Option<Throttled>,
    polls: Option<Throttled>,
}

/// Requests of one kind that were answered 429, with no other answer between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Throttled {
    /// Moment of the first.
    pub since: Timestamp,
    /// Their number.
    pub requests: u64,
}

impl Throttling {
    /// Returns the starts that are answered 429, if that lasts.
    pub fn starts(&self, now: Timestamp) -> Option<Throttled> {
        self.starts.filter(|throttled| throttled.lasts(now))
    }

    /// Returns the polls that are answered 429, if that lasts.
    pub fn polls(&self, now: Timestamp) -> Option<Throttled> {
        self.polls.filter(|throttled| throttled.lasts(now))
    }

    /// Records a request that was answered 429.
    pub(super) fn on_too_many_requests(&mut self, kind: RequestKind, now: Timestamp) {
        let first = Throttled {
            since: now,
            requests: 0,
        };
        self.of_kind(kind).get_or_insert(first).requests += 1;
    }

    /// Records an answer other than 429.
    pub(super) fn on_answered(&mut self, kind: RequestKind) {
        *self.of_kind(kind) = None;
    }

    /// Returns the same, since `now` at the latest, for a clock that was set back.
    #[must_use]
    pub(super) fn clamp_times(mut self, now: Timestamp) -> Self {
        for throttled in [&mut self.starts, &mut self.polls].into_iter().flatten() {
            throttled.since = throttled.since.min(now);
        }
        self
    }

    fn of_kind(&mut self, kind: RequestKind) -> &mut Option<Throttled> {
        match kind {
            RequestKind::Start => &mut self.starts,
            RequestKind::LookUp | RequestKind::List => &mut self.polls,
        }
    }
}

impl Throttled {
    fn lasts(&self, now: Timestamp) -> bool {
        now.since(self.since) >= REPORTED_AFTER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_of_a_kind_count_as_throttled_until_one_is_answered() {
        let mut throttling = Throttling::default();
        throttling.on_too_many_requests(RequestKind::Start, Timestamp(1_000));
        assert_eq!(throttling.starts(Timestamp(10_999)), None);
        throttling.on_too_many_requests(RequestKind::Start, Timestamp(9_000));
        throttling.on_answered(RequestKind::LookUp);
        let expected = Throttled {
            since: Timestamp(1_000),
            requests: 2,
        };
        assert_eq!(throttling.starts(Timestamp(11_000)), Some(expected));
        assert_eq!(throttling.polls(Timestamp(11_000)), None);
        let again = throttling.clamp_times(Timestamp(500));
        assert!(again.starts(Timestamp(10_500)).is_some());
        throttling.on_answered(RequestKind::Start);
        assert_eq!(throttling, Throttling::default());
        throttling.on_too_many_requests(RequestKind::LookUp, Timestamp(0));
        assert!(throttling.polls(Timestamp(11_000)).is_some());
    }
}
