//! The HTTP API: routes, and handlers that are plain functions.
//!
//! It records intent and tells what is so; it never calls the order process service. What a
//! request may look like is in `api/request.rs`, how orders are written in `api/json.rs` and
//! `api/listing.rs`, what
//! an error looks like in `api/problem.rs`, the health of the program in `api/health.rs`, what is
//! told of all orders together in `api/overview.rs`, `api/stats.rs` and `api/metrics.rs`, how requests
//! are counted in `api/traffic.rs`.

mod health;
mod json;
mod listing;
mod metrics;
mod overview;
mod problem;
mod request;
mod stats;
mod traffic;

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Buf;
use futures_util::Stream;
use tokio_util::sync::CancellationToken;
use warp::filters::BoxedFilter;
use warp::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, LOCATION};
use warp::http::{HeaderMap, StatusCode};
use warp::path::FullPath;
use warp::reply::Response;
use warp::{Filter, Reply};

use self::health::Health;
use self::listing::Listing;
use self::overview::Overview;
use self::problem::{Problem, store_problem};
use self::traffic::Traffic;
use crate::clock::{Clock, SystemClock};
use crate::order::Order;
use crate::server::Situation;
use crate::store::{Creation, Store};

/// What the handlers share.
pub struct Api {
    store: Store,
    health: Health,
    overview: Overview,
    traffic: Traffic,
}

impl Api {
    /// An API on a database. From `draining` on it tells that it is not ready.
    pub fn new(store: Store, draining: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            health: Health::new(store.clone(), draining),
            overview: Overview::default(),
            traffic: Traffic::default(),
            store,
        })
    }

    /// Everything that is served.
    pub fn routes(
        self: &Arc<Self>,
    ) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone + use<> {
        let api = self.clone();
        odd_path()
            .or(self.health())
            .unify()
            .or(self.metrics())
            .unify()
            .or(crowded_or_draining())
            .unify()
            .or(self.orders())
            .unify()
            .or(self.order())
            .unify()
            .or(self.stats())
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
                list.or(create)
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
            .then(
                |segment: String, api: Arc<Self>, query: String| async move {
                    answer(api.get(&segment, &query))
                },
            );
        let otherwise = warp::path!("order" / String)
            .and(not_allowed("GET, HEAD"))
            .map(|_, response| response);
        get.or(otherwise).unify().boxed()
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
        let listing = Listing::new(self.store.clone(), query, form).map_err(store_problem)?;
        listing.reply().map_err(store_problem)
    }

    /// `POST /order`: creates an order.
    async fn create<B: Buf>(
        &self,
        query: &str,
        headers: &HeaderMap,
        body: impl Stream<Item = Result<B, warp::Error>>,
    ) -> Result<Response, Problem> {
        request::no_parameters(query)?;
        request::same_site(headers)?;
        request::is_json(headers)?;
        let body = request::read_body(headers, body).await?;
        let id = request::new_order(&body)?;
        match self.store.create(id, SystemClock.now()).await {
            Ok(Creation::Created(order)) => Ok(one(StatusCode::CREATED, &order, true)),
            Ok(Creation::Exists(order)) => Err(Problem::order_exists(order)),
            Err(error) => Err(store_problem(error)),
        }
    }

    /// `GET /order/{id}`.
    fn get(&self, segment: &str, query: &str) -> Result<Response, Problem> {
        request::no_parameters(query)?;
        let id = request::id_in_path(segment)?;
        let order = tokio::task::block_in_place(|| self.store.order(&id)).map_err(store_problem)?;
        match order {
            Some(order) => Ok(one(StatusCode::OK, &order, false)),
            None => Err(Problem::no_such_order(id.as_str())),
        }
    }
}

/// A single order as an answer.
fn one(status: StatusCode, order: &Order, with_location: bool) -> Response {
    let mut response = json_answer(status, json::order(order));
    if with_location {
        response
            .headers_mut()
            .insert(LOCATION, json::location(&order.id));
    }
    response
}

/// A JSON answer, which no one may keep: what is so now may not be so soon.
fn json_answer(status: StatusCode, body: Vec<u8>) -> Response {
    let mut response = body.into_response();
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn answer(result: Result<Response, Problem>) -> Response {
    result.unwrap_or_else(Problem::reply)
}

fn get_or_head() -> impl Filter<Extract = (), Error = warp::Rejection> + Copy {
    warp::get().or(warp::head()).unify()
}

/// The query as it was sent, empty if there was none.
fn query() -> impl Filter<Extract = (String,), Error = Infallible> + Copy {
    warp::query::raw().or(warp::any().map(String::new)).unify()
}

/// The answer to a method that a path does not have.
fn not_allowed(
    allow: &'static str,
) -> impl Filter<Extract = (Response,), Error = Infallible> + Copy {
    warp::method()
        .map(move |method: warp::http::Method| Problem::not_allowed(&method, allow).reply())
}

/// A path that ends in a slash names nothing, although warp would overlook it.
fn odd_path() -> BoxedFilter<(Response,)> {
    warp::path::full()
        .and_then(|path: FullPath| async move {
            if path.as_str().len() > 1 && path.as_str().ends_with('/') {
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
                Some(Situation::Normal) | None => Err(warp::reject()),
            }
        })
        .boxed()
}
