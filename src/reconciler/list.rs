//! The list of all processes, read in the background: it may take minutes, and no start and no look-up
//! waits for it.
//!
//! The observations of a list are in `observations.rs`. `look_ups.rs` has the other kind of poll.

use std::rc::Rc;

use super::context::Context;
use super::in_flight::{ANSWER_WAIT, ListAnswer};
use super::look_ups::LOOK_UPS_MAX;
use super::observations::{ListReader, Observations};
use super::{Reconciler, Report};
use crate::clock::Clock;
use crate::order::Timestamp;
use crate::pace::Call;
use crate::process::Stop;
use crate::store::OpenOrders;
use crate::upstream::{Entry, RequestKind, Upstream};

/// Reads a list, which is cut off at `until`.
async fn read<U: Upstream, C: Clock>(
    context: Rc<Context<U, C>>,
    orders: OpenOrders,
    until: Timestamp,
) -> ListAnswer {
    let began_at = context.clock.now();
    let mut reader = ListReader::new(&orders, began_at);
    let on_entry = |entry: Entry<'_>| reader.on_entry(&entry);
    let list = context.upstream.list(&context.clock, until, on_entry);
    let result = list.await;
    let snapshot = reader.end(result.is_ok());
    ListAnswer {
        began_at,
        orders,
        snapshot,
        result,
    }
}

impl<U: Upstream, C: Clock> Reconciler<U, C> {
    /// Requests a list and processes it, if it comes in [`ANSWER_WAIT`]. A longer list is read while starts
    /// are sent. While an earlier one is read, while the upstream pauses lists, and after one that was throttled,
    /// looks up some orders instead.
    pub(super) async fn observe_by_list(
        &mut self,
        orders: OpenOrders,
        others_running: u64,
        began_at: Timestamp,
        stop: &Stop,
    ) -> anyhow::Result<Report> {
        let breaker = self.pace.breaker();
        let paused_until = breaker.kind_paused_until(RequestKind::List, began_at);
        let was_throttled = std::mem::take(&mut self.was_list_throttled);
        if was_throttled || paused_until.is_some() || !self.requests.lists.is_empty() {
            let mut observations = Observations::new(orders, others_running);
            self.look_up_instead(&mut observations, stop).await;
            return self
                .process_observations(observations, began_at, stop)
                .await;
        }
        let until = began_at.after(self.pace.list_timeout());
        self.pace.on_poll_sent(began_at);
        let requests = self.requests.clone();
        let list = read(self.context.clone(), orders, until);
        requests.lists.send((), list);
        tokio::select! {
            biased;
            () = stop.requested.cancelled() => Ok(Report::default()),
            (_, list) = requests.lists.next(|_| true) => {
                self.on_list(list, others_running, stop).await
            }
            () = self.context.clock.deadline(began_at.after(ANSWER_WAIT)) => Ok(Report::default()),
        }
    }

    /// Processes the list that was completed since the last pass, if there is one. Reads the open orders
    /// again, because they may have changed since the list began.
    pub(super) async fn take_list(&mut self, stop: &Stop) -> anyhow::Result<Report> {
        let Some((_, mut answer)) = self.requests.lists.take(|_| true) else {
            return Ok(Report::default());
        };
        let (orders, others_running) = self.orders_to_poll(answer.began_at).await?;
        answer.snapshot = answer.snapshot.for_open_orders(&answer.orders, &orders);
        answer.orders = orders;
        self.on_list(answer, others_running, stop).await
    }

    /// Processes a list that has ended. If it failed, looks up some orders instead, so that orders
    /// make progress although no list ever works; if it was throttled, in the next poll, as the limit may be one
    /// of all requests.
    async fn on_list(
        &mut self,
        answer: ListAnswer,
        others_running: u64,
        stop: &Stop,
    ) -> anyhow::Result<Report> {
        let now = self.context.clock.now();
        let ListAnswer {
            began_at, result, ..
        } = answer;
        let call = Call {
            kind: RequestKind::List,
            ..Call::poll(began_at)
        };
        self.on_result(call, result.as_ref().err());
        let entries = result.as_ref().ok().copied();
        self.pace.on_list_ended(entries, now.since(began_at));
        let mut observations = Observations::new(answer.orders, others_running);
        observations.add_list(answer.snapshot, entries);
        if let Err(failure) = result
            && !self.pace.breaker().is_down()
        {
            log::warn!(
                "list failed; looking up orders instead reason={:?}",
                failure.detail
            );
            let breaker = self.pace.breaker();
            let paused_until = breaker.kind_paused_until(RequestKind::List, now);
            self.was_list_throttled = paused_until.is_some() && !self.is_once;
            if !self.was_list_throttled {
                self.look_up_instead(&mut observations, stop).await;
            }
        }
        let contradictions: Vec<_> = observations.contradictions().collect();
        if !contradictions.is_empty() {
            let orders = contradictions.len();
            log::debug!("the list contradicts itself; looking up its orders orders={orders}");
        }
        self.look_up_each(&mut observations, contradictions, LOOK_UPS_MAX, stop)
            .await;
        self.process_observations(observations, began_at, stop)
            .await
    }

    async fn look_up_instead(&mut self, observations: &mut Observations, stop: &Stop) {
        let all = (0..observations.orders.len()).collect();
        self.look_up_each(observations, all, LOOK_UPS_MAX, stop)
            .await;
    }
}
