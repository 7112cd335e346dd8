-- Schedules: rows that the scheduler turns into tasks. The row holds everything: what comes next, what came last. A tick is advanced and its
-- task is enqueued in one transaction under the row's lock, so that each tick has its task once, whatever happens to the server.
CREATE TABLE pg_task.schedule (
    name         text        COLLATE "C" NOT NULL,
    cron         text        NOT NULL,
    time_zone    text        NOT NULL DEFAULT 'UTC',
    step         jsonb       NOT NULL,
    tick_field   text,
    queue        text        COLLATE "C" NOT NULL DEFAULT 'default',
    priority     smallint    NOT NULL DEFAULT 0,
    missed       text        COLLATE "C" NOT NULL DEFAULT 'once',
    missed_limit integer     NOT NULL DEFAULT 100,
    overlap      text        COLLATE "C" NOT NULL DEFAULT 'allow',
    jitter       interval    NOT NULL DEFAULT '0 s',
    starts_at    timestamptz,
    ends_at      timestamptz,
    paused_at    timestamptz,
    declared_by  text        COLLATE "C",
    next_at      timestamptz,
    wake_at      timestamptz,
    waiting      timestamptz[] NOT NULL DEFAULT '{}',
    tasks        uuid[]      NOT NULL DEFAULT '{}',
    last_at      timestamptz,
    last_run_at  timestamptz,
    fired        bigint      NOT NULL DEFAULT 0,
    skipped      bigint      NOT NULL DEFAULT 0,
    failures     integer     NOT NULL DEFAULT 0,
    error        text,
    created_at   timestamptz NOT NULL DEFAULT pg_catalog.now(),
    updated_at   timestamptz NOT NULL DEFAULT pg_catalog.now(),
    options      jsonb,
    CONSTRAINT schedule_pkey PRIMARY KEY (name),
    CONSTRAINT schedule_name_is_a_name CHECK (pg_catalog.octet_length(name) OPERATOR(pg_catalog.>=) 1 AND pg_catalog.octet_length(name) OPERATOR(pg_catalog.<=) 200),
    CONSTRAINT schedule_step_has_a_name CHECK (pg_task.step_is_valid(step)),
    CONSTRAINT schedule_queue_is_a_name CHECK (pg_catalog.octet_length(queue) OPERATOR(pg_catalog.>=) 1 AND pg_catalog.octet_length(queue) OPERATOR(pg_catalog.<=) 63),
    CONSTRAINT schedule_missed_is_a_policy CHECK (missed OPERATOR(pg_catalog.=) ANY (ARRAY['skip', 'once', 'all'])),
    CONSTRAINT schedule_missed_limit_is_in_range CHECK (missed_limit OPERATOR(pg_catalog.>=) 1 AND missed_limit OPERATOR(pg_catalog.<=) 1000),
    CONSTRAINT schedule_overlap_is_a_policy CHECK (overlap OPERATOR(pg_catalog.=) ANY (ARRAY['allow', 'skip', 'queue'])),
    CONSTRAINT schedule_jitter_is_in_range CHECK (jitter OPERATOR(pg_catalog.>=) '0 s'::interval AND jitter OPERATOR(pg_catalog.<=) '1 day'::interval),
    CONSTRAINT schedule_ends_after_its_start CHECK (ends_at OPERATOR(pg_catalog.>) starts_at),
    CONSTRAINT schedule_times_are_finite CHECK (
        pg_catalog.isfinite(starts_at) AND pg_catalog.isfinite(ends_at) AND pg_catalog.isfinite(next_at) AND pg_catalog.isfinite(wake_at)
    )
);
COMMENT ON TABLE pg_task.schedule IS
    'Tasks that are enqueued again and again, one row a schedule. pg_task.set_schedule, pause_schedule, resume_schedule and drop_schedule change it; so may INSERT, UPDATE and DELETE';
