//! A session as the [`Database`] of shared queries, and PostgreSQL's rows as [`Columns`].

use bytes::BytesMut;
use tokio_postgres::Row;
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};

use super::error::Error;
use super::session::Session;
use crate::store::lines::BoxError;
use crate::store::rows::{Columns, Database, Value};

impl Database for Session {
    type Error = Error;
    type Row<'r> = Row;

    async fn rows<T: Send>(
        &self,
        sql: &str,
        values: &[Value<'_>],
        read: impl FnMut(&Row) -> Result<T, Error> + Send,
    ) -> Result<Vec<T>, Error> {
        let values: Vec<_> = values.iter().map(|value| value as _).collect();
        let rows = self.query(sql, &values).await?;
        rows.iter().map(read).collect()
    }

    /// Each SELECT is sorted and limited too, so that no more rows of it are read.
    fn merged(selects: &[String], limit: &str) -> String {
        let first = format!(" ORDER BY seq LIMIT {limit}");
        let selects = selects.join(&format!("{first}) UNION ALL ("));
        format!("SELECT * FROM (({selects}{first})) AS merged{first}")
    }

    fn among(numbers: &str) -> String {
        format!("= ANY ({numbers})")
    }
}

impl ToSql for Value<'_> {
    fn to_sql(&self, of: &Type, out: &mut BytesMut) -> Result<IsNull, BoxError> {
        match (self, of) {
            (Self::Null, _) => Ok(IsNull::Yes),
            // The server refuses these eight bytes as a value of another type than bigint.
            (Self::Integer(number), _) => number.to_sql(of, out),
            (Self::Text(text), _) => text.to_sql(of, out),
            (Self::Numbers(numbers), _) => numbers.to_sql(of, out),
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

impl Columns for Row {
    type Error = Error;

    fn invalid(_: usize, why: impl std::fmt::Display) -> Error {
        Error::value(why)
    }

    fn integer(&self, column: usize) -> Result<Option<i64>, Error> {
        Ok(match *self.columns()[column].type_() {
            Type::INT4 => self.try_get::<_, Option<i32>>(column)?.map(i64::from),
            _ => self.try_get(column)?,
        })
    }

    fn text(&self, column: usize) -> Result<Option<&str>, Error> {
        Ok(self.try_get(column)?)
    }

    fn boolean(&self, column: usize) -> Result<bool, Error> {
        Ok(self.try_get(column)?)
    }
}
