//! The report of a pass: the counts of what it did.

use std::ops::AddAssign;

use crate::order::Reason;
use crate::store::{OrderChange, Transition};

/// The counts of what a pass did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Orders that were polled, and those whose answer came after their poll.
    pub observed: usize,
    /// Processes started.
    pub started: usize,
    /// Processes found to exist already.
    pub adopted: usize,
    /// Processes started to replace one that the upstream has forgotten.
    pub restarted: usize,
    /// Orders whose process was newly found to be missing.
    pub missed: usize,
    /// Orders settled as FAILED because their process was forgotten.
    pub failed_by_policy: usize,
    /// Orders that reached FULFILLED or FAILED by the end of their process.
    pub settled: usize,
    /// Refused starts that left no process.
    pub refused: usize,
    /// Requests about starts without a usable answer.
    pub unanswered: usize,
    /// Orders that were newly found to need attention, or still do.
    pub flagged: usize,
    /// Orders whose changes had no effect, because they had moved on.
    pub conflicts: usize,
    /// Set if the next pass is due at once.
    pub has_more: bool,
    /// Set if a process was absent too soon after its confirmation for that to count.
    pub is_absence_early: bool,
    /// Set if the upstream gave no usable answer in the end, although one was needed.
    pub unreachable: bool,
}

impl Report {
    /// Returns the counts of these changes.
    pub(super) fn of(changes: &[OrderChange]) -> Self {
        let mut report = Self::default();
        for OrderChange { step, .. } in changes {
            match step {
                Transition::Started { .. } => report.started += 1,
                Transition::Restarted { .. } => report.restarted += 1,
                Transition::Adopted => report.adopted += 1,
                Transition::Settled(_) => report.settled += 1,
                Transition::Missed { .. } => report.missed += 1,
                Transition::FailedByPolicy => report.failed_by_policy += 1,
                Transition::Flagged(attention) => {
                    report.flagged += 1;
                    report.refused += usize::from(attention.reason == Reason::StartRefused);
                }
                Transition::Intended { .. }
                | Transition::Counted { .. }
                | Transition::Withdrawn
                | Transition::GivenUp { .. }
                | Transition::ProcessObserved
                | Transition::Delayed(_)
                | Transition::Postponed(_)
                | Transition::Cleared => {}
            }
        }
        report
    }

    /// Returns the counts of events, with their names.
    fn events(&self) -> [(&'static str, usize); 9] {
        [
            ("started", self.started),
            ("adopted", self.adopted),
            ("restarted", self.restarted),
            ("missed", self.missed),
            ("failed_by_policy", self.failed_by_policy),
            ("settled", self.settled),
            ("refused", self.refused),
            ("unanswered", self.unanswered),
            ("flagged", self.flagged),
        ]
    }

    /// Returns whether anything happened.
    pub(super) fn is_eventful(&self) -> bool {
        self.events().iter().any(|(_, count)| *count > 0)
    }

    /// Logs a line with the counts that are not 0, if anything happened. As JSON, the line has all of them
    /// as members.
    pub(super) fn log(&self) {
        if !self.is_eventful() {
            return;
        }
        log::info!(
            target: "order_service::pass",
            observed = self.observed, started = self.started, adopted = self.adopted,
            restarted = self.restarted, missed = self.missed,
            failed_by_policy = self.failed_by_policy, settled = self.settled,
            refused = self.refused, unanswered = self.unanswered, flagged = self.flagged,
            conflicts = self.conflicts;
            "{self}"
        );
    }
}

impl AddAssign for Report {
    fn add_assign(&mut self, other: Self) {
        // By name, so that no field is forgotten.
        let Self {
            observed,
            started,
            adopted,
            restarted,
            missed,
            failed_by_policy,
            settled,
            refused,
            unanswered,
            flagged,
            conflicts,
            has_more,
            is_absence_early,
            unreachable,
        } = other;
        self.observed += observed;
        self.started += started;
        self.adopted += adopted;
        self.restarted += restarted;
        self.missed += missed;
        self.failed_by_policy += failed_by_policy;
        self.settled += settled;
        self.refused += refused;
        self.unanswered += unanswered;
        self.flagged += flagged;
        self.conflicts += conflicts;
        self.has_more |= has_more;
        self.is_absence_early |= is_absence_early;
        self.unreachable |= unreachable;
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "observed={}", self.observed)?;
        let conflicts = ("conflicts", self.conflicts);
        for (name, count) in self.events().into_iter().chain([conflicts]) {
            if count > 0 {
                write!(f, " {name}={count}")?;
            }
        }
        Ok(())
    }
}
