//! Many ids, one after the other in one text, and a way to find one among them.
//!
//! A pass watches up to a million orders: an allocation for each id would cost more time and memory
//! than all else that is known of them.

use std::hash::{BuildHasher, RandomState};

use super::{IdError, OrderId, check};

/// Ids, each told by its place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    text: String,
    /// Where each ends in the text.
    ends: Vec<usize>,
}

impl Ids {
    /// Checks a text and adds it as the last id.
    ///
    /// # Errors
    /// The first rule that the text breaks.
    pub fn push(&mut self, text: &str) -> Result<(), IdError> {
        check(text)?;
        self.text.push_str(text);
        self.ends.push(self.text.len());
        Ok(())
    }

    /// Removes all of them.
    pub fn clear(&mut self) {
        self.text.clear();
        self.ends.clear();
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The id at this place, as it was given.
    ///
    /// # Panics
    /// There are not so many.
    pub fn get(&self, place: usize) -> &str {
        let begin = match place {
            0 => 0,
            place => self.ends[place - 1],
        };
        &self.text[begin..self.ends[place]]
    }

    /// The id at this place, by itself.
    ///
    /// # Panics
    /// There are not so many.
    pub fn order_id(&self, place: usize) -> OrderId {
        // It was checked when it was added.
        OrderId(self.get(place).into())
    }

    /// A way to find them.
    pub fn index(&self) -> IdIndex<'_> {
        IdIndex::new(self)
    }
}

/// Finds ids: a hash table of their places, with open addressing. The hash is keyed at random,
/// because callers choose the ids.
#[derive(Debug)]
pub struct IdIndex<'a> {
    ids: &'a Ids,
    /// Half of them at least are free.
    slots: Vec<Slot>,
    hasher: RandomState,
}

/// Where an id may be found.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// A part of its hash, so that few texts are compared in vain: each may be far away in memory.
    tag: u32,
    /// Its place, counted from one; 0 if this is free.
    number: u32,
}

impl<'a> IdIndex<'a> {
    fn new(ids: &'a Ids) -> Self {
        let mut index = Self {
            ids,
            slots: vec![Slot::default(); (2 * ids.len() + 1).next_power_of_two()],
            hasher: RandomState::new(),
        };
        for (place, number) in (0..ids.len()).zip(1..) {
            let (mut at, tag) = index.begin(ids.get(place));
            while index.slots[at].number != 0 {
                at = index.after(at);
            }
            index.slots[at] = Slot { tag, number };
        }
        index
    }

    /// The place of this id. Of one that was added twice it is the first.
    pub fn find(&self, id: &str) -> Option<usize> {
        self.candidates(id).find(|place| self.ids.get(*place) == id)
    }

    /// Tells of each of the wanted that is among these, by its place among the wanted, which place
    /// it has here. Quicker than one by one: the memory for all of them is fetched at once.
    pub fn find_each(&self, wanted: &Ids, mut tell: impl FnMut(usize, usize)) {
        let first = |at| Some((at, self.candidates(wanted.get(at)).next()?));
        let likely: Vec<(usize, usize)> = (0..wanted.len()).filter_map(first).collect();
        for (at, place) in likely {
            let id = wanted.get(at);
            let is_it = self.ids.get(place) == id;
            if let Some(place) = is_it.then_some(place).or_else(|| self.find(id)) {
                tell(at, place);
            }
        }
    }

    /// The places whose id may be this one.
    fn candidates(&self, id: &str) -> impl Iterator<Item = usize> {
        let (at, tag) = self.begin(id);
        let slots = self.slots[at..].iter().chain(&self.slots[..at]);
        slots
            .take_while(|slot| slot.number != 0)
            .filter(move |slot| slot.tag == tag)
            .map(|slot| slot.number as usize - 1)
    }

    /// The slot where the search for an id begins, and its tag.
    fn begin(&self, id: &str) -> (usize, u32) {
        let hash = self.hasher.hash_one(id);
        (hash as usize & (self.slots.len() - 1), (hash >> 32) as u32)
    }

    fn after(&self, at: usize) -> usize {
        (at + 1) & (self.slots.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_id_is_found_at_its_place_and_no_other_is() {
        let mut ids = Ids::default();
        assert_eq!(ids.index().find("a0"), None);
        for n in 0..1_000 {
            ids.push(&format!("a{n}")).unwrap();
        }
        let index = ids.index();
        for place in 0..ids.len() {
            let id = format!("a{place}");
            assert_eq!(index.find(&id), Some(place));
            assert_eq!(ids.order_id(place).as_str(), id);
        }
        for other in ["", "a", "a1000", "b1", "a1a2"] {
            assert_eq!(index.find(other), None, "{other}");
        }
        let mut wanted = Ids::default();
        for id in ["a7", "b", "a999", "a1000", "a0", "a7"] {
            wanted.push(id).unwrap();
        }
        let mut found = Vec::new();
        index.find_each(&wanted, |at, place| found.push((at, place)));
        assert_eq!(found, [(0, 7), (2, 999), (4, 0), (5, 7)]);
    }

    #[test]
    fn what_can_be_no_id_is_not_added() {
        let mut ids = Ids::default();
        assert_eq!(ids.push(" a"), Err(IdError::Space));
        assert!(ids.is_empty());
    }
}
