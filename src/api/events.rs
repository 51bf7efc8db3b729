//! The journal: a page of events, or a stream of server-sent events.
//!
//! A stream takes new events from the change feed, which reads them once for all streams. A stream
//! that is behind reads pages from the database, each only after its client has taken the previous
//! one. It ends when the client disconnects, at shutdown, or when events that it has not sent were
//! pruned, or lost with the primary that had them. In the last two cases the client reconnects with the
//! id of its last event, and gets an error.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use warp::Reply;
use warp::http::header::{CONTENT_TYPE, HeaderValue, LINK, VARY};
use warp::http::{HeaderMap, Method, StatusCode};
use warp::reply::Response;

use super::Api;
use super::change_feed::{Batch, ChangeFeed};
use super::json::{self, EVENT_BYTES};
use super::json_answer;
use super::problem::{Problem, log_failed_read, next_link, reading_problem, store_problem};
use super::request::{After, EventQuery, next_page};
use crate::order::{Event, OrderId};
use crate::store::{Cursor, StoreError};

/// Interval of comments. They keep proxies and clients from timing out an idle stream, and detect
/// clients that have vanished without closing the connection.
const COMMENT_INTERVAL: Duration = Duration::from_secs(15);

/// A comment, which clients ignore.
const COMMENT: &[u8] = b":\n\n";

/// Events per read while a stream is behind. They take some 30 KB, or 130 KB with the longest ids;
/// a slow client holds that much memory besides the connection's buffers.
const STREAM_PAGE: usize = 200;

impl Api {
    /// `GET /event`: a page, or a stream.
    pub(super) async fn events(
        &self,
        method: &Method,
        query: &str,
        headers: &HeaderMap,
    ) -> Result<Response, Problem> {
        let mut response = match EventQuery::parse(query, headers)? {
            EventQuery::Page {
                after,
                limit,
                order,
            } => self.event_page(after, limit, order).await?,
            EventQuery::Stream { after, order } => self.event_stream(method, after, order).await?,
        };
        response
            .headers_mut()
            .insert(VARY, HeaderValue::from_static("accept"));
        Ok(response)
    }

    async fn event_page(
        &self,
        after: Cursor,
        limit: usize,
        order: Option<OrderId>,
    ) -> Result<Response, Problem> {
        let path = |after| format!("/event?{}", next_page(after, Some(limit), order.as_ref()));
        let slot = self.connections.long_answer();
        let slot = slot.ok_or_else(Problem::too_many_lists)?;
        let read = self.list_store.events(order.as_ref(), after, limit + 1);
        let read = read.await;
        let (mut events, next) = read.map_err(|error| reading_problem(error, path))?;
        let is_last = events.len() <= limit;
        events.truncate(limit);
        let mut response = json_answer(StatusCode::OK, &events);
        response.extensions_mut().insert(slot);
        if let Some(last) = events.last().filter(|_| !is_last) {
            let link = next_link(&path(next.at(last.seq)));
            response.headers_mut().insert(LINK, link);
        }
        Ok(response)
    }

    async fn event_stream(
        &self,
        method: &Method,
        after: After,
        order: Option<OrderId>,
    ) -> Result<Response, Problem> {
        let newest = self.change_feed.reads().newest_event().await;
        let newest = newest.map_err(store_problem)?;
        let (after, beginning) = match after {
            After::Event(position) => {
                // Fail now: once the stream has begun, the status can no longer change.
                let order = order.as_ref();
                let read = self.change_feed.reads().events(order, position, 0).await;
                let path = |after| format!("/event?{}", next_page(after, None, order));
                let (_, here) = read.map_err(|error| reading_problem(error, path))?;
                (here, None)
            }
            After::Latest => (newest, Some(beginning(newest))),
        };
        if method == Method::HEAD {
            return Ok(stream_answer(futures_util::stream::empty()));
        }
        let slot = self.connections.stream();
        let slot = slot.ok_or_else(Problem::too_many_streams)?;
        let subscription = self.change_feed.subscribe(newest);
        let mut comments = tokio::time::interval(COMMENT_INTERVAL);
        comments.reset();
        comments.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stream = EventStream {
            change_feed: self.change_feed.clone(),
            subscription,
            beginning,
            after,
            order,
            comments,
            draining: self.draining.clone(),
            has_failed: false,
        };
        let mut response = stream_answer(stream.chunks());
        response.extensions_mut().insert(slot);
        Ok(response)
    }
}

fn stream_answer(
    chunks: impl Stream<Item = Result<Bytes, StoreError>> + Send + Sync + 'static,
) -> Response {
    let mut response = warp::reply::stream(chunks).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    // Keep nginx and compatible proxies from buffering events.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// Serialises events in the stream format (the HTML standard, section 9.2.6). The id of each is the
/// cursor to resume from, as of the read before `next`.
fn stream_format<'a>(events: impl Iterator<Item = &'a Event>, next: Cursor) -> Bytes {
    let mut text = Vec::with_capacity(events.size_hint().0 * (EVENT_BYTES + 30));
    for event in events {
        let id = next.at(event.seq);
        text.extend_from_slice(format!("id: {id}\ndata: ").as_bytes());
        json::write(&mut text, event);
        text.extend_from_slice(b"\n\n");
    }
    Bytes::from(text)
}

