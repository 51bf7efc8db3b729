//! The window: the limit of running processes after short incarnations of the upstream.

use order_service::pace::{Durations, Incarnations};

use super::*;

/// The window after many of the shortest incarnations.
const WINDOW: usize = 16;

/// Returns a harness that has learned such incarnations, with this many orders.
fn short_lived(orders: usize, max_duration_secs: u32) -> Harness {
    let mut harness = Harness::new(max_duration_secs);
    harness.settings.max_in_flight = 8;
    let mut incarnations = Incarnations::default();
    for _ in 0..30 {
        incarnations.on_list_complete(1, harness.clock.now());
        incarnations.on_upstream_restart(0, harness.clock.now());
    }
    assert_eq!(incarnations.window(), Some(WINDOW as u64));
    let mut durations = Durations::default();
    let longest = Duration::from_secs(max_duration_secs.into());
    durations.on_observed(longest);
    durations.on_ended(longest);
    harness.has_learned(LearnedLimits {
        incarnations,
        durations,
        ..unlimited()
    });
    harness.create_many(orders);
    harness
}

/// Returns the number of processes that run at this moment.
fn running(harness: &Harness) -> usize {
    let model = harness.upstream.model.borrow();
    let runs = |n: &usize| model.look_up(&format!("a{n}"), harness.clock.now()) == Some("RUNNING");
    (0..200).filter(runs).count()
}

#[test]
fn at_most_a_window_of_processes_runs_at_once_and_each_end_frees_a_slot() {
    // Three windows of processes: with more, an incarnation this long would widen it.
    let harness = short_lived(45, 20);
    let mut reconciler = harness.reconciler();
    assert_eq!(pass(&mut reconciler).started, WINDOW);
    let mut passes = 0;
    while harness.count(Status::Created) > 0 {
        harness.forward(1_000);
        let report = pass(&mut reconciler);
        assert!(running(&harness) <= WINDOW, "{report}");
        assert!(report.started <= report.settled, "{report}");
        passes += 1;
        assert!(passes < 200, "the processes end");
    }
}

#[test]
fn a_new_reconciler_counts_the_processes_that_run_already() {
    let harness = short_lived(40, 1_000);
    assert_eq!(pass(&mut harness.reconciler()).started, WINDOW);
    harness.forward(1_000);
    let before = running(&harness);
    let mut reconciler = harness.reconciler();
    let report = pass(&mut reconciler);
    assert_eq!(report.started, WINDOW - before, "{report}");
}

#[test]
fn forgotten_processes_take_no_slot_in_the_window() {
    let mut harness = short_lived(40, 1_000);
    harness.settings.lost_process = LostProcess::Hold;
    let mut reconciler = harness.reconciler();
    pass(&mut reconciler);
    harness.upstream.model.borrow_mut().forget_everything();
    let mut started = 0;
    for _ in 0..10 {
        harness.forward(1_000);
        started += pass(&mut reconciler).started;
    }
    assert_eq!(started, WINDOW);
}

#[test]
fn processes_that_are_not_polled_keep_their_slots() {
    let harness = short_lived(1, 1_000);
    let mut reconciler = harness.reconciler();
    assert_eq!(pass(&mut reconciler).started, 1);
    for n in 1..40 {
        harness.create(&format!("a{n}"));
    }
    harness.forward(1_100);
    let report = pass(&mut reconciler);
    assert_eq!(
        report.started,
        WINDOW - running(&harness).min(1),
        "{report}"
    );
    assert_eq!(
        harness.upstream.take_requests()[1],
        "look_up a0",
        "and no list"
    );
}

#[test]
fn a_restart_observed_in_two_parts_is_counted_once() {
    let harness = forgotten(40, LostProcess::Hold);
    let odd = (0..40).filter(|n| n % 2 == 1).map(|n| format!("a{n}"));
    harness.upstream.lost.borrow_mut().extend(odd);
    harness.upstream.list_fault.set(Some(Fault::Lost));
    let ended = || harness.incarnations().restarts();
    let mut reconciler = harness.old_reconciler();
    assert_eq!(pass(&mut reconciler).missed, 20);
    assert_eq!(ended(), 1);
    harness.upstream.lost.borrow_mut().clear();
    harness.upstream.list_fault.set(None);
    let mut missed = 0;
    for _ in 0..10 {
        harness.forward(1_000);
        missed += pass(&mut reconciler).missed;
    }
    assert_eq!((missed, ended()), (20, 1));
}
