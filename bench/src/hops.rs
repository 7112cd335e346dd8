//! The way of one task, hop by hop: this program plays an idle worker by the protocol of docs/protocol.md and notes the moments.

use std::future::poll_fn;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::bail;
use tokio::sync::mpsc;
use tokio_postgres::AsyncMessage;
use tokio_postgres::Client;
use tokio_postgres::NoTls;
use uuid::Uuid;

/// Microseconds of each hop, one value a task.
#[derive(Debug, Default)]
pub struct Hops {
    /// Call of enqueue → its transaction is committed and the caller knows.
    pub committed: Vec<f64>,
    /// Call of enqueue → the notification has come: commit, scheduler, NOTIFY.
    pub notified: Vec<f64>,
    /// The exchange that fetches the task.
    pub fetched: Vec<f64>,
}

/// Runs `tasks` tasks through the hops, one at a time.
///
/// # Errors
/// When the server refuses something or a notification does not come.
pub async fn measure(url: &str, tasks: usize) -> anyhow::Result<Hops> {
    let worker = Uuid::new_v4();
    let (listener, mut notifications) = listen(url).await?;
    listener.batch_execute(&format!("LISTEN \"pg_task_{worker}\"")).await?;
    listener.execute("SELECT pg_task.register(worker => $1, name => 'hops')", &[&worker]).await?;
    let (producer, _) = listen(url).await?;
    let enqueue = producer.prepare(r#"SELECT pg_task.enqueue('{"Load":{"Nothing":null}}')"#).await?;
    let (lane, _) = listen(url).await?;
    let ask = lane.prepare("SELECT event, id, fence, token FROM pg_task.exchange($1, 1)").await?;
    let finish = lane
        .prepare(
            "SELECT event FROM pg_task.exchange($1, 1, ARRAY[$2::uuid], ARRAY[$3::int8], ARRAY[$4::int8])",
        )
        .await?;
    let mut hops = Hops::default();
    lane.query(&ask, &[&worker]).await?;
    for task in 0..tasks + WARM_UP {
        tokio::time::sleep(Duration::from_millis(3)).await;
        while notifications.try_recv().is_ok() {}
        let began = Instant::now();
        producer.query(&enqueue, &[]).await?;
        let committed = began.elapsed();
        let at = tokio::time::timeout(Duration::from_secs(10), notifications.recv())
            .await
            .context("no notification within 10 s")?
            .context("the connection is lost")?;
        let asked = Instant::now();
        let rows = lane.query(&ask, &[&worker]).await?;
        let fetched = asked.elapsed();
        let Some(row) = rows.iter().find(|row| row.get::<_, i16>(0) == 0) else {
            bail!("the notification came, but no task");
        };
        let (id, fence, token): (Uuid, i64, i64) = (row.get(1), row.get(2), row.get(3));
        lane.query(&finish, &[&worker, &id, &fence, &token]).await?;
        if task >= WARM_UP {
            hops.committed.push(micros(committed));
            hops.notified.push(micros(at.saturating_duration_since(began)));
            hops.fetched.push(micros(fetched));
        }
    }
    listener.execute("SELECT pg_task.leave($1)", &[&worker]).await?;
    Ok(hops)
}

/// Plans and caches are warm after so many tasks.
const WARM_UP: usize = 50;

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// A connection, and the moments at which notifications came over it.
async fn listen(url: &str) -> anyhow::Result<(Client, mpsc::UnboundedReceiver<Instant>)> {
    let (client, mut connection) = tokio_postgres::connect(url, NoTls).await?;
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
            if matches!(message, AsyncMessage::Notification(_)) {
                // Where nobody listens the connection still has to be served.
                let _ = sender.send(Instant::now());
            }
        }
    });
    Ok((client, receiver))
}
