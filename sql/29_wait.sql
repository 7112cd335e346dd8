CREATE FUNCTION pg_task.wait(
    id uuid, timeout interval DEFAULT '30 s', OUT outcome text, OUT result jsonb, OUT error text
) RETURNS record
    -- Whoever may call it learns what became of a task whose id is known, without the right to read the tables.
    LANGUAGE c VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'wait_wrapper';
COMMENT ON FUNCTION pg_task.wait(uuid, interval) IS
    'Waits until a task has ended or is parked, woken by the commit that ends it: done (with its result), cancelled, parked (with its error), timed out, or unknown when neither the table nor the history has it. Example: SELECT outcome, result FROM pg_task.wait(''0190aaaa-0000-7000-8000-000000000001'', ''5 s'')';
