-- A queue is made by its use. It has a row here when something is set for it. Beside the table, shared memory has what holds at this moment:
-- a change reaches it with its commit.
CREATE TABLE pg_task.queue (
    name          text        COLLATE "C" NOT NULL,
    paused_at     timestamptz,
    concurrency   integer,
    rate          integer,
    rate_interval interval,
    burst         integer,
    updated_at    timestamptz NOT NULL DEFAULT pg_catalog.now(),
    key_concurrency integer,
    retry         jsonb,
    timeout       interval,
    retention     interval,
    key_rate      integer,
    key_rate_interval interval,
    key_burst     integer,
    key_weights   jsonb,
    CONSTRAINT queue_pkey PRIMARY KEY (name),
    CONSTRAINT queue_name_is_a_name CHECK (pg_catalog.octet_length(name) OPERATOR(pg_catalog.>=) 1 AND pg_catalog.octet_length(name) OPERATOR(pg_catalog.<=) 63),
    CONSTRAINT queue_concurrency_is_positive CHECK (concurrency OPERATOR(pg_catalog.>=) 1),
    CONSTRAINT queue_key_concurrency_is_positive CHECK (key_concurrency OPERATOR(pg_catalog.>=) 1),
    CONSTRAINT queue_keys_are_of_one_queue CHECK (key_concurrency IS NULL AND key_rate IS NULL AND key_weights IS NULL OR name OPERATOR(pg_catalog.<>) '*'),
    CONSTRAINT queue_rate_is_in_range CHECK (rate OPERATOR(pg_catalog.>=) 1 AND rate OPERATOR(pg_catalog.<=) 1000000),
    CONSTRAINT queue_rate_interval_is_in_range CHECK (
        rate_interval OPERATOR(pg_catalog.>=) '1 ms'::interval AND rate_interval OPERATOR(pg_catalog.<=) '30 days'::interval
    ),
    CONSTRAINT queue_burst_is_in_range CHECK (burst OPERATOR(pg_catalog.>=) 1 AND burst OPERATOR(pg_catalog.<=) 1000000),
    CONSTRAINT queue_rate_is_whole CHECK (
        (rate IS NULL) OPERATOR(pg_catalog.=) (rate_interval IS NULL) AND (burst IS NULL OR rate IS NOT NULL)
    ),
    CONSTRAINT queue_timeout_is_in_range CHECK (
        timeout OPERATOR(pg_catalog.>=) '1 ms'::interval AND timeout OPERATOR(pg_catalog.<=) '3650 days'::interval
    ),
    CONSTRAINT queue_retention_is_not_negative CHECK (retention OPERATOR(pg_catalog.>=) '0'::interval),
    CONSTRAINT queue_key_rate_is_in_range CHECK (key_rate OPERATOR(pg_catalog.>=) 1 AND key_rate OPERATOR(pg_catalog.<=) 1000000),
    CONSTRAINT queue_key_rate_interval_is_in_range CHECK (
        key_rate_interval OPERATOR(pg_catalog.>=) '1 ms'::interval AND key_rate_interval OPERATOR(pg_catalog.<=) '30 days'::interval
    ),
    CONSTRAINT queue_key_burst_is_in_range CHECK (key_burst OPERATOR(pg_catalog.>=) 1 AND key_burst OPERATOR(pg_catalog.<=) 1000000),
    CONSTRAINT queue_key_rate_is_whole CHECK (
        (key_rate IS NULL) OPERATOR(pg_catalog.=) (key_rate_interval IS NULL) AND (key_burst IS NULL OR key_rate IS NOT NULL)
    ),
    CONSTRAINT queue_key_weights_are_weights CHECK (
        pg_catalog.jsonb_typeof(key_weights) OPERATOR(pg_catalog.=) 'object'
        AND NOT pg_catalog.jsonb_path_exists(key_weights, 'strict $.* ? (@.type() != "number" || @ < 1 || @ > 100 || @.floor() != @)')
    )
);
COMMENT ON TABLE pg_task.queue IS
    'Settings of queues, one row for each that has some; the name * stands for all queues together. pg_task.set_queue, pause_queue, resume_queue and drop_queue change it';
