//! Claims: ids from memory, rows from the table, and every reason why a row is not handed out after all.

use std::rc::Rc;

use pg_task_rules::Micros;
use pg_task_rules::TaskId;
use pg_task_rules::board::Claim;
use pg_task_rules::board::ClaimedRow;
use pg_task_rules::board::Leaving;
use pg_task_rules::board::Look;
use pg_task_rules::board::QueueId;
use pg_task_rules::board::Taken;
use pg_task_rules::board::Turn;
use pg_task_rules::board::WorkerSlot;
use pg_task_rules::inbox::Hint;
use pg_task_rules::names::Group;
use pg_task_rules::names::Key;
use pg_task_rules::names::Kind;
use pg_task_rules::names::Label;
use pg_task_rules::names::QueueName;
use pg_task_rules::place::Place;
use pgrx::pg_sys;
use pgrx::pg_sys::Datum;

use super::Caller;
use super::End;
use super::UNSETTLED;
use super::given_up;
use super::given_up::GivenUp;
use super::output::Output;
use super::output::Task;
use super::unsettled;
use super::written;
use crate::background;
use crate::defaults;
use crate::defaults::Defaults;
use crate::guc;
use crate::jsonb;
use crate::options;
use crate::shmem;
use crate::shmem::Slot;
use crate::spi;
use crate::spi::Connected;
use crate::spi::Statement;
use crate::task_table::Column;
use crate::task_table::TaskRow;
use crate::task_table::TaskTable;

/// What one call hands out at most, in bytes of steps: a server and a worker can hold that without a thought.
const MAX_BYTES: usize = 8 << 20;

/// Ids that are taken off the board at a time.
const CHUNK: u32 = 1_000;

/// Why a claimed row is not handed out.
pub enum Not {
    /// It changed under the claim, or there was no more room in the answer: it is to be read again.
    Now,
    /// It is gone or parked.
    Runnable,
    /// It is due, or to be looked at again, at a later time or in another queue.
    Here(Hint),
    /// The worker does not know the step, or it is at its limit.
    Known(Kind, Label),
    /// Another task of its group comes first, or its key is at its limit: what comes next is found by a look.
    Turn(Look),
}

/// What came of a call's claims.
#[derive(Default)]
pub struct Claimed {
    /// Tasks that were handed out.
    pub count: u32,
    /// The answer is full: there may be more.
    pub more: bool,
}

/// A claim that is to be written into its row.
pub struct InWriting {
    /// The claim.
    pub claim: Claim,
    /// The row's fence.
    pub fence: i64,
    /// The step.
    pub kind: Kind,
    /// Where the row was.
    pub place: Place,
    /// The task's own settings, a `jsonb`.
    pub options: Option<Datum>,
    /// When to look at it again, if its row is another one by now.
    pub again: Hint,
}

thread_local! {
    // Nobody waits here for a user's open transaction.
    static PARK_OVERDUE: Statement = const { Statement::new(
        c"UPDATE pg_task.task AS t SET fence = t.fence OPERATOR(pg_catalog.+) 1, updated_at = pg_catalog.now(), \
            locked_by = NULL, locked_at = NULL, \
            error = pg_catalog.format('the task was not begun before its deadline, %s', d.deadline) \
          FROM unnest($1, $2, $3) AS d (id, fence, deadline) \
          WHERE t.id OPERATOR(pg_catalog.=) d.id AND t.fence OPERATOR(pg_catalog.=) d.fence AND t.error IS NULL \
            AND t.id OPERATOR(pg_catalog.=) ANY (ARRAY( \
                SELECT f.id FROM pg_task.task AS f WHERE f.id OPERATOR(pg_catalog.=) ANY ($1) FOR UPDATE SKIP LOCKED)) \
          RETURNING t.id",
        &[pg_sys::UUIDARRAYOID, pg_sys::INT8ARRAYOID, pg_sys::TIMESTAMPTZARRAYOID],
    ) };
}

