//! Paths, methods and parameters of the API, single orders, and health. Creation is tested in
//! `create`, lists in `lists`, misbehaving clients in `clients`.

use std::fs;

use chrono::DateTime;
use serde_json::{Value, json};

use crate::environment::{Answer, assert_problem, until, with_api};
use crate::wire::{plain, statuses};

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_parameter_is_refused_by_its_name() {
    let (_env, api, client) = with_api();
    client.create(&api.url, "a1").await;
    for (method, path, name) in [
        ("POST", "/order?dry=1", "dry"),
        ("POST", "/order?status=CREATED", "status"),
        ("GET", "/order?id=a1", "id"),
        ("GET", "/order?limit=1&Status=CREATED", "Status"),
        ("GET", "/order/a1?x", "x"),
        ("GET", "/stats?since=1", "since"),
        ("GET", "/metrics?since=1", "since"),
        ("GET", "/order/a1?limit=1", "limit"),
        ("GET", "/order/a1/explain?limit=1", "limit"),
        ("GET", "/order/a1?%C3%A9=1", "é"),
        ("GET", "/event?status=CREATED", "status"),
    ] {
        let request = client
            .request(method, format!("{}{path}", api.url))
            .body(r#"{"id":"a2"}"#);
        let refused = client.send(request).await;
        assert_problem(&refused, 400);
        let problem = refused.json();
        assert_eq!(problem["member"], name, "{method} {path}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(name), "{detail}");
    }
    let read = client.get(format!("{}/order/a1?", api.url)).await;
    assert_eq!(read.status, 200, "an empty query is none");
    // Load balancers and caches add parameters of their own to probes and files.
    for path in ["/livez", "/readyz", "/", "/docs", "/openapi.json"] {
        let read = client.get(format!("{}{path}?x=1", api.url)).await;
        assert_eq!(read.status, 200, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_found_under_every_encoding_of_its_path() {
    let (_env, api, client) = with_api();
    for id in ["a/b", "a+b", "a b", "é", "%", "a1", "..."] {
        assert_eq!(client.create(&api.url, id).await.status, 201);
    }
    let get = |path: &str| plain(&api, &format!("GET /order/{path} HTTP/1.1"), b"");
    for (path, id) in [
        ("a%2Fb", "a/b"),
        ("a%2fb", "a/b"),
        ("a+b", "a+b"),
        ("a%2Bb", "a+b"),
        ("a%20b", "a b"),
        ("%C3%A9", "é"),
        ("%25", "%"),
        ("%61%31", "a1"),
        ("%2E%2E%2E", "..."),
    ] {
        let read = get(path);
        assert_eq!(statuses(&read), [200], "{path}: {read}");
        let (_, body) = read.split_once("\r\n\r\n").unwrap();
        let order: Value = serde_json::from_str(body).unwrap();
        assert_eq!(order["id"], id, "{path}");
    }
    for (path, status) in [
        ("%", 400),
        ("a%2", 400),
        ("a%zz", 400),
        ("%+1", 400),
        ("%C3", 400),
        ("%FF%FE", 400),
        ("%ED%A0%80", 400),
        ("%00", 404),
        ("%20a", 404),
        (".", 404),
        ("%2e%2E", 404),
        ("A1", 404),
        ("e%CC%81", 404),
        ("a%252Fb", 404),
        (&"a".repeat(129), 404),
    ] {
        let read = get(path);
        assert_eq!(statuses(&read), [status], "{path}: {read}");
        assert!(read.contains("application/problem+json"), "{read}");
    }
    assert_problem(&client.get(format!("{}/order/none", api.url)).await, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_path_is_a_problem() {
    let (_env, api, client) = with_api();
    client.create(&api.url, "a1").await;
    for path in [
        "/orders",
        "/order/",
        "/order/a1/",
        "/order/a1/b",
        "/order//a1",
        "//order",
        "/ORDER",
        "/ordera1",
        "/event/",
        "/event/1",
        "/stats/",
        "/metrics/",
        "/livez/",
        "/livez/x",
        "/readyz/",
        "/healthz/",
        "/order%2Fa1",
        "/%6Frder/",
    ] {
        for method in ["GET", "POST", "DELETE"] {
            let request = client.request(method, format!("{}{path}", api.url));
            assert_problem(&client.send(request).await, 404);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_method_that_is_not_allowed_is_answered_with_those_that_are() {
    let (_env, api, client) = with_api();
    for (path, allow, others) in [
        ("/order", "GET, HEAD, POST", &[][..]),
        ("/order/a1", "GET, HEAD", &["POST"]),
        ("/order/%zz", "GET, HEAD", &["POST"]),
        ("/order/a1/explain", "GET, HEAD", &["POST"]),
        ("/event", "GET, HEAD", &["POST"]),
        ("/livez", "GET, HEAD", &["POST"]),
        ("/readyz", "GET, HEAD", &["POST"]),
        ("/healthz", "GET, HEAD", &["POST"]),
        ("/stats", "GET, HEAD", &["POST"]),
        ("/metrics", "GET, HEAD", &["POST"]),
    ] {
        let methods = ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW", "get"];
        for method in methods.iter().chain(others) {
            let request = client.request(method, format!("{}{path}", api.url));
            let refused = client.send(request).await;
            assert_problem(&refused, 405);
            let mut allowed: Vec<_> = refused.header("allow").split(", ").collect();
            allowed.sort_unstable();
            assert_eq!(allowed.join(", "), allow, "{method} {path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn head_is_get_without_the_body() {
    let (_env, api, client) = with_api();
    client.create(&api.url, "a1").await;
    client.create(&api.url, "a2").await;
    for path in [
        "/order",
        "/order?limit=1",
        "/order?limit=0",
        "/order/a1",
        "/order/none",
        "/order/%zz",
        "/order/none/explain",
        "/event",
        "/event?limit=1",
        "/event?limit=0",
        "/livez",
        "/readyz",
        "/healthz",
        "/none",
    ] {
        let url = format!("{}{path}", api.url);
        let get = client.get(&url).await;
        let head = client.send(client.request("HEAD", &url)).await;
        assert_eq!(head.status, get.status, "{path}");
        assert_eq!(head.body, "");
        let length = head.header("content-length");
        assert_eq!(length, get.body.len().to_string(), "{path}");
        for name in ["content-type", "link"] {
            assert_eq!(head.header(name), get.header(name), "{path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_json_answer_ends_with_one_newline() {
    let (_env, api, client) = with_api();
    let created = client.create(&api.url, "a1").await;
    let refused = client.create(&api.url, "a1").await;
    let mut answers = vec![created, refused];
    for path in [
        "/order",
        "/order?limit=1",
        "/order?status=FAILED",
        "/order/a1",
        "/order/a1/explain",
        "/order/none",
        "/event",
        "/stats",
        "/livez",
        "/healthz",
        "/openapi.json",
        "/none",
    ] {
        answers.push(client.get(format!("{}{path}", api.url)).await);
    }
    for answer in answers {
        let body = answer.body.strip_suffix('\n').expect(&answer.body);
        assert!(body.ends_with(['}', ']']), "{answer:?}");
    }
}

/// Checks the shape of a health response. Returns its status and the names of its checks.
fn checks(health: &Answer) -> (String, Vec<String>) {
    assert_eq!(health.header("content-type"), "application/json");
    let body = health.json();
    let members: Vec<_> = body.as_object().unwrap().keys().collect();
    assert_eq!(members, ["checks", "status"], "{health:?}");
    let mut names = Vec::new();
    for check in body["checks"].as_array().unwrap() {
        let mut members: Vec<_> = check.as_object().unwrap().keys().collect();
        members.sort_unstable();
        members.retain(|member| *member != "durability");
        assert_eq!(members, ["detail", "name", "since", "status"]);
        let durability = (check["name"] == "database").then_some("disk");
        assert_eq!(check["durability"].as_str(), durability);
        let since = &check["since"];
        let time = since.as_str().map(DateTime::parse_from_rfc3339);
        assert!(since.is_null() || time.unwrap().is_ok(), "{check}");
        assert!(check["status"].is_string() && check["detail"].is_string());
        names.push(check["name"].as_str().unwrap().to_owned());
    }
    (body["status"].as_str().unwrap().to_owned(), names)
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_served_at_three_paths_in_one_format() {
    let (env, api, client) = with_api();
    let health = async |path: &str| client.get(format!("{}{path}", api.url)).await;
    for (path, names) in [
        ("/livez", &[][..]),
        ("/readyz", &["database"]),
        ("/healthz", &["database", "upstream", "reconciler"]),
    ] {
        let answer = health(path).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        let (status, found) = checks(&answer);
        assert_eq!(status, "ok");
        for name in names {
            assert!(found.iter().any(|f| f == name), "{path}: {found:?}");
        }
    }
    // An upstream that is down is reported, but does not make the API unready.
    let serve = env.serve("http://127.0.0.1:9", &[]);
    client.create(&serve.url, "a1").await;
    let health = async || client.get(format!("{}/healthz", serve.url)).await;
    until(health, |answer| {
        assert_eq!(answer.status, 200, "{answer:?}");
        let body = answer.json();
        let mut all = body["checks"].as_array().unwrap().iter();
        let upstream = all.find(|check| check["name"] == "upstream").unwrap();
        let is_failing = upstream["status"] == "failing";
        assert_eq!(body["status"], if is_failing { "degraded" } else { "ok" });
        is_failing
    })
    .await;
    // What cannot be read is not passed over in silence.
    let db = rusqlite::Connection::open(env.database()).unwrap();
    db.execute_batch("ALTER TABLE heartbeat RENAME TO lost")
        .unwrap();
    let answer = client.get(format!("{}/healthz", api.url)).await;
    assert_eq!(checks(&answer).0, "degraded", "{answer:?}");
    let body = answer.json();
    let reconciler = body["checks"].as_array().unwrap().last().unwrap();
    assert_eq!(reconciler["name"], "reconciler");
    assert_eq!(reconciler["status"], "failing");
    drop(serve);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_file_nothing_is_written_until_the_file_is_back() {
    let (env, api, client) = with_api();
    let created = client.create(&api.url, "a1").await;
    let ready = async |status: u16| {
        let read = async || client.get(format!("{}/readyz", api.url)).await;
        checks(&until(read, |ready| ready.status == status).await).0
    };
    assert_eq!(ready(200).await, "ok");
    let away = env.path("away.db");
    fs::rename(env.database(), &away).unwrap();
    for id in ["a2", "a1"] {
        let refused = client.create(&api.url, id).await;
        assert_problem(&refused, 503);
        let seconds: u64 = refused.header("retry-after").parse().unwrap();
        assert!(seconds >= 1);
    }
    assert_ne!(ready(503).await, "ok");
    let all = client.get(format!("{}/healthz", api.url)).await;
    assert_eq!(all.status, 503, "the code of readyz: {all:?}");
    let live = client.get(format!("{}/livez", api.url)).await;
    assert_eq!(live.status, 200);
    let read = client.get(format!("{}/order/a1", api.url)).await;
    assert_eq!((read.status, &read.body), (200, &created.body));
    let list = client.get(format!("{}/order", api.url)).await;
    assert_eq!(list.json(), json!([created.json()]));
    assert!(!env.database().exists(), "no new file is created");
    // Another file at its path is not the one that was opened.
    fs::write(env.database(), "").unwrap();
    assert_problem(&client.create(&api.url, "a2").await, 503);
    assert_eq!(fs::read(env.database()).unwrap(), b"");
    fs::rename(&away, env.database()).unwrap();
    assert_eq!(ready(200).await, "ok");
    assert_eq!(client.create(&api.url, "a2").await.status, 201);
    let list = client.get(format!("{}/order", api.url)).await.json();
    let ids: Vec<_> = list.as_array().unwrap().iter().map(|o| &o["id"]).collect();
    assert_eq!(ids, [&Value::from("a1"), &Value::from("a2")]);
    assert_eq!(api.stop(), Some(0));
}
