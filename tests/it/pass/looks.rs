//! Which orders a pass looks at, how, and how often.

use std::sync::atomic::Ordering;

use crate::world::ready;
use order_service::pace::Durations;

use super::*;

/// What is learned from processes that lasted so long.
pub(super) fn lasting(processes: impl IntoIterator<Item = Duration>) -> Learned {
    let mut durations = Durations::default();
    for lasted in processes {
        durations.on_observed(lasted);
        durations.on_ended(lasted);
    }
    Learned {
        durations,
        ..unlimited()
    }
}

#[test]
fn looks_are_made_on_schedule_and_not_because_orders_come_in() {
    let mut stage = Stage::new(100);
    stage.settings.schedule = "*/10 * * * * *".parse().unwrap();
    stage.create("a0");
    let mut reconciler = stage.reconciler();
    pass(&mut reconciler);
    stage.upstream.take_requests();
    for n in 1..10 {
        stage.forward(1_000);
        let id = format!("a{n}");
        stage.create(&id);
        pass(&mut reconciler);
        assert_eq!(stage.upstream.take_requests(), [format!("start {id}")]);
    }
    stage.forward(1_000);
    assert_eq!(pass(&mut reconciler).observed, 10);
    // Nor do they wait until a clock that was set back has caught up.
    stage.forward(-3_600_000);
    assert_eq!(pass(&mut reconciler).observed, 10);
}

#[test]
fn many_orders_are_looked_at_less_often_than_every_second_unless_one_is_missing() {
    let stage = Stage::new(1_000);
    stage.has_learned(lasting((0..600).map(Duration::from_secs)));
    stage.create_many(2_000);
    let mut reconciler = stage.reconciler();
    pass(&mut reconciler);
    stage.upstream.take_requests();
    let mut passes_with_looks = 0;
    for _ in 0..150 {
        stage.forward(1_000);
        passes_with_looks += usize::from(pass(&mut reconciler).observed > 0);
    }
    assert!((3..=40).contains(&passes_with_looks), "{passes_with_looks}");
    let ids: Vec<String> = (0..2_000).map(|n| format!("a{n}")).collect();
    let runs = |id: &&String| stage.order(id).status == Status::Processing;
    let missing = ids.iter().find(runs).unwrap();
    let mut model = stage.upstream.model.borrow_mut();
    model.forget_everything();
    for id in ids.iter().filter(|id| *id != missing) {
        model.start(id, stage.clock.now(), &mut |below| below - 1);
    }
    drop(model);
    let mut passes = 0;
    while pass(&mut reconciler).missed == 0 {
        stage.forward(1_000);
        passes += 1;
        assert!(passes < 200, "it is looked at");
    }
    stage.forward(1_000);
    assert!(pass(&mut reconciler).observed > 0, "again, at once");
    assert_eq!(stage.reason(missing), Some(Reason::ProcessLost));
}

/// A stage with processes of twenty seconds, as is known, and a reconciler that has just begun.
fn twenty_seconds(orders: usize) -> (Stage, Reconciler<InMemory, ManualClock>) {
    let stage = Stage::new(1_000);
    let twenty = Duration::from_secs(20);
    stage.has_learned(lasting(std::iter::repeat_n(twenty, 500)));
    stage.create_many(orders);
    pass(&mut stage.reconciler());
    stage.forward(1_000);
    stage.upstream.take_requests();
    let reconciler = stage.reconciler();
    (stage, reconciler)
}

#[test]
fn an_order_just_looked_up_is_left_alone_until_its_process_may_have_ended() {
    let (stage, mut reconciler) = twenty_seconds(20);
    assert_eq!(
        pass(&mut reconciler).observed,
        20,
        "nothing is known of them"
    );
    for _ in 0..3 {
        stage.forward(1_000);
        assert_eq!(pass(&mut reconciler).observed, 0);
    }
}

#[test]
fn an_order_that_needs_looking_at_is_looked_at_whenever_looks_are_made() {
    let (stage, mut reconciler) = twenty_seconds(20);
    stage.upstream.look_fate.set(Fate::Odd);
    assert_eq!(pass(&mut reconciler).flagged, 20);
    assert_eq!(stage.reason("a7"), Some(Reason::UnknownStatus));
    stage.upstream.look_fate.set(Fate::Answered);
    for _ in 0..4 {
        stage.forward(1_000);
        pass(&mut reconciler);
    }
    assert_eq!(stage.reason("a7"), None);
}

#[test]
fn it_is_told_when_the_upstream_is_looked_at_next() {
    let (stage, mut reconciler) = twenty_seconds(20);
    pass(&mut reconciler);
    let next_look_at = ready(stage.store.heartbeat())
        .unwrap()
        .next_look_at
        .unwrap();
    let pause = next_look_at.since(stage.clock.now());
    let range = Duration::from_millis(3_500)..Duration::from_millis(4_500);
    assert!(
        range.contains(&pause),
        "a fifth of what they take: {pause:?}"
    );
}

