//! The report of a pass, and the heartbeat, each write of which costs a disk flush.

use std::sync::atomic::{AtomicUsize, Ordering};

use order_service::reconciler::run_once;
use order_service::store::{WriteFate, WriteFaults};

use super::*;

fn written_at(harness: &Harness) -> Timestamp {
    harness.heartbeat().last_pass_at.unwrap()
}

/// Runs one pass a second until the heartbeat is written. Returns the number of seconds.
fn seconds_until_written(
    harness: &Harness,
    reconciler: &mut Reconciler<InMemory, ManualClock>,
) -> i64 {
    let before = written_at(harness);
    let began_at = harness.clock.now();
    while written_at(harness) == before {
        harness.forward(1_000);
        pass(reconciler);
        assert!(harness.clock.now().since(began_at) < Duration::from_secs(60));
    }
    harness.clock.now().since(began_at).as_secs() as i64
}

#[test]
fn a_pass_in_which_nothing_happens_writes_nothing_more_often_than_every_five_seconds() {
    let harness = Harness::new(100);
    harness.create("a1");
    let mut reconciler = harness.reconciler();
    pass(&mut reconciler);
    assert_eq!(written_at(&harness), harness.clock.now());
    harness.forward(1_100);
    assert_eq!(
        pass(&mut reconciler).observed,
        1,
        "it polls, and does nothing else"
    );
    assert_eq!(seconds_until_written(&harness, &mut reconciler), 4);
    // An event is reported at once.
    harness.forward(1_000);
    harness.create("a2");
    pass(&mut reconciler);
    assert_eq!(written_at(&harness), harness.clock.now());
    // A clock that is set back does not stop the heartbeat.
    harness.forward(-3_600_000);
    pass(&mut reconciler);
    let next_pass_at = harness.heartbeat().next_pass_at.unwrap();
    assert!(next_pass_at < harness.clock.now().after(Duration::from_secs(2)));
}

#[test]
fn waiting_for_the_start_rate_or_the_upstream_is_no_event() {
    let mut harness = Harness::new(100);
    harness.settings.start_rate = Some(0.1);
    for id in ["a1", "a2"] {
        harness.create(id);
    }
    let mut reconciler = harness.reconciler();
    assert!(pass(&mut reconciler).has_more);
    let before = written_at(&harness);
    harness.forward(1_000);
    assert!(pass(&mut reconciler).has_more, "the order is still queued");
    assert_eq!(written_at(&harness), before);
    harness.upstream.look_up_fault.set(Fault::Refused);
    harness.forward(1_000);
    assert!(pass(&mut reconciler).unreachable);
    let down_since = written_at(&harness);
    assert!(down_since > before, "the outage is an event");
    harness.forward(1_000);
    assert!(pass(&mut reconciler).unreachable);
    assert_eq!(written_at(&harness), down_since);
}

#[test]
fn the_upstream_counts_as_unreachable_when_no_request_got_an_answer() {
    let harness = Harness::new(100);
    harness.create("a1");
    let mut reconciler = harness.reconciler();
    pass(&mut reconciler);
    harness.forward(1_100);
    harness.upstream.look_up_fault.set(Fault::Lost);
    assert!(pass(&mut reconciler).unreachable, "no answer");
    harness.create("a2");
    harness.forward(1_000);
    assert!(!pass(&mut reconciler).unreachable, "the start was accepted");
    assert_eq!(harness.order("a2").status, Status::Processing);
}

#[test]
fn a_report_counts_observations_and_changes() {
    let one = |count: Report| Report {
        observed: 1,
        ..count
    };
    // A start whose answer was lost has a process that runs, or has ended.
    for (max_duration_secs, settled) in [(1, 1), (1_000, 0)] {
        let harness = Harness::new(max_duration_secs);
        harness.create("a1");
        harness.upstream.start_fault.set(Fault::AnswerLost);
        let mut reconciler = harness.reconciler();
        assert_eq!(pass(&mut reconciler).unanswered, 1);
        harness.forward(6_000);
        let expected = one(Report {
            adopted: 1,
            settled,
            ..Report::default()
        });
        assert_eq!(pass(&mut reconciler), expected);
    }
    let harness = forgotten(1, LostProcess::Fail);
    let mut reconciler = harness.old_reconciler();
    let missed = one(Report {
        missed: 1,
        ..Report::default()
    });
    assert_eq!(pass(&mut reconciler), missed);
    harness.forward(1_000);
    let failed = one(Report {
        failed_by_policy: 1,
        ..Report::default()
    });
    assert_eq!(pass(&mut reconciler), failed);
    let harness = forgotten(1, LostProcess::Hold);
    let mut reconciler = harness.old_reconciler();
    pass(&mut reconciler);
    harness.forward(1_000);
    let flagged = one(Report {
        flagged: 1,
        ..Report::default()
    });
    assert_eq!(pass(&mut reconciler), flagged);
}

#[test]
fn a_second_start_whose_answer_was_lost_counts_as_a_restart_once_its_process_is_seen() {
    let harness = forgotten(1, LostProcess::Restart);
    let mut reconciler = harness.old_reconciler();
    pass(&mut reconciler);
    harness.forward(1_000);
    harness.upstream.start_fault.set(Fault::AnswerLost);
    assert_eq!(pass(&mut reconciler).unanswered, 1);
    harness.forward(100_000);
    let report = pass(&mut reconciler);
    assert_eq!((report.restarted, report.settled), (1, 1), "{report}");
    assert_eq!(harness.order("a0").starts, 2);
}

/// Requests a stop at a write.
struct StopAt {
    stop: Stop,
    writes_left: AtomicUsize,
}

impl WriteFaults for StopAt {
    fn next(&self) -> WriteFate {
        if self.writes_left.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.stop.requested.cancel();
        }
        WriteFate::Executed
    }
}

#[test]
fn a_stop_interrupts_a_single_run_only_if_it_leaves_an_order_untried() {
    for max_in_flight in [1, 8] {
        for write in 1.. {
            let stop = Stop::default();
            let mut harness = Harness::new(100);
            harness.settings.max_in_flight = max_in_flight;
            harness.create_many(3);
            let path = harness.store.info().address.parse::<DatabaseUrl>().unwrap();
            let faults = Arc::new(StopAt {
                stop: stop.clone(),
                writes_left: write.into(),
            });
            harness.store = Store::open(&path, Mode::Synchronous(faults)).unwrap();
            let ended = block_on(run_once(harness.reconciler(), &stop)).unwrap();
            let are_started = harness.count(Status::Processing) == 3;
            assert_eq!(
                ended,
                are_started.then_some(true),
                "{max_in_flight}, {write}"
            );
            if !stop.requested.is_cancelled() {
                assert!(write > 4, "{write}");
                break;
            }
        }
    }
}
