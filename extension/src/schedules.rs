//! Schedules: the functions and the triggers of `pg_task.schedule`. The scheduler's side is `scheduler/schedules.rs`.

use std::ffi::CStr;
use std::sync::atomic::Ordering::SeqCst;

use pg_task_rules::Micros;
use pg_task_rules::TaskId;
use pg_task_schedule::Expression;
use pg_task_schedule::Plan;
use pg_task_schedule::Seconds;
use pgrx::pg_sys;
use pgrx::pg_sys::Datum;

use crate::background;
use crate::call::Call;
use crate::call::sql_function;
use crate::commit;
use crate::error::Error;
use crate::options;
use crate::produce;
use crate::shmem;
use crate::spi;
use crate::spi::Rows;
use crate::spi::Statement;
use crate::uuid7;
use crate::zone::PgZone;

/// Seconds from 1970 to 2000, where the server's timestamps begin.
const SINCE_1970: Seconds = 946_684_800;

/// The columns of `pg_task.schedule` that the trigger reads or writes.
#[derive(Clone, Copy)]
enum Column {
    Name = 1,
    Cron = 2,
    TimeZone = 3,
    Step = 4,
    TickField = 5,
    Queue = 6,
    StartsAt = 12,
    EndsAt = 13,
    PausedAt = 14,
    NextAt = 16,
    WakeAt = 17,
    LastAt = 20,
    Failures = 24,
    Error = 25,
    UpdatedAt = 27,
    Options = 28,
}

thread_local! {
    // What is the same is not written: its ticks go on. What a program has declared is changed by no other; what SQL has made, by SQL only.
    static SET: Statement = const { Statement::new(
        c"INSERT INTO pg_task.schedule AS s (name, cron, step, time_zone, queue, priority, missed, missed_limit, overlap, jitter, \
            starts_at, ends_at, tick_field, declared_by, options) \
          VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) \
          ON CONFLICT (name) DO UPDATE SET cron = excluded.cron, step = excluded.step, time_zone = excluded.time_zone, \
            queue = excluded.queue, priority = excluded.priority, missed = excluded.missed, missed_limit = excluded.missed_limit, \
            overlap = excluded.overlap, jitter = excluded.jitter, starts_at = excluded.starts_at, ends_at = excluded.ends_at, \
            tick_field = excluded.tick_field, declared_by = excluded.declared_by, options = excluded.options, updated_at = pg_catalog.now() \
          WHERE ($14 IS NULL OR s.declared_by OPERATOR(pg_catalog.=) $14) \
            AND ((s.cron, s.step, s.time_zone, s.queue, s.priority, s.missed, s.missed_limit, s.overlap, s.jitter) \
                OPERATOR(pg_catalog.<>) (excluded.cron, excluded.step, excluded.time_zone, excluded.queue, excluded.priority, \
                    excluded.missed, excluded.missed_limit, excluded.overlap, excluded.jitter) \
              OR COALESCE(s.starts_at OPERATOR(pg_catalog.<>) excluded.starts_at, \
                (s.starts_at IS NULL) OPERATOR(pg_catalog.<>) (excluded.starts_at IS NULL)) \
              OR COALESCE(s.ends_at OPERATOR(pg_catalog.<>) excluded.ends_at, \
                (s.ends_at IS NULL) OPERATOR(pg_catalog.<>) (excluded.ends_at IS NULL)) \
              OR COALESCE(s.tick_field OPERATOR(pg_catalog.<>) excluded.tick_field, \
                (s.tick_field IS NULL) OPERATOR(pg_catalog.<>) (excluded.tick_field IS NULL)) \
              OR COALESCE(s.options OPERATOR(pg_catalog.<>) excluded.options, \
                (s.options IS NULL) OPERATOR(pg_catalog.<>) (excluded.options IS NULL)) \
              OR (s.declared_by IS NULL) OPERATOR(pg_catalog.<>) (excluded.declared_by IS NULL))",
        &[
            pg_sys::TEXTOID,
            pg_sys::TEXTOID,
            pg_sys::JSONBOID,
            pg_sys::TEXTOID,
            pg_sys::TEXTOID,
            pg_sys::INT2OID,
            pg_sys::TEXTOID,
            pg_sys::INT4OID,
            pg_sys::TEXTOID,
            pg_sys::INTERVALOID,
            pg_sys::TIMESTAMPTZOID,
            pg_sys::TIMESTAMPTZOID,
            pg_sys::TEXTOID,
            pg_sys::TEXTOID,
            pg_sys::JSONBOID,
        ],
    ) };
    static NEXT: Statement = const { Statement::new(
        c"SELECT s.next_at FROM pg_task.schedule AS s WHERE s.name OPERATOR(pg_catalog.=) $1",
        &[pg_sys::TEXTOID],
    ) };
    static PAUSE: Statement = const { Statement::new(
        c"UPDATE pg_task.schedule AS s SET paused_at = pg_catalog.now() \
          WHERE s.name OPERATOR(pg_catalog.=) $1 AND s.paused_at IS NULL",
        &[pg_sys::TEXTOID],
    ) };
    static RESUME: Statement = const { Statement::new(
        c"UPDATE pg_task.schedule AS s SET paused_at = NULL \
          WHERE s.name OPERATOR(pg_catalog.=) $1 AND s.paused_at IS NOT NULL",
        &[pg_sys::TEXTOID],
    ) };
    static DROP: Statement = const { Statement::new(
        c"DELETE FROM pg_task.schedule AS s WHERE s.name OPERATOR(pg_catalog.=) $1",
        &[pg_sys::TEXTOID],
    ) };
    static FOR_RUN: Statement = const { Statement::new(
        c"SELECT s.step, s.tick_field, s.queue, s.priority, s.options FROM pg_task.schedule AS s \
          WHERE s.name OPERATOR(pg_catalog.=) $1 FOR UPDATE",
        &[pg_sys::TEXTOID],
    ) };
    static RAN: Statement = const { Statement::new(
        c"UPDATE pg_task.schedule AS s SET tasks = pg_catalog.array_append( \
                (s.tasks)[GREATEST(1, pg_catalog.cardinality(s.tasks) OPERATOR(pg_catalog.-) 98):], $2), \
            fired = LEAST(s.fired, 9223372036854775806) OPERATOR(pg_catalog.+) 1, last_run_at = $3 WHERE s.name OPERATOR(pg_catalog.=) $1",
        &[pg_sys::TEXTOID, pg_sys::UUIDOID, pg_sys::TIMESTAMPTZOID],
    ) };
    static WITH_TICK: Statement = const { Statement::new(
        c"SELECT pg_catalog.jsonb_set($1, ARRAY[a.key, b.key, $2], pg_catalog.to_jsonb(pg_catalog.to_char( \
            pg_catalog.timezone('UTC', $3), 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'))) \
          FROM pg_catalog.jsonb_each($1) AS a, LATERAL pg_catalog.jsonb_each(a.value) AS b \
          WHERE pg_catalog.jsonb_typeof(b.value) OPERATOR(pg_catalog.=) 'object'",
        &[pg_sys::JSONBOID, pg_sys::TEXTOID, pg_sys::TIMESTAMPTZOID],
    ) };
}

