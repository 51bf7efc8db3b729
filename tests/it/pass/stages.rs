//! Paths of an order through the stages of the start pipeline.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use order_service::reconciler::Stage::{
    self, Done, InFlight, Queued, Ready, WritingIntent, WritingResult,
};
use order_service::reconciler::Trace;

use order_service::store::Resolution;

use super::*;

/// The stages that orders have entered.
type Entered = Rc<RefCell<Vec<(String, Stage)>>>;

/// Returns a reconciler that records the stages of orders, and calls `also` at each.
fn traced(
    harness: &super::Harness,
    also: impl Fn(&str, Stage) + 'static,
) -> (Reconciler<InMemory, ManualClock>, Entered) {
    let entered = Entered::default();
    let notes = entered.clone();
    let reconciler = harness.old_reconciler().traced(move |trace| {
        if let Trace::Entered(stage, order) = trace {
            notes.borrow_mut().push((order.id.to_string(), stage));
            also(order.id.as_str(), stage);
        }
    });
    (reconciler, entered)
}

/// Returns the stages that one order has entered.
fn way(entered: &Entered, id: &str) -> Vec<Stage> {
    let entered = entered.borrow();
    let of_order = entered.iter().filter(|(other, _)| other == id);
    of_order.map(|(_, stage)| *stage).collect()
}

const STARTED: [Stage; 4] = [WritingIntent, Ready, InFlight, WritingResult];
const LOOKED_UP_AND_STARTED: [Stage; 6] = [
    Ready,
    InFlight,
    WritingIntent,
    Ready,
    InFlight,
    WritingResult,
];

#[test]
fn every_path_through_the_stages_is_taken_and_no_other() {
    let mut walked: BTreeSet<(Option<Stage>, Stage)> = BTreeSet::new();
    let mut walk = |entered: &Entered, id: &str, expected: &[Stage]| {
        let way = way(entered, id);
        assert_eq!(way, expected, "{id}");
        let from = std::iter::once(None).chain(way.iter().copied().map(Some));
        walked.extend(from.zip(way.iter().copied()));
    };

    // A start is accepted, or refused.
    for fault in [Fault::Answered, Fault::Status(400)] {
        let harness = super::Harness::new(100);
        harness.create("a1");
        let (mut reconciler, entered) = traced(&harness, |_, _| {});
        harness.upstream.start_fault.set(fault);
        pass(&mut reconciler);
        walk(&entered, "a1", &STARTED);
    }

    // The upstream goes down with the first start, while another is ready.
    let harness = super::Harness::new(100);
    harness.create("a1");
    harness.create("a2");
    let (mut reconciler, entered) = traced(&harness, |_, _| {});
    harness.upstream.start_fault.set(Fault::Refused);
    pass(&mut reconciler);
    walk(&entered, "a1", &STARTED);
    walk(&entered, "a2", &[WritingIntent, Ready, WritingResult]);

    // A forgotten order is looked up when it is dequeued; one that an operator has settled by then is not
    // started.
    let harness = forgotten(50, LostProcess::Restart);
    let (mut reconciler, entered) = traced(&harness, |_, _| {});
    pass(&mut reconciler);
    harness.resolve("a49", Resolution::Fail);
    for _ in 0..30 {
        pass(&mut reconciler);
    }
    walk(&entered, "a0", &LOOKED_UP_AND_STARTED);
    walk(&entered, "a49", &[Ready, InFlight, WritingIntent, Done]);

    // Its process has reappeared, or the look-up fails.
    for is_lost in [false, true] {
        let harness = forgotten(1, LostProcess::Restart);
        let (model, lost) = (
            harness.upstream.model.clone(),
            harness.upstream.lost.clone(),
        );
        let now = harness.clock.now();
        let (mut reconciler, entered) = traced(&harness, move |id, stage| match stage {
            Ready if is_lost => lost.borrow_mut().push(id.to_owned()),
            Ready => drop(model.borrow_mut().start(id, now, &mut |_| 0)),
            _ => {}
        });
        pass(&mut reconciler);
        harness.forward(1_000);
        pass(&mut reconciler);
        walk(&entered, "a0", &[Ready, InFlight, WritingResult]);
    }

    // The upstream goes down with the first look-up, while another is ready.
    let harness = forgotten(2, LostProcess::Restart);
    let look_up_fault = harness.upstream.look_up_fault.clone();
    let (mut reconciler, entered) = traced(&harness, move |_, stage| {
        if stage == Ready {
            look_up_fault.set(Fault::Refused);
        }
    });
    pass(&mut reconciler);
    harness.forward(1_000);
    pass(&mut reconciler);
    walk(&entered, "a0", &[Ready, InFlight, Done]);
    walk(&entered, "a1", &[Ready, Queued]);

    let drawn = [
        (None, WritingIntent),
        (None, Ready),
        (Some(WritingIntent), Ready),
        (Some(WritingIntent), Done),
        (Some(Ready), InFlight),
        (Some(Ready), Queued),
        (Some(Ready), WritingResult),
        (Some(InFlight), WritingIntent),
        (Some(InFlight), WritingResult),
        (Some(InFlight), Done),
    ];
    assert_eq!(walked, drawn.into_iter().collect());
}

#[test]
fn a_start_leaves_soon_after_its_intent_or_not_at_all() {
    // The request timeout is 5 s.
    for (suspended_ms, is_sent) in [(2_499, true), (2_500, false), (60_000, false)] {
        let harness = super::Harness::new(100);
        harness.create("a1");
        let clock = harness.clock.clone();
        let is_first = Cell::new(true);
        let (mut reconciler, entered) = traced(&harness, move |_, stage| {
            if stage == Ready && is_first.take() {
                clock.set(Timestamp(clock.now().0 + suspended_ms));
            }
        });
        pass(&mut reconciler);
        let requests = harness.upstream.take_requests();
        assert_eq!(requests.len(), usize::from(is_sent), "{suspended_ms} ms");
        if !is_sent {
            assert_eq!(way(&entered, "a1"), [WritingIntent, Ready, WritingResult]);
            assert_eq!(harness.order("a1").starts, 0);
            pass(&mut reconciler);
        }
        assert_eq!(harness.order("a1").status, Status::Processing);
        assert_eq!(harness.order("a1").starts, 1);
    }
}

#[test]
fn a_start_whose_result_could_not_be_written_counts_from_the_failed_pass() {
    let mut harness = super::Harness::new(100_000);
    let disk = harness.on_a_disk();
    harness.create_many(2);
    harness.upstream.start_fault.set(Fault::Lost);
    // The second intent is written before the first answer is given up.
    let (clock, fault) = (harness.clock.clone(), harness.upstream.start_fault.clone());
    let full = disk.clone();
    let mut reconciler = harness.reconciler().traced(move |trace| {
        if let Trace::Entered(InFlight, order) = trace
            && fault.get() == Fault::Lost
        {
            clock.set(clock.now().after(Duration::from_secs(2)));
            let is_last = order.id.as_str() == "a1";
            full.is_full.store(is_last, Ordering::Relaxed);
        }
    });
    block_on(reconciler.pass(&Stop::default())).unwrap_err();
    disk.is_full.store(false, Ordering::Relaxed);
    harness.upstream.start_fault.set(Fault::Answered);
    assert_eq!(harness.upstream.take_requests(), ["start a0", "start a1"]);
    let began = harness.clock.now();
    while harness.order("a1").status == Status::Created {
        harness.forward(500);
        pass(&mut reconciler);
    }
    let took = harness.clock.now().since(began);
    assert!(took >= harness.settings.request_timeout, "{took:?}");
}
