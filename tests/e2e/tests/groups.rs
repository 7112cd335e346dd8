//! Groups: their tasks run one at a time, in order, across retries, steps, lost workers and crashes.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;
use pg_task_cluster::Stop;
use pg_task_e2e::Database;
use pg_task_e2e::Ledger;
use pg_task_e2e::Session;
use pg_task_e2e::WorkerOptions;
use pg_task_e2e::own_server;
use pg_task_e2e::shared_server;
use sqlx::AssertSqlSafe;

const WORKER: &str = "'00000000-0000-0000-0000-0000000000aa'";

fn options(ledger: &Ledger) -> WorkerOptions<'_> {
    WorkerOptions { ledger: Some(ledger.path()), ..WorkerOptions::new(env!("CARGO_BIN_EXE_e2e_worker")) }
}

async fn database() -> Result<Database> {
    Database::create(shared_server("e2e-groups")).await
}

/// Enqueues `count` tasks for each of so many groups, in turns: some fail once, some have several steps, some begin later.
async fn enqueue_turns(db: &Database, groups: u32, count: u32, millis: u32) -> Result<()> {
    db.run(&format!(
        "SELECT pg_task.delay(
            jsonb_build_object('Test', jsonb_build_object('Turn', jsonb_build_object(
                'key', format('g%s %s', g, n), 'left', n % 3, 'fails', CASE WHEN n % 5 = 0 THEN 1 ELSE 0 END, 'millis', {millis}))),
            CASE WHEN n % 7 = 3 THEN interval '60 ms' ELSE interval '0' END,
            queue => 'q' || n % 2, priority => n % 3, options => jsonb_build_object('group', format('g%s', g)))
         FROM generate_series(1, {count}) AS n, generate_series(1, {groups}) AS g"
    ))
    .await
}

/// The groups' tasks have ended in order, each before the next began. Returns how many began while a task of another group was under way.
fn check(ledger: &Ledger, groups: u32, count: u32) -> Result<usize> {
    let mut current: BTreeMap<String, (u32, bool)> = BTreeMap::new();
    let mut beside = 0;
    for line in ledger.lines() {
        let mut words = line.split(' ');
        let (Some(group), Some(n), Some(what)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let n: u32 = n.parse()?;
        let (last, ended) = current.get(group).copied().unwrap_or((0, true));
        match what {
            "begins" => {
                ensure!(n == last || (n == last + 1 && ended), "{line}, after {last}, ended: {ended}");
                beside += usize::from(current.iter().any(|(other, (_, ended))| other != group && !ended));
                current.insert(group.to_owned(), (n, false));
            }
            _ => {
                ensure!(n == last, "{line}, after {last}");
                if what == "ends" {
                    current.insert(group.to_owned(), (n, true));
                }
            }
        }
    }
    ensure!(current.len() == groups as usize, "{current:?}");
    ensure!(current.values().all(|state| *state == (count, true)), "{current:?}");
    Ok(beside)
}

/// The keys of the tasks that an `exchange` call gives, which are done with the next one.
async fn exchange(session: &mut Session, want: u32) -> Result<String> {
    session
        .ask(&format!(
            "SELECT coalesce(string_agg(step #>> '{{Test,Note,key}}', ' ' ORDER BY token), '') FROM pg_task.exchange({WORKER}, {want}) WHERE event = 0"
        ))
        .await
}

/// Brings the result of the task with this key as done, and asks for more.
async fn done(session: &mut Session, key: &str, want: u32) -> Result<String> {
    session
        .ask(&format!(
            "SELECT coalesce(string_agg(step #>> '{{Test,Note,key}}', ' ' ORDER BY token), '')
             FROM (SELECT array_agg(t.id) AS ids, array_agg(t.fence) AS fences, array_agg(c.token) AS tokens
                   FROM pg_task.task AS t JOIN pg_task.claims() AS c ON c.id = t.id
                   WHERE t.step #>> '{{Test,Note,key}}' = '{key}') AS r,
                  pg_task.exchange({WORKER}, {want}, r.ids, r.fences, r.tokens) WHERE event = 0"
        ))
        .await
}

/// Enqueues a note in a group.
fn note(key: &str, group: &str) -> String {
    format!(
        r#"SELECT pg_task.enqueue('{{"Test":{{"Note":{{"key":"{key}"}}}}}}', options => '{{"group":"{group}"}}')"#
    )
}

#[tokio::test]
async fn each_group_runs_in_order_and_one_at_a_time_across_retries_and_steps_and_groups_run_beside_each_other()
-> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("groups")?);
    let _workers = [db.known_worker(options(&ledger)).await?, db.known_worker(options(&ledger)).await?];
    enqueue_turns(&db, 12, 15, 2).await?;
    db.until_done().await?;
    let beside = check(&ledger, 12, 15)?;
    ensure!(beside > 50, "groups hold each other up: {beside} began beside others");
    // Nobody has looked at the whole table for that.
    assert_eq!(db.ask("SELECT failures FROM pg_task.scheduler").await?, "0");
    Ok(())
}

