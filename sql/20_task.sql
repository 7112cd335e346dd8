CREATE FUNCTION pg_task.uuid7() RETURNS uuid
    LANGUAGE c VOLATILE PARALLEL SAFE AS 'MODULE_PATHNAME', 'uuid7_wrapper';
COMMENT ON FUNCTION pg_task.uuid7() IS
    'A version 7 UUID (RFC 9562): milliseconds since 1970 and their 4096th parts, then random bits. Ascending within a session, and from one transaction to one that begins after it';

CREATE FUNCTION pg_task.step_is_valid(step jsonb) RETURNS boolean
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'step_is_valid_wrapper';
COMMENT ON FUNCTION pg_task.step_is_valid(jsonb) IS
    'Whether a value has the shape of a step, {"Task": {"Step": …}}: an object with one key that holds an object with one key';

CREATE TABLE pg_task.task (
    id         uuid        NOT NULL DEFAULT pg_task.uuid7(),
    wakeup_at  timestamptz NOT NULL DEFAULT pg_catalog.now(),
    created_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    updated_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    locked_at  timestamptz,
    fence      bigint      NOT NULL DEFAULT 0,
    locked_by  uuid,
    tried      integer     NOT NULL DEFAULT 0,
    priority   smallint    NOT NULL DEFAULT 0,
    queue      text        COLLATE "C" NOT NULL DEFAULT 'default',
    step       jsonb       NOT NULL,
    error      text,
    errors     jsonb,
    options    jsonb,
    CONSTRAINT task_pkey PRIMARY KEY (id),
    CONSTRAINT task_wakeup_at_is_finite CHECK (pg_catalog.isfinite(wakeup_at)),
    CONSTRAINT task_fence_is_not_negative CHECK (fence OPERATOR(pg_catalog.>=) 0),
    CONSTRAINT task_tried_is_not_negative CHECK (tried OPERATOR(pg_catalog.>=) 0),
    CONSTRAINT task_lock_is_whole CHECK ((locked_by IS NULL) OPERATOR(pg_catalog.=) (locked_at IS NULL)),
    CONSTRAINT task_queue_is_a_name CHECK (pg_catalog.octet_length(queue) OPERATOR(pg_catalog.>=) 1 AND pg_catalog.octet_length(queue) OPERATOR(pg_catalog.<=) 63),
    CONSTRAINT task_step_has_a_name CHECK (pg_task.step_is_valid(step)),
    CONSTRAINT task_errors_are_a_list CHECK (pg_catalog.jsonb_typeof(errors) OPERATOR(pg_catalog.=) 'array'),
    CONSTRAINT task_options_are_an_object CHECK (pg_catalog.jsonb_typeof(options) OPERATOR(pg_catalog.=) 'object')
)
-- Room on each page for the next steps of all its tasks, which often come together: an UPDATE that finds room there touches no index (HOT).
-- Chains of steps ran at 144 k, 200 k and 245 k steps/s with 90, 70 and 50; a backlog of tasks that have one step drained as fast with each.
WITH (
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_insert_scale_factor = 0.2,
    autovacuum_analyze_scale_factor = 0.2,
    autovacuum_analyze_threshold = 10000,
    autovacuum_vacuum_cost_delay = 1
);

COMMENT ON TABLE pg_task.task IS
    'One row a task, and the row is the whole truth: the current step, when it is due, how often it failed. A finished task has no row';
