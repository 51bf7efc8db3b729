//! Passes while the upstream is down, rests, or answers only some of what it is asked.

use order_service::pace::Durations;

use super::*;

#[test]
fn an_upstream_that_asks_for_rest_is_asked_nothing_until_it_is_over() {
    let stage = Stage::new(100);
    for id in ["a1", "a2"] {
        stage.create(id);
    }
    let mut reconciler = stage.reconciler();
    stage.upstream.start_fate.set(Fate::Rest(30));
    pass(&mut reconciler);
    assert_eq!(stage.upstream.take_requests(), ["start a1"]);
    stage.upstream.start_fate.set(Fate::Answered);
    for _ in 0..29 {
        stage.forward(1_000);
        assert!(pass(&mut reconciler).unreachable);
        assert!(stage.upstream.take_requests().is_empty());
    }
    stage.forward(1_000);
    assert!(!pass(&mut reconciler).unreachable);
    assert_eq!(stage.count(Status::Processing), 2);
}

#[test]
fn an_upstream_that_is_down_is_not_probed_more_often_because_orders_come_in() {
    let stage = Stage::new(100);
    stage.create("a1");
    let mut reconciler = stage.reconciler();
    stage.upstream.start_fate.set(Fate::Refused);
    stage.upstream.look_fate.set(Fate::Refused);
    pass(&mut reconciler);
    stage.forward(1_000);
    pass(&mut reconciler);
    assert_eq!(stage.upstream.take_requests(), ["start a1", "look a1"]);
    for n in 2..10 {
        stage.forward(100);
        stage.create(&format!("a{n}"));
        assert!(pass(&mut reconciler).unreachable);
    }
    assert!(stage.upstream.take_requests().is_empty());
    stage.forward(100);
    pass(&mut reconciler);
    assert_eq!(stage.upstream.take_requests(), ["look a2"]);
    // A clock that was set back does not make the next one wait until it has caught up.
    stage.forward(-3_600_000);
    pass(&mut reconciler);
    assert_eq!(stage.upstream.take_requests(), ["look a3"]);
}

#[test]
fn an_upstream_whose_look_ups_never_work_is_observed_by_its_list() {
    let stage = Stage::new(3);
    for n in 0..50 {
        stage.create(&format!("a{n}"));
    }
    let mut reconciler = stage.reconciler();
    pass(&mut reconciler);
    stage.upstream.look_fate.set(Fate::Refused);
    stage.upstream.list_fate.set(Some(Fate::Refused));
    stage.forward(5_000);
    pass(&mut reconciler);
    assert_eq!(
        stage.count(Status::Processing),
        25,
        "the half that was told"
    );
    stage.upstream.list_fate.set(Some(Fate::Answered));
    stage.upstream.take_requests();
    let mut passes = 0;
    while stage.count(Status::Processing) > 0 {
        stage.forward(1_000);
        pass(&mut reconciler);
        passes += 1;
        assert!(passes < 20, "{:?}", stage.upstream.take_requests());
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
    let mut durations = Durations::default();
    for _ in 0..1_000 {
        durations.outlived(Duration::ZERO, Duration::from_secs(600));
    }
    stage.has_learned(Learned {
        durations,
        ..Learned::default()
    });
    for n in 0..2_000 {
        stage.create(&format!("a{n}"));
    }
    let mut reconciler = stage.reconciler();
    pass(&mut reconciler);
    stage.upstream.take_requests();
    let mut passes_with_looks = 0;
    for _ in 0..150 {
        stage.forward(1_000);
        passes_with_looks += usize::from(pass(&mut reconciler).observed > 0);
    }
    assert!((1..=4).contains(&passes_with_looks), "{passes_with_looks}");
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

#[test]
fn one_restart_of_the_upstream_is_counted_once_whatever_becomes_of_its_orders() {
    use LostProcess::{Fail, Hold, Restart};
    for (policy, look_fate) in [
        (Hold, Fate::Answered),
        (Restart, Fate::Answered),
        (Fail, Fate::Answered),
        // None can be confirmed to be missing.
        (Fail, Fate::Lost),
        (Hold, Fate::Lost),
    ] {
        let stage = forgotten(50, policy);
        stage.upstream.list_fate.set(Some(Fate::Answered));
        stage.upstream.look_fate.set(look_fate);
        let mut reconciler = stage.reconciler();
        for _ in 0..30 {
            pass(&mut reconciler);
            stage.forward(1_000);
        }
        let lives = stage.store.heartbeat().unwrap().learned.lives;
        assert_eq!(lives.ended(), 1, "{policy:?}, {look_fate:?}");
    }
}
