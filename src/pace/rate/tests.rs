//! The start rate: the intervals between starts, and how it rises, is reduced and returns.

use super::*;
use crate::upstream::{Cause, RequestKind};

fn overload() -> Failure {
    Failure::new("answered 503", Cause::ServiceUnavailable)
}

/// Returns the moments of starts that are sent as soon as allowed, from 0 to `until` ms, with timers
/// that are late by `late` ms.
fn starts_until(gcra: &mut Gcra, until: i64, late: i64) -> Vec<i64> {
    let mut now = Timestamp(0);
    let mut starts = Vec::new();
    while now.0 < until {
        let at = gcra.next_at(now);
        if at > now {
            now = Timestamp(at.0 + late);
            continue;
        }
        gcra.on_admitted(now);
        starts.push(now.0);
    }
    starts
}

#[test]
fn starts_keep_to_the_ceiling_and_reach_it_although_timers_are_late() {
    for (rate, late) in [(50.0, 0), (50.0, 2), (0.5, 2), (3_000.0, 1), (7.3, 1)] {
        let starts = starts_until(&mut Gcra::new(rate), 100_000, late);
        let ceiling = (rate * 100.0) as usize + 1 + (rate * 0.01) as usize + 1;
        assert!(starts.len() <= ceiling, "{rate}: {}", starts.len());
        assert!(
            starts.len() as f64 >= rate * 100.0 * 0.99,
            "{rate}: {}",
            starts.len()
        );
    }
}

#[test]
fn rare_overload_reduces_the_rate_no_more_than_at_another_rate() {
    let (now, later) = (Timestamp(0), Timestamp(1));
    let mut rate = StartRate::new(0.0, now);
    let poll = Call::poll(later);
    let start = Call {
        kind: RequestKind::Start,
        ..poll
    };
    for _ in 0..100 {
        for call in [start, poll] {
            for _ in 0..24 {
                rate.on_answered(call);
            }
            assert!(!rate.on_overload(call, later, &overload()));
        }
    }
    // However many answers came before, three in a row are not rare.
    (0..100).for_each(|_| rate.on_answered(start));
    let reduces = [start; 3].map(|call| rate.on_overload(call, later, &overload()));
    assert_eq!(reduces, [false, false, true]);
    // Answers to polls show nothing about starts, and an answer with `Retry-After` names a limit.
    (0..100).for_each(|_| rate.on_answered(poll));
    let start = Call {
        sent_at: Timestamp(2),
        ..start
    };
    assert!(rate.on_overload(start, Timestamp(2), &overload()));
    let limit = Failure {
        retry_after: Some(Duration::from_secs(1)),
        ..overload()
    };
    let poll = Call::poll(Timestamp(3));
    assert!(rate.on_overload(poll, Timestamp(3), &limit));
}

#[test]
fn a_pause_is_not_made_up_for() {
    let mut gcra = Gcra::new(50.0);
    let now = Timestamp(60_000);
    gcra.on_admitted(now);
    // The interval and its jitter, less what late timers are allowed.
    assert_eq!(gcra.next_at(now), Timestamp(60_023));
}

#[test]
fn starts_seldom_leave_whole_seconds_after_others() {
    let starts = starts_until(&mut Gcra::new(50.0), 600_000, 0);
    let moments: std::collections::HashSet<i64> = starts.iter().copied().collect();
    // Evenly spaced, every start has others whole seconds later; random ones, 1 in 20 per second.
    let collisions = starts.iter().take(50).map(|start| {
        (1..600)
            .filter(|second| moments.contains(&(start + second * 1_000)))
            .count()
    });
    let collisions: usize = collisions.sum();
    assert!(collisions > 0 && collisions < 50 * 599 / 10, "{collisions}");
    // And none leaves much earlier or later than without jitter.
    let gaps = starts.windows(2).map(|pair| pair[1] - pair[0]);
    assert!(gaps.clone().all(|gap| (11..=34).contains(&gap)));
}