COMMENT ON COLUMN pg_task.task.id IS 'Made by the server (UUID version 7) unless given';
COMMENT ON COLUMN pg_task.task.queue IS 'A name of 1 to 63 bytes. Workers take tasks from the queues that they name, or from all';
COMMENT ON COLUMN pg_task.task.priority IS 'Lower runs first, within the queues a worker takes; 0 by default';
COMMENT ON COLUMN pg_task.task.step IS 'The current step as {"Task": {"Step": payload}}';
COMMENT ON COLUMN pg_task.task.wakeup_at IS 'When the step is due, by the server''s clock; a time in the past is due now';
COMMENT ON COLUMN pg_task.task.tried IS 'Attempts of the current step that failed or whose worker was lost; 0 again at the next step and on resume';
COMMENT ON COLUMN pg_task.task.error IS 'Why the task is parked. Fix the world, then set it to NULL (or call pg_task.resume) to run the step again';
COMMENT ON COLUMN pg_task.task.errors IS 'The last failures of the task, the oldest first. Kept across retries, next steps and resume, until the task is done';
COMMENT ON COLUMN pg_task.task.options IS 'Settings of this task alone: an object whose keys docs/options.md tells. NULL for none';
COMMENT ON COLUMN pg_task.task.fence IS 'Grows with every change of the row, never reset: a finish that names an older value is refused. The lower 32 bits count what workers and the scheduler have made of it, the upper ones what users have changed';
COMMENT ON COLUMN pg_task.task.locked_by IS 'The worker that runs the step, once it has run for about a second; pg_task.running shows every claim at once. All zeros: nobody; the next worker is asked what to do instead of parking the task';
COMMENT ON COLUMN pg_task.task.locked_at IS 'When that worker took the step';
COMMENT ON COLUMN pg_task.task.created_at IS 'Start of the transaction that enqueued the task';
COMMENT ON COLUMN pg_task.task.updated_at IS 'Start of the transaction that last changed the row';

COMMENT ON CONSTRAINT task_pkey ON pg_task.task IS 'By id: how every finished step finds its row';
COMMENT ON INDEX pg_task.task_pkey IS 'By id: how every finished step finds its row';
COMMENT ON CONSTRAINT task_wakeup_at_is_finite ON pg_task.task IS 'An infinite time has no place in the order of what is due';
COMMENT ON CONSTRAINT task_fence_is_not_negative ON pg_task.task IS 'The fence only grows';
COMMENT ON CONSTRAINT task_tried_is_not_negative ON pg_task.task IS 'A number of attempts';
COMMENT ON CONSTRAINT task_lock_is_whole ON pg_task.task IS 'Who took the step and when are written down together';
COMMENT ON CONSTRAINT task_queue_is_a_name ON pg_task.task IS 'Shared memory has 63 bytes for the name of a queue';
COMMENT ON CONSTRAINT task_step_has_a_name ON pg_task.task IS 'The shape {"Task": {"Step": payload}}: who runs the step is read from its keys';
COMMENT ON CONSTRAINT task_errors_are_a_list ON pg_task.task IS 'One object for each failure';
COMMENT ON CONSTRAINT task_options_are_an_object ON pg_task.task IS 'The trigger checks its keys';

-- What is due, in the order in which it is handed out. Read forward from the last position only.
CREATE INDEX task_due ON pg_task.task (queue, priority, wakeup_at, id) WHERE error IS NULL;
COMMENT ON INDEX pg_task.task_due IS 'What is due, by queue, priority and time';

-- No column that a next step changes may be in an index, or no update could stay on its page (HOT): not updated_at.
CREATE INDEX task_failed ON pg_task.task (queue, id) WHERE error IS NOT NULL;
COMMENT ON INDEX pg_task.task_failed IS 'Parked tasks: empty while all is well';

-- Strict order: the first entry of a group is the task whose turn it is. A task without a group has no entry.
CREATE INDEX task_group ON pg_task.task (pg_catalog.hashtextextended((options OPERATOR(pg_catalog.->>) 'group') COLLATE "C", 0), id)
    WHERE options OPERATOR(pg_catalog.?) 'group';
COMMENT ON INDEX pg_task.task_group IS 'Tasks that have a group, by the hash of its name and by age';

-- The next tasks of a key: those before them are in memory. A task without a key has no entry.
CREATE INDEX task_key ON pg_task.task (
    pg_catalog.hashtextextended((options OPERATOR(pg_catalog.->>) 'key') COLLATE "C", pg_catalog.hashtextextended(queue, 0)), priority, wakeup_at, id
) WHERE error IS NULL AND options OPERATOR(pg_catalog.?) 'key';
COMMENT ON INDEX pg_task.task_key IS 'Tasks that have a key, by the hash of its queue''s and its own name, priority and time';

SELECT pg_catalog.pg_extension_config_dump('pg_task.task', '');

-- Grows by one each time a scheduler starts: the upper half of the attempt tokens.
CREATE SEQUENCE pg_task.epoch AS bigint;
COMMENT ON SEQUENCE pg_task.epoch IS 'The upper bits of the attempt tokens: each start of a scheduler takes a larger value';
SELECT pg_catalog.pg_extension_config_dump('pg_task.epoch', '');

