-- Changes of many tasks at once. All have the same filter, whose parts are joined by AND: queue, task (Task or Task/Step), error_like (a LIKE
-- pattern), state (parked, due, asleep, running), older_than (since it was enqueued), min_priority and max_priority, ids; and max, so many at most,
-- and dry_run, which only counts. Rows that someone else has locked are passed over.
CREATE FUNCTION pg_task.resume_all(
    queue text DEFAULT NULL, task text DEFAULT NULL, error_like text DEFAULT NULL, older_than interval DEFAULT NULL,
    min_priority integer DEFAULT NULL, max_priority integer DEFAULT NULL, ids uuid[] DEFAULT NULL, max integer DEFAULT NULL,
    dry_run boolean DEFAULT false
) RETURNS bigint
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'resume_all_wrapper';
COMMENT ON FUNCTION pg_task.resume_all(text, text, text, interval, integer, integer, uuid[], integer, boolean) IS
    'Resumes the parked tasks that the filter chooses, all without one; returns how many. Example: SELECT pg_task.resume_all(queue => ''mail'', error_like => ''%timeout%'', dry_run => true)';

CREATE FUNCTION pg_task.cancel_all(
    queue text DEFAULT NULL, task text DEFAULT NULL, error_like text DEFAULT NULL, state text DEFAULT NULL, older_than interval DEFAULT NULL,
    min_priority integer DEFAULT NULL, max_priority integer DEFAULT NULL, ids uuid[] DEFAULT NULL, max integer DEFAULT NULL,
    dry_run boolean DEFAULT false
) RETURNS bigint
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'cancel_all_wrapper';
COMMENT ON FUNCTION pg_task.cancel_all(text, text, text, text, interval, integer, integer, uuid[], integer, boolean) IS
    'Deletes the tasks that the filter chooses, the running ones included, whose workers are told; returns how many. Example: SELECT pg_task.cancel_all(queue => ''mail'', older_than => ''7 days'', max => 1000)';

CREATE FUNCTION pg_task.move_all(
    to_queue text,
    queue text DEFAULT NULL, task text DEFAULT NULL, error_like text DEFAULT NULL, state text DEFAULT NULL, older_than interval DEFAULT NULL,
    min_priority integer DEFAULT NULL, max_priority integer DEFAULT NULL, ids uuid[] DEFAULT NULL, max integer DEFAULT NULL,
    dry_run boolean DEFAULT false
) RETURNS bigint
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'move_all_wrapper';
COMMENT ON FUNCTION pg_task.move_all(text, text, text, text, text, interval, integer, integer, uuid[], integer, boolean) IS
    'Moves the tasks that the filter chooses to another queue; returns how many. What runs is left alone unless state is running: the step is run again then. Example: SELECT pg_task.move_all(''bulk'', queue => ''mail'', task => ''Mailer/Digest'')';

CREATE FUNCTION pg_task.reprioritize_all(
    to_priority integer,
    queue text DEFAULT NULL, task text DEFAULT NULL, error_like text DEFAULT NULL, state text DEFAULT NULL, older_than interval DEFAULT NULL,
    min_priority integer DEFAULT NULL, max_priority integer DEFAULT NULL, ids uuid[] DEFAULT NULL, max integer DEFAULT NULL,
    dry_run boolean DEFAULT false
) RETURNS bigint
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'reprioritize_all_wrapper';
COMMENT ON FUNCTION pg_task.reprioritize_all(integer, text, text, text, text, interval, integer, integer, uuid[], integer, boolean) IS
    'Gives the tasks that the filter chooses another priority; returns how many. What runs is left alone, as by move_all. Example: SELECT pg_task.reprioritize_all(-10, queue => ''mail'')';

CREATE FUNCTION pg_task.reschedule_all(
    wakeup_at timestamptz,
    queue text DEFAULT NULL, task text DEFAULT NULL, error_like text DEFAULT NULL, state text DEFAULT NULL, older_than interval DEFAULT NULL,
    min_priority integer DEFAULT NULL, max_priority integer DEFAULT NULL, ids uuid[] DEFAULT NULL, max integer DEFAULT NULL,
    dry_run boolean DEFAULT false
) RETURNS bigint
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'reschedule_all_wrapper';
COMMENT ON FUNCTION pg_task.reschedule_all(timestamptz, text, text, text, text, interval, integer, integer, uuid[], integer, boolean) IS
    'Makes the tasks that the filter chooses due at a moment, parked ones when they are resumed; returns how many. What runs is left alone, as by move_all. Example: SELECT pg_task.reschedule_all(''2030-01-01'', queue => ''mail'', state => ''due'')';
