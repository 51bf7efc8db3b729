//! The account: the database compared with the upstream's present list, and with the simulator's record
//! where there is one.
//!
//! It only reads, and may be taken while programs run. Orders are compared, some at a time, as the list
//! streams in; memory grows by some bytes for each PROCESSING order.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::time::timeout;

use crate::clock::Clock;
use crate::decide::LostProcess;
use crate::journal_stats::JournalStats;
use crate::order::{Attention, EventReason, Observed, Order, OrderId, Reason, ResolvedBy, Status};
use crate::process::Exit;
use crate::simulator::model::Effect;
use crate::simulator::record::Entry;
use crate::store::{Cursor, Filter, OrderView, Store, StoreError};
use crate::upstream::{Cause, Entry as ListEntry, Failure, Upstream};

/// Number of orders read at once.
const PAGE: usize = 1_000;

/// Number of listed orders that are read at once. On PostgreSQL they share two statements.
const READS: usize = 512;

/// Time limit of the list. As for the reconciler, a list that took longer would be out of date.
pub const LIST_TIMEOUT: Duration = Duration::from_secs(600);

/// The counts of an account.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Orders that were created.
    pub acknowledged: u64,
    /// Orders that are CREATED or PROCESSING.
    pub open: u64,
    /// Orders that are FULFILLED or FAILED.
    pub settled: u64,
    /// Settled orders that `prune` has removed; their outcome is not known any more.
    pub pruned: u64,
    /// Settled orders for which the upstream reports another outcome now.
    pub disagreeing: u64,
    /// PROCESSING orders that the upstream does not know; `None` without a complete answer.
    pub lost: Option<u64>,
    /// Lost orders that wait for an operator.
    pub held: Option<u64>,
    /// Orders, PROCESSING or settled, about which the upstream gave no usable answer: its list was cut
    /// off, or has an unknown status.
    pub unknown: u64,
    /// Restarts of orders whose process the upstream had forgotten.
    pub started_again: u64,
    /// Second starts in one incarnation of the upstream, by the simulator's record; `None` without one.
    pub started_twice: Option<u64>,
}

impl Account {
    /// Returns the exit code for this account. Open orders are clean, and so are lost ones that the
    /// reconciler handles by itself.
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
                "settled, but the upstream reports another outcome; must be 0",
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
                "in one incarnation of the upstream; must be 0",
            ),
        ] {
            let count = count.map_or_else(|| "?".to_owned(), |count| count.to_string());
            writeln!(f, "  {name:<14} {count:>9}   {meaning}")?;
        }
        Ok(())
    }
}

/// Takes the account. Without an answer of the upstream, or with one that takes longer than `list_timeout`,
/// `lost` and `held` are `None`. `policy` is that of the reconciler.
pub async fn take(
    store: &Store,
    upstream: &impl Upstream,
    list_timeout: Duration,
    policy: LostProcess,
    record: Option<&[Entry]>,
) -> Result<Account, StoreError> {
    let mut account = Account {
        started_twice: record.map(second_starts),
        ..Account::default()
    };
    // With their starts, because an order that is restarted meanwhile has another process.
    let mut unlisted = HashMap::new();
    each_processing(store, |order| {
        unlisted.insert(order.seq, order.starts);
    })
    .await?;
    let mut journal = JournalStats::default();
    let stats = store
        .update_stats(&mut journal, store.clock().now())
        .await?;
    account.started_again = journal.entries_with(EventReason::Restarted);
    account.acknowledged = journal.entries_with(EventReason::Created);
    account.open = journal.open();
    account.settled = account.acknowledged - account.open;
    account.pruned = stats.pruned.orders();
    let settled = account.settled - account.pruned;
    let mut compared = 0;
    let began_at = store.clock().now();
    let compare = |order: Order, observed| {
        unlisted.remove(&order.seq);
        compared += u64::from(order.status.is_settled());
        match observed {
            // An order that settled meanwhile may have run when the list was made.
            _ if order.updated_at >= began_at => {}
            Observed::Unrecognised(_) => account.unknown += 1,
            observed => account.disagreeing += u64::from(disagrees(order.status, &observed)),
        }
    };
    let listed = timeout(list_timeout, each_listed(store, upstream, compare)).await;
    let listed = match listed {
        Ok(listed) => listed?,
        Err(_) => {
            let detail = "the list took too long and was cut off";
            Err(Failure::new(detail, Cause::Unusable))
        }
    };
    if let Err(failure) = listed {
        log::warn!("the upstream gave no list reason={:?}", failure.detail);
        account.unknown += unlisted.len() as u64 + settled.saturating_sub(compared);
        return Ok(account);
    }
    let (mut lost, mut held) = (0, 0);
    each_processing(store, |order| {
        if unlisted.get(&order.seq) == Some(&order.starts) {
            lost += 1;
            let is_held = policy == LostProcess::Hold
                || order.attention.is_some_and(|attention| is_held(&attention));
            held += u64::from(is_held);
        }
    })
    .await?;
    account.lost = Some(lost);
    account.held = Some(held);
    Ok(account)
}