CREATE FUNCTION pg_task.on_insert() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'on_insert_wrapper';
COMMENT ON FUNCTION pg_task.on_insert() IS 'Checks the step and tells the scheduler, at commit, what was inserted';

CREATE FUNCTION pg_task.on_update() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'on_update_wrapper';
COMMENT ON FUNCTION pg_task.on_update() IS
    'A change by a user: adds one to the upper half of the fence, so that a run of the old row is refused, and tells the scheduler at commit';

CREATE FUNCTION pg_task.on_options() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'on_options_wrapper';
COMMENT ON FUNCTION pg_task.on_options() IS
    'Checks changed options and tells the scheduler at commit. They leave the fence as it is: a run that is under way goes on, and what it ends in goes by the new ones';

CREATE FUNCTION pg_task.on_gone() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'on_gone_wrapper';
COMMENT ON FUNCTION pg_task.on_gone() IS 'Tells the scheduler, at commit, that the next task of a group or key may run';

CREATE FUNCTION pg_task.on_error() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'on_error_wrapper';
COMMENT ON FUNCTION pg_task.on_error() IS 'Sends the id of a task that was parked to the channel pg_task_error';

CREATE TRIGGER task_insert BEFORE INSERT ON pg_task.task
    FOR EACH ROW EXECUTE FUNCTION pg_task.on_insert();
CREATE TRIGGER task_update BEFORE UPDATE ON pg_task.task
    FOR EACH ROW WHEN (
        old.fence OPERATOR(pg_catalog.=) new.fence
        -- IS DISTINCT FROM would look for its operator along the search_path.
        AND (old.step OPERATOR(pg_catalog.<>) new.step
            OR old.wakeup_at OPERATOR(pg_catalog.<>) new.wakeup_at
            OR old.queue OPERATOR(pg_catalog.<>) new.queue
            OR old.priority OPERATOR(pg_catalog.<>) new.priority
            OR (old.error IS NULL) OPERATOR(pg_catalog.<>) (new.error IS NULL)
            OR old.error OPERATOR(pg_catalog.<>) new.error
            OR old.tried OPERATOR(pg_catalog.<>) new.tried
            OR old.id OPERATOR(pg_catalog.<>) new.id)
    ) EXECUTE FUNCTION pg_task.on_update();
CREATE TRIGGER task_options BEFORE UPDATE ON pg_task.task
    FOR EACH ROW WHEN (
        (old.options IS NULL) OPERATOR(pg_catalog.<>) (new.options IS NULL)
        OR old.options OPERATOR(pg_catalog.<>) new.options
    ) EXECUTE FUNCTION pg_task.on_options();
CREATE TRIGGER task_error_update AFTER UPDATE OF error ON pg_task.task
    FOR EACH ROW WHEN (old.error IS NULL AND new.error IS NOT NULL) EXECUTE FUNCTION pg_task.on_error();

CREATE TRIGGER task_gone AFTER DELETE ON pg_task.task
    FOR EACH ROW WHEN (old.options OPERATOR(pg_catalog.?|) ARRAY['group', 'key']) EXECUTE FUNCTION pg_task.on_gone();
COMMENT ON TRIGGER task_gone ON pg_task.task IS 'The next task of its group or key may run';
COMMENT ON TRIGGER task_insert ON pg_task.task IS 'Checks the step; at commit the scheduler hears of the task, or the channel pg_task_error of one that is parked from the start';
COMMENT ON TRIGGER task_update ON pg_task.task IS
    'A change that no worker made: a run of the old row is refused from now on, and a task that is resumed has all its retries again';
COMMENT ON TRIGGER task_options ON pg_task.task IS 'Checks the keys of changed options';
COMMENT ON TRIGGER task_error_update ON pg_task.task IS 'Announces a task that was parked on the channel pg_task_error';

-- Also when rows arrive by logical replication or under session_replication_role = replica.
ALTER TABLE pg_task.task ENABLE ALWAYS TRIGGER task_insert;
ALTER TABLE pg_task.task ENABLE ALWAYS TRIGGER task_update;
ALTER TABLE pg_task.task ENABLE ALWAYS TRIGGER task_options;
ALTER TABLE pg_task.task ENABLE ALWAYS TRIGGER task_gone;
