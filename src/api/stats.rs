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
use super::json::object;
use super::problem::{Problem, store_problem};
use super::stats_cache::CachedStats;
use super::{Api, json_answer, request};
use crate::decide::LostProcess;
use crate::messages::{reduction_cause, throttling};
use crate::order::EventReason;
use crate::order::{Reason, ResolvedBy, Rfc3339, Status, Timestamp};
use crate::pace::{LearnedLimits, StartRate, UpstreamState};
use crate::reconciler_state::ReconcilerState;
use crate::store::{DatabaseInfo, DatabaseSize};

impl Api {
    /// `GET /stats`.
    pub(super) async fn stats(&self, query: &str) -> Result<Response, Problem> {
        request::no_parameters(query)?;
        let (database, cached, size) = tokio::join!(
            self.health.database(),
            self.stats_cache.read(&self.store),
            self.store.size(),
        );
        let cached = cached.map_err(store_problem)?;
        let info = self.store.info();
        let stats = stats(&cached, database, info, size);
        Ok(json_answer(StatusCode::OK, &stats))
    }
}

fn stats(
    cached: &CachedStats,
    database: Check,
    info: DatabaseInfo,
    size: DatabaseSize,
) -> impl Serialize {
    let (now, journal) = (cached.now, &cached.journal);
    let heartbeat = &cached.snapshot.heartbeat;
    let orders = Status::ALL.map(|status| (status, cached.orders(status)));
    let attention = Reason::ALL.map(|reason| {
        let by = ResolvedBy::ALL.map(|by| cached.attention(reason, by));
        (reason.as_str(), by.iter().sum::<u64>())
    });
    let attention_by = ResolvedBy::ALL.map(|by| {
        let of = Reason::ALL.map(|reason| cached.attention(reason, by));
        (by.as_str(), of.iter().sum::<u64>())
    });
    let oldest_open = cached.snapshot.oldest_open.as_ref();
    let per_minute = journal.per_minute(now).into_iter().map(|minute| {
        object! {
            at: Rfc3339(minute.at),
            created: minute.created,
            settled: minute.settled,
        }
    });
    // Of the orders that settled in the reported minutes.
    let times = journal.time_to_settle(now);
    object! {
        at: Rfc3339(now),
        orders: BTreeMap::from(orders),
        attention: BTreeMap::from(attention),
        attention_by: BTreeMap::from(attention_by),
        oldest_open: oldest_open.map(|order| object! {
            id: order.id.to_string(),
            status: order.status,
            created_at: Rfc3339(order.created_at),
        }),
        newest_event: journal.last_seq(),
        per_minute: per_minute.collect::<Vec<_>>(),
        time_to_settle: object! {
            orders: times.total(),
            p50_seconds: times.quantile(0.5).map(seconds),
            p95_seconds: times.quantile(0.95).map(seconds),
        },
        restarts: object! {
            last_hour: journal.recent_restarts(now),
            total: journal.entries_with(EventReason::Restarted),
        },
        database: object! {
            status: database.status,
            since: database.since,
            detail: (database.status != OK).then_some(database.detail),
            engine: info.engine,
            durability: info.durability.as_str(),
            bytes: size.database,
            wal_bytes: size.log,
            lost_entries: info.lost_entries,
        },
        upstream: upstream(heartbeat, now),
        reconciler: reconciler(heartbeat, now),
        pace: pace(&heartbeat.learned, cached),
    }
}

/// Returns a duration in seconds, rounded to milliseconds like all times.
fn seconds(duration: Duration) -> f64 {
    duration.as_millis() as f64 / 1_000.0
}

fn upstream(heartbeat: &ReconcilerState, now: Timestamp) -> impl Serialize {
    let (status, since, detail) = match &heartbeat.upstream {
        UpstreamState::Unknown => ("unknown", None, None),
        UpstreamState::Up { since } => {
            let detail = throttling(heartbeat.learned.throttling, now);
            ("up", Some(*since), detail)
        }
        UpstreamState::Down { since, detail } => ("down", Some(*since), Some(detail.clone())),
    };
    let incarnations = &heartbeat.learned.incarnations;
    let expected = incarnations.expected_length(now);
    object! {
        status: status,
        since: since.map(Rfc3339),
        detail: detail,
        // Time of the last observation that covered all open orders due for one.
        last_seen_at: heartbeat.last_observed_at.map(Rfc3339),
        life: object! {
            processes: incarnations.processes(),
            began_at: incarnations.began_at().map(Rfc3339),
            ended: incarnations.restarts(),
            expected_processes: expected.map(|(processes, _)| processes.round() as u64),
            expected_seconds: expected.and_then(|(_, time)| time).map(seconds),
        },
        process_seconds: heartbeat.learned.durations.mean().map(seconds),
    }
}

fn reconciler(heartbeat: &ReconcilerState, now: Timestamp) -> impl Serialize {
    let reconciler = heartbeat.leader_status(now);
    object! {
        status: reconciler.status.as_str(),
        since: reconciler.since.map(Rfc3339),
        detail: reconciler.problem,
        last_pass_at: heartbeat.last_pass_at.map(Rfc3339),
        next_pass_at: heartbeat.next_pass_at.map(Rfc3339),
        next_look_at: heartbeat.next_poll_at.map(Rfc3339),
        policy: heartbeat.policy.map(LostProcess::as_str),
    }
}

fn pace(learned: &LearnedLimits, cached: &CachedStats) -> impl Serialize {
    let rate = learned.rate.as_ref();
    let limited = rate.filter(|rate| rate.is_limited());
    let wait = learned.wait(cached.orders(Status::Created), cached.now);
    let wait_seconds = limited.and(wait).map(|wait| wait.as_secs_f64().ceil());
    object! {
        // Null while it is unknown, and if it is unlimited.
        starts_per_second: limited.map(|rate| (rate.rate() * 1e3).round() / 1e3),
        ceiling: rate.and_then(|rate| rate.ceiling()),
        reason: rate
            .and_then(StartRate::reduction_cause)
            .map(|cause| reduction_cause(cause).to_owned()),
        in_flight: cached.orders(Status::Processing),
        window: learned.incarnations.window(),
        // To start all CREATED orders at this rate. Null while the window is full, or no start is accepted.
        wait_seconds: wait_seconds,
        resting_until: learned.starts_paused_until(cached.now).map(Rfc3339),
    }
}
