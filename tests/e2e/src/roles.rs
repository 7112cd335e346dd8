//! Who may do what: every cell is found by trying it, not by asking the catalog.

use std::fmt::Write as _;

use anyhow::Result;
use sqlx::AssertSqlSafe;
use sqlx::PgConnection;

use crate::Database;

/// The columns of the table: a heading, and a role made for the try.
pub const ROLES: [(&str, &str); 5] = [
    ("PUBLIC", "cell_public"),
    ("pg_monitor", "cell_monitor"),
    ("produce", "cell_produce"),
    ("work", "cell_work"),
    ("administer", "cell_administer"),
];

/// Makes the roles, which the whole server shares, and gives them what they are to have in this database.
///
/// # Errors
/// When a statement fails.
pub async fn grant(db: &Database) -> Result<()> {
    for (_, role) in ROLES {
        db.run(&format!(
            "DO $$ BEGIN CREATE ROLE {role} LOGIN PASSWORD '{role}'; EXCEPTION WHEN duplicate_object THEN NULL; END $$"
        ))
        .await?;
    }
    db.run(
        "CREATE SCHEMA cells; GRANT ALL ON SCHEMA cells TO PUBLIC; GRANT pg_monitor TO cell_monitor; SELECT pg_task.grant_produce('cell_produce');
         SELECT pg_task.grant_work('cell_work'); SELECT pg_task.grant_administer('cell_administer')",
    )
    .await
}

/// Something that a role may try.
struct Attempt {
    what: String,
    sql: String,
}

/// The table in Markdown, as `docs/security.md` has it.
///
/// # Errors
/// When something fails for another reason than a missing right that should not.
pub async fn table(db: &Database) -> Result<String> {
    let mut connection = db.pool.acquire().await?;
    let mut rows: Vec<(String, String)> = Vec::new();
    for attempt in attempts(&mut connection).await? {
        let mut cells = String::new();
        for (_, role) in ROLES {
            let allowed = is_allowed(&mut connection, role, &attempt.sql).await?;
            cells.push_str(if allowed { " yes |" } else { " – |" });
        }
        // Columns that have the same cells share a row.
        let (action, column) = attempt.what.split_once(" of ").unwrap_or((&attempt.what, ""));
        match rows.last_mut() {
            Some((last, their_cells))
                if !column.is_empty()
                    && *their_cells == cells
                    && last.starts_with(&format!("{action} of ")) =>
            {
                write!(last, ", {column}")?;
            }
            _ => rows.push((attempt.what.clone(), cells)),
        }
    }
    let mut table = String::from("| |");
    let mut line = String::from("| --- |");
    for (heading, _) in ROLES {
        write!(table, " {heading} |")?;
        line.push_str(" --- |");
    }
    write!(table, "\n{line}\n")?;
    for (what, cells) in rows {
        writeln!(table, "| {what} |{cells}")?;
    }
    Ok(table)
}

