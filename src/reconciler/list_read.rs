//! The list of all processes, read beside everything else: it may take minutes, and no start and no
//! single look waits for it.
//!
//! What a list says is kept in `observations.rs`.

use std::rc::Rc;

use futures_util::future::LocalBoxFuture;

use super::context::Context;
use super::observations::{ListReader, ListSnapshot};
use crate::clock::Clock;
use crate::order::Timestamp;
use crate::store::OpenOrders;
use crate::upstream::{Entry, Failure, Upstream};

/// A list that is being read, over as many passes as it takes. Dropping it ends the request.
pub(super) struct ListRead {
    reading: LocalBoxFuture<'static, ListAnswer>,
    answer: Option<ListAnswer>,
}

/// The end of a list, and what it has said until then.
pub(super) struct ListAnswer {
    pub began_at: Timestamp,
    /// The orders that were open when it began.
    pub orders: OpenOrders,
    pub snapshot: ListSnapshot,
    /// Number of entries, if it was complete.
    pub result: Result<u64, Failure>,
}

impl ListRead {
    /// Asks for a list, which is cut off at `until`.
    pub fn begin<U: Upstream, C: Clock>(
        context: Rc<Context<U, C>>,
        orders: OpenOrders,
        until: Timestamp,
    ) -> Self {
        let reading = async move {
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
            reading: Box::pin(reading),
            answer: None,
        }
    }

    /// Takes the list out if it is at its end.
    pub fn take_answer(list: &mut Option<Self>) -> Option<ListAnswer> {
        list.take_if(|list| list.answer.is_some())?.answer
    }

    /// Reads on, and returns when the list is at its end. Never returns if there is none, or its end
    /// was reached before.
    pub async fn read_on(list: &mut Option<Self>) {
        match list {
            Some(list) if list.answer.is_none() => {
                list.answer = Some((&mut list.reading).await);
            }
            _ => std::future::pending().await,
        }
    }

    /// Waits for `work`, and reads on meanwhile.
    pub async fn beside<T>(list: &mut Option<Self>, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        tokio::select! {
            biased;
            done = &mut work => done,
            () = Self::read_on(list) => work.await,
        }
    }
}
