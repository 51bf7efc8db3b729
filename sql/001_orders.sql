-- Orders, their journal, and what the reconciler tells of itself. Times are milliseconds since
-- 1970-01-01T00:00:00Z. Statuses are the four words, so that the file can be read with any tool.

PRAGMA application_id = 0x4f726453; -- "OrdS"

CREATE TABLE orders (
    -- The order of creation. Never reused as long as the newest row stays.
    seq               INTEGER PRIMARY KEY,
    id                TEXT    NOT NULL UNIQUE CHECK (length(id) BETWEEN 1 AND 128),
    status            TEXT    NOT NULL CHECK (status IN ('CREATED', 'PROCESSING', 'FULFILLED', 'FAILED')),
    created_at        INTEGER NOT NULL,
    updated_at        INTEGER NOT NULL CHECK (updated_at >= created_at),
    -- Starts that were sent and may have taken effect.
    starts            INTEGER NOT NULL DEFAULT 0 CHECK (starts >= 0),

    -- From here on: the reconciler's notes about an open order. A settled order has none.
    -- A start is about to be sent, or was, and its outcome is not known.
    intent_at         INTEGER,
    -- When its answer was given up, and the HTTP status if there was one.
    given_up_at       INTEGER,
    start_answer      INTEGER,
    -- When the process was last known to exist by an answer to a start or an adoption.
    confirmed_at      INTEGER,
    -- When the look began that missed the process first, if the last one did.
    missed_at         INTEGER,
    -- When an operator asked for it to be started again, whatever the policy.
    released_at       INTEGER,
    -- Failed attempts in a row, and when the next one may be made.
    attempts          INTEGER NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    next_attempt_at   INTEGER,
    attention         TEXT CHECK (attention IN ('start_refused', 'upstream_unreachable', 'unknown_status', 'process_lost', 'max_starts')),
    attention_since   INTEGER,
    attention_detail  TEXT,

    CHECK (status IN ('CREATED', 'PROCESSING') OR intent_at IS NULL),
    CHECK (status IN ('CREATED', 'PROCESSING') OR released_at IS NULL),
    CHECK (status = 'PROCESSING' OR missed_at IS NULL),
    CHECK (given_up_at IS NULL OR intent_at IS NOT NULL),
    CHECK (start_answer IS NULL OR given_up_at IS NOT NULL),
    CHECK ((status = 'PROCESSING') = (confirmed_at IS NOT NULL)),
    CHECK ((attention IS NULL) = (attention_since IS NULL)),
    CHECK ((attention IS NULL) = (attention_detail IS NULL)),
    CHECK (status IN ('CREATED', 'PROCESSING')
           OR (attempts = 0 AND next_attempt_at IS NULL AND attention IS NULL))
) STRICT;

-- Pages by status, and the open orders without a look at the settled ones.
CREATE INDEX orders_by_status ON orders (status, seq);
-- The few starts whose outcome is not known.
CREATE INDEX orders_with_intent ON orders (seq) WHERE intent_at IS NOT NULL;
-- The few orders that need looking at.
CREATE INDEX orders_with_attention ON orders (seq) WHERE attention IS NOT NULL;

-- Every change of a status, in the order in which they happened; written in the same transaction
-- as the change. The statuses follow from the reason and are not stored again.
CREATE TABLE journal (
    seq         INTEGER PRIMARY KEY,
    order_seq   INTEGER NOT NULL REFERENCES orders (seq),
    at          INTEGER NOT NULL,
    reason      TEXT    NOT NULL CHECK (reason IN ('created', 'started', 'adopted', 'succeeded', 'failed',
                                                   'restarted', 'failed_by_policy', 'failed_by_operator')),
    from_status TEXT GENERATED ALWAYS AS (CASE reason
                    WHEN 'created' THEN NULL
                    WHEN 'started' THEN 'CREATED'
                    WHEN 'adopted' THEN 'CREATED'
                    ELSE 'PROCESSING' END) VIRTUAL,
    to_status   TEXT GENERATED ALWAYS AS (CASE reason
                    WHEN 'created' THEN 'CREATED'
                    WHEN 'started' THEN 'PROCESSING'
                    WHEN 'adopted' THEN 'PROCESSING'
                    WHEN 'restarted' THEN 'PROCESSING'
                    WHEN 'succeeded' THEN 'FULFILLED'
                    ELSE 'FAILED' END) VIRTUAL
) STRICT;

CREATE INDEX journal_by_order ON journal (order_seq, seq);

-- What is true of the reconciler and of the upstream, and thereby of all open orders: one row.
CREATE TABLE heartbeat (
    id               INTEGER PRIMARY KEY CHECK (id = 1),
    -- When the present leader took over.
    leader_since     INTEGER,
    -- The last completed pass, and when the next one is expected at the latest.
    last_pass_at     INTEGER,
    next_pass_at     INTEGER,
    -- When all open orders were last observed.
    last_seen_at     INTEGER,
    upstream         TEXT NOT NULL DEFAULT 'unknown' CHECK (upstream IN ('unknown', 'up', 'down')),
    upstream_since   INTEGER,
    upstream_detail  TEXT,
    -- The length of the upstream's list when it was last read.
    list_entries     INTEGER,
    -- When the upstream was last found to have been restarted.
    life_began_at    INTEGER,
    -- What was learned of how fast the upstream may be driven, in starts per second, and when.
    rate             REAL CHECK (rate > 0),
    rate_threshold   REAL CHECK (rate_threshold > 0),
    rate_changed_at  INTEGER,
    CHECK ((rate IS NULL) = (rate_threshold IS NULL) AND (rate IS NULL) = (rate_changed_at IS NULL)),
    CHECK ((upstream = 'unknown') = (upstream_since IS NULL)),
    CHECK ((upstream = 'down') = (upstream_detail IS NOT NULL))
) STRICT;

INSERT INTO heartbeat (id) VALUES (1);

-- A place to write to for finding out whether writing is possible.
CREATE TABLE write_probe (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    at INTEGER NOT NULL
) STRICT;
