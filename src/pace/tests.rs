//! The pace over several runs, requests and restarts.

use super::*;

fn pace(ceiling: f64, learned: LearnedLimits, now: Timestamp) -> Pace {
    Pace::new(ceiling, 8, learned, UpstreamState::Unknown, now)
}

/// Creates a start that was sent at this moment.
fn start(sent_at: Timestamp) -> Call {
    Call {
        kind: RequestKind::Start,
        is_retry: false,
        sent_at,
    }
}

fn no_connection() -> Failure {
    Failure::new("no connection", Cause::NoConnection)
}

#[test]
fn requests_are_limited_and_none_is_sent_while_the_upstream_is_down_or_pauses() {
    let now = Timestamp(1_000);
    let mut limiter = pace(50.0, LearnedLimits::default(), now);
    assert!(limiter.may_send(now, 7) && !limiter.may_send(now, 8));
    let mut failure = Failure::new("answered 503", Cause::ServiceUnavailable);
    failure.retry_after = Some(Duration::from_secs(2));
    assert_eq!(limiter.on_failed(start(now), now, &failure), (true, false));
    assert!((44.0..46.0).contains(&limiter.rate().rate()));
    assert!(!limiter.may_send(now, 0) && limiter.may_send(Timestamp(3_000), 0));
    // Another run keeps to the pause too, but not for ever.
    let mut learned = limiter.learned(now, 0);
    assert_eq!(learned.paused_until, Some(Timestamp(3_000)));
    assert!(!pace(50.0, learned.clone(), now).may_send(Timestamp(2_999), 0));
    learned.paused_until = Some(Timestamp(i64::MAX));
    assert!(pace(50.0, learned, now).may_send(now.after(BACKOFF_MAX), 0));
    let call = start(Timestamp(1_500));
    assert_eq!(
        limiter.on_failed(call, now, &no_connection()),
        (false, true)
    );
    assert!(!limiter.may_send(Timestamp(3_000), 0));
    let at = Timestamp(3_000);
    assert!(limiter.on_answered(start(at), at) && limiter.may_send(at, 0));
}

#[test]
fn throttled_retries_lower_the_rate_also_between_others_that_are_accepted() {
    for retry_after in [None, Some(Duration::ZERO)] {
        let mut limiter = pace(0.0, LearnedLimits::default(), Timestamp(0));
        let throttled = Failure {
            retry_after,
            ..Failure::new("answered 429", Cause::TooManyRequests)
        };
        for at in (0..2_000).step_by(100).map(Timestamp) {
            let retry = Call {
                is_retry: true,
                ..start(at)
            };
            limiter.on_answered(retry, at);
            limiter.on_failed(retry, at, &throttled);
        }
        let rate = limiter.rate().rate();
        assert!(rate < 10.0, "{retry_after:?}: {rate}");
    }
}

#[test]
fn lists_that_are_always_throttled_leave_the_starts_as_they_are() {
    for cause in [Cause::TooManyRequests, Cause::ServiceUnavailable] {
        for retry_after in [None, Some(Duration::from_secs(10))] {
            let mut limiter = pace(0.0, LearnedLimits::default(), Timestamp(0));
            let rate = limiter.rate().rate();
            let throttled = Failure {
                retry_after,
                ..Failure::new("throttled", cause)
            };
            for at in (0..5_400_000).step_by(12_000).map(Timestamp) {
                limiter.on_answered(start(at), at);
                let list = Call {
                    kind: RequestKind::List,
                    ..Call::poll(at)
                };
                assert_eq!(limiter.on_failed(list, at, &throttled), (false, false));
                for _ in 0..2_000 {
                    limiter.on_poll_sent(at);
                    limiter.on_answered(Call::poll(at), at);
                }
                assert_eq!(limiter.next_start_at(at, 0), Some(at));
            }
            assert_eq!(limiter.rate().rate(), rate);
        }
    }
}

