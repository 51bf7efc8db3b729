//! Places from which to read on, in sequences out of which something may have been removed.
//!
//! Orders and entries are numbered, and removed by age: what is left is full of gaps, and a number
//! alone does not tell whether its reader has seen what once stood behind it. So a place carries a
//! mark wherever there are gaps beyond it: how much had been removed when it was given out. As long
//! as no more was removed, its reader has missed nothing. Where there is no gap beyond, no mark is
//! needed: should there be one later, the reader has missed it for certain.

/// A place to read on from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The number of what was read last; 0 is the beginning.
    pub seq: i64,
    /// How much had been removed by then, if some of it lay beyond; otherwise 0.
    pub mark: u64,
}

impl Place {
    /// The place after this number, with nothing removed beyond it.
    pub fn after(seq: i64) -> Self {
        Self { seq, mark: 0 }
    }
}

/// What was removed from a sequence, as of one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gaps {
    /// How much.
    pub count: u64,
    /// The greatest number among it; 0 if there is none.
    pub last: i64,
}

impl Gaps {
    /// The place after this number, for someone who reads at this moment.
    pub fn place(self, seq: i64) -> Place {
        let is_beyond = self.last > seq;
        let mark = if is_beyond { self.count } else { 0 };
        Place { seq, mark }
    }

    /// Whether something beyond this place may have been removed before its reader saw it. Who
    /// begins at the beginning asks for what is there, and misses nothing.
    pub(super) fn hide_from(self, place: Place) -> bool {
        place.seq != 0 && self.last > place.seq && self.count != place.mark
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn who_began_after_the_removal_goes_on_and_who_began_before_does_not() {
        let before = Gaps::default();
        let after = Gaps {
            count: 90,
            last: 100,
        };
        assert!(after.hide_from(before.place(5)));
        assert!(!after.hide_from(after.place(5)));
        assert!(!after.hide_from(Place::default()), "the beginning");
        for seq in [100, 101] {
            assert!(!after.hide_from(before.place(seq)), "nothing lay beyond");
            assert_eq!(after.place(seq), Place::after(seq));
        }
        let later = Gaps {
            count: 91,
            last: 100,
        };
        assert!(later.hide_from(after.place(5)));
        assert!(!later.hide_from(after.place(100)));
    }

    proptest! {
        /// Removals and a walk through what is left, in any order of steps: the walk either sees
        /// all that was there when it began, or is told that it does not.
        #[test]
        fn a_walk_misses_nothing_without_being_told(
            steps in prop::collection::vec(prop::option::weighted(0.4, 1..40i64), 0..80),
        ) {
            let mut left: Vec<i64> = (1..=40).collect();
            let mut gaps = Gaps::default();
            let mut place = Place::default();
            // What was there when the walk began, and how much had been removed by then.
            let mut begun: Option<(Vec<i64>, u64)> = None;
            let mut seen = 0;
            for step in steps {
                if let Some(seq) = step {
                    if let Some(at) = left.iter().position(|other| *other == seq) {
                        left.remove(at);
                        gaps.count += 1;
                        gaps.last = gaps.last.max(seq);
                    }
                    continue;
                }
                let (all, removed) = begun.get_or_insert_with(|| (left.clone(), gaps.count));
                if gaps.hide_from(place) {
                    prop_assert!(gaps.count > *removed, "nothing was removed meanwhile");
                    break;
                }
                let next = left.iter().copied().find(|seq| *seq > place.seq);
                prop_assert_eq!(next, all.get(seen).copied());
                let Some(next) = next else { break };
                seen += 1;
                place = gaps.place(next);
            }
        }
    }
}
