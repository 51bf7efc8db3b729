//! `POST /order`: accepted and refused requests, and their responses.

use chrono::DateTime;
use order_service::clock::{Clock, SystemClock};
use order_service::order::Rfc3339;
use serde_json::json;

use crate::environment::{Answer, Client, Program, assert_problem, with_api};
use crate::events::settle;
use crate::wire::{plain, statuses};

/// The largest body, in bytes.
const BODY_MAX: usize = 16 * 1024;

/// Sends `POST /order` with this body and these headers.
async fn post(
    client: &Client,
    api: &Program,
    body: impl Into<Vec<u8>>,
    headers: &[(&str, &str)],
) -> Answer {
    let mut request = client.request("POST", format!("{}/order", api.url));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    client.send(request.body(body.into())).await
}

/// Returns a body of exactly this many bytes.
fn body_of(id: &str, length: usize) -> Vec<u8> {
    let mut body = format!("{{\"id\":\"{id}\",\"more\":\"").into_bytes();
    body.resize(length - 2, b'x');
    body.extend(b"\"}");
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn a_creation_is_answered_with_the_order_and_its_location() {
    let (_env, api, client) = with_api();
    let before = Rfc3339(SystemClock.now()).to_string();
    let created = client.create(&api.url, "a1").await;
    let after = Rfc3339(SystemClock.now()).to_string();
    assert_eq!(created.status, 201);
    assert_eq!(created.header("location"), "/order/a1");
    assert_eq!(created.header("content-type"), "application/json");
    let order = created.json();
    let time = order["created_at"].as_str().unwrap();
    let form = |c: char| if c.is_ascii_digit() { '0' } else { c };
    let form: String = time.chars().map(form).collect();
    assert_eq!(form, "0000-00-00T00:00:00.000Z");
    assert!(DateTime::parse_from_rfc3339(time).is_ok(), "{time}");
    assert!(*before <= *time && *time <= *after, "{time}");
    let whole = format!(
        r#"{{"id":"a1","status":"CREATED","created_at":"{time}","updated_at":"{time}","starts":0,"attention":null}}"#
    ) + "\n";
    assert_eq!(created.body, whole);
    let read = client.get(format!("{}/order/a1", api.url)).await;
    assert_eq!((read.status, read.body), (200, whole));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_location_of_an_order_is_escaped_and_leads_back_to_it() {
    let (_env, api, client) = with_api();
    let (long, longer) = ("a".repeat(128), "🦀".repeat(128));
    let long_location = format!("/order/{long}");
    let longer_location = format!("/order/{}", "%F0%9F%A6%80".repeat(128));
    for (id, location) in [
        ("a/b", "/order/a%2Fb"),
        ("/", "/order/%2F"),
        ("a/", "/order/a%2F"),
        ("a+b c", "/order/a%2Bb%20c"),
        ("%2F", "/order/%252F"),
        ("é", "/order/%C3%A9"),
        ("a?b#c&d=e;f", "/order/a%3Fb%23c%26d%3De%3Bf"),
        ("\"\\<>", "/order/%22%5C%3C%3E"),
        ("a-b_c.d~e", "/order/a-b_c.d~e"),
        ("...", "/order/..."),
        (&long, &long_location),
        (&longer, &longer_location),
    ] {
        let created = client.create(&api.url, id).await;
        assert_eq!(created.status, 201, "{id:?}: {created:?}");
        assert_eq!(created.header("location"), location);
        let read = plain(&api, &format!("GET {location} HTTP/1.1"), b"");
        assert!(read.ends_with(&created.body), "{location}: {read}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_members_than_the_id_are_ignored() {
    let (_env, api, client) = with_api();
    let deep = format!(
        r#"{{"x":{}{},"id":"a4"}}"#,
        "[".repeat(8_000),
        "]".repeat(8_000)
    );
    for (id, body) in [
        (
            "a1",
            r#"{"status":"FULFILLED","id":"a1","starts":9,"attention":{}}"#,
        ),
        (
            "a2",
            " {\"\\u0069d\" :\n\"\\u00612\", \"x\":{\"id\":1,\"id\":2}}\r\n",
        ),
        ("a3", r#"{"ID":"b","id":"a3","x":1e999,"":null}"#),
        ("a4", &deep),
    ] {
        let created = post(&client, &api, body, &[]).await;
        assert_eq!(created.status, 201, "{body:.80}: {created:?}");
        let order = created.json();
        assert_eq!(order["id"], id);
        assert_eq!(order["status"], "CREATED");
        assert_eq!(order["starts"], 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn json_is_accepted_with_each_of_its_content_types_or_none() {
    let (_env, api, client) = with_api();
    let mut wrong = Vec::new();
    for (at, content_type) in [
        "application/json",
        "Application/JSON",
        "application/json;charset=utf-8",
        "application/json; charset=\"utf-8\"",
        "application/json; a=b; c=d",
        "application/json;",
        "application/json ; charset=utf-8",
        "application/vnd.shop.order+json",
        "application/x.a+b+JSON; v=1",
        "text/x+json",
    ]
    .iter()
    .enumerate()
    {
        let body = json!({ "id": format!("a{at}") }).to_string();
        let created = post(&client, &api, body, &[("content-type", content_type)]).await;
        if created.status != 201 {
            wrong.push((content_type, created.status));
        }
    }
    assert_eq!(wrong, []);
    let created = post(&client, &api, r#"{"id":"none"}"#, &[]).await;
    assert_eq!(created.status, 201, "{created:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn any_other_content_type_is_415_and_the_detail_names_the_header_to_send() {
    let (_env, api, client) = with_api();
    for content_type in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=json",
        "text/json",
        "application/jsonp",
        "application/json5",
        "application/json, text/plain",
        "text/plain; a=application/json",
        "json",
        "*/*",
        "",
    ] {
        let headers = [("content-type", content_type)];
        let refused = post(&client, &api, r#"{"id":"a1"}"#, &headers).await;
        assert_problem(&refused, 415);
        let problem = refused.json();
        let detail = problem["detail"].as_str().unwrap();
        let shows = detail.contains("Content-Type: application/json");
        assert!(shows, "{content_type:?}: {detail}");
    }
    let none = client.get(format!("{}/order", api.url)).await;
    assert_eq!(none.body, "[]\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compressed_body_is_415_and_the_answer_names_the_coding_to_send() {
    let (_env, api, client) = with_api();
    for coding in ["gzip", "GZIP", "identity, br", "x"] {
        let headers = [("content-encoding", coding)];
        let refused = post(&client, &api, r#"{"id":"a1"}"#, &headers).await;
        assert_problem(&refused, 415);
        assert_eq!(refused.header("accept-encoding"), "identity", "{coding}");
        let problem = refused.json();
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains("the Content-Encoding is"), "{detail}");
    }
    for (id, coding) in [("a1", ""), ("a2", "identity"), ("a3", "Identity,")] {
        let headers = [("content-encoding", coding)];
        let created = post(&client, &api, format!("{{\"id\":\"{id}\"}}"), &headers).await;
        assert_eq!(created.status, 201, "{coding:?}: {created:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_exists_is_answered_with_itself_and_409() {
    let (env, api, client) = with_api();
    let created = client.create(&api.url, "a/1").await;
    let again = client.create(&api.url, "a/1").await;
    assert_problem(&again, 409);
    assert_eq!(again.json()["order"], created.json());
    assert_eq!(again.header("location"), "/order/a%2F1");
    settle(&env.store(), [1]).await;
    let again = client.create(&api.url, "a/1").await;
    assert_problem(&again, 409);
    assert_eq!(again.json()["order"]["status"], "FAILED");
    // Case matters, and nothing is normalised.
    assert_eq!(client.create(&api.url, "A/1").await.status, 201);
    assert_eq!(client.create(&api.url, "\u{e9}").await.status, 201);
    assert_eq!(client.create(&api.url, "e\u{301}").await.status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_concurrent_creations_of_one_order_one_succeeds() {
    let (_env, api, client) = with_api();
    let all = (0..40).map(|_| client.create(&api.url, "a1"));
    let answers = futures_util::future::join_all(all).await;
    let created: Vec<_> = answers.iter().filter(|a| a.status == 201).collect();
    assert_eq!(created.len(), 1);
    for other in answers.iter().filter(|a| a.status != 201) {
        assert_problem(other, 409);
        assert_eq!(other.json()["order"], created[0].json());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_body_is_refused_with_the_name_of_the_wrong_member() {
    let (_env, api, client) = with_api();
    let id = |id: &str| json!({ "id": id }).to_string();
    let deep = format!(r#"{{"id":{}{}}}"#, "[".repeat(200), "]".repeat(200));
    let mut wrong = Vec::new();
    for (body, member) in [
        // Without an object there is no member to name.
        ("", None),
        (" \r\n", None),
        ("null", None),
        ("[]", None),
        (r#"["id"]"#, None),
        (r#""a1""#, None),
        ("1", None),
        ("{", None),
        (r#"{"id":"a1""#, None),
        (r#"{"id":"a1",}"#, None),
        (r#"{"id":"a1"}{}"#, None),
        (r#"{"id":"a1"} x"#, None),
        (r#"{id:"a1"}"#, None),
        (r#"{'id':'a1'}"#, None),
        ("\u{feff}{\"id\":\"a1\"}", None),
        ("id=a1", None),
        (&"[".repeat(BODY_MAX), None),
        ("{}", Some("id")),
        (r#"{"ID":"a1"}"#, Some("id")),
        (r#"{"id":1}"#, Some("id")),
        (r#"{"id":1e999}"#, Some("id")),
        (r#"{"id":true}"#, Some("id")),
        (r#"{"id":null}"#, Some("id")),
        (r#"{"id":["a1"]}"#, Some("id")),
        (r#"{"id":{"id":"a1"}}"#, Some("id")),
        (&deep, Some("id")),
        (r#"{"id":"\ud800"}"#, Some("id")),
        (r#"{"id":"a1","id":"a1"}"#, Some("id")),
        (r#"{"id":"a1","\u0069d":"a2"}"#, Some("id")),
        (r#"{"x":1,"x":1}"#, Some("id")),
        (&id(""), Some("id")),
        (&id(&"a".repeat(129)), Some("id")),
        (&id(&"é".repeat(129)), Some("id")),
        (&id("\0"), Some("id")),
        (&id("a\nb"), Some("id")),
        (&id("a\u{85}"), Some("id")),
        (&id(" a"), Some("id")),
        (&id("a\u{a0}"), Some("id")),
        (&id("\u{2028}a"), Some("id")),
        (&id("."), Some("id")),
        (&id(".."), Some("id")),
    ] {
        let refused = post(&client, &api, body, &[]).await;
        assert_problem(&refused, 400);
        let problem = refused.json();
        let named = problem["member"].as_str();
        let detail = problem["detail"].as_str().unwrap();
        let is_named = member.is_none_or(|member| detail.contains(member));
        // The parser's own words say nothing to callers.
        let is_plain = body.starts_with('{') || !detail.contains("column");
        if named != member || !is_named || !is_plain {
            wrong.push(format!("{body:.40}: {}", refused.body));
        }
    }
    for body in [
        &b"{\"id\":\"\xff\"}"[..],
        b"\xff\xfe",
        b"{\"id\":\"a1\"}\x80",
    ] {
        assert_problem(&post(&client, &api, body, &[]).await, 400);
    }
    let none = client.get(format!("{}/order", api.url)).await;
    assert_eq!(none.body, "[]\n");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_16_kib_is_accepted_and_one_byte_more_is_not() {
    let (_env, api, client) = with_api();
    let chunked = |body: &[u8]| {
        let mut chunks = Vec::new();
        for piece in body.chunks(1_000) {
            chunks.extend(format!("{:x}\r\n", piece.len()).into_bytes());
            chunks.extend(piece);
            chunks.extend(b"\r\n");
        }
        chunks.extend(b"0\r\n\r\n");
        let head = "POST /order HTTP/1.1\r\nTransfer-Encoding: chunked";
        plain(&api, head, &chunks)
    };
    let announced = post(&client, &api, body_of("a1", BODY_MAX), &[]).await;
    assert_eq!(announced.status, 201, "{announced:?}");
    assert_eq!(statuses(&chunked(&body_of("a2", BODY_MAX))), [201]);
    for length in [BODY_MAX + 1, BODY_MAX * 2, 1_000_000] {
        let body = body_of("a3", length);
        let head = format!("POST /order HTTP/1.1\r\nContent-Length: {length}");
        let announced = plain(&api, &head, &body);
        assert_eq!(statuses(&announced), [413], "{length}: {announced}");
        let chunked = chunked(&body);
        assert_eq!(statuses(&chunked), [413], "{length}: {chunked}");
        assert!(chunked.contains("application/problem+json"), "{chunked}");
    }
    let announced = post(&client, &api, body_of("a3", BODY_MAX + 1), &[]).await;
    assert_problem(&announced, 413);
    // The body is announced and never sent: the server does not wait for it.
    let head = "POST /order HTTP/1.1\r\nContent-Length: 1000000000000";
    assert_eq!(statuses(&plain(&api, head, b"")), [413]);
    let all = client.get(format!("{}/order", api.url)).await.json();
    assert_eq!(all.as_array().map(Vec::len), Some(2));
}