/// The second in which a moment lies.
pub fn second(moment: Micros) -> Seconds {
    moment.div_euclid(1_000_000) + SINCE_1970
}

/// The first whole second from a moment on.
fn second_from(moment: Micros) -> Seconds {
    second(moment.saturating_add(999_999))
}

/// A second as the server's timestamps have it.
pub fn moment(second: Seconds) -> Micros {
    (second - SINCE_1970).saturating_mul(1_000_000)
}

/// When a schedule ticks, as its row says.
pub fn plan(
    cron: &str,
    time_zone: &str,
    starts_at: Option<Micros>,
    ends_at: Option<Micros>,
) -> Result<Plan<PgZone>, Error> {
    let expression = Expression::parse(cron)
        .map_err(|error| Error::BadCron { got: shown(cron), reason: error.to_string() })?;
    let zone = PgZone::named(time_zone).ok_or_else(|| Error::TimeZone { got: shown(time_zone) })?;
    Ok(Plan { expression, zone, starts_at: starts_at.map(second_from), ends_at: ends_at.map(second_from) })
}

/// The start of a text, for a message.
fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

/// A column that is a jsonb, copied out of the memory that SPI frees.
pub fn kept(rows: &Rows, row: usize, column: i32) -> Option<Datum> {
    // SAFETY: SPI is connected as long as there are rows; a jsonb has a length of its own (-1) and is passed by pointer.
    rows.datum(row, column).map(|value| unsafe { pg_sys::SPI_datumTransfer(value, false, -1) })
}

/// The step with the time of its tick, if a field is for that.
pub fn step_of(step: Datum, tick_field: Option<&str>, tick: Micros) -> Result<Datum, Error> {
    let Some(field) = tick_field else { return Ok(step) };
    spi::connected(|spi| {
        let arguments = [Some(step), spi::text(field), spi::int(tick)];
        let rows = WITH_TICK.with(|statement| statement.run(spi, &arguments, true));
        (!rows.is_empty()).then(|| kept(&rows, 0, 1)).flatten().ok_or(Error::TickField)
    })
}

