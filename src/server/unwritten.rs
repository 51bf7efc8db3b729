//! Answers that are not written yet: hyper drops a body once its last part is buffered, and the client
//! may not read that for long.

use std::io::{IoSlice, Result};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use hyper::rt::{Read, ReadBufCursor, Write};

use super::requests::RequestGuard;
use super::slots::LongAnswer;

/// The guard and the permit of a request.
type Guards = (RequestGuard, Option<LongAnswer>);

/// The guards of a connection's requests whose answers are not written yet.
#[derive(Clone, Default)]
pub(super) struct Unwritten(Arc<Mutex<Vec<Arc<Guards>>>>);

impl Unwritten {
    /// Keeps guards until the result was dropped, and all that was buffered by then is written.
    pub fn keep(&self, guards: Guards) -> Arc<Guards> {
        let guards = Arc::new(guards);
        self.all().push(guards.clone());
        guards
    }

    fn all(&self) -> MutexGuard<'_, Vec<Arc<Guards>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's stream. hyper flushes it only when hyper's own buffer is empty.
pub(super) struct FlushedStream<S> {
    pub stream: S,
    pub unwritten: Unwritten,
}

impl<S: Read + Unpin> Read for FlushedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: Write + Unpin> Write for FlushedStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        let mut unwritten = self.unwritten.all();
        unwritten.retain(|guards| Arc::strong_count(guards) > 1);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
}
