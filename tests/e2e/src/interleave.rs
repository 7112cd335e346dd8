//! Two sessions whose steps are run in a given order: a step that waits for a lock of the other session is left waiting, and the
//! other one goes on.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;
use sqlx::AssertSqlSafe;
use sqlx::Connection;
use sqlx::PgConnection;
use sqlx::Row;
use tokio::sync::mpsc;

/// What a step came to: the first column of its rows as text, or the SQLSTATE of its error.
pub type Answer = Result<Vec<String>, String>;

/// A session that runs one statement at a time, beside the test.
pub struct Actor {
    pid: i32,
    steps: mpsc::UnboundedSender<String>,
    answers: mpsc::UnboundedReceiver<Answer>,
    waiting: bool,
}

impl Actor {
    /// Connects.
    ///
    /// # Errors
    /// When the server does not let it in.
    pub async fn connect(url: &str) -> Result<Self> {
        let mut connection = PgConnection::connect(url).await?;
        let pid = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut connection).await?;
        let (steps, mut todo) = mpsc::unbounded_channel::<String>();
        let (done, answers) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(sql) = todo.recv().await {
                let rows = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(&mut connection).await;
                let answer = match rows {
                    Ok(rows) => Ok(rows.iter().map(first_column).collect()),
                    Err(error) => Err(code(&error)),
                };
                if done.send(answer).is_err() {
                    return;
                }
            }
        });
        Ok(Self { pid, steps, answers, waiting: false })
    }

    /// Runs a step that waits for nobody.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn run(&mut self, sql: &str) -> Result<Answer> {
        self.begin(sql)?;
        self.answer().await
    }

    fn begin(&mut self, sql: &str) -> Result<()> {
        self.waiting = true;
        self.steps.send(sql.to_owned()).context("the session is gone")
    }

    async fn answer(&mut self) -> Result<Answer> {
        let answer = self.answers.recv().await.context("the session is gone")?;
        self.waiting = false;
        Ok(answer)
    }

    /// The answer, or none if the step waits for a lock.
    async fn settle(&mut self, observer: &mut PgConnection) -> Result<Option<Answer>> {
        loop {
            match tokio::time::timeout(Duration::from_millis(3), self.answers.recv()).await {
                Ok(answer) => {
                    self.waiting = false;
                    return Ok(Some(answer.context("the session is gone")?));
                }
                Err(_) => {
                    let blocked =
                        "SELECT EXISTS (SELECT FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)
                        WHERE l.pid = $1 AND NOT l.granted AND a.wait_event_type = 'Lock')";
                    let blocked: bool =
                        sqlx::query_scalar(blocked).bind(self.pid).fetch_one(&mut *observer).await?;
                    if blocked {
                        return Ok(None);
                    }
                }
            }
        }
    }
}

fn first_column(row: &sqlx::postgres::PgRow) -> String {
    // The simple protocol brings every type as text.
    let value = row.try_get_raw(0).ok();
    value.and_then(|value| value.as_str().ok().map(str::to_owned)).unwrap_or_default()
}

fn code(error: &sqlx::Error) -> String {
    let code = error.as_database_error().and_then(|error| error.code().map(std::borrow::Cow::into_owned));
    code.unwrap_or_else(|| error.to_string())
}

/// One session's part: its steps, and whose they are.
pub struct Part<'a> {
    /// The session.
    pub actor: &'a mut Actor,
    /// What it does, in this order.
    pub steps: Vec<String>,
}

/// Runs the steps of two sessions in an order of turns: `false` is the first one's. Returns their answers, and which step began to wait, if
/// any did.
///
/// # Errors
/// When a connection fails, or when both wait.
pub async fn interleave(
    observer: &mut PgConnection,
    parts: [Part<'_>; 2],
    order: &[bool],
) -> Result<[Vec<Answer>; 2]> {
    let mut answers = [Vec::new(), Vec::new()];
    let [one, two] = parts;
    let actors = [one.actor, two.actor];
    let mut steps = [VecDeque::from(one.steps), VecDeque::from(two.steps)];
    let mut turns: VecDeque<usize> = order.iter().map(|&second| usize::from(second)).collect();
    while let Some(turn) = turns.pop_front() {
        if actors[turn].waiting {
            // Its turn comes when it has got the lock; the other one has to go on first.
            let Some(other) = turns.iter().position(|&next| next != turn) else {
                bail!("a session waits for a lock that nobody gives back");
            };
            turns.push_front(turn);
            let next = turns.remove(other + 1).context("it is there")?;
            turns.push_front(next);
            continue;
        }
        let Some(sql) = steps[turn].pop_front() else { bail!("more turns than steps") };
        actors[turn].begin(&sql)?;
        answers[turn].extend(actors[turn].settle(observer).await?);
        let other = 1 - turn;
        if actors[other].waiting {
            answers[other].extend(actors[other].settle(observer).await?);
        }
    }
    for turn in [0, 1] {
        if actors[turn].waiting {
            let answer = actors[turn].answer().await?;
            answers[turn].push(answer);
        }
    }
    Ok(answers)
}

/// Every order in which so many steps of one session and so many of another can follow each other.
pub fn orders(first: usize, second: usize) -> Vec<Vec<bool>> {
    if first == 0 || second == 0 {
        return vec![[vec![false; first], vec![true; second]].concat()];
    }
    let begin = |second: bool, rest: Vec<Vec<bool>>| {
        rest.into_iter().map(move |rest| [vec![second], rest].concat()).collect::<Vec<_>>()
    };
    [begin(false, orders(first - 1, second)), begin(true, orders(first, second - 1))].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_steps_and_three_can_follow_each_other_in_twenty_orders() {
        let mut all = orders(3, 3);
        assert!(all.iter().all(|order| order.iter().filter(|second| **second).count() == 3));
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 20);
    }
}
