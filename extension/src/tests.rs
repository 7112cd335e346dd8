//! Tests inside the server: the SQL surface, each in a transaction that is rolled back.

#[pgrx::pg_schema]
mod tests {
    use pgrx::prelude::*;

    use crate::shmem;
    use crate::task_table::TaskTable;

    fn one<T: FromDatum + IntoDatum>(sql: &str) -> Option<T> {
        Spi::get_one(sql).expect("the query runs")
    }

    #[pg_test]
    fn a_plain_insert_of_a_step_is_enough() {
        Spi::run(r#"INSERT INTO pg_task.task (step) VALUES ('{"A":{"B":1}}')"#).expect("it is a step");
        assert_eq!(
            one::<bool>(
                "SELECT queue = 'default' AND priority = 0 AND tried = 0 AND fence = 0 AND error IS NULL AND wakeup_at = now() FROM pg_task.task"
            ),
            Some(true)
        );
    }

    #[pg_test]
    fn enqueue_delay_and_schedule_set_queue_priority_and_time() {
        Spi::run(
            r#"SELECT pg_task.enqueue('{"A":{"B":1}}', priority => -3, queue => 'mail'),
                      pg_task.delay('{"A":{"B":2}}', '1 hour'),
                      pg_task.schedule('{"A":{"B":3}}', '2020-01-01')"#,
        )
        .expect("they are steps");
        assert_eq!(
            one::<i64>(
                "SELECT count(*) FROM pg_task.task WHERE (queue, priority, wakeup_at) IN (('mail', -3, now()), ('default', 0, now() + interval '1 hour'), ('default', 0, '2020-01-01'))"
            ),
            Some(3)
        );
    }

    #[pg_test]
    fn a_slot_for_which_a_scheduler_is_wanted_is_not_given_up() {
        use std::sync::atomic::Ordering::SeqCst;

        // Of no database, and served: the launcher leaves it alone.
        let nowhere = pg_sys::Oid::from(u32::MAX);
        let slot = shmem::want_scheduler(nowhere).expect("a slot is free");
        slot.control().pid.store(1, SeqCst);
        assert!(!slot.free_unless_wanted());
        assert_eq!(shmem::want_scheduler(nowhere), Some(slot));
        assert!(slot.control().wanted.swap(false, SeqCst));
        assert!(slot.free_unless_wanted());
        assert!(shmem::slot_of(nowhere).is_none() && !slot.is_served());
    }

    #[pg_test]
    fn enqueue_many_returns_the_ids_in_the_order_of_the_steps() {
        // In a statement of its own: a query does not see the rows that it inserts.
        Spi::run(
            r#"CREATE TEMPORARY TABLE made AS SELECT d.id, d.n FROM unnest(pg_task.enqueue_many(
                (SELECT array_agg(jsonb_build_object('A', jsonb_build_object('B', n)) ORDER BY n) FROM generate_series(1, 1000) AS n)
               )) WITH ORDINALITY AS d (id, n)"#,
        )
        .expect("they are steps");
        assert_eq!(
            one::<bool>(
                "SELECT count(*) = 1000 AND bool_and(t.step->'A'->>'B' = made.n::text) FROM made JOIN pg_task.task AS t USING (id)"
            ),
            Some(true)
        );
        assert_eq!(one::<i32>("SELECT cardinality(pg_task.enqueue_many('{}'))"), Some(0));
    }

    #[pg_test]
    fn numbers_in_a_step_stay_exact() {
        Spi::run(r#"SELECT pg_task.enqueue('{"A":{"B":[1e400, 1.10, 18446744073709551616]}}')"#)
            .expect("a step");
        let zeros = "0".repeat(400);
        assert_eq!(
            one::<String>("SELECT (step->'A'->'B')::text FROM pg_task.task"),
            Some(format!("[1{zeros}, 1.10, 18446744073709551616]"))
        );
    }

    #[pg_test(error = "\"step\" must not be NULL")]
    fn a_null_step_is_refused() {
        Spi::run("SELECT pg_task.enqueue(NULL)").expect("raised before");
    }

    #[pg_test(
        error = "a step must be an object with one key, the task's name, that holds an object with one key, the step's name"
    )]
    fn a_step_with_two_tasks_is_refused() {
        Spi::run(r#"SELECT pg_task.enqueue('{"A":{"B":1},"C":{"D":1}}')"#).expect("raised before");
    }

    #[pg_test(
        error = "a step must be an object with one key, the task's name, that holds an object with one key, the step's name"
    )]
    fn a_plain_insert_of_an_array_is_refused() {
        Spi::run("INSERT INTO pg_task.task (step) VALUES ('[1]')").expect("raised before");
    }

    #[pg_test(error = "\"wakeup_at\" must be a finite time")]
    fn an_infinite_time_is_refused() {
        Spi::run(r#"SELECT pg_task.schedule('{"A":{"B":1}}', 'infinity')"#).expect("raised before");
    }

    #[pg_test(error = "a delay must not be negative")]
    fn a_negative_delay_is_refused() {
        Spi::run(r#"SELECT pg_task.delay('{"A":{"B":1}}', '-1 s')"#).expect("raised before");
    }

    #[pg_test(error = "a queue's name must have 1 to 63 bytes, not 64")]
    fn a_long_queue_name_is_refused() {
        Spi::run(r#"SELECT pg_task.enqueue('{"A":{"B":1}}', repeat('q', 64))"#).expect("raised before");
    }

    #[pg_test(error = "\"priority\" must be between -32768 and 32767, not 32768")]
    fn a_priority_out_of_range_is_refused() {
        Spi::run(r#"SELECT pg_task.enqueue('{"A":{"B":1}}', priority => 32768)"#).expect("raised before");
    }

    #[pg_test(error = "\"steps\" has a NULL at position 2")]
    fn a_null_among_many_is_refused_with_its_position() {
        Spi::run(r#"SELECT pg_task.enqueue_many(ARRAY['{"A":{"B":1}}'::jsonb, NULL])"#)
            .expect("raised before");
    }

    #[pg_test]
    fn an_oversized_step_is_refused_with_its_sqlstate() {
        Spi::run(
            r#"DO $$ BEGIN
                SET LOCAL pg_task.max_step_size = '1kB';
                PERFORM pg_task.enqueue(jsonb_build_object('A', jsonb_build_object('B', repeat('x', 5000))));
                RAISE 'accepted';
               EXCEPTION WHEN program_limit_exceeded THEN NULL; END $$"#,
        )
        .expect("it is refused with 54000");
    }

    #[pg_test]
    fn clearing_the_error_bumps_the_fence_and_gives_all_retries_back() {
        Spi::run(r#"INSERT INTO pg_task.task (step, tried, error) VALUES ('{"A":{"B":1}}', 4, 'broke')"#)
            .expect("an administrator may");
        Spi::run("UPDATE pg_task.task SET error = NULL").expect("it is there");
        assert_eq!(
            one::<bool>("SELECT fence = 1::bigint << 32 AND tried = 0 AND error IS NULL FROM pg_task.task"),
            Some(true)
        );
        Spi::run("UPDATE pg_task.task SET wakeup_at = now() + interval '1 day'").expect("it is there");
        assert_eq!(one::<i64>("SELECT fence FROM pg_task.task"), Some(2 << 32));
        Spi::run("UPDATE pg_task.task SET locked_by = id, locked_at = now()").expect("it is there");
        assert_eq!(one::<i64>("SELECT fence FROM pg_task.task"), Some(2 << 32));
    }

    #[pg_test(error = "the id of a task cannot be changed")]
    fn an_id_cannot_be_changed() {
        Spi::run(r#"INSERT INTO pg_task.task (step) VALUES ('{"A":{"B":1}}')"#).expect("a step");
        Spi::run("UPDATE pg_task.task SET id = pg_task.uuid7()").expect("raised before");
    }

    #[pg_test]
    fn resume_and_cancel_say_whether_there_was_such_a_task() {
        Spi::run(
            r#"INSERT INTO pg_task.task (step, error, queue) VALUES
                ('{"A":{"B":1}}', 'timeout: x', 'q'), ('{"A":{"B":2}}', 'other', 'q'), ('{"C":{"D":1}}', 'timeout: y', 'r')"#,
        )
        .expect("steps");
        assert_eq!(one::<i64>("SELECT pg_task.resume_all(queue => 'q', error_like => 'timeout%')"), Some(1));
        assert_eq!(one::<i64>("SELECT pg_task.resume_all(task => 'C')"), Some(1));
        assert_eq!(one::<bool>("SELECT pg_task.resume(id) FROM pg_task.failed"), Some(true));
        assert_eq!(one::<bool>("SELECT bool_or(pg_task.resume(id)) FROM pg_task.task"), Some(false));
        assert_eq!(one::<bool>("SELECT bool_and(pg_task.cancel(id)) FROM pg_task.task"), Some(true));
        assert_eq!(one::<bool>("SELECT pg_task.cancel(pg_task.uuid7())"), Some(false));
    }

    #[pg_test]
    fn enqueue_row_carries_the_row_and_its_options() {
        Spi::run(
            "CREATE TABLE orders (id int, price numeric);
             CREATE TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON orders FOR EACH ROW
                EXECUTE FUNCTION pg_task.enqueue_row('Order', 'Deliver', 'mail', '-2');
             INSERT INTO orders VALUES (1, 2.50); UPDATE orders SET id = 2; DELETE FROM orders",
        )
        .expect("the trigger fires");
        assert_eq!(
            one::<String>("SELECT string_agg(step::text, ' ' ORDER BY id) FROM pg_task.task WHERE queue = 'mail' AND priority = -2"),
            Some(r#"{"Order": {"Deliver": {"id": 1, "price": 2.50}}} {"Order": {"Deliver": {"id": 2, "price": 2.50}}} {"Order": {"Deliver": {"id": 2, "price": 2.50}}}"#.into())
        );
    }

    #[pg_test(error = "pg_task.enqueue_row needs the names of a task and a step")]
    fn enqueue_row_without_names_is_refused() {
        Spi::run("CREATE TABLE t (id int); CREATE TRIGGER t AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION pg_task.enqueue_row(); INSERT INTO t VALUES (1)").expect("raised before");
    }

    #[pg_test]
    fn a_role_gets_what_it_was_granted_and_nothing_more() {
        Spi::run(
            r#"CREATE ROLE nobody_special; CREATE ROLE producer; SELECT pg_task.grant_produce('producer');
               SET LOCAL ROLE producer;
               SELECT pg_task.enqueue('{"A":{"B":1}}'); INSERT INTO pg_task.task (step) VALUES ('{"A":{"B":2}}') RETURNING id;
               DO $$ BEGIN PERFORM step FROM pg_task.task; RAISE 'read'; EXCEPTION WHEN insufficient_privilege THEN NULL; END $$;
               DO $$ BEGIN UPDATE pg_task.task SET error = 'x'; RAISE 'wrote'; EXCEPTION WHEN insufficient_privilege THEN NULL; END $$;
               DO $$ BEGIN PERFORM pg_task.cancel(pg_task.uuid7()); RAISE 'cancelled'; EXCEPTION WHEN insufficient_privilege THEN NULL; END $$;
               SET LOCAL ROLE nobody_special;
               DO $$ BEGIN PERFORM pg_task.enqueue('{"A":{"B":1}}'); RAISE 'enqueued'; EXCEPTION WHEN insufficient_privilege THEN NULL; END $$;
               RESET ROLE"#,
        )
        .expect("every cell is as the grants say");
        assert_eq!(one::<i64>("SELECT count(*) FROM pg_task.task"), Some(2));
    }

    #[pg_test]
    fn every_column_view_and_function_is_explained() {
        assert_eq!(
            one::<String>(
                "SELECT string_agg(what, ', ') FROM (
                    SELECT c.relname || '.' || a.attname AS what FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid
                    WHERE c.oid = 'pg_task.task'::regclass AND a.attnum > 0 AND col_description(c.oid, a.attnum) IS NULL
                    UNION ALL SELECT c.relname FROM pg_class AS c
                    WHERE c.relnamespace = 'pg_task'::regnamespace AND c.relkind IN ('r', 'v', 'S') AND obj_description(c.oid, 'pg_class') IS NULL
                    UNION ALL SELECT p.proname FROM pg_proc AS p
                    WHERE p.pronamespace = 'pg_task'::regnamespace AND obj_description(p.oid, 'pg_proc') IS NULL
                 ) AS x"
            ),
            None
        );
    }

    #[pg_test]
    fn an_untouched_table_is_written_below_the_executor_and_one_with_a_constraint_of_the_user_s_is_not() {
        let below = || {
            let table = TaskTable::to_write();
            let below = (table.can_insert(true), table.can_go_on());
            table.close();
            below
        };
        assert_eq!(below(), (true, true));
        Spi::run("ALTER TABLE pg_task.task DROP CONSTRAINT task_lock_is_whole, ADD CONSTRAINT own CHECK (tried < 9)")
            .expect("the owner may");
        assert_eq!(below(), (false, false));
    }

    #[pg_test]
    fn an_id_of_the_server_is_a_version_7_uuid_and_ascends() {
        assert_eq!(
            one::<bool>(
                "SELECT bool_and(substr(id::text, 15, 1) = '7' AND substr(id::text, 20, 1) IN ('8', '9', 'a', 'b')) AND bool_and(coalesce(id > before, true)) FROM (SELECT id, lag(id) OVER (ORDER BY n) AS before FROM (SELECT n, pg_task.uuid7() AS id FROM generate_series(1, 20000) AS n) AS x) AS y"
            ),
            Some(true)
        );
    }
}
