//! Enqueueing: one INSERT through a kept plan, with the checks that make its errors clear.

use std::ffi::CStr;

use pg_task_rules::Micros;
use pg_task_rules::TaskId;
use pg_task_rules::names::QueueName;
use pgrx::pg_sys;
use pgrx::pg_sys::Datum;

use crate::call::Call;
use crate::call::sql_function;
use crate::commit;
use crate::error::Error;
use crate::jsonb;
use crate::options;
use crate::shmem;
use crate::spi;
use crate::spi::Statement;
use crate::task_table::NewTask;
use crate::task_table::TaskTable;
use crate::uuid7;

thread_local! {
    static INSERT: Statement = const { Statement::new(
        c"INSERT INTO pg_task.task (id, queue, priority, step, wakeup_at) VALUES ($1, $2, $3, $4, $5)",
        &[pg_sys::UUIDOID, pg_sys::TEXTOID, pg_sys::INT2OID, pg_sys::JSONBOID, pg_sys::TIMESTAMPTZOID],
    ) };
    static INSERT_WITH: Statement = const { Statement::new(
        c"INSERT INTO pg_task.task (id, queue, priority, step, wakeup_at, options) VALUES ($1, $2, $3, $4, $5, $6)",
        &[
            pg_sys::UUIDOID,
            pg_sys::TEXTOID,
            pg_sys::INT2OID,
            pg_sys::JSONBOID,
            pg_sys::TIMESTAMPTZOID,
            pg_sys::JSONBOID,
        ],
    ) };
    static INSERT_MANY: Statement = const { Statement::new(
        // In the list of columns the array is unpacked one by one; in FROM it would be copied first.
        c"INSERT INTO pg_task.task (queue, priority, step, wakeup_at) \
          SELECT $2, $3, pg_catalog.unnest($1), $4 RETURNING id",
        &[pg_sys::JSONBARRAYOID, pg_sys::TEXTOID, pg_sys::INT2OID, pg_sys::TIMESTAMPTZOID],
    ) };
    static INSERT_MANY_WITH: Statement = const { Statement::new(
        c"INSERT INTO pg_task.task (queue, priority, step, wakeup_at, options) \
          SELECT $2, $3, pg_catalog.unnest($1), $4, $5 RETURNING id",
        &[
            pg_sys::JSONBARRAYOID,
            pg_sys::TEXTOID,
            pg_sys::INT2OID,
            pg_sys::TIMESTAMPTZOID,
            pg_sys::JSONBOID,
        ],
    ) };
    static INSERT_ROW: Statement = const { Statement::new(
        c"INSERT INTO pg_task.task (id, queue, priority, step) VALUES ($1, $2, $3, \
            pg_catalog.jsonb_build_object($4, pg_catalog.jsonb_build_object($5, pg_catalog.to_jsonb($6))))",
        &[
            pg_sys::UUIDOID,
            pg_sys::TEXTOID,
            pg_sys::INT2OID,
            pg_sys::TEXTOID,
            pg_sys::TEXTOID,
            pg_sys::RECORDOID,
        ],
    ) };
}

/// Where a task goes, and its own settings: checked.
pub struct Place {
    /// The queue, as the caller gave it.
    pub queue: Datum,
    /// The same.
    pub name: QueueName,
    /// The priority.
    pub priority: i16,
    /// The task's own settings.
    pub options: Option<Datum>,
}

fn enqueue(call: &mut Call) -> Result<Option<Datum>, Error> {
    insert(call, 1, |_| Ok(spi::transaction_time()))
}
sql_function!(
    "enqueue_wrapper",
    "pg_finfo_enqueue_wrapper",
    enqueue,
    "enqueue(step jsonb, queue text, priority integer, options jsonb) RETURNS uuid"
);

fn delay(call: &mut Call) -> Result<Option<Datum>, Error> {
    insert(call, 2, |call| {
        let delay = call.required(1, "delay")?;
        let now = spi::transaction_time();
        // SAFETY: declared as interval; an overflow raises PostgreSQL's own error.
        let due = unsafe {
            pgrx::direct_function_call_as_datum(
                pg_sys::timestamptz_pl_interval,
                &[Some(Datum::from(now)), Some(delay)],
            )
        };
        let due = due.map_or(now, |due| due.value() as i64);
        if due < now {
            return Err(Error::NegativeDelay);
        }
        finite(due, "delay")
    })
}
sql_function!(
    "delay_wrapper",
    "pg_finfo_delay_wrapper",
    delay,
    "delay(step jsonb, delay interval, queue text, priority integer, options jsonb) RETURNS uuid"
);

fn schedule(call: &mut Call) -> Result<Option<Datum>, Error> {
    insert(call, 2, |call| finite(call.required(1, "wakeup_at")?.value() as i64, "wakeup_at"))
}
sql_function!(
    "schedule_wrapper",
    "pg_finfo_schedule_wrapper",
    schedule,
    "schedule(step jsonb, wakeup_at timestamptz, queue text, priority integer, options jsonb) RETURNS uuid"
);

