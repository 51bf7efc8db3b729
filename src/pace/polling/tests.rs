//! The choice of the orders to poll and of how to poll them, and the pauses between polls.

use super::*;

const fn s(seconds: i64) -> Timestamp {
    Timestamp(seconds * 1_000)
}

/// Returns orders whose processes were confirmed at these seconds.
fn running(since: impl IntoIterator<Item = i64>) -> Vec<PollTarget> {
    let orders = since.into_iter().enumerate();
    orders
        .map(|(seq, since)| PollTarget {
            seq: seq as i64,
            running_since: Some(s(since)),
        })
        .collect()
}

fn plan(
    polling: &Polling,
    targets: &[PollTarget],
    entries: Option<u64>,
    now: Timestamp,
) -> PollPlan {
    polling
        .clone()
        .plan(targets, entries, Duration::ZERO, true, now)
}

#[test]
fn few_orders_are_looked_up_and_many_are_read_from_a_list() {
    let polling = Polling::new(s(0));
    let how = |orders, entries| plan(&polling, &running(vec![-1; orders]), entries, s(0));
    assert_eq!(how(1, None), PollPlan::LookUps(vec![0]));
    assert_eq!(how(20, None), PollPlan::LookUps((0..20).collect()));
    assert_eq!(how(21, None), PollPlan::List);
    assert_eq!(how(1_000, Some(1_000)), PollPlan::List);
    assert_eq!(
        how(1_000, Some(1_000_000)),
        PollPlan::LookUps((0..1_000).collect())
    );
    assert_eq!(how(1, Some(0)), PollPlan::LookUps(vec![0]));
    assert_eq!(how(0, Some(0)), PollPlan::LookUps(vec![]));
    // Where the number of requests is limited, one list is better than two look-ups, unless it is long.
    let limited = |entries: Option<u64>| {
        let least = Duration::from_millis(200);
        polling
            .clone()
            .plan(&running([-1, -1]), entries, least, true, s(0))
    };
    assert_eq!(limited(None), PollPlan::List);
    assert_eq!(limited(Some(10_000)), PollPlan::List);
    assert_eq!(limited(Some(1_000_000)), PollPlan::LookUps(vec![0, 1]));
}

#[test]
fn an_order_is_looked_up_just_after_each_whole_second_of_its_process() {
    let mut polling = Polling::new(s(0));
    polling.on_started(3, Timestamp(400));
    assert_eq!(polling.due_at(), Some(Timestamp(1_418)));
    let targets = [PollTarget {
        seq: 3,
        running_since: Some(Timestamp(400)),
    }];
    let none = PollPlan::LookUps(vec![]);
    for second in 1..600 {
        let at = Timestamp(418 + second * 1_000);
        assert_eq!(plan(&polling, &targets, None, Timestamp(at.0 - 1)), none);
        let planned = polling.plan(&targets, None, Duration::ZERO, true, at);
        assert_eq!(planned, PollPlan::LookUps(vec![0]));
        polling.on_polled(at, look_ups_cost(1), &Durations::default());
        polling.on_looked_up(3, at);
        assert_eq!(polling.due_at(), Some(Timestamp(at.0 + 1_000)));
    }
}

#[test]
fn many_orders_are_polled_together() {
    let mut polling = Polling::new(s(0));
    let targets = running(vec![0; INDIVIDUAL_SCHEDULES_MAX + 1]);
    polling.on_all_polled(s(1));
    let planned = polling.plan(&targets, Some(100), Duration::ZERO, true, s(1));
    assert_eq!((planned, polling.due_at()), (PollPlan::List, None));
}

#[test]
fn an_order_in_doubt_is_part_of_every_poll() {
    let mut polling = Polling::new(s(0));
    let mut targets = running(vec![0; 20]);
    targets[7].running_since = None;
    polling.on_all_polled(Timestamp(1_500));
    assert_eq!(
        plan(&polling, &targets, Some(9_999), Timestamp(1_900)),
        PollPlan::LookUps(vec![7])
    );
}

