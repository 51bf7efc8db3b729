//! What an error looks like: problem details (RFC 9457), and nothing internal in them.
//!
//! Each kind of problem is made in one place, so that its words are the same wherever it occurs.

use warp::Reply;
use warp::http::header::{
    ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, LINK, LOCATION, RETRY_AFTER,
};
use warp::http::{Method, StatusCode};
use warp::reply::Response;

use super::json::{location, order_members};
use super::object::Object;
use crate::order::Order;
use crate::store::{Place, StoreError};

/// Seconds after which a client may try again what could not be done now.
const RETRY_AFTER_SECS: u64 = 1;

/// An error as a client sees it.
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    /// The last part of its `type`.
    kind: &'static str,
    title: &'static str,
    detail: String,
    /// The member of the body, or the parameter, that is wrong.
    member: Option<String>,
    order: Option<Box<Order>>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Problem {
    fn new(
        status: StatusCode,
        kind: &'static str,
        title: &'static str,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            status,
            kind,
            title,
            detail: shortened(&detail.into()),
            member: None,
            order: None,
            headers: Vec::new(),
        }
    }

    fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    fn retry_soon(self) -> Self {
        self.with_header(RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECS))
    }

    /// The body is not what it should be.
    pub fn body(detail: impl Into<String>) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "invalid-body",
            "The body is not a JSON object with an id",
            detail,
        )
    }

    /// A member of the body is not what it should be.
    pub fn member(member: &str, detail: impl Into<String>) -> Self {
        Self {
            member: Some(shortened(member)),
            ..Self::body(detail)
        }
    }

    /// A parameter is not what it should be.
    pub fn parameter(name: &str, detail: impl Into<String>) -> Self {
        Self {
            member: Some(shortened(name)),
            ..Self::new(
                StatusCode::BAD_REQUEST,
                "invalid-parameter",
                "A query parameter is not valid",
                detail,
            )
        }
    }

    /// The path is not properly escaped.
    pub fn path(detail: impl Into<String>) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "invalid-path",
            "The path is not valid",
            detail,
        )
    }

    pub fn no_such_path(path: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "no-such-path",
            "There is nothing at this path",
            format!(
                "{} is not a path of this service; orders are at /order and /order/{{id}}, events at /event",
                shortened(path)
            ),
        )
    }

    pub fn no_such_order(id: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "no-such-order",
            "There is no order with this id",
            format!("there is no order {id:?}; ids are compared exactly, case and all"),
        )
    }

    pub fn order_exists(order: Order) -> Self {
        let problem = Self::new(
            StatusCode::CONFLICT,
            "order-exists",
            "There is an order with this id already",
            format!(
                "the order {:?} exists and was not changed; it is in the member \"order\"",
                order.id.as_str()
            ),
        )
        .with_header(LOCATION, location(&order.id));
        Self {
            order: Some(Box::new(order)),
            ..problem
        }
    }

    pub fn not_allowed(method: &Method, allow: &'static str) -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method-not-allowed",
            "This path does not have this method",
            format!("{method} is not possible here; possible are {allow}"),
        )
        .with_header(ALLOW, HeaderValue::from_static(allow))
    }

    pub fn unsupported_media_type(found: &str) -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported-media-type",
            "The body has to be JSON",
            format!(
                "the Content-Type is {found:?}; send the header \"Content-Type: application/json\""
            ),
        )
    }

    pub fn too_large(max: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body-too-large",
            "The body is too large",
            format!("a body has {max} bytes at most"),
        )
    }

    pub fn too_slow(seconds: u64) -> Self {
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            "body-too-slow",
            "The body did not come in time",
            format!("a body has to be sent within {seconds} s"),
        )
        .with_header(
            warp::http::header::CONNECTION,
            HeaderValue::from_static("close"),
        )
    }

    pub fn cross_site() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "cross-site",
            "A page of another site may not change anything here",
            "the request has the header \"Sec-Fetch-Site: cross-site\", which a browser sends for \
             a page of another site",
        )
    }

    pub fn crowded() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "too-many-connections",
            "Too many connections are open",
            "all places for connections are taken; nothing was done",
        )
        .retry_soon()
    }

    pub fn too_many_waiting() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "too-many-waiting",
            "Too many requests wait already",
            "the order is not settled, and all places for waiting are taken; ask again without \
             the header Prefer, or later",
        )
        .retry_soon()
    }

    pub fn too_many_streams() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "too-many-streams",
            "Too many streams are open already",
            "all places for streams of events are taken; read pages instead, or try again later",
        )
        .retry_soon()
    }

    pub fn removed() -> Self {
        Self::new(
            StatusCode::GONE,
            "removed",
            "Some of what comes next was removed",
            "some of what follows was removed after its reader was there, because it had settled \
             long ago; begin anew, or follow the header Link to what is left",
        )
    }

    pub fn draining() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "shutting-down",
            "The service is shutting down",
            "the service is about to end; nothing was done",
        )
        .retry_soon()
    }

    /// The member of the body, or the parameter, that is wrong.
    #[cfg(test)]
    pub fn wrong_member(&self) -> Option<&str> {
        self.member.as_deref()
    }

    pub fn reply(self) -> Response {
        let mut body = Vec::new();
        let mut object = Object::begin(&mut body);
        object.text("type", &format!("/problems#{}", self.kind));
        object.text("title", self.title);
        object.number("status", self.status.as_u16());
        object.text("detail", &self.detail);
        if let Some(member) = &self.member {
            object.text("member", member);
        }
        if let Some(order) = &self.order {
            order_members(object.object("order"), order);
        }
        object.end();
        let mut response = body.into_response();
        *response.status_mut() = self.status;
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

/// The longest text of a client's that is sent back, in characters: an id and what is said of it.
const ECHO_MAX: usize = 400;

fn shortened(text: &str) -> String {
    match text.char_indices().nth(ECHO_MAX) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// What a client is told when the store could not do it. The cause is for the log alone, where
/// the store has told it when it began.
pub(super) fn store_problem(error: StoreError) -> Problem {
    let (kind, title, detail) = match error {
        StoreError::Gone(_) => return Problem::removed(),
        StoreError::Overloaded => (
            "overloaded",
            "There is more to do than can be done now",
            "too many orders are being created at once; nothing was done",
        ),
        StoreError::Unwritable(_) => (
            "database-not-writable",
            "The database cannot be written now",
            "nothing was done; orders can be read as far as possible",
        ),
        StoreError::Unreadable(cause) => {
            log::warn!("the database cannot be read: {cause}");
            (
                "database-not-readable",
                "The database cannot be read now",
                "nothing was done",
            )
        }
        StoreError::OutcomeUnknown => (
            "outcome-unknown",
            "The database did not answer in time",
            "the order may still be created: look it up, or create it again",
        ),
    };
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, kind, title, detail).retry_soon()
}

/// The same where a client reads on: `next` is the path of what is left after a place.
pub(super) fn reading_problem(error: StoreError, next: impl FnOnce(Place) -> String) -> Problem {
    match error {
        StoreError::Gone(place) => match next_link(&next(place)) {
            Some(link) => Problem::removed().with_header(LINK, link),
            None => Problem::removed(),
        },
        other => store_problem(other),
    }
}

/// The header `Link` that leads to this path.
pub(super) fn next_link(path: &str) -> Option<HeaderValue> {
    HeaderValue::try_from(format!("<{path}>; rel=\"next\"")).ok()
}
