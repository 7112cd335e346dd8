-- Limits of steps, whatever queues they are in. As with pg_task.queue, shared memory has what holds at this moment.
CREATE TABLE pg_task.step_limit (
    step        text        COLLATE "C" NOT NULL,
    concurrency integer     NOT NULL,
    updated_at  timestamptz NOT NULL DEFAULT pg_catalog.now(),
    CONSTRAINT step_limit_pkey PRIMARY KEY (step),
    CONSTRAINT step_limit_step_has_a_slash CHECK (pg_catalog.strpos(step, '/') OPERATOR(pg_catalog.>) 0),
    CONSTRAINT step_limit_concurrency_is_positive CHECK (concurrency OPERATOR(pg_catalog.>=) 1)
);
COMMENT ON TABLE pg_task.step_limit IS
    'How many tasks may be at a step at once, one row for each step that has such a limit. pg_task.limit_step changes it';
COMMENT ON COLUMN pg_task.step_limit.step IS 'The step, as Task/Step';
COMMENT ON COLUMN pg_task.step_limit.concurrency IS 'So many run at once, at most, whatever queues they are in and with however many workers';
COMMENT ON COLUMN pg_task.step_limit.updated_at IS 'Start of the transaction that last changed the limit';
COMMENT ON CONSTRAINT step_limit_pkey ON pg_task.step_limit IS 'A step has its limit once';
COMMENT ON INDEX pg_task.step_limit_pkey IS 'A step has its limit once';
COMMENT ON CONSTRAINT step_limit_step_has_a_slash ON pg_task.step_limit IS 'The name of a task and the name of its step';
COMMENT ON CONSTRAINT step_limit_concurrency_is_positive ON pg_task.step_limit IS 'To hand out nothing, pause the queue';
SELECT pg_catalog.pg_extension_config_dump('pg_task.step_limit', '');

CREATE TRIGGER step_limit_one_at_a_time BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON pg_task.step_limit
    FOR EACH STATEMENT EXECUTE FUNCTION pg_task.on_queue();
CREATE CONSTRAINT TRIGGER step_limit_changed AFTER INSERT OR UPDATE OR DELETE ON pg_task.step_limit
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION pg_task.on_queue();
COMMENT ON TRIGGER step_limit_one_at_a_time ON pg_task.step_limit IS 'Transactions that change limits follow each other';
COMMENT ON TRIGGER step_limit_changed ON pg_task.step_limit IS 'At commit the limit holds for every hand-out from then on';
COMMENT ON CONSTRAINT step_limit_changed ON pg_task.step_limit IS 'At commit the limit holds for every hand-out from then on';
ALTER TABLE pg_task.step_limit ENABLE ALWAYS TRIGGER step_limit_one_at_a_time;
ALTER TABLE pg_task.step_limit ENABLE ALWAYS TRIGGER step_limit_changed;

CREATE FUNCTION pg_task.limit_step(step text, concurrency integer DEFAULT NULL) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'limit_step_wrapper';
COMMENT ON FUNCTION pg_task.limit_step(text, integer) IS
    'From the commit on so many tasks at most are at the step at once, in all queues together; NULL for any number. Example: SELECT pg_task.limit_step(''Mailer/Send'', 5)';

CREATE FUNCTION pg_task.step_running(step text) RETURNS integer
    LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'step_running_wrapper';
COMMENT ON FUNCTION pg_task.step_running(text) IS 'How many tasks count against the limit of a step at this moment; NULL when it has none';
