//! The ledger: what happened, kept outside the database under test. One line an entry, appended by several processes, each line
//! with one `write` to a file that was opened for appending, so that lines are whole and stay when their writer is killed.
//!
//! An entry is written before its writer goes on: a step notes what it ends in before it returns, a producer what it is about to enqueue
//! before it does. What is missing after an intent is therefore "not known", never "did not happen".

use std::fs::File;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use anyhow::Context;
use anyhow::bail;
use uuid::Uuid;

use crate::plan::Answer;
use crate::plan::Plan;

/// Centiseconds since the machine was started: one clock for all processes, which no fault of a client's clock touches.
pub type Moment = u64;

/// What happened.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Entry {
    /// `enqueue_unique` has said this, and its transaction has committed: the key stands for this task.
    Answered(Answer, Uuid),
    /// A step began.
    Began(Run),
    /// A task was deleted by its user, and the deletion has committed.
    Cancelled,
    /// A user is about to delete the task.
    Cancelling,
    /// A user is about to change the row.
    Changing,
    /// The transaction that enqueued it has committed.
    Committed,
    /// A task has this copy: the commit is known.
    Copied(Uuid),
    /// An operator is about to commit a copy of the task.
    Copying,
    /// An operator has put this mark into the task, and that has committed.
    Edited(u64),
    /// An operator is about to commit that.
    Editing(u64),
    /// A step is about to end in this.
    Ended(u32, i64, End),
    /// A task is about to be enqueued.
    Intended(Plan),
    /// The task was found parked, with this number of attempts and this reason.
    Parked(i32, String),
    /// A queue is paused: the commit is known.
    Paused(String),
    /// `enqueue_unique` has failed, because this task holds the key.
    Refused(Uuid),
    /// A schedule was paused.
    Rested(Rest),
    /// It was parked and is to be due so many milliseconds after the moment at which that was asked for: the commit is known.
    Resumed(u64),
    /// A user is about to clear its error.
    Resuming,
    /// The transaction that enqueued it was rolled back.
    RolledBack,
    /// The queues of heirs say so many retries: the commit is known.
    Ruled(i32),
    /// They are about to say something else.
    Ruling,
    /// The task of a tick begins or ends.
    Ticked(Tick),
    /// A paused queue is about to be resumed.
    Unpausing(String),
    /// So many running steps were seen to say how far they are.
    Watched(u32),
    /// Something was seen that must not be.
    Wrong(String),
}

/// A pause of a schedule, by the server's clock in seconds since 1970.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rest {
    /// Which one.
    pub schedule: String,
    /// The last tick that was dealt with before the pause was asked for.
    pub dealt: i64,
    /// From here on it was paused for certain.
    pub since: i64,
    /// Up to here it was.
    pub until: i64,
    /// From here on it was not any more.
    pub over: i64,
}

/// A run of the task of a tick.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Tick {
    /// The schedule.
    pub schedule: String,
    /// The tick, in seconds since 1970.
    pub at: i64,
    /// The task.
    pub task: Uuid,
    /// Whether the run is about to end, or begins.
    pub ends: bool,
}

/// A run of a step.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Run {
    /// Which step of the task, from 0.
    pub seq: u32,
    /// The attempt's token.
    pub token: i64,
    /// Which attempt, from 1.
    pub attempt: i32,
    /// The token of the run whose transition led here; 0 for the first step.
    pub via: i64,
    /// The worker's process.
    pub worker: u32,
}

/// What a step ends in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum End {
    /// It noticed that it was cancelled.
    Cancelled,
    /// The task is done.
    Done,
    /// An error.
    Failed,
    /// The next step.
    Next,
}

/// An entry with its moment and the task's key; key 0 is nobody's.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Line {
    /// When.
    pub at: Moment,
    /// Of which task.
    pub key: u64,
    /// What.
    pub entry: Entry,
}

/// A ledger that is written.
#[derive(Debug)]
pub struct Ledger(File);

impl Ledger {
    /// Opens a ledger for appending; it is made if need be.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).open(path);
        Ok(Self(file.with_context(|| format!("failed to open the ledger {}", path.display()))?))
    }

    /// Notes an entry.
    ///
    /// # Errors
    /// When it cannot be written: the caller must not go on as if it were.
    pub fn note(&self, key: u64, entry: Entry) -> std::io::Result<()> {
        let line = Line { at: now()?, key, entry };
        (&self.0).write_all(format!("{line}\n").as_bytes())
    }
}

