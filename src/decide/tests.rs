//! The table, cell by cell.

use std::time::Duration;

use super::*;

pub(super) const POLICY: Policy = Policy {
    request_timeout: Duration::from_millis(5_000),
    max_starts: 5,
    lost_process: LostProcess::Restart,
    unrecorded_until: Timestamp(0),
    process_forgotten_at: None,
};
pub(super) const NOW: Timestamp = Timestamp(1_000_000);

pub(super) fn order(phase: Phase, intent: Option<Intent>) -> OpenOrder {
    OpenOrder {
        seq: 1,
        phase,
        is_observed: true,
        intent,
        starts: 0,
        restart_requested: false,
        attempts: 0,
        next_attempt_at: None,
        attention: None,
    }
}

pub(super) fn intent(given_up_at: Option<i64>, answer_status: Option<u16>) -> Option<Intent> {
    Some(Intent {
        written_at: Timestamp(NOW.0 - 10_000),
        given_up_at: given_up_at.map(Timestamp),
        answer_status,
    })
}

pub(super) fn processing(missed_at: Option<i64>) -> Phase {
    Phase::Processing {
        confirmed_at: Timestamp(NOW.0 - 5_000),
        missed_at: missed_at.map(Timestamp),
    }
}

fn unrecognised() -> Observed {
    Observed::of_status("PAUSED")
}

/// Returns the action after an observation whose request was sent now, or after none.
pub(super) fn choose(
    order: &OpenOrder,
    observed: impl Into<Option<Observed>>,
    policy: &Policy,
    occasion: Occasion,
) -> Action {
    let observation = observed.into().map(|observed| Observation {
        observed,
        began_at: NOW,
    });
    decide(order, occasion, observation.as_ref(), policy, NOW)
}

pub(super) fn check(order: &OpenOrder, observed: impl Into<Option<Observed>>, expected: Action) {
    check_on(Occasion::Poll, order, observed, expected);
}

fn check_on(
    occasion: Occasion,
    order: &OpenOrder,
    observed: impl Into<Option<Observed>>,
    expected: Action,
) {
    let observed = observed.into();
    let action = choose(order, observed.clone(), &POLICY, occasion);
    assert_eq!(action, expected, "{order:?} {observed:?} {occasion:?}");
}

#[test]
fn every_phase_has_its_action_for_every_observation() {
    use Action::{Adopt, AdoptAndSettle, Flag, MarkMissing, Settle, Start, Wait};
    let just_given_up = intent(Some(NOW.0), None);
    let long_given_up = intent(Some(NOW.0 - 5_000), None);
    let unknown_status = Flag(Reason::UnknownStatus);
    // The columns are no observation, Absent, Running, and a status that is not known.
    let rows = [
        (Phase::Created, None, [Start, Start, Adopt, Adopt]),
        (Phase::Created, just_given_up, [Wait, Wait, Adopt, Adopt]),
        (Phase::Created, long_given_up, [Wait, Start, Adopt, Adopt]),
        (
            processing(None),
            None,
            [Wait, MarkMissing, Wait, unknown_status],
        ),
        (processing(None), just_given_up, [Wait, Wait, Adopt, Adopt]),
        (processing(None), long_given_up, [Wait, Start, Adopt, Adopt]),
        (
            processing(Some(NOW.0 - 50)),
            None,
            [Wait, Start, Action::ClearAttention, unknown_status],
        ),
        (
            processing(Some(NOW.0 - 50)),
            just_given_up,
            [Wait, Wait, Adopt, Adopt],
        ),
        (
            processing(Some(NOW.0 - 50)),
            long_given_up,
            [Wait, Start, Adopt, Adopt],
        ),
    ];
    for (phase, intent, [unknown, absent, running, odd]) in rows {
        let order = order(phase, intent);
        check(&order, None, unknown);
        check(&order, Observed::Absent, absent);
        check(&order, Observed::Running, running);
        check(&order, unrecognised(), odd);
        let settle = match running {
            Adopt => AdoptAndSettle,
            _ => Settle,
        };
        check(&order, Observed::Succeeded, settle(Outcome::Succeeded));
        check(&order, Observed::Failed, settle(Outcome::Failed));
    }
}

#[test]
fn a_process_is_lost_after_two_absences_or_one_when_the_upstream_was_restarted() {
    let once = order(processing(None), None);
    check(&once, Observed::Absent, Action::MarkMissing);
    check_on(
        Occasion::UpstreamRestart,
        &once,
        Observed::Absent,
        Action::Start,
    );
    // The same observation twice is one absence.
    let same = order(processing(Some(NOW.0)), None);
    check(&same, Observed::Absent, Action::Wait);
    // At the head of the queue it has already been decided about.
    check_on(Occasion::Dequeue, &same, Observed::Absent, Action::Start);
    let twice = order(processing(Some(NOW.0 - 1)), None);
    check(&twice, Observed::Absent, Action::Start);
}

