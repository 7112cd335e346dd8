//! Many tasks changed by a filter: what each part of the filter chooses, in batches, under load, by two at once.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use anyhow::ensure;
use pg_task::Bulk;
use pg_task::TaskState;
use pg_task_e2e::Database;
use pg_task_e2e::Ledger;
use pg_task_e2e::Session;
use pg_task_e2e::WorkerOptions;
use pg_task_e2e::shared_server;
use uuid::Uuid;

const WORKER: &str = "'00000000-0000-0000-0000-0000000000aa'";

const NOTE: &str = r#"{"Test":{"Note":{"key":"a"}}}"#;

async fn database() -> Result<Database> {
    Database::create(shared_server("e2e-bulk-operations")).await
}

fn options(ledger: &Ledger) -> WorkerOptions<'_> {
    WorkerOptions { ledger: Some(ledger.path()), ..WorkerOptions::new(env!("CARGO_BIN_EXE_e2e_worker")) }
}

/// Enqueues notes with the keys `queue-1` and so on.
async fn enqueue_notes(db: &Database, queue: &str, count: u32) -> Result<()> {
    db.run(&format!(
        "INSERT INTO pg_task.task (queue, step)
         SELECT '{queue}', jsonb_build_object('Test', jsonb_build_object('Note', jsonb_build_object('key', '{queue}-' || n)))
         FROM generate_series(1, {count}) AS n"
    ))
    .await
}

/// The keys of the tasks that there are, in order.
async fn keys(db: &Database, which: &str) -> Result<String> {
    db.ask(&format!(
        "SELECT coalesce(string_agg(jsonb_path_query_first(step, '$.*.*.key') #>> '{{}}', ' ' ORDER BY id), '') FROM pg_task.task WHERE {which}"
    ))
    .await
}

/// Tasks of every sort, which no worker takes: named a to h.
async fn every_sort(db: &Database) -> Result<()> {
    db.run(
        r#"INSERT INTO pg_task.task (id, queue, priority, wakeup_at, created_at, step, error) VALUES
            ('00000000-0000-0000-0000-000000000001', 'x', 0, now(), now(), '{"A":{"One":{"key":"a"}}}', NULL),
            ('00000000-0000-0000-0000-000000000002', 'x', 5, now() + '1 day', now(), '{"A":{"Two":{"key":"b"}}}', NULL),
            ('00000000-0000-0000-0000-000000000003', 'y', -5, now(), now() - interval '2 days', '{"B":{"One":{"key":"c"}}}', NULL),
            ('00000000-0000-0000-0000-000000000004', 'y', 0, now() + '1 day', now() - interval '2 days', '{"B":{"Two":{"key":"d"}}}', NULL),
            ('00000000-0000-0000-0000-000000000005', 'x', 0, now(), now(), '{"A":{"One":{"key":"e"}}}', 'timeout of x'),
            ('00000000-0000-0000-0000-000000000006', 'x', 5, now(), now(), '{"A":{"Two":{"key":"f"}}}', '100%'),
            ('00000000-0000-0000-0000-000000000007', 'y', -5, now(), now() - interval '2 days', '{"B":{"One":{"key":"g"}}}', 'timeout of y'),
            ('00000000-0000-0000-0000-000000000008', 'z', 0, now(), now(), '{"A/B":{"One":{"key":"h"}}}', NULL)"#,
    )
    .await
}

