//! Rows as lines of text, and the differences between those of two databases.

use std::borrow::Cow;

use super::TransferError;
use super::ranges::{EVERYTHING, Range, chunks};
use super::side::{Side, of};
use super::tables::{JOURNAL, ORDERS, OTHERS, Table};
use crate::store::lines::fields;

/// Characters of a value that are shown.
const SHOWN_MAX: usize = 60;

/// Orders of a range, and the entries of the journal that belong to them.
pub(super) struct Part {
    pub range: Range,
    pub orders: Vec<u8>,
    pub journal: Vec<u8>,
}

impl Part {
    pub fn read(db: &dyn Side, range: Range) -> Result<Self, TransferError> {
        Ok(Self {
            range,
            orders: read(db, &ORDERS, range)?,
            journal: read(db, &JOURNAL, range)?,
        })
    }
}

/// Compares two databases, and reports all differences.
pub(super) fn differences(
    from: &dyn Side,
    to: &dyn Side,
    report: &mut dyn FnMut(String),
) -> Result<(), TransferError> {
    let newest = "SELECT coalesce(max(seq), 0) FROM orders";
    let newest = number(from, newest)?.max(number(to, newest)?);
    for range in chunks(i64::MIN, newest) {
        let (own, other) = (Part::read(from, range)?, Part::read(to, range)?);
        let orders = [&own.orders[..], &other.orders];
        describe(&ORDERS, &own.orders, &other.orders, orders, report);
        describe(&JOURNAL, &own.journal, &other.journal, orders, report);
    }
    for table in OTHERS {
        let rows = [read(from, table, EVERYTHING)?, read(to, table, EVERYTHING)?];
        describe(table, &rows[0], &rows[1], [&[], &[]], report);
    }
    Ok(())
}

/// Fails with the first difference that `compare` reports.
pub(super) fn must_be_equal(
    to: &dyn Side,
    to_do: &'static str,
    compare: impl FnOnce(&mut dyn FnMut(String)) -> Result<(), TransferError>,
) -> Result<(), TransferError> {
    let (mut first, mut count) = (None, 0);
    compare(&mut |what| {
        count += 1;
        first.get_or_insert(what);
    })?;
    match first {
        None => Ok(()),
        Some(first) => Err(TransferError::Different {
            address: to.address(),
            count,
            first,
            to_do,
        }),
    }
}

/// Rows that two databases do not have in common.
pub(super) struct Difference<'a> {
    pub missing: Vec<&'a [u8]>,
    pub extra: Vec<&'a [u8]>,
}

impl<'a> Difference<'a> {
    /// Compares rows that are sorted by their keys.
    pub fn of(wanted: &'a [u8], found: &'a [u8]) -> Self {
        let (mut missing, mut extra) = (Vec::new(), Vec::new());
        let (mut wanted, mut found) = (rows_of(wanted).peekable(), rows_of(found).peekable());
        loop {
            match (wanted.peek().copied(), found.peek().copied()) {
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
                (_, None) => return Self { missing, extra },
            }
        }
    }
}

/// Reports each row that differs, with the names of its columns. `orders` has the orders that the rows
/// may belong to.
pub(super) fn describe(
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
            Some(other) => report(format!("{name} {}", columns(table, row, other))),
        }
    }
    for row in extra {
        if !missing.iter().any(|other| key(other) == key(row)) {
            let name = name(table, row, orders);
            report(format!("{name} is not in the source"));
        }
    }
}

/// Names the columns of a row that differ; those of an order or of its journal with both values.
fn columns(table: &Table, wanted: &[u8], found: &[u8]) -> String {
    let shown = |field: Option<Cow<'_, str>>| match field {
        None => "nothing".to_owned(),
        Some(text) if text.chars().count() <= SHOWN_MAX => format!("{text:?}"),
        Some(text) => format!("{:?}…", text.chars().take(SHOWN_MAX).collect::<String>()),
    };
    let both = fields_of(wanted).zip(fields_of(found)).zip(table.names());
    let differing = both.filter(|((one, other), _)| one != other);
    // What the other tables hold says nothing to operators.
    let (verb, has_values) = match table.order {
        None => ("differs in", false),
        Some(_) => ("has", true),
    };
    let described = differing.map(|((one, other), column)| match has_values {
        true => format!("{column} = {} instead of {}", shown(other), shown(one)),
        false => column.to_owned(),
    });
    format!("{verb} {}", described.collect::<Vec<_>>().join(", "))
}

/// Names a row: the order, and the entry of its journal; or the table.
fn name(table: &Table, row: &[u8], orders: [&[u8]; 2]) -> String {
    let Some(column) = table.order else {
        return format!("{} {}", table.name, key(row));
    };
    let at = table.names().position(|name| name == column);
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

/// Reads rows of a table, sorted by their keys, each with the end of its line.
pub(super) fn read(
    db: &dyn Side,
    table: &Table,
    (first, last): Range,
) -> Result<Vec<u8>, TransferError> {
    // A number on one engine, a boolean on the other.
    let number = "CAST(process_seen AS integer)";
    let columns = table.columns.replace("process_seen", number);
    let condition = match table.order {
        None => String::new(),
        Some(order) => format!(" WHERE {order} BETWEEN {first} AND {last}"),
    };
    let (name, key) = (table.name, table.key());
    let sql = format!("SELECT {columns} FROM {name}{condition} ORDER BY {key}");
    select(db, &sql)
}

/// Returns the rows of a query, each with the end of its line.
pub(super) fn select(db: &dyn Side, sql: &str) -> Result<Vec<u8>, TransferError> {
    let mut rows = Vec::new();
    let read = db.each(sql, &mut |line| {
        rows.extend_from_slice(line);
        rows.push(b'\n');
    });
    read.map(|()| rows).map_err(of(db))
}

/// Returns the rows, each with the end of its line.
pub(super) fn rows_of(rows: &[u8]) -> impl Iterator<Item = &[u8]> {
    rows.split_inclusive(|byte| *byte == b'\n')
}

/// Returns the fields of a row.
pub(super) fn fields_of(row: &[u8]) -> impl Iterator<Item = Option<Cow<'_, str>>> {
    fields(row.strip_suffix(b"\n").unwrap_or(row))
}

/// Returns the number that a row begins with.
pub(super) fn key(row: &[u8]) -> i64 {
    let digits = row.iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |key, digit| 10 * key + i64::from(digit - b'0'))
}

pub(super) fn number(db: &dyn Side, sql: &str) -> Result<i64, TransferError> {
    let mut found = 0;
    db.each(sql, &mut |line| found = key(line))
        .map_err(of(db))?;
    Ok(found)
}

pub(super) fn count(db: &dyn Side, table: &Table) -> Result<u64, TransferError> {
    let sql = format!("SELECT count(*) FROM {}", table.name);
    Ok(number(db, &sql)?.unsigned_abs())
}
