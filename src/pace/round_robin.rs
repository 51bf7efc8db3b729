//! Whose turn to be started is next: three queues share the start rate, so that no kind of order can
//! hold up the others.

/// A queue of orders that are due to be started, oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StartClass {
    /// Orders whose process was forgotten.
    Forgotten,
    /// Orders that were never tried.
    New,
    /// Orders whose last start was refused, or had no answer and came to nothing.
    Retry,
}

/// Turns while orders wait in all queues. An order that the upstream refuses for good comes back
/// again and again: such orders take the smallest share.
const SLOTS: [StartClass; 5] = [
    StartClass::Forgotten,
    StartClass::New,
    StartClass::Retry,
    StartClass::Forgotten,
    StartClass::New,
];

impl StartClass {
    /// All queues.
    pub const ALL: [Self; 3] = [Self::Forgotten, Self::New, Self::Retry];

    /// Turns out of [`SLOTS`].
    fn share(self) -> u64 {
        SLOTS.iter().filter(|queue| **queue == self).count() as u64
    }

    /// Number of starts that come before that of an order in this queue. `waiting` returns how many
    /// orders wait in a queue; in this one, only those before the order.
    pub fn starts_before<E>(self, waiting: impl Fn(Self) -> Result<u64, E>) -> Result<u64, E> {
        let ahead = waiting(self)?;
        let mut before = ahead;
        for other in Self::ALL.into_iter().filter(|other| *other != self) {
            let turns = (ahead + 1) * other.share() / self.share();
            before += waiting(other)?.min(turns);
        }
        Ok(before)
    }
}

/// The place in the cycle of turns.
#[derive(Clone, Copy, Debug, Default)]
pub struct RoundRobin(usize);

impl RoundRobin {
    /// Moves on to the next queue in which an order waits. `None` if none does.
    pub fn next(&mut self, is_waiting: impl Fn(StartClass) -> bool) -> Option<StartClass> {
        let mut turns = SLOTS.iter().cycle().skip(self.0).take(SLOTS.len());
        let passed = turns.position(|queue| is_waiting(*queue))?;
        let turn = (self.0 + passed) % SLOTS.len();
        self.0 = (turn + 1) % SLOTS.len();
        Some(SLOTS[turn])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The turns of orders that wait in these queues, up to the last.
    fn served(mut waiting: [u64; 3]) -> Vec<StartClass> {
        let mut turns = RoundRobin::default();
        let mut served = Vec::new();
        while let Some(queue) = turns.next(|queue| waiting[queue as usize] > 0) {
            waiting[queue as usize] -= 1;
            served.push(queue);
        }
        served
    }

    fn count(served: &[StartClass], queue: StartClass) -> usize {
        served.iter().filter(|other| **other == queue).count()
    }

    #[test]
    fn the_queues_share_the_turns_two_two_and_one_and_what_one_leaves_goes_to_the_others() {
        for (waiting, of_30) in [
            ([100, 100, 100], [12, 12, 6]),
            ([0, 100, 100], [0, 20, 10]),
            ([100, 0, 100], [20, 0, 10]),
            ([100, 100, 0], [15, 15, 0]),
            ([0, 0, 100], [0, 0, 30]),
        ] {
            let served = served(waiting);
            let counts = StartClass::ALL.map(|queue| count(&served[..30], queue));
            assert_eq!(counts, of_30, "{waiting:?}");
            assert_eq!(served.len() as u64, waiting.iter().sum::<u64>());
        }
        assert_eq!(RoundRobin::default().next(|_| false), None);
    }

    #[test]
    fn the_starts_before_an_order_are_as_many_as_are_told_and_two_more_or_fewer() {
        for waiting in [
            [0, 0, 0],
            [40, 1, 7],
            [0, 20, 3_000],
            [5, 300, 20],
            [9, 0, 50],
        ] {
            for queue in StartClass::ALL {
                let waiting_with_it = StartClass::ALL.map(|other| {
                    let order = u64::from(other == queue);
                    waiting[other as usize] + order
                });
                let served = served(waiting_with_it);
                let before = served.iter().rposition(|other| *other == queue).unwrap() as u64;
                let told = queue.starts_before(|other| Ok::<_, ()>(waiting[other as usize]));
                assert!(before.abs_diff(told.unwrap()) <= 2, "{waiting:?} {queue:?}");
            }
        }
    }
}
