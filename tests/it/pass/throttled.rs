//! Passes whose requests are throttled, with `Retry-After` or without.

use super::clock::take_log;
use super::*;
use order_service::pace::{Throttling, UpstreamState};

fn with_eight_slots() -> Harness {
    let mut harness = Harness::new(3);
    harness.settings.max_in_flight = 8;
    harness
}

#[test]
fn an_upstream_that_requests_a_pause_gets_no_request_until_its_end() {
    let harness = Harness::new(100);
    for id in ["a1", "a2"] {
        harness.create(id);
    }
    let mut reconciler = harness.reconciler();
    harness.upstream.start_fault.set(Fault::Pause(30));
    pass(&mut reconciler);
    assert_eq!(harness.upstream.take_requests(), ["start a1"]);
    let next_poll_at = harness.heartbeat().next_poll_at.unwrap();
    assert_eq!(
        next_poll_at.since(harness.clock.now()),
        Duration::from_secs(30),
        "`Retry-After` is as long as the pause"
    );
    harness.upstream.start_fault.set(Fault::Answered);
    for _ in 0..29 {
        harness.forward(1_000);
        assert!(pass(&mut reconciler).unreachable);
        assert!(harness.upstream.take_requests().is_empty());
    }
    harness.forward(1_000);
    assert!(!pass(&mut reconciler).unreachable);
    assert_eq!(harness.count(Status::Processing), 1, "the other order");
    harness.forward(1_000);
    pass(&mut reconciler);
    assert_eq!(harness.count(Status::Processing), 2);
}

#[test]
fn orders_that_are_always_throttled_hold_up_no_other() {
    for (status, retry_after, are_started) in [
        (429, Some(20), false),
        (429, Some(20), true),
        (429, None, false),
        (429, None, true),
        (503, Some(20), false),
        (503, Some(20), true),
    ] {
        let harness = with_eight_slots();
        let mut reconciler = harness.reconciler();
        if !are_started {
            harness
                .upstream
                .throttled
                .set(Some(("bad", status, retry_after)));
        }
        for id in ["bad0", "bad1"] {
            harness.create(id);
        }
        pass(&mut reconciler);
        harness
            .upstream
            .throttled
            .set(Some(("bad", status, retry_after)));
        harness.create_many(10);
        passes(&harness, &mut reconciler, 120);
        let context = format!("{status}, {retry_after:?}, {are_started}");
        for n in 0..10 {
            let status = harness.order(&format!("a{n}")).status;
            assert!(status.is_settled(), "{context}: a{n} is {status}");
        }
        let requests = harness.upstream.take_requests();
        let asked = requests
            .iter()
            .filter(|request| request.ends_with("bad1"))
            .count();
        assert!(asked <= 10, "{context}: {asked}");
        harness.upstream.throttled.set(None);
        passes(&harness, &mut reconciler, 120);
        assert!(harness.has_settled_all(), "{context}");
    }
}

#[test]
fn many_orders_that_are_always_throttled_hold_up_no_new_ones() {
    for (status, retry_after) in [(429, Some(20)), (429, None), (503, Some(20))] {
        let harness = with_eight_slots();
        let mut reconciler = harness.reconciler();
        harness
            .upstream
            .throttled
            .set(Some(("bad", status, retry_after)));
        for n in 0..11 {
            harness.create(&format!("bad{n}"));
        }
        for n in 0..300 {
            harness.create(&format!("a{n}"));
            pass(&mut reconciler);
            harness.forward(1_000);
        }
        passes(&harness, &mut reconciler, 120);
        assert_eq!(
            harness.count(Status::Created),
            11,
            "{status}, {retry_after:?}"
        );
        assert_eq!(
            harness.count(Status::Processing),
            0,
            "{status}, {retry_after:?}"
        );
    }
}

