//! What the documentation shows is run: its commands, its SQL, its program, its worker in Python.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use anyhow::ensure;
use pg_task_cluster::Cluster;
use pg_task_cluster::workspace_root;
use pg_task_e2e::Database;
use pg_task_e2e::blocks::Block;
use pg_task_e2e::blocks::blocks;
use pg_task_e2e::seed;
use pg_task_e2e::shared_server;

fn server() -> &'static Cluster {
    shared_server("e2e-documentation")
}

/// The pages: those in the root and those in `docs/`.
fn pages() -> Result<Vec<PathBuf>> {
    let mut pages = Vec::new();
    for folder in
        [workspace_root(), workspace_root().join("docs"), workspace_root().join("worker-client/src/docs")]
    {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    pages.sort();
    Ok(pages)
}

fn page(path: &str) -> Result<Vec<Block>> {
    Ok(blocks(&fs::read_to_string(workspace_root().join(path))?))
}

#[tokio::test]
async fn every_block_of_sql_runs_in_a_new_database() -> Result<()> {
    let mut count = 0;
    for path in pages()? {
        let text = fs::read_to_string(&path)?;
        for block in blocks(&text).iter().filter(|block| block.language == "sql") {
            let place = format!("{}, line {}", path.display(), block.line);
            let db = Database::create(server()).await?;
            let mut session = db.session().await?;
            if let Some(before) = &block.before {
                session.run(before).await.with_context(|| format!("{place}: what is done before"))?;
            }
            session.run(&block.text).await.with_context(|| place)?;
            count += 1;
        }
    }
    // The README alone has two.
    ensure!(count >= 2, "only {count} blocks of SQL were found");
    Ok(())
}

/// The commands under "Five minutes", as they stand: the worker goes on in the background, psql is given the block of SQL that follows.
fn five_minutes() -> Result<String> {
    let blocks = page("README.md")?;
    let at = blocks.iter().position(|block| block.text.contains("cluster start")).context("no such block")?;
    let sql = blocks[at..].iter().find(|block| block.language == "sql").context("no SQL follows")?;
    let mut script = String::new();
    for line in blocks[at].text.lines() {
        let command = line.split('#').next().unwrap_or(line).trim();
        match () {
            () if line.contains("leave it running") => {
                script.push_str(&format!("{command} >\"$LOG\" 2>&1 &\nworker=$!\n"));
            }
            () if command.ends_with("cluster psql") => {
                script.push_str(&format!("{command} -v ON_ERROR_STOP=1 <<'SQL'\n{}\nSQL\n", sql.text));
            }
            () => script.push_str(&format!("{command}\n")),
        }
    }
    ensure!(
        script.contains("worker=") && script.contains("<<'SQL'"),
        "the commands are others now: {script}"
    );
    Ok(script)
}

fn shell(script: &str, variables: &[(&str, &str)]) -> Result<String> {
    let mut command = Command::new("bash");
    command.args(["-euc", script]).current_dir(workspace_root()).env("PG_TASK_CLUSTER", "readme");
    command.envs(variables.iter().copied()).env_remove("CARGO_MANIFEST_DIR").env_remove("DATABASE_URL");
    seed::run(&mut command)
}

#[test]
fn the_first_five_minutes_of_the_readme_go_as_it_says() -> Result<()> {
    let log = std::env::temp_dir().join(format!("pg_task-readme-{}", std::process::id()));
    let script = format!(
        "worker=
         trap '[ -z \"$worker\" ] || kill $worker; cargo xtask cluster stop --remove' EXIT\n{}
         until grep -q 'Hello, you' \"$LOG\"; do kill -0 $worker; sleep 0.1; done
         cargo xtask cluster status
         kill -TERM $worker
         wait $worker
         worker=
         echo 'the worker has ended well'",
        five_minutes()?
    );
    let said = shell(&script, &[("LOG", &log.display().to_string())])
        .with_context(|| format!("the worker said: {}", fs::read_to_string(&log).unwrap_or_default()))?;
    ensure!(said.contains("running: process") && said.contains("the worker has ended well"), "{said}");
    fs::remove_file(log)?;
    Ok(())
}

#[test]
fn the_demo_of_the_readme_ends_well() -> Result<()> {
    let blocks = page("README.md")?;
    let commands =
        blocks.iter().find(|block| block.text.contains("cargo xtask demo")).context("no such block")?;
    let commands: Vec<&str> =
        commands.text.lines().map(|line| line.split('#').next().unwrap_or(line).trim()).collect();
    // The second is what runs this test.
    ensure!(
        commands == ["cargo xtask demo", "cargo xtask test"],
        "the commands are others now: {commands:?}"
    );
    let said = shell(commands[0], &[])?;
    ensure!(said.contains("Everything happened as it should"), "{said}");
    Ok(())
}

#[test]
fn the_program_of_the_readme_compiles() -> Result<()> {
    let blocks = page("README.md")?;
    let program: Vec<&str> =
        blocks.iter().filter(|block| block.language == "rust").map(|block| block.text.as_str()).collect();
    ensure!(program.len() == 1, "one program was expected: {program:?}");
    // Its last line, a comment there, shows how to run it.
    let program = format!(
        "{}\n#[tokio::main]\nasync fn main() -> Result<(), Box<dyn std::error::Error>> {{\n\
             let db = sqlx::PgPool::connect(\"\").await?;\n{};\nOk(())\n}}\n",
        program[0],
        program[0]
            .lines()
            .find_map(|line| line.strip_prefix("// pg_task::Worker"))
            .map(|rest| format!("pg_task::Worker{}", rest.trim_end_matches(';')))
            .context("the last line is another one now")?
    );
    let folder = seed::package("readme_program", &[("readme_program", &program)])?;
    seed::run(&mut seed::cargo(&folder.join("Cargo.toml"), "build"))?;
    Ok(())
}

/// The Python worker's process; killed when the value is dropped.
struct Python(Child);

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Python {
    async fn start(db: &Database, output: &Path) -> Result<Self> {
        let python = seed::target().join("pg_task/venv/bin/python");
        if !python.exists() {
            bail!("{} is missing; `cargo xtask test` makes it", python.display());
        }
        let child = Command::new(python)
            .arg(workspace_root().join("examples/worker.py"))
            .env("DATABASE_URL", &db.url)
            .stdout(Stdio::from(fs::OpenOptions::new().create(true).append(true).open(output)?))
            .spawn()?;
        let worker = Self(child);
        db.until("SELECT count(*) = 1 FROM pg_task.workers WHERE name = 'python' AND state = 'idle'").await?;
        Ok(worker)
    }

    async fn ended_well(mut self, db: &Database) -> Result<()> {
        db.until("SELECT count(*) = 0 FROM pg_task.workers").await?;
        let status = tokio::task::spawn_blocking(move || self.0.wait()).await??;
        ensure!(status.success(), "{status}");
        Ok(())
    }
}

#[tokio::test]
async fn the_worker_in_python_greets_retries_parks_and_stops() -> Result<()> {
    let db = Database::create(server()).await?;
    let output = std::env::temp_dir().join(format!("pg_task-python-{}", std::process::id()));
    let worker = Python::start(&db, &output).await?;
    let greet =
        |name: &str| format!(r#"SELECT pg_task.enqueue('{{"Python":{{"Greet":{{"name":"{name}"}}}}}}')"#);
    for name in ["Ada", "Grace", "Edsger"] {
        db.run(&greet(name)).await?;
    }
    db.run(r#"SELECT pg_task.delay('{"Python":{"Greet":{"name":"later"}}}', '200 ms')"#).await?;
    db.until_done().await?;
    // One that it does not know is not given to it; one that fails is tried four times.
    db.run(r#"SELECT pg_task.enqueue('{"Python":{"Sing":{}}}'), pg_task.enqueue('{"Python":{"Greet":{}}}')"#)
        .await?;
    db.until("SELECT count(*) = 1 FROM pg_task.failed").await?;
    assert_eq!(db.ask("SELECT tried || ' ' || error FROM pg_task.failed").await?, "4 KeyError('name')");
    assert_eq!(db.ask("SELECT tried FROM pg_task.task WHERE error IS NULL").await?, "0");
    db.run("DELETE FROM pg_task.task").await?;

    db.run("SELECT pg_task.stop_workers()").await?;
    worker.ended_well(&db).await?;
    let worker = Python::start(&db, &output).await?;
    db.run("SELECT pg_notify('pg_task_changed', 'stop_worker')").await?;
    worker.ended_well(&db).await?;
    let worker = Python::start(&db, &output).await?;
    ensure!(
        Command::new("kill").args(["-TERM", &worker.0.id().to_string()]).status()?.success(),
        "no signal was sent"
    );
    worker.ended_well(&db).await?;
    assert_eq!(db.ask("SELECT lost FROM pg_task.scheduler").await?, "0");

    let lines = fs::read_to_string(&output)?;
    let mut lines: Vec<&str> = lines.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["Hello, Ada", "Hello, Edsger", "Hello, Grace", "Hello, later"]);
    fs::remove_file(output)?;
    Ok(())
}
