-- The one row that the reconciler tells of itself in.
SELECT NULL, 'there are ' || count(*) || ' heartbeats where there must be one'
FROM heartbeat
HAVING count(*) <> 1
