//! What can happen next.

use super::Handout;
use super::State;
use super::state::Call;
use super::state::Standing;

/// What a step ends in.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Outcome {
    /// Failed: tried again, or parked at the limit.
    Failure,
    /// Not run, given back.
    Release,
    /// The last step ends in none, another one in the next step.
    Success,
}

/// One atomic moment. Tasks and workers are numbers.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Action {
    /// A producer commits; its hint is in the inbox.
    Enqueue(u8),
    /// A producer commits and the inbox is full.
    EnqueueUnheard(u8),
    /// The scheduler takes a hint.
    TakeHint(u8),
    /// The scheduler reads the table.
    ReadTable,
    /// It puts a row that it has read on the board.
    Push(u8),
    /// It looks for the oldest task of the group.
    Look,
    /// It puts that one on the board, unless another one of the group is claimed.
    PushNext,
    /// A worker registers, with what it holds.
    Register(u8),
    /// An `exchange` call of a worker claims a task in memory.
    Claim(u8, u8),
    /// It reads the row, counts the attempt if it must, commits, and its answer arrives.
    Deliver(u8),
    /// The same, but the answer is lost on its way.
    DeliverUnheard(u8),
    /// The call is aborted.
    AbortClaim(u8),
    /// A worker brings the result of the n-th step it holds: the call looks at memory.
    Bring(u8, u8, Outcome),
    /// The call writes the row and commits.
    Commit(u8),
    /// The call is aborted before its commit; the worker will bring the result again.
    AbortResult(u8),
    /// Memory learns of the commit.
    Settle(u8),
    /// The scheduler marks a claim as written down.
    MarkWritten(u8),
    /// It writes that down.
    WriteBehind,
    /// A worker process dies.
    Die(u8),
    /// A worker is given up: its lease is over.
    GiveUp(u8),
    /// The scheduler writes the loss down.
    WriteLoss(u8),
    /// Memory follows.
    SettleLoss(u8),
    /// A user changes a row.
    Change(u8),
    /// A user deletes a row.
    Cancel(u8),
    /// The server ends in good order and starts again.
    Restart,
    /// The server crashes and starts again.
    Crash,
}

impl Action {
    /// Whether it is a fault: only so many are tried in one history.
    pub(super) fn is_fault(self) -> bool {
        matches!(
            self,
            Self::EnqueueUnheard(_)
                | Self::DeliverUnheard(_)
                | Self::AbortClaim(_)
                | Self::Bring(_, _, Outcome::Failure | Outcome::Release)
                | Self::AbortResult(_)
                | Self::Die(_)
                | Self::GiveUp(_)
                | Self::Change(_)
                | Self::Cancel(_)
                | Self::Restart
                | Self::Crash
        )
    }
}

pub(super) fn possible(model: &Handout, state: &State, actions: &mut Vec<Action>) {
    for task in 0..model.tasks {
        let number = task as u8;
        if !state.notes[task].enqueued {
            actions.extend([Action::Enqueue(number), Action::EnqueueUnheard(number)]);
        }
        if state.memory.hints[task] {
            actions.push(Action::TakeHint(number));
        }
        if state.rows[task].is_some_and(|row| !row.parked) {
            actions.extend([Action::Change(number), Action::Cancel(number)]);
        }
        if state.scheduler.to_write.is_none()
            && state.memory.claims[task].is_some_and(|claim| claim.fence.is_some() && !claim.written)
        {
            actions.push(Action::MarkWritten(number));
        }
    }
    if state.memory.rescan && state.scheduler.seen.is_empty() {
        actions.push(Action::ReadTable);
    }
    actions.extend(state.scheduler.seen.first().map(|task| Action::Push(*task)));
    if state.memory.look && state.scheduler.found.is_none() {
        actions.push(Action::Look);
    }
    if state.scheduler.found.is_some() {
        actions.push(Action::PushNext);
    }
    actions.extend(state.scheduler.loss.map(Action::SettleLoss));
    if state.scheduler.to_write.is_some() {
        actions.push(Action::WriteBehind);
    }
    for worker in 0..model.workers {
        worker_actions(model, state, worker, actions);
    }
    actions.extend([Action::Restart, Action::Crash]);
    actions.retain(|action| state.faults < model.faults || !action.is_fault());
}

fn worker_actions(model: &Handout, state: &State, worker: usize, actions: &mut Vec<Action>) {
    let number = worker as u8;
    let standing = state.memory.standing[worker];
    match state.calls[worker] {
        None if !state.dead[worker] => {
            if standing != Standing::Live || state.unsure[worker] {
                actions.push(Action::Register(number));
            }
            if standing == Standing::Live && !state.unsure[worker] {
                for task in (0..model.tasks).filter(|task| state.memory.ready[*task] > 0) {
                    actions.push(Action::Claim(number, task as u8));
                }
            }
            for index in 0..state.attempts[worker].len() {
                for outcome in [Outcome::Success, Outcome::Failure, Outcome::Release] {
                    actions.push(Action::Bring(number, index as u8, outcome));
                }
            }
        }
        None => {}
        Some(Call::Claiming { .. }) => {
            actions.extend([
                Action::Deliver(number),
                Action::DeliverUnheard(number),
                Action::AbortClaim(number),
            ]);
        }
        Some(Call::Checked { .. }) => {
            actions.extend([Action::Commit(number), Action::AbortResult(number)]);
        }
        Some(Call::Committed { .. }) => actions.push(Action::Settle(number)),
    }
    if !state.attempts[worker].is_empty() && state.calls[worker].is_none() {
        actions.push(Action::Die(number));
    }
    match standing {
        Standing::Live => actions.push(Action::GiveUp(number)),
        Standing::Lost if state.scheduler.loss.is_none() => actions.push(Action::WriteLoss(number)),
        Standing::Lost | Standing::Absent => {}
    }
}
