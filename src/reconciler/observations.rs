//! What a pass has seen of the orders that it looks at.
//!
//! A list tells of a million orders, so what it said of each takes a byte; what a look-up said of
//! one comes before that. What to do about it is decided elsewhere.

use std::collections::HashMap;
use std::time::Duration;

use crate::decide::{Observation, OpenOrder, Phase, Policy};
use crate::id_arena::{IdIndex, StringArena};
use crate::order::{Observed, Timestamp};
use crate::pace;
use crate::store::OpenOrders;
use crate::upstream::{Entry, Failure};

/// The orders that are looked at, and what was seen of each.
pub(super) struct Observations {
    pub orders: OpenOrders,
    listed: ListSnapshot,
    pub looked_up: HashMap<usize, Observation>,
    /// The orders whose own look-up failed.
    pub failures: Vec<(usize, Failure)>,
    /// Whether every order was seen.
    pub is_complete: bool,
    /// Whether the list was read, and its length if it was whole.
    pub is_listed: bool,
    pub entries: Option<u64>,
    /// The orders that the list did not know and no look-up has told of, and when the list was
    /// asked for.
    pub unconfirmed: Vec<(usize, Timestamp)>,
    /// Look-ups that were made.
    pub look_ups: usize,
}

impl Observations {
    pub fn new(orders: OpenOrders) -> Self {
        Self {
            orders,
            listed: ListSnapshot::new(0, Timestamp(0)),
            looked_up: HashMap::new(),
            failures: Vec::new(),
            unconfirmed: Vec::new(),
            is_complete: true,
            is_listed: false,
            entries: None,
            look_ups: 0,
        }
    }

    /// What was seen of the order at this place, if anything was.
    pub fn look(&self, place: usize) -> Option<&Observation> {
        self.looked_up
            .get(&place)
            .or_else(|| self.listed.look(place))
    }

    /// What look-ups have told, by the place of the order in the order of creation.
    pub fn looked_up(&self) -> impl Iterator<Item = (i64, &Observation)> {
        let looks = self.looked_up.iter();
        looks.map(|(place, look)| (self.orders.watched()[*place].seq, look))
    }

    /// The places of the orders that the list does not know.
    pub fn unlisted(&self) -> impl Iterator<Item = usize> {
        self.listed_as(ListedStatus::Absent)
    }

    /// The places of the orders about which the list contradicts itself.
    pub fn contradictions(&self) -> impl Iterator<Item = usize> {
        self.listed_as(ListedStatus::Contradiction)
    }

    fn listed_as(&self, status: ListedStatus) -> impl Iterator<Item = usize> {
        let statuses = self.listed.statuses.iter().enumerate();
        statuses.filter_map(move |(place, other)| (*other == status).then_some(place))
    }

    /// Counts the processes that are newly missing, and those that were known, of the orders that were
    /// confirmed after `since`. One that was confirmed too late for its absence to count is neither.
    pub fn missing(&self, since: Option<Timestamp>, policy: &Policy) -> Missing {
        let mut missing = Missing::default();
        // While nearly none is absent, it makes no difference how many are known.
        let looks = self.looked_up.values();
        let absent = looks.filter(|look| look.observed == Observed::Absent);
        if !pace::is_restart(self.unlisted().count() + absent.count(), 0) {
            return missing;
        }
        for (place, order) in self.orders.orders().enumerate() {
            let (Phase::Processing { confirmed_at, .. }, Some(look)) =
                (order.phase, self.look(place))
            else {
                continue;
            };
            let is_counted = order.is_visible_at(look.began_at, policy)
                && !order.is_missed()
                && since.is_none_or(|at| confirmed_at > at);
            missing.known += usize::from(is_counted);
            missing.missing += usize::from(is_counted && look.observed == Observed::Absent);
        }
        missing
    }

