//! Change feed: follows the journal for changes to orders, made by any program, and wakes waiting
//! requests and streams.
//!
//! There is one feed per program, and it reads the journal only while a request or stream waits.
//! It reads each event once: a settled event wakes the requests that wait for its order, and all
//! streams share the events. Waiting requests are in `api/order.rs`, streams in `api/events.rs`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{oneshot, watch};

use crate::messages::with_causes;
use crate::order::{Event, OrderId};
use crate::store::{Changes, Cursor, Store, StoreError};

/// Delay after a failed read: a failing database is read once a second.
const FAILING_INTERVAL: Duration = Duration::from_secs(1);

/// Delay after a batch of events, per stream. Waking a stream takes some microseconds, which a
/// thousand commits a second would multiply. Events that arrive during the delay form one batch.
const PAUSE_PER_STREAM: Duration = Duration::from_micros(50);

/// Maximum number of events per batch. With the longest ids a batch takes 300 KB, once per program.
const EVENTS_PER_BATCH_MAX: usize = 500;

/// Wakes requests and streams that wait for changes to orders.
pub(super) struct ChangeFeed(Arc<Shared>);

struct Shared {
    store: Store,
    state: Mutex<State>,
    /// The newest batch of events. Each stream holds a receiver.
    latest: watch::Sender<Arc<Batch>>,
    /// For the reads of waiting requests and of streams, a thousand of which may be woken at once.
    reads: Store,
}

#[derive(Default)]
struct State {
    /// Set while a task follows the journal.
    is_following: bool,
    /// Cursor after the last published event. Valid only while following.
    published: Cursor,
    /// Waiting requests by the order's sequence number; the second number makes the key unique.
    waiting: BTreeMap<(i64, u64), oneshot::Sender<()>>,
    next_number: u64,
}

/// Consecutive events of all orders.
pub(super) struct Batch {
    /// Sequence number of the event before the first.
    pub after: i64,
    /// Cursor after the last event.
    pub last: Cursor,
    events: Vec<Event>,
    /// The events in the stream format, serialised once by the first stream that needs them.
    text: OnceLock<Bytes>,
}

impl Batch {
    fn new(after: Cursor, events: Vec<Event>, last: Cursor) -> Self {
        Self {
            after: after.seq,
            last,
            events,
            text: OnceLock::new(),
        }
    }

    /// Returns a batch without events, at this cursor.
    fn empty(at: Cursor) -> Arc<Self> {
        Arc::new(Self::new(at, Vec::new(), at))
    }

    /// Returns the events after `after`, of all orders or of one, serialised by `write`.
    pub fn text(
        &self,
        after: i64,
        order: Option<&OrderId>,
        write: impl Fn(&mut dyn Iterator<Item = &Event>) -> Bytes,
    ) -> Bytes {
        if order.is_none() && after <= self.after {
            return self
                .text
                .get_or_init(|| write(&mut self.events.iter()))
                .clone();
        }
        let is_requested =
            |event: &&Event| event.seq > after && order.is_none_or(|id| *id == event.order_id);
        write(&mut self.events.iter().filter(is_requested))
    }
}

/// A request that waits until an order is settled. Deregistered on drop.
pub(super) struct Waiter {
    shared: Arc<Shared>,
    key: (i64, u64),
    woken: oneshot::Receiver<()>,
}

impl Waiter {
    /// Returns once the order is settled.
    pub async fn settled(&mut self) {
        // Dropping the sender wakes the receiver.
        let _ = (&mut self.woken).await;
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.shared.state().waiting.remove(&self.key);
    }
}

impl ChangeFeed {
    pub fn new(store: &Store) -> Self {
        Self(Arc::new(Shared {
            reads: store.for_long_reads(),
            store: store.for_long_reads(),
            state: Mutex::default(),
            latest: watch::Sender::new(Batch::empty(Cursor::default())),
        }))
    }

    /// Registers a request that waits until the order with this sequence number is settled by an event
    /// after `newest_event`. Events that were already published do not wake it, so the caller reads the
    /// order afterwards.
    pub fn wait_for(&self, order_seq: i64, newest_event: Cursor) -> Waiter {
        let mut state = self.0.state();
        let (wake, woken) = oneshot::channel();
        let key = (order_seq, state.next_number);
        state.next_number += 1;
        state.waiting.insert(key, wake);
        self.wake(&mut state, newest_event);
        Waiter {
            shared: self.0.clone(),
            key,
            woken,
        }
    }

