//! Explanations of one order, for an operator on call: its events, the observations, the reasons, the next
//! events with their times, and advice.
//!
//! Pure: [`OrderDetails`] and the present moment go in, an [`Explanation`] comes out. The API serves it as
//! JSON for the dashboard, and `order-service explain` prints it. It describes the choices of `decide`
//! and makes none.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::decide::{Intent, LostProcess, OpenOrder, Phase};
use crate::messages::{clean, future, lasting, past, quoted, reduction_cause, span};
use crate::order::{Attention, Order, Reason, ResolvedBy, Rfc3339, Status, Timestamp};
use crate::order_details::{COUNTED_AHEAD_MAX, OrderDetails};
use crate::pace::{StartRate, UpstreamState};
use crate::reconciler_state::LeaderStatus;

/// An explanation of one order. Each text is one or more sentences.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    /// The moment that it describes.
    pub at: Rfc3339,
    /// The order's condition.
    pub summary: String,
    /// Its part of the journal, oldest first.
    pub events: Vec<ExplainedEvent>,
    /// The last observations of the upstream and the reconciler; empty once the order is settled.
    pub observed: Vec<String>,
    /// The reasons for that; empty once the order is settled.
    pub why: Vec<String>,
    /// The next events, and when they are expected.
    pub next: Vec<String>,
    /// Advice to a person; empty if nothing has to be done.
    pub advice: Vec<String>,
    /// The operator's commands that apply.
    pub commands: Vec<Command>,
}

/// An entry of the journal.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExplainedEvent {
    /// Moment at which it was written.
    pub at: Rfc3339,
    /// The name of its reason.
    pub reason: String,
    /// A sentence about it.
    pub text: String,
}

/// The beginning of the commands: the program, and the options that name the database.
#[derive(Clone, Debug, PartialEq)]
pub struct Invocation {
    program: String,
    database: Option<String>,
}

impl Invocation {
    /// Returns an invocation for readers on other machines, without this machine's paths.
    pub fn elsewhere() -> Self {
        Self {
            program: "order-service".to_owned(),
            database: None,
        }
    }

    /// Returns an invocation for a shell on this machine, in any folder. `program` is a path, or the name by
    /// which a shell finds the program.
    pub fn here(program: impl Into<String>, database: impl Into<String>) -> Self {
        Self {
            program: program.into(),
            database: Some(database.into()),
        }
    }
}

/// A command for a shell on the machine that has the database.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Command {
    /// The line to type.
    pub command: String,
    /// Its effect.
    pub effect: &'static str,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rfc3339(now) = self.at;
        let events = self.events.iter().map(|ExplainedEvent { at, text, .. }| {
            let ago = format!("{} ago", span(now.since(at.0)));
            format!("{at}  {ago:>12}  {text}")
        });
        let commands = self.commands.iter();
        let commands =
            commands.map(|Command { command, effect }| format!("{command}   # {effect}"));
        writeln!(f, "{}", self.summary)?;
        for (title, lines) in [
            ("What happened", events.collect()),
            ("What was observed", self.observed.clone()),
            ("Why it is where it is", self.why.clone()),
            ("What happens next", self.next.clone()),
            (
                "What you can do",
                self.advice
                    .iter()
                    .cloned()
                    .chain(commands)
                    .collect::<Vec<_>>(),
            ),
        ] {
            if !lines.is_empty() {
                writeln!(f, "\n{title}")?;
            }
            for line in lines {
                writeln!(f, "  {line}")?;
            }
        }
        Ok(())
    }
}

impl OrderDetails {
    /// Explains the order, with commands that begin with `invocation`.
    pub fn explain(&self, now: Timestamp, invocation: &Invocation) -> Explanation {
        let events = self.journal.iter().map(|(at, reason)| ExplainedEvent {
            at: Rfc3339(*at),
            reason: reason.clone(),
            text: meaning_of(reason),
        });
        Explanation {
            at: Rfc3339(now),
            summary: self.summary(now),
            events: events.collect(),
            observed: match self.open {
                Some(_) => self.observed(now),
                None => Vec::new(),
            },
            why: self.why(now),
            next: self.next(now),
            advice: self.advice(),
            commands: self.commands(invocation),
        }
    }

