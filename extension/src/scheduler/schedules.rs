//! Schedules, as the scheduler serves them: what is due is enqueued and moved on to its next tick in one transaction, under the row's lock.
//!
//! Nothing is kept in memory but the moment of the next look: the rows say where each schedule stands, after a crash and on a new primary too. An
//! error of one schedule lands in its row and holds up no other.

use std::panic::RefUnwindSafe;
use std::panic::UnwindSafe;
use std::sync::atomic::Ordering::SeqCst;

use pg_task_rules::Micros;
use pg_task_rules::TaskId;
use pg_task_schedule::Missed;
use pg_task_schedule::Overlap;
use pg_task_schedule::Seconds;
use pg_task_schedule::choose;
use pg_task_schedule::jitter;
use pg_task_schedule::place;
use pgrx::pg_sys;
use pgrx::pg_sys::Datum;

use crate::background;
use crate::call::array_elements;
use crate::catalog;
use crate::catalog::Lock;
use crate::error::Error;
use crate::produce;
use crate::queues;
use crate::schedules;
use crate::shmem::Slot;
use crate::spi;
use crate::spi::ElementType;
use crate::spi::Rows;
use crate::spi::Statement;

/// Schedules that are served in one transaction.
const BATCH: i32 = 100;

/// Transactions in one tick of the scheduler, after which it looks at other things.
const BATCHES: usize = 10;

/// Schedules that are served one by one, because one of them fails, take so long at most before the scheduler looks at other things.
const SINGLY_FOR: Micros = 2_000_000;

/// A row that someone keeps locked is tried again after this time, and so is everything after an error.
const AGAIN: Micros = 200_000;

/// The end of a run for which a tick waits wakes the scheduler. It looks by itself as well, in case a row goes without a word, as with TRUNCATE; and
/// more often when more runs are waited for than it can watch.
const LOOK_AGAIN: Micros = 30_000_000;
const LOOK_OFTEN: Micros = 2_000_000;

/// The highest `missed_limit`: no more ticks of a schedule wait.
const MOST_WAITING: usize = 1_000;

/// A schedule whose tick could not be enqueued is tried again after a second, and at most a minute.
const RETRY_FIRST: Micros = 1_000_000;
const RETRY_LAST: Micros = 60_000_000;

/// The schedules that a condition chooses, with the columns that [`Schedule::read`] reads.
macro_rules! whole {
    ($condition:literal) => {
        spi::sql!(
            "SELECT s.name, s.cron, s.time_zone, s.step, s.tick_field, s.queue, s.priority, s.missed, s.missed_limit, s.overlap, \
            s.jitter, s.starts_at, s.ends_at, s.next_at, s.waiting, s.tasks, s.options \
            FROM pg_task.schedule AS s WHERE ",
            $condition
        )
    };
}

