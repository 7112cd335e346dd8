//! The hand-out path: results in, tasks out, in one call.
//!
//! A claim is made in shared memory before the rows are read and is provisional until the transaction ends: an abort gives the
//! tasks back. Results are settled in memory only after the commit. So memory never runs ahead of the table.

mod claim;
mod exchange;
mod given_up;
mod output;
mod progress;
mod register;
mod results;
mod written;

pub use given_up::NOBODY;

use std::cell::RefCell;
use std::sync::atomic::Ordering::Relaxed;

use pg_task_rules::Micros;
use pg_task_rules::TaskId;
use pg_task_rules::WorkerId;
use pg_task_rules::board::Advance;
use pg_task_rules::board::Board;
use pg_task_rules::board::Claim;
use pg_task_rules::board::Look;
use pg_task_rules::inbox::Hint;
use pg_task_rules::names::Kind;
use pg_task_rules::names::Label;
use pgrx::pg_sys;

use crate::background;
use crate::commit;
use crate::error::Error;
use crate::shmem;
use crate::shmem::Slot;

thread_local! {
    static UNSETTLED: RefCell<Unsettled> = const { RefCell::new(Unsettled::NOTHING) };
}

/// What the current transaction has done that memory learns at its end.
struct Unsettled {
    slot: Option<Slot>,
    /// The worker that called, if it was registered.
    caller: Option<Caller>,
    /// Claims that this transaction made.
    claims: Vec<Claim>,
    /// Claims that end when it commits.
    ends: Vec<(TaskId, i64, End)>,
    /// Rows that are due at a later time when it commits.
    hints: Vec<Hint>,
    /// Cancelled tasks of which its answer tells.
    told: Vec<TaskId>,
}

/// A worker's place on the board and the registration under which it called.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    place: usize,
    generation: u32,
}

impl Caller {
    /// Whether the registration is still the worker's last one. After another one nothing that was begun under this one may go on
    /// as a claim: the worker has said then what it holds, and never hears the answer of the older call.
    fn is_current(self, board: &Board<'_>) -> bool {
        board.workers.get(self.place).is_some_and(|worker| worker.generation == self.generation)
    }
}

/// How a claim ends.
#[derive(Clone, Copy)]
enum End {
    /// The task is gone, parked or asleep. In its group, and of its key, others are the next.
    Over([Option<Look>; 2]),
    /// It is ready again.
    Back,
    /// It waits for a worker that knows the step.
    Misfit(Kind, Label),
    /// Its next step goes on under a new token and fence.
    Advance(Advance),
}

impl Unsettled {
    const NOTHING: Self = Self {
        slot: None,
        caller: None,
        claims: Vec::new(),
        ends: Vec::new(),
        hints: Vec::new(),
        told: Vec::new(),
    };

    fn clear(&mut self) {
        self.slot = None;
        self.caller = None;
        self.claims.clear();
        self.ends.clear();
        self.hints.clear();
        self.told.clear();
    }
}

/// Called when a transaction ends. In a commit nothing here may fail or allocate.
pub fn at_end(committed: bool) {
    UNSETTLED.with_borrow_mut(|unsettled| {
        let Some(slot) = unsettled.slot else { return };
        let now = background::now();
        let mut returned = false;
        slot.with_board(|board| {
            let current = unsettled.caller.is_none_or(|caller| caller.is_current(board));
            if committed {
                for (id, token, end) in &unsettled.ends {
                    let end = match *end {
                        End::Advance(_) if !current => End::Back,
                        end => end,
                    };
                    returned |= settle(board, id, *token, end, now);
                }
            }
            returned |= board.wants_look();
            // The ends of claims may have made room in a queue for workers that wait.
            returned |= committed && board.has_freed_place(now);
            if !committed {
                unsettled.told.iter().for_each(|id| board.not_told(id));
            }
            if !committed || !current {
                for claim in &unsettled.claims {
                    board.withdraw(claim);
                    returned |= board.give_back(&claim.id, claim.token);
                }
                returned |= board.wants_look();
            }
        });
        if committed {
            let over = unsettled.ends.iter().filter(|(_, _, end)| matches!(end, End::Over(_)));
            slot.control().waiters.wake(over.map(|(id, ..)| id));
        }
        if committed && !unsettled.hints.is_empty() {
            slot.with_inbox(|inbox| {
                for hint in &unsettled.hints {
                    returned |= inbox.push(hint);
                }
            });
        }
        if committed {
            slot.control().finished.fetch_add(unsettled.ends.len() as u64, Relaxed);
            slot.control().handed_out.fetch_add(unsettled.claims.len() as u64, Relaxed);
        }
        if returned {
            slot.wake_scheduler();
        }
        unsettled.clear();
    });
}

/// Ends a claim in memory; returns whether others may now take the task.
fn settle(board: &mut Board<'_>, id: &TaskId, token: i64, end: End, now: Micros) -> bool {
    match end {
        End::Over(looks) => {
            if !board.end_claim(id, token) {
                // It was given back meanwhile, as one of a lost worker: the look that this asked for may have met the row as it was.
                looks.into_iter().flatten().for_each(|look| board.ask_look(look));
            }
            false
        }
        End::Back => board.give_back(id, token),
        End::Misfit(kind, label) => {
            if let Some(worker) = board.claim_of(id).and_then(|entry| board.holder(entry)) {
                board.note_unknown(worker, kind);
            }
            board.misfit(id, token, kind, label)
        }
        End::Advance(next) => {
            board.advance(id, token, &next, now);
            false
        }
    }
}

/// Refuses to prepare a transaction that holds claims: who commits it later cannot settle them.
pub fn before_prepare() {
    if UNSETTLED.with_borrow(|unsettled| unsettled.slot.is_some()) {
        Error::Prepare.raise();
    }
}

/// Notes something that is settled when the transaction ends.
fn unsettled(slot: Slot, f: impl FnOnce(&mut Unsettled)) {
    commit::note_handout();
    UNSETTLED.with_borrow_mut(|unsettled| {
        unsettled.slot = Some(slot);
        f(unsettled);
    });
}

/// The slot of this database, when it is ready to hand out.
pub fn serving_slot() -> Result<Slot, Error> {
    if !shmem::ready() {
        return Err(Error::NotPreloaded);
    }
    // SAFETY: a plain read of the server's state.
    if unsafe { pg_sys::RecoveryInProgress() } {
        return Err(Error::Standby);
    }
    shmem::my_slot().filter(|slot| slot.control().serves()).ok_or(Error::NoScheduler)
}

/// The place of a worker that this role registered; none when it has to register (again).
fn find_worker(board: &Board<'_>, worker: &WorkerId) -> Result<Option<usize>, Error> {
    let Some(place) = board.find_worker(worker) else { return Ok(None) };
    // The functions run as the extension's owner: the caller is the outer user.
    // SAFETY: a plain read of this process' state.
    if board.workers[place].role != unsafe { pg_sys::GetOuterUserId() }.to_u32() {
        return Err(Error::WorkerRole);
    }
    Ok(Some(place))
}

/// Refuses transactions in which the claims could not be read or settled.
fn check_transaction() -> Result<(), Error> {
    // SAFETY: plain reads of this process' transaction state.
    unsafe {
        if pg_sys::GetCurrentTransactionNestLevel() > 1 {
            return Err(Error::Transaction("inside a savepoint or an exception block"));
        }
        if pg_sys::XactIsoLevel >= pg_sys::XACT_REPEATABLE_READ as i32 {
            return Err(Error::Transaction("in a REPEATABLE READ or SERIALIZABLE transaction"));
        }
    }
    Ok(())
}
