//! The creation of an order.
//!
//! The response comes once the order is on disk. Single orders are read in `api/order.rs`.

use bytes::Buf;
use futures_util::Stream;
use warp::http::header::LOCATION;
use warp::http::{HeaderMap, StatusCode};
use warp::reply::Response;

use super::order::{after_wait, response};
use super::problem::{Problem, store_problem};
use super::request::{self, Wait};
use super::{Api, json};
use crate::clock::Clock;
use crate::store::{Creation, OrderView};

impl Api {
    /// `POST /order`: creates an order, and optionally waits until it is settled.
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
        let order = match self.store.create(id, clock.now()).await {
            Ok(Creation::Created(order)) => order,
            Ok(Creation::Exists(order)) => return Err(Problem::order_exists(order)),
            Err(error) => return Err(store_problem(error)),
        };
        let location = json::location(&order.id);
        let next_poll_at = None;
        let created = OrderView {
            order,
            next_poll_at,
        };
        // The order exists, so the response is 201 even if waiting fails. Without a free slot the
        // request does not wait, and the response has no `Preference-Applied`.
        let mut answer = match Wait::of(headers) {
            None => response(StatusCode::CREATED, &created, clock),
            Some(wait) => match self.settled_within(created.clone(), wait).await {
                Ok(found) => after_wait(StatusCode::CREATED, &found, wait, clock),
                Err(_) => response(StatusCode::CREATED, &created, clock),
            },
        };
        answer.headers_mut().insert(LOCATION, location);
        Ok(answer)
    }
}