thread_local! {
    static DUE: Statement = const { Statement::new(
        whole!("s.wake_at OPERATOR(pg_catalog.<=) $1 ORDER BY s.wake_at LIMIT $2 FOR UPDATE SKIP LOCKED"),
        &[pg_sys::TIMESTAMPTZOID, pg_sys::INT4OID],
    ) };
    static ONE: Statement = const { Statement::new(
        whole!(
            "s.name OPERATOR(pg_catalog.=) $1 AND s.paused_at IS NULL \
              AND (s.wake_at OPERATOR(pg_catalog.<=) $2 OR pg_catalog.cardinality(s.waiting) OPERATOR(pg_catalog.>) 0) \
            FOR UPDATE SKIP LOCKED"
        ),
        &[pg_sys::TEXTOID, pg_sys::TIMESTAMPTZOID],
    ) };
    static DUE_NAMES: Statement = const { Statement::new(
        c"SELECT s.name FROM pg_task.schedule AS s WHERE s.wake_at OPERATOR(pg_catalog.<=) $1 ORDER BY s.wake_at LIMIT $2",
        &[pg_sys::TIMESTAMPTZOID, pg_sys::INT4OID],
    ) };
    static FREED: Statement = const { Statement::new(
        c"SELECT s.name FROM pg_task.schedule AS s \
          WHERE pg_catalog.cardinality(s.waiting) OPERATOR(pg_catalog.>) 0 AND s.paused_at IS NULL AND s.failures OPERATOR(pg_catalog.=) 0 \
            AND NOT EXISTS (SELECT FROM pg_task.task AS t WHERE t.id OPERATOR(pg_catalog.=) ANY (s.tasks) AND t.error IS NULL)",
        &[],
    ) };
    // One run of each schedule with a tick that waits: when it has ended, the next one is looked for.
    static AWAITED: Statement = const { Statement::new(
        c"SELECT t.id FROM pg_task.schedule AS s, LATERAL (SELECT t.id FROM pg_task.task AS t \
            WHERE t.id OPERATOR(pg_catalog.=) ANY (s.tasks) AND t.error IS NULL LIMIT 1) AS t \
          WHERE pg_catalog.cardinality(s.waiting) OPERATOR(pg_catalog.>) 0 AND s.paused_at IS NULL AND s.failures OPERATOR(pg_catalog.=) 0",
        &[],
    ) };
    static LIVE: Statement = const { Statement::new(
        c"SELECT t.id FROM pg_task.task AS t WHERE t.id OPERATOR(pg_catalog.=) ANY ($1) AND t.error IS NULL",
        &[pg_sys::UUIDARRAYOID],
    ) };
    static ADVANCE: Statement = const { Statement::new(
        c"UPDATE pg_task.schedule AS s SET next_at = $2, wake_at = $2, waiting = $3, tasks = $4, \
            last_at = COALESCE($5, s.last_at), last_run_at = CASE WHEN $6 OPERATOR(pg_catalog.>) 0 THEN $7 ELSE s.last_run_at END, \
            fired = LEAST(s.fired, 9223372036854775807 OPERATOR(pg_catalog.-) $6) OPERATOR(pg_catalog.+) $6, \
            skipped = LEAST(s.skipped, 9223372036854775807 OPERATOR(pg_catalog.-) $8) OPERATOR(pg_catalog.+) $8, failures = 0, error = NULL \
          WHERE s.name OPERATOR(pg_catalog.=) $1",
        &[
            pg_sys::TEXTOID,
            pg_sys::TIMESTAMPTZOID,
            pg_sys::TIMESTAMPTZARRAYOID,
            pg_sys::UUIDARRAYOID,
            pg_sys::TIMESTAMPTZOID,
            pg_sys::INT8OID,
            pg_sys::TIMESTAMPTZOID,
            pg_sys::INT8OID,
        ],
    ) };
    static FAILED: Statement = const { Statement::new(
        c"UPDATE pg_task.schedule AS s SET failures = LEAST(s.failures, 2147483646) OPERATOR(pg_catalog.+) 1, error = $2, \
            wake_at = pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+) pg_catalog.make_interval(secs => \
                LEAST($4, $3 OPERATOR(pg_catalog.*) pg_catalog.power(2::double precision, \
                    GREATEST(0, LEAST(s.failures, 10))::double precision))) \
          WHERE s.name OPERATOR(pg_catalog.=) $1 RETURNING s.failures",
        &[pg_sys::TEXTOID, pg_sys::TEXTOID, pg_sys::FLOAT8OID, pg_sys::FLOAT8OID],
    ) };
    static AHEAD: Statement = const { Statement::new(
        c"SELECT (SELECT s.wake_at FROM pg_task.schedule AS s WHERE s.wake_at IS NOT NULL ORDER BY s.wake_at LIMIT 1), \
            EXISTS (SELECT FROM pg_task.schedule AS s \
                WHERE pg_catalog.cardinality(s.waiting) OPERATOR(pg_catalog.>) 0 AND s.paused_at IS NULL)",
        &[],
    ) };
}

/// When the scheduler looks at schedules next.
#[derive(Default)]
pub struct Schedules {
    is_known: bool,
    next: Option<Micros>,
    /// A tick waits for the end of a run: when it is looked for that, if nothing tells of it before.
    look_at: Option<Micros>,
    last_error: String,
}

/// What one transaction has found.
struct Round {
    served: usize,
    /// Ticks that waited, and whose time has come, were among what was served.
    looked: bool,
    next: Option<Micros>,
    look_at: Option<Micros>,
}

