//! `GET /metrics`: all metrics, for Prometheus. They include the reconciler's, which it writes to
//! the database: behind NAT Prometheus cannot reach it.
//!
//! Names and units follow Prometheus' conventions; no label ever contains the id of an order. Names
//! and descriptions are in `table`, the text format in `exposition`; this module collects the
//! values.

mod exposition;
mod table;

use warp::Reply;
use warp::http::header::{CONTENT_TYPE, HeaderValue};
use warp::reply::Response;

use self::exposition::{Exposition, MEDIA_TYPE, UNLABELLED, Value};
pub(super) use self::table::page;
use super::health::OK;
use super::http_metrics::RESPONSE_TIME_BOUNDS_US;
use super::problem::{Problem, log_failed_read};
use super::stats_cache::CachedStats;
use super::{Api, request};
use crate::histogram::Histogram;
use crate::journal_stats::SETTLE_TIME_BOUNDS_MS;
use crate::order::EventReason;
use crate::order::{Reason, ResolvedBy, Status};
use crate::pace::UpstreamState;
use crate::reconciler_metrics::DURATION_BOUNDS_MS;
use crate::reconciler_state::ReconcilerState;
use crate::store::{COMMIT_SIZE_BOUNDS, COMMIT_TIME_BOUNDS_US, DatabaseInfo, DatabaseSize};

impl Api {
    /// `GET /metrics`.
    pub(super) async fn metrics(&self, query: &str) -> Result<Response, Problem> {
        request::no_parameters(query)?;
        let mut metrics = Exposition::default();
        let version = [env!("CARGO_PKG_VERSION")];
        metrics.add(&table::BUILD_INFO, [(version, Value::Real(1.0))]);
        let (health, cached, size) = tokio::join!(
            self.health.database(),
            self.stats_cache.read(&self.store),
            self.store.size(),
        );
        // The remaining metrics are reported even while the database cannot be read.
        match cached {
            Ok(cached) => {
                orders(&mut metrics, &cached);
                let heartbeat = &cached.snapshot.heartbeat;
                let oldest_open = cached.snapshot.oldest_open.as_ref();
                let oldest_open = oldest_open.map(|order| order.created_at);
                let is_overdue = heartbeat.is_overdue(cached.now, oldest_open);
                reconciler(&mut metrics, heartbeat, is_overdue);
                upstream(&mut metrics, &cached);
            }
            Err(error) => log_failed_read("metrics", &error),
        }
        let is_writable = health.status == OK;
        database(&mut metrics, is_writable, size, &self.store.info());
        self.http(&mut metrics);
        let mut response = metrics.text.into_response();
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        Ok(response)
    }

    fn http(&self, metrics: &mut Exposition) {
        let requests = self.http_metrics.snapshot();
        let times = requests.iter().map(|(labels, times)| {
            let status = labels.status.to_string();
            let labels = [labels.route.into(), labels.method.into(), status];
            (labels, us(times, &RESPONSE_TIME_BOUNDS_US))
        });
        metrics.add(&table::HTTP_REQUEST_DURATION, times);
        let (waiting, streams) = self.change_feed.waiting_and_streams();
        metrics.one(&table::HTTP_REQUESTS_WAITING, Some(waiting as f64));
        metrics.one(&table::HTTP_STREAMS, Some(streams as f64));
        let (open, max) = self.connections.served();
        let (overflow, overflow_max) = self.connections.overflow();
        let slots = |served, overflow| [("served", served), ("crowd", overflow)].map(each);
        metrics.add(
            &table::HTTP_CONNECTIONS,
            slots(open as f64, overflow as f64),
        );
        metrics.add(
            &table::HTTP_CONNECTIONS_MAX,
            slots(max as f64, overflow_max as f64),
        );
        let in_flight = self.connections.requests();
        metrics.one(&table::HTTP_REQUESTS_IN_FLIGHT, Some(in_flight as f64));
    }
}

