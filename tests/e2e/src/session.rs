//! One connection to a database, and what the server says when it refuses a statement.

use anyhow::Context;
use anyhow::bail;
use sqlx::Connection;
use sqlx::PgConnection;
use sqlx::postgres::PgDatabaseError;

use crate::Database;

/// A connection of its own: what is set, prepared or registered on it stays.
pub struct Session {
    connection: PgConnection,
}

/// Why the server refused a statement.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// The SQLSTATE.
    pub code: String,
    /// The message.
    pub message: String,
    /// The DETAIL; empty if there is none.
    pub detail: String,
    /// The HINT; empty if there is none.
    pub hint: String,
}

impl Session {
    /// Connects to the database that a URL names.
    ///
    /// # Errors
    /// When the server does not let it in.
    pub async fn connect(url: &str) -> anyhow::Result<Self> {
        Ok(Self { connection: PgConnection::connect(url).await? })
    }

    /// Runs statements.
    ///
    /// # Errors
    /// When one fails.
    pub async fn run(&mut self, sql: &str) -> anyhow::Result<()> {
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned()))
            .execute(&mut self.connection)
            .await
            .with_context(|| sql.to_owned())?;
        Ok(())
    }

    /// The single value of a query, as text; empty for NULL or no row.
    ///
    /// # Errors
    /// When the query fails.
    pub async fn ask(&mut self, sql: &str) -> anyhow::Result<String> {
        let sql = format!("SELECT x.v::text FROM ({sql}) AS x (v)");
        let row: Option<(Option<String>,)> = sqlx::query_as(sqlx::AssertSqlSafe(sql.clone()))
            .fetch_optional(&mut self.connection)
            .await
            .with_context(|| sql)?;
        Ok(row.and_then(|row| row.0).unwrap_or_default())
    }

    /// Why the server refuses statements.
    ///
    /// # Errors
    /// When it does not, or when the connection fails.
    pub async fn refusal(&mut self, sql: &str) -> anyhow::Result<Refusal> {
        let result = sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(&mut self.connection).await;
        match result {
            Ok(_) => bail!("not refused: {sql}"),
            Err(sqlx::Error::Database(error)) => {
                let error = error.downcast_ref::<PgDatabaseError>();
                Ok(Refusal {
                    code: error.code().to_owned(),
                    message: error.message().to_owned(),
                    detail: error.detail().unwrap_or_default().to_owned(),
                    hint: error.hint().unwrap_or_default().to_owned(),
                })
            }
            Err(error) => Err(error).with_context(|| sql.to_owned()),
        }
    }
}

impl Database {
    /// A connection of its own.
    ///
    /// # Errors
    /// When the server does not let it in.
    pub async fn session(&self) -> anyhow::Result<Session> {
        Session::connect(&self.url).await
    }
}
