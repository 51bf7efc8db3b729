-- Orders, their journal, and the state of the reconciler, as in SQLite's schema, whose comments say what
-- each column means. Times are milliseconds since 1970-01-01T00:00:00Z, ids compare byte by byte.
--
-- This file never changes. A later format is a file beside it, 002_….sql, with the statements that
-- lead to it from the format before.

CREATE SCHEMA order_service;

-- The identity and the format of the database: one row.
CREATE TABLE order_service.meta (
    id           integer PRIMARY KEY CHECK (id = 1),
    application  text    NOT NULL,
    format       integer NOT NULL CHECK (format >= 1),
    -- The same for as long as this database exists, and in each of its standbys.
    instance     bigint  NOT NULL
);

CREATE TABLE order_service.orders (
    -- Order of creation, without gaps. Given out under the numbering lock; never reused as long as
    -- the newest row stays.
    seq               bigint  PRIMARY KEY,
    id                text    COLLATE "C" NOT NULL UNIQUE CHECK (char_length(id) BETWEEN 1 AND 128),
    status            text    COLLATE "C" NOT NULL
                      CHECK (status IN ('CREATED', 'PROCESSING', 'FULFILLED', 'FAILED')),
    created_at        bigint  NOT NULL,
    updated_at        bigint  NOT NULL CHECK (updated_at >= created_at),
    starts            integer NOT NULL DEFAULT 0 CHECK (starts >= 0),
    -- The batch of writes that created it: whoever repeats an unanswered batch finds its own orders.
    batch             bigint  NOT NULL,

    intent_at         bigint,
    given_up_at       bigint,
    start_answer      integer,
    confirmed_at      bigint,
    process_seen      boolean NOT NULL DEFAULT false,
    missed_at         bigint,
    released_at       bigint,
    attempts          integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    next_attempt_at   bigint,
    attention         text    COLLATE "C"
                      CHECK (attention IN ('start_refused', 'upstream_unreachable', 'unknown_status',
                                           'process_lost', 'max_starts')),
    attention_since   bigint,
    attention_detail  text    COLLATE "C",

    CHECK (status IN ('CREATED', 'PROCESSING') OR intent_at IS NULL),
    CHECK (status IN ('CREATED', 'PROCESSING') OR released_at IS NULL),
    CHECK (status = 'PROCESSING' OR (missed_at IS NULL AND NOT process_seen)),
    CHECK (given_up_at IS NULL OR intent_at IS NOT NULL),
    CHECK (start_answer IS NULL OR given_up_at IS NOT NULL),
    CHECK ((status = 'PROCESSING') = (confirmed_at IS NOT NULL)),
    CHECK ((attention IS NULL) = (attention_since IS NULL)),
    CHECK ((attention IS NULL) = (attention_detail IS NULL)),
    CHECK (status IN ('CREATED', 'PROCESSING')
           OR (attempts = 0 AND next_attempt_at IS NULL AND attention IS NULL))
) WITH (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.02,
        autovacuum_analyze_scale_factor = 0.02);

CREATE INDEX orders_by_status ON order_service.orders (status, seq);
CREATE INDEX orders_with_intent ON order_service.orders (seq) WHERE intent_at IS NOT NULL;
CREATE INDEX orders_with_attention ON order_service.orders (seq) WHERE attention IS NOT NULL;

-- The statuses of an entry follow from its reason. No foreign key leads to the order: it would lock
-- that row once more for each entry.
CREATE TABLE order_service.journal (
    seq        bigint PRIMARY KEY,
    order_seq  bigint NOT NULL,
    at         bigint NOT NULL,
    reason     text   COLLATE "C" NOT NULL
               CHECK (reason IN ('created', 'started', 'succeeded', 'failed', 'adopted', 'restarted',
                                 'failed_by_policy', 'failed_by_operator'))
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);

CREATE INDEX journal_by_order ON order_service.journal (order_seq, seq);

CREATE TABLE order_service.heartbeat (
    id               integer PRIMARY KEY CHECK (id = 1),
    -- The number of the present leader, counted from the first.
    epoch            bigint  NOT NULL DEFAULT 0 CHECK (epoch >= 0),
    leader_since     bigint,
    led_until        bigint,
    policy           text    COLLATE "C" CHECK (policy IN ('restart', 'hold', 'fail')),
    last_pass_at     bigint,
    next_pass_at     bigint,
    last_seen_at     bigint,
    next_look_at     bigint,
    upstream         text    COLLATE "C" NOT NULL DEFAULT 'unknown'
                     CHECK (upstream IN ('unknown', 'up', 'down')),
    upstream_since   bigint,
    upstream_detail  text    COLLATE "C",
    learned          text    COLLATE "C",
    tally            text    COLLATE "C",
    CHECK ((upstream = 'unknown') = (upstream_since IS NULL)),
    CHECK ((upstream = 'down') = (upstream_detail IS NOT NULL))
) WITH (fillfactor = 50);

INSERT INTO order_service.heartbeat (id) VALUES (1);

CREATE TABLE order_service.pruned (
    id              integer PRIMARY KEY CHECK (id = 1),
    fulfilled       bigint  NOT NULL DEFAULT 0 CHECK (fulfilled >= 0),
    failed          bigint  NOT NULL DEFAULT 0 CHECK (failed >= 0),
    last_order_seq  bigint  NOT NULL DEFAULT 0,
    entries         bigint  NOT NULL DEFAULT 0 CHECK (entries >= fulfilled + failed),
    last_entry_seq  bigint  NOT NULL DEFAULT 0,
    history         text    COLLATE "C" NOT NULL DEFAULT '{}',
    CHECK ((fulfilled + failed = 0) = (last_order_seq = 0)),
    CHECK ((entries = 0) = (last_entry_seq = 0))
);

INSERT INTO order_service.pruned (id) VALUES (1);

-- Histories of the journal and of the list of orders, oldest first. A new one begins whenever a
-- program finds another cluster, database or timeline than before: a restored backup, or a standby
-- that was promoted and may lack what was acknowledged.
CREATE TABLE order_service.histories (
    number        bigint PRIMARY KEY,
    id            bigint NOT NULL UNIQUE CHECK (id BETWEEN 0 AND 4294967295),
    -- System identifier, object identifier of the database, timeline.
    origin        text   COLLATE "C" NOT NULL,
    newest_order  bigint NOT NULL,
    newest_entry  bigint NOT NULL,
    pruned        bigint NOT NULL
);

-- The newest batch of each process whose repetition could not be told by the rows themselves: what
-- the reconciler records, and what operators decide and remove.
CREATE TABLE order_service.writers (
    id       bigint PRIMARY KEY,
    batch    bigint NOT NULL,
    used_at  timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

-- A row to write, to find out whether writing is possible.
CREATE TABLE order_service.write_probe (
    id  integer PRIMARY KEY CHECK (id = 1),
    at  bigint NOT NULL
) WITH (fillfactor = 50);