#[tokio::test]
async fn groups_of_tasks_that_were_there_before_their_workers_run_in_order() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("groups-backlog")?);
    // More than fit into memory, which holds 4,096.
    enqueue_turns(&db, 200, 30, 0).await?;
    let _workers = [db.known_worker(options(&ledger)).await?, db.known_worker(options(&ledger)).await?];
    db.until_done().await?;
    check(&ledger, 200, 30).map(drop)
}

#[tokio::test]
async fn a_task_waits_for_an_older_one_that_is_asleep_runs_or_was_given_back() -> Result<()> {
    let db = database().await?;
    let mut worker = db.session().await?;
    worker.run(&format!("SELECT pg_task.register({WORKER})")).await?;
    db.run(r#"SELECT pg_task.delay('{"Test":{"Note":{"key":"a1"}}}', '1 hour', options => '{"group":"a"}')"#)
        .await?;
    db.run(&note("a2", "a")).await?;
    db.run(&note("b1", "b")).await?;
    db.until("SELECT ready > 0 FROM pg_task.scheduler").await?;
    assert_eq!(exchange(&mut worker, 5).await?, "b1");
    assert_eq!(
        db.ask("SELECT string_agg(concat_ws(' ', group_key, head_state, waiting), ', ' ORDER BY group_key) FROM pg_task.groups")
            .await?,
        "a asleep 1, b running 0"
    );
    db.run("UPDATE pg_task.task SET wakeup_at = now() WHERE wakeup_at > now()").await?;
    db.until("SELECT ready > 0 FROM pg_task.scheduler").await?;
    assert_eq!(exchange(&mut worker, 5).await?, "a1");
    assert_eq!(exchange(&mut worker, 5).await?, "");
    // It is not run: it goes back, and has its turn again.
    worker
        .run(&format!(
            "SELECT pg_task.exchange({WORKER}, 0, array_agg(t.id), array_agg(t.fence), array_agg(c.token), array_agg(5::smallint))
             FROM pg_task.task AS t JOIN pg_task.claims() AS c ON c.id = t.id WHERE t.step #>> '{{Test,Note,key}}' = 'a1'"
        ))
        .await?;
    assert_eq!(exchange(&mut worker, 5).await?, "a1");
    // It is done: the next is handed out by a later call, and nobody looks at the whole table for it.
    let rescans = db.ask("SELECT rescans FROM pg_task.scheduler").await?;
    done(&mut worker, "a1", 0).await?;
    db.until("SELECT ready = 1 FROM pg_task.scheduler").await?;
    assert_eq!(exchange(&mut worker, 5).await?, "a2");
    assert_eq!(db.ask("SELECT rescans FROM pg_task.scheduler").await?, rescans);
    Ok(())
}

#[tokio::test]
async fn a_parked_task_blocks_its_group_until_it_is_resumed_cancelled_deleted_or_leaves() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("groups-parked")?);
    let _worker = db.known_worker(options(&ledger)).await?;
    for group in ["resumed", "cancelled", "deleted", "left"] {
        db.run(&format!(
            r#"SELECT pg_task.enqueue('{{"Test":{{"Turn":{{"key":"{group} 1","left":0,"fails":3,"millis":0}}}}}}', options => '{{"group":"{group}"}}')"#
        ))
        .await?;
        db.run(&note(&format!("{group} 2"), group)).await?;
        db.run(&note(&format!("{group} 3"), group)).await?;
    }
    db.until("SELECT count(*) = 4 FROM pg_task.groups WHERE head_state = 'parked' AND waiting = 2 AND head_error IS NOT NULL")
        .await?;
    db.until("SELECT detail LIKE '4 groups%' FROM pg_task.problems WHERE problem = 'groups blocked'").await?;
    // Another group is not held up by them.
    db.run(&note("free", "free")).await?;
    db.until("SELECT NOT EXISTS (SELECT FROM pg_task.groups WHERE group_key = 'free')").await?;
    assert_eq!(db.ask("SELECT count(*) FROM pg_task.task").await?, "12");
    let head = |group: &str| format!("(SELECT head FROM pg_task.groups WHERE group_key = '{group}')");
    for (group, call) in [
        ("cancelled", format!("SELECT pg_task.cancel({})", head("cancelled"))),
        ("deleted", format!("DELETE FROM pg_task.task WHERE id = {}", head("deleted"))),
        ("left", format!("UPDATE pg_task.task SET options = NULL WHERE id = {}", head("left"))),
        (
            "resumed",
            format!(
                "UPDATE pg_task.task SET step = '{{\"Test\":{{\"Note\":{{\"key\":\"resumed 1\"}}}}}}', error = NULL WHERE id = {}",
                head("resumed")
            ),
        ),
    ] {
        db.run(&call).await?;
        db.until(&format!("SELECT NOT EXISTS (SELECT FROM pg_task.groups WHERE group_key = '{group}')"))
            .await?;
        let lines: Vec<String> = ledger
            .lines()
            .into_iter()
            .filter(|line| line.starts_with(group) && !line.contains(" 1 "))
            .collect();
        let expected = [format!("{group} 1"), format!("{group} 2"), format!("{group} 3")];
        assert_eq!(lines, expected[usize::from(group != "resumed")..]);
    }
    assert_eq!(db.ask("SELECT count(*) FROM pg_task.problems WHERE problem = 'groups blocked'").await?, "0");
    assert_eq!(db.ask("SELECT rescans FROM pg_task.scheduler").await?, "0");
    Ok(())
}

