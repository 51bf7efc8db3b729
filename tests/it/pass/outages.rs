//! Passes while the upstream is down, has requested a pause, or answers only some requests.

use super::clock::take_log;
use super::*;
use crate::environment::ready;
use order_service::pace::{Throttling, UpstreamState};

#[test]
fn an_upstream_that_requests_a_pause_gets_no_request_until_its_end() {
    let harness = Harness::new(100);
    for id in ["a1", "a2"] {
        harness.create(id);
    }
    let mut reconciler = harness.reconciler();
    harness.upstream.start_fault.set(Fault::Pause(30));
    pass(&mut reconciler);
    assert_eq!(harness.upstream.take_requests(), ["start a1"]);
    let next_poll_at = harness.heartbeat().next_poll_at.unwrap();
    assert_eq!(
        next_poll_at.since(harness.clock.now()),
        Duration::from_secs(30),
        "`Retry-After` is as long as the pause"
    );
    harness.upstream.start_fault.set(Fault::Answered);
    for _ in 0..29 {
        harness.forward(1_000);
        assert!(pass(&mut reconciler).unreachable);
        assert!(harness.upstream.take_requests().is_empty());
    }
    harness.forward(1_000);
    assert!(!pass(&mut reconciler).unreachable);
    assert_eq!(harness.count(Status::Processing), 1, "the other order");
    harness.forward(1_000);
    pass(&mut reconciler);
    assert_eq!(harness.count(Status::Processing), 2);
}

#[test]
fn orders_that_are_always_throttled_hold_up_no_other() {
    for (status, retry_after, are_started) in [
        (429, Some(20), false),
        (429, Some(20), true),
        (429, None, false),
        (429, None, true),
        (503, Some(20), false),
        (503, Some(20), true),
    ] {
        let mut harness = Harness::new(3);
        harness.settings.max_in_flight = 8;
        let mut reconciler = harness.reconciler();
        if !are_started {
            harness
                .upstream
                .throttled
                .set(Some(("bad", status, retry_after)));
        }
        for id in ["bad0", "bad1"] {
            harness.create(id);
        }
        pass(&mut reconciler);
        harness
            .upstream
            .throttled
            .set(Some(("bad", status, retry_after)));
        harness.create_many(10);
        passes(&harness, &mut reconciler, 120);
        let context = format!("{status}, {retry_after:?}, {are_started}");
        for n in 0..10 {
            let status = harness.order(&format!("a{n}")).status;
            assert!(status.is_settled(), "{context}: a{n} is {status}");
        }
        let requests = harness.upstream.take_requests();
        let asked = requests
            .iter()
            .filter(|request| request.ends_with("bad1"))
            .count();
        assert!(asked <= 10, "{context}: {asked}");
        harness.upstream.throttled.set(None);
        passes(&harness, &mut reconciler, 120);
        assert!(harness.has_settled_all(), "{context}");
    }
}

#[test]
fn many_orders_that_are_always_throttled_hold_up_no_new_ones() {
    for (status, retry_after) in [(429, Some(20)), (429, None), (503, Some(20))] {
        let mut harness = Harness::new(3);
        harness.settings.max_in_flight = 8;
        let mut reconciler = harness.reconciler();
        harness
            .upstream
            .throttled
            .set(Some(("bad", status, retry_after)));
        for n in 0..11 {
            harness.create(&format!("bad{n}"));
        }
        for n in 0..300 {
            harness.create(&format!("a{n}"));
            pass(&mut reconciler);
            harness.forward(1_000);
        }
        passes(&harness, &mut reconciler, 120);
        assert_eq!(
            harness.count(Status::Created),
            11,
            "{status}, {retry_after:?}"
        );
        assert_eq!(
            harness.count(Status::Processing),
            0,
            "{status}, {retry_after:?}"
        );
    }
}

