-- PUBLIC gets nothing but the two functions that a constraint and a default of the table call. A role gets what it needs
-- from pg_task.grant_produce, grant_work and grant_administer.
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA pg_task FROM PUBLIC;
GRANT EXECUTE ON FUNCTION pg_task.uuid7(), pg_task.step_is_valid(jsonb) TO PUBLIC;

-- Whoever monitors the server may see how it goes, but no step and no error text of a task.
GRANT USAGE ON SCHEMA pg_task TO pg_monitor;
GRANT SELECT ON pg_task.problems, pg_task.queues, pg_task.scheduler, pg_task.step_limits, pg_task.workers TO pg_monitor;
GRANT EXECUTE ON FUNCTION pg_task.lanes(), pg_task.library_version(), pg_task.queue_depths(), pg_task.queue_states(), pg_task.scheduler_state(), pg_task.step_running(text), pg_task.worker_states() TO pg_monitor;

CREATE FUNCTION pg_task.require_role(role regrole) RETURNS void
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF role IS NULL THEN
        RAISE EXCEPTION '"role" must not be NULL' USING
            ERRCODE = 'null_value_not_allowed',
            DETAIL = 'Nothing was granted.',
            HINT = 'Pass the name of a role.';
    END IF;
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.oid OPERATOR(pg_catalog.=) role::oid) THEN
        RAISE EXCEPTION 'role "%" does not exist', role USING
            ERRCODE = 'undefined_object',
            DETAIL = 'Nothing was granted.',
            HINT = 'Pass the name of a role.';
    END IF;
END $$;
COMMENT ON FUNCTION pg_task.require_role(regrole) IS
    'Raises null_value_not_allowed (22004) for NULL and undefined_object (42704) for a number that is no role''s';

