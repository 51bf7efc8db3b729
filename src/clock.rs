//! The clock, as something that is passed in: the programs read the machine's, tests and benches
//! bring one that they move by hand.

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};

use crate::order::Timestamp;

/// Tells the time and waits for it.
pub trait Clock: 'static {
    /// The present moment.
    fn now(&self) -> Timestamp;

    /// Returns when `moment` has come, at once if it has passed.
    fn sleep_until(&self, moment: Timestamp) -> impl Future<Output = ()>;

    /// Returns at this moment, as the end of waiting for something else: a clock that skips the time
    /// slept must not skip that.
    fn deadline(&self, moment: Timestamp) -> impl Future<Output = ()> {
        self.sleep_until(moment)
    }
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

    async fn deadline(&self, _moment: Timestamp) {
        std::future::pending().await
    }
}

/// The last moment that RFC 3339 can write: its years have four digits (section 5.6).
const LAST: Timestamp = Timestamp(253_402_300_799_999);

/// A moment as RFC 3339 writes it, in UTC with milliseconds: `2026-11-22T10:00:00.123Z`. The
/// beginning of 1970 stands for what is before it, the end of 9999 for what is after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rfc3339(pub Timestamp);

impl fmt::Display for Rfc3339 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since_epoch = Duration::from_millis(self.0.0.clamp(0, LAST.0).unsigned_abs());
        humantime::format_rfc3339_millis(UNIX_EPOCH + since_epoch).fmt(f)
    }
}

impl Serialize for Rfc3339 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, SecondsFormat};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_time_is_written_in_utc_with_milliseconds() {
        for (moment, written) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (1_795_341_600_123, "2026-11-22T10:00:00.123Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (LAST.0, "9999-12-31T23:59:59.999Z"),
            (LAST.0 + 1, "9999-12-31T23:59:59.999Z"),
            (i64::MAX, "9999-12-31T23:59:59.999Z"),
            (-1, "1970-01-01T00:00:00.000Z"),
            (i64::MIN, "1970-01-01T00:00:00.000Z"),
        ] {
            assert_eq!(Rfc3339(Timestamp(moment)).to_string(), written);
        }
    }

    proptest! {
        #[test]
        fn a_time_is_written_as_another_library_writes_it(moment in 0..=LAST.0) {
            let other = DateTime::from_timestamp_millis(moment).unwrap();
            let other = other.to_rfc3339_opts(SecondsFormat::Millis, true);
            prop_assert_eq!(Rfc3339(Timestamp(moment)).to_string(), other);
        }
    }
}
