//! The SQL surface as a whole: what the SQL declares is what the library has, and everything explains itself.
#![expect(clippy::tests_outside_test_module, reason = "an integration test")]

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use pg_task_cluster::workspace_root;
use pg_task_e2e::Database;
use pg_task_e2e::shared_server;

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files.extend(self::files(&path, extension));
        } else if path.extension().is_some_and(|found| found == extension) {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// White space as one space, none within brackets' edges.
fn plain(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").replace("( ", "(").replace(" )", ")")
}

/// Where the bracket that `text` begins with is closed.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0;
    text.char_indices().find_map(|(at, character)| {
        depth += match character {
            '(' => 1,
            ')' => -1,
            _ => 0,
        };
        (depth == 0).then_some(at)
    })
}

/// `name(arguments) RETURNS type` of a `CREATE FUNCTION`, without defaults; OUT parameters are told after the type `record`.
fn declaration(create: &str) -> Option<String> {
    let create = plain(create);
    let open = create.find('(')?;
    let close = open + closing(&create[open..])?;
    let (name, rest) = (&create[..open], create[close + 1..].trim_start());
    let mut inputs: Vec<&str> = Vec::new();
    let mut outputs: Vec<&str> = Vec::new();
    for argument in create[open + 1..close].split(',').map(str::trim).filter(|argument| !argument.is_empty())
    {
        match argument.strip_prefix("OUT ") {
            Some(output) => outputs.push(output),
            None => inputs.push(argument.split(" DEFAULT ").next().unwrap_or(argument)),
        }
    }
    let returns = rest.strip_prefix("RETURNS ")?;
    let returns = match returns.strip_prefix("TABLE ") {
        Some(columns) => format!("TABLE {}", &columns[..=closing(columns)?]),
        None => returns.split(' ').next()?.to_owned(),
    };
    let outputs = if outputs.is_empty() { String::new() } else { format!(" ({})", outputs.join(", ")) };
    Some(format!("{name}({}) RETURNS {returns}{outputs}", inputs.join(", ")))
}

/// The C functions that `sql/` declares: symbol and declaration.
fn declared() -> Result<BTreeMap<String, String>> {
    let mut declared = BTreeMap::new();
    for file in files(&workspace_root().join("sql"), "sql") {
        let text = fs::read_to_string(&file)?;
        for create in text.split("CREATE FUNCTION pg_task.").skip(1) {
            let statement = create.split(';').next().unwrap_or(create);
            let Some((_, symbol)) = statement.split_once("'MODULE_PATHNAME', '") else { continue };
            let symbol = symbol.split('\'').next().context("a symbol has no end")?;
            let declaration =
                declaration(statement).with_context(|| format!("not understood: {statement}"))?;
            declared.insert(symbol.to_owned(), declaration);
        }
    }
    Ok(declared)
}

/// The functions that the Rust side gives to SQL: symbol and declaration.
fn given() -> Result<BTreeMap<String, String>> {
    let mut given = BTreeMap::new();
    for file in files(&workspace_root().join("extension/src"), "rs") {
        let text = fs::read_to_string(&file)?;
        for call in text.split("sql_function!(").skip(1) {
            let strings: Vec<&str> = call.split('"').skip(1).step_by(2).take(3).collect();
            let [symbol, record, declaration] = strings[..] else { bail!("not understood: {call}") };
            assert_eq!(record, format!("pg_finfo_{symbol}"), "{}", file.display());
            given.insert(symbol.to_owned(), plain(declaration));
        }
    }
    Ok(given)
}

#[test]
fn every_function_of_the_library_is_declared_in_sql_as_the_rust_side_reads_it() -> Result<()> {
    let (declared, given) = (declared()?, given()?);
    assert!(declared.len() > 20, "the SQL files were not understood: {declared:?}");
    assert_eq!(declared, given);
    Ok(())
}

#[tokio::test]
async fn the_built_library_has_every_symbol_that_the_sql_names_and_no_other() -> Result<()> {
    let folder = shared_server("e2e-surface")
        .psql("postgres", "SELECT setting FROM pg_config WHERE name = 'PKGLIBDIR'")?;
    let library = Path::new(&folder).join("pg_task.so");
    let output = Command::new("nm")
        .args(["-D", "--defined-only"])
        .arg(&library)
        .output()
        .context("failed to run nm")?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let symbols: BTreeSet<String> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| line.split_whitespace().nth(2).map(str::to_owned))
        .collect();
    let functions: BTreeSet<&str> = symbols
        .iter()
        .map(String::as_str)
        .filter(|symbol| symbol.ends_with("_wrapper") && !symbol.starts_with("pg_finfo_"))
        .collect();
    let declared = declared()?;
    assert_eq!(functions, declared.keys().map(String::as_str).collect());
    for symbol in functions {
        assert!(symbols.contains(&format!("pg_finfo_{symbol}")), "{symbol} has no record");
    }
    Ok(())
}

