//! The HTTP API: routes, and handlers that are plain functions.
//!
//! It records intent and tells what is so; it never calls the order process service. What a request
//! may look like is in `api/request.rs`; single orders are in `api/single.rs`, lists in
//! `api/listing.rs`, events in `api/events.rs`, and what wakes those who wait for a change in
//! `api/watcher.rs`. How orders are written is in `api/json.rs`, any object in `api/object.rs`,
//! what an error looks like in `api/problem.rs`, the health of the program in `api/health.rs`, what
//! is told of all orders together in `api/overview.rs`, `api/stats.rs` and `api/metrics.rs`, how
//! requests are counted in `api/traffic.rs`, pages for people in `api/pages.rs`. The routes that only
//! `order-service dev` serves are handed in.

mod events;
mod health;
mod json;
mod listing;
mod metrics;
mod object;
mod overview;
mod pages;
mod problem;
mod request;
mod single;
mod stats;
mod traffic;
mod watcher;

use std::convert::Infallible;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use warp::filters::BoxedFilter;
use warp::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use warp::http::{HeaderMap, Method, StatusCode};
use warp::path::FullPath;
use warp::reply::Response;
use warp::{Filter, Reply};

use self::health::Health;
pub use self::json::write_order;
use self::listing::Listing;
use self::overview::Overview;
pub(crate) use self::problem::Problem;
pub(crate) use self::request::same_site;
use self::traffic::Traffic;
use self::watcher::Watcher;
use crate::server::{self, Occupancy, Situation};
use crate::store::Store;

/// What the handlers share.
pub struct Api {
    store: Store,
    health: Health,
    overview: Overview,
    traffic: Traffic,
    watcher: Arc<Watcher>,
    /// Of the server that serves this.
    occupancy: Occupancy,
    /// Looks at single orders that may be made on the threads that serve everyone.
    looks: Semaphore,
    draining: CancellationToken,
    dev: Dev,
}

/// What `order-service dev` adds.
enum Dev {
    /// The program is another one.
    Off,
    /// The dashboard creates orders; these routes, if there are any, break and mend the simulator.
    On(Option<BoxedFilter<(Response,)>>),
}

impl Api {
    /// An API on a database. From `draining` on it tells that it is not ready, and no one waits
    /// for a change any more.
    ///
    /// # Panics
    /// Outside of the tokio runtime that is to serve it.
    pub fn new(store: Store, draining: CancellationToken) -> Arc<Self> {
        Self::with(store, draining, Dev::Off)
    }

    /// Like [`Api::new`], for `order-service dev`: the dashboard creates orders, and breaks and mends
    /// the simulator through `routes`, if there is one.
    pub fn for_dev(
        store: Store,
        draining: CancellationToken,
        routes: Option<BoxedFilter<(Response,)>>,
    ) -> Arc<Self> {
        Self::with(store, draining, Dev::On(routes))
    }

    fn with(store: Store, draining: CancellationToken, dev: Dev) -> Arc<Self> {
        Arc::new(Self {
            health: Health::new(store.clone(), draining.clone()),
            overview: Overview::default(),
            traffic: Traffic::default(),
            watcher: Arc::new(Watcher::new(store.clone())),
            occupancy: Occupancy::default(),
            // One of the threads is always left.
            looks: Semaphore::new(Handle::current().metrics().num_workers().saturating_sub(1)),
            draining,
            dev,
            store,
        })
    }

