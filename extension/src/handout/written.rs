//! Claims in writing: the attempts of tasks that may have taken the server or their worker down are counted before they run.

use pg_task_rules::Micros;
use pg_task_rules::TaskId;
use pg_task_rules::WorkerId;
use pg_task_rules::board::Claim;
use pg_task_rules::inbox::Hint;
use pg_task_rules::names::Kind;
use pg_task_rules::names::QueueName;
use pg_task_rules::place::Place;
use pgrx::pg_sys;
use pgrx::pg_sys::Datum;
use rustc_hash::FxHashMap;
use rustc_hash::FxHashSet;

use super::claim::InWriting;
use super::output::Task;
use crate::background;
use crate::defaults;
use crate::failure::Failing;
use crate::guc;
use crate::spi;
use crate::spi::Connected;
use crate::spi::Rows;
use crate::spi::Statement;
use crate::spi::sql;
use crate::task_table::TaskTable;

/// A row that someone else is changing is looked at again after this time.
pub const BUSY: Micros = 200_000;

const WRITE_TYPES: &[pg_sys::Oid] = &[
    pg_sys::UUIDARRAYOID,
    pg_sys::INT8ARRAYOID,
    pg_sys::INT4ARRAYOID,
    pg_sys::UUIDOID,
    pg_sys::TEXTARRAYOID,
];

macro_rules! write {
    ($errors:literal) => {
        sql!(
            "UPDATE pg_task.task AS t SET \
                tried = CASE WHEN t.tried OPERATOR(pg_catalog.<) d.retries THEN t.tried OPERATOR(pg_catalog.+) 1 ELSE t.tried END, \
                fence = t.fence OPERATOR(pg_catalog.+) 1, \
                updated_at = pg_catalog.now(), ",
            $errors,
            "   locked_by = CASE WHEN t.tried OPERATOR(pg_catalog.<) d.retries THEN $4 END, \
                locked_at = CASE WHEN t.tried OPERATOR(pg_catalog.<) d.retries THEN pg_catalog.now() END, \
                error = CASE WHEN t.tried OPERATOR(pg_catalog.>=) d.retries \
                    THEN pg_catalog.format('the worker or the server was lost while it ran this step (attempt %s)', t.tried) END \
              FROM unnest($1, $2, $3, $5) AS d (id, fence, retries, errors) \
              WHERE t.id OPERATOR(pg_catalog.=) d.id AND t.fence OPERATOR(pg_catalog.=) d.fence \
                AND t.id OPERATOR(pg_catalog.=) ANY (ARRAY( \
                    SELECT f.id FROM pg_task.task AS f WHERE f.id OPERATOR(pg_catalog.=) ANY ($1) FOR UPDATE SKIP LOCKED)) \
              RETURNING t.id, t.fence, t.error IS NULL, t.tried, t.wakeup_at, t.queue, t.step, t.ctid"
        )
    };
}

thread_local! {
    // Nobody waits here for a user's open transaction: a row that is locked comes back later.
    static WRITE: Statement = const { Statement::new(write!(""), WRITE_TYPES) };
    static WRITE_ERRORS: Statement = const { Statement::new(
        write!("errors = CASE WHEN t.tried OPERATOR(pg_catalog.>=) d.retries THEN d.errors::pg_catalog.jsonb ELSE t.errors END,"),
        WRITE_TYPES,
    ) };
    static LOOK: Statement = const { Statement::new(
        c"SELECT t.id, t.queue, t.priority FROM pg_task.task AS t \
          WHERE t.id OPERATOR(pg_catalog.=) ANY ($1) AND t.error IS NULL",
        &[pg_sys::UUIDARRAYOID],
    ) };
}

/// What became of one claim.
pub enum Written {
    /// It is counted: run it. `tried` does not count this attempt.
    Run(Task, Place),
    /// It has had all its chances, or is gone.
    Parked,
    /// The row was changed since it was read, or is being changed: look again.
    Changed(Hint),
}

/// The rows that were written, and those that were not.
pub struct WrittenRows {
    rows: Option<Rows>,
    by_id: FxHashMap<TaskId, usize>,
    busy: FxHashMap<TaskId, Hint>,
    /// Those that have had all their chances and are left as they are.
    exhausted: FxHashSet<TaskId>,
}

