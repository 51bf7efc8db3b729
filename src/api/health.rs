//! Health of the program and its dependencies.
//!
//! Ready means that orders can be created. An upstream that is down is reported but does not make
//! the API unready: orders are stored until it is back. The reconciler's health follows from its last
//! heartbeat (`reconciler_state.rs`).

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio_util::sync::CancellationToken;
use warp::http::StatusCode;
use warp::reply::Response;

use super::json_answer;
use crate::clock::Clock;
use crate::messages::throttling;
use crate::order::{Rfc3339, Timestamp};
use crate::pace::UpstreamState;
use crate::store::{Store, StoreError};

/// Time for which the result of a database check is reused, because each check costs a disk flush.
const CHECK_VALIDITY: Duration = Duration::from_secs(1);

/// Timeout of a database check, and of reading the heartbeat: together less than the 5 s for which
/// `order-service health` waits, even if another request has begun a check before.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) struct Health {
    store: Store,
    /// For reads of the heartbeat.
    reads: Store,
    draining: CancellationToken,
    started_at: Timestamp,
    draining_since: Arc<OnceLock<Timestamp>>,
    database: tokio::sync::Mutex<Option<LastCheck>>,
}

#[derive(Clone)]
struct LastCheck {
    at: Instant,
    since: Timestamp,
    check: Check,
}

#[derive(Clone, Serialize)]
pub(super) struct Check {
    name: &'static str,
    pub status: &'static str,
    pub since: Option<Rfc3339>,
    pub detail: String,
    /// Durability of an acknowledged commit; of the database alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    durability: Option<&'static str>,
}

/// Body of a health response.
#[derive(Serialize)]
pub(super) struct HealthReport {
    status: &'static str,
    checks: Vec<Check>,
}

/// Name of the check that requests are accepted.
pub(crate) const ACCEPTING: &str = "accepting";

pub(super) const OK: &str = "ok";
/// Status when orders can be created but another check fails.
const DEGRADED: &str = "degraded";
const FAILING: &str = "failing";
const UNKNOWN: &str = "unknown";

impl HealthReport {
    /// Builds a report from checks that determine the status code, and dependencies that do not.
    fn new(checks: Vec<Check>, dependencies: Vec<Check>) -> Self {
        let status = if checks.iter().any(|check| check.status != OK) {
            FAILING
        } else if dependencies.iter().any(|check| check.status == FAILING) {
            DEGRADED
        } else {
            OK
        };
        Self {
            status,
            checks: checks.into_iter().chain(dependencies).collect(),
        }
    }

    pub fn reply(&self) -> Response {
        let status = match self.status {
            FAILING => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::OK,
        };
        json_answer(status, self)
    }
}

/// Returns the liveness report: always healthy, because the program responds.
pub(super) fn live() -> HealthReport {
    HealthReport::new(Vec::new(), Vec::new())
}