#[test]
fn orders_not_polled_in_this_run_are_due_and_those_confirmed_in_it_are_not() {
    let mut polling = Polling::new(s(100));
    let mut targets = running(vec![90; 10]);
    targets.extend(running(vec![101; 10]).into_iter().map(|order| PollTarget {
        seq: order.seq + 10,
        ..order
    }));
    let due = plan(&polling, &targets, Some(9_999), s(102));
    assert_eq!(due, PollPlan::LookUps((0..10).collect()));
    for seq in 0..9 {
        polling.on_looked_up(seq, s(102));
    }
    assert_eq!(
        plan(&polling, &targets, Some(9_999), s(102)),
        PollPlan::LookUps(vec![9])
    );
    polling.reset(s(103));
    assert_eq!(polling.last_known_running_at(3, s(90)), None);
}

#[test]
fn the_pause_after_a_poll_is_in_proportion_to_its_cost() {
    let pause = |cost_ms: u64, mean_s: u64| {
        let mut polling = Polling::new(s(0));
        let mut durations = Durations::default();
        durations.on_observed(Duration::from_secs(mean_s));
        polling.on_polled(s(0), Duration::from_millis(cost_ms), &durations);
        polling.next_at().0
    };
    assert_eq!(pause(3, 300), 12_000, "gentle");
    assert_eq!(pause(3, 5), 1_000, "outcomes would be observed late");
    assert_eq!(pause(500, 200), 40_000, "they still would be");
    assert_eq!(pause(500, 5), 10_000, "the share is bounded");
    assert_eq!(pause(500, 100_000), 60_000, "at least every minute");
    assert_eq!(pause(5_000, 5), 100_000, "ten million entries");
}

#[test]
fn durations_are_estimated_while_most_processes_still_run() {
    let mut durations = Durations::default();
    // A thousand processes of 0 to 599 s, polled each second for a minute.
    for second in 1..=60_u64 {
        for process in 0..1_000 {
            match (process * 599 / 1_000_u64).cmp(&(second - 1)) {
                std::cmp::Ordering::Less => {}
                std::cmp::Ordering::Equal => {
                    durations.on_observed(Duration::from_secs(1));
                    durations.on_ended(Duration::from_secs(second));
                }
                std::cmp::Ordering::Greater => {
                    durations.on_observed(Duration::from_secs(1));
                }
            }
        }
    }
    let mean = durations.mean().unwrap().as_secs();
    assert!((450..650).contains(&mean), "{mean}");
    assert_eq!(durations.longest(), Duration::from_secs(60));
    // Later observations count more.
    for _ in 0..20_000 {
        durations.on_observed(Duration::from_secs(5));
        durations.on_ended(Duration::from_secs(5));
    }
    assert!(durations.mean().unwrap() < Duration::from_secs(6));
    assert!(durations.longest() < Duration::from_secs(6));
}

#[test]
fn the_mean_duration_of_equal_processes_stays_theirs_however_many_end() {
    let mut durations = Durations::default();
    let ten_seconds = Duration::from_secs(10);
    for ended in 1..=2 * SAMPLES_MAX as u32 {
        durations.on_observed(ten_seconds);
        durations.on_ended(ten_seconds);
        assert_eq!(durations.mean(), Some(ten_seconds), "{ended}");
    }
}

#[test]
fn a_look_up_costs_what_a_list_without_entries_does() {
    assert_eq!(look_ups_cost(3), list_cost(0) * 3);
    let of_entries = list_cost(2_000) - list_cost(0);
    assert_eq!(of_entries, Duration::from_millis(1));
}

#[test]
fn settled_orders_are_no_longer_remembered() {
    let mut polling = Polling::new(s(0));
    for seq in 0..1_000 {
        polling.on_looked_up(seq, s(0));
    }
    polling.plan(&running([0, 0]), None, Duration::ZERO, true, s(1));
    assert_eq!(polling.looked_up_at.len(), 2);
}