#[test]
fn an_order_that_is_always_throttled_delays_none_that_comes_much_later() {
    let harness = with_eight_slots();
    let mut reconciler = harness.reconciler();
    for retry_after in [Some(20), None] {
        let prefix = if retry_after.is_some() { "a" } else { "b" };
        harness
            .upstream
            .throttled
            .set(Some(("bad", 429, retry_after)));
        harness.create(&format!("bad{prefix}"));
        for n in 0..10 {
            passes(&harness, &mut reconciler, 127);
            let id = format!("{prefix}{n}");
            harness.create(&id);
            pass(&mut reconciler);
            assert_eq!(harness.order(&id).starts, 1, "{id}");
        }
    }
}

#[test]
fn a_few_orders_that_are_always_throttled_delay_none_that_come_now_and_then() {
    for retry_after in [Some(20), None] {
        let harness = with_eight_slots();
        let mut reconciler = harness.reconciler();
        harness
            .upstream
            .throttled
            .set(Some(("bad", 429, retry_after)));
        for n in 0..5 {
            harness.create(&format!("bad{n}"));
        }
        for n in 0..50 {
            harness.create(&format!("a{n}"));
            passes(&harness, &mut reconciler, 5);
            let started = harness.order(&format!("a{n}")).starts == 1;
            let is_in_first_pause = n < 4 && retry_after.is_some();
            assert!(started || is_in_first_pause, "{retry_after:?}: a{n}");
        }
        let bad = harness.order("bad0");
        let attention = bad.attention.unwrap();
        assert_eq!(attention.reason, Reason::UpstreamUnreachable);
        assert_eq!(attention.detail, "later");
    }
}

#[test]
fn a_few_orders_that_are_always_throttled_delay_none_of_many_that_come_at_once() {
    for seconds in [1, 2, 4, 8, 16, 32] {
        let harness = with_eight_slots();
        harness.has_learned(LearnedLimits::default());
        let mut reconciler = harness.reconciler();
        harness.upstream.throttled.set(Some(("bad", 429, None)));
        for n in 0..5 {
            harness.create(&format!("bad{n}"));
        }
        passes(&harness, &mut reconciler, seconds);
        harness.create_many(100);
        let since = harness.clock.now();
        while harness.count(Status::Created) > 5 {
            passes(&harness, &mut reconciler, 1);
        }
        let took = harness.clock.now().since(since);
        assert!(took < Duration::from_secs(3), "{seconds}: {took:?}");
    }
}

#[test]
fn an_order_whose_look_ups_are_always_throttled_settles_by_a_list() {
    for retry_after in [Some(20), None] {
        let harness = Harness::new(3);
        let mut reconciler = harness.reconciler();
        harness.create("bad");
        pass(&mut reconciler);
        harness
            .upstream
            .throttled
            .set(Some(("bad", 429, retry_after)));
        passes(&harness, &mut reconciler, 120);
        assert!(harness.has_settled_all(), "{retry_after:?}");
    }
}

#[test]
fn orders_that_were_throttled_once_take_turns_with_those_that_always_are() {
    let harness = with_eight_slots();
    let mut reconciler = harness.reconciler();
    for id in ["bad0", "bad1"] {
        harness.create(id);
    }
    harness.create_many(10);
    harness.upstream.throttled.set(Some(("", 429, Some(20))));
    passes(&harness, &mut reconciler, 600);
    harness.upstream.throttled.set(Some(("bad", 429, Some(20))));
    passes(&harness, &mut reconciler, 600);
    assert_eq!(harness.count(Status::Created), 2);
    assert_eq!(harness.count(Status::Processing), 0);
}

#[test]
fn the_log_names_the_requests_that_a_pause_is_about() {
    let harness = with_eight_slots();
    let mut reconciler = harness.reconciler();
    harness.upstream.throttled.set(Some(("a", 429, Some(20))));
    harness.create_many(20);
    take_log();
    passes(&harness, &mut reconciler, 120);
    let mut lines = take_log();
    lines.retain(|line| line.starts_with("the upstream asked for a pause"));
    assert!(lines.len() >= 2, "{lines:?}");
    assert!(lines[0].contains(" requests=all wait="), "{lines:?}");
    // The second answer in a row concerns starts alone.
    assert!(lines[1].contains(" requests=start wait="), "{lines:?}");
}

