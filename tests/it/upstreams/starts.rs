//! Starts: their requests, the meaning of answers, and repetition.

use super::*;
use order_service::pace::UpstreamState;

#[tokio::test(flavor = "multi_thread")]
async fn a_start_has_exactly_the_accepted_body_and_no_callback() {
    let upstream = Scripted::new(|_, _| answer(200, "")).await;
    let ids = ["a1", "a \"quoted\" one", "é/🦀\\"];
    let orders = Orders::created(&ids).await;
    assert!(orders.once(&upstream).await);
    let asked = upstream.asked();
    // Concurrent requests may arrive in any order.
    let mut bodies: Vec<_> = asked.iter().map(|asked| asked.body.clone()).collect();
    bodies.sort();
    let mut expected = ids.map(|id| serde_json::json!({ "order_id": id }).to_string());
    expected.sort();
    assert_eq!(bodies, expected, "nothing is looked up first");
    for asked in &asked {
        assert_eq!((&*asked.method, &*asked.target), ("POST", "/order_process"));
        assert_eq!(asked.headers["content-type"], "application/json");
        assert_eq!(asked.headers["host"], upstream.address);
        assert!(!asked.headers.contains_key("authorization"), "{asked:?}");
        assert_eq!(asked.headers["accept-encoding"], "identity");
    }
    assert!(
        orders
            .all()
            .iter()
            .all(|order| order.status == Status::Processing)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_2xx_without_a_body_accepts_a_start() {
    let cases = [
        answer(200, ""),
        answer(202, ""),
        Reply::Bytes("HTTP/1.1 204 No Content\r\n\r\n".into()),
        Reply::Bytes("HTTP/1.0 200 OK\r\n\r\n".into()),
        Reply::Answer(200, "Retry-After: 60\r\n", String::new()),
        // An interim response.
        Reply::Bytes(
            "HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".into(),
        ),
    ];
    side_by_side(cases, |reply| async move {
        let no_look_up = answer(500, "no look-up is needed");
        check_started(reply, no_look_up, 1).await;
    })
    .await;
}

/// Returns successful answers that are not the upstream's own.
fn foreign() -> [Reply; 7] {
    [
        answer(200, "{\"order_id\":\"another\",\"status\":\"FAILED\"}"),
        answer(200, "{}"),
        answer(201, "<html>created</html>"),
        answer(202, "[]"),
        answer(206, "null"),
        Reply::Bytes("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\ncut".into()),
        Reply::Bytes("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\ncu".into()),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_2xx_with_a_body_accepts_a_start_if_a_look_up_finds_the_process() {
    side_by_side(foreign(), |reply| async move {
        let found = answer(200, process("a1", "RUNNING"));
        check_started(reply, found, 2).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_whose_starts_reach_another_service_is_never_failed_or_held() {
    let unknown = [answer(200, "{}"), answer(200, "<html>"), Reply::HangUp];
    let cases = foreign()
        .into_iter()
        .flat_map(|reply| unknown.clone().map(|unknown| (reply.clone(), unknown)));
    side_by_side(cases, |(reply, unknown)| async move {
        let shown = format!("{reply:?} {unknown:?}");
        let upstream = Scripted::answering(reply, unknown).await;
        let orders = Orders::created(&["a1"]).await;
        let settings = Settings {
            lost_process: LostProcess::Fail,
            schedule: "*/5 * * * * *".parse().unwrap(),
            ..settings()
        };
        let mut reconciler = orders.reconciler_with(&upstream, settings).await;
        for _ in 0..40 {
            reconciler.pass().await;
            let order = orders.order("a1");
            assert_eq!(order.status, Status::Created, "{shown}: {order:?}");
        }
        let order = orders.order("a1");
        let reason = order.attention.map(|attention| attention.reason);
        assert_eq!(reason, Some(Reason::UpstreamUnreachable), "{shown}");
        assert_eq!(order.starts, 1, "{shown}: only the last may have an effect");
    })
    .await;
}

/// Checks that an order whose start gets this answer is started, with this many requests.
async fn check_started(reply: Reply, look_up: Reply, requests: usize) {
    let shown = format!("{reply:?}");
    let upstream = Scripted::answering(reply, look_up).await;
    let orders = Orders::created(&["a1"]).await;
    assert!(orders.once(&upstream).await, "{shown}");
    let order = orders.order("a1");
    assert_eq!(order.status, Status::Processing, "{shown}: {order:?}");
    assert_eq!(order.starts, 1, "{shown}");
    assert_eq!(order.attention, None, "{shown}");
    assert_eq!(upstream.asked().len(), requests, "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_400_a_look_up_decides_whatever_the_text() {
    let texts = [
        "{\"message\":\"order process for order a1 exists\"}",
        "{\"message\":\"order process for order a\"1 exists\"}",
        "{\"message\":\"missing order id\"}",
        "{\"message\":\"invalid request body\"}",
        "{\"order_id\":\"a1\",\"status\":\"SUCCEEDED\"}",
        "",
    ];
    let observations = [
        (process("a1", "RUNNING"), Status::Processing),
        (process("a1", "SUCCEEDED"), Status::Fulfilled),
        (process("a1", "FAILED"), Status::Failed),
        ("{}".to_owned(), Status::Created),
    ];
    let cases: Vec<_> = texts
        .iter()
        .flat_map(|text| observations.clone().map(|body| (*text, body)))
        .collect();
    side_by_side(cases, |(text, (body, status))| async move {
        let upstream = Scripted::answering(answer(400, text), answer(200, body)).await;
        let orders = Orders::created(&["a1"]).await;
        assert!(
            orders.once(&upstream).await,
            "single orders may have attention"
        );
        let order = orders.order("a1");
        assert_eq!(order.status, status, "{text}");
        assert_eq!(order.starts, 0, "the process was not started by us");
        let methods: Vec<_> = upstream.asked().iter().map(|a| a.method.clone()).collect();
        assert_eq!(methods, ["POST", "GET"], "{text}");
        assert_eq!(
            reason_of(&order),
            (status == Status::Created).then_some(Reason::StartRefused),
            "{text}"
        );
        if let Some(attention) = order.attention {
            let wait = attention.next_attempt_at.unwrap().since(attention.since);
            assert!(wait >= Duration::from_millis(500), "{wait:?}");
            assert!(attention.detail.contains("400"), "{attention:?}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn look_ups_that_fail_after_refused_starts_show_that_the_upstream_is_down() {
    let upstream = Scripted::answering(answer(400, "exists"), answer(500, "error")).await;
    let orders = Orders::created(&["a1", "a2", "a3"]).await;
    let mut reconciler = orders.reconciler(&upstream).await;
    // The next tick may end a pass before all three were tried.
    for _ in 0..3 {
        reconciler.pass().await;
    }
    let state = orders.store.heartbeat().await.unwrap().upstream;
    assert!(matches!(state, UpstreamState::Down { .. }), "{state:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_order_is_retried_with_backoff_and_blocks_no_other() {
    let upstream = Scripted::new(|asked, _| match asked.order_id() {
        Some(id) if id == "bad" && asked.is_start() => answer(400, "no"),
        Some(id) if id == "bad" => answer(200, "{}"),
        Some(id) if !asked.is_start() => answer(200, process(&id, "RUNNING")),
        _ => answer(200, ""),
    })
    .await;
    let orders = Orders::created(&["bad", "good1", "good2", "good3"]).await;
    let mut reconciler = orders.reconciler(&upstream).await;
    for id in ["good1", "good2", "good3"] {
        reconciler.until_status(id, Status::Processing).await;
    }
    let first = reconciler
        .until_attention("bad", Reason::StartRefused)
        .await;
    assert_eq!(first.status, Status::Created);
    reconciler
        .until_asked(&upstream, |asked| {
            asked
                .iter()
                .filter(|asked| asked.is_start() && asked.order_id().as_deref() == Some("bad"))
                .count()
                >= 3
        })
        .await;
    let starts: Vec<_> = upstream
        .asked_about("bad")
        .into_iter()
        .filter(ReceivedRequest::is_start)
        .collect();
    let waits: Vec<_> = starts
        .windows(2)
        .map(|two| two[1].at.since(two[0].at))
        .collect();
    assert!(waits[0] >= Duration::from_millis(500), "{waits:?}");
    assert!(waits[1] >= Duration::from_secs(1), "{waits:?}");
    let second = orders.order("bad").attention.unwrap();
    assert_eq!(
        second.since,
        first.attention.unwrap().since,
        "the attention is unchanged"
    );
    // A new order is not delayed.
    orders.create("good4").await;
    reconciler.until_status("good4", Status::Processing).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_backoffs() {
    let upstream = Scripted::answering(answer(400, "no"), answer(200, "{}")).await;
    let orders = Orders::created(&["a1"]).await;
    assert!(orders.once(&upstream).await);
    let next = orders
        .order("a1")
        .attention
        .unwrap()
        .next_attempt_at
        .unwrap();
    assert!(orders.once(&upstream).await);
    upstream.clock.sleep_until(next).await;
    assert!(orders.once(&upstream).await);
    let mut asked = upstream.asked();
    asked.retain(ReceivedRequest::is_start);
    assert_eq!(asked.len(), 2, "{asked:#?}");
    assert!(asked[1].at >= next, "{asked:#?}");
}

/// Checks the requests about an order whose first start failed: no second start before a look-up that
/// could have seen the first.
pub(super) fn assert_looked_up_before_the_second_start(asked: &[ReceivedRequest]) {
    assert!(asked[0].is_start(), "{asked:?}");
    let second = asked.iter().skip(1).position(ReceivedRequest::is_start);
    let before = &asked[1..=second.unwrap_or(asked.len() - 1)];
    if second.is_some() {
        // The start timed out after it was sent.
        let counts_from = asked[0].at.after(TIMEOUT_IN_RULES);
        assert!(
            before
                .iter()
                .any(|asked| asked.looked_up().is_some() && asked.at >= counts_from),
            "no look-up found an absence a request timeout after the first start: {asked:#?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_start_is_repeated_only_after_a_look_up_that_finds_no_process() {
    let errors = [401, 403, 407, 408, 500, 501, 502, 503, 504, 599];
    let cases = errors
        .into_iter()
        .flat_map(|status| [(status, true), (status, false)]);
    side_by_side(cases, |(status, took_effect)| async move {
        let upstream = Scripted::new(move |asked, before| {
            if asked.is_start() && !before.iter().any(ReceivedRequest::is_start) {
                answer(status, "error")
            } else if asked.is_start() {
                answer(200, "")
            } else if took_effect || before.iter().filter(|a| a.is_start()).count() > 1 {
                answer(200, process("a1", "RUNNING"))
            } else {
                answer(200, "{}")
            }
        })
        .await;
        let orders = Orders::created(&["a1"]).await;
        let mut reconciler = orders.reconciler(&upstream).await;
        // The recovery of the upstream is reported only at the end of the pass.
        let is_well =
            |all: &[Order]| all[0].status == Status::Processing && all[0].attention.is_none();
        reconciler.until_all(is_well).await;
        let asked = upstream.asked_about("a1");
        assert_eq!(
            upstream.starts(),
            if took_effect { 1 } else { 2 },
            "{status}: {asked:#?}"
        );
        assert!(asked[1].looked_up().is_some(), "{status}: {asked:#?}");
        assert_looked_up_before_the_second_start(&asked);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limited_start_has_no_effect_and_flags_no_order() {
    let upstream = Scripted::new(|asked, before| match asked.is_start() {
        true if before.is_empty() => answer(429, "slowly"),
        true => answer(200, ""),
        false => answer(200, process("a1", "RUNNING")),
    })
    .await;
    let orders = Orders::created(&["a1"]).await;
    let mut reconciler = orders.reconciler(&upstream).await;
    let is_processing = |all: &[Order]| all[0].status == Status::Processing;
    reconciler.until_all(is_processing).await;
    let asked = upstream.asked_about("a1");
    assert!(asked[0].is_start() && asked[1].is_start(), "{asked:#?}");
    let order = &orders.all()[0];
    assert_eq!((order.starts, &order.attention), (1, &None));
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_is_honoured() {
    let cases = [429, 500, 503].into_iter().flat_map(|status| {
        let later = Reply::Answer(status, "Retry-After: 3\r\n", "later".into());
        let cut =
            format!("HTTP/1.1 {status} X\r\nRetry-After: 3\r\nContent-Length: 9\r\n\r\nlater");
        let cut = Reply::Bytes(cut);
        [
            (later.clone(), true),
            (later, false),
            (cut.clone(), true),
            (cut, false),
        ]
    });
    side_by_side(cases, |(reply, is_start)| async move {
        let shown = format!("{reply:?}");
        let upstream = Scripted::new(move |asked, before| {
            if before.is_empty() {
                reply.clone()
            } else if asked.is_start() {
                answer(200, "")
            } else if before.iter().filter(|a| a.is_start()).count() > 1 || !is_start {
                answer(200, process("a1", "RUNNING"))
            } else {
                answer(200, "{}")
            }
        })
        .await;
        let orders = Orders::one(is_start).await;
        let mut reconciler = orders.reconciler(&upstream).await;
        let asked = reconciler
            .until_asked(&upstream, |asked| asked.len() >= 2)
            .await;
        let wait = asked[1].at.since(asked[0].at);
        assert!(wait >= Duration::from_secs(3), "{shown}: {wait:?}");
        let order = reconciler
            .until_all(|all| all[0].attention.is_none())
            .await
            .remove(0);
        assert_eq!(order.status, Status::Processing);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_is_honoured_although_another_request_in_flight_succeeds() {
    let upstream = Scripted::new(|asked, before| match (asked.is_start(), before.len()) {
        (true, 0) => Reply::Answer(503, "Retry-After: 3\r\n", "later".into()),
        (true, 1) => Reply::Later(Duration::from_millis(150), Box::new(answer(200, ""))),
        (true, _) => answer(200, ""),
        _ => answer(200, "{}"),
    })
    .await;
    let orders = Orders::created(&["a1", "a2"]).await;
    let at_once = Settings {
        start_rate: Some(0.0),
        ..settings()
    };
    let mut reconciler = orders.reconciler_with(&upstream, at_once).await;
    let asked = reconciler
        .until_asked(&upstream, |asked| asked.len() >= 3)
        .await;
    let wait = asked[2].at.since(asked[0].at);
    assert!(wait >= Duration::from_secs(3), "{wait:?}: {asked:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_that_come_to_wait_for_long_are_logged_although_others_have_waited_shortly() {
    let upstream = Scripted::new(|asked, _| match asked.order_id() {
        Some(id) if !asked.is_start() => answer(200, process(&id, "RUNNING")),
        _ => answer(200, ""),
    })
    .await;
    let create = async |orders: &Orders, group, count| {
        for n in 0..count {
            orders.create(&format!("{group}{n}")).await;
        }
    };
    let orders = Orders::created(&[] as &[&str]).await;
    create(&orders, "a", 20).await;
    let arguments = ["--start-rate", "5"];
    let reconciler = orders.env.reconciler(&upstream.url, &arguments);
    // Two passes have ended with orders left.
    until_asked(&upstream, |asked| {
        asked.iter().filter(|asked| asked.is_start()).count() >= 12
    })
    .await;
    create(&orders, "b", 80).await;
    reconciler.logs("orders wait");
    reconciler.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_is_honoured_within_a_pass() {
    let upstream = Scripted::new(|asked, before| match (asked.is_start(), before.len()) {
        (true, 0) => Reply::Answer(500, "Retry-After: 3\r\n", "later".into()),
        (true, _) => answer(200, ""),
        _ => answer(200, "{}"),
    })
    .await;
    let orders = Orders::created(&["a1", "a2"]).await;
    let one_by_one = Settings {
        max_in_flight: 1,
        ..settings()
    };
    let mut reconciler = orders.reconciler_with(&upstream, one_by_one).await;
    let asked = reconciler
        .until_asked(&upstream, |asked| asked.len() >= 2)
        .await;
    let wait = asked[1].at.since(asked[0].at);
    assert!(wait >= Duration::from_secs(3), "{wait:?}: {asked:#?}");
}