/// Each part of a filter, and what it chooses among [`every_sort`].
const FILTERS: [(&str, &str); 24] = [
    ("queue => 'x'", "a b e f"),
    ("queue => 'nobody'", ""),
    ("task => 'A'", "a b e f"),
    ("task => 'B/One'", "c g"),
    ("task => 'B/Three'", ""),
    ("task => 'One'", ""),
    ("error_like => '%timeout%'", "e g"),
    (r"error_like => '100\%'", "f"),
    ("error_like => '%'", "e f g"),
    ("state => 'parked'", "e f g"),
    ("state => 'due'", "a c h"),
    ("state => 'asleep'", "b d"),
    ("state => 'running'", ""),
    ("older_than => '1 day'", "c d g"),
    ("older_than => '3 days'", ""),
    ("min_priority => 0", "a b d e f h"),
    ("max_priority => -1", "c g"),
    ("min_priority => 1, max_priority => 5", "b f"),
    ("ids => '{00000000-0000-0000-0000-000000000002, 00000000-0000-0000-0000-000000000099}'", "b"),
    ("ids => '{}'", ""),
    ("max => 3", "a b c"),
    ("queue => 'x', task => 'A/Two', state => 'asleep'", "b"),
    ("queue => 'y', error_like => '%x'", ""),
    (
        "queue => NULL, task => NULL, error_like => NULL, state => NULL, older_than => NULL, min_priority => NULL, max_priority => NULL, ids => NULL, max => NULL",
        "a b c d e f g h",
    ),
];

#[tokio::test]
async fn each_part_of_a_filter_chooses_what_it_says_and_a_dry_run_counts_it() -> Result<()> {
    let db = database().await?;
    every_sort(&db).await?;
    let mut session = db.session().await?;
    // Of each task its key, where it is.
    let seen = |tail: &str| {
        format!(
            "SELECT coalesce(string_agg(jsonb_path_query_first(step, '$.*.*.key') #>> '{{}}', ' ' ORDER BY id), '') FROM pg_task.task WHERE {tail}"
        )
    };
    for (filter, chosen) in FILTERS {
        let count = chosen.split_whitespace().count().to_string();
        let changes = [
            (format!("move_all('there', {filter}"), "queue = 'there'"),
            (format!("reprioritize_all(77, {filter}"), "priority = 77"),
            (format!("reschedule_all('2033-03-03', {filter}"), "wakeup_at = '2033-03-03'"),
        ];
        for (call, after) in &changes {
            assert_eq!(
                session.ask(&format!("SELECT pg_task.{call}, dry_run => true)")).await?,
                count,
                "{call}"
            );
            assert_eq!(session.ask(&seen(after)).await?, "", "a dry run has changed something: {call}");
            session.run("BEGIN").await?;
            assert_eq!(session.ask(&format!("SELECT pg_task.{call})")).await?, count, "{call}");
            assert_eq!(session.ask(&seen(after)).await?, chosen, "{call}");
            // What is as wanted is not chosen again, so that a loop ends.
            if !filter.contains("max =>") {
                assert_eq!(session.ask(&format!("SELECT pg_task.{call})")).await?, "0", "{call}");
            }
            session.run("ROLLBACK").await?;
        }
        let left: Vec<&str> = "a b c d e f g h"
            .split(' ')
            .filter(|key| !chosen.split(' ').any(|other| other == *key))
            .collect();
        session.run("BEGIN").await?;
        assert_eq!(
            session.ask(&format!("SELECT pg_task.cancel_all({filter}, dry_run => true)")).await?,
            count
        );
        assert_eq!(session.ask(&format!("SELECT pg_task.cancel_all({filter})")).await?, count, "{filter}");
        assert_eq!(session.ask(&seen("true")).await?, left.join(" "), "{filter}");
        session.run("ROLLBACK").await?;
        if !filter.contains("state") && !filter.contains("max =>") {
            let parked: Vec<&str> = chosen.split(' ').filter(|key| ["e", "f", "g"].contains(key)).collect();
            session.run("BEGIN").await?;
            for dry_run in [true, false] {
                let call = format!("SELECT pg_task.resume_all({filter}, dry_run => {dry_run})");
                assert_eq!(session.ask(&call).await?, parked.len().to_string(), "{filter}");
            }
            assert_eq!(
                session
                    .ask(
                        &seen("error IS NULL AND key_of(step) IN ('e', 'f', 'g')")
                            .replace("key_of(step)", "jsonb_path_query_first(step, '$.*.*.key') #>> '{}'")
                    )
                    .await?,
                parked.join(" "),
                "{filter}"
            );
            session.run("ROLLBACK").await?;
        }
    }
    // The present calls of resume_all, by position.
    assert_eq!(session.ask("SELECT pg_task.resume_all('x', 'A', '%timeout%')").await?, "1");
    assert_eq!(session.ask("SELECT pg_task.resume_all()").await?, "2");
    assert_eq!(session.ask("SELECT pg_task.cancel_all()").await?, "8");
    Ok(())
}