#[tokio::test]
async fn every_object_of_the_extension_has_a_comment() -> Result<()> {
    let db = Database::create(shared_server("e2e-surface")).await?;
    let without = "
        WITH member AS (
            SELECT d.classid, d.objid FROM pg_depend AS d JOIN pg_extension AS e ON e.oid = d.refobjid
            WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND e.extname = 'pg_task'
            UNION SELECT 'pg_extension'::regclass, oid FROM pg_extension WHERE extname = 'pg_task'
        ), part AS (
            SELECT classid, objid, 0 AS objsubid FROM member
            UNION SELECT 'pg_class'::regclass, a.attrelid, a.attnum FROM pg_attribute AS a
                JOIN pg_class AS c ON c.oid = a.attrelid AND c.relkind IN ('p', 'r', 'v')
                JOIN member AS m ON m.classid = 'pg_class'::regclass AND m.objid = a.attrelid
                -- A partition's columns are explained at its table.
                WHERE a.attnum > 0 AND NOT a.attisdropped AND NOT c.relispartition
            UNION SELECT 'pg_class'::regclass, i.indexrelid, 0 FROM pg_index AS i JOIN member AS m ON m.objid = i.indrelid
            UNION SELECT 'pg_constraint'::regclass, k.oid, 0 FROM pg_constraint AS k JOIN member AS m ON m.objid = k.conrelid
                -- From PostgreSQL 18 on NOT NULL is a constraint too; the column says it.
                WHERE k.contype <> 'n'
            UNION SELECT 'pg_trigger'::regclass, t.oid, 0 FROM pg_trigger AS t JOIN member AS m ON m.objid = t.tgrelid
                WHERE NOT t.tgisinternal
        )
        SELECT string_agg(pg_describe_object(p.classid, p.objid, p.objsubid), ', '
            ORDER BY pg_describe_object(p.classid, p.objid, p.objsubid)) FROM part AS p
        LEFT JOIN pg_description AS x ON (x.classoid, x.objoid, x.objsubid) = (p.classid, p.objid, p.objsubid)
        WHERE x.description IS NULL
            -- Row types come with their tables and views.
            AND p.classid NOT IN ('pg_type'::regclass, 'pg_rewrite'::regclass)";
    assert_eq!(db.ask(without).await?, "");
    // The query looks at what it should.
    db.run("COMMENT ON CONSTRAINT task_lock_is_whole ON pg_task.task IS NULL; COMMENT ON COLUMN pg_task.queues.due IS NULL").await?;
    assert_eq!(
        db.ask(without).await?,
        "column due of view pg_task.queues, constraint task_lock_is_whole on table pg_task.task"
    );
    Ok(())
}

#[tokio::test]
async fn no_view_looks_so_costly_that_the_server_compiles_it_before_it_is_read() -> Result<()> {
    let db = Database::create(shared_server("e2e-surface")).await?;
    // `jit_above_cost`. Compiling takes the better part of a second, reading some milliseconds.
    let limit: f64 = db.ask("SELECT current_setting('jit_above_cost')").await?.parse()?;
    let fill = r#"
        INSERT INTO pg_task.task (queue, priority, step, options, wakeup_at)
        SELECT 'queue ' || i % 20, i % 3, '{"A": {"B": 1}}',
               CASE i % 3 WHEN 1 THEN jsonb_build_object('key', 'k' || i % 100) WHEN 2 THEN jsonb_build_object('group', 'g' || i % 100) END,
               now() + interval '1 day'
        FROM generate_series(1, 100000) AS i;
        SELECT pg_task.set_schedule('s' || i, '@yearly', '{"A": {"B": 1}}') FROM generate_series(1, 500) AS i;
        SELECT pg_task.set_queue('queue ' || i, concurrency => 5) FROM generate_series(1, 20) AS i;
        ANALYZE"#;
    for fill in ["", fill] {
        db.run(fill).await?;
        let views =
            db.ask("SELECT string_agg(viewname, ' ') FROM pg_views WHERE schemaname = 'pg_task'").await?;
        for view in views.split(' ') {
            let explain = sqlx::AssertSqlSafe(format!("EXPLAIN TABLE pg_task.{view}"));
            let plan: String = sqlx::query_scalar(explain).fetch_one(&db.pool).await?;
            let cost = plan.split_once("..").and_then(|(_, rest)| rest.split_once(' ')).context("a cost")?.0;
            assert!(cost.parse::<f64>()? < limit, "{view}: {plan}");
        }
    }
    Ok(())
}
