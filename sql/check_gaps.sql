-- Where the journal leaves out a number, besides those that were pruned. It is counted first: that
-- is quick, and mostly enough. Once some were pruned, no one can say which of the numbers that are
-- missing are the others, only how many.
WITH counted AS (
    SELECT coalesce(max(entries), 0) AS pruned,
           (SELECT coalesce(max(seq), 0) - count(*) FROM journal) - coalesce(max(entries), 0) AS missing,
           (SELECT coalesce(min(seq), 1) FROM journal) AS first
    FROM pruned
)
SELECT NULL, 'the journal leaves out ' || (seq - before - 1) || CASE WHEN seq - before = 2 THEN ' entry' ELSE ' entries' END
             || ' before number ' || seq
FROM (SELECT seq, lag(seq, 1, 0) OVER (ORDER BY seq) AS before FROM journal
      WHERE (SELECT pruned = 0 AND (missing <> 0 OR first <> 1) FROM counted)) AS numbers
WHERE seq <> before + 1
UNION ALL
SELECT NULL, 'the journal leaves out ' || missing || CASE WHEN missing = 1 THEN ' entry' ELSE ' entries' END
             || ' besides those that were pruned'
FROM counted
WHERE pruned > 0 AND missing <> 0