fn set_schedule(call: &mut Call) -> Result<Option<Datum>, Error> {
    produce::check_server()?;
    let name = name(call)?;
    call.required(1, "cron")?;
    let step = call.required(2, "step")?;
    call.required(3, "time_zone")?;
    call.required(4, "queue")?;
    let got = i64::from(call.int4(5, "priority")?);
    let (low, high) = (i64::from(i16::MIN), i64::from(i16::MAX));
    if !(low..=high).contains(&got) {
        return Err(Error::OutOfRange { name: "priority", low, high, got });
    }
    choice(call, 6, "missed", &["skip", "once", "all"])?;
    let got = i64::from(call.int4(7, "missed_limit")?);
    if !(1..=1_000).contains(&got) {
        return Err(Error::OutOfRange { name: "missed_limit", low: 1, high: 1_000, got });
    }
    choice(call, 8, "overlap", &["allow", "skip", "queue"])?;
    let got = crate::queues::micros(call.required(9, "jitter")?) / 1_000_000;
    if !(0..=86_400).contains(&got) {
        return Err(Error::OutOfRange { name: "jitter (in seconds)", low: 0, high: 86_400, got });
    }
    for (index, name) in [(10, "starts_at"), (11, "ends_at")] {
        call.datum(index).map(|at| produce::finite(at.value() as i64, name)).transpose()?;
    }
    produce::check_step(Some(step))?;
    options::check_datum(call.datum(14))?;
    let next = spi::connected(|spi| {
        let arguments: [Option<Datum>; 15] = std::array::from_fn(|index| call.datum(index));
        SET.with(|statement| statement.run(spi, &arguments, false));
        let rows = NEXT.with(|statement| statement.run(spi, &[name], false));
        if rows.is_empty() { None } else { rows.int8(0, 1) }
    });
    Ok(next.and_then(spi::int))
}
sql_function!(
    "set_schedule_wrapper",
    "pg_finfo_set_schedule_wrapper",
    set_schedule,
    "set_schedule(name text, cron text, step jsonb, time_zone text, queue text, priority integer, missed text, missed_limit integer, overlap text, jitter interval, starts_at timestamptz, ends_at timestamptz, tick_field text, declared_by text, options jsonb) RETURNS timestamptz"
);

fn drop_schedule(call: &mut Call) -> Result<Option<Datum>, Error> {
    produce::check_server()?;
    let name = name(call)?;
    let count = spi::connected(|spi| DROP.with(|statement| statement.run(spi, &[name], false)).len());
    Ok(Some(Datum::from(count > 0)))
}
sql_function!(
    "drop_schedule_wrapper",
    "pg_finfo_drop_schedule_wrapper",
    drop_schedule,
    "drop_schedule(name text) RETURNS boolean"
);

fn pause_schedule(call: &mut Call) -> Result<Option<Datum>, Error> {
    change(call, &PAUSE)
}
sql_function!(
    "pause_schedule_wrapper",
    "pg_finfo_pause_schedule_wrapper",
    pause_schedule,
    "pause_schedule(name text) RETURNS boolean"
);

fn resume_schedule(call: &mut Call) -> Result<Option<Datum>, Error> {
    change(call, &RESUME)
}
sql_function!(
    "resume_schedule_wrapper",
    "pg_finfo_resume_schedule_wrapper",
    resume_schedule,
    "resume_schedule(name text) RETURNS boolean"
);

/// Changes a schedule that is there; whether there was something to change.
fn change(call: &Call, statement: &'static std::thread::LocalKey<Statement>) -> Result<Option<Datum>, Error> {
    produce::check_server()?;
    let name = name(call)?;
    let (changed, exists) = spi::connected(|spi| {
        let changed = !statement.with(|statement| statement.run(spi, &[name], false)).is_empty();
        (changed, changed || !NEXT.with(|next| next.run(spi, &[name], false)).is_empty())
    });
    if exists { Ok(Some(Datum::from(changed))) } else { Err(no_schedule(call)) }
}