/// Enqueues a task for a schedule.
pub fn enqueue_at(
    queue: &str,
    priority: i16,
    due: Micros,
    step: Datum,
    options: Option<Datum>,
) -> Result<TaskId, Error> {
    let name = queue_name(queue)?;
    let place = Place { queue: spi::text(queue).unwrap_or(Datum::null()), name, priority, options };
    let id = uuid7::new();
    insert_task(id, step, due, &place)?;
    Ok(id)
}

fn insert(
    call: &mut Call,
    first_option: usize,
    due: impl FnOnce(&Call) -> Result<Micros, Error>,
) -> Result<Option<Datum>, Error> {
    check_server()?;
    let step = call.required(0, "step")?;
    let due = due(call)?;
    let place = place(call, first_option, first_option + 2)?;
    let id = uuid7::new();
    insert_task(id, step, due, &place)?;
    Ok(Some(uuid7::datum(&id)))
}

/// Inserts a task.
pub fn insert_task(id: TaskId, step: Datum, due: Micros, place: &Place) -> Result<(), Error> {
    if !insert_below(place, due, &[(id, step)])? {
        spi::connected(|spi| {
            let arguments = [
                Some(spi::uuid(&id)),
                Some(place.queue),
                spi::int(place.priority),
                Some(step),
                spi::int(due),
            ];
            match place.options {
                None => INSERT.with(|statement| statement.run(spi, &arguments, false)),
                options => {
                    let [id, queue, priority, step, due] = arguments;
                    let arguments = [id, queue, priority, step, due, options];
                    INSERT_WITH.with(|statement| statement.run(spi, &arguments, false))
                }
            };
        });
    }
    Ok(())
}

/// Inserts tasks below the executor, if nothing of the user's is to be done with them. False when nothing was written and SQL has to do it.
fn insert_below(place: &Place, due: Micros, tasks: &[(TaskId, Datum)]) -> Result<bool, Error> {
    for (_, step) in tasks {
        check_step(Some(*step))?;
    }
    let mut table = TaskTable::to_write();
    let can_insert = table.can_insert(place.options.is_some());
    if can_insert {
        for &(id, step) in tasks {
            let Place { queue, priority, options, .. } = *place;
            table.insert(&NewTask { id, queue, priority, step, due, options });
            // SAFETY: the options are a jsonb, which was checked, and the queue is a text.
            let (group, key) = unsafe { options::group_and_key(options, queue) };
            commit::note_task(&place.name, priority, due, id, group, key);
        }
    }
    table.close();
    Ok(can_insert)
}

fn enqueue_many(call: &mut Call) -> Result<Option<Datum>, Error> {
    check_server()?;
    let steps_datum = call.required(0, "steps")?;
    // SAFETY: declared as an array.
    let dimensions = unsafe { spi::dimensions(steps_datum) };
    if dimensions > 1 {
        return Err(Error::Dimensions { name: "steps", got: dimensions });
    }
    let steps = call.array(0).unwrap_or_default();
    if let Some(position) = steps.iter().position(Option::is_none) {
        return Err(Error::NullElement { name: "steps", position: position + 1 });
    }
    let place = place(call, 1, 4)?;
    let due = match call.datum(3) {
        Some(due) => finite(due.value() as i64, "wakeup_at")?,
        None => spi::transaction_time(),
    };
    let tasks: Vec<(TaskId, Datum)> = steps.into_iter().flatten().map(|step| (uuid7::new(), step)).collect();
    let ids: Vec<TaskId> = if tasks.is_empty() || insert_below(&place, due, &tasks)? {
        tasks.into_iter().map(|(id, _)| id).collect()
    } else {
        spi::connected(|spi| {
            let arguments = [Some(steps_datum), Some(place.queue), spi::int(place.priority), spi::int(due)];
            let rows = match place.options {
                None => INSERT_MANY.with(|statement| statement.run(spi, &arguments, false)),
                options => {
                    let [steps, queue, priority, due] = arguments;
                    let arguments = [steps, queue, priority, due, options];
                    INSERT_MANY_WITH.with(|statement| statement.run(spi, &arguments, false))
                }
            };
            (0..rows.len()).filter_map(|row| rows.uuid(row, 1)).collect()
        })
    };
    Ok(spi::uuid_array(ids.iter()))
}
sql_function!(
    "enqueue_many_wrapper",
    "pg_finfo_enqueue_many_wrapper",
    enqueue_many,
    "enqueue_many(steps jsonb[], queue text, priority integer, wakeup_at timestamptz, options jsonb) RETURNS uuid[]"
);

