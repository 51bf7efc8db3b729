-- What was learned of the upstream becomes one value that only the reconciler reads and writes, and
-- the next look is told apart from the next pass. What was learned before is learned again.

CREATE TABLE heartbeat_new (
    id               INTEGER PRIMARY KEY CHECK (id = 1),
    -- When the present leader took over.
    leader_since     INTEGER,
    -- The last completed pass, and when the next one is expected at the latest.
    last_pass_at     INTEGER,
    next_pass_at     INTEGER,
    -- When the open orders that were due for it were last observed, and when others are at the
    -- earliest.
    last_seen_at     INTEGER,
    next_look_at     INTEGER,
    upstream         TEXT NOT NULL DEFAULT 'unknown' CHECK (upstream IN ('unknown', 'up', 'down')),
    upstream_since   INTEGER,
    upstream_detail  TEXT,
    -- How it may be driven: rate, lives, durations.
    learned          TEXT CHECK (json_valid(learned)),
    CHECK ((upstream = 'unknown') = (upstream_since IS NULL)),
    CHECK ((upstream = 'down') = (upstream_detail IS NOT NULL))
) STRICT;

INSERT INTO heartbeat_new (id, leader_since, last_pass_at, next_pass_at, last_seen_at,
                           upstream, upstream_since, upstream_detail)
SELECT id, leader_since, last_pass_at, next_pass_at, last_seen_at,
       upstream, upstream_since, upstream_detail
FROM heartbeat;

DROP TABLE heartbeat;
ALTER TABLE heartbeat_new RENAME TO heartbeat;
