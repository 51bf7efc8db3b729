//! Clocks, passed as arguments: the programs use the machine's, tests and benchmarks one that they set.
//!
//! A clock has two readings. The time of day is stored and reported, and may be set back or forward at
//! any moment; the uptime only goes forward, and waits are measured by it. [`SteadyClock`] combines
//! them, for work during which the time of day must not jump.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use crate::order::Timestamp;

/// A source of time that can be waited on.
pub trait Clock: 'static {
    /// Returns the time of day.
    fn now(&self) -> Timestamp;

    /// Returns the time since a fixed moment in the past. It never decreases.
    fn uptime(&self) -> Duration;

    /// Waits for this duration.
    fn sleep(&self, length: Duration) -> impl Future<Output = ()>;

    /// Waits until `moment`, or returns at once if it has passed. Does not notice a clock that is set
    /// meanwhile.
    fn sleep_until(&self, moment: Timestamp) -> impl Future<Output = ()> {
        self.sleep(moment.since(self.now()))
    }

    /// Waits until `moment`, as the deadline of waiting for something else: a clock that skips sleeps
    /// must not skip this one.
    fn deadline(&self, moment: Timestamp) -> impl Future<Output = ()> {
        self.sleep_until(moment)
    }
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

/// Maximum time between two readings of the uptime during a sleep: timers stop while the machine is
/// suspended.
const UPTIME_CHECK_INTERVAL: Duration = Duration::from_secs(1);

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Timestamp(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
    }

    /// Returns the time since the machine was started, suspends included.
    fn uptime(&self) -> Duration {
        Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default()
    }

    async fn sleep(&self, length: Duration) {
        let until = self.uptime().saturating_add(length);
        loop {
            let left = until.saturating_sub(self.uptime());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(UPTIME_CHECK_INTERVAL)).await;
        }
    }
}

/// The clock of a database, by which all that is stored is dated: the machine's, unless the database is on
/// a server. Then it is this machine's uptime with an offset that is measured again and again, so
/// that machines whose clocks differ agree, and a clock that is set here has no effect.
#[derive(Clone, Debug, Default)]
pub struct DatabaseClock {
    /// Microseconds from the uptime to the time of day of the server; `None` for the machine's clock.
    offset_us: Option<Arc<AtomicI64>>,
}

/// An offset that was not measured yet.
const UNMEASURED: i64 = i64::MIN;

impl DatabaseClock {
    /// Returns the clock of a server, which shows the machine's time of day until it is measured.
    pub fn of_server() -> Self {
        Self {
            offset_us: Some(Arc::new(AtomicI64::new(UNMEASURED))),
        }
    }

    /// Sets the clock by a reading of the server's, in microseconds since 1970, that was taken after the
    /// uptime `asked_at` and before now. The offset is corrected only as far as the reading
    /// contradicts it, so that slow round trips do no harm.
    pub fn measure(&self, reading_us: i64, asked_at: Duration) {
        let Some(offset_us) = &self.offset_us else {
            return;
        };
        let at_most = reading_us.saturating_sub(micros(asked_at));
        let at_least = reading_us.saturating_sub(micros(SystemClock.uptime()));
        let _ = offset_us.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |offset| {
            Some(match offset {
                UNMEASURED => at_least + (at_most - at_least) / 2,
                offset => offset.clamp(at_least.min(at_most), at_most),
            })
        });
    }
}

impl Clock for DatabaseClock {
    fn now(&self) -> Timestamp {
        let offset_us = self.offset_us.as_ref();
        let offset_us = offset_us.map(|offset| offset.load(Ordering::Relaxed));
        match offset_us.filter(|offset| *offset != UNMEASURED) {
            Some(offset_us) => {
                Timestamp(micros(SystemClock.uptime()).saturating_add(offset_us) / 1_000)
            }
            None => SystemClock.now(),
        }
    }

    fn uptime(&self) -> Duration {
        SystemClock.uptime()
    }

