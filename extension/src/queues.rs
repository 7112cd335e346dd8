//! Settings of queues: the functions that change them, and the triggers that bring a change to the board with its commit.

use std::ffi::CStr;

use pg_task_rules::Micros;
use pg_task_rules::board::ALL_QUEUES;
use pg_task_rules::board::Board;
use pg_task_rules::board::MAX_KIND_LIMITS;
use pg_task_rules::board::QueueRule;
use pg_task_rules::bucket::Rate;
use pg_task_rules::names::Key;
use pg_task_rules::names::Kind;
use pg_task_rules::names::QueueName;
use pg_task_rules::retry::MAX_DELAY;
use pgrx::pg_sys;
use pgrx::pg_sys::Datum;

use crate::background;
use crate::call::Call;
use crate::call::sql_function;
use crate::commit;
use crate::error::Error;
use crate::guc;
use crate::options;
use crate::produce;
use crate::shmem;
use crate::spi;
use crate::spi::Statement;

/// Keys of a queue that can have weights.
const MAX_WEIGHTS: i32 = 1_000;

const MICROS_PER_DAY: Micros = 86_400_000_000;

thread_local! {
    static SET: Statement = const { Statement::new(
        c"INSERT INTO pg_task.queue AS q (name, concurrency, rate, rate_interval, burst, key_concurrency, retry, timeout, retention, \
            key_rate, key_rate_interval, key_burst, key_weights) \
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) \
          ON CONFLICT (name) DO UPDATE SET concurrency = excluded.concurrency, rate = excluded.rate, \
            rate_interval = excluded.rate_interval, burst = excluded.burst, key_concurrency = excluded.key_concurrency, \
            retry = excluded.retry, timeout = excluded.timeout, retention = excluded.retention, \
            key_rate = excluded.key_rate, key_rate_interval = excluded.key_rate_interval, key_burst = excluded.key_burst, \
            key_weights = excluded.key_weights, updated_at = pg_catalog.now()",
        &[
            pg_sys::TEXTOID,
            pg_sys::INT4OID,
            pg_sys::INT4OID,
            pg_sys::INTERVALOID,
            pg_sys::INT4OID,
            pg_sys::INT4OID,
            pg_sys::JSONBOID,
            pg_sys::INTERVALOID,
            pg_sys::INTERVALOID,
            pg_sys::INT4OID,
            pg_sys::INTERVALOID,
            pg_sys::INT4OID,
            pg_sys::JSONBOID,
        ],
    ) };
    // What is wrong with weights, if anything.
    static ODD_WEIGHT: Statement = const { Statement::new(
        c"SELECT CASE \
            WHEN pg_catalog.jsonb_typeof($1) OPERATOR(pg_catalog.<>) 'object' THEN pg_catalog.format('The value is of the type %s.', pg_catalog.jsonb_typeof($1)) \
            ELSE (SELECT pg_catalog.format('The weight of %s is %s.', pg_catalog.to_json(w.key), w.value) FROM pg_catalog.jsonb_each($1) AS w \
                  WHERE pg_catalog.octet_length(w.key) OPERATOR(pg_catalog.=) 0 OR pg_catalog.octet_length(w.key) OPERATOR(pg_catalog.>) 200 \
                    OR pg_catalog.jsonb_path_exists(w.value, 'strict $ ? (@.type() != \"number\" || @ < 1 || @ > 100 || @.floor() != @)') LIMIT 1) \
            END, \
            CASE WHEN pg_catalog.jsonb_typeof($1) OPERATOR(pg_catalog.=) 'object' \
                THEN (SELECT pg_catalog.count(*)::pg_catalog.int4 FROM pg_catalog.jsonb_object_keys($1)) END",
        &[pg_sys::JSONBOID],
    ) };
    static LIMIT: Statement = const { Statement::new(
        c"INSERT INTO pg_task.step_limit AS s (step, concurrency) VALUES ($1, $2) \
          ON CONFLICT (step) DO UPDATE SET concurrency = excluded.concurrency, updated_at = pg_catalog.now()",
        &[pg_sys::TEXTOID, pg_sys::INT4OID],
    ) };
    static UNLIMIT: Statement = const { Statement::new(
        c"DELETE FROM pg_task.step_limit AS s WHERE s.step OPERATOR(pg_catalog.=) $1",
        &[pg_sys::TEXTOID],
    ) };
    static PAUSE: Statement = const { Statement::new(
        c"INSERT INTO pg_task.queue AS q (name, paused_at) VALUES ($1, pg_catalog.now()) \
          ON CONFLICT (name) DO UPDATE SET paused_at = pg_catalog.now(), updated_at = pg_catalog.now() WHERE q.paused_at IS NULL",
        &[pg_sys::TEXTOID],
    ) };
    static RESUME: Statement = const { Statement::new(
        c"UPDATE pg_task.queue AS q SET paused_at = NULL, updated_at = pg_catalog.now() \
          WHERE q.name OPERATOR(pg_catalog.=) $1 AND q.paused_at IS NOT NULL",
        &[pg_sys::TEXTOID],
    ) };
    static DROP: Statement = const { Statement::new(
        c"DELETE FROM pg_task.queue AS q WHERE q.name OPERATOR(pg_catalog.=) $1",
        &[pg_sys::TEXTOID],
    ) };
    // A row exists for a queue with settings only.
    static PRUNE: Statement = const { Statement::new(
        c"DELETE FROM pg_task.queue AS q WHERE q.name OPERATOR(pg_catalog.=) $1 \
            AND q.paused_at IS NULL AND q.concurrency IS NULL AND q.rate IS NULL AND q.key_concurrency IS NULL \
            AND q.retry IS NULL AND q.timeout IS NULL AND q.retention IS NULL \
            AND q.key_rate IS NULL AND q.key_weights IS NULL",
        &[pg_sys::TEXTOID],
    ) };
}