#[tokio::test]
async fn a_delete_that_is_rolled_back_leaves_the_order_and_one_that_commits_late_is_waited_for() -> Result<()>
{
    let db = database().await?;
    let (mut worker, mut user) = (db.session().await?, db.session().await?);
    worker.run(&format!("SELECT pg_task.register({WORKER})")).await?;
    db.run(&note("a1", "a")).await?;
    db.run(&note("a2", "a")).await?;
    db.until("SELECT ready > 0 FROM pg_task.scheduler").await?;
    assert_eq!(exchange(&mut worker, 5).await?, "a1");
    user.run("BEGIN; DELETE FROM pg_task.task WHERE step #>> '{Test,Note,key}' = 'a1'").await?;
    assert_eq!(exchange(&mut worker, 5).await?, "");
    user.run("ROLLBACK").await?;
    done(&mut worker, "a1", 0).await?;
    db.until("SELECT ready = 1 FROM pg_task.scheduler").await?;
    assert_eq!(exchange(&mut worker, 5).await?, "a2");
    // An older task that commits while a younger one runs waits for its end, and then comes first.
    user.run(&format!("BEGIN; {}", note("a3", "a"))).await?;
    db.run(&note("a4", "a")).await?;
    done(&mut worker, "a2", 0).await?;
    db.until("SELECT ready = 1 FROM pg_task.scheduler").await?;
    assert_eq!(exchange(&mut worker, 5).await?, "a4");
    user.run("COMMIT").await?;
    db.run(&note("a5", "a")).await?;
    assert_eq!(exchange(&mut worker, 5).await?, "");
    done(&mut worker, "a4", 0).await?;
    db.until("SELECT ready = 1 FROM pg_task.scheduler").await?;
    assert_eq!(exchange(&mut worker, 5).await?, "a3");
    Ok(())
}

#[tokio::test]
async fn the_order_outlives_workers_that_are_killed() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("groups-killed")?);
    enqueue_turns(&db, 8, 12, 20).await?;
    db.run("SELECT pg_task.pause_queue(queue) FROM (VALUES ('q0'), ('q1')) AS q (queue)").await?;
    let _stays = db.known_worker(options(&ledger)).await?;
    let mut die = Vec::new();
    for _ in 0..3 {
        die.push(db.known_worker(options(&ledger)).await?);
    }
    // All are there before anything runs, however long a process takes to start.
    db.run("SELECT pg_task.resume_queue(queue) FROM (VALUES ('q0'), ('q1')) AS q (queue)").await?;
    for dies in die {
        let before = ledger.lines().len();
        let more = async {
            while ledger.lines().len() < before + 40 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), more).await.context("nothing goes on")?;
        dies.signal("KILL")?;
    }
    db.until_done().await?;
    check(&ledger, 8, 12).map(drop)
}

