//! The triggers of the table: they check what a user writes and tell the scheduler at commit.

use std::cell::Cell;
use std::ffi::CStr;
use std::ffi::CString;

use pg_task_rules::TaskId;
use pg_task_rules::board::Look;
use pg_task_rules::names::Group;
use pg_task_rules::names::Key;
use pgrx::pg_sys;
use pgrx::pg_sys::Datum;

use crate::call::Call;
use crate::call::sql_function;
use crate::commit;
use crate::error::Error;
use crate::history;
use crate::history::Ended;
use crate::history::History;
use crate::options;
use crate::produce;
use crate::shmem;
use crate::spi;
use crate::task_table::Column;
use crate::uuid7;

/// What a change by a user adds to the fence. Workers and the scheduler add one, so that the lower half says whether a task is as it was enqueued, but for such
/// changes.
const USER_CHANGE: i64 = 1 << 32;

/// A row of the table that a trigger is called for.
struct Row<'a> {
    tuple: pg_sys::HeapTuple,
    trigger: &'a pg_sys::TriggerData,
}

impl Row<'_> {
    fn datum(&self, column: Column) -> Option<Datum> {
        // SAFETY: the tuple belongs to the trigger's relation, whose first columns are those of `Column`.
        unsafe { spi::column(self.tuple, self.trigger.tg_relation, column as i32) }
    }

    fn id(&self) -> Option<TaskId> {
        // SAFETY: the column is a uuid.
        self.datum(Column::Id).map(|id| unsafe { spi::uuid_from(id) })
    }

    /// The task's group.
    fn group(&self) -> Option<Group> {
        // SAFETY: the column is a jsonb.
        self.datum(Column::Options).and_then(|options| unsafe { options::group(options) })
    }

    /// The task's key.
    fn key(&self) -> Option<Key> {
        let (options, queue) = (self.datum(Column::Options)?, self.datum(Column::Queue)?);
        // SAFETY: the columns are a jsonb and a text.
        unsafe { options::key(options, queue) }
    }

    /// The row leaves its group and key: others may be next there.
    fn note_gone(&self) {
        let (group, key) = (self.group().map(Look::Group), self.key().map(Look::Key));
        group.into_iter().chain(key).for_each(commit::note_look);
    }

    /// Checks what the user wrote; NULLs are left to the column constraints.
    fn check(&self) -> Result<(), Error> {
        produce::check_step(self.datum(Column::Step))?;
        options::check_datum(self.datum(Column::Options))?;
        if let Some(due) = self.datum(Column::WakeupAt) {
            produce::finite(due.value() as i64, "wakeup_at")?;
        }
        Ok(())
    }

    /// Tells those who listen, and those who wait for its end, at commit, that the task is parked.
    fn announce_error(&self) {
        let Some(id) = self.id() else { return };
        let payload = CString::new(uuid7::text(&id)).expect("an id's text has no zero byte");
        spi::notify(c"pg_task_error", &payload);
        if shmem::ready() {
            commit::note_ended(id);
        }
    }

    /// Tells the scheduler, at commit, that the row is due at its time.
    fn note(&self) -> Result<(), Error> {
        let (Some(id), Some(queue), Some(priority), Some(due)) = (
            self.id(),
            self.datum(Column::Queue),
            self.datum(Column::Priority),
            self.datum(Column::WakeupAt),
        ) else {
            return Ok(());
        };
        // SAFETY: the column is a text.
        let name = produce::queue_name(&unsafe { spi::text_from(queue) })?;
        if self.datum(Column::Error).is_none() {
            let (priority, due) = (priority.value() as i16, due.value() as i64);
            commit::note_task(&name, priority, due, id, self.group(), self.key());
        }
        Ok(())
    }
}

/// The trigger that makes the call, if it fires for the rows of `pg_task.task`: any other table has other columns.
fn own_trigger(call: &Call) -> Result<&pg_sys::TriggerData, Error> {
    thread_local! {
        /// The table that was looked at last and found to be the one.
        static TABLE: Cell<pg_sys::Oid> = const { Cell::new(pg_sys::InvalidOid) };
    }
    let trigger = call.trigger().ok_or(Error::TriggerOnly)?;
    // SAFETY: the server passes an open relation; the name that SPI returns is a C string or null.
    unsafe {
        let relation = trigger.tg_relation;
        let known = TABLE.get() == (*relation).rd_id;
        if trigger.tg_event & pg_sys::TRIGGER_EVENT_ROW == 0 || !(known || is_own(relation)) {
            return Err(Error::TriggerOnly);
        }
        TABLE.set((*relation).rd_id);
    }
    Ok(trigger)
}

/// # Safety
/// The relation is open.
unsafe fn is_own(relation: pg_sys::Relation) -> bool {
    // SAFETY: the names are C strings; the namespace's is null when it is gone.
    unsafe {
        let namespace = pg_sys::SPI_getnspname(relation);
        CStr::from_ptr((*(*relation).rd_rel).relname.data.as_ptr()) == c"task"
            && !namespace.is_null()
            && CStr::from_ptr(namespace) == c"pg_task"
    }
}

