//! Decodes the list of all processes as it streams in, in constant memory.
//!
//! The decoder cuts the array into its objects and parses each with serde, except those in the format
//! that nearly all have. It is strict about the array itself, because a list that ends early must never
//! look complete.

use std::borrow::Cow;

use serde::Deserialize;

/// Maximum length of an entry, in bytes. Our ids have at most 512 bytes, six times that if escaped.
const ENTRY_MAX: usize = 64 * 1024;

/// A process in the list.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub struct Entry<'a> {
    /// The order that it belongs to, which may be no order of ours.
    #[serde(borrow)]
    pub order_id: Cow<'a, str>,
    /// Its status, as the upstream names it.
    #[serde(borrow)]
    pub status: Cow<'a, str>,
}

/// Reason why a list is not complete.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// An unexpected byte between entries.
    #[error("unexpected {found:?} where {wanted} belongs; entries before it: {entries}")]
    Unexpected {
        /// The byte, as a character.
        found: char,
        /// The syntax that is expected there.
        wanted: &'static str,
        /// Number of entries before it.
        entries: u64,
    },
    /// An entry is not a process.
    #[error("an entry is not a process: {cause}; entries before it: {entries}")]
    NotAProcess {
        /// Number of entries before it.
        entries: u64,
        /// The error of the parser.
        cause: String,
    },
    /// An entry is larger than any process can be.
    #[error("an entry is longer than {ENTRY_MAX} bytes; entries before it: {entries}")]
    TooLong {
        /// Number of entries before it.
        entries: u64,
    },
    /// The body ends before the array does.
    #[error("it ends without a closing bracket; entries in it: {entries}")]
    Truncated {
        /// Number of entries before it.
        entries: u64,
    },
}

/// A decoder of one list. [`push`](Self::push) takes its chunks, and [`finish`](Self::finish) checks that it
/// was complete.
#[derive(Debug)]
pub struct ListDecoder {
    expects: Expects,
    /// The beginning of an entry whose end is in a later chunk.
    partial: Vec<u8>,
    nesting: u32,
    in_string: bool,
    escaped: bool,
    entries: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expects {
    OpeningBracket,
    FirstEntryOrEnd,
    Entry,
    RestOfEntry,
    CommaOrEnd,
    Nothing,
}

impl Default for ListDecoder {
    fn default() -> Self {
        Self::new()
    }
}

impl ListDecoder {
    /// Creates a decoder at the beginning of a list.
    pub fn new() -> Self {
        Self {
            expects: Expects::OpeningBracket,
            partial: Vec::new(),
            nesting: 0,
            in_string: false,
            escaped: false,
            entries: 0,
        }
    }