    /// Serves the API until `stop`, and until `others` have ended.
    pub async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        stop: CancellationToken,
        others: impl Future<Output = ()>,
    ) {
        server::raise_file_limit();
        let service = warp::service(self.routes());
        server::serve(listener, service, self.occupancy.clone(), stop, others).await;
    }

    /// Everything that is served.
    pub fn routes(
        self: &Arc<Self>,
    ) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone + use<> {
        let api = self.clone();
        let dev = match &self.dev {
            Dev::Off => None,
            Dev::On(None) => Some("upstream"),
            Dev::On(Some(_)) => Some("simulator"),
        };
        let mut others = odd_path()
            .or(self.health())
            .unify()
            .or(self.metrics())
            .unify()
            .or(crowded_or_draining())
            .unify()
            .or(self.event())
            .unify()
            .or(self.stats())
            .unify()
            .or(pages::pages(dev))
            .unify()
            .boxed();
        if let Dev::On(Some(routes)) = &self.dev {
            others = others.or(routes.clone()).unify().boxed();
        }
        // What is asked for most comes first, and all others together: each filter that could have
        // come after it costs something.
        usual()
            .and(self.orders().or(self.order()).unify())
            .or(others)
            .unify()
            .or(warp::path::full()
                .map(|path: FullPath| Problem::no_such_path(path.as_str()).reply()))
            .unify()
            .with(warp::log::custom(move |info| api.traffic.count(&info)))
            .map(Reply::into_response)
    }

    fn orders(self: &Arc<Self>) -> BoxedFilter<(Response,)> {
        let list = get_or_head()
            .and(self.shared())
            .and(query())
            .and(warp::header::headers_cloned())
            .then(
                |api: Arc<Self>, query: String, headers: HeaderMap| async move {
                    answer(api.list(&query, &headers))
                },
            );
        let create = warp::post()
            .and(self.shared())
            .and(query())
            .and(warp::header::headers_cloned())
            .and(warp::body::stream())
            .then(
                |api: Arc<Self>, query: String, headers: HeaderMap, body| async move {
                    answer(api.create(&query, &headers, body).await)
                },
            );
        warp::path!("order")
            .and(
                create
                    .or(list)
                    .unify()
                    .or(not_allowed("GET, HEAD, POST"))
                    .unify(),
            )
            .boxed()
    }

    fn order(self: &Arc<Self>) -> BoxedFilter<(Response,)> {
        let get = warp::path!("order" / String)
            .and(get_or_head())
            .and(self.shared())
            .and(query())
            .and(warp::header::headers_cloned())
            .then(
                |segment: String, api: Arc<Self>, query: String, headers: HeaderMap| async move {
                    answer(api.get(&segment, &query, &headers).await)
                },
            );
        let otherwise = warp::path!("order" / String)
            .and(not_allowed("GET, HEAD"))
            .map(|_, response| response);
        get.or(otherwise).unify().boxed()
    }

    fn event(self: &Arc<Self>) -> BoxedFilter<(Response,)> {
        let get = get_or_head()
            .and(warp::method())
            .and(self.shared())
            .and(query())
            .and(warp::header::headers_cloned())
            .then(
                |method: Method, api: Arc<Self>, query: String, headers: HeaderMap| async move {
                    answer(api.events(&method, &query, &headers).await)
                },
            );
        warp::path!("event")
            .and(get.or(not_allowed("GET, HEAD")).unify())
            .boxed()
    }

    /// The health paths, which are answered whatever the situation.
    fn health(self: &Arc<Self>) -> BoxedFilter<(Response,)> {
        let live = warp::path!("livez")
            .and(get_or_head())
            .map(|| health::live().reply());
        let ready = warp::path!("readyz")
            .and(get_or_head())
            .and(self.shared())
            .then(|api: Arc<Self>| async move { api.health.ready().await.reply() });
        let all = warp::path!("healthz")
            .and(get_or_head())
            .and(self.shared())
            .then(|api: Arc<Self>| async move { api.health.all().await.reply() });
        let otherwise = warp::path!("livez")
            .or(warp::path!("readyz"))
            .unify()
            .or(warp::path!("healthz"))
            .unify()
            .and(not_allowed("GET, HEAD"));
        live.or(ready)
            .unify()
            .or(all)
            .unify()
            .or(otherwise)
            .unify()
            .boxed()
    }

    fn shared(
        self: &Arc<Self>,
    ) -> impl Filter<Extract = (Arc<Self>,), Error = Infallible> + Clone + use<> {
        let api = self.clone();
        warp::any().map(move || api.clone())
    }

    /// `GET /order`: a page, or everything.
    fn list(&self, query: &str, headers: &HeaderMap) -> Result<Response, Problem> {
        let query = request::ListQuery::parse(query)?;
        let form = request::form(headers);
        Listing::new(self.store.clone(), query, form)?.reply()
    }
}

/// A JSON answer, which no one may keep: what is so now may not be so soon.
pub(crate) fn json_answer(status: StatusCode, body: Vec<u8>) -> Response {
    let mut response = body.into_response();
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

pub(crate) fn answer(result: Result<Response, Problem>) -> Response {
    result.unwrap_or_else(Problem::reply)
}

pub(crate) fn get_or_head() -> impl Filter<Extract = (), Error = warp::Rejection> + Copy {
    warp::get().or(warp::head()).unify()
}

/// The query as it was sent, empty if there was none.
fn query() -> impl Filter<Extract = (String,), Error = Infallible> + Copy {
    warp::query::raw().or(warp::any().map(String::new)).unify()
}

/// The answer to a method that a path does not have.
pub(crate) fn not_allowed(
    allow: &'static str,
) -> impl Filter<Extract = (Response,), Error = Infallible> + Copy {
    warp::method().map(move |method: Method| Problem::not_allowed(&method, allow).reply())
}

/// Lets requests through that come at a usual time, and to a path as it should be.
fn usual() -> impl Filter<Extract = (), Error = warp::Rejection> + Clone {
    let is_usual = |situation: Option<Situation>, path: FullPath| {
        let is_usual = situation.is_none() && !is_odd(&path);
        std::future::ready(is_usual.then_some(()).ok_or_else(warp::reject))
    };
    warp::ext::optional::<Situation>()
        .and(warp::path::full())
        .and_then(is_usual)
        .untuple_one()
}

/// A path that ends in a slash names nothing, although warp would overlook it.
fn is_odd(path: &FullPath) -> bool {
    path.as_str().len() > 1 && path.as_str().ends_with('/')
}

/// The answer to a path that [`is_odd`].
fn odd_path() -> BoxedFilter<(Response,)> {
    warp::path::full()
        .and_then(|path: FullPath| async move {
            if is_odd(&path) {
                Ok(Problem::no_such_path(path.as_str()).reply())
            } else {
                Err(warp::reject())
            }
        })
        .boxed()
}

/// What is said to those for whom there is no place, or no more time.
fn crowded_or_draining() -> BoxedFilter<(Response,)> {
    warp::ext::optional::<Situation>()
        .and_then(|situation: Option<Situation>| async move {
            match situation {
                Some(Situation::Crowded) => Ok(Problem::crowded().reply()),
                Some(Situation::Draining) => Ok(Problem::draining().reply()),
                None => Err(warp::reject()),
            }
        })
        .boxed()
}