impl Schedules {
    /// Enqueues what has come due. Without schedules this is a look at one flag.
    pub fn fire(&mut self, slot: Slot) {
        let stale = slot.control().schedules_stale.load(SeqCst);
        let now = background::now();
        if slot.control().waiters.take_watched_end() {
            self.look_at = Some(now);
        }
        if self.is_known && !stale && self.wake_at().is_none_or(|at| at > now) {
            return;
        }
        slot.control().schedules_stale.store(false, SeqCst);
        for _ in 0..BATCHES {
            let round = match self.round(slot) {
                Ok(round) => round,
                Err(error) => {
                    let again = background::now() + 5 * AGAIN;
                    (self.next, self.look_at) = (Some(again), self.look_at.map(|at| at.max(again)));
                    if error != self.last_error {
                        pgrx::warning!(
                            "pg_task scheduler: schedules could not be read and will be tried again: {error}"
                        );
                        slot.control().set_error(&error, background::now());
                        self.last_error = error;
                    }
                    return;
                }
            };
            self.last_error.clear();
            self.is_known = true;
            let now = background::now();
            (self.next, self.look_at) = (round.next, round.look_at);
            if self.wake_at().is_none_or(|at| at > now) {
                return;
            }
            if round.served == 0 && (round.looked || self.look_at.is_none_or(|at| at > now)) {
                // Someone has the row locked.
                self.next = self.next.map(|next| next.max(now + AGAIN));
                self.look_at = self.look_at.map(|at| at.max(now + AGAIN));
                return;
            }
        }
    }

    /// When there will be something to do.
    pub fn wake_at(&self) -> Option<Micros> {
        [self.next, self.look_at].into_iter().flatten().min()
    }

    fn round(&mut self, slot: Slot) -> Result<Round, String> {
        let looked = self.look_at.is_some_and(|at| at <= background::now());
        let freed = if looked { transaction(names_freed)? } else { Vec::new() };
        let mut unnoted = None;
        let mut serve_alone = |name: &String| {
            serve_one(slot, name).unwrap_or_else(|error| {
                unnoted = Some(error);
                false
            })
        };
        let freed = freed.iter().filter(|name| serve_alone(name)).count();
        let served = transaction(|| {
            let now = background::now();
            let due = spi::connected(|spi| {
                let rows = DUE.with(|statement| statement.run(spi, &[spi::int(now), spi::int(BATCH)], false));
                (0..rows.len()).filter_map(|row| Schedule::read(&rows, row)).collect::<Vec<_>>()
            });
            for schedule in &due {
                if let Err(error) = serve(schedule, now) {
                    error.raise();
                }
            }
            due.len()
        });
        let served = match served {
            Ok(served) => served,
            // One of them spoils it for all: one by one.
            Err(_) => {
                let names = transaction(|| names_due(background::now()))?;
                let until = background::now() + SINGLY_FOR;
                names
                    .iter()
                    .take_while(|_| background::now() < until)
                    .filter(|name| serve_alone(name))
                    .count()
            }
        };
        // What its row does not say would be tried again without a pause.
        if let Some(error) = unnoted {
            return Err(error);
        }
        let (next, waits) = transaction(|| {
            spi::connected(|spi| {
                let rows = AHEAD.with(|statement| statement.run(spi, &[], true));
                (rows.int8(0, 1), rows.bool(0, 2))
            })
        })?;
        let look_at = watch(slot, waits)?;
        Ok(Round { served: served + freed, looked, next, look_at })
    }
}

/// Watches for the ends of runs for which ticks wait, if some do. Says when to look without having been told of one: at once when one was over before
/// it was watched.
fn watch(slot: Slot, waits: bool) -> Result<Option<Micros>, String> {
    let runs = if waits { transaction(runs_awaited)? } else { Vec::new() };
    // SAFETY: plain reads of this process' own variables.
    let (pid, latch) = unsafe { (pg_sys::MyProcPid, pg_sys::MyLatch) };
    let watches_all = slot.control().waiters.watch(&runs, pid, latch);
    if !waits {
        return Ok(None);
    }
    let freed = transaction(names_freed)?;
    let gap = match (freed.is_empty(), watches_all) {
        (false, _) => 0,
        (true, true) => LOOK_AGAIN,
        (true, false) => LOOK_OFTEN,
    };
    Ok(Some(background::now() + gap))
}

