-- Format 2: where the orders of this database are instead; see SQLite's 008_relocation.sql.

CREATE TABLE order_service.relocation (
    id       integer PRIMARY KEY CHECK (id = 1),
    state    text    COLLATE "C" NOT NULL CHECK (state IN ('incomplete', 'moved')),
    address  text    COLLATE "C" NOT NULL
);

-- The code has programs connect anew, and so find the row.
CREATE FUNCTION order_service.refuse() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE read_only_sql_transaction USING MESSAGE = 'the orders are in another database'; END $$;

-- Of rows that are copied from another engine.
ALTER TABLE order_service.orders ALTER COLUMN batch SET DEFAULT 0;
ALTER TABLE order_service.histories ALTER COLUMN origin SET DEFAULT '';
