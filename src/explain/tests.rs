//! The sentences for each condition of an order.

mod commands;
mod limits;

use std::time::Duration;

use super::*;
use crate::decide::{Intent, OpenOrder, Phase};
use crate::order::{Attention, Order, OrderId, ResolvedBy};
use crate::pace::{Incarnations, LearnedLimits, StartRate};
use crate::reconciler_metrics::ReconcilerMetrics;
use crate::reconciler_state::ReconcilerState;

const NOW: Timestamp = Timestamp(1_795_341_600_000);

fn ago(seconds: i64) -> Timestamp {
    Timestamp(NOW.0 - seconds * 1_000)
}

/// Returns a CREATED order of 30 s ago, with a healthy reconciler and upstream.
fn created() -> OrderDetails {
    let id = OrderId::new("a1").unwrap();
    OrderDetails {
        order: Order {
            seq: 7,
            id,
            status: Status::Created,
            created_at: ago(30),
            updated_at: ago(30),
            starts: 0,
            attention: None,
        },
        open: Some(OpenOrder {
            seq: 7,
            phase: Phase::Created,
            is_observed: false,
            intent: None,
            starts: 0,
            restart_requested: false,
            attempts: 0,
            next_attempt_at: None,
            attention: None,
        }),
        journal: vec![(ago(30), EventReason::Created)],
        ahead: 0,
        reconciler: ReconcilerState {
            leader_since: Some(ago(600)),
            led_until: None,
            policy: Some(LostProcess::Restart),
            last_pass_at: Some(ago(1)),
            next_pass_at: Some(Timestamp(NOW.0 + 400)),
            last_observed_at: Some(ago(2)),
            upstream: UpstreamState::Up { since: ago(600) },
            next_poll_at: Some(Timestamp(NOW.0 + 12_000)),
            metrics: ReconcilerMetrics::default(),
            learned: LearnedLimits {
                rate: Some(StartRate::new(12.5, ago(3))),
                ..LearnedLimits::default()
            },
        },
    }
}

fn processing() -> OrderDetails {
    let mut case = created();
    case.order.status = Status::Processing;
    case.order.updated_at = ago(20);
    case.order.starts = 1;
    case.journal.push((ago(20), EventReason::Started));
    let order = open(&mut case);
    order.phase = Phase::Processing {
        confirmed_at: ago(20),
        missed_at: None,
    };
    order.is_observed = true;
    case
}

fn open(case: &mut OrderDetails) -> &mut OpenOrder {
    case.open.as_mut().unwrap()
}

fn troubled(mut case: OrderDetails, reason: Reason, detail: &str, attempts: u32) -> OrderDetails {
    let next_attempt_at = (attempts > 0).then_some(Timestamp(NOW.0 + 40_000));
    let is_held = attempts > 0 && matches!(reason, Reason::ProcessLost | Reason::MaxStarts);
    case.order.attention = Some(Attention {
        reason,
        by: match is_held {
            true => ResolvedBy::Operator,
            false => ResolvedBy::Itself,
        },
        since: ago(12),
        detail: detail.to_owned(),
        next_attempt_at,
    });
    let order = open(&mut case);
    order.attention = Some(reason);
    order.attempts = attempts;
    order.next_attempt_at = next_attempt_at;
    case
}

#[track_caller]
fn check(case: &OrderDetails, says: &[&str]) {
    let text = case.explain(NOW, &Invocation::elsewhere()).to_string();
    for words in says {
        assert!(text.contains(words), "{words:?} in:\n{text}");
    }
    for line in text.lines() {
        assert!(!line.contains("  ,") && !line.contains(".."), "{line:?}");
    }
}

