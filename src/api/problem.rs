//! Error responses: problem details (RFC 9457), without internal information. Their kinds are in
//! `api/problem/kinds.rs`.

mod kinds;

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use warp::Reply;
use warp::http::header::{
    ACCEPT_ENCODING, ALLOW, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, LINK, RETRY_AFTER,
};
use warp::http::{Method, StatusCode};
use warp::reply::Response;

use self::kinds::Kind;
pub(super) use self::kinds::page;
use super::json;
use crate::messages::with_causes;
use crate::order::Order;
use crate::site::ForeignRequest;
use crate::store::{Cursor, Gone, StoreError};

/// `Retry-After` of temporary problems, in seconds.
const RETRY_AFTER_SECS: u64 = 1;

/// Minimum interval between two log lines that say that the database cannot be read.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// An error response.
#[derive(Debug)]
pub(crate) struct Problem {
    kind: &'static Kind,
    detail: String,
    /// The member of the body, or the parameter, that is invalid.
    member: Option<String>,
    order: Option<Box<Order>>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Problem {
    fn new(kind: &'static Kind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: shortened(&detail.into()),
            member: None,
            order: None,
            headers: Vec::new(),
        }
    }

    fn with_member(mut self, member: &str) -> Self {
        self.member = Some(shortened(member));
        self
    }

    fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Returns a problem that is likely to go away soon.
    fn temporary(kind: &'static Kind, detail: &str) -> Self {
        Self::new(kind, detail).with_header(RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECS))
    }

    pub fn body(detail: impl Into<String>) -> Self {
        Self::new(&kinds::INVALID_BODY, detail)
    }

    pub fn member(member: &str, detail: impl Into<String>) -> Self {
        Self::body(detail).with_member(member)
    }

    pub fn parameter(name: &str, detail: impl Into<String>) -> Self {
        Self::new(&kinds::INVALID_PARAMETER, detail).with_member(name)
    }

    pub fn path(detail: impl Into<String>) -> Self {
        Self::new(&kinds::INVALID_PATH, detail)
    }

    pub fn no_such_path(path: &str) -> Self {
        let detail = format!(
            "{} is not a path of this service; orders are at /order and /order/{{id}}, events at /event",
            shortened(path)
        );
        Self::new(&kinds::NO_SUCH_PATH, detail)
    }

    pub fn no_such_order(id: &str) -> Self {
        let detail = format!("there is no order {id:?}; ids are compared exactly, including case");
        Self::new(&kinds::NO_SUCH_ORDER, detail)
    }

    pub fn order_exists(order: Order) -> Self {
        let detail = format!(
            "the order {:?} exists and was not changed; it is in the member \"order\"",
            order.id.as_str()
        );
        let mut problem = Self::new(&kinds::ORDER_EXISTS, detail);
        problem.order = Some(Box::new(order));
        problem
    }

    pub fn not_allowed(method: &Method, allow: &'static str) -> Self {
        let detail = format!("method {method} is not allowed; allowed: {allow}");
        Self::new(&kinds::METHOD_NOT_ALLOWED, detail)
            .with_header(ALLOW, HeaderValue::from_static(allow))
    }

    pub fn unsupported_media_type(found: &str) -> Self {
        let detail = format!(
            "the Content-Type is {found:?}; send the header \"Content-Type: application/json\""
        );
        Self::new(&kinds::UNSUPPORTED_MEDIA_TYPE, detail)
    }

    /// `Accept-Encoding` tells this 415 from that of a media type (RFC 9110, section 15.5.16).
    pub fn unsupported_content_coding(found: &str) -> Self {
        let detail = format!(
            "the Content-Encoding is {found:?}; send the body uncompressed, without that header"
        );
        Self::new(&kinds::UNSUPPORTED_MEDIA_TYPE, detail)
            .with_header(ACCEPT_ENCODING, HeaderValue::from_static("identity"))
    }

    pub fn unsupported_transfer_coding(found: &str) -> Self {
        let detail = format!("the Transfer-Encoding is {found:?}; send chunked alone");
        Self::new(&kinds::UNSUPPORTED_TRANSFER_CODING, detail)
            .with_header(CONNECTION, HeaderValue::from_static("close"))
    }

    pub fn too_large(max: usize) -> Self {
        Self::new(
            &kinds::BODY_TOO_LARGE,
            format!("a body may have at most {max} bytes"),
        )
    }

    pub fn too_slow(seconds: u64) -> Self {
        let detail = format!("a body must arrive within {seconds} s");
        Self::new(&kinds::BODY_TOO_SLOW, detail)
            .with_header(CONNECTION, HeaderValue::from_static("close"))
    }

    pub fn foreign(foreign: ForeignRequest) -> Self {
        let kind = match foreign {
            ForeignRequest::Malformed(_) => &kinds::INVALID_HOST,
            ForeignRequest::Host(_) => &kinds::WRONG_HOST,
            ForeignRequest::Page(..) => &kinds::CROSS_SITE,
        };
        Self::new(kind, foreign.to_string())
    }

    pub fn ambiguous_host() -> Self {
        Self::new(
            &kinds::INVALID_HOST,
            "the request must have the header Host exactly once",
        )
        .with_header(CONNECTION, HeaderValue::from_static("close"))
    }

    pub fn too_many_connections() -> Self {
        Self::temporary(
            &kinds::TOO_MANY_CONNECTIONS,
            "all connection slots are taken; nothing was done",
        )
    }

    pub fn too_many_waiting() -> Self {
        Self::temporary(
            &kinds::TOO_MANY_WAITING,
            "the order is not settled, and all slots for waiting requests are taken; retry \
             without the header Prefer, or later",
        )
    }

    pub fn too_many_lists() -> Self {
        Self::temporary(
            &kinds::TOO_MANY_LISTS,
            "all slots for lists are taken by responses that are not read yet; retry later",
        )
    }

    pub fn too_many_streams() -> Self {
        Self::temporary(
            &kinds::TOO_MANY_STREAMS,
            "all slots for streams are taken; read pages instead, or retry later",
        )
    }

    pub fn removed(gone: Gone) -> Self {
        Self::new(
            &kinds::REMOVED,
            format!(
                "{gone}; start from the beginning, or follow the header Link to the remaining records"
            ),
        )
    }

    pub fn draining() -> Self {
        Self::temporary(
            &kinds::SHUTTING_DOWN,
            "the service is shutting down; nothing was done",
        )
    }

    /// Returns the member of the body, or the parameter, that is invalid.
    #[cfg(test)]
    pub fn wrong_member(&self) -> Option<&str> {
        self.member.as_deref()
    }

    pub fn reply(self) -> Response {
        #[derive(Serialize)]
        struct ProblemJson<'a> {
            r#type: String,
            title: &'a str,
            status: u16,
            detail: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            member: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            order: Option<&'a Order>,
        }
        let problem = ProblemJson {
            r#type: format!("/problems#{}", self.kind.name),
            title: self.kind.title,
            status: self.kind.status,
            detail: &self.detail,
            member: self.member.as_deref(),
            order: self.order.as_deref(),
        };
        let mut body = Vec::new();
        json::write(&mut body, &problem);
        body.push(b'\n');
        let mut response = body.into_response();
        *response.status_mut() =
            StatusCode::from_u16(self.kind.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        for (name, value) in self.headers {
            headers.insert(name, value);
        }
        response
    }
}

