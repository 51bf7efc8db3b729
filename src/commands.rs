//! The operator's commands. Each opens the database itself, because no HTTP route may do what they do.
//!
//! Results go to standard output, errors to the log. Accounts and pruning have modules of their own.

use std::time::{Duration, Instant};

use anyhow::bail;

use crate::account::{self, LIST_TIMEOUT};
use crate::clock::Clock;
use crate::config::{
    self, AccountArgs, BackupArgs, CopyArgs, ExistingDatabaseArgs, ExplainArgs, FailArgs,
    PruneArgs, RestartArgs,
};
use crate::explain::Invocation;
use crate::messages::quoted;
use crate::order::OrderId;
use crate::process::{self, Exit, InvalidSetting};
use crate::prune::{self, Pruning};
use crate::simulator::record::read_record;
use crate::store::{
    self, BackupError, Mode, OperatorResult, PruneCounts, ReadOnlyDatabase, Resolution, Store,
    StoreError, TransferError, back_up,
};
use crate::upstream::{HttpUpstream, ProxyError, UpstreamUrl};

/// The target of this module's log lines. It is public: `RUST_LOG` names it.
const LOG: &str = "order_service::operator";

/// Interval of reports of a copy.
const PROGRESS: Duration = Duration::from_secs(5);

/// Longest silence of the upstream during an account.
const ACCOUNT_TIMEOUT: Duration = Duration::from_secs(5);

/// Error of a prune that a signal has ended.
const PRUNING_INTERRUPTED: &str = "pruning interrupted; run it again to remove the rest";

/// `backup`: copies the database while programs run, and prints a summary of the copy.
pub async fn backup(args: BackupArgs) -> anyhow::Result<Exit> {
    let stop = process::stop_on_signals()?;
    let taken = tokio::select! {
        taken = back_up(&args.database.database_url, &args.file, args.replace) => taken,
        // Dropping the backup removes the partial copy.
        () = stop.requested.cancelled() => bail!("backup interrupted; no file was written"),
    };
    match taken {
        Ok(backup) => {
            process::print(backup);
            Ok(Exit::Done)
        }
        Err(BackupError::Open(error)) => Err(error.into()),
        Err(error @ (BackupError::OwnFile(_) | BackupError::Exists(_))) => {
            Err(InvalidSetting(error.to_string()).into())
        }
        Err(error) => Err(error.into()),
    }
}

/// `copy`: moves all orders into another database, undoes that, or compares two databases.
pub async fn copy(args: CopyArgs) -> anyhow::Result<Exit> {
    let stop = process::stop_on_signals()?;
    let interrupted = match (args.verify_only, args.take_back) {
        (true, _) => "comparison interrupted; nothing was changed",
        (_, true) => "take-back interrupted; run it again, and it begins anew",
        _ => "copy interrupted; run it again to go on",
    };
    let Some(done) = process::unless_stopped(&stop, move || copy_now(&args)).await? else {
        bail!(interrupted);
    };
    done.map_err(|error| match error {
        TransferError::Open(error) => error.into(),
        TransferError::Refused(what) => InvalidSetting(what).into(),
        error => error.into(),
    })
}

fn copy_now(args: &CopyArgs) -> Result<Exit, TransferError> {
    let CopyArgs { from, to, .. } = args;
    let mut reported_at = Instant::now();
    let progress = |done| {
        move |orders: u64| {
            if reported_at.elapsed() >= PROGRESS {
                reported_at = Instant::now();
                process::print(format_args!("  {done:<8} {orders} orders so far\n"));
            }
        }
    };
    if args.verify_only {
        let report = |what| process::print(format_args!("{what}\n"));
        return Ok(
            match store::compare(from, to, report, progress("compared"))? {
                0 => {
                    process::print("equal\n");
                    Exit::Done
                }
                count => {
                    process::print(format_args!("rows that differ: {count}\n"));
                    Exit::Failed
                }
            },
        );
    }
    if args.take_back {
        process::print(store::take_back(from, to, progress("compared"))?);
        return Ok(Exit::Done);
    }
    let moved = store::move_database(from, to, progress("copied"))?;
    process::print(moved);
    Ok(Exit::Done)
}

/// `check`: prints the violated invariants of a database, or its summary if there are none.
pub fn check(args: &ExistingDatabaseArgs) -> anyhow::Result<Exit> {
    let database = match ReadOnlyDatabase::open(&args.database_url) {
        Err(error) if error.is_damaged() => {
            process::print(format_args!("{error}\n"));
            return Ok(Exit::Failed);
        }
        opened => opened?,
    };
    let mut count = 0;
    database.check(|finding| {
        count += 1;
        process::print(format_args!("{finding}\n"));
    });
    if count > 0 {
        return Ok(Exit::Failed);
    }
    let contents = database.summary()?;
    process::print(format_args!("ok: {}\n{contents}", database.address()));
    Ok(Exit::Done)
}

/// `explain`: prints the response of `GET /order/{id}/explain` as text.
pub async fn explain(args: ExplainArgs) -> anyhow::Result<Exit> {
    let store = Store::open(&args.database.database_url, Mode::ReadOnly)?;
    let now = store.clock().now();
    if let Some(details) = store.details(&args.id, now).await? {
        let invocation = Invocation::here(process::program_name(), store.info().address);
        process::print(details.explain(now, &invocation));
        return Ok(Exit::Done);
    }
    let id = args.id.as_str();
    let similar = store.similar_ids(&args.id).await?;
    let similar: Vec<_> = similar.iter().map(|id| quoted(id)).collect();
    let hint = match similar[..] {
        [] => "ids are compared exactly, including case".to_owned(),
        _ => format!("similar ids: {}", similar.join(", ")),
    };
    log::error!(target: LOG, "there is no order {id:?}; {hint}");
    Ok(Exit::Failed)
}

