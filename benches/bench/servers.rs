//! Servers that ours are held against, each a process of its own: this program calls itself.
//!
//! All run on a runtime like that of the built programs, and say where they listen as these do.

use std::collections::HashMap;
use std::convert::Infallible;
use std::ops::Range;
use std::process::ExitCode;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Instant;

use bytes::Bytes;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use order_service::api::{Api, write_order};
use order_service::clock::{Clock, SystemClock};
use order_service::order::{Order, OrderId, Status};
use order_service::program::{self, Exit};
use order_service::server::{self, Occupancy};
use order_service::store::{DatabasePath, Mode, Store};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use warp::http::StatusCode;
use warp::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, LOCATION, RETRY_AFTER};
use warp::reply::Response;
use warp::{Filter, Reply};

/// Serves what the words say until it is killed.
pub fn serve(words: &[&str]) -> ExitCode {
    program::run(async {
        match *words {
            ["nowhere", database] => orders(database, Mode::Nowhere).await?,
            ["unshared", database] => orders(database, Mode::Unshared).await?,
            ["bare"] => bare().await?,
            ["answer"] => answer().await?,
            ["upstream", ids, seconds] => upstream(ids, seconds.parse()?).await?,
            _ => anyhow::bail!("there is no such server: {words:?}"),
        }
        Ok(Exit::Done)
    })
}

async fn listen() -> anyhow::Result<TcpListener> {
    let listener = server::listen(([127, 0, 0, 1], 0).into()).await?;
    println!("listening on http://{}", listener.local_addr()?);
    Ok(listener)
}

/// Our own routes and connections, over another kind of store.
async fn orders(database: &str, mode: Mode) -> anyhow::Result<()> {
    let store = Store::open(&database.parse::<DatabasePath>()?, mode)?;
    let stop = CancellationToken::new();
    let api = Api::new(store, stop.clone());
    let listener = listen().await?;
    server::raise_file_limit();
    api.serve(listener, stop, std::future::ready(())).await;
    Ok(())
}

/// One route that answers as ours does, over our own connections, and checks nothing but the id.
async fn answer() -> anyhow::Result<()> {
    let route = warp::path!("order")
        .and(warp::post())
        .and(warp::body::json())
        .map(|NewOrder { id }| {
            created(id).unwrap_or_else(|_| StatusCode::BAD_REQUEST.into_response())
        });
    let service = warp::service(route);
    let occupancy = Occupancy::default();
    let (stop, others) = (CancellationToken::new(), std::future::ready(()));
    server::serve(listen().await?, service, occupancy, stop, others).await;
    Ok(())
}

/// What is answered to a creation, down to the bytes.
fn created(id: String) -> anyhow::Result<Response> {
    let location = format!("/order/{id}").try_into()?;
    let now = SystemClock.now();
    let order = Order {
        seq: 1,
        id: OrderId::new(id)?,
        status: Status::Created,
        created_at: now,
        updated_at: now,
        starts: 0,
        attention: None,
    };
    let mut body = Vec::with_capacity(180);
    write_order(&mut body, &order);
    let mut response = body.into_response();
    *response.status_mut() = StatusCode::CREATED;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    headers.insert(LOCATION, location);
    Ok(response)
}

#[derive(Deserialize)]
struct NewOrder {
    id: String,
}

#[derive(Serialize)]
struct Created {
    id: String,
    status: &'static str,
}

/// One route that parses the same JSON and answers with some, over connections without limits.
async fn bare() -> anyhow::Result<()> {
    let route = warp::path!("order")
        .and(warp::post())
        .and(warp::body::json())
        .map(|NewOrder { id }| {
            let created = Created {
                id,
                status: "CREATED",
            };
            warp::reply::with_status(warp::reply::json(&created), StatusCode::CREATED)
        });
    connections(route).await
}

