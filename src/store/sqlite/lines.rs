//! Rows of SQLite as lines of text; see `store/lines.rs`.

use std::io::Write as _;

use rusqlite::Connection;
use rusqlite::types::ValueRef;

use crate::store::lines::{BoxError, Lines, push_field};

impl Lines for Connection {
    fn each(&self, sql: &str, line: &mut dyn FnMut(&[u8])) -> Result<(), BoxError> {
        let mut query = self.prepare(sql)?;
        let columns = query.column_count();
        let mut rows = query.query([])?;
        let mut text = Vec::new();
        while let Some(row) = rows.next()? {
            text.clear();
            for column in 0..columns {
                if column > 0 {
                    text.push(b'\t');
                }
                match row.get_ref(column)? {
                    ValueRef::Null => text.extend(b"\\N"),
                    ValueRef::Integer(number) => write!(text, "{number}")?,
                    ValueRef::Real(number) => write!(text, "{number}")?,
                    ValueRef::Text(bytes) | ValueRef::Blob(bytes) => push_field(&mut text, bytes),
                }
            }
            line(&text);
        }
        Ok(())
    }
}
