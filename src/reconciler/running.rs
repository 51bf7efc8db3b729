//! The number of processes that run, as far as polls show it.

use std::time::Duration;

use super::Reconciler;
use crate::clock::Clock;
use crate::decide::{Observation, OpenOrder, Phase, Policy};
use crate::order::{Observed, Timestamp};
use crate::store::{OpenOrders, StoreError};
use crate::upstream::Upstream;

impl<U: Upstream, C: Clock> Reconciler<U, C> {
    /// Returns the open orders that are not being started, and the number of processes of the others that
    /// run.
    pub(super) async fn orders_to_poll(
        &self,
        now: Timestamp,
    ) -> Result<(OpenOrders, u64), StoreError> {
        let orders = self.context.store.open_orders().await?;
        let targets = orders.targets().iter().enumerate();
        let to_poll = targets.filter(|(_, order)| !self.requests.for_starts.contains(order.seq));
        let to_poll: Vec<usize> = to_poll.map(|(index, _)| index).collect();
        Ok(self.split(orders, &to_poll, now))
    }

    /// Splits orders: returns those at these indexes, which are ascending, and the number of processes of the
    /// others that run.
    pub(super) fn split(
        &self,
        orders: OpenOrders,
        indexes: &[usize],
        now: Timestamp,
    ) -> (OpenOrders, u64) {
        if indexes.len() == orders.len() {
            return (orders, 0);
        }
        let chosen = orders.chosen(indexes);
        let others_running = self.count_running(&orders, now) - self.count_running(&chosen, now);
        (chosen, others_running)
    }

    /// Returns the number of these orders for which [`is_running`] is true.
    fn count_running(&self, orders: &OpenOrders, now: Timestamp) -> u64 {
        let stuck_threshold = self.pace.stuck_threshold();
        let running = orders
            .orders()
            .filter(|order| is_running(order, stuck_threshold, now));
        running.count() as u64
    }
}

/// Returns whether the order's process still runs after this observation, as far as is known, and is not
/// stuck.
pub(super) fn still_runs(
    order: &OpenOrder,
    observation: Option<&Observation>,
    policy: &Policy,
    stuck_threshold: Duration,
    now: Timestamp,
) -> bool {
    is_running(order, stuck_threshold, now)
        && !observation.is_some_and(|observation| is_over(order, observation, policy))
}

/// Returns whether the order has a process that runs, as far as is known, and is not stuck.
fn is_running(order: &OpenOrder, stuck_threshold: Duration, now: Timestamp) -> bool {
    match order.phase {
        Phase::Processing {
            confirmed_at,
            missed_at: None,
        } => now.since(confirmed_at) <= stuck_threshold,
        _ => false,
    }
}

/// Returns whether the observation shows that the order's process does not run any more.
fn is_over(order: &OpenOrder, observation: &Observation, policy: &Policy) -> bool {
    matches!(observation.observed, Observed::Succeeded | Observed::Failed)
        || order.is_missing_in(observation, policy)
}
