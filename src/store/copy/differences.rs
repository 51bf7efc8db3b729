//! Rows as lines of text, and the differences between those of two databases.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;

use super::TransferError;
use super::ranges::{EVERYTHING, Range, chunks};
use super::side::{Side, of};
use super::tables::{CREATIONS, HISTORIES, JOURNAL, ORDERS, OTHERS, Table};
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

/// Compares two databases, and reports each difference, up to the first error of `report`. `progress` is
/// called with the number of orders that were compared.
pub(super) fn differences(
    from: &dyn Side,
    to: &dyn Side,
    report: &mut dyn FnMut(String) -> Result<(), TransferError>,
    progress: &mut dyn FnMut(u64),
) -> Result<(), TransferError> {
    let newest = "SELECT coalesce(max(seq), 0) FROM orders";
    let newest = number(from, newest)?.max(number(to, newest)?);
    let mut count = 0;
    for range in chunks(i64::MIN, newest) {
        let (own, other) = (Part::read(from, range)?, Part::read(to, range)?);
        let orders = [&own.orders[..], &other.orders];
        describe(&ORDERS, &own.orders, &other.orders, orders, report)?;
        describe(&JOURNAL, &own.journal, &other.journal, orders, report)?;
        count += rows_of(&own.orders).count() as u64;
        progress(count);
    }
    for table in OTHERS {
        let rows = [read(from, table, EVERYTHING)?, read(to, table, EVERYTHING)?];
        describe(table, &rows[0], &rows[1], [&[], &[]], report)?;
    }
    Ok(())
}

/// Returns what a database lacks of what another one had when its orders moved there; `None` if nothing.
/// Pruned orders do not count: the newest order and the newest entry always stay.
pub(super) fn lacks(new: &dyn Side, old: &dyn Side) -> Result<Option<String>, TransferError> {
    let histories = read(new, &HISTORIES, EVERYTHING)?;
    let moved = read(old, &HISTORIES, EVERYTHING)?;
    let id = |row| fields_of(row).nth(1).flatten();
    let Some(last) = rows_of(&moved).last() else {
        return Ok(None);
    };
    let mut since = rows_of(&histories).skip_while(|row| id(row) != id(last));
    if since.next().is_none() {
        return Ok(Some("it was created anew".to_owned()));
    }
    // A later history names the newest that a backup, or another server, had.
    let next = since.next();
    for (column, rows, table) in [(2, "orders", &CREATIONS), (3, "entries", &JOURNAL)] {
        let Table { name, columns, .. } = table;
        let newest = format!("SELECT coalesce(max(seq), 0) FROM {name}");
        let wanted = number(old, &newest)?;
        let begun = next.and_then(|row| fields_of(row).nth(column)??.parse().ok());
        let has = match begun {
            Some(has) => has,
            None => number(new, &newest)?,
        };
        if has < wanted {
            let what = format!("its {rows} are the same up to number {has} instead of {wanted}");
            return Ok(Some(what));
        }
        // The same number may have been given to another one.
        let common = format!("seq <= {wanted} ORDER BY seq DESC LIMIT 1");
        let found = select(new, &format!("SELECT {columns} FROM {name} WHERE {common}"))?;
        let same = format!("seq = {}", key(&found));
        let wanted = select(old, &format!("SELECT {columns} FROM {name} WHERE {same}"))?;
        let mut first = None;
        // An incomplete copy may lack it.
        if !wanted.is_empty() {
            describe(table, &wanted, &found, [&[], &[]], &mut |what| {
                first = Some(what);
                Ok(())
            })?;
        }
        if first.is_some() {
            return Ok(first);
        }
    }
    Ok(None)
}

/// Returns a report that fails with the first difference.
pub(super) fn must_be_equal<T: fmt::Display>(
    to: &dyn Side,
    to_do: T,
) -> impl FnMut(String) -> Result<(), TransferError> + use<T> {
    let address = to.address();
    move |first| {
        Err(TransferError::Different {
            address: address.clone(),
            first,
            to_do: to_do.to_string(),
        })
    }
}

