//! Copies of a whole database into another one, on any two engines: moving there and back, backups of
//! servers, and comparison.
//!
//! Orders are copied in ranges of their numbers, each with the entries of the journal that belong to
//! it, in a transaction of the target. Rows are compared as lines of text (`store/lines.rs`): what the
//! target lacks is inserted, what it has in addition is deleted, and what it then holds is read back.
//! So an interrupted copy goes on where it was, and a later pass copies what has changed since.
//!
//! Most passes run while programs write to the source, each on one snapshot of it. The last one holds
//! the source's locks, and ends with both databases marked (`store/relocation.rs`), the source first:
//! at no moment can both be used.

mod differences;
mod passes;
mod ranges;
mod side;
mod tables;

use std::fmt;
use std::time::{Duration, Instant};

use self::differences::{count, differences, lacks, must_be_equal};
use self::passes::Copy;
pub(super) use self::side::{Access, Side};
use self::side::{
    address, is_relocated, must_be_free, must_lead, of, open_source, open_target, open_to_read,
    relocation,
};
pub(super) use self::tables::{HISTORIES, Table};
use self::tables::{JOURNAL, ORDERS};
use super::relocation::{Relocation, State, removal};
use super::sqlite;
use super::{DatabaseUrl, Finding, OpenError, OpenReason};
use crate::messages::quoted;

/// Duration of a pass after which the next one takes the locks: about as long as that will hold them.
const SHORT_PASS: Duration = Duration::from_millis(1_500);

/// Passes before the locks are taken in any case, where more changes than can be copied.
const PASSES_MAX: usize = 6;

/// Differences that are reported one by one; beyond that only their number is.
const REPORTED_MAX: u64 = 50;

/// A completed move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The source, which refuses to be opened from now on, unless it is a backup.
    pub from: String,
    /// The target.
    pub to: String,
    /// True if the source is a backup, which stays as it is.
    pub is_restored: bool,
    /// Number of orders and of entries of the journal.
    pub rows: [u64; 2],
    /// Number of open orders.
    pub open: u64,
    /// Duration of the whole copy.
    pub took: Duration,
    /// Time for which the source could not be written.
    pub paused: Duration,
}

impl fmt::Display for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [orders, entries] = self.rows;
        let Self { open, from, to, .. } = self;
        writeln!(f, "  {:<8} {orders}, {open} of them open", "orders")?;
        writeln!(f, "  {:<8} {entries} entries", "journal")?;
        writeln!(f, "  {:<8} equal, and sound", "checked")?;
        let (took, paused) = (self.took.as_secs_f64(), self.paused.as_secs_f64());
        match self.is_restored {
            true => {
                writeln!(f, "  {:<8} {took:.1} s", "took")?;
                writeln!(f, "  {:<8} {from}\n  {:<8} {to}", "restored", "into")
            }
            false => {
                writeln!(
                    f,
                    "  {:<8} {took:.1} s; writes waited for {paused:.1} s",
                    "took"
                )?;
                writeln!(
                    f,
                    "  {:<8} {from}, which refuses to be opened\n  {:<8} {to}",
                    "moved", "to"
                )
            }
        }
    }
}

/// A move that was undone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TakenBack {
    /// The source of the move, which can be used again.
    pub from: String,
    /// Its target, which refuses to be opened from now on.
    pub to: String,
    /// Number of orders and of entries of the journal that are equal; `None` if the target had not been
    /// used, and was not compared.
    pub equal: Option<[u64; 2]>,
}

impl fmt::Display for TakenBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, equal } = self;
        match equal {
            Some([orders, entries]) => {
                writeln!(f, "  {:<8} {orders}", "orders")?;
                writeln!(f, "  {:<8} {entries} entries", "journal")?;
                writeln!(f, "  {:<8} equal", "checked")?;
            }
            None => writeln!(f, "  {:<8} nothing: {to} was not in use", "checked")?,
        }
        writeln!(f, "taken back; use {from}, as {to} refuses to be opened")
    }
}

impl TakenBack {
    fn new(from: String, to: String) -> Self {
        let equal = None;
        Self { from, to, equal }
    }

    /// Returns the commands that move the orders again, and back.
    fn commands(&self) -> [String; 2] {
        let (from, to) = (quoted(&self.from), quoted(&self.to));
        [[&from, &to], [&to, &from]].map(|[from, to]| format!("order-service copy {from} {to}"))
    }

