//! Rates and weights of keys: exact with several workers, for each key on its own, from the commit that sets them and over restarts.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use std::time::Duration;

use anyhow::Result;
use anyhow::bail;
use anyhow::ensure;
use pg_task_cluster::Stop;
use pg_task_e2e::Database;
use pg_task_e2e::Ledger;
use pg_task_e2e::Session;
use pg_task_e2e::WorkerOptions;
use pg_task_e2e::own_server;
use pg_task_e2e::shared_server;

fn options(ledger: &Ledger) -> WorkerOptions<'_> {
    WorkerOptions { ledger: Some(ledger.path()), ..WorkerOptions::new(env!("CARGO_BIN_EXE_e2e_worker")) }
}

async fn database() -> Result<Database> {
    Database::create(shared_server("e2e-key-rates")).await
}

/// Enqueues notes of each key, in turns.
async fn enqueue(db: &Database, queue: &str, keys: u32, count: u32) -> Result<()> {
    db.run(&format!(
        r#"SELECT pg_task.enqueue(jsonb_build_object('Test', jsonb_build_object('Note', jsonb_build_object('key', 'k' || k))),
               '{queue}', options => jsonb_build_object('key', 'k' || k))
           FROM generate_series(1, {count}) AS n, generate_series(1, {keys}) AS k"#
    ))
    .await
}

/// What the history says of the hand-outs of each key: in no stretch of time were there more than the burst and what the rate brings, and from
/// the start, where buckets are empty, not even the burst. Each token was taken between the beginning and the end of its task.
async fn check(db: &Database, queue: &str, rate: u32, burst: u32, start: &str) -> Result<()> {
    let too_many = db
        .ask(&format!(
            "WITH h AS MATERIALIZED (SELECT options->>'key' AS key, started_at AS a, ended_at AS b FROM pg_task.history WHERE queue = '{queue}'),
             least AS (SELECT key, min(a) AS a, array_agg(a ORDER BY a) AS begun, array_agg(b ORDER BY b) AS ended FROM h GROUP BY key)
             SELECT concat_ws('; ',
                 (SELECT string_agg(concat(f.key, ': ', n.n, ' from ', f.a, ' to ', t.b), ', ')
                  FROM h AS f JOIN h AS t ON t.key = f.key AND t.b > f.a
                  CROSS JOIN LATERAL (SELECT count(*) AS n FROM h AS x WHERE x.key = f.key AND x.a >= f.a AND x.b <= t.b) AS n
                  WHERE n.n > {burst} + {rate} * extract(epoch FROM t.b - f.a)),
                 (SELECT string_agg(concat(l.key, ': ', e.n, ' until ', e.b), ', ')
                  FROM least AS l CROSS JOIN LATERAL unnest(l.ended) WITH ORDINALITY AS e (b, n)
                  WHERE e.n > {rate} * extract(epoch FROM e.b - '{start}'::timestamptz)))"
        ))
        .await?;
    ensure!(too_many.is_empty(), "{too_many}");
    Ok(())
}

async fn set_at(db: &Database) -> Result<String> {
    db.ask("SELECT max(updated_at) FROM pg_task.queue").await
}

fn count(ledger: &Ledger, key: &str) -> usize {
    ledger.lines().iter().filter(|line| *line == key).count()
}

#[tokio::test]
async fn each_key_has_its_rate_with_several_workers_and_none_waits_for_another() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("key-rates")?);
    let mut workers = Vec::new();
    for _ in 0..3 {
        workers.push(db.known_worker(options(&ledger)).await?);
    }
    let limits = pg_task::QueueLimits::new().key_rate(20, Duration::from_secs(1)).key_burst(3);
    pg_task::set_queue(&db.pool, "q", limits).await?;
    let start = set_at(&db).await?;
    enqueue(&db, "q", 5, 12).await?;
    enqueue(&db, "free", 5, 12).await?;
    // Heartbeats come every 20 seconds: what goes before was woken for its token.
    db.until_done().await?;
    assert_eq!((1..=5).map(|key| count(&ledger, &format!("k{key}"))).collect::<Vec<_>>(), vec![24; 5]);
    check(&db, "q", 20, 3, &start).await?;
    assert_eq!(db.ask("SELECT failures + rescans FROM pg_task.scheduler").await?, "0");
    Ok(())
}

