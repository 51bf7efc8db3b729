//! Requests that wait until an order is settled, and other clients meanwhile. Streams are tested in
//! `events`.

use std::time::{Duration, Instant};

use order_service::clock::{Clock, SystemClock};
use order_service::order::Reason;
use order_service::store::{AttentionUpdate, Transition};
use serde_json::json;

use crate::environment::{
    Answer, Client, PATIENCE, Program, TestEnvironment, assert_agree, assert_problem,
    has_many_files, is_settled, ready, record, until, with_api, write_heartbeat,
};
use crate::events::{Events, settle};
use crate::wire::{Wire, statuses};

/// Maximum number of waiting requests, streams and lists together: three quarters of the connections.
const LONG_MAX: usize = 1_536;

/// Number of streams among them.
const STREAMS: usize = 256;

async fn wait(client: &Client, api: &Program, id: &str, prefer: &str) -> Answer {
    let request = client
        .request("GET", format!("{}/order/{id}", api.url))
        .header("prefer", prefer);
    client.send(request).await
}

async fn create_and_wait(client: &Client, api: &Program, id: &str, prefer: &str) -> Answer {
    let request = client
        .request("POST", format!("{}/order", api.url))
        .header("content-type", "application/json")
        .header("prefer", prefer)
        .body(format!("{{\"id\":\"{id}\"}}"));
    client.send(request).await
}

