//! Explanations of one order, for an operator on call: its events, the observations, the reasons, the next
//! events with their times, and advice. `condition` has the sentences about the present, `next` those about
//! the next events.
//!
//! Pure: [`OrderDetails`] and the present moment go in, an [`Explanation`] comes out. The API serves it as
//! JSON for the dashboard, and `order-service explain` prints it. It describes the choices of `decide`
//! and makes none.

mod condition;
mod next;

use std::fmt;

use serde::Serialize;

use crate::decide::{LostProcess, OpenOrder};
use crate::messages::{quoted, span};
use crate::order::{EventReason, Order, Reason, ResolvedBy, Rfc3339, Status, Timestamp};
use crate::pace::UpstreamState;
use crate::reconciler_state::ReconcilerState;

/// Maximum count of the orders that wait ahead of another, which bounds the cost of counting.
pub const COUNTED_AHEAD_MAX: u64 = 10_000;

/// Everything that is stored about one order, read at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct OrderDetails {
    /// The order as its readers see it.
    pub order: Order,
    /// The order as the reconciler sees it, while it is open.
    pub open: Option<OpenOrder>,
    /// Its entries in the journal, oldest first: the moment and the reason.
    pub journal: Vec<(Timestamp, EventReason)>,
    /// Number of orders to be started before it. From [`COUNTED_AHEAD_MAX`] on there may be more.
    pub ahead: u64,
    /// The reconciler's report on itself and on the upstream.
    pub reconciler: ReconcilerState,
}

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
    /// Its reason.
    pub reason: EventReason,
    /// A sentence about it.
    pub text: &'static str,
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

/// A command for a shell where the service runs.
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
            reason: *reason,
            text: meaning_of(*reason),
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
            advice: self.advice(now),
            commands: self.commands(invocation),
        }
    }

    fn advice(&self, now: Timestamp) -> Vec<String> {
        let Some(attention) = &self.order.attention else {
            return Vec::new();
        };
        let advice = match attention.reason {
            Reason::UpstreamUnreachable if self.is_upstream_down() => {
                "Repair the upstream, or the network to it. If both work, check the reconciler's \
                 --order-process-url, the token, and the detail."
            }
            Reason::UpstreamUnreachable if self.throttled(now).is_some() => {
                "The upstream answers all such requests with 429. If that does not end, raise its limit, or \
                 look in its log for this order: they are repeated with backoff."
            }
            Reason::UpstreamUnreachable => {
                "If it does not go away, look in the upstream's log for this order, and repair it \
                 there: its requests are repeated with backoff."
            }
            Reason::StartRefused => {
                "Find out in the upstream's log why it refuses, and repair it there: the order is \
                 retried with backoff."
            }
            Reason::UnknownStatus => {
                "Look at the process in the upstream. The statuses known here are RUNNING, SUCCEEDED \
                 and FAILED: repair the upstream, or upgrade this program."
            }
            Reason::ProcessLost | Reason::MaxStarts if attention.by == ResolvedBy::Itself => {
                return Vec::new();
            }
            Reason::ProcessLost => {
                "Find out, at the payment provider or the warehouse, whether the work was done, and \
                 decide then."
            }
            Reason::MaxStarts => {
                "Find out in the upstream's log what became of the starts: the order may bring the \
                 upstream down, the upstream may forget too often, or a proxy may answer for it. Then \
                 decide, or raise the reconciler's --max-starts."
            }
        };
        vec![advice.to_owned()]
    }

    fn commands(&self, invocation: &Invocation) -> Vec<Command> {
        let attention = self.order.attention.as_ref();
        let reason = attention.map(|attention| attention.reason);
        let restart = match reason {
            Some(Reason::StartRefused) => "Tries again without waiting for the backoff.",
            Some(Reason::MaxStarts) => "Starts it once more, whatever the limit.",
            _ if self.open.is_some_and(|open| open.is_lost()) => {
                "Starts it again, which repeats the work if it was done."
            }
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
        if self.order.status == Status::Processing && reason != Some(Reason::StartRefused) {
            commands.push(command("fail", "Settles it as FAILED, for ever."));
        }
        commands
    }

    /// Returns whether the policy would settle the order as FAILED if a poll had found its process.
    fn is_unobserved_under_fail(&self) -> bool {
        let is_fail = self.reconciler.policy == Some(LostProcess::Fail);
        is_fail && self.open.is_some_and(|open| !open.is_observed)
    }

    fn is_upstream_down(&self) -> bool {
        matches!(self.reconciler.upstream, UpstreamState::Down { .. })
    }
}

/// Returns a sentence about a journal entry with this reason.
fn meaning_of(reason: EventReason) -> &'static str {
    match reason {
        EventReason::Created => "It was created.",
        EventReason::Started => "Its process was started.",
        EventReason::Adopted => "A process that existed already was adopted.",
        EventReason::Restarted => "Its process was forgotten, and it was started again.",
        EventReason::Succeeded => "Its process succeeded.",
        EventReason::Failed => "Its process failed.",
        EventReason::FailedByPolicy => {
            "Its process was forgotten, and the policy --lost-process made it FAILED."
        }
        EventReason::FailedByOperator => {
            "Its process was forgotten, and an operator made it FAILED."
        }
    }
}

#[cfg(test)]
mod tests;
