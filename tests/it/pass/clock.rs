//! Passes with a clock that is set back or forward by seconds or hours, within a run or between two.

use std::cell::RefCell;
use std::sync::Once;

use order_service::reconciler::run_once;
use order_service::reconciler_state::{LeaderState, LeaderStatus};

use super::*;

const SECOND: i64 = 1_000;
const HOUR: i64 = 3_600_000;

/// Clock steps, in milliseconds.
const STEPS: [i64; 6] = [-6 * HOUR, -HOUR, -10 * SECOND, 10 * SECOND, HOUR, 6 * HOUR];

thread_local! {
    /// The log lines of this thread, taken from the first call of [`take_log`] on.
    static LOGGED: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

struct ThreadLog;

impl log::Log for ThreadLog {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Info
    }

    fn log(&self, record: &log::Record<'_>) {
        LOGGED.with_borrow_mut(|lines| lines.push(record.args().to_string()));
    }

    fn flush(&self) {}
}

/// Returns the log lines of this thread since the last call.
pub(super) fn take_log() -> Vec<String> {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        log::set_logger(&ThreadLog).expect("there is no other logger");
        log::set_max_level(log::LevelFilter::Info);
    });
    LOGGED.take()
}

impl Harness {
    fn step(&self, by: i64) {
        self.clock.step(Timestamp(self.clock.now().0 + by));
    }

    fn health(&self) -> LeaderStatus {
        self.heartbeat().leader_status(self.clock.now())
    }
}

/// Calls `check` for each step, with the same reconciler after it and with a new one.
fn each_way(check: impl Fn(i64, bool)) {
    for by in STEPS {
        check(by, false);
        check(by, true);
    }
}

#[test]
fn a_process_that_was_confirmed_ahead_of_the_clock_is_missed_as_any_other_is() {
    each_way(|by, is_restarted| {
        let mut harness = Harness::new(100_000);
        harness.settings.lost_process = LostProcess::Restart;
        harness.create("a1");
        let mut reconciler = harness.reconciler();
        pass(&mut reconciler);
        assert_eq!(harness.order("a1").status, Status::Processing);
        harness.step(by);
        if is_restarted {
            reconciler = harness.reconciler();
        }
        harness.forward(SECOND);
        pass(&mut reconciler);
        harness.upstream.model.borrow_mut().forget_everything();
        harness.upstream.take_requests();
        for _ in 0..10 {
            harness.forward(SECOND);
            pass(&mut reconciler);
        }
        let starts = harness.upstream.starts_of("a1");
        assert_eq!(starts, 1, "{by} {is_restarted}");
    });
}

#[test]
fn no_clock_step_causes_a_second_start_before_the_timeout_of_the_first() {
    each_way(|by, is_restarted| {
        let harness = Harness::new(100_000);
        harness.create("a1");
        let mut reconciler = harness.reconciler();
        harness.upstream.start_fault.set(Fault::Lost);
        pass(&mut reconciler);
        harness.upstream.start_fault.set(Fault::Answered);
        assert_eq!(harness.upstream.take_requests(), ["start a1"]);
        harness.step(by);
        if is_restarted {
            reconciler = harness.reconciler();
        }
        let began = harness.clock.uptime();
        let repeated_after = loop {
            pass(&mut reconciler);
            let passed = harness.clock.uptime() - began;
            if harness.order("a1").status == Status::Processing {
                break passed;
            }
            assert!(passed < Duration::from_secs(600), "{by} {is_restarted}");
            harness.forward(SECOND);
        };
        assert!(
            repeated_after >= harness.settings.request_timeout,
            "{by} {is_restarted}: {repeated_after:?}"
        );
        // A backoff is capped at the longest, which is much longer than the first.
        let most = if by < -10 * SECOND { 302 } else { 20 };
        assert!(repeated_after <= Duration::from_secs(most));
    });
}

