//! Starts: their order, and orders whose starts are refused.

use order_service::pace::StartRate;
use order_service::store::Resolution;

use super::polling::lasting;
use super::*;

#[test]
fn retries_take_turns_whatever_the_earlier_failure() {
    let harness = Harness::new(100);
    let mut reconciler = harness.reconciler();
    for (id, fault) in [
        ("a1", Fault::Lost),
        ("a2", Fault::Status(400)),
        ("a3", Fault::Lost),
    ] {
        harness.create(id);
        harness.upstream.start_fault.set(fault);
        pass(&mut reconciler);
    }
    harness.upstream.start_fault.set(Fault::Answered);
    harness.upstream.take_requests();
    harness.forward(10_000);
    harness.create("a4");
    assert_eq!(pass(&mut reconciler).started, 4);
    let mut requests = harness.upstream.take_requests();
    requests.retain(|request| request.starts_with("start"));
    // By the ends of their backoffs. The new order is in a queue of its own.
    assert_eq!(requests, ["start a2", "start a4", "start a1", "start a3"]);
}

#[test]
fn an_order_that_failed_once_is_started_although_many_older_ones_always_fail() {
    for (fault, orders) in [(Fault::Status(400), 500), (Fault::Lost, 150)] {
        let mut harness = Harness::new(100_000);
        harness.settings.start_rate = Some(5.0);
        harness.settings.max_starts = 1_000;
        harness.upstream.failing.set(Some(("bad", fault)));
        for n in 0..orders {
            harness.create(&format!("bad{n}"));
        }
        let mut reconciler = harness.reconciler();
        passes(&harness, &mut reconciler, 100);
        harness.create("once");
        harness.upstream.failing.set(Some(("", fault)));
        while harness.order("once").attention.is_none() {
            passes(&harness, &mut reconciler, 1);
        }
        harness.upstream.failing.set(Some(("bad", fault)));
        for n in 0..1_000 {
            if harness.order("once").status != Status::Created {
                break;
            }
            for m in 0..4 {
                harness.create(&format!("new{n}-{m}"));
            }
            pass(&mut reconciler);
            harness.forward(1_000);
        }
        assert_eq!(
            harness.order("once").status,
            Status::Processing,
            "{fault:?}"
        );
    }
}

#[test]
fn a_new_order_behind_three_thousand_refused_ones_is_started_within_ten_seconds() {
    let mut harness = Harness::new(600);
    harness
        .upstream
        .failing
        .set(Some(("bad", Fault::Status(400))));
    for n in 0..3_000 {
        harness.create(&format!("bad{n}"));
    }
    assert_eq!(pass(&mut harness.reconciler()).refused, 3_000);
    harness.forward(10_000);
    for n in 0..20 {
        harness.create(&format!("good{n}"));
    }
    (harness.settings.start_rate, harness.settings.max_in_flight) = (Some(50.0), 8);
    harness.upstream.take_requests();
    let mut reconciler = harness.reconciler();
    let began_at = harness.clock.now();
    while harness.count(Status::Processing) < 20 {
        pass(&mut reconciler);
    }
    let took = harness.clock.now().since(began_at);
    assert!(took <= Duration::from_secs(10), "{took:?}");
    // New orders do not block the refused ones either.
    let requests = harness.upstream.take_requests();
    let last = requests.iter().rposition(|r| r.starts_with("start good"));
    let until_then = requests.iter().take(last.unwrap());
    let bad = until_then.filter(|r| r.starts_with("start bad")).count();
    assert!((8..=12).contains(&bad), "one start in three: {bad}");
}

#[test]
fn an_order_that_is_not_dequeued_in_a_pass_is_started_once_in_a_later_one() {
    let mut harness = forgotten(3, LostProcess::Restart);
    harness.settings.start_rate = Some(0.5);
    for id in ["b0", "b1", "b2"] {
        harness.create(id);
    }
    let mut reconciler = harness.old_reconciler();
    for _ in 0..40 {
        // Only waiting for the start rate moves the clock.
        pass(&mut reconciler);
    }
    assert_eq!(harness.count(Status::Created), 0);
    for id in ["a0", "a1", "a2", "b0", "b1", "b2"] {
        assert_eq!(harness.upstream.starts_of(id), 1, "{id}");
    }
}

#[test]
fn a_start_that_is_refused_because_there_is_a_process_adopts_it() {
    for (max_duration_secs, settled) in [(1, 1), (1_000, 0)] {
        let harness = Harness::new(max_duration_secs);
        harness.upstream.begin("a1");
        harness.create("a1");
        let expected = Report {
            adopted: 1,
            settled,
            ..Report::default()
        };
        assert_eq!(pass(&mut harness.reconciler()), expected);
        let order = harness.order("a1");
        assert_eq!((order.starts, order.attention), (0, None));
    }
}

#[test]
fn a_refused_restart_of_a_reappeared_process_does_not_count_as_a_start() {
    let harness = forgotten(1, LostProcess::Restart);
    let mut reconciler = harness.old_reconciler();
    pass(&mut reconciler);
    harness.forward(1_000);
    harness.upstream.start_fault.set(Fault::Status(400));
    let report = pass(&mut reconciler);
    assert_eq!((report.refused, report.flagged), (1, 1), "{report}");
    assert_eq!(harness.reason("a0"), Some(Reason::StartRefused));
    // The process reappears between the look-up and the start.
    harness.upstream.start_fault.set(Fault::Exists);
    harness.forward(2_000);
    let report = pass(&mut reconciler);
    assert_eq!((report.restarted, report.adopted), (0, 0), "{report}");
    let order = harness.order("a0");
    assert_eq!((order.starts, order.attention), (1, None));
}