/// One call's hand-out while it is put together.
struct HandOut<'a> {
    slot: Slot,
    caller: &'a Caller,
    worker: Box<WorkerSlot>,
    queues: Vec<(QueueId, QueueName)>,
    /// Claims that end with this call.
    leaving: Leaving,
    /// Steps of which only so many may run at once.
    limited: Vec<Kind>,
    /// Tasks whose claims are written into their rows before they are handed out.
    in_writing: Vec<InWriting>,
    /// Tasks whose deadlines have passed, to be parked.
    overdue: Vec<GivenUp>,
    /// Tasks whose steps' code is to be asked what to do instead of being parked.
    given_up: Vec<GivenUp>,
    noted: Vec<(Claim, ClaimedRow)>,
    /// Keys of which a task waits aside now: others may pass it.
    passed: Vec<(Claim, Key)>,
    /// Of those that are noted, the ones that are not run.
    asked: Vec<Claim>,
    rejected: Vec<(Claim, Not)>,
    bytes: usize,
    /// What queues say for their tasks.
    defaults: Option<Rc<Defaults>>,
}

/// Hands out up to `want` tasks: fewer only if there are no more, and then the server knows that the worker is idle.
pub fn claim(slot: Slot, spi: &Connected, caller: &Caller, want: u32, output: &mut Output) -> Claimed {
    let mut claimed = Claimed::default();
    let (worker, leaving) =
        slot.with_board(|board| (Box::new(board.workers[caller.place]), board.leaving(ending().into_iter())));
    let mut hand_out = HandOut {
        slot,
        caller,
        worker,
        queues: Vec::new(),
        leaving,
        limited: Vec::new(),
        in_writing: Vec::new(),
        overdue: Vec::new(),
        given_up: Vec::new(),
        noted: Vec::new(),
        passed: Vec::new(),
        asked: Vec::new(),
        rejected: Vec::new(),
        bytes: 0,
        defaults: defaults::of(slot),
    };
    let mut table: Option<TaskTable> = None;
    let mut taken: Vec<Taken> = Vec::new();
    loop {
        let ask = want.saturating_sub(claimed.count + hand_out.to_come()).min(CHUNK);
        if ask == 0 {
            break;
        }
        taken.clear();
        hand_out.take(ask, &mut taken);
        if !taken.is_empty() {
            // From here on an abort gives them back.
            unsettled(slot, |unsettled| unsettled.claims.extend(taken.iter().map(|taken| taken.claim)));
            let table = match &mut table {
                // An id that was taken now stands for a row as it is now, not as it was at the round before: that may have gone on.
                Some(table) => {
                    table.look_anew();
                    table
                }
                // Some claims are written.
                none => none.insert(TaskTable::to_write()),
            };
            for taken in &taken {
                claimed.count += u32::from(hand_out.one(table, taken, output));
            }
            hand_out.settle();
        }
        claimed.more = hand_out.bytes >= MAX_BYTES;
        // Ids without a row to run do not count: others may wait behind them.
        if (taken.len() as u32) < ask || claimed.more {
            break;
        }
    }
    if let Some(table) = table {
        table.close();
    }
    if !hand_out.overdue.is_empty() {
        hand_out.park_overdue(spi);
        hand_out.settle();
    }
    if !hand_out.in_writing.is_empty() {
        claimed.count += hand_out.claim_in_writing(spi, output);
        hand_out.settle();
    }
    if !hand_out.given_up.is_empty() {
        claimed.count += hand_out.ask_instead(spi, output);
        hand_out.settle();
    }
    // What is full is not idle: the worker is told that there is more.
    let left = if claimed.more { 0 } else { want - claimed.count };
    // It comes back with the results of what it is given now. To wake it meanwhile would cost more than the call that it makes anyway.
    let gap = guc::micros(&guc::WAKE_GAP);
    let returns_at = if claimed.count > 0 { background::now() + gap } else { 0 };
    slot.with_board(|board| board.note_wanted(caller.place, left, returns_at));
    claimed
}