fn set_queue(call: &mut Call) -> Result<Option<Datum>, Error> {
    produce::check_server()?;
    let name = name(call)?;
    let (concurrency, key_concurrency) = (call.datum(1), call.datum(5));
    in_range(concurrency, "concurrency", i64::from(i32::MAX))?;
    in_range(key_concurrency, "key_concurrency", i64::from(i32::MAX))?;
    let [rate, per, burst] = rate_arguments(call, 2, ["rate", "per", "burst", "per (in milliseconds)"])?;
    let names = ["key_rate", "key_per", "key_burst", "key_per (in milliseconds)"];
    let [key_rate, key_per, key_burst] = rate_arguments(call, 9, names)?;
    let key_weights = call.datum(12);
    let by_key = [("key_concurrency", key_concurrency), ("key_rate", key_rate), ("key_weights", key_weights)];
    if let Some((name, _)) = by_key.into_iter().find(|(_, value)| value.is_some())
        && call.text(0).as_deref() == Some(ALL_QUEUES)
    {
        return Err(Error::KeysOfAllQueues { name });
    }
    let (retry, timeout, retention) = (call.datum(6), call.datum(7), call.datum(8));
    options::check_policy(retry)?;
    check_timeout(timeout)?;
    check_retention(retention)?;
    spi::connected(|spi| {
        if key_weights.is_some() {
            let odd = ODD_WEIGHT.with(|statement| statement.run(spi, &[key_weights], true));
            if let Some(got) = odd.text(0, 1) {
                return Err(Error::KeyWeights { got });
            }
            if let Some(count) = odd.int4(0, 2).filter(|&count| count > MAX_WEIGHTS) {
                return Err(Error::KeyWeights {
                    got: format!("It has {count} keys; 1,000 of a queue can have weights."),
                });
            }
        }
        let arguments = [
            name,
            concurrency,
            rate,
            per,
            burst,
            key_concurrency,
            retry,
            timeout,
            retention,
            key_rate,
            key_per,
            key_burst,
            key_weights,
        ];
        SET.with(|statement| statement.run(spi, &arguments, false));
        PRUNE.with(|statement| statement.run(spi, &[name], false));
        Ok(Some(Datum::null()))
    })
}
sql_function!(
    "set_queue_wrapper",
    "pg_finfo_set_queue_wrapper",
    set_queue,
    "set_queue(
        name text, concurrency integer, rate integer, per interval, burst integer, key_concurrency integer, retry jsonb,
        timeout interval, retention interval, key_rate integer, key_per interval, key_burst integer, key_weights jsonb)
     RETURNS void"
);

