//! What an action does. The rules that [`Mutation`] can break are marked by `keeps`.

use super::Action;
use super::Handout;
use super::Mutation;
use super::Outcome;
use super::State;
use super::Violation;
use super::state::Attempt;
use super::state::Call;
use super::state::Claim;
use super::state::End;
use super::state::Memory;
use super::state::Row;
use super::state::Scheduler;
use super::state::Standing;

pub(super) fn apply(model: &Handout, state: &mut State, action: Action) {
    state.faults += u8::from(action.is_fault());
    let index = usize::from;
    match action {
        Action::Enqueue(task) | Action::EnqueueUnheard(task) => {
            state.notes[index(task)].enqueued = true;
            state.rows[index(task)] = Some(Row {
                fence: 0,
                step: 0,
                tried: 0,
                locked_by: None,
                counted: false,
                parked: false,
                old: false,
            });
            if matches!(action, Action::Enqueue(_)) {
                tell(model, state, task);
            } else if model.keeps(Mutation::HintDropped) {
                state.memory.rescan = true;
            }
        }
        Action::TakeHint(task) => {
            state.memory.hints[index(task)] = false;
            push(model, state, task);
        }
        Action::ReadTable => {
            state.memory.rescan = false;
            let runnable = |row: &Option<Row>| row.is_some_and(|row| !row.parked);
            let next = |task: &u8| !model.grouped || state.is_oldest(*task);
            let tasks = (0..model.tasks).filter(|task| runnable(&state.rows[*task])).map(|task| task as u8);
            let seen: Vec<u8> = tasks.filter(next).collect();
            state.scheduler.seen = seen;
        }
        Action::Push(task) => {
            state.scheduler.seen.retain(|seen| *seen != task);
            push(model, state, task);
        }
        Action::Look => {
            state.memory.look = false;
            let oldest = state.rows.iter().position(Option::is_some);
            let next = oldest.filter(|task| state.rows[*task].is_some_and(|row| !row.parked));
            state.scheduler.found = next.map(|task| task as u8);
        }
        Action::PushNext => {
            let has_turn = state.memory.claims.iter().flatten().any(|claim| claim.in_turn);
            if let Some(task) = state.scheduler.found.take().filter(|_| !has_turn) {
                push(model, state, task);
            }
        }
        Action::Register(worker) => register(model, state, worker),
        Action::Claim(worker, task) => claim(state, worker, task),
        Action::Deliver(worker) => deliver(model, state, worker, true),
        Action::DeliverUnheard(worker) => deliver(model, state, worker, false),
        Action::AbortClaim(worker) => {
            if let Some(Call::Claiming { task, token }) = state.calls[index(worker)].take()
                && model.keeps(Mutation::AbortKeepsClaim)
            {
                give_back(model, state, task, token);
            }
        }
        Action::Bring(worker, at, outcome) => bring(state, worker, at, outcome),
        Action::Commit(worker) => commit(model, state, worker),
        Action::AbortResult(worker) => {
            if let Some(Call::Checked { attempt, .. }) = state.calls[index(worker)].take() {
                if !model.keeps(Mutation::SettleBeforeCommit) {
                    end_claim(model, state, attempt.task, attempt.token);
                }
                state.attempts[index(worker)].push(attempt);
            }
        }
        Action::Settle(worker) => settle(model, state, worker),
        Action::MarkWritten(task) => {
            if let Some(claim) = &mut state.memory.claims[index(task)] {
                claim.written = true;
                state.scheduler.to_write = claim.fence.map(|fence| (task, fence, claim.worker, claim.token));
            }
        }
        Action::WriteBehind => write_behind(model, state),
        Action::Die(worker) => {
            state.attempts[index(worker)].clear();
            state.unsure[index(worker)] = false;
            if state.memory.standing[index(worker)] != Standing::Absent {
                state.dead[index(worker)] = true;
            }
            if state.memory.standing[index(worker)] == Standing::Live {
                state.memory.standing[index(worker)] = Standing::Lost;
            }
        }
        Action::GiveUp(worker) => state.memory.standing[index(worker)] = Standing::Lost,
        Action::WriteLoss(worker) => write_loss(model, state, worker),
        Action::SettleLoss(worker) => {
            state.scheduler.loss = None;
            state.memory.standing[index(worker)] = Standing::Absent;
            state.dead[index(worker)] = false;
            for task in 0..model.tasks {
                if let Some(claim) = state.memory.claims[task].filter(|claim| claim.worker == worker) {
                    give_back(model, state, task as u8, claim.token);
                    forget(state, task as u8, claim.token);
                }
            }
        }
        Action::Change(task) => {
            if let Some(row) = &mut state.rows[index(task)] {
                row.fence += 1;
                row.locked_by = None;
                row.old = false;
            }
            void(state, task);
            // What was tried before was another row.
            let notes = &mut state.notes[index(task)];
            notes.forget_attempts();
            tell(model, state, task);
        }
        Action::Cancel(task) => {
            state.rows[index(task)] = None;
            void(state, task);
            state.memory.ready[index(task)] = 0;
            state.memory.look |= model.grouped;
        }
        Action::Restart | Action::Crash => new_life(model, state, action == Action::Crash),
    }
}