    /// Returns what can be done about a target that lacks this of what had moved there.
    fn if_lacking(&self, what: &str) -> String {
        let Self { from, to, .. } = self;
        let [move_again, _] = self.commands();
        let (remove, compare) = (
            removal(to),
            move_again.replacen("copy", "copy --verify-only", 1),
        );
        format!(
            "lacks what {from} had when its orders moved there, and would replace it: {what}; `{compare}` \
             lists all that differs; to give up the orders that it holds, {remove}; then `{move_again}` fills \
             it again"
        )
    }

    /// Returns what can be done about an unfinished copy of a target that lacks this of what was copied.
    fn if_unfinished(&self, what: &str) -> String {
        let from = &self.from;
        let (copy, remove) = (&self.commands()[1], removal(from));
        format!(
            "lacks what its unfinished copy {from} has: {what}; if an older state was restored on purpose, remove \
             that copy ({remove}), and run `{copy}` again: what it had more is lost then"
        )
    }
}

/// Reasons why a database was not copied or compared.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// One of the databases cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Both are the same, or the source has not moved to this target.
    #[error("{0}")]
    Refused(String),
    /// A database failed.
    #[error("{address}: {cause}; run the command again once that is mended")]
    Database {
        /// The database.
        address: String,
        /// The whole cause.
        cause: String,
    },
    /// The rules of the check are violated.
    #[error(
        "{address} is not sound, and was not taken into use; faults: {count}, the first: {first}"
    )]
    Unsound {
        /// The database.
        address: String,
        /// Number of findings.
        count: usize,
        /// First finding.
        first: Box<Finding>,
    },
    /// The target does not hold what was written to it, or was written to since.
    #[error("{address} differs from the source: {first}; {to_do}")]
    Different {
        /// The target.
        address: String,
        /// First difference.
        first: String,
        /// Action for the operator.
        to_do: String,
    },
}

/// Moves all orders into a new database, or goes on with a copy that was interrupted. `progress` is
/// called with the number of orders that were copied.
pub fn move_database(
    from: &DatabaseUrl,
    to: &DatabaseUrl,
    mut progress: impl FnMut(u64),
) -> Result<Moved, TransferError> {
    let began = Instant::now();
    if let Err(occupied) = must_be_free(to) {
        // A move that was completed before has another reason.
        if let Ok(from) = open_to_read(from) {
            is_relocated(&*from, |_| false)?;
        }
        return Err(occupied.into());
    }
    let mut from = open_source(from)?;
    let moved = Relocation::moved(address(to)?);
    // A source that is refused leaves no target behind.
    is_relocated(&*from, |found| *found == moved)?;
    let incomplete = Relocation::incomplete(from.address());
    let mut to = open_target(to, &incomplete)?;
    let led = must_lead(&mut *to);
    // A copy was interrupted between its last two transactions, or its target was lost.
    let has_moved = is_relocated(&*from, |found| *found == moved)?;
    if !is_relocated(&*to, |found| found.address == incomplete.address)? {
        // Another copy has ended meanwhile.
        is_relocated(&*from, |_| false)?;
        return Err(OpenError::new(to.address(), OpenReason::Occupied).into());
    }
    led?;
    if let Some(what) = lacks(&*from, &*to)? {
        let addresses = TakenBack::new(to.address(), from.address());
        let what = match relocation(&*to)?.map(|found| found.state) {
            Some(State::Incomplete) => addresses.if_unfinished(&what),
            _ => addresses.if_lacking(&what),
        };
        let what = format!("{}: {what}", addresses.to);
        return Err(TransferError::Refused(what));
    }
    let mut copy = Copy::new(&mut *from, &mut *to, Some(&incomplete), &mut progress);
    if !copy.from.is_backup() {
        for _ in 0..PASSES_MAX {
            let began = Instant::now();
            copy.pass()?;
            if began.elapsed() < SHORT_PASS {
                break;
            }
        }
        if !has_moved {
            copy.depose()?;
        }
    }
    let paused = Instant::now();
    copy.begin(Access::Exclusive)?;
    if is_relocated(copy.from, |found| *found == moved)? != has_moved {
        let address = copy.from.address();
        let what = format!("{address}: was taken back meanwhile; run the copy again");
        return Err(TransferError::Refused(what));
    }
    copy.changes()?;
    copy.whole()?;
    let open = copy.open.len() as u64;
    if !from.is_backup() {
        from.relocate(Some(&moved)).map_err(of(&*from))?;
        from.commit().map_err(of(&*from))?;
        to.begin(Access::Write).map_err(of(&*to))?;
        to.continue_history().map_err(of(&*to))?;
    } else {
        to.begin(Access::Write).map_err(of(&*to))?;
    }
    to.relocate(None).map_err(of(&*to))?;
    to.commit().map_err(of(&*to))?;
    let paused = paused.elapsed();
    to.finish().map_err(of(&*to))?;
    Ok(Moved {
        from: from.address(),
        to: to.address(),
        is_restored: from.is_backup(),
        rows: [count(&*to, &ORDERS)?, count(&*to, &JOURNAL)?],
        open,
        took: began.elapsed(),
        paused,
    })
}

