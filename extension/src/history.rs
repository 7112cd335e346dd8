//! What became of tasks that are gone: rows of `pg_task.history`, written in the transaction that ends the task.
//!
//! The rows of a call go below the executor into the one partition that is in use, many at a time. Its only index says which ids lie between
//! which bounds in each range of pages, so that two entries for each page are as good as one for each row.

use std::cell::RefCell;
use std::ffi::CStr;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;

use pg_task_rules::Micros;
use pg_task_rules::TaskId;
use pgrx::pg_sys;
use pgrx::pg_sys::Datum;
use rustc_hash::FxHashMap;

use crate::background;
use crate::catalog;
use crate::defaults;
use crate::defaults::Defaults;
use crate::guc;
use crate::shmem::Slot;
use crate::spi;
use crate::task_table::Column;
use crate::task_table::Entered;
use crate::task_table::Indexes;

/// The partitions, which are used in turn.
pub const PARTS: [&CStr; 8] = [
    c"history_0",
    c"history_1",
    c"history_2",
    c"history_3",
    c"history_4",
    c"history_5",
    c"history_6",
    c"history_7",
];

/// Rows that are written at a time.
const BATCH: usize = 64;

/// The types of the columns, in the order of `sql/28_history.sql`. A table that somebody has given others is left alone.
const TYPES: [pg_sys::Oid; 16] = [
    pg_sys::UUIDOID,
    pg_sys::TIMESTAMPTZOID,
    pg_sys::TIMESTAMPTZOID,
    pg_sys::TIMESTAMPTZOID,
    pg_sys::TIMESTAMPTZOID,
    pg_sys::UUIDOID,
    pg_sys::INT4OID,
    pg_sys::INT2OID,
    pg_sys::INT2OID,
    pg_sys::TEXTOID,
    pg_sys::TEXTOID,
    pg_sys::JSONBOID,
    pg_sys::TEXTOID,
    pg_sys::JSONBOID,
    pg_sys::JSONBOID,
    pg_sys::JSONBOID,
];

/// `brin` in `pg_am.dat`; `uuid_minmax_ops` and `datetime_minmax_ops` in `pg_opfamily.dat`.
const BRIN: u32 = 3580;
const UUID_BOUNDS: u32 = 4081;
const TIME_BOUNDS: u32 = 4059;

/// How a task ended.
#[derive(Clone, Copy, Debug)]
pub enum Ended {
    /// Its last step ended well.
    Done(Done),
    /// A user deleted its row.
    Cancelled,
}

/// What is known of the last step.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    /// The worker that ran it.
    pub worker: TaskId,
    /// When it was handed out, if memory knows.
    pub started_at: Option<Micros>,
    /// Whether its attempt was counted before it ran, if memory knows.
    pub is_counted: Option<bool>,
    /// What it returned, a jsonb.
    pub result: Option<Datum>,
}

/// The partition that is in use, open.
pub struct History {
    relation: pg_sys::Relation,
    part: u32,
    now: Micros,
    /// The outcome of most rows.
    done: Datum,
    /// The columns of one row; those behind our own are NULL.
    datums: Vec<Datum>,
    nulls: Vec<bool>,
    rows: Vec<*mut pg_sys::TupleTableSlot>,
    ids: Vec<TaskId>,
    indexes: Option<Indexes>,
    has_bounds_only: bool,
    written: u64,
    /// Queues may want none.
    defaults: Option<Rc<Defaults>>,
}

impl History {
    /// Opens the partition that is in use. None when no history is kept: switched off, or an extension of an older version.
    pub fn open(slot: Slot) -> Option<Self> {
        if !guc::HISTORY.get() {
            return None;
        }
        let part = slot.control().history_part.load(Relaxed) % PARTS.len() as u32;
        let defaults = defaults::of(slot);
        let table = catalog::find(PARTS[part as usize])?;
        // SAFETY: inside a transaction; the relation is closed in `close`, or by the transaction's abort.
        unsafe {
            let relation = pg_sys::table_open(table, pg_sys::RowExclusiveLock as i32);
            if !is_as_made(relation) {
                pg_sys::table_close(relation, pg_sys::NoLock as i32);
                return None;
            }
            let columns = (*(*relation).rd_att).natts as usize;
            Some(Self {
                relation,
                part,
                now: background::now(),
                done: spi::text("done").unwrap_or(Datum::null()),
                datums: vec![Datum::null(); columns],
                nulls: vec![true; columns],
                rows: Vec::new(),
                ids: Vec::new(),
                indexes: None,
                has_bounds_only: false,
                written: 0,
                defaults,
            })
        }
    }