#[test]
fn while_the_upstream_limits_the_rate_the_gaps_between_starts_are_equal() {
    let mut gcra = Gcra::new(5.0);
    let gaps_of = |gcra: &mut Gcra| {
        let starts = starts_until(gcra, 60_000, 0);
        let gaps: Vec<_> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
        (gaps.iter().min().copied(), gaps.iter().max().copied())
    };
    assert_eq!(gaps_of(&mut gcra), (Some(192), Some(213)));
    let mut gcra = Gcra::new(5.0);
    gcra.set_rate(5.0, true);
    assert_eq!(gaps_of(&mut gcra), (Some(196), Some(207)));
}

/// Returns the rate after so many seconds, in each of which a poll finds the upstream alive.
fn after_healthy(rate: &mut StartRate, from: Timestamp, seconds: i64) -> f64 {
    for second in 1..=seconds {
        let now = Timestamp(from.0 + second * 1_000);
        rate.recover(now);
        rate.on_seen_alive(now);
    }
    rate.rate()
}

#[test]
fn a_rate_that_is_not_used_is_not_doubled() {
    let mut rate = StartRate::new(0.0, Timestamp(0));
    assert_eq!(after_healthy(&mut rate, Timestamp(0), 100), 500.0);
    for _ in 0..250 {
        rate.on_admitted();
    }
    rate.on_seen_alive(Timestamp(100_500));
    assert_eq!(rate.rate(), 500.0, "an interval lasts a second");
    rate.on_seen_alive(Timestamp(101_000));
    assert_eq!(rate.rate(), 1_000.0);
    rate.on_seen_alive(Timestamp(102_000));
    assert_eq!(rate.rate(), 1_000.0);
    // Half of the rate is enough, over the whole of a longer interval.
    for (starts, doubled) in [(1_999, 1_000.0), (2_000, 2_000.0)] {
        let mut rate = rate.clone();
        for _ in 0..starts {
            rate.on_admitted();
        }
        rate.on_seen_alive(Timestamp(106_000));
        assert_eq!(rate.rate(), doubled, "{starts}");
    }
}

#[test]
fn a_rate_is_limited_by_its_ceiling_by_a_restart_and_by_overload() {
    let free = StartRate::new(0.0, Timestamp(0));
    let mut restarted = free.clone();
    restarted.on_upstream_restart(Timestamp(0));
    let mut overloaded = free.clone();
    overloaded.on_overload(Call::poll(Timestamp(1)), Timestamp(1), &overload());
    for (rate, expected) in [
        (free, (false, false)),
        (StartRate::new(50.0, Timestamp(0)), (true, false)),
        (restarted, (true, false)),
        (overloaded, (true, true)),
    ] {
        let limited = (rate.is_limited(), rate.is_rate_limited());
        assert_eq!(limited, expected, "{rate:?}");
    }
}

#[test]
fn after_a_restart_the_rate_rises_as_far_as_polls_have_found_the_upstream_alive() {
    let mut rate = StartRate::new(50.0, Timestamp(0));
    rate.on_upstream_restart(Timestamp(0));
    assert_eq!(rate.rate(), 1.25);
    assert_eq!(rate.reduction_cause(), Some(ReductionCause::Restart));
    assert!(
        !rate.recover(Timestamp(60_000)),
        "no poll has found it alive"
    );
    assert_eq!(rate.rate(), 1.25);
    assert_eq!(after_healthy(&mut rate, Timestamp(0), 10), 2.5);
    assert_eq!(after_healthy(&mut rate, Timestamp(10_000), 10), 11.25);
    assert_eq!(after_healthy(&mut rate, Timestamp(20_000), 20), 50.0);
    assert_eq!((rate.reduction_cause(), rate.ceiling()), (None, Some(50.0)));
    // A second restart before the rate is back does not raise it.
    rate.on_upstream_restart(Timestamp(40_000));
    rate.on_upstream_restart(Timestamp(41_000));
    assert_eq!(rate.rate(), 1.25);
}