#[test]
fn the_policy_decides_about_a_lost_process_unless_an_operator_has() {
    let mut lost = order(processing(Some(NOW.0 - 1)), None);
    for (lost_process, action) in [
        (LostProcess::Restart, Action::Start),
        (LostProcess::Hold, Action::Flag(Reason::ProcessLost)),
        (LostProcess::Fail, Action::Fail),
    ] {
        let policy = Policy {
            lost_process,
            ..POLICY
        };
        let decided =
            |order: &OpenOrder, observed| choose(order, observed, &policy, Occasion::Poll);
        lost.restart_requested = false;
        assert_eq!(decided(&lost, Observed::Absent), action);
        lost.restart_requested = true;
        assert_eq!(decided(&lost, Observed::Absent), Action::Start);
        // Only a forgotten one: a running process is not restarted.
        assert_eq!(decided(&lost, Observed::Running), Action::ClearAttention);
    }
}

#[test]
fn an_order_whose_process_was_never_seen_is_held_where_others_fail() {
    for (lost_process, unobserved_runs, unobserved_is_lost) in [
        (LostProcess::Restart, Action::Wait, Action::Start),
        (
            LostProcess::Hold,
            Action::Wait,
            Action::Flag(Reason::ProcessLost),
        ),
        (
            LostProcess::Fail,
            Action::MarkObserved,
            Action::Flag(Reason::ProcessLost),
        ),
    ] {
        let policy = Policy {
            lost_process,
            ..POLICY
        };
        let decided = |order: &OpenOrder, observed| {
            choose(order, observed, &policy, Occasion::UpstreamRestart)
        };
        let mut order = order(processing(None), None);
        assert_eq!(decided(&order, Observed::Running), Action::Wait);
        order.is_observed = false;
        assert_eq!(decided(&order, Observed::Running), unobserved_runs);
        assert_eq!(decided(&order, Observed::Absent), unobserved_is_lost);
        // Clearing the attention records that its process was shown.
        order.attempts = 1;
        assert_eq!(decided(&order, Observed::Running), Action::ClearAttention);
    }
}

#[test]
fn an_order_in_backoff_is_not_started() {
    let mut order = order(Phase::Created, None);
    order.next_attempt_at = Some(Timestamp(NOW.0 + 1));
    check(&order, Observed::Absent, Action::Wait);
    check(&order, Observed::Running, Action::Adopt);
    order.next_attempt_at = Some(NOW);
    check(&order, None, Action::Start);
}

#[test]
fn attention_and_attempts_are_cleared_when_the_process_is_running() {
    let well = order(processing(None), None);
    check(&well, Observed::Running, Action::Wait);
    let mut flagged = well;
    flagged.attention = Some(Reason::UnknownStatus);
    check(&flagged, Observed::Running, Action::ClearAttention);
    let mut tried = well;
    tried.attempts = 1;
    check(&tried, Observed::Running, Action::ClearAttention);
    let missed = order(processing(Some(1)), None);
    check(&missed, Observed::Running, Action::ClearAttention);
}

#[test]
fn an_order_started_as_often_as_allowed_is_held_and_an_unanswered_intent_counts() {
    let held = Action::Flag(Reason::MaxStarts);
    let mut fresh = order(Phase::Created, None);
    fresh.starts = 5;
    check(&fresh, Observed::Absent, held);
    let mut lost = order(processing(Some(0)), None);
    lost.starts = 5;
    check(&lost, Observed::Absent, held);
    lost.restart_requested = true;
    check(&lost, Observed::Absent, Action::Start);
    let mut unanswered = order(Phase::Created, intent(Some(0), None));
    unanswered.starts = 5;
    check(&unanswered, Observed::Absent, held);
    let mut answered = order(Phase::Created, intent(Some(0), Some(503)));
    answered.starts = 4;
    check(&answered, Observed::Absent, Action::Start);
}

#[test]
fn a_standing_flag_is_renewed_only_when_its_backoff_is_over() {
    let mut odd = order(processing(None), None);
    odd.attention = Some(Reason::UnknownStatus);
    odd.attempts = 1;
    odd.next_attempt_at = Some(Timestamp(NOW.0 + 1));
    check(&odd, unrecognised(), Action::Wait);
    check(&odd, Observed::Running, Action::ClearAttention);
    odd.next_attempt_at = Some(NOW);
    check(&odd, unrecognised(), Action::Flag(Reason::UnknownStatus));
}

#[test]
fn after_a_refusal_the_observation_decides() {
    let fresh = order(Phase::Created, None);
    let missed = order(processing(Some(1)), None);
    let refused = Action::Flag(Reason::StartRefused);
    let unknown_status = Action::Flag(Reason::UnknownStatus);
    for (observed, of_new, of_missed) in [
        (Observed::Absent, refused, refused),
        (Observed::Running, Action::Adopt, Action::ClearAttention),
        (unrecognised(), Action::Adopt, unknown_status),
    ] {
        let decided = |order| choose(order, observed.clone(), &POLICY, Occasion::Refusal);
        assert_eq!((decided(&fresh), decided(&missed)), (of_new, of_missed));
    }
    for (observed, outcome) in [
        (Observed::Succeeded, Outcome::Succeeded),
        (Observed::Failed, Outcome::Failed),
    ] {
        let decided = |order| choose(order, observed.clone(), &POLICY, Occasion::Refusal);
        assert_eq!(decided(&fresh), Action::AdoptAndSettle(outcome));
        assert_eq!(decided(&missed), Action::Settle(outcome));
    }
}

