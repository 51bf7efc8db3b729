//! A compact list of the orders whose process has to be polled: a pass keeps all of them in memory,
//! and there may be a million.
//!
//! An order that merely runs takes a few words and no allocation of its own; any other is stored
//! whole.

use crate::decide::{OpenOrder, Phase};
use crate::id_arena::StringArena;
use crate::order::{IdError, OrderId, Timestamp};
use crate::pace::PollTarget;

/// Orders that are PROCESSING, or CREATED with a start of unknown outcome, addressed by index,
/// oldest first.
#[derive(Clone, Debug, Default)]
pub struct OpenOrders {
    ids: StringArena,
    targets: Vec<PollTarget>,
    notes: Vec<Notes>,
    /// Orders with more state than the compact form has room for, with their indexes.
    others: Vec<(usize, OpenOrder)>,
}

/// State stored for every order, besides its [`PollTarget`].
#[derive(Clone, Copy, Debug)]
struct Notes {
    starts: u8,
    is_observed: bool,
}

impl OpenOrders {
    /// Returns the number of orders.
    pub fn len(&self) -> usize {
        self.targets.len()
    }

    /// Returns true if there are no orders.
    pub fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }

    /// Returns the numbers and start times that the poll schedule needs.
    pub fn targets(&self) -> &[PollTarget] {
        &self.targets
    }

    /// Returns the index of the order with this number, if it is among them.
    pub fn index_of(&self, seq: i64) -> Option<usize> {
        let found = self.targets.binary_search_by_key(&seq, |order| order.seq);
        found.ok()
    }

    /// Returns the ids, which are valid, in order.
    pub fn ids(&self) -> &StringArena {
        &self.ids
    }

    /// Returns the order at an index.
    ///
    /// # Panics
    /// If the index is out of bounds.
    pub fn order(&self, index: usize) -> OpenOrder {
        match self.others.binary_search_by_key(&index, |other| other.0) {
            Ok(position) => self.others[position].1,
            Err(_) => plain(self.targets[index], self.notes[index]),
        }
    }

    /// Iterates over all orders.
    pub fn orders(&self) -> impl Iterator<Item = OpenOrder> {
        let mut others = self.others.iter().peekable();
        let all = self.targets.iter().zip(&self.notes).enumerate();
        all.map(
            move |(index, (target, notes))| match others.next_if(|other| other.0 == index) {
                Some((_, order)) => *order,
                None => plain(*target, *notes),
            },
        )
    }

    /// Returns the orders at these indexes, which must be ascending.
    #[must_use]
    pub fn chosen(&self, indexes: &[usize]) -> Self {
        let mut chosen = Self::default();
        for &index in indexes {
            chosen.ids.push(self.ids.get(index));
            chosen.push_order(self.order(index));
        }
        chosen
    }

    /// Appends the next order.
    pub(super) fn push(&mut self, id: &str, order: OpenOrder) -> Result<(), IdError> {
        OrderId::check(id)?;
        self.ids.push(id);
        self.push_order(order);
        Ok(())
    }

    /// Returns the number of the last order; 0 if there is none.
    pub(super) fn last_seq(&self) -> i64 {
        self.targets.last().map_or(0, |order| order.seq)
    }

    fn push_order(&mut self, order: OpenOrder) {
        let target = PollTarget {
            seq: order.seq,
            running_since: running_since(&order),
        };
        let notes = Notes {
            starts: u8::try_from(order.starts).unwrap_or(u8::MAX),
            is_observed: order.is_observed,
        };
        if plain(target, notes) != order {
            self.others.push((self.targets.len(), order));
        }
        self.targets.push(target);
        self.notes.push(notes);
    }
}

/// Returns an order whose process is known to run, without other state.
pub(super) fn running(seq: i64, since: Timestamp, starts: u32, is_observed: bool) -> OpenOrder {
    let running_since = Some(since);
    OpenOrder {
        starts,
        ..plain(
            PollTarget { seq, running_since },
            Notes {
                starts: 0,
                is_observed,
            },
        )
    }
}

/// Returns the order that the compact form stands for.
fn plain(target: PollTarget, notes: Notes) -> OpenOrder {
    let missed_at = None;
    OpenOrder {
        seq: target.seq,
        phase: match target.running_since {
            None => Phase::Created,
            Some(confirmed_at) => Phase::Processing {
                confirmed_at,
                missed_at,
            },
        },
        is_observed: notes.is_observed,
        intent: None,
        starts: u32::from(notes.starts),
        restart_requested: false,
        attempts: 0,
        next_attempt_at: None,
        attention: None,
    }
}

/// Returns the time since when the order's process is known to run. `None` if its state is in
/// doubt: such an order is polled whenever others are.
fn running_since(order: &OpenOrder) -> Option<Timestamp> {
    match order.phase {
        Phase::Processing {
            confirmed_at,
            missed_at: None,
        } if order.intent.is_none() && order.attention.is_none() => Some(confirmed_at),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::Intent;
    use crate::order::Reason;

    #[test]
    fn an_order_is_given_back_as_it_was_read_whatever_is_known_of_it() {
        let runs = |seq| {
            let running_since = Some(Timestamp(seq * 10));
            let notes = Notes {
                starts: 1,
                is_observed: seq % 2 == 0,
            };
            plain(PollTarget { seq, running_since }, notes)
        };
        let intent = Some(Intent {
            written_at: Timestamp(5),
            given_up_at: None,
            answer_status: None,
        });
        let orders = [
            runs(1),
            OpenOrder { intent, ..runs(2) },
            OpenOrder {
                intent,
                phase: Phase::Created,
                ..runs(3)
            },
            runs(4),
            OpenOrder {
                starts: 1_000,
                ..runs(5)
            },
            OpenOrder {
                restart_requested: true,
                ..runs(6)
            },
            OpenOrder {
                attempts: 1,
                ..runs(7)
            },
            OpenOrder {
                attention: Some(Reason::ProcessLost),
                ..runs(8)
            },
            runs(9),
        ];
        let mut list = OpenOrders::default();
        for order in orders {
            list.push(&format!("a{}", order.seq), order).unwrap();
        }
        assert_eq!(list.push(" a", runs(10)), Err(IdError::Space));
        assert!(list.orders().eq(orders));
        assert_eq!(list.others.len(), 6);
        let chosen = list.chosen(&[0, 4, 8]);
        assert!(chosen.orders().eq([orders[0], orders[4], orders[8]]));
        assert_eq!(chosen.ids().get(2), "a9");
        let in_doubt = list
            .targets()
            .iter()
            .filter(|order| order.running_since.is_none());
        assert_eq!(in_doubt.count(), 3);
    }
}