#[test]
fn an_order_in_the_queue_has_the_number_ahead_and_the_expected_wait() {
    let mut case = created();
    check(
        &case,
        &[
            "Order \"a1\" has been CREATED for 30 s. Nothing is wrong with it. No start for it has taken effect, as far as is known.",
            "30 s ago  It was created.",
            "Its process has not been started yet.",
            "It is the next to be started, now or in the next pass, in 0.4 s (2026-11-22T10:00:00.400Z), as \
             soon as the rate of 12.5 starts/s and the requests in flight allow.",
            "The upstream has answered for 10 min (since 20",
            "The last pass that the reconciler has reported ended 1.0 s ago (20",
        ],
    );
    case.ahead = 500;
    check(
        &case,
        &[
            "500 orders are ahead of it. At the present rate of 12.5 starts/s its turn comes in about 40 s, \
             or later: starts that fail are repeated, and requests without an answer hold others up.",
        ],
    );
    case.ahead = COUNTED_AHEAD_MAX;
    check(
        &case,
        &["10000 orders or more are ahead of it.", "13 min, or later"],
    );
    case.ahead = 1;
    case.reconciler.learned.rate = None;
    check(
        &case,
        &["1 order is ahead of it. The start rate is not known yet."],
    );
    case.ahead = 0;
    check(
        &case,
        &["as soon as the start rate and the requests in flight allow."],
    );
    case.reconciler.learned.rate = Some(StartRate::new(0.04, ago(3)));
    check(&case, &["as soon as the rate of 0.04 starts/s and"]);
}

#[test]
fn a_time_is_written_as_an_age_and_as_a_timestamp() {
    check(
        &processing(),
        &[
            "Its process was known to exist 20 s ago (2026-11-22T09:59:40.000Z)",
            "2026-11-22T09:59:40.000Z      20 s ago  Its process was started.",
            "One start was sent",
            "Its process is polled again, in 12 s (2026-11-22T10:00:12.000Z) at the earliest",
        ],
    );
    for (length, words) in [
        (0, "0.0 s"),
        (9_949, "9.9 s"),
        (9_950, "10 s"),
        (119_499, "119 s"),
        (119_500, "2 min"),
        (7_169_999, "119 min"),
        (7_170_000, "2 h"),
        (21_599_000, "6 h"),
        (170_999_000, "47 h"),
        (171_000_000, "2 days"),
    ] {
        assert_eq!(span(Duration::from_millis(length)), words);
    }
}

#[test]
fn a_settled_order_has_a_complete_timeline() {
    let mut case = processing();
    case.order.status = Status::Fulfilled;
    case.open = None;
    case.journal.push((ago(5), EventReason::Restarted));
    case.journal.push((ago(1), EventReason::Succeeded));
    check(
        &case,
        &[
            "Order \"a1\" has been FULFILLED since 2026-11-22T09:59:40.000Z. It took 10 s from its creation to its end.",
            "it was started again",
            "Its process succeeded.",
            "a settled order never changes",
        ],
    );
    let text = case.explain(NOW, &Invocation::elsewhere()).to_string();
    assert!(
        !text.contains("Why") && !text.contains("you can do"),
        "{text}"
    );
}

#[test]
fn a_start_without_an_outcome_names_the_observation_needed_for_the_next() {
    for (given_up_at, answer_status, says) in [
        (
            None,
            None,
            "If its start gets no answer, its process is looked up.",
        ),
        (
            Some(ago(4)),
            None,
            "no usable answer had come 4.0 s ago (2026-11-22T09:59:56.000Z). There may be",
        ),
        (
            Some(ago(4)),
            Some(503),
            "answered with 503 4.0 s ago (2026-11-22T09:59:56.000Z). There may be a process.",
        ),
        (
            Some(ago(4)),
            Some(200),
            "answered with 200 4.0 s ago (2026-11-22T09:59:56.000Z). There may be a process.",
        ),
        (
            Some(ago(4)),
            Some(302),
            "answered with 302 4.0 s ago (2026-11-22T09:59:56.000Z). A process is not expected",
        ),
        (
            Some(ago(4)),
            Some(422),
            "answered with 422 4.0 s ago (2026-11-22T09:59:56.000Z). A process is not expected",
        ),
    ] {
        let mut case = created();
        open(&mut case).intent = Some(Intent {
            written_at: ago(9),
            given_up_at,
            answer_status,
        });
        let again = "shows no process, and only if --max-starts allows.";
        check(&case, &[says, "is started again only after", again]);
    }
}

