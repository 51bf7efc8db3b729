//! What the journal adds up to: how many orders there are in each status, what happened in each
//! minute of the last hour, and how long orders took to settle.
//!
//! Pure. Entries are folded in one by one, each once, so that what was told before need never be
//! read again. Where they come from is `store`'s business, who hears of it `api`'s.

use std::collections::BTreeMap;

use crate::order::{Status, Timestamp};
use crate::spread::{Histogram, Spread};

/// Minutes that are told apart. What is older counts in the totals only.
pub const MINUTES: usize = 60;

/// A minute, in milliseconds.
const MINUTE_MS: i64 = 60_000;

/// Upper bounds of the time from an order's creation to its end, in milliseconds: from an upstream
/// that answers at once to one that was down for a day.
pub const SETTLED_WITHIN_MS: [u64; 16] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 120_000, 300_000, 600_000,
    1_800_000, 3_600_000, 21_600_000, 86_400_000,
];

/// Why a journal entry was written. The statuses follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The order was created.
    Created,
    /// Its process was started.
    Started,
    /// A process was found to exist already.
    Adopted,
    /// A process was started in the place of a forgotten one.
    Restarted,
    /// The process has succeeded.
    Succeeded,
    /// The process has failed.
    Failed,
    /// The process was forgotten, and the policy calls that a failure.
    FailedByPolicy,
    /// The process was forgotten, and the operator calls that a failure.
    FailedByOperator,
}

impl Cause {
    /// Every cause.
    pub const ALL: [Self; 8] = [
        Self::Created,
        Self::Started,
        Self::Adopted,
        Self::Restarted,
        Self::Succeeded,
        Self::Failed,
        Self::FailedByPolicy,
        Self::FailedByOperator,
    ];

    /// The word that stands for it in the journal.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Started => "started",
            Self::Adopted => "adopted",
            Self::Restarted => "restarted",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::FailedByPolicy => "failed_by_policy",
            Self::FailedByOperator => "failed_by_operator",
        }
    }

    /// The cause that a word stands for.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|cause| cause.as_str() == name)
    }

    /// The status that the order is in afterwards.
    pub const fn to_status(self) -> Status {
        match self {
            Self::Created => Status::Created,
            Self::Started | Self::Adopted | Self::Restarted => Status::Processing,
            Self::Succeeded => Status::Fulfilled,
            Self::Failed | Self::FailedByPolicy | Self::FailedByOperator => Status::Failed,
        }
    }
}

/// An entry of the journal, as far as it counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the journal.
    pub seq: i64,
    /// When it was written.
    pub at: Timestamp,
    /// Why.
    pub cause: Cause,
    /// When its order was created, if the entry settles it.
    pub created_at: Option<Timestamp>,
}

/// What the journal adds up to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    last_seq: i64,
    /// Entries by cause, in the order of [`Cause::ALL`].
    entries: [u64; Cause::ALL.len()],
    settled_within: Histogram,
    /// By minutes since the epoch. A minute in which nothing happened may be missing.
    minutes: BTreeMap<i64, Minute>,
}

/// What happened in a minute.
#[derive(Clone, Debug, Default, PartialEq)]
struct Minute {
    created: u64,
    settled: u64,
    restarted: u64,
    time_to_settle: Spread,
}

/// What is told of a minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// When it began.
    pub at: Timestamp,
    /// Orders that were created in it.
    pub created: u64,
    /// Orders that were settled in it.
    pub settled: u64,
}

impl History {
    /// The place of the last entry that was folded in; 0 before the first.
    pub fn last_seq(&self) -> i64 {
        self.last_seq
    }

    /// Folds in the entry that follows the last one. One that was written more than an hour from
    /// `now` counts in the totals only.
    pub fn fold(&mut self, entry: &Entry, now: Timestamp) {
        self.last_seq = entry.seq;
        self.entries[entry.cause as usize] += 1;
        let time_to_settle = entry
            .created_at
            .map(|created_at| entry.at.since(created_at));
        if let Some(time) = time_to_settle {
            self.settled_within.count_ms(&SETTLED_WITHIN_MS, time);
        }
        let minute = minute_of(entry.at);
        let hour = MINUTES as i64;
        // After the clock was set back there may be some that lie ahead.
        if !(oldest(now)..=minute_of(now) + hour).contains(&minute) {
            return;
        }
        let minute = self.minutes.entry(minute).or_default();
        match entry.cause {
            Cause::Created => minute.created += 1,
            Cause::Restarted => minute.restarted += 1,
            Cause::Started | Cause::Adopted => {}
            cause if cause.to_status().is_settled() => minute.settled += 1,
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

    /// Entries with this cause.
    pub fn caused(&self, cause: Cause) -> u64 {
        self.entries[cause as usize]
    }

    /// How many orders are in this status.
    pub fn orders(&self, status: Status) -> u64 {
        let reached = |status: Status| {
            let causes = Cause::ALL.into_iter();
            causes
                // An order that is started again was PROCESSING already.
                .filter(|cause| cause.to_status() == status && *cause != Cause::Restarted)
                .map(|cause| self.caused(cause))
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
    pub fn per_minute(&self, now: Timestamp) -> Vec<Told> {
        (oldest(now)..=minute_of(now))
            .map(|minute| {
                let happened = self.minutes.get(&minute);
                Told {
                    at: Timestamp(minute.saturating_mul(MINUTE_MS)),
                    created: happened.map_or(0, |minute| minute.created),
                    settled: happened.map_or(0, |minute| minute.settled),
                }
            })
            .collect()
    }

    /// Processes that were started in the place of a forgotten one in these minutes.
    pub fn restarted_lately(&self, now: Timestamp) -> u64 {
        self.lately(now).map(|minute| minute.restarted).sum()
    }

    /// The times from creation to end of the orders that were settled in these minutes.
    pub fn time_to_settle(&self, now: Timestamp) -> Spread {
        let mut all = Spread::default();
        for minute in self.lately(now) {
            all.add(&minute.time_to_settle);
        }
        all
    }

    /// The times from creation to end of all orders that were ever settled, in milliseconds, by
    /// [`SETTLED_WITHIN_MS`].
    pub fn settled_within(&self) -> &Histogram {
        &self.settled_within
    }

    fn lately(&self, now: Timestamp) -> impl Iterator<Item = &Minute> {
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
