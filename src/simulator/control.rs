//! The control address of the simulator: reads and sets its faults, and crashes it.
//!
//! It is not part of the simulated contract, and it answers while the simulated service is down.
//! `faults` defines the faults.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use warp::http::{HeaderMap, Method, StatusCode};
use warp::reply::{Json, WithStatus};
use warp::{Filter, Rejection, Reply};

use super::Simulator;
use crate::server::{self, ConnectionState, ConnectionStats};
use crate::site::{ForeignRequest, Site};

/// The address that is assumed if the system does not report it: loopback has the stricter check.
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Maximum size of a body, in bytes: many times that of all faults.
const BODY_BYTES_MAX: u64 = 64 * 1024;

/// Listens at the control address, if there is one.
pub async fn listen(address: Option<SocketAddr>) -> anyhow::Result<Option<TcpListener>> {
    let Some(address) = address else {
        return Ok(None);
    };
    Ok(Some(server::listen(address, "--control").await?))
}

/// Serves the control address until `stop`, if there is one.
pub(super) async fn serve(
    listener: Option<TcpListener>,
    simulator: Arc<Simulator>,
    stop: CancellationToken,
) {
    if let Some(listener) = listener {
        let others = std::future::ready(());
        let address = listener
            .local_addr()
            .map_or(LOOPBACK, |address| address.ip());
        let service = warp::service(routes(simulator, Site::new(address, &[])));
        server::serve(listener, service, ConnectionStats::within(0), stop, others).await;
    }
}

fn routes(
    simulator: Arc<Simulator>,
    site: Site,
) -> impl Filter<Extract = (impl Reply,), Error = Rejection> + Clone {
    // An accepted request is rejected as not found here, so that the other routes are tried.
    let refused = warp::method()
        .and(warp::header::headers_cloned())
        .and(warp::ext::optional())
        .and_then(move |method, headers, state| {
            std::future::ready(
                refusal(&site, &method, &headers, state).ok_or_else(warp::reject::not_found),
            )
        });
    let simulator = warp::any().map(move || simulator.clone());
    let body = warp::body::content_length_limit(BODY_BYTES_MAX).and(warp::body::bytes());
    let faults = warp::path!("faults");
    let show = faults
        .and(warp::get())
        .and(simulator.clone())
        .map(|simulator: Arc<Simulator>| answer(StatusCode::OK, &simulator.faults()));
    let change = faults
        .and(warp::put())
        .and(simulator.clone())
        .and(body)
        .map(|simulator: Arc<Simulator>, body: Bytes| change(&simulator, &body));
    // curl -X POST sends neither a body nor its length.
    let none = warp::any().map(Bytes::new);
    let crash = warp::path!("crash")
        .and(warp::post())
        .and(simulator)
        .and(body.or(none).unify())
        .map(|simulator: Arc<Simulator>, body: Bytes| crash(&simulator, &body));
    refused.or(show).or(change).or(crash)
}

/// Returns the refusal of a request with an ambiguous or unknown host, or from another site's page.
fn refusal(
    site: &Site,
    method: &Method,
    headers: &HeaderMap,
    state: Option<ConnectionState>,
) -> Option<WithStatus<Json>> {
    if state == Some(ConnectionState::AmbiguousHost) {
        let what = "the request needs exactly one Host header";
        return Some(message(StatusCode::BAD_REQUEST, what));
    }
    let foreign = site.check(method, headers).err()?;
    let status = match foreign {
        ForeignRequest::Malformed(_) => StatusCode::BAD_REQUEST,
        ForeignRequest::Host(_) => StatusCode::MISDIRECTED_REQUEST,
        ForeignRequest::Page(..) => StatusCode::FORBIDDEN,
    };
    Some(message(status, &foreign.to_string()))
}

/// The body of `POST /crash`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CrashNow {
    restart_after_ms: Option<u64>,
}

fn answer(status: StatusCode, body: &impl Serialize) -> WithStatus<Json> {
    warp::reply::with_status(warp::reply::json(body), status)
}

fn message(status: StatusCode, message: &str) -> WithStatus<Json> {
    answer(status, &json!({ "message": message }))
}

fn change(simulator: &Simulator, body: &[u8]) -> WithStatus<Json> {
    match simulator.change_faults(body) {
        Ok(faults) => answer(StatusCode::OK, &faults),
        Err(error) => message(StatusCode::BAD_REQUEST, &error),
    }
}

fn crash(simulator: &Simulator, body: &[u8]) -> WithStatus<Json> {
    let body = if body.is_empty() { b"{}" } else { body };
    let CrashNow { restart_after_ms } = match serde_json::from_slice(body) {
        Ok(now) => now,
        Err(error) => return message(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    match simulator.crash(restart_after_ms.map(Duration::from_millis)) {
        true => message(StatusCode::OK, "crashed"),
        false => message(StatusCode::CONFLICT, "the simulator is down already"),
    }
}
