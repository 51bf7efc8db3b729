-- What is remembered of removed orders: one row, of which the parts do not contradict each other or
-- what is left. The newest order and the newest entry are never removed.
SELECT NULL, what FROM (SELECT CASE
    WHEN count(*) <> 1
        THEN 'there are ' || count(*) || ' records of what was pruned where there must be one'
    WHEN coalesce(max(CAST(history -> 'entries' ->> 'created' AS bigint)), 0) <> max(fulfilled + failed)
        THEN 'the number of pruned orders contradicts that of their entries in the journal'
    WHEN max(last_order_seq) > 0
         AND max(last_order_seq) >= (SELECT coalesce(max(seq), 0) FROM orders)
        THEN 'the newest order was removed: its place in the order of creation may be given out again'
    WHEN max(last_entry_seq) > 0
         AND max(last_entry_seq) >= (SELECT coalesce(max(seq), 0) FROM journal)
        THEN 'the newest entry of the journal was removed: its number may be given out again'
    END AS what
FROM pruned) AS found
WHERE what IS NOT NULL