COMMENT ON COLUMN pg_task.queue.name IS 'The queue, or * for all queues together';
COMMENT ON COLUMN pg_task.queue.paused_at IS 'Since when it is paused: nothing is handed out, what runs goes on';
COMMENT ON COLUMN pg_task.queue.concurrency IS 'So many tasks run at once, at most, with however many workers';
COMMENT ON COLUMN pg_task.queue.rate IS 'So many tasks are handed out in rate_interval, at most; a further attempt or step counts as one more';
COMMENT ON COLUMN pg_task.queue.rate_interval IS 'The time that the rate is meant for; a month has 30 days';
COMMENT ON COLUMN pg_task.queue.burst IS 'So many hand-outs of the rate gather while there is nothing to do; by default as many as the rate';
COMMENT ON COLUMN pg_task.queue.updated_at IS 'Start of the transaction that last changed the settings';
COMMENT ON COLUMN pg_task.queue.key_concurrency IS 'So many tasks of each key (the option "key") run at once, at most';
COMMENT ON COLUMN pg_task.queue.retry IS 'The policy of retries of its tasks that have none of their own: as their option "retry"';
COMMENT ON COLUMN pg_task.queue.timeout IS 'How long an attempt of its tasks may take, unless they say so themselves; a month has 30 days';
COMMENT ON COLUMN pg_task.queue.retention IS 'How long the history keeps what became of its tasks; 0: none of it; NULL: as pg_task.history_retention says';
COMMENT ON CONSTRAINT queue_timeout_is_in_range ON pg_task.queue IS '1 millisecond to 10 years';
COMMENT ON CONSTRAINT queue_retention_is_not_negative ON pg_task.queue IS '0 for a queue whose tasks leave no history';
COMMENT ON COLUMN pg_task.queue.key_rate IS 'So many tasks of each key are handed out in key_rate_interval, at most; as rate, for each key on its own';
COMMENT ON COLUMN pg_task.queue.key_rate_interval IS 'The time that key_rate is meant for; a month has 30 days';
COMMENT ON COLUMN pg_task.queue.key_burst IS 'So many hand-outs of key_rate gather for each key while there is nothing to do; by default as many as key_rate';
COMMENT ON COLUMN pg_task.queue.key_weights IS 'Weights of keys by their names, for example {"big tenant": 3}: with a backlog, three of its tasks are handed out for each one of others. A key that is not named has the weight 1';
COMMENT ON CONSTRAINT queue_key_weights_are_weights ON pg_task.queue IS 'An object with whole numbers from 1 to 100';
COMMENT ON CONSTRAINT queue_key_rate_is_in_range ON pg_task.queue IS '1 to 1,000,000';
COMMENT ON CONSTRAINT queue_key_rate_interval_is_in_range ON pg_task.queue IS '1 millisecond to 30 days';
COMMENT ON CONSTRAINT queue_key_burst_is_in_range ON pg_task.queue IS '1 to 1,000,000';
COMMENT ON CONSTRAINT queue_key_rate_is_whole ON pg_task.queue IS 'A rate has an interval, and a burst belongs to a rate';
COMMENT ON CONSTRAINT queue_key_concurrency_is_positive ON pg_task.queue IS 'To hand out nothing, pause the queue';
COMMENT ON CONSTRAINT queue_keys_are_of_one_queue ON pg_task.queue IS 'A key belongs to its queue';
COMMENT ON CONSTRAINT queue_pkey ON pg_task.queue IS 'A queue has its settings once';
COMMENT ON INDEX pg_task.queue_pkey IS 'A queue has its settings once';
COMMENT ON CONSTRAINT queue_name_is_a_name ON pg_task.queue IS 'Shared memory has 63 bytes for the name of a queue';
COMMENT ON CONSTRAINT queue_concurrency_is_positive ON pg_task.queue IS 'To hand out nothing, pause the queue';
COMMENT ON CONSTRAINT queue_rate_is_in_range ON pg_task.queue IS '1 to 1,000,000';
COMMENT ON CONSTRAINT queue_rate_interval_is_in_range ON pg_task.queue IS '1 millisecond to 30 days';
COMMENT ON CONSTRAINT queue_burst_is_in_range ON pg_task.queue IS '1 to 1,000,000';
COMMENT ON CONSTRAINT queue_rate_is_whole ON pg_task.queue IS 'A rate has an interval, and a burst belongs to a rate';
SELECT pg_catalog.pg_extension_config_dump('pg_task.queue', '');

