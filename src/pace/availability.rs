//! The availability of the upstream: a circuit breaker that is fed with the result of each request.
//!
//! An upstream that is down gets probes alone (`reconciler/probe.rs`). `Retry-After` pauses all requests, but
//! those of one kind if it comes again before one of the kind is answered, and those about one order if it comes
//! again for a few orders alone.

use std::time::Duration;

use super::backoff::BACKOFF_BASE;
use crate::order::Timestamp;
use crate::upstream::{Cause, Failure, RequestKind};

/// Number of failures in a row after which the upstream counts as down.
const FAILURES_TO_DOWN: u32 = 3;

/// Pause of lists after one was throttled without `Retry-After`: meanwhile orders are looked up.
const LIST_PAUSE: Duration = Duration::from_secs(10);

/// Longest pause of look-ups after one was throttled without `Retry-After`.
const LOOK_UP_PAUSE_MAX: Duration = Duration::from_secs(60);

/// Number of answers with `Retry-After` in a row of which each is taken to concern its order alone: a few orders may
/// always be throttled, whatever is answered to others. With more, the upstream limits all.
const LONE_MAX: u32 = 5;

/// Longest pause that the upstream can ask for. An operator who restores it waits no longer than that for
/// the next request.
const REQUESTED_PAUSE_MAX: Duration = Duration::from_secs(300);

/// Returns the pause that the upstream asked for, as far as it is obeyed. `Retry-After: 0` asks for none.
pub fn requested_pause(failure: &Failure) -> Option<Duration> {
    let wait = failure.retry_after.filter(|wait| !wait.is_zero());
    wait.map(|wait| wait.min(REQUESTED_PAUSE_MAX))
}

/// A request to the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Its kind.
    pub kind: RequestKind,
    /// Set if its order's last request failed too.
    pub is_retry: bool,
    /// Moment at which it was sent.
    pub sent_at: Timestamp,
}

impl Call {
    /// Creates a look-up that was sent at this moment.
    pub const fn poll(sent_at: Timestamp) -> Self {
        Self {
            kind: RequestKind::LookUp,
            is_retry: false,
            sent_at,
        }
    }

    /// Returns whether it is a start, not a poll.
    pub fn is_start(self) -> bool {
        self.kind == RequestKind::Start
    }
}

/// The availability of the upstream: usable answers or none, and since when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum UpstreamState {
    /// Not known yet: no usable answer, and too few failures.
    #[default]
    Unknown,
    /// The upstream answers.
    Up {
        /// Moment of the first usable answer.
        since: Timestamp,
    },
    /// The upstream does not answer.
    Down {
        /// Moment of the first failure.
        since: Timestamp,
        /// Detail of the last failure.
        detail: String,
    },
}

impl UpstreamState {
    /// Returns the state, since `now` at the latest, for a clock that was set back.
    fn clamp_times(mut self, now: Timestamp) -> Self {
        if let Self::Up { since } | Self::Down { since, .. } = &mut self {
            *since = now.min(*since);
        }
        self
    }
}

/// The last pause of a kind of requests, since one had a usable answer.
#[derive(Clone, Copy, Debug)]
struct KindPause {
    /// Moment of the answer that has led to it.
    at: Timestamp,
    /// End of the pause of the kind.
    until: Timestamp,
    /// End of the pause that an answer last asked for.
    asked_until: Timestamp,
    /// Number of such answers, each before the end of the pause that the one before asked for; 0 if none did.
    in_a_row: u32,
}

/// A circuit breaker for requests to the upstream.
#[derive(Clone, Debug)]
pub struct CircuitBreaker {
    state: UpstreamState,
    failures_in_a_row: u32,
    /// Set if the last poll was answered, or failed in a way that shows that the upstream is there.
    are_polls_answered: bool,
    /// Set if a list was answered after a poll had failed; until a look-up is, or a list fails.
    do_look_ups_alone_fail: bool,
    /// Set if the upstream was down because of starts, and none was answered since.
    are_starts_failing: bool,
    first_failure_at: Option<Timestamp>,
    /// Moment of the last failure that counts.
    counted_at: Option<Timestamp>,
    /// End of the pause that the upstream has asked for.
    paused_until: Option<Timestamp>,
    /// The pause of each [`RequestKind`]; `None` if one had a usable answer since.
    kind_pauses: [Option<KindPause>; 3],
    /// Number of retried starts that were throttled without `Retry-After` since a first start had a usable answer,
    /// each within a second of the one before, and the moment of the last.
    throttled_retries: Option<(u32, Timestamp)>,
    results: RequestResults,
    last_failure: Option<String>,
}

/// The kinds of results among a number of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestResults {
    /// Set if a request had a usable answer.
    pub has_answer: bool,
    /// Set if a request failed.
    pub has_failure: bool,
}