#[tokio::test]
async fn a_program_does_the_same_in_batches() -> Result<()> {
    let db = database().await?;
    every_sort(&db).await?;
    let mut connection = db.pool.acquire().await?;
    let all = Bulk::new().batch(2);
    assert_eq!(all.dry_run(true).cancel(&mut connection).await?, 8);
    assert_eq!(all.max(3).dry_run(true).cancel(&mut connection).await?, 3);
    assert_eq!(all.queue("x").task("A/One").state(TaskState::Due).move_to(&mut connection, "w").await?, 1);
    assert_eq!(keys(&db, "queue = 'w'").await?, "a");
    assert_eq!(all.priorities(-9..=0).max(5).reprioritize(&mut connection, 9).await?, 5);
    assert_eq!(keys(&db, "priority = 9").await?, "a c d e g");
    let day = Duration::from_secs(86_400);
    let at = "2033-03-03T00:00:00Z".parse()?;
    assert_eq!(all.older_than(day).state(TaskState::Asleep).reschedule(&mut connection, at).await?, 1);
    assert_eq!(keys(&db, "wakeup_at = '2033-03-03 00:00:00Z'").await?, "d");
    assert_eq!(all.error_like("%timeout%").dry_run(true).resume(&mut connection).await?, 2);
    assert_eq!(all.error_like("%timeout%").resume(&mut connection).await?, 2);
    assert!(all.state(TaskState::Due).resume(&mut connection).await.is_err());
    let ids: Vec<Uuid> = [1, 8].map(Uuid::from_u128).to_vec();
    assert_eq!(all.ids(&[]).cancel(&mut connection).await?, 0);
    assert_eq!(all.ids(&ids).cancel(&mut connection).await?, 2);
    assert_eq!(all.max(0).cancel(&mut connection).await?, 0);
    assert_eq!(keys(&db, "true").await?, "b c d e f g");
    // In a transaction of the caller's all batches are one.
    let mut transaction = sqlx::Connection::begin(&mut *connection).await?;
    assert_eq!(all.cancel(&mut transaction).await?, 6);
    transaction.rollback().await?;
    assert_eq!(all.state(TaskState::Running).cancel(&mut connection).await?, 0);
    assert_eq!(all.cancel(&mut connection).await?, 6);
    Ok(())
}

/// How many tasks an `exchange` call gives.
async fn exchange(session: &mut Session, want: u32) -> Result<String> {
    session
        .ask(&format!(
            "SELECT coalesce(string_agg(jsonb_path_query_first(step, '$.*.*.key') #>> '{{}}', ' '), '')
             FROM pg_task.exchange({WORKER}, {want}) WHERE event = 0"
        ))
        .await
}

