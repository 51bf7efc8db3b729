-- Orders whose notes do not belong together. The schema refuses all of these but failed attempts without
-- attention; a file that was written with ignore_check_constraints, or is damaged, may have them all the same.
SELECT id, what FROM (
    SELECT id, CASE
        WHEN (attention IS NULL) <> (attention_since IS NULL)
          OR (attention IS NULL) <> (attention_detail IS NULL)
            THEN 'its attention has no time or no detail, or these have no attention'
        WHEN status IN ('FULFILLED', 'FAILED')
             AND (attention IS NOT NULL OR intent_at IS NOT NULL OR released_at IS NOT NULL
                  OR missed_at IS NOT NULL OR process_seen OR attempts <> 0 OR next_attempt_at IS NOT NULL)
            THEN 'it is settled and has notes of an open order'
        WHEN (status = 'PROCESSING') <> (confirmed_at IS NOT NULL)
            THEN 'its status and the time when its process was confirmed contradict each other'
        WHEN status = 'CREATED' AND (missed_at IS NOT NULL OR process_seen)
            THEN 'it has notes of a process that it never had'
        WHEN given_up_at IS NOT NULL AND intent_at IS NULL
          OR start_answer IS NOT NULL AND given_up_at IS NULL
            THEN 'it has the end of a start without its beginning'
        WHEN attempts > 0 AND attention IS NULL
            THEN 'it has failed attempts and no attention'
        WHEN updated_at < created_at
            THEN 'it was updated before it was created'
        END AS what
    FROM orders
    WHERE seq BETWEEN :first AND :last) AS notes
WHERE what IS NOT NULL
