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
    /// Places, counted from one; 0 where there is none. Half of it at least is free.
    slots: Vec<usize>,
    hasher: RandomState,
}

impl<'a> IdIndex<'a> {
    fn new(ids: &'a Ids) -> Self {
        let mut index = Self {
            ids,
            slots: vec![0; (2 * ids.len() + 1).next_power_of_two()],
            hasher: RandomState::new(),
        };
        for place in 0..ids.len() {
            let slot = index.slot_of(ids.get(place));
            index.slots[slot] = place + 1;
        }
        index
    }

    /// The place of this id. Of one that was added twice it is the last.
    pub fn find(&self, id: &str) -> Option<usize> {
        self.slots[self.slot_of(id)].checked_sub(1)
    }

    /// Where this id is, or where it would be.
    fn slot_of(&self, id: &str) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = self.hasher.hash_one(id) as usize & mask;
        while self.slots[slot] != 0 && self.ids.get(self.slots[slot] - 1) != id {
            slot = (slot + 1) & mask;
        }
        slot
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
    }

    #[test]
    fn what_can_be_no_id_is_not_added() {
        let mut ids = Ids::default();
        assert_eq!(ids.push(" a"), Err(IdError::Space));
        assert!(ids.is_empty());
    }
}