fn runs_awaited() -> Vec<TaskId> {
    spi::connected(|spi| {
        let rows = AWAITED.with(|statement| statement.run(spi, &[], true));
        (0..rows.len()).filter_map(|row| rows.uuid(row, 1)).collect()
    })
}

/// Runs `f` in a transaction, unless somebody has locked the table, for whom other work of the scheduler must not wait. Without the table, which an
/// extension of an older version does not have, there is nothing to do.
///
/// A tick and its task are one: what has come to a worker is not taken back by a crash, nor by a promotion when a standby is waited for.
fn transaction<R: Default>(f: impl FnOnce() -> R + UnwindSafe + RefUnwindSafe) -> Result<R, String> {
    background::transaction(|| {
        background::set_local(c"synchronous_commit", c"on");
        background::set_local(c"lock_timeout", c"1s");
        match catalog::try_lock(c"schedule", pg_sys::RowExclusiveLock) {
            Lock::Taken => Ok(f()),
            Lock::Busy => Err("somebody has locked the table pg_task.schedule".to_owned()),
            Lock::Missing => Ok(R::default()),
        }
    })?
}

fn names_due(now: Micros) -> Vec<String> {
    spi::connected(|spi| {
        let rows = DUE_NAMES.with(|statement| statement.run(spi, &[spi::int(now), spi::int(BATCH)], true));
        (0..rows.len()).filter_map(|row| rows.text(row, 1)).collect()
    })
}

fn names_freed() -> Vec<String> {
    spi::connected(|spi| {
        let rows = FREED.with(|statement| statement.run(spi, &[], true));
        (0..rows.len()).filter_map(|row| rows.text(row, 1)).collect()
    })
}

/// Serves one schedule in a transaction of its own. What goes wrong is written into its row, or comes back when it cannot be. False when there is
/// nothing to do, or someone has the row locked.
fn serve_one(slot: Slot, name: &str) -> Result<bool, String> {
    let result = transaction(|| {
        let now = background::now();
        let schedule = spi::connected(|spi| {
            let rows = ONE.with(|statement| statement.run(spi, &[spi::text(name), spi::int(now)], false));
            if rows.is_empty() { None } else { Schedule::read(&rows, 0) }
        });
        if let Some(schedule) = &schedule
            && let Err(error) = serve(schedule, now)
        {
            error.raise();
        }
        schedule.is_some()
    });
    let error = match result {
        Ok(served) => return Ok(served),
        Err(error) => error,
    };
    let text = error.as_str();
    let failures = transaction(|| {
        spi::connected(|spi| {
            let seconds = |micros: Micros| spi::float(micros as f64 / 1e6);
            let arguments = [spi::text(name), spi::text(text), seconds(RETRY_FIRST), seconds(RETRY_LAST)];
            let rows = FAILED.with(|statement| statement.run(spi, &arguments, false));
            if rows.is_empty() { None } else { rows.int4(0, 1) }
        })
    })?;
    if failures.is_none_or(|failures| failures <= 1) {
        pgrx::warning!("pg_task scheduler: the schedule \"{name}\" failed and will be tried again: {error}");
        slot.control().set_error(&error, background::now());
    }
    Ok(true)
}

/// A row of the table.
struct Schedule {
    name: String,
    cron: String,
    time_zone: String,
    step: Datum,
    tick_field: Option<String>,
    queue: String,
    priority: i16,
    missed: Missed,
    missed_limit: usize,
    overlap: Overlap,
    jitter: Micros,
    starts_at: Option<Micros>,
    ends_at: Option<Micros>,
    next_at: Option<Micros>,
    waiting: Vec<Seconds>,
    tasks: Vec<TaskId>,
    options: Option<Datum>,
}

