//! Results of finished steps: checked against memory, written, settled at commit.

use std::sync::atomic::Ordering::Relaxed;

use pg_task_rules::Micros;
use pg_task_rules::TaskId;
use pg_task_rules::WorkerId;
use pg_task_rules::board::Advance;
use pg_task_rules::board::Entry;
use pg_task_rules::inbox::Hint;
use pg_task_rules::names::Kind;
use pg_task_rules::names::Label;
use pg_task_rules::names::QueueName;
use pg_task_rules::place::Place;
use pg_task_rules::retry::Policy;
use pgrx::pg_sys;
use pgrx::pg_sys::Datum;
use rustc_hash::FxBuildHasher;
use rustc_hash::FxHashMap;
use rustc_hash::FxHashSet;

use super::End;
use super::output::Output;
use super::unsettled;
use crate::call::Call;
use crate::defaults;
use crate::error::Error;
use crate::failure;
use crate::failure::Failing;
use crate::history;
use crate::history::Done;
use crate::history::Ended;
use crate::history::History;
use crate::jsonb;
use crate::produce;
use crate::scheduler::unwrite;
use crate::shmem::Slot;
use crate::spi;
use crate::spi::Connected;
use crate::spi::ElementType;
use crate::spi::Statement;
use crate::spi::sql;
use crate::task_table::Deleted;
use crate::task_table::TaskTable;

const UPDATE_TYPES: &[pg_sys::Oid] = &[
    pg_sys::UUIDARRAYOID,
    pg_sys::INT8ARRAYOID,
    pg_sys::JSONBARRAYOID,
    pg_sys::TIMESTAMPTZARRAYOID,
    pg_sys::TEXTARRAYOID,
    pg_sys::INT4ARRAYOID,
    pg_sys::TEXTARRAYOID,
];

// A next step that is due now keeps its wakeup_at, so that no indexed column changes and the update stays on its page.
macro_rules! update {
    ($errors:literal) => {
        sql!(
            "UPDATE pg_task.task AS t SET \
                step = COALESCE(d.step, t.step), wakeup_at = COALESCE(d.wakeup_at, t.wakeup_at), error = d.error,",
            $errors,
            " tried = CASE WHEN d.step IS NOT NULL THEN 0 ELSE t.tried OPERATOR(pg_catalog.+) COALESCE(d.add, \
                    CASE WHEN t.locked_at OPERATOR(pg_catalog.=) t.updated_at THEN 0 ELSE 1 END) END, \
                fence = t.fence OPERATOR(pg_catalog.+) 1, locked_by = NULL, locked_at = NULL, updated_at = pg_catalog.now() \
              FROM unnest($1, $2, $3, $4, $5, $6, $7) AS d (id, fence, step, wakeup_at, error, add, errors) \
              WHERE t.id OPERATOR(pg_catalog.=) d.id AND t.fence OPERATOR(pg_catalog.=) d.fence \
              RETURNING t.id, t.fence, t.queue, t.priority, t.ctid"
        )
    };
}