/// Reads a ledger.
///
/// # Errors
/// When a line is none of ours.
pub fn read(path: &Path) -> anyhow::Result<Vec<Line>> {
    let text = std::fs::read_to_string(path).context("failed to read the ledger")?;
    text.lines().map(|line| Line::parse(line).with_context(|| format!("in the ledger: {line}"))).collect()
}

/// The moment now.
///
/// # Errors
/// When the system does not tell.
pub fn now() -> std::io::Result<Moment> {
    let text = std::fs::read_to_string("/proc/uptime")?;
    let word = text.split(' ').next().unwrap_or_default();
    word.parse::<f64>().map(|seconds| (seconds * 100.0).round() as Moment).map_err(std::io::Error::other)
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} ", self.at, self.key)?;
        match &self.entry {
            Entry::Began(Run { seq, token, attempt, via, worker }) => {
                write!(f, "began step {seq} token {token} attempt {attempt} via {via} worker {worker}")
            }
            Entry::Answered(answer, id) => write!(f, "answered {} {id}", answer.word()),
            Entry::Cancelled => f.write_str("cancelled"),
            Entry::Cancelling => f.write_str("cancelling"),
            Entry::Changing => f.write_str("changing"),
            Entry::Committed => f.write_str("committed"),
            Entry::Copied(id) => write!(f, "copied {id}"),
            Entry::Copying => f.write_str("copying"),
            Entry::Edited(mark) => write!(f, "edited mark {mark}"),
            Entry::Editing(mark) => write!(f, "editing mark {mark}"),
            Entry::Ended(seq, token, end) => {
                let end = match end {
                    End::Cancelled => "cancelled",
                    End::Done => "done",
                    End::Failed => "failed",
                    End::Next => "next",
                };
                write!(f, "ended step {seq} token {token} {end}")
            }
            Entry::Intended(plan) => write!(f, "intended {plan}"),
            Entry::Parked(tried, error) => write!(f, "parked tried {tried} {}", error.replace('\n', " ")),
            Entry::Paused(queue) => write!(f, "paused {queue}"),
            Entry::Refused(id) => write!(f, "refused {id}"),
            Entry::Rested(Rest { schedule, dealt, since, until, over }) => {
                write!(f, "rested {schedule} dealt {dealt} since {since} until {until} over {over}")
            }
            Entry::Resumed(millis) => write!(f, "resumed {millis}"),
            Entry::Resuming => f.write_str("resuming"),
            Entry::RolledBack => f.write_str("rolled-back"),
            Entry::Ruled(limit) => write!(f, "ruled {limit}"),
            Entry::Ruling => f.write_str("ruling"),
            Entry::Ticked(Tick { schedule, at, task, ends }) => {
                write!(f, "ticked {schedule} at {at} task {task} {}", if *ends { "ends" } else { "begins" })
            }
            Entry::Unpausing(queue) => write!(f, "unpausing {queue}"),
            Entry::Watched(count) => write!(f, "watched {count}"),
            Entry::Wrong(text) => write!(f, "wrong {}", text.replace('\n', " ")),
        }
    }
}

