//! Explanations of orders that the upstream delays: by a full window, a requested pause, answers of 429, or an
//! outage.

use super::*;
use crate::decide::Intent;

#[test]
fn an_order_that_waits_for_processes_to_end_has_no_expected_wait() {
    let mut case = created();
    let learned = &mut case.reconciler.learned;
    for _ in 0..30 {
        learned.incarnations.on_list_complete(1, ago(60));
        learned.incarnations.on_upstream_restart(0, ago(60));
    }
    learned.running = 16;
    let why =
        "No order is started until a process has ended: at most 16 processes run at once, because";
    for (ahead, position) in [
        (0, "No other order is ahead"),
        (500, "500 orders are ahead"),
    ] {
        case.ahead = ahead;
        check(&case, &[why, &format!("{position} of it.")]);
        let text = case.explain(NOW, &Invocation::elsewhere()).to_string();
        assert!(!text.contains("rate of"), "{text}");
    }
    case.reconciler.learned.running = 15;
    check(&case, &["its turn comes in about 40 s, or later"]);
}

#[test]
fn a_requested_pause_delays_whatever_comes_next() {
    let pause = "The upstream has asked for a pause: nothing is started or polled for 5 min.";
    let later = "(2026-11-22T10:05:00.000Z)";
    let pause_until = Timestamp(NOW.0 + 300_000);
    let paused = |mut case: OrderDetails| {
        case.reconciler.learned.paused_until = Some(pause_until);
        case.reconciler.next_poll_at = Some(pause_until);
        case
    };
    let waiting = |mut case: OrderDetails, says: &[&str]| {
        for (ahead, position) in [(0, "No other order is"), (500, "500 orders are")] {
            case.ahead = ahead;
            check(&case, says);
            check(&case, &[&format!("{position} ahead of it.")]);
            let text = case.explain(NOW, &Invocation::elsewhere()).to_string();
            assert!(!text.contains("rate of"), "{text}");
        }
    };
    waiting(paused(created()), &[pause]);
    let mut starts_alone = created();
    starts_alone.reconciler.learned.starts_paused_until = Some(pause_until);
    waiting(
        starts_alone,
        &["The upstream has asked for a pause of starts: none is sent for 5 min."],
    );
    let refused = troubled(created(), Reason::StartRefused, "?", 1);
    waiting(
        refused,
        &["in 40 s (2026-11-22T10:00:40.000Z) at the earliest"],
    );
    check(&paused(processing()), &[pause, later]);
    for reason in [Reason::UnknownStatus, Reason::ProcessLost] {
        for attempts in [0, 1] {
            let mut case = paused(troubled(processing(), reason, "?", attempts));
            case.order.attention.as_mut().unwrap().by = ResolvedBy::Itself;
            check(&case, &[pause, later]);
        }
    }
    let mut case = paused(processing());
    case.reconciler.upstream = UpstreamState::Down {
        since: ago(9),
        detail: "answered 503".to_owned(),
    };
    check(&case, &[pause, "probed in the next pass, in 5 min", later]);
}

#[test]
fn requests_that_are_answered_429_are_the_reason_and_no_wait_is_expected() {
    let throttled = |mut case: OrderDetails, kind: &str| {
        let stored = format!(r#"{{"{kind}":{{"since":{},"requests":36}}}}"#, ago(45).0);
        case.reconciler.learned.throttling = serde_json::from_str(&stored).unwrap();
        case
    };
    let up =
        ", but it throttles starts: 36 in a row were answered 429, since 2026-11-22T09:59:15.000Z.";
    let summary =
        "Nothing is wrong with the order itself, but the upstream throttles starts (429).";
    for (ahead, position) in [(0, "No other order is ahead"), (5, "5 orders are ahead")] {
        let mut case = throttled(created(), "starts");
        case.ahead = ahead;
        let position = format!("{position} of it.");
        check(&case, &[up, summary, "no time can be given", &position]);
        let text = case.explain(NOW, &Invocation::elsewhere()).to_string();
        assert!(
            !text.contains("turn comes in about") && !text.contains("is the next to be"),
            "{text}"
        );
    }
    let polls = "the upstream throttles polls (429)";
    check(&throttled(processing(), "polls"), &[polls]);
    // What the order does not wait for is not about it.
    let case = throttled(processing(), "starts");
    check(&case, &[up, "Nothing is wrong with it."]);
    let failed = troubled(created(), Reason::UpstreamUnreachable, "it answered 429", 5);
    let advice = "The upstream answers all such requests with 429.";
    check(&throttled(failed, "starts"), &[advice]);
    let mut forgotten = troubled(
        processing(),
        Reason::UpstreamUnreachable,
        "it answered 429",
        5,
    );
    open(&mut forgotten).phase = Phase::Processing {
        confirmed_at: ago(20),
        missed_at: Some(ago(15)),
    };
    check(&throttled(forgotten, "starts"), &[advice]);
    let mut in_doubt = troubled(created(), Reason::UpstreamUnreachable, "it answered 503", 1);
    open(&mut in_doubt).intent = Some(Intent {
        written_at: ago(13),
        given_up_at: Some(ago(12)),
        answer_status: Some(503),
    });
    check(
        &throttled(in_doubt.clone(), "starts"),
        &["its requests are repeated with backoff"],
    );
    check(&throttled(in_doubt, "polls"), &[advice]);
}

#[test]
fn an_order_in_backoff_is_looked_up_in_a_later_poll() {
    let hourly = Timestamp(NOW.0 + 3_600_000);
    for reason in [Reason::UnknownStatus, Reason::ProcessLost] {
        let mut case = troubled(processing(), reason, "?", 1);
        case.reconciler.next_poll_at = Some(hourly);
        let later = "looked up again, in 60 min (2026-11-22T11:00:00.000Z) at the earliest";
        check(&case, &[later]);
    }
}

#[test]
fn an_outage_is_the_reason_of_all_open_orders() {
    let mut case = troubled(created(), Reason::UpstreamUnreachable, "refused", 0);
    case.reconciler.upstream = UpstreamState::Down {
        since: ago(40),
        detail: "connection refused".to_owned(),
    };
    check(
        &case,
        &[
            "The upstream has given no usable answer for 40 s (since 20",
            "connection refused",
            "It has had upstream_unreachable for 12 s, and waits for the upstream.",
            "The upstream is down, so no order can be started or polled.",
            "Nothing is started before it answers.",
            "no answer proves nothing",
            "--order-process-url",
        ],
    );
}
