//! Lost workers: what they held is written down, and handed out again.

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

/// A row that someone keeps locked is tried again after this time.
const LOCKED_RETRY: Micros = 200_000;

/// A row that refuses to be written is tried again after this time.
const FAILED_RETRY: Micros = 1_000_000;

/// With a row that refuses to be written, the others are written one by one, for so long at most before the scheduler looks at other things.
const SINGLY_FOR: Micros = 2_000_000;

/// Lost workers.
#[derive(Default)]
pub struct Losses {
    last_error: String,
}

impl Losses {
    /// Gives up the next worker that is lost; whether there was one.
    ///
    /// A row to which that cannot be written (for a trigger or a constraint of a user's, say) stays claimed, and holds up nothing else.
    pub fn give_up_next(&mut self, slot: Slot) -> bool {
        let now = background::now();
        let grace = guc::micros(&guc::WORKER_GRACE);
        let lost = slot.with_board(|board| {
            let worker = board.take_lost(grace, now)?;
            let claims: Vec<Entry> = board.claims_of(worker).copied().collect();
            Some((worker, board.workers[worker].id, board.workers[worker].gives_up, claims))
        });
        let Some((worker, id, asks, claims)) = lost else { return false };
        let Loss { left, failure } = write(&id, &claims, asks);
        let written = claims.len() - left.len();
        if written > 0 {
            pgrx::log!(
                "pg_task scheduler: a worker was lost; {written} tasks that it held are handed out again"
            );
        }
        slot.control().lost.fetch_add(written as u64, Relaxed);
        let retry = if failure.is_some() { FAILED_RETRY } else { LOCKED_RETRY };
        slot.with_board(|board| {
            for claim in claims.iter().filter(|claim| !left.contains(&claim.id)) {
                board.give_back(&claim.id, claim.token);
            }
            if board.workers[worker].id == id {
                board.end_loss(worker, now + retry);
            }
        });
        if let Some(error) = failure {
            self.tell(slot, error);
        }
        true
    }

    /// Tells once why something could not be written to claimed tasks.
    pub fn tell(&mut self, slot: Slot, error: String) {
        slot.control().set_error(&error, background::now());
        if error != self.last_error {
            pgrx::warning!(
                "pg_task scheduler: a claimed task could not be written to, which will be tried again: {error}"
            );
            self.last_error = error;
        }
    }
}

/// What became of the tasks of a lost worker.
struct Loss {
    /// To these nothing was written.
    left: HashSet<TaskId>,
    /// Why, if it was not for a lock.
    failure: Option<String>,
}

/// Writes to all rows together, or one by one when one of them spoils it for all.
fn write(worker: &WorkerId, claims: &[Entry], asks: bool) -> Loss {
    let limit = guc::LOST_LIMIT.get();
    let write = |claims: &[Entry]| {
        background::transaction(|| {
            // Handed out again under an attempt that a crash could take back, a task would be tried more often than its limit.
            background::flush_at_commit();
            spi::connected(|spi| beat::write_loss(spi, worker, claims, limit, asks))
        })
    };
    if claims.is_empty() {
        return Loss { left: HashSet::new(), failure: None };
    }
    let mut failure = match write(claims) {
        Ok(left) => return Loss { left, failure: None },
        Err(error) => Some(error),
    };
    let mut left: HashSet<TaskId> = claims.iter().map(|claim| claim.id).collect();
    let until = background::now() + SINGLY_FOR;
    for claim in claims.iter().filter(|_| claims.len() > 1).take_while(|_| background::now() < until) {
        match write(std::slice::from_ref(claim)) {
            Ok(locked) if locked.is_empty() => _ = left.remove(&claim.id),
            Ok(_) => {}
            Err(error) => failure = Some(error),
        }
    }
    Loss { left, failure }
}
