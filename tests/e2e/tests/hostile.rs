//! Random and hostile calls of every SQL function: an error is an answer, a crash, a panic or an internal error is not.
#![expect(
    clippy::print_stdout,
    clippy::tests_outside_test_module,
    reason = "an integration test that reports figures"
)]

use std::collections::BTreeMap;

use anyhow::Result;
use pg_task_e2e::Database;
use pg_task_e2e::Ledger;
use pg_task_e2e::WorkerOptions;
use pg_task_e2e::own_server;
use sqlx::AssertSqlSafe;
use sqlx::Connection;
use sqlx::PgConnection;
use sqlx::postgres::PgDatabaseError;

/// Calls in all; `HOSTILE_CALLS` asks for more.
const CALLS: usize = 20_000;

/// Numbers that a seed decides: splitmix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.roll() as usize % from.len()]
    }
}

/// A value of a type, as SQL: often NULL, at a limit, or of another shape than is meant. Ids of workers and tasks repeat, so that calls meet
/// each other's.
fn value(dice: &mut Dice, of: &str) -> String {
    if dice.roll().is_multiple_of(12) {
        return format!("NULL::{of}");
    }
    if let Some(element) = of.strip_suffix("[]") {
        return array(dice, element);
    }
    let text = match of {
        "uuid" => format!("00000000-0000-0000-0000-00000000000{}", dice.roll() % 10),
        "boolean" => dice.pick(&["t", "f"]).to_owned(),
        "smallint" => {
            dice.pick(&["-32768", "-1", "0", "0", "1", "2", "3", "4", "5", "6", "7", "8", "32767"]).to_owned()
        }
        "integer" => dice
            .pick(&["-2147483648", "-1", "0", "1", "1", "2", "3", "10000", "10001", "2147483647"])
            .to_owned(),
        "bigint" => dice
            .pick(&["-9223372036854775808", "-1", "0", "0", "1", "2", "1000000", "9223372036854775807"])
            .to_owned(),
        "double precision" => dice
            .pick(&[
                "0",
                "1",
                "0.5",
                "-0",
                "1e-308",
                "1.0000000000000002",
                "-1",
                "1e308",
                "NaN",
                "Infinity",
                "-Infinity",
            ])
            .to_owned(),
        "interval" => dice
            .pick(&[
                "0",
                "1 s",
                "60 s",
                "-1 s",
                "1 day",
                "178000000 years",
                "-178000000 years",
                "1 us",
                "1 mon -30 days",
            ])
            .to_owned(),
        "timestamp with time zone" => dice
            .pick(&[
                "now",
                "infinity",
                "-infinity",
                "epoch",
                "294276-12-31 23:59:59",
                "4713-01-01 BC",
                "2000-01-01",
            ])
            .to_owned(),
        "jsonb" => json(dice),
        "text" => text(dice),
        "regrole" => dice.pick(&["pg_monitor", "4294967295", "0"]).to_owned(),
        other => panic!("no values for {other}"),
    };
    format!("'{}'::{of}", text.replace('\'', "''"))
}

fn array(dice: &mut Dice, element: &str) -> String {
    let values =
        |dice: &mut Dice, len: u64| (0..len).map(|_| value(dice, element)).collect::<Vec<_>>().join(", ");
    match dice.roll() % 10 {
        0 => format!("'{{}}'::{element}[]"),
        1 => format!("ARRAY[ARRAY[{}], ARRAY[{}]]::{element}[]", values(dice, 2), values(dice, 2)),
        2 => format!("array_fill({}, ARRAY[1], ARRAY[-7])", value(dice, element)),
        3 => format!(
            "array_fill({}, ARRAY[{}])",
            value(dice, element),
            [31, 33, 511, 513, 2000][dice.roll() as usize % 5]
        ),
        // Most often of one length, so that arrays that belong together fit.
        4 => format!("ARRAY[{}]::{element}[]", values(dice, 3)),
        _ => format!("ARRAY[{}]::{element}[]", values(dice, 1)),
    }
}

fn json(dice: &mut Dice) -> String {
    match dice.roll() % 8 {
        0 => dice
            .pick(&["null", "1", "[]", "{}", "\"x\"", "[[[[[[[[[[1]]]]]]]]]]", "{\"A\": 1}", "{\"A\": {}}"])
            .to_owned(),
        1 => format!(
            "{{\"{}\": {{\"{}\": 1}}}}",
            "k".repeat((dice.roll() % 300) as usize),
            "ü".repeat((dice.roll() % 300) as usize)
        ),
        2 => "{\"A\": {\"B\": 1, \"C\": 2}}".to_owned(),
        3 => "{\"A\": {\"B\": 1}, \"C\": {\"D\": 1}}".to_owned(),
        4 => format!("{{\"A\": {{\"B\": 1e{}}}}}", dice.roll() % 5000),
        5 => format!("{{\"\": {{\"\": {}1{}}}}}", "[".repeat(500), "]".repeat(500)),
        6 => format!("{{\"A\": {{\"B\": \"{}\"}}}}", "x".repeat((dice.roll() % 100_000) as usize)),
        _ => "{\"Test\": {\"Note\": {\"key\": \"hostile\"}}}".to_owned(),
    }
}

fn text(dice: &mut Dice) -> String {
    match dice.roll() % 6 {
        0 => dice
            .pick(&[
                "",
                "/",
                "a/b",
                "a//b",
                "/b",
                "a/",
                "%",
                "_",
                "\\",
                "' OR true --",
                "\u{1}\u{7f}\u{feff}",
                "💥",
                "* * * * * *",
                "every 1 s",
                "Europe/Berlin",
                "all",
                "queue",
                "skip",
            ])
            .to_owned(),
        1 => "q".repeat((dice.roll() % 200) as usize),
        2 => "ß💥".repeat((dice.roll() % 40) as usize),
        3 => format!("queue {}", dice.roll() % 3000),
        4 => dice.pick(&["done", "queued", "running", "replace", "move", "skip"]).to_owned(),
        _ => dice.pick(&["default", "Test/Note", "a"]).to_owned(),
    }
}

