//! The report of a pass: the counts of what it did.

use std::ops::AddAssign;

use crate::order::Reason;
use crate::store::{OrderChange, Transition};

/// Defines the report with these counts, so that none is forgotten in the log or in a sum.
macro_rules! report {
    ($($(#[$doc:meta])* $count:ident,)*) => {
        /// The counts of what a pass did.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Report {
            $($(#[$doc])* pub $count: usize,)*
            /// Set if the next pass is due at once.
            pub has_more: bool,
            /// Set if a process was absent too soon after its confirmation for that to count.
            pub is_absence_early: bool,
            /// Set if the upstream gave no usable answer in the end, although one was needed.
            pub unreachable: bool,
        }

        impl Report {
            /// Returns the counts with their names.
            fn counts(&self) -> [(&'static str, usize); 11] {
                [$((stringify!($count), self.$count)),*]
            }

            /// Logs a line with the counts that are not 0, if anything happened. As JSON, the line has all
            /// of them as members.
            pub(super) fn log(&self) {
                if self.is_eventful() {
                    log::info!(target: "order_service::pass", $($count = self.$count),*; "{self}");
                }
            }
        }

        impl AddAssign for Report {
            fn add_assign(&mut self, other: Self) {
                *self = Self {
                    $($count: self.$count + other.$count,)*
                    has_more: self.has_more | other.has_more,
                    is_absence_early: self.is_absence_early | other.is_absence_early,
                    unreachable: self.unreachable | other.unreachable,
                };
            }
        }
    };
}

report! {
    /// Orders that were polled, and those whose answer came after their poll.
    observed,
    /// Processes started.
    started,
    /// Processes found to exist already.
    adopted,
    /// Processes started to replace one that the upstream has forgotten.
    restarted,
    /// Orders whose process was newly found to be missing.
    missed,
    /// Orders settled as FAILED because their process was forgotten.
    failed_by_policy,
    /// Orders that reached FULFILLED or FAILED by the end of their process.
    settled,
    /// Refused starts that left no process.
    refused,
    /// Requests about starts without a usable answer.
    unanswered,
    /// Orders that were newly found to need attention, or still do.
    flagged,
    /// Orders whose changes had no effect, because they had moved on.
    conflicts,
}

impl Report {
    /// Returns the counts of these changes.
    pub(super) fn of(changes: &[OrderChange]) -> Self {
        let mut report = Self::default();
        for OrderChange { transition, .. } in changes {
            match transition {
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
                | Transition::Cleared => {}
            }
        }
        report
    }

    /// Returns whether anything happened.
    pub(super) fn is_eventful(&self) -> bool {
        let [_observed, events @ .., _conflicts] = self.counts();
        events.iter().any(|(_, count)| *count > 0)
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [(_, observed), others @ ..] = self.counts();
        write!(f, "observed={observed}")?;
        for (name, count) in others.into_iter().filter(|(_, count)| *count > 0) {
            write!(f, " {name}={count}")?;
        }
        Ok(())
    }
}
