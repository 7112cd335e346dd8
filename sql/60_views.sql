CREATE VIEW pg_task.running AS
    SELECT c.id, c.worker, w.name AS worker_name, t.queue, t.priority, t.step, t.tried,
           c.claimed_at, pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) c.claimed_at AS runs_for, c.token, t.options,
           c.progress, c.progress_text, c.progress_at
    FROM pg_task.claims() AS c
    LEFT JOIN pg_task.worker_states() AS w ON w.id OPERATOR(pg_catalog.=) c.worker
    LEFT JOIN pg_task.task AS t ON t.id OPERATOR(pg_catalog.=) c.id;
COMMENT ON VIEW pg_task.running IS 'Every step that a worker runs at this moment';
COMMENT ON COLUMN pg_task.running.id IS 'The task';
COMMENT ON COLUMN pg_task.running.worker IS 'The worker that runs it: see pg_task.workers';
COMMENT ON COLUMN pg_task.running.worker_name IS 'Its name';
COMMENT ON COLUMN pg_task.running.queue IS 'The queue of the task';
COMMENT ON COLUMN pg_task.running.priority IS 'Its priority';
COMMENT ON COLUMN pg_task.running.step IS 'The step that runs; NULL when the row is gone: its result will be refused';
COMMENT ON COLUMN pg_task.running.tried IS 'Attempts before this one';
COMMENT ON COLUMN pg_task.running.claimed_at IS 'When the worker took it';
COMMENT ON COLUMN pg_task.running.runs_for IS 'How long ago that was';
COMMENT ON COLUMN pg_task.running.token IS 'The token of the attempt: larger for every later attempt';
COMMENT ON COLUMN pg_task.running.options IS 'The task''s own options: tags, meta, traceparent';
COMMENT ON COLUMN pg_task.running.progress IS 'How much of the step is done, 0 to 1, as the step says; NULL when it does not. docs/progress.md';
COMMENT ON COLUMN pg_task.running.progress_text IS 'What the step says of it, for people';
COMMENT ON COLUMN pg_task.running.progress_at IS 'When it said so';

CREATE VIEW pg_task.failed AS
    SELECT t.id, t.queue, t.priority, t.step, t.tried, t.error, t.updated_at AS failed_at, t.created_at, t.options
    FROM pg_task.task AS t
    WHERE t.error IS NOT NULL;
COMMENT ON VIEW pg_task.failed IS 'Parked tasks, with the reason. pg_task.resume(id) runs one again';
COMMENT ON COLUMN pg_task.failed.id IS 'The task, for pg_task.resume or pg_task.cancel';
COMMENT ON COLUMN pg_task.failed.queue IS 'Its queue';
COMMENT ON COLUMN pg_task.failed.priority IS 'Its priority';
COMMENT ON COLUMN pg_task.failed.step IS 'The step that failed';
COMMENT ON COLUMN pg_task.failed.tried IS 'How many attempts failed; 0 when the step could not be read';
COMMENT ON COLUMN pg_task.failed.error IS 'Why, with every cause that the worker knew';
COMMENT ON COLUMN pg_task.failed.failed_at IS 'When it was parked, or changed since';
COMMENT ON COLUMN pg_task.failed.created_at IS 'When it was enqueued';
COMMENT ON COLUMN pg_task.failed.options IS 'The task''s own options: tags, meta, traceparent';

CREATE VIEW pg_task.task_errors AS
    SELECT t.id, t.queue, (e.entry OPERATOR(pg_catalog.->>) 'at')::pg_catalog.timestamptz AS at,
           (e.entry OPERATOR(pg_catalog.->>) 'attempt')::integer AS attempt,
           e.entry OPERATOR(pg_catalog.->>) 'step' AS step,
           e.entry OPERATOR(pg_catalog.->>) 'error' AS error,
           (e.entry OPERATOR(pg_catalog.->>) 'worker')::pg_catalog.uuid AS worker,
           t.error IS NOT NULL AS parked
    FROM pg_task.task AS t
    CROSS JOIN LATERAL pg_catalog.jsonb_array_elements(t.errors) AS e (entry)
    WHERE t.errors IS NOT NULL;