/// Returns the rows that two databases do not have in common, in pairs of the same key. The rows are
/// sorted by their keys.
pub(super) fn differing<'a>(
    wanted: &'a [u8],
    found: &'a [u8],
) -> impl Iterator<Item = (Option<&'a [u8]>, Option<&'a [u8]>)> {
    let (mut wanted, mut found) = (rows_of(wanted).peekable(), rows_of(found).peekable());
    let pairs = std::iter::from_fn(move || {
        let order = match (wanted.peek(), found.peek()) {
            (Some(one), Some(other)) => key(one).cmp(&key(other)),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return None,
        };
        Some((
            wanted.next_if(|_| order.is_le()),
            found.next_if(|_| order.is_ge()),
        ))
    });
    pairs.filter(|(one, other)| one != other)
}

/// Reports each row that differs, with the names of its columns. `orders` has the orders that the rows
/// may belong to.
pub(super) fn describe(
    table: &Table,
    wanted: &[u8],
    found: &[u8],
    orders: [&[u8]; 2],
    report: &mut dyn FnMut(String) -> Result<(), TransferError>,
) -> Result<(), TransferError> {
    if wanted == found {
        return Ok(());
    }
    let orders = orders.map(|orders| rows_of(orders).collect::<Vec<_>>());
    for pair in differing(wanted, found) {
        report(match pair {
            (Some(row), None) => format!("{} is missing", name(table, row, &orders)),
            (Some(row), Some(other)) => {
                format!(
                    "{} {}",
                    name(table, row, &orders),
                    columns(table, row, other)
                )
            }
            (None, Some(row)) => format!("{} is not in the source", name(table, row, &orders)),
            (None, None) => continue,
        })?;
    }
    Ok(())
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
fn name(table: &Table, row: &[u8], orders: &[Vec<&[u8]>; 2]) -> String {
    let Some(column) = table.order else {
        return format!("{} {}", table.name, key(row));
    };
    let at = table.names().position(|name| name == column);
    let field = fields_of(row).nth(at.unwrap_or_default()).flatten();
    let number: i64 = field.and_then(|text| text.parse().ok()).unwrap_or_default();
    let mut found = orders.iter().filter_map(|orders| {
        let at = orders.binary_search_by_key(&number, |order| key(order));
        at.ok().map(|at| orders[at])
    });
    let id = found
        .next()
        .and_then(|order| Some(fields_of(order).nth(1)??.into_owned()));
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

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: &[u8] = b"2\ta\n3\tb\n9\tc\n10\td\n11\te\n";
    const FOUND: &[u8] = b"1\tz\n3\tb\n9\tx\n11\te\n12\tf\n";

    #[test]
    fn rows_that_differ_are_paired_by_their_keys_in_order() {
        let text = |row: Option<&[u8]>| row.map(|row| String::from_utf8_lossy(row).into_owned());
        let pairs = differing(WANTED, FOUND).map(|(one, other)| (text(one), text(other)));
        let row = |row: &str| Some(format!("{row}\n"));
        let expected = [
            (None, row("1\tz")),
            (row("2\ta"), None),
            (row("9\tc"), row("9\tx")),
            (row("10\td"), None),
            (None, row("12\tf")),
        ];
        assert_eq!(pairs.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn an_entry_is_named_by_its_order_in_either_database_and_only_the_first_is_described() {
        let orders: [&[u8]; 2] = [WANTED, FOUND];
        let wanted = b"5\t2\t7\tcreated\n6\t10\t7\tcreated\n";
        let found = b"6\t10\t8\tcreated\n7\t12\t7\tcreated\n8\t4\t7\tcreated\n";
        let mut texts = Vec::new();
        let mut report = |text| {
            texts.push(text);
            Ok(())
        };
        describe(&JOURNAL, wanted, found, orders, &mut report).unwrap();
        let expected = [
            "order \"a\": entry 5 of the journal is missing",
            "order \"d\": entry 6 of the journal has at = \"8\" instead of \"7\"",
            "order \"f\": entry 7 of the journal is not in the source",
            "order 4: entry 8 of the journal is not in the source",
        ];
        assert_eq!(texts, expected);
        let mut count = 0;
        let mut report = |text| {
            count += 1;
            Err(TransferError::Refused(text))
        };
        let first = describe(&JOURNAL, wanted, found, orders, &mut report).unwrap_err();
        assert_eq!((first.to_string().as_str(), count), (expected[0], 1));
    }
}