    /// Adds a task that has ended; `row` gives the columns of its row.
    pub fn add(&mut self, row: impl Fn(Column) -> Option<Datum>, ended: &Ended) {
        let Some(id) = row(Column::Id) else { return };
        if let (Some(defaults), Some(queue)) = (&self.defaults, row(Column::Queue))
            && defaults.leaves_no_history(queue)
        {
            return;
        }
        let tried = row(Column::Tried).map_or(0, |tried| tried.value() as i32);
        let done = match ended {
            Ended::Done(done) => Some(done),
            Ended::Cancelled => None,
        };
        // Otherwise the row tells: it was changed and locked at one moment then.
        let counted_in_row = || row(Column::LockedAt).is_some_and(|at| row(Column::UpdatedAt) == Some(at));
        let is_counted = |done: &Done| done.is_counted.unwrap_or_else(counted_in_row);
        let attempts = tried.saturating_add(i32::from(done.is_some_and(|done| !is_counted(done))));
        let values: [Option<Datum>; TYPES.len()] = [
            Some(id),
            spi::int(self.now),
            row(Column::CreatedAt),
            row(Column::WakeupAt),
            done.and_then(|done| done.started_at).and_then(spi::int),
            done.map(|done| spi::uuid(&done.worker)),
            spi::int(attempts),
            row(Column::Priority),
            spi::int(self.part),
            done.map_or_else(|| spi::text("cancelled"), |_| Some(self.done)),
            row(Column::Queue),
            row(Column::Step),
            row(Column::Error),
            done.and_then(|done| done.result),
            row(Column::Errors),
            row(Column::Options),
        ];
        // SAFETY: the table's first columns have the values' types (see `is_as_made`); further ones are NULL. The row is copied.
        unsafe {
            let descriptor = (*self.relation).rd_att;
            for (index, value) in values.into_iter().enumerate() {
                self.datums[index] = value.unwrap_or(Datum::null());
                self.nulls[index] = value.is_none();
            }
            if self.rows.len() == self.ids.len() {
                self.rows
                    .push(pg_sys::MakeSingleTupleTableSlot(descriptor, &raw const pg_sys::TTSOpsHeapTuple));
            }
            let tuple =
                pg_sys::heap_form_tuple(descriptor, self.datums.as_mut_ptr(), self.nulls.as_mut_ptr());
            pg_sys::ExecStoreHeapTuple(tuple, self.rows[self.ids.len()], true);
            self.ids.push(spi::uuid_from(id));
        }
        if self.ids.len() == BATCH {
            self.flush();
        }
    }

    /// Writes what was added and closes the partition. It is visible to what follows in this transaction.
    pub fn close(mut self, slot: Slot) {
        self.flush();
        slot.control().history_written.fetch_add(self.written, Relaxed);
        // SAFETY: opened by `open`, in the reverse order; the lock is kept until the transaction ends.
        unsafe {
            if let Some(indexes) = self.indexes {
                indexes.close();
            }
            for row in self.rows {
                pg_sys::ExecDropSingleTupleTableSlot(row);
            }
            pg_sys::table_close(self.relation, pg_sys::NoLock as i32);
            pg_sys::CommandCounterIncrement();
        }
    }

