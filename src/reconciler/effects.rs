//! The changes that follow from a decision about one order. No I/O: the caller records them.

use super::Report;
use crate::decide::{Action, Look, Occasion, OpenOrder, Phase};
use crate::order::{Observed, Reason, Timestamp};
use crate::pace::backoff;
use crate::store::{Step, Trouble};

/// A decision about one order, and what it was based on.
#[derive(Clone, Copy, Debug)]
pub struct Decision<'a> {
    /// The order.
    pub order: &'a OpenOrder,
    /// Why it was decided about.
    pub occasion: Occasion,
    /// What was observed, if anything was.
    pub look: Option<&'a Look>,
    /// What is to be done.
    pub action: Action,
    /// Set if the start that the order intended counts no longer once no process is found.
    pub is_intent_cleared: bool,
}

/// Adds the steps of a decision, and counts them in the report. `refusal` is what the upstream said
/// when it refused the order's start.
pub(super) fn apply(
    decision: &Decision<'_>,
    id: &str,
    refusal: Option<&str>,
    now: Timestamp,
    report: &mut Report,
    steps: &mut Vec<Step>,
) {
    let Decision { order, look, .. } = *decision;
    match decision.action {
        Action::Wait | Action::Start | Action::LookUp => {}
        Action::Adopt => adopt(order, report, steps),
        Action::AdoptAndSettle(outcome) => {
            report.settled += 1;
            adopt(order, report, steps);
            steps.push(Step::Settled(outcome));
        }
        Action::Settle(outcome) => {
            report.settled += 1;
            steps.push(Step::Settled(outcome));
        }
        Action::NoteSeen => steps.push(Step::Seen),
        Action::MarkMissing => {
            report.missed += 1;
            let began_at = look.map_or(now, |look| look.began_at);
            steps.push(Step::Missed { began_at });
        }
        Action::Fail => {
            report.failed_by_policy += 1;
            steps.extend(intent_cleared(decision));
            steps.push(Step::FailedByPolicy);
        }
        Action::Flag(reason) => {
            report.flagged += 1;
            report.refused += usize::from(reason == Reason::StartRefused);
            steps.extend(intent_cleared(decision));
            let detail = flag_detail(order, reason, look, refusal);
            steps.push(Step::Flagged(trouble(order, id, reason, detail, now)));
        }
        Action::ClearAttention => steps.push(Step::Cleared),
    }
}

/// A process was found: a start that did not count any more has taken effect after all.
fn adopt(order: &OpenOrder, report: &mut Report, steps: &mut Vec<Step>) {
    let uncounted = order.intent.filter(|_| !order.is_intent_counted());
    steps.extend(uncounted.map(|intent| Step::Counted {
        written_at: intent.written_at,
        is_counted: true,
    }));
    steps.push(match order.phase {
        Phase::Created => {
            report.adopted += 1;
            Step::Adopted
        }
        Phase::Processing { .. } => {
            report.restarted += 1;
            Step::Restarted { is_seen: true }
        }
    });
}

/// The step of taking the start that an order intended off the count, if that is so. No process was
/// found.
pub(super) fn intent_cleared(decision: &Decision<'_>) -> Option<Step> {
    let cleared = decision.order.intent;
    let cleared = cleared.filter(|_| decision.is_intent_cleared)?;
    Some(Step::Counted {
        written_at: cleared.written_at,
        is_counted: false,
    })
}

fn flag_detail(
    order: &OpenOrder,
    reason: Reason,
    look: Option<&Look>,
    refusal: Option<&str>,
) -> String {
    match (reason, look.map(|look| &look.observed)) {
        (Reason::UnknownStatus, Some(Observed::Unrecognised(word))) => {
            format!("its process has the status {word:?}, which this program does not know")
        }
        (Reason::ProcessLost, _) => {
            "the upstream does not know its process any more; it may or may not have done its work"
                .to_owned()
        }
        (Reason::MaxStarts, _) => match order.starts {
            1 => "it may have been started once and is not started again".to_owned(),
            n => format!("it may have been started {n} times and is not started again"),
        },
        (reason, _) => match refusal {
            Some(refusal) => refusal.to_owned(),
            None => reason.as_str().replace('_', " "),
        },
    }
}

/// A trouble of this order, and the moment of its next attempt.
pub(super) fn trouble(
    order: &OpenOrder,
    id: &str,
    reason: Reason,
    detail: String,
    now: Timestamp,
) -> Trouble {
    Trouble {
        reason,
        detail,
        next_attempt_at: now.after(backoff(id, order.attempts + 1)),
    }
}
