//! Changes of many tasks at once, chosen by a filter: resume, cancel, move, another priority, another time.
//!
//! Rows are locked in the order of their ids, and those that someone else has locked are passed over: nobody waits, and so nobody waits for each
//! other.

use std::ffi::CStr;

use pg_task_rules::TaskId;
use pgrx::pg_sys;
use pgrx::pg_sys::Datum;
use pgrx::pg_sys::Oid;
use rustc_hash::FxHashSet;

use crate::background;
use crate::call::Call;
use crate::call::sql_function;
use crate::commit;
use crate::error::Error;
use crate::produce;
use crate::queues;
use crate::shmem;
use crate::spi;
use crate::spi::Statement;
use crate::task_table::TaskTable;

/// Rows that are locked and changed in one go.
const CHUNK: i64 = 10_000;

/// Tasks that are looked for on the board under one hold of its lock.
const BOARD_CHUNK: usize = 1_000;

/// The parameters of [`chosen`].
const TYPES: [Oid; 21] = [
    pg_sys::UUIDOID,
    pg_sys::TEXTOID,
    pg_sys::TEXTOID,
    pg_sys::TEXTOID,
    pg_sys::TEXTOID,
    pg_sys::INTERVALOID,
    pg_sys::INT4OID,
    pg_sys::INT4OID,
    pg_sys::UUIDARRAYOID,
    pg_sys::BOOLOID,
    pg_sys::BOOLOID,
    pg_sys::BOOLOID,
    pg_sys::BOOLOID,
    pg_sys::BOOLOID,
    pg_sys::BOOLOID,
    pg_sys::UUIDARRAYOID,
    pg_sys::BOOLOID,
    pg_sys::TEXTOID,
    pg_sys::INT2OID,
    pg_sys::TIMESTAMPTZOID,
    pg_sys::INT8OID,
];

/// A statement over the tasks that a filter chooses and that are not yet as they are to be.
macro_rules! chosen {
    ($head:literal, $tail:literal) => {
        spi::sql!(
            $head,
            " FROM pg_task.task AS t WHERE ($1 IS NULL OR t.id OPERATOR(pg_catalog.>) $1) \
            AND ($2 IS NULL OR t.queue OPERATOR(pg_catalog.=) $2) \
            AND ($3 IS NULL OR t.step OPERATOR(pg_catalog.?) $3) \
            AND ($4 IS NULL OR (t.step OPERATOR(pg_catalog.->) $3) OPERATOR(pg_catalog.?) $4) \
            AND ($5 IS NULL OR t.error OPERATOR(pg_catalog.~~) $5) \
            AND ($6 IS NULL OR t.created_at OPERATOR(pg_catalog.<) (pg_catalog.now() OPERATOR(pg_catalog.-) $6)) \
            AND ($7 IS NULL OR t.priority OPERATOR(pg_catalog.>=) $7) \
            AND ($8 IS NULL OR t.priority OPERATOR(pg_catalog.<=) $8) \
            AND ($9 IS NULL OR t.id OPERATOR(pg_catalog.=) ANY ($9)) \
            AND (NOT $10 OR t.error IS NOT NULL) AND (NOT $11 OR t.error IS NULL) \
            AND (NOT $12 OR t.wakeup_at OPERATOR(pg_catalog.<=) pg_catalog.now()) \
            AND (NOT $13 OR t.wakeup_at OPERATOR(pg_catalog.>) pg_catalog.now()) \
            AND (NOT $14 OR t.id OPERATOR(pg_catalog.=) ANY ($16) OR ($17 AND t.locked_by IS NOT NULL)) \
            AND (NOT $15 OR NOT (t.id OPERATOR(pg_catalog.=) ANY ($16) OR ($17 AND t.locked_by IS NOT NULL))) \
            AND ($18 IS NULL OR t.queue OPERATOR(pg_catalog.<>) $18) \
            AND ($19 IS NULL OR t.priority OPERATOR(pg_catalog.<>) $19) \
            AND ($20 IS NULL OR t.wakeup_at OPERATOR(pg_catalog.<>) $20) ",
            $tail
        )
    };
}

const LOCK: &CStr = chosen!("SELECT t.id", "ORDER BY t.id LIMIT $21 FOR UPDATE OF t SKIP LOCKED");
const COUNT: &CStr = chosen!("SELECT pg_catalog.count(*) FROM (SELECT 1", "LIMIT $21) AS x");

