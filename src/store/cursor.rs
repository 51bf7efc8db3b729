//! Positions from which readers go on, in the journal and in the list of orders, and the rule by
//! which no reader skips anything without being told.
//!
//! Two things can come between a reader and what follows its position. Orders are pruned by age,
//! with their entries, so what is left is full of gaps, and a number alone does not say whether its
//! reader has seen what once stood behind it. And a restored backup gives out numbers a second time,
//! for other orders. So a position carries how many entries had been pruned when it was given out,
//! and the history in which it was: a database begins a new one whenever it is opened in another file
//! than before (`store/sqlite/histories.rs`).

use std::fmt;
use std::str::FromStr;

/// A position to go on from; by default the beginning, which all that is there follows. Clients see
/// it as a text of which they need not know what is in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Number of the last order or entry that was read; 0 at the beginning.
    pub seq: i64,
    /// Where it was given out; a bare number does not say.
    origin: Option<Origin>,
}

/// The state of a database that gives a position out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Origin {
    history: u32,
    /// Entries that had been pruned by then.
    pruned: i64,
}

impl Cursor {
    /// The position after a number, wherever that was read. It is held against the newest alone.
    pub fn bare(seq: i64) -> Self {
        Self { seq, origin: None }
    }

    /// The position after another number that was read together with this one.
    pub fn at(self, seq: i64) -> Self {
        Self { seq, ..self }
    }
}

/// `NUMBER-PRUNED-HISTORY`, or the number alone.
impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.origin {
            None => write!(f, "{}", self.seq),
            Some(Origin { history, pruned }) => write!(f, "{}-{pruned}-{history}", self.seq),
        }
    }
}

impl FromStr for Cursor {
    /// The text is no position.
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let parse = || {
            let Some((seq, origin)) = text.split_once('-') else {
                return Some(Self::bare(text.parse().ok()?));
            };
            let (pruned, history) = origin.split_once('-')?;
            let (pruned, history) = (pruned.parse().ok()?, history.parse().ok()?);
            Some(Self {
                seq: seq.parse().ok()?,
                origin: Some(Origin { history, pruned }),
            })
        };
        // No signs and no leading zeros.
        let cursor = parse().filter(|cursor: &Self| cursor.to_string() == text);
        cursor.ok_or(())
    }
}

/// Reasons for which a reader that went on from a position might miss something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum GoneReason {
    /// Some of what follows may have been pruned before the reader saw it.
    #[error("some of what follows this position was pruned after it was given out")]
    Pruned,
    /// The database has no such history.
    #[error(
        "this position was given out by another database, or after the backup that this one was \
         restored from"
    )]
    UnknownHistory,
    /// What was read up to this position is not there, or not all of it.
    #[error(
        "this position is beyond what this database has; if it was given out, the database was \
         restored from a backup since"
    )]
    Beyond,
}

/// A reader cannot go on from a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Gone {
    pub(super) reason: GoneReason,
    /// The position from which to read what is left.
    pub left: Cursor,
}

/// One of the two sequences that are read from positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sequence {
    Orders,
    Journal,
}

/// A sequence as of one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub sequence: Sequence,
    pub newest: i64,
    /// Watermark: the greatest number that was pruned.
    pub last_pruned: i64,
    /// Entries that were pruned.
    pub pruned: i64,
}

/// Histories of a database, oldest first. None begins while a program has the file open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Histories(Vec<History>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct History {
    pub id: u32,
    /// The newest of each [`Sequence`] when it began, and how many entries had been pruned.
    pub newest: [i64; 2],
    pub pruned: i64,
}

impl Histories {
    /// Those of a database, oldest first.
    pub fn new(histories: Vec<History>) -> Self {
        Self(histories)
    }

    /// The position after a number that is read now.
    pub fn position(&self, seq: i64, now: &Extent) -> Cursor {
        // There is always one.
        let history = self.0.last().map_or(0, |history| history.id);
        let pruned = now.pruned;
        Cursor {
            seq,
            origin: Some(Origin { history, pruned }),
        }
    }

