//! Misbehaving clients, and shutdown with clients in every state. Other clients are not affected.

use std::time::{Duration, Instant};

use crate::environment::{
    Client, PATIENCE, Program, TestEnvironment, assert_problem, fill, until, with_api,
};
use crate::lists::long_name;
use crate::wire::{Wire, statuses};

const HOST: &str = "Host: localhost\r\n";

/// The start of a `POST /order` whose body of 12 bytes is sent once the server asks for it.
const ASKING: &str =
    "POST /order HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 12\r\n\r\n";

/// The interim response that requests the body.
const GO_ON: &str = "HTTP/1.1 100 Continue\r\n\r\n";

/// Checks that the API serves other clients, has exactly these orders, and logged no error.
async fn assert_unharmed(client: &Client, api: &Program, orders: &[&str]) {
    assert_eq!(client.create(&api.url, "last").await.status, 201);
    let list = client.get(format!("{}/order", api.url)).await.json();
    let list = list.as_array().unwrap();
    let ids: Vec<_> = list.iter().map(|o| o["id"].as_str().unwrap()).collect();
    assert_eq!(ids, [orders, &["last"]].concat());
    let ready = client.get(format!("{}/readyz", api.url)).await;
    assert_eq!(ready.status, 200, "{ready:?}");
    let log = api.logged();
    assert!(!log.contains("ERROR") && !log.contains("panicked"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_request_is_refused_and_its_connection_closed() {
    let (_env, api, client) = with_api();
    let create =
        |fields: &str, body: &str| format!("POST /order HTTP/1.1\r\n{HOST}{fields}\r\n{body}");
    let fields: String = (0..101).map(|n| format!("X-{n}: x\r\n")).collect();
    let mut wrong = Vec::new();
    for (what, request, status) in [
        ("not HTTP", "hello there\r\n\r\n".to_owned(), 400),
        ("no version", "GET /order\r\n\r\n".to_owned(), 400),
        (
            "a space",
            format!("GET /or der HTTP/1.1\r\n{HOST}\r\n"),
            400,
        ),
        (
            "a later version",
            format!("GET /order HTTP/3.0\r\n{HOST}\r\n"),
            400,
        ),
        ("binary", "\u{0}\u{1}\u{2}\r\n\r\n".to_owned(), 400),
        (
            "a malformed field",
            format!("GET /order HTTP/1.1\r\n{HOST}x\r\n\r\n"),
            400,
        ),
        (
            "an endless head",
            format!("GET /order HTTP/1.1\r\nX: {}", "x".repeat(100_000)),
            431,
        ),
        (
            "101 fields",
            format!("GET /order HTTP/1.1\r\n{fields}\r\n"),
            431,
        ),
        (
            "an endless path",
            format!("GET /order/{}", "x".repeat(100_000)),
            431,
        ),
        (
            "two lengths",
            create(
                "Content-Length: 12\r\nContent-Length: 13\r\n",
                "{\"id\":\"bad\"}",
            ),
            400,
        ),
        (
            "a negative length",
            create("Content-Length: -1\r\n", ""),
            400,
        ),
        (
            "a length in words",
            create("Content-Length: ten\r\n", ""),
            400,
        ),
        (
            "an unknown coding",
            create("Transfer-Encoding: gzip\r\n", "x"),
            400,
        ),
        (
            "a coding beside chunks",
            create(
                "Transfer-Encoding: gzip, chunked\r\n",
                "c\r\n{\"id\":\"bad\"}\r\n0\r\n\r\n",
            ),
            501,
        ),
        (
            "a coding in a header of its own",
            create(
                "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
                "c\r\n{\"id\":\"bad\"}\r\n0\r\n\r\n",
            ),
            501,
        ),
        (
            "chunks in chunks",
            create(
                "Transfer-Encoding: chunked, chunked\r\n",
                "c\r\n{\"id\":\"bad\"}\r\n0\r\n\r\n",
            ),
            501,
        ),
        (
            "a chunk in words",
            create(
                "Transfer-Encoding: chunked\r\n",
                "zz\r\n{\"id\":\"bad\"}\r\n0\r\n\r\n",
            ),
            400,
        ),
        (
            "a negative chunk size",
            create(
                "Transfer-Encoding: chunked\r\n",
                "-c\r\n{\"id\":\"bad\"}\r\n0\r\n\r\n",
            ),
            400,
        ),
        (
            "a chunk of 2^80",
            create(
                "Transfer-Encoding: chunked\r\n",
                "fffffffffffffffffffff\r\n{\"id\":\"bad\"}\r\n0\r\n\r\n",
            ),
            400,
        ),
        (
            "a chunk longer than its size",
            create(
                "Transfer-Encoding: chunked\r\n",
                "5\r\n{\"id\":\"bad\"}\r\n0\r\n\r\n",
            ),
            400,
        ),
        (
            "chunks in HTTP/1.0",
            "POST /order HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
            400,
        ),
        (
            "no Host",
            "GET /order HTTP/1.1\r\nAccept: */*\r\n\r\n".to_owned(),
            400,
        ),
        (
            "two Hosts",
            format!("GET /order HTTP/1.1\r\n{HOST}{HOST}\r\n"),
            400,
        ),
        (
            "two Hosts in HTTP/1.0",
            format!("GET /livez HTTP/1.0\r\n{HOST}Host: b\r\n\r\n"),
            400,
        ),
        (
            "an absolute URL without Host",
            "GET http://localhost/order HTTP/1.1\r\n\r\n".to_owned(),
            400,
        ),
    ] {
        let mut wire = Wire::open(&api);
        wire.send(request);
        let answer = wire.rest();
        if statuses(&answer) != [status] {
            wrong.push(format!("{what}: {answer}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_unharmed(&client, &api, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_method_or_target_without_a_path_does_no_harm() {
    let (_env, api, client) = with_api();
    let mut wrong = Vec::new();
    for (line, expected) in [
        ("CONNECT example.org:80 HTTP/1.1", 400..500),
        ("OPTIONS * HTTP/1.1", 400..500),
        // The host of the target counts, and the path of this one is `/`.
        ("GET http://example.org HTTP/1.1", 421..422),
        ("GET http://localhost HTTP/1.1", 200..201),
        ("GET ?status=CREATED HTTP/1.1", 400..500),
    ] {
        let mut wire = Wire::open(&api);
        wire.send(format!("{line}\r\n{HOST}Connection: close\r\n\r\n"));
        let answer = wire.rest();
        if !matches!(statuses(&answer)[..], [status] if expected.contains(&status)) {
            wrong.push(format!("{line}: {answer:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_unharmed(&client, &api, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_on_one_connection_are_answered_in_their_order() {
    let (_env, api, client) = with_api();
    let mut wire = Wire::open(&api);
    let create = |id: &str| {
        let body = format!("{{\"id\":\"{id}\"}}");
        let length = body.len();
        format!("POST /order HTTP/1.1\r\n{HOST}Content-Length: {length}\r\n\r\n{body}")
    };
    wire.send(
        [
            create("a1"),
            create("a1"),
            format!("GET /order/a1 HTTP/1.1\r\n{HOST}\r\n"),
            format!("GET /order/a2 HTTP/1.1\r\n{HOST}\r\n"),
            create("a2"),
            // A body that is not read is not parsed as a request.
            format!("DELETE /order HTTP/1.1\r\n{HOST}Content-Length: 5\r\n\r\nhello"),
            format!("HEAD /order/a2 HTTP/1.1\r\n{HOST}\r\n"),
            format!("GET /order HTTP/1.1\r\n{HOST}Connection: close\r\n\r\n"),
            create("never"),
        ]
        .concat(),
    );
    let answers = wire.rest();
    assert_eq!(
        statuses(&answers),
        [201, 409, 200, 404, 201, 405, 200, 200],
        "{answers}"
    );
    assert_unharmed(&client, &api, &["a1", "a2"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_with_two_lengths_or_a_tail_creates_no_second_order() {
    let (_env, api, client) = with_api();
    // A proxy that believes the length would see a second request in the tail.
    let mut wire = Wire::open(&api);
    let hidden =
        "POST /order HTTP/1.1\r\nHost: localhost\r\nContent-Length: 12\r\n\r\n{\"id\":\"bad\"}";
    wire.send(format!(
        "POST /order HTTP/1.1\r\n{HOST}Content-Length: 22\r\nTransfer-Encoding: chunked\r\n\r\n\
         c\r\n{{\"id\":\"two\"}}\r\n0\r\n\r\n{hidden}"
    ));
    let answers = wire.rest();
    assert_eq!(statuses(&answers).len(), 1, "{answers}");
    let two = client.get(format!("{}/order/two", api.url)).await.status;
    let created: &[&str] = if two == 200 { &["two"] } else { &[] };
    // Bytes after a body are parsed as the next request, which is malformed.
    let mut wire = Wire::open(&api);
    wire.send(format!(
        "POST /order HTTP/1.1\r\n{HOST}Content-Length: 12\r\n\r\n{{\"id\":\"all\"}}, and more\r\n\r\n"
    ));
    let answers = wire.rest();
    assert_eq!(statuses(&answers), [201, 400], "{answers}");
    // HTTP/1.0 ends a connection with its answer.
    let mut wire = Wire::open(&api);
    wire.send("POST /order HTTP/1.0\r\nContent-Length: 12\r\n\r\n{\"id\":\"old\"}");
    assert_eq!(statuses(&wire.rest()), [201]);
    assert_unharmed(&client, &api, &[created, &["all", "old"]].concat()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_breaks_off_creates_nothing() {
    let (_env, api, client) = with_api();
    let post = format!("POST /order HTTP/1.1\r\n{HOST}");
    for request in [
        format!("{post}Content-Length: 100\r\n\r\n{{\"id\":\"bad\"}}"),
        format!("{post}Transfer-Encoding: chunked\r\n\r\nc\r\n{{\"id\":\"bad\"}}\r\n"),
        format!("{post}Transfer-Encoding: chunked\r\n\r\nff\r\n{{\"id\":\"bad\"}}"),
        format!("{post}Content-Length: 12\r\n"),
        "POST".to_owned(),
    ] {
        // One client closes its side and may get a response, the other resets the connection.
        let mut wire = Wire::open(&api);
        wire.send(&request);
        wire.end();
        let answer = wire.rest();
        assert!(
            matches!(statuses(&answer)[..], [] | [400]),
            "{request}: {answer}"
        );
        let mut wire = Wire::open(&api);
        wire.send(&request);
        drop(wire);
    }
    assert_unharmed(&client, &api, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow; scripts/test all"]
async fn a_slow_client_gets_408_and_delays_no_other() {
    let (_env, api, client) = with_api();
    let silent: Vec<_> = (0..50).map(|_| Wire::open(&api)).collect();
    let mut halves: Vec<_> = (0..50).map(|_| Wire::open(&api)).collect();
    for half in &mut halves {
        half.send("GET /order HTTP/1.1\r\nHos");
    }
    let heads = ["Content-Length: 1000", "Transfer-Encoding: chunked"];
    let mut slow: Vec<_> = heads
        .iter()
        .cycle()
        .take(50)
        .map(|head| {
            let mut wire = Wire::open(&api);
            wire.send(format!("POST /order HTTP/1.1\r\n{HOST}{head}\r\n\r\n"));
            wire
        })
        .collect();
    // Each byte arrives in time, but the whole body would not.
    let mut trickled = Wire::open(&api);
    trickled.send(format!(
        "POST /order HTTP/1.1\r\n{HOST}Content-Length: 16000\r\n\r\n"
    ));
    let trickle = trickled.other_end();
    let trickle = tokio::task::spawn_blocking(move || {
        let mut trickle = trickle;
        let began_at = Instant::now();
        while began_at.elapsed() < PATIENCE && trickle.try_send(" ") {
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    for n in 0..20 {
        assert_eq!(client.create(&api.url, &format!("a{n}")).await.status, 201);
    }
    slow.push(trickled);
    for wire in &mut slow {
        let answer = wire.rest();
        assert_eq!(statuses(&answer), [408], "{answer}");
        assert!(answer.contains("application/problem+json"), "{answer}");
    }
    trickle.await.unwrap();
    drop((silent, halves));
    let ids: Vec<_> = (0..20).map(|n| format!("a{n}")).collect();
    let ids: Vec<_> = ids.iter().map(String::as_str).collect();
    assert_unharmed(&client, &api, &ids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_finishes_requests_in_flight_and_takes_no_new_ones() {
    let (env, api, client) = with_api();
    let mut flying = Wire::open(&api);
    flying.send(ASKING);
    assert_eq!(flying.read_until("\r\n\r\n"), GO_ON);
    api.signal("TERM");
    // A new client each time, because idle connections are closed.
    let ready = async || Client::new().get(format!("{}/readyz", api.url)).await;
    until(ready, |ready| ready.status == 503).await;
    let live = Client::new().get(format!("{}/livez", api.url)).await;
    assert_eq!(live.status, 200, "the process runs");
    let refused = client.create(&api.url, "late").await;
    assert_problem(&refused, 503);
    assert!(refused.header("retry-after").parse::<u64>().unwrap() >= 1);
    flying.send("{\"id\":\"fly\"}");
    let answer = flying.rest();
    assert_eq!(statuses(&answer), [201], "{answer}");
    let mut api = api;
    assert_eq!(api.wait().code(), Some(0));
    let api = env.api(&[]);
    assert_unharmed(&client, &api, &["fly"]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow; scripts/test all"]
async fn a_shutdown_completes_whatever_clients_do() {
    let env = TestEnvironment::new();
    let api = env.api(&[]);
    let names: Vec<_> = (0..16_000).map(long_name).collect();
    let all = fill(&env.store(), &names, 2_000).await;
    let silent = Wire::open(&api);
    let mut idle = Wire::open(&api);
    idle.send(format!("GET /livez HTTP/1.1\r\n{HOST}\r\n"));
    idle.read_until("\r\n\r\n");
    let mut head = Wire::open(&api);
    head.send("POST /order HTTP/1.1\r\nHos");
    let mut body = Wire::open(&api);
    body.send(ASKING);
    body.read_until("\r\n\r\n");
    body.send("{\"id\":");
    let mut stalled = Wire::narrow(&api).await;
    stalled.send(format!("GET /order HTTP/1.1\r\n{HOST}\r\n"));
    stalled.read_until("\r\n\r\n");
    let mut reading = Wire::narrow(&api).await;
    reading.send("GET /order HTTP/1.0\r\n\r\n");
    reading.read_until("\r\n\r\n");
    api.signal("TERM");
    // A client that keeps reading gets the whole list.
    let list: Vec<serde_json::Value> = serde_json::from_str(&reading.rest()).unwrap();
    assert!(list.iter().map(|order| &order["id"]).eq(&all));
    let mut api = api;
    assert_eq!(api.wait().code(), Some(0), "{}", api.logged());
    assert!(!api.logged().contains("ERROR"), "{}", api.logged());
    // A truncated list is not well-formed.
    assert!(!stalled.rest().ends_with("0\r\n\r\n"));
    drop((silent, idle, head, body));
}
