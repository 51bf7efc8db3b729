//! The table of routes: every path of the API with its methods. The header `Allow`, `HEAD`, 405
//! responses and the metrics' label `route` are derived from it. `Api::handle()` in `api.rs` calls the
//! handlers.

use warp::http::Method;

use super::pages::{HTML, JSON, Page, SCRIPT, STYLE};

/// A path with its methods and endpoint.
#[derive(Debug)]
pub(super) struct Route {
    /// The path. A word in braces matches one segment.
    pub template: &'static str,
    /// Allowed methods, in the form of the header `Allow`.
    pub allow: &'static str,
    pub endpoint: Endpoint,
}

/// The endpoints of routes, each with a handler in a file of `api`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    Orders,
    Order,
    Explain,
    Events,
    Stats,
    Metrics,
    Live,
    Ready,
    Health,
    Dashboard,
    DashboardFile,
    Problems,
    MetricsPage,
    Page(Page),
}

/// Methods of read-only routes. `HEAD` is `GET` without the body.
const READ: &str = "GET, HEAD";

/// All routes, matched in order: the most frequent come first.
pub(super) const ROUTES: &[Route] = &[
    Route::new("/order/{id}", READ, Endpoint::Order),
    Route::new("/order", "GET, HEAD, POST", Endpoint::Orders),
    Route::new("/order/{id}/explain", READ, Endpoint::Explain),
    Route::new("/event", READ, Endpoint::Events),
    Route::new("/stats", READ, Endpoint::Stats),
    Route::new("/metrics", READ, Endpoint::Metrics),
    Route::new("/livez", READ, Endpoint::Live),
    Route::new("/readyz", READ, Endpoint::Ready),
    Route::new("/healthz", READ, Endpoint::Health),
    Route::new("/", READ, Endpoint::Dashboard),
    Route::new("/dashboard/{file}", READ, Endpoint::DashboardFile),
    Route::new("/problems", READ, Endpoint::Problems),
    Route::page("/openapi.json", JSON, include_str!("pages/openapi.json")),
    Route::page("/docs", HTML, include_str!("pages/docs.html")),
    Route::new("/docs/metrics", READ, Endpoint::MetricsPage),
    Route::page("/docs/docs.js", SCRIPT, include_str!("pages/docs.js")),
    Route::page("/docs/style.css", STYLE, include_str!("pages/style.css")),
];

impl Route {
    const fn new(template: &'static str, allow: &'static str, endpoint: Endpoint) -> Self {
        Self {
            template,
            allow,
            endpoint,
        }
    }

    const fn page(template: &'static str, content_type: &'static str, body: &'static str) -> Self {
        Self::new(template, READ, Endpoint::Page(Page { content_type, body }))
    }

    /// Returns the route of a path, and the segment that its template matched, still
    /// percent-encoded.
    pub fn of(path: &str) -> Option<(&'static Self, &str)> {
        ROUTES
            .iter()
            .find_map(|route| Some((route, route.open_segment(path)?)))
    }

    /// Returns the segment of `path` that the template matches, empty if the template has none.
    /// `None` if the path does not match.
    fn open_segment<'p>(&self, path: &'p str) -> Option<&'p str> {
        let Some((before, rest)) = self.template.split_once('{') else {
            return (path == self.template).then_some("");
        };
        let (_, after) = rest.split_once('}')?;
        let segment = path.strip_prefix(before)?.strip_suffix(after)?;
        (!segment.is_empty() && !segment.contains('/')).then_some(segment)
    }

    pub fn allows(&self, method: &Method) -> bool {
        self.allow.split(", ").any(|allowed| allowed == method)
    }

    /// Returns true if the route is served on overflow connections and while draining too: health
    /// and metrics are most needed under overload.
    pub fn is_always_served(&self) -> bool {
        matches!(
            self.endpoint,
            Endpoint::Live | Endpoint::Ready | Endpoint::Health | Endpoint::Metrics
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_the_route_whose_template_it_fits_segment_by_segment() {
        for (path, expected) in [
            ("/", Some(("/", ""))),
            ("/order", Some(("/order", ""))),
            ("/order/a1", Some(("/order/{id}", "a1"))),
            ("/order/{id}", Some(("/order/{id}", "{id}"))),
            ("/order/a%2Fb", Some(("/order/{id}", "a%2Fb"))),
            (
                "/order/a%2Fb/explain",
                Some(("/order/{id}/explain", "a%2Fb")),
            ),
            ("/order/explain", Some(("/order/{id}", "explain"))),
            ("/order//explain", None),
            ("/stats", Some(("/stats", ""))),
            ("/order/", None),
            ("/order/a1/", None),
            ("/order/a1/b", None),
            ("//order", None),
            ("/ORDER", None),
            ("/a1", None),
            ("", None),
        ] {
            let found = Route::of(path).map(|(route, segment)| (route.template, segment));
            assert_eq!(found, expected, "{path}");
        }
    }
}
