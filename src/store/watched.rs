//! The orders whose process has to be observed, packed: a pass holds all of them, and there may be
//! a million.
//!
//! Of an order that merely runs, a few words are kept and no allocation of its own; what is more
//! than that is kept whole. What to do about them is decided elsewhere.

use rusqlite::{Connection, params};

use super::rows::{impossible, open_order};
use crate::decide::{OpenOrder, Phase};
use crate::id_arena::IdArena;
use crate::order::Timestamp;
use crate::pace::Watched;

/// Orders that are read as of one moment: some milliseconds' work. While anyone reads, the
/// write-ahead log cannot begin anew.
pub(super) const READ_AT_ONCE: usize = 10_000;

/// Orders that are PROCESSING, or CREATED with a start of unknown outcome; each told by its place,
/// oldest first.
#[derive(Clone, Debug, Default)]
pub struct Watchlist {
    ids: IdArena,
    watched: Vec<Watched>,
    notes: Vec<Notes>,
    /// Those of which more is known than this, with their places.
    others: Vec<(usize, OpenOrder)>,
}

/// What is kept of every order, besides since when its process runs.
#[derive(Clone, Copy, Debug)]
struct Notes {
    starts: u8,
    is_seen: bool,
}

impl Watchlist {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.watched.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.watched.is_empty()
    }

    /// What the pace has to know about them.
    pub fn watched(&self) -> &[Watched] {
        &self.watched
    }

    /// Their ids.
    pub fn ids(&self) -> &IdArena {
        &self.ids
    }

    /// The order at this place.
    ///
    /// # Panics
    /// There are not so many.
    pub fn order(&self, place: usize) -> OpenOrder {
        match self.others.binary_search_by_key(&place, |other| other.0) {
            Ok(at) => self.others[at].1,
            Err(_) => plain(self.watched[place], self.notes[place]),
        }
    }

    /// All of them.
    pub fn orders(&self) -> impl Iterator<Item = OpenOrder> {
        let mut others = self.others.iter().peekable();
        let all = self.watched.iter().zip(&self.notes).enumerate();
        all.map(
            move |(place, (watched, notes))| match others.next_if(|other| other.0 == place) {
                Some((_, order)) => *order,
                None => plain(*watched, *notes),
            },
        )
    }

    /// Those at these places, in ascending order.
    #[must_use]
    pub fn chosen(&self, places: &[usize]) -> Self {
        let mut chosen = Self::default();
        for &place in places {
            // What is an id here is one there, too.
            if chosen.ids.push(self.ids.get(place)).is_ok() {
                chosen.push(self.order(place));
            }
        }
        chosen
    }

    fn push(&mut self, order: OpenOrder) {
        let watched = Watched {
            seq: order.seq,
            running_since: running_since(&order),
        };
        let notes = Notes {
            starts: u8::try_from(order.starts).unwrap_or(u8::MAX),
            is_seen: order.is_seen,
        };
        if plain(watched, notes) != order {
            self.others.push((self.watched.len(), order));
        }
        self.watched.push(watched);
        self.notes.push(notes);
    }
}

/// An order of which nothing more is known than this.
fn plain(watched: Watched, notes: Notes) -> OpenOrder {
    let missed_at = None;
    OpenOrder {
        seq: watched.seq,
        phase: match watched.running_since {
            None => Phase::Created,
            Some(confirmed_at) => Phase::Processing {
                confirmed_at,
                missed_at,
            },
        },
        is_seen: notes.is_seen,
        intent: None,
        starts: u32::from(notes.starts),
        is_released: false,
        attempts: 0,
        next_attempt_at: None,
        attention: None,
    }
}

/// Since when its process is known to run. Nothing if something is in doubt: the order is then
/// looked at whenever others are.
fn running_since(order: &OpenOrder) -> Option<Timestamp> {
    match order.phase {
        Phase::Processing {
            confirmed_at,
            missed_at: None,
        } if order.intent.is_none() && order.attention.is_none() => Some(confirmed_at),
        _ => None,
    }
}

/// Adds the orders that come next to the list; the last are among them if they are fewer than
/// [`READ_AT_ONCE`].
pub(super) fn read_on(db: &Connection, list: &mut Watchlist) -> rusqlite::Result<usize> {
    let before = list.len();
    let after = list.watched.last().map_or(0, |order| order.seq);
    let mut query = db.prepare_cached(NEXT_WATCHED)?;
    let mut rows = query.query(params![after, READ_AT_ONCE as i64])?;
    while let Some(row) = rows.next()? {
        let id = row.get_ref(1)?.as_str()?;
        list.ids.push(id).map_err(|error| impossible(1, error))?;
        let seq = row.get(0)?;
        let running_since = row.get::<_, Option<i64>>(2)?.map(Timestamp);
        let order = match running_since {
            Some(_) => {
                let notes = Notes {
                    starts: 0,
                    is_seen: row.get(4)?,
                };
                OpenOrder {
                    starts: row.get(3)?,
                    ..plain(Watched { seq, running_since }, notes)
                }
            }
            None => open_order(db, seq)?.ok_or(rusqlite::Error::QueryReturnedNoRows)?,
        };
        list.push(order);
    }
    Ok(list.len() - before)
}