#[test]
fn an_order_that_is_always_throttled_delays_none_that_comes_much_later() {
    let mut harness = Harness::new(3);
    harness.settings.max_in_flight = 8;
    let mut reconciler = harness.reconciler();
    for retry_after in [Some(20), None] {
        let prefix = if retry_after.is_some() { "a" } else { "b" };
        harness
            .upstream
            .throttled
            .set(Some(("bad", 429, retry_after)));
        harness.create(&format!("bad{prefix}"));
        for n in 0..10 {
            passes(&harness, &mut reconciler, 127);
            let id = format!("{prefix}{n}");
            harness.create(&id);
            pass(&mut reconciler);
            assert_eq!(harness.order(&id).starts, 1, "{id}");
        }
    }
}

#[test]
fn a_few_orders_that_are_always_throttled_delay_none_that_come_now_and_then() {
    for retry_after in [Some(20), None] {
        let mut harness = Harness::new(3);
        harness.settings.max_in_flight = 8;
        let mut reconciler = harness.reconciler();
        harness
            .upstream
            .throttled
            .set(Some(("bad", 429, retry_after)));
        for n in 0..5 {
            harness.create(&format!("bad{n}"));
        }
        passes(&harness, &mut reconciler, 120);
        for n in 0..50 {
            harness.create(&format!("a{n}"));
            passes(&harness, &mut reconciler, 5);
            let starts = harness.order(&format!("a{n}")).starts;
            assert!(n < 5 || starts == 1, "{retry_after:?}: a{n}");
        }
        let bad = harness.order("bad0");
        let attention = bad.attention.unwrap();
        assert_eq!(attention.reason, Reason::UpstreamUnreachable);
        assert_eq!(attention.detail, "later");
    }
}

#[test]
fn an_order_whose_look_ups_are_always_throttled_settles_by_a_list() {
    for retry_after in [Some(20), None] {
        let harness = Harness::new(3);
        let mut reconciler = harness.reconciler();
        harness.create("bad");
        pass(&mut reconciler);
        harness
            .upstream
            .throttled
            .set(Some(("bad", 429, retry_after)));
        passes(&harness, &mut reconciler, 120);
        assert!(harness.has_settled_all(), "{retry_after:?}");
    }
}

#[test]
fn orders_that_were_throttled_once_take_turns_with_those_that_always_are() {
    let mut harness = Harness::new(3);
    harness.settings.max_in_flight = 8;
    let mut reconciler = harness.reconciler();
    for id in ["bad0", "bad1"] {
        harness.create(id);
    }
    harness.create_many(10);
    harness.upstream.throttled.set(Some(("", 429, Some(20))));
    passes(&harness, &mut reconciler, 600);
    harness.upstream.throttled.set(Some(("bad", 429, Some(20))));
    passes(&harness, &mut reconciler, 600);
    assert_eq!(harness.count(Status::Created), 2);
    assert_eq!(harness.count(Status::Processing), 0);
}

#[test]
fn the_log_names_the_requests_that_a_pause_is_about() {
    let mut harness = Harness::new(3);
    harness.settings.max_in_flight = 8;
    let mut reconciler = harness.reconciler();
    harness.upstream.throttled.set(Some(("a", 429, Some(20))));
    harness.create_many(20);
    take_log();
    passes(&harness, &mut reconciler, 120);
    let mut lines = take_log();
    lines.retain(|line| line.starts_with("the upstream asked for a pause"));
    assert!(lines.len() >= 2, "{lines:?}");
    assert!(lines[0].contains(" requests=all wait="), "{lines:?}");
    // The second answer in a row concerns starts alone.
    assert!(lines[1].contains(" requests=start wait="), "{lines:?}");
}

#[test]
fn while_all_starts_are_throttled_few_are_sent() {
    let mut harness = Harness::new(3);
    harness.settings.max_in_flight = 8;
    let mut reconciler = harness.reconciler();
    harness.upstream.throttled.set(Some(("a", 429, Some(20))));
    harness.create_many(200);
    passes(&harness, &mut reconciler, 600);
    let starts = harness.upstream.take_requests().len();
    assert!(starts <= 60, "{starts} in 30 pauses");
    let is_told = (0..30).any(|_| {
        pass(&mut reconciler);
        harness.forward(1_000);
        let learned = harness.heartbeat().learned;
        let is_of_all = learned.paused_until.is_some();
        !is_of_all && learned.starts_paused_until(harness.clock.now()).is_some()
    });
    assert!(is_told);
}

