//! What an extension consists of, as text: two installations are equal when the texts are.

use anyhow::Result;

use crate::Database;

/// Everything that the schema `pg_task` holds, one line each, sorted: definitions, rights, comments, membership.
const OBJECTS: &str = r"
WITH acl AS (
    SELECT c.oid, 'pg_class'::regclass AS of, unnest(c.relacl)::text AS item FROM pg_class AS c WHERE c.relnamespace = 'pg_task'::regnamespace
    UNION ALL SELECT p.oid, 'pg_proc'::regclass, unnest(coalesce(p.proacl, acldefault('f', p.proowner)))::text FROM pg_proc AS p WHERE p.pronamespace = 'pg_task'::regnamespace
    UNION ALL SELECT n.oid, 'pg_namespace'::regclass, unnest(n.nspacl)::text FROM pg_namespace AS n WHERE n.nspname = 'pg_task'
), lines AS (
    SELECT format('right: %s %s', pg_describe_object(of, oid, 0), item) AS line FROM acl
    UNION ALL SELECT format('right at installation: %s %s', pg_describe_object(classoid, objoid, objsubid), item)
    FROM pg_init_privs, unnest(initprivs) AS item
    -- Rights that are those by default may be written out or not.
    WHERE classoid = 'pg_proc'::regclass
            AND objoid IN (SELECT oid FROM pg_proc WHERE pronamespace = 'pg_task'::regnamespace AND NOT item = ANY (acldefault('f', proowner)))
       OR classoid = 'pg_class'::regclass AND objoid IN (SELECT oid FROM pg_class WHERE relnamespace = 'pg_task'::regnamespace)
    UNION ALL SELECT format('relation: %s %s %s %s', c.oid::regclass, c.relkind, c.reloptions, obj_description(c.oid, 'pg_class'))
    FROM pg_class AS c WHERE c.relnamespace = 'pg_task'::regnamespace
    UNION ALL SELECT format('column: %s.%s %s %s %s %s %s', a.attrelid::regclass, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
        a.attcollation::regcollation, pg_get_expr(d.adbin, d.adrelid), col_description(a.attrelid, a.attnum))
    FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid LEFT JOIN pg_attrdef AS d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
    WHERE c.relnamespace = 'pg_task'::regnamespace AND c.relkind IN ('r', 'v') AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL SELECT format('index: %s', pg_get_indexdef(i.indexrelid)) FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indrelid
    WHERE c.relnamespace = 'pg_task'::regnamespace
    UNION ALL SELECT format('view: %s %s', c.oid::regclass, pg_get_viewdef(c.oid)) FROM pg_class AS c
    WHERE c.relnamespace = 'pg_task'::regnamespace AND c.relkind = 'v'
    UNION ALL SELECT format('constraint: %s %s', conname, pg_get_constraintdef(oid)) FROM pg_constraint WHERE connamespace = 'pg_task'::regnamespace
    -- NOT NULL is said of the columns above; as constraints, from PostgreSQL 18 on, they have names that tell of the server's past.
    AND contype <> 'n'
    UNION ALL SELECT format('trigger: %s %s', t.tgenabled, pg_get_triggerdef(t.oid)) FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid
    WHERE c.relnamespace = 'pg_task'::regnamespace
    UNION ALL SELECT format('function: %s %s', pg_get_functiondef(p.oid), obj_description(p.oid, 'pg_proc')) FROM pg_proc AS p
    WHERE p.pronamespace = 'pg_task'::regnamespace
    UNION ALL SELECT format('sequence: %s %s %s %s', seqrelid::regclass, seqtypid::regtype, seqstart, seqincrement) FROM pg_sequence
    WHERE seqrelid::regclass::text LIKE 'pg_task.%'
    UNION ALL SELECT format('member: %s', pg_describe_object(classid, objid, objsubid)) FROM pg_depend
    WHERE deptype = 'e' AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_task')
    UNION ALL SELECT format('dumped: %s', c::regclass) FROM pg_extension, unnest(extconfig) AS c WHERE extname = 'pg_task'
    UNION ALL SELECT format('schema: %s', obj_description('pg_task'::regnamespace, 'pg_namespace'))
) SELECT line FROM lines ORDER BY line";

/// The objects of a database's extension.
///
/// # Errors
/// When the catalog cannot be read.
pub async fn objects(db: &Database) -> Result<Vec<String>> {
    let rows: Vec<(String,)> = sqlx::query_as(OBJECTS).fetch_all(&db.pool).await?;
    anyhow::ensure!(rows.len() > 100, "the catalog has only {} lines about the extension", rows.len());
    Ok(rows.into_iter().map(|row| row.0).collect())
}

/// The lines that only one of two has, marked by which.
pub fn differences(one: &[String], other: &[String]) -> Vec<String> {
    let only = |mark: char, here: &[String], there: &[String]| {
        let lines = here.iter().filter(|line| !there.contains(line)).map(|line| format!("{mark} {line}"));
        lines.collect::<Vec<_>>()
    };
    [only('-', one, other), only('+', other, one)].concat()
}
