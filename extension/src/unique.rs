//! Unique tasks: a key stands for one task, and a call that finds it held says what is to happen.
//!
//! **Order.** The key's row is locked first, by an insert that finds it or makes it; only then is the task looked at, in a snapshot that is taken
//! afterwards. So calls with the same key follow each other, however their transactions end. Under REPEATABLE READ and SERIALIZABLE, where no
//! later snapshot can be had, what has changed since the transaction's own is a serialization failure (40001).
//!
//! **A task that waits** has the lower half of the fence that it was enqueued with, which users do not change, and no worker holds it: the board knows that. A worker may take it the moment
//! after; so whoever counts on a run that is still to come (a skip while queued, a change) adds one to the fence. A run that has begun before this commits is refused then, and the
//! task runs again.

use pg_task_rules::Micros;
use pg_task_rules::TaskId;
use pg_task_rules::board::Look;
use pg_task_rules::names::QueueName;
use pgrx::pg_sys;
use pgrx::pg_sys::Datum;

use crate::background;
use crate::call::Call;
use crate::call::sql_function;
use crate::commit;
use crate::error::Error;
use crate::options;
use crate::produce;
use crate::produce::Place;
use crate::shmem;
use crate::spi;
use crate::spi::Connected;
use crate::spi::Statement;
use crate::task_table::TaskTable;
use crate::uuid7;

/// The longest key, in bytes.
const MAX_KEY: usize = 255;

/// The scheduler looks whether a key is still in use this long after the task was due, at the earliest.
const CHECK_AFTER: Micros = 60_000_000;

thread_local! {
    // Without a row to return the key was there; it is locked all the same.
    static HOLD: Statement = const { Statement::new(
        c"INSERT INTO pg_task.unique_key AS k (key, task_id, scope, expires_at, check_at) VALUES ($1, $2, $3, $4, $5) \
          ON CONFLICT (key) DO UPDATE SET key = excluded.key WHERE false",
        &[pg_sys::TEXTOID, pg_sys::UUIDOID, pg_sys::TEXTOID, pg_sys::TIMESTAMPTZOID, pg_sys::TIMESTAMPTZOID],
    ) };
    static HOLDER: Statement = const { Statement::new(
        c"SELECT k.task_id, k.scope, k.fence, k.expires_at FROM pg_task.unique_key AS k WHERE k.key OPERATOR(pg_catalog.=) $1",
        &[pg_sys::TEXTOID],
    ) };
    static TAKE: Statement = const { Statement::new(
        c"UPDATE pg_task.unique_key AS k SET task_id = $2, scope = $3, expires_at = $4, check_at = $5, fence = 0, \
            taken_at = pg_catalog.clock_timestamp() WHERE k.key OPERATOR(pg_catalog.=) $1",
        &[pg_sys::TEXTOID, pg_sys::UUIDOID, pg_sys::TEXTOID, pg_sys::TIMESTAMPTZOID, pg_sys::TIMESTAMPTZOID],
    ) };
    static NOTE_FENCE: Statement = const { Statement::new(
        c"UPDATE pg_task.unique_key AS k SET fence = $2 WHERE k.key OPERATOR(pg_catalog.=) $1",
        &[pg_sys::TEXTOID, pg_sys::INT8OID],
    ) };
    static TASK: Statement = const { Statement::new(
        c"SELECT t.fence, t.error IS NOT NULL, t.locked_by IS NOT NULL FROM pg_task.task AS t WHERE t.id OPERATOR(pg_catalog.=) $1",
        &[pg_sys::UUIDOID],
    ) };
    // In a snapshot that is older than the key's lock: the lock of the task fails if the task has changed since.
    static TASK_LOCKED: Statement = const { Statement::new(
        c"SELECT t.fence, t.error IS NOT NULL, t.locked_by IS NOT NULL FROM pg_task.task AS t WHERE t.id OPERATOR(pg_catalog.=) $1 \
          FOR KEY SHARE",
        &[pg_sys::UUIDOID],
    ) };
    // The fence is set here, so that the trigger has nothing to do: a change to what was there already must be refused to a run, too.
    static CHANGE: Statement = const { Statement::new(
        c"WITH old AS MATERIALIZED (SELECT o.id, o.queue, o.options FROM pg_task.task AS o \
            WHERE o.id OPERATOR(pg_catalog.=) $1 AND ($3 OR o.error IS NULL) AND ($2 IS NULL \
                OR (o.fence OPERATOR(pg_catalog.&) 4294967295) OPERATOR(pg_catalog.=) ($2 OPERATOR(pg_catalog.&) 4294967295)) FOR NO KEY UPDATE) \
          UPDATE pg_task.task AS t SET step = COALESCE($4, t.step), queue = COALESCE($5, t.queue), priority = COALESCE($6, t.priority), \
            options = CASE WHEN $4 IS NULL THEN t.options ELSE $8 END, \
            wakeup_at = COALESCE($7, t.wakeup_at), error = NULL, \
            tried = CASE WHEN $4 IS NOT NULL OR t.error IS NOT NULL THEN 0 ELSE t.tried END, \
            fence = t.fence OPERATOR(pg_catalog.+) 1, locked_by = NULL, locked_at = NULL, updated_at = pg_catalog.now() \
          FROM old WHERE t.id OPERATOR(pg_catalog.=) old.id \
          RETURNING t.fence, t.queue, t.priority, t.wakeup_at, t.options, old.queue, old.options",
        &[
            pg_sys::UUIDOID,
            pg_sys::INT8OID,
            pg_sys::BOOLOID,
            pg_sys::JSONBOID,
            pg_sys::TEXTOID,
            pg_sys::INT2OID,
            pg_sys::TIMESTAMPTZOID,
            pg_sys::JSONBOID,
        ],
    ) };
}

