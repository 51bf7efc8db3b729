-- Storage parameters, applied by each program that starts. Only rows written from then on follow them, and
-- no program depends on them, so they are no format.

DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_class WHERE oid = 'order_service.orders'::regclass
               AND 'fillfactor=85' = ANY (reloptions)) THEN
        SET LOCAL lock_timeout = '2s';
        -- Each start and each outcome changes an indexed column, so room in its page spares an order nothing.
        ALTER TABLE order_service.orders SET (fillfactor = 100);
        -- Rows are appended in the order of their numbers. Pages of the indexes then have room for the
        -- further versions of their orders before a vacuum, and for two more entries of each order.
        ALTER INDEX order_service.orders_pkey SET (fillfactor = 45);
        ALTER INDEX order_service.journal_by_order SET (fillfactor = 32);
        ALTER INDEX order_service.journal_pkey SET (fillfactor = 100);
    END IF;
-- A vacuum that must not be interrupted, or a role that owns nothing: perhaps the next start.
EXCEPTION WHEN lock_not_available OR insufficient_privilege THEN NULL;
END $$;