#[test]
fn at_the_head_of_the_queue_an_order_is_started_unless_it_had_a_process() {
    let at_head = |order: &OpenOrder| decide(order, Occasion::Dequeue, None, &POLICY, NOW);
    let expired = intent(Some(NOW.0 - 5_000), None);
    assert_eq!(at_head(&order(Phase::Created, None)), Action::Start);
    assert_eq!(at_head(&order(Phase::Created, expired)), Action::Start);
    for phase in [processing(None), processing(Some(1))] {
        for intent in [None, expired] {
            let forgotten = order(phase, intent);
            assert_eq!(at_head(&forgotten), Action::LookUp);
            let again = choose(&forgotten, Observed::Absent, &POLICY, Occasion::Dequeue);
            assert_eq!(again, Action::Start);
        }
    }
    let mut worn_out = order(Phase::Created, None);
    worn_out.starts = 5;
    assert_eq!(at_head(&worn_out), Action::Flag(Reason::MaxStarts));
    let mut in_backoff = order(Phase::Created, None);
    in_backoff.next_attempt_at = Some(Timestamp(NOW.0 + 1));
    assert_eq!(at_head(&in_backoff), Action::Wait);
}

#[test]
fn an_observation_older_than_the_absence_restores_no_process() {
    for (observed, at_once) in [
        (Observed::Running, Action::ClearAttention),
        (unrecognised(), Action::Flag(Reason::UnknownStatus)),
    ] {
        let missed = order(processing(Some(NOW.0 + 1)), None);
        check(&missed, observed.clone(), Action::Wait);
        let missed = order(processing(Some(NOW.0)), None);
        check(&missed, observed.clone(), at_once);
    }
}

#[test]
fn a_process_observed_soon_after_a_second_start_may_be_the_first_one() {
    for (written_at, unrecorded_until, is_second) in [
        (NOW.0 - 5_000, 0, true),
        (NOW.0 - 4_999, 0, false),
        (0, NOW.0 - 5_000, true),
        (0, NOW.0 - 4_999, false),
    ] {
        let policy = Policy {
            unrecorded_until: Timestamp(unrecorded_until),
            ..POLICY
        };
        let intent = Intent {
            written_at: Timestamp(written_at),
            given_up_at: None,
            answer_status: None,
        };
        let order = order(processing(Some(1)), Some(intent));
        let decided = |observed| choose(&order, observed, &policy, Occasion::Poll);
        let [seen, settled] = match is_second {
            true => [Action::Adopt, Action::AdoptAndSettle(Outcome::Failed)],
            false => [Action::Wait, Action::Settle(Outcome::Failed)],
        };
        assert_eq!(decided(Observed::Running), seen);
        assert_eq!(decided(unrecognised()), seen);
        assert_eq!(decided(Observed::Failed), settled);
    }
}

#[test]
fn a_start_left_in_doubt_by_its_answer_counts_until_an_absence_in_the_same_incarnation() {
    let written_at = NOW.0 - 10_000;
    let observation = Observation {
        observed: Observed::Absent,
        began_at: NOW,
    };
    let decided = |answer, max_starts, process_forgotten_at: Option<i64>| {
        let mut order = order(Phase::Created, intent(Some(0), answer));
        order.starts = max_starts - u32::from(!order.is_intent_counted());
        let policy = Policy {
            max_starts,
            process_forgotten_at: process_forgotten_at.map(Timestamp),
            ..POLICY
        };
        let is_counted = ![Some(302), Some(429)].contains(&answer);
        assert_eq!(order.is_intent_counted(), is_counted);
        decide(&order, Occasion::Poll, Some(&observation), &policy, NOW)
    };
    let held = Action::Flag(Reason::MaxStarts);
    for answer in [200, 202, 299, 500, 502, 503, 504, 520, 599] {
        for process_forgotten_at in [None, Some(written_at - 1)] {
            assert_eq!(
                decided(Some(answer), 5, process_forgotten_at),
                Action::Start
            );
        }
        // After a clock was set back, two events of one moment may have been in any order.
        for process_forgotten_at in [written_at, written_at + 1] {
            assert_eq!(decided(Some(answer), 5, Some(process_forgotten_at)), held);
        }
        assert_eq!(decided(Some(answer), 1, None), held);
    }
    for (answer, expected) in [
        (None, held),
        (Some(302), Action::Start),
        (Some(429), Action::Start),
    ] {
        assert_eq!(decided(answer, 5, None), expected);
        assert_eq!(decided(answer, 1, Some(written_at + 1)), expected);
    }
}

#[test]
fn the_words_of_the_policies_are_those_of_settings_and_database() {
    let words = LostProcess::ALL.map(LostProcess::as_str);
    assert_eq!(words, ["restart", "hold", "fail"]);
}