/// Until when a task holds its key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Scope {
    Done,
    Period,
    Queued,
    Running,
}

impl Scope {
    const ALL: [(&str, Self); 4] = [
        ("done", Self::Done),
        ("period", Self::Period),
        ("queued", Self::Queued),
        ("running", Self::Running),
    ];

    fn name(self) -> &'static str {
        name_of(self, &Self::ALL)
    }
}

/// What is to happen when the key is held.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum OnConflict {
    Error,
    Move,
    Replace,
    ReplaceAndMove,
    Skip,
}

impl OnConflict {
    const ALL: [(&str, Self); 5] = [
        ("error", Self::Error),
        ("move", Self::Move),
        ("replace", Self::Replace),
        ("replace_and_move", Self::ReplaceAndMove),
        ("skip", Self::Skip),
    ];
}

/// What happened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Outcome {
    Enqueued,
    Moved,
    Replaced,
    Skipped,
}

impl Outcome {
    const ALL: [(&str, Self); 4] = [
        ("enqueued", Self::Enqueued),
        ("moved", Self::Moved),
        ("replaced", Self::Replaced),
        ("skipped", Self::Skipped),
    ];
}

/// What the caller asks for: checked.
struct Wanted {
    step: Datum,
    key: String,
    scope: Scope,
    on_conflict: OnConflict,
    expires_at: Option<Micros>,
    due: Micros,
    place: Place,
}

/// What the key's row says.
struct Holder {
    task: TaskId,
    scope: Scope,
    fence: i64,
    expires_at: Option<Micros>,
}

/// The task that a key stands for, as it is at this moment.
struct Task {
    is_parked: bool,
    /// No worker has begun with it.
    waits: bool,
}

fn enqueue_unique(call: &mut Call) -> Result<Option<Datum>, Error> {
    produce::check_server()?;
    let wanted = wanted(call)?;
    let new = uuid7::new();
    TaskTable::lock_to_write();
    let (id, outcome) = spi::as_owner_of(c"unique_key", || spi::connected(|spi| hold(spi, &wanted, new)))?;
    if outcome == Outcome::Enqueued {
        // As the caller: privileges and policies are those of every other way to enqueue.
        produce::insert_task(new, wanted.step, wanted.due, &wanted.place)?;
        commit::note_unique();
    }
    let outcome = name_of(outcome, &Outcome::ALL);
    Ok(Some(call.record(&[Some(spi::uuid(&id)), spi::text(outcome)])))
}
sql_function!(
    "enqueue_unique_wrapper",
    "pg_finfo_enqueue_unique_wrapper",
    enqueue_unique,
    "enqueue_unique(step jsonb, key text, scope text, on_conflict text, period interval,
     wakeup_at timestamptz, queue text, priority integer, options jsonb) RETURNS record (id uuid, outcome text)"
);

