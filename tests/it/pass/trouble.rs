//! Passes while the upstream is down, rests, or answers only some of what it is asked.

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
