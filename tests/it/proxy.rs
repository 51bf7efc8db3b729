//! A proxy between the store and PostgreSQL, which knows where a message begins and ends: it cuts
//! connections at a commit, loses the answer to one, drops notifications, or stalls.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A fault of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// None.
    Open,
    /// The connection ends before a commit reaches the server.
    CutBeforeCommit,
    /// The connection ends after a commit has reached the server, without the answer.
    CutAfterCommit,
    /// Connections stay open, and nothing moves on them.
    Stall,
    /// Notifications are left out.
    Deaf,
    /// Connections end, and no new one is accepted.
    Down,
}

/// A proxy in front of a port of this machine.
pub struct Proxy {
    pub port: u16,
    fault: watch::Sender<Fault>,
    commits: Arc<Commits>,
}

/// Numbers of commits.
#[derive(Default)]
struct Commits {
    cut: AtomicUsize,
    answered: AtomicUsize,
}

impl Proxy {
    /// Begins to listen.
    pub async fn start(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (fault, _) = watch::channel(Fault::Open);
        let commits = Arc::default();
        let shared = Shared {
            fault: fault.clone(),
            commits: Arc::clone(&commits),
        };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if *shared.fault.borrow() == Fault::Down {
                    continue;
                }
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else {
                    continue;
                };
                tokio::spawn(shared.clone().connection(client, server));
            }
        });
        Self {
            port,
            fault,
            commits,
        }
    }

    /// Sets the fault from now on.
    pub fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }

    /// Returns the number of commits that were cut.
    pub fn cut(&self) -> usize {
        self.commits.cut.load(Ordering::Relaxed)
    }

    /// Returns the number of commits that were answered.
    pub fn answered(&self) -> usize {
        self.commits.answered.load(Ordering::Relaxed)
    }
}

#[derive(Clone)]
struct Shared {
    fault: watch::Sender<Fault>,
    commits: Arc<Commits>,
}

impl Shared {
    async fn connection(self, client: TcpStream, server: TcpStream) {
        for stream in [&client, &server] {
            stream.set_nodelay(true).unwrap();
        }
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        // Set once a commit has been passed on whose answer is to be lost.
        let is_answer_lost = Arc::new(Mutex::new(false));
        let mut faults = self.fault.subscribe();
        tokio::select! {
            () = self.to_server(from_client, to_server, &is_answer_lost) => {}
            () = self.to_client(from_server, to_client, &is_answer_lost) => {}
            _ = faults.wait_for(|fault| *fault == Fault::Down) => {}
        }
    }

    async fn to_server(
        &self,
        mut from: OwnedReadHalf,
        mut to: OwnedWriteHalf,
        is_answer_lost: &Mutex<bool>,
    ) {
        let mut commit = None;
        let mut is_begun = false;
        while let Some(message) = message(&mut from, is_begun).await {
            is_begun = true;
            self.wait().await;
            let name = message
                .get(5..)
                .and_then(|rest| rest.split(|byte| *byte == 0).next());
            match message[0] {
                // Parse: the name of a statement, and its text.
                b'P' if contains(&message, b"\0COMMIT\0") => {
                    commit = name.map(<[u8]>::to_vec);
                }
                // Bind: the name of a portal, and that of the statement.
                b'B' if is_commit(&message, commit.as_deref()) => {
                    let fault = *self.fault.borrow();
                    if let Fault::CutBeforeCommit | Fault::CutAfterCommit = fault {
                        self.commits.cut.fetch_add(1, Ordering::Relaxed);
                    }
                    match fault {
                        Fault::CutBeforeCommit => return,
                        Fault::CutAfterCommit => *is_answer_lost.lock().unwrap() = true,
                        _ => {}
                    }
                }
                _ => {}
            }
            if to.write_all(&message).await.is_err() {
                return;
            }
        }
    }

    async fn to_client(
        &self,
        mut from: OwnedReadHalf,
        mut to: OwnedWriteHalf,
        is_answer_lost: &Mutex<bool>,
    ) {
        while let Some(message) = message(&mut from, true).await {
            self.wait().await;
            if message[0] == b'C' && contains(&message, b"COMMIT\0") {
                if *is_answer_lost.lock().unwrap() {
                    return;
                }
                self.commits.answered.fetch_add(1, Ordering::Relaxed);
            }
            let is_notification = message[0] == b'A';
            if is_notification && *self.fault.borrow() == Fault::Deaf {
                continue;
            }
            if to.write_all(&message).await.is_err() {
                return;
            }
        }
    }

    async fn wait(&self) {
        while *self.fault.borrow() == Fault::Stall {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Reads the next message, with its type unless it is the first of a client. Returns `None` at the end.
async fn message(from: &mut OwnedReadHalf, has_type: bool) -> Option<Vec<u8>> {
    let mut message = vec![0; if has_type { 5 } else { 4 }];
    from.read_exact(&mut message).await.ok()?;
    let at = message.len() - 4;
    let length = u32::from_be_bytes(message[at..].try_into().ok()?) as usize;
    let head = message.len();
    message.resize(at + length, 0);
    from.read_exact(&mut message[head..]).await.ok()?;
    Some(message)
}

fn is_commit(bind: &[u8], commit: Option<&[u8]>) -> bool {
    let mut names = bind[5..].split(|byte| *byte == 0);
    commit.is_some() && names.nth(1) == commit
}

fn contains(message: &[u8], part: &[u8]) -> bool {
    message.windows(part.len()).any(|window| window == part)
}