#[tokio::test]
async fn a_key_that_waits_costs_nothing_holds_up_no_other_and_another_rate_holds_at_once() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("key-rates-changed")?);
    let _worker = db.known_worker(options(&ledger)).await?;
    db.run("SELECT pg_task.set_queue('q', key_rate => 1, key_per => '2 hours', key_burst => 5)").await?;
    enqueue(&db, "q", 50, 4).await?;
    db.until("SELECT bool_and(opens_at > now() + interval '1 hour' AND due = 4 AND key_burst = 5) AND count(*) = 50 FROM pg_task.keys")
        .await?;
    db.until("SELECT ready = 0 FROM pg_task.scheduler").await?;
    let ticks = db.ask("SELECT ticks FROM pg_task.scheduler").await?;
    for _ in 0..10 {
        enqueue(&db, "free", 1, 1).await?;
        db.until("SELECT NOT EXISTS (SELECT FROM pg_task.task WHERE queue = 'free')").await?;
    }
    let more = db.ask(&format!("SELECT ticks - {ticks} FROM pg_task.scheduler")).await?;
    ensure!(more.parse::<u32>()? < 200, "{more} ticks for 10 tasks while 50 keys wait");
    assert_eq!(ledger.lines().len(), 10);
    // What has gathered stays, and the rest comes by the new rate.
    db.run("SELECT pg_task.set_queue('q', key_rate => 2, key_burst => 1)").await?;
    let start = set_at(&db).await?;
    db.until("SELECT count(*) <= 150 FROM pg_task.task").await?;
    check(&db, "q", 2, 1, &start).await?;
    // A part of a token is a part of the long time.
    db.run("SELECT pg_task.set_queue('q', key_rate => 1, key_per => '30 days')").await?;
    db.until("SELECT count(*) > 0 AND bool_and(opens_at > now() + interval '1 min') FROM pg_task.keys")
        .await?;
    db.run("SELECT pg_task.drop_queue('q')").await?;
    db.until_done().await?;
    assert_eq!(ledger.lines().len(), 210);
    assert_eq!(db.ask("SELECT failures + rescans FROM pg_task.scheduler").await?, "0");
    Ok(())
}

#[tokio::test]
async fn tries_and_further_steps_take_tokens_too_and_stand_beside_the_other_limits() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("key-rates-steps")?);
    let _workers = [db.known_worker(options(&ledger)).await?, db.known_worker(options(&ledger)).await?];
    db.run("SELECT pg_task.set_queue('default', rate => 200, key_concurrency => 1, key_rate => 20, key_burst => 1), pg_task.limit_step('Test/Turn', 2)")
        .await?;
    let start = set_at(&db).await?;
    db.run(
        "SELECT pg_task.enqueue(
            jsonb_build_object('Test', jsonb_build_object('Turn', jsonb_build_object(
                'key', format('k%s %s', k, n), 'left', 2, 'fails', 1, 'millis', 1))),
            options => jsonb_build_object('key', 'k' || k))
         FROM generate_series(1, 4) AS n, generate_series(1, 3) AS k",
    )
    .await?;
    db.until_done().await?;
    for key in 1..=3 {
        let begun = |line: &&String| line.starts_with(&format!("k{key} ")) && line.ends_with("begins");
        let begun = ledger.lines().iter().filter(begun).count();
        ensure!(begun >= 4 * 4, "three steps and a try each, not {begun}");
        let last = format!(
            "SELECT max(ended_at) >= '{start}'::timestamptz + {begun} * interval '50 ms' FROM pg_task.history WHERE options->>'key' = 'k{key}'"
        );
        assert_eq!(db.ask(&last).await?, "t", "{begun} tokens");
    }
    Ok(())
}

#[tokio::test]
async fn more_keys_than_memory_has_places_for_wait_and_keep_their_rate() -> Result<()> {
    // A quarter of that is for keys.
    let server = own_server("e2e-key-rates-many", &["pg_task.ready_capacity = 1024"])?;
    let (db, ledger) = (Database::create(&server).await?, Ledger::new("key-rates-many")?);
    db.run("SELECT pg_task.set_queue('q', key_rate => 4, key_burst => 1)").await?;
    let start = set_at(&db).await?;
    let _workers = [db.known_worker(options(&ledger)).await?, db.known_worker(options(&ledger)).await?];
    enqueue(&db, "q", 600, 3).await?;
    enqueue(&db, "free", 1, 20).await?;
    db.until("SELECT NOT EXISTS (SELECT FROM pg_task.task WHERE queue = 'free')").await?;
    db.until_done().await?;
    assert_eq!(ledger.lines().len(), 1_820);
    check(&db, "q", 4, 1, &start).await
}