#[test]
fn polls_that_are_always_throttled_hold_up_no_starts_and_lists_no_look_ups() {
    for (look_up_fault, list_fault) in [
        (Fault::Pause(20), Fault::Pause(20)),
        (Fault::Pause(20), Fault::Answered),
        (Fault::Answered, Fault::Pause(20)),
    ] {
        let mut harness = Harness::new(3);
        harness.settings.max_in_flight = 8;
        harness.upstream.look_up_fault.set(look_up_fault);
        harness.upstream.list_fault.set(Some(list_fault));
        let mut reconciler = harness.reconciler();
        for n in 0..100 {
            harness.create(&format!("a{n}"));
            pass(&mut reconciler);
            harness.forward(1_000);
        }
        let context = format!("{look_up_fault:?}, {list_fault:?}");
        assert_eq!(harness.count(Status::Created), 0, "{context}");
        if look_up_fault != list_fault {
            passes(&harness, &mut reconciler, 60);
            assert!(harness.has_settled_all(), "{context}");
        }
        let requests = harness.upstream.take_requests();
        let lists = requests.iter().filter(|request| *request == "list").count();
        assert!(
            list_fault == Fault::Answered || lists <= 8,
            "{context}: {lists}"
        );
    }
}

#[test]
fn an_upstream_that_is_down_is_not_probed_more_often_because_of_new_orders() {
    let harness = Harness::new(100);
    harness.create("a1");
    let mut reconciler = harness.reconciler();
    harness.upstream.start_fault.set(Fault::Refused);
    harness.upstream.look_up_fault.set(Fault::Refused);
    pass(&mut reconciler);
    harness.forward(1_000);
    pass(&mut reconciler);
    assert_eq!(harness.upstream.take_requests(), ["start a1", "look_up a1"]);
    for n in 2..10 {
        harness.forward(100);
        harness.create(&format!("a{n}"));
        assert!(pass(&mut reconciler).unreachable);
    }
    assert!(harness.upstream.take_requests().is_empty());
    harness.forward(100);
    pass(&mut reconciler);
    assert_eq!(harness.upstream.take_requests(), ["look_up a2"]);
    // A clock that is set back does not delay the next probe.
    harness.forward(-3_600_000);
    pass(&mut reconciler);
    assert_eq!(harness.upstream.take_requests(), ["look_up a3"]);
}

#[test]
fn after_an_outage_orders_are_started_although_polls_are_answered_429() {
    let harness = Harness::new(100);
    harness.create("a1");
    let mut reconciler = harness.reconciler();
    harness.upstream.start_fault.set(Fault::Refused);
    assert!(pass(&mut reconciler).unreachable);
    harness.upstream.start_fault.set(Fault::Answered);
    harness.upstream.look_up_fault.set(Fault::Status(429));
    harness.forward(1_000);
    let since = harness.clock.now();
    assert_eq!(pass(&mut reconciler).started, 1);
    assert_eq!(harness.heartbeat().upstream, UpstreamState::Up { since });
}

#[test]
fn an_upstream_whose_look_ups_never_work_is_observed_by_its_list() {
    let harness = Harness::new(3);
    harness.create_many(50);
    let mut reconciler = harness.reconciler();
    pass(&mut reconciler);
    harness.upstream.look_up_fault.set(Fault::Refused);
    harness.upstream.list_fault.set(Some(Fault::Refused));
    harness.forward(5_000);
    pass(&mut reconciler);
    assert_eq!(
        harness.count(Status::Processing),
        25,
        "the half that was read"
    );
    harness.upstream.list_fault.set(Some(Fault::Answered));
    harness.upstream.take_requests();
    let mut passes = 0;
    while harness.count(Status::Processing) > 0 {
        harness.forward(1_000);
        pass(&mut reconciler);
        passes += 1;
        assert!(passes < 20, "{:?}", harness.upstream.take_requests());
    }
}