/// Maximum length of a client's text in a response, in characters: enough for an id and its
/// context.
const ECHO_MAX: usize = 400;

fn shortened(text: &str) -> String {
    match text.char_indices().nth(ECHO_MAX) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// Converts a store error to a problem. The cause is not included: the store logs it when the
/// failure begins.
pub(super) fn store_problem(error: StoreError) -> Problem {
    let (kind, detail) = match error {
        StoreError::Gone(gone) => return Problem::removed(gone),
        StoreError::Overloaded => (
            &kinds::OVERLOADED,
            "the write queue is full; nothing was done",
        ),
        // The API never leads, so it cannot be deposed.
        StoreError::Unwritable(_) | StoreError::Deposed => (
            &kinds::DATABASE_NOT_WRITABLE,
            "nothing was done; orders can be read as far as possible",
        ),
        StoreError::Unreadable(_) => {
            log_failed_read("request", &error);
            (&kinds::DATABASE_NOT_READABLE, "nothing was done")
        }
        StoreError::OutcomeUnknown => (
            &kinds::OUTCOME_UNKNOWN,
            "the order may have been created, or may still be created; retry with the same id, which is safe",
        ),
    };
    Problem::temporary(kind, detail)
}

/// Logs why the answer `to` a client failed; that the database cannot be read, once a second at most,
/// because it may fail thousands of answers.
pub(super) fn log_failed_read(to: &str, error: &StoreError) {
    static LOGGED_AT: Mutex<Option<Instant>> = Mutex::new(None);
    if matches!(error, StoreError::Unreadable(_)) {
        let mut logged_at = LOGGED_AT.lock().unwrap_or_else(PoisonError::into_inner);
        if logged_at.is_some_and(|at| at.elapsed() < LOG_INTERVAL) {
            return;
        }
        *logged_at = Some(Instant::now());
    }
    log::warn!("{to} failed: {}", with_causes(error));
}

/// Like [`store_problem`], but for reads that resume from a cursor: `next` returns the path of the
/// page after another cursor.
pub(super) fn reading_problem(error: StoreError, next: impl FnOnce(Cursor) -> String) -> Problem {
    match error {
        StoreError::Gone(gone) => {
            let link = next_link(&next(gone.left));
            Problem::removed(gone).with_header(LINK, link)
        }
        other => store_problem(other),
    }
}

/// Returns a `Link` header to the next page.
pub(super) fn next_link(path: &str) -> HeaderValue {
    HeaderValue::try_from(format!("<{path}>; rel=\"next\"")).expect("a path is ASCII")
}
