//! Lists of orders: filters, pages, formats, and slow readers. Single orders are tested in `http`.

use std::fs;
use std::time::{Duration, Instant};

use order_service::clock::{Clock, SystemClock};
use order_service::order::{Outcome, Reason};
use order_service::store::{AttentionUpdate, Transition};
use serde_json::Value;

use crate::environment::{
    Client, Program, TestEnvironment, assert_problem, fill, has_many_files, record, until, with_api,
};
use crate::wire::{Wire, statuses};

/// Largest size of the write-ahead log, in bytes: a checkpoint ends it at 32 MiB.
const WAL_BYTES_MAX: u64 = 48 * 1024 * 1024;

/// Returns an id so long that a few thousand exceed the socket buffers of a slow reader.
pub fn long_name(n: usize) -> String {
    format!("{}{n}", "🦀".repeat(120))
}

/// Returns the ids of orders, in order.
fn ids(orders: &Value) -> Vec<&str> {
    let orders = orders.as_array().expect("a list");
    orders.iter().map(|o| o["id"].as_str().unwrap()).collect()
}

async fn list(client: &Client, api: &Program, query: &str) -> Value {
    let answer = client.get(format!("{}/order?{query}", api.url)).await;
    assert_eq!(answer.status, 200, "{query}: {answer:?}");
    assert_eq!(answer.header("content-type"), "application/json");
    answer.json()
}

/// Returns the target of `Link: <…>; rel="next"`, if any.
pub fn next(link: &str) -> Option<&str> {
    let target = link.strip_suffix(">; rel=\"next\"")?;
    target.strip_prefix('<')
}

/// Returns the ids of all pages from this one on, following `Link` headers.
async fn pages(client: &Client, api: &Program, path: &str) -> Vec<Vec<String>> {
    let mut pages = Vec::new();
    let mut path = path.to_owned();
    loop {
        let page = client.get(format!("{}{path}", api.url)).await;
        assert_eq!(page.status, 200, "{path}: {page:?}");
        let orders = page.json();
        pages.push(ids(&orders).into_iter().map(str::to_owned).collect());
        match next(page.header("link")) {
            Some(next) => path = next.to_owned(),
            None => {
                assert_eq!(page.header("link"), "");
                return pages;
            }
        }
    }
}