thread_local! {
    static DELETE: Statement = const { Statement::new(
        c"DELETE FROM pg_task.task AS t USING unnest($1, $2) AS d (id, fence) \
          WHERE t.id OPERATOR(pg_catalog.=) d.id AND t.fence OPERATOR(pg_catalog.=) d.fence RETURNING t.id",
        &[pg_sys::UUIDARRAYOID, pg_sys::INT8ARRAYOID],
    ) };
    static STEPS: Statement = const { Statement::new(
        c"SELECT t.id, t.step FROM pg_task.task AS t WHERE t.id OPERATOR(pg_catalog.=) ANY ($1)",
        &[pg_sys::UUIDARRAYOID],
    ) };
    static UPDATE: Statement = const { Statement::new(
        update!(""),
        UPDATE_TYPES,
    ) };
    // The fence stays: the transition follows.
    static FORGET_DEADLINES: Statement = const { Statement::new(
        c"UPDATE pg_task.task AS t SET options = CASE WHEN t.options OPERATOR(pg_catalog.-) 'deadline'::pg_catalog.text OPERATOR(pg_catalog.<>) '{}' \
            THEN t.options OPERATOR(pg_catalog.-) 'deadline'::pg_catalog.text END \
          FROM unnest($1, $2) AS d (id, fence) \
          WHERE t.id OPERATOR(pg_catalog.=) d.id AND t.fence OPERATOR(pg_catalog.=) d.fence AND t.options OPERATOR(pg_catalog.?) 'deadline'",
        &[pg_sys::UUIDARRAYOID, pg_sys::INT8ARRAYOID],
    ) };
    // The table of an older version has no column for the last errors: they are named only where there are some.
    static UPDATE_ERRORS: Statement = const { Statement::new(
        update!(" errors = COALESCE(d.errors::pg_catalog.jsonb, t.errors),"),
        UPDATE_TYPES,
    ) };
}
/// What a step ended in. The numbers are those of the protocol.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// 0: the row goes away. With what the step has returned, a jsonb.
    Done(Option<Datum>),
    /// 1: the next step, now.
    Next(Datum),
    /// 2: the next step, at a moment.
    NextAt(Datum, Micros),
    /// 3: failed; again at a moment, unless the task's own policy says otherwise. 10: at exactly this moment, if there is another attempt.
    Retry { due: Micros, exact: bool, error: Option<String>, give_up: Option<Datum> },
    /// 4: failed for good: parked, unless there is a step to go on with instead.
    Park { error: String, give_up: Option<Datum> },
    /// 5: not run.
    Release,
    /// 6: the worker does not know the step.
    Unknown,
    /// 7: the step does not deserialise.
    Broken(String),
    /// 8: failed, and the step's own code has no retry left: the task's own policy may have some.
    GiveUp { error: String, give_up: Option<Datum>, due: Option<Micros> },
    /// 9: not yet; again at a moment, without an attempt.
    Snooze(Micros),
    /// What is made of 3, 4 or 8 when the task goes on with another step instead of being parked; 11 with a step.
    Instead(Datum),
    /// 11: not run, and the step's code has named no step to go on with instead.
    GivenUp(String),
}

/// A result as the worker brought it.
#[derive(Clone, Debug)]
pub struct StepResult {
    /// The task.
    pub id: TaskId,
    /// The row's fence when it was handed out.
    pub fence: i64,
    /// The attempt.
    pub token: i64,
    /// What came of it.
    pub outcome: Outcome,
}

/// Reads the arrays of an `exchange` call.
pub fn read(call: &Call) -> Result<Vec<StepResult>, Error> {
    let Some(ids) = call.array(2) else { return Ok(Vec::new()) };
    let column = |index: usize, name: &'static str| match call.array(index) {
        Some(values) if values.len() != ids.len() => {
            Err(Error::LengthMismatch { name, got: values.len(), other: "ids", want: ids.len() })
        }
        values => Ok(values),
    };
    let fences = column(3, "fences")?.ok_or(Error::NullArgument { name: "fences" })?;
    let tokens = column(4, "tokens")?.ok_or(Error::NullArgument { name: "tokens" })?;
    let outcomes = column(5, "outcomes")?;
    let steps = column(6, "steps")?;
    let delays = column(7, "delays")?;
    let errors = column(8, "errors")?;
    let at =
        |values: &Option<Vec<Option<Datum>>>, index: usize| values.as_ref().and_then(|values| values[index]);
    let needed = |value: Option<Datum>, name: &'static str, index: usize| {
        value.ok_or(Error::NullElement { name, position: index + 1 })
    };
    let mut seen = FxHashSet::with_capacity_and_hasher(ids.len(), FxBuildHasher);
    let mut results = Vec::with_capacity(ids.len());
    for (index, id) in ids.iter().enumerate() {
        // SAFETY: declared as uuid[].
        let id = unsafe { spi::uuid_from(needed(*id, "ids", index)?) };
        if !seen.insert(id) {
            return Err(Error::OutOfRange { name: "results for one id", low: 0, high: 1, got: 2 });
        }
        // A NULL among the outcomes must not pass for "done": the row would be deleted.
        let code = match &outcomes {
            Some(outcomes) => i64::from(needed(outcomes[index], "outcomes", index)?.value() as i16),
            None => 0,
        };
        let delay = || due_after(needed(at(&delays, index), "delays", index)?.value() as i64);
        let error = || {
            let error = needed(at(&errors, index), "errors", index)?;
            // SAFETY: declared as text[].
            Ok::<_, Error>(unsafe { spi::text_from(error) })
        };
        let step = || needed(at(&steps, index), "steps", index);
        let outcome = match code {
            0 => Outcome::Done(at(&steps, index)),
            1 => Outcome::Next(step()?),
            2 => Outcome::NextAt(step()?, delay()?),
            3 | 10 => Outcome::Retry {
                due: delay()?,
                exact: code == 10,
                // SAFETY: declared as text[].
                error: at(&errors, index).map(|error| unsafe { spi::text_from(error) }),
                give_up: at(&steps, index),
            },
            4 => Outcome::Park { error: error()?, give_up: at(&steps, index) },
            5 => Outcome::Release,
            6 => Outcome::Unknown,
            7 => Outcome::Broken(error()?),
            8 => Outcome::GiveUp {
                error: error()?,
                give_up: at(&steps, index),
                due: at(&delays, index).map(|delay| due_after(delay.value() as i64)).transpose()?,
            },
            9 => Outcome::Snooze(delay()?),
            11 => match at(&steps, index) {
                Some(step) => Outcome::Instead(step),
                None => Outcome::GivenUp(error()?),
            },
            got => return Err(Error::OutOfRange { name: "outcomes", low: 0, high: 11, got }),
        };
        results.push(StepResult {
            id,
            fence: needed(fences[index], "fences", index)?.value() as i64,
            token: needed(tokens[index], "tokens", index)?.value() as i64,
            outcome: valid(outcome),
        });
    }
    Ok(results)
}