#[tokio::test]
async fn the_rate_holds_over_a_crash_of_the_server_and_over_killed_workers() -> Result<()> {
    let server = own_server("e2e-key-rates-crash", &[])?;
    let (db, ledger) = (Database::create(&server).await?, Ledger::new("key-rates-crash")?);
    db.run("SELECT pg_task.set_queue('q', key_rate => 10, key_burst => 5)").await?;
    let start = set_at(&db).await?;
    let _worker = db.known_worker(options(&ledger)).await?;
    let killed = db.known_worker(options(&ledger)).await?;
    enqueue(&db, "q", 3, 25).await?;
    db.until("SELECT count(*) < 66 FROM pg_task.task").await?;
    killed.signal("KILL")?;
    server.stop(Stop::Immediate)?;
    server.start()?;
    db.until("SELECT count(*) < 50 FROM pg_task.task").await?;
    // The scheduler alone is lost.
    let pid = db.ask("SELECT pid FROM pg_task.scheduler").await?;
    db.run(&format!("SELECT pg_terminate_backend({pid})")).await?;
    db.until_done().await?;
    check(&db, "q", 10, 5, &start).await
}

/// Takes tasks, so many at a time and in all, and ends them; how many of each of two keys.
async fn shares(worker: &mut Session, at_once: u32, total: u32) -> Result<[u32; 2]> {
    const ID: &str = "00000000-0000-0000-0000-00000000000a";
    let mut counts = [0; 2];
    while counts.iter().sum::<u32>() < total {
        let sql = format!(
            "WITH e AS MATERIALIZED (SELECT * FROM pg_task.exchange('{ID}', {at_once})),
             c AS (SELECT count(*) FILTER (WHERE options->>'key' = 'k1') AS one, count(*) FILTER (WHERE options->>'key' = 'k2') AS two FROM e WHERE event = 0)
             SELECT concat_ws(' ', c.one, c.two, (SELECT string_agg(concat_ws(',', id, fence, token), ' ') FROM e WHERE event = 0)) FROM c"
        );
        let answer = worker.ask(&sql).await?;
        let mut words = answer.split(' ');
        for count in &mut counts {
            *count += words.next().unwrap_or_default().parse::<u32>()?;
        }
        for claim in words {
            let [id, fence, token] = claim.split(',').collect::<Vec<_>>()[..] else { bail!("{claim}") };
            worker
                .run(&format!(
                    "SELECT pg_task.exchange('{ID}', 0, '{{{id}}}', '{{{fence}}}', '{{{token}}}', '{{0}}', ARRAY[NULL]::jsonb[])"
                ))
                .await?;
        }
    }
    Ok(counts)
}

