//! The order process service as the reconciler sees it: what can be asked, and how that can fail.
//!
//! Pure. The client over HTTP and the wire format are in `upstream/http.rs`, and the list is decoded in
//! `upstream/list.rs`. What the answers mean for an order is decided in `decide`.

mod http;
mod list;

use std::time::Duration;

pub use self::http::{HttpUpstream, UpstreamUrl, UpstreamUrlError};
pub use self::list::{Entry, ListDecoder, ListError};
use crate::order::{Observed, OrderId};

/// The requests that the reconciler makes to the order process service.
pub trait Upstream: 'static {
    /// Starts a process. `Ok` means that the upstream has accepted it.
    fn start(&self, id: &OrderId) -> impl Future<Output = Result<(), StartError>>;

    /// Looks up the process of one order.
    fn look_up(&self, id: &OrderId) -> impl Future<Output = Result<Observed, Failure>>;

    /// Reads the list of all processes, and calls `on_entry` with each entry as it arrives. `Ok`, with
    /// the number of entries, means that the list was complete. After an error the entries that
    /// arrived hold, and the absence of others proves nothing. The caller limits the time in all.
    fn list(&self, on_entry: impl FnMut(Entry<'_>)) -> impl Future<Output = Result<u64, Failure>>;
}

/// A start that was not accepted, by the caller's next move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartError {
    /// It cannot have reached the upstream: it may be repeated.
    Unavailable(Failure),
    /// It may have taken effect: the order must be observed before it is started again.
    Ambiguous {
        /// The HTTP status of the answer, if there was one.
        answer: Option<u16>,
        /// What was seen.
        failure: Failure,
    },
    /// It was accepted, but not in the upstream's words: these are of a portal, a proxy or another
    /// service, or broke off. Only a look-up can tell.
    Doubtful(Failure),
    /// The upstream answered about this very order, and did not accept it. A process may exist.
    Refused {
        /// The HTTP status of the answer.
        answer: u16,
        /// What was seen, in words.
        detail: String,
    },
}

/// A request without a usable answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What was seen, in words.
    pub detail: String,
    /// Its kind.
    pub cause: Cause,
    /// How long the upstream asked to be left alone.
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// A failure that tells nothing else.
    pub fn new(detail: impl Into<String>, cause: Cause) -> Self {
        Self {
            detail: detail.into(),
            cause,
            retry_after: None,
        }
    }
}

/// Kinds of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// No connection, or none that is let in: every other request would meet the same.
    NoAccess,
    /// An answer that asks for fewer requests: 429.
    TooMany,
    /// An answer that nothing can be done at present: 503, which gateways also give instead of 429.
    Overload,
    /// No answer in time.
    Silence,
    /// A cache's answer, too old to say what does not exist.
    Outdated,
    /// An answer that cannot be used.
    Unusable,
}
