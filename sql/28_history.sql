-- What became of tasks whose rows are gone. Written by the statement that ends the task, into the partition that is in use; the scheduler goes on to
-- the next partition as time passes or as this one fills, and empties it first. So old rows go without a single DELETE.
CREATE TABLE pg_task.history (
    id         uuid        NOT NULL,
    ended_at   timestamptz NOT NULL,
    created_at timestamptz NOT NULL,
    wakeup_at  timestamptz NOT NULL,
    started_at timestamptz,
    worker     uuid,
    attempts   integer     NOT NULL,
    priority   smallint    NOT NULL,
    part       smallint    NOT NULL,
    outcome    text        COLLATE "C" NOT NULL,
    queue      text        COLLATE "C" NOT NULL,
    step       jsonb       NOT NULL,
    error      text,
    result     jsonb,
    errors     jsonb,
    options    jsonb
) PARTITION BY LIST (part);
COMMENT ON TABLE pg_task.history IS
    'What became of tasks whose rows are gone, one row for each, kept for pg_task.history_retention or as pg_task.history_max_size allows. With pg_task.history off none is written';
COMMENT ON COLUMN pg_task.history.id IS 'The task';
COMMENT ON COLUMN pg_task.history.ended_at IS 'When it ended: the moment at which its end was written';
COMMENT ON COLUMN pg_task.history.created_at IS 'When it was enqueued';
COMMENT ON COLUMN pg_task.history.wakeup_at IS 'When its last step was due; a step that followed another at once has the time of the first';
COMMENT ON COLUMN pg_task.history.started_at IS 'When the last attempt was handed out; NULL when the task was not done, or the server was restarted meanwhile';
COMMENT ON COLUMN pg_task.history.worker IS 'The worker that ran the last step; NULL when the task was not done';
COMMENT ON COLUMN pg_task.history.attempts IS 'Attempts of the last step, the one that succeeded included';
COMMENT ON COLUMN pg_task.history.priority IS 'Its priority';
COMMENT ON COLUMN pg_task.history.part IS 'The partition: pg_task.history_0 to history_7 are used one after the other';
COMMENT ON COLUMN pg_task.history.outcome IS 'done: its last step ended well; cancelled: its row was deleted by a user';
COMMENT ON COLUMN pg_task.history.queue IS 'Its queue';
COMMENT ON COLUMN pg_task.history.step IS 'Its last step, with its payload';
COMMENT ON COLUMN pg_task.history.error IS 'Why it was parked, if it was when it was cancelled';
COMMENT ON COLUMN pg_task.history.result IS 'What the last step returned, if anything';
COMMENT ON COLUMN pg_task.history.errors IS 'Its last failures, the oldest first, as in pg_task.task';
COMMENT ON COLUMN pg_task.history.options IS 'Its options, as in pg_task.task';

-- Ids ascend with time, and so do the rows: where a task may lie follows from the bounds of each range of pages. Nearly free to keep; VACUUM,
-- which the settings below call early, brings it up to date.
CREATE INDEX history_by_id ON pg_task.history USING brin (id, ended_at) WITH (pages_per_range = 32);
COMMENT ON INDEX pg_task.history_by_id IS 'Bounds of the ids and times in each range of pages';

CREATE TABLE pg_task.history_0 PARTITION OF pg_task.history FOR VALUES IN (0)
    WITH (autovacuum_vacuum_insert_threshold = 50000, autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_cost_delay = 1);
COMMENT ON TABLE pg_task.history_0 IS 'A partition of pg_task.history';
COMMENT ON INDEX pg_task.history_0_id_ended_at_idx IS 'Bounds of the ids and times in each range of pages';
SELECT pg_catalog.pg_extension_config_dump('pg_task.history_0', '');
CREATE TABLE pg_task.history_1 PARTITION OF pg_task.history FOR VALUES IN (1)
    WITH (autovacuum_vacuum_insert_threshold = 50000, autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_cost_delay = 1);
