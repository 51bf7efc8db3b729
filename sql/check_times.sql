-- Orders whose times are not those of their journal, and orders with fewer starts than the journal
-- has. A clock that was set back may put an entry's time before that of the entry before it, but
-- never `updated_at`: that is the latest time of a change of the status.
SELECT id, CASE
    WHEN created_at <> born THEN 'its created_at is not the time of its creation in the journal'
    WHEN updated_at <> changed THEN 'its updated_at is not the time of its last change in the journal'
    ELSE 'it has ' || starts || ' starts, and its journal has ' || started
    END
FROM (SELECT order_seq,
             min(at) FILTER (WHERE reason = 'created') AS born,
             max(at) FILTER (WHERE reason <> 'restarted') AS changed,
             count(*) FILTER (WHERE reason IN ('started', 'restarted')) AS started
      FROM journal INDEXED BY journal_by_order
      WHERE order_seq BETWEEN :first AND :last
      GROUP BY order_seq) AS times
CROSS JOIN orders
WHERE orders.seq = order_seq AND orders.seq BETWEEN :first AND :last
  AND (created_at <> born OR updated_at <> changed OR starts < started)
