//! Requests without a usable answer, and those in flight.

use super::starts::assert_looked_up_before_the_second_start;
use super::*;
use crate::environment::ready;

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_was_accepted_but_never_answered_is_looked_up_and_not_repeated() {
    let cases = [
        Reply::Silence,
        Reply::HangUp,
        Reply::Bytes("HTTP/1.1 2".into()),
        Reply::Bytes("nonsense\r\n\r\n".into()),
    ];
    side_by_side(cases, |reply| async move {
        let shown = format!("{reply:?}");
        let upstream = Scripted::answering(reply, answer(200, process("a1", "SUCCEEDED"))).await;
        let orders = Orders::created(&["a1"]).await;
        let mut reconciler = orders.reconciler(&upstream).await;
        let order = reconciler.until_status("a1", Status::Fulfilled).await;
        assert_eq!(upstream.starts(), 1, "{shown}");
        assert_eq!(order.starts, 1, "{shown}: it was ours");
        assert_eq!(order.attention, None, "a settled order has none");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unanswered_start_is_repeated_only_after_an_absence_seen_a_timeout_after_giving_up() {
    let cases = [
        Reply::Silence,
        Reply::HangUp,
        Reply::Later(
            Duration::from_millis(290),
            Box::new(Reply::Bytes("HTTP/1.1".into())),
        ),
    ];
    side_by_side(cases, |reply| async move {
        let upstream = Scripted::new(move |asked, before| {
            let starts = before.iter().filter(|asked| asked.is_start()).count();
            match (asked.is_start(), starts) {
                (true, 0) => reply.clone(),
                (true, _) => answer(200, ""),
                (false, 1) => answer(200, "{}"),
                (false, _) => answer(200, process("a1", "RUNNING")),
            }
        })
        .await;
        let orders = Orders::created(&["a1"]).await;
        let mut reconciler = orders.reconciler(&upstream).await;
        let order = reconciler.until_status("a1", Status::Processing).await;
        assert_eq!(order.starts, 2, "the first may have taken effect");
        let asked = upstream.asked_about("a1");
        assert_looked_up_before_the_second_start(&asked);
        assert_eq!(upstream.starts(), 2);
    })
    .await;
}

/// Creates the order "new", and checks that it and "old" are settled while "silent" waits for its answer.
async fn assert_others_settle(orders: &Orders, upstream: &Scripted) {
    orders.create("new").await;
    for id in ["new", "old"] {
        until(
            async || orders.order(id).status,
            |status| *status == Status::Fulfilled,
        )
        .await;
    }
    let asked = upstream.asked_about("silent");
    assert_eq!(asked.len(), 1, "nothing is decided about it: {asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_without_an_answer_delays_neither_other_orders_nor_polls() {
    let upstream = Scripted::new(|asked, before| match asked.order_id().as_deref() {
        Some("silent") => Reply::Silence,
        Some(id) if !asked.is_start() => {
            let is_over = before
                .iter()
                .any(|asked| asked.order_id().as_deref() == Some("new"));
            answer(
                200,
                process(id, if is_over { "SUCCEEDED" } else { "RUNNING" }),
            )
        }
        _ => answer(200, ""),
    })
    .await;
    let orders = Orders::processing(&["old"]).await;
    orders.create("silent").await;
    let arguments = ["--request-timeout", "2m"];
    let reconciler = orders.env.reconciler(&upstream.url, &arguments);
    until_asked(&upstream, |asked| {
        asked.iter().any(ReceivedRequest::is_start)
    })
    .await;
    assert_others_settle(&orders, &upstream).await;
    reconciler.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_that_are_being_started_count_as_processes_that_run() {
    let upstream = Scripted::new(|asked, _| match asked.order_id().as_deref() {
        Some("silent") => Reply::Silence,
        Some(id) if !asked.is_start() => answer(200, process(id, "RUNNING")),
        _ => answer(200, ""),
    })
    .await;
    let orders = Orders::created(&["silent"]).await;
    let arguments = ["--request-timeout", "2m"];
    let reconciler = orders.env.reconciler(&upstream.url, &arguments);
    until_asked(&upstream, |asked| !asked.is_empty()).await;
    orders.create("new").await;
    until(
        async || orders.store.heartbeat().await.unwrap().learned.running,
        |running| *running == 2,
    )
    .await;
    reconciler.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_up_without_an_answer_delays_neither_other_orders_nor_polls() {
    let upstream = Scripted::new(|asked, before| match asked.order_id().as_deref() {
        Some("silent") => Reply::Silence,
        Some(id) if !asked.is_start() => {
            let is_over = before.iter().any(ReceivedRequest::is_start);
            let status = if is_over { "SUCCEEDED" } else { "RUNNING" };
            answer(200, process(id, status))
        }
        _ => answer(200, ""),
    })
    .await;
    let orders = Orders::processing(&["silent", "old"]).await;
    let arguments = ["--request-timeout", "2m"];
    let reconciler = orders.env.reconciler(&upstream.url, &arguments);
    until_asked(&upstream, |asked| {
        let mut ids = asked.iter().map(ReceivedRequest::order_id);
        ids.any(|id| id.as_deref() == Some("silent"))
    })
    .await;
    assert_others_settle(&orders, &upstream).await;
    reconciler.kill();
}

/// Returns an upstream that answers starts alone, and twelve orders whose process it has.
async fn silent_about_processes() -> (Scripted, Orders) {
    let upstream = Scripted::new(|asked, _| match asked.is_start() {
        true => answer(200, ""),
        false => Reply::Silence,
    })
    .await;
    let ids: Vec<_> = (0..12).map(|n| format!("silent-{n}")).collect();
    let orders = Orders::processing(&ids).await;
    (upstream, orders)
}

#[tokio::test(flavor = "multi_thread")]
async fn look_ups_without_an_answer_leave_requests_for_starts() {
    let (upstream, orders) = silent_about_processes().await;
    let arguments = ["--request-timeout", "2m"];
    let reconciler = orders.env.reconciler(&upstream.url, &arguments);
    until_asked(&upstream, |asked| asked.len() >= 6).await;
    // Over several passes.
    tokio::time::sleep(Duration::from_secs(3)).await;
    orders.create("new").await;
    until(
        async || orders.order("new").status,
        |status| *status == Status::Processing,
    )
    .await;
    assert_eq!(upstream.asked().len(), 7);
    reconciler.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn where_one_request_may_be_in_flight_starts_take_turns_with_look_ups_without_an_answer() {
    let (upstream, orders) = silent_about_processes().await;
    let arguments = ["--max-in-flight", "1", "--request-timeout", "4s"];
    let reconciler = orders.env.reconciler(&upstream.url, &arguments);
    until_asked(&upstream, |asked| !asked.is_empty()).await;
    let new: Vec<_> = (0..20).map(|n| format!("new-{n}")).collect();
    for id in &new {
        orders.create(id).await;
    }
    until_asked(&upstream, |asked| {
        asked.iter().filter(|asked| asked.is_start()).count() == new.len()
    })
    .await;
    let look_ups = upstream.asked().len() - new.len();
    assert!(look_ups <= 3, "{look_ups} look-ups held the one slot");
    reconciler.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_whose_look_ups_always_fail_delay_no_other() {
    let replies = [
        answer(302, ""),
        answer(403, "not this one"),
        answer(404, "not found"),
        answer(500, "error"),
        Reply::HangUp,
    ];
    let cases = replies.map(|reply| [1, 3, 60].map(|failing| (reply.clone(), failing)));
    side_by_side(cases.into_iter().flatten(), |(reply, failing)| async move {
        let shown = format!("{failing} orders, {reply:?}");
        let upstream = Scripted::new(move |asked, before| match asked.order_id() {
            Some(id) if id.starts_with("new") => {
                let is_started = before
                    .iter()
                    .any(|asked| asked.is_start() && asked.order_id().as_ref() == Some(&id));
                match (asked.is_start(), is_started) {
                    (true, _) => answer(200, ""),
                    (false, true) => answer(200, process(&id, "SUCCEEDED")),
                    (false, false) => answer(200, "{}"),
                }
            }
            _ => reply.clone(),
        })
        .await;
        let ids: Vec<_> = (0..failing).map(|n| format!("failing-{n}")).collect();
        let orders = Orders::processing(&ids).await;
        let mut reconciler = orders.reconciler(&upstream).await;
        for _ in 0..8 {
            reconciler.pass().await;
        }
        for n in 0..10 {
            orders.create(&format!("new-{n}")).await;
        }
        let is_settled = |order: &&Order| order.status == Status::Fulfilled;
        let all = reconciler
            .until_all(|all| all.iter().filter(is_settled).count() == 10)
            .await;
        for order in all.iter().filter(|order| !is_settled(order)) {
            let reason = order.attention.as_ref().map(|attention| attention.reason);
            assert_eq!(reason, Some(Reason::UpstreamUnreachable), "{shown}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_look_ups_leave_time_for_starts() {
    let upstream = Scripted::new(|asked, _| match asked.looked_up() {
        Some(id) => {
            let running = answer(200, process(&id, "RUNNING"));
            Reply::Later(Duration::from_millis(900), Box::new(running))
        }
        None => answer(200, ""),
    })
    .await;
    // Their whole seconds are a quarter of a second apart, so that one is due whenever a look-up ends.
    let orders = Orders::created(&["a1", "a2", "a3", "a4"]).await;
    let reconciler = orders.env.reconciler(&upstream.url, &["--start-rate", "4"]);
    until_asked(&upstream, |asked| {
        asked.iter().filter(|asked| !asked.is_start()).count() > 8
    })
    .await;
    for number in 0..8 {
        orders.create(&format!("new-{number}")).await;
        until(
            async || orders.order(&format!("new-{number}")).status,
            |status| *status == Status::Processing,
        )
        .await;
    }
    reconciler.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_comes_while_a_look_up_has_none_is_taken_all_the_same() {
    // Within a second of the start, a look-up begins that has no answer until after the start's timeout.
    let upstream = Scripted::new(|asked, before| match asked.is_start() {
        true => Reply::Later(Duration::from_millis(1_200), Box::new(answer(200, ""))),
        false if before.iter().any(ReceivedRequest::is_start) => Reply::Silence,
        false => answer(200, process("old", "RUNNING")),
    })
    .await;
    let orders = Orders::processing(&["old"]).await;
    let arguments = ["--request-timeout", "1500ms"];
    let reconciler = orders.env.reconciler(&upstream.url, &arguments);
    until_asked(&upstream, |asked| !asked.is_empty()).await;
    orders.create("new").await;
    let is_decided = |order: &Order| order.status != Status::Created || order.attention.is_some();
    let new = until(async || orders.order("new"), is_decided).await;
    assert_eq!((new.status, new.starts), (Status::Processing, 1), "{new:?}");
    reconciler.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_intent_and_answer_is_not_answered_with_a_second_start() {
    let upstream = Scripted::answering(Reply::Silence, answer(200, process("a1", "RUNNING"))).await;
    let orders = Orders::created(&["a1"]).await;
    let arguments = ["--request-timeout", "30s"];
    let reconciler = orders.env.reconciler(&upstream.url, &arguments);
    until_asked(&upstream, |asked| asked.len() == 1).await;
    reconciler.kill();
    let mut reconciler = orders.reconciler(&upstream).await;
    reconciler.until_status("a1", Status::Processing).await;
    assert_eq!(upstream.starts(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_records_the_start_in_flight_and_does_not_send_the_next() {
    // Only one is in flight. Without a ceiling the intent of the next is already committed.
    side_by_side([("50", 1), ("0", 2)], |(rate, intents)| async move {
        let in_a_second = Duration::from_millis(1_000);
        let upstream =
            Scripted::new(move |_, _| Reply::Later(in_a_second, Box::new(answer(200, "")))).await;
        let orders = Orders::created(&["a1", "a2", "a3"]).await;
        let arguments = ["--max-in-flight", "1", "--start-rate", rate];
        let reconciler = orders.env.reconciler(&upstream.url, &arguments);
        until_asked(&upstream, |asked| asked.len() == 1).await;
        assert_eq!(ready(orders.store.open_orders()).unwrap().len(), intents);
        reconciler.signal("TERM");
        assert_eq!(ended(reconciler).await.0, Some(0));
        assert_eq!(orders.order("a1").status, Status::Processing);
        for id in ["a2", "a3"] {
            let order = orders.order(id);
            assert_eq!((order.status, order.starts), (Status::Created, 0));
        }
        assert_eq!(
            ready(orders.store.open_orders()).unwrap().len(),
            1,
            "no intent is left"
        );
        assert_eq!(upstream.asked().len(), 1, "no further request is sent");
    })
    .await;
}