COMMENT ON COLUMN pg_task.schedule.name IS 'Its name, of 1 to 200 bytes';
COMMENT ON COLUMN pg_task.schedule.cron IS 'When it ticks: five cron fields, six with seconds before them, @daily and its like, or every 90 seconds';
COMMENT ON COLUMN pg_task.schedule.time_zone IS 'Whose clocks the cron fields are about: a name of pg_timezone_names';
COMMENT ON COLUMN pg_task.schedule.step IS 'The step that each tick enqueues, as {"Task": {"Step": payload}}';
COMMENT ON COLUMN pg_task.schedule.tick_field IS 'The field of the payload in which each task finds the time of its tick, as 2026-01-31T03:00:00Z; NULL for none';
COMMENT ON COLUMN pg_task.schedule.queue IS 'The queue of the tasks';
COMMENT ON COLUMN pg_task.schedule.priority IS 'The priority of the tasks';
COMMENT ON COLUMN pg_task.schedule.missed IS 'What becomes of ticks that were missed: skip, once (one run for all of them), all (the last missed_limit)';
COMMENT ON COLUMN pg_task.schedule.missed_limit IS 'So many missed ticks are run at most, and so many wait at most';
COMMENT ON COLUMN pg_task.schedule.overlap IS 'What becomes of a tick while a task of the schedule is still there and not parked: allow, skip, queue';
COMMENT ON COLUMN pg_task.schedule.jitter IS 'Each task is due up to so long after its tick, at random';
COMMENT ON COLUMN pg_task.schedule.starts_at IS 'No tick is before this time, and "every" counts from it; NULL counts from 1970-01-01 UTC';
COMMENT ON COLUMN pg_task.schedule.ends_at IS 'All ticks are before this time';
COMMENT ON COLUMN pg_task.schedule.paused_at IS 'Since when it is paused: what would have ticked meanwhile is left out';
COMMENT ON COLUMN pg_task.schedule.declared_by IS 'The program that declares it and may change or remove it; NULL when it was made by SQL';
COMMENT ON COLUMN pg_task.schedule.next_at IS 'The next tick; NULL when there is none any more';
COMMENT ON COLUMN pg_task.schedule.wake_at IS 'When the scheduler looks at it next: at next_at, later after an error, never while it is paused';
COMMENT ON COLUMN pg_task.schedule.waiting IS 'Ticks that wait for the end of a run (overlap queue)';
COMMENT ON COLUMN pg_task.schedule.tasks IS 'Its last tasks; those that had ended by the last tick are left out';
COMMENT ON COLUMN pg_task.schedule.last_at IS 'The last tick that is dealt with';
COMMENT ON COLUMN pg_task.schedule.last_run_at IS 'When its last task was enqueued';
COMMENT ON COLUMN pg_task.schedule.fired IS 'Tasks that it has enqueued';
COMMENT ON COLUMN pg_task.schedule.skipped IS 'Ticks that got no task, by its policies; of more than a thousand at once only a thousand are counted';
COMMENT ON COLUMN pg_task.schedule.failures IS 'How often in a row its next tick could not be enqueued';
COMMENT ON COLUMN pg_task.schedule.error IS 'Why; it is tried again by itself, at most a minute later';
COMMENT ON COLUMN pg_task.schedule.created_at IS 'Start of the transaction that made it';
COMMENT ON COLUMN pg_task.schedule.updated_at IS 'Start of the transaction that last changed its settings';
COMMENT ON COLUMN pg_task.schedule.options IS 'The options of the tasks: docs/options.md names them';
COMMENT ON CONSTRAINT schedule_pkey ON pg_task.schedule IS 'A schedule is there once';
COMMENT ON INDEX pg_task.schedule_pkey IS 'A schedule is there once';
COMMENT ON CONSTRAINT schedule_name_is_a_name ON pg_task.schedule IS 'A short name, for people';
COMMENT ON CONSTRAINT schedule_step_has_a_name ON pg_task.schedule IS 'The shape {"Task": {"Step": payload}}, as in pg_task.task';
COMMENT ON CONSTRAINT schedule_queue_is_a_name ON pg_task.schedule IS 'As in pg_task.task';
COMMENT ON CONSTRAINT schedule_missed_is_a_policy ON pg_task.schedule IS 'skip, once or all';
COMMENT ON CONSTRAINT schedule_missed_limit_is_in_range ON pg_task.schedule IS '1 to 1000';
COMMENT ON CONSTRAINT schedule_overlap_is_a_policy ON pg_task.schedule IS 'allow, skip or queue';
COMMENT ON CONSTRAINT schedule_jitter_is_in_range ON pg_task.schedule IS '0 to 1 day';
COMMENT ON CONSTRAINT schedule_ends_after_its_start ON pg_task.schedule IS 'Otherwise it would never tick';
COMMENT ON CONSTRAINT schedule_times_are_finite ON pg_task.schedule IS 'An infinite time has no place in the order of what is due; NULL stands for never';

