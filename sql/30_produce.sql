CREATE FUNCTION pg_task.enqueue(step jsonb, queue text DEFAULT 'default', priority integer DEFAULT 0, options jsonb DEFAULT NULL) RETURNS uuid
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'enqueue_wrapper';
COMMENT ON FUNCTION pg_task.enqueue(jsonb, text, integer, jsonb) IS
    'Enqueues a task that is due now, in the caller''s transaction; returns its id. Example: SELECT pg_task.enqueue(''{"Greeter": {"SayHello": {"name": "you"}}}'')';

CREATE FUNCTION pg_task.delay(step jsonb, delay interval, queue text DEFAULT 'default', priority integer DEFAULT 0, options jsonb DEFAULT NULL) RETURNS uuid
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'delay_wrapper';
COMMENT ON FUNCTION pg_task.delay(jsonb, interval, text, integer, jsonb) IS
    'Enqueues a task that is due after a delay, counted from the start of the transaction';

CREATE FUNCTION pg_task.schedule(step jsonb, wakeup_at timestamptz, queue text DEFAULT 'default', priority integer DEFAULT 0, options jsonb DEFAULT NULL) RETURNS uuid
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'schedule_wrapper';
COMMENT ON FUNCTION pg_task.schedule(jsonb, timestamptz, text, integer, jsonb) IS
    'Enqueues a task that is due at a moment; a time in the past is due now';

CREATE FUNCTION pg_task.enqueue_many(
    steps jsonb[], queue text DEFAULT 'default', priority integer DEFAULT 0, wakeup_at timestamptz DEFAULT NULL,
    options jsonb DEFAULT NULL
) RETURNS uuid[]
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'enqueue_many_wrapper';
COMMENT ON FUNCTION pg_task.enqueue_many(jsonb[], text, integer, timestamptz, jsonb) IS
    'Enqueues many tasks in one statement, due now or at wakeup_at; returns their ids in the order of the steps. The options are those of each';

CREATE FUNCTION pg_task.enqueue_row() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'enqueue_row_wrapper';
COMMENT ON FUNCTION pg_task.enqueue_row() IS
    'A row trigger that turns each row into a task: CREATE TRIGGER … AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION pg_task.enqueue_row(''Task'', ''Step'' [, queue [, priority]]). The payload is the row as JSON (the old row for DELETE)';
