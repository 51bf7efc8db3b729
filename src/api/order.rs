//! Single orders: read, explain, and wait until settled. They are created in `api/create.rs`.
//!
//! A waiting request holds a connection and a slot for long answers. Once it is registered, it reads the
//! order. It reads it again when it is woken, when its wait is over, or at shutdown, whichever comes first.

use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;
use warp::http::header::{HeaderName, HeaderValue, RETRY_AFTER};
use warp::http::{HeaderMap, StatusCode};
use warp::reply::Response;

use super::problem::{Problem, store_problem};
use super::request::{self, Wait};
use super::{Api, json, json_answer};
use crate::clock::Clock;
use crate::explain::Explanation;
use crate::order::{Order, Status, Timestamp};
use crate::store::OrderView;

/// Response header with the wait that was applied (RFC 7240, section 3).
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

impl Api {
    /// `GET /order/{id}`: an order, optionally once it is settled.
    pub(super) async fn get(
        &self,
        segment: &str,
        query: &str,
        headers: &HeaderMap,
    ) -> Result<Response, Problem> {
        request::no_parameters(query)?;
        let id = request::id_in_path(segment)?;
        let clock = &self.store.clock();
        let found = self.order_store.find(&id).await.map_err(store_problem)?;
        let found = found.ok_or_else(|| Problem::no_such_order(id.as_str()))?;
        let wait = Wait::of(headers);
        let found = match wait {
            None => found,
            Some(wait) => self.settled_within(found, wait).await?,
        };
        Ok(response(StatusCode::OK, &found, wait, clock))
    }

    /// `GET /order/{id}/explain`: the order and its journal, as of one moment.
    pub(super) async fn explain(&self, segment: &str, query: &str) -> Result<Response, Problem> {
        request::no_parameters(query)?;
        let id = request::id_in_path(segment)?;
        let now = self.store.clock().now();
        let found = self.change_feed.reads().details(&id, now).await;
        let found = found.map_err(store_problem)?;
        let details = found.ok_or_else(|| Problem::no_such_order(id.as_str()))?;
        let explanation = details.explain(now, &self.invocation);
        let order = &details.order;
        let explained = Explained { order, explanation };
        Ok(json_answer(StatusCode::OK, &explained))
    }

    /// Returns an order as it is now, with the time of its next poll; as it was if it cannot be read.
    pub(super) async fn current(&self, order: Order) -> OrderView {
        let found = self.order_store.find(&order.id).await;
        let found = found.ok().flatten();
        found.unwrap_or_else(|| OrderView::new(order))
    }

    /// Returns the order once it is settled, once `wait` is over, or at shutdown.
    pub(super) async fn settled_within(
        &self,
        found: OrderView,
        wait: Wait,
    ) -> Result<OrderView, Problem> {
        let until = Instant::now() + wait.duration();
        let is_over = wait.duration().is_zero() || self.draining.is_cancelled();
        if found.order.status.is_settled() || is_over {
            return Ok(found);
        }
        let slot = self.connections.long_answer();
        let _slot = slot.ok_or_else(Problem::too_many_waiting)?;
        let Order { id, seq, .. } = found.order;
        let store = self.change_feed.reads();
        let find = async || {
            let found = store.find(&id).await.map_err(store_problem)?;
            found.ok_or_else(|| Problem::no_such_order(id.as_str()))
        };
        let newest_event = store.newest_event().await.map_err(store_problem)?;
        let mut waiter = self.change_feed.wait_for(seq, newest_event);
        // The order may have been settled before the waiter was registered.
        let found = find().await?;
        if found.order.status.is_settled() {
            return Ok(found);
        }
        tokio::select! {
            () = waiter.settled() => {}
            () = self.draining.cancelled() => {}
            () = tokio::time::sleep_until(until) => {}
        }
        find().await
    }
}

/// Body of an explained order.
#[derive(Serialize)]
struct Explained<'a> {
    order: &'a Order,
    #[serde(flatten)]
    explanation: Explanation,
}

