//! Passes while the upstream is down, or answers only some requests.

use super::clock::take_log;
use super::*;
use crate::environment::ready;
use order_service::pace::UpstreamState;

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

#[test]
fn an_upstream_that_answers_no_look_up_but_lists_is_reported_as_down_once() {
    for (is_listed, others) in [(true, 10_000), (false, 10_000), (false, 0)] {
        let context = format!("{is_listed}, {others}");
        let mut harness = Harness::new(100_000);
        harness.settings.max_in_flight = 8;
        harness.settings.lost_process = LostProcess::Restart;
        harness.create_many(95);
        let mut reconciler = harness.reconciler();
        pass(&mut reconciler);
        if !is_listed {
            harness.upstream.model.borrow_mut().forget_everything();
        }
        // Look-ups of all orders cost less than a long list.
        for n in 0..others {
            harness.upstream.begin(&format!("other{n}"));
        }
        harness.upstream.look_up_fault.set(Fault::Lost);
        harness.upstream.list_fault.set(Some(Fault::Answered));
        take_log();
        passes(&harness, &mut reconciler, 600);
        let mut lines = take_log();
        lines.retain(|line| line.starts_with("the upstream is "));
        assert!(lines.len() <= 2, "{context}: {lines:?}");
        assert!(!is_down(&harness), "{context}");
        // One that answers nothing is down all the same.
        harness.upstream.list_fault.set(Some(Fault::Lost));
        passes(&harness, &mut reconciler, 300);
        assert!(is_down(&harness), "{context}");
    }
}

fn is_down(harness: &Harness) -> bool {
    matches!(harness.heartbeat().upstream, UpstreamState::Down { .. })
}