impl CircuitBreaker {
    /// Creates a circuit breaker that resumes from the state of an earlier run, and from the ends of the
    /// pauses that the upstream had asked for, of all requests and of starts.
    pub fn new(
        state: UpstreamState,
        paused_until: Option<Timestamp>,
        starts_paused_until: Option<Timestamp>,
        now: Timestamp,
    ) -> Self {
        let bounded = |at: Timestamp| at.min(now.after(REQUESTED_PAUSE_MAX));
        let mut kind_pauses = [None; 3];
        kind_pauses[RequestKind::Start as usize] = starts_paused_until
            .filter(|at| *at > now)
            .map(bounded)
            .map(|at| KindPause {
                at: now,
                until: at,
                asked_until: at,
                in_a_row: 1,
            });
        Self {
            state: state.clamp_times(now),
            failures_in_a_row: 0,
            are_polls_answered: true,
            do_look_ups_alone_fail: false,
            are_starts_failing: false,
            first_failure_at: None,
            counted_at: None,
            paused_until: paused_until.map(bounded),
            kind_pauses,
            throttled_retries: None,
            results: RequestResults::default(),
            last_failure: None,
        }
    }

    /// Returns the detail of the last failure in this run.
    pub fn last_failure(&self) -> Option<&str> {
        self.last_failure.as_deref()
    }

    /// Returns the results of the requests since the last call, at the end of a pass.
    pub fn take_results(&mut self) -> RequestResults {
        std::mem::take(&mut self.results)
    }

    /// Returns the state of the upstream.
    pub fn state(&self) -> &UpstreamState {
        &self.state
    }

    /// Returns whether the upstream is known to be down.
    pub fn is_down(&self) -> bool {
        matches!(self.state, UpstreamState::Down { .. })
    }

    /// Returns the end of the pause that the upstream has asked for, if it lies ahead.
    pub fn paused_until(&self, now: Timestamp) -> Option<Timestamp> {
        self.paused_until.filter(|at| *at > now)
    }

    /// Returns the end of the pause of requests of this kind, if it lies ahead.
    pub fn kind_paused_until(&self, kind: RequestKind, now: Timestamp) -> Option<Timestamp> {
        let of_kind = self.kind_pauses[kind as usize].map(|pause| pause.until);
        let paused_until = self.paused_until.max(of_kind);
        paused_until.filter(|at| *at > now)
    }

    /// Returns whether requests may be sent at `now`.
    pub fn may_send(&self, now: Timestamp) -> bool {
        !self.is_down() && self.paused_until(now).is_none()
    }

    /// Records a usable answer. Returns whether the upstream was not known to answer before.
    pub fn on_answered(&mut self, call: Call, now: Timestamp) -> bool {
        match call.kind {
            RequestKind::Start => {}
            RequestKind::LookUp => self.do_look_ups_alone_fail = false,
            RequestKind::List => self.do_look_ups_alone_fail |= !self.are_polls_answered,
        }
        self.are_polls_answered = true;
        self.are_starts_failing &= !call.is_start();
        self.throttled_retries
            .take_if(|_| call.is_start() && !call.is_retry);
        self.kind_pauses[call.kind as usize].take_if(|pause| pause.at <= call.sent_at);
        self.results.has_answer = true;
        self.failures_in_a_row = 0;
        self.first_failure_at = None;
        if matches!(self.state, UpstreamState::Up { .. }) {
            return false;
        }
        self.state = UpstreamState::Up { since: now };
        true
    }