/// Reads the arguments of a `finish` call: a next step that cannot be stored fails the call, whose transaction is not to commit then.
pub fn read_one(call: &Call) -> Result<StepResult, Error> {
    let int8 =
        |index: usize, name: &'static str| call.required(index, name).map(|datum| datum.value() as i64);
    let step = || {
        let step = call.required(5, "step")?;
        // SAFETY: declared as jsonb.
        unsafe { jsonb::check(step) }.map(|()| step)
    };
    let outcome = match i64::from(call.int4(4, "outcome")?) {
        0 => {
            let result = call.datum(5);
            if let Some(result) = result {
                // SAFETY: declared as jsonb.
                unsafe { jsonb::check_result(result) }?;
            }
            Outcome::Done(result)
        }
        1 => Outcome::Next(step()?),
        2 => Outcome::NextAt(step()?, due_after(int8(6, "delay")?)?),
        got => return Err(Error::OutOfRange { name: "outcome", low: 0, high: 2, got }),
    };
    Ok(StepResult { id: call.uuid(1, "id")?, fence: int8(2, "fence")?, token: int8(3, "token")?, outcome })
}

fn due_after(delay: i64) -> Result<Micros, Error> {
    if delay < 0 {
        return Err(Error::NegativeDelay);
    }
    // A delay beyond it is as good as for ever.
    Ok(spi::transaction_time().saturating_add(delay).min(produce::LAST_MOMENT))
}

/// A next step or a result that cannot be stored parks its task with the reason; the rest of the call goes on.
fn valid(outcome: Outcome) -> Outcome {
    let (what, checked) = match &outcome {
        Outcome::Next(step)
        | Outcome::NextAt(step, _)
        | Outcome::Instead(step)
        | Outcome::Retry { give_up: Some(step), .. }
        | Outcome::Park { give_up: Some(step), .. }
        // SAFETY: declared as jsonb[].
        | Outcome::GiveUp { give_up: Some(step), .. } => ("next step", unsafe { jsonb::check(*step) }),
        // SAFETY: as above.
        Outcome::Done(Some(result)) => ("result", unsafe { jsonb::check_result(*result) }),
        _ => return outcome,
    };
    match checked {
        Ok(()) => outcome,
        Err(error) => Outcome::Park { error: format!("the {what} was not stored: {error}"), give_up: None },
    }
}