#[test]
fn orders_that_alone_are_asked_to_wait_leave_the_rate_as_it_is() {
    let mut limiter = pace(0.0, LearnedLimits::default(), Timestamp(0));
    let rate = limiter.rate().rate();
    let throttled = Failure {
        retry_after: Some(Duration::from_secs(20)),
        ..Failure::new("answered 429", Cause::TooManyRequests)
    };
    for at in (0..200_000).step_by(21_000).map(Timestamp) {
        for _ in 0..5 {
            let retry = Call {
                is_retry: true,
                ..start(at)
            };
            limiter.on_failed(retry, at, &throttled);
        }
        limiter.on_answered(start(at), at);
    }
    assert_eq!(limiter.rate().rate(), rate);
}

#[test]
fn polls_leave_a_quarter_of_the_requests_to_starts() {
    let now = Timestamp(1_000);
    for (max_requests, most) in [(1, 1), (2, 1), (3, 2), (8, 6)] {
        let learned = LearnedLimits::default();
        let limiter = Pace::new(0.0, max_requests, learned, UpstreamState::Unknown, now);
        let polls = (0..max_requests).take_while(|polls| limiter.may_poll(now, *polls, *polls));
        assert_eq!(polls.count(), most, "of {max_requests}");
        assert!(!limiter.may_poll(now, 0, max_requests));
    }
}

#[test]
fn orders_are_staged_ahead_of_free_slots_only_at_a_high_rate() {
    let now = Timestamp(1_000);
    let staged_at_once = |pace: &Pace| (0..).find(|starting| !pace.may_stage(now, *starting));
    let fast = LearnedLimits {
        rate: Some(StartRate::doubled_to(50_000.0, now)),
        ..LearnedLimits::default()
    };
    for (ceiling, expected) in [(3.0, 8), (50.0, 8), (499.0, 8), (1_500.0, 11), (0.0, 16)] {
        let mut limiter = pace(ceiling, fast.clone(), now);
        assert_eq!(staged_at_once(&limiter), Some(expected), "{ceiling}/s");
        limiter.on_failed(start(now), now, &no_connection());
        assert_eq!(staged_at_once(&limiter), Some(0), "it is down");
    }
}

#[test]
fn while_starts_are_in_doubt_one_order_at_a_time_tries() {
    let now = Timestamp(1_000);
    let mut limiter = pace(50.0, LearnedLimits::default(), now);
    for (cause, is_doubt) in [
        (Cause::ServiceUnavailable, true),
        (Cause::Timeout, true),
        (Cause::Unusable, true),
        (Cause::AccessDenied, true),
        (Cause::TooManyRequests, false),
    ] {
        limiter.on_failed(start(now), now, &Failure::new("it failed", cause));
        limiter.on_answered(Call::poll(now), now);
        assert!(limiter.may_stage(now, 0));
        assert_eq!(limiter.may_stage(now, 1), !is_doubt, "{cause:?}");
        limiter.on_answered(start(now), now);
        assert!(limiter.may_stage(now, 7));
    }
}

#[test]
fn after_a_restart_of_the_upstream_fewer_processes_run_at_once_also_in_a_later_run() {
    let now = Timestamp(1_000);
    let mut limiter = pace(50.0, LearnedLimits::default(), now);
    limiter.on_list_complete(100, now, now);
    assert_eq!(limiter.incarnations().processes(), Some(100));
    limiter.on_upstream_restart(0, now);
    let mut limiter = pace(50.0, limiter.learned(now, 0), now);
    assert_eq!(
        (limiter.rate().rate(), limiter.incarnations().restarts()),
        (1.25, 1)
    );
    assert_eq!(limiter.incarnations().processes(), Some(0));
    let reduction = StartLimit::Reduction(ReductionCause::Restart);
    assert_eq!(limiter.limit(0), Some(reduction));
    let window = limiter.incarnations().window().unwrap();
    for seq in 1..window {
        limiter.on_start_accepted(seq as i64, now);
    }
    assert_eq!(limiter.next_start_at(now, 0), Some(now));
    assert_eq!(limiter.next_start_at(now, 1), None);
    assert_eq!(limiter.limit(0), Some(reduction));
    assert_eq!(limiter.learned(now, 0).full_window(), None);
    assert_eq!(limiter.limit(1), Some(StartLimit::Window(window)));
    assert_eq!(limiter.learned(now, 1).full_window(), Some(window));
    limiter.on_start_accepted(0, now);
    assert_eq!(limiter.next_start_at(now, 0), None);
    assert_eq!(limiter.limit(0), Some(StartLimit::Window(window)));
    assert_eq!(limiter.learned(now, 0).full_window(), Some(window));
    limiter.set_running(window - 1);
    assert_eq!(limiter.next_start_at(now, 0), Some(now));
}

