//! The part of the check that is about copies of tasks: each is a task of its own, which ends once.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::Outcome;
use super::Past;
use super::Row;
use super::Story;

impl Story<'_> {
    /// Of a task and its copies each has written once and ended once; there are as many as were made.
    pub(super) fn copies(
        &self,
        rows: &[&Row],
        written: &[Uuid],
        past: &[Past],
        complain: &mut impl FnMut(String),
    ) {
        if !rows.is_empty() {
            complain("it or a copy waits for no reason: workers are there, and so is its row".to_owned());
            return;
        }
        let ended: BTreeSet<Uuid> = past.iter().map(|past| past.id).collect();
        if ended.len() < past.len() {
            complain(format!("a task or its copy has ended twice: {past:?}"));
        }
        if past.iter().any(|past| past.outcome == Outcome::Cancelled) {
            complain("nobody cancelled it, and the history says so".to_owned());
        }
        let ids: BTreeSet<Uuid> = written.iter().copied().collect();
        if ids.len() < written.len() {
            complain(format!("a task or its copy has written twice: {written:?}"));
        }
        if ids != ended {
            complain(format!("these have written: {ids:?}, and these have ended: {ended:?}"));
        }
        if self.rolled_back {
            if !past.is_empty() {
                complain("its enqueueing was rolled back, and it has ended".to_owned());
            }
            return;
        }
        for copy in self.copies.iter().filter(|copy| !ended.contains(copy)) {
            complain(format!("lost: the copy {copy} was made, and has not ended"));
        }
        let enqueued = self.committed_at.is_some() || !self.runs.is_empty();
        let known = ended.iter().filter(|id| self.copies.contains(id)).count();
        let others = ended.len() - known;
        let most = 1 + self.copyings - self.copies.len();
        if others > most {
            complain(format!("{others} have ended that nobody made: {ended:?}"));
        }
        // Itself, which is none of the copies.
        if enqueued && others == 0 {
            complain("lost: its row is gone, and only its copies have ended".to_owned());
        }
    }
}