    /// Returns whether a process is newly missing that was confirmed after `since`.
    pub fn is_any_forgotten(&self, since: Option<Timestamp>, policy: &Policy) -> bool {
        self.is_any(|order, look| {
            let is_newly = match order.phase {
                Phase::Processing {
                    confirmed_at,
                    missed_at: None,
                } => since.is_none_or(|at| confirmed_at > at),
                _ => false,
            };
            is_newly && order.is_missing_in(look, policy)
        })
    }

    /// Returns whether a process was absent too soon after it was confirmed for that to count.
    pub fn is_any_missing_too_soon(&self, policy: &Policy) -> bool {
        self.is_any(|order, look| order.is_missing_too_soon_in(look, policy))
    }

    /// Returns whether this holds of any order that was looked up, or that the list does not know.
    fn is_any(&self, holds: impl Fn(&OpenOrder, &Observation) -> bool) -> bool {
        let mut places = self.unlisted().chain(self.looked_up.keys().copied());
        places.any(|place| {
            let look = self.look(place);
            look.is_some_and(|look| holds(&self.orders.order(place), look))
        })
    }

    /// Takes back what the list said of the orders that it did not know and that are `doubtful`;
    /// returns them, with the moment when the list was asked for.
    pub fn take_doubtful(
        &mut self,
        policy: &Policy,
        is_doubtful: impl Fn(&OpenOrder, &Observation) -> bool,
    ) -> Vec<(usize, Timestamp)> {
        let unlisted = self.unlisted().filter_map(|place| {
            let (order, look) = (self.orders.order(place), self.look(place)?);
            let is_taken = order.is_missing_in(look, policy) && is_doubtful(&order, look);
            is_taken.then_some((place, look.began_at))
        });
        let doubtful: Vec<_> = unlisted.collect();
        for (place, _) in &doubtful {
            self.looked_up.remove(place);
            self.listed.statuses[*place] = ListedStatus::Nothing;
        }
        doubtful
    }

    /// An order was looked up.
    pub fn saw(&mut self, place: usize, look: Observation) {
        self.looked_up.insert(place, look);
    }

    /// A list was read, to the end if it had so many entries.
    pub fn read(&mut self, listed: ListSnapshot, entries: Option<u64>) {
        self.is_listed = true;
        self.entries = entries;
        self.is_complete &= entries.is_some();
        self.listed = listed;
    }

    /// Number of requests that it took.
    pub fn requests(&self) -> usize {
        self.look_ups + usize::from(self.is_listed)
    }

    /// What it has cost the upstream.
    pub fn cost(&self) -> Duration {
        let list = if self.is_listed {
            pace::list_cost(self.entries.unwrap_or(0))
        } else {
            Duration::ZERO
        };
        list + pace::look_ups_cost(self.look_ups)
    }
}

/// Processes that are newly missing, of those that were known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Missing {
    pub missing: usize,
    pub known: usize,
}

impl Missing {
    /// Returns whether the upstream must have been restarted.
    pub fn is_restart(self) -> bool {
        pace::is_restart(self.missing, self.known)
    }
}

/// A list that is read. Its entries are gathered, and their orders found many at a time; those whose
/// status is not known are rare, and told by themselves.
pub(super) struct ListReader<'a> {
    orders: &'a OpenOrders,
    /// Made when there is something to find: while it is, more of the list arrives.
    index: Option<IdIndex<'a>>,
    listed: ListSnapshot,
    ids: StringArena,
    statuses: Vec<ListedStatus>,
}

/// How many entries are gathered. What is fetched for them fits the processor's nearest memory.
const GATHERED_MAX: usize = 128;

impl<'a> ListReader<'a> {
    /// A list that was asked for at `began_at`.
    pub fn new(orders: &'a OpenOrders, began_at: Timestamp) -> Self {
        Self {
            orders,
            index: None,
            listed: ListSnapshot::new(orders.len(), began_at),
            ids: StringArena::default(),
            statuses: Vec::with_capacity(GATHERED_MAX),
        }
    }

