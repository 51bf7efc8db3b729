//! Whether a look has seen a process, which decides what becomes of it under `--lost-process fail`.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::world::ready;
use order_service::order::ResolvedBy;
use order_service::store::{Gate, Passage};

use super::*;

/// A stage with the policy `fail`.
fn failing(orders: usize) -> Stage {
    let mut stage = Stage::new(100_000);
    stage.settings.lost_process = LostProcess::Fail;
    stage.create_many(orders);
    stage
}

/// Passes, one a second, until a process that was forgotten just now has been missed for good.
fn forget(stage: &Stage, reconciler: &mut Reconciler<InMemory, ManualClock>) {
    stage.upstream.model.borrow_mut().forget_everything();
    for _ in 0..20 {
        stage.forward(1_000);
        pass(reconciler);
    }
}

fn is_seen(stage: &Stage) -> bool {
    let open = ready(stage.store.watched()).unwrap();
    open.orders().all(|order| order.is_seen)
}

#[test]
fn an_order_whose_process_no_look_has_seen_is_held_and_goes_on_when_it_is_seen() {
    for orders in [1, 50] {
        let stage = failing(orders);
        let mut reconciler = stage.reconciler();
        pass(&mut reconciler);
        forget(&stage, &mut reconciler);
        for n in 0..orders {
            let order = stage.order(&format!("a{n}"));
            assert_eq!(order.status, Status::Processing);
            let attention = order.attention.unwrap();
            assert_eq!(attention.reason, Reason::ProcessLost);
            assert_eq!(attention.by, ResolvedBy::Operator);
        }
        assert_eq!(stage.upstream.starts(), orders);
        // It was there all the time, or is again.
        let now = stage.clock.now();
        for n in 0..orders {
            let (id, draw) = (format!("a{n}"), &mut |below: u64| below - 1);
            assert!(stage.upstream.model.borrow_mut().start(&id, now, draw));
        }
        stage.forward(300_000);
        pass(&mut reconciler);
        assert_eq!(stage.reason("a0"), None);
        forget(&stage, &mut reconciler);
        assert_eq!(stage.count(Status::Failed), orders);
    }
}

#[test]
fn every_look_that_sees_a_process_is_on_record_for_the_next_reconciler() {
    let running = |stage: &Stage| {
        pass(&mut stage.reconciler());
        stage.forward(1_000);
    };
    let odd = |stage: &Stage| {
        running(stage);
        stage.upstream.look_fate.set(Fate::Odd);
    };
    let unanswered = |stage: &Stage| {
        stage.upstream.start_fate.set(Fate::AnswerLost);
        pass(&mut stage.reconciler());
        stage.forward(10_000);
    };
    let foreign = |stage: &Stage| stage.upstream.start_fate.set(Fate::Foreign);
    let exists = |stage: &Stage| stage.upstream.start_fate.set(Fate::Exists);
    let check = |name, orders, prepare: &dyn Fn(&Stage)| {
        let stage = failing(orders);
        prepare(&stage);
        pass(&mut stage.reconciler());
        assert!(is_seen(&stage), "{name}");
        assert_eq!(stage.count(Status::Processing), orders, "{name}");
        stage.upstream.look_fate.set(Fate::Answered);
        forget(&stage, &mut stage.reconciler());
        assert_eq!(stage.count(Status::Failed), orders, "{name}");
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
    let stage = failing(1);
    let mut reconciler = stage.reconciler();
    pass(&mut reconciler);
    forget(&stage, &mut reconciler);
    for is_seen_before in [false, true] {
        let id = OrderId::new("a0").unwrap();
        block_on(stage.store.release(id, stage.clock.now())).unwrap();
        stage.forward(1_100);
        assert_eq!(pass(&mut reconciler).restarted, 1);
        assert!(!is_seen(&stage), "{is_seen_before}");
        if !is_seen_before {
            forget(&stage, &mut reconciler);
            assert_eq!(stage.reason("a0"), Some(Reason::ProcessLost));
        }
    }
    stage.forward(1_100);
    pass(&mut reconciler);
    assert!(is_seen(&stage));
    forget(&stage, &mut reconciler);
    assert_eq!(stage.order("a0").status, Status::Failed);
}

/// Counts writes.
#[derive(Default)]
struct Counter(AtomicUsize);

impl Gate for Counter {
    fn next(&self) -> Passage {
        self.0.fetch_add(1, Ordering::Relaxed);
        Passage::Open
    }
}

#[test]
fn that_processes_are_seen_is_written_once_for_all_and_under_other_policies_never() {
    for (lost_process, expected) in [
        (LostProcess::Restart, 0),
        (LostProcess::Hold, 0),
        (LostProcess::Fail, 1),
    ] {
        let mut stage = failing(50);
        stage.settings.lost_process = lost_process;
        let counter = Arc::new(Counter::default());
        let path = DatabasePath::from(stage.store.path().to_owned());
        stage.store = Store::open(&path, Mode::Inline(counter.clone())).unwrap();
        let mut reconciler = stage.reconciler();
        pass(&mut reconciler);
        let writes = |reconciler: &mut Reconciler<InMemory, ManualClock>| {
            let before = counter.0.load(Ordering::Relaxed);
            stage.forward(1_000);
            assert_eq!(pass(reconciler).observed, 50);
            counter.0.load(Ordering::Relaxed) - before
        };
        assert_eq!(writes(&mut reconciler), expected, "{lost_process:?}");
        assert_eq!(is_seen(&stage), expected == 1);
        stage.forward(20_000);
        pass(&mut reconciler);
        stage.forward(20_000);
        assert_eq!(writes(&mut reconciler), 1, "the heartbeat");
    }
}
