//! Statistics of the journal: the number of orders in each status, the events of each minute of the last
//! hour, and the times that orders took to settle.
//!
//! Pure. Each entry is added once, so that no entry is read again. When entries are pruned, `store`
//! stores their statistics instead, and the remaining entries are added to those.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::histogram::{HdrHistogram, Histogram};
use crate::order::{EventReason, Status, Timestamp};

/// Number of minutes with counts of their own. Older entries count in the totals only.
pub const MINUTES: usize = 60;

/// A minute, in milliseconds.
const MINUTE_MS: i64 = 60_000;

/// Bounds of the time from an order's creation to its settlement, in milliseconds: from an upstream that
/// answers at once to one that was down for a day.
pub const SETTLE_TIME_BOUNDS_MS: [u64; 16] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 120_000, 300_000, 600_000,
    1_800_000, 3_600_000, 21_600_000, 86_400_000,
];

/// The part of a journal entry that is counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalEntry {
    /// Its sequence number in the journal.
    pub seq: i64,
    /// Moment at which it was written.
    pub at: Timestamp,
    /// Reason why the status changed.
    pub reason: EventReason,
    /// Moment at which its order was created, if the entry settles it.
    pub created_at: Option<Timestamp>,
}

/// Statistics of the journal.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct JournalStats {
    /// Not stored: the remaining journal begins anywhere.
    #[serde(skip)]
    last_seq: i64,
    /// Number of entries by reason. A reason without entries may be missing.
    entries: BTreeMap<EventReason, u64>,
    settled_within: Histogram,
    /// Counts by minutes since the epoch. A minute without entries may be missing.
    minutes: BTreeMap<i64, Minute>,
}

/// The counts of a minute.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Minute {
    created: u64,
    settled: u64,
    restarted: u64,
    time_to_settle: HdrHistogram,
}

/// The counts of a minute that are returned to readers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MinuteCounts {
    /// Beginning of the minute.
    pub at: Timestamp,
    /// Orders that were created in it.
    pub created: u64,
    /// Orders that were settled in it.
    pub settled: u64,
}

impl JournalStats {
    /// Returns the sequence number of the last added entry, or 0 if none of the remaining ones was added.
    pub fn last_seq(&self) -> i64 {
        self.last_seq
    }

    /// Adds an entry. One that was written more than an hour from `now` counts in the totals only.
    pub fn add(&mut self, entry: &JournalEntry, now: Timestamp) {
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
        // After the clock was set back, minutes may lie ahead.
        if !(oldest_minute(now)..=minute_of(now) + hour).contains(&minute) {
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

    /// Removes the minutes that are too old to be returned.
    pub fn drop_old_minutes(&mut self, now: Timestamp) {
        self.minutes = self.minutes.split_off(&oldest_minute(now));
    }

    /// Returns the number of entries with this reason.
    pub fn entries_with(&self, reason: EventReason) -> u64 {
        self.entries.get(&reason).copied().unwrap_or_default()
    }

    /// Returns the number of orders in this status, including pruned ones.
    pub fn orders(&self, status: Status) -> u64 {
        let reached = |status: Status| {
            let reasons = EventReason::ALL.into_iter();
            reasons
                // A restarted order was PROCESSING already.
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

    /// Returns the number of orders that are CREATED or PROCESSING.
    pub fn open(&self) -> u64 {
        self.orders(Status::Created) + self.orders(Status::Processing)
    }

    /// Returns the last [`MINUTES`] minutes, oldest first. The last one is not over yet.
    pub fn per_minute(&self, now: Timestamp) -> Vec<MinuteCounts> {
        (oldest_minute(now)..=minute_of(now))
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

    /// Returns the number of restarts of orders in these minutes.
    pub fn recent_restarts(&self, now: Timestamp) -> u64 {
        self.recent(now).map(|minute| minute.restarted).sum()
    }

    /// Returns the times from creation to settlement of the orders that settled in these minutes.
    pub fn time_to_settle(&self, now: Timestamp) -> HdrHistogram {
        let mut all = HdrHistogram::default();
        for minute in self.recent(now) {
            all.add(&minute.time_to_settle);
        }
        all
    }

    /// Returns the times from creation to settlement of all orders that ever settled, in milliseconds, by
    /// [`SETTLE_TIME_BOUNDS_MS`].
    pub fn settled_within(&self) -> &Histogram {
        &self.settled_within
    }

    fn recent(&self, now: Timestamp) -> impl Iterator<Item = &Minute> {
        self.minutes
            .range(oldest_minute(now)..=minute_of(now))
            .map(|(_, minute)| minute)
    }
}

fn minute_of(at: Timestamp) -> i64 {
    at.0.div_euclid(MINUTE_MS)
}

/// Returns the oldest minute that is returned to readers, in minutes since the epoch.
fn oldest_minute(now: Timestamp) -> i64 {
    minute_of(now) - (MINUTES as i64 - 1)
}

#[cfg(test)]
mod tests;