#[test]
fn a_start_answered_with_an_error_does_not_contradict_the_polls() {
    let mut case = troubled(created(), Reason::UpstreamUnreachable, "it answered 501", 2);
    open(&mut case).intent = Some(Intent {
        written_at: ago(4),
        given_up_at: Some(ago(3)),
        answer_status: Some(501),
    });
    let says = [
        "The last poll of all processes that were due began 2.0 s ago",
        "No start of it has been confirmed for 12 s (since 2026-11-22T09:59:48.000Z): it answered 501.",
        "answered with 501 3.0 s ago",
        "Its process is looked up, in 40 s (2026-11-22T10:00:40.000Z) at the earliest. If",
    ];
    check(&case, &says);
    let text = case.explain(NOW, &Invocation::elsewhere()).to_string();
    assert!(
        !text.contains("no usable answer"),
        "polls were answered: {text}"
    );
    // In the beginning, nothing else was asked.
    case.reconciler.upstream = UpstreamState::Unknown;
    case.reconciler.last_observed_at = Some(ago(31));
    check(
        &case,
        &["It is not known yet whether the upstream answers."],
    );
    let text = case.explain(NOW, &Invocation::elsewhere()).to_string();
    assert!(
        !text.contains("last observed"),
        "that was before it: {text}"
    );
}

#[test]
fn the_length_of_an_incarnation_is_an_assumption_until_one_was_observed() {
    let mut case = processing();
    let mut incarnations = Incarnations::default();
    incarnations.on_upstream_restart(0, ago(900));
    case.reconciler.learned.incarnations = incarnations.clone();
    check(
        &case,
        &[
            "last found to have been restarted 15 min ago",
            "It is assumed to run 40000 processes between restarts, until that is known.",
        ],
    );
    incarnations.on_upstream_restart(0, ago(300));
    case.reconciler.learned.incarnations = incarnations;
    check(
        &case,
        &["It is estimated to run about 24000 processes between restarts."],
    );
}

#[test]
fn each_attention_has_its_own_sentences_and_says_what_to_do() {
    use Reason::{MaxStarts, ProcessLost, StartRefused, UnknownStatus, UpstreamUnreachable};
    let restart = "order-service restart a1";
    let fail = "order-service fail a1";
    check(
        &troubled(created(), StartRefused, "it answered 422.", 3),
        &[
            "It has had start_refused for 12 s, and proceeds by itself.",
            "has refused for 12 s",
            "it answered 422.",
            "3 attempts in a row have failed.",
            "It is tried again when its turn comes, in 40 s (2026-11-22T10:00:40.000Z) at the earliest.",
            restart,
        ],
    );
    check(
        &troubled(processing(), UpstreamUnreachable, "HTTP 500", 1),
        &[
            "Requests about this order have failed for 12 s",
            "One attempt has failed.",
            "It is looked up again, in 40 s",
            "in the upstream's log",
        ],
    );
    check(
        &troubled(
            processing(),
            UnknownStatus,
            "unknown process status \"PAUSED\"",
            1,
        ),
        &[
            "PAUSED",
            "RUNNING, SUCCEEDED and FAILED",
            "It is looked up again, in 40 s (2026-11-22T10:00:40.000Z) at the earliest.",
        ],
    );
    let held = troubled(processing(), ProcessLost, "forgotten", 1);
    check(
        &held,
        &[
            "It has had process_lost for 12 s, and needs an operator.",
            "has known none for 12 s",
            "Nobody can know",
            "It is held until an operator decides. Its process is looked up again, in 40 s \
             (2026-11-22T10:00:40.000Z) at the earliest: if there is one, the order goes on by itself.",
            restart,
            fail,
        ],
    );
    let text = held.explain(NOW, &Invocation::elsewhere()).to_string();
    assert!(!text.contains("failed"), "nothing was attempted: {text}");
    let mut unobserved = held.clone();
    unobserved.reconciler.policy = Some(LostProcess::Fail);
    open(&mut unobserved).is_observed = false;
    check(
        &unobserved,
        &[
            "The upstream has accepted its start, and has not known its process for 12 s",
            "No poll on record has found the process",
            "It is held until an operator decides",
        ],
    );
    let mut missed = troubled(processing(), ProcessLost, "forgotten", 0);
    for (policy, then) in [
        (
            Some(LostProcess::Restart),
            "it is started again when its turn comes, unless it was started --max-starts times; then it is \
             held until an operator decides.",
        ),
        (Some(LostProcess::Hold), "it is held until an operator"),
        (Some(LostProcess::Fail), "it becomes FAILED."),
        (None, "--lost-process"),
    ] {
        missed.reconciler.policy = policy;
        open(&mut missed).is_observed = true;
        check(
            &missed,
            &[
                "process_lost for 12 s, and proceeds by itself.",
                "It is looked up again, in 12 s (2026-11-22T10:00:12.000Z) at the earliest",
                then,
                "The upstream has confirmed a process for it",
            ],
        );
        assert_eq!(missed.advice(NOW), [""; 0], "nothing has to be done");
        let held = match policy {
            Some(LostProcess::Fail) => "it is held until an operator decides, because no poll on",
            _ => then,
        };
        open(&mut missed).is_observed = false;
        check(&missed, &[held]);
    }
    let mut released = held;
    open(&mut released).restart_requested = true;
    let attention = released.order.attention.as_mut().unwrap();
    attention.by = ResolvedBy::Itself;
    check(
        &released,
        &[
            "An operator has asked",
            "When its turn comes, it is looked up once more",
            "No other order is ahead",
        ],
    );
    assert_eq!(released.advice(NOW), [""; 0], "an operator has decided");
    check(
        &troubled(processing(), MaxStarts, "started 5 times", 1),
        &[
            "It has been held for 12 s (since 2026-11-22T09:59:48.000Z): started 5 times. Each of these \
             starts got no usable answer, or the upstream has forgotten its process.",
            "until an operator decides",
            restart,
            fail,
            "--max-starts",
        ],
    );
    let created = troubled(created(), MaxStarts, "started 5 times", 1);
    check(
        &created,
        &["It has been held", "until an operator decides", restart],
    );
    assert!(
        !created
            .explain(NOW, &Invocation::elsewhere())
            .to_string()
            .contains(fail),
        "only PROCESSING can be failed"
    );
}

