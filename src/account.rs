//! The account: what the database says, held against what the upstream says now, and against the
//! simulator's record where there is one.
//!
//! It only reads, also while programs run. Orders are compared one by one as the list streams in;
//! of those that are PROCESSING some bytes are kept.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::pin::pin;

use futures_util::TryStreamExt;
use tokio::sync::mpsc;

use crate::clock::{Clock, SystemClock};
use crate::decide::LostProcess;
use crate::order::{Attention, Observed, Order, OrderId, Reason, ResolvedBy, Status};
use crate::process::Exit;
use crate::simulator::model::Effect;
use crate::simulator::record::Entry;
use crate::store::{Filter, Store, StoreError};
use crate::upstream::{Entry as ListEntry, Upstream};

/// Orders read at once.
const PAGE: usize = 1_000;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Orders that were created.
    pub acknowledged: u64,
    /// Orders that are CREATED or PROCESSING.
    pub open: u64,
    /// Orders that are FULFILLED or FAILED.
    pub settled: u64,
    /// Settled orders that `prune` has removed; no one can say any more how they went.
    pub pruned: u64,
    /// Settled orders of which the upstream now says something else.
    pub disagreeing: u64,
    /// PROCESSING orders that the upstream does not know. Nothing if there was no complete answer.
    pub lost: Option<u64>,
    /// Those of the lost ones that are not started again, or settled, by themselves.
    pub held: Option<u64>,
    /// Orders, PROCESSING or settled, about which the upstream gave no usable answer: its list broke
    /// off, or has a status that is not known.
    pub unknown: u64,
    /// Starts in the place of a process that the upstream had forgotten.
    pub started_again: u64,
    /// Second starts in one life of the upstream, by the simulator's record. Nothing without one.
    pub started_twice: Option<u64>,
}

impl Account {
    /// Returns the exit code of a program that has taken this account. Open orders are clean, and so
    /// are lost ones that the reconciler takes care of by itself.
    pub fn exit(&self) -> Exit {
        let is_wrong = self.disagreeing > 0
            || self.started_twice.is_some_and(|twice| twice > 0)
            || self.held.is_some_and(|held| held > 0);
        match (is_wrong, self.lost) {
            (false, None) => Exit::Upstream,
            (false, Some(_)) if self.unknown == 0 => Exit::Done,
            _ => Exit::Unclean,
        }
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, count, meaning) in [
            (
                "acknowledged",
                Some(self.acknowledged),
                "orders that were created",
            ),
            ("open", Some(self.open), "CREATED or PROCESSING"),
            ("settled", Some(self.settled), "FULFILLED or FAILED"),
            ("pruned", Some(self.pruned), "of these, removed since"),
            (
                "disagreeing",
                Some(self.disagreeing),
                "settled otherwise than the upstream says now; must be 0",
            ),
            (
                "lost",
                self.lost,
                "PROCESSING, and the upstream does not know them",
            ),
            (
                "held",
                self.held,
                "of these, until an operator decides; should be 0",
            ),
            (
                "unknown",
                Some(self.unknown),
                "the upstream gave no usable answer about them",
            ),
            (
                "started again",
                Some(self.started_again),
                "after the upstream had forgotten them",
            ),
            (
                "started twice",
                self.started_twice,
                "in one life of the upstream; must be 0",
            ),
        ] {
            let count = count.map_or_else(|| "?".to_owned(), |count| count.to_string());
            writeln!(f, "  {name:<14} {count:>9}   {meaning}")?;
        }
        Ok(())
    }
}

