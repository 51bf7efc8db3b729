//! The creation of an order.
//!
//! The response comes once the order is on disk. Single orders are read in `api/order.rs`.

use bytes::Buf;
use futures_util::Stream;
use warp::http::header::LOCATION;
use warp::http::{HeaderMap, StatusCode};
use warp::reply::Response;

use super::order::response;
use super::problem::{Problem, store_problem};
use super::request::{self, Wait};
use super::{Api, json};
use crate::clock::Clock;
use crate::store::{Creation, OrderView};

impl Api {
    /// `POST /order`: creates an order, and optionally waits until it is settled, new or not.
    pub(super) async fn create<B: Buf>(
        &self,
        query: &str,
        headers: &HeaderMap,
        body: impl Stream<Item = Result<B, warp::Error>>,
    ) -> Result<Response, Problem> {
        request::no_parameters(query)?;
        request::is_json(headers)?;
        let body = request::read_body(headers, body).await?;
        let id = request::new_order(&body)?;
        let clock = &self.store.clock();
        let created = self.store.create(id, clock.now()).await;
        let (status, found) = match created.map_err(store_problem)? {
            Creation::Created(order) => (StatusCode::CREATED, OrderView::new(order)),
            Creation::Exists(order) => (StatusCode::CONFLICT, self.current(order).await),
        };
        // The order exists, so the status is the same even if waiting fails. Without a free slot the
        // request does not wait, and the response has no `Preference-Applied`.
        let wait = Wait::of(headers);
        let waited = match wait {
            Some(wait) => self.settled_within(found.clone(), wait).await.ok(),
            None => None,
        };
        let wait = wait.filter(|_| waited.is_some());
        let found = waited.unwrap_or(found);
        let mut answer = response(status, &found, wait, clock);
        let location = json::location(&found.order.id);
        answer.headers_mut().insert(LOCATION, location);
        Ok(answer)
    }
}
