//! Processes that the upstream has forgotten: held, failed or started again, as the policy says.

use order_service::order::{Attention, ResolvedBy};
use order_service::store::Resolution;

use super::*;

#[test]
fn forgotten_processes_are_held_if_the_policy_says_so() {
    for orders in [3, 50] {
        let harness = forgotten(orders, LostProcess::Hold);
        let mut reconciler = harness.old_reconciler();
        passes(&harness, &mut reconciler, 3);
        for n in 0..orders {
            let id = format!("a{n}");
            assert_eq!(harness.order(&id).status, Status::Processing);
            assert_eq!(harness.reason(&id), Some(Reason::ProcessLost));
        }
        assert_eq!(harness.upstream.starts(), 0);
    }
}

#[test]
fn forgotten_processes_settle_as_failed_if_the_policy_says_so() {
    for orders in [3, 50] {
        let harness = forgotten(orders, LostProcess::Fail);
        let mut reconciler = harness.old_reconciler();
        passes(&harness, &mut reconciler, 2);
        assert_eq!(harness.count(Status::Failed), orders);
        let requests = harness.upstream.take_requests();
        for n in 0..orders {
            let look_up = format!("look_up a{n}");
            assert!(
                requests.contains(&look_up),
                "each was looked up: {requests:?}"
            );
        }
    }
}

#[test]
fn many_missing_processes_are_started_again_slowly_each_after_a_look_up_and_share_with_new_orders()
{
    let harness = forgotten(50, LostProcess::Restart);
    harness.create("new");
    let mut reconciler = harness.old_reconciler();
    let began_at = harness.clock.now();
    let report = pass(&mut reconciler);
    assert_eq!(report.missed, 50);
    assert!(
        (8..=14).contains(&report.restarted),
        "a few a second: {report}"
    );
    assert_eq!(report.started, 1, "every other start is of a new order");
    while harness.order("a49").starts == 1 {
        pass(&mut reconciler);
    }
    let took = harness.clock.now().since(began_at);
    assert!(took > Duration::from_secs(2), "{took:?}");
    assert!(
        took < Duration::from_secs(10),
        "the start rate rises again: {took:?}"
    );
    let mut requests = harness.upstream.take_requests();
    requests.retain(|request| request != "list" && request != "start new");
    let expected: Vec<String> = (0..50)
        .flat_map(|n| [format!("look_up a{n}"), format!("start a{n}")])
        .collect();
    assert_eq!(requests, expected);
    for n in 0..50 {
        let order = harness.order(&format!("a{n}"));
        assert_eq!((order.starts, order.attention), (2, None));
    }
}

#[test]
fn the_length_of_an_incarnation_is_learned_by_its_processes() {
    let harness = forgotten(50, LostProcess::Hold);
    // One poll counts them, and another finds them gone.
    let mut reconciler = harness.old_reconciler();
    for n in 0..4_000 {
        harness.upstream.begin(&format!("a{n}"));
    }
    pass(&mut reconciler);
    harness.upstream.model.borrow_mut().forget_everything();
    harness.forward(10_000);
    pass(&mut reconciler);
    let now = harness.clock.now();
    let (processes, time) = harness.incarnations().expected_length(now).unwrap();
    assert_eq!((processes, time.unwrap().as_secs()), (25_600.0, 10));
}

#[test]
fn forgotten_and_unconfirmed_orders_are_started_alternately() {
    let mut harness = Harness::new(100);
    harness.settings.lost_process = LostProcess::Restart;
    for id in ["a0", "a1"] {
        harness.create(id);
    }
    let mut reconciler = harness.reconciler();
    assert_eq!(pass(&mut reconciler).started, 2);
    harness.upstream.model.borrow_mut().forget_everything();
    harness.forward(2_000);
    harness.create("b0");
    harness.upstream.start_fault.set(Fault::Lost);
    assert_eq!(pass(&mut reconciler).missed, 0, "it is too soon");
    harness.upstream.start_fault.set(Fault::Answered);
    harness.forward(3_000);
    assert_eq!(pass(&mut reconciler).missed, 2);
    harness.forward(3_000);
    harness.upstream.take_requests();
    pass(&mut reconciler);
    let mut requests = harness.upstream.take_requests();
    requests.retain(|request| request.starts_with("start"));
    // Forgotten ones are first looked up again.
    assert_eq!(requests, ["start b0", "start a0", "start a1"]);
}

#[test]
fn few_missing_processes_are_started_again_after_two_absences_in_two_passes() {
    let harness = forgotten(3, LostProcess::Restart);
    let mut reconciler = harness.old_reconciler();
    let report = pass(&mut reconciler);
    assert_eq!((report.missed, report.restarted), (3, 0));
    assert_eq!(harness.reason("a0"), Some(Reason::ProcessLost));
    harness.forward(1_000);
    assert_eq!(pass(&mut reconciler).restarted, 3);
    assert_eq!(harness.reason("a0"), None);
}

