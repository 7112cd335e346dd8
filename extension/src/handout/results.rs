//! Results of finished steps: checked against memory, written in two statements, settled at commit.

use std::collections::HashMap;
use std::collections::HashSet;

use pg_task_rules::Micros;
use pg_task_rules::TaskId;
use pg_task_rules::board::Entry;
use pg_task_rules::inbox::Hint;
use pg_task_rules::names::QueueName;
use pgrx::pg_sys;
use pgrx::pg_sys::Datum;

use super::End;
use super::unsettled;
use crate::call::Call;
use crate::error::Error;
use crate::jsonb;
use crate::jsonb::StepName;
use crate::scheduler::unwrite;
use crate::shmem::Slot;
use crate::spi;
use crate::spi::Connected;
use crate::spi::ElementType;
use crate::spi::Statement;

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
    // A next step that is due now keeps its wakeup_at, so that no indexed column changes and the update stays on its page.
    static UPDATE: Statement = const { Statement::new(
        c"UPDATE pg_task.task AS t SET \
            step = COALESCE(d.step, t.step), wakeup_at = COALESCE(d.wakeup_at, t.wakeup_at), error = d.error, \
            tried = CASE WHEN d.step IS NULL THEN t.tried OPERATOR(pg_catalog.+) d.add ELSE 0 END, \
            fence = t.fence OPERATOR(pg_catalog.+) 1, locked_by = NULL, locked_at = NULL, updated_at = pg_catalog.now() \
          FROM unnest($1, $2, $3, $4, $5, $6) AS d (id, fence, step, wakeup_at, error, add) \
          WHERE t.id OPERATOR(pg_catalog.=) d.id AND t.fence OPERATOR(pg_catalog.=) d.fence \
          RETURNING t.id, t.fence, t.queue, t.priority",
        &[
            pg_sys::UUIDARRAYOID,
            pg_sys::INT8ARRAYOID,
            pg_sys::JSONBARRAYOID,
            pg_sys::TIMESTAMPTZARRAYOID,
            pg_sys::TEXTARRAYOID,
            pg_sys::INT4ARRAYOID,
        ],
    ) };
}

/// What a step ended in. The numbers are those of the protocol.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// 0: the row goes away.
    Done,
    /// 1: the next step, now.
    Next(Datum),
    /// 2: the next step, at a moment.
    NextAt(Datum, Micros),
    /// 3: failed; again at a moment.
    Retry(Micros),
    /// 4: failed for good.
    Park(String),
    /// 5: not run.
    Release,
    /// 6: the worker does not know the step.
    Unknown,
    /// 7: the step does not deserialise.
    Broken(String),
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

