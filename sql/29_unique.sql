-- Which task a key stands for. Nothing here is tied to the table of tasks, by a trigger or a foreign key: a task that has ended is known by its
-- absence. The scheduler removes keys that hold nothing any more.
CREATE TABLE pg_task.unique_key (
    key        text        COLLATE "C" NOT NULL,
    task_id    uuid        NOT NULL,
    scope      text        COLLATE "C" NOT NULL,
    fence      bigint      NOT NULL DEFAULT 0,
    taken_at   timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    expires_at timestamptz,
    check_at   timestamptz NOT NULL,
    CONSTRAINT unique_key_pkey PRIMARY KEY (key),
    CONSTRAINT unique_key_is_a_key CHECK (pg_catalog.octet_length(key) OPERATOR(pg_catalog.>=) 1 AND pg_catalog.octet_length(key) OPERATOR(pg_catalog.<=) 255),
    CONSTRAINT unique_key_scope_is_known CHECK (scope OPERATOR(pg_catalog.=) ANY (ARRAY['done', 'period', 'queued', 'running'])),
    CONSTRAINT unique_key_period_has_an_end CHECK (scope OPERATOR(pg_catalog.<>) 'period' OR expires_at IS NOT NULL)
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 10000);
COMMENT ON TABLE pg_task.unique_key IS
    'Keys of unique tasks, one row for each key in use. pg_task.enqueue_unique writes it; to free a key by hand, delete its row';
COMMENT ON COLUMN pg_task.unique_key.key IS 'The key: 1 to 255 bytes, one name space for the whole database';
COMMENT ON COLUMN pg_task.unique_key.task_id IS 'The task that it stands for, which may have ended';
COMMENT ON COLUMN pg_task.unique_key.scope IS 'Until when the task holds the key: queued (a worker takes it), running (it has ended or is parked), done (it has ended), period (expires_at)';
COMMENT ON COLUMN pg_task.unique_key.fence IS 'The fence of the task when it was enqueued, or changed under this key: with another one in the lower 32 bits, which users do not change, it has begun';
COMMENT ON COLUMN pg_task.unique_key.taken_at IS 'When the task was enqueued under this key';
COMMENT ON COLUMN pg_task.unique_key.expires_at IS 'Until then the key is held, whatever becomes of the task; NULL when no period was asked for';
COMMENT ON COLUMN pg_task.unique_key.check_at IS 'When the scheduler looks next whether the key can be removed';
COMMENT ON CONSTRAINT unique_key_pkey ON pg_task.unique_key IS 'A key stands for one task; calls with the same key wait for each other here';
COMMENT ON INDEX pg_task.unique_key_pkey IS 'A key stands for one task; calls with the same key wait for each other here';
COMMENT ON CONSTRAINT unique_key_is_a_key ON pg_task.unique_key IS '1 to 255 bytes';
COMMENT ON CONSTRAINT unique_key_scope_is_known ON pg_task.unique_key IS 'queued, running, done or period';
COMMENT ON CONSTRAINT unique_key_period_has_an_end ON pg_task.unique_key IS 'What holds for a period has an end';
CREATE INDEX unique_key_check ON pg_task.unique_key (check_at);
COMMENT ON INDEX pg_task.unique_key_check IS 'What the scheduler looks at next';
SELECT pg_catalog.pg_extension_config_dump('pg_task.unique_key', '');

CREATE FUNCTION pg_task.enqueue_unique(
    step jsonb, key text, scope text DEFAULT 'done', on_conflict text DEFAULT 'skip', period interval DEFAULT NULL,
    wakeup_at timestamptz DEFAULT NULL, queue text DEFAULT 'default', priority integer DEFAULT 0,
    options jsonb DEFAULT NULL, OUT id uuid, OUT outcome text
) RETURNS record
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'enqueue_unique_wrapper';
COMMENT ON FUNCTION pg_task.enqueue_unique(jsonb, text, text, text, interval, timestamptz, text, integer, jsonb) IS
    'Enqueues a task unless one with the same key is there. scope: until when a task holds its key (queued, running, done, period), in any case for the period. on_conflict: skip, replace, move, replace_and_move or error. Returns the id of the task that the key stands for, and enqueued, skipped, replaced or moved. Example: SELECT * FROM pg_task.enqueue_unique(''{"Index": {"Rebuild": 7}}'', ''index:7'')';
