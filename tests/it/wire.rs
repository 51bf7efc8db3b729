//! A raw connection, for requests that no client library sends, and for clients that stop midway.
//! Other tests use `environment::Client`.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

use crate::environment::{PATIENCE, Program};

/// A raw connection.
pub struct Wire(TcpStream);

impl Wire {
    pub fn open(program: &Program) -> Self {
        let stream =
            TcpStream::connect(program.address()).expect("the program accepts connections");
        Self::new(stream)
    }

    /// Opens a connection with a small receive buffer, so that its peer soon has to wait.
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
            .expect("a read timeout can be set");
        Self(stream)
    }

    /// Sends bytes. Ignores a closed connection, because the response is read next.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.0.write_all(bytes.as_ref());
    }

    /// Sends bytes. Returns false if the connection is closed.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.0.write_all(bytes.as_ref()).is_ok()
    }

    /// Returns another handle of this connection.
    pub fn other_end(&self) -> Self {
        Self(self.0.try_clone().expect("a connection can be cloned"))
    }

    /// Closes the sending side.
    pub fn end(&mut self) {
        let _ = self.0.shutdown(Shutdown::Write);
    }

    /// Reads until `text` was received.
    pub fn read_until(&mut self, text: &str) -> String {
        let mut read = Vec::new();
        let mut byte = [0];
        while !read.ends_with(text.as_bytes()) {
            let length = self.0.read(&mut byte).expect("a response arrives in time");
            let sofar = String::from_utf8_lossy(&read);
            assert!(length == 1, "the connection ended before {text:?}: {sofar}");
            read.push(byte[0]);
        }
        String::from_utf8_lossy(&read).into_owned()
    }

    /// Reads up to the end of the connection. Also returns true if it was reset.
    pub fn rest_and_reset(&mut self) -> (String, bool) {
        let mut read = Vec::new();
        let ended = self.0.read_to_end(&mut read);
        let is_reset = ended.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset);
        (String::from_utf8_lossy(&read).into_owned(), is_reset)
    }

    /// Reads up to the end of the connection, however it ends.
    pub fn rest(&mut self) -> String {
        let mut read = Vec::new();
        if let Err(error) = self.0.read_to_end(&mut read) {
            let kind = error.kind();
            let is_late = matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut);
            assert!(
                !is_late,
                "the server neither responds nor closes the connection"
            );
        }
        String::from_utf8_lossy(&read).into_owned()
    }
}

/// Returns the status of each response in the bytes of a connection.
pub fn statuses(text: &str) -> Vec<u16> {
    text.match_indices("HTTP/1.")
        .map(|(index, _)| text[index + 9..index + 12].parse().expect("a status"))
        .collect()
}

/// Sends a request unchanged on a connection of its own. Returns the response.
pub fn plain(api: &Program, head: &str, body: &[u8]) -> String {
    let mut wire = Wire::open(api);
    wire.send(format!(
        "{head}\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    ));
    wire.send(body);
    wire.rest()
}
