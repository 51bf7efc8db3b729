//! Moments as text.

use std::fmt;
use std::time::{Duration, UNIX_EPOCH};

use serde::{Serialize, Serializer};

use super::Timestamp;

/// The last moment that RFC 3339 can write: its years have four digits (section 5.6).
const LAST: Timestamp = Timestamp(253_402_300_799_999);

/// A moment in RFC 3339 format, in UTC with milliseconds: `2026-11-22T10:00:00.123Z`. Moments before 1970
/// are written as its beginning, and moments after 9999 as its end.
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

/// Serialises a moment, or one that there may be, in this format.
pub(super) fn as_rfc3339<S: Serializer>(
    at: &(impl Copy + Into<Option<Timestamp>>),
    serializer: S,
) -> Result<S::Ok, S::Error> {
    (*at).into().map(Rfc3339).serialize(serializer)
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
