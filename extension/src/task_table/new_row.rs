//! New rows below the executor: what enqueueing and next steps have in common, and the insert of a new task.

use std::ffi::CStr;

use pg_task_rules::Micros;
use pg_task_rules::TaskId;
use pgrx::pg_sys;
use pgrx::pg_sys::Datum;

use super::COLUMNS;
use super::Column;
use super::TaskTable;
use crate::spi;

/// CHECK constraints of `sql/20_task.sql`. What goes below the executor was checked for all that they say.
const OWN_CHECKS: [&CStr; 8] = [
    c"task_errors_are_a_list",
    c"task_fence_is_not_negative",
    c"task_lock_is_whole",
    c"task_options_are_an_object",
    c"task_queue_is_a_name",
    c"task_step_has_a_name",
    c"task_tried_is_not_negative",
    c"task_wakeup_at_is_finite",
];

/// Triggers of `sql/20_task.sql` for INSERT: what they do is done by whoever inserts.
const OWN_TRIGGERS: [&CStr; 1] = [c"task_insert"];

/// Indexes of `sql/20_task.sql` in which a row without error and options has no entry: their predicates say so. Opened for
/// nothing they cost every task that is enqueued something; the benchmark P5 shows it.
const INDEXES_OF_OTHERS: [&CStr; 3] = [c"task_failed", c"task_group", c"task_key"];

/// A task to be inserted: checked.
pub struct NewTask {
    /// Its id.
    pub id: TaskId,
    /// Its queue, a text.
    pub queue: Datum,
    /// Its priority.
    pub priority: i16,
    /// Its step, a jsonb.
    pub step: Datum,
    /// When it is due.
    pub due: Micros,
    /// Its own settings, a jsonb.
    pub options: Option<Datum>,
}

/// Into which indexes a row is entered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Entered {
    /// A new row: into all.
    New,
    /// A row that takes the place of another one: into all.
    Moved,
    /// The same, where the entries of the other row lead to it: into those alone that say something of a whole block (BRIN).
    #[cfg_attr(feature = "pg15", expect(dead_code, reason = "PostgreSQL 15 moves such a row"))]
    Summarizing,
}

/// A table's indexes, open for new entries.
pub struct Indexes {
    state: *mut pg_sys::EState,
    target: *mut pg_sys::ResultRelInfo,
}

impl Indexes {
    /// Opens the indexes of a table, but for those with these names.
    ///
    /// # Safety
    /// The relation is open and stays so until `close`.
    pub unsafe fn open(relation: pg_sys::Relation, but: &[&CStr]) -> Self {
        // SAFETY: the result relation is zeroed memory that its own function fills.
        unsafe {
            let state = pg_sys::CreateExecutorState();
            let target = pg_sys::palloc0(size_of::<pg_sys::ResultRelInfo>()).cast::<pg_sys::ResultRelInfo>();
            (*target).type_ = pg_sys::NodeTag::T_ResultRelInfo;
            pg_sys::InitResultRelInfo(target, relation, 0, std::ptr::null_mut(), 0);
            if but.is_empty() {
                pg_sys::ExecOpenIndices(target, false);
            } else {
                Self::open_some(target, but);
            }
            Self { state, target }
        }
    }

    /// What `ExecOpenIndices` does, without those that are left out.
    ///
    /// # Safety
    /// As `open`.
    unsafe fn open_some(target: *mut pg_sys::ResultRelInfo, but: &[&CStr]) {
        // SAFETY: the list holds as many object ids as it says, and the arrays as many places; a name is a C string, or null when the index
        // is gone.
        unsafe {
            let list = pg_sys::RelationGetIndexList((*target).ri_RelationDesc);
            let count = if list.is_null() { 0 } else { (*list).length.max(0) as usize };
            let room = count.max(1) * size_of::<*mut u8>();
            let descriptions = pg_sys::palloc0(room).cast::<pg_sys::Relation>();
            let infos = pg_sys::palloc0(room).cast::<*mut pg_sys::IndexInfo>();
            let mut opened = 0;
            for at in 0..count {
                let index = (*(*list).elements.add(at)).oid_value;
                let name = pg_sys::get_rel_name(index);
                if !name.is_null() && but.contains(&CStr::from_ptr(name)) {
                    continue;
                }
                let description = pg_sys::index_open(index, pg_sys::RowExclusiveLock as i32);
                // No place stays empty: PostgreSQL 18 closes every one.
                *descriptions.add(opened) = description;
                *infos.add(opened) = pg_sys::BuildIndexInfo(description);
                opened += 1;
            }
            pg_sys::list_free(list);
            (*target).ri_NumIndices = opened as i32;
            (*target).ri_IndexRelationDescs = descriptions;
            (*target).ri_IndexRelationInfo = infos;
        }
    }

