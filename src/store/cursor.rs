//! Cursors into the journal and the list of orders, and the rule that keeps readers from missing
//! records silently.
//!
//! Two events can invalidate a bare sequence number. Orders are pruned by age, with their entries,
//! so a gap does not show whether the reader saw the pruned records. And a restored backup assigns
//! the same numbers again, to other orders. So a cursor also carries the number of entries that had
//! been pruned when it was issued, and the history in which it was issued: a database begins a new
//! history whenever it is opened in a different file (`store/sqlite/open.rs`).

use std::fmt;
use std::str::FromStr;

/// A position to resume from; by default the beginning, before all records. Its text is opaque to
/// clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Sequence number of the last order or entry that was read; 0 at the beginning.
    pub seq: i64,
    /// State of the database that issued the cursor; `None` for a bare number.
    origin: Option<Origin>,
}

/// State of a database when it issues a cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Origin {
    history: u32,
    /// Entries that had been pruned by then.
    pruned: i64,
}

impl Cursor {
    /// Returns a cursor for a bare number. It is checked only against the newest number.
    pub fn bare(seq: i64) -> Self {
        Self { seq, origin: None }
    }

    /// Returns whether both cursors were issued in the same history, so that their numbers compare.
    pub fn has_history_of(self, other: Self) -> bool {
        let history = |cursor: Self| cursor.origin.map(|origin| origin.history);
        history(self) == history(other)
    }

    /// Returns a cursor at another number, read in the same snapshot as this one.
    pub fn at(self, seq: i64) -> Self {
        Self { seq, ..self }
    }
}

/// Writes `NUMBER-PRUNED-HISTORY`, or the bare number.
impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.origin {
            None => write!(f, "{}", self.seq),
            Some(Origin { history, pruned }) => write!(f, "{}-{pruned}-{history}", self.seq),
        }
    }
}

impl FromStr for Cursor {
    /// The text is not a cursor.
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

/// Reasons why a reader that resumes from a cursor might miss records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum GoneReason {
    /// Records after the cursor may have been pruned before the reader saw them.
    #[error("records that follow this cursor were pruned after it was issued")]
    Pruned,
    /// The database has no such history.
    #[error(
        "this cursor was issued by another database, or after the backup that this one was restored \
         from"
    )]
    UnknownHistory,
    /// The cursor is after the newest record that its history and this database have in common.
    #[error(
        "this cursor is beyond the newest record; if it was issued, the database was restored from a \
         backup since"
    )]
    Beyond,
}

/// A reader cannot resume from a cursor without missing records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Gone {
    pub(super) reason: GoneReason,
    /// A cursor from which to read the remaining records.
    pub left: Cursor,
}

/// The two sequences that are read by cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sequence {
    Orders,
    Journal,
}

/// Extent of a sequence, from one snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub sequence: Sequence,
    pub newest: i64,
    /// Watermark: the greatest sequence number that was pruned.
    pub last_pruned: i64,
    /// Number of journal entries pruned so far.
    pub pruned: i64,
}

/// Histories of a database, oldest first. None begins while a program has the file open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Histories(Vec<History>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct History {
    pub id: u32,
    /// Newest number of each [`Sequence`] when the history began; `pruned` is the number of entries
    /// pruned by then.
    pub newest: [i64; 2],
    pub pruned: i64,
}

impl Histories {
    /// Takes the histories of a database, oldest first.
    pub fn new(histories: Vec<History>) -> Self {
        Self(histories)
    }

    /// Returns the cursor at a number that is read in the snapshot `now`.
    pub fn position(&self, seq: i64, now: &Extent) -> Cursor {
        // There is always at least one history.
        let history = self.0.last().map_or(0, |history| history.id);
        let pruned = now.pruned;
        Cursor {
            seq,
            origin: Some(Origin { history, pruned }),
        }
    }

    /// Returns the cursor as it would be issued now, if a reader that resumes from it misses
    /// nothing.
    ///
    /// That is so if as many entries are pruned as when the cursor was issued, or if all pruned
    /// records are before it. A cursor of an earlier history is valid up to the beginning of the
    /// next one; the number pruned in the earlier history after that is unrelated to this
    /// database's, so an equal count proves nothing.
    pub fn resume(&self, cursor: Cursor, now: &Extent) -> Result<Cursor, Gone> {
        let gone = |reason, left| Err(Gone { reason, left });
        let here = self.position(cursor.seq, now);
        let Some(origin) = cursor.origin else {
            return match cursor.seq > now.newest {
                true => gone(GoneReason::Beyond, Cursor::default()),
                false => Ok(here),
            };
        };
        let Some(index) = self.0.iter().position(|h| h.id == origin.history) else {
            return gone(GoneReason::UnknownHistory, Cursor::default());
        };
        let next = self.0.get(index + 1);
        let (newest, pruned) = match next {
            None => (now.newest, now.pruned),
            Some(next) => (next.newest[now.sequence as usize], next.pruned),
        };
        let has_seen_all = origin.pruned == now.pruned && origin.pruned <= pruned;
        if cursor.seq > newest {
            // An earlier history and the present one are identical up to there.
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

    /// A database, and every entry that was ever in it.
    #[derive(Clone)]
    struct Database {
        /// Sequence numbers, each with a unique content.
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

        /// Removes an entry, unless it is the newest, which is never pruned.
        fn prune(&mut self, index: usize) -> bool {
            let is_there = index + 1 < self.entries.len();
            if is_there {
                let (seq, _) = self.entries.remove(index);
                self.now.pruned += 1;
                self.now.last_pruned = self.now.last_pruned.max(seq);
            }
            is_there
        }

        /// Returns the contents that were pruned.
        fn absent(&self) -> BTreeSet<u32> {
            let all = self
                .log
                .iter()
                .filter(|entry| !self.entries.contains(entry));
            all.map(|(_, content)| *content).collect()
        }
    }

    /// A reader that began after a number, and the contents that it has seen.
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
        // The rarer mistakes take a copy, a prune in each file, and a reader of both.
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2_000) })]

        /// A reader follows a database whose entries are added and pruned and which is copied,
        /// restored and moved. It sees every entry that existed when it began and every later one,
        /// or gets `Gone`; it gets `Gone` only after a prune, a restore or a move.
        #[test]
        fn a_reader_misses_nothing_without_being_told_and_is_not_told_without_a_reason(
            steps in prop::collection::vec((0..12u8, 0..8usize), 0..200),
        ) {
            let mut database = Database::new();
            let mut backup = database.clone();
            let mut reader = Reader::begin(Cursor::default(), &database);
            let mut has_reason = false;
            for (step, (kind, index)) in (1..).zip(steps) {
                match kind {
                    0..=2 => database.append(step),
                    3..=4 => has_reason |= database.prune(index),
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
