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

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::check::Check;
use super::lines::{BoxError, Lines, fields};
use super::relocation::{Relocation, State};
use super::{DatabaseUrl, Finding, OpenError, sqlite};

/// Order numbers in a range: half a second's work.
const RANGE: i64 = 10_000;

/// Ranges that are read ahead while one is written.
const READ_AHEAD: usize = 1;

/// Distance between two open orders up to which they are copied together.
const GAP_MAX: i64 = 100;

/// Duration of a pass after which the next one takes the locks: about as long as that will hold them.
const SHORT_PASS: Duration = Duration::from_millis(1_500);

/// Passes before the locks are taken in any case, where more changes than can be copied.
const PASSES_MAX: usize = 6;

/// Time for a running reconciler to notice that it no longer leads. One that sleeps for longer records
/// nothing any more either.
const LEAD_TIMEOUT: Duration = Duration::from_secs(3);

/// Time for a server to notice that a copy into it was killed.
const HOLDER_TIMEOUT: Duration = Duration::from_secs(10);

/// Interval between attempts to take the lead.
const LEAD_INTERVAL: Duration = Duration::from_millis(10);

/// Differences that are reported one by one; beyond that only their number is.
const REPORTED_MAX: u64 = 50;

/// Characters of a value that are shown.
const SHOWN_MAX: usize = 60;

/// A table, of which all is copied that both engines have.
#[derive(Debug)]
pub(super) struct Table {
    pub name: &'static str,
    /// The first is a number by which rows are told apart and sorted.
    pub columns: &'static [&'static str],
    /// Column with the number of the order that a row belongs to; none if rows belong to no order.
    order: Option<&'static str>,
}

const ORDERS: Table = Table {
    name: "orders",
    columns: &[
        "seq",
        "id",
        "status",
        "created_at",
        "updated_at",
        "starts",
        "intent_at",
        "given_up_at",
        "start_answer",
        "confirmed_at",
        "process_seen",
        "missed_at",
        "released_at",
        "attempts",
        "next_attempt_at",
        "attention",
        "attention_since",
        "attention_detail",
    ],
    order: Some("seq"),
};

const JOURNAL: Table = Table {
    name: "journal",
    columns: &["seq", "order_seq", "at", "reason"],
    order: Some("order_seq"),
};

const HEARTBEAT: Table = Table {
    name: "heartbeat",
    columns: &[
        "id",
        "epoch",
        "leader_since",
        "led_until",
        "policy",
        "last_pass_at",
        "next_pass_at",
        "last_seen_at",
        "next_look_at",
        "upstream",
        "upstream_since",
        "upstream_detail",
        "learned",
        "tally",
    ],
    order: None,
};

const PRUNED: Table = Table {
    name: "pruned",
    columns: &[
        "id",
        "fulfilled",
        "failed",
        "last_order_seq",
        "entries",
        "last_entry_seq",
        "history",
    ],
    order: None,
};

/// Without the file or server of each, which is the database's own.
pub(super) const HISTORIES: Table = Table {
    name: "histories",
    columns: &["number", "id", "newest_order", "newest_entry", "pruned"],
    order: None,
};

/// First and last order number.
type Range = (i64, i64);

const EVERYTHING: Range = (i64::MIN, i64::MAX);

/// Kinds of transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Reads one snapshot.
    Snapshot,
    /// Writes to a database that no one else uses.
    Write,
    /// Keeps all other programs from writing.
    Exclusive,
}

/// A database that is copied from or into.
pub(super) trait Side: Lines + Send {
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

    /// Takes the reconciler's lock, unless another process has it.
    fn try_lead(&mut self) -> Result<bool, BoxError>;

    /// Flushes everything to the disk, and tidies up.
    fn finish(&mut self) -> Result<(), BoxError>;
}

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
    #[error("{address}: {source}")]
    Database {
        /// The database.
        address: String,
        /// Cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The rules of the check are violated.
    #[error("{address} has {count} faults, and was not taken into use; the first: {first}")]
    Unsound {
        /// The database.
        address: String,
        /// Number of findings.
        count: usize,
        /// First finding.
        first: Box<Finding>,
    },
    /// The target does not hold what was written to it, or was written to since.
    #[error("{address} differs from the source in {count} rows; the first: {first}")]
    Different {
        /// The target.
        address: String,
        /// Number of rows.
        count: u64,
        /// First difference.
        first: String,
    },
}

