//! The schedule of passes: a cron expression with seconds, in UTC.
//!
//! The scheduler only wakes the loop in `pass.rs`. It does not run passes, because two would
//! overlap, and does not decide that one is due, because it would wait for a clock that was set back to
//! catch up. [`Occurrences`] decides that.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use chrono::{DateTime, Utc};
use croner::Cron;
use croner::parser::{CronParser, Seconds};
use tokio::sync::Notify;
use tokio_cron_scheduler::{Job, JobScheduler};

use crate::clock::{Clock, SteadyClock, SystemClock};
use crate::order::Timestamp;

/// Longest wait before the next occurrence is recomputed, because the clock may have been set meanwhile.
const RECHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A cron expression with seconds: `sec min hour day month weekday`, in UTC.
#[derive(Clone, Debug)]
pub struct Schedule {
    text: String,
    cron: Cron,
}

/// Reason why a text is not a schedule, without the text: it may have been meant for another setting, and
/// be secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0}; expected cron fields with seconds first, such as \"*/5 * * * * *\" for every five seconds"
)]
pub struct ScheduleError(String);

/// Stands for no next occurrence.
const FAR_FUTURE: Timestamp = Timestamp(i64::MAX);

impl FromStr for Schedule {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        // With the rules of the scheduler's own parser.
        let cron = CronParser::builder()
            .seconds(Seconds::Required)
            .dom_and_dow(true)
            .build()
            .parse(text)
            .map_err(|cause| ScheduleError(cause.to_string().trim_end_matches('.').to_owned()))?;
        cron.find_next_occurrence(&DateTime::<Utc>::UNIX_EPOCH, false)
            .map_err(|_| ScheduleError("it has no occurrence".to_owned()))?;
        let schedule = Self {
            text: text.to_owned(),
            cron,
        };
        if schedule.next_after(SystemClock.now()) == FAR_FUTURE {
            return Err(ScheduleError("its last occurrence has passed".to_owned()));
        }
        Ok(schedule)
    }
}

impl Default for Schedule {
    /// Returns the schedule of every second.
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
    /// Returns the first occurrence after `now`, or the far future if there is none.
    pub fn next_after(&self, now: Timestamp) -> Timestamp {
        // The parser would carry fractions of a second over to the next occurrence.
        DateTime::from_timestamp(now.0.div_euclid(1_000), 0)
            .and_then(|now| self.cron.find_next_occurrence(&now, false).ok())
            .map_or(FAR_FUTURE, |next| Timestamp(next.timestamp_millis()))
    }

    /// Starts a scheduler of the occurrences after `now`. Needs a tokio runtime.
    pub(super) async fn ticks(&self, now: Timestamp) -> anyhow::Result<Ticks> {
        let notify = Arc::new(Notify::new());
        let tick = notify.clone();
        let scheduler = JobScheduler::new()
            .await
            .context("creating the scheduler failed")?;
        let job = Job::new_async(&self.text, move |_, _| {
            let tick = tick.clone();
            Box::pin(async move { tick.notify_one() })
        })
        .context("scheduling passes failed")?;
        scheduler
            .add(job)
            .await
            .context("scheduling passes failed")?;
        scheduler
            .start()
            .await
            .context("starting the scheduler failed")?;
        Ok(Ticks {
            occurrences: Occurrences::new(self.clone(), now),
            notify,
            scheduler,
        })
    }
}

/// The occurrences of a schedule, by a clock that may be set back or forward.
#[derive(Clone, Debug)]
pub struct Occurrences {
    schedule: Schedule,
    /// Moment at which one was last due.
    last: Timestamp,
}

impl Occurrences {
    /// Returns the occurrences after `now`.
    pub fn new(schedule: Schedule, now: Timestamp) -> Self {
        Self {
            schedule,
            last: now,
        }
    }

    /// Returns whether an occurrence has come since one was last due. After a step of the clock that is
    /// unknown, and the answer is yes.
    pub fn is_due<C: Clock>(&mut self, clock: &SteadyClock<C>) -> bool {
        if clock.is_stepped() {
            self.last = clock.time_of_day();
            return true;
        }
        // Over a long wait, drift would add up to a step.
        clock.follow_drift();
        let now = clock.now();
        // A pass that a new order caused may have resynced the clock.
        self.last = self.last.min(now);
        let is_due = self.schedule.next_after(self.last) <= now;
        if is_due {
            self.last = now;
        }
        is_due
    }