impl HandOut<'_> {
    /// Takes ids off the board.
    fn take(&mut self, want: u32, taken: &mut Vec<Taken>) {
        let now = background::now();
        let limits_steps = self.slot.control().limits_steps.load(std::sync::atomic::Ordering::Relaxed);
        let Self { caller, queues, leaving, limited, .. } = self;
        let (left, opens) = self.slot.with_board(|board| {
            if board.workers[caller.place].generation == caller.generation {
                board.claim_beside(caller.place, want, now, leaving, taken);
            }
            if limits_steps {
                limited.clear();
                limited.extend(board.limited_kinds());
            }
            for taken in taken.iter() {
                if queues.last().is_none_or(|(queue, _)| *queue != taken.queue)
                    && !queues.iter().any(|(queue, _)| *queue == taken.queue)
                {
                    queues.push((taken.queue, board.queue_name(taken.queue)));
                }
            }
            let opens = (taken.len() as u32) < want && board.next_opening(now).is_some();
            (board.head.ready, opens)
        });
        // There is more in the table, and less here than before, or not what this worker takes.
        let low_water = self.slot.control().low_water.load(std::sync::atomic::Ordering::Relaxed);
        // Or there will be more here at a moment that the scheduler does not know of.
        if left < low_water || (low_water > 0 && (taken.len() as u32) < want) || opens {
            self.slot.wake_scheduler();
        }
    }

    /// Reads a task's row and hands it out, if nothing speaks against it. Whether it did.
    fn one(&mut self, table: &mut TaskTable, taken: &Taken, output: &mut Output) -> bool {
        let claim = taken.claim;
        if self.bytes >= MAX_BYTES {
            self.rejected.push((claim, Not::Now));
            return false;
        }
        let Some(row) = table.row(&claim.id, taken.place) else {
            self.rejected.push((claim, Not::Runnable));
            return false;
        };
        let key = row.datum(Column::Options).and_then(|_| row.key());
        let (kind, task) = match self.judge(&row, taken) {
            Ok(judged) => judged,
            Err(not) => {
                if matches!(not, Not::Known(..)) {
                    self.passed.extend(key.map(|key| (claim, key)));
                }
                self.rejected.push((claim, not));
                return false;
            }
        };
        let (locked, place) = (row.datum(Column::LockedBy).is_some(), row.place());
        let updated_at = row.int8(Column::UpdatedAt).unwrap_or(0);
        if let Some(group) = task.options.and(row.group())
            && let Err(not) = self.turn(table, &claim, group, taken)
        {
            self.rejected.push((claim, not));
            return false;
        }
        // SAFETY: the column is a jsonb, and the row stays in its buffer.
        let deadline = task.options.and_then(|options| unsafe { options::deadline(options) });
        let deadline = deadline.filter(|&deadline| deadline < background::now());
        if deadline.is_some() && !self.worker.gives_up {
            let overdue = self.given_up(taken, task.fence, kind, deadline);
            self.overdue.push(overdue);
            return false;
        }
        if let Some(key) = key {
            let (now, leaving) = (background::now(), &self.leaving);
            if !self.slot.with_board(|board| board.admit_key(&claim, key, now, leaving)) {
                self.rejected.push((claim, Not::Turn(Look::Key(key))));
                return false;
            }
        }
        if self.limited.contains(&kind) {
            let (now, leaving) = (background::now(), &self.leaving);
            if !self.slot.with_board(|board| board.admit(&claim, kind, now, leaving)) {
                // SAFETY: the column is a jsonb, and the row stays in its buffer.
                let name = unsafe { jsonb::step_name(task.step) };
                let label = name.map_or(Label::EMPTY, |name| name.label());
                self.rejected.push((claim, Not::Known(kind, label)));
                return false;
            }
        }
        if deadline.is_some() {
            self.weigh(&task);
            let overdue = self.given_up(taken, task.fence, kind, deadline);
            self.given_up.push(overdue);
            return false;
        }
        if locked || updated_at < shmem::crash_barrier() {
            self.weigh(&task);
            // The row leaves its buffer before it is written.
            // SAFETY: the column is a jsonb.
            let options = task.options.map(|options| unsafe { jsonb::copy(options) });
            let again = self.again(taken);
            self.in_writing.push(InWriting { claim, fence: task.fence, kind, place, options, again });
            return false;
        }
        let noted = ClaimedRow { fence: task.fence, kind, place, counted: false };
        self.noted.push((claim, noted));
        self.weigh(&task);
        self.hand_over(&task, output);
        true
    }

    /// Counts what the task adds to the answer, now or at the end of the call.
    fn weigh(&mut self, task: &Task) {
        // SAFETY: the column is a jsonb.
        self.bytes += 64 + unsafe { jsonb::size(task.step) };
        if let Some(options) = task.options {
            // SAFETY: as above.
            self.bytes += unsafe { jsonb::size(options) };
        }
    }

    /// How many are handed out at the end of the call, if nothing comes between.
    fn to_come(&self) -> u32 {
        (self.in_writing.len() + self.given_up.len()) as u32
    }

    fn given_up(&self, taken: &Taken, fence: i64, kind: Kind, deadline: Option<Micros>) -> GivenUp {
        GivenUp { claim: taken.claim, fence, kind, deadline, again: self.again(taken) }
    }

    /// When to look at a task again whose row someone is changing.
    fn again(&self, taken: &Taken) -> Hint {
        let queue = self.queues.iter().find(|(queue, _)| *queue == taken.queue);
        let queue = queue.map_or(QueueName::EMPTY, |(_, name)| *name);
        Hint { due: background::now() + written::BUSY, id: taken.claim.id, priority: taken.priority, queue }
    }

    /// What the row says, or why it is not handed out.
    fn judge(&self, row: &TaskRow<'_>, taken: &Taken) -> Result<(Kind, Task), Not> {
        let (Some(step), Some(queue)) = (row.datum(Column::Step), row.datum(Column::Queue)) else {
            return Err(Not::Runnable);
        };
        if row.datum(Column::Error).is_some() {
            return Err(Not::Runnable);
        }
        // SAFETY: the column is a text, and the row stays in its buffer.
        let name: &[u8] = unsafe { spi::bytes_from(queue) };
        let priority = row.int2(Column::Priority).unwrap_or(0);
        let wakeup_at = row.int8(Column::WakeupAt).unwrap_or(0);
        let now = background::now();
        let later = later(row, wakeup_at, now);
        let known_queue = self.queues.iter().find(|(queue, _)| *queue == taken.queue).map(|(_, name)| *name);
        let moved =
            priority != taken.priority || known_queue.is_none_or(|known| known.as_str().as_bytes() != name);
        if moved || later.is_some() {
            let queue = std::str::from_utf8(name).ok().and_then(QueueName::new).unwrap_or(QueueName::EMPTY);
            let due = later.unwrap_or(wakeup_at);
            return Err(Not::Here(Hint { due, id: taken.claim.id, priority, queue }));
        }
        // SAFETY: the column is a jsonb, and the row stays in its buffer.
        let step = unsafe { jsonb::unpacked(step) };
        // SAFETY: as above.
        let name = unsafe { jsonb::step_name(step) }.ok_or(Not::Runnable)?;
        let kind = name.kind();
        if !self.worker.knows(kind) {
            return Err(Not::Known(kind, name.label()));
        }
        let (fence, tried) = (row.int8(Column::Fence).unwrap_or(0), row.int4(Column::Tried).unwrap_or(0));
        let options = row.datum(Column::Options);
        Ok((kind, Task { claim: taken.claim, fence, tried, wakeup_at, queue, step, options }))
    }

    /// Whether it is the turn of a task of a group: no other of its tasks is claimed, and none that the table has is older.
    fn turn(&mut self, table: &mut TaskTable, claim: &Claim, group: Group, taken: &Taken) -> Result<(), Not> {
        let (now, leaving) = (background::now(), &self.leaving);
        match self.slot.with_board(|board| board.take_turn(claim, group, now, leaving)) {
            Turn::Taken if table.oldest(group).is_some_and(|oldest| oldest.id == claim.id) => Ok(()),
            Turn::Taken | Turn::Waits => Err(Not::Turn(Look::Group(group))),
            Turn::NotBefore(due) => {
                let known = self.queues.iter().find(|(queue, _)| *queue == taken.queue);
                let queue = known.map_or(QueueName::EMPTY, |(_, name)| *name);
                Err(Not::Here(Hint { due, id: claim.id, priority: taken.priority, queue }))
            }
        }
    }

    fn hand_over(&self, task: &Task, output: &mut Output) {
        let mut task = *task;
        if let Some(defaults) = &self.defaults {
            task.options = defaults.options(task.queue, task.options);
        }
        output.task(&task);
    }

    /// Parks the tasks whose deadlines have passed. A row that someone is changing is looked at again.
    fn park_overdue(&mut self, spi: &Connected) {
        let overdue = std::mem::take(&mut self.overdue);
        let deadlines = overdue.iter().map(|overdue| overdue.deadline.and_then(spi::int));
        let arguments = [
            spi::uuid_array(overdue.iter().map(|overdue| &overdue.claim.id)),
            spi::int8_array(overdue.iter().map(|overdue| overdue.fence)),
            spi::nullable_array(deadlines, spi::ElementType::Timestamp),
        ];
        let rows = PARK_OVERDUE.with(|statement| statement.run(spi, &arguments, false));
        let parked: Vec<TaskId> = (0..rows.len()).filter_map(|row| rows.uuid(row, 1)).collect();
        for GivenUp { claim, again, .. } in overdue {
            let not = if parked.contains(&claim.id) { Not::Runnable } else { Not::Here(again) };
            self.rejected.push((claim, not));
        }
    }

    /// Counts the attempts of tasks that may have taken the server or their worker down, then hands them out.
    fn claim_in_writing(&mut self, spi: &Connected, output: &mut Output) -> u32 {
        let chosen = std::mem::take(&mut self.in_writing);
        let limit = |kind: &Kind| self.worker.retry_limit(*kind).unwrap_or(0);
        let rows = written::write(spi, &self.worker.id, &chosen, limit, self.worker.gives_up);
        let mut count = 0;
        for InWriting { claim, fence, kind, options, again, .. } in chosen {
            if rows.is_exhausted(&claim) {
                self.given_up.push(GivenUp { claim, fence, kind, deadline: None, again });
                continue;
            }
            match rows.of(&claim, options) {
                written::Written::Run(task, place) => {
                    let noted = ClaimedRow { fence: task.fence, kind, place, counted: true };
                    self.noted.push((claim, noted));
                    self.hand_over(&task, output);
                    count += 1;
                }
                written::Written::Parked => self.rejected.push((claim, Not::Runnable)),
                written::Written::Changed(hint) => self.rejected.push((claim, Not::Here(hint))),
            }
        }
        count
    }

    /// Hands out tasks that are not to be run, but given up by their steps' code.
    fn ask_instead(&mut self, spi: &Connected, output: &mut Output) -> u32 {
        let chosen = std::mem::take(&mut self.given_up);
        let asked = given_up::read(spi, &chosen);
        let mut count = 0;
        for GivenUp { claim, kind, again, .. } in chosen {
            match asked.task(&claim.asked()) {
                Some((task, place)) => {
                    let noted = ClaimedRow { fence: task.fence, kind, place, counted: false };
                    self.noted.push((claim, noted));
                    self.asked.push(claim);
                    self.hand_over(&task, output);
                    count += 1;
                }
                None => self.rejected.push((claim, Not::Here(again))),
            }
        }
        count
    }

    /// Tells memory what the rows said. What is known about rejected ones is true whatever becomes of the transaction.
    fn settle(&mut self) {
        let Self { slot, noted, passed, asked, rejected, .. } = self;
        let slot = *slot;
        let mut hints = Vec::with_capacity(rejected.len());
        let wants_look = slot.with_board(|board| {
            for (claim, row) in noted.drain(..) {
                board.note_row(&claim, &row);
            }
            asked.drain(..).for_each(|claim| board.note_asked(&claim));
            for (claim, not) in rejected.iter() {
                board.withdraw(claim);
                match not {
                    Not::Runnable => _ = board.end_claim(&claim.id, claim.token),
                    Not::Now => _ = board.give_back(&claim.id, claim.token),
                    Not::Here(hint) => {
                        board.postpone(claim);
                        hints.push(*hint);
                    }
                    Not::Known(kind, label) => {
                        if !board.misfit(&claim.id, claim.token, *kind, *label) {
                            // Memory has no room for it: found at once, it would come here again and again. The table is read again anyway.
                            passed.retain(|(of, _)| of.id != claim.id);
                        }
                    }
                    Not::Turn(look) => {
                        board.end_claim(&claim.id, claim.token);
                        // The claim that it waits for may have ended since.
                        board.ask_look(*look);
                    }
                }
            }
            passed.drain(..).for_each(|(_, key)| board.ask_look(Look::Key(key)));
            board.wants_look()
        });
        if rejected.is_empty() {
            if wants_look {
                slot.wake_scheduler();
            }
            return;
        }
        rejected.clear();
        slot.with_inbox(|inbox| hints.iter().for_each(|hint| _ = inbox.push(hint)));
        slot.wake_scheduler();
    }
}

/// When the row is to be looked at again, if not now.
fn later(row: &TaskRow<'_>, wakeup_at: Micros, now: Micros) -> Option<Micros> {
    if wakeup_at > now {
        return Some(wakeup_at);
    }
    // Its worker may have lived through the restart.
    let trusted = shmem::trust_locks_until();
    // SAFETY: the column is a uuid.
    let holder = row.datum(Column::LockedBy).map(|holder| unsafe { spi::uuid_from(holder) });
    (now < trusted && holder.is_some_and(|holder| holder != given_up::NOBODY)).then_some(trusted)
}

/// The claims whose results this call has brought.
fn ending() -> Vec<(TaskId, i64)> {
    UNSETTLED.with_borrow(|unsettled| {
        unsettled
            .ends
            .iter()
            .filter(|(.., end)| !matches!(end, End::Advance(_)))
            .map(|(id, token, _)| (*id, *token))
            .collect()
    })
}
