-- The row with the reconciler's state.
SELECT NULL, 'there are ' || count(*) || ' heartbeats where there must be one'
FROM heartbeat
HAVING count(*) <> 1