COMMENT ON VIEW pg_task.task_errors IS 'The last failures of each task that is still there: as many as pg_task.error_history says';
COMMENT ON COLUMN pg_task.task_errors.id IS 'The task';
COMMENT ON COLUMN pg_task.task_errors.queue IS 'Its queue';
COMMENT ON COLUMN pg_task.task_errors.at IS 'When the attempt had failed';
COMMENT ON COLUMN pg_task.task_errors.attempt IS 'Which attempt of the step it was, from 1';
COMMENT ON COLUMN pg_task.task_errors.step IS 'The step, as Task/Step';
COMMENT ON COLUMN pg_task.task_errors.error IS 'Its error, the first 1,000 characters; NULL when the worker told none';
COMMENT ON COLUMN pg_task.task_errors.worker IS 'The worker that ran it, or was to run it';
COMMENT ON COLUMN pg_task.task_errors.parked IS 'Whether the task is parked now';

CREATE VIEW pg_task.step_limits AS
    SELECT s.step, s.concurrency, pg_task.step_running(s.step) AS running,
           COALESCE((SELECT pg_catalog.sum(l.ready) FROM pg_task.lanes() AS l
                     WHERE l.step OPERATOR(pg_catalog.=) s.step), 0)::bigint AS waiting
    FROM pg_task.step_limit AS s;
COMMENT ON VIEW pg_task.step_limits IS 'Steps of which only so many run at once';
COMMENT ON COLUMN pg_task.step_limits.step IS 'The step, as Task/Step';
COMMENT ON COLUMN pg_task.step_limits.concurrency IS 'The most that run at once';
COMMENT ON COLUMN pg_task.step_limits.running IS 'Tasks that are at the step at this moment, what counts against the limit';
COMMENT ON COLUMN pg_task.step_limits.waiting IS 'Tasks that were found to be at the step and wait for a place';

CREATE VIEW pg_task.schedules AS
    SELECT s.name, s.cron, s.time_zone,
           CASE WHEN s.paused_at IS NOT NULL THEN 'paused'
                WHEN s.failures OPERATOR(pg_catalog.>) 0 THEN 'failing'
                WHEN s.next_at IS NULL THEN 'over'
                ELSE 'active' END AS state,
           s.next_at, s.last_at, s.last_run_at,
           (SELECT pg_catalog.count(*) FROM pg_task.task AS t
            WHERE t.id OPERATOR(pg_catalog.=) ANY (s.tasks) AND t.error IS NULL) AS unfinished,
           pg_catalog.cardinality(s.waiting) AS waiting,
           s.fired, s.skipped, s.error,
           -- Each object has one key; the limits say so to the planner.
           (SELECT pg_catalog.concat(a.key, '/', (
                SELECT b.key FROM pg_catalog.jsonb_object_keys(s.step OPERATOR(pg_catalog.->) a.key) AS b (key) LIMIT 1))
            FROM pg_catalog.jsonb_object_keys(s.step) AS a (key) LIMIT 1) AS step,
           s.queue, s.declared_by
    FROM pg_task.schedule AS s;
COMMENT ON VIEW pg_task.schedules IS 'Schedules: when each ticks next, and what became of its last ticks';
COMMENT ON COLUMN pg_task.schedules.name IS 'Its name';
COMMENT ON COLUMN pg_task.schedules.cron IS 'When it ticks';
COMMENT ON COLUMN pg_task.schedules.time_zone IS 'Whose clocks the cron fields are about';
COMMENT ON COLUMN pg_task.schedules.state IS 'active; paused; failing (its tick could not be enqueued and is tried again); over (no tick is left)';
COMMENT ON COLUMN pg_task.schedules.next_at IS 'The next tick';
COMMENT ON COLUMN pg_task.schedules.last_at IS 'The last tick that is dealt with, with a task or without';
COMMENT ON COLUMN pg_task.schedules.last_run_at IS 'When its last task was enqueued';
COMMENT ON COLUMN pg_task.schedules.unfinished IS 'How many of its last tasks are still there and not parked; with overlap allow those that were enqueued together last';
COMMENT ON COLUMN pg_task.schedules.waiting IS 'Ticks that wait for the end of a run';
COMMENT ON COLUMN pg_task.schedules.fired IS 'Tasks that it has enqueued';
COMMENT ON COLUMN pg_task.schedules.skipped IS 'Ticks that got no task, by its policies';
COMMENT ON COLUMN pg_task.schedules.error IS 'Why it is failing';
COMMENT ON COLUMN pg_task.schedules.step IS 'The step that it enqueues, as Task/Step';
COMMENT ON COLUMN pg_task.schedules.queue IS 'The queue of its tasks';
COMMENT ON COLUMN pg_task.schedules.declared_by IS 'The program that declares it; NULL when it was made by SQL';

