//! The condition of an order: in short, as it was observed, and the reasons for it.
//!
//! Pure, like all of `explain`.

use super::OrderDetails;
use crate::decide::{Intent, OpenOrder, Phase, is_in_doubt};
use crate::messages::{clean, lasting, past, span, throttling};
use crate::order::{Attention, Order, Reason, ResolvedBy, Rfc3339, Timestamp};
use crate::pace::UpstreamState;

impl OrderDetails {
    /// Returns the condition of the order in one line.
    pub(super) fn summary(&self, now: Timestamp) -> String {
        let Order {
            id,
            status,
            created_at,
            updated_at,
            ..
        } = &self.order;
        let id = id.as_str();
        // The text about a settled order stays the same, so it has a moment and no age.
        let lasting = match status.is_settled() {
            true => format!("since {}", Rfc3339(*updated_at)),
            false => format!("for {}", span(now.since(*updated_at))),
        };
        let starts = match self.order.starts {
            0 => "No start for it has taken effect, as far as is known.".to_owned(),
            1 => "One start was sent for it that took effect, or may have.".to_owned(),
            n => format!("{n} starts were sent for it that took effect, or may have."),
        };
        let condition = match &self.order.attention {
            None if status.is_settled() => format!(
                "It took {} from its creation to its end.",
                span(updated_at.since(*created_at))
            ),
            None => match (
                self.reconciler.leader_status(now).problem,
                self.throttled(now),
            ) {
                (None, None) => "Nothing is wrong with it.".to_owned(),
                (Some(problem), _) => {
                    format!("Nothing is wrong with the order itself, but {problem}.")
                }
                (None, Some(kind)) => format!(
                    "Nothing is wrong with the order itself, but the upstream throttles {kind} (429)."
                ),
            },
            Some(Attention {
                reason, by, since, ..
            }) => {
                let lasting = span(now.since(*since));
                let goes_on = match (by, self.reconciler.leader_status(now).problem) {
                    (ResolvedBy::Operator, _) => "and needs an operator.".to_owned(),
                    (ResolvedBy::Itself, None) if self.is_upstream_down() => {
                        "and waits for the upstream.".to_owned()
                    }
                    (ResolvedBy::Itself, None) => "and proceeds by itself.".to_owned(),
                    (ResolvedBy::Itself, Some(problem)) => format!("and {problem}."),
                };
                format!("It has had {} for {lasting}, {goes_on}", reason.as_str())
            }
        };
        format!("Order {id:?} has been {status} {lasting}. {condition} {starts}")
    }