/// Adds the metrics of the journal, and of orders that need attention.
fn orders(metrics: &mut Exposition, cached: &CachedStats) {
    let journal = &cached.journal;
    let by_status = Status::ALL.map(|status| each((status.as_str(), cached.orders(status) as f64)));
    metrics.add(&table::ORDERS, by_status);
    let by_reason = Reason::ALL.into_iter().flat_map(|reason| {
        ResolvedBy::ALL.map(|by| {
            let count = cached.attention(reason, by) as f64;
            ([reason.as_str(), by.as_str()], Value::Real(count))
        })
    });
    metrics.add(&table::ORDERS_NEEDING_ATTENTION, by_reason);
    let oldest = cached.snapshot.oldest_open.as_ref();
    metrics.timestamp(
        &table::OLDEST_OPEN_ORDER,
        oldest.map(|order| order.created_at),
    );
    let created = journal.entries_with(EventReason::Created);
    metrics.add(&table::ORDERS_CREATED, count(created));
    let pruned = [Status::Fulfilled, Status::Failed].map(|status| {
        let removed = cached.snapshot.pruned.in_status(status);
        ([status.as_str()], Value::Count(removed))
    });
    metrics.add(&table::ORDERS_PRUNED, pruned);
    let transitions = EventReason::ALL
        .into_iter()
        .filter(|reason| *reason != EventReason::Created)
        .map(|reason| {
            (
                [reason.as_str()],
                Value::Count(journal.entries_with(reason)),
            )
        });
    metrics.add(&table::ORDER_TRANSITIONS, transitions);
    let within = ms(journal.settled_within(), &SETTLE_TIME_BOUNDS_MS);
    metrics.add(&table::ORDER_TIME_TO_SETTLE, [(UNLABELLED, within)]);
}

/// Adds the metrics of the database, and of this program's writes to it.
fn database(metrics: &mut Exposition, is_writable: bool, size: DatabaseSize, info: &DatabaseInfo) {
    let writer = &info.writer;
    metrics.one(&table::DATABASE_WRITABLE, Some(f64::from(is_writable)));
    metrics.one(&table::DATABASE_BYTES, Some(size.database as f64));
    let log_bytes = size.log.map(|bytes| bytes as f64);
    metrics.one(&table::DATABASE_WAL_BYTES, log_bytes);
    let times = us(&writer.commit_times, &COMMIT_TIME_BOUNDS_US);
    metrics.add(&table::WRITE_BATCH_DURATION, [(UNLABELLED, times)]);
    if let Some(reconnects) = info.reconnects {
        metrics.add(&table::DATABASE_RECONNECTS, count(reconnects));
        let waits = us(&writer.lock_waits, &COMMIT_TIME_BOUNDS_US);
        metrics.add(&table::WRITE_TURN_WAIT, [(UNLABELLED, waits)]);
    }
    let sizes = scaled(&writer.commit_sizes, &COMMIT_SIZE_BOUNDS, 1.0);
    metrics.add(&table::WRITE_BATCH_WRITES, [(UNLABELLED, sizes)]);
    metrics.one(&table::WRITE_QUEUE_LENGTH, Some(writer.waiting as f64));
    metrics.one(
        &table::WRITE_QUEUE_CAPACITY,
        Some(writer.waiting_max as f64),
    );
    let refused = [
        (["overloaded"], Value::Count(writer.overloaded)),
        (["unwritable"], Value::Count(writer.unwritable)),
        (["outcome_unknown"], Value::Count(writer.unknown)),
    ];
    metrics.add(&table::WRITES_REFUSED, refused);
}