#[test]
fn while_all_starts_are_throttled_few_are_sent() {
    let harness = with_eight_slots();
    let mut reconciler = harness.reconciler();
    harness.upstream.throttled.set(Some(("a", 429, Some(20))));
    harness.create_many(200);
    passes(&harness, &mut reconciler, 600);
    let starts = harness.upstream.take_requests().len();
    assert!(starts <= 200, "{starts} in 30 pauses");
    let is_told = (0..30).any(|_| {
        pass(&mut reconciler);
        harness.forward(1_000);
        let learned = harness.heartbeat().learned;
        let is_of_all = learned.paused_until.is_some();
        !is_of_all && learned.starts_paused_until(harness.clock.now()).is_some()
    });
    assert!(is_told);
}

#[test]
fn lists_that_are_always_throttled_without_a_pause_hold_up_no_look_ups() {
    for status in [429, 503] {
        let harness = with_eight_slots();
        let mut reconciler = harness.reconciler();
        harness.create_many(3_000);
        let list_fault = Fault::Status(status);
        harness.upstream.list_fault.set(Some(list_fault));
        take_log();
        passes(&harness, &mut reconciler, 240);
        let requests = harness.upstream.take_requests();
        let lists = requests.iter().filter(|request| *request == "list").count();
        assert!((1..=30).contains(&lists), "{status}: {lists}");
        assert!(harness.has_settled_all(), "{status}");
        let mut lines = take_log();
        lines.retain(|line| line.contains("asked for a pause"));
        assert!(lines.is_empty(), "{status}: {lines:?}");
    }
}

#[test]
fn a_list_that_is_throttled_is_followed_by_look_ups_not_before_the_next_pass() {
    let harness = with_eight_slots();
    let mut reconciler = harness.reconciler();
    harness.create_many(100);
    harness.upstream.list_fault.set(Some(Fault::Status(429)));
    let mut next_polls = || {
        loop {
            pass(&mut reconciler);
            harness.forward(1_000);
            let mut polls = harness.upstream.take_requests();
            polls.retain(|request| !request.starts_with("start"));
            if !polls.is_empty() {
                return polls;
            }
        }
    };
    assert_eq!(next_polls(), ["list"]);
    let polls = next_polls();
    assert!(polls.len() > 50, "{polls:?}");
    assert!(!polls.contains(&"list".to_owned()));
}

#[test]
fn polls_that_are_always_throttled_hold_up_no_starts_and_lists_no_look_ups() {
    for (look_up_fault, list_fault) in [
        (Fault::Pause(20), Fault::Pause(20)),
        (Fault::Pause(20), Fault::Answered),
        (Fault::Answered, Fault::Pause(20)),
    ] {
        let harness = with_eight_slots();
        harness.upstream.look_up_fault.set(look_up_fault);
        harness.upstream.list_fault.set(Some(list_fault));
        let mut reconciler = harness.reconciler();
        for n in 0..100 {
            harness.create(&format!("a{n}"));
            pass(&mut reconciler);
            harness.forward(1_000);
        }
        let context = format!("{look_up_fault:?}, {list_fault:?}");
        assert_eq!(harness.count(Status::Created), 0, "{context}");
        if look_up_fault != list_fault {
            passes(&harness, &mut reconciler, 60);
            assert!(harness.has_settled_all(), "{context}");
        }
        let requests = harness.upstream.take_requests();
        let lists = requests.iter().filter(|request| *request == "list").count();
        assert!(
            list_fault == Fault::Answered || lists <= 8,
            "{context}: {lists}"
        );
    }
}