/// Moves all orders into a new database, or goes on with a copy that was interrupted. `progress` is
/// called with the number of orders that were looked at.
pub fn move_database(
    from: &DatabaseUrl,
    to: &DatabaseUrl,
    mut progress: impl FnMut(u64),
) -> Result<Moved, TransferError> {
    let began = Instant::now();
    let mut from = open_source(from)?;
    let mut to = open_target(to, &from.address())?;
    let incomplete = Relocation {
        state: State::Incomplete,
        address: from.address(),
    };
    let moved = Relocation {
        state: State::Moved,
        address: to.address(),
    };
    let of_source = relocation(&*from)?;
    // A copy was interrupted between its last two transactions.
    let has_moved = of_source.as_ref() == Some(&moved);
    let of_source = of_source.filter(|_| !has_moved);
    let of_target = relocation(&*to)?.filter(|found| found.address != incomplete.address);
    for (side, found) in [(&from, of_source), (&to, of_target)] {
        if let Some(relocation) = found {
            let address = side.address();
            return Err(OpenError::Relocated {
                address,
                relocation,
            }
            .into());
        }
    }
    if relocation(&*to)?.is_none() {
        return Err(OpenError::Occupied(to.address()).into());
    }
    if !lead_within(&mut *to, HOLDER_TIMEOUT)? {
        let what = format!("{}: is being copied into by another program", to.address());
        return Err(TransferError::Refused(what));
    }
    let mut copy = Copy {
        from: &mut *from,
        to: &mut *to,
        incomplete: Some(&incomplete),
        open: Vec::new(),
        newest: 0,
        pruned: None,
        progress: &mut progress,
    };
    if !copy.from.is_backup() {
        for _ in 0..PASSES_MAX {
            let began = Instant::now();
            copy.pass(Access::Snapshot)?;
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

/// Makes the source of a move usable again, and the target refuse to be opened.
///
/// # Errors
/// [`TransferError::Different`] if any order, entry, heartbeat, total of what was pruned or history of
/// the target is no longer as it was copied.
pub fn take_back(from: &DatabaseUrl, to: &DatabaseUrl) -> Result<(), TransferError> {
    let (mut from, mut to) = (open_source(from)?, open_source(to)?);
    let to_target = Relocation {
        state: State::Moved,
        address: to.address(),
    };
    let to_source = Relocation {
        state: State::Moved,
        address: from.address(),
    };
    if relocation(&*from)?.as_ref() != Some(&to_target) {
        let what = format!("{} has not moved to {}", from.address(), to.address());
        return Err(TransferError::Refused(what));
    }
    match relocation(&*to)? {
        // No program has used it since.
        Some(found) if found.address == from.address() => {}
        Some(relocation) => {
            let address = to.address();
            return Err(OpenError::Relocated {
                address,
                relocation,
            }
            .into());
        }
        None => {
            to.begin(Access::Exclusive).map_err(of(&*to))?;
            let mut first = None;
            let count = differences(&mut *from, &mut *to, &mut |what| {
                first.get_or_insert(what);
            })?;
            if let Some(first) = first {
                let address = to.address();
                return Err(TransferError::Different {
                    address,
                    count,
                    first,
                });
            }
            to.relocate(Some(&to_source)).map_err(of(&*to))?;
            to.commit().map_err(of(&*to))?;
        }
    }
    from.begin(Access::Exclusive).map_err(of(&*from))?;
    from.relocate(None).map_err(of(&*from))?;
    from.commit().map_err(of(&*from))
}

/// Compares two databases row by row, each as of one moment, and reports the differences. Returns
/// their number.
pub fn compare(
    from: &DatabaseUrl,
    to: &DatabaseUrl,
    mut report: impl FnMut(String),
) -> Result<u64, TransferError> {
    let (mut from, mut to) = (open_source(from)?, open_source(to)?);
    for side in [&mut from, &mut to] {
        side.begin(Access::Snapshot).map_err(of(&**side))?;
    }
    differences(&mut *from, &mut *to, &mut report)
}

/// Copies one snapshot of a database into a new file, of which no program is the owner yet.
#[cfg(feature = "postgres")]
pub(super) fn copy_into_file(
    from: &DatabaseUrl,
    file: &std::path::Path,
) -> Result<(), TransferError> {
    let mut from = open_source(from)?;
    let mut to = sqlite::CopySide::new_file(file).map_err(OpenError::from)?;
    let mut copy = Copy {
        from: &mut *from,
        to: &mut to,
        incomplete: None,
        open: Vec::new(),
        newest: 0,
        pruned: None,
        progress: &mut |_| {},
    };
    copy.pass(Access::Snapshot)?;
    copy.whole()?;
    to.finish().map_err(of(&to))
}

/// Opens a database that is there, whether or not its orders have moved.
fn open_source(url: &DatabaseUrl) -> Result<Box<dyn Side>, OpenError> {
    Ok(match url {
        DatabaseUrl::Sqlite(path) => Box::new(sqlite::CopySide::open(path)?),
        #[cfg(feature = "postgres")]
        DatabaseUrl::Postgres(url) => Box::new(super::postgres::LineSession::open_source(url)?),
    })
}

/// Opens a database to copy into. A new one is an incomplete copy from its first moment on.
fn open_target(url: &DatabaseUrl, from: &str) -> Result<Box<dyn Side>, OpenError> {
    let incomplete = Relocation {
        state: State::Incomplete,
        address: from.to_owned(),
    };
    Ok(match url {
        DatabaseUrl::Sqlite(path) => Box::new(sqlite::CopySide::open_target(path, &incomplete)?),
        #[cfg(feature = "postgres")]
        DatabaseUrl::Postgres(url) => {
            Box::new(super::postgres::LineSession::open_target(url, &incomplete)?)
        }
    })
}

/// Returns a function that names the database of an error.
fn of<S: Side + ?Sized>(side: &S) -> impl FnOnce(BoxError) -> TransferError + use<S> {
    let address = side.address();
    move |source| TransferError::Database { address, source }
}

fn relocation(side: &dyn Side) -> Result<Option<Relocation>, TransferError> {
    Relocation::read(side).map_err(of(side))
}

/// Takes the reconciler's lock, unless another process has it for all of this time.
fn lead_within(side: &mut dyn Side, timeout: Duration) -> Result<bool, TransferError> {
    let began = Instant::now();
    loop {
        let is_taken = side.try_lead().map_err(of(side))?;
        if is_taken || began.elapsed() >= timeout {
            return Ok(is_taken);
        }
        std::thread::sleep(LEAD_INTERVAL);
    }
}

/// A copy that is being made.
struct Copy<'a> {
    from: &'a mut dyn Side,
    to: &'a mut dyn Side,
    /// Mark of the target after each transaction; none for a backup.
    incomplete: Option<&'a Relocation>,
    /// The orders that were open when they were copied last, and may have changed since.
    open: Vec<i64>,
    /// The newest order that was copied.
    newest: i64,
    /// Totals of pruned orders at the last pass; while they are the same, no order has vanished.
    pruned: Option<Vec<u8>>,
    progress: &'a mut dyn FnMut(u64),
}

/// A range as the source has it.
struct Part {
    range: Range,
    orders: Vec<u8>,
    journal: Vec<u8>,
}

impl Part {
    fn read(db: &dyn Side, range: Range) -> Result<Self, TransferError> {
        Ok(Self {
            range,
            orders: read(db, &ORDERS, range)?,
            journal: read(db, &JOURNAL, range)?,
        })
    }
}

impl Copy<'_> {
    /// Copies what has changed since the last pass, from one snapshot.
    fn pass(&mut self, access: Access) -> Result<(), TransferError> {
        self.begin(access)?;
        self.changes()?;
        self.from.commit().map_err(of(self.from))
    }

    fn begin(&mut self, access: Access) -> Result<(), TransferError> {
        self.from.begin(access).map_err(of(self.from))
    }

    /// Has a reconciler that leads on the source notice that it no longer does, so that no start is on
    /// its way when the orders move.
    fn depose(&mut self) -> Result<(), TransferError> {
        if !self.from.try_lead().map_err(of(self.from))? {
            let next = "UPDATE heartbeat SET epoch = epoch + 1";
            self.from.execute(next).map_err(of(self.from))?;
            lead_within(self.from, LEAD_TIMEOUT)?;
        }
        Ok(())
    }

    /// Copies what has changed since the last pass, in a transaction of the source.
    fn changes(&mut self) -> Result<(), TransferError> {
        let newest = number(self.from, "SELECT coalesce(max(seq), 0) FROM orders")?;
        let pruned = read(self.from, &PRUNED, EVERYTHING)?;
        let mut ranges = runs(&self.open);
        if self.pruned.as_ref().is_some_and(|before| *before != pruned) {
            ranges.extend(vanished(self.from, self.to, self.newest)?);
        }
        let is_first = self.pruned.is_none();
        let begin = if is_first { i64::MIN } else { self.newest + 1 };
        ranges.extend(chunks(begin, newest));
        ranges.sort_unstable();
        self.open = self.copy_ranges(ranges)?;
        for table in [&HEARTBEAT, &PRUNED, &HISTORIES] {
            let rows = read(self.from, table, EVERYTHING)?;
            self.write(|to| sync(to, table, EVERYTHING, &rows))?;
        }
        self.newest = newest;
        self.pruned = Some(pruned);
        Ok(())
    }

    /// Copies these ranges, in this order; returns the open orders in them.
    fn copy_ranges(&mut self, ranges: Vec<Range>) -> Result<Vec<i64>, TransferError> {
        let (parts, received) = mpsc::sync_channel(READ_AHEAD);
        let mut open = BTreeSet::new();
        let mut count = 0;
        // The source is lent to the thread that reads ahead.
        let Self {
            from,
            to,
            incomplete,
            progress,
            ..
        } = self;
        let from: &mut dyn Side = &mut **from;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for range in ranges {
                    // The receiver goes away after an error.
                    if parts.send(Part::read(from, range)).is_err() {
                        return;
                    }
                }
            });
            for part in received {
                let Part {
                    range,
                    orders,
                    journal,
                } = part?;
                write(&mut **to, *incomplete, |to| {
                    sync(to, &ORDERS, range, &orders)?;
                    sync(to, &JOURNAL, range, &journal)?;
                    sound(to, |check| check.orders(to, range.0, range.1))
                })?;
                for row in rows_of(&orders) {
                    count += 1;
                    let status = fields_of(row).nth(2).flatten();
                    if status.is_some_and(|status| status == "CREATED" || status == "PROCESSING") {
                        open.insert(key(row));
                    }
                }
                progress(count);
            }
            Ok(open.into_iter().collect())
        })
    }

    /// Checks the target as a whole.
    fn whole(&mut self) -> Result<(), TransferError> {
        sound(self.to, |check| check.whole(self.to))
    }

    fn write(
        &mut self,
        work: impl FnOnce(&dyn Side) -> Result<(), TransferError>,
    ) -> Result<(), TransferError> {
        write(self.to, self.incomplete, work)
    }
}

