CREATE FUNCTION pg_task.resume(id uuid) RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'resume_wrapper';
COMMENT ON FUNCTION pg_task.resume(uuid) IS
    'Runs a parked task again at the step that failed, with all its retries; false when there is no such parked task';

CREATE FUNCTION pg_task.resume_all(queue text DEFAULT NULL, task text DEFAULT NULL, error_like text DEFAULT NULL) RETURNS bigint
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'resume_all_wrapper';
COMMENT ON FUNCTION pg_task.resume_all(text, text, text) IS
    'Resumes every parked task, or those of a queue, of a task name, or whose error is LIKE a pattern; returns how many';

CREATE FUNCTION pg_task.cancel(id uuid) RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cancel_wrapper';
COMMENT ON FUNCTION pg_task.cancel(uuid) IS
    'Deletes a task. If it runs, its worker is told and its result is refused; false when there is no such task';

CREATE FUNCTION pg_task.stop_workers(worker uuid DEFAULT NULL) RETURNS integer
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'stop_workers_wrapper';
COMMENT ON FUNCTION pg_task.stop_workers(uuid) IS
    'Asks one worker, or all, to finish what they run and exit; returns how many were asked';

CREATE FUNCTION pg_task.claims()
    RETURNS TABLE (id uuid, worker uuid, token bigint, fence bigint, claimed_at timestamptz)
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