    /// Enters a row into indexes, as the executor does.
    ///
    /// # Safety
    /// The slot holds a row that was just written to the table.
    pub unsafe fn add(&self, row: *mut pg_sys::TupleTableSlot, entered: Entered) {
        let (target, state, null) = (self.target, self.state, std::ptr::null_mut());
        let is_update = entered != Entered::New;
        // SAFETY: opened by `open`; the memory for one row is emptied after it.
        unsafe {
            #[cfg(feature = "pg15")]
            pg_sys::ExecInsertIndexTuples(target, row, state, is_update, false, null, std::ptr::null_mut());
            #[cfg(not(feature = "pg15"))]
            pg_sys::ExecInsertIndexTuples(
                target,
                row,
                state,
                is_update,
                false,
                null,
                std::ptr::null_mut(),
                entered == Entered::Summarizing,
            );
            let context = (*state).es_per_tuple_exprcontext;
            if !context.is_null() {
                pg_sys::MemoryContextReset((*context).ecxt_per_tuple_memory);
            }
        }
    }

    /// Closes them.
    pub fn close(self) {
        // SAFETY: opened by `open`.
        unsafe {
            pg_sys::ExecCloseIndices(self.target);
            pg_sys::FreeExecutorState(self.state);
            pg_sys::pfree(self.target.cast());
        }
    }
}

impl TaskTable {
    /// Whether the current user may insert new tasks, and they may go below the executor: nothing of the user's is to be done or checked
    /// with them.
    pub fn can_insert(&self, with_options: bool) -> bool {
        const FOR_INSERT: i16 = 1 << 2;
        // SAFETY: plain reads of this process' state and of the open relation's description.
        let (columns, read_only) = unsafe { ((*(*self.relation).rd_att).natts, pg_sys::XactReadOnly) };
        // Columns that were added may have defaults.
        columns == COLUMNS
            && !read_only
            && self.is_plain_for(FOR_INSERT, &OWN_TRIGGERS)
            && self.may_insert(with_options)
    }

    fn may_insert(&self, with_options: bool) -> bool {
        // SAFETY: look-ups in the catalog's cache, in a transaction.
        unsafe {
            let (table, user, ok) =
                ((*self.relation).rd_id, pg_sys::GetUserId(), pg_sys::AclResult::ACLCHECK_OK);
            let insert = pg_sys::AclMode::from(pg_sys::ACL_INSERT);
            pg_sys::pg_class_aclcheck(table, user, insert) == ok
                || [Column::Id, Column::Queue, Column::Priority, Column::Step, Column::WakeupAt]
                    .into_iter()
                    .chain(with_options.then_some(Column::Options))
                    .all(|column| pg_sys::pg_attribute_aclcheck(table, column as i16, user, insert) == ok)
        }
    }

