//! Orders from creation to settlement, through the real programs over HTTP. Outcomes are compared
//! with the simulator's record, never with the programs' own counters.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::environment::{
    Client, TestEnvironment, assert_agree, assert_statuses_agree, is_settled, ready, with_api,
};

/// Creates orders, `width` at a time.
async fn create_all(client: &Client, api: &str, ids: Vec<String>, width: usize) {
    let mut tasks = tokio::task::JoinSet::new();
    let ids = std::sync::Arc::new(std::sync::Mutex::new(ids));
    for _ in 0..width {
        let (client, api, ids) = (client.clone(), api.to_owned(), ids.clone());
        tasks.spawn(async move {
            loop {
                let next = ids.lock().unwrap().pop();
                let Some(id) = next else { break };
                let answer = client.create(&api, &id).await;
                assert_eq!(answer.status, 201, "{id:?}: {answer:?}");
            }
        });
    }
    while let Some(result) = tasks.join_next().await {
        result.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow; scripts/test all"]
async fn a_thousand_orders_settle_with_the_outcomes_of_the_upstream() {
    let env = TestEnvironment::new();
    let simulator = env.simulator(&["--max-order-process-duration", "3", "--seed", "1"]);
    let api = env.api(&[]);
    let reconciler = env.reconciler(&simulator.url, &["--start-rate", "0"]);
    let client = Client::new();
    let ids = (0..1_000).map(|n| format!("order-{n}")).collect();
    create_all(&client, &api.url, ids, 16).await;
    let orders = client.settled(&api.url, 1_000).await;
    assert_agree(&env, &orders);
    assert_eq!(reconciler.stop(), Some(0));
    assert_eq!(api.stop(), Some(0));
    assert_eq!(simulator.stop(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn api_and_reconciler_at_full_speed_on_one_file_lose_and_repeat_nothing() {
    let env = TestEnvironment::new();
    let simulator = env.simulator(&["--max-order-process-duration", "1"]);
    let api = env.api(&[]);
    let arguments = ["--start-rate", "0", "--max-in-flight", "64"];
    let reconciler = env.reconciler(&simulator.url, &arguments);
    let client = Client::new();
    let ids = (0..2_000).map(|n| format!("order-{n}")).collect();
    create_all(&client, &api.url, ids, 64).await;
    let orders = client.settled(&api.url, 2_000).await;
    assert_agree(&env, &orders);
    for log in [api.logged(), reconciler.logged()] {
        assert!(!log.contains("ERROR"), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reconciler_killed_at_any_moment_loses_and_repeats_nothing() {
    let env = TestEnvironment::new();
    let simulator = env.simulator(&["--max-order-process-duration", "2"]);
    let api = env.api(&[]);
    // A higher rate keeps the test short; this one is low enough for kills to hit starts.
    let arguments = ["--start-rate", "700", "--request-timeout", "500ms"];
    let client = Client::new();
    let ids = (0..1_000).map(|n| format!("order-{n}")).collect();
    create_all(&client, &api.url, ids, 16).await;
    let mut reconciler = env.reconciler(&simulator.url, &arguments);
    for _ in 0..5 {
        let before = env.outcomes().len();
        while env.outcomes().len() < (before + 100).min(1_000) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        reconciler.kill();
        reconciler = env.reconciler(&simulator.url, &arguments);
    }
    let orders = client.settled(&api.url, 1_000).await;
    // A committed intent counts as a start, whether or not it was sent.
    assert_statuses_agree(&env, &orders);
}

#[tokio::test(flavor = "multi_thread")]
async fn any_printable_id_reaches_the_upstream_and_comes_back() {
    let env = TestEnvironment::new();
    let simulator = env.simulator(&["--max-order-process-duration", "1"]);
    let service = env.serve(&simulator.url, &[]);
    let client = Client::new();
    let ids: Vec<String> = [
        "a/b",
        "a b",
        "a+b",
        "a%2Fb",
        "a;b",
        "a&b=c",
        "a#b",
        "a?b",
        "\"quoted\"",
        "back\\slash",
        "<script>",
        "{}",
        "[1]",
        "null",
        "é",
        "e\u{301}",
        "日本語",
        "🦀",
        "a\u{a0}b",
        "\u{feff}x",
        "...",
        "~",
        "*",
        "'; DROP TABLE orders; --",
        "%",
        "%00",
        "%zz",
        "\u{202e}rtl",
    ]
    .into_iter()
    .map(str::to_owned)
    .chain([" ".replace(' ', "x").repeat(128), "é".repeat(128)])
    .collect();
    for id in &ids {
        let created = client.create(&service.url, id).await;
        assert_eq!(created.status, 201, "{id:?}: {created:?}");
        let location = created.header("location").to_owned();
        let read = client.get(format!("{}{location}", service.url)).await;
        assert_eq!(read.status, 200, "{id:?} at {location}");
        assert_eq!(read.json()["id"], **id);
    }
    let orders = client.settled(&service.url, ids.len()).await;
    let listed: Vec<&str> = orders.iter().map(|o| o["id"].as_str().unwrap()).collect();
    assert_eq!(listed, ids, "in the order of creation");
    assert_agree(&env, &orders);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_exists_upstream_already_is_adopted_and_not_started() {
    let env = TestEnvironment::new();
    let simulator = env.simulator(&["--max-order-process-duration", "1"]);
    let client = Client::new();
    let request = client
        .request("POST", format!("{}/order_process", simulator.url))
        .header("content-type", "application/json")
        .body(r#"{"order_id":"a\"1"}"#);
    assert_eq!(client.send(request).await.status, 200);
    let service = env.serve(&simulator.url, &[]);
    client.create(&service.url, "a\"1").await;
    let orders = client.settled(&service.url, 1).await;
    assert_eq!(env.outcomes().len(), 1);
    assert!(orders.iter().all(is_settled));
    assert_eq!(orders[0]["starts"], 0, "the process was not started by us");
}

#[tokio::test(flavor = "multi_thread")]
async fn once_starts_what_is_due_and_reports_by_its_exit_code() {
    let (env, api, client) = with_api();
    let once = |upstream: &str| {
        let mut program = env.reconciler(upstream, &["--once"]);
        let code = program.wait().code();
        (code, program.logged())
    };
    // With nothing to do, it sends no request.
    assert_eq!(once("http://127.0.0.1:9").0, Some(0));
    let ids = (0..60).map(|n| format!("order-{n}")).collect();
    create_all(&client, &api.url, ids, 4).await;
    let (code, log) = once("http://127.0.0.1:9");
    assert_eq!(code, Some(4), "{log}");
    let simulator = env.simulator(&["--max-order-process-duration", "1"]);
    let (code, log) = once(&simulator.url);
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(env.outcomes().len(), 60);
    assert_eq!(once(&simulator.url).0, Some(0));
    let orders = client.settled(&api.url, 60).await;
    assert_agree(&env, &orders);
    let leader = env.reconciler(&simulator.url, &[]);
    while !leader.logged().contains("became leader") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(once(&simulator.url).0, Some(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_takes_over_within_a_second_when_the_leader_dies() {
    let env = TestEnvironment::new();
    let simulator = env.simulator(&["--max-order-process-duration", "1"]);
    let api = env.api(&[]);
    let client = Client::new();
    let leader = env.reconciler(&simulator.url, &[]);
    client.create(&api.url, "a1").await;
    client.settled(&api.url, 1).await;
    let standby = env.reconciler(&simulator.url, &[]);
    while !standby.logged().contains("standing by") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    leader.kill();
    client.create(&api.url, "a2").await;
    client.settled(&api.url, 2).await;
    assert!(standby.logged().contains("became leader"));
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_wait_while_the_upstream_is_down_and_settle_when_it_is_back() {
    let env = TestEnvironment::new();
    let simulator = env.simulator(&["--max-order-process-duration", "1"]);
    let url = simulator.url.clone();
    let service = env.serve(&url, &[]);
    let client = Client::new();
    simulator.kill();
    for n in 0..20 {
        client.create(&service.url, &format!("a{n}")).await;
    }
    let waiting = |orders: &[Value]| {
        orders
            .iter()
            .all(|order| order["attention"]["reason"] == "upstream_unreachable")
    };
    let orders = client.orders_when(&service.url, waiting).await;
    assert!(orders.iter().all(|order| order["status"] == "CREATED"));
    let need_attention = client
        .get(format!("{}/order?attention=true", service.url))
        .await;
    assert_eq!(need_attention.json().as_array().map(Vec::len), Some(20));
    let health = client.get(format!("{}/healthz", service.url)).await;
    assert_eq!(health.status, 200, "the API is ready: {health:?}");
    // A change of state is logged once, however many passes it lasts.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let lines = service.logged().matches("the upstream is down").count();
    assert_eq!(lines, 1, "{}", service.logged());
    let address = url.strip_prefix("http://").unwrap();
    let _simulator = env.simulator_at(address, &["--max-order-process-duration", "1"]);
    let orders = client.settled(&service.url, 20).await;
    assert_agree(&env, &orders);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_is_clean_in_every_program_with_open_orders() {
    let env = TestEnvironment::new();
    let simulator = env.simulator(&["--max-order-process-duration", "2"]);
    let service = env.serve(&simulator.url, &["--start-rate", "100"]);
    let client = Client::new();
    let ids = (0..200).map(|n| format!("order-{n}")).collect();
    create_all(&client, &service.url, ids, 8).await;
    assert_eq!(service.stop(), Some(0));
    let started = env.outcomes().len();
    assert!(started < 200, "the ceiling is kept");
    let service = env.serve(&simulator.url, &["--start-rate", "0"]);
    let orders = client.settled(&service.url, 200).await;
    let by_starts = orders.iter().fold(HashMap::new(), |mut map, order| {
        *map.entry(order["starts"].as_u64()).or_insert(0) += 1;
        map
    });
    assert_eq!(by_starts, HashMap::from([(Some(1), 200)]));
    assert_agree(&env, &orders);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reconciler_with_nothing_to_do_passes_only_on_schedule() {
    let env = TestEnvironment::new();
    let began_at = Instant::now();
    let reconciler = env.reconciler("http://127.0.0.1:9", &[]);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(reconciler.stop(), Some(0));
    // One at the start, and one for each second that has begun since.
    let most = began_at.elapsed().as_secs() + 2;
    let metrics = ready(env.store().heartbeat()).unwrap().metrics;
    let passes: u64 = metrics.passes.values().map(|took| took.total()).sum();
    assert!(
        (1..=most).contains(&passes),
        "{passes} passes, at most {most}"
    );
}
