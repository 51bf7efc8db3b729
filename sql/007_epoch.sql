-- Format 7: the number of the present leader, counted from the first. Each leader counts it up when it
-- takes over, and what is recorded under an earlier number is refused.

ALTER TABLE heartbeat ADD COLUMN epoch INTEGER NOT NULL DEFAULT 0 CHECK (epoch >= 0);
