//! The metrics: they can be parsed, agree with what happened, and counters never decrease.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use order_service::clock::{Clock, SystemClock};
use order_service::reconciler_metrics::AnswerClass;
use order_service::upstream::RequestKind;
use serde_json::Value;

use crate::environment::{Client, PATIENCE, TestEnvironment, fill, ready, until, with_api};

/// Values by the name and labels of the sample, in the text format.
pub type Samples = BTreeMap<String, f64>;

/// Reads the metrics and checks them against the text format, version 0.0.4, and Prometheus' naming
/// conventions.
pub async fn metrics(client: &Client, api: &str) -> Samples {
    let answer = client.get(format!("{api}/metrics")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let media_type = "text/plain; version=0.0.4; charset=utf-8";
    assert_eq!(answer.header("content-type"), media_type);
    assert_eq!(answer.header("cache-control"), "no-store");
    parse(&answer.body)
}

#[track_caller]
fn parse(text: &str) -> Samples {
    assert!(text.ends_with('\n'), "the last line ends");
    let mut samples = Samples::new();
    let mut families = HashSet::new();
    let (mut helped, mut family, mut kind) = ("", "", "");
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, words) = help.split_once(' ').expect("a help text");
            assert!(words.ends_with('.') && !words.contains('\\'), "{line}");
            helped = name;
        } else if let Some(declared) = line.strip_prefix("# TYPE ") {
            let (name, of) = declared.split_once(' ').expect("a type");
            assert_eq!(name, helped, "{line}");
            assert!(["counter", "gauge", "histogram"].contains(&of), "{line}");
            assert_eq!(name.ends_with("_total"), of == "counter", "{line}");
            assert!(name.starts_with("order_service_"), "{line}");
            let is_plain = |c: char| c.is_ascii_lowercase() || c == '_';
            assert!(name.chars().all(is_plain), "{line}");
            assert!(families.insert(name), "{name} is declared twice");
            (family, kind) = (name, of);
        } else {
            let (series, value) = line.rsplit_once(' ').expect("a value");
            let value: f64 = value.parse().expect("a number");
            assert!(value.is_finite() && value >= 0.0, "{line}");
            let name = labels_of(series).0;
            let suffix = name.strip_prefix(family).expect("a declared name");
            let suffixes: &[&str] = match kind {
                "histogram" => &["_bucket", "_sum", "_count"],
                _ => &[""],
            };
            assert!(suffixes.contains(&suffix), "{line}");
            let earlier = samples.insert(series.to_owned(), value);
            assert!(earlier.is_none(), "{series} is there twice");
        }
    }
    check_buckets(&samples);
    samples
}

/// Returns a sample's name, and its labels with their values.
#[track_caller]
fn labels_of(series: &str) -> (&str, Vec<(&str, &str)>) {
    let Some((name, labels)) = series.split_once('{') else {
        return (series, Vec::new());
    };
    let labels = labels.strip_suffix('}').expect("a closing brace");
    let label = |label: &'_ str| -> Option<(usize, usize)> {
        let (name, value) = label.split_once('=')?;
        let value = value.strip_prefix('"')?.strip_suffix('"')?;
        let is_plain = name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
        // No label value here needs escaping.
        (is_plain && !value.contains(['"', '\\'])).then_some((name.len(), value.len()))
    };
    let labels = labels.split(',').map(|text| {
        let (name, value) = label(text).unwrap_or_else(|| panic!("{series}"));
        (&text[..name], &text[name + 2..name + 2 + value])
    });
    (name, labels.collect())
}

/// Checks that buckets are cumulative, and that the last one has the total.
#[track_caller]
fn check_buckets(samples: &Samples) {
    let mut buckets: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for (series, count) in samples {
        let (name, labels) = labels_of(series);
        let Some(name) = name.strip_suffix("_bucket") else {
            continue;
        };
        let (mut le, mut others) = (None, Vec::new());
        for (label, value) in labels {
            match label {
                "le" => le = Some(value.parse::<f64>().unwrap()),
                _ => others.push(format!("{label}=\"{value}\"")),
            }
        }
        let labels = match others.len() {
            0 => String::new(),
            _ => format!("{{{}}}", others.join(",")),
        };
        let all = buckets.entry(format!("{name}_count{labels}")).or_default();
        all.push((le.expect("a bucket has a bound"), *count));
    }
    assert!(!buckets.is_empty());
    for (count, mut buckets) in buckets {
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        assert!(
            buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1),
            "{count}"
        );
        let (bound, last) = buckets[buckets.len() - 1];
        assert_eq!((bound, last), (f64::INFINITY, samples[&count]), "{count}");
        assert!(samples.contains_key(&count.replace("_count", "_sum")));
    }
}

