//! Passes while the upstream is down, rests, or answers only some of what it is asked.

use super::*;
use crate::world::ready;

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
    stage.create_many(50);
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
        let mut reconciler = stage.old_reconciler();
        let mut missed = 0;
        for _ in 0..30 {
            missed += pass(&mut reconciler).missed;
            stage.forward(1_000);
        }
        let is_settled = stage.count(Status::Failed) == 50;
        assert_eq!(missed, if is_settled { 0 } else { 50 }, "each once");
        let lives = ready(stage.store.heartbeat()).unwrap().learned.lives;
        assert_eq!(lives.ended(), 1, "{policy:?}, {look_fate:?}");
    }
}

#[test]
fn an_upstream_that_is_down_is_no_fault_of_an_order_and_a_silent_look_up_is() {
    let stage = Stage::new(100);
    for id in ["a0", "a1"] {
        stage.create(id);
    }
    let mut reconciler = stage.reconciler();
    pass(&mut reconciler);
    stage.forward(1_000);
    stage.upstream.look_fate.set(Fate::Refused);
    pass(&mut reconciler);
    let delayed = || {
        let open = ready(stage.store.watched()).unwrap();
        let delayed = open.orders().filter(|order| order.attempts > 0);
        delayed.count()
    };
    assert_eq!(delayed(), 0, "it is down");
    stage.upstream.look_fate.set(Fate::Answered);
    stage.upstream.lost.borrow_mut().push("a1".to_owned());
    stage.forward(1_000);
    pass(&mut reconciler);
    stage.forward(1_000);
    pass(&mut reconciler);
    assert_eq!(delayed(), 1);
    assert_eq!(stage.reason("a1"), Some(Reason::UpstreamUnreachable));
    assert_eq!(stage.reason("a0"), None);
}

#[test]
fn each_refusal_in_a_row_doubles_the_wait() {
    let stage = Stage::new(100);
    stage.create("a1");
    stage.upstream.start_fate.set(Fate::Status(400));
    let mut reconciler = stage.reconciler();
    for full in [1, 2, 4, 8, 16] {
        pass(&mut reconciler);
        let next_attempt_at = stage
            .order("a1")
            .attention
            .unwrap()
            .next_attempt_at
            .unwrap();
        let wait = next_attempt_at.since(stage.clock.now());
        let range = Duration::from_secs(full) / 2..=Duration::from_secs(full);
        assert!(range.contains(&wait), "{full} s: {wait:?}");
        stage.clock.set(next_attempt_at);
    }
}

#[test]
fn starts_that_fail_for_an_hour_turn_no_order_into_an_operators_case() {
    let mut stage = Stage::new(100);
    stage.settings.max_in_flight = 8;
    stage.create_many(20);
    let mut reconciler = stage.reconciler();
    stage.upstream.start_fate.set(Fate::Status(503));
    let begun = stage.clock.now();
    while stage.clock.now().since(begun) < Duration::from_secs(3_600) {
        pass(&mut reconciler);
        stage.forward(4_000);
    }
    for n in 0..20 {
        let reason = stage.reason(&format!("a{n}"));
        assert!(
            matches!(reason, None | Some(Reason::UpstreamUnreachable)),
            "{reason:?}"
        );
    }
    stage.upstream.start_fate.set(Fate::Answered);
    for _ in 0..400 {
        pass(&mut reconciler);
        stage.forward(1_000);
    }
    for n in 0..20 {
        let order = stage.order(&format!("a{n}"));
        assert_eq!((order.starts, order.attention), (1, None));
    }
}

#[test]
fn an_order_that_may_be_started_once_is_held_after_a_server_error() {
    for status in [500, 502] {
        let mut stage = Stage::new(100);
        stage.settings.max_starts = 1;
        stage.create("a1");
        let mut reconciler = stage.reconciler();
        stage.upstream.start_fate.set(Fate::Status(status));
        for _ in 0..60 {
            pass(&mut reconciler);
            stage.forward(1_000);
        }
        let order = stage.order("a1");
        assert_eq!(order.attention.map(|of| of.reason), Some(Reason::MaxStarts));
        assert_eq!((order.status, order.starts), (Status::Created, 1));
        let requests = stage.upstream.take_requests();
        let starts = requests.iter().filter(|request| *request == "start a1");
        assert_eq!(starts.count(), 1, "{requests:?}");
    }
}

#[test]
fn a_server_error_counts_as_a_start_if_a_single_process_was_forgotten_since() {
    for (has_forgotten, is_taken_over, starts) in
        [(false, false, 1), (true, false, 2), (true, true, 2)]
    {
        let mut stage = Stage::new(100_000);
        stage.settings.lost_process = LostProcess::Restart;
        stage.create("a1");
        let mut reconciler = stage.reconciler();
        pass(&mut reconciler);
        stage.forward(60_000);
        stage.create("b1");
        stage.upstream.start_fate.set(Fate::Status(502));
        assert_eq!(pass(&mut reconciler).unanswered, 1);
        stage.upstream.start_fate.set(Fate::Answered);
        if has_forgotten {
            stage.upstream.model.borrow_mut().forget_everything();
        }
        let mut missed = 0;
        for _ in 0..60 {
            stage.forward(1_000);
            let report = pass(&mut reconciler);
            missed += report.missed;
            if report.missed > 0 {
                assert_eq!(
                    stage.order("b1").status,
                    Status::Created,
                    "not looked up yet"
                );
                if is_taken_over {
                    reconciler = stage.reconciler();
                }
            }
        }
        assert_eq!(missed, usize::from(has_forgotten));
        let order = stage.order("b1");
        assert_eq!((order.status, order.starts), (Status::Processing, starts));
        assert_eq!(
            ready(stage.store.heartbeat())
                .unwrap()
                .learned
                .lives
                .ended(),
            0
        );
    }
}
