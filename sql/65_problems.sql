CREATE FUNCTION pg_task.library_version() RETURNS text
    LANGUAGE c STABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'library_version_wrapper';
COMMENT ON FUNCTION pg_task.library_version() IS
    'The version of the library that the server has loaded. The extension''s own, in pg_extension, follows with ALTER EXTENSION pg_task UPDATE';

-- Cheap enough to ask every few seconds: memory, and the index of parked tasks up to 10,000 of them.
CREATE VIEW pg_task.problems AS
    WITH scheduler AS MATERIALIZED (SELECT * FROM pg_task.scheduler_state()),
    workers AS MATERIALIZED (
        SELECT w.* FROM pg_task.worker_states() AS w WHERE w.state OPERATOR(pg_catalog.=) ANY (ARRAY['idle', 'working'])
    ),
    lanes AS MATERIALIZED (
        SELECT l.queue, l.step, pg_catalog.sum(l.ready) AS ready FROM pg_task.lanes() AS l GROUP BY l.queue, l.step
    ),
    server AS MATERIALIZED (SELECT pg_catalog.pg_is_in_recovery() AS standby)
    SELECT 'standby' AS problem,
           'the server is a standby: tasks can be looked at, not enqueued or run' AS detail,
           'connect to the primary; after a promotion the scheduler starts by itself' AS advice
    FROM server WHERE server.standby
    UNION ALL
    SELECT 'no scheduler',
           'no scheduler serves this database: tasks can be enqueued, none is handed out',
           'is the database left out by pg_task.databases, or is pg_task.max_databases reached (see the server''s log)? Then SELECT pg_task.start_scheduler()'
    FROM scheduler AS s, server WHERE s.state OPERATOR(pg_catalog.=) 'absent' AND NOT server.standby
    UNION ALL
    SELECT 'scheduler not running',
           pg_catalog.concat('the scheduler is ', s.state, ', after ', s.failures, ' failures; the last: ', s.last_error),
           'it tries again by itself, at most a minute later; mend what the error names'
    FROM scheduler AS s
    WHERE s.state OPERATOR(pg_catalog.=) ANY (ARRAY['backing off', 'starting', 'wanted'])
    UNION ALL
    SELECT 'scheduler late',
           pg_catalog.concat('the scheduler was to wake up at ', s.next_wake),
           pg_catalog.concat('look at its process ', s.pid, ' in pg_stat_activity: it waits for a lock, or the machine is overloaded')
    FROM scheduler AS s
    WHERE s.state OPERATOR(pg_catalog.=) ANY (ARRAY['running', 'settling'])
      AND s.next_wake OPERATOR(pg_catalog.<) (pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) pg_catalog.make_interval(secs => 10))
    UNION ALL
    SELECT 'versions differ',
           pg_catalog.concat('the extension is ', e.extversion, ', the library ', pg_task.library_version()),
           'ALTER EXTENSION pg_task UPDATE, in every database that has it'
    FROM pg_catalog.pg_extension AS e
    WHERE e.extname OPERATOR(pg_catalog.=) 'pg_task' AND e.extversion OPERATOR(pg_catalog.<>) pg_task.library_version()
    UNION ALL
    SELECT 'switched off', 'pg_task.enabled is off: no task is handed out', 'switch it on and reload the configuration'
    WHERE pg_catalog.current_setting('pg_task.enabled') OPERATOR(pg_catalog.=) 'off'
    UNION ALL
    SELECT 'no worker',
           pg_catalog.concat(pg_catalog.sum(l.ready), ' tasks are due, and no worker is there'),
           'start workers; if they run, look at their logs: they cannot reach this database, or are refused'
    FROM lanes AS l WHERE NOT EXISTS (SELECT FROM workers) HAVING pg_catalog.count(*) OPERATOR(pg_catalog.>) 0
    UNION ALL
    SELECT 'queue without a worker',
           pg_catalog.concat(l.ready, ' tasks are due in the queue "', l.queue, '", which no worker takes'),
           'start a worker that takes this queue'
    FROM lanes AS l
    WHERE EXISTS (SELECT FROM workers)
      AND NOT EXISTS (SELECT FROM workers AS w WHERE w.queues IS NULL OR l.queue OPERATOR(pg_catalog.=) ANY (w.queues))
    UNION ALL
    SELECT 'step without a worker',
           pg_catalog.concat(l.ready, ' tasks in the queue "', l.queue, '" wait for a worker that knows the step ', l.step),
           'finish the deployment that brings the step; or, if it was removed, UPDATE pg_task.task SET step = …, or pg_task.cancel'
    FROM lanes AS l WHERE l.step IS NOT NULL
      -- Those that have a limit may wait for a place.
      AND NOT EXISTS (SELECT FROM pg_task.step_limit AS s WHERE s.step OPERATOR(pg_catalog.=) l.step)
    UNION ALL
    SELECT 'queue paused',
           pg_catalog.concat(s.ready, ' tasks are due in the queue "', s.queue, '", which is paused'),
           'SELECT pg_task.resume_queue(…) with that name, or with * if all queues are paused'
    FROM pg_task.queue_states() AS s WHERE s.paused AND s.ready OPERATOR(pg_catalog.>) 0
        AND s.queue OPERATOR(pg_catalog.<>) '*'
    UNION ALL
    SELECT 'schedule failing',
           pg_catalog.concat('the schedule "', s.name, '" could not enqueue its task, ', s.failures, ' times in a row'),
           'look at its error in pg_task.schedules; it is tried again by itself, at most a minute later'
    FROM pg_task.schedule AS s WHERE s.failures OPERATOR(pg_catalog.>) 0
    UNION ALL
    SELECT 'schedule ahead',
           pg_catalog.concat('the schedule "', s.name, '" has had its tick of ', s.last_at, ' already: the clock was set back'),
           'nothing, when it was set back by a little; else UPDATE pg_task.schedule SET next_at = … to the tick that it should go on with'
    FROM pg_task.schedule AS s
    WHERE s.last_at OPERATOR(pg_catalog.>) (pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+) pg_catalog.make_interval(secs => 10))
    UNION ALL
    SELECT 'worker places taken',
           pg_catalog.concat(pg_catalog.count(*), ' workers are known, as many as pg_task.max_workers allows'),
           'raise pg_task.max_workers and restart the server, or run fewer workers with more concurrency'
    FROM pg_task.worker_states() AS w
    HAVING pg_catalog.count(*) OPERATOR(pg_catalog.>=) pg_catalog.current_setting('pg_task.max_workers')::bigint
    UNION ALL
    SELECT 'parked tasks',
           pg_catalog.concat(pg_catalog.count(*), CASE WHEN pg_catalog.count(*) OPERATOR(pg_catalog.>=) 10000 THEN ' tasks or more' ELSE ' tasks' END,
               ' are parked with an error'),
           'look at pg_task.failed, mend the cause, then pg_task.resume_all()'
    FROM (SELECT FROM pg_task.task AS t WHERE t.error IS NOT NULL LIMIT 10000) AS x
    HAVING pg_catalog.count(*) OPERATOR(pg_catalog.>) 0
    UNION ALL
    SELECT 'groups blocked',
           pg_catalog.concat(pg_catalog.count(*), ' groups have tasks that wait behind a parked one'),
           'look at pg_task.groups WHERE head_state = ''parked'', mend the cause, then pg_task.resume(head), or pg_task.cancel(head)'
    FROM (SELECT t.id, t.options FROM pg_task.task AS t WHERE t.error IS NOT NULL LIMIT 10000) AS t
    WHERE t.options OPERATOR(pg_catalog.?) 'group'
      AND EXISTS (
        SELECT FROM pg_task.task AS w
        WHERE w.options OPERATOR(pg_catalog.?) 'group'
          AND pg_catalog.hashtextextended((w.options OPERATOR(pg_catalog.->>) 'group') COLLATE "C", 0) OPERATOR(pg_catalog.=) pg_catalog.hashtextextended((t.options OPERATOR(pg_catalog.->>) 'group') COLLATE "C", 0)
          AND w.id OPERATOR(pg_catalog.>) t.id)
    HAVING pg_catalog.count(*) OPERATOR(pg_catalog.>) 0;
COMMENT ON VIEW pg_task.problems IS
    'What is wrong and what to do about it: empty while all is well. docs/operations.md tells more of each';
COMMENT ON COLUMN pg_task.problems.problem IS 'What is wrong, in the words under which docs/operations.md has it';
COMMENT ON COLUMN pg_task.problems.detail IS 'Where and how much';
COMMENT ON COLUMN pg_task.problems.advice IS 'What to do about it';