fn waiting(id: &str, seconds: u32) -> String {
    format!("GET /order/{id} HTTP/1.1\r\nHost: localhost\r\nPrefer: wait={seconds}\r\n\r\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiter_is_woken_by_a_change_in_another_process() {
    let (env, api, client) = with_api();
    let store = env.store();
    for n in 1..=40 {
        assert_eq!(client.create(&api.url, &format!("a{n}")).await.status, 201);
    }
    // Their wait is longer than the client's timeout: only a change can answer them.
    let waiters: Vec<_> = (1..=40)
        .map(|n| {
            let (client, url) = (client.clone(), format!("{}/order/a{n}", api.url));
            tokio::spawn(async move {
                let request = client.request("GET", url).header("prefer", "wait=60");
                client.send(request).await
            })
        })
        .collect();
    for (n, waiter) in (1..).zip(waiters) {
        settle(&store, [n]).await;
        let answer = waiter.await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.json()["status"], "FAILED", "{answer:?}");
        assert_eq!(answer.header("preference-applied"), "wait=60");
        assert_eq!(answer.header("retry-after"), "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_creation_that_waits_is_answered_with_the_settled_order() {
    let env = TestEnvironment::new();
    let simulator = env.simulator(&["--max-order-process-duration", "2"]);
    let api = env.api(&[]);
    let _reconciler = env.reconciler(&simulator.url, &[]);
    let client = Client::new();
    let ids: Vec<_> = (0..10).map(|n| format!("a{n}")).collect();
    let creations = ids
        .iter()
        .map(|id| create_and_wait(&client, &api, id, "wait=50"));
    let answers = futures_util::future::join_all(creations).await;
    let mut orders = Vec::new();
    for (answer, id) in answers.iter().zip(&ids) {
        assert_eq!(answer.status, 201, "{answer:?}");
        assert_eq!(answer.header("location"), format!("/order/{id}"));
        assert_eq!(answer.header("preference-applied"), "wait=50");
        assert!(is_settled(&answer.json()), "{answer:?}");
        orders.push(answer.json());
    }
    assert_agree(&env, &orders);
    let again = create_and_wait(&client, &api, "a0", "wait=50").await;
    assert_problem(&again, 409);
    assert_eq!(again.json()["order"], answers[0].json());
    assert_eq!(again.header("preference-applied"), "wait=50");
    assert_eq!(again.header("retry-after"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_creation_waits_for_the_order_that_exists() {
    let (env, api, client) = with_api();
    let store = env.store();
    client.create(&api.url, "a1").await;
    let now = SystemClock.now();
    record(&store, [(1, Transition::Adopted)], now).await;
    // A client that repeats a creation learns when to ask again, as from a read.
    let mut heartbeat = ready(store.heartbeat()).unwrap();
    heartbeat.next_pass_at = Some(now.after(Duration::from_secs(40)));
    heartbeat.next_poll_at = heartbeat.next_pass_at;
    write_heartbeat(&store, heartbeat).await;
    let again = client.create(&api.url, "a1").await;
    assert_problem(&again, 409);
    let seconds: u64 = again.header("retry-after").parse().unwrap();
    assert!((2..=40).contains(&seconds), "{seconds}");
    assert_eq!(again.header("preference-applied"), "");
    let began_at = Instant::now();
    let again = create_and_wait(&client, &api, "a1", "wait=1").await;
    assert!(began_at.elapsed() >= Duration::from_secs(1));
    assert_problem(&again, 409);
    assert_eq!(again.json()["order"]["status"], "PROCESSING");
    assert_eq!(again.header("preference-applied"), "wait=1");
    assert_eq!(again.header("location"), "/order/a1");
    assert_ne!(again.header("retry-after"), "");
    let settled = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let step = Transition::Settled(order_service::order::Outcome::Failed);
        record(&store, [(1, step)], now).await;
    };
    let waiter = create_and_wait(&client, &api, "a1", "wait=60");
    let (again, ()) = tokio::join!(waiter, settled);
    assert_problem(&again, 409);
    assert_eq!(again.json()["order"]["status"], "FAILED");
    assert_eq!(again.header("retry-after"), "");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow; scripts/test all"]
async fn at_the_end_of_the_wait_the_current_order_is_returned() {
    let (_env, api, client) = with_api();
    let began_at = Instant::now();
    let created = create_and_wait(&client, &api, "a1", "wait=1").await;
    assert!(began_at.elapsed() >= Duration::from_secs(1));
    assert_eq!(created.status, 201, "{created:?}");
    assert_eq!(created.header("location"), "/order/a1");
    let began_at = Instant::now();
    let read = wait(&client, &api, "a1", "wait=1").await;
    assert!(began_at.elapsed() >= Duration::from_secs(1));
    assert_eq!(read.status, 200, "{read:?}");
    let head = client
        .request("HEAD", format!("{}/order/a1", api.url))
        .header("prefer", "wait=1");
    let head = client.send(head).await;
    assert_eq!(head.header("content-length"), read.body.len().to_string());
    for answer in [&created, &read, &head] {
        assert_eq!(answer.header("preference-applied"), "wait=1");
        assert_eq!(answer.header("retry-after"), "1");
    }
    assert_eq!(read.json(), created.json());
    assert_eq!(read.json()["status"], "CREATED");
    assert_problem(&wait(&client, &api, "none", "wait=60").await, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preference_is_capped_at_a_minute_and_ignored_if_invalid() {
    let (env, api, client) = with_api();
    client.create(&api.url, "open").await;
    client.create(&api.url, "done").await;
    settle(&env.store(), [2]).await;
    for (prefer, applied) in [
        ("wait=60", "wait=60"),
        ("wait=3600", "wait=60"),
        ("respond-async, Wait=\"7\"", "wait=7"),
        ("wait=0", "wait=0"),
        ("wait=-1", ""),
        ("wait=1.5", ""),
        ("wait", ""),
        ("wait=ten, wait=10", ""),
        ("return=minimal", ""),
    ] {
        let answer = wait(&client, &api, "done", prefer).await;
        assert_eq!(answer.status, 200, "{prefer}");
        assert_eq!(answer.header("preference-applied"), applied, "{prefer}");
    }
    for prefer in ["wait=0", "wait=-1", "wait=x", ""] {
        let answer = wait(&client, &api, "open", prefer).await;
        assert_eq!(answer.json()["status"], "CREATED", "{prefer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_order_says_when_to_ask_again() {
    let (env, api, client) = with_api();
    let created = client.create(&api.url, "a1").await;
    assert_eq!(created.header("retry-after"), "1");
    let store = env.store();
    let now = SystemClock.now();
    // The next pass is in 40 s by the schedule; the order's own delay is longer.
    let mut heartbeat = ready(store.heartbeat()).unwrap();
    heartbeat.next_pass_at = Some(now.after(Duration::from_secs(40)));
    write_heartbeat(&store, heartbeat).await;
    let path = format!("{}/order/a1", api.url);
    let seconds = async || -> u64 {
        let answer = client.get(&path).await;
        answer.header("retry-after").parse().unwrap()
    };
    assert_eq!(seconds().await, 1, "it is started as soon as possible");
    let refused = AttentionUpdate {
        reason: Reason::StartRefused,
        detail: "it said no".to_owned(),
        next_attempt_at: now.after(Duration::from_secs(200)),
    };
    let step = Transition::Flagged(refused);
    record(&store, [(1, step)], now).await;
    assert!((100..=200).contains(&seconds().await));
    let step = Transition::Adopted;
    record(&store, [(1, step)], now).await;
    assert!((1..=40).contains(&seconds().await));
    let step = Transition::Settled(order_service::order::Outcome::Failed);
    record(&store, [(1, step)], now).await;
    assert_eq!(client.get(&path).await.header("retry-after"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_answers_waiting_requests_with_the_current_order() {
    let env = TestEnvironment::new();
    let mut api = env.api(&[]);
    let client = Client::new();
    client.create(&api.url, "a1").await;
    let mut wires: Vec<_> = (0..20).map(|_| Wire::open(&api)).collect();
    for (n, wire) in wires.iter_mut().enumerate() {
        if n % 2 == 0 {
            wire.send(waiting("a1", 60));
        } else {
            // Once the order exists, its request waits.
            let body = format!("{{\"id\":\"b{n}\"}}");
            let length = body.len();
            wire.send(format!(
                "POST /order HTTP/1.1\r\nHost: localhost\r\nPrefer: wait=60\r\n\
                 Content-Length: {length}\r\n\r\n{body}"
            ));
        }
    }
    client
        .orders_when(&api.url, |orders| orders.len() == 11)
        .await;
    api.signal("TERM");
    for (n, wire) in wires.iter_mut().enumerate() {
        let answer = wire.rest();
        let status = if n % 2 == 0 { 200 } else { 201 };
        assert_eq!(statuses(&answer), [status], "{answer}");
        assert!(answer.contains("preference-applied: wait=60"), "{answer}");
        assert!(answer.contains("\"status\":\"CREATED\""), "{answer}");
    }
    assert_eq!(api.wait().code(), Some(0), "{}", api.logged());
    assert!(!api.logged().contains("cut off"), "{}", api.logged());
}

/// Sends requests on connections of their own. Returns the connections before any response.
async fn crowd(api: &Program, requests: impl IntoIterator<Item = String>) -> Vec<Wire> {
    let mut wires = Vec::new();
    for request in requests {
        let mut wire = Wire::open(api);
        wire.send(request);
        wires.push(wire);
    }
    wires
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow; scripts/test all"]
async fn a_thousand_waiting_requests_and_two_hundred_streams_delay_no_other_client() {
    if !has_many_files() {
        return;
    }
    let (env, api, client) = with_api();
    let store = env.store();
    for id in ["done", "open", "shared"] {
        client.create(&api.url, id).await;
    }
    settle(&store, [1]).await;
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        streams.push(Events::open(&client, &api, "", None).await);
    }
    let mut waiters = crowd(&api, (0..LONG_MAX - STREAMS).map(|_| waiting("shared", 60))).await;
    let deadline = Instant::now() + PATIENCE;
    let refused = loop {
        let answer = wait(&client, &api, "open", "wait=1").await;
        if answer.status == 503 {
            break answer;
        }
        assert!(
            Instant::now() < deadline,
            "the requests do not wait: {answer:?}"
        );
        // It may have taken the slot of a later request.
        waiters.extend(crowd(&api, [waiting("shared", 60)]).await);
    };
    assert_problem(&refused, 503);
    assert!(refused.header("retry-after").parse::<u64>().unwrap() >= 1);
    let stream = client
        .request("GET", format!("{}/event", api.url))
        .header("accept", "text/event-stream");
    let refused = client.send(stream).await;
    assert_problem(&refused, 503);
    assert!(refused.header("retry-after").parse::<u64>().unwrap() >= 1);
    // Other requests are served.
    for path in ["/livez", "/readyz", "/healthz", "/stats", "/order/open"] {
        let answer = Client::new().get(format!("{}{path}", api.url)).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
    }
    for path in ["/order", "/order?limit=1", "/event"] {
        let refused = client.get(format!("{}{path}", api.url)).await;
        assert_problem(&refused, 503);
        assert!(refused.body.contains("too-many-lists"), "{refused:?}");
    }
    assert_eq!(wait(&client, &api, "done", "wait=60").await.status, 200);
    // The preference is not applied; the order is created.
    let created = create_and_wait(&client, &api, "a1", "wait=60").await;
    assert_eq!(created.status, 201, "{created:?}");
    assert_eq!(created.header("preference-applied"), "");
    // A client that disconnects frees its slot, and its order stays created.
    drop((waiters.remove(0), streams.pop()));
    let is_free = async || {
        let read = async || wait(&client, &api, "open", "wait=1").await;
        until(read, |answer| answer.status != 503).await;
    };
    is_free().await;
    let mut wire = Wire::open(&api);
    let head = "POST /order HTTP/1.1\r\nHost: localhost\r\nPrefer: wait=60\r\n";
    wire.send(format!(
        "{head}Content-Length: 12\r\n\r\n{{\"id\":\"bye\"}}"
    ));
    client
        .orders_when(&api.url, |orders| orders.len() == 5)
        .await;
    drop(wire);
    is_free().await;
    // One change wakes all requests that wait for it.
    settle(&store, [3]).await;
    let mut woken = 0;
    for wire in &mut waiters {
        let answer = wire.read_until("}");
        if statuses(&answer) == [200] {
            assert!(answer.contains("\"status\":\"FAILED\""), "{answer}");
            woken += 1;
        } else {
            assert_eq!(statuses(&answer), [503], "{answer}");
        }
    }
    assert!(woken >= LONG_MAX - STREAMS - 1, "{woken} were woken");
    for stream in &mut streams {
        let mut event = stream.next().await;
        while (&event["order_id"], &event["to"]) != (&json!("shared"), &json!("FAILED")) {
            event = stream.next().await;
        }
    }
    assert_eq!(api.stop(), Some(0));
}