fn run_schedule(call: &mut Call) -> Result<Option<Datum>, Error> {
    produce::check_server()?;
    let name = name(call)?;
    let now = background::now();
    let found = spi::connected(|spi| {
        let rows = FOR_RUN.with(|statement| statement.run(spi, &[name], false));
        if rows.is_empty() {
            return None;
        }
        Some((kept(&rows, 0, 1)?, rows.text(0, 2), rows.text(0, 3)?, rows.int2(0, 4)?, kept(&rows, 0, 5)))
    });
    let Some((step, tick_field, queue, priority, options)) = found else { return Err(no_schedule(call)) };
    let step = step_of(step, tick_field.as_deref(), now)?;
    let id: TaskId = produce::enqueue_at(&queue, priority, spi::transaction_time(), step, options)?;
    spi::connected(|spi| {
        RAN.with(|statement| statement.run(spi, &[name, Some(spi::uuid(&id)), spi::int(now)], false));
    });
    Ok(Some(uuid7::datum(&id)))
}
sql_function!(
    "run_schedule_wrapper",
    "pg_finfo_run_schedule_wrapper",
    run_schedule,
    "run_schedule(name text) RETURNS uuid"
);

fn next_ticks(call: &mut Call) -> Result<Option<Datum>, Error> {
    if !shmem::ready() {
        return Err(Error::NotPreloaded);
    }
    let (Some(cron), Some(zone), Some(after), Some(count)) =
        (call.text(0), call.text(1), call.datum(2), call.datum(3))
    else {
        return Ok(None);
    };
    let got = i64::from(count.value() as i32);
    if !(1..=1_000).contains(&got) {
        return Err(Error::OutOfRange { name: "count", low: 1, high: 1_000, got });
    }
    let after = second(produce::finite(after.value() as i64, "after")?);
    let plan = plan(&cron, &zone, None, None)?;
    let next = |tick: &Seconds| plan.next(*tick);
    let ticks = std::iter::successors(plan.next(after), next).take(got as usize);
    let moments = ticks.map(moment).take_while(|&tick| produce::is_moment(tick));
    let mut ticks: Vec<Datum> = moments.map(Datum::from).collect();
    Ok(spi::array(&mut ticks, spi::ElementType::Timestamp))
}
sql_function!(
    "next_ticks_wrapper",
    "pg_finfo_next_ticks_wrapper",
    next_ticks,
    "next_ticks(cron text, time_zone text, after timestamptz, count integer) RETURNS timestamptz[]"
);

/// The first argument, which names a schedule.
fn name(call: &Call) -> Result<Option<Datum>, Error> {
    let name = call.required(0, "name")?;
    check_name(&call.text(0).unwrap_or_default())?;
    Ok(Some(name))
}

fn check_name(name: &str) -> Result<(), Error> {
    if (1..=200).contains(&name.len()) { Ok(()) } else { Err(Error::ScheduleName { got: name.len() }) }
}

fn no_schedule(call: &Call) -> Error {
    Error::NoSchedule { name: call.text(0).unwrap_or_default() }
}

fn choice(call: &Call, index: usize, name: &'static str, words: &[&str]) -> Result<(), Error> {
    call.required(index, name)?;
    let got = call.text(index).unwrap_or_default();
    if words.contains(&&*got) {
        return Ok(());
    }
    Err(Error::Choice { name, got: shown(&got), choices: words.join(", ") })
}