fn on_insert(call: &mut Call) -> Result<Option<Datum>, Error> {
    if !shmem::ready() {
        return Err(Error::NotPreloaded);
    }
    let trigger = own_trigger(call)?;
    let row = Row { tuple: trigger.tg_trigtuple, trigger };
    row.check()?;
    row.note()?;
    // No trigger of its own: its condition would be read from its text for every statement.
    if row.datum(Column::Error).is_some() {
        row.announce_error();
    }
    Ok(Some(Datum::from(row.tuple)))
}
sql_function!("on_insert_wrapper", "pg_finfo_on_insert_wrapper", on_insert, "on_insert() RETURNS trigger");

fn on_update(call: &mut Call) -> Result<Option<Datum>, Error> {
    if !shmem::ready() {
        return Err(Error::NotPreloaded);
    }
    let trigger = own_trigger(call)?;
    let old = Row { tuple: trigger.tg_trigtuple, trigger };
    let new = Row { tuple: trigger.tg_newtuple, trigger };
    if new.id() != old.id() {
        return Err(Error::IdChanged);
    }
    new.check()?;
    let fence = old.datum(Column::Fence).map_or(0, |fence| fence.value() as i64);
    let int = |row: &Row<'_>, column| row.datum(column).map_or(0, |value| value.value() as i32);
    let resumed = old.datum(Column::Error).is_some() && new.datum(Column::Error).is_none();
    let tried = match int(&new, Column::Tried) {
        // A task that is resumed has all its retries again, unless the user says otherwise.
        tried if resumed && tried == int(&old, Column::Tried) => 0,
        tried => tried,
    };
    let mut columns = [Column::Fence, Column::UpdatedAt, Column::LockedBy, Column::LockedAt, Column::Tried]
        .map(|column| column as i32);
    let mut values = [
        Datum::from(fence + USER_CHANGE),
        Datum::from(spi::transaction_time()),
        Datum::null(),
        Datum::null(),
        Datum::from(tried),
    ];
    let mut nulls = [false, false, true, true, false];
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
    let row = Row { tuple, trigger };
    row.note()?;
    if let Some(key) = old.key() {
        commit::note_look(Look::Key(key));
    }
    Ok(Some(Datum::from(tuple)))
}
sql_function!("on_update_wrapper", "pg_finfo_on_update_wrapper", on_update, "on_update() RETURNS trigger");

fn on_options(call: &mut Call) -> Result<Option<Datum>, Error> {
    if !shmem::ready() {
        return Err(Error::NotPreloaded);
    }
    let trigger = own_trigger(call)?;
    let row = Row { tuple: trigger.tg_newtuple, trigger };
    options::check_datum(row.datum(Column::Options))?;
    row.note()?;
    Row { tuple: trigger.tg_trigtuple, trigger }.note_gone();
    Ok(Some(Datum::from(row.tuple)))
}
sql_function!(
    "on_options_wrapper",
    "pg_finfo_on_options_wrapper",
    on_options,
    "on_options() RETURNS trigger"
);

fn on_gone(call: &mut Call) -> Result<Option<Datum>, Error> {
    if !shmem::ready() {
        return Err(Error::NotPreloaded);
    }
    let trigger = own_trigger(call)?;
    let row = Row { tuple: trigger.tg_trigtuple, trigger };
    row.note_gone();
    Ok(Some(Datum::from(row.tuple)))
}
sql_function!("on_gone_wrapper", "pg_finfo_on_gone_wrapper", on_gone, "on_gone() RETURNS trigger");

/// After a row was deleted by SQL, by a user or with a worker's result.
fn on_delete(call: &mut Call) -> Result<Option<Datum>, Error> {
    if !shmem::ready() {
        return Err(Error::NotPreloaded);
    }
    let trigger = own_trigger(call)?;
    let row = Row { tuple: trigger.tg_trigtuple, trigger };
    if let (Some(id), Some(slot)) = (row.id(), shmem::my_slot()) {
        commit::note_ended(id);
        let end = history::end_of(&id);
        if !matches!(end, Ended::Done(_)) && row.datum(Column::Error).is_none() {
            // Whoever runs its step is told.
            commit::note_deleted(slot, id);
        }
        if let Some(mut history) = History::open(slot) {
            history.add(|column| row.datum(column), &end);
            history.close(slot);
        }
    }
    Ok(Some(Datum::from(row.tuple)))
}
sql_function!("on_delete_wrapper", "pg_finfo_on_delete_wrapper", on_delete, "on_delete() RETURNS trigger");

fn on_error(call: &mut Call) -> Result<Option<Datum>, Error> {
    let trigger = own_trigger(call)?;
    let updated = pgrx::trigger_fired_by_update(trigger.tg_event);
    let tuple = if updated { trigger.tg_newtuple } else { trigger.tg_trigtuple };
    Row { tuple, trigger }.announce_error();
    Ok(Some(Datum::from(tuple)))
}
sql_function!("on_error_wrapper", "pg_finfo_on_error_wrapper", on_error, "on_error() RETURNS trigger");
