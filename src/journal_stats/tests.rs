//! The statistics, compared with a naive count of the same journal.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

/// Ten days after the epoch, in the middle of a minute.
const NOW: Timestamp = Timestamp(10 * 86_400_000 + 30_000);

fn entry(reason: EventReason, at: Timestamp, age: Duration) -> JournalEntry {
    JournalEntry {
        seq: 0,
        at,
        reason,
        created_at: reason
            .to_status()
            .is_settled()
            .then(|| Timestamp(at.0 - age.as_millis() as i64)),
    }
}

fn stats_of(entries: &[JournalEntry], now: Timestamp) -> JournalStats {
    let mut history = JournalStats::default();
    for entry in entries {
        history.add(entry, now);
    }
    history
}

prop_compose! {
    /// Entries of up to three hours around now.
    fn journal()(entries in prop::collection::vec(
        (0..EventReason::ALL.len(), -7_200_000..3_600_000i64, 0..1_000_000u64),
        0..200,
    )) -> Vec<JournalEntry> {
        entries
            .into_iter()
            .enumerate()
            .map(|(index, (reason, at, age))| JournalEntry {
                seq: index as i64 + 1,
                ..entry(
                    EventReason::ALL[reason],
                    Timestamp(NOW.0 + at),
                    Duration::from_millis(age),
                )
            })
            .collect()
    }
}

proptest! {
    #[test]
    fn the_statistics_do_not_depend_on_the_parts_of_the_journal(
        journal in journal(),
        cut in 0usize..200,
    ) {
        let (first, second) = journal.split_at(cut.min(journal.len()));
        let mut history = stats_of(first, NOW);
        history.drop_old_minutes(NOW);
        for entry in second {
            history.add(entry, NOW);
        }
        prop_assert_eq!(history, stats_of(&journal, NOW));
    }

    #[test]
    fn the_statistics_are_those_of_a_naive_count(journal in journal()) {
        let history = stats_of(&journal, NOW);
        let count = |matches: &dyn Fn(&JournalEntry) -> bool| {
            journal.iter().filter(|entry| matches(entry)).count() as u64
        };
        for reason in EventReason::ALL {
            prop_assert_eq!(history.entries_with(reason), count(&|entry| entry.reason == reason));
        }
        let is_settled = |entry: &JournalEntry| entry.reason.to_status().is_settled();
        let mut settled_lately = 0;
        for minute in history.per_minute(NOW) {
            let within = |entry: &JournalEntry| (minute.at.0..minute.at.0 + 60_000).contains(&entry.at.0);
            let created = count(&|entry| entry.reason == EventReason::Created && within(entry));
            let settled = count(&|entry| is_settled(entry) && within(entry));
            prop_assert_eq!((minute.created, minute.settled), (created, settled));
            settled_lately += settled;
        }
        prop_assert_eq!(history.time_to_settle(NOW).total(), settled_lately);
        prop_assert_eq!(history.settled_within().total(), count(&is_settled));
    }
}

#[test]
fn orders_are_counted_in_the_status_that_they_have_now() {
    use EventReason::*;
    let reasons = [
        Created,
        Created,
        Created,
        Created,
        Created,
        Created,
        Created,
        Started,
        Adopted,
        Started,
        Started,
        Started,
        Restarted,
        Restarted,
        Succeeded,
        Failed,
        FailedByPolicy,
        FailedByOperator,
    ];
    let entries = reasons.map(|reason| entry(reason, NOW, Duration::ZERO));
    let history = stats_of(&entries, NOW);
    let counts = Status::ALL.map(|status| history.orders(status));
    assert_eq!((counts, history.open()), ([2, 1, 1, 3], 3));
}

#[test]
fn the_last_of_sixty_minutes_is_the_current_one() {
    let at = |minutes: i64| Timestamp(NOW.0 - minutes * 60_000);
    let entries = [0, 59, 60].map(|age| entry(EventReason::Created, at(age), Duration::ZERO));
    let history = stats_of(&entries, NOW);
    let minutes = history.per_minute(NOW);
    assert_eq!(minutes.len(), MINUTES);
    assert_eq!((minutes[0].created, minutes[59].created), (1, 1));
    assert_eq!(minutes[59].at, Timestamp(10 * 86_400_000));
    assert_eq!(history.entries_with(EventReason::Created), 3);
}

#[test]
fn minutes_are_dropped_when_they_are_too_old() {
    let mut history = stats_of(&[entry(EventReason::Restarted, NOW, Duration::ZERO)], NOW);
    let later = NOW.after(Duration::from_secs(59 * 60));
    history.drop_old_minutes(later);
    assert_eq!(history.recent_restarts(later), 1);
    let later = NOW.after(Duration::from_secs(60 * 60));
    history.drop_old_minutes(later);
    assert!(history.minutes.is_empty());
    assert_eq!(history.entries_with(EventReason::Restarted), 1);
}

proptest! {
    #[test]
    fn the_statistics_of_pruned_and_remaining_orders_add_up(
        journal in journal(),
        removed in prop::collection::vec(any::<bool>(), 200),
    ) {
        let is_removed = |entry: &&JournalEntry| {
            // The newest entry is never removed.
            removed[entry.seq as usize - 1] && entry.seq < journal.len() as i64
        };
        let (gone, left): (Vec<&JournalEntry>, Vec<&JournalEntry>) = journal.iter().partition(is_removed);
        let mut base = JournalStats::default();
        for entry in gone {
            base.add(entry, NOW);
        }
        let kept = serde_json::to_string(&base).unwrap();
        let mut history: JournalStats = serde_json::from_str(&kept).unwrap();
        prop_assert_eq!(history.last_seq(), 0, "all that is left is still to be added");
        for entry in left {
            history.add(entry, NOW);
        }
        prop_assert_eq!(history, stats_of(&journal, NOW));
    }
}
