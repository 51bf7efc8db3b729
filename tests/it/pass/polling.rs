//! Polling: the orders that a pass observes, by which requests, and how often.

use std::sync::atomic::Ordering;

use order_service::pace::{Durations, UpstreamState};
use order_service::simulator::model::Model;

use super::*;

/// Returns the limits learned from processes with these durations.
pub(super) fn lasting(processes: impl IntoIterator<Item = Duration>) -> LearnedLimits {
    let mut durations = Durations::default();
    for lasted in processes {
        durations.on_observed(lasted);
        durations.on_ended(lasted);
    }
    LearnedLimits {
        durations,
        ..unlimited()
    }
}

#[test]
fn polls_are_sent_on_schedule_and_not_because_of_new_orders() {
    let mut harness = Harness::new(100);
    harness.settings.schedule = "*/10 * * * * *".parse().unwrap();
    harness.create("a0");
    let mut reconciler = harness.reconciler();
    pass(&mut reconciler);
    harness.upstream.take_requests();
    for n in 1..10 {
        harness.forward(1_000);
        let id = format!("a{n}");
        harness.create(&id);
        pass(&mut reconciler);
        assert_eq!(harness.upstream.take_requests(), [format!("start {id}")]);
    }
    harness.forward(1_000);
    assert_eq!(pass(&mut reconciler).observed, 10);
    // A clock that is set back does not delay them.
    harness.forward(-3_600_000);
    assert_eq!(pass(&mut reconciler).observed, 10);
}

#[test]
fn many_orders_are_polled_less_often_than_every_second_unless_one_is_missing() {
    let harness = Harness::new(1_000);
    harness.has_learned(lasting((0..600).map(Duration::from_secs)));
    harness.create_many(2_000);
    let mut reconciler = harness.reconciler();
    pass(&mut reconciler);
    harness.upstream.take_requests();
    let mut passes_with_looks = 0;
    for _ in 0..150 {
        harness.forward(1_000);
        passes_with_looks += usize::from(pass(&mut reconciler).observed > 0);
    }
    assert!((3..=40).contains(&passes_with_looks), "{passes_with_looks}");
    let ids: Vec<String> = (0..2_000).map(|n| format!("a{n}")).collect();
    let runs = |id: &&String| harness.order(id).status == Status::Processing;
    let missing = ids.iter().find(runs).unwrap();
    harness.upstream.model.borrow_mut().forget_everything();
    for id in ids.iter().filter(|id| *id != missing) {
        harness.upstream.begin(id);
    }
    let mut passes = 0;
    while pass(&mut reconciler).missed == 0 {
        harness.forward(1_000);
        passes += 1;
        assert!(passes < 200, "it is polled");
    }
    harness.forward(1_000);
    assert!(pass(&mut reconciler).observed > 0, "polled again at once");
    assert_eq!(harness.reason(missing), Some(Reason::ProcessLost));
}

/// Returns a harness whose processes take twenty seconds, which the new reconciler has learned.
fn twenty_seconds(orders: usize) -> (Harness, Reconciler<InMemory, ManualClock>) {
    let harness = Harness::new(1_000);
    let twenty = Duration::from_secs(20);
    harness.has_learned(lasting(std::iter::repeat_n(twenty, 500)));
    harness.create_many(orders);
    pass(&mut harness.reconciler());
    harness.forward(1_000);
    harness.upstream.take_requests();
    let reconciler = harness.reconciler();
    (harness, reconciler)
}

#[test]
fn an_order_just_looked_up_is_not_polled_until_its_process_may_have_ended() {
    let (harness, mut reconciler) = twenty_seconds(20);
    assert_eq!(
        pass(&mut reconciler).observed,
        20,
        "unknown orders are polled"
    );
    for _ in 0..3 {
        harness.forward(1_000);
        assert_eq!(pass(&mut reconciler).observed, 0);
    }
}

#[test]
fn an_order_with_attention_is_part_of_every_poll() {
    let (harness, mut reconciler) = twenty_seconds(20);
    harness.upstream.look_up_fault.set(Fault::UnknownStatus);
    assert_eq!(pass(&mut reconciler).flagged, 20);
    assert_eq!(harness.reason("a7"), Some(Reason::UnknownStatus));
    harness.upstream.look_up_fault.set(Fault::Answered);
    for _ in 0..4 {
        harness.forward(1_000);
        pass(&mut reconciler);
    }
    assert_eq!(harness.reason("a7"), None);
}

#[test]
fn the_time_of_the_next_poll_is_reported() {
    let (harness, mut reconciler) = twenty_seconds(20);
    pass(&mut reconciler);
    let next_poll_at = harness.heartbeat().next_poll_at.unwrap();
    let pause = next_poll_at.since(harness.clock.now());
    let range = Duration::from_millis(3_500)..Duration::from_millis(4_500);
    assert!(range.contains(&pause), "a fifth of the duration: {pause:?}");
}