    /// Returns how long to wait before the next call of [`Self::is_due`].
    pub fn wait<C: Clock>(&self, clock: &SteadyClock<C>) -> Duration {
        let next = self.schedule.next_after(self.last);
        next.since(clock.now()).min(RECHECK_INTERVAL)
    }
}

/// A running scheduler, and the occurrences that it wakes for.
pub(super) struct Ticks {
    occurrences: Occurrences,
    notify: Arc<Notify>,
    scheduler: JobScheduler,
}

impl Ticks {
    /// Returns at the next occurrence, or at once if one has come since the last call.
    pub async fn next<C: Clock>(&mut self, clock: &SteadyClock<C>) {
        while !self.occurrences.is_due(clock) {
            tokio::select! {
                () = self.notify.notified() => {}
                () = clock.sleep(self.occurrences.wait(clock)) => {}
            }
        }
    }

    /// Shuts down the scheduler.
    pub async fn shut_down(mut self) {
        if let Err(error) = self.scheduler.shutdown().await {
            log::debug!("shutting down the scheduler failed: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    #[test]
    fn a_schedule_has_seconds_and_is_in_utc() {
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

    #[test]
    fn a_schedule_without_a_future_occurrence_is_refused() {
        let error = "* * * * * * 2020".parse::<Schedule>().unwrap_err();
        assert!(error.to_string().contains("its last occurrence has passed"));
        assert!("* * * * * * 2020-2098".parse::<Schedule>().is_ok());
    }

    #[test]
    fn occurrences_continue_when_the_clock_is_set_back_or_forward() {
        const HOUR: i64 = 3_600_000;
        let began_at = Timestamp(1_800_000_000_000);
        for (schedule, by, within) in [
            ("* * * * * *", -6 * HOUR, 1),
            ("* * * * * *", 6 * HOUR, 1),
            ("0 0 * * * *", -6 * HOUR, 1),
            ("0 0 * * * *", 6 * HOUR, 1),
        ] {
            let other = ManualClock::new(began_at);
            let clock = SteadyClock::new(other.clone());
            let mut occurrences = Occurrences::new(schedule.parse().unwrap(), other.now());
            assert!(!occurrences.is_due(&clock));
            other.step(Timestamp(began_at.0 + by));
            let mut waited = Duration::ZERO;
            while !occurrences.is_due(&clock) {
                waited += occurrences.wait(&clock);
                other.set(other.now().after(occurrences.wait(&clock)));
            }
            assert!(waited <= Duration::from_secs(within), "{schedule} {by}");
            // The pass that follows resyncs the clock, and the next occurrence is one of the schedule.
            clock.resync();
            assert!(!occurrences.is_due(&clock));
            let next = occurrences.schedule.next_after(other.now());
            other.set(Timestamp(next.0 - 1));
            assert!(!occurrences.is_due(&clock));
            other.set(next);
            assert!(occurrences.is_due(&clock), "{schedule} {by}");
            // A pass that an order causes may be the first to see that the clock was set back.
            other.step(Timestamp(other.now().0 - HOUR));
            clock.resync();
            occurrences.is_due(&clock);
            other.set(occurrences.schedule.next_after(other.now()));
            assert!(occurrences.is_due(&clock), "{schedule} {by}");
        }
    }

    #[test]
    fn a_clock_that_drifts_between_two_occurrences_is_not_one_that_was_set() {
        for per_minute in [-30, 30] {
            let other = ManualClock::new(Timestamp(1_800_000_000_000));
            let clock = SteadyClock::new(other.clone());
            let mut occurrences = Occurrences::new("0 0 */6 * * *".parse().unwrap(), other.now());
            let next = occurrences.schedule.next_after(other.now());
            for second in 1.. {
                other.set(other.now().after(occurrences.wait(&clock)));
                if second % 60 == 0 {
                    other.step(Timestamp(other.now().0 + per_minute));
                }
                if occurrences.is_due(&clock) {
                    break;
                }
            }
            assert!(!clock.resync(), "{per_minute}");
            let late = clock.now().0 - next.0;
            assert!((0..1_000).contains(&late), "{per_minute}: {late}");
        }
    }

    #[tokio::test]
    async fn the_schedule_waits_for_the_next_occurrence() {
        let leap_day: Schedule = "0 0 0 29 2 *".parse().unwrap();
        let clock = SteadyClock::new(SystemClock);
        let mut ticks = leap_day.ticks(clock.now()).await.unwrap();
        tokio::select! {
            biased;
            () = ticks.next(&clock) => panic!("it is not that day"),
            () = tokio::task::yield_now() => {}
        }
        ticks.shut_down().await;
    }
}