#[test]
fn a_process_that_was_missing_once_and_reappears_is_not_restarted() {
    let harness = forgotten(2, LostProcess::Restart);
    let mut reconciler = harness.old_reconciler();
    pass(&mut reconciler);
    assert_eq!(harness.reason("a0"), Some(Reason::ProcessLost));
    for id in ["a0", "a1"] {
        harness.upstream.begin(id);
    }
    for _ in 0..3 {
        harness.forward(1_000);
        assert_eq!(pass(&mut reconciler).restarted, 0);
    }
    assert_eq!(harness.order("a0").starts, 1);
    assert_eq!(harness.reason("a0"), None);
}

#[test]
fn an_order_is_started_at_most_as_often_as_allowed_however_often_it_is_forgotten() {
    let mut harness = Harness::new(600);
    harness.settings.lost_process = LostProcess::Restart;
    harness.settings.max_starts = 3;
    harness.create("a1");
    let mut reconciler = harness.reconciler();
    for _ in 0..20 {
        pass(&mut reconciler);
        harness.upstream.model.borrow_mut().forget_everything();
        harness.forward(5_000);
    }
    assert_eq!(harness.order("a1").starts, 3);
    let attention = harness.order("a1").attention.unwrap();
    assert_eq!(attention.reason, Reason::MaxStarts);
    assert!(attention.detail.contains("3 times"), "{attention:?}");
    assert_eq!(harness.upstream.starts_of("a1"), 3);
}

#[test]
fn a_restart_without_an_answer_is_observed_before_it_is_repeated() {
    let harness = forgotten(50, LostProcess::Restart);
    harness.upstream.start_fault.set(Fault::AnswerLost);
    let mut reconciler = harness.old_reconciler();
    pass(&mut reconciler);
    harness.upstream.start_fault.set(Fault::Answered);
    let (mut passes, mut restarted) = (0, 0);
    while ready(harness.store.open_orders())
        .unwrap()
        .orders()
        .any(|order| order.intent.is_some() || order.is_marked_missing())
    {
        harness.forward(1_000);
        restarted += pass(&mut reconciler).restarted;
        passes += 1;
        assert!(passes < 60, "it converges");
    }
    assert_eq!(restarted, 50, "each is counted once it is seen");
    for n in 0..50 {
        let id = format!("a{n}");
        assert_eq!(harness.upstream.starts_of(&id), 1, "{id}");
        assert_eq!(harness.order(&id).starts, 2);
    }
}

#[test]
fn a_forgotten_order_whose_look_up_before_its_start_fails_waits_for_its_backoff() {
    let harness = forgotten(50, LostProcess::Restart);
    harness.upstream.lost.borrow_mut().push("a0".to_owned());
    let mut reconciler = harness.old_reconciler();
    passes(&harness, &mut reconciler, 60);
    assert_eq!(harness.reason("a0"), Some(Reason::UpstreamUnreachable));
    let mut look_ups = harness.upstream.take_requests();
    look_ups.retain(|request| request == "look_up a0");
    assert!((4..=9).contains(&look_ups.len()), "{}", look_ups.len());
    harness.upstream.lost.borrow_mut().clear();
    passes(&harness, &mut reconciler, 60);
    assert_eq!(harness.upstream.starts_of("a0"), 1);
    assert_eq!(harness.reason("a0"), None);
}

#[test]
fn a_held_order_stays_held_while_its_look_ups_fail() {
    for (policy, max_starts, reason) in [
        (LostProcess::Hold, 5, Reason::ProcessLost),
        (LostProcess::Restart, 1, Reason::MaxStarts),
    ] {
        let mut harness = forgotten(2, policy);
        harness.settings.max_starts = max_starts;
        let mut reconciler = harness.old_reconciler();
        passes(&harness, &mut reconciler, 3);
        let held = harness.order("a0").attention.unwrap();
        assert_eq!((held.reason, held.by), (reason, ResolvedBy::Operator));
        harness.upstream.lost.borrow_mut().push("a0".to_owned());
        passes(&harness, &mut reconciler, 120);
        let attention = harness.order("a0").attention.unwrap();
        assert!(
            attention.next_attempt_at > held.next_attempt_at,
            "it was looked up"
        );
        let expected = Attention {
            next_attempt_at: attention.next_attempt_at,
            ..held
        };
        assert_eq!(attention, expected);
        harness.resolve("a0", Resolution::Restart);
        passes(&harness, &mut reconciler, 120);
        assert_eq!(harness.reason("a0"), Some(Reason::UpstreamUnreachable));
    }
}