/// Starts a service with an order in each status, `c`, `p`, `f` and `x`, and `a`, which is CREATED and has
/// attention.
async fn one_of_each() -> (TestEnvironment, Program, Client) {
    let (env, api, client) = with_api();
    for id in ["c", "p", "f", "x", "a"] {
        assert_eq!(client.create(&api.url, id).await.status, 201);
    }
    let now = SystemClock.now();
    let refused = AttentionUpdate {
        reason: Reason::StartRefused,
        detail: "it said no".to_owned(),
        next_attempt_at: now.after(Duration::from_secs(3_600)),
    };
    let changes = [
        (2, Transition::Adopted),
        (3, Transition::Adopted),
        (4, Transition::Adopted),
        (3, Transition::Settled(Outcome::Succeeded)),
        (4, Transition::Settled(Outcome::Failed)),
        (5, Transition::Flagged(refused)),
    ];
    record(&env.store(), changes, now).await;
    (env, api, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_has_the_requested_orders_in_the_order_of_creation() {
    let (_world, api, client) = one_of_each().await;
    for (query, expected) in [
        ("", "c p f x a"),
        ("status=CREATED", "c a"),
        ("status=PROCESSING", "p"),
        ("status=FULFILLED", "f"),
        ("status=FAILED", "x"),
        ("status=FAILED&status=CREATED", "c x a"),
        ("status=FAILED,CREATED", "c x a"),
        ("status=FAILED%2CCREATED", "c x a"),
        ("status=CREATED,CREATED&status=CREATED", "c a"),
        ("status=FAILED,FULFILLED,PROCESSING,CREATED", "c p f x a"),
        (
            "status=CREATED&status=PROCESSING&status=FULFILLED&status=FAILED",
            "c p f x a",
        ),
        ("attention=true", "a"),
        ("attention=false", "c p f x"),
        ("attention=operator", ""),
        ("attention=itself", "a"),
        ("attention=itself&status=PROCESSING", ""),
        ("attention=true&status=CREATED", "a"),
        ("attention=true&status=FAILED", ""),
        ("attention=false&status=CREATED,PROCESSING", "c p"),
        ("limit=1000", "c p f x a"),
        ("limit=2", "c p"),
        ("status=FULFILLED,FAILED&limit=1", "f"),
    ] {
        let orders = list(&client, &api, query).await;
        assert_eq!(ids(&orders).join(" "), expected, "{query}");
    }
    let orders = list(&client, &api, "attention=true").await;
    let attention = &orders[0]["attention"];
    assert_eq!(attention["reason"], "start_refused");
    assert_eq!(attention["detail"], "it said no");
    for time in ["since", "next_attempt_at"] {
        let time = attention[time].as_str().unwrap();
        assert!(time.len() == 24 && time.ends_with('Z'), "{time}");
    }
    let one = client.get(format!("{}/order/a", api.url)).await;
    assert_eq!(one.json(), orders[0], "an order is the same everywhere");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_value_is_refused_with_its_parameter() {
    let (_world, api, client) = one_of_each().await;
    let page = client.get(format!("{}/order?limit=1", api.url)).await;
    let link = next(page.header("link")).unwrap();
    let (_, cursor) = link.rsplit_once("after=").unwrap();
    let longer = format!("after={cursor}-0");
    let shorter = format!("after={}", &cursor[1..]);
    let twice = format!("after={cursor}&after={cursor}");
    for (query, name) in [
        ("status=", "status"),
        ("status", "status"),
        ("status=created", "status"),
        ("status=OPEN", "status"),
        ("status=CREATED,", "status"),
        ("status=,CREATED", "status"),
        ("status=CREATED&status=", "status"),
        ("status=CREATED+", "status"),
        ("status=CREATED;FAILED", "status"),
        ("status=%FF", "status"),
        ("attention=", "attention"),
        ("attention=1", "attention"),
        ("attention=True", "attention"),
        ("attention=yes", "attention"),
        ("attention=true,false", "attention"),
        ("attention=OPERATOR", "attention"),
        ("attention=true&attention=true", "attention"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=-1", "limit"),
        ("limit=1.0", "limit"),
        ("limit=ten", "limit"),
        ("limit=", "limit"),
        ("limit=99999999999999999999999", "limit"),
        ("limit=1&limit=1", "limit"),
        ("after=", "after"),
        ("after=1-", "after"),
        ("after=0000000000000000", "after"),
        (
            "after=%F0%9F%A6%80%F0%9F%A6%80%F0%9F%A6%80%F0%9F%A6%80",
            "after",
        ),
        (&longer, "after"),
        (&shorter, "after"),
        (&twice, "after"),
        ("after=-1", "after"),
    ] {
        let refused = client.get(format!("{}/order?{query}", api.url)).await;
        assert_problem(&refused, 400);
        assert_eq!(refused.json()["member"], name, "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_walked_to_the_end_by_their_links() {
    let (env, api, client) = with_api();
    let store = env.store();
    let names: Vec<_> = (0..23).map(|n| format!("a{n}")).collect();
    let all = fill(&store, &names, 100).await;
    let odd = (1..=23).step_by(2).map(|seq| (seq, Transition::Adopted));
    record(&store, odd, SystemClock.now()).await;
    for (limit, lengths) in [
        (1, vec![1; 23]),
        (5, vec![5, 5, 5, 5, 3]),
        (22, vec![22, 1]),
        (23, vec![23]),
        (1_000, vec![23]),
    ] {
        let pages = pages(&client, &api, &format!("/order?limit={limit}")).await;
        let found: Vec<_> = pages.iter().map(Vec::len).collect();
        assert_eq!(found, lengths, "limit {limit}");
        assert_eq!(pages.concat(), all);
    }
    // The link keeps the filters.
    let path = "/order?status=PROCESSING&status=FAILED&attention=false&limit=5";
    let processing: Vec<_> = all.iter().step_by(2).cloned().collect();
    assert_eq!(pages(&client, &api, path).await.concat(), processing);
    let first = client.get(format!("{}{path}", api.url)).await;
    let rest = next(first.header("link")).unwrap().replace("limit=5&", "");
    let rest = pages(&client, &api, &rest).await;
    assert_eq!(rest.concat(), processing[5..], "a cursor needs no limit");
    // Concurrent creations and changes have no effect.
    let first = client.get(format!("{}/order?limit=20", api.url)).await;
    record(&store, [(2, Transition::Adopted)], SystemClock.now()).await;
    client.create(&api.url, "late").await;
    let rest = pages(&client, &api, next(first.header("link")).unwrap()).await;
    let found = [ids(&first.json()).join(" "), rest.concat().join(" ")].join(" ");
    assert_eq!(found, format!("{} late", all.join(" ")));
    let api = env.api(&[]);
    let rest = pages(&client, &api, next(first.header("link")).unwrap()).await;
    assert_eq!(rest.concat().len(), 4, "a cursor outlives the program");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_without_orders_is_empty() {
    let (_env, api, client) = with_api();
    for query in ["", "?", "?status=FAILED", "?attention=true", "?limit=5"] {
        let url = format!("{}/order{query}", api.url);
        let array = client.get(&url).await;
        assert_eq!((array.status, &*array.body), (200, "[]\n"), "{query}");
        assert_eq!(array.header("link"), "");
        let lines = client
            .request("GET", &url)
            .header("accept", "application/x-ndjson");
        let lines = client.send(lines).await;
        assert_eq!((lines.status, &*lines.body), (200, ""), "{query}");
        assert_eq!(lines.header("content-type"), "application/x-ndjson");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_are_sent_to_clients_that_prefer_them() {
    let (_world, api, client) = one_of_each().await;
    let array = list(&client, &api, "").await;
    let mut wrong = Vec::new();
    for (accept, is_lines) in [
        ("application/x-ndjson", true),
        ("Application/X-NDJSON", true),
        ("application/x-ndjson;q=0.5", true),
        ("application/x-ndjson ; q=0.5", true),
        ("application/x-ndjson, application/json;q=0.9", true),
        ("application/json;q=0.1,application/x-ndjson;q=0.2", true),
        ("text/html, application/x-ndjson;q=0.1", true),
        ("application/x-ndjson, */*;q=0.1", true),
        ("application/x-ndjson;q=0", false),
        ("application/x-ndjson;q=0.0, */*", false),
        ("application/json, application/x-ndjson;q=0.9", false),
        ("application/x-ndjson;q=0.1, */*", false),
        ("application/json", false),
        ("*/*", false),
        ("application/*", false),
        ("text/html", false),
        ("application/ndjson", false),
        ("application/jsonl", false),
        (";;,", false),
        ("", false),
    ] {
        for query in ["", "?limit=5"] {
            let request = client
                .request("GET", format!("{}/order{query}", api.url))
                .header("accept", accept);
            let answer = client.send(request).await;
            assert_eq!(answer.status, 200, "{accept}: {answer:?}");
            if (answer.header("content-type") == "application/x-ndjson") != is_lines {
                wrong.push(accept);
                continue;
            }
            if is_lines {
                assert!(answer.body.ends_with('\n'));
                let lines = answer.body.lines();
                let lines = lines.map(|line| serde_json::from_str::<Value>(line).unwrap());
                assert_eq!(Value::from_iter(lines), array, "{accept}");
            } else {
                assert_eq!(answer.json(), array, "{accept}");
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_orders_are_listed_completely_and_in_order() {
    let (env, api, client) = with_api();
    let store = env.store();
    let names: Vec<_> = (0..3_000).map(|n| format!("order-{n}")).collect();
    let all = fill(&store, &names[..500], 500).await;
    // Exactly one read, and one order more.
    assert_eq!(ids(&list(&client, &api, "").await), all);
    let more = fill(&store, &names[500..501], 1).await;
    let all = [all, more].concat();
    assert_eq!(ids(&list(&client, &api, "").await), all);
    let all = [all, fill(&store, &names[501..], 500).await].concat();
    assert_eq!(ids(&list(&client, &api, "").await), all);
    assert_eq!(ids(&list(&client, &api, "status=CREATED").await), all);
    let lines = client
        .request("GET", format!("{}/order", api.url))
        .header("accept", "application/x-ndjson");
    let lines = client.send(lines).await.body;
    let orders: Value = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .collect();
    assert_eq!(ids(&orders), all);
    let pages = pages(&client, &api, "/order?limit=1000").await;
    assert_eq!(pages.concat(), all);
    let head = client.request("HEAD", format!("{}/order", api.url));
    let head = client.send(head).await;
    assert_eq!((head.status, &*head.body), (200, ""));
    // For HTTP/1.0 the end of the connection is the end of the list.
    let mut wire = Wire::open(&api);
    wire.send("GET /order HTTP/1.0\r\n\r\n");
    let answer = wire.rest();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    assert_eq!(ids(&serde_json::from_str(body).unwrap()), all);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow; scripts/test all"]
async fn a_slow_reader_delays_neither_others_nor_the_database() {
    let (env, api, client) = with_api();
    let store = env.store();
    let names: Vec<_> = (0..20_000).map(long_name).collect();
    let all = fill(&store, &names, 2_000).await;
    let mut slow = Wire::narrow(&api).await;
    slow.send("GET /order HTTP/1.0\r\n\r\n");
    let head = slow.read_until("\r\n\r\n");
    assert!(
        head.starts_with("HTTP/1.0 200") || head.starts_with("HTTP/1.1 200"),
        "{head}"
    );
    let late: Vec<_> = (20_000..28_000).map(long_name).collect();
    let mut largest = 0;
    for some in late.chunks(200) {
        // Few orders per commit, because each commit writes whole pages into the log.
        fill(&store, some, 4).await;
        let wal = fs::metadata(env.path("orders.db-wal")).unwrap().len();
        largest = largest.max(wal);
    }
    assert!(largest < WAL_BYTES_MAX, "the log grew to {largest} bytes");
    assert_eq!(client.create(&api.url, "later").await.status, 201);
    let page = list(&client, &api, "limit=3").await;
    assert_eq!(ids(&page), all[..3]);
    let orders: Value = serde_json::from_str(&slow.rest()).unwrap();
    assert!(ids(&orders) == all, "{} orders", ids(&orders).len());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow; scripts/test all"]
async fn fifteen_hundred_slow_lists_delay_no_other_client() {
    if !has_many_files() {
        return;
    }
    let (env, api, client) = with_api();
    let names: Vec<_> = (0..16_000).map(long_name).collect();
    fill(&env.store(), &names, 2_000).await;
    let mut slow = Vec::new();
    for _ in 0..1_536 {
        let mut wire = Wire::narrow(&api).await;
        wire.send("GET /order HTTP/1.1\r\nHost: localhost\r\n\r\n");
        slow.push(wire);
    }
    let began_at = Instant::now();
    let mut slowest = Duration::ZERO;
    for n in 0..100 {
        let asked = Instant::now();
        assert_eq!(client.create(&api.url, &format!("a{n}")).await.status, 201);
        for path in ["/livez", "/order/a0"] {
            let read = client.get(format!("{}{path}", api.url)).await;
            assert_eq!(read.status, 200, "{path}: {read:?}");
        }
        slowest = slowest.max(asked.elapsed());
    }
    println!(
        "three requests took {slowest:?} at most, of {:?}",
        began_at.elapsed()
    );
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    // All of them have begun, and another one is refused.
    for wire in &mut slow {
        assert_eq!(statuses(&wire.read_until("\r\n\r\n")), [200]);
    }
    for path in ["/order", "/order?limit=1", "/event"] {
        let refused = client.get(format!("{}{path}", api.url)).await;
        assert_problem(&refused, 503);
        assert!(refused.body.contains("too-many-lists"), "{refused:?}");
    }
    drop(slow);
    let page = format!("{}/order?limit=1", api.url);
    until(
        async || client.get(page.clone()).await,
        |answer| answer.status != 503,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_cannot_be_finished_is_not_well_formed() {
    let env = TestEnvironment::new();
    let api = env.api(&[]);
    let names: Vec<_> = (0..16_000).map(long_name).collect();
    let store = env.store();
    fill(&store, &names, 2_000).await;
    // Otherwise pages would be read from the log.
    store.checkpoint().await;
    let mut readers = Vec::new();
    for (version, accept) in [
        ("1.0", "*/*"),
        ("1.0", "application/x-ndjson"),
        ("1.1", "*/*"),
    ] {
        let mut reader = Wire::narrow(&api).await;
        reader.send(format!(
            "GET /order HTTP/{version}\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n"
        ));
        reader.read_until("\r\n\r\n");
        readers.push(reader);
    }
    // The database is lost; its readers must notice.
    let file = fs::OpenOptions::new().write(true).open(env.database());
    let file = file.unwrap();
    let half = file.metadata().unwrap().len() / 2;
    file.set_len(half).unwrap();
    for mut reader in readers {
        let (list, is_reset) = reader.rest_and_reset();
        assert!(!list.ends_with(']') && !list.ends_with("0\r\n\r\n"));
        assert!(is_reset, "an HTTP/1.0 client would take it for complete");
    }
    assert!(api.logged().contains("list failed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_a_killed_program_is_not_well_formed() {
    let env = TestEnvironment::new();
    let api = env.api(&[]);
    let names: Vec<_> = (0..16_000).map(long_name).collect();
    fill(&env.store(), &names, 2_000).await;
    let mut reader = Wire::narrow(&api).await;
    reader.send("GET /order HTTP/1.0\r\nAccept: application/x-ndjson\r\n\r\n");
    reader.read_until("\r\n\r\n");
    api.kill();
    assert!(reader.rest_and_reset().1);
}