#[tokio::test]
async fn what_runs_is_left_alone_unless_it_is_named_and_is_told_when_it_is_cancelled() -> Result<()> {
    let db = database().await?;
    let (mut worker, mut operator) = (db.session().await?, db.session().await?);
    worker.run(&format!("SELECT pg_task.register({WORKER})")).await?;
    enqueue_notes(&db, "a", 4).await?;
    db.until("SELECT ready = 4 FROM pg_task.scheduler").await?;
    assert_eq!(exchange(&mut worker, 2).await?, "a-1 a-2");
    for (call, count) in [
        ("move_all('b', dry_run => true", "2"),
        ("move_all('b', state => 'due', dry_run => true", "2"),
        ("move_all('b', state => 'running', dry_run => true", "2"),
        ("reprioritize_all(3, dry_run => true", "2"),
        ("reschedule_all('2033-03-03', dry_run => true", "2"),
        ("cancel_all(dry_run => true", "4"),
        ("cancel_all(state => 'due', dry_run => true", "2"),
        ("cancel_all(state => 'running', dry_run => true", "2"),
        ("move_all('b'", "2"),
    ] {
        assert_eq!(operator.ask(&format!("SELECT pg_task.{call})")).await?, count, "{call}");
    }
    assert_eq!(keys(&db, "queue = 'a'").await?, "a-1 a-2");
    // The results of what was left alone are taken; a cancelled one's worker hears of it.
    operator.run("SELECT pg_task.cancel_all(state => 'running', max => 1)").await?;
    assert_eq!(
        worker
            .ask(&format!(
                "SELECT string_agg(concat(c.token = h.token), ',') FROM pg_task.heartbeat({WORKER}) AS h JOIN pg_task.claims() AS c USING (id) WHERE h.event = 3"
            ))
            .await?,
        "t"
    );
    let finish = |key: &str| {
        format!(
            "SELECT coalesce(string_agg(e.event::text, ','), 'taken') FROM pg_task.claims() AS c JOIN pg_task.task AS t USING (id),
             pg_task.exchange({WORKER}, 0, ARRAY[c.id], ARRAY[c.fence], ARRAY[c.token]) AS e WHERE t.step #>> '{{Test,Note,key}}' = '{key}' AND e.event = 2"
        )
    };
    assert_eq!(worker.ask(&finish("a-2")).await?, "taken");
    assert_eq!(keys(&db, "true").await?, "a-3 a-4");
    // One that is moved all the same is run again, in the queue to which it was moved.
    assert_eq!(exchange(&mut worker, 1).await?, "a-3");
    assert_eq!(operator.ask("SELECT pg_task.move_all('c', state => 'running')").await?, "1");
    assert_eq!(worker.ask(&finish("a-3")).await?, "2");
    db.until("SELECT ready = 2 FROM pg_task.scheduler").await?;
    assert_eq!(
        worker.ask(&format!("SELECT string_agg(queue, ' ' ORDER BY queue) FROM pg_task.exchange({WORKER}, 9) WHERE event = 0")).await?,
        "b c"
    );
    Ok(())
}

#[tokio::test]
async fn a_moved_task_is_handed_out_from_its_new_queue_though_nobody_takes_the_old_one() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("moved")?);
    // More than are told one by one.
    for (queue, count) in [("few", 20), ("many", 2_000)] {
        enqueue_notes(&db, queue, count).await?;
    }
    db.run("SELECT pg_task.pause_queue('few')").await?;
    db.until("SELECT ready > 1000 FROM pg_task.scheduler").await?;
    let _worker = db.known_worker(WorkerOptions { queues: "new", ..options(&ledger) }).await?;
    assert_eq!(db.ask("SELECT pg_task.move_all('new', queue => 'few')").await?, "20");
    db.until("SELECT count(*) = 2000 FROM pg_task.task").await?;
    assert_eq!(db.ask("SELECT pg_task.move_all('new', queue => 'many', max => 1500)").await?, "1500");
    db.until("SELECT count(*) = 500 FROM pg_task.task").await?;
    // By hand it is the same.
    db.run("UPDATE pg_task.task SET queue = 'new'").await?;
    db.until_done().await?;
    assert_eq!(ledger.lines().iter().collect::<BTreeSet<_>>().len(), 2_020);
    assert_eq!(ledger.lines().len(), 2_020);
    Ok(())
}

#[tokio::test]
async fn another_priority_or_time_holds_for_tasks_that_were_ready_already() -> Result<()> {
    let db = database().await?;
    let mut worker = db.session().await?;
    worker.run(&format!("SELECT pg_task.register({WORKER})")).await?;
    enqueue_notes(&db, "a", 50).await?;
    db.until("SELECT ready = 50 FROM pg_task.scheduler").await?;
    db.run("SELECT pg_task.reprioritize_all(-1, ids => ARRAY(SELECT id FROM pg_task.task ORDER BY id DESC LIMIT 2))").await?;
    db.until("SELECT ready = 2 FROM pg_task.lanes() WHERE priority = -1").await?;
    assert_eq!(exchange(&mut worker, 3).await?, "a-49 a-50 a-1");
    db.run("SELECT pg_task.reschedule_all('2033-03-03', ids => ARRAY(SELECT id FROM pg_task.task WHERE id NOT IN (SELECT id FROM pg_task.claims()) ORDER BY id LIMIT 1))").await?;
    assert_eq!(exchange(&mut worker, 1).await?, "a-3");
    // What slept is due.
    db.run("SELECT pg_task.reschedule_all(now(), state => 'asleep')").await?;
    db.until(&format!(
        "SELECT EXISTS (SELECT FROM pg_task.exchange({WORKER}, 99) WHERE step #>> '{{Test,Note,key}}' = 'a-2')"
    ))
    .await
}

