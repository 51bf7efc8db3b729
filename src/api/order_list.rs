//! Lists of orders: a page, or all orders as a stream.
//!
//! A stream holds one page at a time and no read transaction: orders may change between two pages,
//! and each is written as of the read of its page. The stream breaks off if orders that it had not
//! reached were pruned; a client that reads pages gets an error and may resume from the next
//! remaining order.

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

/// Orders per read while streaming. As JSON they take some 40 KB, the memory that a slow client
/// holds.
const STREAM_PAGE: usize = 250;

/// A list of orders for one client.
pub(super) struct OrderList {
    reads: Arc<Reads>,
    query: ListQuery,
    form: Form,
    /// Sequence number of the newest order when the request began, once it is known.
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

    /// Returns the response: whole if it fits one page, streamed otherwise.
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

    /// Returns the path of the page after a cursor.
    fn path(&self, after: Cursor) -> String {
        format!("/order?{}", self.query.next(after))
    }

    fn problem(&self, error: StoreError) -> Problem {
        reading_problem(error, |after| self.path(after))
    }

    /// Reads the next chunk of a stream.
    async fn read_on(&mut self) -> Result<Vec<u8>, StoreError> {
        let (orders, next) = self.read(STREAM_PAGE).await?;
        self.is_done = orders.len() < STREAM_PAGE;
        self.query.after = next;
        Ok(self.write(&orders))
    }

    /// Serialises orders as part of the list, with separators and delimiters.
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
    /// Returns the remaining chunks of a stream, each read after the previous one was taken. An
    /// error ends the stream and breaks the connection: a partial list must not look complete.
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