impl Line {
    fn parse(line: &str) -> anyhow::Result<Self> {
        let words: Vec<&str> = line.split(' ').collect();
        let [at, key, name, rest @ ..] = &words[..] else { bail!("too short") };
        let entry = match (*name, rest) {
            ("answered", [answer, id]) => Entry::Answered(answer.parse()?, id.parse()?),
            ("began", ["step", seq, "token", token, "attempt", attempt, "via", via, "worker", worker]) => {
                Entry::Began(Run {
                    seq: seq.parse()?,
                    token: token.parse()?,
                    attempt: attempt.parse()?,
                    via: via.parse()?,
                    worker: worker.parse()?,
                })
            }
            ("cancelled", []) => Entry::Cancelled,
            ("cancelling", []) => Entry::Cancelling,
            ("changing", []) => Entry::Changing,
            ("committed", []) => Entry::Committed,
            ("copied", [id]) => Entry::Copied(id.parse()?),
            ("copying", []) => Entry::Copying,
            ("edited", ["mark", mark]) => Entry::Edited(mark.parse()?),
            ("editing", ["mark", mark]) => Entry::Editing(mark.parse()?),
            ("ended", ["step", seq, "token", token, end]) => {
                let end = match *end {
                    "cancelled" => End::Cancelled,
                    "done" => End::Done,
                    "failed" => End::Failed,
                    "next" => End::Next,
                    other => bail!("no end: {other}"),
                };
                Entry::Ended(seq.parse()?, token.parse()?, end)
            }
            ("intended", plan) => Entry::Intended(plan.join(" ").parse()?),
            ("parked", ["tried", tried, error @ ..]) => Entry::Parked(tried.parse()?, error.join(" ")),
            ("paused", [queue]) => Entry::Paused((*queue).to_owned()),
            ("refused", [id]) => Entry::Refused(id.parse()?),
            ("rested", [schedule, "dealt", dealt, "since", since, "until", until, "over", over]) => {
                Entry::Rested(Rest {
                    schedule: (*schedule).to_owned(),
                    dealt: dealt.parse()?,
                    since: since.parse()?,
                    until: until.parse()?,
                    over: over.parse()?,
                })
            }
            ("resumed", [millis]) => Entry::Resumed(millis.parse()?),
            ("resuming", []) => Entry::Resuming,
            ("rolled-back", []) => Entry::RolledBack,
            ("ruled", [limit]) => Entry::Ruled(limit.parse()?),
            ("ruling", []) => Entry::Ruling,
            ("ticked", [schedule, "at", at, "task", task, word @ ("begins" | "ends")]) => {
                Entry::Ticked(Tick {
                    schedule: (*schedule).to_owned(),
                    at: at.parse()?,
                    task: task.parse()?,
                    ends: *word == "ends",
                })
            }
            ("unpausing", [queue]) => Entry::Unpausing((*queue).to_owned()),
            ("watched", [count]) => Entry::Watched(count.parse()?),
            ("wrong", text) => Entry::Wrong(text.join(" ")),
            _ => bail!("no entry"),
        };
        Ok(Self { at: at.parse()?, key: key.parse()?, entry })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Bond;
    use crate::plan::Kind;
    use crate::plan::OnConflict;
    use crate::plan::Scope;
    use crate::plan::Unique;

    #[test]
    fn every_entry_reads_back_as_it_was_written() -> anyhow::Result<()> {
        let unique = Unique { name: 5, scope: Scope::Queued, on_conflict: OnConflict::ReplaceAndMove };
        let entries = [
            Entry::Answered(Answer::Replaced, Uuid::from_u128(7)),
            Entry::Intended(Plan::new(Kind::Collect, 5).tied(Bond::Unique(unique))),
            Entry::Began(Run { seq: 1, token: 1 << 40, attempt: 2, via: 7, worker: 99 }),
            Entry::Cancelled,
            Entry::Cancelling,
            Entry::Changing,
            Entry::Committed,
            Entry::Copied(Uuid::from_u128(7)),
            Entry::Copying,
            Entry::Edited(9),
            Entry::Editing(9),
            Entry::Ended(3, 8, End::Next),
            Entry::Intended(Plan::new(Kind::Chain, 4)),
            Entry::Intended(Plan::new(Kind::Nap, 1).tied(Bond::Group { group: 7, batch: 1 })),
            Entry::Intended(Plan::new(Kind::Exact, 2).tied(Bond::Tenant(3))),
            Entry::Intended(Plan::new(Kind::Noop, 0).tied(Bond::Metered(3))),
            Entry::Parked(4, "the worker was lost".to_owned()),
            Entry::Paused("*".to_owned()),
            Entry::Refused(Uuid::from_u128(7)),
            Entry::Ruled(5),
            Entry::Ruling,
            Entry::Intended(Plan::new(Kind::Heir, 1).tied(Bond::Forgotten)),
            Entry::Rested(Rest { schedule: "s".to_owned(), dealt: 1, since: 2, until: 3, over: 4 }),
            Entry::Resumed(12),
            Entry::Resuming,
            Entry::RolledBack,
            Entry::Ticked(Tick { schedule: "s".to_owned(), at: 5, task: Uuid::from_u128(7), ends: true }),
            Entry::Unpausing("*".to_owned()),
            Entry::Watched(3),
            Entry::Wrong("this and that".to_owned()),
        ];
        for entry in entries {
            let line = Line { at: 12, key: 34, entry };
            assert_eq!(Line::parse(&line.to_string())?, line);
        }
        Ok(())
    }
}