#[tokio::test]
async fn a_step_that_nobody_knows_is_run_when_it_is_edited_to_one_that_is_known() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("edited")?);
    let _worker = db.known_worker(options(&ledger)).await?;
    db.run(r#"SELECT pg_task.enqueue('{"Test": {"Unheard": 1}}')"#).await?;
    db.until("SELECT EXISTS (SELECT FROM pg_task.lanes() WHERE step = 'Test/Unheard')").await?;
    assert_eq!(db.ask(&format!("SELECT pg_task.edit(id, '{NOTE}') FROM pg_task.task")).await?, "t");
    db.until_done().await?;
    assert_eq!(ledger.lines(), ["a"]);
    Ok(())
}

#[tokio::test]
async fn rows_that_someone_has_locked_are_passed_over_and_two_operators_share_the_work() -> Result<()> {
    let db = database().await?;
    enqueue_notes(&db, "a", 100).await?;
    let (mut one, mut other) = (db.session().await?, db.session().await?);
    // Whoever waits for a lock fails.
    for session in [&mut one, &mut other] {
        session.run("SET lock_timeout = '1 ms'; SET deadlock_timeout = '1 ms'").await?;
    }
    one.run("BEGIN; SELECT FROM pg_task.task WHERE step #>> '{Test,Note,key}' IN ('a-1', 'a-70') FOR UPDATE")
        .await?;
    assert_eq!(other.ask("SELECT pg_task.move_all('b', max => 10)").await?, "10");
    assert_eq!(keys(&db, "queue = 'b'").await?, "a-2 a-3 a-4 a-5 a-6 a-7 a-8 a-9 a-10 a-11");
    other.run("BEGIN").await?;
    assert_eq!(other.ask("SELECT pg_task.cancel_all(queue => 'a', max => 40)").await?, "40");
    // What the other one is about to cancel counts for nobody else; the dry run counts it.
    assert_eq!(one.ask("SELECT pg_task.cancel_all(dry_run => true)").await?, "100");
    assert_eq!(one.ask("SELECT pg_task.cancel_all(queue => 'a')").await?, "50");
    other.run("COMMIT").await?;
    one.run("COMMIT").await?;
    assert_eq!(keys(&db, "queue = 'a'").await?, "");
    assert_eq!(db.ask("SELECT count(*) FROM pg_task.task").await?, "10");
    assert_eq!(db.ask("SELECT count(*) FROM pg_task.history WHERE outcome = 'cancelled'").await?, "90");
    Ok(())
}

