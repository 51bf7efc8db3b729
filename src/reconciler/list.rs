//! The list of all processes, read in the background: it may take minutes, and no start and no look-up
//! waits for it.
//!
//! The observations of a list are in `observations.rs`. `observe.rs` polls by look-ups.

use std::rc::Rc;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;

use super::absences::CONFIRM_MAX;
use super::context::Context;
use super::observations::{ListReader, ListSnapshot, Observations};
use super::{Reconciler, Report};
use crate::clock::Clock;
use crate::order::Timestamp;
use crate::pace::Call;
use crate::process::Stop;
use crate::store::OpenOrders;
use crate::upstream::{Entry, Failure, Upstream};

/// Time for which starts wait for a list. Nearly every list is complete by then.
pub(super) const LIST_HEAD_START: Duration = Duration::from_secs(1);

/// Number of orders that are looked up in one pass while no list can be used.
const INSTEAD_OF_LIST_MAX: usize = 500;

/// A list request in flight, over as many passes as it takes. Dropping it cancels the request.
pub(super) struct ListRead {
    request: LocalBoxFuture<'static, ListAnswer>,
    answer: Option<ListAnswer>,
}

/// A list that has ended, and its entries until then.
struct ListAnswer {
    began_at: Timestamp,
    /// The orders that were open when the request began.
    orders: OpenOrders,
    snapshot: ListSnapshot,
    /// Number of entries, if it was complete.
    result: Result<u64, Failure>,
}

impl ListRead {
    /// Requests a list, which is cut off at `until`.
    fn begin<U: Upstream, C: Clock>(
        context: Rc<Context<U, C>>,
        orders: OpenOrders,
        until: Timestamp,
    ) -> Self {
        let request = async move {
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
        };
        Self {
            request: Box::pin(request),
            answer: None,
        }
    }

    /// Takes the answer out of `list` if the list has ended.
    fn take_answer(list: &mut Option<Self>) -> Option<ListAnswer> {
        list.take_if(|list| list.answer.is_some())?.answer
    }

    /// Reads the list, and returns when it has ended. Never returns if there is none.
    pub async fn read_to_end(list: &mut Option<Self>) {
        match list {
            Some(list) if list.answer.is_some() => {}
            Some(list) => list.answer = Some((&mut list.request).await),
            None => std::future::pending().await,
        }
    }

    /// Waits for `work`, and reads the list meanwhile.
    pub async fn while_reading<T>(list: &mut Option<Self>, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        tokio::select! {
            biased;
            done = &mut work => done,
            () = Self::read_to_end(list) => work.await,
        }
    }
}

impl<U: Upstream, C: Clock> Reconciler<U, C> {
    /// Requests a list and processes it, if it comes soon. While an earlier one is read, looks up some
    /// orders instead.
    ///
    /// A list has a head start of [`LIST_HEAD_START`], so that its observations nearly always come before
    /// the next starts. A longer list is read while starts are sent and some orders are looked up.
    pub(super) async fn observe_by_list(
        &mut self,
        orders: OpenOrders,
        began_at: Timestamp,
        stop: &Stop,
    ) -> anyhow::Result<Report> {
        if self.list.is_some() {
            let mut observations = Observations::new(orders);
            self.look_up_instead(&mut observations, stop).await;
            return self
                .process_observations(observations, began_at, 0, stop)
                .await;
        }
        let until = began_at.after(self.pace.list_timeout());
        self.pace.on_poll_sent(began_at);
        self.list = Some(ListRead::begin(self.context.clone(), orders, until));
        tokio::select! {
            biased;
            () = stop.requested.cancelled() => {}
            () = ListRead::read_to_end(&mut self.list) => {}
            () = self.context.clock.deadline(began_at.after(LIST_HEAD_START)) => {}
        }
        match ListRead::take_answer(&mut self.list) {
            Some(answer) => self.on_list(answer, stop).await,
            None => Ok(Report::default()),
        }
    }

    /// Processes the list that was completed since the last pass, if there is one. Reads the open orders
    /// again, because they may have changed since the list began.
    pub(super) async fn take_list(&mut self, stop: &Stop) -> anyhow::Result<Report> {
        let Some(mut answer) = ListRead::take_answer(&mut self.list) else {
            return Ok(Report::default());
        };
        let orders = self
            .in_flight
            .others(self.context.store.open_orders().await?);
        answer.snapshot = answer.snapshot.for_open_orders(&answer.orders, &orders);
        answer.orders = orders;
        self.on_list(answer, stop).await
    }

    /// Processes a list that has ended. If it failed, looks up some orders instead, so that orders
    /// make progress although no list ever works.
    async fn on_list(&mut self, answer: ListAnswer, stop: &Stop) -> anyhow::Result<Report> {
        let now = self.context.clock.now();
        let ListAnswer {
            began_at, result, ..
        } = answer;
        self.on_result(Call::poll(began_at), result.as_ref().err());
        let entries = result.as_ref().ok().copied();
        self.pace.on_list_ended(entries, now.since(began_at));
        let mut observations = Observations::new(answer.orders);
        observations.add_list(answer.snapshot, entries);
        if let Err(failure) = result
            && !self.pace.breaker().is_down()
        {
            log::warn!(
                "list failed; looking up orders instead reason={:?}",
                failure.detail
            );
            self.look_up_instead(&mut observations, stop).await;
        }
        let contradictions: Vec<_> = observations.contradictions().collect();
        self.on_contradictions(contradictions.len());
        self.look_up_some(&mut observations, contradictions, CONFIRM_MAX, stop)
            .await;
        self.process_observations(observations, began_at, 0, stop)
            .await
    }

    async fn look_up_instead(&mut self, observations: &mut Observations, stop: &Stop) {
        let all = (0..observations.orders.len()).collect();
        self.look_up_some(observations, all, INSTEAD_OF_LIST_MAX, stop)
            .await;
    }

    /// Looks up those of these orders that are due and were not observed, `limit` of them at most.
    pub(super) async fn look_up_some(
        &mut self,
        observations: &mut Observations,
        mut waiting: Vec<usize>,
        limit: usize,
        stop: &Stop,
    ) {
        let now = self.context.clock.now();
        waiting.retain(|&at| observations.is_unobserved(at, now));
        // Beyond the limit, begin at another order each time, so that none is left out for ever.
        if waiting.len() > limit {
            let from = now.0.unsigned_abs() as usize % waiting.len();
            waiting.rotate_left(from);
            waiting.truncate(limit);
            observations.is_complete = false;
        }
        self.look_up_each(observations, waiting, stop).await;
    }
}
