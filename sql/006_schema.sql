-- Orders, their journal, and the state of the reconciler. Times are milliseconds since
-- 1970-01-01T00:00:00Z. Statuses are the four words, so that the file can be read with any tool.
--
-- This is format 6, the first that is kept up to date: it never changes. A later format is a file
-- beside this one, 007_….sql, with the statements that lead to it from the format before.
--
-- Conditions on words are chains of OR: for an IN of more than two values SQLite fills a table of
-- its own each time a row is checked, which takes half of the time of a creation.

PRAGMA application_id = 0x4f726453; -- "OrdS"

CREATE TABLE orders (
    -- Order of creation. Never reused as long as the newest row stays.
    seq               INTEGER PRIMARY KEY,
    id                TEXT    NOT NULL UNIQUE CHECK (length(id) BETWEEN 1 AND 128),
    status            TEXT    NOT NULL CHECK (status = 'CREATED' OR status = 'PROCESSING'
                                              OR status = 'FULFILLED' OR status = 'FAILED'),
    created_at        INTEGER NOT NULL,
    updated_at        INTEGER NOT NULL CHECK (updated_at >= created_at),
    -- Starts that were sent and may have taken effect, with the one whose outcome is not known.
    starts            INTEGER NOT NULL DEFAULT 0 CHECK (starts >= 0),

    -- From here on: the reconciler's notes about an open order. A settled order has none.
    -- A start is about to be sent, or was, and its outcome is not known.
    intent_at         INTEGER,
    -- When its answer was given up, and the HTTP status if there was one.
    given_up_at       INTEGER,
    start_answer      INTEGER,
    -- When the process was last known to exist by an answer to a start or an adoption.
    confirmed_at      INTEGER,
    -- 1 if a look has seen the process. That is noted where the row is written anyway, and once for
    -- each process while the policy is `fail`.
    process_seen      INTEGER NOT NULL DEFAULT 0 CHECK (process_seen = 0 OR process_seen = 1),
    -- When the look began that missed the process first, if the last one did.
    missed_at         INTEGER,
    -- When an operator asked for it to be started again, whatever the policy.
    released_at       INTEGER,
    -- Failed attempts in a row, and when the next one may be made.
    attempts          INTEGER NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    next_attempt_at   INTEGER,
    attention         TEXT CHECK (attention = 'start_refused' OR attention = 'upstream_unreachable'
                                  OR attention = 'unknown_status' OR attention = 'process_lost'
                                  OR attention = 'max_starts'),
    attention_since   INTEGER,
    attention_detail  TEXT,

    CHECK (status IN ('CREATED', 'PROCESSING') OR intent_at IS NULL),
    CHECK (status IN ('CREATED', 'PROCESSING') OR released_at IS NULL),
    CHECK (status = 'PROCESSING' OR (missed_at IS NULL AND process_seen = 0)),
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
-- The few orders that need attention, which are also counted by reason and by who brings them on.
CREATE INDEX orders_with_attention
    ON orders (seq, attention, attempts, next_attempt_at, released_at) WHERE attention IS NOT NULL;

-- Every change of a status, in the order in which they happened; written in the same transaction
-- as the change. The statuses follow from the reason and are not stored again.
CREATE TABLE journal (
    seq         INTEGER PRIMARY KEY,
    order_seq   INTEGER NOT NULL REFERENCES orders (seq),
    at          INTEGER NOT NULL,
    -- The most frequent first.
    reason      TEXT    NOT NULL CHECK (reason = 'created' OR reason = 'started'
                                        OR reason = 'succeeded' OR reason = 'failed'
                                        OR reason = 'adopted' OR reason = 'restarted'
                                        OR reason = 'failed_by_policy' OR reason = 'failed_by_operator'),
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

-- State of the reconciler and of the upstream, and thereby of all open orders: one row.
CREATE TABLE heartbeat (
    id               INTEGER PRIMARY KEY CHECK (id = 1),
    -- When the present leader took over.
    leader_since     INTEGER,
    -- When the last leader ended in order; NULL while one leads.
    led_until        INTEGER,
    -- What the present or last leader does with an order whose process was forgotten.
    policy           TEXT CHECK (policy IS NULL OR policy = 'restart' OR policy = 'hold' OR policy = 'fail'),
    -- The last completed pass, and when the next one is expected at the latest.
    last_pass_at     INTEGER,
    next_pass_at     INTEGER,
    -- When the open orders that were due for it were last observed, and when others are at the
    -- earliest.
    last_seen_at     INTEGER,
    next_look_at     INTEGER,
    upstream         TEXT NOT NULL DEFAULT 'unknown'
                     CHECK (upstream = 'unknown' OR upstream = 'up' OR upstream = 'down'),
    upstream_since   INTEGER,
    upstream_detail  TEXT,
    -- What was learned of how the upstream may be driven, for the reconciler alone.
    learned          TEXT CHECK (learned IS NULL OR json_valid(learned)),
    -- Counters of the reconciler, which nobody can reach, for the API to serve.
    tally            TEXT CHECK (tally IS NULL OR json_valid(tally)),
    CHECK ((upstream = 'unknown') = (upstream_since IS NULL)),
    CHECK ((upstream = 'down') = (upstream_detail IS NOT NULL))
) STRICT;

INSERT INTO heartbeat (id) VALUES (1);

-- What `prune` has removed: settled orders, each with its entries of the journal. One row remembers
-- what these added up to, so that no count ever falls, and the greatest numbers among them, so that
-- no reader misses any without being told.
CREATE TABLE pruned (
    id              INTEGER PRIMARY KEY CHECK (id = 1),
    -- Removed orders, by their last status, and the greatest seq among them. It is never that of
    -- the newest order, so that no seq is given out twice.
    fulfilled       INTEGER NOT NULL DEFAULT 0 CHECK (fulfilled >= 0),
    failed          INTEGER NOT NULL DEFAULT 0 CHECK (failed >= 0),
    last_order_seq  INTEGER NOT NULL DEFAULT 0,
    -- Removed entries, and the greatest seq among them; never that of the newest entry.
    entries         INTEGER NOT NULL DEFAULT 0 CHECK (entries >= fulfilled + failed),
    last_entry_seq  INTEGER NOT NULL DEFAULT 0,
    -- What the removed entries add up to.
    history         TEXT    NOT NULL DEFAULT '{}' CHECK (json_valid(history)),
    CHECK ((fulfilled + failed = 0) = (last_order_seq = 0)),
    CHECK ((entries = 0) = (last_entry_seq = 0))
) STRICT;

INSERT INTO pruned (id) VALUES (1);

-- Histories of the journal and of the list of orders, oldest first. Positions of one are good up to
-- where the next begins: whenever a program that writes finds the database in another file than
-- before, which may be a copy of an earlier state.
CREATE TABLE histories (
    number        INTEGER PRIMARY KEY,
    id            INTEGER NOT NULL UNIQUE DEFAULT (random() & 0xffffffff),
    -- Device, inode and time of birth of the file; empty in a backup.
    file          TEXT    NOT NULL,
    -- The newest order and the newest entry when it began, and how many entries had been pruned.
    newest_order  INTEGER NOT NULL,
    newest_entry  INTEGER NOT NULL,
    pruned        INTEGER NOT NULL
) STRICT;

-- A row to write, to find out whether writing is possible.
CREATE TABLE write_probe (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    at INTEGER NOT NULL
) STRICT;