/// Writes the results and notes what memory is to learn at commit. `held` is what memory knows of each; `room` next steps may
/// stay with the worker. Returns the room that is left and how many results were refused.
pub fn write(
    slot: Slot,
    worker: &WorkerId,
    spi: &Connected,
    results: &mut [StepResult],
    held: &[Option<Entry>],
    room: u32,
    output: &mut Output,
) -> (u32, u64) {
    if results.is_empty() {
        return (room, 0);
    }
    let errors = decide(worker, results, held);
    let results = &*results;
    let mut writer = Writer {
        slot,
        worker: *worker,
        spi,
        results,
        held,
        errors,
        room,
        written: vec![false; results.len()],
        ends: Vec::with_capacity(results.len()),
        hints: Vec::new(),
    };
    let (mut deletes, mut updates) = (Vec::new(), Vec::new());
    for (index, (result, held)) in results.iter().zip(held).enumerate() {
        // A row that was deleted may be there again, another task under the same id.
        if held.is_some_and(|held| held.token != result.token || held.is_cancelled()) {
            continue;
        }
        match result.outcome {
            Outcome::Done(_) => deletes.push(index),
            Outcome::Release | Outcome::Unknown => {}
            _ => updates.push(index),
        }
    }
    writer.give_back();
    writer.delete(&mut deletes);
    writer.update(&mut updates, output);
    let refused = writer.refuse(output);
    let Writer { room, mut ends, mut hints, .. } = writer;
    unsettled(slot, |unsettled| {
        unsettled.ends.append(&mut ends);
        unsettled.hints.append(&mut hints);
    });
    (room, refused)
}

/// One call's results while they are written.
struct Writer<'a> {
    slot: Slot,
    worker: WorkerId,
    spi: &'a Connected,
    results: &'a [StepResult],
    held: &'a [Option<Entry>],
    /// Of results that are failures: their rows' column `errors`. Empty when none is.
    errors: Vec<Option<String>>,
    room: u32,
    /// Which results were accepted.
    written: Vec<bool>,
    ends: Vec<(TaskId, i64, End)>,
    hints: Vec<Hint>,
}

/// The end of a task that is gone, parked or asleep. Where memory knows no claim, the triggers of the table tell what is the next.
fn over(held: Option<Entry>) -> End {
    End::Over(held.map_or([None; 2], |held| held.looks()))
}

