//! Whether a look has seen a process, which decides what becomes of it under `--lost-process fail`.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::world::ready;
use order_service::order::ResolvedBy;
use order_service::store::{WriteFate, WriteFaults};

use super::*;

/// A harness with the policy `fail`.
fn failing(orders: usize) -> Harness {
    let mut harness = Harness::new(100_000);
    harness.settings.lost_process = LostProcess::Fail;
    harness.create_many(orders);
    harness
}

/// Passes, one a second, until a process that was forgotten just now has been missed for good.
fn forget(harness: &Harness, reconciler: &mut Reconciler<InMemory, ManualClock>) {
    harness.upstream.model.borrow_mut().forget_everything();
    for _ in 0..20 {
        harness.forward(1_000);
        pass(reconciler);
    }
}

fn is_seen(harness: &Harness) -> bool {
    let open = ready(harness.store.watched()).unwrap();
    open.orders().all(|order| order.is_seen)
}

#[test]
fn an_order_whose_process_no_look_has_seen_is_held_and_goes_on_when_it_is_seen() {
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
        }
        assert_eq!(harness.upstream.starts(), orders);
        // It was there all the time, or is again.
        let now = harness.clock.now();
        for n in 0..orders {
            let (id, draw) = (format!("a{n}"), &mut |below: u64| below - 1);
            assert!(harness.upstream.model.borrow_mut().start(&id, now, draw));
        }
        harness.forward(300_000);
        pass(&mut reconciler);
        assert_eq!(harness.reason("a0"), None);
        forget(&harness, &mut reconciler);
        assert_eq!(harness.count(Status::Failed), orders);
    }
}

#[test]
fn every_look_that_sees_a_process_is_on_record_for_the_next_reconciler() {
    let running = |harness: &Harness| {
        pass(&mut harness.reconciler());
        harness.forward(1_000);
    };
    let odd = |harness: &Harness| {
        running(harness);
        harness.upstream.look_fault.set(Fault::Odd);
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
        assert!(is_seen(&harness), "{name}");
        assert_eq!(harness.count(Status::Processing), orders, "{name}");
        harness.upstream.look_fault.set(Fault::Answered);
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
fn a_process_that_an_operator_has_started_again_has_yet_to_be_seen() {
    let harness = failing(1);
    let mut reconciler = harness.reconciler();
    pass(&mut reconciler);
    forget(&harness, &mut reconciler);
    for is_seen_before in [false, true] {
        let id = OrderId::new("a0").unwrap();
        block_on(harness.store.release(id, harness.clock.now())).unwrap();
        harness.forward(1_100);
        assert_eq!(pass(&mut reconciler).restarted, 1);
        assert!(!is_seen(&harness), "{is_seen_before}");
        if !is_seen_before {
            forget(&harness, &mut reconciler);
            assert_eq!(harness.reason("a0"), Some(Reason::ProcessLost));
        }
    }
    harness.forward(1_100);
    pass(&mut reconciler);
    assert!(is_seen(&harness));
    forget(&harness, &mut reconciler);
    assert_eq!(harness.order("a0").status, Status::Failed);
}

/// Counts writes.
#[derive(Default)]
struct Counter(AtomicUsize);

impl WriteFaults for Counter {
    fn next(&self) -> WriteFate {
        self.0.fetch_add(1, Ordering::Relaxed);
        WriteFate::Open
    }
}

#[test]
fn that_processes_are_seen_is_written_once_for_all_and_under_other_policies_never() {
    for (lost_process, expected) in [
        (LostProcess::Restart, 0),
        (LostProcess::Hold, 0),
        (LostProcess::Fail, 1),
    ] {
        let mut harness = failing(50);
        harness.settings.lost_process = lost_process;
        let counter = Arc::new(Counter::default());
        let path = DatabaseUrl::from(harness.store.path().to_owned());
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
        assert_eq!(is_seen(&harness), expected == 1);
        harness.forward(20_000);
        pass(&mut reconciler);
        harness.forward(20_000);
        assert_eq!(writes(&mut reconciler), 1, "the heartbeat");
    }
}