    fn flush(&mut self) {
        if self.ids.is_empty() {
            return;
        }
        let count = self.ids.len();
        // SAFETY: the slots hold rows of the table, which is open and locked for writing.
        unsafe {
            let insert =
                (*(*self.relation).rd_tableam).multi_insert.expect("every table access method can insert");
            let (relation, rows) = (self.relation, self.rows.as_mut_ptr());
            let command = pg_sys::GetCurrentCommandId(true);
            pg_sys::ffi::pg_guard_ffi_boundary(|| {
                insert(relation, rows, count as i32, command, 0, std::ptr::null_mut());
            });
            if self.indexes.is_none() {
                self.has_bounds_only = has_bounds_only(relation);
                self.indexes = Some(Indexes::open(relation, &[]));
            }
        }
        let mut start = 0;
        while start < count {
            let block = self.block(start);
            let end = (start..count).find(|&row| self.block(row) != block).unwrap_or(count);
            self.enter(start, end);
            start = end;
        }
        self.written += count as u64;
        self.ids.clear();
    }

    /// Enters rows of one page into the index: its bounds are those of the least and the largest id, and the time is the same for all. An index
    /// that somebody has added gets every row.
    fn enter(&self, start: usize, end: usize) {
        let Some(indexes) = &self.indexes else { return };
        // SAFETY: the rows were just written.
        let add = |row: usize| unsafe { indexes.add(self.rows[row], Entered::New) };
        if !self.has_bounds_only {
            return (start..end).for_each(add);
        }
        let by_id = |row: &usize| self.ids[*row];
        let (least, largest) = ((start..end).min_by_key(by_id), (start..end).max_by_key(by_id));
        least.into_iter().chain(largest.filter(|row| Some(*row) != least)).for_each(add);
    }

    fn block(&self, row: usize) -> u32 {
        // SAFETY: the slot holds a row that was written.
        crate::task_table::place_of(unsafe { &(*self.rows[row]).tts_tid }).block
    }
}

/// # Safety
/// The relation is open.
unsafe fn is_as_made(relation: pg_sys::Relation) -> bool {
    // SAFETY: the descriptor has the columns that are asked for.
    unsafe {
        let descriptor = (*relation).rd_att;
        (*descriptor).natts as usize >= TYPES.len()
            // The type of a column that was dropped is none.
            && (1..).zip(TYPES).all(|(column, of)| pg_sys::SPI_gettypeid(descriptor, column) == of)
    }
}

/// Whether the index of `sql/28_history.sql` is the only one.
///
/// # Safety
/// The relation is open and locked.
unsafe fn has_bounds_only(relation: pg_sys::Relation) -> bool {
    // SAFETY: the list is of oids; the index is open while it is looked at.
    unsafe {
        let list = pg_sys::RelationGetIndexList(relation);
        if list.is_null() || (*list).length != 1 {
            return false;
        }
        let index = pg_sys::index_open((*(*list).elements).oid_value, pg_sys::RowExclusiveLock as i32);
        let (class, form) = (&*(*index).rd_rel, &*(*index).rd_index);
        let columns = form.indkey.values.as_slice(usize::from(form.indnatts.unsigned_abs()));
        let families = std::slice::from_raw_parts((*index).rd_opfamily, columns.len());
        let bounds = class.relam.to_u32() == BRIN
            && columns == [1, 2]
            && families.iter().map(|family| family.to_u32()).eq([UUID_BOUNDS, TIME_BOUNDS]);
        pg_sys::index_close(index, pg_sys::NoLock as i32);
        pg_sys::list_free(list);
        bounds
    }
}

thread_local! {
    /// Tasks that a worker has done, while SQL deletes their rows: what the trigger finds here is no user's deletion.
    static FINISHING: RefCell<FxHashMap<TaskId, Done>> = RefCell::new(FxHashMap::default());
}

/// Runs `delete`, which deletes the rows of tasks that are done.
pub fn finishing<R>(done: impl Iterator<Item = (TaskId, Done)>, delete: impl FnOnce() -> R) -> R {
    struct Forget;
    impl Drop for Forget {
        fn drop(&mut self) {
            FINISHING.with_borrow_mut(FxHashMap::clear);
        }
    }
    FINISHING.with_borrow_mut(|finishing| finishing.extend(done));
    let _forget = Forget;
    delete()
}

/// How the task ends whose row SQL deletes.
pub fn end_of(id: &TaskId) -> Ended {
    FINISHING.with_borrow(|finishing| finishing.get(id).copied()).map_or(Ended::Cancelled, Ended::Done)
}