#[test]
fn one_restart_of_the_upstream_is_counted_once_under_every_policy() {
    use LostProcess::{Fail, Hold, Restart};
    for (policy, look_up_fault) in [
        (Hold, Fault::Answered),
        (Restart, Fault::Answered),
        (Fail, Fault::Answered),
        // No absence can be confirmed.
        (Fail, Fault::Lost),
        (Hold, Fault::Lost),
    ] {
        let harness = forgotten(50, policy);
        harness.upstream.list_fault.set(Some(Fault::Answered));
        harness.upstream.look_up_fault.set(look_up_fault);
        let mut reconciler = harness.old_reconciler();
        let missed = passes(&harness, &mut reconciler, 30);
        let is_settled = harness.count(Status::Failed) == 50;
        assert_eq!(missed, if is_settled { 0 } else { 50 }, "each once");
        let restarts = harness.incarnations().restarts();
        assert_eq!(restarts, 1, "{policy:?}, {look_up_fault:?}");
    }
}

#[test]
fn an_outage_flags_no_order_and_a_single_silent_look_up_does() {
    let harness = Harness::new(100);
    for id in ["a0", "a1"] {
        harness.create(id);
    }
    let mut reconciler = harness.reconciler();
    pass(&mut reconciler);
    harness.forward(1_000);
    harness.upstream.look_up_fault.set(Fault::Refused);
    pass(&mut reconciler);
    let delayed = || {
        let open = ready(harness.store.open_orders()).unwrap();
        let delayed = open.orders().filter(|order| order.attempts > 0);
        delayed.count()
    };
    assert_eq!(delayed(), 0, "it is down");
    harness.upstream.look_up_fault.set(Fault::Answered);
    harness.upstream.lost.borrow_mut().push("a1".to_owned());
    harness.forward(1_000);
    pass(&mut reconciler);
    harness.forward(1_000);
    pass(&mut reconciler);
    assert_eq!(delayed(), 1);
    assert_eq!(harness.reason("a1"), Some(Reason::UpstreamUnreachable));
    assert_eq!(harness.reason("a0"), None);
}

#[test]
fn each_consecutive_refusal_doubles_the_backoff() {
    let harness = Harness::new(100);
    harness.create("a1");
    harness.upstream.start_fault.set(Fault::Status(400));
    let mut reconciler = harness.reconciler();
    for full in [1, 2, 4, 8, 16] {
        pass(&mut reconciler);
        let next_attempt_at = harness
            .order("a1")
            .attention
            .unwrap()
            .next_attempt_at
            .unwrap();
        let wait = next_attempt_at.since(harness.clock.now());
        let range = Duration::from_secs(full) / 2..=Duration::from_secs(full);
        assert!(range.contains(&wait), "{full} s: {wait:?}");
        harness.clock.set(next_attempt_at);
    }
}

#[test]
fn an_upstream_that_answers_429_to_all_starts_is_up_and_reported_as_refusing_them() {
    let harness = Harness::new(100);
    harness.create("a1");
    let mut reconciler = harness.reconciler();
    harness.upstream.start_fault.set(Fault::Status(429));
    let began_at = harness.clock.now();
    passes(&harness, &mut reconciler, 20);
    let (now, state) = (harness.clock.now(), harness.heartbeat());
    assert_eq!(state.upstream, UpstreamState::Up { since: began_at });
    let throttled = state.learned.throttling.starts(now).unwrap();
    assert!(throttled.since == began_at && throttled.requests > 3);
    assert_eq!(state.learned.wait(1, now), None);
    assert_eq!(harness.reason("a1"), Some(Reason::UpstreamUnreachable));
    // The first start that is accepted ends that.
    harness.upstream.start_fault.set(Fault::Answered);
    passes(&harness, &mut reconciler, 16);
    assert_eq!(harness.order("a1").status, Status::Processing);
    let learned = harness.heartbeat().learned;
    assert_eq!(learned.throttling, Throttling::default());
    assert!(learned.wait(1, harness.clock.now()).is_some());
}