/// Reads the metrics until `done` returns true.
async fn metrics_when(client: &Client, api: &str, done: impl Fn(&Samples) -> bool) -> Samples {
    until(async || metrics(client, api).await, done).await
}

/// Returns the value of a sample, 0 if it is absent. `series` omits the prefix.
fn of(samples: &Samples, series: &str) -> u64 {
    let value = samples.get(&format!("order_service_{series}"));
    value.copied().unwrap_or(0.0) as u64
}

const STARTS_OK: &str = "upstream_request_duration_seconds_count{kind=\"start\",result=\"ok\"}";

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_of_a_run_agree_with_what_happened() {
    let env = TestEnvironment::new();
    let simulator = env.simulator(&["--max-order-process-duration", "2"]);
    let service = env.serve(&simulator.url, &["--start-rate", "0"]);
    let client = Client::new();
    let before = SystemClock.now();
    for n in 0..50 {
        client.create(&service.url, &format!("id-{n}")).await;
    }
    client.create(&service.url, "id-0").await;
    for path in ["/order/id-1", "/order/id-2", "/id-3", "/id/4/5", "/id-6/"] {
        client.get(format!("{}{path}", service.url)).await;
    }
    let orders = client.settled(&service.url, 50).await;
    // The reconciler's counts arrive with its heartbeat.
    let samples = metrics_when(&client, &service.url, |samples| {
        of(samples, STARTS_OK) == 50
    })
    .await;

    let text = client.get(format!("{}/metrics", service.url)).await.body;
    for order in &orders {
        let id = order["id"].as_str().unwrap();
        assert!(!text.contains(id), "{id} is in the metrics");
    }
    // The page describes all of them, and those that are absent without a limit and without open
    // orders.
    let page = client.get(format!("{}/docs/metrics", service.url)).await;
    let sections = page.body.split("<section id=\"").skip(1);
    let described: BTreeSet<_> = sections
        .filter_map(|section| Some(section.split_once('"')?.0))
        .collect();
    let declared = text.lines().filter_map(|line| {
        let (name, _) = line
            .strip_prefix("# TYPE order_service_")?
            .split_once(' ')?;
        Some(name)
    });
    let declared: BTreeSet<_> = declared.collect();
    let may_be_absent = [
        "database_reconnects_total",
        "oldest_open_order_timestamp_seconds",
        "pace_ceiling_starts_per_second",
        "pace_starts_per_second",
        "processes_in_flight_max",
        "upstream_life_expected_processes",
        "upstream_life_expected_seconds",
        "upstream_life_processes",
        "write_turn_wait_seconds",
    ];
    assert!(described.is_superset(&declared));
    for name in described.difference(&declared) {
        assert!(may_be_absent.contains(name), "{name} is never written");
    }
    let expect = |series: &str, value: u64| assert_eq!(of(&samples, series), value, "{series}");
    let fulfilled = orders.iter().filter(|o| o["status"] == "FULFILLED").count() as u64;
    let version = env!("CARGO_PKG_VERSION");
    expect(&format!("build_info{{version=\"{version}\"}}"), 1);
    expect("orders{status=\"CREATED\"}", 0);
    expect("orders{status=\"PROCESSING\"}", 0);
    expect("orders{status=\"FULFILLED\"}", fulfilled);
    expect("orders{status=\"FAILED\"}", 50 - fulfilled);
    expect("orders_created_total", 50);
    expect("order_transitions_total{reason=\"started\"}", 50);
    expect("order_transitions_total{reason=\"succeeded\"}", fulfilled);
    expect("order_transitions_total{reason=\"failed\"}", 50 - fulfilled);
    expect("order_transitions_total{reason=\"restarted\"}", 0);
    expect("order_time_to_settle_seconds_count", 50);
    expect(
        "orders_needing_attention{reason=\"upstream_unreachable\",by=\"itself\"}",
        0,
    );
    expect("starts_total", 50);
    expect("repeated_starts_total", 0);
    expect("upstream_up", 1);
    expect("upstream_lives_ended_total", 0);
    expect("reconciler_leaderships_total", 1);
    expect("reconciler_overdue", 0);
    expect("database_writable", 1);
    expect("write_queue_capacity", 4096);
    expect("writes_refused_total{reason=\"overloaded\"}", 0);
    let request = |route: &str, method: &str, status: u16| {
        format!(
            "http_request_duration_seconds_count\
             {{route=\"{route}\",method=\"{method}\",status=\"{status}\"}}"
        )
    };
    expect(&request("/order", "POST", 201), 50);
    expect(&request("/order", "POST", 409), 1);
    expect(&request("/order/{id}", "GET", 200), 2);
    expect(&request("other", "GET", 404), 3);
    assert!(of(&samples, "http_requests_in_flight") >= 1);
    assert!(of(&samples, "http_connections{place=\"served\"}") >= 1);
    assert!(of(&samples, "write_batch_writes_sum") >= 50);
    assert!(of(&samples, "database_bytes") > 0);
    for moment in [
        "reconciler_leader_since_timestamp_seconds",
        "reconciler_last_pass_timestamp_seconds",
        "reconciler_last_seen_timestamp_seconds",
    ] {
        let at = of(&samples, moment) as i64;
        assert!(
            (before.0 / 1_000 - 60..=SystemClock.now().0 / 1_000).contains(&at),
            "{moment}"
        );
    }
    let passes = of(
        &samples,
        "reconciler_pass_duration_seconds_count{result=\"ok\"}",
    );
    assert!(passes > 0);
    assert!(!samples.contains_key("order_service_oldest_open_order_timestamp_seconds"));
    assert_eq!(
        env.outcomes().len(),
        50,
        "as many as in the simulator's record"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_counters_survive_restarts_and_never_decrease() {
    let env = TestEnvironment::new();
    let simulator = env.simulator(&["--max-order-process-duration", "1"]);
    let client = Client::new();
    let settled = "order_time_to_settle_seconds_count";
    let mut last = Samples::new();
    // Counts of the program itself reset at a restart, as Prometheus expects.
    let is_own = |series: &str| {
        ["http_", "write"]
            .iter()
            .any(|own| series.starts_with(&format!("order_service_{own}")))
    };
    let rises = |series: &str| {
        let (name, _) = labels_of(series);
        ["_total", "_count", "_sum", "_bucket"]
            .iter()
            .any(|end| name.ends_with(end))
    };
    for run in 1..=3u64 {
        let api = env.api(&[]);
        let reconciler = env.reconciler(&simulator.url, &["--start-rate", "0"]);
        for n in 0..20 {
            client.create(&api.url, &format!("id-{run}-{n}")).await;
        }
        let is_started = |order: &Value| order["status"] != "CREATED";
        let are_started = |orders: &[Value]| orders.iter().all(is_started);
        client.orders_when(&api.url, are_started).await;
        let samples = metrics_when(&client, &api.url, |samples| {
            for (series, value) in last
                .iter()
                .filter(|(series, _)| rises(series) && !is_own(series))
            {
                let now = samples
                    .get(series)
                    .unwrap_or_else(|| panic!("{series} is missing"));
                assert!(now >= value, "{series} has fallen from {value} to {now}");
            }
            // The orders of the earlier runs settle in this one; its own would take a second.
            of(samples, STARTS_OK) == run * 20 && of(samples, settled) >= (run - 1) * 20
        })
        .await;
        assert_eq!(of(&samples, "starts_total"), run * 20);
        assert_eq!(of(&samples, "orders_created_total"), run * 20);
        assert_eq!(of(&samples, "reconciler_leaderships_total"), run);
        last = samples;
        if run == 1 {
            reconciler.kill();
            api.kill();
        } else {
            assert_eq!((reconciler.stop(), api.stop()), (Some(0), Some(0)));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_upstream_is_counted_as_unreachable() {
    let env = TestEnvironment::new();
    let service = env.serve("http://127.0.0.1:9", &[]);
    let client = Client::new();
    client.create(&service.url, "a1").await;
    let samples = metrics_when(&client, &service.url, |samples| {
        samples.get("order_service_upstream_up") == Some(&0.0)
    })
    .await;
    let attention = "orders_needing_attention{reason=\"upstream_unreachable\",by=\"itself\"}";
    assert_eq!(of(&samples, attention), 1);
    let created_at = of(&samples, "oldest_open_order_timestamp_seconds") as i64;
    assert!((SystemClock.now().0 / 1_000 - created_at) < PATIENCE.as_secs() as i64);
    let name = "reconciler_pass_duration_seconds_count{result=\"unreachable\"}";
    metrics_when(&client, &service.url, |samples| of(samples, name) > 0).await;
    let heartbeat = ready(env.store().heartbeat()).unwrap();
    let mut asked = heartbeat.metrics.requests();
    assert!(asked.all(|(_, answer, _)| answer == AnswerClass::Unavailable));
    assert!(
        heartbeat
            .metrics
            .requests()
            .any(|(kind, _, _)| kind == RequestKind::Start)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_without_a_reconciler_serves_the_other_metrics() {
    let (env, api, client) = with_api();
    let store = env.store();
    fill(&store, &["a1".to_owned()], 1).await;
    let samples = metrics(&client, &api.url).await;
    assert_eq!(of(&samples, "orders{status=\"CREATED\"}"), 1);
    assert_eq!(of(&samples, "reconciler_overdue"), 0, "the order is new");
    assert!(!samples.contains_key("order_service_upstream_up"));
    let head = client
        .send(client.request("HEAD", format!("{}/metrics", api.url)))
        .await;
    assert_eq!((head.status, &*head.body), (200, ""));
}