/// Before each row that a user writes: checks it, and works out its next tick when that follows from the change. After each statement: the
/// scheduler is to look, when the transaction commits.
fn on_schedule(call: &mut Call) -> Result<Option<Datum>, Error> {
    if !shmem::ready() {
        return Err(Error::NotPreloaded);
    }
    let trigger = call.trigger().ok_or(Error::TriggerOnly)?;
    // SAFETY: the server passes an open relation; the names are C strings, the namespace's may be null.
    let is_own = unsafe {
        let relation = trigger.tg_relation;
        let namespace = pg_sys::SPI_getnspname(relation);
        CStr::from_ptr((*(*relation).rd_rel).relname.data.as_ptr()) == c"schedule"
            && !namespace.is_null()
            && CStr::from_ptr(namespace) == c"pg_task"
    };
    if !is_own {
        return Err(Error::TriggerOnly);
    }
    if trigger.tg_event & pg_sys::TRIGGER_EVENT_ROW == 0 {
        // The scheduler knows what it writes itself.
        // SAFETY: a plain read of this process' own variable.
        let pid = unsafe { pg_sys::MyProcPid };
        if shmem::my_slot().is_none_or(|slot| slot.control().pid.load(SeqCst) != pid) {
            commit::note_schedules_stale();
        }
        return Ok(Some(Datum::null()));
    }
    let is_update = pgrx::trigger_fired_by_update(trigger.tg_event);
    let new = Row { tuple: if is_update { trigger.tg_newtuple } else { trigger.tg_trigtuple }, trigger };
    let old = is_update.then_some(Row { tuple: trigger.tg_trigtuple, trigger });
    let (Some(cron), Some(time_zone), Some(name)) =
        (new.text(Column::Cron), new.text(Column::TimeZone), new.text(Column::Name))
    else {
        // A NULL is left to the column's constraint.
        return Ok(Some(Datum::from(new.tuple)));
    };
    check_name(&name)?;
    let times = [Column::StartsAt, Column::EndsAt].map(|column| new.time(column));
    for (time, name) in times.iter().zip(["starts_at", "ends_at"]) {
        time.map(|time| produce::finite(time, name)).transpose()?;
    }
    let plan = plan(&cron, &time_zone, times[0], times[1])?;
    produce::check_step(new.datum(Column::Step))?;
    options::check_datum(new.datum(Column::Options))?;
    if let Some(queue) = new.text(Column::Queue) {
        produce::queue_name(&queue)?;
    }
    if let (Some(step), Some(field)) = (new.datum(Column::Step), new.text(Column::TickField)) {
        step_of(step, Some(&field), 0)?;
    }
    let is_paused = new.datum(Column::PausedAt).is_some();
    let resumes = |old: &Row<'_>| old.datum(Column::PausedAt).is_some() && !is_paused;
    let next_at = match &old {
        // A row of a dump, say, goes on where it stood.
        None if new.time(Column::NextAt).is_some() => new.time(Column::NextAt),
        Some(old) if old.time(Column::NextAt) != new.time(Column::NextAt) => new.time(Column::NextAt),
        Some(old) if !is_other_plan(old, &new) && !resumes(old) => new.time(Column::NextAt),
        _ => {
            // No tick comes twice, however the clock was set.
            let now = background::now().max(new.time(Column::LastAt).unwrap_or(Micros::MIN));
            plan.next(second(now)).map(moment).filter(|&tick| produce::is_moment(tick))
        }
    };
    let wake_at = match &old {
        None if !is_paused && new.time(Column::WakeAt).is_some() => new.time(Column::WakeAt),
        _ => next_at.filter(|_| !is_paused),
    };
    let time = |time: Option<Micros>| (time.map_or(Datum::null(), Datum::from), time.is_none());
    let mut changes = vec![(Column::NextAt, time(next_at)), (Column::WakeAt, time(wake_at))];
    if is_update {
        changes.push((Column::Failures, (Datum::from(0_i32), false)));
        changes.push((Column::Error, (Datum::null(), true)));
        changes.push((Column::UpdatedAt, time(Some(spi::transaction_time()))));
    }
    let mut columns: Vec<i32> = changes.iter().map(|(column, _)| *column as i32).collect();
    let (mut values, mut nulls): (Vec<Datum>, Vec<bool>) = changes.iter().map(|(_, value)| *value).unzip();
    // SAFETY: the columns exist and the values have their types; the tuple is copied.
    let tuple = unsafe {
        pg_sys::heap_modify_tuple_by_cols(
            new.tuple,
            (*trigger.tg_relation).rd_att,
            columns.len() as i32,
            columns.as_mut_ptr(),
            values.as_mut_ptr(),
            nulls.as_mut_ptr(),
        )
    };
    Ok(Some(Datum::from(tuple)))
}
sql_function!(
    "on_schedule_wrapper",
    "pg_finfo_on_schedule_wrapper",
    on_schedule,
    "on_schedule() RETURNS trigger"
);

/// Whether the two rows tick at other times.
fn is_other_plan(old: &Row<'_>, new: &Row<'_>) -> bool {
    [Column::Cron, Column::TimeZone].iter().any(|column| old.text(*column) != new.text(*column))
        || [Column::StartsAt, Column::EndsAt].iter().any(|column| old.time(*column) != new.time(*column))
}

/// A row of `pg_task.schedule` that a trigger is called for.
struct Row<'a> {
    tuple: pg_sys::HeapTuple,
    trigger: &'a pg_sys::TriggerData,
}

impl Row<'_> {
    fn datum(&self, column: Column) -> Option<Datum> {
        // SAFETY: the tuple belongs to the trigger's relation, whose columns are those of sql/29_schedule.sql.
        unsafe { spi::column(self.tuple, self.trigger.tg_relation, column as i32) }
    }

    fn text(&self, column: Column) -> Option<String> {
        // SAFETY: callers name columns that are texts.
        self.datum(column).map(|text| unsafe { spi::text_from(text) })
    }

    fn time(&self, column: Column) -> Option<Micros> {
        self.datum(column).map(|time| time.value() as i64)
    }
}