    /// Returns the kind of request that the order waits for and the upstream throttles.
    pub(super) fn throttled(&self, now: Timestamp) -> Option<&'static str> {
        let (open, throttling) = (self.open?, &self.reconciler.learned.throttling);
        let may_have_process = open.phase != Phase::Created || open.intent.is_some();
        let polls = throttling.polls(now).filter(|_| may_have_process);
        let starts = throttling.starts(now);
        let starts = starts.filter(|_| !may_have_process || open.is_lost());
        polls.map(|_| "polls").or(starts.map(|_| "starts"))
    }

    /// Returns sentences about the upstream and the reconciler, as they were last observed.
    pub(super) fn observed(&self, now: Timestamp) -> Vec<String> {
        let heartbeat = &self.reconciler;
        let mut lines = vec![match &heartbeat.upstream {
            UpstreamState::Unknown => {
                "It is not known yet whether the upstream answers.".to_owned()
            }
            UpstreamState::Up { since } => {
                let but = throttling(heartbeat.learned.throttling, now);
                let but = but.map_or_else(String::new, |but| format!(", but {but}"));
                format!("The upstream has answered {}{but}.", lasting(*since, now))
            }
            UpstreamState::Down { since, detail } => format!(
                "The upstream has given no usable answer {}: {}.",
                lasting(*since, now),
                clean(detail)
            ),
        }];
        let may_have_process =
            |open: OpenOrder| open.phase != Phase::Created || open.intent.is_some();
        if let Some(at) = heartbeat.last_observed_at
            && at >= self.order.created_at
            && self.open.is_some_and(may_have_process)
        {
            lines.push(format!(
                "The last poll of all processes that were due began {}.",
                past(at, now)
            ));
        }
        let incarnations = &heartbeat.learned.incarnations;
        if let Some(at) = incarnations.began_at()
            && let Some((processes, time)) = incarnations.expected_length(now)
        {
            let length = match time {
                Some(_) => format!(
                    "It is estimated to run about {processes:.0} processes between restarts."
                ),
                None => format!(
                    "It is assumed to run {processes:.0} processes between restarts, until that is known."
                ),
            };
            lines.push(format!(
                "The upstream was last found to have been restarted {}. {length}",
                past(at, now)
            ));
        }
        lines.push(match heartbeat.last_pass_at {
            None => "No reconciler has completed a pass on this database yet.".to_owned(),
            Some(at) => format!(
                "The last pass that the reconciler has reported ended {}. Passes without news are \
                 reported at most every few seconds.",
                past(at, now)
            ),
        });
        lines
    }

    /// Returns sentences about the reasons for the condition.
    pub(super) fn why(&self, now: Timestamp) -> Vec<String> {
        let Some(open) = &self.open else {
            return Vec::new();
        };
        let mut lines = Vec::new();
        if let Some(attention) = &self.order.attention {
            lines.push(self.attention(attention, now));
        }
        match (open.phase, open.intent) {
            (_, Some(intent)) => lines.push(start_without_outcome(intent, now)),
            (Phase::Created, None) if lines.is_empty() => {
                lines.push("Its process has not been started yet.".to_owned());
            }
            (Phase::Processing { confirmed_at, .. }, None) if lines.is_empty() => {
                lines.push(format!(
                    "Its process was known to exist {}, and was not seen to have ended.",
                    past(confirmed_at, now)
                ));
            }
            _ => {}
        }
        // A held order is only polled, which is not an attempt.
        let is_held = matches!(
            self.order
                .attention
                .as_ref()
                .map(|attention| attention.reason),
            Some(Reason::ProcessLost | Reason::MaxStarts)
        );
        if open.attempts > 0 && !is_held {
            lines.push(match open.attempts {
                1 => "One attempt has failed.".to_owned(),
                n => format!("{n} attempts in a row have failed."),
            });
        }
        if open.restart_requested {
            lines.push("An operator has asked for it to be started again.".to_owned());
        }
        lines
    }

    /// Returns a sentence about the attention.
    fn attention(&self, attention: &Attention, now: Timestamp) -> String {
        let detail = clean(&attention.detail);
        let lasting = lasting(attention.since, now);
        match attention.reason {
            Reason::StartRefused => format!(
                "The upstream has refused {lasting} to start a process for it, and has none: \
                 {detail}."
            ),
            Reason::UpstreamUnreachable if self.is_upstream_down() => {
                "The upstream is down, so no order can be started or polled.".to_owned()
            }
            Reason::UpstreamUnreachable if self.open.is_some_and(|open| open.intent.is_some()) => {
                format!("No start of it has been confirmed {lasting}: {detail}.")
            }
            Reason::UpstreamUnreachable => {
                format!("Requests about this order have failed {lasting}: {detail}.")
            }
            Reason::UnknownStatus => format!(
                "The upstream has answered {lasting} with a status that is not known here: {detail}. \
                 It may mean success or failure."
            ),
            Reason::ProcessLost if self.is_unobserved_under_fail() => format!(
                "The upstream has accepted its start, and has not known its process {lasting}. No \
                 poll on record has found the process: there may never have been one. So the \
                 order does not become FAILED, although --lost-process is `fail`."
            ),
            Reason::ProcessLost => format!(
                "The upstream has confirmed a process for it, and has known none {lasting}, most likely \
                 because it was restarted. Nobody can know whether the work was done."
            ),
            Reason::MaxStarts => format!(
                "It has been held {lasting}: {detail}. Each of these starts got no usable answer, or the \
                 upstream has forgotten its process."
            ),
        }
    }
}

/// Returns sentences about a start without an outcome.
fn start_without_outcome(intent: Intent, now: Timestamp) -> String {
    let written = past(intent.written_at, now);
    match (intent.given_up_at, intent.answer_status) {
        (None, _) => format!(
            "A start was about to be sent {written}, and its outcome is not recorded: it is in \
             flight, or the reconciler was killed meanwhile. There may be a process."
        ),
        (Some(at), None) => format!(
            "A start was sent {written}, and no usable answer had come {}. There may be a process.",
            past(at, now)
        ),
        (Some(at), Some(status)) => {
            let doubt = match is_in_doubt(Some(status)) {
                true => "There may be a process.",
                false => "A process is not expected, but looked for.",
            };
            format!(
                "A start was sent {written}, and answered with {status} {}. {doubt}",
                past(at, now)
            )
        }
    }
}