/// Works in a transaction of the target, which no other program can write to before or after.
fn write(
    to: &mut dyn Side,
    incomplete: Option<&Relocation>,
    work: impl FnOnce(&dyn Side) -> Result<(), TransferError>,
) -> Result<(), TransferError> {
    to.begin(Access::Write).map_err(of(to))?;
    if incomplete.is_some() {
        to.relocate(None).map_err(of(to))?;
    }
    work(to)?;
    if incomplete.is_some() {
        to.relocate(incomplete).map_err(of(to))?;
    }
    to.commit().map_err(of(to))
}

/// Runs rules of the check; the first violation is the error.
fn sound(db: &dyn Side, rules: impl FnOnce(&mut Check<'_>)) -> Result<(), TransferError> {
    let mut findings = Vec::new();
    let mut report = |finding| findings.push(finding);
    rules(&mut Check {
        on_finding: &mut report,
        unreadable: "run the copy again",
    });
    let count = findings.len();
    match findings.into_iter().next() {
        None => Ok(()),
        Some(first) => Err(TransferError::Unsound {
            address: db.address(),
            count,
            first: Box::new(first),
        }),
    }
}

/// Brings the rows of a table to those of the source, and reads them back.
fn sync(to: &dyn Side, table: &Table, range: Range, wanted: &[u8]) -> Result<(), TransferError> {
    let found = read(to, table, range)?;
    if found == wanted {
        return Ok(());
    }
    let Difference { missing, extra } = Difference::of(wanted, &found);
    if !extra.is_empty() {
        let keys: Vec<_> = extra.into_iter().map(|row| key(row).to_string()).collect();
        let (name, column) = (table.name, table.columns[0]);
        let sql = format!("DELETE FROM {name} WHERE {column} IN ({})", keys.join(", "));
        to.execute(&sql).map_err(of(to))?;
    }
    if !missing.is_empty() {
        to.insert(table, &missing.concat()).map_err(of(to))?;
    }
    let found = read(to, table, range)?;
    let (mut first, mut count) = (None, 0);
    describe(table, wanted, &found, [wanted, &found], &mut |what| {
        count += 1;
        first.get_or_insert(what);
    });
    match first {
        None => Ok(()),
        Some(first) => Err(TransferError::Different {
            address: to.address(),
            count,
            first,
        }),
    }
}

/// Reports all differences between two databases; returns their number.
fn differences(
    from: &mut dyn Side,
    to: &mut dyn Side,
    report: &mut dyn FnMut(String),
) -> Result<u64, TransferError> {
    let newest = "SELECT coalesce(max(seq), 0) FROM orders";
    let newest = number(from, newest)?.max(number(to, newest)?);
    let mut count = 0;
    let mut report = |what| {
        count += 1;
        if count <= REPORTED_MAX {
            report(what);
        }
    };
    for range in chunks(i64::MIN, newest) {
        let (own, other) = (Part::read(from, range)?, Part::read(to, range)?);
        let orders = [&own.orders[..], &other.orders];
        describe(&ORDERS, &own.orders, &other.orders, orders, &mut report);
        describe(&JOURNAL, &own.journal, &other.journal, orders, &mut report);
    }
    for table in [&HEARTBEAT, &PRUNED, &HISTORIES] {
        let rows = [read(from, table, EVERYTHING)?, read(to, table, EVERYTHING)?];
        describe(table, &rows[0], &rows[1], [&[], &[]], &mut report);
    }
    Ok(count)
}

/// Rows that two databases do not have in common.
struct Difference<'a> {
    missing: Vec<&'a [u8]>,
    extra: Vec<&'a [u8]>,
}