/// Returns the first event of a stream of future events. Its id is the cursor where the stream
/// begins, for a client that loses the connection before the next event. It has data, because many
/// clients drop the id of an event without data.
fn beginning(newest: Cursor) -> Bytes {
    let seq = newest.seq;
    Bytes::from(format!(
        "id: {newest}\nevent: position\ndata: {{\"seq\":{seq}}}\n\n"
    ))
}

/// A stream of events to one client.
struct EventStream {
    change_feed: Arc<ChangeFeed>,
    subscription: watch::Receiver<Arc<Batch>>,
    /// The event that is sent first, if any.
    beginning: Option<Bytes>,
    /// Cursor after the last event that was sent or filtered out.
    after: Cursor,
    order: Option<OrderId>,
    comments: Interval,
    draining: CancellationToken,
    has_failed: bool,
}

impl EventStream {
    /// Returns the chunks of the body, each produced after the previous one was taken. An error
    /// ends the stream and breaks the connection, so that the client reconnects.
    fn chunks(self) -> impl Stream<Item = Result<Bytes, StoreError>> {
        futures_util::stream::unfold(self, |mut stream| async {
            let chunk = stream.next().await.transpose()?;
            if let Err(StoreError::Gone(gone)) = &chunk {
                log::info!("stream ended after_seq={}: {gone}", stream.after.seq);
                return None;
            }
            if let Err(error) = &chunk {
                log_failed_read("stream", error);
                stream.has_failed = true;
            }
            Some((chunk, stream))
        })
    }

    /// Returns the next chunk, or `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        if let Some(beginning) = self.beginning.take() {
            return Ok(Some(beginning));
        }
        while !self.has_failed && !self.draining.is_cancelled() {
            let latest = self.subscription.borrow_and_update().clone();
            let is_related = self.after.has_history_of(latest.last);
            if !is_related || self.after.seq < latest.last.seq {
                let text = if !is_related || self.after.seq < latest.after {
                    self.read_page(latest.last).await?
                } else {
                    let after = std::mem::replace(&mut self.after, latest.last).seq;
                    latest.text(after, self.order.as_ref(), |events| {
                        stream_format(events, latest.last)
                    })
                };
                if !text.is_empty() {
                    return Ok(Some(text));
                }
            }
            drop(latest);
            tokio::select! {
                biased;
                () = self.draining.cancelled() => {}
                _ = self.comments.tick() => return Ok(Some(Bytes::from_static(COMMENT))),
                // The sender, in the feed, lives as long.
                _ = self.subscription.changed() => {}
            }
        }
        Ok(None)
    }

    /// Reads a page from the database, which contains all events up to `known` if it is of the same
    /// history.
    async fn read_page(&mut self, known: Cursor) -> Result<Bytes, StoreError> {
        let (order, after) = (self.order.as_ref(), self.after);
        let read = self.change_feed.reads().events(order, after, STREAM_PAGE);
        let (events, mut next) = read.await?;
        if events.len() < STREAM_PAGE && next.has_history_of(known) {
            // The order has no other events up to `known`.
            next = next.at(next.seq.max(known.seq));
        }
        self.after = next;
        Ok(stream_format(events.iter(), next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::order::Timestamp;
    use crate::store::{DatabaseUrl, Mode, Store};

    /// The position of a reader of a primary that was lost with the newest of its events.
    const LOST: &str = "9-0-7";

    /// A database with two events.
    struct Fixture {
        _folder: tempfile::TempDir,
        store: Store,
        newest: Cursor,
    }

    impl Fixture {
        async fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let url = DatabaseUrl::from(folder.path().join("orders.db"));
            let store = Store::open(&url, Mode::Threaded).unwrap();
            for id in ["a1", "a2"] {
                create(&store, id).await;
            }
            Self {
                _folder: folder,
                newest: store.newest_event().await.unwrap(),
                store,
            }
        }

        /// Returns a stream that resumes at `after`, of a feed that has published up to `published`.
        fn stream(&self, after: Cursor, published: Cursor) -> EventStream {
            let change_feed = Arc::new(ChangeFeed::new(&self.store));
            let mut comments = tokio::time::interval(COMMENT_INTERVAL);
            comments.reset();
            EventStream {
                subscription: change_feed.subscribe(published),
                change_feed,
                beginning: None,
                after,
                order: None,
                comments,
                draining: CancellationToken::new(),
                has_failed: false,
            }
        }
    }

    async fn create(store: &Store, id: &str) {
        let id = OrderId::new(id).unwrap();
        store.create(id, Timestamp(1)).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_stream_beyond_the_newest_event_of_a_new_history_ends() {
        let fixture = Fixture::new().await;
        let mut stream = fixture.stream(LOST.parse().unwrap(), fixture.newest);
        let next = tokio::time::timeout(Duration::from_secs(5), stream.next()).await;
        assert!(matches!(next, Ok(Err(StoreError::Gone(_)))), "{next:?}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_stream_of_a_new_history_skips_no_event_before_the_feed_follows() {
        let fixture = Fixture::new().await;
        let mut stream = fixture.stream(fixture.newest, LOST.parse().unwrap());
        let next = tokio::time::timeout(Duration::from_secs(5), stream.next());
        let (next, ()) = tokio::join!(next, create(&fixture.store, "a3"));
        let text = next.expect("the event is sent").unwrap().unwrap();
        assert!(text.starts_with(b"id: 3-"), "{text:?}");
    }
}