#[tokio::test]
async fn while_workers_run_twelve_thousand_tasks_batches_lose_nothing_and_double_no_transition() -> Result<()>
{
    const TASKS: u32 = 12_000;
    let (db, ledger) = (database().await?, Ledger::new("load")?);
    let _workers = [db.known_worker(options(&ledger)).await?, db.known_worker(options(&ledger)).await?];
    // The first half has a good head start and is cancelled at its end; nothing of it is to run after its cancellation.
    db.run("SELECT pg_task.pause_queue('c')").await?;
    enqueue_notes(&db, "c", TASKS).await?;
    enqueue_notes(&db, "a", TASKS).await?;
    let change = |step: u32| {
        let pool = db.pool.clone();
        async move {
            let mut connection = pool.acquire().await?;
            let batch = Bulk::new().batch(500);
            anyhow::Ok(match step {
                0 => batch.queue("a").move_to(&mut connection, "b").await?,
                1 => batch.queue("b").reprioritize(&mut connection, 5).await?,
                2 => batch.queue("c").cancel(&mut connection).await?,
                _ => batch.queue("c").max(u64::from(TASKS) / 2).cancel(&mut connection).await?,
            })
        }
    };
    let (moved, reprioritized, cancelled, half) =
        tokio::try_join!(change(0), change(1), change(2), change(3))?;
    assert_eq!(cancelled + half, u64::from(TASKS), "two operators cancel each task once");
    ensure!(moved > 0, "the workers were done before anything was moved");
    db.run("SELECT pg_task.resume_queue('c')").await?;
    db.until_done().await?;
    db.until("SELECT claimed = 0 FROM pg_task.scheduler").await?;
    let lines = ledger.lines();
    let different: BTreeSet<&String> = lines.iter().collect();
    let all: BTreeSet<String> = (1..=TASKS).map(|n| format!("a-{n}")).collect();
    ensure!(
        different.iter().map(|line| line.as_str()).eq(all.iter().map(String::as_str)),
        "{} ran",
        different.len()
    );
    // A task that a worker took while it was changed is run again, its first result refused: no transition is doubled.
    let refused: usize = db.ask("SELECT refused FROM pg_task.scheduler").await?.parse()?;
    ensure!(
        lines.len() - different.len() <= refused,
        "{} ran twice, {refused} results were refused ({moved} moved, {reprioritized} with another priority)",
        lines.len() - different.len()
    );
    Ok(())
}

#[tokio::test]
async fn until_the_end_of_the_transaction_nobody_is_given_what_it_has_changed_and_after_a_roll_back_it_is_ready_again()
-> Result<()> {
    let db = database().await?;
    let (mut worker, mut operator) = (db.session().await?, db.session().await?);
    worker.run(&format!("SELECT pg_task.register({WORKER})")).await?;
    enqueue_notes(&db, "a", 300).await?;
    db.until("SELECT ready = 300 FROM pg_task.scheduler").await?;
    for (change, end) in [
        ("pg_task.reprioritize_all(1)", "ROLLBACK"),
        ("pg_task.cancel_all()", "ROLLBACK"),
        ("pg_task.cancel_all()", "ROLLBACK TO s; COMMIT"),
        ("pg_task.cancel_all()", "PREPARE TRANSACTION 'withheld'; ROLLBACK PREPARED 'withheld'"),
        ("pg_task.edit(id, payload => '1')", "ROLLBACK"),
        ("pg_task.move_all('b')", "COMMIT"),
    ] {
        let expected = if change.contains("edit") { "a-2" } else { "" };
        let mut tries = 0;
        let given = loop {
            operator.run(&format!("BEGIN; SAVEPOINT s; SELECT {change} FROM (SELECT id FROM pg_task.task ORDER BY id LIMIT 1) AS t")).await?;
            let given = exchange(&mut worker, 1).await?;
            tries += 1;
            if given == expected || tries == 5 {
                break given;
            }
            // A read of the table that was asked for before may bring rows back as they were: once more, when it is over.
            operator.run("ROLLBACK").await?;
            worker.run(&format!("SELECT pg_task.leave({WORKER}); SELECT pg_task.register({WORKER})")).await?;
            db.until("SELECT ready = 300 FROM pg_task.scheduler").await?;
        };
        assert_eq!(given, expected, "{change}");
        for end in end.split("; ") {
            operator.run(end).await?;
        }
        let held = usize::from(!given.is_empty());
        db.until(&format!("SELECT ready = {} FROM pg_task.scheduler", 300 - held)).await?;
        if held > 0 {
            // Given back.
            worker.run(&format!("SELECT pg_task.leave({WORKER}); SELECT pg_task.register({WORKER})")).await?;
            db.until("SELECT ready = 300 FROM pg_task.scheduler").await?;
        }
    }
    assert_eq!(
        worker
            .ask(&format!(
                "SELECT count(*) FROM pg_task.exchange({WORKER}, 999) WHERE event = 0 AND queue = 'b'"
            ))
            .await?,
        "300"
    );
    Ok(())
}

