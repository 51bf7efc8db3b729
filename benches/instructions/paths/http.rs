//! Requests to the API, from the head that hyper has parsed to the response, without sockets.

use bytes::Bytes;
use http_body_util::Full;
use tower_service::Service;
use warp::http::{Request, StatusCode};

use super::Iteration;
use super::environment::{Environment, ids};

/// Number of orders stored beforehand.
const STORED: usize = 3_000;

type Sent = Request<Full<Bytes>>;

pub(super) fn create(iterations: usize) -> Iteration {
    let requests = ids().skip(STORED).take(iterations).map(|id| {
        let body = format!("{{\"id\":\"{id}\"}}");
        Request::post("/order")
            .header("content-type", "application/json")
            .header("content-length", body.len())
            .body(Full::from(body))
    });
    iteration_of(requests, StatusCode::CREATED)
}

pub(super) fn look_up(iterations: usize) -> Iteration {
    // Random ids, spread over the whole index.
    let requests = ids().take(iterations).map(|id| {
        Request::get(format!("/order/{id}"))
            .header("accept", "*/*")
            .body(Full::default())
    });
    iteration_of(requests, StatusCode::OK)
}

pub(super) fn page(iterations: usize) -> Iteration {
    let request = || Request::get("/order?limit=100").body(Full::default());
    let requests = std::iter::repeat_with(request).take(iterations);
    iteration_of(requests, StatusCode::OK)
}

/// Returns an iteration that sends the next request to an API with some orders stored.
fn iteration_of(
    requests: impl Iterator<Item = Result<Sent, warp::http::Error>>,
    status: StatusCode,
) -> Iteration {
    let requests: Result<Vec<_>, _> = requests.collect();
    let mut requests = requests.expect("they are well-formed").into_iter();
    let env = Environment::new(STORED);
    let mut service = warp::service(env.api().routes());
    Box::new(move || {
        let request = requests
            .next()
            .expect("no more iterations than were prepared");
        let Ok(answer) = env.wait_for(service.call(request));
        assert_eq!(answer.status(), status);
    })
}