/// The next orders that are watched: since when their process runs, their starts, and whether it was seen. Of those of
/// which there is more to tell, nothing is told here: the columns that say nothing of nearly all took a
/// fifth of the time.
const NEXT_WATCHED: &str = "\
    SELECT seq, id, \
           iif(intent_at IS NULL AND missed_at IS NULL AND released_at IS NULL AND attempts = 0 \
               AND next_attempt_at IS NULL AND attention IS NULL, confirmed_at, NULL), \
           starts, process_seen \
    FROM orders INDEXED BY orders_by_status WHERE status = 'PROCESSING' AND seq > ?1 \
    UNION ALL \
    SELECT seq, id, NULL, NULL, NULL FROM orders INDEXED BY orders_with_intent \
    WHERE intent_at IS NOT NULL AND status = 'CREATED' AND seq > ?1 \
    ORDER BY seq LIMIT ?2";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::Intent;
    use crate::order::Reason;
    use crate::store::{DatabasePath, Mode, Store};

    #[tokio::test]
    async fn all_are_read_however_many_there_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = DatabasePath::from(folder.path().join("orders.db"));
        let store = Store::open(&path, Mode::Threaded).unwrap();
        // Every third has an intent, every fifth is of no concern.
        let fill = format!(
            "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {}) \
             INSERT INTO orders (seq, id, status, created_at, updated_at, intent_at, confirmed_at) \
             SELECT n, 'a' || n, iif(n % 3 = 0 OR n % 5 = 0, 'CREATED', 'PROCESSING'), 0, 0, \
                    iif(n % 3 = 0, 1, NULL), iif(n % 3 = 0 OR n % 5 = 0, NULL, 1) FROM n",
            3 * READ_AT_ONCE
        );
        // And one of each kind of which there is more to tell.
        let odd = "UPDATE orders SET missed_at = 1 WHERE seq = 1; \
                   UPDATE orders SET released_at = 1 WHERE seq = 2; \
                   UPDATE orders SET attempts = 1 WHERE seq = 4; \
                   UPDATE orders SET next_attempt_at = 1 WHERE seq = 7; \
                   UPDATE orders SET starts = 1000 WHERE seq = 8; \
                   UPDATE orders SET process_seen = 1 WHERE seq IN (2, 14); \
                   UPDATE orders SET attention = 'process_lost', attention_since = 1, \
                                     attention_detail = '' WHERE seq = 11; \
                   UPDATE orders SET intent_at = 1 WHERE seq = 13;";
        let write = move |db: &Connection| db.execute_batch(&format!("{fill}; {odd}"));
        store.inner.writer.write(write).await.unwrap();
        let list = store.watched().unwrap();
        for (place, order) in list.orders().enumerate().take(20) {
            let whole = store.read(|db| open_order(db, order.seq)).unwrap();
            assert_eq!(Some(order), whole, "{place}");
        }
        let expected = (1..=3 * READ_AT_ONCE).filter(|n| n % 3 == 0 || n % 5 != 0);
        let seqs = list.watched().iter().map(|order| order.seq as usize);
        assert!(seqs.eq(expected.clone()));
        for (place, n) in expected.enumerate() {
            assert_eq!(list.ids().get(place), format!("a{n}"));
        }
    }

    #[test]
    fn an_order_is_given_back_as_it_was_read_whatever_is_known_of_it() {
        let runs = |seq| {
            let running_since = Some(Timestamp(seq * 10));
            let notes = Notes {
                starts: 1,
                is_seen: seq % 2 == 0,
            };
            plain(Watched { seq, running_since }, notes)
        };
        let intent = Some(Intent {
            written_at: Timestamp(5),
            given_up_at: None,
            answer: None,
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
                is_released: true,
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
        let mut list = Watchlist::default();
        for order in orders {
            list.ids.push(&format!("a{}", order.seq)).unwrap();
            list.push(order);
        }
        assert!(list.orders().eq(orders));
        assert_eq!(list.others.len(), 6);
        let chosen = list.chosen(&[0, 4, 8]);
        assert!(chosen.orders().eq([orders[0], orders[4], orders[8]]));
        assert_eq!(chosen.ids().get(2), "a9");
        let in_doubt = list
            .watched()
            .iter()
            .filter(|order| order.running_since.is_none());
        assert_eq!(in_doubt.count(), 3);
    }
}
