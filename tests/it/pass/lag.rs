//! Reads that lag behind, and two upstreams behind one address.

use crate::world::ready;
use order_service::reconciler::run_once;
use order_service::simulator::model::Model;

use super::looks::lasting;
use super::*;

/// Passes, one a second, until so much time has passed, or at the end of a minute in which all orders were
/// settled. Returns how many processes were missed.
fn passes(
    stage: &Stage,
    reconciler: &mut Reconciler<InMemory, ManualClock>,
    seconds: i64,
) -> usize {
    let mut missed = 0;
    for second in 0..seconds {
        if second % 60 == 0 && stage.has_settled_all() {
            break;
        }
        missed += pass(reconciler).missed;
        stage.forward(1_000);
    }
    missed
}

/// A stage with the default policy, and orders that have just been started.
fn started(orders: usize, max_duration_secs: u32) -> (Stage, Reconciler<InMemory, ManualClock>) {
    started_under(LostProcess::Restart, orders, max_duration_secs)
}

fn started_under(
    policy: LostProcess,
    orders: usize,
    max_duration_secs: u32,
) -> (Stage, Reconciler<InMemory, ManualClock>) {
    let mut stage = Stage::new(max_duration_secs);
    stage.settings.lost_process = policy;
    let ten_minutes = (0..600).map(Duration::from_secs);
    stage.has_learned(lasting(ten_minutes));
    stage.create_many(orders);
    let mut reconciler = stage.reconciler();
    assert_eq!(pass(&mut reconciler).started, orders);
    (stage, reconciler)
}

fn starts(stage: &Stage, id: &str) -> usize {
    let start = format!("start {id}");
    let requests = stage.upstream.requests.borrow();
    requests.iter().filter(|request| **request == start).count()
}

#[test]
fn reads_that_lag_by_one_request_timeout_miss_no_process_and_no_life_ends() {
    for orders in [3, 50] {
        let (stage, mut reconciler) = started(orders, 20);
        stage.upstream.lag.set(5_000);
        // Also to a reconciler that takes over.
        assert_eq!(passes(&stage, &mut reconciler, 2), 0);
        let mut reconciler = stage.reconciler();
        assert_eq!(passes(&stage, &mut reconciler, 100), 0);
        assert_eq!(stage.count(Status::Processing), 0);
        for n in 0..orders {
            assert_eq!(starts(&stage, &format!("a{n}")), 1);
        }
        let lives = ready(stage.store.heartbeat()).unwrap().learned.lives;
        assert_eq!(lives.ended(), 0);
    }
}

#[test]
fn processes_that_were_started_just_now_neither_make_a_restart_nor_hide_one() {
    let mut stage = Stage::new(100_000);
    stage.settings.request_timeout = Duration::from_secs(30);
    let create = |orders: std::ops::Range<u32>| {
        for n in orders {
            stage.create(&format!("a{n}"));
        }
    };
    create(0..12);
    let mut reconciler = stage.reconciler();
    let ended = || {
        ready(stage.store.heartbeat())
            .unwrap()
            .learned
            .lives
            .ended()
    };
    passes(&stage, &mut reconciler, 40);
    create(12..42);
    assert_eq!(pass(&mut reconciler).started, 30);
    // Thirty of 42 are absent, and none of twelve.
    stage.upstream.lag.set(20_000);
    stage.forward(10_000);
    let report = pass(&mut reconciler);
    assert_eq!((report.observed, report.missed, ended()), (42, 0, 0));
    assert!(report.is_too_soon);
    // Twelve of 42 are missing, and all of twelve.
    let mut model = stage.upstream.model.borrow_mut();
    model.forget_everything();
    for n in 12..42 {
        model.start(&format!("a{n}"), stage.clock.now(), &mut |below| below - 1);
    }
    drop(model);
    stage.upstream.lag.set(0);
    stage.forward(10_000);
    let report = pass(&mut reconciler);
    assert_eq!((report.observed, report.missed, ended()), (42, 12, 1));
    assert!(!report.is_too_soon);
}

