//! The observations of a pass: the upstream's answers about the orders that it polls.
//!
//! A list may name a million orders, so its status of each takes a byte. The answer to a look-up takes
//! precedence over the list. `decide` chooses what follows from an observation.

use std::collections::HashMap;
use std::time::Duration;

use crate::decide::{Observation, OpenOrder, Phase, Policy};
use crate::id_arena::{IdIndex, StringArena};
use crate::order::{Observed, Timestamp};
use crate::pace::{self, PollTarget};
use crate::store::OpenOrders;
use crate::upstream::{Entry, Failure};

/// The polled orders, and the observation of each.
pub(super) struct Observations {
    pub orders: OpenOrders,
    /// Number of processes of other orders that run.
    pub others_running: u64,
    listed: ListSnapshot,
    pub looked_up: HashMap<usize, Observation>,
    /// The orders whose own look-up failed.
    pub failures: Vec<(usize, Failure)>,
    /// Cleared if the list or a look-up failed.
    pub is_complete: bool,
    /// Cleared if an order that was due and was to be looked up was not.
    pub is_each_tried: bool,
    /// Set if a list was read, completely or not.
    pub is_listed: bool,
    /// Number of entries of a complete list.
    pub entries: Option<u64>,
    /// The orders that the list lacks and that were not looked up, with the moment when the list was
    /// requested.
    pub unconfirmed: Vec<(usize, Timestamp)>,
    /// Number of look-ups sent.
    pub look_ups: usize,
}

impl Observations {
    pub fn new(orders: OpenOrders, others_running: u64) -> Self {
        Self {
            orders,
            others_running,
            listed: ListSnapshot::new(0, Timestamp(0)),
            looked_up: HashMap::new(),
            failures: Vec::new(),
            unconfirmed: Vec::new(),
            is_complete: true,
            is_each_tried: true,
            is_listed: false,
            entries: None,
            look_ups: 0,
        }
    }

    /// Returns the observation of the order at an index, if there is one.
    pub fn observation(&self, index: usize) -> Option<&Observation> {
        self.looked_up
            .get(&index)
            .or_else(|| self.listed.observation(index))
    }

    /// Returns whether the order at an index is due and was not observed.
    pub fn is_unobserved(&self, index: usize, now: Timestamp) -> bool {
        self.observation(index).is_none() && self.orders.order(index).is_due(now)
    }

    /// Returns the orders that were observed, each with its observation.
    pub fn observed(&self) -> impl Iterator<Item = (&PollTarget, &Observation)> {
        let orders = self.orders.targets().iter().enumerate();
        orders.filter_map(|(index, order)| Some((order, self.observation(index)?)))
    }

    /// Returns the indexes of the orders that the complete list lacks.
    pub fn unlisted(&self) -> impl Iterator<Item = usize> {
        self.listed_as(ListedStatus::Absent)
    }

    /// Returns the indexes of the orders that the list names twice with different statuses.
    pub fn contradictions(&self) -> impl Iterator<Item = usize> {
        self.listed_as(ListedStatus::Contradiction)
    }

    fn listed_as(&self, status: ListedStatus) -> impl Iterator<Item = usize> {
        let statuses = self.listed.statuses.iter().enumerate();
        statuses.filter_map(move |(index, other)| (*other == status).then_some(index))
    }

    /// Counts the processes that were confirmed after `since`, and those of them that are newly missing.
    /// Excludes a process that was confirmed too late for its absence to count.
    pub fn missing(&self, since: Option<Timestamp>, policy: &Policy) -> Missing {
        let mut missing = Missing::default();
        // With so few absent processes, no number of known ones would make it a restart.
        let observations = self.looked_up.values();
        let absent = observations.filter(|observation| observation.observed == Observed::Absent);
        if !pace::is_upstream_restart(self.unlisted().count() + absent.count(), 0) {
            return missing;
        }
        for (index, order) in self.orders.orders().enumerate() {
            let (Phase::Processing { confirmed_at, .. }, Some(observation)) =
                (order.phase, self.observation(index))
            else {
                continue;
            };
            let is_counted = order.is_visible_at(observation.began_at, policy)
                && !order.is_marked_missing()
                && since.is_none_or(|at| confirmed_at > at);
            missing.known += usize::from(is_counted);
            missing.missing += usize::from(is_counted && observation.observed == Observed::Absent);
        }
        missing
    }

