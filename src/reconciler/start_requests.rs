//! The requests in flight for orders that are being started, and their answers.

use std::collections::HashSet;
use std::rc::Rc;

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
    NotSent(Failure),
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
/// answer to its request has been taken out, nothing else is decided about an order. Dropping them gives
/// the answers up.
#[derive(Default)]
pub(super) struct StartRequests {
    requests: FuturesUnordered<LocalBoxFuture<'static, Answered>>,
    seqs: HashSet<i64>,
}

impl StartRequests {
    /// Sends a request.
    pub fn send<U: Upstream, C: Clock>(
        &mut self,
        context: Rc<Context<U, C>>,
        request: Request,
        order: StartCandidate,
        stop: Stop,
    ) {
        self.seqs.insert(order.order.seq);
        let call = Call {
            is_start: request == Request::Start,
            sent_at: context.clock.now(),
        };
        self.requests.push(Box::pin(async move {
            let answer = context.send(request, &order, &stop).await;
            (order, call, answer)
        }));
    }

    /// Waits for the next answer. Returns `None` at once if there is no request.
    pub async fn next(&mut self) -> Option<Answered> {
        let answered = self.requests.next().await?;
        self.seqs.remove(&answered.0.order.seq);
        Some(answered)
    }

    /// Returns those of these orders for which there is none.
    pub fn others(&self, orders: OpenOrders) -> OpenOrders {
        if self.is_empty() {
            return orders;
        }
        let targets = orders.targets().iter().enumerate();
        let others = targets.filter(|(_, order)| !self.seqs.contains(&order.seq));
        let others: Vec<usize> = others.map(|(index, _)| index).collect();
        orders.chosen(&others)
    }

    /// Returns their number.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Returns whether there is none.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }
}