#[tokio::test]
async fn the_order_outlives_crashes_of_the_server() -> Result<()> {
    // Long enough for a worker to come back: a run that goes on unknown to the server is none of the order's.
    let server = own_server("e2e-groups-crash", &["pg_task.settle_time = 5s"])?;
    let (db, ledger) = (Database::create(&server).await?, Ledger::new("groups-crash")?);
    let _workers = [db.known_worker(options(&ledger)).await?, db.known_worker(options(&ledger)).await?];
    enqueue_turns(&db, 8, 12, 20).await?;
    for _ in 0..2 {
        let before = ledger.lines().len();
        let more = async {
            while ledger.lines().len() < before + 60 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), more).await.context("nothing goes on")?;
        server.stop(Stop::Immediate)?;
        server.start()?;
    }
    db.until_done().await?;
    check(&ledger, 8, 12).map(drop)
}

#[tokio::test]
async fn a_group_is_a_name_and_tasks_without_one_have_no_entry_in_its_index() -> Result<()> {
    let db = database().await?;
    let mut session = db.session().await?;
    for value in [r#""""#.to_owned(), "7".to_owned(), "null".to_owned(), format!("\"{}\"", "x".repeat(201))] {
        let refusal = session
            .refusal(&format!(
                r#"SELECT pg_task.enqueue('{{"Test":{{"Note":{{"key":"a"}}}}}}', options => '{{"group":{value}}}')"#
            ))
            .await?;
        assert_eq!(refusal.code, "22023");
        assert_eq!(refusal.message, "the option \"group\" must be a text of 1 to 200 bytes");
    }
    db.run(r#"SELECT pg_task.enqueue('{"Test":{"Note":{"key":"a"}}}', options => CASE WHEN n % 2 = 0 THEN '{"meta":{}}'::jsonb END) FROM generate_series(1, 1000) AS n"#)
        .await?;
    assert_eq!(
        db.ask("SELECT pg_relation_size('pg_task.task_group')").await?,
        "8192",
        "its first page alone"
    );
    let tree = serde_json::json!({ "Test": { "Note": { "key": "a" } } });
    let group = "é".repeat(100);
    pg_task::Enqueue::new().group(&group).enqueue(&db.pool, &tree).await?;
    assert_eq!(db.ask(&format!("SELECT group_key = '{group}' FROM pg_task.groups")).await?, "t");
    // Rows of every kind in turns: each index has those that it is for.
    session
        .run(
            r#"SELECT pg_task.enqueue('{"Test":{"Note":{"key":"a"}}}', options => (ARRAY[NULL, '{"group":"g"}', '{"key":"k"}']::jsonb[])[1 + n % 3]) FROM generate_series(1, 300) AS n"#,
        )
        .await?;
    let mut connection = db.pool.acquire().await?;
    sqlx::raw_sql("SET enable_seqscan = off; SET enable_sort = off").execute(&mut *connection).await?;
    for (option, index, seed) in
        [("group", "task_group", "0"), ("key", "task_key", "hashtextextended(queue, 0)")]
    {
        // In the order of the index: no other serves.
        let query = format!(
            "SELECT count(*) FROM (SELECT FROM pg_task.task WHERE options ? '{option}' AND error IS NULL AND options ->> '{option}' IN ('g', 'k')
             ORDER BY hashtextextended((options ->> '{option}') COLLATE \"C\", {seed}) LIMIT 1000) AS t"
        );
        let explain = AssertSqlSafe(format!("EXPLAIN (FORMAT JSON) {query}"));
        let plan: serde_json::Value = sqlx::query_scalar(explain).fetch_one(&mut *connection).await?;
        ensure!(plan.to_string().contains(index), "{plan}");
        let count: i64 = sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(&mut *connection).await?;
        assert_eq!(count, 100, "{index}");
    }
    Ok(())
}