/// Calls `on_order` with each order that is PROCESSING, oldest first.
async fn each_processing(store: &Store, mut on_order: impl FnMut(Order)) -> Result<(), StoreError> {
    let processing = Filter {
        statuses: vec![Status::Processing],
        attention: None,
    };
    let mut pages = pin!(store.pages(processing, Cursor::default(), PAGE));
    while let Some((page, _)) = pages.try_next().await? {
        page.into_iter().for_each(&mut on_order);
    }
    Ok(())
}

/// Calls `on_order` with each order that the upstream lists, as it is in the database and in the list.
/// Returns how the list ended.
async fn each_listed(
    store: &Store,
    upstream: &impl Upstream,
    mut on_order: impl FnMut(Order, Observed),
) -> Result<Result<u64, Failure>, StoreError> {
    let batch = RefCell::new(Vec::new());
    let on_entry = |entry: ListEntry<'_>| {
        if let Ok(id) = OrderId::new(&*entry.order_id) {
            let observed = Observed::of_status(&entry.status);
            batch.borrow_mut().push((id, observed));
        }
    };
    let mut list = pin!(upstream.list(on_entry));
    loop {
        // The list waits while its last entries are compared, so that no more of them are in memory.
        let ended = poll_fn(|cx| match list.as_mut().poll(cx) {
            Poll::Pending if !batch.borrow().is_empty() => Poll::Ready(None),
            ended => ended.map(Some),
        });
        let ended = ended.await;
        let find = async |(id, observed)| Ok::<_, StoreError>((store.find(&id).await?, observed));
        let mut found = pin!(stream::iter(batch.take()).map(find).buffered(READS));
        while let Some((view, observed)) = found.try_next().await? {
            if let Some(OrderView { order, .. }) = view {
                on_order(order, observed);
            }
        }
        if let Some(ended) = ended {
            return Ok(ended);
        }
    }
}

/// Returns whether a PROCESSING order with this attention waits for an operator. For other reasons than these
/// it is tried again.
fn is_held(attention: &Attention) -> bool {
    let is_waiting = matches!(attention.reason, Reason::ProcessLost | Reason::MaxStarts);
    attention.by == ResolvedBy::Operator && is_waiting
}

fn disagrees(status: Status, observed: &Observed) -> bool {
    match status {
        Status::Created | Status::Processing => false,
        Status::Fulfilled => *observed != Observed::Succeeded,
        Status::Failed => *observed != Observed::Failed,
    }
}

/// Returns the number of starts that the simulator accepted for an order with a process in the same
/// incarnation.
fn second_starts(record: &[Entry]) -> u64 {
    let mut alive = HashSet::new();
    let mut twice = 0;
    for entry in record {
        match &entry.effect {
            Effect::BeganIncarnation { .. } => alive.clear(),
            Effect::Started { order_id, .. } | Effect::StartedForEver { order_id } => {
                twice += u64::from(!alive.insert(order_id.as_str()));
            }
            _ => {}
        }
    }
    twice
}