/// `commit::note_task`: one of a group comes by a look.
fn tell(model: &Handout, state: &mut State, task: u8) {
    if model.grouped {
        state.memory.look = true;
    } else {
        state.memory.hints[usize::from(task)] = true;
    }
}

/// `Board::push_ready`.
fn push(model: &Handout, state: &mut State, task: u8) {
    let at = usize::from(task);
    let present = state.memory.ready[at] > 0 || state.memory.claims[at].is_some();
    if !present || (!model.keeps(Mutation::PushIgnoresPresence) && state.memory.ready[at] == 0) {
        state.memory.ready[at] += 1;
    }
}

/// `Board::claim`.
fn claim(state: &mut State, worker: u8, task: u8) {
    let at = usize::from(task);
    let token = state.next_token;
    state.next_token += 1;
    if token <= state.notes[at].last_token {
        state.note(Violation::OldToken);
    }
    state.notes[at].last_token = token;
    state.memory.ready[at] -= 1;
    state.memory.claims[at] =
        Some(Claim { worker, token, fence: None, counted: false, written: false, in_turn: false });
    state.calls[usize::from(worker)] = Some(Call::Claiming { task, token });
}

/// `claim::claim_once` after the claim in memory.
fn deliver(model: &Handout, state: &mut State, worker: u8, heard: bool) {
    let Some(Call::Claiming { task, token }) = state.calls[usize::from(worker)].take() else { return };
    let at = usize::from(task);
    let Some(mut row) = state.rows[at].filter(|row| !row.parked) else {
        end_claim(model, state, task, token);
        return;
    };
    if model.grouped && !takes_turn(model, state, task, token) {
        end_claim(model, state, task, token);
        state.memory.look = true;
        return;
    }
    let crashed = row.old && model.keeps(Mutation::CrashNotCounted);
    let counted = row.locked_by.is_some() || crashed;
    if counted {
        row.fence += 1;
        row.old = false;
        if row.tried > model.limit && model.keeps(Mutation::LimitIgnored) {
            row = Row { parked: true, locked_by: None, ..row };
            state.rows[at] = Some(row);
            void(state, task);
            end_claim(model, state, task, token);
            return;
        }
        row.tried += 1;
        row.locked_by = Some(worker);
        row.counted = true;
        void(state, task);
        count(state, task, token);
        state.rows[at] = Some(row);
    }
    let mine = matches!(state.memory.claims[at], Some(claim) if claim.token == token);
    if let Some(claim) = state.memory.claims[at].as_mut().filter(|claim| claim.token == token) {
        claim.fence = Some(row.fence);
        claim.counted = counted;
        claim.written = counted;
    }
    if !heard {
        state.unsure[usize::from(worker)] = true;
        return;
    }
    if state.dead[usize::from(worker)] {
        return;
    }
    if row.tried + 1 < state.notes[at].crashes {
        // It may have taken the server down so often, and the row tells of fewer attempts. One may be missing: the attempt that met the
        // first crash is never counted itself, the next one is counted in its stead, and if that one's worker is lost it has used the count up.
        state.note(Violation::CrashUncounted);
    }
    if row.tried > model.limit + 2 {
        state.violations |= Violation::BeyondLimit as u16;
    }
    if model.grouped && !state.is_oldest(task) {
        state.note(Violation::OutOfOrder);
    }
    // One that comes back only after memory has settled anew is not waited for: it was lost with the server.
    if model.grouped
        && state.live_attempts().enumerate().any(|(other, count)| other != usize::from(task) && count > 0)
    {
        state.note(Violation::OutOfTurn);
    }
    let attempt = Attempt { task, fence: row.fence, token, step: row.step, given_up: false, orphan: !mine };
    state.attempts[usize::from(worker)].push(attempt);
}