COMMENT ON TABLE pg_task.history_1 IS 'A partition of pg_task.history';
COMMENT ON INDEX pg_task.history_1_id_ended_at_idx IS 'Bounds of the ids and times in each range of pages';
SELECT pg_catalog.pg_extension_config_dump('pg_task.history_1', '');
CREATE TABLE pg_task.history_2 PARTITION OF pg_task.history FOR VALUES IN (2)
    WITH (autovacuum_vacuum_insert_threshold = 50000, autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_cost_delay = 1);
COMMENT ON TABLE pg_task.history_2 IS 'A partition of pg_task.history';
COMMENT ON INDEX pg_task.history_2_id_ended_at_idx IS 'Bounds of the ids and times in each range of pages';
SELECT pg_catalog.pg_extension_config_dump('pg_task.history_2', '');
CREATE TABLE pg_task.history_3 PARTITION OF pg_task.history FOR VALUES IN (3)
    WITH (autovacuum_vacuum_insert_threshold = 50000, autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_cost_delay = 1);
COMMENT ON TABLE pg_task.history_3 IS 'A partition of pg_task.history';
COMMENT ON INDEX pg_task.history_3_id_ended_at_idx IS 'Bounds of the ids and times in each range of pages';
SELECT pg_catalog.pg_extension_config_dump('pg_task.history_3', '');
CREATE TABLE pg_task.history_4 PARTITION OF pg_task.history FOR VALUES IN (4)
    WITH (autovacuum_vacuum_insert_threshold = 50000, autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_cost_delay = 1);
COMMENT ON TABLE pg_task.history_4 IS 'A partition of pg_task.history';
COMMENT ON INDEX pg_task.history_4_id_ended_at_idx IS 'Bounds of the ids and times in each range of pages';
SELECT pg_catalog.pg_extension_config_dump('pg_task.history_4', '');
CREATE TABLE pg_task.history_5 PARTITION OF pg_task.history FOR VALUES IN (5)
    WITH (autovacuum_vacuum_insert_threshold = 50000, autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_cost_delay = 1);
COMMENT ON TABLE pg_task.history_5 IS 'A partition of pg_task.history';
COMMENT ON INDEX pg_task.history_5_id_ended_at_idx IS 'Bounds of the ids and times in each range of pages';
SELECT pg_catalog.pg_extension_config_dump('pg_task.history_5', '');
CREATE TABLE pg_task.history_6 PARTITION OF pg_task.history FOR VALUES IN (6)
    WITH (autovacuum_vacuum_insert_threshold = 50000, autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_cost_delay = 1);
COMMENT ON TABLE pg_task.history_6 IS 'A partition of pg_task.history';
COMMENT ON INDEX pg_task.history_6_id_ended_at_idx IS 'Bounds of the ids and times in each range of pages';
SELECT pg_catalog.pg_extension_config_dump('pg_task.history_6', '');
CREATE TABLE pg_task.history_7 PARTITION OF pg_task.history FOR VALUES IN (7)
    WITH (autovacuum_vacuum_insert_threshold = 50000, autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_cost_delay = 1);
COMMENT ON TABLE pg_task.history_7 IS 'A partition of pg_task.history';
COMMENT ON INDEX pg_task.history_7_id_ended_at_idx IS 'Bounds of the ids and times in each range of pages';
SELECT pg_catalog.pg_extension_config_dump('pg_task.history_7', '');

CREATE SEQUENCE pg_task.history_part AS bigint;
COMMENT ON SEQUENCE pg_task.history_part IS
    'The partition of pg_task.history that is in use, in the last three bits, and since when: seconds since 2000-01-01 UTC';
SELECT pg_catalog.pg_extension_config_dump('pg_task.history_part', '');

CREATE FUNCTION pg_task.on_delete() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'on_delete_wrapper';
COMMENT ON FUNCTION pg_task.on_delete() IS 'Writes what became of a task whose row is deleted by SQL into pg_task.history';

CREATE TRIGGER task_delete AFTER DELETE ON pg_task.task
    FOR EACH ROW EXECUTE FUNCTION pg_task.on_delete();
COMMENT ON TRIGGER task_delete ON pg_task.task IS 'A task whose row is deleted has a row in pg_task.history';