/// Serves a filter over hyper's connections as they come.
async fn connections<F>(filter: F) -> anyhow::Result<()>
where
    F: Filter<Error = warp::Rejection> + Clone + Send + Sync + 'static,
    F::Extract: Reply,
{
    let listener = listen().await?;
    let service = warp::service(filter);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let service = TowerToHyperService::new(service.clone());
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        // A client that goes away is no concern of the measurement.
        tokio::spawn(async move { drop(connection.await) });
    }
}

/// An order process service that knows a process for each id in a file. They end one after the
/// other, the last of them after `seconds`; what is started meanwhile ends at once.
struct Upstream {
    processes: RwLock<Processes>,
    /// How many there were at the beginning.
    known: usize,
    begun: Instant,
    seconds: f64,
}

#[derive(Default)]
struct Processes {
    ids: Vec<Arc<str>>,
    places: HashMap<Arc<str>, usize>,
}

impl Processes {
    fn add(&mut self, id: &str) {
        let id: Arc<str> = id.into();
        self.places.insert(id.clone(), self.ids.len());
        self.ids.push(id);
    }
}

/// Processes in one piece of the list.
const PIECE: usize = 4_096;

impl Upstream {
    fn processes(&self) -> RwLockReadGuard<'_, Processes> {
        self.processes
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Which places of processes are still running.
    fn running(&self) -> Range<usize> {
        let share = (self.begun.elapsed().as_secs_f64() / self.seconds).min(1.0);
        (self.known as f64 * share) as usize..self.known
    }

    fn list(self: &Arc<Self>) -> Response {
        let (upstream, running) = (self.clone(), self.running());
        let total = self.processes().ids.len();
        let pieces = (0..=total / PIECE).map(move |piece| {
            let range = piece * PIECE..total.min((piece + 1) * PIECE);
            let mut body = String::with_capacity(PIECE * 72);
            if piece == 0 {
                body.push('[');
            }
            for (at, id) in range.clone().zip(&upstream.processes().ids[range.clone()]) {
                if at > 0 {
                    body.push(',');
                }
                write_process(&mut body, id, running.contains(&at));
            }
            if piece == total / PIECE {
                body.push(']');
            }
            Ok::<_, Infallible>(Bytes::from(body))
        });
        warp::reply::stream(futures_util::stream::iter(pieces)).into_response()
    }

    fn look_up(&self, id: &str) -> Response {
        let place = self.processes().places.get(id).copied();
        let mut body = String::new();
        match place {
            Some(at) => write_process(&mut body, id, self.running().contains(&at)),
            None => body.push_str("{}"),
        }
        body.into_response()
    }

    fn start(&self, id: &str) -> StatusCode {
        let mut processes = self
            .processes
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        processes.add(id);
        StatusCode::OK
    }
}

/// Half of them succeed: which, the ids tell.
fn write_process(body: &mut String, id: &str, is_running: bool) {
    let status = match (is_running, id.bytes().last().unwrap_or(0) % 2) {
        (true, _) => "RUNNING",
        (false, 0) => "SUCCEEDED",
        (false, _) => "FAILED",
    };
    for part in ["{\"order_id\":\"", id, "\",\"status\":\"", status, "\"}"] {
        body.push_str(part);
    }
}

#[derive(Deserialize)]
struct Query {
    order_id: Option<String>,
}

#[derive(Deserialize)]
struct Start {
    order_id: String,
}

async fn upstream(ids: &str, seconds: f64) -> anyhow::Result<()> {
    let mut processes = Processes::default();
    for id in std::fs::read_to_string(ids)?.lines() {
        processes.add(id);
    }
    let upstream = Arc::new(Upstream {
        known: processes.ids.len(),
        processes: RwLock::new(processes),
        begun: Instant::now(),
        seconds,
    });
    let told = upstream.clone();
    let look = warp::get()
        .and(warp::query())
        .map(move |query: Query| match query.order_id {
            Some(id) => told.look_up(&id),
            None => told.list(),
        });
    let start = warp::post()
        .and(warp::body::json())
        .map(move |start: Start| upstream.start(&start.order_id).into_response());
    connections(warp::path!("order_process").and(look.or(start).unify())).await
}
