//! Readers of lists and of the journal whose unread records are pruned never miss them silently.

use order_service::order::Timestamp;
use order_service::store::Store;
use serde_json::Value;

use crate::environment::{Answer, Client, Program, TestEnvironment, assert_problem};
use crate::events::Events;
use crate::lists::next;
use crate::prune::{created, days_ago, names, prune, pruned, settle, settled};

/// Creates a hundred orders; every tenth settled recently, the others long ago. Events 1 to 100 are
/// creations, and the others follow in pairs.
async fn hundred(env: &TestEnvironment) -> Store {
    let store = env.store();
    let seqs = created(&store, &names("a", 100), days_ago(200)).await;
    let (late, old): (Vec<i64>, Vec<i64>) = seqs.iter().partition(|seq| *seq % 10 == 0);
    settle(&store, &old, days_ago(100)).await;
    settle(&store, &late, days_ago(1)).await;
    store
}

async fn get(client: &Client, api: &Program, path: &str) -> Answer {
    client.get(format!("{}{path}", api.url)).await
}

/// Checks a 410 response. Returns its link to the remaining records.
#[track_caller]
fn refused(answer: &Answer) -> String {
    assert_problem(answer, 410);
    assert_eq!(answer.json()["type"], "/problems#removed");
    next(answer.header("link"))
        .expect("a link to the remaining records")
        .to_owned()
}

#[track_caller]
fn linked(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{answer:?}");
    next(answer.header("link")).expect("a next page").to_owned()
}

/// Returns a number for each record of the pages from this path on: the `seq`, or the number in the id.
async fn walk(client: &Client, api: &Program, path: &str) -> Vec<i64> {
    let mut path = Some(path.to_owned());
    let mut numbers = Vec::new();
    while let Some(this) = path {
        let page = get(client, api, &this).await;
        assert_eq!(page.status, 200, "{this}: {page:?}");
        numbers.extend(page.json().as_array().unwrap().iter().map(number));
        path = next(page.header("link")).map(str::to_owned);
    }
    numbers
}