/// Adds the reconciler's metrics, from its heartbeat.
fn reconciler(metrics: &mut Exposition, heartbeat: &ReconcilerState, is_overdue: bool) {
    let counters = &heartbeat.metrics;
    metrics.one(&table::RECONCILER_OVERDUE, Some(f64::from(is_overdue)));
    metrics.timestamp(&table::RECONCILER_LEADER_SINCE, heartbeat.leader_since);
    metrics.add(&table::RECONCILER_LEADERSHIPS, count(counters.leaderships));
    metrics.timestamp(&table::RECONCILER_LAST_PASS, heartbeat.last_pass_at);
    metrics.timestamp(&table::RECONCILER_LAST_SEEN, heartbeat.last_observed_at);
    let passes = counters.passes.iter();
    let passes = passes.map(|(ended, took)| ([ended], ms(took, &DURATION_BOUNDS_MS)));
    metrics.add(&table::RECONCILER_PASS_DURATION, passes);
    metrics.add(&table::STARTS, count(counters.starts));
    metrics.add(&table::REPEATED_STARTS, count(counters.repeated_starts));
}

/// Adds the upstream's metrics, as the reconciler reports them.
fn upstream(metrics: &mut Exposition, cached: &CachedStats) {
    let heartbeat = &cached.snapshot.heartbeat;
    let learned = &heartbeat.learned;
    let (is_up, since) = match heartbeat.upstream {
        UpstreamState::Unknown => (None, None),
        UpstreamState::Up { since } => (Some(1.0), Some(since)),
        UpstreamState::Down { since, .. } => (Some(0.0), Some(since)),
    };
    metrics.one(&table::UPSTREAM_UP, is_up);
    metrics.timestamp(&table::UPSTREAM_CHANGED, since);
    let requests = heartbeat.metrics.requests().map(|(kind, result, took)| {
        let labels = [kind.to_string(), result.to_string()];
        (labels, ms(took, &DURATION_BOUNDS_MS))
    });
    metrics.add(&table::UPSTREAM_REQUEST_DURATION, requests);
    let incarnations = &learned.incarnations;
    metrics.add(&table::UPSTREAM_LIVES_ENDED, count(incarnations.restarts()));
    let processes = incarnations.processes().map(|count| count as f64);
    metrics.one(&table::UPSTREAM_LIFE_PROCESSES, processes);
    let expected = incarnations.expected_length(cached.now);
    let (processes, time) = expected.unzip();
    let seconds = time.flatten().map(|time| time.as_secs_f64());
    metrics.one(&table::UPSTREAM_LIFE_EXPECTED_PROCESSES, processes);
    metrics.one(&table::UPSTREAM_LIFE_EXPECTED_SECONDS, seconds);
    let mean = learned.durations.mean();
    metrics.one(
        &table::UPSTREAM_PROCESS_DURATION_MEAN,
        mean.map(|mean| mean.as_secs_f64()),
    );
    let rate = learned.rate.as_ref();
    let limited = rate.filter(|rate| rate.is_limited());
    metrics.one(
        &table::PACE_STARTS_PER_SECOND,
        limited.map(|rate| rate.rate()),
    );
    metrics.one(&table::PACE_CEILING, rate.and_then(|rate| rate.ceiling()));
    let window = incarnations.window().map(|window| window as f64);
    metrics.one(&table::PROCESSES_IN_FLIGHT_MAX, window);
}

/// Returns a gauge's sample with one label.
fn each<'a>((label, value): (&'static str, f64)) -> ([&'static str; 1], Value<'a>) {
    ([label], Value::Real(value))
}

/// Returns the only sample of a counter without labels.
fn count<'a>(count: u64) -> [([&'static str; 0], Value<'a>); 1] {
    [(UNLABELLED, Value::Count(count))]
}

/// Returns a histogram of milliseconds, scaled to seconds.
fn ms<'a>(histogram: &'a Histogram, bounds: &'a [u64]) -> Value<'a> {
    scaled(histogram, bounds, 1e3)
}

/// Returns a histogram of microseconds, scaled to seconds.
fn us<'a>(histogram: &'a Histogram, bounds: &'a [u64]) -> Value<'a> {
    scaled(histogram, bounds, 1e6)
}

fn scaled<'a>(histogram: &'a Histogram, bounds: &'a [u64], scale: f64) -> Value<'a> {
    Value::Histogram {
        histogram,
        bounds,
        scale,
    }
}