/// What has to be told of a result.
pub enum Answer {
    /// The next step stays with the worker, under this fence and token.
    Continue(TaskId, i64, i64),
    /// The result was not written.
    Refused(TaskId, i64),
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
    let mut seen = HashSet::with_capacity(ids.len());
    let mut results = Vec::with_capacity(ids.len());
    for (index, id) in ids.iter().enumerate() {
        // SAFETY: declared as uuid[].
        let id = unsafe { spi::uuid_from(needed(*id, "ids", index)?) };
        if !seen.insert(id) {
            return Err(Error::OutOfRange { name: "results for one id", low: 0, high: 1, got: 2 });
        }
        let code = at(&outcomes, index).map_or(0, |datum| i64::from(datum.value() as i16));
        let delay = || due_after(at(&delays, index).map_or(0, |datum| datum.value() as i64));
        let error = || {
            let error = needed(at(&errors, index), "errors", index)?;
            // SAFETY: declared as text[].
            Ok::<_, Error>(unsafe { spi::text_from(error) })
        };
        let step = || needed(at(&steps, index), "steps", index);
        let outcome = match code {
            0 => Outcome::Done,
            1 => Outcome::Next(step()?),
            2 => Outcome::NextAt(step()?, delay()?),
            3 => Outcome::Retry(delay()?),
            4 => Outcome::Park(error()?),
            5 => Outcome::Release,
            6 => Outcome::Unknown,
            7 => Outcome::Broken(error()?),
            got => return Err(Error::OutOfRange { name: "outcomes", low: 0, high: 7, got }),
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

fn due_after(delay: i64) -> Result<Micros, Error> {
    if delay < 0 {
        return Err(Error::NegativeDelay);
    }
    // The end of timestamptz, 294277-01-01; a delay beyond it is as good as for ever.
    const LAST: Micros = 9_223_371_331_199_999_999;
    Ok(spi::transaction_time().saturating_add(delay).min(LAST))
}

/// A next step that cannot be stored parks its task with the reason; the rest of the call goes on.
fn valid(outcome: Outcome) -> Outcome {
    let (Outcome::Next(step) | Outcome::NextAt(step, _)) = &outcome else { return outcome };
    // SAFETY: declared as jsonb[].
    match unsafe { jsonb::check(*step) } {
        Ok(()) => outcome,
        Err(error) => Outcome::Park(format!("the next step was not stored: {error}")),
    }
}

/// Writes the results and notes what memory is to learn at commit. `room` next steps may stay with the worker.
pub fn write(
    slot: Slot,
    spi: &Connected,
    results: &[StepResult],
    mut room: u32,
    answers: &mut Vec<Answer>,
) -> u32 {
    if results.is_empty() {
        return room;
    }
    // Memory may know better than the row: the task may have been handed out again since.
    let held: Vec<Option<Entry>> =
        slot.with_board(|board| results.iter().map(|result| board.claim_of(&result.id).copied()).collect());
    let unknown: Vec<TaskId> = results
        .iter()
        .filter(|result| matches!(result.outcome, Outcome::Unknown))
        .map(|result| result.id)
        .collect();
    let unknown = names(spi, &unknown);
    let mut deletes: Vec<usize> = Vec::new();
    let mut updates: Vec<usize> = Vec::new();
    let mut unwritten: Vec<Entry> = Vec::new();
    let mut written: HashSet<TaskId> = HashSet::with_capacity(results.len());
    let mut ends: Vec<(TaskId, i64, End)> = Vec::with_capacity(results.len());
    let mut hints: Vec<Hint> = Vec::new();
    for (index, (result, held)) in results.iter().zip(&held).enumerate() {
        if held.is_some_and(|held| held.token != result.token) {
            continue;
        }
        match result.outcome {
            Outcome::Done => deletes.push(index),
            Outcome::Release | Outcome::Unknown => {
                // Of a claim that memory does not know nothing is to be undone.
                written.insert(result.id);
                unwritten.extend(held);
                let end = match (&result.outcome, unknown.get(&result.id)) {
                    (Outcome::Unknown, Some(name)) => End::Misfit(name.kind, name.label),
                    _ => End::Back,
                };
                ends.push((result.id, result.token, end));
            }
            _ => updates.push(index),
        }
    }
    unwrite(spi, &unwritten);
    if !deletes.is_empty() {
        let arguments = [
            spi::uuid_array(deletes.iter().map(|&index| &results[index].id)),
            spi::int8_array(deletes.iter().map(|&index| results[index].fence)),
        ];
        let rows = DELETE.with(|statement| statement.run(spi, &arguments, false));
        written.extend((0..rows.len()).filter_map(|row| rows.uuid(row, 1)));
        ends.extend(
            deletes
                .iter()
                .filter(|&&index| written.contains(&results[index].id))
                .map(|&index| (results[index].id, results[index].token, End::Over)),
        );
    }
    if !updates.is_empty() {
        let rows = update(spi, results, &held, &updates);
        let by_id: HashMap<TaskId, usize> =
            (0..rows.len()).filter_map(|row| Some((rows.uuid(row, 1)?, row))).collect();
        slot.with_board(|board| {
            for &index in &updates {
                let result = &results[index];
                let Some(&row) = by_id.get(&result.id) else { continue };
                let fence = rows.int8(row, 2).unwrap_or(0);
                let end = match &result.outcome {
                    Outcome::Next(_) if room > 0 && board.may_continue(&result.id, result.token) => {
                        room -= 1;
                        let token = board.next_token();
                        answers.push(Answer::Continue(result.id, fence, token));
                        End::Advance(token, fence)
                    }
                    Outcome::Next(_) if held[index].is_some() => End::Back,
                    _ => End::Over,
                };
                ends.push((result.id, result.token, end));
            }
        });
        for &index in &updates {
            let result = &results[index];
            let Some(&row) = by_id.get(&result.id) else { continue };
            written.insert(result.id);
            let due = match &result.outcome {
                Outcome::NextAt(_, due) | Outcome::Retry(due) => *due,
                Outcome::Next(_) if held[index].is_none() => spi::transaction_time(),
                _ => continue,
            };
            if let Some(queue) = rows.text(row, 3).as_deref().and_then(QueueName::new) {
                hints.push(Hint { due, id: result.id, priority: rows.int2(row, 4).unwrap_or(0), queue });
            }
        }
    }
    for (result, held) in results.iter().zip(&held).filter(|(result, _)| !written.contains(&result.id)) {
        answers.push(Answer::Refused(result.id, result.token));
        if held.is_some_and(|held| held.token == result.token) {
            // The row is another one than the claim knew: let it be read again.
            ends.push((result.id, result.token, End::Back));
        }
    }
    unsettled(slot, |unsettled| {
        unsettled.ends.append(&mut ends);
        unsettled.hints.append(&mut hints);
    });
    room
}

fn update(spi: &Connected, results: &[StepResult], held: &[Option<Entry>], updates: &[usize]) -> spi::Rows {
    let chosen = || updates.iter().map(|&index| &results[index]);
    let steps = chosen().map(|result| match &result.outcome {
        Outcome::Next(step) | Outcome::NextAt(step, _) => Some(*step),
        _ => None,
    });
    let due = chosen().map(|result| match &result.outcome {
        Outcome::NextAt(_, due) | Outcome::Retry(due) => spi::int(*due),
        Outcome::Park(_) | Outcome::Broken(_) => spi::int(spi::transaction_time()),
        _ => None,
    });
    let errors = chosen().map(|result| match &result.outcome {
        Outcome::Park(error) | Outcome::Broken(error) => spi::text(error),
        _ => None,
    });
    let add = updates.iter().map(|&index| {
        let counted = held[index].is_some_and(|held| held.is_counted());
        let fails = matches!(results[index].outcome, Outcome::Retry(_) | Outcome::Park(_));
        spi::int(i32::from(fails && !counted))
    });
    let arguments = [
        spi::uuid_array(chosen().map(|result| &result.id)),
        spi::int8_array(chosen().map(|result| result.fence)),
        spi::nullable_array(steps, ElementType::Jsonb),
        spi::nullable_array(due, ElementType::Timestamp),
        spi::nullable_array(errors, ElementType::Text),
        spi::nullable_array(add, ElementType::Int4),
    ];
    UPDATE.with(|statement| statement.run(spi, &arguments, false))
}

/// The names of the steps of some tasks.
fn names(spi: &Connected, ids: &[TaskId]) -> HashMap<TaskId, StepName> {
    if ids.is_empty() {
        return HashMap::new();
    }
    let rows = STEPS.with(|statement| statement.run(spi, &[spi::uuid_array(ids.iter())], false));
    (0..rows.len())
        .filter_map(|row| {
            // SAFETY: the column is a jsonb.
            let name = unsafe { jsonb::step_name(rows.datum(row, 2)?) }?;
            Some((rows.uuid(row, 1)?, name))
        })
        .collect()
}