CREATE INDEX schedule_wake ON pg_task.schedule (wake_at) WHERE wake_at IS NOT NULL;
COMMENT ON INDEX pg_task.schedule_wake IS 'What ticks next';
CREATE INDEX schedule_waiting ON pg_task.schedule (name) WHERE pg_catalog.cardinality(waiting) OPERATOR(pg_catalog.>) 0;
COMMENT ON INDEX pg_task.schedule_waiting IS 'Schedules with ticks that wait for the end of a run';

SELECT pg_catalog.pg_extension_config_dump('pg_task.schedule', '');

CREATE FUNCTION pg_task.on_schedule() RETURNS trigger
    LANGUAGE c AS 'MODULE_PATHNAME', 'on_schedule_wrapper';
COMMENT ON FUNCTION pg_task.on_schedule() IS 'Checks a schedule, works out its next tick, and tells the scheduler at commit';

CREATE TRIGGER schedule_insert BEFORE INSERT ON pg_task.schedule
    FOR EACH ROW EXECUTE FUNCTION pg_task.on_schedule();
-- What the scheduler writes changes none of these, or next_at and wake_at together.
CREATE TRIGGER schedule_update BEFORE UPDATE ON pg_task.schedule
    FOR EACH ROW WHEN (
        old.name OPERATOR(pg_catalog.<>) new.name
        OR old.cron OPERATOR(pg_catalog.<>) new.cron
        OR old.time_zone OPERATOR(pg_catalog.<>) new.time_zone
        OR old.step OPERATOR(pg_catalog.<>) new.step
        OR COALESCE(old.tick_field OPERATOR(pg_catalog.<>) new.tick_field, (old.tick_field IS NULL) OPERATOR(pg_catalog.<>) (new.tick_field IS NULL))
        OR COALESCE(old.options OPERATOR(pg_catalog.<>) new.options, (old.options IS NULL) OPERATOR(pg_catalog.<>) (new.options IS NULL))
        OR old.queue OPERATOR(pg_catalog.<>) new.queue
        OR old.priority OPERATOR(pg_catalog.<>) new.priority
        OR old.missed OPERATOR(pg_catalog.<>) new.missed
        OR old.missed_limit OPERATOR(pg_catalog.<>) new.missed_limit
        OR old.overlap OPERATOR(pg_catalog.<>) new.overlap
        OR old.jitter OPERATOR(pg_catalog.<>) new.jitter
        OR COALESCE(old.starts_at OPERATOR(pg_catalog.<>) new.starts_at, (old.starts_at IS NULL) OPERATOR(pg_catalog.<>) (new.starts_at IS NULL))
        OR COALESCE(old.ends_at OPERATOR(pg_catalog.<>) new.ends_at, (old.ends_at IS NULL) OPERATOR(pg_catalog.<>) (new.ends_at IS NULL))
        OR (old.paused_at IS NULL) OPERATOR(pg_catalog.<>) (new.paused_at IS NULL)
        OR (COALESCE(old.next_at OPERATOR(pg_catalog.<>) new.next_at, (old.next_at IS NULL) OPERATOR(pg_catalog.<>) (new.next_at IS NULL))
            AND NOT COALESCE(old.wake_at OPERATOR(pg_catalog.<>) new.wake_at, (old.wake_at IS NULL) OPERATOR(pg_catalog.<>) (new.wake_at IS NULL)))
    ) EXECUTE FUNCTION pg_task.on_schedule();
