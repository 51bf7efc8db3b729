//! `GET /stats`, compared with the orders and with counts by the database.

use std::collections::BTreeMap;

use chrono::DateTime;
use order_service::clock::{Clock, SystemClock};
use order_service::order::{Reason, ResolvedBy, Rfc3339, Timestamp};
use order_service::pace::{StartRate, UpstreamState};
use order_service::store::{AttentionUpdate, Transition};
use rusqlite::Connection;
use serde_json::{Value, json};

use crate::environment::{
    Client, TestEnvironment, fill, ready, record, until, with_api, write_heartbeat,
};
use crate::events::settle;

async fn stats(client: &Client, api: &str) -> Value {
    let answer = client.get(format!("{api}/stats")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(answer.header("cache-control"), "no-store");
    answer.json()
}

/// Reads the statistics until `done` returns true.
async fn stats_when(client: &Client, api: &str, done: impl Fn(&Value) -> bool) -> Value {
    until(async || stats(client, api).await, done).await
}

fn sum(per_minute: &Value, name: &str) -> u64 {
    let minutes = per_minute.as_array().unwrap();
    assert_eq!(minutes.len(), 60);
    minutes
        .iter()
        .map(|minute| minute[name].as_u64().unwrap())
        .sum()
}

fn ids(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("order-{n}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_statistics_of_a_run_agree_with_counts_by_the_database() {
    let env = TestEnvironment::new();
    let simulator = env.simulator(&["--max-order-process-duration", "2"]);
    let service = env.serve(&simulator.url, &["--start-rate", "0"]);
    let client = Client::new();
    // The first read is of an empty journal; later ones continue from there.
    let empty = stats(&client, &service.url).await;
    assert_eq!(empty["oldest_open"], Value::Null);
    assert_eq!(empty["newest_event"], 0);
    let none = json!({"orders": 0, "p50_seconds": null, "p95_seconds": null});
    assert_eq!(empty["time_to_settle"], none);
    for id in ids(200) {
        client.create(&service.url, &id).await;
        if id.ends_with("00") {
            stats(&client, &service.url).await;
        }
    }
    let orders = client.settled(&service.url, 200).await;
    let figures = stats(&client, &service.url).await;

    let mut counts =
        BTreeMap::from(["CREATED", "PROCESSING", "FULFILLED", "FAILED"].map(|s| (s, 0)));
    for order in &orders {
        *counts.get_mut(order["status"].as_str().unwrap()).unwrap() += 1;
    }
    assert_eq!(figures["orders"], json!(counts));
    assert_eq!(figures["oldest_open"], Value::Null);
    assert_eq!(sum(&figures["per_minute"], "created"), 200);
    assert_eq!(sum(&figures["per_minute"], "settled"), 200);
    let db = Connection::open(env.database()).unwrap();
    for minute in figures["per_minute"].as_array().unwrap() {
        let at = DateTime::parse_from_rfc3339(minute["at"].as_str().unwrap()).unwrap();
        let count = |reasons: &str| {
            let sql = format!(
                "SELECT count(*) FROM journal WHERE at / 60000 * 60000 = ?1 AND reason IN ({reasons})"
            );
            db.query_row(&sql, [at.timestamp_millis()], |row| row.get::<_, i64>(0))
                .unwrap()
        };
        assert_eq!(minute["created"], count("'created'"));
        assert_eq!(minute["settled"], count("'succeeded', 'failed'"));
    }
    let times = &figures["time_to_settle"];
    let taken = |sql: &str| db.query_row(sql, [], |row| row.get::<_, f64>(0)).unwrap();
    let (least, most) = (
        taken("SELECT min(updated_at - created_at) / 1000.0 FROM orders"),
        taken("SELECT max(updated_at - created_at) / 1000.0 FROM orders"),
    );
    let p50 = times["p50_seconds"].as_f64().unwrap();
    let p95 = times["p95_seconds"].as_f64().unwrap();
    assert_eq!(times["orders"], 200);
    assert!(
        least * 0.99 <= p50 && p50 <= p95 && p95 <= most * 1.01,
        "{times}"
    );

    let newest = db.query_row("SELECT max(seq) FROM journal", [], |row| {
        row.get::<_, i64>(0)
    });
    assert_eq!(figures["newest_event"], newest.unwrap());
    assert_eq!(figures["restarts"], json!({"last_hour": 0, "total": 0}));
    assert_eq!(figures["database"]["status"], "ok");
    assert!(figures["database"]["bytes"].as_u64().unwrap() > 0);
    let figures = stats_when(&client, &service.url, |figures| {
        !figures["upstream"]["process_seconds"].is_null()
    })
    .await;
    assert_eq!(figures["upstream"]["status"], "up");
    assert_eq!(figures["upstream"]["detail"], Value::Null);
    assert_eq!(figures["upstream"]["life"]["ended"], 0);
    assert_eq!(figures["reconciler"]["status"], "leading");
    let pace = json!({"starts_per_second": null, "ceiling": null, "reason": null, "in_flight": 0, "window": null, "wait_seconds": null, "resting_until": null});
    assert_eq!(figures["pace"], pace, "without a ceiling nothing limits it");
}

#[tokio::test(flavor = "multi_thread")]
async fn attention_is_counted_as_in_the_orders() {
    let (env, api, client) = with_api();
    let store = env.store();
    fill(&store, &ids(10), 10).await;
    let flag = async |seq: i64, reason: Reason| {
        let now = SystemClock.now();
        let update = AttentionUpdate {
            reason,
            detail: "for a test".to_owned(),
            next_attempt_at: now,
        };
        record(&store, [(seq, Transition::Flagged(update))], now).await;
    };
    flag(2, Reason::StartRefused).await;
    flag(3, Reason::StartRefused).await;
    flag(4, Reason::UpstreamUnreachable).await;
    flag(5, Reason::MaxStarts).await;
    settle(&store, [6, 7]).await;
    let mut heartbeat = ready(store.heartbeat()).unwrap();
    let since = Timestamp(SystemClock.now().0 - 5_000);
    for upstream in [
        UpstreamState::Up { since },
        UpstreamState::Down {
            since,
            detail: "no connection".to_owned(),
        },
    ] {
        heartbeat.upstream = upstream;
        write_heartbeat(&store, heartbeat.clone()).await;
        let figures = stats(&client, &api.url).await;
        let mut counts = BTreeMap::from(Reason::ALL.map(|reason| (reason.as_str(), 0)));
        let flagged = client
            .get(format!("{}/order?attention=true", api.url))
            .await;
        for order in flagged.json().as_array().unwrap() {
            let reason = order["attention"]["reason"].as_str().unwrap();
            *counts.get_mut(reason).unwrap() += 1;
        }
        assert_eq!(figures["attention"], json!(counts));
        let mut by = BTreeMap::from(ResolvedBy::ALL.map(|by| (by.as_str(), 0)));
        for order in flagged.json().as_array().unwrap() {
            let word = order["attention"]["by"].as_str().unwrap();
            *by.get_mut(word).unwrap() += 1;
        }
        assert_eq!(figures["attention_by"], json!(by));
        assert_eq!(figures["attention_by"]["operator"], 1);
        let list = client
            .get(format!("{}/order?limit=1", api.url))
            .await
            .json();
        for member in ["id", "status", "created_at"] {
            assert_eq!(figures["oldest_open"][member], list[0][member]);
        }
    }
    let figures = stats(&client, &api.url).await;
    assert_eq!(
        figures["attention"]["upstream_unreachable"], 5,
        "1 of its own, and 4"
    );
    assert_eq!(figures["upstream"]["status"], "down");
    assert_eq!(figures["upstream"]["detail"], "no connection");
    let health = client.get(format!("{}/healthz", api.url)).await.json();
    for check in health["checks"].as_array().unwrap() {
        let name = check["name"].as_str().unwrap();
        if ["database", "upstream"].contains(&name) {
            assert_eq!(figures[name]["since"], check["since"], "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_answers_every_start_with_429_is_reported_as_throttling_them() {
    let (env, api, client) = with_api();
    let store = env.store();
    client.create(&api.url, "a1").await;
    let mut heartbeat = ready(store.heartbeat()).unwrap();
    let now = SystemClock.now().0;
    let since = Timestamp(now - 60_000);
    heartbeat.upstream = UpstreamState::Up { since };
    heartbeat.learned.rate = Some(StartRate::new(2.0, since));
    for (first_at, is_reported) in [(now - 2_000, false), (now - 45_000, true)] {
        let stored = json!({"starts": {"since": first_at, "requests": 36}});
        heartbeat.learned.throttling = serde_json::from_value(stored).unwrap();
        write_heartbeat(&store, heartbeat.clone()).await;
        let figures = stats(&client, &api.url).await;
        let health = client.get(format!("{}/healthz", api.url)).await.json();
        let checks = health["checks"].as_array().unwrap();
        let check = checks.iter().find(|check| check["name"] == "upstream");
        let check = check.unwrap();
        assert_eq!(
            (&figures["upstream"]["status"], &check["status"]),
            (&json!("up"), &json!("ok"))
        );
        let refuses = format!(
            "it throttles starts: 36 in a row were answered 429, since {}",
            Rfc3339(Timestamp(first_at))
        );
        let (detail, words, wait) = match is_reported {
            true => (
                json!(refuses),
                format!("it answers, but {refuses}"),
                Value::Null,
            ),
            false => (Value::Null, "it answers".to_owned(), json!(1.0)),
        };
        assert_eq!(figures["upstream"]["detail"], detail);
        assert_eq!(check["detail"], words);
        assert_eq!(figures["pace"]["wait_seconds"], wait);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_of_several_reads_is_complete_with_events_of_another_program() {
    let env = TestEnvironment::in_memory();
    let store = env.store();
    fill(&store, &ids(12_345), 2_000).await;
    let api = env.api(&[]);
    let client = Client::new();
    // Concurrent requests share one read of the journal.
    let url = &api.url;
    let asked = (0..4).map(|_| stats(&client, url));
    for figures in futures_util::future::join_all(asked).await {
        assert_eq!(figures["orders"]["CREATED"], 12_345);
        assert_eq!(figures["oldest_open"]["id"], "order-0");
        assert_eq!(figures["reconciler"]["status"], "none");
        assert_eq!(figures["reconciler"]["since"], Value::Null);
    }
    let more: Vec<_> = (0..10_001).map(|n| format!("more-{n}")).collect();
    fill(&store, &more, 2_000).await;
    let figures = stats(&client, url).await;
    assert_eq!(figures["orders"]["CREATED"], 22_346);
    assert_eq!(sum(&figures["per_minute"], "created"), 22_346);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reconciler_that_has_ended_is_overdue_since_its_pass_was_due() {
    let (env, api, client) = with_api();
    let store = env.store();
    let mut heartbeat = ready(store.heartbeat()).unwrap();
    let now = SystemClock.now();
    heartbeat.leader_since = Some(Timestamp(now.0 - 500_000));
    heartbeat.last_pass_at = Some(Timestamp(now.0 - 101_000));
    heartbeat.next_pass_at = Some(Timestamp(now.0 - 100_000));
    write_heartbeat(&store, heartbeat).await;
    let reconciler = &stats(&client, &api.url).await["reconciler"];
    assert_eq!(reconciler["status"], "overdue");
    assert_eq!(reconciler["since"], reconciler["next_pass_at"]);
    assert!(reconciler["detail"].is_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn head_of_the_stats_has_no_body() {
    let (_env, api, client) = with_api();
    let url = format!("{}/stats", api.url);
    let head = client.send(client.request("HEAD", url)).await;
    assert_eq!((head.status, &*head.body), (200, ""));
    assert_eq!(head.header("content-type"), "application/json");
}
