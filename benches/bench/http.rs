//! A small blocking HTTP client with one connection, which adds little to the measured time.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

/// Timeout of an answer.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Size of the read buffer, in bytes.
const BUFFER: usize = 64 * 1024;

/// A kept-alive connection.
pub struct Connection {
    stream: BufReader<TcpStream>,
    host: String,
    buffer: Vec<u8>,
}

/// The parts of the head of an answer that the benchmarks use.
#[derive(Debug, Default)]
struct Head {
    status: u16,
    /// The length of the body, unless it comes in chunks.
    length: Option<usize>,
    link: Option<String>,
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The path of the next page, if there is one.
    pub next: Option<String>,
    /// The body.
    pub body: Vec<u8>,
}

/// The timing and size of an answer whose body was discarded.
#[derive(Clone, Copy, Debug)]
pub struct Drained {
    /// Time from the request to the first byte of the body.
    pub first_byte: Duration,
    /// Time from the request to the last byte.
    pub whole: Duration,
    /// The length of the body.
    pub bytes: usize,
}

impl Connection {
    /// Connects to the server at `http://HOST:PORT`.
    pub fn open(url: &str) -> anyhow::Result<Self> {
        let host = url
            .strip_prefix("http://")
            .context("the URL must begin with http://")?;
        let host = host.split('/').next().unwrap_or(host).to_owned();
        let stream = TcpStream::connect(&host)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        Ok(Self {
            stream: BufReader::with_capacity(BUFFER, stream),
            host,
            buffer: vec![0; BUFFER],
        })
    }

    /// Sends a `GET`, and returns the answer.
    pub fn get(&mut self, path: &str) -> anyhow::Result<Answer> {
        self.send("GET", path, "", "")?;
        self.answer()
    }

    /// Sends a `POST` of a JSON body, with more header fields, each with its end of line.
    pub fn post(&mut self, path: &str, fields: &str, body: &str) -> anyhow::Result<Answer> {
        self.send("POST", path, fields, body)?;
        self.answer()
    }

    /// Creates an order. Fails unless the answer is 201.
    pub fn create(&mut self, id: &str) -> anyhow::Result<()> {
        let answer = self.post("/order", "", &format!("{{\"id\":\"{id}\"}}"))?;
        ensure!(answer.status == 201, "{id} was answered with {answer:?}");
        Ok(())
    }

    /// Sends a `GET`. [`Self::drain`] reads the answer.
    pub fn send_get(&mut self, path: &str) -> anyhow::Result<()> {
        self.send("GET", path, "", "")
    }

    /// Reads an answer and discards it, with `pause` after each piece.
    pub fn drain(&mut self, mut pause: impl FnMut()) -> anyhow::Result<Drained> {
        let sent_at = Instant::now();
        let head = self.head()?;
        ensure!(head.status == 200, "answered with {}", head.status);
        let mut first_byte = None;
        let mut bytes = 0;
        self.body(&head, |piece| {
            first_byte.get_or_insert_with(|| sent_at.elapsed());
            bytes += piece.len();
            pause();
        })?;
        Ok(Drained {
            first_byte: first_byte.context("the answer is empty")?,
            whole: sent_at.elapsed(),
            bytes,
        })
    }

    fn send(&mut self, method: &str, path: &str, fields: &str, body: &str) -> anyhow::Result<()> {
        let host = &self.host;
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n{fields}\r\n{body}"
        );
        Ok(self.stream.get_mut().write_all(request.as_bytes())?)
    }

    fn answer(&mut self) -> anyhow::Result<Answer> {
        let head = self.head()?;
        let mut body = Vec::new();
        self.body(&head, |piece| body.extend_from_slice(piece))?;
        Ok(Answer {
            status: head.status,
            next: head.link.as_deref().and_then(next_path),
            body,
        })
    }

    fn head(&mut self) -> anyhow::Result<Head> {
        let first = self.line()?;
        let status = first.split(' ').nth(1).context("no status")?.parse()?;
        let mut head = Head {
            status,
            ..Head::default()
        };
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(": ") else {
                return Ok(head);
            };
            match name {
                "content-length" => head.length = Some(value.parse()?),
                "link" => head.link = Some(value.to_owned()),
                _ => {}
            }
        }
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        ensure!(
            self.stream.read_line(&mut line)? > 0,
            "the connection was closed"
        );
        line.truncate(line.trim_end().len());
        Ok(line)
    }

    fn body(&mut self, head: &Head, mut piece: impl FnMut(&[u8])) -> anyhow::Result<()> {
        if let Some(length) = head.length {
            return self.exactly(length, &mut piece);
        }
        loop {
            let size = usize::from_str_radix(&self.line()?, 16)?;
            self.exactly(size, &mut piece)?;
            if !self.line()?.is_empty() {
                bail!("a chunk is longer than its stated size");
            }
            if size == 0 {
                return Ok(());
            }
        }
    }

    fn exactly(&mut self, mut left: usize, piece: &mut impl FnMut(&[u8])) -> anyhow::Result<()> {
        while left > 0 {
            let most = left.min(self.buffer.len());
            let read = self.stream.read(&mut self.buffer[..most])?;
            ensure!(read > 0, "the answer is incomplete");
            piece(&self.buffer[..read]);
            left -= read;
        }
        Ok(())
    }
}

/// Returns the path in `<PATH>; rel="next"`.
fn next_path(link: &str) -> Option<String> {
    let (path, _) = link.strip_prefix('<')?.split_once('>')?;
    Some(path.to_owned())
}
