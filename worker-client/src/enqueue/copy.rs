//! Many tasks in one `COPY`.

use serde::Serialize;
use sqlx::PgConnection;
use sqlx::postgres::PgCopyIn;
use uuid::Uuid;

use super::Enqueue;
use crate::Error;
use crate::Result;

const COPY: &str = "COPY pg_task.task (id, queue, priority, step) FROM STDIN (FORMAT binary)";
const COPY_WITH: &str = "COPY pg_task.task (id, queue, priority, step, options) FROM STDIN (FORMAT binary)";

/// The version of the form in which a jsonb is sent.
const JSONB: u8 = 1;

/// The signature, no flags, no extension: see the documentation of `COPY`.
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// Instead of a row's number of columns: there are no more.
const TRAILER: [u8; 2] = (-1_i16).to_be_bytes();

/// Bytes that are gathered before they are sent.
const CHUNK: usize = 64 << 10;

/// Enqueues any number of tasks with one `COPY`. They are due now; their ids come back in the order of the tasks.
///
/// As fast as [`crate::enqueue_many`], but for what it keeps in memory: steps are encoded while they are sent, here and in the server, so
/// that the tasks can come from an iterator that makes them. It takes a connection because it is more than one message: one of the
/// caller's, of a transaction (`&mut *transaction`), or of a step's ([`crate::Tx::connection`]).
///
/// # Errors
/// [`Error::SerializeStep`] when a step is no JSON, [`Error::AddTask`] when the database refuses one or the connection fails; none is
/// enqueued then.
pub async fn enqueue_copy<T: Serialize + Send>(
    db: &mut PgConnection,
    tasks: impl IntoIterator<Item = T, IntoIter: Send>,
) -> Result<Vec<Uuid>> {
    Enqueue::new().enqueue_copy(db, tasks).await
}

impl Enqueue<'_> {
    /// Enqueues many tasks that are due now, with one `COPY`: see [`enqueue_copy`].
    ///
    /// # Errors
    /// As [`enqueue_copy`].
    pub async fn enqueue_copy<T: Serialize + Send>(
        self,
        db: &mut PgConnection,
        tasks: impl IntoIterator<Item = T, IntoIter: Send>,
    ) -> Result<Vec<Uuid>> {
        let tasks = tasks.into_iter();
        let mut ids = Vec::with_capacity(tasks.size_hint().0);
        let options = self.options.json()?.map(|options| format!("{}{}", char::from(JSONB), options.get()));
        let call = if options.is_none() { COPY } else { COPY_WITH };
        let mut copy = db.copy_in_raw(call).await.map_err(Error::AddTask)?;
        let sent = match self.send(&mut copy, tasks, options.as_deref(), &mut ids).await {
            Ok(()) => copy.finish().await.map_err(Error::AddTask),
            Err(error) => {
                // Why it ended is known already; without this the server would wait for more.
                let _ = copy.abort("a task could not be encoded or sent").await;
                Err(error)
            }
        };
        sent.map(|_| ids)
    }

    async fn send<T: Serialize + Send>(
        self,
        copy: &mut PgCopyIn<&mut PgConnection>,
        tasks: impl Iterator<Item = T> + Send,
        options: Option<&str>,
        ids: &mut Vec<Uuid>,
    ) -> Result<()> {
        let mut buffer = Vec::with_capacity(2 * CHUNK);
        buffer.extend(HEADER);
        for task in tasks {
            let id = Uuid::now_v7();
            self.row(&mut buffer, id, &task, options)?;
            ids.push(id);
            if buffer.len() >= CHUNK {
                copy.send(&*buffer).await.map_err(Error::AddTask)?;
                buffer.clear();
            }
        }
        buffer.extend(TRAILER);
        copy.send(buffer).await.map_err(Error::AddTask)?;
        Ok(())
    }

    /// One row in the binary form: the number of columns, then each with its length.
    fn row<T: Serialize>(
        self,
        buffer: &mut Vec<u8>,
        id: Uuid,
        task: &T,
        options: Option<&str>,
    ) -> Result<()> {
        buffer.extend((4 + i16::from(options.is_some())).to_be_bytes());
        column(buffer, id.as_bytes());
        column(buffer, self.queue.as_bytes());
        column(buffer, &self.priority.to_be_bytes());
        let at = buffer.len();
        buffer.extend([0; 4]);
        buffer.push(JSONB);
        serde_json::to_writer(&mut *buffer, task)
            .map_err(|error| Error::SerializeStep(error, std::any::type_name::<T>().to_owned()))?;
        let len = u32::try_from(buffer.len() - at - 4).unwrap_or(u32::MAX);
        buffer[at..at + 4].copy_from_slice(&len.to_be_bytes());
        if let Some(options) = options {
            column(buffer, options.as_bytes());
        }
        Ok(())
    }
}

fn column(buffer: &mut Vec<u8>, value: &[u8]) {
    let len = u32::try_from(value.len()).unwrap_or(u32::MAX);
    buffer.extend(len.to_be_bytes());
    buffer.extend(value);
}
