//! Tasks that are to be parked without a run: their step's own code is asked first what it wants to do instead (`give_up` in Rust).
//!
//! A step whose worker was lost too often, or whose deadline has passed, ends in no result that could say it. So a worker that has said at its
//! registration that it can be asked is handed the task with the reason in the option `give_up`; it does not run the step, and brings outcome 11, with another step or
//! without. That is the one transition; nothing is written before it. Of a worker that cannot be asked the task is parked at once.

use pg_task_rules::Micros;
use pg_task_rules::TaskId;
use pg_task_rules::board::Claim;
use pg_task_rules::inbox::Hint;
use pg_task_rules::names::Kind;
use pg_task_rules::place::Place;
use pgrx::pg_sys;
use rustc_hash::FxHashMap;

use super::output::Task;
use crate::spi;
use crate::spi::Connected;
use crate::spi::ElementType;
use crate::spi::Rows;
use crate::spi::Statement;

thread_local! {
    static READ: Statement = const { Statement::new(
        c"SELECT t.id, t.fence, t.tried, t.wakeup_at, t.queue, t.step, t.ctid, \
            COALESCE(t.options, '{}') OPERATOR(pg_catalog.||) pg_catalog.jsonb_build_object('give_up', CASE \
                WHEN d.deadline IS NOT NULL THEN pg_catalog.format('the task was not begun before its deadline, %s', d.deadline) \
                WHEN t.locked_by OPERATOR(pg_catalog.=) '00000000-0000-0000-0000-000000000000' \
                    THEN pg_catalog.format('the worker was lost while it ran this step (attempt %s)', t.tried) \
                ELSE pg_catalog.format('the worker or the server was lost while it ran this step (attempt %s)', t.tried) END) \
          FROM unnest($1, $2, $3) AS d (id, fence, deadline) JOIN pg_task.task AS t ON t.id OPERATOR(pg_catalog.=) d.id \
          WHERE t.fence OPERATOR(pg_catalog.=) d.fence AND t.error IS NULL",
        &[pg_sys::UUIDARRAYOID, pg_sys::INT8ARRAYOID, pg_sys::TIMESTAMPTZARRAYOID],
    ) };
}

/// In `locked_by`: nobody runs the task, and its step's code is to be asked before it is parked.
pub const NOBODY: TaskId = [0; 16];

/// A claim of a task that is to be given up.
pub struct GivenUp {
    /// The claim.
    pub claim: Claim,
    /// The row's fence.
    pub fence: i64,
    /// The step.
    pub kind: Kind,
    /// Its deadline, if that is why.
    pub deadline: Option<Micros>,
    /// When to look at it again, if its row cannot be read as it was.
    pub again: Hint,
}

/// What workers are to be asked.
pub struct Asked {
    rows: Rows,
    by_id: FxHashMap<TaskId, usize>,
}

/// Reads the rows anew.
pub fn read(spi: &Connected, chosen: &[GivenUp]) -> Asked {
    let deadlines = chosen.iter().map(|chosen| chosen.deadline.and_then(spi::int));
    let arguments = [
        spi::uuid_array(chosen.iter().map(|chosen| &chosen.claim.id)),
        spi::int8_array(chosen.iter().map(|chosen| chosen.fence)),
        spi::nullable_array(deadlines, ElementType::Timestamp),
    ];
    let rows = READ.with(|statement| statement.run(spi, &arguments, false));
    let by_id = (0..rows.len()).filter_map(|row| Some((rows.uuid(row, 1)?, row))).collect();
    Asked { rows, by_id }
}

impl Asked {
    /// The task as it is handed out, and where its row is; none if the row is another one by now.
    pub fn task(&self, claim: &Claim) -> Option<(Task, Place)> {
        let (rows, row) = (&self.rows, *self.by_id.get(&claim.id)?);
        let task = Task {
            claim: *claim,
            fence: rows.int8(row, 2)?,
            tried: rows.int4(row, 3)?,
            wakeup_at: rows.int8(row, 4)?,
            queue: rows.datum(row, 5)?,
            step: rows.datum(row, 6)?,
            options: rows.datum(row, 8),
        };
        let place = rows.place(row, 7);
        Some((task, place))
    }
}
