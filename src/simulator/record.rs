//! The simulator's record: a file with one line of JSON for each request, written before the
//! answer leaves.
//!
//! Nothing waits in this program's memory: the file can be read while the simulator runs, and
//! misses no answer that a client received before the simulator was killed.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::faults::Fault;
pub use super::model::Asked;
use super::model::Did;
use crate::order::Timestamp;

/// A line of the record.
///
/// ```json
/// {"at":1795341600123,"request":"look_up","answer":200,"did":"told","order_id":"a1","status":"RUNNING"}
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When it happened, in milliseconds since 1970.
    pub at: Timestamp,
    /// What was asked for; nothing where a life begins, or ends by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Asked>,
    /// The HTTP status that was answered; nothing where nothing was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<u16>,
    /// The failure that was injected, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// What happened. Its word is in `did`, its fields stand beside it.
    #[serde(flatten)]
    pub did: Did,
}

/// The file of the record, open at its end.
#[derive(Debug)]
pub(super) struct Record {
    file: File,
    /// Whether the file ends within a line: a simulator was killed there, or the disk was full.
    torn: bool,
    complained: bool,
}

impl Record {
    /// Opens a record, or begins one.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let open = || {
            let file = OpenOptions::new().create(true).append(true).open(path)?;
            let torn = ends_within_a_line(path)?;
            io::Result::Ok(Self {
                file,
                torn,
                complained: false,
            })
        };
        open().with_context(|| format!("cannot write the record {}", path.display()))
    }

    /// Adds an entry with one write. Tells whether it is in the file now; the first failure is
    /// logged.
    pub(super) fn write(&mut self, entry: &Entry) -> bool {
        let result = self.try_write(entry);
        if let Err(error) = &result
            && !std::mem::replace(&mut self.complained, true)
        {
            log::error!("cannot write the record, which misses entries from now on: {error}");
        }
        result.is_ok()
    }

    fn try_write(&mut self, entry: &Entry) -> io::Result<()> {
        let mut line = Vec::with_capacity(256);
        if self.torn {
            line.push(b'\n');
        }
        serde_json::to_writer(&mut line, entry)?;
        line.push(b'\n');
        let written = loop {
            match self.file.write(&line) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        if written < line.len() {
            self.torn |= written > 0;
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.torn = false;
        Ok(())
    }
}

fn ends_within_a_line(path: &Path) -> io::Result<bool> {
    let mut file = File::open(path)?;
    // A pipe or a terminal has no length, and no end to look at.
    if file.metadata()?.len() == 0 {
        return Ok(false);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}

/// Reads a record, also while it is written. Lines that were cut short are left out: their answers
/// never left.
///
/// # Errors
/// The file cannot be read, or a line of it is no entry.
pub fn read_record(path: &Path) -> anyhow::Result<Vec<Entry>> {
    let place = |number: usize| format!("{}, line {number}", path.display());
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut file = BufReader::new(file);
    let mut entries = Vec::new();
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        if file
            .read_until(b'\n', &mut line)
            .with_context(|| place(number))?
            == 0
        {
            break;
        }
        let is_whole = line.pop_if(|last| *last == b'\n').is_some();
        match serde_json::from_slice(&line) {
            Ok(entry) => entries.push(entry),
            Err(error) if error.is_eof() || !is_whole => {}
            Err(error) => return Err(error).with_context(|| place(number)),
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
{"at":7,"request":"look_up","fault":"crash","did":"crashed"}
{"at":7,"fault":"crash","did":"crashed"}
"#;

    #[test]
    fn an_entry_of_every_kind_is_read_back_from_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let (given, path) = (folder.path().join("given"), folder.path().join("record"));
        std::fs::write(&given, LINES).unwrap();
        let entries = read_record(&given).unwrap();
        assert_eq!(entries.len(), LINES.lines().count());
        for entry in &entries {
            assert!(Record::open(&path).unwrap().write(entry));
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), LINES);
    }

    #[test]
    fn a_line_cut_short_anywhere_is_left_out_and_spoils_no_later_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record");
        for line in LINES.lines() {
            let entry: Entry = serde_json::from_str(line).unwrap();
            for length in 0..line.len() {
                std::fs::write(&path, &line.as_bytes()[..length]).unwrap();
                assert_eq!(read_record(&path).unwrap(), [], "{line} at {length}");
                assert!(Record::open(&path).unwrap().write(&entry));
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