#[test]
fn with_one_slot_a_late_look_up_leaves_as_much_time_to_starts() {
    for (max_requests, next_at) in [(1, 18_000), (2, 10_000)] {
        let (learned, now) = (LearnedLimits::default(), Timestamp(2_000));
        let mut limiter = Pace::new(0.0, max_requests, learned, UpstreamState::Unknown, now);
        limiter.on_late_look_up(now, Timestamp(10_000));
        assert!(limiter.is_poll_due(Timestamp(next_at)));
        assert_eq!(
            limiter.is_poll_due(Timestamp(next_at - 1)),
            max_requests > 1
        );
    }
}

#[test]
fn no_order_is_due_before_the_budget_allows_a_poll() {
    let mut limiter = pace(50.0, LearnedLimits::default(), Timestamp(0));
    limiter.on_start_accepted(1, Timestamp(0));
    assert_eq!(limiter.order_due_at(Timestamp(0)), Some(Timestamp(1_016)));
    limiter.on_polled(Timestamp(0), 1, Duration::from_secs(1));
    let allowed_from = limiter.polls_allowed_from();
    assert!(allowed_from > Timestamp(1_016));
    assert_eq!(limiter.order_due_at(Timestamp(0)), Some(allowed_from));
}

#[test]
fn an_upstream_that_answers_again_is_polled_at_once() {
    let mut limiter = pace(50.0, LearnedLimits::default(), Timestamp(0));
    limiter.on_polled(Timestamp(0), 1, Duration::from_secs(1));
    assert!(!limiter.is_poll_due(Timestamp(10)));
    limiter.on_answered(start(Timestamp(0)), Timestamp(10));
    assert!(!limiter.is_poll_due(Timestamp(10)), "it was not down");
    limiter.on_failed(start(Timestamp(0)), Timestamp(11), &no_connection());
    limiter.on_answered(start(Timestamp(0)), Timestamp(12));
    assert!(limiter.is_poll_due(Timestamp(12)));
}

/// Sends starts as they are due for so many seconds to an upstream that accepts `limit` of them per
/// second and throttles the others, and polls it each second. Returns how many were accepted and
/// throttled.
fn drive(limiter: &mut Pace, seconds: i64, limit: f64) -> [u32; 2] {
    let mut counts = [0; 2];
    let mut tokens = 1.0_f64;
    let throttled = Failure::new("the upstream answered 429", Cause::ServiceUnavailable);
    for now in (0..seconds * 1_000).map(Timestamp) {
        tokens = (tokens + limit / 1e3).min(1.0);
        if now.0 % 1_000 == 0 {
            limiter.recover(now);
            limiter.on_seen_alive(now);
        }
        if limiter.next_start_at(now, 0) == Some(now) {
            limiter.on_dequeued(now);
            let is_taken = tokens >= 1.0;
            counts[usize::from(!is_taken)] += 1;
            match is_taken {
                true => tokens -= 1.0,
                false => {
                    limiter.on_failed(start(now), now, &throttled);
                }
            }
        }
    }
    counts
}