CREATE FUNCTION pg_task.on_queue() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'on_queue_wrapper';
COMMENT ON FUNCTION pg_task.on_queue() IS 'Brings changed settings to shared memory with the commit, in the order of the commits';

CREATE TRIGGER queue_one_at_a_time BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON pg_task.queue
    FOR EACH STATEMENT EXECUTE FUNCTION pg_task.on_queue();
-- Deferred: what a savepoint takes back is never told.
CREATE CONSTRAINT TRIGGER queue_changed AFTER INSERT OR UPDATE OR DELETE ON pg_task.queue
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION pg_task.on_queue();
COMMENT ON TRIGGER queue_one_at_a_time ON pg_task.queue IS 'Transactions that change settings follow each other';
COMMENT ON TRIGGER queue_changed ON pg_task.queue IS 'At commit the settings hold for every hand-out from then on';
ALTER TABLE pg_task.queue ENABLE ALWAYS TRIGGER queue_one_at_a_time;
ALTER TABLE pg_task.queue ENABLE ALWAYS TRIGGER queue_changed;
COMMENT ON CONSTRAINT queue_changed ON pg_task.queue IS 'At commit the settings hold for every hand-out from then on';

CREATE FUNCTION pg_task.set_queue(
    name text, concurrency integer DEFAULT NULL, rate integer DEFAULT NULL, per interval DEFAULT '1 s', burst integer DEFAULT NULL,
    key_concurrency integer DEFAULT NULL, retry jsonb DEFAULT NULL, timeout interval DEFAULT NULL, retention interval DEFAULT NULL,
    key_rate integer DEFAULT NULL, key_per interval DEFAULT '1 s', key_burst integer DEFAULT NULL, key_weights jsonb DEFAULT NULL
) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'set_queue_wrapper';
COMMENT ON FUNCTION pg_task.set_queue(text, integer, integer, interval, integer, integer, jsonb, interval, interval, integer, interval, integer, jsonb) IS
    'Sets the limits of a queue, of all queues together (*), from the commit on: how many tasks run at once, how many are handed out in a time, and both of each key; weights of keys, which take turns; and what holds for tasks that do not say it themselves: the policy of retries, the time limit of an attempt, how long the history keeps them. What is not named is not set. Example: SELECT pg_task.set_queue(''mail'', concurrency => 5, rate => 100, per => ''1 minute'', timeout => ''30 s'')';

CREATE FUNCTION pg_task.pause_queue(name text) RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pause_queue_wrapper';
COMMENT ON FUNCTION pg_task.pause_queue(text) IS
    'From the commit on nothing of the queue (* for all) is handed out; what runs goes on. False when it was paused already';

CREATE FUNCTION pg_task.resume_queue(name text) RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'resume_queue_wrapper';
COMMENT ON FUNCTION pg_task.resume_queue(text) IS 'Ends a pause; false when the queue was not paused';

CREATE FUNCTION pg_task.drop_queue(name text) RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'drop_queue_wrapper';
COMMENT ON FUNCTION pg_task.drop_queue(text) IS
    'Forgets the settings of a queue, a pause included; its tasks stay. False when there were none';

CREATE FUNCTION pg_task.queue_states()
    RETURNS TABLE (queue text, ready integer, running integer, paused boolean, opens_at timestamptz)
    LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'queue_states_wrapper';
COMMENT ON FUNCTION pg_task.queue_states() IS
    'What memory knows of each queue: ready and running tasks, whether it is paused, and when a rate or a start lets its next task go';

CREATE FUNCTION pg_task.key_opens_at(queue text, key bigint) RETURNS timestamptz
    LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'key_opens_at_wrapper';
COMMENT ON FUNCTION pg_task.key_opens_at(text, bigint) IS
    'When a key (its hash, as in the index task_key) lets its next task go, if its rate or the time after a start holds it back now. pg_task.keys shows it';