    /// Takes the next chunk of the body, and calls `on_entry` with each entry that ends in it.
    ///
    /// # Errors
    /// The list is malformed. The entries before hold.
    pub fn push(
        &mut self,
        chunk: &[u8],
        on_entry: &mut impl FnMut(Entry<'_>),
    ) -> Result<(), ListError> {
        let mut rest = chunk;
        loop {
            if self.expects == Expects::RestOfEntry {
                let Some(end) = self.end_of_entry(rest) else {
                    self.keep(rest)?;
                    return Ok(());
                };
                let (last, after) = rest.split_at(end);
                if self.partial.is_empty() {
                    self.decode(last, on_entry)?;
                } else {
                    self.keep(last)?;
                    let entry = std::mem::take(&mut self.partial);
                    self.decode(&entry, on_entry)?;
                    self.partial = entry;
                    self.partial.clear();
                }
                self.expects = Expects::CommaOrEnd;
                rest = after;
            }
            let Some(index) = rest.iter().position(|byte| !is_space(*byte)) else {
                return Ok(());
            };
            let byte = rest[index];
            // The brace that opens an entry is its first byte.
            rest = &rest[index + usize::from(byte != b'{')..];
            self.expects = self.between_entries(byte)?;
            if self.expects == Expects::RestOfEntry
                && let Some((entry, after)) = plain_entry(rest)
            {
                self.entries += 1;
                on_entry(entry);
                self.expects = Expects::CommaOrEnd;
                rest = after;
            }
        }
    }

    /// Ends the list, and returns the number of its entries.
    pub fn finish(self) -> Result<u64, ListError> {
        if self.expects == Expects::Nothing {
            Ok(self.entries)
        } else {
            Err(ListError::Truncated {
                entries: self.entries,
            })
        }
    }

    fn between_entries(&self, byte: u8) -> Result<Expects, ListError> {
        let wanted = match (self.expects, byte) {
            (Expects::OpeningBracket, b'[') => return Ok(Expects::FirstEntryOrEnd),
            (Expects::FirstEntryOrEnd | Expects::Entry, b'{') => return Ok(Expects::RestOfEntry),
            (Expects::FirstEntryOrEnd | Expects::CommaOrEnd, b']') => return Ok(Expects::Nothing),
            (Expects::CommaOrEnd, b',') => return Ok(Expects::Entry),
            (Expects::OpeningBracket, _) => "an array",
            (Expects::FirstEntryOrEnd | Expects::Entry | Expects::RestOfEntry, _) => "a process",
            (Expects::CommaOrEnd, _) => "a comma or the end of the array",
            (Expects::Nothing, _) => "nothing more",
        };
        Err(ListError::Unexpected {
            found: char::from(byte),
            wanted,
            entries: self.entries,
        })
    }

    /// Returns the index after the brace that closes the present entry.
    fn end_of_entry(&mut self, bytes: &[u8]) -> Option<usize> {
        for (index, byte) in bytes.iter().enumerate() {
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.nesting += 1,
                b'}' | b']' => {
                    self.nesting -= 1;
                    if self.nesting == 0 {
                        return Some(index + 1);
                    }
                }
                _ => {}
            }
        }
        None
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<(), ListError> {
        if self.partial.len() + bytes.len() > ENTRY_MAX {
            return Err(ListError::TooLong {
                entries: self.entries,
            });
        }
        self.partial.extend_from_slice(bytes);
        Ok(())
    }

    fn decode(
        &mut self,
        entry: &[u8],
        on_entry: &mut impl FnMut(Entry<'_>),
    ) -> Result<(), ListError> {
        let entry = serde_json::from_slice(entry).map_err(|error| ListError::NotAProcess {
            entries: self.entries,
            cause: error.to_string(),
        })?;
        self.entries += 1;
        on_entry(entry);
        Ok(())
    }
}

/// Returns the entry at the beginning and the bytes after it, if the entry has the format that needs no
/// parser.
fn plain_entry(bytes: &[u8]) -> Option<(Entry<'_>, &[u8])> {
    let (order_id, rest) = plain_text(bytes.strip_prefix(b"{\"order_id\":\"")?)?;
    let (status, rest) = plain_text(rest.strip_prefix(b",\"status\":\"")?)?;
    let entry = Entry {
        order_id: Cow::Borrowed(order_id),
        status: Cow::Borrowed(status),
    };
    Some((entry, rest.strip_prefix(b"}")?))
}

/// Returns the rest of a JSON string without escapes, and the bytes after it.
fn plain_text(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let is_special = |byte: &u8| matches!(byte, b'"' | b'\\' | 0..0x20);
    let end = bytes.iter().position(is_special)?;
    let rest = bytes[end..].strip_prefix(b"\"")?;
    Some((str::from_utf8(&bytes[..end]).ok()?, rest))
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Entries = Vec<(String, String)>;

    /// Decodes `body` in chunks of `size` bytes.
    fn decode(body: &[u8], size: usize) -> (Entries, Result<u64, ListError>) {
        let mut decoded = Vec::new();
        let mut decoder = ListDecoder::new();
        let mut on_entry = |entry: Entry<'_>| {
            decoded.push((entry.order_id.into_owned(), entry.status.into_owned()))
        };
        for chunk in body.chunks(size) {
            if let Err(error) = decoder.push(chunk, &mut on_entry) {
                return (decoded, Err(error));
            }
        }
        (decoded, decoder.finish())
    }

    const LIST: &str = "[{\"order_id\":\"a]}\\\"\\\\\",\"status\":\"RUNNING\"} ,\n\
                        {\"status\":\"FAILED\",\"order_id\":\"é{[\",\"x\":{\"y\":[{}]}}]\n";

    fn list() -> Entries {
        vec![
            ("a]}\"\\".to_owned(), "RUNNING".to_owned()),
            ("é{[".to_owned(), "FAILED".to_owned()),
        ]
    }

    #[test]
    fn a_list_is_read_whatever_its_chunks() {
        for size in 1..=LIST.len() {
            assert_eq!(decode(LIST.as_bytes(), size), (list(), Ok(2)), "{size}");
        }
        assert_eq!(decode(b" [ ] ", 1), (vec![], Ok(0)));
    }

    #[test]
    fn a_list_cut_at_any_byte_is_incomplete_and_its_entries_count() {
        let end = LIST.trim_end().len();
        for cut in 0..end {
            for size in [1, 7, LIST.len()] {
                let (decoded, result) = decode(&LIST.as_bytes()[..cut], size);
                assert!(matches!(result, Err(ListError::Truncated { .. })), "{cut}");
                assert!(list().starts_with(&decoded), "{cut}: {decoded:?}");
            }
        }
    }

    #[test]
    fn anything_but_a_list_of_processes_is_malformed() {
        for body in [
            "{}",
            "null",
            "[null]",
            "[1]",
            "<html>",
            "[{}]",
            "[{\"order_id\":\"a\"}]",
            "[{\"order_id\":1,\"status\":\"RUNNING\"}]",
            "[{\"order_id\":\"a\",\"status\":\"RUNNING\"},]",
            "[,{\"order_id\":\"a\",\"status\":\"RUNNING\"}]",
            "[{\"order_id\":\"a\",\"status\":\"RUNNING\"}{}]",
            "[{\"order_id\":\"a\",\"status\":\"RUNNING\"}}",
            "[{\"order_id\":\"a\",\"status\":\"RUNNING\"]",
            "[[]]",
            "[]]",
            "[] []",
            "[]{}",
        ] {
            for size in [1, 3, 100] {
                let (_, result) = decode(body.as_bytes(), size);
                assert!(result.is_err(), "{body}");
            }
        }
    }

    #[test]
    fn an_entry_without_end_does_not_fill_the_memory() {
        let mut decoder = ListDecoder::new();
        let mut ignore = |_: Entry<'_>| {};
        decoder.push(b"[{\"order_id\":\"", &mut ignore).unwrap();
        let chunk = [b'a'; 1024];
        let error = (0..100).find_map(|_| decoder.push(&chunk, &mut ignore).err());
        assert_eq!(error, Some(ListError::TooLong { entries: 0 }));
        assert!(decoder.partial.capacity() <= 2 * ENTRY_MAX);
    }

    /// Returns a list as the upstream could write it, and its entries.
    fn any_list() -> impl Strategy<Value = (Vec<u8>, Entries)> {
        let status = prop_oneof![
            Just("RUNNING"),
            Just("SUCCEEDED"),
            Just("FAILED"),
            Just("\\\"]}")
        ];
        let entry = (any::<String>(), status, 0..4u8);
        proptest::collection::vec(entry, 0..6).prop_map(|entries| {
            let mut body = b"[".to_vec();
            let mut decoded = Vec::new();
            for (index, (id, status, form)) in entries.into_iter().enumerate() {
                if index > 0 {
                    body.extend_from_slice(if form == 0 { b"," } else { b" ,\n\t" });
                }
                let entry = match form {
                    0 => serde_json::json!({ "order_id": id, "status": status }),
                    1 => serde_json::json!({ "status": status, "order_id": id }),
                    2 => serde_json::json!({ "order_id": id, "status": status, "x": [{"y": "]"}] }),
                    _ => serde_json::json!({ "a": null, "order_id": id, "status": status }),
                };
                body.extend_from_slice(entry.to_string().as_bytes());
                decoded.push((id, status.to_owned()));
            }
            body.push(b']');
            (body, decoded)
        })
    }

    /// Returns the result of a decoder that holds the whole body.
    fn oracle(body: &[u8]) -> Option<Entries> {
        let entries: Vec<Entry<'_>> = serde_json::from_slice(body).ok()?;
        // Arrays stand for structs there, and nowhere in a list of processes.
        let decoded = entries
            .into_iter()
            .map(|entry| (entry.order_id.into_owned(), entry.status.into_owned()));
        Some(decoded.collect())
    }

    proptest! {
        #[test]
        fn any_list_is_read_in_any_chunks((body, decoded) in any_list(), size in 1..40usize) {
            let entries = decoded.len() as u64;
            prop_assert_eq!(decode(&body, size), (decoded, Ok(entries)));
        }

        #[test]
        fn any_list_cut_anywhere_is_incomplete_and_its_entries_count(
            (body, decoded) in any_list(),
            cut in any::<prop::sample::Index>(),
            size in 1..40usize,
        ) {
            let (said, result) = decode(&body[..cut.index(body.len())], size);
            prop_assert!(result.is_err());
            prop_assert!(decoded.starts_with(&said));
        }

        #[test]
        fn a_corrupted_list_is_complete_only_if_a_full_decoder_agrees(
            (mut body, _) in any_list(),
            spoilt in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..3),
            size in 1..40usize,
        ) {
            for (index, byte) in spoilt {
                let length = body.len();
                body[index.index(length)] = byte;
            }
            let (said, result) = decode(&body, size);
            prop_assert_eq!(result.ok().map(|_| said), oracle(&body));
        }

        #[test]
        fn random_bytes_are_no_list(body in proptest::collection::vec(any::<u8>(), 0..200), size in 1..40usize) {
            let (said, result) = decode(&body, size);
            prop_assert_eq!(result.ok().map(|_| said), oracle(&body));
        }
    }
}