/// An attempt may take longer than nothing, and at most as long as the option `timeout` of a task allows.
fn check_timeout(timeout: Option<Datum>) -> Result<(), Error> {
    let high = MAX_DELAY / 1_000;
    match timeout.map(micros) {
        Some(timeout) if !(1_000..=MAX_DELAY).contains(&timeout) => {
            Err(Error::OutOfRange { name: "timeout (in milliseconds)", low: 1, high, got: timeout / 1_000 })
        }
        _ => Ok(()),
    }
}

/// The history of a queue may be shorter than that of all: partitions are emptied as a whole.
fn check_retention(retention: Option<Datum>) -> Result<(), Error> {
    let longest = guc::HISTORY_RETENTION.get();
    match retention.map(|retention| micros(retention).div_euclid(1_000_000)) {
        Some(seconds) if seconds < 0 => Err(Error::RetentionNegative),
        Some(got) if longest > 0 && got > i64::from(longest) => Err(Error::RetentionTooLong { got, longest }),
        _ => Ok(()),
    }
}

/// The three arguments of a rate, of which the first is this one. The interval, which has a default, counts only with a rate.
fn rate_arguments(call: &Call, first: usize, names: [&'static str; 4]) -> Result<[Option<Datum>; 3], Error> {
    let [rate, per, burst] = [0, 1, 2].map(|at| call.datum(first + at));
    in_range(rate, names[0], i64::from(Rate::MAX_COUNT))?;
    in_range(burst, names[2], i64::from(Rate::MAX_COUNT))?;
    if rate.is_none() {
        return match burst {
            Some(_) => Err(Error::BurstWithoutRate { burst: names[2], rate: names[0] }),
            None => Ok([None; 3]),
        };
    }
    let period = per.map(micros).ok_or(Error::NullArgument { name: names[1] })?;
    if !(1_000..=Rate::MAX_PERIOD).contains(&period) {
        let (high, got) = (Rate::MAX_PERIOD / 1_000, period / 1_000);
        return Err(Error::OutOfRange { name: names[3], low: 1, high, got });
    }
    Ok([rate, per, burst])
}

fn pause_queue(call: &mut Call) -> Result<Option<Datum>, Error> {
    produce::check_server()?;
    let name = name(call)?;
    let count = spi::connected(|spi| PAUSE.with(|statement| statement.run(spi, &[name], false)).len());
    Ok(Some(Datum::from(count > 0)))
}
sql_function!(
    "pause_queue_wrapper",
    "pg_finfo_pause_queue_wrapper",
    pause_queue,
    "pause_queue(name text) RETURNS boolean"
);

fn resume_queue(call: &mut Call) -> Result<Option<Datum>, Error> {
    produce::check_server()?;
    let name = name(call)?;
    let count = spi::connected(|spi| {
        let count = RESUME.with(|statement| statement.run(spi, &[name], false)).len();
        PRUNE.with(|statement| statement.run(spi, &[name], false));
        count
    });
    Ok(Some(Datum::from(count > 0)))
}
sql_function!(
    "resume_queue_wrapper",
    "pg_finfo_resume_queue_wrapper",
    resume_queue,
    "resume_queue(name text) RETURNS boolean"
);

fn drop_queue(call: &mut Call) -> Result<Option<Datum>, Error> {
    produce::check_server()?;
    let name = name(call)?;
    let count = spi::connected(|spi| DROP.with(|statement| statement.run(spi, &[name], false)).len());
    Ok(Some(Datum::from(count > 0)))
}
sql_function!(
    "drop_queue_wrapper",
    "pg_finfo_drop_queue_wrapper",
    drop_queue,
    "drop_queue(name text) RETURNS boolean"
);

fn limit_step(call: &mut Call) -> Result<Option<Datum>, Error> {
    produce::check_server()?;
    let (step, _) = step(call)?;
    let concurrency = call.datum(1);
    in_range(concurrency, "concurrency", i64::from(i32::MAX))?;
    let step = spi::text(&step);
    spi::connected(|spi| match concurrency {
        Some(_) => LIMIT.with(|statement| statement.run(spi, &[step, concurrency], false)).len(),
        None => UNLIMIT.with(|statement| statement.run(spi, &[step], false)).len(),
    });
    Ok(Some(Datum::null()))
}
sql_function!(
    "limit_step_wrapper",
    "pg_finfo_limit_step_wrapper",
    limit_step,
    "limit_step(step text, concurrency integer) RETURNS void"
);

fn step_running(call: &mut Call) -> Result<Option<Datum>, Error> {
    if !shmem::ready() {
        return Err(Error::NotPreloaded);
    }
    if call.datum(0).is_none() {
        return Ok(None);
    }
    let (_, kind) = step(call)?;
    let running = shmem::my_slot().and_then(|slot| slot.with_board(|board| board.running_of_kind(kind)));
    Ok(running.and_then(spi::int))
}
sql_function!(
    "step_running_wrapper",
    "pg_finfo_step_running_wrapper",
    step_running,
    "step_running(step text) RETURNS integer"
);

/// When the rate of a key lets its next task go, if it holds it back.
fn key_opens_at(call: &mut Call) -> Result<Option<Datum>, Error> {
    if !shmem::ready() {
        return Err(Error::NotPreloaded);
    }
    let (Some(queue), Some(hash)) = (call.text(0).as_deref().and_then(QueueName::new), call.datum(1)) else {
        return Ok(None);
    };
    let key = Key(hash.value() as i64);
    let now = background::now();
    let opens_at =
        shmem::my_slot().and_then(|slot| slot.with_board(|board| board.key_opens_at(key, &queue, now)));
    Ok(opens_at.map(Datum::from))
}
sql_function!(
    "key_opens_at_wrapper",
    "pg_finfo_key_opens_at_wrapper",
    key_opens_at,
    "key_opens_at(queue text, key bigint) RETURNS timestamptz"
);

/// The first argument, which names a step.
fn step(call: &Call) -> Result<(String, Kind), Error> {
    call.required(0, "step")?;
    let step = call.text(0).unwrap_or_default();
    match Kind::parse(&step) {
        Some(kind) => Ok((step, kind)),
        None => Err(Error::StepName { got: step }),
    }
}

/// The first argument, which names a queue.
fn name(call: &Call) -> Result<Option<Datum>, Error> {
    call.required(0, "name")?;
    let name = call.text(0).unwrap_or_default();
    produce::queue_name(&name)?;
    Ok(spi::text(&name))
}

fn in_range(value: Option<Datum>, name: &'static str, high: i64) -> Result<(), Error> {
    match value.map(|value| i64::from(value.value() as i32)) {
        Some(got) if !(1..=high).contains(&got) => Err(Error::OutOfRange { name, low: 1, high, got }),
        _ => Ok(()),
    }
}

/// An `interval` in microseconds; a month has 30 days.
pub fn micros(interval: Datum) -> Micros {
    // SAFETY: callers pass an interval, which is passed by pointer.
    let interval = unsafe { &*interval.cast_mut_ptr::<pg_sys::Interval>() };
    i64::from(interval.month)
        .saturating_mul(30 * MICROS_PER_DAY)
        .saturating_add(i64::from(interval.day).saturating_mul(MICROS_PER_DAY))
        .saturating_add(interval.time)
}

/// The rate that three columns of a row give. The table's constraints allow nothing else; what stands there all the same is brought within
/// its bounds.
pub fn rate(rate: Option<i32>, per: Option<Datum>, burst: Option<i32>) -> Option<Rate> {
    let count = |number: i32| number.max(1) as u32;
    let (rate, per) = rate.zip(per)?;
    Some(Rate { period: micros(per), count: count(rate), burst: count(burst.unwrap_or(rate)) }.clamped())
}

/// What the columns of a row say, likewise.
pub fn rule(
    paused: bool,
    concurrency: Option<i32>,
    rate: Option<Rate>,
    key_concurrency: Option<i32>,
    key_rate: Option<Rate>,
) -> QueueRule {
    let count = |number: i32| number.max(1) as u32;
    QueueRule {
        paused,
        concurrency: concurrency.map(count),
        rate,
        key_concurrency: key_concurrency.map(count),
        key_rate,
    }
}

/// Before each statement that changes settings: one transaction at a time, until its end, so that the changes reach memory in the order of
/// their commits. After each row that a transaction has changed, when it commits: memory is to learn of it.
fn on_queue(call: &mut Call) -> Result<Option<Datum>, Error> {
    if !shmem::ready() {
        return Err(Error::NotPreloaded);
    }
    let trigger = call.trigger().ok_or(Error::TriggerOnly)?;
    // SAFETY: the server passes an open relation; the names are C strings, the namespace's may be null.
    let (relation, table, is_own) = unsafe {
        let relation = trigger.tg_relation;
        let namespace = pg_sys::SPI_getnspname(relation);
        let table = CStr::from_ptr((*(*relation).rd_rel).relname.data.as_ptr());
        (relation, table, !namespace.is_null() && CStr::from_ptr(namespace) == c"pg_task")
    };
    let is_queue = table == c"queue";
    if !is_own || !(is_queue || table == c"step_limit") {
        return Err(Error::TriggerOnly);
    }
    if trigger.tg_event & pg_sys::TRIGGER_EVENT_ROW == 0 {
        commit::note_queues_touched();
        // SAFETY: inside a transaction, which holds the lock to its end.
        unsafe {
            let lock = pg_sys::ExclusiveLock as i32;
            pg_sys::LockDatabaseObject(pg_sys::RelationRelationId, (*relation).rd_id, 0, lock);
        }
        if trigger.tg_event & pg_sys::TRIGGER_EVENT_OPMASK == pg_sys::TRIGGER_EVENT_TRUNCATE {
            commit::note_rules_stale();
        }
        return Ok(Some(Datum::null()));
    }
    let column = |tuple: pg_sys::HeapTuple, number: i32| {
        let mut is_null = false;
        // SAFETY: the tuple belongs to the trigger's relation, whose columns are those of sql/25_queue.sql.
        let datum = unsafe { pg_sys::SPI_getbinval(tuple, (*relation).rd_att, number, &mut is_null) };
        (!is_null).then_some(datum)
    };
    let int = |tuple, number| column(tuple, number).map(|value| value.value() as i32);
    // SAFETY: the first column of both tables is a text.
    let first = |tuple| column(tuple, 1).map(|name| unsafe { spi::text_from(name) });
    let name = |tuple| first(tuple).and_then(|name| QueueName::new(&name));
    let (old, new) = match trigger.tg_event & pg_sys::TRIGGER_EVENT_OPMASK {
        pg_sys::TRIGGER_EVENT_INSERT => (None, Some(trigger.tg_trigtuple)),
        pg_sys::TRIGGER_EVENT_DELETE => (Some(trigger.tg_trigtuple), None),
        _ => (Some(trigger.tg_trigtuple), Some(trigger.tg_newtuple)),
    };
    if !is_queue {
        let kind = |tuple| first(tuple).and_then(|step| Kind::parse(&step));
        let (old_kind, new_kind) = (old.and_then(kind), new.and_then(kind));
        if let Some(kind) = old_kind.filter(|kind| new_kind != Some(*kind)) {
            commit::note_step_limit(kind, None);
        }
        if let (Some(row), Some(kind)) = (new, new_kind) {
            let has_place = |board: &mut Board<'_>| {
                board.running_of_kind(kind).is_some()
                    || board.limited_kinds().count() + commit::step_limits_noted() < MAX_KIND_LIMITS
            };
            if shmem::my_slot().is_some_and(|slot| !slot.with_board(|board| has_place(board))) {
                return Err(Error::StepLimitsFull);
            }
            commit::note_step_limit(kind, Some(int(row, 2).unwrap_or(1).max(1) as u32));
        }
        return Ok(Some(Datum::null()));
    }
    let has_defaults = |tuple: pg_sys::HeapTuple| (9..=11).any(|number| column(tuple, number).is_some());
    if old.is_some_and(has_defaults) || new.is_some_and(has_defaults) {
        options::check_policy(new.and_then(|row| column(row, 9)))?;
        commit::note_defaults_changed();
    }
    let (old_name, new_name) = (old.and_then(name), new.and_then(name));
    if let Some(name) = old_name.filter(|name| new_name != Some(*name)) {
        commit::note_rule(name, None);
    }
    if let (Some(row), Some(name)) = (new, new_name) {
        let paused = column(row, 2).is_some();
        let of_queue = rate(int(row, 4), column(row, 5), int(row, 6));
        let of_keys = rate(int(row, 12), column(row, 13), int(row, 14));
        let rule = rule(paused, int(row, 3), of_queue, int(row, 8), of_keys);
        // What only says something for its tasks needs no gate.
        let rule = (rule != QueueRule::default()).then_some(rule);
        if let Some(slot) = shmem::my_slot()
            && rule.is_some()
            && !slot.with_board(|board| board.has_place_for_rule(&name, commit::rules_noted()))
        {
            return Err(Error::QueueRulesFull);
        }
        commit::note_rule(name, rule);
    }
    Ok(Some(Datum::null()))
}
sql_function!("on_queue_wrapper", "pg_finfo_on_queue_wrapper", on_queue, "on_queue() RETURNS trigger");