impl Schedule {
    /// The table's constraints allow no other words and no NULL here.
    fn read(rows: &Rows, row: usize) -> Option<Self> {
        // SAFETY: these columns of DUE and ONE are arrays of timestamptz and of uuid.
        let (waiting, tasks) = unsafe {
            let elements = |column| rows.datum(row, column).map(|array| array_elements(array));
            // Whatever somebody has written there by hand.
            let moments = elements(15)?.into_iter().flatten().map(|time| time.value() as i64);
            let moments: Vec<Micros> = moments.filter(|&moment| produce::is_moment(moment)).collect();
            let last = &moments[moments.len().saturating_sub(MOST_WAITING)..];
            let waiting: Vec<Seconds> = last.iter().map(|&moment| schedules::second(moment)).collect();
            let tasks: Vec<TaskId> =
                elements(16)?.into_iter().flatten().map(|id| spi::uuid_from(id)).collect();
            (waiting, tasks)
        };
        Some(Self {
            name: rows.text(row, 1)?,
            cron: rows.text(row, 2)?,
            time_zone: rows.text(row, 3)?,
            step: schedules::kept(rows, row, 4)?,
            tick_field: rows.text(row, 5),
            queue: rows.text(row, 6)?,
            priority: rows.int2(row, 7)?,
            missed: Missed::parse(&rows.text(row, 8)?)?,
            missed_limit: rows.int4(row, 9)?.clamp(1, MOST_WAITING as i32) as usize,
            overlap: Overlap::parse(&rows.text(row, 10)?)?,
            jitter: queues::micros(rows.datum(row, 11)?),
            starts_at: rows.int8(row, 12),
            ends_at: rows.int8(row, 13),
            next_at: rows.int8(row, 14),
            waiting,
            tasks,
            options: schedules::kept(rows, row, 17),
        })
    }
}

/// Enqueues what is due of a schedule whose row is locked, and moves it on.
fn serve(schedule: &Schedule, now: Micros) -> Result<(), Error> {
    let Schedule { name, missed, missed_limit, .. } = schedule;
    let plan = schedules::plan(&schedule.cron, &schedule.time_zone, schedule.starts_at, schedule.ends_at)?;
    let at = schedules::second(now);
    let mut skipped = 0;
    let (mut ticks, mut next, mut last) = (Vec::new(), None, None);
    if let Some(first) = schedule.next_at.map(schedules::second) {
        let due = plan.due(first, at, missed.wanted(*missed_limit));
        ticks = choose(&due, *missed, at);
        skipped = due.count.saturating_sub(ticks.len() as u64);
        (next, last) = (due.next, due.ticks.last().copied());
    }
    let tasks = spi::uuid_array(schedule.tasks.iter());
    let mut live: Vec<TaskId> = spi::connected(|spi| {
        let rows = LIVE.with(|statement| statement.run(spi, &[tasks], false));
        (0..rows.len()).filter_map(|row| rows.uuid(row, 1)).collect()
    });
    let placed = place(schedule.overlap, &schedule.waiting, &ticks, live.len(), *missed_limit);
    if schedule.overlap == Overlap::Allow && !placed.run.is_empty() {
        // Nobody asks for them, and they could be many.
        live.clear();
    }
    for &tick in &placed.run {
        let moment = schedules::moment(tick);
        let step = schedules::step_of(schedule.step, schedule.tick_field.as_deref(), moment)?;
        let due = moment.saturating_add(jitter(name, tick, schedule.jitter)).min(produce::LAST_MOMENT);
        live.push(produce::enqueue_at(&schedule.queue, schedule.priority, due, step, schedule.options)?);
    }
    let mut waiting: Vec<Datum> =
        placed.waiting.iter().map(|&tick| Datum::from(schedules::moment(tick))).collect();
    let time = |second: Option<Seconds>| {
        second.map(schedules::moment).filter(|&moment| produce::is_moment(moment)).and_then(spi::int)
    };
    let arguments = [
        spi::text(name),
        time(next),
        spi::array(&mut waiting, ElementType::Timestamp),
        spi::uuid_array(live.iter()),
        time(last),
        spi::int(placed.run.len() as i64),
        spi::int(now),
        spi::int((skipped + placed.skipped) as i64),
    ];
    spi::connected(|spi| ADVANCE.with(|statement| statement.run(spi, &arguments, false)).len());
    Ok(())
}