    /// Returns whether a look-up has seen a process with a known status.
    pub fn is_any_process_observed(&self) -> bool {
        self.looked_up.values().any(|observation| {
            let observed = &observation.observed;
            !matches!(observed, Observed::Absent | Observed::Unrecognised(_))
        })
    }

    /// Returns whether any process that was confirmed after `since` is newly missing.
    pub fn is_any_forgotten(&self, since: Option<Timestamp>, policy: &Policy) -> bool {
        self.is_any(|order, observation| {
            let is_new = match order.phase {
                Phase::Processing {
                    confirmed_at,
                    missed_at: None,
                } => since.is_none_or(|at| confirmed_at > at),
                _ => false,
            };
            is_new && order.is_missing_in(observation, policy)
        })
    }

    /// Returns whether any process was absent too soon after its confirmation for that to count.
    pub fn is_any_absence_early(&self, policy: &Policy) -> bool {
        self.is_any(|order, observation| order.is_missing_too_soon_in(observation, policy))
    }

    /// Returns whether `holds` is true of any order that was looked up or that the list lacks.
    fn is_any(&self, holds: impl Fn(&OpenOrder, &Observation) -> bool) -> bool {
        let mut indexes = self.unlisted().chain(self.looked_up.keys().copied());
        indexes.any(|index| {
            let observation = self.observation(index);
            observation.is_some_and(|observation| holds(&self.orders.order(index), observation))
        })
    }

    /// Discards the list's observations of the missing orders for which `needs_look_up` is true. Returns
    /// their indexes, with the moment when the list was requested.
    pub fn take_unconfirmed(
        &mut self,
        policy: &Policy,
        needs_look_up: impl Fn(&OpenOrder, &Observation) -> bool,
    ) -> Vec<(usize, Timestamp)> {
        let unlisted = self.unlisted().filter_map(|index| {
            let (order, observation) = (self.orders.order(index), self.observation(index)?);
            let is_taken =
                order.is_missing_in(observation, policy) && needs_look_up(&order, observation);
            is_taken.then_some((index, observation.began_at))
        });
        let unconfirmed: Vec<_> = unlisted.collect();
        for (index, _) in &unconfirmed {
            self.listed.statuses[*index] = ListedStatus::Unknown;
        }
        unconfirmed
    }

    /// Adds the failure of a look-up.
    pub fn add_failure(&mut self, index: usize, failure: Failure) {
        self.is_complete = false;
        self.failures.push((index, failure));
    }

    /// Adds a list; `entries` is their number if the list was complete.
    pub fn add_list(&mut self, listed: ListSnapshot, entries: Option<u64>) {
        self.is_listed = true;
        self.entries = entries;
        self.is_complete &= entries.is_some();
        self.listed = listed;
    }

    /// Returns the number of requests sent.
    pub fn requests(&self) -> usize {
        self.look_ups + usize::from(self.is_listed)
    }

    /// Returns the upstream's estimated time for these requests.
    pub fn cost(&self) -> Duration {
        let list = if self.is_listed {
            pace::list_cost(self.entries.unwrap_or(0))
        } else {
            Duration::ZERO
        };
        list + pace::look_ups_cost(self.look_ups)
    }
}

/// The numbers of newly missing and of known processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Missing {
    pub missing: usize,
    pub known: usize,
}

impl Missing {
    /// Returns whether that many missing processes mean a restart of the upstream.
    pub fn is_upstream_restart(self) -> bool {
        pace::is_upstream_restart(self.missing, self.known)
    }
}

