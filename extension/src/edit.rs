//! Changes of one task: another step or payload, another time to resume, a copy.

use pg_task_rules::TaskId;
use pgrx::pg_sys;
use pgrx::pg_sys::Datum;

use crate::background;
use crate::call::Call;
use crate::call::sql_function;
use crate::commit;
use crate::error::Error;
use crate::jsonb;
use crate::produce;
use crate::shmem;
use crate::spi;
use crate::spi::Statement;
use crate::task_table::TaskTable;
use crate::uuid7;

thread_local! {
    static LOCK: Statement = const { Statement::new(
        c"SELECT t.step, t.locked_by IS NOT NULL FROM pg_task.task AS t WHERE t.id OPERATOR(pg_catalog.=) $1 FOR UPDATE",
        &[pg_sys::UUIDOID],
    ) };
    static SET_STEP: Statement = const { Statement::new(
        c"UPDATE pg_task.task AS t SET step = $2 \
          WHERE t.id OPERATOR(pg_catalog.=) $1 AND t.step OPERATOR(pg_catalog.<>) $2",
        &[pg_sys::UUIDOID, pg_sys::JSONBOID],
    ) };
    static STEP_OF: Statement = const { Statement::new(
        c"SELECT pg_catalog.jsonb_build_object($1, pg_catalog.jsonb_build_object($2, $3))",
        &[pg_sys::TEXTOID, pg_sys::TEXTOID, pg_sys::JSONBOID],
    ) };
    static RESUME_AT: Statement = const { Statement::new(
        c"UPDATE pg_task.task AS t SET error = NULL, wakeup_at = $2 \
          WHERE t.id OPERATOR(pg_catalog.=) $1 AND t.error IS NOT NULL",
        &[pg_sys::UUIDOID, pg_sys::TIMESTAMPTZOID],
    ) };
    static CLONE: Statement = const { Statement::new(
        c"INSERT INTO pg_task.task (id, queue, priority, step, wakeup_at, options) \
          SELECT $2, t.queue, t.priority, t.step, COALESCE($3, pg_catalog.now()), t.options FROM pg_task.task AS t \
          WHERE t.id OPERATOR(pg_catalog.=) $1",
        &[pg_sys::UUIDOID, pg_sys::UUIDOID, pg_sys::TIMESTAMPTZOID],
    ) };
}

fn edit(call: &mut Call) -> Result<Option<Datum>, Error> {
    produce::check_server()?;
    let id = call.uuid(0, "id")?;
    let (step, payload) = (call.datum(1), call.datum(2));
    let interrupt = call.required(3, "interrupt")?.value() & 0xff != 0;
    if step.is_some() == payload.is_some() {
        return Err(Error::EditWhat);
    }
    produce::check_step(step)?;
    TaskTable::lock_to_write();
    spi::connected(|spi| {
        let key = Some(spi::uuid(&id));
        let rows = LOCK.with(|statement| statement.run(spi, &[key], false));
        if rows.is_empty() {
            return Ok(Some(Datum::from(false)));
        }
        let is_running =
            is_claimed(&id) || (rows.bool(0, 2) && background::now() < shmem::trust_locks_until());
        if is_running && !interrupt {
            return Err(Error::Running);
        }
        let step = match (step, rows.datum(0, 1)) {
            (None, Some(old)) => {
                // SAFETY: the column is a jsonb, which is there until SPI is disconnected.
                let name = unsafe { jsonb::step_name(old) };
                let (task, step) = name.map_or(("", ""), |name| (name.task(), name.step()));
                let arguments = [spi::text(task), spi::text(step), payload];
                STEP_OF.with(|statement| statement.run(spi, &arguments, true).datum(0, 1))
            }
            (step, _) => step,
        };
        // A step that is as it was needs no other run.
        let changed = !SET_STEP.with(|statement| statement.run(spi, &[key, step], false)).is_empty();
        if changed {
            let is_running = is_running || withhold(&id);
            if is_running && !interrupt {
                return Err(Error::Running);
            }
            if is_running {
                commit::note_cancelled(id);
            }
        }
        Ok(Some(Datum::from(true)))
    })
}
sql_function!(
    "edit_wrapper",
    "pg_finfo_edit_wrapper",
    edit,
    "edit(id uuid, step jsonb, payload jsonb, interrupt boolean) RETURNS boolean"
);

/// Whether a worker holds the task at this moment.
fn is_claimed(id: &TaskId) -> bool {
    shmem::my_slot().is_some_and(|slot| slot.with_board(|board| board.claim_of(id).is_some()))
}

/// Takes the task off the board, so that until the end of the transaction nobody is given the step as it was. Whether someone has it already.
fn withhold(id: &TaskId) -> bool {
    commit::note_withheld();
    shmem::my_slot().is_some_and(|slot| {
        slot.with_board(|board| {
            board.remove_ready(id);
            board.claim_of(id).is_some()
        })
    })
}

fn resume_at(call: &mut Call) -> Result<Option<Datum>, Error> {
    produce::check_server()?;
    let id = call.uuid(0, "id")?;
    let at = produce::finite(call.required(1, "wakeup_at")?.value() as i64, "wakeup_at")?;
    let count = spi::connected(|spi| {
        RESUME_AT.with(|statement| statement.run(spi, &[Some(spi::uuid(&id)), spi::int(at)], false)).len()
    });
    Ok(Some(Datum::from(count > 0)))
}
sql_function!(
    "resume_at_wrapper",
    "pg_finfo_resume_at_wrapper",
    resume_at,
    "resume_at(id uuid, wakeup_at timestamptz) RETURNS boolean"
);

fn clone(call: &mut Call) -> Result<Option<Datum>, Error> {
    produce::check_server()?;
    let id = call.uuid(0, "id")?;
    let due = match call.datum(1) {
        Some(due) => spi::int(produce::finite(due.value() as i64, "wakeup_at")?),
        None => None,
    };
    let new = uuid7::new();
    let count = spi::connected(|spi| {
        let arguments = [Some(spi::uuid(&id)), Some(spi::uuid(&new)), due];
        CLONE.with(|statement| statement.run(spi, &arguments, false)).len()
    });
    Ok((count > 0).then(|| uuid7::datum(&new)))
}
sql_function!(
    "clone_wrapper",
    "pg_finfo_clone_wrapper",
    clone,
    "clone(id uuid, wakeup_at timestamptz) RETURNS uuid"
);