impl Writer<'_> {
    fn accept(&mut self, index: usize, end: End) {
        self.written[index] = true;
        self.ends.push((self.results[index].id, self.results[index].token, end));
    }

    /// Steps that were not run: nothing is written but what takes an earlier note about them back.
    fn give_back(&mut self) {
        let chosen: Vec<usize> = (0..self.results.len())
            .filter(|&index| {
                matches!(self.results[index].outcome, Outcome::Release | Outcome::Unknown)
                    && self.held[index].is_none_or(|held| held.token == self.results[index].token)
            })
            .collect();
        if chosen.is_empty() {
            return;
        }
        let unknown = |index: &&usize| matches!(self.results[**index].outcome, Outcome::Unknown);
        let ids: Vec<TaskId> = chosen.iter().filter(unknown).map(|&index| self.results[index].id).collect();
        let names = names(self.spi, &ids);
        // Of a claim that memory does not know nothing is to be undone.
        let claims: Vec<Entry> = chosen.iter().filter_map(|&index| self.held[index]).collect();
        unwrite(self.spi, &claims);
        for index in chosen {
            let end = match (&self.results[index].outcome, names.get(&self.results[index].id)) {
                (Outcome::Unknown, Some((kind, label))) => End::Misfit(*kind, *label),
                _ => End::Back,
            };
            self.accept(index, end);
        }
    }

    /// Tasks that are done: by their places where that is possible, else by one statement.
    fn delete(&mut self, deletes: &mut Vec<usize>) {
        if deletes.is_empty() {
            return;
        }
        let mut table = TaskTable::to_write();
        if table.can_delete() {
            let mut history = History::open(self.slot);
            deletes.retain(|&index| {
                let result = &self.results[index];
                let place = self.held[index].map_or(Place::UNKNOWN, |held| held.place);
                let deleted = table.delete(&result.id, place, result.fence) == Deleted::Yes;
                if deleted {
                    if let Some(history) = &mut history {
                        let row = table.current();
                        history.add(|column| row.datum(column), &Ended::Done(self.done(index)));
                    }
                    self.accept(index, over(self.held[index]));
                }
                !deleted
            });
            if let Some(history) = history {
                history.close(self.slot);
            }
        }
        table.close();
        if deletes.is_empty() {
            return;
        }
        let arguments = [
            spi::uuid_array(deletes.iter().map(|&index| &self.results[index].id)),
            spi::int8_array(deletes.iter().map(|&index| self.results[index].fence)),
        ];
        // The trigger of the table writes their history.
        let done: Vec<(TaskId, Done)> =
            deletes.iter().map(|&index| (self.results[index].id, self.done(index))).collect();
        let rows = history::finishing(done.into_iter(), || {
            DELETE.with(|statement| statement.run(self.spi, &arguments, false))
        });
        let gone: FxHashSet<TaskId> = (0..rows.len()).filter_map(|row| rows.uuid(row, 1)).collect();
        for &index in deletes.iter().filter(|&&index| gone.contains(&self.results[index].id)) {
            self.accept(index, over(self.held[index]));
        }
    }

    /// What the history is to say of a task that is done.
    fn done(&self, index: usize) -> Done {
        let held = self.held[index];
        Done {
            worker: self.worker,
            started_at: held.map(|held| held.since),
            is_counted: held.map(|held| held.is_counted()),
            result: match self.results[index].outcome {
                Outcome::Done(result) => result,
                _ => None,
            },
        }
    }

    /// Next steps that are due now, by their places where that is possible: with the row's new fence and place. The others are left in
    /// `updates`.
    fn go_on(&mut self, updates: &mut Vec<usize>) -> Vec<(usize, i64, Place)> {
        let mut went_on = Vec::with_capacity(updates.len());
        let mut table = TaskTable::to_write();
        if table.can_go_on() {
            let now = spi::transaction_time();
            updates.retain(|&index| {
                let result = &self.results[index];
                let (Outcome::Next(step), Some(held)) = (&result.outcome, self.held[index]) else {
                    return true;
                };
                let place = table.go_on(&result.id, held.place, result.fence, *step, now);
                went_on.extend(place.map(|place| (index, result.fence + 1, place)));
                place.is_none()
            });
        }
        table.close();
        went_on
    }

    /// Tasks that go on, wait or are parked.
    fn update(&mut self, updates: &mut Vec<usize>, output: &mut Output) {
        if updates.is_empty() {
            return;
        }
        let (slot, results, held) = (self.slot, self.results, self.held);
        let mut went_on = self.go_on(updates);
        forget_deadlines(self.spi, results, updates);
        let rows = (!updates.is_empty()).then(|| update(self.spi, results, held, &self.errors, updates));
        let rows_by_id = rows.iter().flat_map(|rows| (0..rows.len()).map(move |row| (rows, row)));
        let by_id: FxHashMap<TaskId, (&spi::Rows, usize)> =
            rows_by_id.filter_map(|(rows, row)| Some((rows.uuid(row, 1)?, (rows, row)))).collect();
        went_on.extend(updates.iter().filter_map(|&index| {
            let (rows, row) = *by_id.get(&results[index].id)?;
            let place = rows.place(row, 5);
            Some((index, rows.int8(row, 2).unwrap_or(0), place))
        }));
        let mut ends: Vec<(usize, End)> = Vec::with_capacity(went_on.len());
        let room = &mut self.room;
        // A step with a limit is begun by a claim, which counts it.
        let limits_steps = slot.control().limits_steps.load(Relaxed);
        let kinds: Vec<Option<Kind>> =
            went_on.iter().map(|(index, ..)| next_kind(&results[*index].outcome)).collect();
        slot.with_board(|board| {
            for (at, (index, fence, place)) in went_on.into_iter().enumerate() {
                let result = &results[index];
                let kind = kinds.get(at).copied().flatten();
                let is_limited =
                    limits_steps && kind.is_some_and(|kind| board.running_of_kind(kind).is_some());
                let end = match &result.outcome {
                    Outcome::Next(_)
                        if *room > 0 && !is_limited && board.may_continue(&result.id, result.token) =>
                    {
                        *room -= 1;
                        let kind = kind.unwrap_or(Kind::ANY);
                        End::Advance(Advance { token: board.next_token(), fence, place, kind })
                    }
                    Outcome::Next(_) | Outcome::Instead(_) if held[index].is_some() => End::Back,
                    _ => over(held[index]),
                };
                ends.push((index, end));
            }
        });
        for (index, end) in ends {
            let result = &results[index];
            if let End::Advance(next) = end {
                output.goes_on(&result.id, next.fence, next.token);
            }
            self.accept(index, end);
            let due = match &result.outcome {
                Outcome::NextAt(_, due) | Outcome::Retry { due, .. } | Outcome::Snooze(due) => *due,
                Outcome::Next(_) | Outcome::Instead(_) if held[index].is_none() => spi::transaction_time(),
                _ => continue,
            };
            let Some(&(rows, row)) = by_id.get(&result.id) else { continue };
            if let Some(queue) = rows.text(row, 3).as_deref().and_then(QueueName::new) {
                let priority = rows.int2(row, 4).unwrap_or(0);
                self.hints.push(Hint { due, id: result.id, priority, queue });
            }
        }
    }

    /// Everything else: the claim is stale.
    fn refuse(&mut self, output: &mut Output) -> u64 {
        let mut count = 0;
        for (index, result) in self.results.iter().enumerate() {
            if self.written[index] {
                continue;
            }
            count += 1;
            output.refused(&result.id, result.token);
            if self.held[index].is_some_and(|held| held.token == result.token) {
                // The row is another one than the claim knew: let it be read again.
                self.ends.push((result.id, result.token, End::Back));
            }
        }
        self.slot.control().refused.fetch_add(count, Relaxed);
        count
    }
}

