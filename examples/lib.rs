//! What the examples share: a database from `DATABASE_URL`, log lines from `RUST_LOG`, and a stop on SIGTERM or Ctrl-C.

use anyhow::Context;
use pg_task::CancellationToken;
use sqlx::PgPool;
use tracing_subscriber::EnvFilter;

/// Sets up the log, and connects.
///
/// # Errors
/// As [`connect`].
pub async fn init() -> anyhow::Result<PgPool> {
    dotenvy::dotenv().ok();
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    connect().await
}

/// Connects to the database that `DATABASE_URL` (or a `.env` file) names, and makes sure that the extension is there.
///
/// # Errors
/// When the variable is missing, the server cannot be reached, or it has not preloaded pg_task.
pub async fn connect() -> anyhow::Result<PgPool> {
    dotenvy::dotenv().ok();
    let url = std::env::var("DATABASE_URL")
        .context("DATABASE_URL is not set; `cargo xtask cluster start` makes a server and prints it")?;
    let db = PgPool::connect(&url).await.context("failed to connect")?;
    if !has_extension(&db).await? {
        sqlx::query("CREATE EXTENSION pg_task")
            .execute(&db)
            .await
            .context("failed to create the extension")?;
    }
    Ok(db)
}

async fn has_extension(db: &PgPool) -> sqlx::Result<bool> {
    sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'pg_task')")
        .fetch_one(db)
        .await
}

/// A token that is cancelled when the process is asked to end: what runs is finished first.
///
/// # Errors
/// When the signal handlers cannot be installed.
pub fn stop_on_signal() -> std::io::Result<CancellationToken> {
    use tokio::signal::unix::SignalKind;
    use tokio::signal::unix::signal;

    let token = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn({
        let token = token.clone();
        async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            token.cancel();
        }
    });
    Ok(token)
}
