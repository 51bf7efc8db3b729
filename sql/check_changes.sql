-- Changes that do not begin where the one before has ended. The first change of an order is its
-- creation, from nothing; nothing begins at a settled status.
SELECT id, CASE
    WHEN before IS NULL THEN 'its journal begins with "' || reason || '" and not with its creation'
    ELSE 'entry ' || number || ' of the journal says "' || reason || '" of it when it was ' || before
    END
FROM (SELECT order_seq, seq AS number, reason, from_status,
             lag(to_status) OVER (PARTITION BY order_seq ORDER BY seq) AS before
      FROM journal INDEXED BY journal_by_order
      WHERE order_seq BETWEEN :first AND :last) AS changes
CROSS JOIN orders
WHERE orders.seq = order_seq AND orders.seq BETWEEN :first AND :last
  AND from_status IS DISTINCT FROM before
