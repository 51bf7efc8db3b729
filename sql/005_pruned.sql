-- What `prune` has removed: settled orders, each with its entries of the journal. One row remembers
-- what these added up to, so that no count ever falls, and how far they reached, so that no one
-- reads on over a gap without knowing.

CREATE TABLE pruned (
    id              INTEGER PRIMARY KEY CHECK (id = 1),
    -- Removed orders, by the status that they had in the end, and the greatest place among them. It
    -- is never that of the newest order, so that no place is given out twice.
    fulfilled       INTEGER NOT NULL DEFAULT 0 CHECK (fulfilled >= 0),
    failed          INTEGER NOT NULL DEFAULT 0 CHECK (failed >= 0),
    last_order_seq  INTEGER NOT NULL DEFAULT 0,
    -- Removed entries, and the greatest number among them; never that of the newest entry.
    entries         INTEGER NOT NULL DEFAULT 0 CHECK (entries >= fulfilled + failed),
    last_entry_seq  INTEGER NOT NULL DEFAULT 0,
    -- What the removed entries add up to.
    history         TEXT    NOT NULL DEFAULT '{}' CHECK (json_valid(history)),
    CHECK ((fulfilled + failed = 0) = (last_order_seq = 0)),
    CHECK ((entries = 0) = (last_entry_seq = 0))
) STRICT;

INSERT INTO pruned (id) VALUES (1);
