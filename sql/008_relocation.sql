-- Format 8: where the orders of this database are instead. One row while it is an incomplete copy, or
-- once its orders have moved away; triggers then refuse every write, also those of programs that have
-- had the file open since before.

CREATE TABLE relocation (
    id       INTEGER PRIMARY KEY CHECK (id = 1),
    state    TEXT    NOT NULL CHECK (state = 'incomplete' OR state = 'moved'),
    -- The database that it is copied from, or that the orders have moved to.
    address  TEXT    NOT NULL
) STRICT;