#[test]
fn starts_that_fail_for_an_hour_hold_no_order() {
    for answer_status in [200, 503] {
        let mut harness = Harness::new(100);
        harness.settings.max_in_flight = 8;
        harness.create_many(20);
        let mut reconciler = harness.reconciler();
        harness
            .upstream
            .start_fault
            .set(Fault::Status(answer_status));
        let began_at = harness.clock.now();
        while harness.clock.now().since(began_at) < Duration::from_secs(3_600) {
            pass(&mut reconciler);
            harness.forward(4_000);
        }
        for n in 0..20 {
            let reason = harness.reason(&format!("a{n}"));
            assert!(
                matches!(reason, None | Some(Reason::UpstreamUnreachable)),
                "{answer_status}: {reason:?}"
            );
        }
        harness.upstream.start_fault.set(Fault::Answered);
        passes(&harness, &mut reconciler, 400);
        for n in 0..20 {
            let order = harness.order(&format!("a{n}"));
            assert_eq!((order.starts, order.attention), (1, None));
        }
    }
}

#[test]
fn an_order_that_may_be_started_once_is_held_after_a_start_left_in_doubt() {
    for status in [200, 500, 502] {
        let mut harness = Harness::new(100);
        harness.settings.max_starts = 1;
        harness.create("a1");
        let mut reconciler = harness.reconciler();
        harness.upstream.start_fault.set(Fault::Status(status));
        passes(&harness, &mut reconciler, 60);
        let order = harness.order("a1");
        assert_eq!(
            order.attention.map(|attention| attention.reason),
            Some(Reason::MaxStarts)
        );
        assert_eq!((order.status, order.starts), (Status::Created, 1));
        assert_eq!(harness.upstream.starts_of("a1"), 1);
    }
}

#[test]
fn an_order_that_was_started_more_often_than_a_lowered_limit_allows_is_held_until_the_limit_rises()
{
    let mut harness = Harness::new(100);
    harness.create("a1");
    let mut reconciler = harness.old_reconciler();
    harness.upstream.start_fault.set(Fault::Lost);
    pass(&mut reconciler);
    harness.upstream.start_fault.set(Fault::Status(400));
    passes(&harness, &mut reconciler, 60);
    let order = harness.order("a1");
    assert_eq!((order.status, order.starts), (Status::Created, 1));
    assert_eq!(harness.reason("a1"), Some(Reason::StartRefused));
    drop(reconciler);
    harness.upstream.start_fault.set(Fault::Answered);
    let starts = harness.upstream.starts_of("a1");
    harness.settings.max_starts = 1;
    let mut reconciler = harness.old_reconciler();
    passes(&harness, &mut reconciler, 300);
    assert_eq!(harness.reason("a1"), Some(Reason::MaxStarts));
    assert_eq!(harness.upstream.starts_of("a1"), starts);
    drop(reconciler);
    harness.settings.max_starts = 2;
    let mut reconciler = harness.old_reconciler();
    passes(&harness, &mut reconciler, 300);
    assert!(harness.order("a1").status.is_settled());
    assert_eq!(harness.upstream.starts_of("a1"), starts + 1);
}

#[test]
fn a_start_left_in_doubt_counts_if_a_single_process_was_forgotten_since() {
    let cases = [(false, false, 1), (true, false, 2), (true, true, 2)];
    let cases = [200, 502]
        .into_iter()
        .flat_map(|status| cases.map(|case| (status, case)));
    for (status, (has_forgotten, is_taken_over, starts)) in cases {
        let mut harness = Harness::new(100_000);
        harness.settings.lost_process = LostProcess::Restart;
        harness.create("a1");
        let mut reconciler = harness.reconciler();
        pass(&mut reconciler);
        harness.forward(60_000);
        harness.create("b1");
        harness.upstream.start_fault.set(Fault::Status(status));
        assert_eq!(pass(&mut reconciler).unanswered, 1);
        harness.upstream.start_fault.set(Fault::Answered);
        if has_forgotten {
            harness.upstream.model.borrow_mut().forget_everything();
        }
        let mut missed = 0;
        for _ in 0..60 {
            harness.forward(1_000);
            let report = pass(&mut reconciler);
            missed += report.missed;
            if report.missed > 0 {
                assert_eq!(
                    harness.order("b1").status,
                    Status::Created,
                    "not looked up yet"
                );
                if is_taken_over {
                    reconciler = harness.reconciler();
                }
            }
        }
        assert_eq!(missed, usize::from(has_forgotten));
        let order = harness.order("b1");
        assert_eq!((order.status, order.starts), (Status::Processing, starts));
        assert_eq!(harness.incarnations().restarts(), 0);
    }
}