#[test]
fn overload_reduces_the_rate_unless_the_request_was_sent_before_the_last_reduction() {
    let mut rate = StartRate::new(40.0, Timestamp(0));
    let overloaded = |rate: &mut StartRate, sent_at, now| {
        rate.on_overload(Call::poll(Timestamp(sent_at)), Timestamp(now), &overload())
    };
    assert!(overloaded(&mut rate, 1, 10));
    assert!(!overloaded(&mut rate, 9, 11) && !overloaded(&mut rate, 10, 12));
    let cause = ReductionCause::Overload("answered 503");
    assert_eq!((rate.rate(), rate.reduction_cause()), (36.0, Some(cause)));
    // Repeated soon, it shows that the limit is far below. No healthy second in between undoes that.
    let mut later = rate.clone();
    assert!(overloaded(&mut later, 11, 1_010));
    assert_eq!(later.rate(), 36.0 * 0.9, "a second after the last one");
    assert!(overloaded(&mut rate, 11, 20));
    assert_eq!(rate.rate(), 18.0);
    for now in 1..400 {
        let (sent_at, now) = (now * 1_000, now * 1_000 + 1);
        rate.recover(Timestamp(sent_at));
        let before = rate.rate();
        let is_reduced = overloaded(&mut rate, sent_at, now);
        assert_eq!(is_reduced, before > RATE_MIN, "{before}");
        assert!(rate.rate() < before || before == RATE_MIN, "{before}");
    }
    assert_eq!(rate.rate(), RATE_MIN);
    // When the overload ends the rate comes back, ever faster.
    assert_eq!(after_healthy(&mut rate, Timestamp(400_000), 1_200), 40.0);
    assert_eq!(rate.reduction_cause(), None);
}

#[test]
fn the_rate_soon_returns_to_just_below_the_one_that_was_too_high_and_stays_there_for_a_while() {
    let mut rate = StartRate::new(40.0, Timestamp(0));
    rate.on_overload(Call::poll(Timestamp(1)), Timestamp(0), &overload());
    let rates = [10, 15, 20, 25].map(|second| {
        let mut rate = rate.clone();
        rate.recover(Timestamp(second * 1_000));
        rate.rate()
    });
    assert!((39.4..39.6).contains(&rates[0]), "{rates:?}");
    assert!((39.9..40.0).contains(&rates[1]), "{rates:?}");
    assert_eq!(rates[2..], [40.0, 40.0]);
}

#[test]
fn a_rate_below_one_per_second_needs_longer_to_return() {
    for (ceiling, seconds) in [(1.0, 20), (0.8, 25)] {
        let mut rate = StartRate::new(ceiling, Timestamp(0));
        rate.on_overload(Call::poll(Timestamp(1)), Timestamp(0), &overload());
        assert!(!rate.recover(Timestamp(seconds * 1_000 - 1_000)));
        assert!(rate.recover(Timestamp(seconds * 1_000)), "{ceiling}");
    }
}

#[test]
fn a_ceiling_lets_no_rate_be_learned_that_was_not_used() {
    for (ceiling, learned) in [(400.0, 500.0), (500.0, 500.0), (600.0, 1_000.0)] {
        let mut rate = StartRate::new(ceiling, Timestamp(0));
        for _ in 0..400 {
            rate.on_admitted();
        }
        rate.on_seen_alive(Timestamp(1_000));
        let without_ceiling = rate.with_ceiling(0.0, Timestamp(1_000));
        assert_eq!(without_ceiling.rate(), learned, "{ceiling}");
    }
}

#[test]
fn a_learned_rate_holds_under_another_ceiling_and_a_clock_set_back() {
    let mut rate = StartRate::new(50.0, Timestamp(0));
    rate.on_upstream_restart(Timestamp(9_000));
    let mut lower = rate.clone().with_ceiling(1.0, Timestamp(5_000));
    assert_eq!(lower.rate(), 1.0);
    assert_eq!(after_healthy(&mut lower, Timestamp(5_000), 10), 1.0);
    assert_eq!(
        rate.clone().with_ceiling(0.0, Timestamp(9_000)).rate(),
        1.25
    );
    // A rate that was not reduced is not limited by its former ceiling.
    let full = StartRate::new(50.0, Timestamp(0));
    assert_eq!(
        full.clone().with_ceiling(80.0, Timestamp(9_000)).rate(),
        80.0
    );
    assert_eq!(full.with_ceiling(0.0, Timestamp(9_000)).rate(), 500.0);
}
