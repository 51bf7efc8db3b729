//! The HTTP API: the dispatch of requests to handlers, which are plain functions.
//!
//! It records intent and reports state; it never calls the order process service. The table of routes is in
//! `api/routes.rs`, request parsing in `api/request.rs`. Orders are created in `api/create.rs` and read
//! in `api/order.rs`, lists in `api/order_list.rs`, events in `api/events.rs`, the notification of
//! changes in `api/change_feed.rs`. The JSON of orders and events is in `api/json.rs`, errors are in
//! `api/problem.rs`. Health checks are in
//! `api/health.rs`, figures of all orders in `api/stats_cache.rs`, `api/stats.rs` and
//! `api/metrics.rs`, request counts in `api/http_metrics.rs`, HTML pages in `api/pages.rs`. Callers
//! pass in the routes that only `order-service dev` serves.

mod change_feed;
mod create;
mod events;
mod health;
mod http_metrics;
mod json;
mod metrics;
mod order;
mod order_list;
mod pages;
mod problem;
mod request;
mod routes;
mod stats;
mod stats_cache;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use bytes::Buf;
use futures_util::Stream;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use warp::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use warp::http::{HeaderMap, Method, StatusCode};
use warp::path::FullPath;
use warp::reply::Response;
use warp::{Filter, Reply};

use self::change_feed::ChangeFeed;
pub(crate) use self::health::ACCEPTING;
use self::health::Health;
use self::http_metrics::{HttpMetrics, OTHER};
pub use self::json::write_order;
pub(crate) use self::problem::Problem;
use self::routes::{Endpoint, Route};
use self::stats_cache::StatsCache;
use crate::explain::Invocation;
use crate::process;
use crate::server::{self, ConnectionState, ConnectionStats};
use crate::site::Site;
use crate::store::Store;

/// Returns the paths of all routes, as templates.
pub fn paths() -> impl Iterator<Item = &'static str> {
    routes::ROUTES.iter().map(|route| route.template)
}

/// State that the handlers share.
pub struct Api {
    store: Store,
    health: Health,
    stats_cache: StatsCache,
    http_metrics: HttpMetrics,
    change_feed: Arc<ChangeFeed>,
    /// For pages of orders and events.
    list_store: Store,
    /// Statistics of the server that serves this API.
    connections: ConnectionStats,
    /// For single orders.
    order_store: Store,
    draining: CancellationToken,
    site: Site,
    dev: Dev,
    /// Prefix of the commands that explanations show.
    invocation: Invocation,
}

/// A handler of paths that the API does not have. Returns `None` for unknown paths.
pub(crate) type Handler =
    Box<dyn Fn(&Method, &str) -> Option<Result<Response, Problem>> + Send + Sync>;

/// Additions of `order-service dev`.
enum Dev {
    /// Another command than `order-service dev`.
    Off,
    /// The dashboard creates orders. The handler, if any, breaks and repairs the simulator.
    On(Option<Handler>),
}

impl Dev {
    /// Returns the value that the dashboard uses for this mode.
    fn label(&self) -> &'static str {
        match self {
            Self::Off => "none",
            Self::On(None) => "upstream",
            Self::On(Some(_)) => "simulator",
        }
    }
}

impl Api {
    /// Returns an API on a database, served as `site` on these connections. Once `draining` is cancelled, it reports
    /// that it is not ready, and requests stop waiting for changes.
    ///
    /// # Panics
    /// Outside of the tokio runtime that is to serve it.
    pub fn new(
        store: Store,
        site: Site,
        connections: ConnectionStats,
        draining: CancellationToken,
    ) -> Arc<Self> {
        Self::with(store, site, connections, draining, Dev::Off)
    }

    /// Like [`Api::new`], for `order-service dev`: the dashboard creates orders, and breaks and
    /// repairs the simulator through `handler`, if any.
    pub(crate) fn for_dev(
        store: Store,
        site: Site,
        connections: ConnectionStats,
        draining: CancellationToken,
        handler: Option<Handler>,
    ) -> Arc<Self> {
        Self::with(store, site, connections, draining, Dev::On(handler))
    }

    fn with(
        store: Store,
        site: Site,
        connections: ConnectionStats,
        draining: CancellationToken,
        dev: Dev,
    ) -> Arc<Self> {
        Arc::new(Self {
            health: Health::new(store.clone(), draining.clone()),
            stats_cache: StatsCache::default(),
            http_metrics: HttpMetrics::default(),
            change_feed: Arc::new(ChangeFeed::new(&store)),
            list_store: store.for_long_reads(),
            connections,
            order_store: store.for_short_reads(),
            draining,
            site,
            invocation: match dev {
                Dev::Off => Invocation::elsewhere(),
                // In dev mode the reader of an explanation is on this machine.
                Dev::On(_) => Invocation::here(process::program_name(), store.info().address),
            },
            dev,
            store,
        })
    }

