//! Sides of a copy: a database that is copied from or into, on any engine.

use std::time::{Duration, Instant};

use super::TransferError;
use super::tables::Table;
use crate::messages::with_causes;
use crate::store::lines::{BoxError, Lines};
#[cfg(feature = "postgres")]
use crate::store::postgres;
use crate::store::relocation::Relocation;
use crate::store::{DatabaseUrl, OpenError, OpenReason, sqlite};

/// Interval between attempts to take the lead.
const LEAD_INTERVAL: Duration = Duration::from_millis(10);

/// Time for a reconciler to end once its orders have moved, and for a server to notice that a copy into it was
/// killed.
const HOLDER_TIMEOUT: Duration = Duration::from_secs(25);

/// Kinds of transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Access {
    /// Reads one snapshot.
    Snapshot,
    /// Writes to a database that no one else uses.
    Write,
    /// Keeps all other programs from writing.
    Exclusive,
}

/// A database that is copied from or into.
pub(in crate::store) trait Side: Lines + Send {
    /// Returns the address, without a password.
    fn address(&self) -> String;

    /// Returns true for a backup: it belongs to no program, may be copied again, and is not written.
    fn is_backup(&self) -> bool;

    /// Begins a transaction.
    fn begin(&mut self, access: Access) -> Result<(), BoxError>;

    /// Commits the transaction, and lets go of its locks.
    fn commit(&mut self) -> Result<(), BoxError>;

    /// Runs statements.
    fn execute(&self, sql: &str) -> Result<(), BoxError>;

    /// Inserts rows, given as lines.
    fn insert(&self, table: &Table, lines: &[u8]) -> Result<(), BoxError>;

    /// Stores where the orders of this database are instead, and has it refuse writes; or the reverse.
    fn relocate(&self, to: Option<&Relocation>) -> Result<(), BoxError>;

    /// Continues the last history, so that no new one begins when a program opens the database.
    fn continue_history(&self) -> Result<(), BoxError>;

    /// Takes the reconciler's lock, unless another program has it.
    fn try_lead(&mut self) -> Result<bool, BoxError>;

    /// Flushes everything to the disk, and tidies up.
    fn finish(&mut self) -> Result<(), BoxError>;
}

/// Returns the address of a database, as it is stored where its orders have moved to or from. The database
/// need not exist.
pub(super) fn address(url: &DatabaseUrl) -> Result<String, OpenError> {
    match url {
        DatabaseUrl::Sqlite(path) => sqlite::address(path),
        #[cfg(feature = "postgres")]
        DatabaseUrl::Postgres(url) => Ok(url.to_string()),
    }
}

/// Refuses a database that has orders which may be used, before anything in it is changed.
pub(super) fn must_be_free(url: &DatabaseUrl) -> Result<(), OpenError> {
    let is_free = match url {
        DatabaseUrl::Sqlite(path) => !sqlite::holds_orders(path),
        #[cfg(feature = "postgres")]
        DatabaseUrl::Postgres(url) => postgres::LineSession::open(url).is_err(),
    };
    match is_free {
        true => Ok(()),
        false => Err(OpenError::new(address(url)?, OpenReason::Occupied)),
    }
}

/// Opens a database that is there, whether or not its orders have moved. Changes nothing.
pub(super) fn open_to_read(url: &DatabaseUrl) -> Result<Box<dyn Side>, OpenError> {
    Ok(match url {
        DatabaseUrl::Sqlite(path) => Box::new(sqlite::CopySide::open_to_read(path)?),
        #[cfg(feature = "postgres")]
        DatabaseUrl::Postgres(url) => Box::new(postgres::LineSession::open_to_read(url)?),
    })
}

/// Opens a database that is there, whether or not its orders have moved.
pub(super) fn open_source(url: &DatabaseUrl) -> Result<Box<dyn Side>, OpenError> {
    Ok(match url {
        DatabaseUrl::Sqlite(path) => Box::new(sqlite::CopySide::open(path)?),
        #[cfg(feature = "postgres")]
        DatabaseUrl::Postgres(url) => Box::new(postgres::LineSession::open_source(url)?),
    })
}

/// Opens a database to copy into. A new one is an incomplete copy from its first moment on.
pub(super) fn open_target(
    url: &DatabaseUrl,
    incomplete: &Relocation,
) -> Result<Box<dyn Side>, OpenError> {
    Ok(match url {
        DatabaseUrl::Sqlite(path) => Box::new(sqlite::CopySide::open_target(path, incomplete)?),
        #[cfg(feature = "postgres")]
        DatabaseUrl::Postgres(url) => {
            Box::new(postgres::LineSession::open_target(url, incomplete)?)
        }
    })
}

/// Returns a function that names the database of an error.
pub(super) fn of<S: Side + ?Sized>(side: &S) -> impl FnOnce(BoxError) -> TransferError + use<S> {
    let address = side.address();
    move |error| TransferError::Database {
        address,
        cause: with_causes(&*error),
    }
}

/// Returns whether the orders of a side are in the other database that is expected; refuses a side whose
/// orders are in a third one.
pub(super) fn is_relocated(
    side: &dyn Side,
    is_expected: impl FnOnce(&Relocation) -> bool,
) -> Result<bool, TransferError> {
    match relocation(side)? {
        None => Ok(false),
        Some(found) if is_expected(&found) => Ok(true),
        Some(found) => Err(OpenError::new(side.address(), OpenReason::Relocated(found)).into()),
    }
}

pub(super) fn relocation(side: &dyn Side) -> Result<Option<Relocation>, TransferError> {
    Relocation::read(side).map_err(of(side))
}

/// Takes the lock of a database that must not be used, so that no other copy into it runs. What was read of it
/// before may have changed.
pub(super) fn must_lead(side: &mut dyn Side) -> Result<(), TransferError> {
    match lead_within(side, HOLDER_TIMEOUT)? {
        true => Ok(()),
        false => {
            let what = format!(
                "{}: a copy into it still runs, or its reconciler has not ended yet; run the command again \
                 once it has",
                side.address()
            );
            Err(TransferError::Refused(what))
        }
    }
}

/// Takes the reconciler's lock, unless another program has it for all of this time.
pub(super) fn lead_within(side: &mut dyn Side, timeout: Duration) -> Result<bool, TransferError> {
    let began = Instant::now();
    loop {
        let is_taken = side.try_lead().map_err(of(side))?;
        if is_taken || began.elapsed() >= timeout {
            return Ok(is_taken);
        }
        std::thread::sleep(LEAD_INTERVAL);
    }
}