impl<'a> Difference<'a> {
    /// Compares rows that are sorted by their keys.
    fn of(wanted: &'a [u8], found: &'a [u8]) -> Self {
        let (mut missing, mut extra) = (Vec::new(), Vec::new());
        let (mut wanted, mut found) = (rows_of(wanted).peekable(), rows_of(found).peekable());
        loop {
            match (wanted.peek().copied(), found.peek().copied()) {
                (None, None) => return Self { missing, extra },
                (Some(one), Some(other)) if one == other => {
                    wanted.next();
                    found.next();
                }
                (Some(one), other) if other.is_none_or(|other| key(one) <= key(other)) => {
                    missing.push(one);
                    wanted.next();
                }
                (_, Some(other)) => {
                    extra.push(other);
                    found.next();
                }
                (Some(_), None) => {}
            }
        }
    }
}

/// Reports each row that differs, with the names of its columns. `orders` has the orders that the rows
/// may belong to.
fn describe(
    table: &Table,
    wanted: &[u8],
    found: &[u8],
    orders: [&[u8]; 2],
    report: &mut dyn FnMut(String),
) {
    if wanted == found {
        return;
    }
    let Difference { missing, extra } = Difference::of(wanted, found);
    for &row in &missing {
        let name = name(table, row, orders);
        match extra.iter().find(|other| key(other) == key(row)) {
            None => report(format!("{name} is missing")),
            Some(other) => report(format!("{name} has {}", columns(table, row, other))),
        }
    }
    for row in extra {
        if !missing.iter().any(|other| key(other) == key(row)) {
            let name = name(table, row, orders);
            report(format!("{name} is not in the source"));
        }
    }
}

