//! Reads that lag behind, and two upstreams behind one address.

use order_service::reconciler::run_once;
use order_service::simulator::model::Model;

use super::polling::lasting;
use super::*;

/// Returns a harness with the default policy, and orders that have just been started.
fn started(orders: usize, max_duration_secs: u32) -> (Harness, Reconciler<InMemory, ManualClock>) {
    started_under(LostProcess::Restart, orders, max_duration_secs)
}

fn started_under(
    policy: LostProcess,
    orders: usize,
    max_duration_secs: u32,
) -> (Harness, Reconciler<InMemory, ManualClock>) {
    let mut harness = Harness::new(max_duration_secs);
    harness.settings.lost_process = policy;
    let ten_minutes = (0..600).map(Duration::from_secs);
    harness.has_learned(lasting(ten_minutes));
    harness.create_many(orders);
    let mut reconciler = harness.reconciler();
    assert_eq!(pass(&mut reconciler).started, orders);
    (harness, reconciler)
}

#[test]
fn reads_that_lag_by_one_request_timeout_cause_no_missing_process_and_no_restart() {
    for orders in [3, 50] {
        let (harness, mut reconciler) = started(orders, 20);
        harness.upstream.lag.set(5_000);
        // This holds for a reconciler that takes over, too.
        assert_eq!(passes(&harness, &mut reconciler, 2), 0);
        let mut reconciler = harness.reconciler();
        assert_eq!(passes(&harness, &mut reconciler, 100), 0);
        assert_eq!(harness.count(Status::Processing), 0);
        for n in 0..orders {
            assert_eq!(harness.upstream.starts_of(&format!("a{n}")), 1);
        }
        assert_eq!(harness.incarnations().restarts(), 0);
    }
}

#[test]
fn recently_started_processes_neither_count_as_a_restart_nor_hide_one() {
    let mut harness = Harness::new(100_000);
    harness.settings.request_timeout = Duration::from_secs(30);
    harness.create_many(12);
    let mut reconciler = harness.reconciler();
    let ended = || harness.incarnations().restarts();
    passes(&harness, &mut reconciler, 40);
    for n in 12..42 {
        harness.create(&format!("a{n}"));
    }
    assert_eq!(pass(&mut reconciler).started, 30);
    // Thirty of 42 are absent, and none of twelve.
    harness.upstream.lag.set(20_000);
    harness.forward(10_000);
    let report = pass(&mut reconciler);
    assert_eq!((report.observed, report.missed, ended()), (42, 0, 0));
    assert!(report.is_absence_early);
    // Twelve of 42 are missing, and all of twelve.
    harness.upstream.model.borrow_mut().forget_everything();
    for n in 12..42 {
        harness.upstream.begin(&format!("a{n}"));
    }
    harness.upstream.lag.set(0);
    harness.forward(10_000);
    let report = pass(&mut reconciler);
    assert_eq!((report.observed, report.missed, ended()), (42, 12, 1));
    assert!(!report.is_absence_early);
}

#[test]
fn a_single_pass_waits_until_an_absence_counts_and_the_next_one_restarts() {
    let (harness, _) = started(3, 1_000);
    let once = || {
        let began = harness.clock.uptime();
        let ended = block_on(run_once(harness.reconciler(), &Stop::default()));
        assert_eq!(ended.unwrap(), Some(true));
        harness.clock.uptime() - began
    };
    harness.forward(60_000);
    assert_eq!(once(), Duration::ZERO, "nothing is missing");
    harness.upstream.model.borrow_mut().forget_everything();
    assert_eq!(once(), harness.settings.request_timeout);
    assert_eq!(harness.reason("a0"), Some(Reason::ProcessLost));
    assert_eq!(once(), harness.settings.request_timeout);
    let order = harness.order("a0");
    assert_eq!((order.starts, order.attention), (2, None));
}

#[test]
fn reads_that_lag_longer_cost_refused_starts_and_no_second_process() {
    let (harness, mut reconciler) = started(3, 600);
    harness.upstream.lag.set(30_000);
    assert_eq!(passes(&harness, &mut reconciler, 25), 3);
    assert_eq!(harness.reason("a0"), Some(Reason::StartRefused));
    assert!(harness.upstream.starts_of("a0") > 1);
    passes(&harness, &mut reconciler, 700);
    for n in 0..3 {
        let order = harness.order(&format!("a{n}"));
        assert!(order.status.is_settled());
        assert_eq!(order.starts, 1, "the upstream refused the others");
    }
}

/// Returns the number of orders whose status disagrees with their process.
fn disagreeing(harness: &Harness, orders: usize) -> usize {
    let model = harness.upstream.model.borrow();
    let disagrees = |n: &usize| {
        let order = harness.order(&format!("a{n}"));
        let status = match model.look_up(order.id.as_str(), harness.clock.now()) {
            Some("SUCCEEDED") => Status::Fulfilled,
            Some("FAILED") => Status::Failed,
            _ => Status::Processing,
        };
        order.status != status
    };
    (0..orders).filter(disagrees).count()
}

#[test]
fn two_upstreams_or_longer_lags_have_a_known_cost_under_the_other_policies() {
    for policy in [LostProcess::Hold, LostProcess::Fail] {
        // A process that was never seen is not lost.
        let (harness, mut reconciler) = started_under(policy, 3, 600);
        harness.upstream.lag.set(30_000);
        assert_eq!(passes(&harness, &mut reconciler, 25), 3);
        assert_eq!(harness.reason("a0"), Some(Reason::ProcessLost));
        passes(&harness, &mut reconciler, 1_000);
        assert_eq!(disagreeing(&harness, 3), 0, "{policy:?}");
        let (harness, mut reconciler) = started_under(policy, 50, 600);
        *harness.upstream.other.borrow_mut() = Some(Model::new(600));
        passes(&harness, &mut reconciler, 1_500);
        if !harness.upstream.other.borrow().as_ref().unwrap().is_empty() {
            harness.upstream.swap();
        }
        assert!(harness.upstream.other.borrow().as_ref().unwrap().is_empty());
        assert_eq!(harness.upstream.starts(), 50, "{policy:?}");
        let is_failed = policy == LostProcess::Fail;
        assert_eq!(disagreeing(&harness, 50) > 0, is_failed, "{policy:?}");
    }
}

#[test]
fn two_upstreams_behind_one_address_may_each_have_a_process_and_both_are_counted() {
    for orders in [3, 50] {
        let (harness, mut reconciler) = started(orders, 600);
        *harness.upstream.other.borrow_mut() = Some(Model::new(600));
        passes(&harness, &mut reconciler, 1_500);
        let mut twice = 0;
        for n in 0..orders {
            let order = harness.order(&format!("a{n}"));
            assert!(order.status.is_settled(), "{order:?}");
            let other = harness.upstream.other.borrow();
            let [one, two] = [&*harness.upstream.model.borrow(), other.as_ref().unwrap()]
                .map(|model| model.look_up(order.id.as_str(), harness.clock.now()));
            let processes = usize::from(one.is_some()) + usize::from(two.is_some());
            assert_eq!(order.starts as usize, processes, "{order:?}");
            twice += usize::from(processes == 2);
        }
        assert!(twice > 0);
        let seems_restarted = harness.incarnations().restarts() > 0;
        assert_eq!(seems_restarted, orders > 10);
    }
}