    /// Returns the number of waiting requests and of open streams.
    pub fn waiting_and_streams(&self) -> (usize, usize) {
        let waiting = self.0.state().waiting.len();
        (waiting, self.0.latest.receiver_count())
    }

    /// Subscribes to the newest batch, whose events, and all before them, are also in the database. Events
    /// before `newest_event` may be delivered too.
    pub fn subscribe(&self, newest_event: Cursor) -> watch::Receiver<Arc<Batch>> {
        let mut state = self.0.state();
        let subscription = self.0.latest.subscribe();
        self.wake(&mut state, newest_event);
        subscription
    }

    /// Starts following after `newest_event`, unless a task does already.
    fn wake(&self, state: &mut State, newest_event: Cursor) {
        if state.is_following {
            return;
        }
        state.is_following = true;
        state.published = newest_event;
        // Events from before that are not published: streams read them from the database.
        self.0.latest.send_replace(Batch::empty(newest_event));
        tokio::spawn(self.0.clone().follow_journal());
    }

    /// Returns the store for the reads of waiting requests and of streams.
    pub fn reads(&self) -> &Store {
        &self.0.reads
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads and publishes events until nothing waits for them.
    async fn follow_journal(self: Arc<Self>) {
        let mut changes = None;
        let mut is_failing = false;
        while let Some(published) = self.published_if_awaited() {
            match self.read_batch(&mut changes, published).await {
                Ok((events, last)) => {
                    is_failing = false;
                    let may_be_more = events.len() == EVENTS_PER_BATCH_MAX;
                    if !events.is_empty() {
                        self.publish(Batch::new(published, events, last));
                        let streams = self.latest.receiver_count() as f64;
                        tokio::time::sleep(PAUSE_PER_STREAM.mul_f64(streams)).await;
                    }
                    if !may_be_more && let Some(changes) = &mut changes {
                        changes.next().await;
                    }
                }
                Err(StoreError::Gone(_)) => self.skip().await,
                Err(error) => {
                    if !is_failing {
                        log::warn!("cannot read changes of orders: {}", with_causes(&error));
                    }
                    is_failing = true;
                    tokio::time::sleep(FAILING_INTERVAL).await;
                }
            }
        }
    }

    async fn read_batch(
        &self,
        changes: &mut Option<Changes>,
        published: Cursor,
    ) -> Result<(Vec<Event>, Cursor), StoreError> {
        if changes.is_none() {
            *changes = Some(self.store.changes()?);
        }
        self.store
            .events(None, published, EVENTS_PER_BATCH_MAX)
            .await
    }

    /// Returns the cursor after the last published event. If nothing waits for more, marks following
    /// as stopped and returns `None`.
    fn published_if_awaited(&self) -> Option<Cursor> {
        let mut state = self.state();
        state.is_following = !state.waiting.is_empty() || self.latest.receiver_count() > 0;
        state.is_following.then_some(state.published)
    }

    /// Resumes after the newest event, because events that were not yet published were pruned. They
    /// may concern any order, so all waiting requests and streams are woken to read for themselves.
    async fn skip(&self) {
        match self.store.newest_event().await {
            Ok(newest) => {
                let mut state = self.state();
                state.published = newest;
                state.waiting.clear();
                drop(state);
                self.latest.send_replace(Batch::empty(newest));
            }
            // The next read retries.
            Err(error) => log::debug!("cannot read the newest event: {error}"),
        }
    }

    /// Publishes a batch: wakes the requests whose orders were settled, then the streams.
    fn publish(&self, batch: Batch) {
        {
            let mut state = self.state();
            state.published = batch.last;
            let settled = batch.events.iter().filter(|event| event.to.is_settled());
            for Event { order_seq, .. } in settled {
                state
                    .waiting
                    .extract_if((*order_seq, 0)..=(*order_seq, u64::MAX), |_, _| true)
                    .for_each(drop);
            }
        }
        self.latest.send_replace(Arc::new(batch));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::order::{Outcome, Timestamp};
    use crate::store::{Creation, DatabaseUrl, Mode, OrderChange, Transition};

    struct Fixture {
        _folder: tempfile::TempDir,
        /// A second store, in which orders are created and settled.
        other: Store,
        feed: ChangeFeed,
    }

    impl Fixture {
        /// Creates and settles orders through another connection, as another program does.
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = DatabaseUrl::from(folder.path().join("orders.db"));
            Self {
                other: Store::open(&path, Mode::Threaded).unwrap(),
                feed: ChangeFeed::new(&Store::open(&path, Mode::Threaded).unwrap()),
                _folder: folder,
            }
        }

        async fn create(&self, id: &str) -> i64 {
            let id = OrderId::new(id).unwrap();
            match self.other.create(id, Timestamp(1)).await.unwrap() {
                Creation::Created(order) => order.seq,
                Creation::Exists(order) => panic!("{order:?}"),
            }
        }

        /// Records two events: PROCESSING, then settled.
        async fn settle(&self, seq: i64) {
            let steps = [Transition::Adopted, Transition::Settled(Outcome::Failed)];
            let changes = steps.map(|transition| OrderChange { seq, transition });
            let lead = self.other.try_lead().await.unwrap().unwrap();
            let recorded = lead.record(changes.into(), Timestamp(2)).await;
            recorded.unwrap();
        }

        fn wait(&self, order_seq: i64, newest_event: Cursor) -> Waiter {
            self.feed.wait_for(order_seq, newest_event)
        }

        fn is_following(&self) -> bool {
            self.feed.0.state().is_following
        }

        async fn until_idle(&self) {
            while self.is_following() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_journal_is_followed_only_while_a_client_waits() {
        let fixture = Fixture::new();
        let seq = fixture.create("a1").await;
        assert!(!fixture.is_following());
        let waiter = fixture.wait(seq, Cursor::bare(1));
        assert!(fixture.is_following());
        drop(waiter);
        fixture.until_idle().await;
        let subscription = fixture.feed.subscribe(Cursor::bare(1));
        assert!(fixture.is_following());
        drop(subscription);
        fixture.until_idle().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_change_between_the_read_of_an_order_and_the_wait_wakes_too() {
        let fixture = Fixture::new();
        let seq = fixture.create("a1").await;
        let other = fixture.create("a2").await;
        fixture.settle(seq).await;
        // Nothing follows yet: the first waiter makes it follow from its own cursor.
        let mut waiter = fixture.wait(seq, Cursor::bare(2));
        let mut other_waiter = fixture.wait(other, Cursor::bare(4));
        waiter.settled().await;
        assert!(other_waiter.woken.try_recv().is_err());
        fixture.settle(other).await;
        other_waiter.settled().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn all_waiters_of_an_order_are_woken_and_deregistered() {
        let fixture = Fixture::new();
        let seq = fixture.create("a1").await;
        let mut waiters: Vec<_> = (0..1_000)
            .map(|_| fixture.wait(seq, Cursor::bare(1)))
            .collect();
        drop(waiters.pop());
        waiters.push(fixture.wait(seq, Cursor::bare(1)));
        fixture.settle(seq).await;
        for waiter in &mut waiters {
            waiter.settled().await;
        }
        drop(waiters);
        assert!(fixture.feed.0.state().waiting.is_empty());
        fixture.until_idle().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn events_pruned_before_they_were_published_wake_all_waiters() {
        let fixture = Fixture::new();
        let [seq, other] = [fixture.create("a1").await, fixture.create("a2").await];
        let newest = fixture.other.newest_event().await.unwrap();
        fixture.settle(seq).await;
        fixture.create("last").await;
        let pruned = fixture.other.prune(Timestamp(9), 0, 1, Timestamp(9));
        assert_eq!(pruned.await.unwrap().unwrap().0.orders(), 1);
        // The cursors are those of a read before the order was settled.
        let mut waiters = [fixture.wait(seq, newest), fixture.wait(other, newest)];
        for waiter in &mut waiters {
            waiter.settled().await;
        }
        // Later changes are delivered as usual.
        let mut again = fixture.wait(other, Cursor::bare(5));
        fixture.settle(other).await;
        again.settled().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn batches_follow_each_other_without_a_gap() {
        let fixture = Fixture::new();
        let mut subscription = fixture.feed.subscribe(Cursor::default());
        let mut seen = 0;
        for n in 0..40 {
            let seq = fixture.create(&format!("a{n}")).await;
            fixture.settle(seq).await;
            while seen < 3 * (n + 1) {
                let batch = subscription.borrow_and_update().clone();
                // Events that a newer batch has replaced are read from the database.
                let missing = (batch.after - seen).max(0) as usize;
                let gap = fixture
                    .other
                    .events(None, Cursor::bare(seen), missing)
                    .await;
                let (gap, _) = gap.unwrap();
                for event in gap.iter().chain(&batch.events) {
                    assert!(event.seq <= seen + 1, "{} after {seen}", event.seq);
                    seen = seen.max(event.seq);
                }
                if seen < 3 * (n + 1) {
                    subscription.changed().await.unwrap();
                }
            }
        }
    }
}