#[test]
fn a_forgotten_process_is_decided_again_when_its_order_is_dequeued() {
    let harness = forgotten(50, LostProcess::Restart);
    let mut reconciler = harness.old_reconciler();
    pass(&mut reconciler);
    let waiting: Vec<String> = (0..50)
        .map(|n| format!("a{n}"))
        .filter(|id| harness.order(id).starts == 1)
        .collect();
    assert!(waiting.len() > 30, "the start rate is low");
    let draw = &mut |_: u64| 1;
    for id in &waiting {
        let now = harness.clock.now();
        assert!(harness.upstream.model.borrow_mut().start(id, now, draw));
    }
    harness.upstream.take_requests();
    let mut settled = 0;
    for _ in 0..10 {
        harness.forward(1_000);
        let report = pass(&mut reconciler);
        assert_eq!(report.restarted, 0, "{report}");
        settled += report.settled;
    }
    assert!(settled >= waiting.len(), "{settled}");
    assert_eq!(harness.upstream.starts(), 0);
}

#[test]
fn orders_that_wait_for_a_restart_keep_their_position_between_polls() {
    let harness = forgotten(200, LostProcess::Restart);
    harness.has_learned(lasting((0..600).map(Duration::from_secs)));
    // A list that is so long that it is rarely read.
    for n in 0..10_000 {
        harness.upstream.begin(&format!("other{n}"));
    }
    let mut reconciler = harness.old_reconciler();
    assert!(pass(&mut reconciler).observed > 0);
    for _ in 0..3 {
        assert_eq!(pass(&mut reconciler).observed, 0);
    }
    let mut requests = harness.upstream.take_requests();
    requests.retain(|request| request.starts_with("start"));
    let expected: Vec<_> = (0..requests.len()).map(|n| format!("start a{n}")).collect();
    assert!(requests.len() > 8);
    assert_eq!(requests, expected);
}

#[test]
fn an_order_that_an_operator_has_settled_is_not_started_again() {
    let harness = forgotten(50, LostProcess::Restart);
    let mut reconciler = harness.old_reconciler();
    pass(&mut reconciler);
    harness.resolve("a49", Resolution::Fail);
    let mut conflicts = 0;
    for _ in 0..30 {
        conflicts += pass(&mut reconciler).conflicts;
    }
    assert_eq!(conflicts, 1);
    assert_eq!(harness.order("a49").status, Status::Failed);
    assert!(harness.upstream.starts_of("a48") > 0);
    assert_eq!(harness.upstream.starts_of("a49"), 0);
}

#[test]
fn a_start_believed_to_have_failed_counts_once_its_process_is_found() {
    for is_taken in [false, true] {
        let harness = Harness::new(100);
        harness.create("a1");
        let mut reconciler = harness.reconciler();
        harness.upstream.start_fault.set(Fault::Status(401));
        pass(&mut reconciler);
        assert_eq!(harness.order("a1").starts, 0);
        harness.upstream.start_fault.set(Fault::Answered);
        if is_taken {
            harness.upstream.begin("a1");
        }
        harness.forward(10_000);
        let report = pass(&mut reconciler);
        assert_eq!(report.adopted, usize::from(is_taken), "{report}");
        assert_eq!(harness.order("a1").starts, 1);
    }
}

#[test]
fn a_start_left_in_doubt_by_its_answer_is_deducted_also_from_a_held_order() {
    for (fault, starts) in [
        (Fault::Status(200), 1),
        (Fault::Status(503), 1),
        (Fault::Lost, 2),
    ] {
        let mut harness = forgotten(1, LostProcess::Restart);
        harness.upstream.start_fault.set(fault);
        let mut reconciler = harness.old_reconciler();
        pass(&mut reconciler);
        harness.forward(1_000);
        assert_eq!(pass(&mut reconciler).unanswered, 1);
        assert_eq!(harness.order("a0").starts, 2);
        harness.settings.lost_process = LostProcess::Hold;
        let mut reconciler = harness.old_reconciler();
        harness.forward(5_000);
        assert_eq!(pass(&mut reconciler).flagged, 1);
        assert_eq!(harness.reason("a0"), Some(Reason::ProcessLost));
        assert_eq!(harness.order("a0").starts, starts, "{fault:?}");
    }
}

#[test]
fn a_look_up_that_finds_a_process_lets_the_start_rate_return_after_a_restart() {
    let harness = Harness::new(600);
    let mut rate = StartRate::new(0.0, harness.clock.now());
    rate.on_upstream_restart(harness.clock.now());
    let reduced = rate.rate();
    harness.has_learned(LearnedLimits {
        rate: Some(rate),
        ..LearnedLimits::default()
    });
    harness.create("a1");
    let mut reconciler = harness.reconciler();
    passes(&harness, &mut reconciler, 20);
    let requests = harness.upstream.take_requests();
    assert!(
        requests.iter().all(|request| request != "list"),
        "{requests:?}"
    );
    let rate = harness.heartbeat().learned.rate.unwrap().rate();
    assert!(rate > 2.0 * reduced, "{rate} after {reduced}");
}
