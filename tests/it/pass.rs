//! The reconciler's pass on one thread, with the simulator's model in memory as upstream, a manual
//! clock and a real database. No sleeps, no sockets.

mod clock;
mod harness;
mod in_memory;
mod lag;
mod lost;
mod observed;
mod outages;
mod polling;
mod reporting;
mod stages;
mod starts;
mod throttled;
mod window;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::environment::ready;
use order_service::clock::{Clock, ManualClock};
use order_service::decide::LostProcess;
use order_service::order::{Reason, Status, Timestamp};
use order_service::pace::LearnedLimits;
use order_service::process::Stop;
use order_service::reconciler::{Reconciler, Report};
use order_service::store::{DatabaseUrl, Mode, Store};

use self::harness::{Harness, block_on, pass, passes, unlimited};
use self::in_memory::{Fault, InMemory};

#[test]
fn orders_go_through_all_statuses_and_agree_with_the_model() {
    let mut harness = Harness::new(10);
    harness.settings.max_in_flight = 8;
    harness.create_many(100);
    let mut reconciler = harness.reconciler();
    assert_eq!(pass(&mut reconciler).started, 100);
    assert_eq!(harness.count(Status::Processing), 100);
    for _ in 0..11 {
        harness.forward(1_000);
        pass(&mut reconciler);
    }
    let model = harness.upstream.model.borrow();
    for n in 0..100 {
        let id = format!("a{n}");
        let expected = match model.look_up(&id, harness.clock.now()) {
            Some("SUCCEEDED") => Status::Fulfilled,
            Some("FAILED") => Status::Failed,
            other => panic!("{id} is {other:?}"),
        };
        assert_eq!(harness.order(&id).status, expected);
        assert_eq!(harness.order(&id).starts, 1);
    }
    assert_eq!(harness.upstream.starts(), 100);
}

#[test]
fn a_pass_over_settled_orders_sends_no_request() {
    let harness = Harness::new(1);
    harness.create("a1");
    let mut reconciler = harness.reconciler();
    pass(&mut reconciler);
    harness.forward(1_100);
    pass(&mut reconciler);
    assert!(harness.order("a1").status.is_settled());
    harness.upstream.take_requests();
    for _ in 0..10 {
        harness.forward(1_000);
        assert_eq!(pass(&mut reconciler), Report::default());
    }
    assert!(harness.upstream.take_requests().is_empty());
}

#[test]
fn an_order_whose_start_got_no_answer_is_looked_up_before_it_is_started_again() {
    for fault in [
        Fault::AnswerLost,
        Fault::Lost,
        Fault::Status(503),
        Fault::Status(500),
    ] {
        let harness = Harness::new(100);
        harness.create("a1");
        let mut reconciler = harness.reconciler();
        harness.upstream.start_fault.set(fault);
        assert_eq!(pass(&mut reconciler).unanswered, 1);
        assert_eq!(harness.reason("a1"), Some(Reason::UpstreamUnreachable));
        harness.upstream.start_fault.set(Fault::Answered);
        let mut waited = 0;
        // This holds for another reconciler too.
        let mut reconciler = harness.reconciler();
        while harness.order("a1").status == Status::Created {
            harness.forward(1_000);
            waited += 1_000;
            pass(&mut reconciler);
            assert!(waited < 60_000, "it converges");
        }
        let requests = harness.upstream.take_requests();
        assert_eq!(requests[..2], ["start a1", "look_up a1"]);
        if fault == Fault::AnswerLost {
            assert_eq!(requests.len(), 2, "it was adopted: {requests:?}");
        } else {
            assert!(
                waited >= 5_000,
                "an absence counts after the timeout: {waited}"
            );
            assert_eq!(requests.last().unwrap(), "start a1");
        }
        let order = harness.order("a1");
        assert_eq!(order.attention, None);
        // A start without an answer may have taken effect; one answered with an error has not.
        assert_eq!(order.starts, if fault == Fault::Lost { 2 } else { 1 });
    }
}