CREATE VIEW pg_task.workers AS
    SELECT w.id, w.name, r.rolname AS role, w.pid, w.state, w.queues, w.steps, w.claimed, w.registered_at,
           w.heartbeat_at, w.lease
    FROM pg_task.worker_states() AS w
    LEFT JOIN pg_catalog.pg_roles AS r ON r.oid OPERATOR(pg_catalog.=) w.role;
COMMENT ON VIEW pg_task.workers IS
    'The workers. State: working (has as much as it wants), idle (woken when there is work), stopping, gone (its connection ended; the grace runs)';
COMMENT ON COLUMN pg_task.workers.id IS 'The id that the worker chose for this run';
COMMENT ON COLUMN pg_task.workers.name IS 'Its name, for people';
COMMENT ON COLUMN pg_task.workers.role IS 'The role that registered it';
COMMENT ON COLUMN pg_task.workers.pid IS 'The server process of the connection that registered it; NULL when the worker is not bound to one';
COMMENT ON COLUMN pg_task.workers.state IS 'working, idle, stopping, gone or lost';
COMMENT ON COLUMN pg_task.workers.queues IS 'Queues that it takes tasks from; NULL for all';
COMMENT ON COLUMN pg_task.workers.steps IS 'How many steps it knows; NULL for all';
COMMENT ON COLUMN pg_task.workers.claimed IS 'Tasks that it holds';
COMMENT ON COLUMN pg_task.workers.registered_at IS 'When it registered last';
COMMENT ON COLUMN pg_task.workers.heartbeat_at IS 'When it was last heard of';
COMMENT ON COLUMN pg_task.workers.lease IS 'How long it may be silent before its tasks are given to others';

CREATE VIEW pg_task.scheduler AS SELECT s.* FROM pg_task.scheduler_state() AS s;
COMMENT ON VIEW pg_task.scheduler IS
    'The scheduler of this database: state, last error, what it holds in memory and counters since its start';
COMMENT ON COLUMN pg_task.scheduler.state IS 'running; settling (after a start, workers say what they hold); starting; backing off (it failed and will be started again); wanted; absent';
COMMENT ON COLUMN pg_task.scheduler.pid IS 'Its process';
COMMENT ON COLUMN pg_task.scheduler.started_at IS 'When it started';
COMMENT ON COLUMN pg_task.scheduler.ready IS 'Tasks that are due and in memory';
COMMENT ON COLUMN pg_task.scheduler.claimed IS 'Tasks that workers hold';
COMMENT ON COLUMN pg_task.scheduler.workers IS 'Workers that are registered';
COMMENT ON COLUMN pg_task.scheduler.next_wake IS 'Until when it sleeps unless something happens';
COMMENT ON COLUMN pg_task.scheduler.last_error IS 'Its last failure';
COMMENT ON COLUMN pg_task.scheduler.last_error_at IS 'When that was';
COMMENT ON COLUMN pg_task.scheduler.failures IS 'Ticks that failed, since its start as all that follow';
COMMENT ON COLUMN pg_task.scheduler.ticks IS 'Times that it woke';
COMMENT ON COLUMN pg_task.scheduler.wakeups_sent IS 'Notifications to idle workers';
COMMENT ON COLUMN pg_task.scheduler.handed_out IS 'Tasks handed out';
COMMENT ON COLUMN pg_task.scheduler.finished IS 'Results taken';
COMMENT ON COLUMN pg_task.scheduler.refused IS 'Results that came too late';
COMMENT ON COLUMN pg_task.scheduler.lost IS 'Claims of workers that were lost';
COMMENT ON COLUMN pg_task.scheduler.rescans IS 'Times that the table was read again because hints were lost';