/// `claim::turn`.
fn takes_turn(model: &Handout, state: &mut State, task: u8, token: u8) -> bool {
    let claim = state.memory.claims[usize::from(task)].filter(|claim| claim.token == token);
    let may_take = !state.has_turn_beside(task) || !model.keeps(Mutation::GroupIgnoresTurn);
    let Some(claim) = claim.filter(|_| may_take) else { return false };
    state.memory.claims[usize::from(task)] = Some(Claim { in_turn: true, ..claim });
    state.is_oldest(task) || !model.keeps(Mutation::GroupIgnoresOrder)
}

/// The first part of `results::write`: what memory says.
fn bring(state: &mut State, worker: u8, at: u8, outcome: Outcome) {
    let attempt = state.attempts[usize::from(worker)].remove(usize::from(at));
    let held = state.memory.claims[usize::from(attempt.task)];
    if held.is_some_and(|claim| claim.token != attempt.token || claim.worker != worker) {
        state.refused = true;
        return;
    }
    let counted = held.map(|claim| claim.counted);
    state.calls[usize::from(worker)] = Some(Call::Checked { attempt, outcome, counted });
}

/// The rest of it, with the commit.
fn commit(model: &Handout, state: &mut State, worker: u8) {
    let Some(Call::Checked { attempt, outcome, counted }) = state.calls[usize::from(worker)].take() else {
        return;
    };
    let at = usize::from(attempt.task);
    let is_known = counted.is_some();
    // Of a claim that memory does not know the row tells.
    let counted = counted.unwrap_or_else(|| {
        state.rows[at].is_some_and(|row| row.locked_by.is_some() && row.counted)
            && model.keeps(Mutation::ResultForgetsCount)
    });
    let valid =
        |row: &Row| (row.fence == attempt.fence || !model.keeps(Mutation::FinishIgnoresFence)) && !row.parked;
    let end = match (state.rows[at].filter(valid), outcome) {
        (None, Outcome::Release) => End::Back,
        (None, _) => {
            state.refused = true;
            End::Back
        }
        (Some(mut row), Outcome::Release) => {
            // Only what was written down has to be taken back.
            if row.locked_by == Some(worker) {
                row.locked_by = None;
                state.rows[at] = Some(row);
                if counted {
                    take_count_back(model, state, attempt.task);
                }
            }
            End::Back
        }
        (Some(row), Outcome::Success) => {
            accepted(state, &attempt);
            let bit = 1 << attempt.step;
            if state.notes[at].done & bit != 0 {
                state.note(Violation::DoubleTransition);
            }
            state.notes[at].done |= bit;
            let notes = &mut state.notes[at];
            notes.forget_attempts();
            if attempt.step + 1 == model.steps {
                state.rows[at] = None;
                if is_known { End::Over } else { End::Gone }
            } else {
                let step = row.step + 1;
                state.rows[at] = Some(Row {
                    fence: row.fence + 1,
                    step,
                    tried: 0,
                    locked_by: None,
                    counted: false,
                    parked: false,
                    old: false,
                });
                End::Hint
            }
        }
        (Some(row), Outcome::Failure) => {
            accepted(state, &attempt);
            let tried = row.tried + u8::from(!counted);
            if !counted {
                count(state, attempt.task, attempt.token);
            }
            let parked = tried > model.limit;
            state.rows[at] =
                Some(Row { fence: row.fence + 1, tried, locked_by: None, parked, old: false, ..row });
            if parked { End::Over } else { End::Hint }
        }
    };
    state.calls[usize::from(worker)] = Some(Call::Committed { attempt, end });
}

/// A result was written: was that right?
fn accepted(state: &mut State, attempt: &Attempt) {
    if attempt.given_up {
        state.note(Violation::StaleResult);
    }
}

