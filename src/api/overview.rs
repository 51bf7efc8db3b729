//! What is told of all orders together, kept in memory: the history that the journal adds up to,
//! brought up to date by what is new whenever it is asked for.
//!
//! Reading the whole journal happens once, at the first request, and in pieces, so that nothing
//! else has to wait for it. `stats` and `metrics` tell what is found here.

use tokio::sync::{Mutex, MutexGuard};

use crate::clock::{Clock, SystemClock};
use crate::history::{Entry, History};
use crate::order::{Reason, Timestamp};
use crate::pace::Reach;
use crate::store::{Glance, Store, StoreError};

/// Entries of the journal that are read at once. It takes about ten milliseconds.
const ENTRIES_MAX: usize = 10_000;

/// The history, shared by all who ask.
#[derive(Default)]
pub(super) struct Overview {
    history: Mutex<History>,
}

/// Everything as of one moment. Others who ask wait until it is dropped.
pub(super) struct Seen<'a> {
    pub now: Timestamp,
    pub history: MutexGuard<'a, History>,
    pub glance: Glance,
}

impl Overview {
    /// Brings the history up to date. If the caller goes away meanwhile, what was read so far is
    /// kept for the next one.
    pub async fn look(&self, store: &Store) -> Result<Seen<'_>, StoreError> {
        let mut history = self.history.lock().await;
        loop {
            let after = history.last_seq();
            let entries = read(store, move |store| store.entries(after, ENTRIES_MAX)).await?;
            fold(&mut history, &entries, SystemClock.now());
            if entries.len() < ENTRIES_MAX {
                break;
            }
        }
        loop {
            let after = history.last_seq();
            let glance = read(store, move |store| store.glance(after, ENTRIES_MAX)).await?;
            let now = SystemClock.now();
            fold(&mut history, &glance.entries, now);
            // Otherwise the glance is later than the history.
            if glance.entries.len() < ENTRIES_MAX {
                history.forget(now);
                return Ok(Seen {
                    now,
                    history,
                    glance,
                });
            }
        }
    }
}

/// Reads where waiting holds up no one else.
async fn read<T: Send + 'static>(
    store: &Store,
    query: impl FnOnce(Store) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let store = store.clone();
    tokio::task::spawn_blocking(move || query(store))
        .await
        .unwrap_or_else(|panic| Err(StoreError::Unreadable(panic.into())))
}

fn fold(history: &mut History, entries: &[Entry], now: Timestamp) {
    for entry in entries {
        history.fold(entry, now);
    }
}

impl Seen<'_> {
    /// How many orders need looking at for this reason, as they themselves say: while the upstream
    /// is down, all open orders do that have no other reason.
    pub fn attention(&self, reason: Reason) -> u64 {
        let stored = self.glance.attention.iter();
        let told = stored
            .clone()
            .filter(|(of, _)| *of == reason)
            .map(|(_, count)| count)
            .sum();
        let is_down = matches!(self.glance.heartbeat.reach, Reach::Down { .. });
        if reason != Reason::UpstreamUnreachable || !is_down {
            return told;
        }
        let with_reason: u64 = stored.map(|(_, count)| count).sum();
        told + self.history.open().saturating_sub(with_reason)
    }
}
