//! Many ids in one allocation, and an index that looks many of them up at once.
//!
//! Not pure: the index is keyed at random. A pass observes up to a million orders. Measured against simpler
//! designs:
//!
//! - An id of its own for each order, and the standard library's map from ids to indexes: a pass
//!   that settles a million orders takes 139 MiB instead of 80 (`scripts/bench settle`).
//! - One lookup in the table for each entry of the list, instead of [`IdIndex::lookup_batch`]: a pass
//!   without changes among 100,000 open orders takes 1.6 times as long as list and reading alone
//!   instead of 1.1 times (`scripts/bench unchanged`).

use std::hash::BuildHasher;
use std::hint::black_box;
use std::ops::Range;

use hashbrown::{DefaultHashBuilder, HashTable};

use crate::order::OrderId;

/// Many texts in one allocation, each identified by its index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StringArena {
    all: String,
    /// The end of each text in `all`.
    ends: Vec<usize>,
}

impl StringArena {
    /// Adds a text as the last one.
    pub fn push(&mut self, text: &str) {
        self.all.push_str(text);
        self.ends.push(self.all.len());
    }

    /// Removes all of them.
    pub fn clear(&mut self) {
        self.all.clear();
        self.ends.clear();
    }

    /// Returns the number of texts.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Returns whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Returns a copy of the id at an index.
    ///
    /// # Panics
    /// The index is out of bounds, or the text is no valid id.
    pub fn order_id(&self, index: usize) -> OrderId {
        OrderId::new(self.get(index)).expect("only valid ids are added")
    }

    /// Builds an index of the texts.
    pub fn index(&self) -> IdIndex<'_> {
        IdIndex::new(self)
    }

    /// Returns the range of a text in `all`.
    fn range(&self, index: usize) -> Range<usize> {
        let begin = match index {
            0 => 0,
            index => self.ends[index - 1],
        };
        begin..self.ends[index]
    }

    /// Returns the text at an index, as it was added.
    ///
    /// # Panics
    /// The index is out of bounds.
    pub fn get(&self, index: usize) -> &str {
        &self.all[self.range(index)]
    }

    /// Like `get`, without a check for the boundaries of characters.
    fn bytes(&self, index: usize) -> &[u8] {
        &self.all.as_bytes()[self.range(index)]
    }
}

/// A hash table of the indexes of ids. The hash is keyed at random, because callers choose the ids.
#[derive(Debug)]
pub struct IdIndex<'a> {
    ids: &'a StringArena,
    indexes: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl<'a> IdIndex<'a> {
    fn new(ids: &'a StringArena) -> Self {
        let mut indexes = HashTable::with_capacity(ids.len());
        let hasher = DefaultHashBuilder::default();
        let hash = |index: &u32| hasher.hash_one(ids.bytes(*index as usize));
        for (index, _) in (0..).zip(&ids.ends) {
            indexes.insert_unique(hash(&index), index, hash);
        }
        Self {
            ids,
            indexes,
            hasher,
        }
    }

    /// Returns the index of an id; one of them, if it was added twice.
    pub fn find(&self, id: &str) -> Option<usize> {
        self.index_of(id.as_bytes())
    }

    fn index_of(&self, id: &[u8]) -> Option<usize> {
        let is_it = |index: &u32| self.ids.bytes(*index as usize) == id;
        let index = self.indexes.find(self.hasher.hash_one(id), is_it)?;
        Some(*index as usize)
    }

    /// Calls `on_found` for each of `wanted` that is among these ids, with its index in `wanted` and its
    /// index here. Faster than one lookup at a time: each step is made for all of them before the next,
    /// so that memory is fetched for many at once.
    pub fn lookup_batch(&self, wanted: &StringArena, mut on_found: impl FnMut(usize, usize)) {
        let hashes =
            (0..wanted.len()).map(|wanted_index| self.hasher.hash_one(wanted.bytes(wanted_index)));
        let hashes: Vec<u64> = hashes.collect();
        // The first id with the same beginning of the hash is nearly always the one.
        let likely = |(wanted_index, hash)| {
            Some((wanted_index, *self.indexes.find(hash, |_| true)? as usize))
        };
        let likely: Vec<_> = hashes.into_iter().enumerate().filter_map(likely).collect();
        let ranges = likely.iter().map(|(_, index)| self.ids.range(*index));
        let ranges: Vec<Range<usize>> = ranges.collect();
        let all = self.ids.all.as_bytes();
        // A text often lies across two cache lines, so a byte at each end of it is fetched.
        for range in &ranges {
            black_box((all[range.start], all[range.end - 1]));
        }
        for ((wanted_index, index), range) in likely.into_iter().zip(ranges) {
            let id = wanted.bytes(wanted_index);
            let is_it = all[range] == *id;
            if let Some(index) = is_it.then_some(index).or_else(|| self.index_of(id)) {
                on_found(wanted_index, index);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_id_is_found_at_its_index_and_no_other_is() {
        let mut ids = StringArena::default();
        assert_eq!(ids.index().find("a0"), None);
        for n in 0..1_000 {
            ids.push(&format!("a{n}"));
        }
        let by_id = ids.index();
        for index in 0..ids.len() {
            let id = format!("a{index}");
            assert_eq!(by_id.find(&id), Some(index));
            assert_eq!(ids.order_id(index).as_str(), id);
        }
        for other in ["", "a", "a1000", "b1", "a1a2"] {
            assert_eq!(by_id.find(other), None, "{other}");
        }
        let mut wanted = StringArena::default();
        for text in ["a7", "b", " ", "a999", "a1000", "a0", "", "a7"] {
            wanted.push(text);
        }
        let mut found = Vec::new();
        by_id.lookup_batch(&wanted, |wanted_index, index| {
            found.push((wanted_index, index))
        });
        assert_eq!(found, [(0, 7), (3, 999), (5, 0), (7, 7)]);
    }

    #[test]
    fn ids_whose_hashes_share_a_prefix_are_distinct() {
        let (mut ids, mut wanted) = (StringArena::default(), StringArena::default());
        // So many that some hundreds first meet another one.
        for n in 0..10_000 {
            ids.push(&format!("a{n}"));
            wanted.push(&format!("a{n}"));
            wanted.push(&format!("b{n}"));
        }
        let mut found = Vec::new();
        ids.index().lookup_batch(&wanted, |wanted_index, index| {
            found.push((wanted_index, index))
        });
        assert!(found.into_iter().eq((0..10_000).map(|n| (2 * n, n))));
    }
}
