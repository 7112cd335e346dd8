//! Claims: ids from memory, rows from the table, and every reason why a row is not handed out after all.

use std::collections::HashMap;

use pg_task_rules::Micros;
use pg_task_rules::TaskId;
use pg_task_rules::board::Claim;
use pg_task_rules::board::ClaimedRow;
use pg_task_rules::inbox::Hint;
use pg_task_rules::names::QueueName;
use pgrx::pg_sys;
use pgrx::pg_sys::Datum;

use super::unsettled;
use crate::background;
use crate::guc;
use crate::jsonb;
use crate::jsonb::StepName;
use crate::shmem;
use crate::shmem::Slot;
use crate::spi;
use crate::spi::Connected;
use crate::spi::Statement;

thread_local! {
    static READ: Statement = const { Statement::new(
        c"SELECT t.id, t.fence, t.tried, t.wakeup_at, t.queue, t.step, t.priority, t.locked_by IS NOT NULL, t.updated_at \
          FROM pg_task.task AS t WHERE t.id OPERATOR(pg_catalog.=) ANY ($1) AND t.error IS NULL",
        &[pg_sys::UUIDARRAYOID],
    ) };
    static WRITE: Statement = const { Statement::new(
        c"UPDATE pg_task.task AS t SET tried = t.tried OPERATOR(pg_catalog.+) 1, fence = t.fence OPERATOR(pg_catalog.+) 1, \
            updated_at = pg_catalog.now(), \
            locked_by = CASE WHEN t.tried OPERATOR(pg_catalog.<) d.retries THEN $4 END, \
            locked_at = CASE WHEN t.tried OPERATOR(pg_catalog.<) d.retries THEN pg_catalog.now() END, \
            error = CASE WHEN t.tried OPERATOR(pg_catalog.>=) d.retries \
                THEN pg_catalog.format('the worker or the server was lost while it ran this step (attempt %s)', t.tried) END \
          FROM unnest($1, $2, $3) AS d (id, fence, retries) \
          WHERE t.id OPERATOR(pg_catalog.=) d.id AND t.fence OPERATOR(pg_catalog.=) d.fence \
          RETURNING t.id, t.fence, t.error IS NULL",
        &[pg_sys::UUIDARRAYOID, pg_sys::INT8ARRAYOID, pg_sys::INT4ARRAYOID, pg_sys::UUIDOID],
    ) };
}

/// A task to run, with what its worker is told. The datums live as long as SPI is connected.
pub struct Task {
    /// Its claim.
    pub claim: Claim,
    /// The row's fence.
    pub fence: i64,
    /// Attempts before this one.
    pub tried: i32,
    /// When it was due.
    pub wakeup_at: Micros,
    /// Its queue, a `text`.
    pub queue: Datum,
    /// Its step, a `jsonb`.
    pub step: Datum,
}

/// Why a claimed row is not handed out.
enum Not {
    /// It changed under the claim: it is to be read again.
    Stable,
    /// It is gone or parked.
    Runnable,
    /// It is due, or to be looked at again, at a later time or in another queue.
    Now(Hint),
    /// The worker does not know the step.
    Known(StepName),
}

/// Hands out up to `want` tasks: fewer only if there are no more, and then the server knows that the worker is idle.
pub fn claim(slot: Slot, spi: &Connected, worker: usize, want: u32) -> Vec<Task> {
    let mut tasks = Vec::with_capacity(want as usize);
    loop {
        let left = want - tasks.len() as u32;
        let (mut more, popped) = claim_once(slot, spi, worker, left);
        tasks.append(&mut more);
        if popped < left || tasks.len() as u32 == want {
            break;
        }
        // Some ids had no row to run: others may wait behind them.
    }
    let left = want - tasks.len() as u32;
    slot.with_board(|board| board.note_wanted(worker, left));
    tasks
}