#[test]
fn orders_with_contradicting_entries_are_looked_up_and_repeated_ones_are_not() {
    for (fault, look_ups) in [(Fault::Contradictory, 50), (Fault::Twice, 0)] {
        let harness = Harness::new(1);
        harness.create_many(50);
        let mut reconciler = harness.reconciler();
        pass(&mut reconciler);
        harness.upstream.list_fault.set(Some(fault));
        harness.upstream.take_requests();
        harness.forward(1_000);
        let report = pass(&mut reconciler);
        assert_eq!((report.observed, report.missed), (50, 0));
        assert_eq!((report.settled, report.flagged), (50, 0), "{report}");
        let requests = harness.upstream.take_requests();
        assert_eq!(requests[0], "list");
        assert_eq!(requests.len() - 1, look_ups, "{fault:?}");
    }
}

#[test]
fn orders_that_a_list_lacks_are_looked_up_two_thousand_per_pass() {
    for (orders, looked_up) in [(50, 25), (4_200, 2_000)] {
        let (harness, mut reconciler) = twenty_seconds(orders);
        harness.upstream.list_fault.set(Some(Fault::Lost));
        pass(&mut reconciler);
        let requests = harness.upstream.take_requests();
        assert_eq!(requests[0], "list");
        assert_eq!(
            requests.len(),
            1 + looked_up,
            "the orders that it named are known"
        );
    }
}

#[test]
fn slow_look_ups_end_after_ten_seconds_and_begin_at_other_orders_the_next_time() {
    let (harness, mut reconciler) = twenty_seconds(50);
    harness.upstream.list_fault.set(Some(Fault::Contradictory));
    // One look-up has failed before.
    *harness.upstream.lost.borrow_mut() = vec!["a3".to_owned()];
    pass(&mut reconciler);
    harness.upstream.lost.borrow_mut().clear();
    harness.upstream.take_requests();
    harness.forward(1_000);
    harness.upstream.look_up_ms.set(901);
    for _ in 0..100 {
        let began_at = harness.clock.now();
        pass(&mut reconciler);
        let took = harness.clock.now().since(began_at);
        assert!(took < Duration::from_secs(11), "{took:?}");
        harness.forward(1_000);
    }
    let requests: BTreeSet<_> = harness.upstream.take_requests().into_iter().collect();
    let look_ups = requests.iter().filter(|of| of.starts_with("look_up"));
    assert_eq!(look_ups.count(), 50);
}

#[test]
fn the_last_full_observation_needs_an_answer_for_every_order() {
    let (harness, mut reconciler) = twenty_seconds(50);
    let seen_at = || harness.heartbeat().last_observed_at;
    let before = seen_at();
    harness.upstream.list_fault.set(Some(Fault::Lost));
    harness.upstream.look_up_fault.set(Fault::Lost);
    pass(&mut reconciler);
    assert_eq!(seen_at(), before, "half of them");
    harness.upstream.list_fault.set(Some(Fault::Answered));
    harness.upstream.look_up_fault.set(Fault::Answered);
    harness.forward(1_000);
    // Processes that were not seen are polled again at once.
    let mut passes = 0;
    while pass(&mut reconciler).observed == 0 {
        harness.forward(1_000);
        passes += 1;
        assert!(passes < 10);
    }
    let looked_at = harness.clock.now();
    harness.forward(5_000);
    pass(&mut reconciler);
    assert!(seen_at() >= Some(looked_at));
}

#[test]
fn a_look_up_without_an_answer_is_no_full_observation() {
    for lost in [None, Some("a3".to_owned())] {
        let (harness, mut reconciler) = twenty_seconds(5);
        let is_observed = lost.is_none();
        harness.upstream.lost.borrow_mut().extend(lost);
        pass(&mut reconciler);
        let seen_at = harness.heartbeat().last_observed_at;
        assert_eq!(
            seen_at == Some(harness.clock.now()),
            is_observed,
            "{seen_at:?}"
        );
    }
}

#[test]
fn late_answers_to_look_ups_complete_no_poll_that_left_some_unsent() {
    let mut harness = Harness::new(100_000);
    harness.settings.max_in_flight = 4;
    harness.create_many(12);
    let mut reconciler = harness.reconciler();
    passes(&harness, &mut reconciler, 2);
    // No poll has time for all twelve.
    harness.upstream.look_up_ms.set(3_000);
    let slow_from = harness.clock.now();
    passes(&harness, &mut reconciler, 5);
    assert!(harness.clock.now() > slow_from.after(Duration::from_secs(10)));
    assert!(harness.heartbeat().last_observed_at <= Some(slow_from));
}

#[test]
fn an_absence_in_a_list_whose_look_up_has_no_answer_is_no_full_observation() {
    let harness = forgotten(50, LostProcess::Hold);
    let before = harness.heartbeat().last_observed_at;
    harness.upstream.list_fault.set(Some(Fault::Answered));
    harness.upstream.look_up_fault.set(Fault::Lost);
    assert_eq!(pass(&mut harness.old_reconciler()).missed, 50);
    assert_eq!(harness.heartbeat().last_observed_at, before);
}