#[test]
fn what_a_list_contradicts_itself_about_is_looked_up_and_what_it_repeats_is_not() {
    for (fate, look_ups) in [(Fate::Contradictory, 50), (Fate::Twice, 0)] {
        let stage = Stage::new(1);
        stage.create_many(50);
        let mut reconciler = stage.reconciler();
        pass(&mut reconciler);
        stage.upstream.list_fate.set(Some(fate));
        stage.upstream.take_requests();
        stage.forward(1_000);
        let report = pass(&mut reconciler);
        assert_eq!((report.observed, report.missed), (50, 0));
        assert_eq!((report.settled, report.flagged), (50, 0), "{report}");
        let requests = stage.upstream.take_requests();
        assert_eq!(requests[0], "list");
        assert_eq!(requests.len() - 1, look_ups, "{fate:?}");
    }
}

#[test]
fn orders_that_a_list_did_not_tell_of_are_looked_up_five_hundred_in_a_pass() {
    for (orders, looked_up) in [(50, 25), (1_200, 500)] {
        let (stage, mut reconciler) = twenty_seconds(orders);
        stage.upstream.list_fate.set(Some(Fate::Lost));
        pass(&mut reconciler);
        let requests = stage.upstream.take_requests();
        assert_eq!(requests[0], "list");
        assert_eq!(requests.len(), 1 + looked_up, "those it told of are known");
    }
}

#[test]
fn orders_were_all_seen_only_when_every_one_was() {
    let (stage, mut reconciler) = twenty_seconds(50);
    let seen_at = || ready(stage.store.heartbeat()).unwrap().last_seen_at;
    let before = seen_at();
    stage.upstream.list_fate.set(Some(Fate::Lost));
    stage.upstream.look_fate.set(Fate::Lost);
    pass(&mut reconciler);
    assert_eq!(seen_at(), before, "half of them");
    stage.upstream.list_fate.set(Some(Fate::Answered));
    stage.upstream.look_fate.set(Fate::Answered);
    stage.forward(1_000);
    // What was not seen is looked at again at once.
    let mut passes = 0;
    while pass(&mut reconciler).observed == 0 {
        stage.forward(1_000);
        passes += 1;
        assert!(passes < 10);
    }
    let looked_at = stage.clock.now();
    stage.forward(5_000);
    pass(&mut reconciler);
    assert!(seen_at() >= Some(looked_at));
}

#[test]
fn a_look_up_without_an_answer_leaves_not_all_seen() {
    for lost in [None, Some("a3".to_owned())] {
        let (stage, mut reconciler) = twenty_seconds(5);
        let is_seen = lost.is_none();
        stage.upstream.lost.borrow_mut().extend(lost);
        pass(&mut reconciler);
        let seen_at = ready(stage.store.heartbeat()).unwrap().last_seen_at;
        assert_eq!(seen_at == Some(stage.clock.now()), is_seen, "{seen_at:?}");
    }
}

#[test]
fn it_is_learned_how_long_processes_take() {
    let stage = Stage::new(4);
    stage.create_many(100);
    let mut reconciler = stage.reconciler();
    while stage.count(Status::Created) + stage.count(Status::Processing) > 0 {
        pass(&mut reconciler);
        stage.forward(1_000);
    }
    stage.forward(5_000);
    pass(&mut reconciler);
    let durations = ready(stage.store.heartbeat()).unwrap().learned.durations;
    let range = Duration::from_millis(800)..Duration::from_millis(3_000);
    let mean = durations.mean().unwrap();
    assert!(range.contains(&mean), "{mean:?}");
    assert!(durations.longest() < Duration::from_secs(5));
}

#[test]
fn a_restart_that_look_ups_told_of_leaves_the_processes_that_they_found() {
    let stage = forgotten(15, LostProcess::Hold);
    let now = stage.clock.now();
    let draw = &mut |below: u64| below - 1;
    for id in ["a0", "a1", "a2"] {
        stage.upstream.model.borrow_mut().start(id, now, draw);
    }
    pass(&mut stage.old_reconciler());
    assert!(!stage.upstream.take_requests().contains(&"list".to_owned()));
    let lives = ready(stage.store.heartbeat()).unwrap().learned.lives;
    assert_eq!((lives.ended(), lives.processes()), (1, Some(3)));
}

#[test]
fn while_nothing_can_be_recorded_the_upstream_is_not_asked_all_the_time() {
    let mut stage = Stage::new(20);
    let disk = stage.on_a_disk();
    stage.has_learned(lasting((0..600).map(Duration::from_secs)));
    stage.create_many(2_000);
    let mut reconciler = stage.reconciler();
    pass(&mut reconciler);
    stage.forward(100_000);
    stage.upstream.take_requests();
    disk.is_full.store(true, Ordering::Relaxed);
    for _ in 0..20 {
        block_on(reconciler.pass(&Stop::default())).unwrap_err();
        stage.forward(1_000);
    }
    let asked = stage.upstream.take_requests();
    assert!((1..=5).contains(&asked.len()), "{asked:?}");
    assert_eq!(stage.count(Status::Processing), 2_000);
    disk.is_full.store(false, Ordering::Relaxed);
    for _ in 0..62 {
        pass(&mut reconciler);
        stage.forward(1_000);
    }
    assert_eq!(stage.count(Status::Processing), 0);
}
