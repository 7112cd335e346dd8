//! What is written to claimed tasks beside their results: that their workers were lost, and who runs them.
//!
//! A row that refuses to be written (for a trigger or a constraint of a user's, say) is tried again and again, and holds up nothing else.

use std::collections::HashSet;
use std::sync::atomic::Ordering::Relaxed;

use pg_task_rules::Micros;
use pg_task_rules::TaskId;
use pg_task_rules::WorkerId;
use pg_task_rules::board::Entry;

use super::beat;
use crate::background;
use crate::guc;
use crate::shmem::Slot;
use crate::spi;

/// A row of a lost worker's that someone keeps locked is tried again after this time.
const LOCKED_RETRY: Micros = 200_000;

/// After rows have refused to be written nothing is tried again for this time.
const FAILED_RETRY: Micros = 1_000_000;

/// Beside a row that refuses, the others are written one by one, for so long at most before the scheduler looks at other things.
const SINGLY_FOR: Micros = 2_000_000;

/// Claims that are written down in one tick.
const MAX_UNWRITTEN: usize = 10_000;

/// What is written to claimed tasks.
#[derive(Default)]
pub struct Losses {
    last_error: String,
    /// When claims are written down again, after some could not be.
    write_at: Micros,
}

impl Losses {
    /// Gives up the next worker that is lost; whether there may be another one to give up now.
    pub fn give_up_next(&mut self, slot: Slot) -> bool {
        let now = background::now();
        let grace = guc::micros(&guc::WORKER_GRACE);
        let lost = slot.with_board(|board| {
            let worker = board.take_lost(grace, now)?;
            let claims: Vec<Entry> = board.claims_of(worker).copied().collect();
            Some((worker, board.workers[worker].id, board.workers[worker].gives_up, claims))
        });
        let Some((worker, id, asks, claims)) = lost else { return false };
        let limit = guc::LOST_LIMIT.get();
        let Outcome { left, failure } = write(
            &claims,
            |claim| claim.id,
            |claims| {
                // Handed out again under an attempt that a crash could take back, a task would be tried more often than its limit.
                background::flush_at_commit();
                spi::connected(|spi| beat::write_loss(spi, &id, claims, limit, asks))
            },
        );
        let written = claims.len() - left.len();
        if written > 0 {
            pgrx::log!(
                "pg_task scheduler: a worker was lost; {written} tasks that it held are handed out again"
            );
        }
        slot.control().lost.fetch_add(written as u64, Relaxed);
        let retry = if failure.is_some() { FAILED_RETRY } else { LOCKED_RETRY };
        // Counted from now: the writing may have taken longer than that.
        let again_at = background::now() + retry;
        slot.with_board(|board| {
            for claim in claims.iter().filter(|claim| !left.contains(&claim.id)) {
                board.give_back(&claim.id, claim.token);
            }
            if board.workers[worker].id == id {
                board.end_loss(worker, again_at);
            }
        });
        let goes_on = failure.is_none();
        if let Some(error) = failure {
            self.tell(slot, error);
        }
        goes_on
    }

    /// Writes down who runs what has been running for a while.
    pub fn write_behind(&mut self, slot: Slot) {
        let now = background::now();
        // Not when the clock was set back meanwhile.
        if (now..now + FAILED_RETRY).contains(&self.write_at) {
            return;
        }
        let before = now - guc::micros(&guc::WRITE_BEHIND_AFTER);
        let mut claims = Vec::new();
        let claims: Vec<(WorkerId, Entry)> = slot.with_board(|board| {
            if board.head.claimed > 0 {
                board.take_unwritten(before, MAX_UNWRITTEN, &mut claims);
            }
            claims.iter().map(|(worker, entry)| (board.workers[*worker].id, *entry)).collect()
        });
        if claims.is_empty() {
            return;
        }
        let write_all = |claims: &[(WorkerId, Entry)]| spi::connected(|spi| beat::write_behind(spi, claims));
        let Outcome { left, failure } = write(&claims, |(_, claim)| claim.id, write_all);
        slot.with_board(|board| {
            for (_, claim) in claims.iter().filter(|(_, claim)| left.contains(&claim.id)) {
                board.not_written(&claim.id, claim.token);
            }
        });
        if let Some(error) = failure {
            // It helps after a crash; nothing else waits for it.
            self.write_at = background::now() + FAILED_RETRY;
            self.tell(slot, error);
        }
    }

    /// Not before this moment claims are written down.
    pub fn write_at(&self, now: Micros) -> Micros {
        self.write_at.min(now + FAILED_RETRY)
    }

    /// Tells once what went wrong.
    fn tell(&mut self, slot: Slot, error: String) {
        slot.control().set_error(&error, background::now());
        if error != self.last_error {
            pgrx::warning!(
                "pg_task scheduler: a claimed task could not be written to, which will be tried again: {error}"
            );
            self.last_error = error;
        }
    }
}

/// What became of some rows.
struct Outcome {
    /// To these nothing was written.
    left: HashSet<TaskId>,
    /// Why, if it was not for a lock.
    failure: Option<String>,
}

/// Writes to all rows in one transaction, or in one for each when one of them spoils it for all. `write_some` returns those that are locked.
fn write<T>(
    claims: &[T],
    id: impl Fn(&T) -> TaskId,
    write_some: impl Fn(&[T]) -> HashSet<TaskId>,
) -> Outcome {
    let write = |claims: &[T]| {
        let work = std::panic::AssertUnwindSafe(|| {
            // Of rows nobody's lock is waited for; one of the whole table is not waited for long.
            background::set_local(c"lock_timeout", c"1s");
            write_some(claims)
        });
        background::transaction(move || {
            let work = work;
            (work.0)()
        })
    };
    if claims.is_empty() {
        return Outcome { left: HashSet::new(), failure: None };
    }
    let mut failure = match write(claims) {
        Ok(left) => return Outcome { left, failure: None },
        Err(error) => Some(error),
    };
    let mut left: HashSet<TaskId> = claims.iter().map(&id).collect();
    let until = background::now() + SINGLY_FOR;
    // Begun somewhere else each time: those that refuse may use the time up.
    let (first, rest) = claims.split_at(until as usize % claims.len());
    for claim in rest.iter().chain(first).filter(|_| claims.len() > 1) {
        if background::now() >= until {
            break;
        }
        match write(std::slice::from_ref(claim)) {
            Ok(locked) if locked.is_empty() => _ = left.remove(&id(claim)),
            Ok(_) => {}
            Err(error) => failure = Some(error),
        }
    }
    Outcome { left, failure }
}
