//! The `health` commands: probes for containers and units, without a shell or curl.
//!
//! The API is probed over HTTP. The reconciler has no HTTP server, so its heartbeat is read from the
//! database.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper::header::HOST;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::api::ACCEPTING;
use crate::clock::Clock;
use crate::store::{DatabaseUrl, Mode, Store};

/// Time limit for the program's answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Longest answer that is read, in bytes.
const ANSWER_MAX: usize = 64 * 1024;

/// Time within which a reconciler that waits for its next pass notices a step of the clock and writes a
/// heartbeat. One in a pass does so after it, and is reported as unhealthy until then.
const STEP_NOTICED_WITHIN: Duration = Duration::from_secs(2);

/// Probes the API that listens at `address`, and returns its answer. Fails if it is unhealthy.
pub async fn of_api(address: SocketAddr) -> anyhow::Result<String> {
    let address = SocketAddr::new(reachable(address.ip()), address.port());
    tokio::time::timeout(TIMEOUT, ask(address))
        .await
        .with_context(|| format!("no answer from {address} within {TIMEOUT:?}"))?
}

async fn ask(address: SocketAddr) -> anyhow::Result<String> {
    let stream = TcpStream::connect(address)
        .await
        .with_context(|| format!("cannot connect to {address}"))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::get("/healthz")
        .header(HOST, address.to_string())
        .body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_MAX)
        .collect()
        .await
        .map_err(|error| anyhow::anyhow!(error))?
        .to_bytes();
    let body = String::from_utf8_lossy(&body).trim_end().to_owned();
    match is_report(&body) {
        false => bail!("another service answers at {address}: {status}: {body}"),
        true if !status.is_success() => bail!("the service is not healthy: {body}"),
        true => Ok(body),
    }
}

/// Returns whether this is the body of a response of `/healthz`, and not of another service.
fn is_report(body: &str) -> bool {
    let report: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
    let checks = report["checks"].as_array();
    checks.is_some_and(|checks| checks.iter().any(|check| check["name"] == ACCEPTING))
}

/// Returns an address at which this machine reaches a program that listens on `ip`: loopback if that is
/// every address.
pub(crate) fn reachable(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}

/// Reads the heartbeat of the last reconciler that led on this database, and returns its last pass. Fails if
/// the next one is overdue, or none has led. Reads an overdue heartbeat again, because the clock may have been
/// set just now.
pub async fn of_reconciler(database: &DatabaseUrl) -> anyhow::Result<String> {
    let store = Store::open(database, Mode::ReadOnly)?;
    let read = async || {
        let state = store.heartbeat().await;
        let state = state.with_context(|| store.info().address)?;
        anyhow::Ok((state, store.clock().now()))
    };
    let (mut state, mut now) = read().await?;
    if state.is_overdue(now, None) {
        tokio::time::sleep(STEP_NOTICED_WITHIN).await;
        (state, now) = read().await?;
    }
    let last = state.last_pass();
    if state.next_pass_at.is_some() && !state.is_overdue(now, None) {
        return Ok(last);
    }
    match state.leader_status(now).problem {
        Some(problem) => bail!("{problem}; {last}"),
        None => bail!(last),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::order::Timestamp;
    use crate::reconciler_state::ReconcilerState;
    use crate::store::Mode;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_reconciler_that_notices_a_step_of_the_clock_is_healthy() {
        let folder = tempfile::tempdir().unwrap();
        let path = DatabaseUrl::from(folder.path().join("orders.db"));
        let store = Store::open(&path, Mode::Threaded).unwrap();
        let lead = store.try_lead().await.unwrap().unwrap();
        let write = async |pass_at: Timestamp| {
            let heartbeat = ReconcilerState {
                leader_since: Some(pass_at),
                last_pass_at: Some(pass_at),
                next_pass_at: Some(pass_at),
                ..ReconcilerState::default()
            };
            lead.write_heartbeat(heartbeat).await.unwrap();
        };
        let now = SystemClock.now();
        write(Timestamp(now.0 - 3_600_000)).await;
        let (found, ()) = tokio::join!(of_reconciler(&path), write(now));
        assert!(found.is_ok(), "{found:?}");
    }
}
