//! The clock, as something that is passed in: the programs read the machine's, tests and benches
//! bring one that they move by hand.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use chrono::{DateTime, SecondsFormat};

use crate::order::Timestamp;

/// Tells the time and waits for it.
pub trait Clock {
    /// The present moment.
    fn now(&self) -> Timestamp;

    /// Returns when `moment` has come, at once if it has passed.
    fn sleep_until(&self, moment: Timestamp) -> impl Future<Output = ()>;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Timestamp(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
    }

    async fn sleep_until(&self, moment: Timestamp) {
        tokio::time::sleep(moment.since(self.now())).await;
    }
}

/// A clock that stands still until it is set, or slept on: then the moment has come at once. Clones
/// tell the same time.
#[derive(Clone, Debug)]
pub struct SetClock(Rc<Cell<Timestamp>>);

impl SetClock {
    /// It is `now`.
    pub fn new(now: Timestamp) -> Self {
        Self(Rc::new(Cell::new(now)))
    }

    /// From now on it is `now`, which may be earlier than it was.
    pub fn set(&self, now: Timestamp) {
        self.0.set(now);
    }
}

impl Clock for SetClock {
    fn now(&self) -> Timestamp {
        self.0.get()
    }

    async fn sleep_until(&self, moment: Timestamp) {
        self.set(self.now().max(moment));
    }
}

/// RFC 3339 in UTC with milliseconds: `2026-11-22T10:00:00.123Z`.
pub fn rfc3339(moment: Timestamp) -> String {
    DateTime::from_timestamp_millis(moment.0)
        .unwrap_or(DateTime::UNIX_EPOCH)
        .to_rfc3339_opts(SecondsFormat::Millis, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_in_utc_with_milliseconds() {
        assert_eq!(rfc3339(Timestamp(0)), "1970-01-01T00:00:00.000Z");
        assert_eq!(
            rfc3339(Timestamp(1_795_341_600_123)),
            "2026-11-22T10:00:00.123Z"
        );
    }
}