fn enqueue_row(call: &mut Call) -> Result<Option<Datum>, Error> {
    check_server()?;
    let trigger = call.trigger().ok_or(Error::EnqueueRowUse { got: "It was called as a function." })?;
    check_row_trigger(trigger.tg_event)?;
    // SAFETY: the server passes a trigger with `tgnargs` C strings, and a row trigger has the row's tuple.
    unsafe {
        let definition = &*trigger.tg_trigger;
        let arguments: Vec<&str> = (0..definition.tgnargs.max(0) as usize)
            .map(|index| CStr::from_ptr(*definition.tgargs.add(index)).to_str().unwrap_or(""))
            .collect();
        let (task, step, queue, priority) = match arguments[..] {
            [task, step] => (task, step, "default", "0"),
            [task, step, queue] => (task, step, queue, "0"),
            [task, step, queue, priority] => (task, step, queue, priority),
            _ => {
                let got = format!("It was given {} arguments: it takes 2 to 4.", arguments.len());
                return Err(Error::EnqueueRowArguments { got });
            }
        };
        let priority: i16 = priority.parse().map_err(|_| Error::EnqueueRowArguments {
            got: format!("The priority is \"{priority}\", not a number from -32768 to 32767."),
        })?;
        queue_name(queue)?;
        let row = if pgrx::trigger_fired_by_update(trigger.tg_event) {
            trigger.tg_newtuple
        } else {
            trigger.tg_trigtuple
        };
        let record = pg_sys::heap_copy_tuple_as_datum(row, (*trigger.tg_relation).rd_att);
        let id = uuid7::new();
        spi::connected(|spi| {
            let arguments = [
                Some(spi::uuid(&id)),
                spi::text(queue),
                spi::int(priority),
                spi::text(task),
                spi::text(step),
                Some(record),
            ];
            INSERT_ROW.with(|statement| statement.run(spi, &arguments, false));
        });
        Ok(Some(Datum::from(row)))
    }
}
sql_function!(
    "enqueue_row_wrapper",
    "pg_finfo_enqueue_row_wrapper",
    enqueue_row,
    "enqueue_row() RETURNS trigger"
);

/// Refuses triggers whose row may still be changed or skipped: the task would tell of a row that is not there.
fn check_row_trigger(event: u32) -> Result<(), Error> {
    let got = if event & pg_sys::TRIGGER_EVENT_ROW == 0 {
        "The trigger fires once for each statement."
    } else if event & pg_sys::TRIGGER_EVENT_TIMINGMASK == pg_sys::TRIGGER_EVENT_BEFORE {
        "The trigger fires BEFORE the event, when the row may still be changed or skipped."
    } else if event & pg_sys::TRIGGER_EVENT_TIMINGMASK == pg_sys::TRIGGER_EVENT_INSTEAD {
        "The trigger fires INSTEAD OF the event: no row is written."
    } else {
        return Ok(());
    };
    Err(Error::EnqueueRowUse { got })
}

/// The queue, the priority and the options among a function's arguments.
pub fn place(call: &Call, first: usize, options: usize) -> Result<Place, Error> {
    let queue = call.required(first, "queue")?;
    // SAFETY: declared as text.
    let name = queue_name(&unsafe { spi::text_from(queue) })?;
    let priority = priority(call, first + 1, "priority")?;
    let options = call.datum(options);
    options::check_datum(options)?;
    Ok(Place { queue, name, priority, options })
}

/// A priority among a function's arguments.
pub fn priority(call: &Call, index: usize, name: &'static str) -> Result<i16, Error> {
    let got = i64::from(call.int4(index, name)?);
    let (low, high) = (i64::from(i16::MIN), i64::from(i16::MAX));
    i16::try_from(got).map_err(|_| Error::OutOfRange { name, low, high, got })
}

/// A queue's name, or the reason why it is none.
pub fn queue_name(name: &str) -> Result<QueueName, Error> {
    QueueName::new(name).ok_or(Error::QueueName { got: name.len() })
}

/// The last moment of `timestamptz`, whose end is 294277-01-01.
pub const LAST_MOMENT: Micros = 9_223_371_331_199_999_999;

/// Whether a number is a moment of `timestamptz`, from 4714-11-24 BC on, and not infinite.
pub fn is_moment(micros: Micros) -> bool {
    (-211_813_488_000_000_000..=LAST_MOMENT).contains(&micros)
}

/// A moment, or the reason why it is none.
pub fn finite(moment: Micros, name: &'static str) -> Result<Micros, Error> {
    if moment == Micros::MIN || moment == Micros::MAX { Err(Error::NotFinite { name }) } else { Ok(moment) }
}

/// Refuses to write where nothing would ever run it.
pub fn check_server() -> Result<(), Error> {
    if !shmem::ready() {
        return Err(Error::NotPreloaded);
    }
    // SAFETY: a plain read of the server's state.
    if unsafe { pg_sys::RecoveryInProgress() } {
        return Err(Error::Standby);
    }
    Ok(())
}

/// Checks a step's shape and size; NULL is left to the column's constraint.
pub fn check_step(step: Option<Datum>) -> Result<(), Error> {
    // SAFETY: callers pass a jsonb.
    step.map_or(Ok(()), |step| unsafe { jsonb::check(step) })
}