CREATE TRIGGER schedule_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON pg_task.schedule
    FOR EACH STATEMENT EXECUTE FUNCTION pg_task.on_schedule();
COMMENT ON TRIGGER schedule_insert ON pg_task.schedule IS 'Checks it and works out its next tick, unless that is given';
COMMENT ON TRIGGER schedule_update ON pg_task.schedule IS 'Checks it and works out its next tick anew when that follows from the change';
COMMENT ON TRIGGER schedule_changed ON pg_task.schedule IS 'At commit the scheduler hears of it';
-- Also when rows arrive by logical replication or under session_replication_role = replica.
ALTER TABLE pg_task.schedule ENABLE ALWAYS TRIGGER schedule_insert;
ALTER TABLE pg_task.schedule ENABLE ALWAYS TRIGGER schedule_update;
ALTER TABLE pg_task.schedule ENABLE ALWAYS TRIGGER schedule_changed;

CREATE FUNCTION pg_task.set_schedule(
    name text, cron text, step jsonb, time_zone text DEFAULT 'UTC', queue text DEFAULT 'default', priority integer DEFAULT 0,
    missed text DEFAULT 'once', missed_limit integer DEFAULT 100, overlap text DEFAULT 'allow', jitter interval DEFAULT '0 s',
    starts_at timestamptz DEFAULT NULL, ends_at timestamptz DEFAULT NULL, tick_field text DEFAULT NULL, declared_by text DEFAULT NULL,
    options jsonb DEFAULT NULL
) RETURNS timestamptz
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'set_schedule_wrapper';
COMMENT ON FUNCTION pg_task.set_schedule(text, text, jsonb, text, text, integer, text, integer, text, interval, timestamptz, timestamptz, text, text, jsonb) IS
    'Makes a schedule or changes it to exactly this; returns its next tick. A pause stays. Example: SELECT pg_task.set_schedule(''nightly'', ''30 3 * * *'', ''{"Report": {"Build": {}}}'', time_zone => ''Europe/Berlin'')';

CREATE FUNCTION pg_task.drop_schedule(name text) RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'drop_schedule_wrapper';
COMMENT ON FUNCTION pg_task.drop_schedule(text) IS 'Removes a schedule; tasks that it has enqueued stay. False when there is no such schedule';

CREATE FUNCTION pg_task.pause_schedule(name text) RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pause_schedule_wrapper';
COMMENT ON FUNCTION pg_task.pause_schedule(text) IS 'From the commit on the schedule enqueues nothing; false when it was paused already';

CREATE FUNCTION pg_task.resume_schedule(name text) RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'resume_schedule_wrapper';
COMMENT ON FUNCTION pg_task.resume_schedule(text) IS
    'Ends a pause: the next tick is the first one from now on. False when the schedule was not paused';

CREATE FUNCTION pg_task.run_schedule(name text) RETURNS uuid
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'run_schedule_wrapper';
COMMENT ON FUNCTION pg_task.run_schedule(text) IS
    'Enqueues the schedule''s task now, in the caller''s transaction, whatever its policies and a pause say; its ticks stay as they are. Returns the task''s id';

CREATE FUNCTION pg_task.next_ticks(
    cron text, time_zone text DEFAULT 'UTC', after timestamptz DEFAULT pg_catalog.now(), count integer DEFAULT 5
) RETURNS timestamptz[]
    LANGUAGE c STABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'next_ticks_wrapper';
COMMENT ON FUNCTION pg_task.next_ticks(text, text, timestamptz, integer) IS
    'The ticks that a schedule would have after a moment, 1 to 1000 of them. Example: SELECT unnest(pg_task.next_ticks(''30 2 * * *'', ''Europe/Berlin''))';