/// A reader of a list. It buffers entries and finds their orders a batch at a time. Entries with an
/// unrecognised status are rare and are found one by one.
pub(super) struct ListReader<'a> {
    orders: &'a OpenOrders,
    /// Built on the first batch, so that the list arrives meanwhile.
    index: Option<IdIndex<'a>>,
    listed: ListSnapshot,
    ids: StringArena,
    statuses: Vec<ListedStatus>,
}

/// Number of entries that are found at once. Their data fit the processor's first-level cache.
const BATCH_ENTRIES: usize = 128;

impl<'a> ListReader<'a> {
    /// Creates a reader of a list that was requested at `began_at`.
    pub fn new(orders: &'a OpenOrders, began_at: Timestamp) -> Self {
        Self {
            orders,
            index: None,
            listed: ListSnapshot::new(orders.len(), began_at),
            ids: StringArena::default(),
            statuses: Vec::with_capacity(BATCH_ENTRIES),
        }
    }

    /// Adds an entry.
    pub fn on_entry(&mut self, entry: &Entry<'_>) {
        match Observed::of_status(&entry.status) {
            Observed::Running => self.buffer(&entry.order_id, ListedStatus::Running),
            Observed::Succeeded => self.buffer(&entry.order_id, ListedStatus::Succeeded),
            Observed::Failed => self.buffer(&entry.order_id, ListedStatus::Failed),
            Observed::Unrecognised(word) => {
                if let Some(index) = self.flush().find(&entry.order_id) {
                    self.listed.set_unrecognised(index, word);
                }
            }
            // No status maps to this.
            Observed::Absent => {}
        }
    }

    fn buffer(&mut self, id: &str, status: ListedStatus) {
        self.ids.push(id);
        self.statuses.push(status);
        if self.statuses.len() == BATCH_ENTRIES {
            self.flush();
        }
    }

    /// Returns the snapshot. Orders that a complete list does not name are absent.
    pub fn end(mut self, is_complete: bool) -> ListSnapshot {
        self.flush();
        if is_complete {
            for status in &mut self.listed.statuses {
                if *status == ListedStatus::Unknown {
                    *status = ListedStatus::Absent;
                }
            }
        }
        self.listed
    }

    /// Finds the orders of the buffered entries, and returns the index.
    fn flush(&mut self) -> &IdIndex<'a> {
        let index = self.index.get_or_insert_with(|| self.orders.ids().index());
        index.lookup_batch(&self.ids, |entry, index| {
            self.listed.set(index, self.statuses[entry]);
        });
        self.ids.clear();
        self.statuses.clear();
        index
    }
}

/// The statuses of orders by one list.
pub(super) struct ListSnapshot {
    statuses: Vec<ListedStatus>,
    absent: Observation,
    running: Observation,
    succeeded: Observation,
    failed: Observation,
    /// Observations with an unrecognised status, by the index of the order.
    unrecognised: HashMap<usize, Observation>,
}

/// The status of one order by a list, in a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ListedStatus {
    Unknown,
    Absent,
    Running,
    Succeeded,
    Failed,
    /// An unrecognised status.
    Unrecognised,
    /// Two entries with different statuses: neither is believed.
    Contradiction,
}

impl ListSnapshot {
    /// Creates a snapshot without entries, of a list that was requested at `began_at`.
    fn new(orders: usize, began_at: Timestamp) -> Self {
        let observation = |observed| Observation { observed, began_at };
        Self {
            statuses: vec![ListedStatus::Unknown; orders],
            absent: observation(Observed::Absent),
            running: observation(Observed::Running),
            succeeded: observation(Observed::Succeeded),
            failed: observation(Observed::Failed),
            unrecognised: HashMap::new(),
        }
    }