/// Writes the claims down. `retry_limit` tells how often a step's worker would retry it, where the task itself does not say. With `asks` the row of
/// a task that has had all its chances is left as it is: its step's code is asked before it is parked.
pub fn write(
    spi: &Connected,
    worker: &WorkerId,
    chosen: &[InWriting],
    retry_limit: impl Fn(&Kind) -> i32,
    asks: bool,
) -> WrittenRows {
    let lost_limit = guc::LOST_LIMIT.get();
    // `tried` reaches the limit + 1 by the lost attempts themselves: then it has had all its chances.
    let defaults = defaults::mine();
    let mut table = TaskTable::to_write();
    let rows: Vec<Option<Failing>> = chosen
        .iter()
        .map(|chosen| {
            Failing::read(&mut table, &chosen.claim.id, chosen.place, chosen.fence, defaults.as_deref())
        })
        .collect();
    table.close();
    let limit = |chosen: &InWriting, row: &Option<Failing>| {
        let own = row.as_ref().and_then(|row| row.policy.limit());
        own.unwrap_or_else(|| retry_limit(&chosen.kind)).max(lost_limit).saturating_add(1)
    };
    let exhausted: FxHashSet<TaskId> = chosen
        .iter()
        .zip(&rows)
        .filter(|(chosen, row)| asks && row.as_ref().is_some_and(|r| r.tried >= limit(chosen, row)))
        .map(|(chosen, _)| chosen.claim.id)
        .collect();
    let (chosen, rows): (Vec<&InWriting>, Vec<Option<Failing>>) =
        chosen.iter().zip(rows).filter(|(chosen, _)| !exhausted.contains(&chosen.claim.id)).unzip();
    if chosen.is_empty() {
        return WrittenRows {
            rows: None,
            by_id: FxHashMap::default(),
            busy: FxHashMap::default(),
            exhausted,
        };
    }
    let retries = chosen.iter().zip(&rows).map(|(chosen, row)| spi::int(limit(chosen, row)));
    let errors: Vec<Option<Datum>> = rows
        .iter()
        .map(|row| {
            let row = row.as_ref()?;
            let error = "the worker or the server was lost while it ran this step";
            row.errors_after(row.tried, Some(error), worker).as_deref().and_then(spi::text)
        })
        .collect();
    let statement = if errors.iter().any(Option::is_some) { &WRITE_ERRORS } else { &WRITE };
    let arguments = [
        spi::uuid_array(chosen.iter().map(|chosen| &chosen.claim.id)),
        spi::int8_array(chosen.iter().map(|chosen| chosen.fence)),
        spi::nullable_array(retries, spi::ElementType::Int4),
        Some(spi::uuid(worker)),
        spi::nullable_array(errors.into_iter(), spi::ElementType::Text),
    ];
    let rows = statement.with(|statement| statement.run(spi, &arguments, false));
    let by_id: FxHashMap<TaskId, usize> =
        (0..rows.len()).filter_map(|row| Some((rows.uuid(row, 1)?, row))).collect();
    let left: Vec<&TaskId> =
        chosen.iter().map(|chosen| &chosen.claim.id).filter(|id| !by_id.contains_key(*id)).collect();
    let mut busy = FxHashMap::default();
    if !left.is_empty() {
        let found = LOOK.with(|statement| statement.run(spi, &[spi::uuid_array(left.into_iter())], false));
        let due = background::now() + BUSY;
        for row in 0..found.len() {
            let queue = found.text(row, 2).as_deref().and_then(QueueName::new);
            if let (Some(id), Some(queue)) = (found.uuid(row, 1), queue) {
                busy.insert(id, Hint { due, id, priority: found.int2(row, 3).unwrap_or(0), queue });
            }
        }
    }
    WrittenRows { rows: Some(rows), by_id, busy, exhausted }
}

impl WrittenRows {
    /// Whether the step's code is to be asked what to do instead of parking the task.
    pub fn is_exhausted(&self, claim: &Claim) -> bool {
        self.exhausted.contains(&claim.id)
    }

    /// What became of a claim; the options are those of its row.
    pub fn of(&self, claim: &Claim, options: Option<Datum>) -> Written {
        let (Some(&row), Some(rows)) = (self.by_id.get(&claim.id), &self.rows) else {
            return self.busy.get(&claim.id).map_or(Written::Parked, |hint| Written::Changed(*hint));
        };
        let (Some(queue), Some(step), true) = (rows.datum(row, 6), rows.datum(row, 7), rows.bool(row, 3))
        else {
            return Written::Parked;
        };
        let task = Task {
            claim: *claim,
            fence: rows.int8(row, 2).unwrap_or(0),
            tried: rows.int4(row, 4).unwrap_or(1) - 1,
            wakeup_at: rows.int8(row, 5).unwrap_or(0),
            queue,
            step,
            options,
        };
        let place = rows.place(row, 8);
        Written::Run(task, place)
    }
}
