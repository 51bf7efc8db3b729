//! When the upstream is down, up, or asks for a pause.

use super::*;

fn failure(cause: Cause) -> Failure {
    Failure::new("it failed", cause)
}

fn start(sent_at: Timestamp) -> Call {
    Call {
        kind: RequestKind::Start,
        ..Call::poll(sent_at)
    }
}

#[test]
fn orders_that_always_fail_are_no_outage_while_others_are_answered() {
    let mut breaker = CircuitBreaker::new(UpstreamState::Unknown, None, None, Timestamp(1));
    let denied = failure(Cause::AccessDenied);
    let failing = |now| Call {
        is_retry: true,
        ..Call::poll(now)
    };
    // However long they take.
    for pass in 0..10 {
        let now = Timestamp(10_000 * pass);
        assert_eq!(breaker.on_answered(Call::poll(now), now), pass == 0);
        for second in 1..10 {
            let now = Timestamp(now.0 + second * 1_000);
            assert!(!breaker.on_failed(failing(now), now, &denied));
        }
        breaker.take_results();
    }
    // Without an answer, each pass counts.
    for (at, is_down) in [(100_000, false), (100_100, true)] {
        let now = Timestamp(at);
        assert_eq!(breaker.on_failed(failing(now), now, &denied), is_down);
        assert!(!breaker.on_failed(failing(now), now, &denied));
        breaker.take_results();
    }
}

#[test]
fn requests_about_failing_orders_that_time_out_together_count_once() {
    let mut breaker = CircuitBreaker::new(UpstreamState::Unknown, None, None, Timestamp(1));
    let timeout = failure(Cause::Timeout);
    let failed = |breaker: &mut CircuitBreaker, sent_at, now| {
        let call = Call {
            is_retry: true,
            ..Call::poll(Timestamp(sent_at))
        };
        breaker.on_failed(call, Timestamp(now), &timeout)
    };
    for order in 0..10 {
        assert!(!failed(&mut breaker, 1_000 + order, 6_000 + order));
        breaker.take_results();
    }
    // In one pass, those after them count.
    assert!(!failed(&mut breaker, 6_100, 11_100));
    assert!(failed(&mut breaker, 11_200, 16_200));
    // A clock that was set back delays nothing.
    let mut breaker = CircuitBreaker::new(UpstreamState::Unknown, None, None, Timestamp(1));
    let downs = [9_000, 2_000, 1_000].map(|now| failed(&mut breaker, now - 500, now));
    assert_eq!(downs, [false, false, true]);
}

#[test]
fn one_failing_order_is_no_outage() {
    let mut breaker = CircuitBreaker::new(UpstreamState::Unknown, None, None, Timestamp(1));
    let failed = |breaker: &mut CircuitBreaker, now, cause| {
        breaker.on_failed(Call::poll(Timestamp(now)), Timestamp(now), &failure(cause))
    };
    assert!(breaker.on_answered(Call::poll(Timestamp(1)), Timestamp(1)));
    for now in 2..10 {
        assert!(!failed(&mut breaker, now, Cause::Unusable));
        assert!(!breaker.on_answered(Call::poll(Timestamp(now)), Timestamp(now)));
    }
    assert!(!failed(&mut breaker, 11, Cause::Unusable));
    assert!(!failed(&mut breaker, 12, Cause::Timeout));
    assert!(failed(&mut breaker, 13, Cause::Unusable));
    assert!(!failed(&mut breaker, 14, Cause::Unusable));
    let UpstreamState::Down { since, .. } = breaker.state() else {
        panic!("the upstream counts as down");
    };
    assert_eq!(*since, Timestamp(11));
    assert!(breaker.on_answered(Call::poll(Timestamp(15)), Timestamp(15)));
    assert!(failed(&mut breaker, 16, Cause::NoConnection));
}