    fn sleep(&self, length: Duration) -> impl Future<Output = ()> {
        SystemClock.sleep(length)
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// A clock that goes forward with the uptime, except when it is resynchronised with another one.
#[derive(Debug)]
pub struct SteadyClock<C> {
    clock: C,
    /// Time of day and uptime of the last synchronisation. The time of day follows the drift since then.
    synced: Cell<(Timestamp, Duration)>,
    /// Uptime until which the drift was followed.
    followed_until: Cell<Duration>,
}

/// Minimum difference from the other clock that counts as a step: far more than reading both takes.
const STEP_MIN: Duration = Duration::from_millis(200);

/// Minimum difference from the other clock that is followed as drift: more than reading both takes. This
/// machine's clock does not drift, because slewing it slews the uptime too; a database server's does.
const DRIFT_MIN: Duration = Duration::from_millis(10);

impl<C: Clock> SteadyClock<C> {
    /// Returns a clock that starts at the present time of `clock`.
    pub fn new(clock: C) -> Self {
        let uptime = clock.uptime();
        Self {
            synced: Cell::new((clock.now(), uptime)),
            followed_until: Cell::new(uptime),
            clock,
        }
    }

    /// Returns whether the other clock was set back or forward since the last synchronisation.
    pub fn is_stepped(&self) -> bool {
        self.difference().unsigned_abs() >= STEP_MIN.as_millis() as u64
    }

    /// Synchronises with the other clock if that one was stepped. Returns whether it was. Otherwise
    /// follows its drift.
    pub fn resync(&self) -> bool {
        let is_stepped = self.is_stepped();
        if is_stepped {
            self.synced.set((self.clock.now(), self.clock.uptime()));
        } else {
            self.follow_drift();
        }
        is_stepped
    }

    /// Follows the drift of the other clock, by 1 ms a second at most, so that waits stay as long as they
    /// are.
    pub fn follow_drift(&self) {
        let (difference, uptime) = (self.difference(), self.clock.uptime());
        let seconds = uptime.saturating_sub(self.followed_until.get()).as_secs() as i64;
        if seconds > 0 {
            self.followed_until.set(uptime);
            if difference.unsigned_abs() >= DRIFT_MIN.as_millis() as u64 {
                let (now, synced_at) = self.synced.get();
                let now = Timestamp(now.0 + difference.clamp(-seconds, seconds));
                self.synced.set((now, synced_at));
            }
        }
    }

    /// Returns the milliseconds by which the other clock is ahead.
    fn difference(&self) -> i64 {
        self.clock.now().0.saturating_sub(self.now().0)
    }

    /// Returns the time of day of the other clock.
    pub fn time_of_day(&self) -> Timestamp {
        self.clock.now()
    }
}

impl<C: Clock> Clock for SteadyClock<C> {
    fn now(&self) -> Timestamp {
        let (now, uptime) = self.synced.get();
        now.after(self.clock.uptime().saturating_sub(uptime))
    }

    fn uptime(&self) -> Duration {
        self.clock.uptime()
    }

    fn sleep(&self, length: Duration) -> impl Future<Output = ()> {
        self.clock.sleep(length)
    }

    fn deadline(&self, moment: Timestamp) -> impl Future<Output = ()> {
        let left = moment.since(self.now());
        self.clock.deadline(self.clock.now().after(left))
    }
}

/// A clock that stands still until it is set; a sleep sets it and returns at once. Clones share the
/// time.
#[derive(Clone, Debug)]
pub struct ManualClock {
    now: Rc<Cell<Timestamp>>,
    uptime: Rc<Cell<Duration>>,
}

impl ManualClock {
    /// Returns a clock that is set to `now`.
    pub fn new(now: Timestamp) -> Self {
        Self {
            now: Rc::new(Cell::new(now)),
            uptime: Rc::default(),
        }
    }

    /// Lets time pass until `now`. An earlier time sets the clock back.
    pub fn set(&self, now: Timestamp) {
        self.uptime.set(self.uptime.get() + now.since(self.now()));
        self.now.set(now);
    }

    /// Sets the time of day to `now`, without any time passing.
    pub fn step(&self, now: Timestamp) {
        self.now.set(now);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        self.now.get()
    }

    fn uptime(&self) -> Duration {
        self.uptime.get()
    }

    async fn sleep(&self, length: Duration) {
        self.set(self.now().after(length));
    }

    async fn deadline(&self, _moment: Timestamp) {
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_clock_advances_whatever_the_system_clock_does() {
        let other = ManualClock::new(Timestamp(100_000));
        let steady = SteadyClock::new(other.clone());
        let step = |by| other.step(Timestamp(other.now().0 + by));
        for by in [-7_200_000, -1_000, 1_000, 7_200_000] {
            let before = (other.now(), steady.now());
            step(by);
            assert_eq!(steady.now(), before.1);
            other.set(other.now().after(Duration::from_secs(5)));
            assert_eq!(steady.now(), before.1.after(Duration::from_secs(5)));
            assert!(steady.is_stepped(), "{by}");
            assert!(steady.resync());
            assert_eq!(steady.now(), Timestamp(before.0.0 + by + 5_000));
            assert!(!steady.resync());
        }
        // A small step is ignored, until several add up to STEP_MIN.
        let before = steady.now();
        step(100);
        assert!(!steady.resync());
        assert_eq!(steady.now(), before);
        step(100);
        assert!(steady.resync());
        assert_eq!(steady.now(), other.now());
    }

    #[test]
    fn a_steady_clock_follows_a_clock_that_drifts() {
        for per_minute in [-30, 30] {
            let other = ManualClock::new(Timestamp(100_000));
            let steady = SteadyClock::new(other.clone());
            for _ in 0..1_000 {
                other.step(Timestamp(other.now().0 + per_minute));
                for _ in 0..600 {
                    let before = steady.now();
                    other.set(other.now().after(Duration::from_millis(100)));
                    assert!(!steady.resync(), "{per_minute}");
                    let passed = steady.now().0 - before.0;
                    assert!((99..=101).contains(&passed), "{passed}");
                }
            }
            assert!(steady.now().0.abs_diff(other.now().0) < 30, "{per_minute}");
            // A step is no drift.
            other.step(Timestamp(other.now().0 + 100 * per_minute));
            assert!(steady.resync(), "{per_minute}");
        }
    }

    #[test]
    fn a_server_s_clock_is_followed_as_far_as_its_readings_contradict() {
        let clock = DatabaseClock::of_server();
        let ahead = |by_ms: i64| (SystemClock.now().0 + by_ms) * 1_000;
        let difference = || clock.now().0 - SystemClock.now().0;
        let asked_at = SystemClock.uptime();
        clock.measure(ahead(60_000), asked_at);
        assert!((59_900..60_100).contains(&difference()), "{}", difference());
        // The answer has taken two seconds, and may have been read at any moment between.
        let long_ago = SystemClock.uptime() - Duration::from_secs(2);
        clock.measure(ahead(58_500), long_ago);
        assert!((59_900..60_100).contains(&difference()), "{}", difference());
        clock.measure(ahead(-60_000), SystemClock.uptime());
        assert!(
            (-60_100..-59_900).contains(&difference()),
            "{}",
            difference()
        );
    }

    #[tokio::test]
    async fn sleeps_follow_the_uptime() {
        let began_at = SystemClock.uptime();
        SystemClock.sleep(Duration::from_millis(20)).await;
        let slept = SystemClock.uptime() - began_at;
        assert!(slept >= Duration::from_millis(20), "{slept:?}");
    }
}
