//! What the journal adds up to: how many orders there are in each status, what happened in each
//! minute of the last hour, and how long orders took to settle.
//!
//! Pure. Entries are folded in one by one, each once, so that what was told before need never be
//! read again. The history of entries that were removed is kept in the place of these, and what is
//! left is folded into that. Where they come from is `store`'s business, who hears of it `api`'s.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::histogram::{HdrHistogram, Histogram};
use crate::order::{EventReason, Status, Timestamp};

/// Minutes that are told apart. What is older counts in the totals only.
pub const MINUTES: usize = 60;

/// A minute, in milliseconds.
const MINUTE_MS: i64 = 60_000;

/// Upper bounds of the time from an order's creation to its end, in milliseconds: from an upstream
/// that answers at once to one that was down for a day.
pub const SETTLE_TIME_BOUNDS_MS: [u64; 16] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 120_000, 300_000, 600_000,
    1_800_000, 3_600_000, 21_600_000, 86_400_000,
];

/// An entry of the journal, as far as it counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalEntry {
    /// Its place in the journal.
    pub seq: i64,
    /// When it was written.
    pub at: Timestamp,
    /// Why.
    pub reason: EventReason,
    /// When its order was created, if the entry settles it.
    pub created_at: Option<Timestamp>,
}

/// What the journal adds up to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct JournalStats {
    /// Not kept: what is left of the journal begins anywhere.
    #[serde(skip)]
    last_seq: i64,
    /// Entries by reason. One that has none may be missing.
    entries: BTreeMap<EventReason, u64>,
    settled_within: Histogram,
    /// By minutes since the epoch. A minute in which nothing happened may be missing.
    minutes: BTreeMap<i64, Minute>,
}

/// What happened in a minute.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Minute {
    created: u64,
    settled: u64,
    restarted: u64,
    time_to_settle: HdrHistogram,
}

/// What is told of a minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MinuteCounts {
    /// When it began.
    pub at: Timestamp,
    /// Orders that were created in it.
    pub created: u64,
    /// Orders that were settled in it.
    pub settled: u64,
}

impl JournalStats {
    /// The place of the last entry that was folded in; 0 before the first of those that are left.
    pub fn last_seq(&self) -> i64 {
        self.last_seq
    }

    /// Folds in an entry. One that was written more than an hour from
    /// `now` counts in the totals only.
    pub fn fold(&mut self, entry: &JournalEntry, now: Timestamp) {
        self.last_seq = entry.seq;
        *self.entries.entry(entry.reason).or_default() += 1;
        let time_to_settle = entry
            .created_at
            .map(|created_at| entry.at.since(created_at));
        if let Some(time) = time_to_settle {
            self.settled_within.count_ms(&SETTLE_TIME_BOUNDS_MS, time);
        }
        let minute = minute_of(entry.at);
        let hour = MINUTES as i64;
        // After the clock was set back there may be some that lie ahead.
        if !(oldest(now)..=minute_of(now) + hour).contains(&minute) {
            return;
        }
        let minute = self.minutes.entry(minute).or_default();
        match entry.reason {
            EventReason::Created => minute.created += 1,
            EventReason::Restarted => minute.restarted += 1,
            EventReason::Started | EventReason::Adopted => {}
            reason if reason.to_status().is_settled() => minute.settled += 1,
            _ => {}
        }
        if let Some(time) = time_to_settle {
            minute.time_to_settle.count(time);
        }
    }

    /// Forgets the minutes that are not told any more.
    pub fn forget(&mut self, now: Timestamp) {
        self.minutes = self.minutes.split_off(&oldest(now));
    }

    /// Entries with this reason.
    pub fn entries_with(&self, reason: EventReason) -> u64 {
        self.entries.get(&reason).copied().unwrap_or_default()
    }

    /// How many orders are in this status, with those of which the entries were removed.
    pub fn orders(&self, status: Status) -> u64 {
        let reached = |status: Status| {
            let reasons = EventReason::ALL.into_iter();
            reasons
                // An order that is started again was PROCESSING already.
                .filter(|reason| reason.to_status() == status && *reason != EventReason::Restarted)
                .map(|reason| self.entries_with(reason))
                .sum::<u64>()
        };
        let left = match status {
            Status::Created => reached(Status::Processing),
            Status::Processing => reached(Status::Fulfilled) + reached(Status::Failed),
            Status::Fulfilled | Status::Failed => 0,
        };
        reached(status).saturating_sub(left)
    }

    /// Orders that are CREATED or PROCESSING.
    pub fn open(&self) -> u64 {
        self.orders(Status::Created) + self.orders(Status::Processing)
    }

    /// The last [`MINUTES`] minutes, oldest first; the last one is not over yet.
    pub fn per_minute(&self, now: Timestamp) -> Vec<MinuteCounts> {
        (oldest(now)..=minute_of(now))
            .map(|minute| {
                let happened = self.minutes.get(&minute);
                MinuteCounts {
                    at: Timestamp(minute.saturating_mul(MINUTE_MS)),
                    created: happened.map_or(0, |minute| minute.created),
                    settled: happened.map_or(0, |minute| minute.settled),
                }
            })
            .collect()
    }

    /// Processes that were started in the place of a forgotten one in these minutes.
    pub fn recent_restarts(&self, now: Timestamp) -> u64 {
        self.recent(now).map(|minute| minute.restarted).sum()
    }

    /// The times from creation to end of the orders that were settled in these minutes.
    pub fn time_to_settle(&self, now: Timestamp) -> HdrHistogram {
        let mut all = HdrHistogram::default();
        for minute in self.recent(now) {
            all.add(&minute.time_to_settle);
        }
        all
    }

    /// The times from creation to end of all orders that were ever settled, in milliseconds, by
    /// [`SETTLE_TIME_BOUNDS_MS`].
    pub fn settled_within(&self) -> &Histogram {
        &self.settled_within
    }

    fn recent(&self, now: Timestamp) -> impl Iterator<Item = &Minute> {
        self.minutes
            .range(oldest(now)..=minute_of(now))
            .map(|(_, minute)| minute)
    }
}

fn minute_of(at: Timestamp) -> i64 {
    at.0.div_euclid(MINUTE_MS)
}

/// The oldest minute that is told.
fn oldest(now: Timestamp) -> i64 {
    minute_of(now) - (MINUTES as i64 - 1)
}

#[cfg(test)]
mod tests;