fn number(member: &Value) -> i64 {
    match member["id"].as_str() {
        Some(id) => id[1..].parse::<i64>().unwrap() + 1,
        None => member["seq"].as_i64().unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_orders_whose_unread_records_are_pruned_gets_410() {
    let env = TestEnvironment::new();
    hundred(&env).await;
    let api = env.api(&[]);
    let client = Client::new();
    let second = linked(&get(&client, &api, "/order?limit=5").await);
    let last = linked(&get(&client, &api, "/order?limit=99").await);
    let failed = linked(&get(&client, &api, "/order?limit=2&status=FAILED").await);
    let open = "/order?limit=2&status=CREATED,PROCESSING&after=";
    let cursor = second.rsplit_once("after=").unwrap().1.to_owned();
    pruned(&env, 90);
    for path in [&second, &failed] {
        let on = refused(&get(&client, &api, path).await);
        // The reader may follow the link to the remaining records.
        let left = walk(&client, &api, &on).await;
        let all: &[i64] = &[10, 20, 30, 40, 50, 60, 70, 80, 90, 100];
        assert_eq!(left, if path == &second { all } else { &[] });
        // The original link still fails.
        refused(&get(&client, &api, path).await);
    }
    // The last pruned one is the 99th.
    assert_eq!(walk(&client, &api, &last).await, [100]);
    // Open orders are never pruned, so a list of those misses nothing.
    assert_eq!(
        walk(&client, &api, &format!("{open}{cursor}")).await,
        [0; 0]
    );
    assert_eq!(
        walk(&client, &api, "/order?limit=1").await,
        [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]
    );
    // A reader that began between two prunes fails after the second.
    let third = linked(&get(&client, &api, "/order?limit=3").await);
    assert_eq!(walk(&client, &api, &third).await.len(), 7);
    created(&env.store(), &["last".into()], days_ago(0)).await;
    let ran = prune(&env, &["--settled-before", "1h"]);
    assert!(ran.stdout.contains("10 FULFILLED, 0 FAILED"), "{ran:?}");
    refused(&get(&client, &api, &third).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_events_whose_unread_records_are_pruned_gets_410() {
    let env = TestEnvironment::new();
    hundred(&env).await;
    let api = env.api(&[]);
    let client = Client::new();
    let second = linked(&get(&client, &api, "/event?limit=5").await);
    let late = linked(&get(&client, &api, "/event?limit=279").await);
    let of_one = linked(&get(&client, &api, "/event?order_id=a1&limit=1").await);
    pruned(&env, 90);
    let left: Vec<i64> = (1..=10).map(|n| 10 * n).chain(281..=300).collect();
    // The last pruned one is the 280th.
    for (path, after) in [(&second, 5), (&late, 279)] {
        let on = refused(&get(&client, &api, path).await);
        let expected = left.iter().copied().filter(|seq| *seq > after);
        assert_eq!(walk(&client, &api, &on).await, expected.collect::<Vec<_>>());
    }
    for (path, expected) in [
        ("/event", &left[..]),
        ("/event?limit=1", &left),
        ("/event?after=0&limit=7", &left),
        // A bare number does not say what its reader has seen.
        ("/event?after=15&limit=7", &left[1..]),
        ("/event?after=280", &left[10..]),
        ("/event?after=295&limit=2", &left[25..]),
    ] {
        assert_eq!(walk(&client, &api, path).await, expected, "{path}");
    }
    // An existing order has all its events.
    let path = "/event?order_id=a9&after=10";
    assert_eq!(walk(&client, &api, path).await.len(), 2);
    assert_eq!(walk(&client, &api, "/event?order_id=a1").await, [0; 0]);
    refused(&get(&client, &api, &of_one).await);
    // A cursor from between two prunes is valid until the second.
    let third = linked(&get(&client, &api, "/event?limit=3").await);
    assert_eq!(walk(&client, &api, &third).await, left[3..]);
    created(&env.store(), &["last".into()], days_ago(0)).await;
    prune(&env, &["--settled-before", "1h"]).assert_code(0);
    refused(&get(&client, &api, &third).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_does_not_begin_where_events_are_missing_and_continues_between_gaps() {
    let env = TestEnvironment::new();
    hundred(&env).await;
    let api = env.api(&[]);
    let client = Client::new();
    let mut stream = Events::open(&client, &api, "?after=4", None).await;
    let (fifth, _) = stream.next_block().await.expect("the stream continues");
    let fifth = fifth.as_str();
    let after = format!("?after={fifth}");
    drop(stream);
    pruned(&env, 90);
    for (method, query, last) in [
        ("GET", "", Some(fifth)),
        ("HEAD", "", Some(fifth)),
        ("GET", &after, None),
        ("GET", "?order_id=a1", Some(fifth)),
    ] {
        let mut request = client
            .request(method, format!("{}/event{query}", api.url))
            .header("accept", "text/event-stream");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let answer = client.send(request).await;
        assert_eq!(answer.status, 410, "{method} {query}");
        if method == "GET" {
            let on = refused(&answer);
            assert!(!on.contains("limit"), "a stream has no limit: {on}");
        }
    }
    // From the beginning, one event for each connection.
    let mut last: Option<String> = None;
    let mut seqs = Vec::new();
    for _ in 0..30 {
        let mut events = Events::open(&client, &api, "", last.as_deref()).await;
        let (id, data) = events.next_block().await.expect("the stream continues");
        let seq = number(&serde_json::from_str(&data).unwrap());
        seqs.push(seq);
        last = Some(id);
    }
    let left: Vec<i64> = (1..=10).map(|n| 10 * n).chain(281..=300).collect();
    assert_eq!(seqs, left);
    let mut latest = Events::open(&client, &api, "?after=latest", None).await;
    let (_, data) = latest.next_block().await.expect("a position");
    assert_eq!(data, r#"{"seq":300}"#);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow; scripts/test all"]
async fn a_stream_whose_unsent_events_are_pruned_ends() {
    let env = TestEnvironment::new();
    let store = env.store();
    // More data than the connection can buffer.
    settled(&store, &names(&"x".repeat(120), 20_000), 100).await;
    let api = env.api(&[]);
    let client = Client::new();
    let mut stream = Events::open(&client, &api, "", None).await;
    assert_eq!(stream.next().await["seq"], 1);
    created(&store, &["last".into()], days_ago(0)).await;
    pruned(&env, 20_000);
    let mut last = (String::new(), 1);
    while let Some((id, data)) = stream.next_block().await {
        let seq = number(&serde_json::from_str(&data).unwrap());
        assert_eq!(seq, last.1 + 1, "the stream continues, or ends");
        last = (id, seq);
    }
    assert!(last.1 < 60_000, "the last events were pruned: {}", last.1);
    assert!(api.logged().contains("stream ended"), "{}", api.logged());
    let request = client
        .request("GET", format!("{}/event", api.url))
        .header("accept", "text/event-stream")
        .header("last-event-id", last.0);
    refused(&client.send(request).await);
    // A stream that is not behind continues.
    let mut latest = Events::open(&client, &api, "?after=latest", None).await;
    latest.next_block().await;
    let seqs = created(&store, &["next".into()], days_ago(0)).await;
    assert_eq!(latest.next().await["order_id"], "next");
    assert_eq!(seqs, [20_002]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow; scripts/test all"]
async fn a_list_whose_unread_orders_are_pruned_breaks_off_and_is_not_well_formed() {
    let env = TestEnvironment::new();
    let store = env.store();
    let ids: Vec<_> = (0..20_000).map(crate::lists::long_name).collect();
    settled(&store, &ids, 100).await;
    created(&store, &["last".into()], days_ago(0)).await;
    let api = env.api(&[]);
    let mut slow = crate::wire::Wire::narrow(&api).await;
    slow.send("GET /order HTTP/1.1\r\nHost: localhost\r\n\r\n");
    slow.read_until("\"id\":");
    pruned(&env, 20_000);
    let rest = slow.rest();
    assert!(
        !rest.contains("\"id\":\"last\""),
        "the list does not reach the end"
    );
    assert!(!rest.ends_with("0\r\n\r\n"), "nor is it well-formed");
    let client = Client::new();
    let all = get(&client, &api, "/order").await.json();
    assert_eq!(all.as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_waits_for_an_order_that_is_settled_and_pruned_is_answered() {
    let env = TestEnvironment::new();
    let store = env.store();
    let seqs = created(&store, &names("a", 2), days_ago(200)).await;
    let api = env.api(&[]);
    let client = Client::new();
    let request = client
        .request("GET", format!("{}/order/a0", api.url))
        .header("prefer", "wait=30");
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.send(request).await }
    });
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    let at = Timestamp(days_ago(100).0);
    settle(&store, &seqs[..1], at).await;
    created(&store, &["last".into()], days_ago(0)).await;
    store.prune(days_ago(90), 0, 1, days_ago(0)).await.unwrap();
    let answer = waiting.await.unwrap();
    // Settled, if it was read before it was pruned.
    assert!(matches!(answer.status, 200 | 404), "{answer:?}");
}
