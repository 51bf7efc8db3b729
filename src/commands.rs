//! The operator's commands that run beside the programs: each opens the database, so that no HTTP
//! route can do what they do.
//!
//! What they print goes to standard output, what went wrong to the log. What a backup, an account,
//! a check or a removal is, is said in modules of their own.

use std::time::Duration;

use anyhow::bail;

use crate::account;
use crate::backup::{self, BackupError};
use crate::clock::{Clock, SystemClock};
use crate::config::{
    self, AccountArgs, BackupArgs, CheckArgs, ExplainArgs, FailArgs, PruneArgs, RestartArgs,
};
use crate::explain::Invocation;
use crate::order::OrderId;
use crate::process::{self, Exit, InvalidSetting};
use crate::prune::{self, End, Pruning};
use crate::simulator::record::read_record;
use crate::store::{OperatorResult, ReadOnlyDatabase, Removed, Store};
use crate::upstream::{HttpUpstream, UpstreamUrl};

/// The origin of this module's log lines, which is public: `RUST_LOG` names it.
const LOG: &str = "order_service::operator";

/// Time limit for the upstream's silence while the account is taken.
const ACCOUNT_TIMEOUT: Duration = Duration::from_secs(5);

/// `backup`: copies the database while all is running, and prints what is in the copy.
pub async fn backup(args: BackupArgs) -> anyhow::Result<Exit> {
    let stop = process::stop_on_signals()?;
    let taken = tokio::select! {
        taken = backup::take(&args.database.database_url, &args.file, args.replace) => taken,
        // What was written so far is removed.
        () = stop.requested.cancelled() => bail!("the backup was broken off; there is none"),
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

/// `check`: prints what is not as it must be in a database, or that all is well.
pub fn check(args: &CheckArgs) -> anyhow::Result<Exit> {
    let database = ReadOnlyDatabase::open(&args.database.database_url)?;
    let mut count = 0;
    database.check(|finding| {
        count += 1;
        process::print(format_args!("{finding}\n"));
    });
    if count > 0 {
        return Ok(Exit::Failed);
    }
    let contents = database.contents()?;
    process::print(format_args!(
        "ok: {}\n{contents}",
        database.path().display()
    ));
    Ok(Exit::Done)
}

/// `explain`: prints what `GET /order/{id}/explain` serves, as text.
pub fn explain(args: &ExplainArgs) -> anyhow::Result<Exit> {
    let database = ReadOnlyDatabase::open(&args.database.database_url)?;
    let now = SystemClock.now();
    if let Some(details) = database.details(&args.id, now)? {
        let invocation = Invocation::here(process::program_name(), database.path());
        process::print(details.explain(now, &invocation));
        return Ok(Exit::Done);
    }
    let id = args.id.as_str();
    let similar: Vec<_> = database
        .similar_ids(&args.id)?
        .iter()
        .map(|id| format!("{id:?}"))
        .collect();
    let hint = match similar[..] {
        [] => "ids are compared exactly, case and all".to_owned(),
        _ => format!("is one of these meant: {}?", similar.join(", ")),
    };
    log::error!(target: LOG, "there is no order {id:?}; {hint}");
    Ok(Exit::Failed)
}

/// `account`: holds the database against the upstream, and prints what was found.
pub async fn account(args: AccountArgs) -> anyhow::Result<Exit> {
    let upstream = client(&args.upstream.order_process_url, ACCOUNT_TIMEOUT)?;
    let store = Store::open_existing(&args.database.database_url)?;
    let record = args.record.as_deref().map(read_record).transpose()?;
    let account = account::take(&store, &upstream, args.lost_process, record.as_deref()).await?;
    let exit = account.exit();
    process::print(account);
    Ok(exit)
}

/// `restart`: lets orders be started again that are held or refused.
pub async fn restart(args: RestartArgs) -> anyhow::Result<Exit> {
    let store = Store::open_existing(&args.database.database_url)?;
    let ids = if args.all_lost {
        store.lost().await?
    } else {
        args.ids
    };
    if ids.is_empty() {
        process::print("no order has a process that was forgotten\n");
    }
    let mut exit = Exit::Done;
    for id in ids {
        let decided = store.release(id.clone(), SystemClock.now()).await?;
        let done = "will be started again in the next pass that does not find its process";
        exit = tell_decided(&id, decided, done).unwrap_or(exit);
    }
    Ok(exit)
}

/// `fail`: settles orders as FAILED whose process was forgotten.
pub async fn fail(args: FailArgs) -> anyhow::Result<Exit> {
    let store = Store::open_existing(&args.database.database_url)?;
    let mut exit = Exit::Done;
    for id in args.ids {
        let decided = store.fail(id.clone(), SystemClock.now()).await?;
        exit = tell_decided(&id, decided, "is FAILED now").unwrap_or(exit);
    }
    Ok(exit)
}

/// `prune`: removes orders that settled long ago, or says what would be removed.
///
/// # Errors
/// The database cannot be used, or the removal was broken off; what was removed until then is
/// printed all the same.
pub async fn prune(args: PruneArgs) -> anyhow::Result<Exit> {
    let settled_before = prune::ago(args.settled_before, SystemClock.now());
    let mut pruning = Pruning {
        settled_before,
        removed: Removed::default(),
        free_bytes: None,
    };
    if args.dry_run {
        // Only read: not even its format is changed.
        let database = ReadOnlyDatabase::open(&args.database.database_url)?;
        pruning.removed = database.prunable(settled_before)?;
        process::print(pruning);
        return Ok(Exit::Done);
    }
    let stop = process::stop_on_signals()?;
    let store = Store::open_existing(&args.database.database_url)?;
    let tell = |removed: &Removed| {
        let orders = removed.orders();
        let noun = if orders == 1 { "order" } else { "orders" };
        process::print(format_args!("  {:<8} {orders} {noun} so far\n", "pruned"));
    };
    let removed = &mut pruning.removed;
    let end = prune::run(&store, settled_before, &stop.requested, removed, tell).await;
    store.checkpoint().await;
    pruning.free_bytes = Some(store.free_bytes().await?);
    process::print(pruning);
    match end {
        End::Done => Ok(Exit::Done),
        End::BrokenOff => {
            bail!("the removal was broken off; what is left goes when it is run again")
        }
        End::Failed(error) => Err(error.into()),
    }
}

/// Tells what came of a decision about an order; how to exit, if it could not be done.
fn tell_decided(id: &OrderId, decided: OperatorResult, done: &str) -> Option<Exit> {
    let id = id.as_str();
    let why_not = match decided {
        OperatorResult::Done => {
            process::print(format_args!("{id}: {done}\n"));
            return None;
        }
        OperatorResult::Missing => "there is no such order".to_owned(),
        OperatorResult::Settled(status) => format!("it is {status}, and that never changes"),
        OperatorResult::NotInTrouble(status, None) => {
            format!("it is {status} and goes its way; only an order that is held can be helped")
        }
        OperatorResult::NotInTrouble(status, Some(reason)) => {
            format!(
                "it is {status} with {}, which this does not mend",
                reason.as_str()
            )
        }
    };
    log::error!(target: LOG, "order {id:?}: {why_not}");
    Some(Exit::Failed)
}

/// The upstream at this URL, with the token from the environment.
pub fn client(url: &UpstreamUrl, request_timeout: Duration) -> anyhow::Result<HttpUpstream> {
    let token = config::order_process_token().map_err(|error| InvalidSetting(error.into()))?;
    HttpUpstream::new(url, token.as_deref(), request_timeout)
}
