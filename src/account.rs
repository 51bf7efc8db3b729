//! The account: what the database says, held against what the upstream says now, and against the
//! simulator's record where there is one.
//!
//! It only reads. Orders are compared one by one as the list streams in, so that a million of them
//! take no more memory than one.

use std::collections::HashSet;
use std::fmt;

use crate::order::{Observed, OrderId, Status};
use crate::simulator::model::Did;
use crate::simulator::record::Entry;
use crate::store::{Store, StoreError};
use crate::upstream::Upstream;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Orders that were created.
    pub acknowledged: u64,
    /// Orders that are CREATED or PROCESSING.
    pub open: u64,
    /// Orders that are FULFILLED or FAILED.
    pub settled: u64,
    /// Settled orders of which the upstream now says something else.
    pub disagreeing: u64,
    /// PROCESSING orders that the upstream does not know. Nothing if it could not be asked.
    pub lost: Option<u64>,
    /// Settled orders that `prune` has removed; no one can say any more how they went.
    pub pruned: u64,
    /// Starts in the place of a process that the upstream had forgotten.
    pub started_again: u64,
    /// Second starts in one life of the upstream, by the simulator's record. Nothing without one.
    pub started_twice: Option<u64>,
}

impl Account {
    /// Whether all is as it must be.
    pub fn is_right(&self) -> bool {
        self.disagreeing == 0 && self.started_twice.unwrap_or(0) == 0
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unknown = || "?".to_owned();
        let lost = self.lost.map_or_else(unknown, |n| n.to_string());
        let twice = self.started_twice.map_or_else(unknown, |n| n.to_string());
        for (name, count, meaning) in [
            (
                "acknowledged",
                self.acknowledged.to_string(),
                "orders that were created",
            ),
            ("open", self.open.to_string(), "CREATED or PROCESSING"),
            ("settled", self.settled.to_string(), "FULFILLED or FAILED"),
            ("pruned", self.pruned.to_string(), "of these, removed since"),
            (
                "disagreeing",
                self.disagreeing.to_string(),
                "settled otherwise than the upstream says now",
            ),
            (
                "lost",
                lost,
                "PROCESSING, and the upstream does not know them",
            ),
            (
                "started again",
                self.started_again.to_string(),
                "after the upstream had forgotten them",
            ),
            (
                "started twice",
                twice,
                "in one life of the upstream; must be 0",
            ),
        ] {
            writeln!(f, "  {name:<14} {count:>9}   {meaning}")?;
        }
        Ok(())
    }
}

/// Takes the account. An upstream that does not answer leaves what only it can tell unknown.
///
/// # Errors
/// The database cannot be read.
pub async fn take(
    store: &Store,
    upstream: &impl Upstream,
    record: Option<&[Entry]>,
) -> Result<Account, StoreError> {
    let mut account = Account {
        pruned: store.pruned()?.orders(),
        started_again: store.restarts()?,
        started_twice: record.map(second_starts),
        ..Account::default()
    };
    account.acknowledged = account.pruned;
    account.settled = account.pruned;
    let mut processing = 0;
    for (status, count) in store.counts()? {
        account.acknowledged += count;
        match status.is_settled() {
            true => account.settled += count,
            false => account.open += count,
        }
        if status == Status::Processing {
            processing = count;
        }
    }
    let mut known = 0;
    let mut trouble = None;
    let listed = upstream
        .list(|entry| {
            let Ok(id) = OrderId::new(&*entry.order_id) else {
                return;
            };
            match store.order(&id) {
                Ok(Some(order)) => {
                    known += u64::from(order.status == Status::Processing);
                    let observed = Observed::of_status(&entry.status);
                    account.disagreeing += u64::from(disagrees(order.status, &observed));
                }
                Ok(None) => {}
                Err(error) => trouble = Some(error),
            }
        })
        .await;
    if let Some(error) = trouble {
        return Err(error);
    }
    match listed {
        Ok(_) => account.lost = Some(processing.saturating_sub(known)),
        Err(failure) => log::warn!("the upstream could not be asked: {}", failure.detail),
    }
    Ok(account)
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
        match &entry.did {
            Did::BeganLife { .. } => alive.clear(),
            Did::Started { order_id, .. } | Did::StartedForEver { order_id } => {
                twice += u64::from(!alive.insert(order_id.as_str()));
            }
            _ => {}
        }
    }
    twice
}
