//! A next step below the executor: an update that stays on its page (HOT) where there is room, and the index entries where there is none.

use pg_task_rules::Micros;
use pg_task_rules::TaskId;
use pg_task_rules::place::Place;
use pgrx::pg_sys;
use pgrx::pg_sys::Datum;

use super::Column;
use super::TaskTable;
use super::item_pointer;
use super::new_row::Entered;
use super::place_of;

/// Triggers of `sql/20_task.sql` for UPDATE. A next step fires none: it raises the fence and leaves `error` NULL and `options` as they are.
const OWN_TRIGGERS: [&std::ffi::CStr; 3] = [c"task_update", c"task_error_update", c"task_options"];

#[cfg(feature = "pg15")]
type IndexesChanged = bool;
#[cfg(not(feature = "pg15"))]
type IndexesChanged = pg_sys::TU_UpdateIndexes::Type;

/// What an update leaves to be entered.
#[cfg(feature = "pg15")]
fn entered_after(changed: IndexesChanged) -> Option<Entered> {
    changed.then_some(Entered::Moved)
}

/// What an update leaves to be entered.
#[cfg(not(feature = "pg15"))]
fn entered_after(changed: IndexesChanged) -> Option<Entered> {
    match changed {
        pg_sys::TU_UpdateIndexes::TU_None => None,
        pg_sys::TU_UpdateIndexes::TU_Summarizing => Some(Entered::Summarizing),
        _ => Some(Entered::Moved),
    }
}

impl TaskTable {
    /// Whether next steps may go below the executor: nothing of the user's is to be done or checked with them.
    pub fn can_go_on(&self) -> bool {
        const FOR_UPDATE: i16 = 1 << 4;
        self.is_plain_for(FOR_UPDATE, &OWN_TRIGGERS)
    }

    /// Writes the next step, due now, into the row of a task if it is at its place and has the fence. Returns where the row is then; none
    /// when nothing was written and SQL has to find out why.
    pub fn go_on(
        &mut self,
        id: &TaskId,
        place: Place,
        fence: i64,
        step: Datum,
        now: Micros,
    ) -> Option<Place> {
        if !self.fetch_exactly(id, place, fence) {
            return None;
        }
        // What is dead on the page makes room for the new row. That may move rows about on it.
        if self.prune() && !self.fetch_at(place) {
            return None;
        }
        if !self.is_untouched() {
            return None;
        }
        // SAFETY: the slot holds the row, whose values stay in its buffer; the new values have their columns' types. The access method
        // checks the row again under the buffer's lock: another transaction's change is reported, nothing is written then.
        unsafe {
            let descriptor = (*self.relation).rd_att;
            let columns = (*descriptor).natts as usize;
            if ((*self.slot).tts_nvalid as usize) < columns {
                pg_sys::slot_getsomeattrs_int(self.slot, columns as i32);
            }
            let mut values = std::slice::from_raw_parts((*self.slot).tts_values, columns).to_vec();
            let mut nulls = std::slice::from_raw_parts((*self.slot).tts_isnull, columns).to_vec();
            let mut set = |column: Column, value: Option<Datum>| {
                values[column as usize - 1] = value.unwrap_or(Datum::null());
                nulls[column as usize - 1] = value.is_none();
            };
            set(Column::Step, Some(step));
            set(Column::Fence, Some(Datum::from(fence + 1)));
            set(Column::Tried, Some(Datum::from(0_i32)));
            set(Column::UpdatedAt, Some(Datum::from(now)));
            for column in [Column::Error, Column::LockedAt, Column::LockedBy] {
                set(column, None);
            }
            let tuple = pg_sys::heap_form_tuple(descriptor, values.as_mut_ptr(), nulls.as_mut_ptr());
            let next = self.next_slot();
            pg_sys::ExecStoreHeapTuple(tuple, next, true);
            let (written, in_indexes) = self.update(place, next);
            if !written {
                return None;
            }
            if let Some(which) = in_indexes {
                self.indexes(false).add(next, which);
            }
            Some(place_of(&(*next).tts_tid))
        }
    }

    /// Frees the dead rows on the page of the row in the slot if the page is full: a fetch by place, unlike one through an index, does not.
    /// Whether the page was looked at: the row is to be fetched again then.
    fn prune(&mut self) -> bool {
        // SAFETY: rows of a heap are fetched into slots of this kind, which hold the page's buffer pinned; the slot is emptied of what
        // points into the page before the next use.
        unsafe {
            if (*self.slot).tts_ops != &raw const pg_sys::TTSOpsBufferHeapTuple {
                return false;
            }
            let buffer = (*self.slot.cast::<pg_sys::BufferHeapTupleTableSlot>()).buffer;
            pg_sys::heap_page_prune_opt(self.relation, buffer);
        }
        true
    }

    /// Whether nobody locks or changes the row in the slot, as far as its header tells. Whoever comes after this look is waited for: a heap can be told
    /// not to wait for a delete, but not for an update.
    fn is_untouched(&self) -> bool {
        // SAFETY: rows of a heap are fetched into slots of this kind, whose tuple lies on the page that they hold pinned. The bits may change
        // under other processes, which is why they are read once and only as an advice.
        unsafe {
            if (*self.slot).tts_ops != &raw const pg_sys::TTSOpsBufferHeapTuple {
                return false;
            }
            let tuple = (*self.slot.cast::<pg_sys::BufferHeapTupleTableSlot>()).base.tuple;
            let bits = (&raw const (*(*tuple).t_data).t_infomask).read_volatile();
            u32::from(bits) & pg_sys::HEAP_XMAX_INVALID != 0
        }
    }

    /// Whether the row was updated, and into which indexes the new one is still to be entered.
    ///
    /// # Safety
    /// `next` holds a tuple of the table.
    unsafe fn update(&self, place: Place, next: *mut pg_sys::TupleTableSlot) -> (bool, Option<Entered>) {
        let mut tid = item_pointer(place);
        let mut failure = pg_sys::TM_FailureData::default();
        let mut lock_mode = pg_sys::LockTupleMode::LockTupleNoKeyExclusive;
        let mut changed = IndexesChanged::default();
        // SAFETY: the caller's, and `go_on`'s.
        let result = unsafe {
            let update =
                (*(*self.relation).rd_tableam).tuple_update.expect("every table access method can update");
            let (relation, snapshot) = (self.relation, self.snapshot);
            let command = pg_sys::GetCurrentCommandId(true);
            let (tid, failure) = (&raw mut tid, &raw mut failure);
            let (lock_mode, changed) = (&raw mut lock_mode, &raw mut changed);
            pg_sys::ffi::pg_guard_ffi_boundary(|| {
                let no_check = std::ptr::null_mut();
                update(relation, tid, next, command, snapshot, no_check, true, failure, lock_mode, changed)
            })
        };
        (result == pg_sys::TM_Result::TM_Ok, entered_after(changed))
    }
}
