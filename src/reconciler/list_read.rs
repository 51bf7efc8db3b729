//! The list of all processes, read in the background: it may take minutes, and no start and no look-up
//! waits for it.
//!
//! The observations of a list are in `observations.rs`.

use std::rc::Rc;

use futures_util::future::LocalBoxFuture;

use super::context::Context;
use super::observations::{ListReader, ListSnapshot};
use crate::clock::Clock;
use crate::order::Timestamp;
use crate::store::OpenOrders;
use crate::upstream::{Entry, Failure, Upstream};

/// A list request in flight, over as many passes as it takes. Dropping it cancels the request.
pub(super) struct ListRead {
    request: LocalBoxFuture<'static, ListAnswer>,
    answer: Option<ListAnswer>,
}

/// A list that has ended, and its entries until then.
pub(super) struct ListAnswer {
    pub began_at: Timestamp,
    /// The orders that were open when the request began.
    pub orders: OpenOrders,
    pub snapshot: ListSnapshot,
    /// Number of entries, if it was complete.
    pub result: Result<u64, Failure>,
}

impl ListRead {
    /// Requests a list, which is cut off at `until`.
    pub fn begin<U: Upstream, C: Clock>(
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
    pub fn take_answer(list: &mut Option<Self>) -> Option<ListAnswer> {
        list.take_if(|list| list.answer.is_some())?.answer
    }

    /// Reads the list, and returns when it has ended. Never returns if there is none, or if it had ended
    /// before.
    pub async fn read_to_end(list: &mut Option<Self>) {
        match list {
            Some(list) if list.answer.is_none() => {
                list.answer = Some((&mut list.request).await);
            }
            _ => std::future::pending().await,
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
