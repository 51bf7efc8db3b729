//! `GET /stats`: numbers of orders, throughput, and the state of all dependencies, as one JSON
//! object for the dashboard.
//!
//! Unknown values are null. The journal's figures come from `api/stats_cache.rs`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use warp::http::StatusCode;
use warp::reply::Response;

use super::health::{Check, OK};
use super::problem::{Problem, store_problem};
use super::stats_cache::CachedStats;
use super::{Api, json_answer, request};
use crate::decide::LostProcess;
use crate::journal_stats::JournalStats;
use crate::messages::reduction_cause;
use crate::order::EventReason;
use crate::order::{Reason, ResolvedBy, Rfc3339, Status, Timestamp};
use crate::pace::{LearnedLimits, StartRate, UpstreamState};
use crate::reconciler_state::ReconcilerState;
use crate::store::DatabaseInfo;

impl Api {
    /// `GET /stats`.
    pub(super) async fn stats(&self, query: &str) -> Result<Response, Problem> {
        request::no_parameters(query)?;
        let (database, cached, info) = tokio::join!(
            self.health.database(),
            self.stats_cache.read(&self.store),
            self.store.info(),
        );
        let stats = Stats::new(&cached.map_err(store_problem)?, database, info);
        let body =
            serde_json::to_vec(&stats).expect("strings and numbers can be written to memory");
        Ok(json_answer(StatusCode::OK, body))
    }
}

#[derive(Serialize)]
struct Stats {
    at: Rfc3339,
    orders: BTreeMap<Status, u64>,
    attention: BTreeMap<&'static str, u64>,
    attention_by: BTreeMap<&'static str, u64>,
    oldest_open: Option<OldestOpen>,
    per_minute: Vec<Minute>,
    time_to_settle: TimeToSettle,
    restarts: Restarts,
    database: Database,
    upstream: Upstream,
    reconciler: Reconciler,
    pace: Pace,
}

#[derive(Serialize)]
struct OldestOpen {
    id: String,
    status: Status,
    created_at: Rfc3339,
}

#[derive(Serialize)]
struct Minute {
    at: Rfc3339,
    created: u64,
    settled: u64,
}

/// Settling times of the orders that settled in the reported minutes.
#[derive(Serialize)]
struct TimeToSettle {
    orders: u64,
    p50_seconds: Option<f64>,
    p95_seconds: Option<f64>,
}

#[derive(Serialize)]
struct Restarts {
    last_hour: u64,
    total: u64,
}

#[derive(Serialize)]
struct Database {
    status: &'static str,
    since: Option<Rfc3339>,
    detail: Option<String>,
    engine: &'static str,
    durability: &'static str,
    bytes: u64,
    wal_bytes: Option<u64>,
    lost_entries: u64,
}

#[derive(Serialize)]
struct Upstream {
    status: &'static str,
    since: Option<Rfc3339>,
    detail: Option<String>,
    /// Time of the last observation that covered all open orders due for one.
    last_seen_at: Option<Rfc3339>,
    life: Incarnation,
    /// Average duration of a process, in seconds.
    process_seconds: Option<f64>,
}

#[derive(Serialize)]
struct Incarnation {
    /// Number of processes in the current incarnation.
    processes: Option<u64>,
    began_at: Option<Rfc3339>,
    /// Number of restarts observed.
    ended: u64,
    expected_processes: Option<u64>,
    expected_seconds: Option<f64>,
}

#[derive(Serialize)]
struct Reconciler {
    status: &'static str,
    since: Option<Rfc3339>,
    detail: Option<&'static str>,
    last_pass_at: Option<Rfc3339>,
    next_pass_at: Option<Rfc3339>,
    next_look_at: Option<Rfc3339>,
    /// Policy for orders whose process the upstream has lost.
    policy: Option<&'static str>,
}

#[derive(Serialize)]
struct Pace {
    /// Start rate. Null while it is unknown, and if it is unlimited.
    starts_per_second: Option<f64>,
    ceiling: Option<f64>,
    /// Reason for a reduced rate.
    reason: Option<String>,
    in_flight: u64,
    /// Maximum number of orders in flight.
    window: Option<u64>,
    /// Time to start all CREATED orders at this rate, in seconds. Null while the window is full.
    wait_seconds: Option<f64>,
    /// End of the pause that the upstream requested with `Retry-After`.
    resting_until: Option<Rfc3339>,
}

