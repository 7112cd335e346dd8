-- Moves the tasks of the crate pg_task 1.0 from its table to pg_task.task. docs/migrating-from-pg_task-1.md tells when.
--
-- The old table is found by the search_path, as the old crate found it. One statement, so one transaction whatever runs it: all rows are
-- moved, or an error says why none is. Ids, times, attempts and errors are kept. It can be run again: for rows that came since.

DO $migrate$
DECLARE
    old_table regclass := pg_catalog.to_regclass('pg_task');
    row_count bigint;
    parked bigint;
    bad_ids uuid[] := '{}';
    bad_count bigint := 0;
    task record;
    step jsonb;
BEGIN
    IF old_table IS NULL THEN
        RAISE EXCEPTION 'there is no table pg_task' USING
            ERRCODE = 'undefined_table',
            DETAIL = pg_catalog.format('The search_path is %s.', pg_catalog.current_setting('search_path')),
            HINT = 'Run the script in the database of the old crate, with its schema in the search_path.';
    END IF;
    IF pg_catalog.to_regclass('pg_task.task') IS NULL THEN
        RAISE EXCEPTION 'the extension pg_task is not in this database' USING
            ERRCODE = 'object_not_in_prerequisite_state',
            DETAIL = 'There is no table pg_task.task to move the tasks to.',
            HINT = 'CREATE EXTENSION pg_task;';
    END IF;
    IF NOT EXISTS (
        SELECT FROM pg_catalog.pg_attribute AS a
        WHERE a.attrelid = old_table AND a.attname = 'lock_expires_at' AND NOT a.attisdropped
    ) THEN
        RAISE EXCEPTION 'the table % is not the one of pg_task 1.0', old_table USING
            ERRCODE = 'undefined_column',
            DETAIL = 'It has no column lock_expires_at.',
            HINT = 'Run the migrations of the crate pg_task 1.0 first.';
    END IF;

    -- Waits for transactions that enqueue; from here on nothing changes.
    LOCK TABLE pg_task IN ACCESS EXCLUSIVE MODE;

    SELECT pg_catalog.count(*), pg_catalog.max(o.lock_expires_at) AS expires,
           pg_catalog.string_agg(DISTINCT o.locked_by::text, ', ') AS workers
    INTO task FROM pg_task AS o WHERE o.lock_expires_at > pg_catalog.clock_timestamp();
    IF task.count > 0 THEN
        RAISE EXCEPTION '% tasks of the old table are being run', task.count USING
            ERRCODE = 'object_in_use',
            DETAIL = pg_catalog.format('Nothing was moved. Workers %s hold leases until %s.', task.workers, task.expires),
            HINT = 'Stop the old workers: SELECT pg_notify(''pg_task_changed'', ''stop_worker''); wait until they have ended, or until their leases have run out.';
    END IF;

    FOR task IN SELECT o.id, o.step AS text, o.wakeup_at FROM pg_task AS o ORDER BY o.created_at, o.id LOOP
        BEGIN
            step := task.text::jsonb;
        EXCEPTION WHEN data_exception OR program_limit_exceeded THEN
            step := NULL;
        END;
        IF step IS NULL OR NOT pg_task.step_is_valid(step) OR NOT pg_catalog.isfinite(task.wakeup_at) THEN
            bad_count := bad_count + 1;
            IF bad_count <= 10 THEN
                bad_ids := bad_ids || task.id;
            END IF;
        END IF;
    END LOOP;
    IF bad_count > 0 THEN
        RAISE EXCEPTION '% tasks of the old table have no valid step or no finite time', bad_count USING
            ERRCODE = 'invalid_parameter_value',
            DETAIL = pg_catalog.format('Nothing was moved. The ids (ten at most): %s.', pg_catalog.array_to_string(bad_ids, ', ')),
            HINT = 'A step reads {"Task": {"Step": payload}}. Mend or delete these rows, then run the script again.';
    END IF;

    INSERT INTO pg_task.task (id, step, wakeup_at, tried, error, created_at, updated_at)
    SELECT o.id, o.step::jsonb, o.wakeup_at, o.tried, o.error, o.created_at, o.updated_at FROM pg_task AS o;
    DELETE FROM pg_task;
    GET DIAGNOSTICS row_count = ROW_COUNT;
    SELECT pg_catalog.count(*) INTO parked FROM pg_task.task AS t WHERE t.error IS NOT NULL;
    RAISE NOTICE '% tasks were moved; % are parked now', row_count, parked;
END
$migrate$;