const UUIDS: Oid = pg_sys::UUIDARRAYOID;

thread_local! {
    static RESUME: Statement = const { Statement::new(
        c"UPDATE pg_task.task AS t SET error = NULL WHERE t.id OPERATOR(pg_catalog.=) ANY ($1)",
        &[UUIDS],
    ) };
    static CANCEL: Statement = const { Statement::new(
        c"DELETE FROM pg_task.task AS t WHERE t.id OPERATOR(pg_catalog.=) ANY ($1) RETURNING t.id",
        &[UUIDS],
    ) };
    static MOVE: Statement = const { Statement::new(
        c"UPDATE pg_task.task AS t SET queue = $2 WHERE t.id OPERATOR(pg_catalog.=) ANY ($1)",
        &[UUIDS, pg_sys::TEXTOID],
    ) };
    static REPRIORITIZE: Statement = const { Statement::new(
        c"UPDATE pg_task.task AS t SET priority = $2 WHERE t.id OPERATOR(pg_catalog.=) ANY ($1)",
        &[UUIDS, pg_sys::INT2OID],
    ) };
    static RESCHEDULE: Statement = const { Statement::new(
        c"UPDATE pg_task.task AS t SET wakeup_at = $2 WHERE t.id OPERATOR(pg_catalog.=) ANY ($1)",
        &[UUIDS, pg_sys::TIMESTAMPTZOID],
    ) };
}

/// What is done with the chosen tasks.
#[derive(Clone, Copy)]
enum Change {
    Cancel,
    Move(Datum),
    Reprioritize(i16),
    Reschedule(i64),
    Resume,
}

/// Which of the tasks that are not finished. The words are those of `pg_task.queues`.
#[derive(Clone, Copy, PartialEq)]
enum State {
    /// Every one.
    Any,
    /// Every one that no worker holds.
    Idle,
    Parked,
    Due,
    Asleep,
    Running,
}

/// Which tasks.
struct Filter {
    queue: Option<Datum>,
    task: Option<Datum>,
    step: Option<Datum>,
    error_like: Option<Datum>,
    state: State,
    older_than: Option<Datum>,
    min_priority: Option<Datum>,
    max_priority: Option<Datum>,
    ids: Option<Datum>,
    max: Option<i64>,
    dry_run: bool,
}

impl Filter {
    /// Reads the arguments from the one of this index on. `state` is what the function chooses by itself; one of [`State::Parked`] has no
    /// argument for it.
    fn read(call: &Call, first: usize, state: State) -> Result<Self, Error> {
        let (state, first_after) = match state {
            State::Parked => (state, first + 3),
            state => (call.text(first + 3).map_or(Ok(state), |text| named(&text))?, first + 4),
        };
        let (task, step) = match call.text(first + 1).as_deref() {
            None => (None, None),
            Some(name) => match name.split_once('/') {
                None => (spi::text(name), None),
                Some((task, step)) => (spi::text(task), spi::text(step)),
            },
        };
        let filter = Self {
            queue: call.datum(first),
            task,
            step,
            error_like: call.datum(first + 2),
            state,
            older_than: call.datum(first_after),
            min_priority: call.datum(first_after + 1),
            max_priority: call.datum(first_after + 2),
            ids: call.datum(first_after + 3),
            max: call.datum(first_after + 4).map(|max| i64::from(max.value() as i32)),
            // An older declaration does not have it.
            dry_run: match call.is_declared(first_after + 5) {
                true => call.required(first_after + 5, "dry_run")?.value() & 0xff != 0,
                false => false,
            },
        };
        filter.check()?;
        Ok(filter)
    }

    fn check(&self) -> Result<(), Error> {
        if let Some(age) = self.older_than.map(queues::micros).filter(|age| *age < 0) {
            let (high, got) = (i64::MAX / 1_000_000, age / 1_000_000);
            return Err(Error::OutOfRange { name: "older_than (in seconds)", low: 0, high, got });
        }
        if let Some(got) = self.max.filter(|max| *max < 1) {
            return Err(Error::OutOfRange { name: "max", low: 1, high: i64::from(i32::MAX), got });
        }
        let int = |datum: Datum| i64::from(datum.value() as i32);
        if let (Some(min), Some(max)) = (self.min_priority.map(int), self.max_priority.map(int))
            && min > max
        {
            return Err(Error::OutOfRange {
                name: "max_priority",
                low: min,
                high: i64::from(i16::MAX),
                got: max,
            });
        }
        Ok(())
    }