/// `account`: compares the database with the upstream, and prints the counts.
pub async fn account(args: AccountArgs) -> anyhow::Result<Exit> {
    let upstream = client(&args.upstream.order_process_url, ACCOUNT_TIMEOUT)?;
    let store = Store::open(&args.database.database_url, Mode::ReadOnly)?;
    let record = args.record.as_deref().map(read_record).transpose()?;
    let account = account::take(
        &store,
        &upstream,
        LIST_TIMEOUT,
        args.lost_process,
        record.as_deref(),
    )
    .await?;
    let exit = account.exit();
    process::print(account);
    Ok(exit)
}

/// `restart`: requests a restart of orders that are held or refused.
pub async fn restart(args: RestartArgs) -> anyhow::Result<Exit> {
    let store = Store::open(&args.database.database_url, Mode::Existing)?;
    let ids = if args.all_lost {
        lost(&store).await?
    } else {
        args.ids
    };
    if ids.is_empty() {
        process::print("no order has a process that was forgotten\n");
    }
    resolve(&store, ids, Resolution::Restart).await
}

/// Returns the orders whose process was lost, oldest first.
async fn lost(store: &Store) -> Result<Vec<OrderId>, StoreError> {
    let open = store.open_orders().await?;
    let orders = open.orders().enumerate();
    let lost = orders.filter(|(_, order)| order.is_lost());
    Ok(lost.map(|(index, _)| open.ids().order_id(index)).collect())
}

/// `fail`: settles orders as FAILED whose process was forgotten.
pub async fn fail(args: FailArgs) -> anyhow::Result<Exit> {
    let store = Store::open(&args.database.database_url, Mode::Existing)?;
    resolve(&store, args.ids, Resolution::Fail).await
}

/// Carries out an operator's decision about each of these orders, and prints the results.
async fn resolve(store: &Store, ids: Vec<OrderId>, decision: Resolution) -> anyhow::Result<Exit> {
    let mut exit = Exit::Done;
    for id in ids {
        let result = store.resolve(id.clone(), decision, store.clock().now());
        exit = print_result(&id, result.await?, decision).unwrap_or(exit);
    }
    Ok(exit)
}

/// `prune`: removes orders that settled long ago, or with `--dry-run` prints what would be removed.
///
/// # Errors
/// The database cannot be used, or pruning was interrupted. The counts so far are printed all the same.
pub async fn prune(args: PruneArgs) -> anyhow::Result<Exit> {
    let pruning = |now| Pruning {
        settled_before: prune::ago(args.settled_before, now),
        removed: PruneCounts::default(),
        is_done: !args.dry_run,
        free_bytes: None,
    };
    if args.dry_run {
        // Read-only: not even the schema is migrated.
        let database = ReadOnlyDatabase::open(&args.database.database_url)?;
        let mut pruning = pruning(database.now());
        pruning.removed = database.prunable(pruning.settled_before)?;
        process::print(pruning);
        return Ok(Exit::Done);
    }
    let stop = process::stop_on_signals()?;
    let open = move || Store::open(&args.database.database_url, Mode::Existing);
    let Some(store) = process::unless_stopped(&stop, open).await? else {
        bail!(PRUNING_INTERRUPTED);
    };
    let store = store?;
    let mut pruning = pruning(store.clock().now());
    let settled_before = pruning.settled_before;
    let on_batch = |removed: &PruneCounts| {
        let orders = removed.orders();
        let noun = if orders == 1 { "order" } else { "orders" };
        process::print(format_args!("  {:<8} {orders} {noun} so far\n", "pruned"));
    };
    let removed = &mut pruning.removed;
    let is_done = prune::run(&store, settled_before, &stop.requested, removed, on_batch).await;
    pruning.free_bytes = store.checkpoint().await;
    process::print(pruning);
    if !is_done? {
        bail!(PRUNING_INTERRUPTED);
    }
    Ok(Exit::Done)
}

/// Prints the result of an operator's decision about an order. Returns the exit code if it failed.
fn print_result(id: &OrderId, result: OperatorResult, decision: Resolution) -> Option<Exit> {
    let id = id.as_str();
    let (done, expected) = match decision {
        Resolution::Restart => (
            "will be started again when its turn comes, unless it has a process",
            "an order that is held or refused",
        ),
        Resolution::Fail => (
            "is FAILED now",
            "a PROCESSING order whose process was forgotten",
        ),
    };
    let why_not = match result {
        OperatorResult::Done => {
            process::print(format_args!("{id}: {done}\n"));
            return None;
        }
        OperatorResult::Missing => "there is no such order".to_owned(),
        OperatorResult::Settled(status) => format!("it is {status}, and that never changes"),
        OperatorResult::NothingToResolve(status, None) => {
            format!("it is {status} and needs no operator; expected {expected}")
        }
        OperatorResult::NothingToResolve(status, Some(reason)) => {
            format!(
                "it is {status} with {}, which this command does not resolve; `order-service explain` \
                 says what does",
                reason.as_str()
            )
        }
    };
    log::error!(target: LOG, "order {id:?}: {why_not}");
    Some(Exit::Failed)
}

/// Returns a client of the upstream at this URL, with the token from the environment.
pub fn client(url: &UpstreamUrl, request_timeout: Duration) -> anyhow::Result<HttpUpstream> {
    let token = config::order_process_token().map_err(|error| InvalidSetting(error.into()))?;
    let upstream = HttpUpstream::new(url, token.as_deref(), request_timeout);
    upstream.map_err(|error| match error.downcast::<ProxyError>() {
        Ok(error) => InvalidSetting(error.to_string()).into(),
        Err(error) => error,
    })
}