    /// Serves the API until `stop` is cancelled and `others` have ended.
    pub async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        stop: CancellationToken,
        others: impl Future<Output = ()>,
    ) {
        let service = warp::service(self.routes());
        server::serve(listener, service, self.connections.clone(), stop, others).await;
    }

    /// Returns all routes as one filter.
    pub fn routes(
        self: &Arc<Self>,
    ) -> impl Filter<Extract = (Response,), Error = warp::Rejection> + Clone + use<> {
        self.shared()
            .and(warp::method())
            .and(warp::path::full())
            .and(query())
            .and(warp::ext::optional())
            .and(warp::header::headers_cloned())
            .and(warp::body::stream())
            .then(Self::respond)
    }

    /// Responds to a request by its route, and counts it.
    async fn respond<B: Buf>(
        self: Arc<Self>,
        method: Method,
        path: FullPath,
        query: String,
        state: Option<ConnectionState>,
        headers: HeaderMap,
        body: impl Stream<Item = Result<B, warp::Error>>,
    ) -> Response {
        let began = Instant::now();
        let route = Route::of(path.as_str());
        let admitted = self.admit(state, &method, &headers);
        let result = match (route, state) {
            _ if let Err(problem) = admitted => Err(problem),
            (Some((route, segment)), state) if state.is_none() || route.is_always_served() => {
                if route.allows(&method) {
                    let handled = self.handle(route, segment, &method, &query, &headers, body);
                    handled.await
                } else {
                    Err(Problem::not_allowed(&method, route.allow))
                }
            }
            (_, Some(ConnectionState::Overflow)) => Err(Problem::too_many_connections()),
            (_, Some(ConnectionState::Draining)) => Err(Problem::draining()),
            (_, _) => self
                .dev_response(&method, path.as_str())
                .unwrap_or_else(|| Err(Problem::no_such_path(path.as_str()))),
        };
        let response = response(result);
        let label = route.map_or(OTHER, |(route, _)| route.template);
        self.http_metrics
            .count(label, &method, response.status(), began.elapsed());
        response
    }

    /// Rejects requests for another host, and changes requested by another site's page.
    fn admit(
        &self,
        state: Option<ConnectionState>,
        method: &Method,
        headers: &HeaderMap,
    ) -> Result<(), Problem> {
        if state == Some(ConnectionState::AmbiguousHost) {
            return Err(Problem::ambiguous_host());
        }
        self.site.check(method, headers).map_err(Problem::foreign)
    }

    /// Returns the response of `order-service dev` to a path that the API does not have.
    fn dev_response(&self, method: &Method, path: &str) -> Option<Result<Response, Problem>> {
        match &self.dev {
            Dev::On(Some(handler)) => handler(method, path),
            Dev::Off | Dev::On(None) => None,
        }
    }

    /// Calls the handler of a route. `segment` is the path segment matched by the route's template.
    async fn handle<B: Buf>(
        &self,
        route: &Route,
        segment: &str,
        method: &Method,
        query: &str,
        headers: &HeaderMap,
        body: impl Stream<Item = Result<B, warp::Error>>,
    ) -> Result<Response, Problem> {
        match route.endpoint {
            Endpoint::Order => self.get(segment, query, headers).await,
            Endpoint::Explain => self.explain(segment, query).await,
            Endpoint::Orders if method == Method::POST => self.create(query, headers, body).await,
            Endpoint::Orders => self.list(query, headers).await,
            Endpoint::Events => self.events(method, query, headers).await,
            Endpoint::Stats => self.stats(query).await,
            Endpoint::Metrics => self.metrics(query).await,
            Endpoint::Live => Ok(health::live().reply()),
            Endpoint::Ready => Ok(self.health.ready().await.reply()),
            Endpoint::Health => Ok(self.health.all().await.reply()),
            Endpoint::Dashboard => Ok(pages::dashboard(self.dev.label())),
            Endpoint::DashboardFile => pages::dashboard_file(segment)
                .ok_or_else(|| Problem::no_such_path(&format!("/dashboard/{segment}"))),
            Endpoint::Problems => Ok(pages::reply(pages::HTML, problem::page())),
            Endpoint::MetricsPage => Ok(pages::reply(pages::HTML, metrics::page())),
            Endpoint::Page(page) => Ok(page.reply()),
        }
    }

    fn shared(
        self: &Arc<Self>,
    ) -> impl Filter<Extract = (Arc<Self>,), Error = Infallible> + Clone + use<> {
        let api = self.clone();
        warp::any().map(move || api.clone())
    }

    /// `GET /order`: a page, or all orders.
    async fn list(&self, query: &str, headers: &HeaderMap) -> Result<Response, Problem> {
        let query = request::ListQuery::parse(query)?;
        let form = request::form(headers);
        let slot = self.connections.long_answer();
        let slot = slot.ok_or_else(Problem::too_many_lists)?;
        let mut response = order_list::reply(&self.list_store, query, form).await?;
        response.extensions_mut().insert(slot);
        Ok(response)
    }
}

/// Returns a JSON response. The body ends with a newline, so that a shell's prompt starts on its own line.
pub(crate) fn json_answer(status: StatusCode, value: &impl Serialize) -> Response {
    let mut body = Vec::new();
    json::write(&mut body, value);
    json_bytes(status, body)
}

fn json_bytes(status: StatusCode, mut body: Vec<u8>) -> Response {
    body.push(b'\n');
    let mut response = body.into_response();
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Returns the response to a request. Only files may be cached: state changes at any time, errors
/// included.
fn response(result: Result<Response, Problem>) -> Response {
    let mut response = result.unwrap_or_else(Problem::reply);
    let cached = response.headers_mut().entry(CACHE_CONTROL);
    cached.or_insert(HeaderValue::from_static("no-store"));
    response
}

/// Extracts the raw query string, empty if there is none.
fn query() -> impl Filter<Extract = (String,), Error = Infallible> + Copy {
    warp::query::raw().or(warp::any().map(String::new)).unify()
}