    /// Inserts a task that is not parked.
    pub fn insert(&mut self, task: &NewTask) {
        let now = Datum::from(spi::transaction_time());
        let values: [(Column, Datum); 9] = [
            (Column::Id, spi::uuid(&task.id)),
            (Column::WakeupAt, Datum::from(task.due)),
            (Column::CreatedAt, now),
            (Column::UpdatedAt, now),
            (Column::Fence, Datum::from(0_i64)),
            (Column::Tried, Datum::from(0_i32)),
            (Column::Priority, Datum::from(task.priority)),
            (Column::Queue, task.queue),
            (Column::Step, task.step),
        ];
        let mut datums = [Datum::null(); COLUMNS as usize];
        let mut nulls = [true; COLUMNS as usize];
        for (column, value) in values {
            datums[column as usize - 1] = value;
            nulls[column as usize - 1] = false;
        }
        if let Some(options) = task.options {
            datums[Column::Options as usize - 1] = options;
            nulls[Column::Options as usize - 1] = false;
        }
        // SAFETY: the table has these columns, of the values' types (see `can_insert`); the relation is locked for writing.
        unsafe {
            let row = self.next_slot();
            let tuple =
                pg_sys::heap_form_tuple((*self.relation).rd_att, datums.as_mut_ptr(), nulls.as_mut_ptr());
            pg_sys::ExecStoreHeapTuple(tuple, row, true);
            let insert =
                (*(*self.relation).rd_tableam).tuple_insert.expect("every table access method can insert");
            let (relation, command) = (self.relation, pg_sys::GetCurrentCommandId(true));
            pg_sys::ffi::pg_guard_ffi_boundary(|| insert(relation, row, command, 0, std::ptr::null_mut()));
            self.indexes(task.options.is_none()).add(row, Entered::New);
        }
    }

    /// Whether the table is as `sql/20_task.sql` makes it, as far as statements of one kind are concerned.
    pub(super) fn is_plain_for(&self, event: i16, own_triggers: &[&CStr]) -> bool {
        // SAFETY: the relation is open; its cache entry is valid for as long as it is, and the arrays are as long as it says.
        unsafe {
            let relation = &*self.relation;
            let constraints = (*relation.rd_att).constr;
            let only_own_constraints = constraints.is_null()
                || std::slice::from_raw_parts((*constraints).check, usize::from((*constraints).num_check))
                    .iter()
                    .all(|check| OWN_CHECKS.contains(&CStr::from_ptr(check.ccname)))
                    && !(*constraints).has_generated_stored;
            self.has_only_triggers(event, own_triggers)
                && only_own_constraints
                && relation.rd_rules.is_null()
                && !(*relation.rd_rel).relrowsecurity
        }
    }

    /// Whether the triggers for statements of one kind are all among these.
    pub(super) fn has_only_triggers(&self, event: i16, own_triggers: &[&CStr]) -> bool {
        // SAFETY: as in `is_plain_for`.
        unsafe {
            let triggers = (*self.relation).trigdesc;
            triggers.is_null()
                || std::slice::from_raw_parts((*triggers).triggers, (*triggers).numtriggers.max(0) as usize)
                    .iter()
                    .filter(|trigger| trigger.tgtype & event != 0)
                    .all(|trigger| own_triggers.contains(&CStr::from_ptr(trigger.tgname)))
        }
    }

    /// The slot for new rows.
    pub(super) fn next_slot(&mut self) -> *mut pg_sys::TupleTableSlot {
        *self.next.get_or_insert_with(|| {
            // SAFETY: the descriptor belongs to the open relation; the slot is dropped before it is closed.
            unsafe {
                pg_sys::MakeSingleTupleTableSlot((*self.relation).rd_att, &raw const pg_sys::TTSOpsHeapTuple)
            }
        })
    }

    /// The indexes, opened when they are first needed: all of them, or at least those for a row without error and options.
    pub(super) fn indexes(&mut self, is_plain: bool) -> &Indexes {
        if !is_plain && self.indexes_are_some {
            self.indexes_are_some = false;
            if let Some(some) = self.indexes.take() {
                some.close();
            }
        }
        let relation = self.relation;
        if self.indexes.is_none() {
            self.indexes_are_some = is_plain;
        }
        let but: &[&CStr] = if is_plain { &INDEXES_OF_OTHERS } else { &[] };
        // SAFETY: the relation is open until `close`, which closes these first.
        self.indexes.get_or_insert_with(|| unsafe { Indexes::open(relation, but) })
    }
}
