//! What users add to the table of tasks (triggers, constraints, columns, policies, foreign keys) holds for every way to write a row,
//! also where pg_task writes below the executor.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use anyhow::Result;
use pg_task_e2e::Database;
use pg_task_e2e::Ledger;
use pg_task_e2e::WorkerOptions;
use pg_task_e2e::shared_server;

fn options(ledger: &Ledger) -> WorkerOptions<'_> {
    WorkerOptions { ledger: Some(ledger.path()), ..WorkerOptions::new(env!("CARGO_BIN_EXE_e2e_worker")) }
}

async fn database() -> Result<Database> {
    Database::create(shared_server("e2e-additions")).await
}

const CHAIN: &str = r#"'{"Test":{"Chain":{"key":"c","left":3}}}'"#;

#[tokio::test]
async fn triggers_of_the_user_s_fire_for_new_tasks_next_steps_and_ends() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("triggers")?);
    db.run(
        "CREATE TABLE seen (what text);
         CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
            -- Not what is only written down about a slow step.
            IF TG_OP <> 'UPDATE' OR NEW.fence <> OLD.fence THEN INSERT INTO public.seen VALUES (TG_OP); END IF;
            RETURN coalesce(NEW, OLD);
         END $$;
         CREATE TRIGGER see AFTER INSERT OR UPDATE OR DELETE ON pg_task.task FOR EACH ROW EXECUTE FUNCTION see()",
    )
    .await?;
    let _worker = db.known_worker(options(&ledger)).await?;
    db.run(&format!("SELECT pg_task.enqueue({CHAIN})")).await?;
    db.run(&format!("SELECT pg_task.enqueue_many(ARRAY[{CHAIN}::jsonb, {CHAIN}])")).await?;
    db.until_done().await?;
    let seen = "SELECT string_agg(what || ' ' || n, ', ' ORDER BY what) FROM (SELECT what, count(*) AS n FROM seen GROUP BY what) AS x";
    assert_eq!(db.ask(seen).await?, "DELETE 3, INSERT 3, UPDATE 9");
    Ok(())
}

#[tokio::test]
async fn constraints_of_the_user_s_hold_for_new_tasks_and_next_steps() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("constraints")?);
    db.run("ALTER TABLE pg_task.task ADD CONSTRAINT no_zero CHECK (step->'Test'->'Chain'->>'left' <> '0')")
        .await?;
    let mut session = db.session().await?;
    let zero = CHAIN.replace('3', "0");
    for sql in [
        format!("SELECT pg_task.enqueue({zero})"),
        format!("SELECT pg_task.enqueue_many(ARRAY[{zero}::jsonb])"),
    ] {
        let refusal = session.refusal(&sql).await?;
        assert_eq!(refusal.code, "23514", "{refusal:?}");
    }
    let _worker = db.known_worker(options(&ledger)).await?;
    db.run(&format!("SELECT pg_task.enqueue({CHAIN})")).await?;
    db.until("SELECT step->'Test'->'Chain'->>'left' = '1' FROM pg_task.task").await?;
    assert_eq!(
        db.ask("SELECT count(*) FROM pg_task.task WHERE step->'Test'->'Chain'->>'left' = '0'").await?,
        "0"
    );
    db.run("SELECT pg_task.cancel(id) FROM pg_task.task").await
}

#[tokio::test]
async fn columns_that_were_added_get_their_defaults_and_keep_their_values() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("columns")?);
    db.run("ALTER TABLE pg_task.task ADD COLUMN tenant text DEFAULT 'nobody'; CREATE INDEX ON pg_task.task (tenant)").await?;
    db.run(&format!("SELECT pg_task.enqueue({CHAIN}), pg_task.enqueue_many(ARRAY[{CHAIN}::jsonb])")).await?;
    assert_eq!(db.ask("SELECT string_agg(tenant, ', ') FROM pg_task.task").await?, "nobody, nobody");
    db.run(
        "CREATE TABLE ended (tenant text, fence bigint);
        CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN INSERT INTO public.ended VALUES (OLD.tenant, OLD.fence); RETURN OLD; END $$;
        CREATE TRIGGER note AFTER DELETE ON pg_task.task FOR EACH ROW EXECUTE FUNCTION note()",
    )
    .await?;
    let _worker = db.known_worker(options(&ledger)).await?;
    db.until_done().await?;
    assert_eq!(
        db.ask("SELECT string_agg(tenant || ' ' || fence, ', ') FROM ended").await?,
        "nobody 3, nobody 3"
    );
    Ok(())
}

#[tokio::test]
async fn policies_of_the_user_s_hold_for_those_who_enqueue() -> Result<()> {
    let db = database().await?;
    db.run(
        "DROP ROLE IF EXISTS e2e_limited; CREATE ROLE e2e_limited; SELECT pg_task.grant_produce('e2e_limited');
         ALTER TABLE pg_task.task ENABLE ROW LEVEL SECURITY;
         CREATE POLICY own ON pg_task.task FOR INSERT TO e2e_limited WITH CHECK (queue = 'theirs')",
    )
    .await?;
    let mut session = db.session().await?;
    session.run("SET ROLE e2e_limited").await?;
    let refusal = session.refusal(&format!("SELECT pg_task.enqueue({CHAIN})")).await?;
    assert_eq!(refusal.code, "42501", "{refusal:?}");
    session.run(&format!("SELECT pg_task.enqueue({CHAIN}, queue => 'theirs')")).await?;
    session.run("RESET ROLE").await?;
    assert_eq!(db.ask("SELECT string_agg(queue, ', ') FROM pg_task.task").await?, "theirs");
    db.run("TRUNCATE pg_task.task; DROP POLICY own ON pg_task.task; DROP OWNED BY e2e_limited; DROP ROLE e2e_limited").await
}

#[tokio::test]
async fn a_full_page_sends_next_steps_elsewhere_and_every_index_finds_them() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("pages")?);
    // Rows that fill their pages: no next step finds room beside its predecessor.
    db.run(
        r#"ALTER TABLE pg_task.task SET (fillfactor = 100);
           SELECT pg_task.enqueue_many(array_agg(format('{"Test":{"Chain":{"key":"%s","left":2}}}', repeat('x', 1000 + n % 7))::jsonb))
           FROM generate_series(1, 200) AS n"#,
    )
    .await?;
    let _worker = db.known_worker(options(&ledger)).await?;
    db.until_done().await?;
    assert_eq!(ledger.lines().len(), 600);
    db.until(
        "SELECT n_tup_upd > n_tup_hot_upd FROM pg_stat_all_tables WHERE relid = 'pg_task.task'::regclass",
    )
    .await
}

/// An index that says something of whole blocks gets an entry for a row that stays on its page; the others do not.
#[tokio::test]
async fn an_index_of_blocks_on_what_a_next_step_changes_is_no_hindrance() -> Result<()> {
    let (db, ledger) = (database().await?, Ledger::new("brin")?);
    db.run("CREATE INDEX ON pg_task.task USING brin (updated_at); CREATE INDEX ON pg_task.task USING brin (fence)").await?;
    let _worker = db.known_worker(options(&ledger)).await?;
    db.run(&format!("SELECT count(pg_task.enqueue({CHAIN})) FROM generate_series(1, 20)")).await?;
    db.until("SELECT NOT EXISTS (SELECT FROM pg_task.task WHERE error IS NULL)").await?;
    assert_eq!(db.ask("SELECT coalesce(min(error), 'none') FROM pg_task.failed").await?, "none");
    Ok(())
}
