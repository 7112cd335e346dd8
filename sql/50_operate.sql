CREATE FUNCTION pg_task.resume(id uuid) RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'resume_wrapper';
COMMENT ON FUNCTION pg_task.resume(uuid) IS
    'Runs a parked task again at the step that failed, with all its retries; false when there is no such parked task';

CREATE FUNCTION pg_task.resume_at(id uuid, wakeup_at timestamptz) RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'resume_at_wrapper';
COMMENT ON FUNCTION pg_task.resume_at(uuid, timestamptz) IS
    'Runs a parked task again at a moment, at the step that failed, with all its retries; false when there is no such parked task';

CREATE FUNCTION pg_task.set_retry(id uuid, policy jsonb) RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'set_retry_wrapper';
COMMENT ON FUNCTION pg_task.set_retry(uuid, jsonb) IS
    'Gives a task a policy of its own for its retries, also while it runs; NULL leaves them to its step again. False when there is no such task. Example: SELECT pg_task.set_retry(id, ''{"limit": 20, "delay": "1 min"}'')';

CREATE FUNCTION pg_task.cancel(id uuid) RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cancel_wrapper';
COMMENT ON FUNCTION pg_task.cancel(uuid) IS
    'Deletes a task. If it runs, its worker is told and its result is refused; false when there is no such task';

CREATE FUNCTION pg_task.edit(id uuid, step jsonb DEFAULT NULL, payload jsonb DEFAULT NULL, interrupt boolean DEFAULT false) RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'edit_wrapper';
COMMENT ON FUNCTION pg_task.edit(uuid, jsonb, jsonb, boolean) IS
    'Gives a parked or waiting task another step, or its step another payload. One that a worker runs is left alone (55006) unless interrupt => true: the run is told to stop, and the new step is run. A parked task stays parked; false when there is no such task. Example: SELECT pg_task.edit(id, payload => ''{"name": "you"}'')';

CREATE FUNCTION pg_task.clone(id uuid, wakeup_at timestamptz DEFAULT NULL) RETURNS uuid
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'clone_wrapper';
COMMENT ON FUNCTION pg_task.clone(uuid, timestamptz) IS
    'Enqueues a new task at the step, in the queue, with the priority and the options of another, due now or at wakeup_at; returns its id, NULL when there is no such task';

CREATE FUNCTION pg_task.stop_workers(worker uuid DEFAULT NULL) RETURNS integer
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'stop_workers_wrapper';
COMMENT ON FUNCTION pg_task.stop_workers(uuid) IS
    'Asks one worker, or all, to finish what they run and exit; returns how many were asked';

CREATE FUNCTION pg_task.claims()
    RETURNS TABLE (
        id uuid, worker uuid, token bigint, fence bigint, claimed_at timestamptz,
        progress double precision, progress_text text, progress_at timestamptz)
    LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'claims_wrapper';
COMMENT ON FUNCTION pg_task.claims() IS 'Every task that a worker holds at this moment, from memory';

CREATE FUNCTION pg_task.worker_states()
    RETURNS TABLE (
        id uuid, name text, role oid, pid integer, state text, queues text[], steps integer, claimed integer,
        registered_at timestamptz, heartbeat_at timestamptz, lease interval
    )
    LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'worker_states_wrapper';
COMMENT ON FUNCTION pg_task.worker_states() IS 'The workers known to the scheduler, from memory';

CREATE FUNCTION pg_task.scheduler_state(
    OUT state text, OUT pid integer, OUT started_at timestamptz, OUT ready integer, OUT claimed integer,
    OUT workers integer, OUT next_wake timestamptz, OUT last_error text, OUT last_error_at timestamptz,
    OUT failures bigint, OUT ticks bigint, OUT wakeups_sent bigint, OUT handed_out bigint, OUT finished bigint,
    OUT refused bigint, OUT lost bigint, OUT rescans bigint
) RETURNS record
    LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'scheduler_state_wrapper';
COMMENT ON FUNCTION pg_task.scheduler_state() IS 'The scheduler of this database, from memory';

CREATE FUNCTION pg_task.lanes()
    RETURNS TABLE (queue text, priority smallint, step text, ready integer)
    LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'lanes_wrapper';
COMMENT ON FUNCTION pg_task.lanes() IS
    'Tasks that are due and in memory, by queue and priority; step is set for those that wait for a worker that knows their step';

CREATE FUNCTION pg_task.start_scheduler() RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'start_scheduler_wrapper';
COMMENT ON FUNCTION pg_task.start_scheduler() IS
    'Asks for this database''s scheduler at commit. CREATE EXTENSION calls it; calling it again does no harm';

CREATE FUNCTION pg_task.find(tags text[] DEFAULT NULL, meta jsonb DEFAULT NULL, trace text DEFAULT NULL) RETURNS SETOF pg_task.task
    LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT t.* FROM pg_task.task AS t
    WHERE t.options OPERATOR(pg_catalog.@>) (
            CASE WHEN find.tags IS NULL THEN '{}' ELSE pg_catalog.jsonb_build_object('tags', find.tags) END
            OPERATOR(pg_catalog.||)
            CASE WHEN find.meta IS NULL THEN '{}' ELSE pg_catalog.jsonb_build_object('meta', find.meta) END)
        AND (find.trace IS NULL
            OR pg_catalog.substr(t.options OPERATOR(pg_catalog.->>) 'traceparent', 4, 32) OPERATOR(pg_catalog.=) find.trace)
$$;
COMMENT ON FUNCTION pg_task.find(text[], jsonb, text) IS
    'The tasks that have all of these tags, this in their meta, and belong to this trace (the 32 digits of its id). Example: SELECT id, step FROM pg_task.find(tags => ''{invoice}'', meta => ''{"tenant": "acme"}'')';