#[test]
fn a_start_that_could_not_be_sent_is_simply_repeated() {
    let harness = Harness::new(100);
    harness.create("a1");
    harness.create("a2");
    let mut reconciler = harness.reconciler();
    harness.upstream.start_fault.set(Fault::Refused);
    harness.upstream.look_up_fault.set(Fault::Refused);
    assert!(pass(&mut reconciler).unreachable);
    assert_eq!(harness.upstream.take_requests(), ["start a1"]);
    assert!(
        ready(harness.store.open_orders()).unwrap().is_empty(),
        "no intent is left"
    );
    for probed in ["look_up a1", "look_up a2", "look_up a1"] {
        harness.forward(1_000);
        assert!(pass(&mut reconciler).unreachable);
        assert_eq!(
            harness.upstream.take_requests(),
            [probed],
            "one probe a pass"
        );
    }
    assert_eq!(harness.reason("a2"), Some(Reason::UpstreamUnreachable));
    harness.upstream.start_fault.set(Fault::Answered);
    harness.upstream.look_up_fault.set(Fault::Answered);
    harness.forward(1_000);
    assert_eq!(pass(&mut reconciler).started, 2);
    for id in ["a1", "a2"] {
        assert_eq!(harness.order(id).starts, 1);
        assert_eq!(harness.reason(id), None);
    }
}

#[test]
fn a_refused_order_is_flagged_backed_off_and_delays_no_other() {
    let harness = Harness::new(100);
    harness.create("a1");
    let mut reconciler = harness.reconciler();
    harness.upstream.start_fault.set(Fault::Status(400));
    pass(&mut reconciler);
    assert_eq!(harness.upstream.take_requests(), ["start a1", "look_up a1"]);
    let attention = harness.order("a1").attention.unwrap();
    assert_eq!(attention.reason, Reason::StartRefused);
    assert!(attention.next_attempt_at.unwrap() > harness.clock.now());
    assert_eq!(harness.order("a1").starts, 0);
    harness.upstream.start_fault.set(Fault::Answered);
    harness.create("a2");
    pass(&mut reconciler);
    assert_eq!(harness.order("a2").status, Status::Processing);
    assert_eq!(harness.order("a1").status, Status::Created);
    harness.forward(1_000);
    pass(&mut reconciler);
    assert_eq!(harness.order("a1").status, Status::Processing);
    assert_eq!(harness.reason("a1"), None);
}

#[test]
fn an_order_that_always_fails_is_retried_with_backoff_and_never_given_up() {
    let harness = Harness::new(100);
    harness.create("a1");
    let mut reconciler = harness.reconciler();
    harness.upstream.start_fault.set(Fault::Status(400));
    let began_at = harness.clock.now();
    while harness.clock.now().since(began_at) < Duration::from_secs(3_600) {
        pass(&mut reconciler);
        harness.forward(4_000);
    }
    let starts = harness.upstream.starts_of("a1");
    assert!((12..40).contains(&starts), "{starts} starts in an hour");
    let since = harness.order("a1").attention.unwrap().since;
    assert_eq!(
        since,
        Timestamp(1_800_000_000_000),
        "since the first refusal"
    );
}

/// Returns a harness whose upstream has just forgotten the processes of this many orders.
fn forgotten(orders: usize, lost_process: LostProcess) -> Harness {
    let mut harness = Harness::new(100);
    harness.settings.lost_process = lost_process;
    harness.create_many(orders);
    let mut reconciler = harness.reconciler();
    assert_eq!(pass(&mut reconciler).started, orders);
    if lost_process == LostProcess::Fail {
        // Only this policy records that a poll has seen the processes.
        harness.forward(1_000);
        assert_eq!(pass(&mut reconciler).observed, orders);
    }
    harness.upstream.model.borrow_mut().forget_everything();
    harness.forward(1_000);
    harness.upstream.take_requests();
    harness
}

