-- The worker protocol. docs/protocol.md describes it for writers of workers.

CREATE FUNCTION pg_task.register(
    worker uuid,
    queues text[] DEFAULT NULL,
    steps text[] DEFAULT NULL,
    retry_limits integer[] DEFAULT NULL,
    lease interval DEFAULT '60 s',
    name text DEFAULT NULL,
    bind boolean DEFAULT true,
    held_ids uuid[] DEFAULT NULL,
    held_fences bigint[] DEFAULT NULL,
    held_tokens bigint[] DEFAULT NULL,
    protocol integer DEFAULT 1,
    weights integer[] DEFAULT NULL,
    gives_up boolean DEFAULT false,
    OUT channel text,
    OUT refused uuid[],
    OUT registration bigint
) RETURNS record
    LANGUAGE c VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'register_wrapper';
COMMENT ON FUNCTION pg_task.register(uuid, text[], text[], integer[], interval, text, boolean, uuid[], bigint[], bigint[], integer, integer[], boolean) IS
    'Makes a worker known, or makes it known again; returns the channel on which it is woken, of the tasks it holds those it must drop, and the number of this registration, for exchange';

CREATE FUNCTION pg_task.heartbeat(worker uuid)
    RETURNS TABLE (event smallint, id uuid, token bigint)
    LANGUAGE c VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'heartbeat_wrapper';
COMMENT ON FUNCTION pg_task.heartbeat(uuid) IS
    'Extends the worker''s lease; writes nothing. Events: 3 a task it runs was cancelled, 4 stop, 5 not registered';

CREATE FUNCTION pg_task.set_progress(
    worker uuid,
    id uuid,
    token bigint,
    progress double precision DEFAULT NULL,
    text text DEFAULT NULL
) RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'set_progress_wrapper';
COMMENT ON FUNCTION pg_task.set_progress(uuid, uuid, bigint, double precision, text) IS
    'Shows in pg_task.running how far a task is: a part of 0 to 1, and a text, of which 200 bytes are kept. Extends the worker''s lease as heartbeat does; writes nothing. False: the worker does not hold the task under this token, or there is no place left';

CREATE FUNCTION pg_task.set_progress_many(
    worker uuid,
    ids uuid[],
    tokens bigint[],
    progress double precision[] DEFAULT NULL,
    texts text[] DEFAULT NULL
) RETURNS TABLE (event smallint, id uuid, token bigint)
    LANGUAGE c VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'set_progress_many_wrapper';
COMMENT ON FUNCTION pg_task.set_progress_many(uuid, uuid[], bigint[], double precision[], text[]) IS
    'A heartbeat that says how far the worker''s tasks are, as set_progress does for one; what it does not hold any more is passed over. Returns what heartbeat returns';

CREATE FUNCTION pg_task.exchange(
    worker uuid,
    want integer DEFAULT 0,
    ids uuid[] DEFAULT NULL,
    fences bigint[] DEFAULT NULL,
    tokens bigint[] DEFAULT NULL,
    outcomes smallint[] DEFAULT NULL,
    steps jsonb[] DEFAULT NULL,
    delays bigint[] DEFAULT NULL,
    errors text[] DEFAULT NULL,
    registration bigint DEFAULT NULL
) RETURNS TABLE (
    event smallint, id uuid, fence bigint, token bigint, tried integer, wakeup_at timestamptz, queue text, step jsonb,
    options jsonb
)
    -- A row that someone keeps locked fails the call soon (55P03) instead of holding up the results beside it.
    LANGUAGE c VOLATILE PARALLEL UNSAFE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s'
    AS 'MODULE_PATHNAME', 'exchange_wrapper';
COMMENT ON FUNCTION pg_task.exchange(uuid, integer, uuid[], bigint[], bigint[], smallint[], jsonb[], bigint[], text[], bigint) IS
    'Finished steps in, tasks to run out, in one call and one transaction. docs/protocol.md tells the outcomes and events';

CREATE FUNCTION pg_task.exchange_packed(
    worker uuid,
    want integer DEFAULT 0,
    ids uuid[] DEFAULT NULL,
    fences bigint[] DEFAULT NULL,
    tokens bigint[] DEFAULT NULL,
    outcomes smallint[] DEFAULT NULL,
    steps jsonb[] DEFAULT NULL,
    delays bigint[] DEFAULT NULL,
    errors text[] DEFAULT NULL,
    registration bigint DEFAULT NULL
) RETURNS bytea
    LANGUAGE c VOLATILE PARALLEL UNSAFE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s'
    AS 'MODULE_PATHNAME', 'exchange_packed_wrapper';
COMMENT ON FUNCTION pg_task.exchange_packed(uuid, integer, uuid[], bigint[], bigint[], smallint[], jsonb[], bigint[], text[], bigint) IS
    'As exchange, with the answer in one value, which costs less to make and to read. docs/protocol.md tells its form';

CREATE FUNCTION pg_task.finish(
    worker uuid,
    id uuid,
    fence bigint,
    token bigint,
    outcome integer DEFAULT 0,
    step jsonb DEFAULT NULL,
    delay bigint DEFAULT NULL
) RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s'
    AS 'MODULE_PATHNAME', 'finish_wrapper';
COMMENT ON FUNCTION pg_task.finish(uuid, uuid, bigint, bigint, integer, jsonb, bigint) IS
    'Brings one result inside the step''s own transaction: what the step wrote and the transition commit together. False: the claim is stale, roll back';

CREATE FUNCTION pg_task.leave(worker uuid) RETURNS integer
    LANGUAGE c VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'leave_wrapper';
COMMENT ON FUNCTION pg_task.leave(uuid) IS
    'Signs a worker off. Tasks that it still holds are ready again at once and no attempt is counted; returns how many';
