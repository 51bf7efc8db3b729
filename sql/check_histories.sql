-- Histories: at least one, and none that begins beyond what there is. The newest order and the newest
-- entry are never removed, so that all that were the newest once are there or come before.
SELECT NULL, what FROM (SELECT CASE
    WHEN count(*) = 0 THEN 'there is no history, so no cursor of a reader is valid'
    WHEN max(newest_order) > (SELECT coalesce(max(seq), 0) FROM orders)
        THEN 'a history begins after an order that is not there'
    WHEN max(newest_entry) > (SELECT coalesce(max(seq), 0) FROM journal)
        THEN 'a history begins after an entry of the journal that is not there'
    END AS what
FROM histories) AS found
WHERE what IS NOT NULL
