//! A connection as the [`Database`] of shared queries, and SQLite's rows as [`Columns`].

use std::future::ready;

use futures_util::FutureExt;
use rusqlite::types::{Null, ToSqlOutput, Type};
use rusqlite::{Connection, Error, Row, ToSql, params_from_iter};

use crate::store::rows::{Columns, Database, Value};

impl Database for Connection {
    type Error = Error;
    type Row<'r> = Row<'r>;

    fn rows<T: Send>(
        &self,
        sql: &str,
        values: &[Value<'_>],
        mut read: impl FnMut(&Row<'_>) -> Result<T, Error> + Send,
    ) -> impl Future<Output = Result<Vec<T>, Error>> + Send {
        ready(self.prepare_cached(sql).and_then(|mut query| {
            query
                .query_map(params_from_iter(values), |row| read(row))?
                .collect()
        }))
    }

    fn merged(selects: &[String], limit: &str) -> String {
        let selects = selects.join(" UNION ALL ");
        format!("{selects} ORDER BY seq LIMIT {limit}")
    }

    fn among(numbers: &str) -> String {
        format!("IN (SELECT value FROM json_each({numbers}))")
    }
}

/// Returns the result of a shared query on a [`Connection`], which waits for nothing.
pub(in crate::store) fn result<T>(query: impl Future<Output = T>) -> T {
    let result = query.now_or_never();
    result.expect("SQLite has run each statement before its future is polled")
}

impl ToSql for Value<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self {
            Self::Null => Null.into(),
            Self::Integer(number) => (*number).into(),
            Self::Text(text) => (**text).into(),
            // As JSON.
            Self::Numbers(numbers) => format!("{numbers:?}").into(),
        })
    }
}

impl Columns for Row<'_> {
    type Error = Error;

    fn invalid(column: usize, why: impl std::fmt::Display) -> Error {
        Error::FromSqlConversionFailure(column, Type::Text, why.to_string().into())
    }

    fn integer(&self, column: usize) -> rusqlite::Result<Option<i64>> {
        self.get(column)
    }

    fn text(&self, column: usize) -> rusqlite::Result<Option<&str>> {
        Ok(self.get_ref(column)?.as_str_or_null()?)
    }

    fn boolean(&self, column: usize) -> rusqlite::Result<bool> {
        self.get(column)
    }
}