#[test]
fn the_duration_of_processes_is_learned() {
    let harness = Harness::new(4);
    harness.create_many(100);
    let mut reconciler = harness.reconciler();
    while harness.count(Status::Created) + harness.count(Status::Processing) > 0 {
        pass(&mut reconciler);
        harness.forward(1_000);
    }
    harness.forward(5_000);
    pass(&mut reconciler);
    let durations = harness.heartbeat().learned.durations;
    let range = Duration::from_millis(800)..Duration::from_millis(3_000);
    let mean = durations.mean().unwrap();
    assert!(range.contains(&mean), "{mean:?}");
    assert!(durations.longest() < Duration::from_secs(5));
}

#[test]
fn a_list_that_leaves_orders_in_doubt_counts_the_time_of_the_others_once() {
    for fault in [Fault::Contradictory, Fault::Lost] {
        let (harness, mut reconciler) = twenty_seconds(50);
        harness.upstream.list_fault.set(Some(fault));
        for second in 0..60 {
            // Another one each time, so that none is left out for its backoff.
            *harness.upstream.lost.borrow_mut() = vec![format!("a{}", second % 50)];
            pass(&mut reconciler);
            harness.forward(1_000);
        }
        // The 50 processes ran for a minute, and the 500 that were learned for 20 s each.
        let mean = harness.heartbeat().learned.durations.mean().unwrap();
        let range = Duration::from_secs(22)..Duration::from_secs(27);
        assert!(range.contains(&mean), "{fault:?}: {mean:?}");
    }
}

#[test]
fn a_restart_found_by_look_ups_keeps_the_processes_that_they_found() {
    let harness = forgotten(15, LostProcess::Hold);
    for id in ["a0", "a1", "a2"] {
        harness.upstream.begin(id);
    }
    pass(&mut harness.old_reconciler());
    assert!(
        !harness
            .upstream
            .take_requests()
            .contains(&"list".to_owned())
    );
    let incarnations = harness.incarnations();
    assert_eq!(
        (incarnations.restarts(), incarnations.processes()),
        (1, Some(3))
    );
}

#[test]
fn while_nothing_can_be_recorded_polls_are_limited() {
    let mut harness = Harness::new(20);
    let disk = harness.on_a_disk();
    harness.has_learned(lasting((0..600).map(Duration::from_secs)));
    harness.create_many(2_000);
    let mut reconciler = harness.reconciler();
    pass(&mut reconciler);
    harness.forward(100_000);
    harness.upstream.take_requests();
    disk.is_full.store(true, Ordering::Relaxed);
    for _ in 0..20 {
        block_on(reconciler.pass(&Stop::default())).unwrap_err();
        harness.forward(1_000);
    }
    let asked = harness.upstream.take_requests();
    assert!((1..=5).contains(&asked.len()), "{asked:?}");
    assert_eq!(harness.count(Status::Processing), 2_000);
    disk.is_full.store(false, Ordering::Relaxed);
    passes(&harness, &mut reconciler, 62);
    assert_eq!(harness.count(Status::Processing), 0);
}

#[test]
fn an_order_whose_look_ups_alone_fail_is_observed_by_a_list() {
    for orders in [1, 3] {
        let harness = Harness::new(20);
        harness.create_many(orders);
        harness.upstream.lost.borrow_mut().push("a0".to_owned());
        let mut reconciler = harness.reconciler();
        let since = harness.clock.now();
        for _ in 0..60 {
            pass(&mut reconciler);
            let state = harness.heartbeat().upstream;
            assert_eq!(state, UpstreamState::Up { since }, "{orders}");
            harness.forward(1_000);
        }
        assert!(harness.has_settled_all(), "{orders}");
        let requests = harness.upstream.take_requests();
        let lists = requests.iter().filter(|request| *request == "list").count();
        assert!((1..=10).contains(&lists), "{orders}: {lists}");
    }
}

#[test]
fn a_list_settles_an_order_whose_look_up_has_no_answer() {
    let mut harness = Harness::new(20);
    harness.settings.max_in_flight = 4;
    harness.create_many(50);
    let mut reconciler = harness.reconciler();
    pass(&mut reconciler);
    harness.forward(1_000);
    // Each is looked up. The others take ten seconds.
    harness.upstream.list_fault.set(Some(Fault::Contradictory));
    harness.upstream.look_up_ms.set(210);
    *harness.upstream.unanswered.borrow_mut() = Some("a3");
    pass(&mut reconciler);
    harness.forward(20_000);
    harness.upstream.list_fault.set(None);
    let listed_at = harness.clock.now();
    pass(&mut reconciler);
    assert!(harness.has_settled_all());
    assert_eq!(harness.heartbeat().last_observed_at, Some(listed_at));
    // The upstream forgets, and answers.
    harness.upstream.model.replace(Model::new(20));
    harness.upstream.unanswered.take();
    passes(&harness, &mut reconciler, 60);
    assert_eq!(harness.upstream.starts_of("a3"), 1);
    assert_eq!(harness.reason("a3"), None);
}