/// Returns the response for a single order; with the status 409, the problem that it exists. `wait` is the
/// preference that was applied.
pub(super) fn response(
    status: StatusCode,
    found: &OrderView,
    wait: Option<Wait>,
    clock: &impl Clock,
) -> Response {
    let mut response = match status {
        StatusCode::CONFLICT => Problem::order_exists(found.order.clone()).reply(),
        _ => super::json_bytes(status, json::order(&found.order)),
    };
    let headers = response.headers_mut();
    if let Some(seconds) = retry_after(&found.order, found.next_poll_at, clock) {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let Some(wait) = wait {
        headers.insert(PREFERENCE_APPLIED, wait.applied());
    }
    response
}

/// Maximum `Retry-After`. An order may wait for a schedule that runs once a year, but an operator
/// may restart it earlier, and stored times may be ahead of the clock.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// Returns the delay in seconds, at least 1, after which a client should read the order again:
/// after the reconciler's next poll of it. `None` once the order is settled.
fn retry_after(order: &Order, next_poll_at: Option<Timestamp>, clock: &impl Clock) -> Option<u64> {
    let own = order.attention.as_ref().map(|a| a.next_attempt_at);
    let at = match (order.status, own) {
        (status, _) if status.is_settled() => return None,
        // An order that waits for its start does not depend on the schedule: it is started as soon as the
        // pace allows. That may be later, such as after a pause that the upstream has asked for, but an
        // early read costs the upstream nothing.
        (Status::Created, None) => None,
        // An order is polled only during a pass, whatever its own delay.
        (_, own) => next_poll_at.max(own.flatten()),
    };
    let wait = at.map_or(Duration::ZERO, |at| at.since(clock.now()));
    let wait = wait.min(RETRY_AFTER_MAX);
    Some((wait.as_millis().div_ceil(1_000) as u64).max(1))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use futures_util::future::join_all;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::clock::ManualClock;
    use crate::order::{Attention, OrderId, Reason, ResolvedBy};
    use crate::server::ConnectionStats;
    use crate::site::Site;
    use crate::store::{Cursor, DatabaseUrl, Mode, Store};

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_wait_ends_in_time_while_events_are_published() {
        let folder = tempfile::tempdir().unwrap();
        let url = DatabaseUrl::from(folder.path().join("orders.db"));
        let store = Store::open(&url, Mode::Threaded).unwrap();
        let site = Site::new(Ipv4Addr::LOCALHOST.into(), &[]);
        let connections = ConnectionStats::within(usize::MAX);
        let api = Api::new(store.clone(), site, connections, CancellationToken::new());
        let create = move |n: u64| {
            let (store, id) = (store.clone(), OrderId::new(format!("a{n}")).unwrap());
            async move { store.create(id, Timestamp(1)).await.unwrap() }
        };
        join_all((0..1_000).map(&create)).await;
        let mut stream = api.change_feed.subscribe(Cursor::default());
        // The reads of waiting requests queue for longer than the time between two events.
        for _ in 0..100 {
            let reads = api.change_feed.reads().clone();
            tokio::spawn(async move {
                while reads.events(None, Cursor::default(), 1_000).await.is_ok() {}
            });
        }
        tokio::spawn(async move {
            for n in 1_000.. {
                create(n).await;
            }
        });
        while stream.borrow_and_update().last.seq <= 1_000 {
            stream.changed().await.unwrap();
        }
        let headers = HeaderMap::from_iter([(
            HeaderName::from_static("prefer"),
            HeaderValue::from_static("wait=1"),
        )]);
        let answer = api.get("a0", "", &headers);
        let answer = tokio::time::timeout(Duration::from_secs(5), answer).await;
        let answer = answer.expect("the wait ends").unwrap();
        assert_eq!(answer.headers()[PREFERENCE_APPLIED], "wait=1");
    }

    #[test]
    fn retry_after_is_the_time_of_the_next_poll_of_an_open_order() {
        let order = |status, next_attempt_at: Option<Option<i64>>| Order {
            seq: 1,
            id: OrderId::new("a1").unwrap(),
            status,
            created_at: Timestamp(0),
            updated_at: Timestamp(0),
            starts: 0,
            attention: next_attempt_at.map(|at| Attention {
                reason: Reason::StartRefused,
                by: ResolvedBy::Itself,
                since: Timestamp(0),
                detail: String::new(),
                next_attempt_at: at.map(Timestamp),
            }),
        };
        let now = 1_000_000;
        let clock = ManualClock::new(Timestamp(now));
        for (status, own, next_poll_at, seconds) in [
            // Started as soon as possible, whatever the schedule.
            (Status::Created, None, Some(now + 60_000), Some(1)),
            (Status::Created, None, None, Some(1)),
            // Polled in the next pass, which may be overdue.
            (Status::Processing, None, Some(now + 60_000), Some(60)),
            (Status::Processing, None, Some(now + 1), Some(1)),
            (Status::Processing, None, Some(now + 1_001), Some(2)),
            (Status::Processing, None, Some(now - 5_000), Some(1)),
            (Status::Processing, None, None, Some(1)),
            // The order's own delay applies if it is longer.
            (
                Status::Created,
                Some(now + 90_000),
                Some(now + 60_000),
                Some(90),
            ),
            (
                Status::Created,
                Some(now + 5_000),
                Some(now + 60_000),
                Some(60),
            ),
            (Status::Processing, Some(now + 90_000), None, Some(90)),
            // The delay is capped.
            (Status::Processing, None, Some(now + 300_000), Some(300)),
            (Status::Processing, None, Some(now + 21_600_000), Some(300)),
            (
                Status::Created,
                Some(now + 21_600_000),
                Some(now + 1_000),
                Some(300),
            ),
            (Status::Fulfilled, None, Some(now + 60_000), None),
            (Status::Failed, None, None, None),
        ] {
            let order = order(status, own.map(Some));
            let found = retry_after(&order, next_poll_at.map(Timestamp), &clock);
            assert_eq!(found, seconds, "{order:?} {next_poll_at:?}");
        }
        let held = order(Status::Created, Some(None));
        let found = retry_after(&held, Some(Timestamp(now + 60_000)), &clock);
        assert_eq!(found, Some(60), "an operator may restart it at any time");
    }
}
