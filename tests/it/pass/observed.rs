//! Under `--lost-process fail`, a missing process fails its order only if a poll has observed the process.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::environment::ready;
use order_service::order::ResolvedBy;
use order_service::store::{Resolution, WriteFate, WriteFaults};

use super::*;

/// Returns a harness with the policy `fail`.
fn failing(orders: usize) -> Harness {
    let mut harness = Harness::new(100_000);
    harness.settings.lost_process = LostProcess::Fail;
    harness.create_many(orders);
    harness
}

/// Makes the upstream forget, and runs one pass a second until the absence is confirmed.
fn forget(harness: &Harness, reconciler: &mut Reconciler<InMemory, ManualClock>) {
    harness.upstream.model.borrow_mut().forget_everything();
    for _ in 0..20 {
        harness.forward(1_000);
        pass(reconciler);
    }
}

fn is_observed(harness: &Harness) -> bool {
    let open = ready(harness.store.open_orders()).unwrap();
    open.orders().all(|order| order.is_observed)
}

#[test]
fn an_order_whose_process_was_never_observed_is_held_until_it_is_observed() {
    for orders in [1, 50] {
        let harness = failing(orders);
        let mut reconciler = harness.reconciler();
        pass(&mut reconciler);
        forget(&harness, &mut reconciler);
        for n in 0..orders {
            let order = harness.order(&format!("a{n}"));
            assert_eq!(order.status, Status::Processing);
            let attention = order.attention.unwrap();
            assert_eq!(attention.reason, Reason::ProcessLost);
            assert_eq!(attention.by, ResolvedBy::Operator);
            let neutral =
                "the upstream has no process for it; its work may or may not have been done";
            assert_eq!(attention.detail, neutral, "there may never have been one");
        }
        assert_eq!(harness.upstream.starts(), orders);
        // The process was there all the time, or reappears.
        for n in 0..orders {
            harness.upstream.begin(&format!("a{n}"));
        }
        harness.forward(300_000);
        pass(&mut reconciler);
        assert_eq!(harness.reason("a0"), None);
        forget(&harness, &mut reconciler);
        assert_eq!(harness.count(Status::Failed), orders);
    }
}

#[test]
fn every_kind_of_poll_that_sees_a_process_is_recorded_for_the_next_reconciler() {
    let running = |harness: &Harness| {
        pass(&mut harness.reconciler());
        harness.forward(1_000);
    };
    let odd = |harness: &Harness| {
        running(harness);
        harness.upstream.look_up_fault.set(Fault::UnknownStatus);
    };
    let unanswered = |harness: &Harness| {
        harness.upstream.start_fault.set(Fault::AnswerLost);
        pass(&mut harness.reconciler());
        harness.forward(10_000);
    };
    let foreign = |harness: &Harness| harness.upstream.start_fault.set(Fault::Foreign);
    let exists = |harness: &Harness| harness.upstream.start_fault.set(Fault::Exists);
    let check = |name, orders, prepare: &dyn Fn(&Harness)| {
        let harness = failing(orders);
        prepare(&harness);
        pass(&mut harness.reconciler());
        assert!(is_observed(&harness), "{name}");
        assert_eq!(harness.count(Status::Processing), orders, "{name}");
        harness.upstream.look_up_fault.set(Fault::Answered);
        forget(&harness, &mut harness.reconciler());
        assert_eq!(harness.count(Status::Failed), orders, "{name}");
    };
    check("running", 1, &running);
    check("listed", 50, &running);
    check("odd", 1, &odd);
    check("unanswered", 1, &unanswered);
    check("foreign", 1, &foreign);
    check("exists", 1, &exists);
}

#[test]
fn a_process_restarted_by_an_operator_counts_as_not_seen() {
    let harness = failing(1);
    let mut reconciler = harness.reconciler();
    pass(&mut reconciler);
    forget(&harness, &mut reconciler);
    for is_observed_before in [false, true] {
        harness.resolve("a0", Resolution::Restart);
        harness.forward(1_100);
        assert_eq!(pass(&mut reconciler).restarted, 1);
        assert!(!is_observed(&harness), "{is_observed_before}");
        if !is_observed_before {
            forget(&harness, &mut reconciler);
            assert_eq!(harness.reason("a0"), Some(Reason::ProcessLost));
        }
    }
    harness.forward(1_100);
    pass(&mut reconciler);
    assert!(is_observed(&harness));
    forget(&harness, &mut reconciler);
    assert_eq!(harness.order("a0").status, Status::Failed);
}

/// A counter of writes.
#[derive(Default)]
struct Counter(AtomicUsize);

impl WriteFaults for Counter {
    fn next(&self) -> WriteFate {
        self.0.fetch_add(1, Ordering::Relaxed);
        WriteFate::Executed
    }
}

#[test]
fn sightings_are_written_in_one_commit_and_under_other_policies_never() {
    for (lost_process, expected) in [
        (LostProcess::Restart, 0),
        (LostProcess::Hold, 0),
        (LostProcess::Fail, 1),
    ] {
        let mut harness = failing(50);
        harness.settings.lost_process = lost_process;
        let counter = Arc::new(Counter::default());
        let path = harness.store.info().address.parse::<DatabaseUrl>().unwrap();
        harness.store = Store::open(&path, Mode::Synchronous(counter.clone())).unwrap();
        let mut reconciler = harness.reconciler();
        pass(&mut reconciler);
        let writes = |reconciler: &mut Reconciler<InMemory, ManualClock>| {
            let before = counter.0.load(Ordering::Relaxed);
            harness.forward(1_000);
            assert_eq!(pass(reconciler).observed, 50);
            counter.0.load(Ordering::Relaxed) - before
        };
        assert_eq!(writes(&mut reconciler), expected, "{lost_process:?}");
        assert_eq!(is_observed(&harness), expected == 1);
        harness.forward(20_000);
        pass(&mut reconciler);
        harness.forward(20_000);
        assert_eq!(writes(&mut reconciler), 1, "the heartbeat");
    }
}
