//! Passes of a copy: each brings the target to one state of the source.

use std::collections::BTreeSet;
use std::sync::mpsc;
use std::time::Duration;

use super::TransferError;
use super::differences::{
    Part, describe, differing, fields_of, key, must_be_equal, number, read, rows_of, select,
};
use super::ranges::{EVERYTHING, RANGE, Range, chunks, runs};
use super::side::{Access, Side, lead_within, of};
use super::tables::{JOURNAL, ORDERS, OTHERS, PRUNED, Table};
use crate::store::check::Check;
use crate::store::relocation::Relocation;

/// Ranges that are read ahead while one is written.
const READ_AHEAD: usize = 1;

/// Time for a running reconciler to notice that it no longer leads. One that sleeps for longer records
/// nothing any more either.
const LEAD_TIMEOUT: Duration = Duration::from_secs(3);

/// Advice where a database did not do what it was asked to.
const RUN_AGAIN: &str = "run the copy again";

/// A copy that is being made.
pub(super) struct Copy<'a> {
    pub from: &'a mut dyn Side,
    to: &'a mut dyn Side,
    /// Mark of the target after each transaction; none for a backup.
    incomplete: Option<&'a Relocation>,
    /// The orders that were open when they were copied last, and may have changed since.
    pub open: Vec<i64>,
    /// The newest order that was copied, and the number of orders.
    newest: i64,
    count: u64,
    /// Totals of pruned orders at the last pass; while they are the same, no order has vanished.
    pruned: Option<Vec<u8>>,
    progress: &'a mut dyn FnMut(u64),
}

impl<'a> Copy<'a> {
    pub fn new(
        from: &'a mut dyn Side,
        to: &'a mut dyn Side,
        incomplete: Option<&'a Relocation>,
        progress: &'a mut dyn FnMut(u64),
    ) -> Self {
        Self {
            from,
            to,
            incomplete,
            open: Vec::new(),
            newest: 0,
            count: 0,
            pruned: None,
            progress,
        }
    }

    /// Copies what has changed since the last pass, from one snapshot.
    pub fn pass(&mut self) -> Result<(), TransferError> {
        self.begin(Access::Snapshot)?;
        self.changes()?;
        self.from.commit().map_err(of(self.from))
    }

    pub fn begin(&mut self, access: Access) -> Result<(), TransferError> {
        self.from.begin(access).map_err(of(self.from))
    }

    /// Has a reconciler that leads on the source notice that it no longer does, so that no start is on
    /// its way when the orders move.
    pub fn depose(&mut self) -> Result<(), TransferError> {
        if !self.from.try_lead().map_err(of(self.from))? {
            let next = "UPDATE heartbeat SET epoch = epoch + 1";
            self.from.execute(next).map_err(of(self.from))?;
            lead_within(self.from, LEAD_TIMEOUT)?;
        }
        Ok(())
    }

    /// Copies what has changed since the last pass, in a transaction of the source.
    pub fn changes(&mut self) -> Result<(), TransferError> {
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
        for table in OTHERS {
            let rows = read(self.from, table, EVERYTHING)?;
            write(self.to, self.incomplete, |to| {
                sync(to, table, EVERYTHING, &rows)
            })?;
        }
        self.newest = newest;
        self.pruned = Some(pruned);
        Ok(())
    }

    /// Copies these ranges, in this order; returns the open orders in them.
    fn copy_ranges(&mut self, ranges: Vec<Range>) -> Result<Vec<i64>, TransferError> {
        let (parts, received) = mpsc::sync_channel(READ_AHEAD);
        let mut open = BTreeSet::new();
        // The source is lent to the thread that reads ahead.
        let Self {
            from,
            to,
            incomplete,
            newest,
            count,
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
                    // The others were copied before.
                    *count += u64::from(key(row) > *newest);
                    let status = fields_of(row).nth(2).flatten();
                    if status.is_some_and(|status| status == "CREATED" || status == "PROCESSING") {
                        open.insert(key(row));
                    }
                }
                progress(*count);
            }
            Ok(open.into_iter().collect())
        })
    }

    /// Checks the target as a whole.
    pub fn whole(&mut self) -> Result<(), TransferError> {
        sound(self.to, |check| check.whole(self.to))
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
        unreadable: RUN_AGAIN,
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
    let (missing, extra): (Vec<_>, Vec<_>) = differing(wanted, &found).unzip();
    let keys: Vec<_> = extra.into_iter().flatten().map(key).collect();
    if !keys.is_empty() {
        let keys: Vec<_> = keys.iter().map(i64::to_string).collect();
        let (name, column) = (table.name, table.key());
        let sql = format!("DELETE FROM {name} WHERE {column} IN ({})", keys.join(", "));
        to.execute(&sql).map_err(of(to))?;
    }
    let missing = missing.into_iter().flatten().collect::<Vec<_>>().concat();
    if !missing.is_empty() {
        to.insert(table, &missing).map_err(of(to))?;
    }
    let found = read(to, table, range)?;
    let mut report = must_be_equal(to, RUN_AGAIN);
    describe(table, wanted, &found, [wanted, &found], &mut report)
}

/// Returns the ranges up to `newest` of which the source has fewer orders than the target: some were
/// pruned.
fn vanished(from: &dyn Side, to: &dyn Side, newest: i64) -> Result<Vec<Range>, TransferError> {
    let sql = format!(
        "SELECT (seq - 1) / {RANGE} AS part, count(*) FROM orders WHERE seq <= {newest} \
         GROUP BY (seq - 1) / {RANGE} ORDER BY part"
    );
    let (ours, theirs) = (select(from, &sql)?, select(to, &sql)?);
    let rows = differing(&ours, &theirs).filter_map(|(one, other)| one.or(other));
    let parts = rows.map(key);
    Ok(parts
        .map(|part| (part * RANGE + 1, (part + 1) * RANGE))
        .collect())
}