/// Every queue of which memory knows something.
struct QueueState {
    name: QueueName,
    ready: u32,
    running: u32,
    paused: bool,
    opens_at: Option<Micros>,
}

fn queue_states(call: &mut Call) -> Result<Option<Datum>, Error> {
    let slot = if shmem::ready() { shmem::my_slot() } else { return Err(Error::NotPreloaded) };
    let mut rows = call.rows();
    let Some(slot) = slot else { return Ok(None) };
    let now = background::now();
    let states: Vec<QueueState> = slot.with_board(|board| {
        let mut counts = vec![(0_u32, 0_u32, false); board.queues.len()];
        for lane in board.lanes_in_use() {
            let count = &mut counts[usize::from(lane.queue.0)];
            count.0 += lane.len;
            count.2 = true;
        }
        for (_, entry) in board.claims() {
            counts[usize::from(entry.queue.0)].1 += 1;
        }
        let is_known = |(index, count): &(usize, &(u32, u32, bool))| {
            count.0 > 0 || count.1 > 0 || board.gates[*index].is_set()
        };
        let state = |(index, (ready, running, _)): (usize, &(u32, u32, bool))| {
            let queue = pg_task_rules::board::QueueId(index as u16);
            QueueState {
                name: board.queue_name(queue),
                ready: *ready,
                running: *running,
                paused: board.is_paused(queue),
                opens_at: board.opening_of(queue, now).filter(|&at| at > now && *ready > 0),
            }
        };
        let mut states: Vec<QueueState> = counts.iter().enumerate().filter(is_known).map(state).collect();
        if board.gates[board.queues.len()].is_set() {
            states.push(QueueState {
                name: QueueName::new(ALL_QUEUES).unwrap_or(QueueName::EMPTY),
                ready: board.head.ready,
                running: board.head.claimed,
                paused: board.gates[board.queues.len()].is_paused(),
                opens_at: None,
            });
        }
        states
    });
    for state in &states {
        rows.push([
            spi::text(state.name.as_str()),
            spi::int(state.ready),
            spi::int(state.running),
            Some(Datum::from(state.paused)),
            state.opens_at.map(Datum::from),
        ]);
    }
    Ok(None)
}
sql_function!(
    "queue_states_wrapper",
    "pg_finfo_queue_states_wrapper",
    queue_states,
    "queue_states() RETURNS TABLE (queue text, ready integer, running integer, paused boolean, opens_at timestamptz)"
);
