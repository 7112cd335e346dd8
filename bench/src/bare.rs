//! A bare copy of the table `pg_task.task`: the same columns, indexes, constraints and storage settings, no triggers.

use tokio_postgres::Client;
use tokio_postgres::Error;
use tokio_postgres::NoTls;

/// Makes the copy, or makes it anew.
///
/// # Errors
/// When the server refuses.
pub async fn make_table(client: &Client) -> Result<(), Error> {
    client
        .batch_execute("DROP TABLE IF EXISTS bare; CREATE TABLE bare (LIKE pg_task.task INCLUDING ALL)")
        .await?;
    let options =
        "SELECT array_to_string(reloptions, ', ') FROM pg_class WHERE oid = 'pg_task.task'::regclass";
    if let Some(options) = client.query_one(options, &[]).await?.get::<_, Option<String>>(0) {
        client.batch_execute(&format!("ALTER TABLE bare SET ({options})")).await?;
    }
    Ok(())
}

/// Connects; the connection ends with the client.
///
/// # Errors
/// When the server cannot be reached.
pub async fn connect(url: &str) -> Result<Client, Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}