#[test]
fn an_upstream_that_limits_starts_is_driven_at_its_limit() {
    for limit in [2.0, 5.0, 40.0] {
        let mut limiter = pace(0.0, LearnedLimits::default(), Timestamp(0));
        let [accepted, throttled] = drive(&mut limiter, 300, limit);
        let possible = limit * 300.0;
        assert!(
            f64::from(accepted) > 0.9 * possible,
            "{limit}: {accepted} of {possible}"
        );
        assert!(
            throttled * 10 < accepted,
            "{limit}: {throttled} beside {accepted}"
        );
        let limited_by = limiter.limit(0);
        assert!(
            matches!(
                limited_by,
                Some(StartLimit::Reduction(ReductionCause::Overload(_)))
            ),
            "{limited_by:?}"
        );
    }
}

#[test]
fn accepted_starts_raise_the_rate() {
    let mut limiter = pace(0.0, LearnedLimits::default(), Timestamp(0));
    assert_eq!((limiter.rate().rate(), limiter.limit(0)), (500.0, None));
    let [accepted, _] = drive(&mut limiter, 3, 1e6);
    // At most one start per millisecond is possible here.
    assert!((2_000..3_000).contains(&accepted), "{accepted}");
    assert!(limiter.rate().rate() >= 1_000.0);
    let mut under_a_ceiling = pace(50.0, LearnedLimits::default(), Timestamp(0));
    let [accepted, _] = drive(&mut under_a_ceiling, 100, 1e6);
    assert!((4_950..5_010).contains(&accepted), "{accepted}");
    assert_eq!(under_a_ceiling.limit(0), Some(StartLimit::Ceiling));
}

#[test]
fn polls_that_a_rate_limit_counts_replace_starts() {
    let mut limiter = pace(0.0, LearnedLimits::default(), Timestamp(0));
    let throttled = Failure::new("the upstream answered 429", Cause::ServiceUnavailable);
    limiter.on_failed(start(Timestamp(10)), Timestamp(20), &throttled);
    limiter.on_dequeued(Timestamp(30));
    let due = limiter.next_start_at(Timestamp(30), 0);
    limiter.on_poll_sent(Timestamp(30));
    assert_eq!(
        limiter.next_start_at(Timestamp(30), 0),
        due,
        "polls are not counted"
    );
    assert!(limiter.may_poll(Timestamp(30), 0, 0));
    limiter.on_failed(Call::poll(Timestamp(31)), Timestamp(32), &throttled);
    assert!(!limiter.may_poll(Timestamp(32), 0, 0) && limiter.may_send(Timestamp(32), 0));
    limiter.on_poll_sent(Timestamp(2_000));
    assert!(limiter.next_start_at(Timestamp(2_000), 0) > due);
    limiter.on_polled(Timestamp(2_000), 1, Duration::ZERO);
    assert!(!limiter.is_poll_due(Timestamp(2_080)) && limiter.is_poll_due(Timestamp(2_100)));
    assert!(limiter.may_poll(Timestamp(2_100), 0, 7), "one at a time");
    assert!(!limiter.may_poll(Timestamp(2_100), 1, 1));
    // However many they were and however low the limit, there are another poll and another start soon.
    (0..2_000).for_each(|_| limiter.on_poll_sent(Timestamp(2_900)));
    assert!(limiter.next_start_at(Timestamp(2_900), 0) < Some(Timestamp(3_900)));
    limiter.on_polled(Timestamp(3_000), 1_000, Duration::ZERO);
    assert!(!limiter.is_poll_due(Timestamp(12_999)));
    assert!(limiter.is_poll_due(Timestamp(13_000)));
}

#[test]
fn the_results_of_requests_are_returned_once() {
    let mut limiter = pace(50.0, LearnedLimits::default(), Timestamp(0));
    let (answer, failure) = (true, true);
    limiter.on_answered(start(Timestamp(0)), Timestamp(1));
    let results = |has_answer, has_failure| RequestResults {
        has_answer,
        has_failure,
    };
    assert_eq!(limiter.take_results(), results(answer, false));
    let unusable = Failure::new("answered 500", Cause::Unusable);
    limiter.on_failed(start(Timestamp(0)), Timestamp(2), &unusable);
    assert_eq!(limiter.take_results(), results(false, failure));
    assert_eq!(limiter.take_results(), results(false, false));
}