/// Takes up to `want` ids from the board; returns the tasks among them that can be run, and how many ids there were.
fn claim_once(slot: Slot, spi: &Connected, worker: usize, want: u32) -> (Vec<Task>, u32) {
    let now = background::now();
    let mut claims = Vec::with_capacity(want as usize);
    let left = slot.with_board(|board| {
        board.claim(worker, want, now, &mut claims);
        board.head.ready
    });
    if left < slot.control().low_water.load(std::sync::atomic::Ordering::Relaxed) {
        slot.wake_scheduler();
    }
    if claims.is_empty() {
        return (Vec::new(), 0);
    }
    // From here on an abort gives them back.
    unsettled(slot, |unsettled| unsettled.claims.extend_from_slice(&claims));

    // A new snapshot: what was hinted at has committed before.
    let arguments = [spi::uuid_array(claims.iter().map(|claim| &claim.id))];
    let rows = READ.with(|statement| statement.run(spi, &arguments, false));
    let by_id: HashMap<TaskId, usize> =
        (0..rows.len()).filter_map(|row| Some((rows.uuid(row, 1)?, row))).collect();

    let mut tasks: Vec<Task> = Vec::with_capacity(claims.len());
    let mut names: Vec<StepName> = Vec::with_capacity(claims.len());
    let mut in_writing: Vec<usize> = Vec::new();
    let mut rejected: Vec<(Claim, Not)> = Vec::new();
    for claim in &claims {
        let Some(&row) = by_id.get(&claim.id) else {
            rejected.push((*claim, Not::Runnable));
            continue;
        };
        let (Some(step), Some(queue)) = (rows.datum(row, 6), rows.datum(row, 5)) else { continue };
        let wakeup_at = rows.int8(row, 4).unwrap_or(0);
        let locked = rows.bool(row, 8);
        let priority = rows.int2(row, 7).unwrap_or(0);
        let trusted = shmem::trust_locks_until();
        let later = if wakeup_at > now {
            Some(wakeup_at)
        } else if locked && now < trusted {
            // Its worker may have lived through the restart.
            Some(trusted)
        } else {
            None
        };
        if let Some(due) = later {
            let queue = rows.text(row, 5).as_deref().and_then(QueueName::new).unwrap_or(QueueName::EMPTY);
            rejected.push((*claim, Not::Now(Hint { due, id: claim.id, priority, queue })));
            continue;
        }
        // SAFETY: the column is a jsonb.
        let Some(name) = (unsafe { jsonb::step_name(step) }) else {
            rejected.push((*claim, Not::Runnable));
            continue;
        };
        if locked || rows.int8(row, 9).unwrap_or(0) < shmem::crash_barrier() {
            in_writing.push(tasks.len());
        }
        names.push(name);
        tasks.push(Task {
            claim: *claim,
            fence: rows.int8(row, 2).unwrap_or(0),
            tried: rows.int4(row, 3).unwrap_or(0),
            wakeup_at,
            queue,
            step,
        });
    }

    let row_queues: Vec<(QueueName, i16)> = tasks
        .iter()
        .map(|task| {
            let row = by_id[&task.claim.id];
            // SAFETY: the column is a text.
            let name = unsafe { spi::text_from(task.queue) };
            (QueueName::new(&name).unwrap_or(QueueName::EMPTY), rows.int2(row, 7).unwrap_or(0))
        })
        .collect();
    let mut keep = vec![true; tasks.len()];
    let mut limits = vec![0; tasks.len()];
    slot.with_board(|board| {
        for (index, task) in tasks.iter().enumerate() {
            let (queue, priority) = &row_queues[index];
            let known = board.workers[worker].knows(names[index].kind);
            let moved = board
                .claim_of(&task.claim.id)
                .is_some_and(|entry| entry.priority != *priority || board.queue_name(entry.queue) != *queue);
            keep[index] = known && !moved;
            limits[index] = board.workers[worker].retry_limit(names[index].kind).unwrap_or(0);
            if moved {
                let hint =
                    Hint { due: task.wakeup_at, id: task.claim.id, priority: *priority, queue: *queue };
                rejected.push((task.claim, Not::Now(hint)));
            } else if !known {
                rejected.push((task.claim, Not::Known(names[index])));
            } else {
                let row = ClaimedRow { fence: task.fence, kind: names[index].kind, counted: false };
                board.note_row(&task.claim, &row);
            }
        }
    });
    in_writing.retain(|&index| keep[index]);
    if !in_writing.is_empty() {
        claim_in_writing(
            slot,
            spi,
            worker,
            &mut tasks,
            &names,
            &limits,
            &in_writing,
            &mut keep,
            &mut rejected,
        );
    }
    reject(slot, rejected);
    let mut keep = keep.into_iter();
    tasks.retain(|_| keep.next().unwrap_or(false));
    (tasks, claims.len() as u32)
}

