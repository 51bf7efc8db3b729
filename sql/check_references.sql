-- Entries of the journal whose order is not there.
SELECT NULL, 'row ' || seq || ' of journal belongs to a row of orders that is not there'
FROM journal
WHERE order_seq BETWEEN :first AND :last
  AND NOT EXISTS (SELECT 1 FROM orders WHERE orders.seq = journal.order_seq
                  AND orders.seq BETWEEN :first AND :last)
