//! `GET /metrics`: everything that can be counted, for Prometheus. It tells of the reconciler too,
//! because behind NAT nobody can reach that one: what it has left in the database.
//!
//! Names and units follow Prometheus' conventions; no label ever has the id of an order. How it is
//! written as text is in `exposition`.

mod exposition;

use warp::Reply;
use warp::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use warp::reply::Response;

use self::exposition::{Labels, MEDIA_TYPE, Metrics, Scaled, label};
use super::health::OK;
use super::overview::Seen;
use super::problem::{Problem, store_problem};
use super::traffic::ANSWERED_WITHIN_US;
use super::{Api, request};
use crate::history::SETTLED_WITHIN_MS;
use crate::order::EventReason;
use crate::order::{Reason, Status};
use crate::pace::Reach;
use crate::reconciler::is_overdue;
use crate::spread::Histogram;
use crate::store::{COMMITTED_AT_ONCE, COMMITTED_WITHIN_US, Heartbeat, Sizes, Writing};
use crate::tally::TOOK_WITHIN_MS;

const MS_PER_SECOND: f64 = 1e3;
const US_PER_SECOND: f64 = 1e6;

impl Api {
    /// `GET /metrics`.
    pub(super) async fn metrics(&self, query: &str) -> Result<Response, Problem> {
        request::no_parameters(query)?;
        let mut metrics = Metrics::default();
        let version = label("version", env!("CARGO_PKG_VERSION"));
        metrics.gauge("build_info", "The version that runs.", [(version, 1.0)]);
        let is_writable = self.health.database().await.status == OK;
        // What the rest is made of may be told also while the database cannot be read.
        match self.overview.look(&self.store).await {
            Ok(seen) => {
                orders(&mut metrics, &seen);
                let heartbeat = &seen.glance.heartbeat;
                reconciler(
                    &mut metrics,
                    heartbeat,
                    is_overdue(heartbeat.next_pass_at, seen.now),
                );
                upstream(&mut metrics, &seen);
            }
            Err(error) => drop(store_problem(error)),
        }
        database(
            &mut metrics,
            is_writable,
            self.store.sizes(),
            &self.store.writing(),
        );
        self.http(&mut metrics);
        let text = metrics.text().expect("numbers can be written to memory");
        let mut response = text.into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Ok(response)
    }

    fn http(&self, metrics: &mut Metrics) {
        let traffic = self.traffic.told();
        metrics.histogram(
            "http_request_duration_seconds",
            "Time until the answer to a request began, by route, method and status.",
            traffic.iter().map(|(traits, times)| {
                let labels = vec![
                    ("route", traits.route.to_owned()),
                    ("method", traits.method.to_owned()),
                    ("status", traits.status.to_string()),
                ];
                (labels, scaled(times, &ANSWERED_WITHIN_US, US_PER_SECOND))
            }),
        );
        let (waiting, streams) = self.watcher.taken();
        metrics.one(
            "http_requests_waiting",
            "Requests whose answers are held until an order is settled.",
            Some(waiting as f64),
        );
        metrics.one(
            "http_streams",
            "Streams of events that are open.",
            Some(streams as f64),
        );
        let (open, max) = self.occupancy.connections();
        let (crowd, crowd_max) = self.occupancy.crowd();
        let places = [("served", open, max), ("crowd", crowd, crowd_max)];
        metrics.gauge(
            "http_connections",
            "Open connections: served, or in the crowd that is only told that there is no place.",
            places.map(|(place, open, _)| (label("place", place), open as f64)),
        );
        metrics.gauge(
            "http_connections_max",
            "Connections that there are places for.",
            places.map(|(place, _, max)| (label("place", place), max as f64)),
        );
        metrics.one(
            "http_requests_in_flight",
            "Requests whose answers are not written yet, this one included.",
            Some(self.occupancy.requests() as f64),
        );
    }
}