#[tokio::test]
async fn keys_with_a_backlog_are_served_by_their_weights_which_can_be_changed() -> Result<()> {
    let db = database().await?;
    let limits = pg_task::QueueLimits::new().key_weights(&[("k1", 3)]);
    pg_task::set_queue(&db.pool, "q", limits).await?;
    enqueue(&db, "q", 2, 1_000).await?;
    let mut worker = db.session().await?;
    worker.run("SELECT pg_task.register('00000000-0000-0000-0000-00000000000a')").await?;
    db.until("SELECT ready = 64 FROM pg_task.scheduler").await?;
    assert_eq!(
        db.ask("SELECT string_agg(concat(key, weight), ' ' ORDER BY key) FROM pg_task.keys").await?,
        "k13 k21"
    );
    let [one, two] = shares(&mut worker, 8, 400).await?;
    ensure!(one.abs_diff(3 * two) <= 3 * 16, "{one} and {two}");
    // The other way round; what was ready by the old weights goes first.
    db.run(r#"SELECT pg_task.set_queue('q', key_weights => '{"k2": 4}')"#).await?;
    db.until("SELECT NOT EXISTS (SELECT FROM pg_task.keys WHERE key = 'k2' AND weight = 1)").await?;
    shares(&mut worker, 8, 128).await?;
    let [one, two] = shares(&mut worker, 8, 400).await?;
    ensure!(two.abs_diff(4 * one) <= 4 * 16, "{one} and {two}");
    db.run("SELECT pg_task.set_queue('q')").await?;
    assert_eq!(db.ask("SELECT count(*) FROM pg_task.queue").await?, "0");
    Ok(())
}

#[tokio::test]
async fn shares_hold_when_many_tasks_are_taken_at_a_time() -> Result<()> {
    let db = database().await?;
    // All of the first have smaller ids than those of the second: in the order of ids they would come first after every call.
    for key in ["k1", "k2"] {
        db.run(&format!(
            r#"SELECT pg_task.enqueue('{{"Test":{{"Note":{{"key":"{key}"}}}}}}', 'q', options => '{{"key":"{key}"}}') FROM generate_series(1, 600)"#
        ))
        .await?;
    }
    let mut worker = db.session().await?;
    worker.run("SELECT pg_task.register('00000000-0000-0000-0000-00000000000a')").await?;
    let mut counts = [0; 2];
    for _ in 0..20 {
        // All that is to follow is there: what is taken by one call is found by one look, or few. One that ends while a look reads may be found once more.
        db.until("SELECT ready >= 32 FROM pg_task.scheduler").await?;
        let taken = shares(&mut worker, 24, 24).await?;
        (0..2).for_each(|key| counts[key] += taken[key]);
        ensure!(counts[0].abs_diff(counts[1]) <= 2 * 16, "{counts:?}");
    }
    ensure!(counts.iter().sum::<u32>() >= 20 * 24, "{counts:?}");
    Ok(())
}

#[tokio::test]
async fn rates_and_weights_of_keys_are_refused_where_they_say_nothing() -> Result<()> {
    const WEIGHTS: &str = "\"key_weights\" must be an object with a whole number from 1 to 100 for each key";
    let db = database().await?;
    let mut session = db.session().await?;
    for (call, code, message) in [
        (
            "SELECT pg_task.set_queue('*', key_rate => 1)",
            "22023",
            "\"key_rate\" cannot be set for all queues together",
        ),
        (
            "SELECT pg_task.set_queue('a', key_rate => 0)",
            "22023",
            "\"key_rate\" must be between 1 and 1000000, not 0",
        ),
        ("SELECT pg_task.set_queue('a', key_burst => 1)", "22023", "\"key_burst\" needs a \"key_rate\""),
        (
            "SELECT pg_task.set_queue('a', key_rate => 1, key_burst => 0)",
            "22023",
            "\"key_burst\" must be between 1 and 1000000, not 0",
        ),
        (
            "SELECT pg_task.set_queue('a', key_rate => 1, key_per => NULL)",
            "22004",
            "\"key_per\" must not be NULL",
        ),
        (
            "SELECT pg_task.set_queue('a', key_rate => 1, key_per => '31 days')",
            "22023",
            "\"key_per (in milliseconds)\" must be between 1 and 2592000000, not 2678400000",
        ),
        (
            r#"SELECT pg_task.set_queue('*', key_weights => '{"a": 1}')"#,
            "22023",
            "\"key_weights\" cannot be set for all queues together",
        ),
        (r#"SELECT pg_task.set_queue('a', key_weights => '[3]')"#, "22023", WEIGHTS),
        (r#"SELECT pg_task.set_queue('a', key_weights => '{"a": 0}')"#, "22023", WEIGHTS),
        (r#"SELECT pg_task.set_queue('a', key_weights => '{"a": 1.5}')"#, "22023", WEIGHTS),
        (r#"SELECT pg_task.set_queue('a', key_weights => '{"a": 101}')"#, "22023", WEIGHTS),
        (r#"SELECT pg_task.set_queue('a', key_weights => '{"a": "3"}')"#, "22023", WEIGHTS),
        (r#"SELECT pg_task.set_queue('a', key_weights => '{"a": [3]}')"#, "22023", WEIGHTS),
        (r#"SELECT pg_task.set_queue('a', key_weights => '{"": 3}')"#, "22023", WEIGHTS),
        (
            "SELECT pg_task.set_queue('a', key_weights => jsonb_object_agg(n::text, 2)) FROM generate_series(1, 1001) AS n",
            "22023",
            WEIGHTS,
        ),
    ] {
        let refusal = session.refusal(call).await?;
        assert_eq!((&*refusal.code, &*refusal.message), (code, message), "{call}");
        ensure!(!refusal.detail.is_empty() && !refusal.hint.is_empty(), "{refusal:?}");
    }
    for (insert, constraint) in [
        (r#"(name, key_weights) VALUES ('*', '{"a": 3}')"#, "queue_keys_are_of_one_queue"),
        (r#"(name, key_weights) VALUES ('a', '3')"#, "queue_key_weights_are_weights"),
        (r#"(name, key_weights) VALUES ('a', '{"a": 3, "b": 0.5}')"#, "queue_key_weights_are_weights"),
        (r#"(name, key_weights) VALUES ('a', '{"a": [3]}')"#, "queue_key_weights_are_weights"),
        ("(name, key_rate, key_rate_interval) VALUES ('*', 1, '1 s')", "queue_keys_are_of_one_queue"),
        ("(name, key_rate) VALUES ('a', 1)", "queue_key_rate_is_whole"),
        ("(name, key_burst) VALUES ('a', 1)", "queue_key_rate_is_whole"),
        ("(name, key_rate, key_rate_interval) VALUES ('a', -1, '1 s')", "queue_key_rate_is_in_range"),
        (
            "(name, key_rate, key_rate_interval) VALUES ('a', 1, '1 us')",
            "queue_key_rate_interval_is_in_range",
        ),
        (
            "(name, key_rate, key_rate_interval, key_burst) VALUES ('a', 1, '1 s', 0)",
            "queue_key_burst_is_in_range",
        ),
    ] {
        let refusal = session.refusal(&format!("INSERT INTO pg_task.queue {insert}")).await?;
        ensure!(refusal.code == "23514" && refusal.message.contains(constraint), "{insert}: {refusal:?}");
    }
    Ok(())
}