/// `handout::at_end(true)`.
fn settle(model: &Handout, state: &mut State, worker: u8) {
    let Some(Call::Committed { attempt, end }) = state.calls[usize::from(worker)].take() else { return };
    match end {
        End::Over => {
            let claim = state.memory.claims[usize::from(attempt.task)];
            let was_ended = claim.is_none_or(|claim| claim.token != attempt.token);
            end_claim(model, state, attempt.task, attempt.token);
            state.memory.look |= was_ended && model.grouped && model.keeps(Mutation::GroupSettlesUnseen);
        }
        End::Gone => {
            end_claim(model, state, attempt.task, attempt.token);
            state.memory.look |= model.grouped;
        }
        End::Back => give_back(model, state, attempt.task, attempt.token),
        End::Hint => {
            end_claim(model, state, attempt.task, attempt.token);
            tell(model, state, attempt.task);
        }
    }
}

/// `beat::write_behind`.
fn write_behind(model: &Handout, state: &mut State) {
    let Some((task, fence, worker, token)) = state.scheduler.to_write.take() else { return };
    let Some(row) = &mut state.rows[usize::from(task)] else { return };
    if row.fence == fence || !model.keeps(Mutation::WriteBehindIgnoresFence) {
        row.locked_by = Some(worker);
        row.counted = false;
        if row.fence != fence {
            state.note(Violation::WrongLock);
        }
        let _ = token;
    }
}

/// `beat::write_loss`.
fn write_loss(model: &Handout, state: &mut State, worker: u8) {
    state.scheduler.loss = Some(worker);
    for task in 0..model.tasks {
        let Some(claim) = state.memory.claims[task].filter(|claim| claim.worker == worker) else { continue };
        let Some(mut row) = state.rows[task].filter(|row| Some(row.fence) == claim.fence && !row.parked)
        else {
            continue;
        };
        let number = task as u8;
        let again = !claim.counted || !model.keeps(Mutation::LossCountsTwice);
        if again && model.keeps(Mutation::LossNotCounted) {
            row.tried += 1;
            count(state, number, claim.token);
        }
        state.notes[task].lost |= 1 << claim.token;
        if state.notes[task].lost.count_ones() > u32::from(row.tried) {
            state.note(Violation::Uncounted);
        }
        row.parked = row.tried > model.limit && model.keeps(Mutation::LimitIgnored);
        row.fence += u8::from(model.keeps(Mutation::LossKeepsFence));
        row.locked_by = None;
        row.old = false;
        state.rows[task] = Some(row);
        void(state, number);
    }
}

/// `register` and `register::assert_held`.
fn register(model: &Handout, state: &mut State, worker: u8) {
    let place = usize::from(worker);
    state.memory.standing[place] = Standing::Live;
    state.unsure[place] = false;
    for task in 0..model.tasks {
        let held = |claim: &Claim| {
            state.attempts[place]
                .iter()
                .any(|attempt| attempt.token == claim.token && usize::from(attempt.task) == task)
        };
        let forgotten = state.memory.claims[task].filter(|claim| claim.worker == worker && !held(claim));
        if let Some(claim) = forgotten {
            take_back_what_was_written(model, state, task as u8, &claim);
            give_back(model, state, task as u8, claim.token);
        }
    }
    let attempts = std::mem::take(&mut state.attempts[place]);
    for mut attempt in attempts {
        let at = usize::from(attempt.task);
        let same_fence = |row: &Row| {
            !row.parked && (row.fence == attempt.fence || !model.keeps(Mutation::AssertIgnoresFence))
        };
        let own = state.memory.claims[at]
            .is_some_and(|claim| claim.token == attempt.token && claim.worker == worker);
        let Some(row) = state.rows[at].filter(same_fence) else {
            if own && model.keeps(Mutation::RefusalKeepsClaim) {
                give_back(model, state, attempt.task, attempt.token);
            }
            continue;
        };
        match state.memory.claims[at] {
            Some(_) if own => {}
            Some(_) if model.keeps(Mutation::AssertIgnoresHolder) => continue,
            _ => {
                state.reasserted = true;
                state.memory.ready[at] = 0;
                state.memory.claims[at] = Some(Claim {
                    worker,
                    token: attempt.token,
                    fence: Some(row.fence),
                    counted: row.locked_by.is_some()
                        && row.counted
                        && model.keeps(Mutation::AssertForgetsCount),
                    written: row.locked_by.is_some(),
                    in_turn: model.grouped,
                });
            }
        }
        if attempt.given_up {
            state.note(Violation::StaleResult);
        }
        attempt.orphan = false;
        state.attempts[place].push(attempt);
    }
}

