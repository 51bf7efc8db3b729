//! The requests in flight, over as many passes as they take, and their answers.
//!
//! While an order has a start in flight, nothing else is decided about it. One with a look-up in flight is
//! neither looked up again nor started, but a list decides about it, too. No pass waits long for one answer,
//! and the first pass after it takes it.

use std::cell::RefCell;
use std::collections::{HashSet, VecDeque};
use std::future::poll_fn;
use std::hash::Hash;
use std::pin::pin;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::FuturesUnordered;

use super::observations::ListSnapshot;
use super::start_request::StartAnswer;
use crate::order::{Observed, Timestamp};
use crate::store::OpenOrders;
use crate::upstream::Failure;

/// Time for which a poll waits for the next answer. Nearly every answer has come by then, and is
/// processed before starts follow.
pub(super) const ANSWER_WAIT: Duration = Duration::from_secs(1);

/// The answer to a look-up, and the moment at which it was sent.
pub(super) type LookUpAnswer = (Timestamp, Result<Observed, Failure>);

/// A list that has ended, and its entries until then.
pub(super) struct ListAnswer {
    pub began_at: Timestamp,
    /// The orders that were open when the request began.
    pub orders: OpenOrders,
    pub snapshot: ListSnapshot,
    /// Number of entries, if it was complete.
    pub result: Result<u64, Failure>,
}

/// The requests in flight.
#[derive(Default)]
pub(super) struct Requests {
    /// The starts and look-ups for orders that are being started, by sequence number.
    pub for_starts: InFlight<i64, StartAnswer>,
    /// The look-ups of polls, by sequence number.
    pub look_ups: InFlight<i64, LookUpAnswer>,
    /// The look-ups that probe the upstream. They decide nothing about their orders.
    pub probes: InFlight<i64, LookUpAnswer>,
    /// The list, if one is being read.
    pub lists: InFlight<(), ListAnswer>,
}

impl Requests {
    /// Waits for `work`, and drives the requests meanwhile: whatever is waited for, they are sent at once,
    /// and their timeouts are their own.
    pub async fn drive_while<T>(&self, work: impl Future<Output = T>) -> T {
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
        // All of them, so without short circuit.
        self.for_starts.drive(cx)
            | self.look_ups.drive(cx)
            | self.probes.drive(cx)
            | self.lists.drive(cx)
    }

    /// Drives the requests until more than `seen` answers to lists, look-ups and probes wait to be taken,
    /// and returns their number.
    pub async fn poll_answered(&self, seen: usize) -> usize {
        poll_fn(|cx| {
            self.drive(cx);
            let look_ups = self.look_ups.answered() + self.probes.answered();
            let answered = look_ups + self.lists.answered();
            match answered > seen {
                true => Poll::Ready(answered),
                false => Poll::Pending,
            }
        })
        .await
    }

    /// Gives up all but the starts.
    pub fn clear_polls(&self) {
        self.look_ups.clear();
        self.probes.clear();
        self.lists.clear();
    }

    /// Returns whether this order has a start or a look-up in flight.
    pub fn contains(&self, seq: i64) -> bool {
        self.for_starts.contains(seq) || self.look_ups.contains(seq)
    }

    /// Returns the number of slots in use. A list takes none, because it may take minutes.
    pub fn slots_in_use(&self) -> usize {
        self.for_starts.unanswered() + self.look_ups.unanswered() + self.probes.unanswered()
    }
}

/// Requests of one kind, with a key each, and their answers. Dropping them gives the answers up.
pub(super) struct InFlight<K, T> {
    requests: RefCell<FuturesUnordered<LocalBoxFuture<'static, (K, T)>>>,
    /// The answers that were not taken yet.
    answers: RefCell<VecDeque<(K, T)>>,
    /// The keys of both.
    keys: RefCell<HashSet<K>>,
}

impl<K, T> Default for InFlight<K, T> {
    fn default() -> Self {
        Self {
            requests: RefCell::default(),
            answers: RefCell::default(),
            keys: RefCell::default(),
        }
    }
}

impl<K: Copy + Eq + Hash + 'static, T: 'static> InFlight<K, T> {
    /// Sends a request. There must be no other with its key.
    pub fn send(&self, key: K, request: impl Future<Output = T> + 'static) {
        let is_new = self.keys.borrow_mut().insert(key);
        debug_assert!(is_new, "one request at a time");
        let request = Box::pin(async move { (key, request.await) });
        self.requests.borrow_mut().push(request);
    }

    fn drive(&self, cx: &mut TaskContext<'_>) -> bool {
        let mut is_any_answered = false;
        while let Poll::Ready(Some(answer)) = self.requests.borrow_mut().poll_next_unpin(cx) {
            self.answers.borrow_mut().push_back(answer);
            is_any_answered = true;
        }
        is_any_answered
    }

    /// Takes the first answer to a request whose key `is_wanted`, if there is one.
    pub fn take(&self, is_wanted: impl Fn(K) -> bool) -> Option<(K, T)> {
        let mut answers = self.answers.borrow_mut();
        let index = answers.iter().position(|(key, _)| is_wanted(*key))?;
        let answer = answers.remove(index)?;
        self.keys.borrow_mut().remove(&answer.0);
        Some(answer)
    }

    /// Drives the requests to the next answer to one whose key `is_wanted`, and takes it.
    pub async fn next(&self, is_wanted: impl Fn(K) -> bool) -> (K, T) {
        poll_fn(|cx| {
            self.drive(cx);
            self.take(&is_wanted).map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    fn clear(&self) {
        self.requests.borrow_mut().clear();
        self.answers.borrow_mut().clear();
        self.keys.borrow_mut().clear();
    }

    /// Returns whether a request with this key has not been taken.
    pub fn contains(&self, key: K) -> bool {
        self.keys.borrow().contains(&key)
    }

    /// Returns the number of requests whose answer was not taken.
    pub fn len(&self) -> usize {
        self.keys.borrow().len()
    }

    /// Returns whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn answered(&self) -> usize {
        self.answers.borrow().len()
    }

    /// Returns the number of requests without an answer.
    pub fn unanswered(&self) -> usize {
        self.requests.borrow().len()
    }
}
