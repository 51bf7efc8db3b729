//! The next events of an order, and when they are expected.
//!
//! Pure, like all of `explain`.

use super::{COUNTED_AHEAD_MAX, OrderDetails};
use crate::decide::{LostProcess, OpenOrder, Phase};
use crate::messages::{clean, future, reduction_cause, span, start_limit};
use crate::order::{Reason, ResolvedBy, Timestamp};
use crate::pace::{StartLimit, StartRate};

impl OrderDetails {
    /// Returns sentences about the next events.
    pub(super) fn next(&self, now: Timestamp) -> Vec<String> {
        let Some(open) = &self.open else {
            return vec!["Nothing happens any more: a settled order never changes.".to_owned()];
        };
        if let Some(problem) = self.reconciler.leader_status(now).problem {
            return vec![format!(
                "Nothing happens until a reconciler completes a pass: {problem}."
            )];
        }
        let pause = self.paused_until(now).map(|at| {
            format!(
                "The upstream has asked for a pause: nothing is started or polled for {}.",
                span(at.since(now))
            )
        });
        pause.into_iter().chain(self.steps(open, now)).collect()
    }

    /// Returns sentences about the next events of an open order, with a reconciler that runs.
    fn steps(&self, open: &OpenOrder, now: Timestamp) -> Vec<String> {
        if self.is_upstream_down() {
            return vec![
                format!(
                    "The upstream is probed in the next pass{}. Nothing is started before it answers.",
                    self.pass_time(now)
                ),
                "Its status does not change before that: no answer proves nothing about its process."
                    .to_owned(),
            ];
        }
        let reason = self
            .order
            .attention
            .as_ref()
            .map(|attention| attention.reason);
        match (open.phase, open.intent, reason) {
            (_, Some(intent), _) => {
                let look_up = match intent.given_up_at {
                    None => "If its start gets no answer, its process is looked up.".to_owned(),
                    Some(_) => format!("Its process is looked up{}.", self.poll_time(open, now)),
                };
                let limit = match open.restart_requested {
                    true => "",
                    false => ", and only if --max-starts allows",
                };
                vec![format!(
                    "{look_up} If there is one, it is adopted. It is started again only after a complete \
                     answer, requested at least one --request-timeout after that start was given up, \
                     shows no process{limit}."
                )]
            }
            (Phase::Created, None, Some(Reason::MaxStarts)) if !open.restart_requested => {
                vec![
                    "Nothing happens until an operator decides or --max-starts is raised."
                        .to_owned(),
                ]
            }
            (Phase::Created, None, _) => self.queue_position(open, now),
            (Phase::Processing { .. }, None, Some(Reason::ProcessLost | Reason::MaxStarts)) => {
                self.after_loss(open, now)
            }
            (Phase::Processing { .. }, None, Some(_)) => {
                vec![format!(
                    "It is looked up again{}.",
                    self.poll_time(open, now)
                )]
            }
            (Phase::Processing { .. }, None, None) => vec![format!(
                "Its process is polled again{}. When it has ended, the order is FULFILLED or \
                 FAILED.",
                self.poll_time(open, now)
            )],
        }
    }