    /// Reindexes the snapshot from the orders that were open `before` to those that are open `now`. An
    /// order that was not open before has no status.
    pub fn for_open_orders(mut self, before: &OpenOrders, now: &OpenOrders) -> Self {
        let mut before_index = 0;
        let mut statuses = Vec::with_capacity(now.len());
        let mut unrecognised = HashMap::new();
        for (index, order) in now.targets().iter().enumerate() {
            let earlier = &before.targets()[before_index..];
            before_index += earlier.partition_point(|other| other.seq < order.seq);
            let is_same = before
                .targets()
                .get(before_index)
                .is_some_and(|other| other.seq == order.seq);
            if is_same && let Some(observation) = self.unrecognised.remove(&before_index) {
                unrecognised.insert(index, observation);
            }
            statuses.push(match is_same {
                true => self.statuses[before_index],
                false => ListedStatus::Unknown,
            });
        }
        (self.statuses, self.unrecognised) = (statuses, unrecognised);
        self
    }

    /// Sets the status of the order at an index.
    fn set(&mut self, index: usize, status: ListedStatus) {
        let before = &mut self.statuses[index];
        if *before == ListedStatus::Unknown {
            *before = status;
        } else if *before != status {
            *before = ListedStatus::Contradiction;
        }
    }

    /// Like `set`, with an unrecognised status.
    fn set_unrecognised(&mut self, index: usize, word: Box<str>) {
        self.set(index, ListedStatus::Unrecognised);
        let observation = Observation {
            observed: Observed::Unrecognised(word),
            // All observations of a list began with it.
            began_at: self.running.began_at,
        };
        if *self
            .unrecognised
            .entry(index)
            .or_insert_with(|| observation.clone())
            != observation
        {
            self.statuses[index] = ListedStatus::Contradiction;
        }
    }

    fn observation(&self, index: usize) -> Option<&Observation> {
        match self.statuses.get(index)? {
            ListedStatus::Unknown | ListedStatus::Contradiction => None,
            ListedStatus::Absent => Some(&self.absent),
            ListedStatus::Running => Some(&self.running),
            ListedStatus::Succeeded => Some(&self.succeeded),
            ListedStatus::Failed => Some(&self.failed),
            ListedStatus::Unrecognised => self.unrecognised.get(&index),
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
    fn each_order_has_the_status_of_its_own_entries() {
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
            let transition = Transition::Adopted;
            let changes = (1..=6).map(|seq| OrderChange {
                seq,
                transition: transition.clone(),
            });
            let lead = store.try_lead().await.unwrap().unwrap();
            let recorded = lead.record(changes.collect(), Timestamp(1)).await;
            recorded.unwrap();
            store.open_orders().await.unwrap()
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
        let status_of = |listed: &ListSnapshot, index| {
            listed
                .observation(index)
                .map(|observation| observation.observed.clone())
        };
        let paused = Observed::of_status("PAUSED");
        assert_eq!(status_of(&listed, 0), Some(Observed::Running));
        assert_eq!(status_of(&listed, 1), None);
        assert_eq!(status_of(&listed, 2), Some(paused));
        assert_eq!(status_of(&listed, 3), None);
        assert_eq!(status_of(&listed, 4), Some(Observed::Succeeded));
        assert_eq!(status_of(&listed, 5), None);
        assert_eq!(status_of(&read(true), 5), Some(Observed::Absent));
        // Of the orders that are open later, it has those that were open when it began.
        let later = orders.chosen(&[1, 2, 5]);
        let listed = read(true).for_open_orders(&orders, &later);
        let paused = Observed::of_status("PAUSED");
        assert_eq!(status_of(&listed, 0), None);
        assert_eq!(status_of(&listed, 1), Some(paused));
        assert_eq!(status_of(&listed, 2), Some(Observed::Absent));
        let earlier = orders.chosen(&[0, 4]);
        let mut reading = ListReader::new(&earlier, Timestamp(7));
        reading.on_entry(&Entry {
            order_id: "a4".into(),
            status: "FAILED".into(),
        });
        let listed = reading.end(true).for_open_orders(&earlier, &orders);
        assert_eq!(status_of(&listed, 0), Some(Observed::Absent));
        assert_eq!(status_of(&listed, 4), Some(Observed::Failed));
        for unknown in [1, 2, 3, 5] {
            assert_eq!(status_of(&listed, unknown), None);
        }
    }
}