#[test]
fn an_upstream_that_answers_starts_with_errors_throttles_or_is_cached_is_not_down() {
    let mut breaker = CircuitBreaker::new(UpstreamState::Unknown, None, None, Timestamp(1));
    breaker.on_answered(Call::poll(Timestamp(1)), Timestamp(1));
    for now in 2..20 {
        let now = Timestamp(now);
        assert!(!breaker.on_failed(start(now), now, &failure(Cause::Unusable)));
        assert!(!breaker.on_failed(start(now), now, &failure(Cause::ServiceUnavailable)));
        assert!(!breaker.on_failed(Call::poll(now), now, &failure(Cause::TooManyRequests)));
        assert!(!breaker.on_failed(Call::poll(now), now, &failure(Cause::Stale)));
    }
    assert!(breaker.may_send(Timestamp(20)));
    let limited = failure(Cause::TooManyRequests);
    let (since, detail) = (Timestamp(1), String::new());
    for state in [
        UpstreamState::Unknown,
        UpstreamState::Down { since, detail },
    ] {
        let mut breaker = CircuitBreaker::new(state, None, None, since);
        breaker.on_failed(start(Timestamp(2)), Timestamp(2), &limited);
        let since = Timestamp(2);
        assert_eq!(*breaker.state(), UpstreamState::Up { since }, "it is there");
    }
    // Where polls fail too, failures of starts count.
    let mut failing = CircuitBreaker::new(UpstreamState::Unknown, None, None, Timestamp(1));
    assert!(!failing.on_failed(
        Call::poll(Timestamp(1)),
        Timestamp(1),
        &failure(Cause::ServiceUnavailable)
    ));
    assert!(!failing.on_failed(
        start(Timestamp(2)),
        Timestamp(2),
        &failure(Cause::ServiceUnavailable)
    ));
    assert!(failing.on_failed(
        start(Timestamp(3)),
        Timestamp(3),
        &failure(Cause::ServiceUnavailable)
    ));
    // One that does not answer starts is down.
    for now in 21..23 {
        assert!(!breaker.on_failed(
            start(Timestamp(now)),
            Timestamp(now),
            &failure(Cause::Timeout)
        ));
    }
    assert!(breaker.on_failed(
        start(Timestamp(23)),
        Timestamp(23),
        &failure(Cause::Timeout)
    ));
}

#[test]
fn an_order_or_kind_of_requests_that_is_always_answered_with_retry_after_pauses_no_other() {
    let now = Timestamp(1_000);
    for cause in [Cause::TooManyRequests, Cause::ServiceUnavailable] {
        let mut breaker = CircuitBreaker::new(UpstreamState::Unknown, None, None, now);
        let retry_after = Some(Duration::from_secs(20));
        let failure = Failure {
            retry_after,
            ..failure(cause)
        };
        let first = Call::poll(now);
        let failing = Call {
            is_retry: true,
            ..first
        };
        let later = Timestamp(21_000);
        for _ in 0..LONE_MAX {
            breaker.note_pause(failing, now, &failure);
            assert_eq!(breaker.kind_paused_until(RequestKind::LookUp, now), None);
        }
        // Nothing shows that one more order would be answered.
        breaker.note_pause(failing, now, &failure);
        assert_eq!(breaker.paused_until(now), None);
        assert_eq!(
            breaker.kind_paused_until(RequestKind::LookUp, now),
            Some(later)
        );
        breaker.on_answered(first, now);
        breaker.note_pause(first, now, &failure);
        assert_eq!(breaker.paused_until(now), Some(later));
        let paused = |breaker: &CircuitBreaker, kind| breaker.kind_paused_until(kind, later);
        for _ in 0..LONE_MAX {
            breaker.note_pause(first, later, &failure);
            breaker.on_answered(start(later), later);
            assert_eq!(paused(&breaker, RequestKind::LookUp), None);
        }
        breaker.note_pause(first, later, &failure);
        assert_eq!(paused(&breaker, RequestKind::Start), None);
        assert_eq!(
            paused(&breaker, RequestKind::LookUp),
            Some(Timestamp(41_000))
        );
        breaker.on_answered(start(later), later);
        breaker.note_pause(first, later, &failure);
        assert_eq!(breaker.paused_until(later), None, "of another kind");
        // An answer to an earlier request does not end the pause.
        breaker.on_answered(first, later);
        assert_eq!(
            paused(&breaker, RequestKind::LookUp),
            Some(Timestamp(41_000))
        );
        breaker.on_answered(Call::poll(later), later);
        breaker.note_pause(first, later, &failure);
        assert_eq!(breaker.paused_until(later), Some(Timestamp(41_000)));
    }
}

