//! Look-ups and lists, complete or broken, and the conclusions drawn from them.

use std::collections::BTreeSet;
use std::time::Instant;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_to_a_look_up_that_is_incomplete_or_about_another_order_is_unusable() {
    let long = " ".repeat(70_000);
    let cases = [
        answer(200, process("a2", "SUCCEEDED")),
        answer(200, process("A1", "SUCCEEDED")),
        answer(200, format!("[{}]", process("a1", "SUCCEEDED"))),
        answer(200, "[]"),
        answer(200, "null"),
        answer(200, ""),
        answer(200, "<html>{}</html>"),
        answer(200, "{\"order_id\":\"a1\"}"),
        answer(200, "{\"message\":\"not now\"}"),
        answer(
            200,
            "{\"order_id\":\"a1\",\"status\":\"SUCCEEDED\",\"status\":\"FAILED\"}",
        ),
        answer(201, process("a1", "SUCCEEDED")),
        answer(204, ""),
        answer(400, process("a1", "SUCCEEDED")),
        answer(404, "{}"),
        answer(500, process("a1", "FAILED")),
        Reply::Bytes("HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{}".into()),
        Reply::Bytes("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n".into()),
        Reply::Bytes("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{\"order_id\":\"a1\"".into()),
        // Longer than an answer may be: JSON as far as it is read, and then not.
        answer(200, format!("{{}}{long}")),
        answer(200, format!("{}{long}x", process("a1", "SUCCEEDED"))),
        Reply::Bytes(format!(
            "HTTP/1.1 200 OK\r\nContent-Length: 900000\r\n\r\n{{}}{long}"
        )),
        Reply::Answer(200, GZIP, process("a1", "SUCCEEDED")),
        Reply::Silence,
        Reply::HangUp,
    ];
    side_by_side(cases, |reply| async move {
        let shown: String = format!("{reply:?}").chars().take(100).collect();
        let upstream = Scripted::always(reply).await;
        let orders = Orders::processing(&["a1"]).await;
        let mut reconciler = orders.reconciler(&upstream).await;
        let asked = reconciler
            .until_asked(&upstream, |asked| asked.len() >= 2)
            .await;
        let order = reconciler
            .until_attention("a1", Reason::UpstreamUnreachable)
            .await;
        assert_eq!(order.status, Status::Processing, "{shown}");
        assert!(asked.iter().all(|asked| !asked.is_start()), "{shown}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absence_counts_only_if_no_cache_has_kept_it_for_longer_than_reads_may_lag() {
    let cases = [
        ("Age: 0\r\n", Reason::ProcessLost, ""),
        (
            "Age: 60\r\n",
            Reason::UpstreamUnreachable,
            "a cache (Age: 60)",
        ),
        (
            "Age: 99999999999999999999\r\n",
            Reason::UpstreamUnreachable,
            "a cache (Age: 99999999999999999999)",
        ),
        (
            "Age: 0\r\nAge: soon\r\n",
            Reason::UpstreamUnreachable,
            "a cache (Age: soon)",
        ),
    ];
    side_by_side(cases, |(age, reason, hint)| async move {
        let upstream = Scripted::new(move |_, _| Reply::Answer(200, age, "{}".into())).await;
        let orders = Orders::processing(&["a1"]).await;
        let mut reconciler = orders.reconciler(&upstream).await;
        let order = reconciler.until_attention("a1", reason).await;
        let detail = order.attention.unwrap().detail;
        assert!(detail.contains(hint), "{detail}");
        let asked = &upstream.asked()[0];
        assert_eq!(asked.headers["cache-control"], "no-cache");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_of_a_cached_list_count_and_absences_do_not() {
    let list = format!("{}]", half_a_list());
    let upstream = Scripted::new(move |asked, _| {
        let body = if asked.is_list() { &list } else { "{}" };
        Reply::Answer(200, "Age: 60\r\n", body.to_owned())
    })
    .await;
    let orders = Orders::processing(&many()).await;
    let mut reconciler = orders.reconciler(&upstream).await;
    // By now absences count.
    let until = upstream.clock.now().after(TIMEOUT_IN_RULES * 3);
    while upstream.clock.now() < until {
        reconciler.pass().await;
    }
    let all = orders.all();
    let is_settled = |order: &Order| order.status == Status::Fulfilled;
    assert!(all[..20].iter().all(is_settled), "{all:?}");
    for order in &all[20..] {
        assert_eq!(order.status, Status::Processing, "{order:?}");
        assert_ne!(reason_of(order), Some(Reason::ProcessLost), "{order:?}");
    }
    assert_eq!(upstream.starts(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_counts_however_long_a_cache_has_kept_it() {
    let succeeded = process("a1", "SUCCEEDED");
    let upstream =
        Scripted::new(move |_, _| Reply::Answer(200, "Age: 60\r\n", succeeded.clone())).await;
    let orders = Orders::processing(&["a1"]).await;
    let mut reconciler = orders.reconciler(&upstream).await;
    reconciler.until_status("a1", Status::Fulfilled).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_empty_object_is_an_absence_and_flags_the_loss() {
    side_by_side(["{}", " {\n}\r\n"], |body| async move {
        let upstream = Scripted::new(move |_, _| answer(200, body)).await;
        let orders = Orders::processing(&["a1"]).await;
        let mut reconciler = orders.reconciler(&upstream).await;
        let order = reconciler.until_attention("a1", Reason::ProcessLost).await;
        assert_eq!(
            order.status,
            Status::Processing,
            "the status never goes back"
        );
        assert_eq!(upstream.starts(), 0, "it is held");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_too_long_is_described_with_the_limit() {
    let body = format!("{{}}{}", " ".repeat(70_000));
    let upstream = Scripted::new(move |_, _| answer(200, body.clone())).await;
    let orders = Orders::processing(&["a1"]).await;
    let mut reconciler = orders.reconciler(&upstream).await;
    let unreachable = Reason::UpstreamUnreachable;
    let order = reconciler.until_attention("a1", unreachable).await;
    let detail = order.attention.unwrap().detail;
    assert!(detail.contains("longer than 65536 bytes"), "{detail}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_status_is_shown_and_leaves_the_order_processing() {
    let ids: Vec<String> = (0..30).map(|n| format!("a{n}")).collect();
    for by_list in [false, true] {
        let ids = if by_list { &ids[..] } else { &ids[..1] };
        let upstream = Scripted::new(move |asked, _| match asked.looked_up() {
            Some(id) => answer(200, process(&id, "PAUSED")),
            None => {
                let list: Vec<_> = (0..30)
                    .map(|n| process(&format!("a{n}"), "PAUSED"))
                    .collect();
                answer(200, format!("[{}]", list.join(",")))
            }
        })
        .await;
        let orders = Orders::processing(ids).await;
        let mut reconciler = orders.reconciler(&upstream).await;
        for id in ids {
            let order = reconciler.until_attention(id, Reason::UnknownStatus).await;
            assert_eq!(order.status, Status::Processing);
            let detail = order.attention.unwrap().detail;
            assert!(detail.contains("PAUSED"), "{detail}");
        }
        assert_eq!(
            upstream.asked().iter().any(ReceivedRequest::is_list),
            by_list
        );
    }
    // The same holds for an order whose start was never seen.
    let upstream =
        Scripted::answering(answer(400, "exists"), answer(200, process("a1", "PAUSED"))).await;
    let orders = Orders::created(&["a1"]).await;
    let mut reconciler = orders.reconciler(&upstream).await;
    let order = reconciler
        .until_attention("a1", Reason::UnknownStatus)
        .await;
    assert_eq!(order.status, Status::Processing);
}

/// Returns a truncated list in which the first half of [`many`] has succeeded.
fn half_a_list() -> String {
    let entries: Vec<_> = many()[..20]
        .iter()
        .map(|id| process(id, "SUCCEEDED"))
        .collect();
    format!("[{}", entries.join(","))
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_of_an_incomplete_list_count_and_absences_do_not() {
    let half = half_a_list();
    let length = half.len();
    let framed =
        |head: &str, body: &str| Reply::Bytes(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{body}"));
    let chunk = format!("{length:x}\r\n{half}\r\n");
    let cases = [
        (
            "shorter than its length",
            framed(&format!("Content-Length: {}", length + 50), &half),
        ),
        (
            "shorter than its length, but whole JSON",
            framed(
                &format!("Content-Length: {}", length + 50),
                &format!("{half}]"),
            ),
        ),
        (
            "chunked without an end",
            framed("Transfer-Encoding: chunked", &chunk),
        ),
        (
            "chunked without an end, but whole JSON",
            framed("Transfer-Encoding: chunked", &format!("{chunk}1\r\n]\r\n")),
        ),
        (
            "truncated JSON in a complete response",
            answer(200, half.clone()),
        ),
        (
            "cut within an entry",
            answer(200, format!("{half},{{\"order_id\":\"order-3")),
        ),
        ("a comma at the end", answer(200, format!("{half},]"))),
        ("bytes after the end", answer(200, format!("{half}]<html>"))),
        (
            "an entry that is no process",
            answer(200, format!("{half},{{\"order_id\":1}}]")),
        ),
        (
            "ended by the connection",
            framed("Connection: close", &half),
        ),
    ];
    side_by_side(cases, |(name, list)| async move {
        let upstream = Scripted::new(move |asked, _| {
            if asked.is_list() {
                list.clone()
            } else {
                // The look-ups that replace the list fail too.
                answer(200, "<html>")
            }
        })
        .await;
        let orders = Orders::processing(&many()).await;
        let mut reconciler = orders.reconciler(&upstream).await;
        let all = reconciler
            .until_all(|all| {
                all[..20]
                    .iter()
                    .all(|order| order.status == Status::Fulfilled)
            })
            .await;
        assert_eq!(all.len(), 40);
        // At least one more poll.
        let so_far = upstream.asked().len();
        reconciler
            .until_asked(&upstream, |asked| asked.len() > so_far + 1)
            .await;
        for order in &orders.all()[20..] {
            assert_eq!(order.status, Status::Processing, "{name}: {order:?}");
            assert_ne!(
                reason_of(order),
                Some(Reason::ProcessLost),
                "{name}: {order:?}"
            );
        }
        assert_eq!(upstream.starts(), 0, "{name}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_missing_from_a_complete_list_is_lost() {
    let list = format!("{}]", half_a_list());
    let upstream = Scripted::new(move |asked, _| {
        let body = if asked.is_list() { &list } else { "{}" };
        answer(200, body)
    })
    .await;
    let orders = Orders::processing(&many()).await;
    let hold = Settings {
        lost_process: LostProcess::Hold,
        ..settings()
    };
    let mut reconciler = orders.reconciler_with(&upstream, hold).await;
    let lost = |order: &Order| reason_of(order) == Some(Reason::ProcessLost);
    let all = reconciler.until_all(|all| all[20..].iter().all(lost)).await;
    assert!(
        all[..20]
            .iter()
            .all(|order| order.status == Status::Fulfilled)
    );
    assert_eq!(upstream.starts(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unusable_list_is_ignored_and_look_ups_replace_it() {
    let cases = [
        answer(200, "<html>maintenance</html>"),
        answer(200, "{}"),
        answer(200, "null"),
        answer(200, ""),
        answer(200, "[null]"),
        answer(200, "{\"order_processes\":[]}"),
        answer(204, ""),
        answer(206, "[]"),
        answer(302, ""),
        answer(403, "no lists"),
        answer(404, "[]"),
        answer(500, "[]"),
        Reply::Bytes("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n[]".into()),
        Reply::HangUp,
        // Longer than the read timeout.
        Reply::Silence,
    ];
    side_by_side(cases, |list| async move {
        let shown = format!("{list:?}");
        let upstream = Scripted::new(move |asked, _| match asked.looked_up() {
            Some(id) => answer(200, process(&id, "SUCCEEDED")),
            None => list.clone(),
        })
        .await;
        let orders = Orders::processing(&many()).await;
        let mut reconciler = orders.reconciler(&upstream).await;
        reconciler
            .until_all(|all| all.iter().all(|order| order.status == Status::Fulfilled))
            .await;
        assert_eq!(upstream.starts(), 0, "{shown}");
        let asked = upstream.asked();
        assert!(asked.iter().any(ReceivedRequest::is_list), "{shown}");
    })
    .await;
}

/// Returns a list that takes three seconds, longer than the request timeout, without a silence that long.
fn long_list() -> Reply {
    let mut pieces = vec!["[".to_owned()];
    for id in many() {
        pieces.push(format!("{},", process(&id, "SUCCEEDED")));
    }
    pieces.push(format!("{}]", process("another", "RUNNING")));
    Reply::Pieces(Duration::from_millis(75), pieces)
}

/// Returns the answers to other requests while a list is read.
fn meanwhile(asked: &ReceivedRequest, list: &Reply) -> Reply {
    match asked.looked_up() {
        _ if asked.is_start() => answer(200, ""),
        Some(id) if id == "order-7" => answer(200, process(&id, "FAILED")),
        Some(id) => answer(200, process(&id, "RUNNING")),
        None => list.clone(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn starts_and_look_ups_continue_while_a_list_is_read() {
    let upstream = Scripted::new(|asked, _| meanwhile(asked, &long_list())).await;
    let orders = Orders::processing(&many()).await;
    let mut reconciler = orders.reconciler(&upstream).await;
    let began_at = Instant::now();
    reconciler.pass().await;
    orders.create("new").await;
    reconciler.until_status("new", Status::Processing).await;
    reconciler.until_status("order-7", Status::Failed).await;
    let took = began_at.elapsed();
    assert!(took < Duration::from_millis(2_900), "{took:?}");
    let lists = || {
        upstream
            .asked()
            .into_iter()
            .filter(ReceivedRequest::is_list)
    };
    assert_eq!(lists().count(), 1);
    let is_settled = |order: &Order| order.id.as_str() == "new" || order.status.is_settled();
    while !orders.all().iter().all(is_settled) {
        reconciler.pass().await;
        assert!(
            began_at.elapsed() < Duration::from_secs(30),
            "the list is never read"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(lists().count(), 1);
    assert_eq!(orders.order("order-0").status, Status::Fulfilled);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_never_ends_delays_neither_starts_nor_the_shutdown() {
    let endless = Reply::Pieces(Duration::from_millis(100), vec![" ".to_owned(); 10_000]);
    let upstream = Scripted::new(move |asked, _| meanwhile(asked, &endless)).await;
    let orders = Orders::processing(&many()).await;
    let reconciler = orders.env.reconciler(&upstream.url, &[]);
    until_asked(&upstream, |asked| {
        asked.iter().any(ReceivedRequest::is_list)
    })
    .await;
    orders.create("new").await;
    until_asked(&upstream, |asked| {
        asked.iter().any(ReceivedRequest::is_start)
    })
    .await;
    let began_at = Instant::now();
    reconciler.signal("TERM");
    assert_eq!(ended(reconciler).await.0, Some(0));
    let took = began_at.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert!(
        upstream
            .asked()
            .iter()
            .filter(|asked| asked.is_list())
            .count()
            == 1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_with_contradicting_entries_in_a_list_is_looked_up() {
    let mut entries: Vec<_> = many().iter().map(|id| process(id, "RUNNING")).collect();
    entries.push(process("order-0", "SUCCEEDED"));
    entries.insert(0, process("order-1", "FAILED"));
    entries.push(process("order-2", "SUCCEEDED"));
    entries.push(process("order-2", "RUNNING"));
    // A repeated entry is no contradiction.
    entries[4] = process("order-3", "SUCCEEDED");
    entries.push(process("order-3", "SUCCEEDED"));
    let list = format!("[{}]", entries.join(","));
    let upstream = Scripted::new(move |asked, _| match asked.looked_up() {
        Some(id) if id == "order-1" => answer(200, process(&id, "FAILED")),
        Some(id) => answer(200, process(&id, "RUNNING")),
        None => answer(200, list.clone()),
    })
    .await;
    let orders = Orders::processing(&many()).await;
    orders.reconciler(&upstream).await.pass().await;
    for (id, status) in [
        ("order-0", Status::Processing),
        ("order-1", Status::Failed),
        ("order-2", Status::Processing),
        ("order-3", Status::Fulfilled),
    ] {
        let order = orders.order(id);
        assert_eq!((order.status, order.attention), (status, None), "{id}");
    }
    let looked_up: BTreeSet<_> = upstream
        .asked()
        .iter()
        .filter_map(ReceivedRequest::looked_up)
        .collect();
    let contradicted = ["order-0", "order-1", "order-2"].map(str::to_owned);
    assert_eq!(looked_up, BTreeSet::from(contradicted));
}