#[test]
fn no_order_waits_for_a_clock_that_was_set_back_to_catch_up() {
    each_way(|by, is_restarted| {
        let harness = Harness::new(100_000);
        harness.create("a1");
        let mut reconciler = harness.reconciler();
        harness.upstream.start_fault.set(Fault::Status(400));
        passes(&harness, &mut reconciler, 40);
        assert_eq!(harness.reason("a1"), Some(Reason::StartRefused));
        harness.step(by);
        if is_restarted {
            reconciler = harness.reconciler();
        }
        harness.upstream.start_fault.set(Fault::Answered);
        let began = harness.clock.uptime();
        while harness.order("a1").status == Status::Created {
            harness.forward(SECOND);
            pass(&mut reconciler);
            let passed = harness.clock.uptime() - began;
            assert!(passed < Duration::from_secs(302), "{by} {is_restarted}");
        }
    });
}

#[test]
fn health_depends_on_completed_passes_and_not_on_times_in_the_future() {
    for by in STEPS {
        let harness = Harness::new(100_000);
        harness.create("a1");
        let mut reconciler = harness.reconciler();
        pass(&mut reconciler);
        assert_eq!(harness.health().problem, None);
        harness.step(by);
        let health = harness.health();
        // Ten seconds forward, a pass may still be running.
        let is_known = by != 10 * SECOND;
        assert_eq!(health.status == LeaderState::Overdue, is_known, "{by}");
        assert!(
            health
                .since
                .is_none_or(|since| since <= harness.clock.now())
        );
        pass(&mut reconciler);
        assert_eq!(harness.health().problem, None, "{by}");
        let heartbeat = harness.heartbeat();
        let past = [heartbeat.leader_since, heartbeat.last_pass_at];
        assert!(past.iter().all(|at| *at <= Some(harness.clock.now())));
        let next = heartbeat.next_poll_at.max(heartbeat.next_pass_at).unwrap();
        assert!(next.since(harness.clock.now()) <= Duration::from_secs(60));
    }
}

#[test]
fn a_single_pass_waits_for_the_timeout_of_an_earlier_start_and_then_repeats_it() {
    for (fault, requests) in [
        (Fault::Lost, ["look_up a1", "start a1"].as_slice()),
        (Fault::AnswerLost, &["look_up a1"]),
    ] {
        let harness = Harness::new(100_000);
        harness.create("a1");
        harness.upstream.start_fault.set(fault);
        let once = || block_on(run_once(harness.reconciler(), &Stop::default())).unwrap();
        let began = harness.clock.uptime();
        once();
        assert_eq!(harness.clock.uptime(), began, "the pass does not wait");
        assert_eq!(harness.upstream.take_requests(), ["start a1"]);
        harness.upstream.start_fault.set(Fault::Answered);
        harness.step(6 * HOUR);
        assert_eq!(once(), Some(true));
        assert_eq!(harness.upstream.take_requests(), requests, "{fault:?}");
        let waited = harness.clock.uptime() - began;
        assert_eq!(waited, harness.settings.request_timeout);
        assert_eq!(harness.order("a1").status, Status::Processing);
    }
}

#[test]
fn a_single_pass_that_is_stopped_while_it_waits_has_left_orders_untried() {
    let harness = Harness::new(100_000);
    harness.create("a1");
    harness.upstream.start_fault.set(Fault::Lost);
    let once = |stop: &Stop| block_on(run_once(harness.reconciler(), stop)).unwrap();
    once(&Stop::default());
    harness.upstream.take_requests();
    let stop = Stop::default();
    stop.requested.cancel();
    assert_eq!(once(&stop), None);
    assert!(harness.upstream.take_requests().is_empty());
}

#[test]
fn orders_that_wait_are_logged_within_a_minute_wherever_the_clock_is_set() {
    for by in STEPS {
        let mut harness = Harness::new(100_000);
        harness.settings.start_rate = Some(0.1);
        harness.create_many(20);
        let mut reconciler = harness.reconciler();
        let mut is_logged_within = |seconds| {
            let until = harness.clock.uptime() + Duration::from_secs(seconds);
            take_log();
            while harness.clock.uptime() < until {
                harness.forward(SECOND);
                pass(&mut reconciler);
            }
            let lines = take_log();
            lines.iter().any(|line| line.starts_with("orders wait "))
        };
        assert!(is_logged_within(1), "{by}");
        assert!(!is_logged_within(10), "{by}");
        harness.step(by);
        assert!(is_logged_within(60), "{by}");
    }
}