/// Whether an error code means that something in the server went wrong, not in the call.
fn is_internal(code: &str) -> bool {
    // XX: internal error, corruption. 58: system error. P0004: assertion. 57P01, 57P02: a crash of another session.
    code.starts_with("XX") || code.starts_with("58") || ["P0004", "57P01", "57P02"].contains(&code)
}

#[tokio::test]
async fn random_calls_of_every_function_get_an_answer_and_leave_the_server_whole() -> Result<()> {
    let server = own_server("e2e-hostile", &["log_min_messages = warning"])?;
    let db = Database::create(&server).await?;
    let functions: Vec<(String, Vec<String>, bool)> = sqlx::query_as(
        "SELECT p.oid::regproc::text, ARRAY(SELECT t::regtype::text FROM unnest(p.proargtypes) AS t), p.prorettype = 'trigger'::regtype
         FROM pg_proc AS p WHERE p.pronamespace = 'pg_task'::regnamespace ORDER BY 1",
    )
    .fetch_all(&db.pool)
    .await?;
    assert!(functions.len() > 25, "only {} functions", functions.len());
    let calls = std::env::var("HOSTILE_CALLS").map_or(CALLS, |calls| calls.parse().expect("a number"));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos() as u64;
    let seed = std::env::var("SEED").map_or(now, |seed| seed.parse().expect("a number"));
    println!("seed {seed}, {calls} calls; SEED={seed} repeats them");
    let mut sessions = Vec::new();
    for _ in 0..4 {
        sessions.push(PgConnection::connect(&db.url).await?);
    }
    let mut dice = Dice(seed);
    let mut codes: BTreeMap<String, usize> = BTreeMap::new();
    for call in 0..calls {
        let (name, arguments, _) = &functions[dice.roll() as usize % functions.len()];
        let values: Vec<String> = arguments.iter().map(|of| value(&mut dice, of)).collect();
        let sql = match dice.roll() % 6 {
            0 => format!("BEGIN; SELECT {name}({}); ROLLBACK", values.join(", ")),
            1 => format!("BEGIN; SAVEPOINT a; SELECT {name}({}); ROLLBACK TO a; COMMIT", values.join(", ")),
            _ => format!("SELECT {name}({})", values.join(", ")),
        };
        let session = &mut sessions[dice.roll() as usize % 4];
        let result = sqlx::raw_sql(AssertSqlSafe(sql.clone())).execute(&mut *session).await;
        let code = match result {
            Ok(_) => "00000".to_owned(),
            Err(sqlx::Error::Database(error)) => error.downcast_ref::<PgDatabaseError>().code().to_owned(),
            Err(error) => anyhow::bail!("seed {seed}, call {call}: {error}: {sql:.2000}"),
        };
        assert!(!is_internal(&code), "seed {seed}, call {call}: {code}: {sql:.2000}");
        *codes.entry(code).or_default() += 1;
        if sql.starts_with("BEGIN") {
            sqlx::raw_sql("ROLLBACK").execute(&mut *session).await?;
        }
    }
    println!("{codes:?}");
    // Calls that succeed and calls that fail for several reasons: otherwise nothing was tried.
    assert!(codes.contains_key("00000") && codes.len() > 8, "{codes:?}");
    let log = std::fs::read_to_string(server.log())?;
    for bad in ["panicked", "PANIC", "terminated by signal", "was terminated", "TRAP"] {
        assert!(!log.contains(bad), "the log has \"{bad}\"");
    }
    // What was enqueued is still a task, and the server still runs tasks.
    drop(sessions);
    db.run("DELETE FROM pg_task.schedule").await?;
    db.run("DELETE FROM pg_task.task").await?;
    // Some calls have paused a queue, or limited it or a step.
    db.run("DELETE FROM pg_task.queue; DELETE FROM pg_task.step_limit").await?;
    let ledger = Ledger::new("hostile")?;
    let options =
        WorkerOptions { ledger: Some(ledger.path()), ..WorkerOptions::new(env!("CARGO_BIN_EXE_e2e_worker")) };
    let _worker = db.known_worker(options).await?;
    db.run(r#"SELECT pg_task.enqueue('{"Test": {"Note": {"key": "still here"}}}')"#).await?;
    db.until_done().await?;
    assert_eq!(ledger.lines(), ["still here"]);
    Ok(())
}

#[tokio::test]
async fn more_names_of_queues_than_memory_has_places_for_are_all_served() -> Result<()> {
    let server = own_server("e2e-queues", &[])?;
    let (db, ledger) = (Database::create(&server).await?, Ledger::new("queues")?);
    let options =
        WorkerOptions { ledger: Some(ledger.path()), ..WorkerOptions::new(env!("CARGO_BIN_EXE_e2e_worker")) };
    let _worker = db.known_worker(options).await?;
    // Three times as many as the 1,024 places, over time.
    for round in 0..3 {
        db.run(&format!(
            r#"SELECT pg_task.enqueue('{{"Test": {{"Note": {{"key": "a"}}}}}}', 'queue {round} ' || n) FROM generate_series(1, 1024) AS n"#
        ))
        .await?;
        db.until_done().await?;
    }
    assert_eq!(ledger.lines().len(), 3 * 1024);
    Ok(())
}
