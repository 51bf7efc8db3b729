-- Where the journal leaves out a number. It is counted first: that is quick, and mostly enough.
SELECT NULL, 'the journal leaves out ' || (seq - before - 1) || ' entries before number ' || seq
FROM (SELECT seq, lag(seq, 1, 0) OVER (ORDER BY seq) AS before FROM journal
      WHERE (SELECT count(*) <> coalesce(max(seq), 0) OR coalesce(min(seq), 1) <> 1 FROM journal))
WHERE seq <> before + 1
