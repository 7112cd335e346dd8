CREATE VIEW pg_task.running AS
    SELECT c.id, c.worker, w.name AS worker_name, t.queue, t.priority, t.step, t.tried,
           c.claimed_at, pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) c.claimed_at AS runs_for, c.token
    FROM pg_task.claims() AS c
    LEFT JOIN pg_task.worker_states() AS w ON w.id OPERATOR(pg_catalog.=) c.worker
    LEFT JOIN pg_task.task AS t ON t.id OPERATOR(pg_catalog.=) c.id;
COMMENT ON VIEW pg_task.running IS 'Every step that a worker runs at this moment';

CREATE VIEW pg_task.failed AS
    SELECT t.id, t.queue, t.priority, t.step, t.tried, t.error, t.updated_at AS failed_at, t.created_at
    FROM pg_task.task AS t
    WHERE t.error IS NOT NULL;
COMMENT ON VIEW pg_task.failed IS 'Parked tasks, with the reason. pg_task.resume(id) runs one again';

CREATE VIEW pg_task.workers AS
    SELECT w.id, w.name, r.rolname AS role, w.pid, w.state, w.queues, w.steps, w.claimed, w.registered_at,
           w.heartbeat_at, w.lease
    FROM pg_task.worker_states() AS w
    LEFT JOIN pg_catalog.pg_roles AS r ON r.oid OPERATOR(pg_catalog.=) w.role;
COMMENT ON VIEW pg_task.workers IS
    'The workers. State: working (has as much as it wants), idle (woken when there is work), stopping, gone (its connection ended; the grace runs)';

CREATE VIEW pg_task.scheduler AS SELECT s.* FROM pg_task.scheduler_state() AS s;
COMMENT ON VIEW pg_task.scheduler IS
    'The scheduler of this database: state, last error, what it holds in memory and counters since its start';

-- A loose index scan finds the queues: one index descent each, however many tasks there are. Every number counts up to
-- 10,000 and then stops, so that the view stays cheap under a deep backlog.
CREATE VIEW pg_task.queues AS
    WITH RECURSIVE queue_names AS (
        (SELECT t.queue FROM pg_task.task AS t WHERE t.error IS NULL ORDER BY t.queue LIMIT 1)
        UNION ALL
        SELECT (SELECT t.queue FROM pg_task.task AS t
                WHERE t.error IS NULL AND t.queue OPERATOR(pg_catalog.>) n.queue ORDER BY t.queue LIMIT 1)
        FROM queue_names AS n WHERE n.queue IS NOT NULL
    ), failed_names AS (
        (SELECT t.queue FROM pg_task.task AS t WHERE t.error IS NOT NULL ORDER BY t.queue LIMIT 1)
        UNION ALL
        SELECT (SELECT t.queue FROM pg_task.task AS t
                WHERE t.error IS NOT NULL AND t.queue OPERATOR(pg_catalog.>) n.queue ORDER BY t.queue LIMIT 1)
        FROM failed_names AS n WHERE n.queue IS NOT NULL
    ), names AS (
        SELECT queue FROM queue_names WHERE queue IS NOT NULL
        UNION
        SELECT queue FROM failed_names WHERE queue IS NOT NULL
    ), priorities AS (
        -- Within a queue the same walk over its priorities, so that "due" needs no sort.
        SELECT n.queue, p.priority
        FROM names AS n
        CROSS JOIN LATERAL (
            WITH RECURSIVE steps AS (
                (SELECT t.priority FROM pg_task.task AS t
                 WHERE t.error IS NULL AND t.queue OPERATOR(pg_catalog.=) n.queue ORDER BY t.priority LIMIT 1)
                UNION ALL
                SELECT (SELECT t.priority FROM pg_task.task AS t
                        WHERE t.error IS NULL AND t.queue OPERATOR(pg_catalog.=) n.queue
                          AND t.priority OPERATOR(pg_catalog.>) s.priority ORDER BY t.priority LIMIT 1)
                FROM steps AS s WHERE s.priority IS NOT NULL
            )
            SELECT s.priority FROM steps AS s WHERE s.priority IS NOT NULL
        ) AS p
    ), live AS (
        SELECT p.queue,
               pg_catalog.min(d.oldest) AS oldest,
               pg_catalog.sum(c.due)::bigint AS due,
               pg_catalog.sum(a.asleep)::bigint AS asleep
        FROM priorities AS p
        CROSS JOIN LATERAL (
            SELECT pg_catalog.min(x.wakeup_at) AS oldest FROM (
                SELECT t.wakeup_at FROM pg_task.task AS t
                WHERE t.error IS NULL AND t.queue OPERATOR(pg_catalog.=) p.queue
                  AND t.priority OPERATOR(pg_catalog.=) p.priority
                ORDER BY t.wakeup_at LIMIT 1) AS x
        ) AS d
        CROSS JOIN LATERAL (
            SELECT pg_catalog.count(*) AS due FROM (
                SELECT 1 FROM pg_task.task AS t
                WHERE t.error IS NULL AND t.queue OPERATOR(pg_catalog.=) p.queue
                  AND t.priority OPERATOR(pg_catalog.=) p.priority
                  AND t.wakeup_at OPERATOR(pg_catalog.<=) pg_catalog.now() LIMIT 10000) AS x
        ) AS c
        CROSS JOIN LATERAL (
            SELECT pg_catalog.count(*) AS asleep FROM (
                SELECT 1 FROM pg_task.task AS t
                WHERE t.error IS NULL AND t.queue OPERATOR(pg_catalog.=) p.queue
                  AND t.priority OPERATOR(pg_catalog.=) p.priority
                  AND t.wakeup_at OPERATOR(pg_catalog.>) pg_catalog.now() LIMIT 10000) AS x
        ) AS a
        GROUP BY p.queue
    )
    SELECT n.queue,
           COALESCE(l.due, 0) AS due,
           COALESCE(l.asleep, 0) AS asleep,
           (SELECT pg_catalog.count(*) FROM (
                SELECT 1 FROM pg_task.task AS t
                WHERE t.error IS NOT NULL AND t.queue OPERATOR(pg_catalog.=) n.queue LIMIT 10000) AS x) AS failed,
           l.oldest AS oldest_due
    FROM names AS n LEFT JOIN live AS l ON l.queue OPERATOR(pg_catalog.=) n.queue;
COMMENT ON VIEW pg_task.queues IS
    'Depth of each queue that has tasks: due (claimed ones included), asleep, failed, each counted up to 10,000 per priority; oldest_due is the earliest wakeup_at';
