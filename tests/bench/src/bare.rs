//! The bare loops: what the database does for a client that needs no scheduler.

use std::time::Instant;

use sqlx::Connection;
use sqlx::PgConnection;
use sqlx::PgPool;
use uuid::Uuid;

/// Tasks that one statement reads or deletes.
const BATCH: usize = 1_000;

/// Makes a bare copy of the table: the same columns and indexes, no triggers.
pub async fn prepare(db: &PgPool) -> sqlx::Result<()> {
    sqlx::query("CREATE TABLE bare (LIKE pg_task.task INCLUDING ALL)").execute(db).await?;
    Ok(())
}

/// One row, committed.
pub async fn insert(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query("INSERT INTO bare (step) VALUES ('{\"Load\":{\"Report\":null}}')")
        .execute(connection)
        .await?;
    Ok(())
}

/// Tasks per second of a client that knows the ids: reads and deletes by id list over two connections.
pub async fn drain(db: &PgPool, count: i64) -> anyhow::Result<f64> {
    sqlx::query("TRUNCATE bare").execute(db).await?;
    sqlx::query("INSERT INTO bare (step) SELECT '{\"Load\":{\"Nothing\":null}}' FROM generate_series(1, $1)")
        .bind(count)
        .execute(db)
        .await?;
    sqlx::query("VACUUM ANALYZE bare").execute(db).await?;
    sqlx::query("CHECKPOINT").execute(db).await?;
    let ids: Vec<Uuid> = sqlx::query_scalar("SELECT id FROM bare ORDER BY id").fetch_all(db).await?;
    let began = Instant::now();
    let halves = ids.chunks(ids.len().div_ceil(2)).map(|half| {
        let (half, options) = (half.to_vec(), db.connect_options());
        tokio::spawn(async move {
            let mut connection = PgConnection::connect_with(&options).await?;
            for batch in half.chunks(BATCH) {
                let rows: Vec<(Uuid, i64, String)> =
                    sqlx::query_as("SELECT id, fence, step::text FROM bare WHERE id = ANY ($1)")
                        .bind(batch)
                        .fetch_all(&mut connection)
                        .await?;
                let (ids, fences): (Vec<Uuid>, Vec<i64>) = rows.into_iter().map(|row| (row.0, row.1)).unzip();
                sqlx::query(
                    "DELETE FROM bare AS t USING unnest($1, $2) AS d (id, fence) WHERE t.id = d.id AND t.fence = d.fence",
                )
                .bind(ids)
                .bind(fences)
                .execute(&mut connection)
                .await?;
            }
            Ok::<_, sqlx::Error>(())
        })
    });
    for half in halves.collect::<Vec<_>>() {
        half.await??;
    }
    Ok(count as f64 / began.elapsed().as_secs_f64())
}
