//! The address at which the simulator is broken and mended while it runs.
//!
//! It has an address of its own: the public contract does not know it, and it answers while the
//! simulated service is down. What the faults mean is in `faults`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use warp::http::StatusCode;
use warp::reply::{Json, WithStatus};
use warp::{Filter, Rejection, Reply};

use super::Simulator;
use super::faults::Faults;
use crate::server::{self, Occupancy};

/// The largest configuration that is read, in bytes: many times what there is to say.
const BODY_BYTES_MAX: u64 = 64 * 1024;

/// Opens the control address, if there is to be one.
///
/// # Errors
/// It is in use, not this machine's, or not permitted.
pub async fn listen(address: Option<SocketAddr>) -> anyhow::Result<Option<TcpListener>> {
    let Some(address) = address else {
        return Ok(None);
    };
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!(
            "cannot listen on {address}; --control takes another address, or port 0 for a free one"
        )
    })?;
    Ok(Some(listener))
}

/// Serves the control address until `stop`, if there is one.
pub(super) async fn serve(
    listener: Option<TcpListener>,
    simulator: Arc<Simulator>,
    stop: CancellationToken,
) {
    if let Some(listener) = listener {
        let others = std::future::ready(());
        let service = warp::service(routes(simulator));
        server::serve(listener, service, Occupancy::default(), stop, others).await;
    }
}

fn routes(
    simulator: Arc<Simulator>,
) -> impl Filter<Extract = (impl Reply,), Error = Rejection> + Clone {
    let simulator = warp::any().map(move || simulator.clone());
    let body = warp::body::content_length_limit(BODY_BYTES_MAX).and(warp::body::bytes());
    let faults = warp::path!("faults");
    let show = faults
        .and(warp::get())
        .and(simulator.clone())
        .map(|simulator: Arc<Simulator>| told(StatusCode::OK, &simulator.faults()));
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
    show.or(change).or(crash)
}

/// An answer in words.
#[derive(Serialize)]
struct Message<'a> {
    message: &'a str,
}

/// The body of `POST /crash`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct CrashNow {
    restart_after_ms: Option<u64>,
}

fn told(status: StatusCode, faults: &Faults) -> WithStatus<Json> {
    warp::reply::with_status(warp::reply::json(faults), status)
}

fn said(status: StatusCode, message: &str) -> WithStatus<Json> {
    warp::reply::with_status(warp::reply::json(&Message { message }), status)
}

fn change(simulator: &Simulator, body: &[u8]) -> WithStatus<Json> {
    match simulator.change_faults(body) {
        Ok(faults) => told(StatusCode::OK, &faults),
        Err(message) => said(StatusCode::BAD_REQUEST, &message),
    }
}

fn crash(simulator: &Simulator, body: &[u8]) -> WithStatus<Json> {
    let now = match body {
        [] => Ok(CrashNow::default()),
        body => serde_json::from_slice(body),
    };
    let now = match now {
        Ok(now) => now,
        Err(error) => return said(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    if simulator.crash(now.restart_after_ms.map(Duration::from_millis)) {
        said(StatusCode::OK, "crashed")
    } else {
        said(StatusCode::CONFLICT, "it is down already")
    }
}
