-- Orders that are not where the last change in the journal has led them; also those that the
-- journal does not know at all.
SELECT id, CASE
    WHEN ended IS NULL THEN 'the journal does not know it'
    ELSE 'it is ' || status || ', and its journal ends with ' || ended
    END
FROM (SELECT id, status,
             (SELECT to_status FROM journal INDEXED BY journal_by_order
              WHERE order_seq = orders.seq ORDER BY journal.seq DESC LIMIT 1) AS ended
      FROM orders
      WHERE seq BETWEEN :first AND :last) AS ends
WHERE ended IS DISTINCT FROM status
