//! When passes begin: a cron expression with seconds, in UTC.
//!
//! The scheduler only ever says "now"; it never runs a pass itself, because it would run the next
//! one beside the last. `reconciler::run` loops over what it says.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::Context;
use chrono::{DateTime, Utc};
use croner::Cron;
use croner::parser::{CronParser, Seconds};
use tokio::sync::Notify;
use tokio_cron_scheduler::{Job, JobScheduler};

use crate::order::Timestamp;

/// A cron expression with seconds: `sec min hour day month weekday`, in UTC.
#[derive(Clone, Debug)]
pub struct Schedule {
    text: String,
    cron: Cron,
}

/// A text that is no schedule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no schedule ({cause}); it takes cron fields with seconds first, such as \"*/5 * * * * *\" for every five seconds"
)]
pub struct ScheduleError {
    text: String,
    cause: String,
}

impl FromStr for Schedule {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        let error = |cause: String| ScheduleError {
            text: text.to_owned(),
            cause,
        };
        // The same rules as the scheduler's own parser.
        let cron = CronParser::builder()
            .seconds(Seconds::Required)
            .dom_and_dow(true)
            .build()
            .parse(text)
            .map_err(|cause| error(cause.to_string()))?;
        cron.find_next_occurrence(&DateTime::<Utc>::UNIX_EPOCH, false)
            .map_err(|_| error("it never comes".to_owned()))?;
        Ok(Self {
            text: text.to_owned(),
            cron,
        })
    }
}

impl Default for Schedule {
    /// Every second.
    fn default() -> Self {
        "* * * * * *".parse().expect("every second is a schedule")
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Schedule {
    /// The first moment of the schedule after `now`; the far future if there is none.
    pub fn next_after(&self, now: Timestamp) -> Timestamp {
        // Fractions of a second would be carried over to the next moment.
        DateTime::from_timestamp(now.0.div_euclid(1_000), 0)
            .and_then(|now| self.cron.find_next_occurrence(&now, false).ok())
            .map_or(Timestamp(i64::MAX), |next| {
                Timestamp(next.timestamp_millis())
            })
    }

    /// Starts to keep the schedule. Needs a tokio runtime.
    pub(super) async fn ticks(&self) -> anyhow::Result<Ticks> {
        let notify = Arc::new(Notify::new());
        let tick = notify.clone();
        let scheduler = JobScheduler::new()
            .await
            .context("the scheduler cannot be made")?;
        let job = Job::new_async(&self.text, move |_, _| {
            let tick = tick.clone();
            Box::pin(async move { tick.notify_one() })
        })
        .context("the schedule cannot be kept")?;
        scheduler
            .add(job)
            .await
            .context("the schedule cannot be kept")?;
        scheduler
            .start()
            .await
            .context("the scheduler cannot be started")?;
        Ok(Ticks { notify, scheduler })
    }
}

/// The moments of a schedule, as they come.
pub(super) struct Ticks {
    notify: Arc<Notify>,
    scheduler: JobScheduler,
}

impl Ticks {
    /// Returns at the next moment, or at once if one has come since the last call.
    pub async fn next(&mut self) {
        self.notify.notified().await;
    }

    /// Ends the scheduler.
    pub async fn end(mut self) {
        if let Err(error) = self.scheduler.shutdown().await {
            log::debug!("scheduler: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_has_seconds_and_is_kept_in_utc() {
        let every_second: Schedule = "* * * * * *".parse().unwrap();
        assert_eq!(every_second.next_after(Timestamp(1_500)), Timestamp(2_000));
        assert_eq!(every_second.next_after(Timestamp(2_000)), Timestamp(3_000));
        let daily: Schedule = "0 30 9 * * *".parse().unwrap();
        assert_eq!(
            daily.next_after(Timestamp(0)),
            Timestamp((9 * 3600 + 30 * 60) * 1_000)
        );
        for text in ["", "* * * * *", "60 * * * * *", "hello", "0 0 0 30 2 *"] {
            assert!(text.parse::<Schedule>().is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn a_moment_that_has_not_come_is_waited_for() {
        let leap_day: Schedule = "0 0 0 29 2 *".parse().unwrap();
        let mut ticks = leap_day.ticks().await.unwrap();
        tokio::select! {
            biased;
            () = ticks.next() => panic!("it is not that day"),
            () = tokio::task::yield_now() => {}
        }
        ticks.end().await;
    }
}