fn wanted(call: &Call) -> Result<Wanted, Error> {
    let step = call.required(0, "step")?;
    produce::check_step(Some(step))?;
    call.required(1, "key")?;
    let key = call.text(1).unwrap_or_default();
    if key.is_empty() || key.len() > MAX_KEY {
        return Err(Error::UniqueKey { got: key.len() });
    }
    let scope = choice(call, 2, "scope", &Scope::ALL)?;
    let on_conflict = choice(call, 3, "on_conflict", &OnConflict::ALL)?;
    let expires_at = call.datum(4).map(period_from_now).transpose()?;
    if scope == Scope::Period && expires_at.is_none() {
        return Err(Error::PeriodMissing);
    }
    let due = match call.datum(5) {
        Some(due) => produce::finite(due.value() as i64, "wakeup_at")?,
        None => spi::transaction_time(),
    };
    let place = produce::place(call, 6, 8)?;
    Ok(Wanted { step, key, scope, on_conflict, expires_at, due, place })
}

/// The end of a period that begins now.
fn period_from_now(period: Datum) -> Result<Micros, Error> {
    let now = background::now();
    // SAFETY: callers pass an interval; an overflow raises PostgreSQL's own error.
    let end = unsafe {
        pgrx::direct_function_call_as_datum(
            pg_sys::timestamptz_pl_interval,
            &[Some(Datum::from(now)), Some(period)],
        )
    };
    let end = produce::finite(end.map_or(now, |end| end.value() as i64), "period")?;
    if end > now { Ok(end) } else { Err(Error::PeriodNotPositive) }
}

fn choice<T: Copy>(
    call: &Call,
    index: usize,
    name: &'static str,
    all: &[(&'static str, T)],
) -> Result<T, Error> {
    call.required(index, name)?;
    let got = call.text(index).unwrap_or_default();
    named(&got, all).ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
        Error::Choice { name, got, choices: names.join(", ") }
    })
}

fn named<T: Copy>(name: &str, all: &[(&str, T)]) -> Option<T> {
    all.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
}

