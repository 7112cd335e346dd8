//! The part of the check that holds the ledger against `pg_task.history`: one row for each task that has ended, and none for another.

use super::Outcome;
use super::Past;
use super::Row;
use super::Story;
use crate::ledger::End;
use crate::plan::Plan;

impl Story<'_> {
    /// What the history says of it is what the ledger says.
    pub(super) fn history(
        &self,
        plan: Plan,
        rows: &[&Row],
        past: &[Past],
        complain: &mut impl FnMut(String),
    ) {
        if past.len() > 1 {
            complain(format!("it ended once, and the history has {} rows of it", past.len()));
        }
        let Some(past) = past.first() else {
            let enqueued = self.committed_at.is_some() || !self.runs.is_empty();
            if enqueued && !self.rolled_back && rows.is_empty() {
                complain("its row is gone, and the history does not know of it".to_owned());
            }
            return;
        };
        if self.rolled_back {
            complain("its enqueueing was rolled back, and the history knows of it".to_owned());
        }
        if !rows.is_empty() {
            complain("its row is there, and the history says that it has ended".to_owned());
        }
        let edited = self.marks.iter().filter(|(_, known)| *known).map(|(mark, _)| *mark).max().unwrap_or(0);
        if past.mark < edited || past.mark > 0 && self.marks.iter().all(|(mark, _)| *mark != past.mark) {
            complain(format!(
                "an edit was lost: mark {edited} was put in, and {} was there at the end",
                past.mark
            ));
        }
        match past.outcome {
            Outcome::Cancelled if !self.cancelling => {
                complain("nobody cancelled it, and the history says so".to_owned());
            }
            Outcome::Done if self.cancelled_at.is_some() => {
                complain("it was cancelled, and the history says that it is done".to_owned());
            }
            Outcome::Cancelled => {}
            Outcome::Done => {
                let done = |seq, token| {
                    seq == plan.last_step() && matches!(self.ends.get(&token), Some((End::Done, _)))
                };
                let mut attempts = self.runs.iter().filter(|(run, _)| done(run.seq, run.token));
                if past.seq != plan.last_step() {
                    complain(format!("the history says that it is done with step {}", past.seq));
                } else if attempts.clone().next().is_none() {
                    complain("the history says that it is done, and no run was".to_owned());
                } else if !attempts.any(|(run, _)| run.attempt == past.attempts) {
                    complain(format!("the history says that it took {} attempts, no run did", past.attempts));
                }
            }
        }
    }
}
