//! A connection without a client library: for requests that none would send, and for clients that
//! stop in the middle. Everything else is asked through `world::Client`.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

use crate::world::{PATIENCE, Program};

/// A connection for what no well-behaved client would send.
pub struct Wire(TcpStream);

impl Wire {
    pub fn open(program: &Program) -> Self {
        let stream = TcpStream::connect(program.address()).expect("it accepts connections");
        Self::new(stream)
    }

    /// One that takes in little before it is read: its peer soon has to wait.
    pub async fn narrow(program: &Program) -> Self {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(4096).expect("a smaller buffer");
        let address = program.address().parse().expect("an address");
        let stream = socket.connect(address).await.expect("a connection");
        let stream = stream.into_std().expect("a plain stream");
        stream.set_nonblocking(false).expect("a blocking stream");
        Self::new(stream)
    }

    fn new(stream: TcpStream) -> Self {
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a stream can be impatient");
        Self(stream)
    }

    /// Sends. That the peer has closed already is no failure: what it said is read next.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.0.write_all(bytes.as_ref());
    }

    /// Sends, and tells whether the peer still takes it.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.0.write_all(bytes.as_ref()).is_ok()
    }

    /// The same connection, for another thread.
    pub fn other_end(&self) -> Self {
        Self(self.0.try_clone().expect("a connection has two ends"))
    }

    /// Says that nothing more will be sent.
    pub fn end(&mut self) {
        let _ = self.0.shutdown(Shutdown::Write);
    }

    /// Reads until `text` has come.
    pub fn read_until(&mut self, text: &str) -> String {
        let mut read = Vec::new();
        let mut byte = [0];
        while !read.ends_with(text.as_bytes()) {
            let length = self.0.read(&mut byte).expect("there is an answer in time");
            let sofar = String::from_utf8_lossy(&read);
            assert!(length == 1, "it ends before {text:?}: {sofar}");
            read.push(byte[0]);
        }
        String::from_utf8_lossy(&read).into_owned()
    }

    /// Everything up to the end of the connection, and whether that is a reset.
    pub fn rest_and_reset(&mut self) -> (String, bool) {
        let mut read = Vec::new();
        let ended = self.0.read_to_end(&mut read);
        let is_reset = ended.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset);
        (String::from_utf8_lossy(&read).into_owned(), is_reset)
    }

    /// Everything up to the end of the connection, however it ends.
    pub fn rest(&mut self) -> String {
        let mut read = Vec::new();
        if let Err(error) = self.0.read_to_end(&mut read) {
            let kind = error.kind();
            let is_late = matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut);
            assert!(!is_late, "it neither answers nor closes");
        }
        String::from_utf8_lossy(&read).into_owned()
    }
}

/// The status of each answer in what came over a connection.
pub fn statuses(text: &str) -> Vec<u16> {
    text.match_indices("HTTP/1.")
        .map(|(at, _)| text[at + 9..at + 12].parse().expect("a status"))
        .collect()
}

/// A request and its answer over a connection of its own, without anyone who tidies it up.
pub fn plain(api: &Program, head: &str, body: &[u8]) -> String {
    let mut wire = Wire::open(api);
    wire.send(format!(
        "{head}\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    ));
    wire.send(body);
    wire.rest()
}
