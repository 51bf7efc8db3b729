//! Lists of orders: a page, or all orders as a stream.
//!
//! A stream holds one page at a time and no read transaction: orders may change between two pages,
//! and each is written as of the read of its page. The stream breaks off if orders that it had not
//! reached were pruned; a client that reads pages gets an error and may resume from the next
//! remaining order.

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use warp::Reply;
use warp::http::StatusCode;
use warp::http::header::{CONTENT_TYPE, HeaderValue, LINK, VARY};
use warp::reply::Response;

use super::json::{ORDER_BYTES, write_order};
use super::problem::{Problem, log_failed_read, next_link, reading_problem};
use super::request::{Form, ListQuery};
use crate::order::Order;
use crate::store::Store;

/// Orders per read while streaming. As JSON they take some 85 KB, the memory that a slow client
/// holds.
const STREAM_PAGE: usize = 500;

/// Returns the response to a request for a list: one page, or all orders, which are streamed unless
/// they fit one page.
pub(super) async fn reply(
    store: &Store,
    query: ListQuery,
    form: Form,
) -> Result<Response, Problem> {
    // One more than fits, to know whether there is a next page.
    let size = query.limit.map_or(STREAM_PAGE, |limit| limit + 1);
    let path = |after| format!("/order?{}", query.next(after));
    let mut pages = Box::pin(store.pages(query.filter.clone(), query.after, size));
    let first = pages.try_next().await;
    let first = first.map_err(|error| reading_problem(error, path))?;
    let (mut orders, next) = first.unwrap_or_default();
    let is_last = orders.len() < size;
    let mut link = None;
    let mut writer = ListWriter {
        form,
        is_begun: false,
    };
    let mut response = if let Some(limit) = query.limit {
        orders.truncate(limit);
        let last = orders.last().filter(|_| !is_last);
        link = last.map(|last| (LINK, next_link(&path(next.at(last.seq)))));
        writer.write(&orders, true).into_response()
    } else if is_last {
        writer.write(&orders, true).into_response()
    } else {
        let first = Bytes::from(writer.write(&orders, false));
        let rest = pages.map(move |page| match page {
            Ok((orders, _)) => Ok(writer.write(&orders, orders.len() < size).into()),
            // Breaks the connection: a partial list must not look complete.
            Err(error) => {
                log_failed_read("list", &error);
                Err(error)
            }
        });
        warp::reply::stream(futures_util::stream::iter([Ok(first)]).chain(rest)).into_response()
    };
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static(match form {
            Form::Array => "application/json",
            Form::Lines => "application/x-ndjson",
        }),
    );
    headers.insert(VARY, HeaderValue::from_static("accept"));
    headers.extend(link);
    Ok(response)
}

/// Writer of a list in pieces.
struct ListWriter {
    form: Form,
    is_begun: bool,
}

impl ListWriter {
    /// Serialises orders as the next part of the list, with separators and delimiters.
    fn write(&mut self, orders: &[Order], is_last: bool) -> Vec<u8> {
        let mut body = Vec::with_capacity(3 + orders.len() * ORDER_BYTES);
        let is_array = self.form == Form::Array;
        if is_array && !self.is_begun {
            body.push(b'[');
        }
        for (index, order) in orders.iter().enumerate() {
            if is_array && (self.is_begun || index > 0) {
                body.push(b',');
            }
            write_order(&mut body, order);
            if !is_array {
                body.push(b'\n');
            }
        }
        if is_array && is_last {
            body.extend_from_slice(b"]\n");
        }
        self.is_begun = true;
        body
    }
}