#[test]
fn one_run_alone_waits_for_an_absence_to_count_and_the_next_one_starts_again() {
    let (stage, _) = started(3, 1_000);
    let once = || {
        let began = stage.clock.uptime();
        assert!(block_on(run_once(stage.reconciler(), &Stop::default())).unwrap());
        stage.clock.uptime() - began
    };
    stage.forward(60_000);
    assert_eq!(once(), Duration::ZERO, "nothing is missing");
    stage.upstream.model.borrow_mut().forget_everything();
    assert_eq!(once(), stage.settings.request_timeout);
    assert_eq!(stage.reason("a0"), Some(Reason::ProcessLost));
    assert_eq!(once(), stage.settings.request_timeout);
    let order = stage.order("a0");
    assert_eq!((order.starts, order.attention), (2, None));
}

#[test]
fn reads_that_lag_longer_cost_refused_starts_and_no_second_process() {
    let (stage, mut reconciler) = started(3, 600);
    stage.upstream.lag.set(30_000);
    assert_eq!(passes(&stage, &mut reconciler, 25), 3);
    assert_eq!(stage.reason("a0"), Some(Reason::StartRefused));
    assert!(starts(&stage, "a0") > 1);
    passes(&stage, &mut reconciler, 700);
    for n in 0..3 {
        let order = stage.order(&format!("a{n}"));
        assert!(order.status.is_settled());
        assert_eq!(order.starts, 1, "the upstream has refused the others");
    }
}

/// The number of orders whose status is not that of their process.
fn disagreeing(stage: &Stage, orders: usize) -> usize {
    let model = stage.upstream.model.borrow();
    let disagrees = |n: &usize| {
        let order = stage.order(&format!("a{n}"));
        let status = match model.look_up(order.id.as_str(), stage.clock.now()) {
            Some("SUCCEEDED") => Status::Fulfilled,
            Some("FAILED") => Status::Failed,
            _ => Status::Processing,
        };
        order.status != status
    };
    (0..orders).filter(disagrees).count()
}

#[test]
fn what_two_upstreams_or_reads_that_lag_longer_cost_under_the_other_policies() {
    for policy in [LostProcess::Hold, LostProcess::Fail] {
        // Not seen yet is not lost.
        let (stage, mut reconciler) = started_under(policy, 3, 600);
        stage.upstream.lag.set(30_000);
        assert_eq!(passes(&stage, &mut reconciler, 25), 3);
        assert_eq!(stage.reason("a0"), Some(Reason::ProcessLost));
        passes(&stage, &mut reconciler, 1_000);
        assert_eq!(disagreeing(&stage, 3), 0, "{policy:?}");
        let (stage, mut reconciler) = started_under(policy, 50, 600);
        *stage.upstream.other.borrow_mut() = Some(Model::new(600));
        passes(&stage, &mut reconciler, 1_500);
        if !stage.upstream.other.borrow().as_ref().unwrap().is_empty() {
            stage.upstream.swap();
        }
        assert!(stage.upstream.other.borrow().as_ref().unwrap().is_empty());
        assert_eq!(stage.upstream.starts(), 50, "{policy:?}");
        let is_failed = policy == LostProcess::Fail;
        assert_eq!(disagreeing(&stage, 50) > 0, is_failed, "{policy:?}");
    }
}

#[test]
fn two_upstreams_behind_one_address_may_each_have_a_process_and_both_are_counted() {
    for orders in [3, 50] {
        let (stage, mut reconciler) = started(orders, 600);
        *stage.upstream.other.borrow_mut() = Some(Model::new(600));
        passes(&stage, &mut reconciler, 1_500);
        let mut twice = 0;
        for n in 0..orders {
            let order = stage.order(&format!("a{n}"));
            assert!(order.status.is_settled(), "{order:?}");
            let other = stage.upstream.other.borrow();
            let [one, two] = [&*stage.upstream.model.borrow(), other.as_ref().unwrap()]
                .map(|model| model.look_up(order.id.as_str(), stage.clock.now()));
            let processes = usize::from(one.is_some()) + usize::from(two.is_some());
            assert_eq!(order.starts as usize, processes, "{order:?}");
            twice += usize::from(processes == 2);
        }
        let lives = ready(stage.store.heartbeat()).unwrap().learned.lives;
        assert!(twice > 0);
        assert_eq!(lives.ended() > 0, orders > 10, "a restart seems to be one");
    }
}
