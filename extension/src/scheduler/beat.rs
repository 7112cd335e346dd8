//! What the scheduler writes: lost workers, claims written behind, the epoch of the tokens. And whom it wakes.

use std::collections::HashSet;
use std::ffi::CString;
use std::sync::atomic::Ordering::Relaxed;

use pg_task_rules::Micros;
use pg_task_rules::TaskId;
use pg_task_rules::WorkerId;
use pg_task_rules::board::Entry;
use pg_task_rules::token;
use pgrx::pg_sys;

use crate::defaults;
use crate::failure::Failing;
use crate::handout::NOBODY;
use crate::options;
use crate::shmem::Slot;
use crate::spi;
use crate::spi::Connected;
use crate::spi::ElementType;
use crate::spi::Statement;
use crate::spi::sql;
use crate::task_table::Column;
use crate::task_table::TaskTable;
use crate::uuid7;

const UUIDS: pg_sys::Oid = pg_sys::UUIDARRAYOID;
const INT8S: pg_sys::Oid = pg_sys::INT8ARRAYOID;
const INT4S: pg_sys::Oid = pg_sys::INT4ARRAYOID;
const TIMES: pg_sys::Oid = pg_sys::TIMESTAMPTZARRAYOID;

/// Claims that are written down in one statement.
const WRITE_BATCH: usize = 1_000;

const LOSE_TYPES: &[pg_sys::Oid] =
    &[UUIDS, INT8S, INT4S, INT4S, pg_sys::UUIDOID, pg_sys::TEXTARRAYOID, INT4S, pg_sys::UUIDOID];

macro_rules! lose {
    ($errors:literal) => {
        sql!(
            "UPDATE pg_task.task AS t SET tried = LEAST(t.tried, 2147483646) OPERATOR(pg_catalog.+) d.add, ",
            $errors,
            "   fence = t.fence OPERATOR(pg_catalog.+) 1, updated_at = pg_catalog.now(), \
                locked_by = CASE WHEN d.asks OPERATOR(pg_catalog.=) 1 THEN $8 END, \
                locked_at = CASE WHEN d.asks OPERATOR(pg_catalog.=) 1 THEN pg_catalog.clock_timestamp() END, \
                error = CASE WHEN d.asks OPERATOR(pg_catalog.=) 0 AND LEAST(t.tried, 2147483646) OPERATOR(pg_catalog.+) d.add OPERATOR(pg_catalog.>) d.retries \
                    THEN pg_catalog.format('the worker was lost while it ran this step (attempt %s, worker %s)', \
                        LEAST(t.tried, 2147483646) OPERATOR(pg_catalog.+) d.add, $5) END \
              FROM unnest($1, $2, $3, $4, $6, $7) AS d (id, fence, retries, add, errors, asks) \
              WHERE t.id OPERATOR(pg_catalog.=) d.id AND t.fence OPERATOR(pg_catalog.=) d.fence AND t.error IS NULL \
                AND t.id OPERATOR(pg_catalog.=) ANY (ARRAY( \
                    SELECT f.id FROM unnest($1, $2) AS x (id, fence) JOIN pg_task.task AS f \
                      ON f.id OPERATOR(pg_catalog.=) x.id AND f.fence OPERATOR(pg_catalog.=) x.fence \
                    FOR UPDATE OF f SKIP LOCKED)) \
              RETURNING t.id"
        )
    };
}