/// Names the columns of a row that differ, with both values.
fn columns(table: &Table, wanted: &[u8], found: &[u8]) -> String {
    let shown = |field: Option<Cow<'_, str>>| match field {
        None => "nothing".to_owned(),
        Some(text) if text.chars().count() <= SHOWN_MAX => format!("{text:?}"),
        Some(text) => format!("{:?}…", text.chars().take(SHOWN_MAX).collect::<String>()),
    };
    let both = fields_of(wanted).zip(fields_of(found)).zip(table.columns);
    let differing = both.filter(|((one, other), _)| one != other);
    let described = differing.map(|((one, other), column)| {
        format!("{column} = {} instead of {}", shown(other), shown(one))
    });
    described.collect::<Vec<_>>().join(", ")
}

/// Names a row: the order, and the entry of its journal; or the table.
fn name(table: &Table, row: &[u8], orders: [&[u8]; 2]) -> String {
    let Some(column) = table.order else {
        return format!("{} {}", table.name, key(row));
    };
    let at = table.columns.iter().position(|name| *name == column);
    let field = fields_of(row).nth(at.unwrap_or_default()).flatten();
    let number: i64 = field.and_then(|text| text.parse().ok()).unwrap_or_default();
    let order = orders
        .into_iter()
        .flat_map(rows_of)
        .find(|order| key(order) == number);
    let id = order.and_then(|order| Some(fields_of(order).nth(1)??.into_owned()));
    let order = match id {
        Some(id) => format!("order {id:?}"),
        None => format!("order {number}"),
    };
    match table.name {
        "orders" => order,
        _ => format!("{order}: entry {} of the journal", key(row)),
    }
}

