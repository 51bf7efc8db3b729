//! The order process service as the reconciler sees it: its requests and their failures.
//!
//! Pure, except for the HTTP client in `upstream/http.rs` and its proxy in `upstream/proxy.rs`. Its URL is
//! in `upstream/url.rs`, and the wire format in `upstream/answer.rs` and `upstream/list.rs`. `decide` chooses
//! what an answer means for an order.

mod answer;
mod http;
mod list;
mod proxy;
mod url;

use std::time::Duration;

pub use self::http::HttpUpstream;
pub use self::list::{Entry, ListDecoder, ListError};
pub use self::proxy::ProxyError;
pub use self::url::{UpstreamUrl, UpstreamUrlError};
use crate::order::{Observed, OrderId, words};

/// The requests that the reconciler makes to the order process service.
pub trait Upstream: 'static {
    /// Starts a process. `Ok` means that the upstream has accepted it.
    fn start(&self, id: &OrderId) -> impl Future<Output = Result<(), StartError>>;

    /// Looks up the process of one order.
    fn look_up(&self, id: &OrderId) -> impl Future<Output = Result<Observed, Failure>>;

    /// Reads the list of all processes, and calls `on_entry` with each entry as it arrives. Returns the
    /// number of entries if the list was complete. After an error the entries that arrived hold, and the
    /// absence of others proves nothing. The caller limits the total time.
    fn list(&self, on_entry: impl FnMut(Entry<'_>)) -> impl Future<Output = Result<u64, Failure>>;
}

words! {
    /// The kind of a request to the order process service, which may throttle each kind alone.
    pub enum RequestKind {
        /// A start.
        Start = "start",
        /// A look-up of one process.
        LookUp = "look_up",
        /// The list of all processes.
        List = "list",
    }
}

/// Reasons why a start was not accepted, grouped by what the caller may do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartError {
    /// The start had no effect and may be repeated: it cannot have reached the upstream, or was answered 429.
    Unavailable(Failure),
    /// The start may have taken effect. The order must be looked up before it is started again.
    Ambiguous {
        /// The HTTP status of the answer, if there was one.
        answer_status: Option<u16>,
        /// Reason why there is no usable answer.
        failure: Failure,
    },
    /// The answer has a 2xx status, but not the upstream's body: it was cut off, or is by a portal, a
    /// proxy or another service. The order must be looked up.
    Unconfirmed {
        /// The HTTP status of the answer.
        answer_status: u16,
        /// Reason why the answer is not usable, if no process is found.
        failure: Failure,
    },
    /// The upstream refused the start of this order. A process may exist.
    Refused {
        /// The HTTP status of the answer.
        answer_status: u16,
        /// A description for people.
        detail: String,
    },
}

/// A request without a usable answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// A description for people.
    pub detail: String,
    /// Its kind.
    pub cause: Cause,
    /// The pause that the upstream asked for, by `Retry-After`.
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// Returns a failure without `Retry-After`.
    pub fn new(detail: impl Into<String>, cause: Cause) -> Self {
        Self {
            detail: detail.into(),
            cause,
            retry_after: None,
        }
    }

    /// Returns whether the request was throttled.
    pub fn is_throttled(&self) -> bool {
        matches!(
            self.cause,
            Cause::TooManyRequests | Cause::ServiceUnavailable
        )
    }
}

/// Kinds of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// No connection. Other requests would fail likewise.
    NoConnection,
    /// 401, 403 or a redirect. A gateway may answer so about some ids only.
    AccessDenied,
    /// 429: the request was throttled.
    TooManyRequests,
    /// 503: throttled too, because gateways send it instead of 429.
    ServiceUnavailable,
    /// No answer in time.
    Timeout,
    /// A cached answer that is too old to prove that a process does not exist.
    Stale,
    /// An answer that cannot be used.
    Unusable,
}