    /// The arguments of a statement over the tasks after an id, but for its limit.
    fn arguments(
        &self,
        change: Change,
        after: Option<&TaskId>,
        claimed: &FxHashSet<TaskId>,
        limit: Option<i64>,
    ) -> [Option<Datum>; TYPES.len()] {
        let is = |states: &[State]| spi::bool(states.contains(&self.state));
        let trusted = background::now() < shmem::trust_locks_until();
        [
            after.map(spi::uuid),
            self.queue,
            self.task,
            self.step,
            self.error_like,
            self.older_than,
            self.min_priority,
            self.max_priority,
            self.ids,
            is(&[State::Parked]),
            is(&[State::Due, State::Asleep, State::Running]),
            is(&[State::Due]),
            is(&[State::Asleep]),
            is(&[State::Running]),
            is(&[State::Idle, State::Due, State::Asleep]),
            spi::uuid_array(claimed.iter()),
            spi::bool(trusted),
            match change {
                Change::Move(queue) => Some(queue),
                _ => None,
            },
            match change {
                Change::Reprioritize(priority) => spi::int(priority),
                _ => None,
            },
            match change {
                Change::Reschedule(at) => spi::int(at),
                _ => None,
            },
            limit.and_then(spi::int),
        ]
    }
}

/// The state of a name.
fn named(name: &str) -> Result<State, Error> {
    match name {
        "parked" => Ok(State::Parked),
        "due" => Ok(State::Due),
        "asleep" => Ok(State::Asleep),
        "running" => Ok(State::Running),
        got => Err(Error::State { got: got.to_owned() }),
    }
}

/// What workers hold at this moment.
fn claimed() -> FxHashSet<TaskId> {
    let claims =
        |slot: shmem::Slot| slot.with_board(|board| board.claims().map(|(_, entry)| entry.id).collect());
    shmem::my_slot().map(claims).unwrap_or_default()
}

/// Takes tasks off the board whose rows this transaction has locked: until it ends nobody is given them as they were. Those that a worker has taken
/// since the first look at memory are left out, if only idle ones are wanted.
fn withhold(ids: &mut Vec<TaskId>, only_idle: bool) {
    let Some(slot) = shmem::my_slot() else { return };
    let mut idle = Vec::with_capacity(ids.len());
    for ids in ids.chunks(BOARD_CHUNK) {
        slot.with_board(|board| {
            let keep = |id: &&TaskId| {
                let is_idle = board.claim_of(id).is_none();
                board.remove_ready(id);
                is_idle || !only_idle
            };
            idle.extend(ids.iter().filter(keep));
        });
    }
    *ids = idle;
    commit::note_withheld();
}

/// Changes what the filter chooses, or counts it.
fn run(filter: &Filter, change: Change) -> i64 {
    let knows_claims = filter.state != State::Any && filter.state != State::Parked;
    let held = if knows_claims { claimed() } else { FxHashSet::default() };
    if filter.dry_run {
        return spi::connected(|spi| {
            let arguments = filter.arguments(change, None, &held, filter.max);
            spi::run_once(spi, COUNT, &TYPES, &arguments, true).int8(0, 1).unwrap_or(0)
        });
    }
    TaskTable::lock_to_write();
    let (mut count, mut after): (i64, Option<TaskId>) = (0, None);
    loop {
        let limit = filter.max.map_or(CHUNK, |max| CHUNK.min(max - count));
        let locked = spi::connected(|spi| {
            let arguments = filter.arguments(change, after.as_ref(), &held, Some(limit));
            let rows = spi::run_once(spi, LOCK, &TYPES, &arguments, false);
            let mut ids: Vec<TaskId> = (0..rows.len()).filter_map(|row| rows.uuid(row, 1)).collect();
            let locked = ids.len() as i64;
            after = ids.last().copied();
            if !matches!(change, Change::Resume) && filter.state != State::Running {
                withhold(&mut ids, filter.state != State::Any);
            }
            if !ids.is_empty() {
                count += change.write(spi, &ids);
            }
            locked
        });
        if locked < limit || filter.max.is_some_and(|max| count >= max) {
            return count;
        }
    }
}