/// What a task goes on with instead of being parked is begun whatever its deadline was.
fn forget_deadlines(spi: &Connected, results: &[StepResult], updates: &[usize]) {
    let chosen: Vec<&StepResult> = updates
        .iter()
        .map(|&index| &results[index])
        .filter(|result| matches!(result.outcome, Outcome::Instead(_)))
        .collect();
    if chosen.is_empty() {
        return;
    }
    let arguments = [
        spi::uuid_array(chosen.iter().map(|result| &result.id)),
        spi::int8_array(chosen.iter().map(|result| result.fence)),
    ];
    FORGET_DEADLINES.with(|statement| statement.run(spi, &arguments, false));
}

fn update(
    spi: &Connected,
    results: &[StepResult],
    held: &[Option<Entry>],
    errors_after: &[Option<String>],
    updates: &[usize],
) -> spi::Rows {
    let chosen = || updates.iter().map(|&index| &results[index]);
    let steps = chosen().map(|result| match &result.outcome {
        Outcome::Next(step) | Outcome::NextAt(step, _) | Outcome::Instead(step) => Some(*step),
        _ => None,
    });
    let due = chosen().map(|result| match &result.outcome {
        Outcome::NextAt(_, due) | Outcome::Retry { due, .. } | Outcome::Snooze(due) => spi::int(*due),
        Outcome::Park { .. } | Outcome::Broken(_) => spi::int(spi::transaction_time()),
        _ => None,
    });
    let errors = chosen().map(|result| match &result.outcome {
        Outcome::Park { error, .. } | Outcome::Broken(error) | Outcome::GivenUp(error) => spi::text(error),
        _ => None,
    });
    let add = updates.iter().map(|&index| {
        // Of a claim that memory does not know, the row tells whether the attempt was counted when it was made: it was changed and
        // locked at one moment then.
        match results[index].outcome {
            Outcome::Retry { .. } | Outcome::Park { .. } => spi::int(i32::from(!held[index]?.is_counted())),
            _ => spi::int(0),
        }
    });
    let after = |index: &usize| errors_after.get(*index)?.as_deref().and_then(spi::text);
    let arguments = [
        spi::uuid_array(chosen().map(|result| &result.id)),
        spi::int8_array(chosen().map(|result| result.fence)),
        spi::nullable_array(steps, ElementType::Jsonb),
        spi::nullable_array(due, ElementType::Timestamp),
        spi::nullable_array(errors, ElementType::Text),
        spi::nullable_array(add, ElementType::Int4),
        spi::nullable_array(updates.iter().map(after), ElementType::Text),
    ];
    let statement = if updates.iter().any(|index| after(index).is_some()) { &UPDATE_ERRORS } else { &UPDATE };
    statement.with(|statement| statement.run(spi, &arguments, false))
}

