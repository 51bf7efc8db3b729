//! The journal over HTTP: pages and streams of events. Requests that wait for an order are in
//! `waiting`.

use std::collections::VecDeque;
use std::fs;

use order_service::clock::{Clock, SystemClock};
use order_service::order::Outcome;
use order_service::store::{Store, Transition};
use serde_json::{Value, json};

use crate::environment::{
    Answer, Client, Program, TestEnvironment, assert_problem, fill, record, with_api,
};
use crate::lists::{long_name, next};
use crate::wire::Wire;

/// A stream of events, as a client reads it (the HTML standard, section 9.2.6).
pub struct Events {
    response: reqwest::Response,
    read: String,
    comments: usize,
    /// Received and not yet returned: ids with their data.
    come: VecDeque<(String, String)>,
}

impl Events {
    pub async fn open(client: &Client, api: &Program, query: &str, last: Option<&str>) -> Self {
        let mut request = client
            .request("GET", format!("{}/event{query}", api.url))
            .header("accept", "text/event-stream");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = request.send().await.expect("the request is answered");
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["cache-control"], "no-store");
        Self {
            response,
            read: String::new(),
            comments: 0,
            come: VecDeque::new(),
        }
    }

    /// Reads the next chunk. Returns `None` at the end.
    async fn read_on(&mut self) -> Option<()> {
        let chunk = self.response.chunk().await.expect("the stream is intact")?;
        self.read.push_str(std::str::from_utf8(&chunk).unwrap());
        while let Some((block, rest)) = self.read.split_once("\n\n") {
            let mut id = String::new();
            let mut data = String::new();
            for line in block.lines() {
                match line.split_once(": ") {
                    Some(("id", text)) => id = text.to_owned(),
                    Some(("data", text)) => data = text.to_owned(),
                    Some(("event", name)) => assert_eq!(name, "position"),
                    _ if line.starts_with(':') => self.comments += 1,
                    _ => panic!("{line:?} is no line of a stream"),
                }
            }
            if !id.is_empty() {
                self.come.push_back((id, data));
            }
            self.read = rest.to_owned();
        }
        Some(())
    }

    /// Returns the next id and its data, or `None` at the end.
    pub async fn next_block(&mut self) -> Option<(String, String)> {
        while self.come.is_empty() {
            self.read_on().await?;
        }
        self.come.pop_front()
    }

    /// Returns the next event.
    pub async fn next(&mut self) -> Value {
        let (id, data) = self.next_block().await.expect("the stream continues");
        let event: Value = serde_json::from_str(&data).unwrap();
        let seq = id.split_once('-').map(|(seq, _)| seq);
        assert_eq!(Some(&*event["seq"].to_string()), seq);
        event
    }

    /// Returns the numbers of the next events.
    async fn seqs(&mut self, count: usize) -> Vec<i64> {
        let mut seqs = Vec::new();
        while seqs.len() < count {
            seqs.push(self.next().await["seq"].as_i64().unwrap());
        }
        seqs
    }
}

/// Settles these orders as FAILED in another process: two events each.
pub async fn settle(store: &Store, seqs: impl IntoIterator<Item = i64>) {
    let steps = [Transition::Adopted, Transition::Settled(Outcome::Failed)];
    let changes = seqs.into_iter();
    let changes = changes.flat_map(|seq| steps.clone().map(|step| (seq, step)));
    record(store, changes, SystemClock.now()).await;
}