thread_local! {
    static LOSE: Statement = const { Statement::new(lose!(""), LOSE_TYPES) };
    static LOSE_ERRORS: Statement =
        const { Statement::new(lose!("errors = COALESCE(d.errors::pg_catalog.jsonb, t.errors),"), LOSE_TYPES) };
    static PARK_ASKED: Statement = const { Statement::new(
        c"UPDATE pg_task.task AS t SET fence = t.fence OPERATOR(pg_catalog.+) 1, updated_at = pg_catalog.now(), \
            locked_by = NULL, locked_at = NULL, \
            error = CASE WHEN d.deadline OPERATOR(pg_catalog.<) pg_catalog.now() \
                THEN pg_catalog.format('the task was not begun before its deadline, %s', d.deadline) \
                ELSE pg_catalog.format('the worker was lost while it ran this step (attempt %s)', t.tried) END \
          FROM unnest($1, $2, $3) AS d (id, fence, deadline) \
          WHERE t.id OPERATOR(pg_catalog.=) d.id AND t.fence OPERATOR(pg_catalog.=) d.fence AND t.error IS NULL \
            AND t.id OPERATOR(pg_catalog.=) ANY (ARRAY( \
                SELECT f.id FROM unnest($1, $2) AS x (id, fence) JOIN pg_task.task AS f \
                  ON f.id OPERATOR(pg_catalog.=) x.id AND f.fence OPERATOR(pg_catalog.=) x.fence \
                FOR UPDATE OF f SKIP LOCKED)) \
          RETURNING t.id",
        &[UUIDS, INT8S, TIMES],
    ) };
    // What LOSE has passed over although the row is the one that was claimed: someone holds its lock.
    static LOCKED: Statement = const { Statement::new(
        c"SELECT t.id FROM unnest($1, $2) AS d (id, fence) JOIN pg_task.task AS t ON t.id OPERATOR(pg_catalog.=) d.id \
          WHERE t.fence OPERATOR(pg_catalog.=) d.fence AND t.error IS NULL",
        &[UUIDS, INT8S],
    ) };
    static WRITE_BEHIND: Statement = const { Statement::new(
        c"UPDATE pg_task.task AS t SET locked_by = d.worker, locked_at = d.since \
          FROM unnest($1, $2, $3, $4) AS d (id, fence, worker, since) \
          WHERE t.id OPERATOR(pg_catalog.=) d.id AND t.fence OPERATOR(pg_catalog.=) d.fence \
            AND t.id OPERATOR(pg_catalog.=) ANY (ARRAY( \
                SELECT f.id FROM unnest($1, $2) AS x (id, fence) JOIN pg_task.task AS f \
                  ON f.id OPERATOR(pg_catalog.=) x.id AND f.fence OPERATOR(pg_catalog.=) x.fence \
                FOR UPDATE OF f SKIP LOCKED)) \
          RETURNING t.id",
        &[UUIDS, INT8S, UUIDS, TIMES],
    ) };
    // An attempt that was counted when the claim was made stays counted: what is counted is that the server, or the worker before, was lost
    // with the task. Taken back, a task that takes the server down could run for ever between workers that give it back.
    static UNWRITE: Statement = const { Statement::new(
        c"UPDATE pg_task.task AS t SET locked_by = NULL, locked_at = NULL FROM unnest($1, $2) AS d (id, fence) \
          WHERE t.id OPERATOR(pg_catalog.=) d.id AND t.fence OPERATOR(pg_catalog.=) d.fence \
            AND t.id OPERATOR(pg_catalog.=) ANY (ARRAY( \
                SELECT f.id FROM unnest($1, $2) AS x (id, fence) JOIN pg_task.task AS f \
                  ON f.id OPERATOR(pg_catalog.=) x.id AND f.fence OPERATOR(pg_catalog.=) x.fence \
                FOR UPDATE OF f SKIP LOCKED))",
        &[UUIDS, INT8S],
    ) };
    static EPOCH: Statement = const { Statement::new(
        c"SELECT s.last_value FROM pg_task.epoch AS s", &[],
    ) };
    static SET_EPOCH: Statement = const { Statement::new(
        c"SELECT pg_catalog.setval('pg_task.epoch'::pg_catalog.regclass, $1)", &[pg_sys::INT8OID],
    ) };
}

/// Takes a new epoch, so that every token of this life is larger than every one of the last. Must be followed by a durable commit.
pub fn take_epoch(spi: &Connected, now: Micros) -> i64 {
    let epoch = token::next_epoch(kept_epoch(spi), now);
    SET_EPOCH.with(|statement| statement.run(spi, &[spi::int(epoch)], false));
    epoch
}

/// The epoch that is kept: that of this scheduler, unless a dump was restored.
pub fn kept_epoch(spi: &Connected) -> i64 {
    EPOCH.with(|statement| statement.run(spi, &[], true)).int8(0, 1).unwrap_or(0)
}

/// Writes down that a worker was lost: the attempt of each task that it held is counted, and the task is ready again or parked.
///
/// Nobody waits here for a user's open transaction: returns the tasks whose rows are locked, for another try.
///
/// With `asks` a task that has had all its chances is left for the next worker once, whose code for the step is asked before it is parked.
pub fn write_loss(
    spi: &Connected,
    worker: &WorkerId,
    claims: &[Entry],
    lost_limit: i32,
    asks: bool,
) -> HashSet<TaskId> {
    let (asked, claims): (Vec<&Entry>, Vec<&Entry>) =
        claims.iter().filter(|claim| claim.fence >= 0).partition(|claim| claim.is_asked());
    let mut locked = park_asked(spi, &asked);
    if claims.is_empty() {
        return locked;
    }
    let defaults = defaults::mine();
    let mut table = TaskTable::to_write();
    let rows: Vec<Option<Failing>> = claims
        .iter()
        .map(|claim| Failing::read(&mut table, &claim.id, claim.place, claim.fence, defaults.as_deref()))
        .collect();
    table.close();
    let limits: Vec<i64> = claims
        .iter()
        .zip(&rows)
        .map(|(claim, row)| {
            let own = row.as_ref().and_then(|row| row.policy.limit());
            i64::from(own.unwrap_or(claim.retry_limit).max(lost_limit))
        })
        .collect();
    let attempt = |claim: &Entry, row: &Failing| row.tried.saturating_add(i32::from(!claim.is_counted()));
    // Once: whatever was counted beside it, it is parked then.
    let is_asked = claims.iter().zip(&rows).zip(&limits).map(|((claim, row), limit)| {
        let is_first = |row: &Failing| i64::from(attempt(claim, row)) == limit + 1;
        i64::from(asks && row.as_ref().is_some_and(is_first))
    });
    let errors: Vec<Option<pg_sys::Datum>> = claims
        .iter()
        .zip(&rows)
        .map(|(claim, row)| {
            let row = row.as_ref()?;
            let attempt = attempt(claim, row);
            let error = "the worker was lost while it ran this step";
            row.errors_after(attempt, Some(error), worker).as_deref().and_then(spi::text)
        })
        .collect();
    let statement = if errors.iter().any(Option::is_some) { &LOSE_ERRORS } else { &LOSE };
    let arguments = [
        spi::uuid_array(claims.iter().map(|claim| &claim.id)),
        spi::int8_array(claims.iter().map(|claim| claim.fence)),
        int4_array(limits.iter().copied()),
        int4_array(claims.iter().map(|claim| i64::from(!claim.is_counted()))),
        Some(spi::uuid(worker)),
        spi::nullable_array(errors.into_iter(), ElementType::Text),
        int4_array(is_asked),
        Some(spi::uuid(&NOBODY)),
    ];
    if statement.with(|statement| statement.run(spi, &arguments, false)).len() < claims.len() {
        // The rows that were written have another fence now.
        let arguments = [arguments[0], arguments[1]];
        locked.extend(LOCKED.with(|statement| ids(&statement.run(spi, &arguments, false))));
    }
    locked
}