-- A loose index scan finds the queues: one index descent each, however many tasks there are. Every number counts up to
-- 10,000 and then stops, so that the view stays cheap under a deep backlog. The planner cannot know how few steps such a walk
-- takes: it would have expressions compiled, which takes a hundred times longer than the walk, or read more of the table than is counted.
CREATE FUNCTION pg_task.queue_depths()
    RETURNS TABLE (queue text, due bigint, asleep bigint, failed bigint, oldest_due timestamptz)
    LANGUAGE sql STABLE PARALLEL SAFE SECURITY DEFINER COST 1000 ROWS 20
    SET search_path = pg_catalog, pg_temp SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
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
        UNION
        SELECT s.name FROM pg_task.queue AS s
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
           COALESCE(l.due, 0),
           COALESCE(l.asleep, 0),
           (SELECT pg_catalog.count(*) FROM (
                SELECT 1 FROM pg_task.task AS t
                WHERE t.error IS NOT NULL AND t.queue OPERATOR(pg_catalog.=) n.queue LIMIT 10000) AS x),
           l.oldest
    FROM names AS n
    LEFT JOIN live AS l ON l.queue OPERATOR(pg_catalog.=) n.queue
$$;
COMMENT ON FUNCTION pg_task.queue_depths() IS
    'How many tasks each queue has that are due, asleep or parked, each counted up to 10,000 per priority: part of pg_task.queues';

CREATE VIEW pg_task.queues AS
    SELECT d.queue,
           d.due,
           d.asleep,
           d.failed,
           d.oldest_due,
           COALESCE(m.running, 0) AS running,
           s.concurrency,
           s.rate,
           s.rate_interval,
           s.burst,
           s.paused_at,
           m.opens_at,
           s.key_concurrency,
           s.retry,
           s.timeout,
           s.retention,
           s.key_rate,
           s.key_rate_interval,
           s.key_burst
    FROM pg_task.queue_depths() AS d
    LEFT JOIN pg_task.queue AS s ON s.name OPERATOR(pg_catalog.=) d.queue
    LEFT JOIN pg_task.queue_states() AS m ON m.queue OPERATOR(pg_catalog.=) d.queue;
COMMENT ON VIEW pg_task.queues IS
    'Each queue that has tasks or settings. Its depth: due (claimed ones included), asleep, failed, each counted up to 10,000 per priority; oldest_due is the earliest wakeup_at. What runs, its limits, and whether it is paused. The row * is what is set for all queues together';
COMMENT ON COLUMN pg_task.queues.queue IS 'The queue';
COMMENT ON COLUMN pg_task.queues.due IS 'Tasks that are due, the running ones included';
COMMENT ON COLUMN pg_task.queues.asleep IS 'Tasks that are due later';
COMMENT ON COLUMN pg_task.queues.failed IS 'Parked tasks';
COMMENT ON COLUMN pg_task.queues.oldest_due IS 'The earliest wakeup_at of those that are not parked';
COMMENT ON COLUMN pg_task.queues.running IS 'Tasks that workers hold at this moment, what counts against concurrency';
COMMENT ON COLUMN pg_task.queues.concurrency IS 'The most that run at once; NULL for any number';
COMMENT ON COLUMN pg_task.queues.rate IS 'The most that are handed out in rate_interval; NULL for any number';
COMMENT ON COLUMN pg_task.queues.rate_interval IS 'The time that the rate is meant for';
COMMENT ON COLUMN pg_task.queues.burst IS 'The most hand-outs of the rate that gather; NULL for as many as the rate';
COMMENT ON COLUMN pg_task.queues.paused_at IS 'Since when the queue is paused; NULL when it is not';
COMMENT ON COLUMN pg_task.queues.key_concurrency IS 'The most of each key that run at once; NULL for any number';
COMMENT ON COLUMN pg_task.queues.retry IS 'The policy of retries of its tasks that have none of their own';
COMMENT ON COLUMN pg_task.queues.timeout IS 'How long an attempt of its tasks may take, unless they say so themselves';
COMMENT ON COLUMN pg_task.queues.retention IS 'How long the history keeps what became of its tasks; 0: none of it; NULL: as pg_task.history_retention says';
COMMENT ON COLUMN pg_task.queues.key_rate IS 'The most of each key that are handed out in key_rate_interval; NULL for any number';
COMMENT ON COLUMN pg_task.queues.key_rate_interval IS 'The time that key_rate is meant for';
COMMENT ON COLUMN pg_task.queues.key_burst IS 'The most hand-outs of key_rate that gather for each key; NULL for as many as key_rate';
COMMENT ON COLUMN pg_task.queues.opens_at IS 'When its rate, or the time after a start, lets the next due task go; NULL when neither holds it back';

