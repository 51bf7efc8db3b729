//! The context that all passes share: everything that the reconciler acts on, the call of `decide`, and the
//! record of what follows.

use std::cell::Cell;

use super::metered::MeteredUpstream;
use super::{Report, Settings, Trace, order_log};
use crate::clock::SteadyClock;
use crate::decide::{Action, Observation, Occasion, OpenOrder, Policy, decide};
use crate::order::Timestamp;
use crate::store::{Leadership, OrderChange, Recorded, StartCandidate, Store, StoreError};

/// A decision about one order, and what it was based on.
#[derive(Clone, Copy, Debug)]
pub struct Decision<'a> {
    /// The order.
    pub order: &'a OpenOrder,
    /// The occasion of the decision.
    pub occasion: Occasion,
    /// The observation that it was based on, if there was one.
    pub observation: Option<&'a Observation>,
    /// The action to take.
    pub action: Action,
    /// Set if the order's intended start does not count any more, because no process was found.
    pub is_intent_discounted: bool,
}

/// The stages of starting an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Waits in the start queue.
    Queued,
    /// Its intent is being written.
    WritingIntent,
    /// Waits for a request slot.
    Ready,
    /// Waits for an answer.
    InFlight,
    /// Its result is being written; then nothing more is done about it for now.
    WritingResult,
    /// Nothing more is done about it for now.
    Done,
}

/// Receives the events inside the reconciler.
pub(super) type Hook = dyn Fn(Trace<'_>);

/// Everything that the reconciler acts on.
pub(super) struct Context<U, C> {
    pub store: Store,
    pub lead: Leadership,
    pub upstream: MeteredUpstream<U>,
    /// Corrected between passes only.
    pub clock: SteadyClock<C>,
    pub settings: Settings,
    /// See [`Policy::unrecorded_until`].
    pub unrecorded_until: Cell<Timestamp>,
    /// Moment at which the upstream was last found to have forgotten a process.
    pub process_forgotten_at: Cell<Option<Timestamp>>,
    pub hook: Option<Box<Hook>>,
}

impl<U, C> Context<U, C> {
    /// Decides about one order.
    pub fn decide<'a>(
        &self,
        order: &'a OpenOrder,
        occasion: Occasion,
        observation: Option<&'a Observation>,
        now: Timestamp,
    ) -> Decision<'a> {
        let policy = self.policy();
        let decision = Decision {
            order,
            occasion,
            observation,
            action: decide(order, occasion, observation, &policy, now),
            is_intent_discounted: order.is_intent_discounted(&policy),
        };
        if let Some(hook) = &self.hook {
            hook(Trace::Decided(&decision));
        }
        decision
    }

    /// Records changes in one transaction, counts them, and logs those that took effect.
    pub async fn record_changes(
        &self,
        changes: Vec<OrderChange>,
        now: Timestamp,
    ) -> Result<(Recorded, Report), StoreError> {
        let logged = order_log::is_enabled().then(|| changes.clone());
        let mut report = Report::of(&changes);
        let recorded = self.lead.record(changes, now).await?;
        report.conflicts = recorded.conflicts.len();
        for OrderChange { seq, transition } in logged.into_iter().flatten() {
            // Nothing was recorded of an order that had moved on.
            if !recorded.conflicts.contains(&seq) {
                order_log::log_transition(&self.store, seq, &transition, now).await;
            }
        }
        Ok((recorded, report))
    }

    /// Reports that an order has entered a stage of being started.
    pub fn enter(&self, stage: Stage, order: &StartCandidate) {
        if let Some(hook) = &self.hook {
            hook(Trace::Entered(stage, order));
        }
    }

    pub fn policy(&self) -> Policy {
        Policy {
            request_timeout: self.settings.request_timeout,
            max_starts: self.settings.max_starts,
            lost_process: self.settings.lost_process,
            unrecorded_until: self.unrecorded_until.get(),
            process_forgotten_at: self.process_forgotten_at.get(),
        }
    }
}
