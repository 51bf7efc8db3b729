//! The requests in flight for orders that are being started, and their answers.

use std::cell::RefCell;
use std::collections::{HashSet, VecDeque};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context as TaskContext, Poll};

use futures_util::StreamExt;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::FuturesUnordered;

use super::context::Context;
use crate::clock::Clock;
use crate::decide::Observation;
use crate::pace::Call;
use crate::process::Stop;
use crate::store::{OpenOrders, StartCandidate};
use crate::upstream::{Failure, Upstream};

/// A request to the upstream for one order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// A look-up.
    LookUp,
    /// A start, whose intent is on disk.
    Start,
}

/// The upstream's answer to a request.
#[derive(Debug)]
pub(super) enum Answer {
    /// The answer to a look-up.
    Observed(Observation),
    /// The failure of a look-up.
    NotObserved(Failure),
    /// The start was accepted, or a look-up has found the process.
    Accepted { is_observed: bool },
    /// The start had no effect: it cannot have reached the upstream, or was answered 429.
    WithoutEffect(Failure),
    /// The start may have taken effect. `answer` is the HTTP status of the answer, if there was one.
    Ambiguous {
        answer: Option<u16>,
        failure: Failure,
    },
    /// The start was refused, perhaps because there is a process: `observation` is by a look-up after it.
    Refused {
        detail: String,
        observation: Observation,
    },
}

/// An order, the request that was sent for it, and the answer.
type Answered = (StartCandidate, Call, Answer);

/// The requests in flight for orders that are being started, over as many passes as they take. Until the
/// answer to its request was taken, nothing else is decided about an order. Dropping them gives the answers up.
#[derive(Default)]
pub(super) struct StartRequests {
    requests: RefCell<FuturesUnordered<LocalBoxFuture<'static, Answered>>>,
    /// The answers that were not taken yet.
    answered: RefCell<VecDeque<Answered>>,
    /// The orders of both.
    seqs: RefCell<HashSet<i64>>,
}

impl StartRequests {
    /// Sends a request.
    pub fn send<U: Upstream, C: Clock>(
        &self,
        context: Rc<Context<U, C>>,
        request: Request,
        order: StartCandidate,
        stop: Stop,
    ) {
        self.seqs.borrow_mut().insert(order.order.seq);
        let call = Call {
            is_start: request == Request::Start,
            sent_at: context.clock.now(),
        };
        self.requests.borrow_mut().push(Box::pin(async move {
            let answer = context.send(request, &order, &stop).await;
            (order, call, answer)
        }));
    }

    /// Waits for `work`, and drives the requests meanwhile: whatever is waited for, they are sent at once,
    /// and their timeouts are their own.
    pub async fn while_driven<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        poll_fn(|cx| {
            self.drive(cx);
            loop {
                let done = work.as_mut().poll(cx);
                let is_any_answered = self.drive(cx);
                if done.is_ready() || !is_any_answered {
                    return done;
                }
            }
        })
        .await
    }

    /// Drives the requests. Returns whether any was answered.
    fn drive(&self, cx: &mut TaskContext<'_>) -> bool {
        let mut is_any_answered = false;
        while let Poll::Ready(Some(answered)) = self.requests.borrow_mut().poll_next_unpin(cx) {
            self.answered.borrow_mut().push_back(answered);
            is_any_answered = true;
        }
        is_any_answered
    }

    /// Drives the requests to the next answer.
    pub async fn next(&self) -> Answered {
        let next = poll_fn(|cx| {
            self.drive(cx);
            let answered = self.answered.borrow_mut().pop_front();
            answered.map_or(Poll::Pending, Poll::Ready)
        });
        let answered = next.await;
        self.seqs.borrow_mut().remove(&answered.0.order.seq);
        answered
    }

    /// Returns those of these orders for which there is none.
    pub fn others(&self, orders: OpenOrders) -> OpenOrders {
        let seqs = self.seqs.borrow();
        if seqs.is_empty() {
            return orders;
        }
        let targets = orders.targets().iter().enumerate();
        let others = targets.filter(|(_, order)| !seqs.contains(&order.seq));
        let others: Vec<usize> = others.map(|(index, _)| index).collect();
        orders.chosen(&others)
    }

    /// Returns the number of those whose answer was not taken.
    pub fn len(&self) -> usize {
        self.seqs.borrow().len()
    }

    /// Returns whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