-- A loose index scan finds the groups: one index descent each. What waits is counted up to 10,000.
CREATE FUNCTION pg_task.group_depths()
    RETURNS TABLE (
        group_key text, head uuid, head_state text, head_wakeup_at timestamptz, head_queue text, head_error text, waiting bigint
    )
    LANGUAGE sql STABLE PARALLEL RESTRICTED COST 1000 ROWS 100
    SET search_path = pg_catalog, pg_temp SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
    WITH RECURSIVE heads AS (
        (SELECT pg_catalog.hashtextextended((t.options OPERATOR(pg_catalog.->>) 'group') COLLATE "C", 0) AS hash, t.id
         FROM pg_task.task AS t WHERE t.options OPERATOR(pg_catalog.?) 'group'
         ORDER BY pg_catalog.hashtextextended((t.options OPERATOR(pg_catalog.->>) 'group') COLLATE "C", 0), t.id LIMIT 1)
        UNION ALL
        SELECT next.hash, next.id
        FROM heads AS h
        CROSS JOIN LATERAL (
            SELECT pg_catalog.hashtextextended((t.options OPERATOR(pg_catalog.->>) 'group') COLLATE "C", 0) AS hash, t.id
            FROM pg_task.task AS t
            WHERE t.options OPERATOR(pg_catalog.?) 'group'
              AND pg_catalog.hashtextextended((t.options OPERATOR(pg_catalog.->>) 'group') COLLATE "C", 0) OPERATOR(pg_catalog.>) h.hash
            ORDER BY pg_catalog.hashtextextended((t.options OPERATOR(pg_catalog.->>) 'group') COLLATE "C", 0), t.id LIMIT 1) AS next
    ), claims AS MATERIALIZED (SELECT c.id FROM pg_task.claims() AS c)
    SELECT t.options OPERATOR(pg_catalog.->>) 'group' AS group_key,
           t.id AS head,
           CASE WHEN t.error IS NOT NULL THEN 'parked'
                WHEN EXISTS (SELECT FROM claims AS c WHERE c.id OPERATOR(pg_catalog.=) t.id) THEN 'running'
                WHEN t.wakeup_at OPERATOR(pg_catalog.>) pg_catalog.clock_timestamp() THEN 'asleep'
                ELSE 'due' END AS head_state,
           t.wakeup_at AS head_wakeup_at,
           t.queue AS head_queue,
           t.error AS head_error,
           (SELECT pg_catalog.count(*) FROM (
                SELECT FROM pg_task.task AS w
                WHERE w.options OPERATOR(pg_catalog.?) 'group'
                  AND pg_catalog.hashtextextended((w.options OPERATOR(pg_catalog.->>) 'group') COLLATE "C", 0) OPERATOR(pg_catalog.=) h.hash
                  AND w.id OPERATOR(pg_catalog.>) h.id LIMIT 10000) AS x) AS waiting
    FROM heads AS h
    JOIN pg_task.task AS t ON t.id OPERATOR(pg_catalog.=) h.id
$$;
COMMENT ON FUNCTION pg_task.group_depths() IS 'The groups that have tasks, the first of each and how many wait for it: part of pg_task.groups';

CREATE VIEW pg_task.groups AS
    SELECT d.group_key, d.head, d.head_state, d.head_wakeup_at, d.head_queue, d.head_error, d.waiting
    FROM pg_task.group_depths() AS d;
COMMENT ON VIEW pg_task.groups IS
    'Each group that has tasks: the oldest of them, for which all others wait, how it is, and how many wait (counted up to 10,000). docs/groups.md';
COMMENT ON COLUMN pg_task.groups.group_key IS 'The name of the group: the option "group" of its tasks';
COMMENT ON COLUMN pg_task.groups.head IS 'Its oldest task, whose turn it is';
COMMENT ON COLUMN pg_task.groups.head_state IS 'running, due, asleep (its time or its next try is later) or parked: then the group waits until it is resumed or cancelled';
COMMENT ON COLUMN pg_task.groups.head_wakeup_at IS 'When that task is due';
COMMENT ON COLUMN pg_task.groups.head_queue IS 'The queue of that task';
COMMENT ON COLUMN pg_task.groups.head_error IS 'Why it is parked';
COMMENT ON COLUMN pg_task.groups.waiting IS 'Tasks behind it';

