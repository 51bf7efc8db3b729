//! The simulator's record: a file with one line of JSON for each request, written before the answer
//! is sent.
//!
//! Writes are not buffered: the file can be read while the simulator runs, and has every answer that
//! a client received, even if the simulator was killed.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::faults::Fault;
use super::model::Effect;
pub use super::model::RequestKind;
use crate::order::Timestamp;

/// An entry of the record.
///
/// ```json
/// {"at":1795341600123,"request":"look_up","answer":200,"did":"told","order_id":"a1","status":"RUNNING"}
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Time of the event, in milliseconds since 1970.
    pub at: Timestamp,
    /// Kind of the request; absent where an incarnation begins, or ends without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<RequestKind>,
    /// HTTP status of the answer; absent if there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<u16>,
    /// The fault that was injected, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// Effect of the request: its name in the member `did`, with its fields beside it.
    #[serde(flatten)]
    pub effect: Effect,
}

/// A record, open for appending.
#[derive(Debug)]
pub(super) struct Record {
    file: File,
    /// Set if the file may end within a line, because the simulator was killed or the disk was full.
    may_be_torn: bool,
}

impl Record {
    /// Opens a record, or creates it.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let open = || {
            let file = OpenOptions::new().create(true).append(true).open(path)?;
            let may_be_torn = file.metadata()?.len() > 0;
            io::Result::Ok(Self { file, may_be_torn })
        };
        open().with_context(|| format!("cannot write the record {}", path.display()))
    }

    /// Appends an entry with one write, on a line of its own; an empty line may precede it.
    pub(super) fn write(&mut self, entry: &Entry) -> io::Result<()> {
        let mut line = Vec::with_capacity(256);
        if std::mem::replace(&mut self.may_be_torn, true) {
            line.push(b'\n');
        }
        serde_json::to_writer(&mut line, entry)?;
        line.push(b'\n');
        self.file.write_all(&line)?;
        self.may_be_torn = false;
        Ok(())
    }
}

/// Reads a record, also while it is written. Skips empty and truncated lines: their answers were never
/// sent.
///
/// # Errors
/// The file cannot be read, or a line is not an entry; the error names both.
pub fn read_record(path: &Path) -> anyhow::Result<Vec<Entry>> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let (mut file, mut line, mut entries) = (BufReader::new(file), Vec::new(), Vec::new());
    for number in 1.. {
        let position = || format!("{}, line {number}", path.display());
        line.clear();
        file.read_until(b'\n', &mut line).with_context(position)?;
        // The last line may still be being written.
        let Some(entry) = line.strip_suffix(b"\n") else {
            break;
        };
        match serde_json::from_slice(entry) {
            Ok(entry) => entries.push(entry),
            Err(error) if error.is_eof() => {}
            Err(error) => return Err(error).with_context(position),
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line of every kind.
    const LINES: &str = r#"{"at":7,"did":"began_life","seed":18446744073709551615,"max_duration_secs":600}
{"at":7,"request":"list","answer":200,"did":"listed","entries":12}
{"at":7,"request":"look_up","answer":200,"did":"told","order_id":"é\"","status":"RUNNING"}
{"at":7,"request":"look_up","answer":200,"did":"unknown","order_id":"a1"}
{"at":7,"request":"start","answer":200,"did":"started","order_id":"a1","ends_at":1007,"outcome":"SUCCEEDED"}
{"at":7,"request":"start","answer":202,"did":"started","order_id":"a1","ends_at":7,"outcome":"FAILED","callback":true}
{"at":7,"request":"start","answer":400,"did":"started_for_ever","order_id":"a1"}
{"at":7,"request":"start","answer":400,"did":"exists","order_id":"a1"}
{"at":7,"request":"start","answer":400,"did":"refused","reason":"missing order id"}
{"at":7,"request":"other","answer":404,"did":"refused","reason":"404 page not found"}
{"at":7,"request":"list","answer":200,"fault":"cut_ended","did":"listed","entries":12}
{"at":7,"request":"start","answer":502,"fault":"502","did":"refused","reason":"502"}
{"at":7,"request":"start","fault":"answer_lost","did":"started","order_id":"a1","ends_at":1007,"outcome":"FAILED"}
{"at":7,"request":"look_up","did":"crashed"}
{"at":7,"did":"crashed"}
"#;

    #[test]
    fn an_entry_of_every_kind_is_read_back_from_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let (given, path) = (folder.path().join("given"), folder.path().join("record"));
        std::fs::write(&given, LINES).unwrap();
        let entries = read_record(&given).unwrap();
        assert_eq!(entries.len(), LINES.lines().count());
        let mut record = Record::open(&path).unwrap();
        for entry in &entries {
            record.write(entry).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), LINES);
    }

    #[test]
    fn a_truncated_line_is_skipped_and_affects_no_later_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record");
        for line in LINES.lines() {
            let entry: Entry = serde_json::from_str(line).unwrap();
            for length in 0..line.len() {
                std::fs::write(&path, &line.as_bytes()[..length]).unwrap();
                assert_eq!(read_record(&path).unwrap(), [], "{line} at {length}");
                Record::open(&path).unwrap().write(&entry).unwrap();
                assert_eq!(read_record(&path).unwrap(), std::slice::from_ref(&entry));
            }
        }
    }

    #[test]
    fn a_record_that_cannot_be_read_or_written_is_named() {
        let path = Path::new("/nowhere/record");
        for error in [
            read_record(path).unwrap_err(),
            Record::open(path).unwrap_err(),
        ] {
            assert!(error.to_string().contains("/nowhere/record"), "{error}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record");
        std::fs::write(&path, "\n{\"at\":\"noon\"}\n").unwrap();
        let error = read_record(&path).unwrap_err();
        assert!(error.to_string().ends_with("record, line 2"), "{error}");
    }
}