/// Makes the source of a move usable again, and the target refuse to be opened. `progress` is called with the
/// number of orders that were compared.
///
/// # Errors
/// [`TransferError::Different`] if any order, entry, heartbeat, total of what was pruned or history of
/// the target is no longer as it was copied.
pub fn take_back(
    from: &DatabaseUrl,
    to: &DatabaseUrl,
    mut progress: impl FnMut(u64),
) -> Result<TakenBack, TransferError> {
    let mut from = open_source(from)?;
    let mut taken_back = TakenBack::new(from.address(), address(to)?);
    let [move_again, move_back] = taken_back.commands();
    // Otherwise the orders may be on their way back.
    must_lead(&mut *from)?;
    if relocation(&*from)? != Some(Relocation::moved(taken_back.to.clone())) {
        let what = format!("{} has not moved to {}", taken_back.from, taken_back.to);
        return Err(TransferError::Refused(what));
    }
    let mut to = open_source(to).map_err(|error| {
        error.if_lost(format_args!(
            "if it is lost, with all that was written to it, `{move_again}` copies the orders into an \
             empty database at that address"
        ))
    })?;
    let is_of_source = |found: &Relocation| found.address == taken_back.from;
    if is_relocated(&*to, is_of_source)? {
        // Otherwise a copy may complete it.
        must_lead(&mut *to)?;
    }
    // Otherwise no program has used the target since.
    if !is_relocated(&*to, is_of_source)? {
        to.begin(Access::Exclusive).map_err(of(&*to))?;
        let to_do = match lacks(&*to, &*from)? {
            None => format!("`{move_back}` brings everything back"),
            Some(what) => format!("it {}", taken_back.if_lacking(&what)),
        };
        let mut report = must_be_equal(&*to, to_do);
        differences(&*from, &*to, &mut report, &mut progress)?;
        taken_back.equal = Some([count(&*to, &ORDERS)?, count(&*to, &JOURNAL)?]);
        let to_source = Relocation::moved(from.address());
        to.relocate(Some(&to_source)).map_err(of(&*to))?;
        to.commit().map_err(of(&*to))?;
    }
    from.begin(Access::Exclusive).map_err(of(&*from))?;
    from.relocate(None).map_err(of(&*from))?;
    from.commit().map_err(of(&*from))?;
    Ok(taken_back)
}

/// Compares two databases row by row, each as of one moment, and reports the differences. Returns
/// their number. `progress` is called with the number of orders that were compared.
pub fn compare(
    from: &DatabaseUrl,
    to: &DatabaseUrl,
    mut report: impl FnMut(String),
    mut progress: impl FnMut(u64),
) -> Result<u64, TransferError> {
    let (mut from, mut to) = (open_to_read(from)?, open_to_read(to)?);
    for side in [&mut from, &mut to] {
        side.begin(Access::Snapshot).map_err(of(&**side))?;
    }
    let mut count = 0;
    let mut report = |what| {
        count += 1;
        if count <= REPORTED_MAX {
            report(what);
        }
        Ok(())
    };
    differences(&*from, &*to, &mut report, &mut progress)?;
    Ok(count)
}

/// Copies one snapshot of a database into a new file, of which no program is the owner yet.
pub(super) fn copy_into_file(
    from: &DatabaseUrl,
    file: &std::path::Path,
) -> Result<(), TransferError> {
    let mut from = open_to_read(from)?;
    let mut to = sqlite::CopySide::new_file(file)?;
    let mut progress = |_| {};
    let mut copy = Copy::new(&mut *from, &mut to, None, &mut progress);
    copy.pass()?;
    copy.whole()?;
    to.finish().map_err(of(&to))
}
