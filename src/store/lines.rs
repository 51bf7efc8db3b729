//! Rows as lines of text, the same on every engine: the form in which databases are checked and
//! copied.
//!
//! A line is that of PostgreSQL's COPY in text format: fields are separated by tabs, a missing value
//! is `\N`, and a backslash escapes what would be taken for one of these.

use std::borrow::Cow;

/// An error of an engine, for its text.
pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A database whose rows are read as lines.
pub(super) trait Lines {
    /// Runs a query that every engine understands, and passes each row on as a line without its end.
    fn each(&self, sql: &str, line: &mut dyn FnMut(&[u8])) -> Result<(), BoxError>;
}

/// Appends a field to a line; its separator or the line's end is the caller's business.
pub(super) fn push_field(line: &mut Vec<u8>, text: &[u8]) {
    for &byte in text {
        let escaped = match byte {
            b'\\' => b'\\',
            b'\t' => b't',
            b'\n' => b'n',
            b'\r' => b'r',
            0x08 => b'b',
            0x0b => b'v',
            0x0c => b'f',
            other => {
                line.push(other);
                continue;
            }
        };
        line.extend([b'\\', escaped]);
    }
}

/// Returns the fields of a line; `None` for a missing value.
pub(super) fn fields(line: &[u8]) -> impl Iterator<Item = Option<Cow<'_, str>>> {
    line.split(|byte| *byte == b'\t').map(|field| match field {
        b"\\N" => None,
        field if field.contains(&b'\\') => Some(Cow::Owned(unescaped(field))),
        field => Some(String::from_utf8_lossy(field)),
    })
}

fn unescaped(field: &[u8]) -> String {
    let mut text = Vec::with_capacity(field.len());
    let mut bytes = field.iter();
    while let Some(&byte) = bytes.next() {
        text.push(match (byte, byte == b'\\') {
            (_, true) => match bytes.next() {
                Some(b't') => b'\t',
                Some(b'n') => b'\n',
                Some(b'r') => b'\r',
                Some(b'b') => 0x08,
                Some(b'v') => 0x0b,
                Some(b'f') => 0x0c,
                Some(other) => *other,
                None => b'\\',
            },
            (byte, false) => byte,
        });
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_field_is_read_as_it_was_written(texts in prop::collection::vec("[\\\\\t\n\r\u{8}\u{b}\u{c}tnN aé日]{0,8}", 1..5)) {
            let mut line = Vec::new();
            for text in &texts {
                push_field(&mut line, text.as_bytes());
                line.push(b'\t');
            }
            line.extend(b"\\N");
            let read: Vec<_> = fields(&line).map(|field| field.map(Cow::into_owned)).collect();
            let written: Vec<_> = texts.into_iter().map(Some).chain([None]).collect();
            prop_assert_eq!(read, written);
            prop_assert!(!line.contains(&b'\n'));
        }
    }
}
