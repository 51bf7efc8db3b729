//! Reads of the orders whose process has to be polled.

use rusqlite::{Connection, Row, params};

use super::database::result;
use crate::order::Timestamp;
use crate::store::OpenOrders;
use crate::store::open_orders::running;
use crate::store::queries::{READ_MAX, open_order};
use crate::store::rows::Columns;

/// Appends the next orders to the list and returns their number, which is less than
/// [`READ_MAX`] at the end.
pub(super) fn read_next(db: &Connection, list: &mut OpenOrders) -> rusqlite::Result<usize> {
    let before = list.len();
    let after = list.last_seq();
    let mut query = db.prepare_cached(NEXT_OPEN)?;
    let mut rows = query.query(params![after, READ_MAX as i64])?;
    while let Some(row) = rows.next()? {
        let id = row.get_ref(1)?.as_str()?;
        let seq = row.get(0)?;
        let order = match row.get::<_, Option<i64>>(2)? {
            Some(since) => running(seq, Timestamp(since), row.get(3)?, row.get(4)?),
            None => result(open_order(db, seq))?.ok_or(rusqlite::Error::QueryReturnedNoRows)?,
        };
        list.push(id, order)
            .map_err(|error| Row::invalid(1, error))?;
    }
    Ok(list.len() - before)
}

/// Query for the next orders to poll: the time since when their process runs, their starts, and
/// whether it was seen. The columns that are empty for nearly all orders took a fifth of the time,
/// so orders with more state are read one by one.
const NEXT_OPEN: &str = "\
    SELECT seq, id, \
           iif(intent_at IS NULL AND missed_at IS NULL AND released_at IS NULL AND attempts = 0 \
               AND next_attempt_at IS NULL AND attention IS NULL, confirmed_at, NULL), \
           starts, process_seen \
    FROM orders INDEXED BY orders_by_status WHERE status = 'PROCESSING' AND seq > ?1 \
    UNION ALL \
    SELECT seq, id, NULL, NULL, NULL FROM orders INDEXED BY orders_with_intent \
    WHERE intent_at IS NOT NULL AND status = 'CREATED' AND seq > ?1 \
    ORDER BY seq LIMIT ?2";

#[cfg(test)]
mod tests {
    use rusqlite::StatementStatus;

    use super::super::open;
    use super::*;
    use crate::store::{DatabaseUrl, Mode, Store};

    #[tokio::test]
    async fn all_are_read_however_many_there_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = DatabaseUrl::from(folder.path().join("orders.db"));
        let store = Store::open(&path, Mode::Threaded).unwrap();
        // Every third order has an intent, every fifth is not polled.
        let fill = format!(
            "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {}) \
             INSERT INTO orders (seq, id, status, created_at, updated_at, intent_at, confirmed_at) \
             SELECT n, 'a' || n, iif(n % 3 = 0 OR n % 5 = 0, 'CREATED', 'PROCESSING'), 0, 0, \
                    iif(n % 3 = 0, 1, NULL), iif(n % 3 = 0 OR n % 5 = 0, NULL, 1) FROM n",
            3 * READ_MAX
        );
        // One order of each kind with more state.
        let odd = "UPDATE orders SET missed_at = 1 WHERE seq = 1; \
                   UPDATE orders SET released_at = 1 WHERE seq = 2; \
                   UPDATE orders SET attempts = 1 WHERE seq = 4; \
                   UPDATE orders SET next_attempt_at = 1 WHERE seq = 7; \
                   UPDATE orders SET starts = 1000 WHERE seq = 8; \
                   UPDATE orders SET process_seen = 1 WHERE seq IN (2, 14); \
                   UPDATE orders SET attention = 'process_lost', attention_since = 1, \
                                     attention_detail = '' WHERE seq = 11; \
                   UPDATE orders SET intent_at = 1 WHERE seq = 13;";
        let db = Connection::open(store.info().address).unwrap();
        db.execute_batch(&format!("{fill}; {odd}")).unwrap();
        let list = store.open_orders().await.unwrap();
        for (index, order) in list.orders().enumerate().take(20) {
            let whole = result(open_order(&db, order.seq)).unwrap();
            assert_eq!(Some(order), whole, "{index}");
        }
        let expected = (1..=3 * READ_MAX).filter(|n| n % 3 == 0 || n % 5 != 0);
        let seqs = list.targets().iter().map(|order| order.seq as usize);
        assert!(seqs.eq(expected.clone()));
        for (index, n) in expected.enumerate() {
            assert_eq!(list.ids().get(index), format!("a{n}"));
        }
    }

    #[test]
    fn the_query_is_not_prepared_again_for_another_position() {
        let db = open::empty(open::FORMAT).unwrap();
        open::keep_in_memory(&db, 1_024).unwrap();
        let mut query = db.prepare_cached(NEXT_OPEN).unwrap();
        for after in 0..3 {
            query.query(params![after, 1]).unwrap().next().unwrap();
        }
        assert_eq!(query.get_status(StatementStatus::RePrepare), 0);
    }
}