    fn summary(&self, now: Timestamp) -> String {
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
            0 => "No start was sent for it, as far as is known.".to_owned(),
            1 => "One start was sent for it that took effect, or may have.".to_owned(),
            n => format!("{n} starts were sent for it that took effect, or may have."),
        };
        let condition = match &self.order.attention {
            None if status.is_settled() => format!(
                "It took {} from its creation to its end.",
                span(updated_at.since(*created_at))
            ),
            None => match self.leader_status(now).problem {
                None => "Nothing is wrong with it.".to_owned(),
                Some(problem) => format!("Nothing is wrong with the order itself, but {problem}."),
            },
            Some(Attention {
                reason, by, since, ..
            }) => {
                let lasting = span(now.since(*since));
                let goes_on = match (by, self.leader_status(now).problem) {
                    (ResolvedBy::Operator, _) => "and needs an operator.".to_owned(),
                    (ResolvedBy::Itself, None) => "and proceeds by itself.".to_owned(),
                    (ResolvedBy::Itself, Some(problem)) => format!("and {problem}."),
                };
                format!("It has had {} for {lasting}, {goes_on}", reason.as_str())
            }
        };
        format!("Order {id:?} has been {status} {lasting}. {condition} {starts}")
    }

    fn observed(&self, now: Timestamp) -> Vec<String> {
        let heartbeat = &self.reconciler;
        let mut lines = vec![match &heartbeat.upstream {
            UpstreamState::Unknown => {
                "It is not known yet whether the upstream answers.".to_owned()
            }
            UpstreamState::Up { since } => {
                format!("The upstream has answered {}.", lasting(*since, now))
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
                "All processes that were due to be observed were last observed {}.",
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
                    "No incarnation of it was observed from beginning to end yet, so {processes:.0} \
                     processes are assumed."
                ),
            };
            lines.push(format!(
                "The upstream was last found to have forgotten everything {}. {length}",
                past(at, now)
            ));
        }
        lines.push(match heartbeat.last_pass_at {
            None => "No reconciler has completed a pass on this database yet.".to_owned(),
            Some(at) => format!("The reconciler's last pass ended {}.", past(at, now)),
        });
        lines
    }

    fn why(&self, now: Timestamp) -> Vec<String> {
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
            self.order.attention.as_ref().map(|of| of.reason),
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
                "The upstream is down, so no order can be polled.".to_owned()
            }
            Reason::UpstreamUnreachable if self.open.is_some_and(|open| open.intent.is_some()) => {
                format!("No start of it has been confirmed {lasting}: {detail}.")
            }
            Reason::UpstreamUnreachable => format!(
                "The upstream has given no usable answer about this order {lasting}: {detail}."
            ),
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
                "The upstream had a process for it, and has not known it {lasting}, \
                 most likely because it was restarted. Nobody can know whether that process had done \
                 its work."
            ),
            Reason::MaxStarts => format!(
                "It has been held {lasting}: {detail}. Something about it may bring the upstream \
                 down, or the upstream forgets too often."
            ),
        }
    }

    fn next(&self, now: Timestamp) -> Vec<String> {
        let Some(open) = &self.open else {
            return vec!["Nothing happens any more: a settled order never changes.".to_owned()];
        };
        let heartbeat = &self.reconciler;
        if self.leader_status(now).problem.is_some() {
            return vec![match (heartbeat.leader_since, heartbeat.led_until) {
                (None, None) => {
                    "Nothing happens until a reconciler runs on this database.".to_owned()
                }
                (None, Some(at)) => format!(
                    "Nothing happens until a reconciler runs again: the last one has shut down, {}.",
                    past(at, now)
                ),
                (Some(_), _) => {
                    let last = heartbeat.last_pass_at;
                    let last = last.map_or_else(String::new, |at| {
                        format!(" Its last pass ended {}.", past(at, now))
                    });
                    format!(
                        "Nothing happens until a reconciler runs again: the last one was killed, or \
                         is stuck.{last}"
                    )
                }
            }];
        }
        if self.is_upstream_down() {
            return vec![
                format!(
                    "The upstream is probed in the next pass{}, with one look-up. When it answers, this \
                     order proceeds by itself.",
                    self.pass_time(now)
                ),
                "Its status does not change before that: no answer proves nothing about its process."
                    .to_owned(),
            ];
        }
        let reason = self.order.attention.as_ref().map(|a| a.reason);
        match (open.phase, open.intent, reason) {
            (_, Some(_), _) => vec![format!(
                "Its process is looked up{}. If there is one, it is adopted. It is started again only \
                 when a complete answer to a request that was sent late enough does not know it.",
                self.attempt_time(open, now)
            )],
            (Phase::Created, None, Some(Reason::MaxStarts)) if !open.restart_requested => {
                vec!["Nothing happens until an operator decides.".to_owned()]
            }
            (Phase::Created, None, _) => self.queue_position(open, now),
            (Phase::Processing { .. }, None, Some(Reason::ProcessLost | Reason::MaxStarts)) => {
                self.after_loss(open, now)
            }
            (Phase::Processing { .. }, None, Some(_)) => vec![format!(
                "It is polled again{}, without an operator.",
                self.attempt_time(open, now)
            )],
            (Phase::Processing { .. }, None, None) => vec![format!(
                "Its process is polled again{}. When it has ended, the order is FULFILLED or \
                 FAILED.",
                self.poll_time(now)
            )],
        }
    }

    /// Returns sentences about the position of a CREATED order in the start queue.
    fn queue_position(&self, open: &OpenOrder, now: Timestamp) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(at) = due_at(open, now) {
            lines.push(format!(
                "It is tried again {}, when it is dequeued.",
                future(at, now)
            ));
        }
        let resting_until = self.reconciler.learned.resting_until;
        if let Some(at) = resting_until.filter(|at| *at > now) {
            lines.push(format!(
                "The upstream has asked for a pause: nothing is started or polled for {}.",
                span(at.since(now))
            ));
        }
        let rate = self.reconciler.learned.rate.as_ref();
        lines.push(match (self.ahead, rate.map(StartRate::rate)) {
            (0, _) if lines.is_empty() => format!(
                "It is the next to be started, at once or in the next pass{}.",
                self.pass_time(now)
            ),
            (0, _) => "No other order is ahead of it.".to_owned(),
            (ahead, None) => format!(
                "{} ahead of it. The start rate is not known yet.",
                orders_are(ahead)
            ),
            (ahead, Some(pace)) => {
                let wait =
                    Duration::try_from_secs_f64(ahead as f64 / pace).unwrap_or(Duration::MAX);
                let about = if ahead < COUNTED_AHEAD_MAX {
                    "about"
                } else {
                    "more than"
                };
                let cause = rate.and_then(StartRate::reduction_cause);
                let reason = cause.map_or_else(String::new, |cause| {
                    format!(" The rate is reduced: {}.", clean(reduction_cause(cause)))
                });
                format!(
                    "{} ahead of it. At the present rate of {pace:.1} starts/s it is started in \
                     {about} {}.{reason}",
                    orders_are(ahead),
                    span(wait)
                )
            }
        });
        lines
    }

    /// Returns sentences about the next events of an order whose process was forgotten.
    fn after_loss(&self, open: &OpenOrder, now: Timestamp) -> Vec<String> {
        if open.restart_requested {
            let again = "It is looked up once more when it is dequeued, and started again if it is \
                         not found.";
            let mut lines = vec![again.to_owned()];
            lines.extend(self.queue_position(open, now));
            return lines;
        }
        let attention = self.order.attention.as_ref();
        if attention.is_some_and(|of| of.by == ResolvedBy::Operator) {
            return vec![
                "Nothing happens until an operator decides. If its process is seen again, it goes on \
                 by itself."
                    .to_owned(),
            ];
        }
        let then = match self.reconciler.policy {
            Some(LostProcess::Restart) => "it is started again when it is dequeued, at the pace",
            Some(LostProcess::Fail) if self.is_unobserved_under_fail() => {
                "it is held until an operator decides, because no poll on record has found it"
            }
            Some(LostProcess::Hold) => "it is held until an operator decides",
            Some(LostProcess::Fail) => "it becomes FAILED",
            None => "the reconciler applies its --lost-process",
        };
        vec![format!(
            "It is looked up again in the next pass{}{}. If it is still missing, {then}.",
            self.pass_time(now),
            not_before(open, now)
        )]
    }

    fn advice(&self) -> Vec<String> {
        let Some(attention) = &self.order.attention else {
            return Vec::new();
        };
        let advice = match attention.reason {
            Reason::UpstreamUnreachable if self.is_upstream_down() => {
                "Repair the upstream, or the network to it. If both work, check the reconciler's \
                 --order-process-url, the token, and the detail."
            }
            Reason::UpstreamUnreachable => {
                "Nothing has to be done if it goes away. If it does not, look in the upstream's log \
                 for this order."
            }
            Reason::StartRefused => {
                "Find out in the upstream's log why it refuses, and repair it there: the order is \
                 retried with backoff."
            }
            Reason::UnknownStatus => {
                "Look at the process in the upstream. The statuses known here are RUNNING, SUCCEEDED \
                 and FAILED: repair the upstream, or upgrade this program."
            }
            Reason::ProcessLost => {
                "Find out, at the payment provider or the warehouse, whether the work was done, and \
                 decide then."
            }
            Reason::MaxStarts => {
                "Find out why the upstream does not bring it to an end. Then decide, or raise the \
                 reconciler's --max-starts."
            }
        };
        vec![advice.to_owned()]
    }

    fn commands(&self, invocation: &Invocation) -> Vec<Command> {
        let restart = match self.order.attention.as_ref().map(|of| of.reason) {
            Some(Reason::StartRefused) => "Tries again in the next pass.",
            Some(Reason::ProcessLost) => "Starts it again, which repeats the work if it was done.",
            Some(Reason::MaxStarts) => "Starts it once more, whatever the limit.",
            _ => return Vec::new(),
        };
        let command = |name: &str, effect| {
            let mut words = vec![quoted(&invocation.program), name.to_owned()];
            if let Some(database) = &invocation.database {
                words.extend(["--database-url".to_owned(), quoted(database)]);
            }
            let id = self.order.id.as_str();
            if id.starts_with('-') {
                words.push("--".to_owned());
            }
            words.push(quoted(id));
            let command = words.join(" ");
            Command { command, effect }
        };
        let mut commands = vec![command("restart", restart)];
        if self.order.status == Status::Processing {
            commands.push(command("fail", "Settles it as FAILED, for ever."));
        }
        commands
    }

    fn leader_status(&self, now: Timestamp) -> LeaderStatus {
        self.reconciler.leader_status(now)
    }

    /// Returns whether the policy would settle the order as FAILED if a poll had found its process.
    fn is_unobserved_under_fail(&self) -> bool {
        let is_fail = self.reconciler.policy == Some(LostProcess::Fail);
        is_fail && self.open.is_some_and(|open| !open.is_observed)
    }

    fn is_upstream_down(&self) -> bool {
        matches!(self.reconciler.upstream, UpstreamState::Down { .. })
    }

    /// Returns the earliest moment of the next poll, as part of a sentence.
    fn poll_time(&self, now: Timestamp) -> String {
        match self.reconciler.next_poll_at {
            Some(at) if at > now => format!(", {} at the earliest", future(at, now)),
            _ => " in the next pass".to_owned() + &self.pass_time(now),
        }
    }

    /// Returns the moment of an order's next look-up, as part of a sentence.
    fn attempt_time(&self, open: &OpenOrder, now: Timestamp) -> String {
        match due_at(open, now) {
            Some(at) => format!(" {}", future(at, now)),
            None => format!(" in the next pass{}", self.pass_time(now)),
        }
    }

    /// Returns the moment of the next pass, as part of a sentence; empty if it is due.
    fn pass_time(&self, now: Timestamp) -> String {
        match self.reconciler.next_pass_at {
            Some(at) if at > now => format!(", {}", future(at, now)),
            _ => String::new(),
        }
    }
}

