//! The changes that follow from a decision about one order. Pure: recording them is the caller's
//! business.

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
        Action::Adopt => steps.push(adopt(order, report)),
        Action::AdoptAndSettle(outcome) => {
            report.settled += 1;
            steps.extend([adopt(order, report), Step::Settled(outcome)]);
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
            steps.push(Step::FailedByPolicy);
        }
        Action::Flag(reason) => {
            report.flagged += 1;
            report.refused += usize::from(reason == Reason::StartRefused);
            let detail = flag_detail(order, reason, look, refusal);
            steps.push(Step::Flagged(trouble(order, id, reason, detail, now)));
        }
        Action::ClearAttention => steps.push(Step::Cleared),
    }
}

fn adopt(order: &OpenOrder, report: &mut Report) -> Step {
    match order.phase {
        Phase::Created => {
            report.adopted += 1;
            Step::Adopted
        }
        Phase::Processing { .. } => {
            report.restarted += 1;
            Step::Restarted { is_seen: true }
        }
    }
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
        (Reason::MaxStarts, _) => format!(
            "it may have been started {} times and is not started again",
            order.starts_so_far()
        ),
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