    /// Notes the pause that follows from a request without a usable answer, before [`Self::on_failed`]. Returns
    /// false if the answer concerns its order alone, which then waits alone.
    ///
    /// | answer | start | look-up | list |
    /// |---|---|---|---|
    /// | `Retry-After`, the first of a kind | pauses all | pauses all | pauses all |
    /// | …, about a retry, or after such a pause | order alone | order alone | pauses lists |
    /// | …, more than `LONE_MAX` in a row | pauses starts | pauses look-ups | pauses lists |
    /// | throttled without it | no pause | pauses look-ups, ever longer | pauses lists |
    /// | …, about a retry, up to `LONE_MAX` in a row | order alone | as above | pauses lists |
    ///
    /// Throttled starts and look-ups that do not concern their order alone reduce the start rate, and after such a
    /// look-up polls take the places of starts. Throttled lists do neither: they may always be, and look-ups take
    /// their place.
    pub fn note_pause(&mut self, call: Call, now: Timestamp, failure: &Failure) -> bool {
        let last = self.kind_pauses[call.kind as usize].unwrap_or(KindPause {
            at: now,
            until: now,
            asked_until: now,
            in_a_row: 0,
        });
        let Some(asked) = requested_pause(failure) else {
            let pause = match call.kind {
                RequestKind::LookUp => last.until.since(last.at) * 2,
                RequestKind::List => LIST_PAUSE,
                RequestKind::Start if call.is_retry && failure.is_throttled() => {
                    let (in_a_row, last_at) = self.throttled_retries.unwrap_or((0, now));
                    let is_row = now.since(last_at) <= BACKOFF_BASE;
                    let in_a_row = if is_row { in_a_row + 1 } else { 1 };
                    self.throttled_retries = Some((in_a_row, now));
                    return in_a_row > LONE_MAX;
                }
                RequestKind::Start => return true,
            };
            // Of look-ups that are throttled together, the first counts.
            if failure.is_throttled() && last.until <= now {
                let pause = pause.clamp(BACKOFF_BASE, LOOK_UP_PAUSE_MAX);
                self.kind_pauses[call.kind as usize] = Some(KindPause {
                    at: now,
                    until: now.after(pause),
                    ..last
                });
            }
            return true;
        };
        let (is_first, asked_until) = (last.in_a_row == 0, now.after(asked));
        let in_a_row = match now < last.asked_until {
            true => last.in_a_row,
            false => 0,
        };
        let concerns_kind =
            call.kind == RequestKind::List || is_first && !call.is_retry || in_a_row >= LONE_MAX;
        let until = if concerns_kind { asked_until } else { now };
        self.kind_pauses[call.kind as usize] = Some(KindPause {
            at: now,
            until: last.until.max(until),
            asked_until,
            in_a_row: in_a_row + 1,
        });
        // A kind of requests that is always answered so waits alone.
        if self.is_down() || is_first && concerns_kind {
            self.paused_until = self.paused_until.max(Some(asked_until));
        }
        concerns_kind
    }

    /// Records a request without a usable answer. Returns whether to report that the upstream is down:
    /// it was not before, or was down already when an earlier run ended.
    pub fn on_failed(&mut self, call: Call, now: Timestamp, failure: &Failure) -> bool {
        let is_start = call.is_start();
        let has_failed = std::mem::replace(&mut self.results.has_failure, true);
        let is_first_of_run = self.last_failure.is_none();
        self.last_failure = Some(failure.detail.clone());
        self.do_look_ups_alone_fail &= call.kind != RequestKind::List;
        let does_look_up_alone_fail =
            call.kind == RequestKind::LookUp && self.do_look_ups_alone_fail;
        if !is_start && !does_look_up_alone_fail {
            self.are_polls_answered =
                matches!(failure.cause, Cause::TooManyRequests | Cause::Stale);
        }
        // An upstream that answers polls is there whatever it answers to starts; so is one that answers lists
        // whatever it answers to look-ups, and one that limits the rate. The answer of a cache does not show
        // that it is not. Starts without an answer or access make it down until a poll shows that they alone
        // fail.
        let does_start_alone_fail = is_start && self.are_polls_answered;
        let is_reachable = match failure.cause {
            Cause::NoConnection => false,
            Cause::TooManyRequests | Cause::Stale => true,
            _ if does_look_up_alone_fail => true,
            Cause::AccessDenied | Cause::Timeout => {
                does_start_alone_fail && self.are_starts_failing
            }
            Cause::ServiceUnavailable | Cause::Unusable => does_start_alone_fail,
        };
        if is_reachable {
            match &mut self.state {
                UpstreamState::Up { .. } => {}
                _ if failure.cause == Cause::TooManyRequests => {
                    self.state = UpstreamState::Up { since: now };
                    self.failures_in_a_row = 0;
                    self.first_failure_at = None;
                }
                UpstreamState::Down { detail, .. } => detail.clone_from(&failure.detail),
                UpstreamState::Unknown => {}
            }
            return false;
        }
        // However many orders always fail, others are polled and started in the same pass, and any answer ends
        // the row. So the requests of a pass count once, and those in flight together; not timeouts in turn, as
        // in a pass of `--once`.
        let is_concurrent = |at| at <= now && call.sent_at <= at;
        let has_counted = self.counted_at.is_some_and(is_concurrent)
            || has_failed && failure.cause != Cause::Timeout;
        if call.is_retry && has_counted {
            return false;
        }
        self.counted_at = Some(now);
        self.failures_in_a_row += 1;
        let since = *self.first_failure_at.get_or_insert(now);
        match &mut self.state {
            UpstreamState::Down { detail, .. } => {
                detail.clone_from(&failure.detail);
                is_first_of_run
            }
            _ if failure.cause == Cause::NoConnection
                || self.failures_in_a_row >= FAILURES_TO_DOWN =>
            {
                self.are_starts_failing |= is_start;
                self.state = UpstreamState::Down {
                    since,
                    detail: failure.detail.clone(),
                };
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests;