/// What the journal tells, and what needs looking at.
fn orders(metrics: &mut Metrics, seen: &Seen) {
    let history = &seen.history;
    metrics.gauge(
        "orders",
        "Orders by status.",
        Status::ALL.map(|s| (label("status", s.as_str()), seen.orders(s) as f64)),
    );
    metrics.gauge(
        "orders_needing_attention",
        "Open orders that need looking at, by reason.",
        Reason::ALL.map(|r| (label("reason", r.as_str()), seen.attention(r) as f64)),
    );
    metrics.moment(
        "oldest_open_order_timestamp_seconds",
        "When the oldest order that is not settled was created; nothing if there is none.",
        seen.glance
            .oldest_open
            .as_ref()
            .map(|order| order.created_at),
    );
    metrics.counter(
        "orders_created_total",
        "Orders created.",
        [(Labels::new(), history.entries_with(EventReason::Created))],
    );
    metrics.counter(
        "orders_pruned_total",
        "Settled orders removed by prune, by status.",
        [Status::Fulfilled, Status::Failed].map(|status| {
            let removed = seen.glance.pruned.in_status(status);
            (label("status", status.as_str()), removed)
        }),
    );
    let transitions = EventReason::ALL
        .into_iter()
        .filter(|reason| *reason != EventReason::Created);
    metrics.counter(
        "order_transitions_total",
        "Changes of orders after their creation, by the journal's reason.",
        transitions.map(|reason| {
            (
                label("reason", reason.as_str()),
                history.entries_with(reason),
            )
        }),
    );
    let within = scaled(history.settled_within(), &SETTLED_WITHIN_MS, MS_PER_SECOND);
    metrics.histogram(
        "order_time_to_settle_seconds",
        "Time from an order's creation to its end.",
        [(Labels::new(), within)],
    );
}

/// The database, and what this process writes to it.
fn database(metrics: &mut Metrics, is_writable: bool, sizes: Sizes, writing: &Writing) {
    metrics.one(
        "database_writable",
        "Whether orders can be written: 1 or 0.",
        Some(f64::from(is_writable)),
    );
    metrics.one(
        "database_bytes",
        "Size of the database file.",
        Some(sizes.database as f64),
    );
    metrics.one(
        "database_wal_bytes",
        "Size of the write-ahead log beside it.",
        Some(sizes.log as f64),
    );
    metrics.histogram(
        "write_batch_duration_seconds",
        "Time from wanting the turn to write until a batch of writes is on disk.",
        [(
            Labels::new(),
            scaled(&writing.took, &COMMITTED_WITHIN_US, US_PER_SECOND),
        )],
    );
    metrics.histogram(
        "write_batch_writes",
        "Writes that share a batch.",
        [(
            Labels::new(),
            scaled(&writing.at_once, &COMMITTED_AT_ONCE, 1.0),
        )],
    );
    metrics.one(
        "write_queue_length",
        "Writes that wait.",
        Some(writing.waiting as f64),
    );
    metrics.one(
        "write_queue_capacity",
        "Writes that may wait; more are refused.",
        Some(writing.waiting_max as f64),
    );
    let refused = [
        ("overloaded", writing.overloaded),
        ("unwritable", writing.unwritable),
        ("outcome_unknown", writing.unknown),
    ];
    metrics.counter(
        "writes_refused_total",
        "Writes that were not carried out, or perhaps not, by reason.",
        refused.map(|(reason, count)| (label("reason", reason), count)),
    );
}