/// Returns a sentence about a journal entry with this reason.
fn meaning_of(reason: &str) -> String {
    let text = match reason {
        "created" => "It was created.",
        "started" => "Its process was started.",
        "adopted" => "A process that existed already was taken over.",
        "restarted" => "Its process was forgotten, and it was started again.",
        "succeeded" => "Its process succeeded.",
        "failed" => "Its process failed.",
        "failed_by_policy" => {
            "Its process was forgotten, and the policy --lost-process made it FAILED."
        }
        "failed_by_operator" => "Its process was forgotten, and an operator made it FAILED.",
        other => return format!("Its journal says {other:?}."),
    };
    text.to_owned()
}

/// Returns sentences about a start without an outcome.
fn start_without_outcome(intent: Intent, now: Timestamp) -> String {
    let written = past(intent.written_at, now);
    match (intent.given_up_at, intent.answer) {
        (None, _) => format!(
            "A start was about to be sent {written}, and its outcome is not recorded: it is in \
             flight, or the reconciler was killed meanwhile. There may be a process."
        ),
        (Some(at), None) => format!(
            "A start was sent {written}, and no answer had come {}. There may be a process.",
            past(at, now)
        ),
        (Some(at), Some(answer)) => format!(
            "A start was sent {written}, and answered with {answer} {}, which says nothing about \
             the order. There may be a process.",
            past(at, now)
        ),
    }
}

/// Returns the moment of the next attempt, if it is not due now.
fn due_at(open: &OpenOrder, now: Timestamp) -> Option<Timestamp> {
    open.next_attempt_at.filter(|_| !open.is_due(now))
}

fn not_before(open: &OpenOrder, now: Timestamp) -> String {
    match due_at(open, now) {
        Some(at) => format!("; not before {}", Rfc3339(at)),
        None => String::new(),
    }
}

fn orders_are(count: u64) -> String {
    match count {
        1 => "1 order is".to_owned(),
        COUNTED_AHEAD_MAX.. => format!("{COUNTED_AHEAD_MAX} orders or more are"),
        n => format!("{n} orders are"),
    }
}

#[cfg(test)]
mod tests;