/// Takes the account. An upstream that does not answer leaves what only it can tell unknown.
/// `policy` is that of the reconciler.
pub async fn take(
    store: &Store,
    upstream: &impl Upstream,
    policy: LostProcess,
    record: Option<&[Entry]>,
) -> Result<Account, StoreError> {
    let mut account = Account {
        pruned: store.pruned().await?.orders(),
        started_again: store.restarts().await?,
        started_twice: record.map(second_starts),
        ..Account::default()
    };
    // By number, with their starts: one that is started again meanwhile is not what it was.
    let mut unseen = HashMap::new();
    each_processing(store, |order| {
        unseen.insert(order.seq, order.starts);
    })
    .await?;
    let mut settled = 0;
    for (status, count) in store.counts().await? {
        match status.is_settled() {
            true => settled += count,
            false => account.open += count,
        }
    }
    account.settled = settled + account.pruned;
    account.acknowledged = account.settled + account.open;
    let mut compared = 0;
    let began_at = SystemClock.now();
    // Compared as the list comes in: of what is not compared yet, there is about a piece.
    let (told, mut entries) = mpsc::unbounded_channel();
    let list = async {
        let told = told;
        let tell = |entry: ListEntry<'_>| {
            if let Ok(id) = OrderId::new(&*entry.order_id) {
                // The other end is there until this one is dropped.
                let _ = told.send((id, Observed::of_status(&entry.status)));
            }
        };
        Ok(upstream.list(tell).await)
    };
    let compare = async {
        while let Some((id, observed)) = entries.recv().await {
            let Some(order) = store.order(&id).await? else {
                continue;
            };
            unseen.remove(&order.seq);
            compared += u64::from(order.status.is_settled());
            // What was settled meanwhile may have run when the list was made.
            if order.updated_at >= began_at {
                continue;
            }
            match observed {
                Observed::Unrecognised(_) => account.unknown += 1,
                observed => {
                    account.disagreeing += u64::from(disagrees(order.status, &observed));
                }
            }
        }
        Ok::<_, StoreError>(())
    };
    let (listed, ()) = tokio::try_join!(list, compare)?;
    if let Err(failure) = listed {
        log::warn!("the upstream could not be asked: {}", failure.detail);
        account.unknown += unseen.len() as u64 + settled.saturating_sub(compared);
        return Ok(account);
    }
    let (mut lost, mut held) = (0, 0);
    each_processing(store, |order| {
        if unseen.get(&order.seq) == Some(&order.starts) {
            lost += 1;
            let is_held =
                policy == LostProcess::Hold || order.attention.is_some_and(|of| is_held(&of));
            held += u64::from(is_held);
        }
    })
    .await?;
    account.lost = Some(lost);
    account.held = Some(held);
    Ok(account)
}

/// Reads the orders that are PROCESSING, oldest first.
async fn each_processing(store: &Store, mut tell: impl FnMut(Order)) -> Result<(), StoreError> {
    let processing = Filter {
        statuses: vec![Status::Processing],
        attention: None,
    };
    let mut pages = pin!(store.pages(processing, PAGE));
    while let Some(page) = pages.try_next().await? {
        page.into_iter().for_each(&mut tell);
    }
    Ok(())
}

/// Returns whether an order that is PROCESSING waits for an operator, as the reconciler left it. One
/// whose restart is refused is tried again.
fn is_held(attention: &Attention) -> bool {
    attention.by == ResolvedBy::Operator && attention.reason != Reason::StartRefused
}

fn disagrees(status: Status, observed: &Observed) -> bool {
    match status {
        Status::Created | Status::Processing => false,
        Status::Fulfilled => *observed != Observed::Succeeded,
        Status::Failed => *observed != Observed::Failed,
    }
}

/// How often the simulator accepted a start of an order that it knew already in the same life.
fn second_starts(record: &[Entry]) -> u64 {
    let mut alive = HashSet::new();
    let mut twice = 0;
    for entry in record {
        match &entry.effect {
            Effect::BeganLife { .. } => alive.clear(),
            Effect::Started { order_id, .. } | Effect::StartedForEver { order_id } => {
                twice += u64::from(!alive.insert(order_id.as_str()));
            }
            _ => {}
        }
    }
    twice
}
