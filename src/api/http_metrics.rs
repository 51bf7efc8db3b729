//! Request counts and response times by route, method and status. The label is the route, never the
//! path, so that the number of series does not grow with the number of orders.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use warp::http::{Method, StatusCode};

use crate::histogram::Histogram;

/// Upper bounds of the response time buckets, in microseconds: from the read of one order to the
/// longest wait that a client can request.
pub(super) const RESPONSE_TIME_BOUNDS_US: [u64; 13] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 5_000_000,
    15_000_000, 60_000_000,
];

/// Label of all paths without a route, and of all methods without a label of their own.
pub(super) const OTHER: &str = "other";

/// Methods that have a label of their own.
const METHODS: [&str; 3] = ["GET", "HEAD", "POST"];

/// Labels of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Labels {
    pub route: &'static str,
    pub method: &'static str,
    pub status: u16,
}

/// Histograms of the time until the response began, in microseconds.
#[derive(Default)]
pub(super) struct HttpMetrics(Mutex<BTreeMap<Labels, Histogram>>);

impl HttpMetrics {
    /// Counts a request once its response begins.
    pub fn count(
        &self,
        route: &'static str,
        method: &Method,
        status: StatusCode,
        duration: Duration,
    ) {
        let labels = Labels {
            route,
            method: method_label(method),
            status: status.as_u16(),
        };
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let times = all.entry(labels).or_default();
        times.count_us(&RESPONSE_TIME_BOUNDS_US, duration);
    }

    /// Returns the counts so far.
    pub fn snapshot(&self) -> BTreeMap<Labels, Histogram> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

fn method_label(method: &Method) -> &'static str {
    METHODS
        .into_iter()
        .find(|known| known == method)
        .unwrap_or(OTHER)
}