impl Health {
    /// Returns the health of a program on this database, which shuts down once `draining` is cancelled.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(store: Store, draining: CancellationToken) -> Self {
        let draining_since = Arc::new(OnceLock::new());
        let (cancelled, cancelled_at) = (draining.clone(), draining_since.clone());
        let clock = store.clock();
        tokio::spawn(async move {
            cancelled.cancelled().await;
            cancelled_at.get_or_init(|| clock.now());
        });
        Self {
            reads: store.for_long_reads(),
            started_at: store.clock().now(),
            store,
            draining,
            draining_since,
            database: tokio::sync::Mutex::new(None),
        }
    }

    /// Checks that orders can be created.
    pub async fn ready(&self) -> HealthReport {
        HealthReport::new(vec![self.database().await, self.accepting()], Vec::new())
    }

    /// Like [`Self::ready`], but also checks the upstream and the reconciler.
    pub async fn all(&self) -> HealthReport {
        let (database, dependencies) = tokio::join!(self.database(), self.dependencies());
        HealthReport::new(vec![database, self.accepting()], dependencies)
    }

    fn accepting(&self) -> Check {
        let draining = self.draining.is_cancelled();
        let since = if draining {
            *self.draining_since.get_or_init(|| self.store.clock().now())
        } else {
            self.started_at
        };
        Check {
            name: ACCEPTING,
            status: if draining { FAILING } else { OK },
            since: Some(Rfc3339(since)),
            detail: if draining {
                "the program is shutting down".to_owned()
            } else {
                "requests are accepted".to_owned()
            },
            durability: None,
        }
    }

    /// Checks that the database can be written. Concurrent callers share one check.
    pub async fn database(&self) -> Check {
        let mut cached = self.database.lock().await;
        if let Some(last) = &*cached
            && last.at.elapsed() < CHECK_VALIDITY
        {
            return last.check.clone();
        }
        let checked_at = self.store.clock().now();
        let write = self.store.check_writable(checked_at);
        let (status, detail) = match tokio::time::timeout(CHECK_TIMEOUT, write).await {
            Ok(Ok(())) => (OK, "orders can be written".to_owned()),
            Ok(Err(StoreError::Overloaded)) => (
                FAILING,
                "orders cannot be written: the write queue is full".to_owned(),
            ),
            Ok(Err(_)) => (
                FAILING,
                "orders cannot be written; the log says why".to_owned(),
            ),
            Err(_) => (
                FAILING,
                format!(
                    "orders cannot be written: a write takes over {} s",
                    CHECK_TIMEOUT.as_secs()
                ),
            ),
        };
        // Failed writes of requests are known before the next check.
        let info = self.store.info();
        let changed_at = match status {
            OK => info.writer.succeeding_since,
            _ => info.writer.failing_since,
        };
        let since = match &*cached {
            Some(last) if last.check.status == status => {
                changed_at.map_or(last.since, |at| at.max(last.since))
            }
            Some(last) => changed_at
                .filter(|at| *at >= last.since)
                .unwrap_or(checked_at),
            None if status == OK => changed_at.unwrap_or(self.started_at),
            None => changed_at.unwrap_or(checked_at),
        };
        let check = Check {
            name: "database",
            status,
            since: Some(Rfc3339(since)),
            detail: detail.to_owned(),
            durability: Some(info.durability.as_str()),
        };
        *cached = Some(LastCheck {
            at: Instant::now(),
            since,
            check: check.clone(),
        });
        check
    }

    async fn dependencies(&self) -> Vec<Check> {
        let read = async {
            let heartbeat = self.reads.heartbeat().await?;
            let oldest_open = match heartbeat.next_pass_at {
                None => self.reads.next_open(0).await?,
                Some(_) => None,
            };
            Ok::<_, StoreError>((heartbeat, oldest_open))
        };
        let Ok(Ok((heartbeat, oldest_open))) = tokio::time::timeout(CHECK_TIMEOUT, read).await
        else {
            let unread = |name, status| Check {
                name,
                status,
                since: None,
                detail: "the reconciler's report cannot be read from the database".to_owned(),
                durability: None,
            };
            return vec![unread("upstream", UNKNOWN), unread("reconciler", FAILING)];
        };
        let (status, since, detail) = match &heartbeat.upstream {
            UpstreamState::Unknown => (
                UNKNOWN,
                None,
                "it is not known yet whether it answers".to_owned(),
            ),
            UpstreamState::Up { since } => {
                let but = throttling(heartbeat.learned.throttling, self.store.clock().now());
                let but = but.map_or_else(String::new, |but| format!(", but {but}"));
                (OK, Some(*since), format!("it answers{but}"))
            }
            UpstreamState::Down { since, detail } => (FAILING, Some(*since), detail.clone()),
        };
        let upstream = Check {
            name: "upstream",
            status,
            since: since.map(Rfc3339),
            detail,
            durability: None,
        };
        let now = self.store.clock().now();
        let leader = heartbeat.leader_status(now);
        let oldest_open = oldest_open.map(|order| order.created_at);
        let is_overdue = heartbeat.is_overdue(now, oldest_open);
        let status = match heartbeat.next_pass_at {
            _ if is_overdue => FAILING,
            None => UNKNOWN,
            Some(_) => OK,
        };
        let reconciler = Check {
            name: "reconciler",
            status,
            since: leader.since.map(Rfc3339),
            detail: match leader.problem {
                // After `--once`, no reconciler is needed until the next run is due.
                Some(problem) if status != OK => problem.to_owned(),
                _ => heartbeat.last_pass(),
            },
            durability: None,
        };
        vec![upstream, reconciler]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::order::OrderId;
    use crate::store::{DatabaseUrl, Mode};

    /// Longer than a clock tick, and than any other step of these tests takes.
    const PAUSE: Duration = Duration::from_millis(300);

    #[tokio::test(flavor = "multi_thread")]
    async fn since_is_when_the_state_began_and_not_when_it_was_checked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("orders.db");
        let store = Store::open(&DatabaseUrl::from(path.clone()), Mode::Threaded).unwrap();
        let draining = CancellationToken::new();
        let health = Health::new(store.clone(), draining.clone());
        let since = |check: &Check| check.since.unwrap().0;
        let create = async |id: &str| {
            let created = store.create(OrderId::new(id).unwrap(), Timestamp(0));
            created.await.is_ok()
        };
        let started_at = health.started_at;
        assert_eq!(since(&health.database().await), started_at);

        std::fs::rename(&path, folder.path().join("away")).unwrap();
        assert!(!create("a1").await);
        tokio::time::sleep(CHECK_VALIDITY + PAUSE).await;
        let checked_at = SystemClock.now();
        let found = health.database().await;
        assert_eq!(found.status, FAILING);
        let failing_since = since(&found);
        assert!(failing_since.after(PAUSE) < checked_at, "{failing_since:?}");

        std::fs::rename(folder.path().join("away"), &path).unwrap();
        assert!(create("a1").await);
        tokio::time::sleep(CHECK_VALIDITY + PAUSE).await;
        let checked_at = SystemClock.now();
        let found = health.database().await;
        assert_eq!(found.status, OK);
        assert!(since(&found) > failing_since && since(&found).after(PAUSE) < checked_at);

        draining.cancel();
        tokio::time::sleep(PAUSE * 2).await;
        let checked_at = SystemClock.now();
        let found = health.accepting();
        assert_eq!(found.status, FAILING);
        assert!(since(&found).after(PAUSE) < checked_at);
    }
}