-- A loose index scan finds the keys: one index descent each. What is due is counted up to 10,000.
CREATE FUNCTION pg_task.key_depths()
    RETURNS TABLE (queue text, key text, hash bigint, due bigint, running bigint)
    LANGUAGE sql STABLE PARALLEL RESTRICTED COST 1000 ROWS 100
    SET search_path = pg_catalog, pg_temp SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
    WITH RECURSIVE firsts AS (
        (SELECT pg_catalog.hashtextextended((t.options OPERATOR(pg_catalog.->>) 'key') COLLATE "C", pg_catalog.hashtextextended(t.queue, 0)) AS hash, t.id
         FROM pg_task.task AS t WHERE t.error IS NULL AND t.options OPERATOR(pg_catalog.?) 'key'
         ORDER BY pg_catalog.hashtextextended((t.options OPERATOR(pg_catalog.->>) 'key') COLLATE "C", pg_catalog.hashtextextended(t.queue, 0)) LIMIT 1)
        UNION ALL
        SELECT next.hash, next.id
        FROM firsts AS f
        CROSS JOIN LATERAL (
            SELECT pg_catalog.hashtextextended((t.options OPERATOR(pg_catalog.->>) 'key') COLLATE "C", pg_catalog.hashtextextended(t.queue, 0)) AS hash, t.id
            FROM pg_task.task AS t
            WHERE t.error IS NULL AND t.options OPERATOR(pg_catalog.?) 'key'
              AND pg_catalog.hashtextextended((t.options OPERATOR(pg_catalog.->>) 'key') COLLATE "C", pg_catalog.hashtextextended(t.queue, 0)) OPERATOR(pg_catalog.>) f.hash
            ORDER BY pg_catalog.hashtextextended((t.options OPERATOR(pg_catalog.->>) 'key') COLLATE "C", pg_catalog.hashtextextended(t.queue, 0)) LIMIT 1) AS next
    ), running AS MATERIALIZED (
        SELECT pg_catalog.hashtextextended((t.options OPERATOR(pg_catalog.->>) 'key') COLLATE "C", pg_catalog.hashtextextended(t.queue, 0)) AS hash, pg_catalog.count(*) AS running
        FROM pg_task.claims() AS c
        JOIN pg_task.task AS t ON t.id OPERATOR(pg_catalog.=) c.id
        WHERE t.options OPERATOR(pg_catalog.?) 'key'
        GROUP BY 1
    )
    SELECT t.queue,
           t.options OPERATOR(pg_catalog.->>) 'key',
           f.hash,
           (SELECT pg_catalog.count(*) FROM (
                SELECT FROM pg_task.task AS d
                WHERE d.error IS NULL AND d.options OPERATOR(pg_catalog.?) 'key'
                  AND pg_catalog.hashtextextended((d.options OPERATOR(pg_catalog.->>) 'key') COLLATE "C", pg_catalog.hashtextextended(d.queue, 0)) OPERATOR(pg_catalog.=) f.hash
                  AND d.wakeup_at OPERATOR(pg_catalog.<=) pg_catalog.now() LIMIT 10000) AS x),
           COALESCE(r.running, 0)
    FROM firsts AS f
    JOIN pg_task.task AS t ON t.id OPERATOR(pg_catalog.=) f.id
    LEFT JOIN running AS r ON r.hash OPERATOR(pg_catalog.=) f.hash
$$;
COMMENT ON FUNCTION pg_task.key_depths() IS 'The keys that have tasks, and how many of them are due and run: part of pg_task.keys';

CREATE VIEW pg_task.keys AS
    SELECT d.queue,
           d.key,
           d.due,
           d.running,
           s.key_concurrency,
           s.key_rate,
           s.key_rate_interval,
           s.key_burst,
           CASE WHEN s.key_concurrency IS NOT NULL OR s.key_rate IS NOT NULL THEN pg_task.key_opens_at(d.queue, d.hash) END AS opens_at,
           COALESCE((s.key_weights OPERATOR(pg_catalog.->>) d.key)::pg_catalog.numeric::pg_catalog.int4, 1) AS weight
    FROM pg_task.key_depths() AS d
    LEFT JOIN pg_task.queue AS s ON s.name OPERATOR(pg_catalog.=) d.queue;