#[test]
fn after_an_unexpected_answer_all_orders_are_due_at_once() {
    let mut limiter = pace(50.0, LearnedLimits::default(), Timestamp(0));
    limiter.on_polled(Timestamp(0), 1, Duration::from_secs(1));
    assert!(!limiter.is_poll_due(Timestamp(10)));
    limiter.poll_soon(Timestamp(10));
    assert!(limiter.is_poll_due(Timestamp(10)));
}

#[test]
fn durations_are_learned_from_polls_and_with_them_which_processes_are_stuck() {
    let mut limiter = pace(50.0, LearnedLimits::default(), Timestamp(0));
    let order = PollTarget {
        seq: 1,
        running_since: Some(Timestamp(1_000)),
    };
    let durations = |limiter: &Pace| limiter.learned(Timestamp(0), 0).durations;
    assert_eq!(limiter.stuck_threshold(), Duration::from_secs(1_320));
    let before = durations(&limiter);
    limiter.on_observed(&order, &Observed::Absent, Timestamp(5_000));
    assert_eq!(durations(&limiter), before);
    limiter.on_observed(&order, &Observed::Running, Timestamp(5_000));
    assert_eq!(durations(&limiter).mean(), None);
    limiter.on_looked_up(1, Timestamp(5_000));
    limiter.on_observed(&order, &Observed::Failed, Timestamp(7_000));
    assert_eq!(durations(&limiter).mean(), Some(Duration::from_secs(6)));
    assert_eq!(limiter.stuck_threshold(), Duration::from_secs(12));
    // A process from before this run may have ended at any time before.
    let old = PollTarget {
        seq: 2,
        running_since: Some(Timestamp(-1)),
    };
    limiter.on_observed(&old, &Observed::Failed, Timestamp(7_000));
    assert_eq!(durations(&limiter).mean(), Some(Duration::from_secs(6)));
    // A poll of all orders includes this one.
    limiter.on_all_polled(Timestamp(9_000));
    limiter.on_observed(&order, &Observed::Running, Timestamp(21_000));
    assert_eq!(durations(&limiter).mean(), Some(Duration::from_secs(18)));
}

#[test]
fn limits_stored_by_an_earlier_version_are_read() {
    let stored = r#"{
        "rate": {"rate": 1000.0, "ceiling": 50.0, "cut": {
            "at": 9000, "quiet": {"secs": 0, "nanos": 0}, "plateau": 1.25,
            "plateau_after": {"secs": 0, "nanos": 0}, "unit": {"secs": 10, "nanos": 0},
            "growth": 1.0, "is_restart": true, "reason": "the upstream was restarted"},
            "step_at": 0, "sent": 7},
        "lives": {"processes": 12, "began_at": 9000, "forgot_at": null, "ended": 1,
            "mean": 24060.0, "mean_seconds": 600.0},
        "durations": {"observed_seconds": 20.0, "ended": 2.0,
            "longest": {"secs": 11, "nanos": 0}},
        "resting_until": 10000}"#;
    let learned: LearnedLimits = serde_json::from_str(stored).unwrap();
    assert_eq!(learned.incarnations.restarts(), 1);
    assert_eq!(learned.durations.mean(), Some(Duration::from_secs(10)));
    let as_json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    let written = serde_json::to_string(&learned).unwrap();
    let mut expected = as_json(stored);
    expected["starts_paused_until"] = serde_json::Value::Null;
    expected["in_flight"] = 0.into();
    expected["throttling"] = as_json(r#"{"starts": null, "polls": null}"#);
    assert_eq!(as_json(&written), expected);
}

#[test]
fn a_restart_is_suspected_when_more_than_ten_and_more_than_a_third_are_missing() {
    assert!(!is_upstream_restart(10, 10) && is_upstream_restart(11, 11));
    assert!(is_upstream_restart(11, 32) && !is_upstream_restart(11, 33));
    assert!(!is_upstream_restart(0, 0));
}