    /// Takes note of an entry.
    pub fn on_entry(&mut self, entry: &Entry<'_>) {
        match Observed::of_status(&entry.status) {
            Observed::Running => self.gather(&entry.order_id, ListedStatus::Running),
            Observed::Succeeded => self.gather(&entry.order_id, ListedStatus::Succeeded),
            Observed::Failed => self.gather(&entry.order_id, ListedStatus::Failed),
            Observed::Unrecognised(word) => {
                if let Some(place) = self.find().find(&entry.order_id) {
                    self.listed.tell_odd(place, word);
                }
            }
            // No status says this.
            Observed::Absent => {}
        }
    }

    fn gather(&mut self, id: &str, said: ListedStatus) {
        self.ids.push(id);
        self.statuses.push(said);
        if self.statuses.len() == GATHERED_MAX {
            self.find();
        }
    }

    /// What the list has said. What a complete one has not named is absent.
    pub fn end(mut self, is_complete: bool) -> ListSnapshot {
        self.find();
        if is_complete {
            for status in &mut self.listed.statuses {
                if *status == ListedStatus::Nothing {
                    *status = ListedStatus::Absent;
                }
            }
        }
        self.listed
    }

    /// Finds what was gathered.
    fn find(&mut self) -> &IdIndex<'a> {
        let index = self.index.get_or_insert_with(|| self.orders.ids().index());
        index.lookup_batch(&self.ids, |at, place| {
            self.listed.tell(place, self.statuses[at]);
        });
        self.ids.clear();
        self.statuses.clear();
        index
    }
}

/// What a list says.
pub(super) struct ListSnapshot {
    statuses: Vec<ListedStatus>,
    absent: Observation,
    running: Observation,
    succeeded: Observation,
    failed: Observation,
    /// The statuses that are not known.
    odd: HashMap<usize, Observation>,
}

/// What a list says of one order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ListedStatus {
    Nothing,
    Absent,
    Running,
    Succeeded,
    Failed,
    /// A status that is not known.
    Odd,
    /// It was named twice and differently: that says nothing.
    Contradiction,
}

impl ListSnapshot {
    /// A list that was asked for at `began_at` and has said nothing yet, for so many orders.
    fn new(orders: usize, began_at: Timestamp) -> Self {
        let look = |observed| Observation { observed, began_at };
        Self {
            statuses: vec![ListedStatus::Nothing; orders],
            absent: look(Observed::Absent),
            running: look(Observed::Running),
            succeeded: look(Observed::Succeeded),
            failed: look(Observed::Failed),
            odd: HashMap::new(),
        }
    }

    /// The same list, for the orders that are open by now: about those that were not when it began it
    /// says nothing.
    pub fn for_orders(mut self, before: &OpenOrders, now: &OpenOrders) -> Self {
        let mut at = 0;
        let mut statuses = Vec::with_capacity(now.len());
        let mut odd = HashMap::new();
        for (place, order) in now.watched().iter().enumerate() {
            let earlier = &before.watched()[at..];
            at += earlier.partition_point(|other| other.seq < order.seq);
            let is_same = before
                .watched()
                .get(at)
                .is_some_and(|other| other.seq == order.seq);
            if let Some(look) = self.odd.remove(&at).filter(|_| is_same) {
                odd.insert(place, look);
            }
            statuses.push(match is_same {
                true => self.statuses[at],
                false => ListedStatus::Nothing,
            });
        }
        (self.statuses, self.odd) = (statuses, odd);
        self
    }

    /// An entry is of the order at this place, and its status is known.
    fn tell(&mut self, place: usize, said: ListedStatus) {
        let before = &mut self.statuses[place];
        if *before == ListedStatus::Nothing {
            *before = said;
        } else if *before != said {
            *before = ListedStatus::Contradiction;
        }
    }

    /// The same, with a status that is not known.
    fn tell_odd(&mut self, place: usize, word: Box<str>) {
        self.tell(place, ListedStatus::Odd);
        let look = Observation {
            observed: Observed::Unrecognised(word),
            // All that a list says began with it.
            began_at: self.running.began_at,
        };
        if *self.odd.entry(place).or_insert_with(|| look.clone()) != look {
            self.statuses[place] = ListedStatus::Contradiction;
        }
    }

