//! The limit of time for the heads of requests, at next to no cost for each request.
//!
//! Nearly all of these limits are lifted long before they are reached, and to set and remove a timer
//! of the runtime's takes a lock that all connections share. So a connection has one timer, which
//! stays set: when it rings for a limit that was lifted since, it is set again for the present one.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::rt::{Sleep, Timer};

/// The timer of one connection, for limits that are all of the same length: no limit ends before
/// one that was set earlier.
#[derive(Clone)]
pub(super) struct Alarm(Arc<Mutex<Pin<Box<tokio::time::Sleep>>>>);

impl Alarm {
    /// A timer that is not set yet.
    pub fn new() -> Self {
        let sleep = tokio::time::sleep(Duration::ZERO);
        Self(Arc::new(Mutex::new(Box::pin(sleep))))
    }
}

impl Timer for Alarm {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(Limit {
            alarm: self.clone(),
            deadline: deadline.into(),
        })
    }

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into()
    }
}

/// A limit that is over at its deadline.
struct Limit {
    alarm: Alarm,
    deadline: tokio::time::Instant,
}

impl Future for Limit {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let sleep = self.alarm.0.lock();
        let mut sleep = sleep.unwrap_or_else(PoisonError::into_inner);
        loop {
            ready!(sleep.as_mut().poll(context));
            if sleep.deadline() >= self.deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(self.deadline);
        }
    }
}

impl Sleep for Limit {}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(100);

    #[tokio::test]
    async fn a_limit_is_over_at_its_deadline_whatever_was_set_before() {
        let alarm = Alarm::new();
        let begun = alarm.now();
        // Lifted again and again, also while the timer rings for one of the first.
        for _ in 0..20 {
            let limit = alarm.sleep(LIMIT);
            let sooner = tokio::time::sleep(LIMIT / 10);
            tokio::select! {
                biased;
                () = sooner => {}
                () = limit => panic!("it was over long before its time"),
            }
        }
        assert!(alarm.now() - begun >= 2 * LIMIT);
        for _ in 0..2 {
            let begun = alarm.now();
            alarm.sleep(LIMIT).await;
            assert!(alarm.now() - begun >= LIMIT);
        }
    }
}