COMMENT ON VIEW pg_task.keys IS
    'Each key that has tasks which are not parked: how many are due, the running ones included (counted up to 10,000), how many run, its limits, and when its rate lets the next one go. docs/keys.md';
COMMENT ON COLUMN pg_task.keys.queue IS 'The queue to which the key belongs';
COMMENT ON COLUMN pg_task.keys.key IS 'The option "key" of its tasks';
COMMENT ON COLUMN pg_task.keys.due IS 'Tasks that are due, the running ones included';
COMMENT ON COLUMN pg_task.keys.running IS 'Tasks that workers hold at this moment, what counts against the limit';
COMMENT ON COLUMN pg_task.keys.key_concurrency IS 'The most that run at once; NULL for any number';
COMMENT ON COLUMN pg_task.keys.key_rate IS 'The most that are handed out in key_rate_interval; NULL for any number';
COMMENT ON COLUMN pg_task.keys.key_rate_interval IS 'The time that the rate is meant for';
COMMENT ON COLUMN pg_task.keys.key_burst IS 'The most hand-outs of the rate that gather; NULL for as many as the rate';
COMMENT ON COLUMN pg_task.keys.weight IS 'How long its turns are beside those of other keys of the queue';
COMMENT ON COLUMN pg_task.keys.opens_at IS 'When its rate, or the time after a start, lets the next task go; NULL when neither holds it back now';
CREATE VIEW pg_task.unique_keys AS
    SELECT k.key, k.task_id, k.scope, s.state,
           CASE WHEN k.expires_at OPERATOR(pg_catalog.>) pg_catalog.clock_timestamp() THEN true
                WHEN k.scope OPERATOR(pg_catalog.=) 'queued' THEN s.state OPERATOR(pg_catalog.=) 'queued'
                WHEN k.scope OPERATOR(pg_catalog.=) 'running' THEN s.state OPERATOR(pg_catalog.<>) ALL (ARRAY['parked', 'gone'])
                WHEN k.scope OPERATOR(pg_catalog.=) 'done' THEN s.state OPERATOR(pg_catalog.<>) 'gone'
                ELSE false END AS held,
           k.taken_at, k.expires_at
    FROM pg_task.unique_key AS k
    LEFT JOIN pg_task.task AS t ON t.id OPERATOR(pg_catalog.=) k.task_id
    LEFT JOIN pg_task.claims() AS c ON c.id OPERATOR(pg_catalog.=) k.task_id
    CROSS JOIN LATERAL (
        SELECT CASE WHEN t.id IS NULL THEN 'gone'
                    WHEN t.error IS NOT NULL THEN 'parked'
                    WHEN c.id IS NOT NULL OR t.locked_by IS NOT NULL THEN 'running'
                    WHEN (t.fence OPERATOR(pg_catalog.&) 4294967295) OPERATOR(pg_catalog.=) (k.fence OPERATOR(pg_catalog.&) 4294967295) THEN 'queued'
                    ELSE 'waiting' END AS state) AS s;
COMMENT ON VIEW pg_task.unique_keys IS 'The keys of unique tasks, and whether each is held at this moment';
COMMENT ON COLUMN pg_task.unique_keys.key IS 'The key';
COMMENT ON COLUMN pg_task.unique_keys.task_id IS 'The task that it stands for';
COMMENT ON COLUMN pg_task.unique_keys.scope IS 'Until when the task holds it: queued, running, done or period';
COMMENT ON COLUMN pg_task.unique_keys.state IS 'The task is queued (no worker has begun with it), running, waiting (for its next step or try), parked or gone';
COMMENT ON COLUMN pg_task.unique_keys.held IS 'Whether a call with this key meets the task now';
COMMENT ON COLUMN pg_task.unique_keys.taken_at IS 'When the task was enqueued under the key';
COMMENT ON COLUMN pg_task.unique_keys.expires_at IS 'Until then the key is held, whatever becomes of the task';