    /// Returns the position as it is given out now, if a reader that goes on from it misses nothing.
    ///
    /// It misses nothing if as much is pruned as when the position was given out, or if all that is
    /// pruned lies before it. A position of a former history is good up to where the next one began;
    /// what was pruned in the former since then is another matter, so a count of that says nothing.
    pub fn resume(&self, cursor: Cursor, now: &Extent) -> Result<Cursor, Gone> {
        let gone = |reason, left| Err(Gone { reason, left });
        let here = self.position(cursor.seq, now);
        let Some(origin) = cursor.origin else {
            return match cursor.seq > now.newest {
                true => gone(GoneReason::Beyond, Cursor::default()),
                false => Ok(here),
            };
        };
        let Some(at) = self.0.iter().position(|h| h.id == origin.history) else {
            return gone(GoneReason::UnknownHistory, Cursor::default());
        };
        let next = self.0.get(at + 1);
        let (newest, pruned) = match next {
            None => (now.newest, now.pruned),
            Some(next) => (next.newest[now.sequence as usize], next.pruned),
        };
        let has_seen_all = origin.pruned == now.pruned && origin.pruned <= pruned;
        if cursor.seq > newest {
            // A former history and this one have all in common up to there.
            let left = next.map(|_| here.at(newest));
            gone(GoneReason::Beyond, left.unwrap_or_default())
        } else if cursor.seq < now.last_pruned && !has_seen_all {
            gone(GoneReason::Pruned, here)
        } else {
            Ok(here)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_position_is_read_back_as_it_was_written_and_anything_else_is_refused() {
        for text in ["0", "17", "17-0-0", "9000000000-600000-4294967295"] {
            let cursor: Cursor = text.parse().unwrap();
            assert_eq!(cursor.to_string(), text);
        }
        for text in [
            "",
            "-",
            "-1",
            "+1",
            "01",
            "1-",
            "1-2",
            "1-2-",
            "1-2-3-4",
            "1--3",
            "1-2--3",
            "1-+2-3",
            "1-2-4294967296",
            "9999999999999999999",
            "x",
            "1-x-3",
            " 1",
            "1 ",
            "日本",
        ] {
            assert_eq!(text.parse::<Cursor>(), Err(()), "{text:?}");
        }
    }

    /// A database, and all that was ever in it.
    #[derive(Clone)]
    struct Database {
        /// Numbers, and a content that nothing else has.
        entries: Vec<(i64, u32)>,
        log: Vec<(i64, u32)>,
        now: Extent,
        histories: Histories,
    }

    impl Database {
        fn new() -> Self {
            let now = Extent {
                sequence: Sequence::Journal,
                newest: 0,
                last_pruned: 0,
                pruned: 0,
            };
            let mut database = Self {
                entries: Vec::new(),
                log: Vec::new(),
                now,
                histories: Histories(Vec::new()),
            };
            database.open_elsewhere(0);
            database
        }

        fn open_elsewhere(&mut self, id: u32) {
            self.histories.0.push(History {
                id,
                newest: [0, self.now.newest],
                pruned: self.now.pruned,
            });
        }

        fn append(&mut self, content: u32) {
            self.now.newest += 1;
            self.entries.push((self.now.newest, content));
            self.log.push((self.now.newest, content));
        }

        /// The newest is never pruned.
        fn prune(&mut self, at: usize) -> bool {
            let is_there = at + 1 < self.entries.len();
            if is_there {
                let (seq, _) = self.entries.remove(at);
                self.now.pruned += 1;
                self.now.last_pruned = self.now.last_pruned.max(seq);
            }
            is_there
        }

        /// What was pruned.
        fn absent(&self) -> BTreeSet<u32> {
            let all = self
                .log
                .iter()
                .filter(|entry| !self.entries.contains(entry));
            all.map(|(_, content)| *content).collect()
        }
    }

    /// A reader that began after a number, and what it has to have seen by now.
    struct Reader {
        cursor: Cursor,
        began_after: i64,
        /// Contents that had been pruned when it began.
        absent: BTreeSet<u32>,
        seen: BTreeSet<u32>,
    }

    impl Reader {
        fn begin(cursor: Cursor, database: &Database) -> Self {
            Self {
                cursor,
                began_after: cursor.seq,
                absent: database.absent(),
                seen: BTreeSet::new(),
            }
        }
    }

    proptest! {
        // The rarer mistakes take a copy, a prune in each, and a reader of both.
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2_000) })]

        /// Entries are added and pruned, the database is copied, restored and moved, and a reader
        /// walks through it meanwhile: it sees all that was there when it began and all that came
        /// later, or is told that it does not, and is never told so without a reason.
        #[test]
        fn a_reader_misses_nothing_without_being_told_and_is_not_told_without_a_reason(
            steps in prop::collection::vec((0..12u8, 0..8usize), 0..200),
        ) {
            let mut database = Database::new();
            let mut backup = database.clone();
            let mut reader = Reader::begin(Cursor::default(), &database);
            let mut has_reason = false;
            for (step, (kind, at)) in (1..).zip(steps) {
                match kind {
                    0..=2 => database.append(step),
                    3..=4 => has_reason |= database.prune(at),
                    5 => backup = database.clone(),
                    6 => {
                        database = backup.clone();
                        database.open_elsewhere(step);
                        has_reason = true;
                    }
                    7 => database.open_elsewhere(step),
                    _ => {
                        if reader.cursor == Cursor::default() {
                            reader = Reader::begin(Cursor::default(), &database);
                        }
                        let here = match database.histories.resume(reader.cursor, &database.now) {
                            Ok(here) => here,
                            Err(gone) => {
                                prop_assert!(has_reason, "{gone:?}");
                                let left = database.histories.resume(gone.left, &database.now);
                                prop_assert!(left.is_ok(), "{left:?}");
                                reader = Reader::begin(gone.left, &database);
                                has_reason = false;
                                continue;
                            }
                        };
                        for (seq, content) in &database.log {
                            let is_passed = *seq > reader.began_after && *seq <= here.seq;
                            prop_assert!(
                                !is_passed
                                    || reader.absent.contains(content)
                                    || reader.seen.contains(content),
                                "{seq} was skipped"
                            );
                        }
                        let next = database.entries.iter().find(|(seq, _)| *seq > here.seq);
                        if let Some((seq, content)) = next {
                            reader.seen.insert(*content);
                            reader.cursor = here.at(*seq);
                            has_reason = false;
                        }
                    }
                }
            }
        }
    }
}