/// Every function, view and sequence of the schema, and every operation on every column of the table.
async fn attempts(connection: &mut PgConnection) -> Result<Vec<Attempt>> {
    let mut attempts = Vec::new();
    let mut add = |what: String, sql: String| attempts.push(Attempt { what, sql });
    let functions: Vec<(String, Vec<String>)> = sqlx::query_as(
        "SELECT p.oid::regprocedure::text, ARRAY(SELECT t::regtype::text FROM unnest(p.proargtypes) AS t) FROM pg_proc AS p
         WHERE p.pronamespace = 'pg_task'::regnamespace ORDER BY p.proname, 1",
    )
    .fetch_all(&mut *connection)
    .await?;
    for (signature, arguments) in functions {
        let name = signature.split('(').next().unwrap_or_default();
        let values: Vec<String> = arguments.iter().map(|of| value(of)).collect();
        add(format!("call `{}`", shown(&signature)), format!("SELECT {name}({})", values.join(", ")));
    }
    let columns: Vec<(String, String)> = sqlx::query_as(
        "SELECT attname::text, atttypid::regtype::text FROM pg_attribute WHERE attrelid = 'pg_task.task'::regclass AND attnum > 0 ORDER BY attnum",
    )
    .fetch_all(&mut *connection)
    .await?;
    for (column, _) in &columns {
        add(format!("SELECT of `{column}`"), format!("SELECT {column} FROM pg_task.task"));
    }
    for (column, _) in &columns {
        let sql = match column.as_str() {
            "step" => "INSERT INTO pg_task.task (step) VALUES ('{\"A\": {\"B\": 1}}')".to_owned(),
            column => format!(
                "INSERT INTO pg_task.task ({column}, step) VALUES (DEFAULT, '{{\"A\": {{\"B\": 1}}}}')"
            ),
        };
        add(format!("INSERT of `{column}`"), sql);
    }
    for (column, of) in &columns {
        add(format!("UPDATE of `{column}`"), format!("UPDATE pg_task.task SET {column} = {}", value(of)));
    }
    for (what, sql) in [
        ("DELETE", "DELETE FROM pg_task.task"),
        ("TRUNCATE", "TRUNCATE pg_task.task"),
        (
            "CREATE TRIGGER on the table",
            "CREATE TRIGGER t BEFORE UPDATE ON pg_task.task EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        ),
        ("a foreign key to the table", "CREATE TABLE cells.t (id uuid REFERENCES pg_task.task)"),
        ("CREATE RULE on the table", "CREATE RULE r AS ON INSERT TO pg_task.task DO ALSO SELECT 1"),
        ("CREATE POLICY on the table", "CREATE POLICY p ON pg_task.task"),
        ("CREATE INDEX on the table", "CREATE INDEX ON pg_task.task (created_at)"),
        ("ALTER TABLE", "ALTER TABLE pg_task.task DISABLE TRIGGER ALL"),
        ("a new object in the schema", "CREATE FUNCTION pg_task.f() RETURNS int LANGUAGE sql AS 'SELECT 1'"),
        (
            "CREATE OR REPLACE of a function",
            "CREATE OR REPLACE FUNCTION pg_task.grant_produce(role regrole) RETURNS void LANGUAGE sql AS ''",
        ),
        ("DROP EXTENSION", "DROP EXTENSION pg_task"),
        ("nextval of the sequence `epoch`", "SELECT nextval('pg_task.epoch')"),
        ("setval of the sequence `epoch`", "SELECT setval('pg_task.epoch', 1)"),
        ("SELECT on the sequence `epoch`", "SELECT last_value FROM pg_task.epoch"),
        ("SELECT on the table `history`", "TABLE pg_task.history"),
        ("INSERT into the table `history`", "INSERT INTO pg_task.history (part) VALUES (0)"),
        ("DELETE from the table `history`", "DELETE FROM pg_task.history"),
        ("setval of the sequence `history_part`", "SELECT setval('pg_task.history_part', 1)"),
        ("SET pg_task.history", "SET LOCAL pg_task.history = off"),
        ("SET pg_task.max_step_size", "SET LOCAL pg_task.max_step_size = 1"),
    ] {
        add(what.to_owned(), sql.to_owned());
    }
    let views: Vec<(String,)> = sqlx::query_as(
        "SELECT relname::text FROM pg_class WHERE relnamespace = 'pg_task'::regnamespace AND relkind = 'v' ORDER BY relname",
    )
    .fetch_all(&mut *connection)
    .await?;
    for (view,) in views {
        add(format!("view `{view}`"), format!("TABLE pg_task.{view}"));
    }
    Ok(attempts)
}

/// A harmless value of a type. None is NULL: a call of a strict function with NULL is not made, and its right not looked at.
fn value(of: &str) -> String {
    match of {
        "bigint" | "integer" | "smallint" => format!("1::{of}"),
        "boolean" => "true".to_owned(),
        "double precision" => "0.5::float8".to_owned(),
        "interval" => "'1 min'::interval".to_owned(),
        "jsonb" => r#"'{"A": {"B": 1}}'::jsonb"#.to_owned(),
        "regrole" => "'cell_public'::regrole".to_owned(),
        "text" => "'x'::text".to_owned(),
        "timestamp with time zone" => "now()".to_owned(),
        "uuid" => "'00000000-0000-0000-0000-000000000001'::uuid".to_owned(),
        array => format!("'{{}}'::{array}"),
    }
}

/// A signature short enough for a table: an argument list of more than three is cut.
fn shown(signature: &str) -> String {
    let signature = signature.trim_start_matches("pg_task.");
    match signature.match_indices(',').nth(3) {
        Some((at, _)) => format!("{},…)", &signature[..at]),
        None => signature.to_owned(),
    }
}

/// Whether a role may do something, in a transaction that is rolled back. Any other failure came after the right was looked at.
async fn is_allowed(connection: &mut PgConnection, role: &str, sql: &str) -> Result<bool> {
    sqlx::raw_sql(AssertSqlSafe(format!("BEGIN; SET LOCAL ROLE {role}"))).execute(&mut *connection).await?;
    let result = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut *connection).await;
    sqlx::raw_sql("ROLLBACK").execute(&mut *connection).await?;
    match result {
        Ok(_) => Ok(true),
        Err(error) => {
            let Some(database) = error.as_database_error() else { return Err(error.into()) };
            Ok(database.code().as_deref() != Some("42501"))
        }
    }
}