/// `beat::unwrite`.
fn take_back_what_was_written(model: &Handout, state: &mut State, task: u8, claim: &Claim) {
    let Some(row) = &mut state.rows[usize::from(task)] else { return };
    if !claim.written || Some(row.fence) != claim.fence {
        return;
    }
    row.locked_by = None;
    if claim.counted {
        take_count_back(model, state, task);
    }
}

/// What was counted is that the server or a worker was lost with the task: that stays, though this attempt did not run.
fn take_count_back(model: &Handout, state: &mut State, task: u8) {
    let at = usize::from(task);
    let Some(row) = &mut state.rows[at] else { return };
    let before = row.tried;
    if !model.keeps(Mutation::GiveBackUncounts) {
        row.tried = row.tried.saturating_sub(1);
        row.fence += 1;
    }
    // The row does not count as old any more: its next run is not counted before it begins.
    if row.tried < before && state.notes[at].crashes > 0 {
        state.note(Violation::CrashUncounted);
    }
}

/// `Board::end_claim`.
fn end_claim(model: &Handout, state: &mut State, task: u8, token: u8) {
    let claim = &mut state.memory.claims[usize::from(task)];
    if claim.is_some_and(|claim| claim.token == token || !model.keeps(Mutation::EndIgnoresToken)) {
        let in_turn = claim.take().is_some_and(|claim| claim.in_turn);
        state.memory.look |= in_turn && model.keeps(Mutation::GroupEndsUnseen);
    }
}

/// `Board::give_back`.
fn give_back(model: &Handout, state: &mut State, task: u8, token: u8) {
    let at = usize::from(task);
    if state.memory.claims[at]
        .is_some_and(|claim| claim.token == token || !model.keeps(Mutation::EndIgnoresToken))
    {
        let in_turn = state.memory.claims[at].take().is_some_and(|claim| claim.in_turn);
        state.memory.look |= in_turn && model.keeps(Mutation::GroupEndsUnseen);
        state.memory.ready[at] += 1;
    }
}

/// The row has changed: every attempt of it so far is given up.
fn void(state: &mut State, task: u8) {
    state.every_attempt().filter(|attempt| attempt.task == task).for_each(|attempt| attempt.given_up = true);
}

/// Memory has forgotten an attempt.
fn forget(state: &mut State, task: u8, token: u8) {
    state
        .every_attempt()
        .filter(|attempt| attempt.task == task && attempt.token == token)
        .for_each(|attempt| attempt.orphan = true);
}

fn count(state: &mut State, task: u8, token: u8) {
    let bit = 1 << token;
    if state.notes[usize::from(task)].counted & bit != 0 {
        state.note(Violation::CountedTwice);
    }
    state.notes[usize::from(task)].counted |= bit;
}

/// Memory is empty, the calls are gone, the table and the worker processes are there.
fn new_life(model: &Handout, state: &mut State, crashed: bool) {
    for worker in 0..model.workers {
        if let Some(Call::Checked { attempt, .. }) = state.calls[worker].take() {
            state.attempts[worker].push(attempt);
        }
        state.unsure[worker] = false;
        state.dead[worker] = false;
    }
    if crashed {
        let fences: Vec<Option<u8>> = state.rows.iter().map(|row| row.map(|row| row.fence)).collect();
        let running: Vec<(u8, u8)> = state
            .every_attempt()
            .filter(|attempt| fences[usize::from(attempt.task)] == Some(attempt.fence))
            .map(|attempt| (attempt.task, attempt.token))
            .collect();
        for (task, notes) in state.notes.iter_mut().enumerate() {
            let tokens =
                running.iter().filter(|(of, _)| usize::from(*of) == task).map(|(_, token)| 1_u64 << token);
            let all = tokens.fold(notes.crashed, |all, bit| all | bit);
            notes.crashes += u8::from(all != notes.crashed);
            notes.crashed = all;
        }
        state.rows.iter_mut().flatten().for_each(|row| row.old = true);
    }
    state.every_attempt().for_each(|attempt| attempt.orphan = true);
    state.memory = Memory::empty(model);
    state.memory.rescan = true;
    state.scheduler = Scheduler::default();
    state.next_token = if model.keeps(Mutation::TokensRestart) { state.next_token + 1 } else { 1 };
}
