//! Writes JSON objects (RFC 8259, section 4) member by member, straight into an answer.
//!
//! Orders and events are written by the million, and nearly nothing in them has to be escaped: to
//! look for that byte by byte, also in names and times, took half of a serialiser's time.

use std::fmt::Display;
use std::io::Write as _;

use crate::clock::Rfc3339;
use crate::order::Timestamp;

/// An object that is being written. It is whole once it has [ended](Self::end).
pub(super) struct Object<'a> {
    text: &'a mut Vec<u8>,
    is_empty: bool,
}

impl<'a> Object<'a> {
    /// Begins an object at the end of a text.
    pub fn begin(text: &'a mut Vec<u8>) -> Self {
        text.push(b'{');
        Self {
            text,
            is_empty: true,
        }
    }

    /// A member that is any text.
    ///
    /// # Panics
    /// Never: a string can be written to memory.
    pub fn text(&mut self, name: &'static str, value: &str) {
        if is_plain(value) {
            self.word(name, value);
        } else {
            self.name(name);
            serde_json::to_writer(&mut *self.text, value)
                .expect("a string can be written to memory");
        }
    }

    /// A member that is a text in which nothing has to be escaped.
    pub fn word(&mut self, name: &'static str, value: &str) {
        self.name(name);
        self.quoted(value);
    }

    /// A member that is a moment.
    pub fn time(&mut self, name: &'static str, value: Timestamp) {
        self.name(name);
        self.text.push(b'"');
        self.shown(Rfc3339(value));
        self.text.push(b'"');
    }

    /// A member that is a number.
    pub fn number(&mut self, name: &'static str, value: impl Into<i64>) {
        self.name(name);
        self.shown(value.into());
    }

    /// A member that is null.
    pub fn null(&mut self, name: &'static str) {
        self.name(name);
        self.text.extend_from_slice(b"null");
    }

    /// A member that is an object itself.
    pub fn object(&mut self, name: &'static str) -> Object<'_> {
        self.name(name);
        Object::begin(self.text)
    }

    /// Nothing follows.
    pub fn end(self) {
        self.text.push(b'}');
    }

    fn name(&mut self, name: &'static str) {
        if !self.is_empty {
            self.text.push(b',');
        }
        self.is_empty = false;
        self.quoted(name);
        self.text.push(b':');
    }

    fn quoted(&mut self, plain: &str) {
        self.text.push(b'"');
        self.text.extend_from_slice(plain.as_bytes());
        self.text.push(b'"');
    }

    fn shown(&mut self, value: impl Display) {
        write!(self.text, "{value}").expect("a number or a time can be written to memory");
    }
}

/// Whether nothing in a text has to be escaped (RFC 8259, section 7).
fn is_plain(text: &str) -> bool {
    let is_plain = |byte: u8| (byte >= b' ') & (byte != b'"') & (byte != b'\\');
    // To the end, whatever is found: that takes many bytes at a time.
    text.bytes().fold(true, |all, byte| all & is_plain(byte))
}
