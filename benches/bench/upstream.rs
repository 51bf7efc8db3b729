//! An order process service in this process, for the measurement of passes. It has many processes
//! from the beginning; the simulator would need a start for each.

use std::collections::HashMap;
use std::convert::Infallible;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use order_service::server::{self, ConnectionStats};
use serde::Deserialize;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use warp::reply::Response;
use warp::{Filter, Reply};

/// A served upstream, which ends on drop.
pub struct Upstream {
    /// Its URL, as `--order-process-url` takes it.
    pub url: String,
    _runtime: Runtime,
}

impl Upstream {
    /// Serves a list of processes in this order. They end one after the other, the last of them
    /// after `ended_after`. Starts are not supported.
    pub fn begin(ids: Vec<String>, ended_after: Duration) -> anyhow::Result<Self> {
        let runtime = Runtime::new()?;
        let listener = runtime.block_on(server::listen(([127, 0, 0, 1], 0).into(), "--listen"))?;
        let url = format!("http://{}", listener.local_addr()?);
        let indices = ids.iter().cloned().zip(0..).collect();
        let processes = Arc::new(Processes {
            ids,
            indices,
            began_at: Instant::now(),
            ended_after,
        });
        let route = warp::path!("order_process")
            .and(warp::get())
            .and(warp::query())
            .map(move |query: Query| match query.order_id {
                Some(id) => processes.look_up(&id),
                None => processes.list(),
            });
        let (stop, others) = (CancellationToken::new(), std::future::ready(()));
        let service = warp::service(route);
        runtime.spawn(server::serve(
            listener,
            service,
            ConnectionStats::within(usize::MAX),
            stop,
            others,
        ));
        Ok(Self {
            url,
            _runtime: runtime,
        })
    }
}

#[derive(Deserialize)]
struct Query {
    order_id: Option<String>,
}

struct Processes {
    ids: Vec<String>,
    /// Index of each id in `ids`.
    indices: HashMap<String, usize>,
    began_at: Instant,
    ended_after: Duration,
}

/// Number of processes in one piece of the list.
const PIECE: usize = 4_096;

impl Processes {
    /// Returns the range of the processes that are still running.
    fn running(&self) -> Range<usize> {
        let share = self.began_at.elapsed().as_secs_f64() / self.ended_after.as_secs_f64();
        (self.ids.len() as f64 * share.min(1.0)) as usize..self.ids.len()
    }

    fn list(self: &Arc<Self>) -> Response {
        let (processes, running) = (self.clone(), self.running());
        let total = self.ids.len();
        let pieces = (0..=total / PIECE).map(move |piece| {
            let range = piece * PIECE..total.min((piece + 1) * PIECE);
            let mut body = String::with_capacity(PIECE * 72);
            if piece == 0 {
                body.push('[');
            }
            for (at, id) in range.clone().zip(&processes.ids[range.clone()]) {
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
        let mut body = String::new();
        match self.indices.get(id) {
            Some(index) => write_process(&mut body, id, self.running().contains(index)),
            None => body.push_str("{}"),
        }
        body.into_response()
    }
}

/// Writes a process as JSON. Half of the processes succeed, as their ids determine.
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