impl Change {
    /// Writes the change to rows that this transaction has locked; returns how many were changed.
    fn write(self, spi: &spi::Connected, ids: &[TaskId]) -> i64 {
        let ids = spi::uuid_array(ids.iter());
        let rows = match self {
            Self::Cancel => CANCEL.with(|statement| statement.run(spi, &[ids], false)),
            Self::Move(queue) => MOVE.with(|statement| statement.run(spi, &[ids, Some(queue)], false)),
            Self::Reprioritize(priority) => {
                REPRIORITIZE.with(|statement| statement.run(spi, &[ids, spi::int(priority)], false))
            }
            Self::Reschedule(at) => {
                RESCHEDULE.with(|statement| statement.run(spi, &[ids, spi::int(at)], false))
            }
            Self::Resume => RESUME.with(|statement| statement.run(spi, &[ids], false)),
        };
        rows.len() as i64
    }
}

fn resume_all(call: &mut Call) -> Result<Option<Datum>, Error> {
    produce::check_server()?;
    let filter = Filter::read(call, 0, State::Parked)?;
    Ok(spi::int(run(&filter, Change::Resume)))
}
sql_function!(
    "resume_all_wrapper",
    "pg_finfo_resume_all_wrapper",
    resume_all,
    "resume_all(queue text, task text, error_like text, older_than interval, min_priority integer, max_priority integer,
        ids uuid[], max integer, dry_run boolean) RETURNS bigint"
);

fn cancel_all(call: &mut Call) -> Result<Option<Datum>, Error> {
    produce::check_server()?;
    let filter = Filter::read(call, 0, State::Any)?;
    Ok(spi::int(run(&filter, Change::Cancel)))
}
sql_function!(
    "cancel_all_wrapper",
    "pg_finfo_cancel_all_wrapper",
    cancel_all,
    "cancel_all(queue text, task text, error_like text, state text, older_than interval, min_priority integer,
        max_priority integer, ids uuid[], max integer, dry_run boolean) RETURNS bigint"
);

fn move_all(call: &mut Call) -> Result<Option<Datum>, Error> {
    produce::check_server()?;
    let queue = call.required(0, "to_queue")?;
    produce::queue_name(&call.text(0).unwrap_or_default())?;
    let filter = Filter::read(call, 1, State::Idle)?;
    Ok(spi::int(run(&filter, Change::Move(queue))))
}
sql_function!(
    "move_all_wrapper",
    "pg_finfo_move_all_wrapper",
    move_all,
    "move_all(to_queue text, queue text, task text, error_like text, state text, older_than interval,
        min_priority integer, max_priority integer, ids uuid[], max integer, dry_run boolean) RETURNS bigint"
);

fn reprioritize_all(call: &mut Call) -> Result<Option<Datum>, Error> {
    produce::check_server()?;
    let priority = produce::priority(call, 0, "to_priority")?;
    let filter = Filter::read(call, 1, State::Idle)?;
    Ok(spi::int(run(&filter, Change::Reprioritize(priority))))
}
sql_function!(
    "reprioritize_all_wrapper",
    "pg_finfo_reprioritize_all_wrapper",
    reprioritize_all,
    "reprioritize_all(to_priority integer, queue text, task text, error_like text, state text, older_than interval,
        min_priority integer, max_priority integer, ids uuid[], max integer, dry_run boolean) RETURNS bigint"
);

fn reschedule_all(call: &mut Call) -> Result<Option<Datum>, Error> {
    produce::check_server()?;
    let at = produce::finite(call.required(0, "wakeup_at")?.value() as i64, "wakeup_at")?;
    let filter = Filter::read(call, 1, State::Idle)?;
    Ok(spi::int(run(&filter, Change::Reschedule(at))))
}
sql_function!(
    "reschedule_all_wrapper",
    "pg_finfo_reschedule_all_wrapper",
    reschedule_all,
    "reschedule_all(wakeup_at timestamptz, queue text, task text, error_like text, state text, older_than interval,
        min_priority integer, max_priority integer, ids uuid[], max integer, dry_run boolean) RETURNS bigint"
);