impl Stats {
    fn new(cached: &CachedStats, database: Check, info: DatabaseInfo) -> Self {
        let (now, journal) = (cached.now, &cached.journal);
        let heartbeat = &cached.snapshot.heartbeat;
        let orders = Status::ALL.map(|status| (status, cached.orders(status)));
        let attention = Reason::ALL.map(|reason| {
            let by = ResolvedBy::ALL.map(|by| cached.attention(reason, by));
            (reason.as_str(), by.iter().sum())
        });
        let attention_by = ResolvedBy::ALL.map(|by| {
            let of = Reason::ALL.map(|reason| cached.attention(reason, by));
            (by.as_str(), of.iter().sum())
        });
        let oldest_open = cached.snapshot.oldest_open.as_ref();
        Self {
            at: Rfc3339(now),
            orders: orders.into(),
            attention: attention.into(),
            attention_by: attention_by.into(),
            oldest_open: oldest_open.map(|order| OldestOpen {
                id: order.id.to_string(),
                status: order.status,
                created_at: Rfc3339(order.created_at),
            }),
            per_minute: per_minute(journal, now),
            time_to_settle: time_to_settle(journal, now),
            restarts: Restarts {
                last_hour: journal.recent_restarts(now),
                total: journal.entries_with(EventReason::Restarted),
            },
            database: Database {
                status: database.status,
                since: database.since,
                detail: (database.status != OK).then_some(database.detail),
                engine: info.engine,
                durability: info.durability.as_str(),
                bytes: info.bytes,
                wal_bytes: info.log_bytes,
                lost_entries: info.lost_entries,
            },
            upstream: upstream(heartbeat, now),
            reconciler: reconciler(heartbeat, now),
            pace: pace(&heartbeat.learned, cached),
        }
    }
}

fn per_minute(journal: &JournalStats, now: Timestamp) -> Vec<Minute> {
    let minutes = journal.per_minute(now).into_iter();
    minutes
        .map(|minute| Minute {
            at: Rfc3339(minute.at),
            created: minute.created,
            settled: minute.settled,
        })
        .collect()
}

fn time_to_settle(journal: &JournalStats, now: Timestamp) -> TimeToSettle {
    let times = journal.time_to_settle(now);
    TimeToSettle {
        orders: times.len(),
        p50_seconds: times.quantile(0.5).map(seconds),
        p95_seconds: times.quantile(0.95).map(seconds),
    }
}

/// Returns a duration in seconds, rounded to milliseconds like all times.
fn seconds(duration: Duration) -> f64 {
    duration.as_millis() as f64 / 1_000.0
}

fn upstream(heartbeat: &ReconcilerState, now: Timestamp) -> Upstream {
    let (status, since, detail) = match &heartbeat.upstream {
        UpstreamState::Unknown => ("unknown", None, None),
        UpstreamState::Up { since } => ("up", Some(*since), None),
        UpstreamState::Down { since, detail } => ("down", Some(*since), Some(detail.clone())),
    };
    let incarnations = &heartbeat.learned.incarnations;
    let expected = incarnations.expected_length(now);
    Upstream {
        status,
        since: since.map(Rfc3339),
        detail,
        last_seen_at: heartbeat.last_observed_at.map(Rfc3339),
        life: Incarnation {
            processes: incarnations.processes(),
            began_at: incarnations.began_at().map(Rfc3339),
            ended: incarnations.restarts(),
            expected_processes: expected.map(|(processes, _)| processes.round() as u64),
            expected_seconds: expected.and_then(|(_, time)| time).map(seconds),
        },
        process_seconds: heartbeat.learned.durations.mean().map(seconds),
    }
}

fn reconciler(heartbeat: &ReconcilerState, now: Timestamp) -> Reconciler {
    let reconciler = heartbeat.leader_status(now);
    Reconciler {
        status: reconciler.status.as_str(),
        since: reconciler.since.map(Rfc3339),
        detail: reconciler.problem,
        last_pass_at: heartbeat.last_pass_at.map(Rfc3339),
        next_pass_at: heartbeat.next_pass_at.map(Rfc3339),
        next_look_at: heartbeat.next_poll_at.map(Rfc3339),
        policy: heartbeat.policy.map(LostProcess::as_str),
    }
}

fn pace(learned: &LearnedLimits, cached: &CachedStats) -> Pace {
    let rate = learned.rate.as_ref();
    let limited = rate.filter(|rate| rate.is_limited());
    let wait = learned.wait(cached.orders(Status::Created));
    let wait_seconds = limited.and(wait).map(|wait| wait.as_secs_f64().ceil());
    Pace {
        starts_per_second: limited.map(|rate| (rate.rate() * 1e3).round() / 1e3),
        ceiling: rate.and_then(|rate| rate.ceiling()),
        reason: rate
            .and_then(StartRate::reduction_cause)
            .map(|cause| reduction_cause(cause).to_owned()),
        in_flight: cached.orders(Status::Processing),
        window: learned.incarnations.window(),
        wait_seconds,
        resting_until: learned
            .resting_until
            .filter(|at| *at > cached.now)
            .map(Rfc3339),
    }
}