fn name_of<T: Copy + PartialEq>(value: T, all: &[(&'static str, T)]) -> &'static str {
    all.iter().find(|(_, known)| *known == value).map_or("", |(name, _)| *name)
}

/// Takes the key for a new task, or says what becomes of the one that holds it.
fn hold(spi: &Connected, wanted: &Wanted, new: TaskId) -> Result<(TaskId, Outcome), Error> {
    let key = spi::text(&wanted.key);
    let over_at = wanted.due.max(wanted.expires_at.unwrap_or(0)).max(background::now());
    let check_at = (over_at + CHECK_AFTER).min(produce::LAST_MOMENT);
    let taking = [
        key,
        Some(spi::uuid(&new)),
        spi::text(wanted.scope.name()),
        wanted.expires_at.and_then(spi::int),
        spi::int(check_at),
    ];
    if !HOLD.with(|statement| statement.run(spi, &taking, false)).is_empty() {
        return Ok((new, Outcome::Enqueued));
    }
    let holder = holder(spi, key);
    let task = task(spi, &holder);
    if let Some(outcome) = under_holder(spi, wanted, &holder, task.as_ref())? {
        return Ok((holder.task, outcome));
    }
    TAKE.with(|statement| statement.run(spi, &taking, false));
    Ok((new, Outcome::Enqueued))
}

/// What the call comes to if the key is held; nothing if it is not.
fn under_holder(
    spi: &Connected,
    wanted: &Wanted,
    holder: &Holder,
    task: Option<&Task>,
) -> Result<Option<Outcome>, Error> {
    let waits = task.is_some_and(|task| task.waits);
    let in_scope = match holder.scope {
        Scope::Done => task.is_some(),
        Scope::Period => false,
        Scope::Queued => waits,
        Scope::Running => task.is_some_and(|task| !task.is_parked),
    };
    let skipped_in_period =
        holder.expires_at.filter(|end| *end > background::now()).map(|_| Outcome::Skipped);
    if !in_scope && skipped_in_period.is_none() {
        return Ok(None);
    }
    let (moves, replaces) = match wanted.on_conflict {
        OnConflict::Error => {
            return Err(Error::KeyHeld {
                key: wanted.key.clone(),
                task: uuid7::text(&holder.task),
                scope: holder.scope.name(),
            });
        }
        OnConflict::Move => (true, false),
        OnConflict::Replace => (false, true),
        OnConflict::ReplaceAndMove => (true, true),
        OnConflict::Skip => (false, false),
    };
    let changes = moves || replaces;
    // For a period a task is changed as long as it waits; a run that has begun is left alone.
    let is_changed = if changes { in_scope || (holder.scope == Scope::Period && waits) } else { false };
    // Whoever is skipped counts on a run that begins after this commits.
    let is_touched = !changes && in_scope && holder.scope == Scope::Queued;
    if !is_changed && !is_touched {
        return Ok(Some(Outcome::Skipped));
    }
    if !change(spi, wanted, holder, moves, replaces) {
        // A worker was faster.
        return Ok(skipped_in_period);
    }
    Ok(Some(match (moves, replaces) {
        (_, true) => Outcome::Replaced,
        (true, false) => Outcome::Moved,
        (false, false) => Outcome::Skipped,
    }))
}

/// Changes the task under a new fence. False when it is not as it was any more.
fn change(spi: &Connected, wanted: &Wanted, holder: &Holder, moves: bool, replaces: bool) -> bool {
    let must_wait = matches!(holder.scope, Scope::Period | Scope::Queued);
    let arguments = [
        Some(spi::uuid(&holder.task)),
        must_wait.then(|| Datum::from(holder.fence)),
        Some(Datum::from(holder.scope == Scope::Done)),
        replaces.then_some(wanted.step),
        replaces.then_some(wanted.place.queue),
        replaces.then(|| Datum::from(wanted.place.priority)),
        moves.then(|| Datum::from(wanted.due)),
        wanted.place.options,
    ];
    let rows = CHANGE.with(|statement| statement.run(spi, &arguments, false));
    if rows.is_empty() {
        return false;
    }
    let fence = rows.int8(0, 1);
    if let (Some(queue), Some(priority), Some(due)) =
        (rows.text(0, 2).as_deref().and_then(QueueName::new), rows.int2(0, 3), rows.int8(0, 4))
    {
        let named = |queue, options| {
            let options = rows.datum(0, options);
            // SAFETY: the options are a jsonb object, which the table's constraint says, and the queue is a text.
            rows.datum(0, queue)
                .map_or((None, None), |queue| unsafe { options::group_and_key(options, queue) })
        };
        let (group, key) = named(2, 5);
        commit::note_task(&queue, priority, due, holder.task, group, key);
        // Others may be next in the group and for the key that it had.
        let (old_group, old_key) = named(6, 7);
        let left = old_group.filter(|_| old_group != group).map(Look::Group);
        left.into_iter().chain(old_key.filter(|_| old_key != key).map(Look::Key)).for_each(commit::note_look);
    }
    let arguments = [spi::text(&wanted.key), fence.and_then(spi::int)];
    NOTE_FENCE.with(|statement| statement.run(spi, &arguments, false));
    true
}

fn holder(spi: &Connected, key: Option<Datum>) -> Holder {
    let rows = HOLDER.with(|statement| statement.run(spi, &[key], false));
    assert_eq!(rows.len(), 1, "a key that is locked is there");
    Holder {
        task: rows.uuid(0, 1).unwrap_or_default(),
        scope: rows.text(0, 2).and_then(|scope| named(&scope, &Scope::ALL)).unwrap_or(Scope::Done),
        fence: rows.int8(0, 3).unwrap_or(0),
        expires_at: rows.int8(0, 4),
    }
}

fn task(spi: &Connected, holder: &Holder) -> Option<Task> {
    // SAFETY: a plain read of the transaction's isolation level.
    let is_old_snapshot = unsafe { pg_sys::XactIsoLevel } >= pg_sys::XACT_REPEATABLE_READ as i32;
    let statement = if is_old_snapshot { &TASK_LOCKED } else { &TASK };
    let rows = statement.with(|statement| statement.run(spi, &[Some(spi::uuid(&holder.task))], false));
    if rows.is_empty() {
        return None;
    }
    let (is_parked, is_written) = (rows.bool(0, 2), rows.bool(0, 3));
    let is_untouched = |fence: i64| (fence ^ holder.fence) & i64::from(u32::MAX) == 0;
    let is_as_enqueued = rows.int8(0, 1).is_some_and(is_untouched) && !is_parked && !is_written;
    Some(Task { is_parked, waits: is_as_enqueued && !is_claimed(&holder.task) })
}

/// Whether a worker holds the task.
fn is_claimed(id: &TaskId) -> bool {
    shmem::my_slot().is_some_and(|slot| slot.with_board(|board| board.claim_of(id).is_some()))
}