fn seqs(page: &Answer) -> Vec<i64> {
    assert_eq!(page.status, 200, "{page:?}");
    let page = page.json();
    let events = page.as_array().unwrap().iter();
    events.map(|event| event["seq"].as_i64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_events_has_the_changes_in_order() {
    let (env, api, client) = with_api();
    let empty = client.get(format!("{}/event", api.url)).await;
    assert_eq!((empty.status, &*empty.body), (200, "[]\n"));
    client.create(&api.url, "a/1").await;
    client.create(&api.url, "a2").await;
    settle(&env.store(), [1]).await;
    let page = client.get(format!("{}/event", api.url)).await;
    assert_eq!(page.header("content-type"), "application/json");
    assert_eq!(page.header("link"), "");
    let order = client.get(format!("{}/order/a%2F1", api.url)).await.json();
    let second = client.get(format!("{}/order/a2", api.url)).await.json();
    let (created, settled) = (&order["created_at"], &order["updated_at"]);
    assert_eq!(
        page.json(),
        json!([
            {"seq": 1, "order_id": "a/1", "from": null, "to": "CREATED", "at": created, "reason": "created"},
            {"seq": 2, "order_id": "a2", "from": null, "to": "CREATED", "at": second["created_at"], "reason": "created"},
            {"seq": 3, "order_id": "a/1", "from": "CREATED", "to": "PROCESSING", "at": settled, "reason": "adopted"},
            {"seq": 4, "order_id": "a/1", "from": "PROCESSING", "to": "FAILED", "at": settled, "reason": "failed"},
        ])
    );
    for (query, expected) in [
        ("after=0", &[1, 2, 3, 4][..]),
        ("after=2", &[3, 4]),
        ("after=4", &[]),
        ("order_id=a%2F1", &[1, 3, 4]),
        ("order_id=a%2F1&after=3", &[4]),
        ("order_id=none", &[]),
        ("limit=1000", &[1, 2, 3, 4]),
    ] {
        let page = client.get(format!("{}/event?{query}", api.url)).await;
        assert_eq!(seqs(&page), expected, "{query}");
        assert_eq!(page.header("link"), "", "{query}");
    }
    let beyond = client.get(format!("{}/event?after=5", api.url)).await;
    assert_problem(&beyond, 410);
    assert_eq!(
        next(beyond.header("link")),
        Some("/event?limit=100&after=0")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_events_are_walked_to_the_end_by_their_links() {
    let (env, api, client) = with_api();
    let store = env.store();
    let names: Vec<_> = (0..60).map(|n| format!("a {n}")).collect();
    fill(&store, &names, 60).await;
    settle(&store, 1..=60).await;
    for (query, total, lengths) in [
        ("", 180, &[100, 80][..]),
        ("?limit=90", 180, &[90, 90]),
        ("?limit=179", 180, &[179, 1]),
        ("?limit=180", 180, &[180]),
        ("?order_id=a%207&limit=2", 3, &[2, 1]),
        ("?order_id=a+7&limit=1", 3, &[1, 1, 1]),
    ] {
        let mut path = format!("/event{query}");
        let mut found = Vec::new();
        let mut all = Vec::new();
        loop {
            let page = client.get(format!("{}{path}", api.url)).await;
            found.push(seqs(&page).len());
            all.extend(seqs(&page));
            match next(page.header("link")) {
                Some(next) => path = next.to_owned(),
                None => break,
            }
        }
        assert_eq!(found, lengths, "{query}");
        assert_eq!(all.len(), total, "{query}");
        assert!(all.is_sorted_by(|a, b| a < b), "{query}: {all:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_request_for_events_is_refused_with_its_parameter() {
    let (_env, api, client) = with_api();
    for (query, accept, last, name) in [
        ("status=CREATED", "", "", "status"),
        ("x", "", "", "x"),
        ("limit=0", "", "", "limit"),
        ("limit=1001", "", "", "limit"),
        ("limit=1&limit=1", "", "", "limit"),
        ("after=-1", "", "", "after"),
        ("after=", "", "", "after"),
        ("after=latest", "", "", "after"),
        ("order_id=", "", "", "order_id"),
        ("order_id=%20", "", "", "order_id"),
        ("x=1", "text/event-stream", "", "x"),
        ("after=x", "text/event-stream", "", "after"),
        ("limit=5", "text/event-stream", "", "limit"),
        ("", "text/event-stream", "x", "Last-Event-ID"),
        ("", "text/event-stream", "-1", "Last-Event-ID"),
    ] {
        for method in ["GET", "HEAD"] {
            let request = client
                .request(method, format!("{}/event?{query}", api.url))
                .header("accept", accept)
                .header("last-event-id", last);
            let refused = client.send(request).await;
            assert_eq!(refused.status, 400, "{query}: {refused:?}");
            if method == "GET" {
                assert_problem(&refused, 400);
                assert_eq!(refused.json()["member"], name, "{query}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_sends_each_event_once_and_in_order_whichever_process_wrote_it() {
    let (env, api, client) = with_api();
    let store = env.store();
    // More than one read and one batch.
    let old: Vec<_> = (0..700).map(|n| format!("old-{n}")).collect();
    fill(&store, &old, 350).await;
    let mut early = Events::open(&client, &api, "", None).await;
    let mut late = Events::open(&client, &api, "?after=699", None).await;
    let mut one = Events::open(&client, &api, "?order_id=here-5", None).await;
    let here = async {
        for n in 0..50 {
            let created = client.create(&api.url, &format!("here-{n}")).await;
            assert_eq!(created.status, 201);
        }
    };
    let there = async {
        for n in 0..50 {
            fill(&store, &[format!("there-{n}")], 1).await;
            settle(&store, [n + 1]).await;
        }
    };
    let read = async {
        let all: Vec<_> = (1..=900).collect();
        assert_eq!(early.seqs(900).await, all);
        assert_eq!(late.seqs(201).await, all[699..]);
    };
    tokio::join!(here, there, read);
    let only = one.next().await;
    assert_eq!(
        (&only["order_id"], &only["to"]),
        (&json!("here-5"), &json!("CREATED"))
    );
    let at_once: Vec<_> = (51..=650).collect();
    settle(&store, at_once).await;
    let more: Vec<_> = (901..=2_100).collect();
    assert_eq!(early.seqs(1_200).await, more);
    assert_eq!(late.seqs(1_200).await, more);
    let order = client
        .get(format!("{}/event?order_id=here-5", api.url))
        .await;
    assert_eq!(order.json(), json!([only]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_resumes_after_its_readers_last_event() {
    let (_env, api, client) = with_api();
    for n in 0..9 {
        client.create(&api.url, &format!("a{n}")).await;
    }
    for (query, last, first) in [
        ("", None, 1),
        ("?after=3", None, 4),
        ("?after=3", Some("5"), 6),
        ("?after=5", Some("3"), 4),
        ("?after=latest", Some("5"), 6),
        ("?after=3", Some(""), 4),
        ("?order_id=a7", Some("2"), 8),
    ] {
        let mut events = Events::open(&client, &api, query, last).await;
        assert_eq!(events.next().await["seq"], first, "{query} {last:?}");
    }
    let mut latest = Events::open(&client, &api, "?after=latest", None).await;
    // A client that loses it before the first event knows its position.
    let (id, data) = latest.next_block().await.expect("a position");
    assert_eq!(data, r#"{"seq":9}"#);
    client.create(&api.url, "next").await;
    assert_eq!(latest.next().await["order_id"], "next");
    let mut again = Events::open(&client, &api, "?after=latest", Some(&id)).await;
    assert_eq!(again.next().await["order_id"], "next");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_of_a_stream_misses_nothing_and_costs_little() {
    let env = TestEnvironment::new();
    let api = env.api(&[]);
    let store = env.store();
    let names: Vec<_> = (0..20_000).map(long_name).collect();
    fill(&store, &names[..10_000], 2_000).await;
    let mut slow = Wire::narrow(&api).await;
    slow.send("GET /event HTTP/1.0\r\nAccept: text/event-stream\r\n\r\n");
    slow.read_until("data: ");
    let before = anonymous_kib(&api);
    fill(&store, &names[10_000..], 2_000).await;
    let client = Client::new();
    let mut quick = Events::open(&client, &api, "?after=latest", None).await;
    quick.next_block().await;
    client.create(&api.url, "last").await;
    assert_eq!(
        quick.next().await["seq"],
        20_001,
        "other streams are not delayed"
    );
    let grown = anonymous_kib(&api).saturating_sub(before);
    assert!(grown < 8 * 1024, "memory grew by {grown} KiB");
    api.signal("TERM");
    let text = format!("data: {}", slow.rest());
    let mut seqs = Vec::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("data: ")) {
        // The last line may be truncated.
        if let Ok(event) = serde_json::from_str::<Value>(line) {
            seqs.push(event["seq"].as_i64().unwrap());
        }
    }
    assert!(seqs.iter().copied().eq(1..=seqs.len() as i64));
}

/// Returns the anonymous memory of a program, in KiB.
pub fn anonymous_kib(program: &Program) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", program.id())).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.unwrap().trim().trim_end_matches(" kB");
    kib.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow; scripts/test all"]
async fn an_idle_stream_sends_comments() {
    let (_env, api, client) = with_api();
    let mut events = Events::open(&client, &api, "?order_id=none", None).await;
    while events.comments < 1 {
        events.read_on().await.expect("the stream continues");
    }
    assert!(events.come.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_completes_the_response_of_streams() {
    let env = TestEnvironment::new();
    let mut api = env.api(&[]);
    let client = Client::new();
    client.create(&api.url, "a1").await;
    let mut wires: Vec<_> = (0..20).map(|_| Wire::open(&api)).collect();
    for wire in &mut wires {
        wire.send("GET /event HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n");
        wire.read_until("\n\n\r\n");
    }
    api.signal("TERM");
    for wire in &mut wires {
        assert_eq!(wire.rest(), "0\r\n\r\n");
    }
    assert_eq!(api.wait().code(), Some(0));
    assert!(!api.logged().contains("cut off"), "{}", api.logged());
    assert!(!api.logged().contains("WARN  api"), "{}", api.logged());
}