#[test]
fn an_upstream_that_answers_429_to_all_starts_is_up_and_reported_as_refusing_them() {
    let harness = Harness::new(100);
    harness.create("a1");
    let mut reconciler = harness.reconciler();
    harness.upstream.start_fault.set(Fault::Status(429));
    let began_at = harness.clock.now();
    passes(&harness, &mut reconciler, 20);
    let (now, state) = (harness.clock.now(), harness.heartbeat());
    assert_eq!(state.upstream, UpstreamState::Up { since: began_at });
    let throttled = state.learned.throttling.starts(now).unwrap();
    assert!(throttled.since == began_at && throttled.requests > 3);
    assert_eq!(state.learned.wait(1, now), None);
    assert_eq!(harness.reason("a1"), Some(Reason::UpstreamUnreachable));
    // The first start that is accepted ends that.
    harness.upstream.start_fault.set(Fault::Answered);
    passes(&harness, &mut reconciler, 16);
    assert_eq!(harness.order("a1").status, Status::Processing);
    let learned = harness.heartbeat().learned;
    assert_eq!(learned.throttling, Throttling::default());
    assert!(learned.wait(1, harness.clock.now()).is_some());
}

#[test]
fn lists_that_are_always_throttled_hold_up_no_order_on_a_slow_schedule() {
    for fault in [Fault::Status(429), Fault::Pause(1)] {
        let mut harness = with_eight_slots();
        harness.settings.schedule = "0 * * * * *".parse().unwrap();
        harness.create_many(30);
        let mut reconciler = harness.reconciler();
        harness.upstream.list_fault.set(Some(fault));
        for _ in 0..20 {
            pass(&mut reconciler);
            harness.forward(60_000);
        }
        assert!(harness.has_settled_all(), "{fault:?}");
    }
}

#[test]
fn orders_whose_process_was_forgotten_wait_for_the_end_of_a_pause_of_look_ups_and_others_go_on() {
    for retry_after in [Some(20), None] {
        let mut harness = forgotten(50, LostProcess::Restart);
        harness.settings.max_in_flight = 8;
        harness
            .upstream
            .throttled
            .set(Some(("a", 429, retry_after)));
        let mut reconciler = harness.old_reconciler();
        for n in 0..300 {
            harness.create(&format!("b{n}"));
            pass(&mut reconciler);
            harness.forward(1_000);
        }
        let requests = harness.upstream.take_requests();
        let look_ups = requests.iter().filter(|of| of.starts_with("look_up a"));
        let look_ups = look_ups.count();
        assert!(look_ups <= 220, "{retry_after:?}: {look_ups}");
        assert_eq!(harness.count(Status::Created), 0, "{retry_after:?}");
        harness.upstream.throttled.set(None);
        passes(&harness, &mut reconciler, 60);
        for n in 0..50 {
            let id = format!("a{n}");
            assert_eq!(harness.order(&id).starts, 2, "{retry_after:?}: {id}");
        }
    }
}

#[test]
fn orders_that_wait_for_the_end_of_a_pause_are_started_then_whatever_the_schedule() {
    for is_forgotten in [false, true] {
        let mut harness = forgotten(50, LostProcess::Restart);
        harness.settings.schedule = "0 0 * * * *".parse().unwrap();
        let mut reconciler = harness.old_reconciler();
        if is_forgotten {
            harness.upstream.throttled.set(Some(("a", 429, None)));
        } else {
            harness.upstream.start_fault.set(Fault::Pause(20));
            harness.create("b1");
            harness.create("b2");
        }
        while pass(&mut reconciler).has_more {}
        let is_paused = harness.count(Status::Processing) == 50;
        assert!(is_paused && !pass(&mut reconciler).has_more);
        harness.upstream.throttled.set(None);
        harness.upstream.start_fault.set(Fault::Answered);
        harness.upstream.take_requests();
        let wake_at = reconciler.next_wake_at().unwrap();
        let wait = wake_at.since(harness.clock.now());
        assert!(wait <= Duration::from_secs(60), "{wait:?}");
        pass(&mut reconciler);
        assert_eq!(harness.upstream.starts(), 0, "the pause lasts");
        harness.clock.set(wake_at);
        pass(&mut reconciler);
        assert!(harness.upstream.starts() > 0, "{is_forgotten}");
    }
}