#[test]
fn without_a_reconciler_that_is_the_first_reason() {
    let mut case = created();
    let says = |case: &OrderDetails, summary: &str, problem: &str| {
        let next = format!("Nothing happens until a reconciler completes a pass: {problem}.");
        check(case, &[summary, &next]);
        let text = case.explain(NOW, &Invocation::elsewhere()).to_string();
        assert!(!text.contains("by itself"), "{text}");
        assert!(!text.contains("Nothing is wrong with it."), "{text}");
    };
    case.reconciler.leader_since = None;
    case.reconciler.last_pass_at = None;
    case.reconciler.next_pass_at = None;
    says(
        &case,
        "Nothing is wrong with the order itself, but no reconciler has led on this database yet.",
        "no reconciler has led on this database yet",
    );
    // After a clean shutdown, the reported next pass is not late yet.
    case.reconciler.led_until = Some(ago(3));
    case.reconciler.last_pass_at = Some(ago(4));
    case.reconciler.next_pass_at = Some(Timestamp(NOW.0 + 400));
    let next = "no reconciler runs: the last one has shut down";
    says(&case, "the last one has shut down.", next);
    says(
        &troubled(case.clone(), Reason::StartRefused, "it answered 422", 1),
        "It has had start_refused for 12 s, and no reconciler runs: the last one has shut down.",
        next,
    );
    case.reconciler.leader_since = Some(ago(900));
    case.reconciler.led_until = None;
    case.reconciler.last_pass_at = Some(ago(600));
    case.reconciler.next_pass_at = Some(ago(599));
    says(
        &case,
        "but the reconciler was killed, is stuck, or cannot write to the database: its next pass is more than a minute late.",
        "the reconciler was killed, is stuck, or cannot write to the database: its next pass is more than a minute late",
    );
    case.reconciler.last_pass_at = Some(Timestamp(NOW.0 + 3_600_000));
    case.reconciler.next_pass_at = Some(Timestamp(NOW.0 + 3_601_000));
    says(
        &case,
        "but the clock was set back",
        "the clock was set back, and the reconciler has completed no pass since; one that makes \
         progress does so within about a minute",
    );
}