/// Parks tasks whose worker was lost while it was only asked what to do instead. No attempt is counted: none was made.
fn park_asked(spi: &Connected, asked: &[&Entry]) -> HashSet<TaskId> {
    if asked.is_empty() {
        return HashSet::new();
    }
    let mut table = TaskTable::to_write();
    let deadlines: Vec<Option<pg_sys::Datum>> = asked
        .iter()
        .map(|claim| {
            let options = table.row(&claim.id, claim.place)?.datum(Column::Options)?;
            // SAFETY: the column is a jsonb, and the row stays in its buffer.
            unsafe { options::deadline(options) }.and_then(spi::int)
        })
        .collect();
    table.close();
    let arguments = [
        spi::uuid_array(asked.iter().map(|claim| &claim.id)),
        spi::int8_array(asked.iter().map(|claim| claim.fence)),
        spi::nullable_array(deadlines.into_iter(), ElementType::Timestamp),
    ];
    if PARK_ASKED.with(|statement| statement.run(spi, &arguments, false)).len() == asked.len() {
        return HashSet::new();
    }
    let arguments = [arguments[0], arguments[1]];
    LOCKED.with(|statement| ids(&statement.run(spi, &arguments, false)))
}

/// Writes down who runs the steps that have been running for a while. Returns the tasks whose rows are locked, for another try.
pub fn write_behind(spi: &Connected, claims: &[(WorkerId, Entry)]) -> HashSet<TaskId> {
    let mut locked = HashSet::new();
    for claims in claims.chunks(WRITE_BATCH) {
        let mut since: Vec<pg_sys::Datum> =
            claims.iter().map(|(_, claim)| pg_sys::Datum::from(claim.since)).collect();
        let arguments = [
            spi::uuid_array(claims.iter().map(|(_, claim)| &claim.id)),
            spi::int8_array(claims.iter().map(|(_, claim)| claim.fence)),
            spi::uuid_array(claims.iter().map(|(worker, _)| worker)),
            spi::array(&mut since, ElementType::Timestamp),
        ];
        let written = WRITE_BEHIND.with(|statement| ids(&statement.run(spi, &arguments, false)));
        if written.len() < claims.len() {
            let arguments = [arguments[0], arguments[1]];
            let left = LOCKED.with(|statement| ids(&statement.run(spi, &arguments, false)));
            // Being written down leaves the fence as it is.
            locked.extend(left.difference(&written));
        }
    }
    locked
}

fn ids(rows: &spi::Rows) -> HashSet<TaskId> {
    (0..rows.len()).filter_map(|row| rows.uuid(row, 1)).collect()
}

/// Takes back what was written down about claims that end without a result. A row that someone has locked keeps it: its next claim is made in writing
/// then.
pub fn unwrite(spi: &Connected, claims: &[Entry]) {
    let claims: Vec<&Entry> = claims.iter().filter(|claim| claim.is_written()).collect();
    if claims.is_empty() {
        return;
    }
    let arguments = [
        spi::uuid_array(claims.iter().map(|claim| &claim.id)),
        spi::int8_array(claims.iter().map(|claim| claim.fence)),
    ];
    UNWRITE.with(|statement| statement.run(spi, &arguments, false));
}

/// Wakes idle workers, each on its own channel, when the transaction commits.
pub fn notify(slot: Slot, workers: &[WorkerId]) {
    for worker in workers {
        let channel = CString::new(uuid7::channel(worker)).expect("a channel's name has no zero byte");
        spi::notify(&channel, c"");
    }
    slot.control().wakeups_sent.fetch_add(workers.len() as u64, Relaxed);
}

fn int4_array(values: impl Iterator<Item = i64>) -> Option<pg_sys::Datum> {
    spi::array(&mut values.map(pg_sys::Datum::from).collect::<Vec<_>>(), ElementType::Int4)
}
