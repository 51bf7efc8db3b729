//! Lists of orders: a page, or all of them as a stream.
//!
//! A stream holds one page at a time and no read transaction: between two pages the database may
//! be written, and each order is told as it was when its page was read. If orders are removed that
//! it would have come to, it breaks off; who reads in pages is told so and may read what is left.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use warp::Reply;
use warp::http::StatusCode;
use warp::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, LINK, VARY};
use warp::reply::Response;

use super::json::{ORDER_BYTES, write_order};
use super::problem::{Problem, next_link, reading_problem};
use super::reads::Reads;
use super::request::{Form, ListQuery};
use crate::order::Order;
use crate::store::{Cursor, StoreError};

/// Orders read at once while streaming. As JSON they take some 40 KB, which is what a client that
/// reads slowly costs.
const STREAM_PAGE: usize = 250;

/// A list of orders on its way to a client.
pub(super) struct OrderList {
    reads: Arc<Reads>,
    query: ListQuery,
    form: Form,
    /// The place of the newest order that existed when the request began, once that is known.
    last: Option<i64>,
    is_begun: bool,
    is_done: bool,
}

impl OrderList {
    pub fn new(reads: Arc<Reads>, query: ListQuery, form: Form) -> Self {
        Self {
            reads,
            query,
            form,
            last: None,
            is_begun: false,
            is_done: false,
        }
    }

    /// The answer: whole if it fits one page, streamed otherwise.
    pub async fn reply(mut self) -> Result<Response, Problem> {
        let content_type = match self.form {
            Form::Array => "application/json",
            Form::Lines => "application/x-ndjson",
        };
        let mut link = None;
        let mut response = if let Some(limit) = self.query.limit {
            let read = self.read(limit + 1).await;
            let (mut orders, next) = read.map_err(|error| self.problem(error))?;
            if orders.len() > limit {
                orders.truncate(limit);
                let last = orders.last();
                link = last.and_then(|order| next_link(&self.path(next.at(order.seq))));
            }
            self.is_done = true;
            self.write(&orders).into_response()
        } else {
            let first = self.read_on().await.map_err(|error| self.problem(error))?;
            if self.is_done {
                first.into_response()
            } else {
                let first = futures_util::stream::iter([Ok(Bytes::from(first))]);
                warp::reply::stream(first.chain(self.pieces())).into_response()
            }
        };
        *response.status_mut() = StatusCode::OK;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(VARY, HeaderValue::from_static("accept"));
        if let Some(link) = link {
            headers.insert(LINK, link);
        }
        Ok(response)
    }

    async fn read(&mut self, limit: usize) -> Result<(Vec<Order>, Cursor), StoreError> {
        let store = self.reads.store().await;
        let last = match self.last {
            Some(last) => last,
            None => *self.last.insert(store.newest_seq().await?),
        };
        let query = &self.query;
        store
            .page_after(&query.filter, query.after, last, limit)
            .await
    }

    /// The path of what comes after a position.
    fn path(&self, after: Cursor) -> String {
        format!("/order?{}", self.query.next(after))
    }

    fn problem(&self, error: StoreError) -> Problem {
        reading_problem(error, |after| self.path(after))
    }

    /// The next piece of a stream.
    async fn read_on(&mut self) -> Result<Vec<u8>, StoreError> {
        let (orders, next) = self.read(STREAM_PAGE).await?;
        self.is_done = orders.len() < STREAM_PAGE;
        self.query.after = next;
        Ok(self.write(&orders))
    }

    /// Some orders as they stand in the list, with what comes before the first and after the last.
    fn write(&mut self, orders: &[Order]) -> Vec<u8> {
        let mut body = Vec::with_capacity(3 + orders.len() * ORDER_BYTES);
        let is_array = self.form == Form::Array;
        if is_array && !self.is_begun {
            body.push(b'[');
        }
        for (at, order) in orders.iter().enumerate() {
            if is_array && (self.is_begun || at > 0) {
                body.push(b',');
            }
            write_order(&mut body, order);
            if !is_array {
                body.push(b'\n');
            }
        }
        if is_array && self.is_done {
            body.extend_from_slice(b"]\n");
        }
        self.is_begun = true;
        body
    }
    /// The rest of a stream. No piece is read before the one before it was taken. After an error there
    /// are no more, and the connection breaks: a list that is not whole must not look as if it were.
    fn pieces(self) -> impl Stream<Item = Result<Bytes, StoreError>> {
        futures_util::stream::unfold(self, |mut listing| async {
            if listing.is_done {
                return None;
            }
            let piece = listing.read_on().await;
            if let Err(error) = &piece {
                log::warn!("a list of orders broke off: {error}");
                listing.is_done = true;
            }
            Some((piece.map(Bytes::from), listing))
        })
    }
}
