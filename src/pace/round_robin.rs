//! Weighted round robin of the starts: three classes of orders share the start rate, so that no class
//! holds up the others.

/// A class of orders that are due to be started. Each has a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StartClass {
    /// Orders whose process was forgotten.
    Forgotten,
    /// Orders without a failed attempt.
    New,
    /// Orders whose last start was refused or throttled, or was given up and had no effect.
    Retry,
}

/// One round while orders of all classes wait. An order that the upstream refuses for good returns
/// again and again, so retries have the smallest share.
const ROUND: [StartClass; 5] = [
    StartClass::Forgotten,
    StartClass::New,
    StartClass::Retry,
    StartClass::Forgotten,
    StartClass::New,
];

impl StartClass {
    /// All classes.
    pub const ALL: [Self; 3] = [Self::Forgotten, Self::New, Self::Retry];

    /// Returns the number of starts of this class in a [`ROUND`].
    fn weight(self) -> u64 {
        ROUND.iter().filter(|class| **class == self).count() as u64
    }

    /// Estimates the number of starts before that of an order of this class. `waiting` is the number
    /// of orders that wait in each class; in this one, only those before the order.
    pub fn starts_before(self, waiting: [u64; Self::ALL.len()]) -> u64 {
        let ahead = waiting[self as usize];
        let mut before = ahead;
        for other in Self::ALL.into_iter().filter(|other| *other != self) {
            let meanwhile = (ahead + 1) * other.weight() / self.weight();
            before += waiting[other as usize].min(meanwhile);
        }
        before
    }
}

/// The position in the round.
#[derive(Clone, Copy, Debug, Default)]
pub struct RoundRobin(usize);

impl RoundRobin {
    /// Advances to the next class in which an order waits and returns it; `None` if none waits.
    pub fn next(&mut self, is_waiting: impl Fn(StartClass) -> bool) -> Option<StartClass> {
        let mut classes = ROUND.iter().cycle().skip(self.0).take(ROUND.len());
        let skipped = classes.position(|class| is_waiting(*class))?;
        let index = (self.0 + skipped) % ROUND.len();
        self.0 = (index + 1) % ROUND.len();
        Some(ROUND[index])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the classes of all starts, in order, if so many orders wait in each class.
    fn served(mut waiting: [u64; 3]) -> Vec<StartClass> {
        let mut round_robin = RoundRobin::default();
        let mut served = Vec::new();
        while let Some(class) = round_robin.next(|class| waiting[class as usize] > 0) {
            waiting[class as usize] -= 1;
            served.push(class);
        }
        served
    }

    fn count(served: &[StartClass], class: StartClass) -> usize {
        served.iter().filter(|other| **other == class).count()
    }

    #[test]
    fn the_queues_share_the_starts_two_two_and_one_and_others_take_unused_ones() {
        for (waiting, of_30) in [
            ([100, 100, 100], [12, 12, 6]),
            ([0, 100, 100], [0, 20, 10]),
            ([100, 0, 100], [20, 0, 10]),
            ([100, 100, 0], [15, 15, 0]),
            ([0, 0, 100], [0, 0, 30]),
        ] {
            let served = served(waiting);
            let counts = StartClass::ALL.map(|class| count(&served[..30], class));
            assert_eq!(counts, of_30, "{waiting:?}");
            assert_eq!(served.len() as u64, waiting.iter().sum::<u64>());
        }
        assert_eq!(RoundRobin::default().next(|_| false), None);
    }

    #[test]
    fn the_starts_before_an_order_are_estimated_within_two() {
        for waiting in [
            [0, 0, 0],
            [40, 1, 7],
            [0, 20, 3_000],
            [5, 300, 20],
            [9, 0, 50],
        ] {
            for class in StartClass::ALL {
                let waiting_with_it = StartClass::ALL.map(|other| {
                    let order = u64::from(other == class);
                    waiting[other as usize] + order
                });
                let served = served(waiting_with_it);
                let before = served.iter().rposition(|other| *other == class).unwrap() as u64;
                let estimate = class.starts_before(waiting);
                assert!(before.abs_diff(estimate) <= 2, "{waiting:?} {class:?}");
            }
        }
    }
}