/// Returns the ranges from `first` to the end, of which `newest` is near.
fn chunks(first: i64, newest: i64) -> Vec<Range> {
    let mut ranges = Vec::new();
    let mut first = first;
    // From a multiple on, so that each pass has the same.
    let mut last = (first.max(1) - 1) / RANGE * RANGE + RANGE;
    while last < newest {
        ranges.push((first, last));
        first = last + 1;
        last += RANGE;
    }
    ranges.push((first, i64::MAX));
    ranges
}

/// Returns ranges around these order numbers, which are sorted.
fn runs(orders: &[i64]) -> Vec<Range> {
    let mut runs: Vec<Range> = Vec::new();
    for &order in orders {
        match runs.last_mut() {
            Some((first, last)) if order - *last <= GAP_MAX && order - *first < RANGE => {
                *last = order
            }
            _ => runs.push((order, order)),
        }
    }
    runs
}

/// Returns the ranges up to `newest` of which the source has fewer orders than the target: some were
/// pruned.
fn vanished(from: &dyn Side, to: &dyn Side, newest: i64) -> Result<Vec<Range>, TransferError> {
    let sql = format!(
        "SELECT (seq - 1) / {RANGE} AS part, count(*) FROM orders WHERE seq <= {newest} \
         GROUP BY (seq - 1) / {RANGE} ORDER BY part"
    );
    let counts = |side: &dyn Side| {
        let mut rows = Vec::new();
        let read = side.each(&sql, &mut |line| {
            rows.extend_from_slice(line);
            rows.push(b'\n');
        });
        read.map(|()| rows).map_err(of(side))
    };
    let (ours, theirs) = (counts(from)?, counts(to)?);
    let Difference { missing, extra } = Difference::of(&ours, &theirs);
    let parts: BTreeSet<_> = missing.into_iter().chain(extra).map(key).collect();
    Ok(parts
        .into_iter()
        .map(|part| (part * RANGE + 1, (part + 1) * RANGE))
        .collect())
}

/// Reads rows of a table, sorted by their keys, each with the end of its line.
fn read(db: &dyn Side, table: &Table, (first, last): Range) -> Result<Vec<u8>, TransferError> {
    let columns = table.columns.iter().map(|column| match *column {
        // A number on one engine, a boolean on the other.
        "process_seen" => "CAST(process_seen AS integer)".to_owned(),
        column => column.to_owned(),
    });
    let columns = columns.collect::<Vec<_>>().join(", ");
    let condition = match table.order {
        None => String::new(),
        Some(order) => format!(" WHERE {order} BETWEEN {first} AND {last}"),
    };
    let (name, key) = (table.name, table.columns[0]);
    let sql = format!("SELECT {columns} FROM {name}{condition} ORDER BY {key}");
    let mut rows = Vec::new();
    let read = db.each(&sql, &mut |line| {
        rows.extend_from_slice(line);
        rows.push(b'\n');
    });
    read.map(|()| rows).map_err(of(db))
}

/// Returns the rows, each with the end of its line.
fn rows_of(rows: &[u8]) -> impl Iterator<Item = &[u8]> {
    rows.split_inclusive(|byte| *byte == b'\n')
}

/// Returns the fields of a row.
fn fields_of(row: &[u8]) -> impl Iterator<Item = Option<Cow<'_, str>>> {
    fields(row.strip_suffix(b"\n").unwrap_or(row))
}

/// Returns the number that a row begins with.
fn key(row: &[u8]) -> i64 {
    let digits = row.iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |key, digit| 10 * key + i64::from(digit - b'0'))
}

fn number(db: &dyn Side, sql: &str) -> Result<i64, TransferError> {
    let mut found = 0;
    db.each(sql, &mut |line| found = key(line))
        .map_err(of(db))?;
    Ok(found)
}

fn count(db: &dyn Side, table: &Table) -> Result<u64, TransferError> {
    let sql = format!("SELECT count(*) FROM {}", table.name);
    Ok(number(db, &sql)?.unsigned_abs())
}