CREATE FUNCTION pg_task.grant_produce(role regrole) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_task.require_role(role);
    EXECUTE pg_catalog.format('GRANT USAGE ON SCHEMA pg_task TO %s', role);
    EXECUTE pg_catalog.format('GRANT INSERT (id, queue, priority, step, wakeup_at, options), SELECT (id) ON pg_task.task TO %s', role);
    EXECUTE pg_catalog.format('GRANT EXECUTE ON FUNCTION pg_task.enqueue(jsonb, text, integer, jsonb),
        pg_task.delay(jsonb, interval, text, integer, jsonb), pg_task.schedule(jsonb, timestamptz, text, integer, jsonb),
        pg_task.enqueue_many(jsonb[], text, integer, timestamptz, jsonb), pg_task.enqueue_row() TO %s', role);
    EXECUTE pg_catalog.format('GRANT EXECUTE ON FUNCTION
        pg_task.enqueue_unique(jsonb, text, text, text, interval, timestamptz, text, integer, jsonb) TO %s', role);
END $$;
COMMENT ON FUNCTION pg_task.grant_produce(regrole) IS 'Lets a role enqueue tasks, by function or INSERT; it cannot read steps';

CREATE FUNCTION pg_task.grant_work(role regrole) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_task.grant_produce(role);
    EXECUTE pg_catalog.format('GRANT EXECUTE ON FUNCTION
        pg_task.register(uuid, text[], text[], integer[], interval, text, boolean, uuid[], bigint[], bigint[], integer, integer[], boolean),
        pg_task.heartbeat(uuid), pg_task.leave(uuid),
        pg_task.set_progress(uuid, uuid, bigint, double precision, text),
        pg_task.set_progress_many(uuid, uuid[], bigint[], double precision[], text[]),
        pg_task.finish(uuid, uuid, bigint, bigint, integer, jsonb, bigint),
        pg_task.exchange(uuid, integer, uuid[], bigint[], bigint[], smallint[], jsonb[], bigint[], text[], bigint),
        pg_task.exchange_packed(uuid, integer, uuid[], bigint[], bigint[], smallint[], jsonb[], bigint[], text[], bigint) TO %s', role);
END $$;
COMMENT ON FUNCTION pg_task.grant_work(regrole) IS 'Lets a role run workers, and enqueue';

CREATE FUNCTION pg_task.grant_schedule(role regrole) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_task.grant_produce(role);
    EXECUTE pg_catalog.format('GRANT SELECT, INSERT, DELETE, UPDATE ON pg_task.schedule TO %s', role);
    EXECUTE pg_catalog.format('GRANT EXECUTE ON FUNCTION
        pg_task.set_schedule(text, text, jsonb, text, text, integer, text, integer, text, interval, timestamptz, timestamptz, text, text, jsonb),
        pg_task.drop_schedule(text), pg_task.pause_schedule(text), pg_task.resume_schedule(text), pg_task.run_schedule(text),
        pg_task.next_ticks(text, text, timestamptz, integer) TO %s', role);
END $$;
COMMENT ON FUNCTION pg_task.grant_schedule(regrole) IS 'Lets a role make, change and run schedules, and enqueue; a worker that declares schedules needs it';

CREATE FUNCTION pg_task.grant_administer(role regrole) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_task.grant_work(role);
    PERFORM pg_task.grant_schedule(role);
    EXECUTE pg_catalog.format('GRANT SELECT ON ALL TABLES IN SCHEMA pg_task TO %s', role);
    EXECUTE pg_catalog.format('GRANT DELETE, UPDATE (queue, priority, step, wakeup_at, tried, error, options) ON pg_task.task TO %s', role);
    EXECUTE pg_catalog.format('GRANT EXECUTE ON FUNCTION pg_task.resume(uuid), pg_task.resume_at(uuid, timestamptz),
        pg_task.edit(uuid, jsonb, jsonb, boolean), pg_task.clone(uuid, timestamptz),
        pg_task.cancel(uuid), pg_task.set_retry(uuid, jsonb), pg_task.stop_workers(uuid), pg_task.claims(), pg_task.worker_states(),
        pg_task.scheduler_state(), pg_task.lanes(), pg_task.library_version(), pg_task.start_scheduler() TO %s', role);
    EXECUTE pg_catalog.format('GRANT EXECUTE ON FUNCTION
        pg_task.resume_all(text, text, text, interval, integer, integer, uuid[], integer, boolean),
        pg_task.cancel_all(text, text, text, text, interval, integer, integer, uuid[], integer, boolean),
        pg_task.move_all(text, text, text, text, text, interval, integer, integer, uuid[], integer, boolean),
        pg_task.reprioritize_all(integer, text, text, text, text, interval, integer, integer, uuid[], integer, boolean),
        pg_task.reschedule_all(timestamptz, text, text, text, text, interval, integer, integer, uuid[], integer, boolean) TO %s', role);
    EXECUTE pg_catalog.format('GRANT EXECUTE ON FUNCTION pg_task.find(text[], jsonb, text) TO %s', role);
    EXECUTE pg_catalog.format('GRANT EXECUTE ON FUNCTION pg_task.wait(uuid, interval) TO %s', role);
    EXECUTE pg_catalog.format('GRANT INSERT, DELETE, UPDATE ON pg_task.queue, pg_task.step_limit TO %s', role);
    EXECUTE pg_catalog.format('GRANT DELETE ON pg_task.unique_key TO %s', role);
    EXECUTE pg_catalog.format('GRANT EXECUTE ON FUNCTION pg_task.set_queue(text, integer, integer, interval, integer, integer, jsonb, interval, interval, integer, interval, integer, jsonb),
        pg_task.pause_queue(text), pg_task.resume_queue(text), pg_task.drop_queue(text), pg_task.queue_depths(), pg_task.key_depths(), pg_task.group_depths(), pg_task.queue_states(),
        pg_task.limit_step(text, integer), pg_task.step_running(text), pg_task.key_opens_at(text, bigint) TO %s', role);
END $$;
COMMENT ON FUNCTION pg_task.grant_administer(regrole) IS 'Lets a role see everything, resume, cancel, edit tasks, set, pause and resume queues, and stop workers';

REVOKE EXECUTE ON FUNCTION pg_task.require_role(regrole), pg_task.grant_produce(regrole), pg_task.grant_work(regrole), pg_task.grant_schedule(regrole), pg_task.grant_administer(regrole) FROM PUBLIC;

SELECT pg_task.start_scheduler();