#[tokio::test]
async fn what_a_savepoint_takes_back_is_not_cancelled_in_memory_either() -> Result<()> {
    let db = database().await?;
    let mut worker = db.session().await?;
    worker.run(&format!("SELECT pg_task.register({WORKER})")).await?;
    enqueue_notes(&db, "a", 5).await?;
    db.until("SELECT ready = 5 FROM pg_task.scheduler").await?;
    assert_eq!(exchange(&mut worker, 1).await?, "a-1");
    db.run(
        "DO $$ BEGIN
            PERFORM pg_task.cancel_all(ids => ARRAY(SELECT id FROM pg_task.task WHERE step #>> '{Test,Note,key}' = 'a-5'));
            BEGIN
                PERFORM pg_task.cancel_all();
                RAISE 'back';
            EXCEPTION WHEN raise_exception THEN NULL; END;
            BEGIN
                PERFORM pg_task.cancel(id) FROM pg_task.task WHERE step #>> '{Test,Note,key}' = 'a-4';
            END;
         END $$",
    )
    .await?;
    assert_eq!(keys(&db, "true").await?, "a-1 a-2 a-3");
    assert_eq!(
        worker.ask(&format!("SELECT count(*) FROM pg_task.heartbeat({WORKER}) WHERE event = 3")).await?,
        "0"
    );
    db.until("SELECT ready = 2 FROM pg_task.scheduler").await?;
    assert_eq!(exchange(&mut worker, 9).await?, "a-2 a-3");
    Ok(())
}

#[tokio::test]
async fn bad_arguments_are_refused_and_say_what_to_do() -> Result<()> {
    let db = database().await?;
    every_sort(&db).await?;
    let mut session = db.session().await?;
    for (call, code, message) in [
        ("cancel_all(state => 'waiting')", "22023", "\"waiting\" is not a state of tasks"),
        ("cancel_all(state => '')", "22023", "\"\" is not a state of tasks"),
        ("cancel_all(max => 0)", "22023", "\"max\" must be between 1 and 2147483647, not 0"),
        ("cancel_all(dry_run => NULL)", "22004", "\"dry_run\" must not be NULL"),
        ("resume_all(dry_run => NULL)", "22004", "\"dry_run\" must not be NULL"),
        ("cancel_all(older_than => '-1 day')", "22023", "\"older_than (in seconds)\" must be between 0 and"),
        (
            "cancel_all(min_priority => 5, max_priority => 4)",
            "22023",
            "\"max_priority\" must be between 5 and 32767, not 4",
        ),
        ("move_all(NULL)", "22004", "\"to_queue\" must not be NULL"),
        ("move_all('')", "22023", "a queue's name must have 1 to 63 bytes, not 0"),
        ("move_all(repeat('q', 64))", "22023", "a queue's name must have 1 to 63 bytes, not 64"),
        ("reprioritize_all(NULL)", "22004", "\"to_priority\" must not be NULL"),
        ("reprioritize_all(32768)", "22023", "\"to_priority\" must be between -32768 and 32767"),
        ("reschedule_all(NULL)", "22004", "\"wakeup_at\" must not be NULL"),
        ("reschedule_all('infinity')", "22008", "\"wakeup_at\" must be a finite time"),
    ] {
        let refusal = session.refusal(&format!("SELECT pg_task.{call}")).await?;
        assert_eq!(refusal.code, code, "{call}: {refusal:?}");
        assert!(refusal.message.starts_with(message), "{call}: {refusal:?}");
        assert!(!refusal.detail.is_empty() && !refusal.hint.is_empty(), "{call}: {refusal:?}");
    }
    assert_eq!(session.refusal("BEGIN READ ONLY; SELECT pg_task.cancel_all()").await?.code, "25006");
    session.run("ROLLBACK").await?;
    assert_eq!(session.ask("SELECT pg_task.cancel_all(dry_run => true)").await?, "8");
    Ok(())
}