    /// Returns sentences about the position of a CREATED order in the start queue.
    fn queue_position(&self, open: &OpenOrder, now: Timestamp) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(at) = due_at(open, now) {
            lines.push(format!(
                "It is tried again when its turn comes, {} at the earliest.",
                future(at, now)
            ));
        }
        let learned = &self.reconciler.learned;
        if let Some(window) = learned.full_window() {
            lines.push(format!(
                "No order is started until a process has ended: {}.",
                start_limit(StartLimit::Window(window))
            ));
        }
        if learned.throttling.starts(now).is_some() {
            lines.push(
                "The upstream throttles starts (429). They are tried again slowly, and no time \
                 can be given."
                    .to_owned(),
            );
        }
        let is_paused = self.paused_until(now).is_some();
        if let Some(at) = learned.starts_paused_until(now).filter(|_| !is_paused) {
            lines.push(format!(
                "The upstream has asked for a pause of starts: none is sent for {}.",
                span(at.since(now))
            ));
        }
        let is_delayed = !lines.is_empty() || is_paused;
        let rate = learned.rate.as_ref();
        lines.push(match (self.ahead, learned.wait(self.ahead, now).zip(rate)) {
            (0, _) if is_delayed => "No other order is ahead of it.".to_owned(),
            // Neither the requests in flight nor the last start are known here.
            (0, _) => format!(
                "It is the next to be started, now or in the next pass{}, as soon as the {} and the requests \
                 in flight allow.",
                self.pass_time(now),
                rate.map_or("start rate".to_owned(), rate_of)
            ),
            (ahead, _) if is_delayed => format!("{} ahead of it.", orders_are(ahead)),
            (ahead, None) => format!(
                "{} ahead of it. The start rate is not known yet.",
                orders_are(ahead)
            ),
            (ahead, Some((wait, rate))) => {
                let reason = rate.reduction_cause().map_or_else(String::new, |cause| {
                    format!(" The rate is reduced: {}.", clean(reduction_cause(cause)))
                });
                format!(
                    "{} ahead of it. At the present {} its turn comes in about {}, or later: starts that \
                     fail are repeated, and requests without an answer hold others up.{reason}",
                    orders_are(ahead),
                    rate_of(rate),
                    span(wait)
                )
            }
        });
        lines
    }

    /// Returns sentences about the next events of an order whose process was forgotten.
    fn after_loss(&self, open: &OpenOrder, now: Timestamp) -> Vec<String> {
        if open.restart_requested {
            let again = "When its turn comes, it is looked up once more, and started again if it has \
                         no process.";
            let mut lines = vec![again.to_owned()];
            lines.extend(self.queue_position(open, now));
            return lines;
        }
        let attention = self.order.attention.as_ref();
        if attention.is_some_and(|attention| attention.by == ResolvedBy::Operator) {
            return vec![format!(
                "It is held until an operator decides. Its process is looked up again{}: if there is \
                 one, the order goes on by itself.",
                self.poll_time(open, now)
            )];
        }
        let then = match self.reconciler.policy {
            Some(LostProcess::Restart) => {
                "it is started again when its turn comes, unless it was started --max-starts times; then it \
                 is held until an operator decides"
            }
            Some(LostProcess::Fail) if self.is_unobserved_under_fail() => {
                "it is held until an operator decides, because no poll on record has found it"
            }
            Some(LostProcess::Hold) => "it is held until an operator decides",
            Some(LostProcess::Fail) => "it becomes FAILED",
            None => "the reconciler applies its --lost-process",
        };
        vec![format!(
            "It is looked up again{}. If it is still missing, {then}.",
            self.poll_time(open, now)
        )]
    }

    /// Returns the earliest moment of the order's next look-up, as part of a sentence.
    fn poll_time(&self, open: &OpenOrder, now: Timestamp) -> String {
        match due_at(open, now).max(self.reconciler.next_poll_at) {
            Some(at) if at > now => format!(", {} at the earliest", future(at, now)),
            _ => format!(" in the next pass{}", self.pass_time(now)),
        }
    }

    /// Returns the moment of the next pass that may send requests, as part of a sentence; empty if it is
    /// due.
    fn pass_time(&self, now: Timestamp) -> String {
        match self.reconciler.next_pass_at.max(self.paused_until(now)) {
            Some(at) if at > now => format!(", {}", future(at, now)),
            _ => String::new(),
        }
    }

    /// Returns the end of the pause that the upstream has asked for, if it is not over.
    fn paused_until(&self, now: Timestamp) -> Option<Timestamp> {
        let paused_until = self.reconciler.learned.paused_until;
        paused_until.filter(|at| *at > now)
    }
}

/// Returns the moment of the next attempt, if it is not due now.
fn due_at(open: &OpenOrder, now: Timestamp) -> Option<Timestamp> {
    open.next_attempt_at.filter(|_| !open.is_due(now))
}

/// Formats a start rate: `rate of 12.5 starts/s`.
fn rate_of(rate: &StartRate) -> String {
    let rounded = (rate.rate() * 1e3).round() / 1e3;
    format!("rate of {rounded} starts/s")
}

fn orders_are(count: u64) -> String {
    match count {
        1 => "1 order is".to_owned(),
        COUNTED_AHEAD_MAX.. => format!("{COUNTED_AHEAD_MAX} orders or more are"),
        n => format!("{n} orders are"),
    }
}