/// Counts the attempts of tasks that may have taken the server or their worker down, before they are run again.
#[expect(clippy::too_many_arguments, reason = "one step of `claim`, in a function for its length")]
fn claim_in_writing(
    slot: Slot,
    spi: &Connected,
    worker: usize,
    tasks: &mut [Task],
    names: &[StepName],
    limits: &[i32],
    chosen: &[usize],
    keep: &mut [bool],
    rejected: &mut Vec<(Claim, Not)>,
) {
    let lost_limit = guc::LOST_LIMIT.get();
    let id = slot.with_board(|board| board.workers[worker].id);
    // `tried` reaches the limit + 1 by the lost attempts themselves: then it has had all its chances.
    let retries = chosen.iter().map(|&index| spi::int(limits[index].max(lost_limit).saturating_add(1)));
    let arguments = [
        spi::uuid_array(chosen.iter().map(|&index| &tasks[index].claim.id)),
        spi::int8_array(chosen.iter().map(|&index| tasks[index].fence)),
        spi::nullable_array(retries, spi::ElementType::Int4),
        Some(spi::uuid(&id)),
    ];
    let rows = WRITE.with(|statement| statement.run(spi, &arguments, false));
    let written: HashMap<TaskId, (i64, bool)> = (0..rows.len())
        .filter_map(|row| Some((rows.uuid(row, 1)?, (rows.int8(row, 2)?, rows.bool(row, 3)))))
        .collect();
    for &index in chosen {
        match written.get(&tasks[index].claim.id) {
            Some((fence, true)) => {
                tasks[index].fence = *fence;
                let row = ClaimedRow { fence: *fence, kind: names[index].kind, counted: true };
                slot.with_board(|board| board.note_row(&tasks[index].claim, &row));
            }
            Some((_, false)) => {
                keep[index] = false;
                rejected.push((tasks[index].claim, Not::Runnable));
            }
            None => {
                keep[index] = false;
                rejected.push((tasks[index].claim, Not::Stable));
            }
        }
    }
}

/// Ends the claims of rows that are not handed out, at once: what is known about them is true whatever becomes of the transaction.
fn reject(slot: Slot, rejected: Vec<(Claim, Not)>) {
    if rejected.is_empty() {
        return;
    }
    let mut hints = Vec::new();
    slot.with_board(|board| {
        for (claim, not) in &rejected {
            match not {
                Not::Runnable => {
                    board.end_claim(&claim.id, claim.token);
                }
                Not::Stable => {
                    board.give_back(&claim.id, claim.token);
                }
                Not::Now(hint) => {
                    board.end_claim(&claim.id, claim.token);
                    hints.push(*hint);
                }
                Not::Known(name) => {
                    board.misfit(&claim.id, claim.token, name.kind, name.label);
                }
            }
        }
    });
    slot.with_inbox(|inbox| hints.iter().for_each(|hint| _ = inbox.push(hint)));
    slot.wake_scheduler();
}
