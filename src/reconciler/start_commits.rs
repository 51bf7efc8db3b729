//! The commits of starting orders: many orders share one, and one is written at a time.
//!
//! `start.rs` chooses the changes and the stage that follows.

use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::LocalBoxFuture;

use super::Report;
use super::context::Context;
use crate::clock::Clock;
use crate::store::{OrderChange, Recorded, StartCandidate, Transition};
use crate::upstream::Upstream;

/// A start has to be sent within half a request timeout from the beginning of the commit of its intent. A
/// later one is withdrawn: the program may have been suspended meanwhile, and a leader whose run began just
/// after the intent counts its absence one request timeout later. The other half is for the way. A start
/// whose connection takes longer (three quarters at most) may come second, and is refused.
const SEND_DEADLINE_DIVISOR: u32 = 2;

/// Changes that are being written, or wait for it.
#[derive(Default)]
pub(super) struct StartCommits {
    /// Written with the next commit.
    changes: Vec<OrderChange>,
    /// The orders whose intents are among `changes`.
    intents: Vec<StartCandidate>,
    /// Being written. Changes that are added meanwhile share the next.
    commit: Option<Commit>,
}

struct Commit {
    intents: Vec<StartCandidate>,
    /// Uptime by which its starts have to be sent.
    send_by: Duration,
    done: LocalBoxFuture<'static, anyhow::Result<(Recorded, Report)>>,
}

/// The end of a commit.
pub(super) struct Committed {
    /// Orders whose intents are written.
    pub intents: Vec<StartCandidate>,
    /// Uptime by which their starts have to be sent.
    pub send_by: Duration,
    /// Orders whose intents are not written: they have moved on meanwhile, or the commit failed.
    pub dropped: Vec<StartCandidate>,
    /// The counts of what was written.
    pub report: Report,
    /// Reason why nothing was written.
    pub error: Option<anyhow::Error>,
}

impl StartCommits {
    /// Adds changes of an order to the next commit.
    pub fn add(&mut self, order: &StartCandidate, transitions: Vec<Transition>) {
        let seq = order.order.seq;
        let transitions = transitions.into_iter();
        self.changes
            .extend(transitions.map(|transition| OrderChange { seq, transition }));
    }

    /// Adds changes of an order, with the intent to start it, to the next commit.
    pub fn add_intent(&mut self, order: StartCandidate, transitions: Vec<Transition>) {
        self.add(&order, transitions);
        self.intents.push(order);
    }

    /// Begins to write the added changes, unless a commit is being written.
    pub fn begin<U: Upstream, C: Clock>(&mut self, context: &Rc<Context<U, C>>) {
        if self.commit.is_some() || self.changes.is_empty() {
            return;
        }
        let changes = std::mem::take(&mut self.changes);
        let intents = std::mem::take(&mut self.intents);
        let send_by =
            context.clock.uptime() + context.settings.request_timeout / SEND_DEADLINE_DIVISOR;
        let context = context.clone();
        let done = Box::pin(async move {
            let recorded = context.record_changes(changes, context.clock.now()).await;
            recorded.context("recording starts or their results failed")
        });
        self.commit = Some(Commit {
            intents,
            send_by,
            done,
        });
    }

    /// Waits for the end of the commit that is being written. Never returns if there is none.
    pub async fn next(&mut self) -> Committed {
        let result = match &mut self.commit {
            Some(commit) => (&mut commit.done).await,
            None => std::future::pending().await,
        };
        let (intents, send_by) = match self.commit.take() {
            Some(commit) => (commit.intents, commit.send_by),
            None => Default::default(),
        };
        match result {
            Ok((Recorded { conflicts, .. }, report)) => {
                // The decision does not hold for an order that has moved on meanwhile.
                let is_written = |order: &StartCandidate| !conflicts.contains(&order.order.seq);
                let (intents, dropped) = intents.into_iter().partition(is_written);
                Committed {
                    intents,
                    send_by,
                    dropped,
                    report,
                    error: None,
                }
            }
            Err(error) => Committed {
                intents: Vec::new(),
                send_by,
                dropped: intents,
                report: Report::default(),
                error: Some(error),
            },
        }
    }

    /// Returns whether no commit is being written.
    pub fn is_idle(&self) -> bool {
        self.commit.is_none()
    }

    /// Returns the number of orders whose intents are not written yet.
    pub fn intents(&self) -> usize {
        let committing = self
            .commit
            .as_ref()
            .map_or(0, |commit| commit.intents.len());
        self.intents.len() + committing
    }
}
