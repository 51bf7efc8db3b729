//! The clock, as something that is passed in: the programs read the machine's, tests and benches
//! bring one that they move by hand.
//!
//! It has two readings. The time of day is what is stored and told, and may be set back or forward at
//! any moment; the uptime only goes forward, and waits are measured by it. [`SteadyClock`] is both in
//! one, for work that must not see the time of day move under its hands.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use crate::order::Timestamp;

/// Tells the time and waits for it.
pub trait Clock: 'static {
    /// The present moment.
    fn now(&self) -> Timestamp;

    /// Time since some moment before. It only goes forward.
    fn uptime(&self) -> Duration;

    /// Waits for that long.
    fn sleep(&self, length: Duration) -> impl Future<Output = ()>;

    /// Returns when `moment` has come unless the clock is set meanwhile, at once if it has passed.
    fn sleep_until(&self, moment: Timestamp) -> impl Future<Output = ()> {
        self.sleep(moment.since(self.now()))
    }

    /// Returns at this moment, as the end of waiting for something else: a clock that skips the time
    /// slept must not skip that.
    fn deadline(&self, moment: Timestamp) -> impl Future<Output = ()> {
        self.sleep_until(moment)
    }
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

/// The longest time for which a sleeper does not look at the clock. The timers that wake it stand
/// still while the machine is suspended.
const NAP_MAX: Duration = Duration::from_secs(1);

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Timestamp(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
    }

    /// Since the machine was started, a suspend included.
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
            tokio::time::sleep(left.min(NAP_MAX)).await;
        }
    }
}

/// A clock that only goes forward between two moments at which it is set right by another.
#[derive(Debug)]
pub struct SteadyClock<C> {
    clock: C,
    /// The present moment and the uptime when this was last set.
    set: Cell<(Timestamp, Duration)>,
}

/// A difference from the other clock that counts as a step, and is far more than it takes to read both.
/// A smaller one stays. It does not grow: a clock that is slowed down or sped up takes the uptime along.
const STEP_MIN: Duration = Duration::from_millis(200);

impl<C: Clock> SteadyClock<C> {
    /// Goes on from what `clock` tells.
    pub fn new(clock: C) -> Self {
        let set = Cell::new((clock.now(), clock.uptime()));
        Self { clock, set }
    }

    /// Returns whether the other clock was set back or forward since this was last set.
    pub fn is_stepped(&self) -> bool {
        self.clock.now().0.abs_diff(self.now().0) >= STEP_MIN.as_millis() as u64
    }

    /// Sets this by the other clock if that one was stepped. Tells whether it was.
    pub fn set_right(&self) -> bool {
        let is_stepped = self.is_stepped();
        if is_stepped {
            self.set.set((self.clock.now(), self.clock.uptime()));
        }
        is_stepped
    }

    /// The present moment by the other clock.
    pub fn time_of_day(&self) -> Timestamp {
        self.clock.now()
    }
}

impl<C: Clock> Clock for SteadyClock<C> {
    fn now(&self) -> Timestamp {
        let (now, uptime) = self.set.get();
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

/// A clock that stands still until it is set, or slept on: then the moment has come at once. Clones
/// tell the same time.
#[derive(Clone, Debug)]
pub struct SetClock {
    now: Rc<Cell<Timestamp>>,
    uptime: Rc<Cell<Duration>>,
}

impl SetClock {
    /// It is `now`.
    pub fn new(now: Timestamp) -> Self {
        Self {
            now: Rc::new(Cell::new(now)),
            uptime: Rc::default(),
        }
    }

    /// Lets time pass until it is `now`. If that is earlier than it was, the clock is set back.
    pub fn set(&self, now: Timestamp) {
        self.uptime.set(self.uptime.get() + now.since(self.now()));
        self.now.set(now);
    }

    /// Sets the clock to `now`, without any time passing.
    pub fn step(&self, now: Timestamp) {
        self.now.set(now);
    }
}

impl Clock for SetClock {
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
    fn a_steady_clock_goes_forward_whatever_happens_to_the_other_until_it_is_set_right() {
        let other = SetClock::new(Timestamp(100_000));
        let steady = SteadyClock::new(other.clone());
        let step = |by| other.step(Timestamp(other.now().0 + by));
        for by in [-7_200_000, -1_000, 1_000, 7_200_000] {
            let before = (other.now(), steady.now());
            step(by);
            assert_eq!(steady.now(), before.1);
            other.set(other.now().after(Duration::from_secs(5)));
            assert_eq!(steady.now(), before.1.after(Duration::from_secs(5)));
            assert!(steady.is_stepped(), "{by}");
            assert!(steady.set_right());
            assert_eq!(steady.now(), Timestamp(before.0.0 + by + 5_000));
            assert!(!steady.set_right());
        }
        // A small step shortens or lengthens nothing. Many of them are one that is not small.
        let before = steady.now();
        step(100);
        assert!(!steady.set_right());
        assert_eq!(steady.now(), before);
        step(100);
        assert!(steady.set_right());
        assert_eq!(steady.now(), other.now());
    }

    #[tokio::test]
    async fn the_machine_s_uptime_goes_forward_and_is_slept_by() {
        let begun = SystemClock.uptime();
        SystemClock.sleep(Duration::from_millis(20)).await;
        let slept = SystemClock.uptime() - begun;
        assert!(slept >= Duration::from_millis(20), "{slept:?}");
    }
}