/// Decides what becomes of failures: the worker has said what its code wants, the row what its task wants. Returns what is to be in the
/// column `errors` of each then; nothing when there is no failure.
fn decide(worker: &WorkerId, results: &mut [StepResult], held: &[Option<Entry>]) -> Vec<Option<String>> {
    let is_failure = |outcome: &Outcome| {
        matches!(
            outcome,
            Outcome::Retry { .. } | Outcome::Park { .. } | Outcome::GiveUp { .. } | Outcome::Broken(_)
        )
    };
    if !results.iter().any(|result| is_failure(&result.outcome)) {
        return Vec::new();
    }
    let mut errors = vec![None; results.len()];
    let defaults = defaults::mine();
    let mut table = TaskTable::to_write();
    for (index, result) in results.iter_mut().enumerate().filter(|(_, result)| is_failure(&result.outcome)) {
        let place = held[index].map_or(Place::UNKNOWN, |held| held.place);
        // Without the row there is nothing to decide: the result will be refused.
        let Some(row) = Failing::read(&mut table, &result.id, place, result.fence, defaults.as_deref())
        else {
            if let Outcome::GiveUp { error, give_up, .. } = &result.outcome {
                result.outcome = Outcome::Park { error: error.clone(), give_up: *give_up };
            }
            continue;
        };
        let is_counted = held[index].map_or(row.is_counted, |held| held.is_counted());
        let attempt = row.tried.saturating_add(i32::from(!is_counted));
        let error = match &result.outcome {
            Outcome::Retry { error, .. } => error.as_deref(),
            Outcome::Park { error, .. } | Outcome::Broken(error) | Outcome::GiveUp { error, .. } => {
                Some(&**error)
            }
            _ => None,
        };
        errors[index] = row.errors_after(attempt, error, worker);
        result.outcome = decided(&row.policy, attempt, &result.outcome);
    }
    table.close();
    errors
}

/// What a failure comes to under the task's own policy.
fn decided(policy: &Policy, attempt: i32, outcome: &Outcome) -> Outcome {
    let parked = |error: String, give_up: &Option<Datum>| match give_up {
        Some(step) => Outcome::Instead(*step),
        None => Outcome::Park { error, give_up: None },
    };
    let own = || {
        policy.delay(attempt, failure::random()).map(|delay| spi::transaction_time().saturating_add(delay))
    };
    match outcome {
        Outcome::Retry { error, give_up, .. } if policy.limit().is_some_and(|limit| attempt > limit) => {
            parked(
                error.clone().unwrap_or_else(|| "the step failed, and has no retry left".to_owned()),
                give_up,
            )
        }
        Outcome::Retry { due, exact, .. } => {
            let due = if *exact { *due } else { own().unwrap_or(*due) };
            Outcome::Retry { due, exact: true, error: None, give_up: None }
        }
        Outcome::GiveUp { due, .. } if policy.limit().is_some_and(|limit| attempt <= limit) => {
            const DELAY: Micros = 1_000_000;
            let due = own().or(*due).unwrap_or(spi::transaction_time().saturating_add(DELAY));
            Outcome::Retry { due, exact: true, error: None, give_up: None }
        }
        Outcome::GiveUp { error, give_up, .. } | Outcome::Park { error, give_up } => {
            parked(error.clone(), give_up)
        }
        outcome => outcome.clone(),
    }
}

/// Which step follows.
fn next_kind(outcome: &Outcome) -> Option<Kind> {
    let Outcome::Next(step) = outcome else { return None };
    // SAFETY: declared as jsonb[].
    unsafe { jsonb::step_name(*step) }.map(|name| name.kind())
}

/// The steps of some tasks.
fn names(spi: &Connected, ids: &[TaskId]) -> FxHashMap<TaskId, (Kind, Label)> {
    if ids.is_empty() {
        return FxHashMap::default();
    }
    let rows = STEPS.with(|statement| statement.run(spi, &[spi::uuid_array(ids.iter())], false));
    (0..rows.len())
        .filter_map(|row| {
            // SAFETY: the column is a jsonb, which stays where it is while SPI is connected.
            let name = unsafe { jsonb::step_name(rows.datum(row, 2)?) }?;
            Some((rows.uuid(row, 1)?, (name.kind(), name.label())))
        })
        .collect()
}