    fn look(&self, place: usize) -> Option<&Observation> {
        match self.statuses.get(place)? {
            ListedStatus::Nothing | ListedStatus::Contradiction => None,
            ListedStatus::Absent => Some(&self.absent),
            ListedStatus::Running => Some(&self.running),
            ListedStatus::Succeeded => Some(&self.succeeded),
            ListedStatus::Failed => Some(&self.failed),
            ListedStatus::Odd => self.odd.get(&place),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use crate::order::OrderId;
    use crate::store::{DatabaseUrl, Mode, NoFaults, OrderChange, Store, Transition};

    #[test]
    fn a_list_says_of_each_order_what_it_says_of_it_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = DatabaseUrl::from(folder.path().join("orders.db"));
        let store = Store::open(&path, Mode::Synchronous(Arc::new(NoFaults))).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let orders = runtime.block_on(async {
            for n in 0..6 {
                let id = OrderId::new(format!("a{n}")).unwrap();
                store.create(id, Timestamp(0)).await.unwrap();
            }
            let step = Transition::Adopted;
            let changes = (1..=6).map(|seq| OrderChange {
                seq,
                step: step.clone(),
            });
            let lead = store.try_lead().await.unwrap().unwrap();
            let recorded = store.record(&lead, changes.collect(), Timestamp(1)).await;
            recorded.unwrap();
            store.watched().await.unwrap()
        });
        let read = |is_complete| {
            let mut reading = ListReader::new(&orders, Timestamp(7));
            for (order_id, status) in [
                ("a0", "RUNNING"),
                ("a1", "FAILED"),
                ("b1", "FAILED"),
                (" not an id", "FAILED"),
                ("a2", "PAUSED"),
                ("a3", "PAUSED"),
                ("a0", "RUNNING"),
                ("a1", "SUCCEEDED"),
                ("a1", "FAILED"),
                ("a2", "PAUSED"),
                ("a3", "HALTED"),
                ("a4", "SUCCEEDED"),
            ] {
                let (order_id, status) = (order_id.into(), status.into());
                reading.on_entry(&Entry { order_id, status });
            }
            reading.end(is_complete)
        };
        let listed = read(false);
        let told =
            |listed: &ListSnapshot, place| listed.look(place).map(|look| look.observed.clone());
        let paused = Observed::of_status("PAUSED");
        assert_eq!(told(&listed, 0), Some(Observed::Running));
        assert_eq!(told(&listed, 1), None);
        assert_eq!(told(&listed, 2), Some(paused));
        assert_eq!(told(&listed, 3), None);
        assert_eq!(told(&listed, 4), Some(Observed::Succeeded));
        assert_eq!(told(&listed, 5), None);
        assert_eq!(told(&read(true), 5), Some(Observed::Absent));
        // Of the orders that are open later it speaks of those that were open when it began.
        let later = orders.chosen(&[1, 2, 5]);
        let listed = read(true).for_orders(&orders, &later);
        let paused = Observed::of_status("PAUSED");
        assert_eq!(told(&listed, 0), None);
        assert_eq!(told(&listed, 1), Some(paused));
        assert_eq!(told(&listed, 2), Some(Observed::Absent));
        let earlier = orders.chosen(&[0, 4]);
        let mut reading = ListReader::new(&earlier, Timestamp(7));
        reading.on_entry(&Entry {
            order_id: "a4".into(),
            status: "FAILED".into(),
        });
        let listed = reading.end(true).for_orders(&earlier, &orders);
        assert_eq!(told(&listed, 0), Some(Observed::Absent));
        assert_eq!(told(&listed, 4), Some(Observed::Failed));
        for unknown in [1, 2, 3, 5] {
            assert_eq!(told(&listed, unknown), None);
        }
    }
}
