//! What a pass has seen of the orders that it looks at.
//!
//! A list tells of a million orders, so what it said of each takes a byte; what a look-up said of
//! one comes before that. What to do about it is decided elsewhere.

use std::collections::HashMap;
use std::time::Duration;

use crate::decide::Look;
use crate::order::{IdIndex, Observed, Texts, Timestamp};
use crate::pace::{self, Failure};
use crate::store::Watchlist;
use crate::upstream::Entry;

/// The orders that are looked at, and what was seen of each.
pub(super) struct Sight {
    pub orders: Watchlist,
    listed: Listed,
    looked_up: HashMap<usize, Look>,
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

impl Sight {
    pub fn new(orders: Watchlist) -> Self {
        Self {
            orders,
            listed: Listed::new(0, Timestamp(0)),
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
    pub fn look(&self, place: usize) -> Option<&Look> {
        self.looked_up
            .get(&place)
            .or_else(|| self.listed.look(place))
    }

    /// What look-ups have told, by the place of the order in the order of creation.
    pub fn looked_up(&self) -> impl Iterator<Item = (i64, &Look)> {
        let looks = self.looked_up.iter();
        looks.map(|(place, look)| (self.orders.watched()[*place].seq, look))
    }

    /// The places of the orders that the list does not know.
    pub fn unlisted(&self) -> impl Iterator<Item = usize> {
        let said = self.listed.said.iter().enumerate();
        said.filter_map(|(place, said)| (*said == Said::Absent).then_some(place))
    }

    /// How many orders have no process, as far as was seen; some may be counted twice.
    pub fn absent(&self) -> usize {
        let looks = self.looked_up.values();
        let looked_up = looks.filter(|look| look.observed == Observed::Absent);
        self.unlisted().count() + looked_up.count()
    }

    /// An order was looked up.
    pub fn saw(&mut self, place: usize, look: Look) {
        self.looked_up.insert(place, look);
    }

    /// What was seen of an order does not count.
    pub fn forget(&mut self, place: usize) {
        self.looked_up.remove(&place);
        if let Some(said) = self.listed.said.get_mut(place) {
            *said = Said::Nothing;
        }
    }

    /// A list was read, to the end if it had so many entries.
    pub fn read(&mut self, mut listed: Listed, entries: Option<u64>) {
        self.is_listed = true;
        self.entries = entries;
        if entries.is_some() {
            listed.end();
        } else {
            self.is_complete = false;
        }
        self.listed = listed;
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

/// A list that is read. Its entries are gathered, and their orders found many at a time; those whose
/// status is not known are rare, and told by themselves.
pub(super) struct Reading<'a> {
    orders: &'a Watchlist,
    /// Made when there is something to find: while it is, more of the list arrives.
    index: Option<IdIndex<'a>>,
    listed: Listed,
    ids: Texts,
    said: Vec<Said>,
}

/// How many entries are gathered. What is fetched for them fits the processor's nearest memory.
const GATHERED_MAX: usize = 128;

impl<'a> Reading<'a> {
    /// A list that was asked for at `began_at`.
    pub fn new(orders: &'a Watchlist, began_at: Timestamp) -> Self {
        Self {
            orders,
            index: None,
            listed: Listed::new(orders.len(), began_at),
            ids: Texts::default(),
            said: Vec::with_capacity(GATHERED_MAX),
        }
    }

    /// Takes note of an entry.
    pub fn tell(&mut self, entry: &Entry<'_>) {
        match Observed::of_status(&entry.status) {
            Observed::Running => self.gather(&entry.order_id, Said::Running),
            Observed::Succeeded => self.gather(&entry.order_id, Said::Succeeded),
            Observed::Failed => self.gather(&entry.order_id, Said::Failed),
            Observed::Unrecognised(word) => {
                if let Some(place) = self.find().find(&entry.order_id) {
                    self.listed.tell_odd(place, word);
                }
            }
            // No status says this.
            Observed::Absent | Observed::Unknown => {}
        }
    }

    fn gather(&mut self, id: &str, said: Said) {
        self.ids.push(id);
        self.said.push(said);
        if self.said.len() == GATHERED_MAX {
            self.find();
        }
    }

    /// What the list has said.
    pub fn end(mut self) -> Listed {
        self.find();
        self.listed
    }

    /// Finds what was gathered.
    fn find(&mut self) -> &IdIndex<'a> {
        let index = self.index.get_or_insert_with(|| self.orders.ids().index());
        index.find_each(&self.ids, |at, place| {
            self.listed.tell(place, self.said[at]);
        });
        self.ids.clear();
        self.said.clear();
        index
    }
}

/// What a list says.
pub(super) struct Listed {
    said: Vec<Said>,
    absent: Look,
    running: Look,
    succeeded: Look,
    failed: Look,
    contradiction: Look,
    /// The statuses that are not known.
    odd: HashMap<usize, Look>,
}

/// What a list says of one order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
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

impl Listed {
    /// A list that was asked for at `began_at` and has said nothing yet, for so many orders.
    fn new(orders: usize, began_at: Timestamp) -> Self {
        let look = |observed| Look { observed, began_at };
        Self {
            said: vec![Said::Nothing; orders],
            absent: look(Observed::Absent),
            running: look(Observed::Running),
            succeeded: look(Observed::Succeeded),
            failed: look(Observed::Failed),
            contradiction: look(Observed::Unknown),
            odd: HashMap::new(),
        }
    }

    /// An entry is of the order at this place, and its status is known.
    fn tell(&mut self, place: usize, said: Said) {
        let before = &mut self.said[place];
        if *before == Said::Nothing {
            *before = said;
        } else if *before != said {
            *before = Said::Contradiction;
        }
    }

    /// The same, with a status that is not known.
    fn tell_odd(&mut self, place: usize, word: Box<str>) {
        self.tell(place, Said::Odd);
        let look = Look {
            observed: Observed::Unrecognised(word),
            // All that a list says began with it.
            began_at: self.running.began_at,
        };
        if *self.odd.entry(place).or_insert_with(|| look.clone()) != look {
            self.said[place] = Said::Contradiction;
        }
    }

    /// It was whole: what it has not named is absent.
    fn end(&mut self) {
        for said in &mut self.said {
            if *said == Said::Nothing {
                *said = Said::Absent;
            }
        }
    }

    fn look(&self, place: usize) -> Option<&Look> {
        match self.said.get(place)? {
            Said::Nothing => None,
            Said::Absent => Some(&self.absent),
            Said::Running => Some(&self.running),
            Said::Succeeded => Some(&self.succeeded),
            Said::Failed => Some(&self.failed),
            Said::Odd => self.odd.get(&place),
            Said::Contradiction => Some(&self.contradiction),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use crate::order::OrderId;
    use crate::store::{Change, DatabasePath, Mode, OpenGate, Step, Store};

    #[test]
    fn a_list_says_of_each_order_what_it_says_of_it_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = DatabasePath::from(folder.path().join("orders.db"));
        let store = Store::open(&path, Mode::Inline(Arc::new(OpenGate))).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            for n in 0..6 {
                let id = OrderId::new(format!("a{n}")).unwrap();
                store.create(id, Timestamp(0)).await.unwrap();
            }
            let step = Step::Adopted;
            let changes = (1..=6).map(|seq| Change {
                seq,
                step: step.clone(),
            });
            store.record(changes.collect(), Timestamp(1)).await.unwrap();
        });
        let orders = store.watched().unwrap();
        let mut reading = Reading::new(&orders, Timestamp(7));
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
            reading.tell(&Entry { order_id, status });
        }
        let mut listed = reading.end();
        let told = |listed: &Listed, place| listed.look(place).map(|look| look.observed.clone());
        let paused = Observed::of_status("PAUSED");
        assert_eq!(told(&listed, 0), Some(Observed::Running));
        assert_eq!(told(&listed, 1), Some(Observed::Unknown));
        assert_eq!(told(&listed, 2), Some(paused));
        assert_eq!(told(&listed, 3), Some(Observed::Unknown));
        assert_eq!(told(&listed, 4), Some(Observed::Succeeded));
        assert_eq!(told(&listed, 5), None);
        listed.end();
        assert_eq!(told(&listed, 5), Some(Observed::Absent));
    }
}
