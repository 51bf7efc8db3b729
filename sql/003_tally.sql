-- What the reconciler counts, told by the API because nobody can reach the reconciler. And orders
-- that need looking at are counted by reason without a look at each.

-- Written together with the rest of the heartbeat, so that it costs no disk flush of its own.
ALTER TABLE heartbeat ADD COLUMN tally TEXT CHECK (json_valid(tally));

DROP INDEX orders_with_attention;
CREATE INDEX orders_with_attention ON orders (seq, attention) WHERE attention IS NOT NULL;