/// What the reconciler tells of itself.
fn reconciler(metrics: &mut Metrics, heartbeat: &Heartbeat, is_late: bool) {
    let tally = &heartbeat.tally;
    metrics.one(
        "reconciler_overdue",
        "Whether the next pass is more than a minute late: 1 or 0.",
        Some(f64::from(is_late)),
    );
    metrics.moment(
        "reconciler_leader_since_timestamp_seconds",
        "When the present leader took over.",
        heartbeat.leader_since,
    );
    metrics.counter(
        "reconciler_leaderships_total",
        "How often a reconciler took the lead.",
        [(Labels::new(), tally.leaderships())],
    );
    metrics.moment(
        "reconciler_last_pass_timestamp_seconds",
        "When the last pass was completed.",
        heartbeat.last_pass_at,
    );
    metrics.moment(
        "reconciler_last_seen_timestamp_seconds",
        "When the open orders that were due for it were last observed.",
        heartbeat.last_seen_at,
    );
    metrics.histogram(
        "reconciler_pass_duration_seconds",
        "Duration of passes, by result.",
        tally.passes().map(|(ended, took)| {
            let took = scaled(took, &TOOK_WITHIN_MS, MS_PER_SECOND);
            (label("result", ended.as_str()), took)
        }),
    );
    metrics.counter(
        "starts_total",
        "Starts of processes that were sent.",
        [(Labels::new(), tally.sent_starts())],
    );
    metrics.counter(
        "repeated_starts_total",
        "Starts for orders for which one may have taken effect before.",
        [(Labels::new(), tally.sent_repeated_starts())],
    );
}

/// What the reconciler tells of the upstream.
fn upstream(metrics: &mut Metrics, seen: &Seen) {
    let heartbeat = &seen.glance.heartbeat;
    let learned = &heartbeat.learned;
    let (is_up, since) = match heartbeat.reach {
        Reach::Unknown => (None, None),
        Reach::Up { since } => (Some(1.0), Some(since)),
        Reach::Down { since, .. } => (Some(0.0), Some(since)),
    };
    metrics.one(
        "upstream_up",
        "Whether the upstream answers: 1 or 0.",
        is_up,
    );
    metrics.moment(
        "upstream_changed_timestamp_seconds",
        "Since when it does, or does not.",
        since,
    );
    metrics.histogram(
        "upstream_request_duration_seconds",
        "Duration of requests to the upstream, by kind and result.",
        heartbeat.tally.requests().map(|(kind, result, took)| {
            let labels = vec![
                ("kind", kind.as_str().to_owned()),
                ("result", result.as_str().to_owned()),
            ];
            (labels, scaled(took, &TOOK_WITHIN_MS, MS_PER_SECOND))
        }),
    );
    let lives = &learned.lives;
    metrics.counter(
        "upstream_lives_ended_total",
        "How often the upstream was found to have been restarted.",
        [(Labels::new(), lives.ended())],
    );
    metrics.one(
        "upstream_life_processes",
        "Processes in the upstream's present life.",
        lives.processes().map(|count| count as f64),
    );
    let expected = lives.expected(seen.now);
    metrics.one(
        "upstream_life_expected_processes",
        "Processes in a life of the upstream, as expected.",
        expected.map(|(processes, _)| processes),
    );
    metrics.one(
        "upstream_life_expected_seconds",
        "Length of a life of the upstream, as expected.",
        expected.map(|(_, time)| time.as_secs_f64()),
    );
    metrics.one(
        "upstream_process_duration_mean_seconds",
        "Duration of a process on average, as learned.",
        learned
            .durations
            .known_mean()
            .map(|mean| mean.as_secs_f64()),
    );
    let rate = learned.rate.as_ref();
    metrics.one(
        "pace_starts_per_second",
        "Starts per second at most at present; nothing if nothing limits them.",
        rate.filter(|rate| rate.is_limited())
            .map(|rate| rate.rate()),
    );
    metrics.one(
        "pace_ceiling_starts_per_second",
        "The ceiling of the pace; nothing if there is none.",
        rate.and_then(|rate| rate.ceiling()),
    );
    metrics.one(
        "processes_in_flight_max",
        "Processes that may run at once; nothing while that is not limited.",
        lives.window().map(|window| window as f64),
    );
}

fn scaled<'a>(histogram: &'a Histogram, bounds: &'a [u64], scale: f64) -> Scaled<'a> {
    Scaled {
        histogram,
        bounds,
        scale,
    }
}