#[test]
fn an_incomplete_list_proves_no_absence_and_its_entries_count() {
    let harness = Harness::new(3);
    harness.create_many(2_000);
    let mut reconciler = harness.reconciler();
    pass(&mut reconciler);
    harness.forward(5_000);
    harness.upstream.look_up_fault.set(Fault::Lost);
    let report = pass(&mut reconciler);
    assert_eq!(report.settled, 1_000, "the half that was read");
    assert_eq!(report.flagged, 0);
    assert_eq!(harness.count(Status::Processing), 1_000);
    harness.upstream.look_up_fault.set(Fault::Answered);
    harness.forward(1_000);
    while harness.count(Status::Processing) > 0 {
        pass(&mut reconciler);
        harness.forward(1_000);
    }
}

#[test]
fn starts_keep_to_the_start_rate_and_the_oldest_go_first() {
    let mut harness = Harness::new(600);
    harness.settings.start_rate = Some(50.0);
    harness.create_many(200);
    let mut reconciler = harness.reconciler();
    let began_at = harness.clock.now();
    let mut passes = 0;
    while harness.count(Status::Created) > 0 {
        pass(&mut reconciler);
        passes += 1;
    }
    let took = harness.clock.now().since(began_at);
    assert!(took >= Duration::from_millis(3_900), "{took:?}");
    assert!(took <= Duration::from_millis(4_200), "{took:?}");
    assert!(
        (4..=6).contains(&passes),
        "a pass ends when a poll is due: {passes}"
    );
    let starts: Vec<_> = harness
        .upstream
        .take_requests()
        .into_iter()
        .filter(|request| request.starts_with("start"))
        .collect();
    let expected: Vec<_> = (0..200).map(|n| format!("start a{n}")).collect();
    assert_eq!(starts, expected);
}

#[test]
fn a_clock_that_is_set_back_blocks_no_order() {
    let mut harness = Harness::new(2);
    harness.settings.start_rate = Some(10.0);
    harness.create_many(10);
    let mut reconciler = harness.reconciler();
    pass(&mut reconciler);
    harness.forward(-86_400_000);
    for n in 10..20 {
        harness.create(&format!("a{n}"));
    }
    passes(&harness, &mut reconciler, 10);
    assert_eq!(harness.count(Status::Created), 0);
    harness.forward(86_400_000);
    passes(&harness, &mut reconciler, 5);
    assert_eq!(harness.count(Status::Processing), 0);
}

#[test]
fn every_request_to_the_upstream_is_counted_also_across_a_restart() {
    let harness = Harness::new(100);
    let mut sent: BTreeMap<String, u64> = BTreeMap::new();
    let faults = [
        Fault::Answered,
        Fault::Status(400),
        Fault::Status(500),
        Fault::Lost,
        Fault::AnswerLost,
        Fault::Refused,
    ];
    for (n, fault) in faults.into_iter().enumerate() {
        // Each run is a new reconciler, which continues the counts.
        let mut reconciler = harness.reconciler();
        harness.create(&format!("a{n}"));
        harness.upstream.start_fault.set(fault);
        passes(&harness, &mut reconciler, 8);
        harness.upstream.start_fault.set(Fault::Answered);
        pass(&mut reconciler);
        harness.forward(60_000);
        block_on(reconciler.shut_down(None));
    }
    for request in harness.upstream.take_requests() {
        let kind = request.split(' ').next().unwrap();
        *sent.entry(kind.to_owned()).or_default() += 1;
    }
    let metrics = harness.heartbeat().metrics;
    let mut counted: BTreeMap<String, u64> = BTreeMap::new();
    let mut answers = BTreeSet::new();
    for (kind, answer, took) in metrics.requests() {
        *counted.entry(kind.to_string()).or_default() += took.total();
        answers.insert(format!("{kind} {answer}"));
    }
    assert_eq!(counted, sent);
    for answer in ["ok", "refused", "overload", "unavailable"] {
        let answer = format!("start {answer}");
        assert!(answers.contains(&answer), "{answers:?}");
    }
    assert_eq!(metrics.starts, sent["start"]);
    assert!(metrics.repeated_starts > 0);
    assert_eq!(metrics.leaderships, faults.len() as u64);
    let passes: u64 = metrics.passes.values().map(|took| took.total()).sum();
    assert_eq!(passes, 9 * faults.len() as u64);
}
