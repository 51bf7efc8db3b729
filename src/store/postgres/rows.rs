//! PostgreSQL's rows as [`Columns`].

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::error::Error;
use crate::store::rows::Columns;

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