#[test]
fn look_ups_that_are_throttled_are_made_ever_more_rarely_until_one_is_answered() {
    for cause in [Cause::TooManyRequests, Cause::ServiceUnavailable] {
        let mut breaker = CircuitBreaker::new(UpstreamState::Unknown, None, None, Timestamp(0));
        let throttled = failure(cause);
        let mut now = Timestamp(0);
        let fails = |breaker: &mut CircuitBreaker, now| {
            breaker.note_pause(Call::poll(now), now, &throttled);
            breaker.note_pause(Call::poll(now), now, &throttled);
            breaker.kind_paused_until(RequestKind::LookUp, now)
        };
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            let until = now.after(Duration::from_secs(seconds));
            assert_eq!(fails(&mut breaker, now), Some(until));
            assert_eq!(breaker.kind_paused_until(RequestKind::LookUp, until), None);
            now = until;
        }
        breaker.on_answered(Call::poll(now), now);
        let until = now.after(Duration::from_secs(1));
        assert_eq!(fails(&mut breaker, now), Some(until));
        for kind in [RequestKind::Start, RequestKind::List] {
            assert_eq!(breaker.kind_paused_until(kind, now), None);
        }
        // Nothing has asked for a pause yet.
        let asking = Failure {
            retry_after: Some(Duration::from_secs(20)),
            ..throttled
        };
        breaker.note_pause(Call::poll(until), until, &asking);
        let asked_until = until.after(Duration::from_secs(20));
        assert_eq!(breaker.paused_until(until), Some(asked_until));
    }
}

#[test]
fn a_pause_of_all_requests_is_not_shortened_by_the_answer_to_another_in_flight() {
    let now = Timestamp(1_000);
    let mut breaker = CircuitBreaker::new(UpstreamState::Unknown, None, None, now);
    let asking = |seconds| Failure {
        retry_after: Some(Duration::from_secs(seconds)),
        ..failure(Cause::TooManyRequests)
    };
    breaker.note_pause(start(now), now, &asking(300));
    breaker.note_pause(Call::poll(now), now, &asking(1));
    assert_eq!(breaker.paused_until(now), Some(Timestamp(301_000)));
}

#[test]
fn an_upstream_is_down_only_once_for_starts_that_alone_fail() {
    for cause in [Cause::Timeout, Cause::AccessDenied] {
        let mut breaker = CircuitBreaker::new(UpstreamState::Unknown, None, None, Timestamp(1));
        let fails = |breaker: &mut CircuitBreaker, call: fn(Timestamp) -> Call, now| {
            breaker.on_failed(call(Timestamp(now)), Timestamp(now), &failure(cause))
        };
        let three = [false, false, true];
        assert_eq!([1, 2, 3].map(|now| fails(&mut breaker, start, now)), three);
        let throttled = failure(Cause::TooManyRequests);
        breaker.on_failed(Call::poll(Timestamp(4)), Timestamp(4), &throttled);
        for now in 5..20 {
            assert!(!fails(&mut breaker, start, now));
        }
        assert!(breaker.may_send(Timestamp(20)), "{cause:?}");
        // Polls fail too.
        let calls = [Call::poll, start, start];
        assert_eq!(calls.map(|call| fails(&mut breaker, call, 20)), three);
        // A later outage may begin with starts.
        breaker.on_answered(start(Timestamp(21)), Timestamp(21));
        assert_eq!(
            [22, 23, 24].map(|now| fails(&mut breaker, start, now)),
            three
        );
    }
}

#[test]
fn an_upstream_that_was_down_when_an_earlier_run_ended_is_reported_by_this_one() {
    let detail = "answered 500".to_owned();
    let since = Timestamp(1);
    let mut breaker = CircuitBreaker::new(UpstreamState::Down { since, detail }, None, None, since);
    let poll = |at| Call::poll(Timestamp(at));
    assert!(breaker.on_failed(poll(2), Timestamp(2), &failure(Cause::Unusable)));
    assert!(!breaker.on_failed(poll(3), Timestamp(3), &failure(Cause::Unusable)));
    let cached = Failure::new("answered by a cache", Cause::Stale);
    breaker.on_failed(poll(4), Timestamp(4), &cached);
    let detail = cached.detail;
    let expected = UpstreamState::Down { since, detail };
    assert_eq!(
        *breaker.state(),
        expected,
        "with the detail of its last answer"
    );
}
