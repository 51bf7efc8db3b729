//! What requests there were, how they were answered and how long that took: counted by the route,
//! never by the path, so that their number does not grow with the orders.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::spread::Histogram;

/// Upper bounds of what an answer may take to begin, in microseconds: from a look at one order to
/// the longest wait that can be asked for.
pub(super) const ANSWERED_WITHIN_US: [u64; 13] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 5_000_000,
    15_000_000, 60_000_000,
];

/// The path of any order.
const ORDER: &str = "/order/{id}";

/// The other paths that are told apart.
const ROUTES: [&str; 11] = [
    "/",
    "/docs",
    "/event",
    "/healthz",
    "/livez",
    "/metrics",
    "/openapi.json",
    "/order",
    "/problems",
    "/readyz",
    "/stats",
];

/// All other paths.
const OTHER: &str = "other";

/// The methods that are told apart.
const METHODS: [&str; 3] = ["GET", "HEAD", "POST"];

/// What is told apart of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Traits {
    pub route: &'static str,
    pub method: &'static str,
    pub status: u16,
}

/// Times until answers began, in microseconds.
#[derive(Default)]
pub(super) struct Traffic(Mutex<BTreeMap<Traits, Histogram>>);

impl Traffic {
    /// Counts a request that is being answered.
    pub fn count(&self, info: &warp::log::Info<'_>) {
        let traits = Traits {
            route: route(info.path()),
            method: method(info.method().as_str()),
            status: info.status().as_u16(),
        };
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let times = all.entry(traits).or_default();
        times.count_us(&ANSWERED_WITHIN_US, info.elapsed());
    }

    /// What was counted so far.
    pub fn told(&self) -> BTreeMap<Traits, Histogram> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// The route that a path belongs to.
fn route(path: &str) -> &'static str {
    match path.strip_prefix("/order/") {
        Some(id) if !id.is_empty() && !id.contains('/') => ORDER,
        _ => {
            let known = ROUTES.into_iter().find(|route| *route == path);
            known.unwrap_or(OTHER)
        }
    }
}

fn method(method: &str) -> &'static str {
    METHODS
        .into_iter()
        .find(|known| *known == method)
        .unwrap_or(OTHER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_counted_by_its_route_and_never_by_its_path() {
        for (path, expected) in [
            ("/", "/"),
            ("/order", "/order"),
            ("/order/a1", "/order/{id}"),
            ("/order/{id}", "/order/{id}"),
            ("/order/a%2Fb", "/order/{id}"),
            ("/stats", "/stats"),
            ("/order/", OTHER),
            ("/order/a1/", OTHER),
            ("/order/a1/b", OTHER),
            ("//order", OTHER),
            ("/ORDER", OTHER),
            ("/a1", OTHER),
            ("", OTHER),
        ] {
            assert_eq!(route(path), expected, "{path}");
        }
        assert_eq!((method("POST"), method("BREW")), ("POST", OTHER));
    }
}
