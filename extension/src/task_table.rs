//! The task table below the executor: a row by its place or its id, a delete or a next step by its place, the ids of what is due, a new task.
//!
//! These are the statements of the hot path, without the nodes, tuple copies and function calls of a plan. What is
//! special about a row (someone else changes it at this moment, a trigger or a foreign key of the user's) is left to SQL: each
//! function says so and changes nothing.

mod new_row;
mod next;
mod next_step;

pub use new_row::Entered;
pub use new_row::Indexes;
pub use new_row::NewTask;
pub use next::Next;

use std::ffi::CStr;
use std::marker::PhantomData;

use pg_task_rules::Micros;
use pg_task_rules::TaskId;
use pg_task_rules::due::LaneKey;
use pg_task_rules::due::RowKey;
use pg_task_rules::names::Group;
use pg_task_rules::names::Key;
use pg_task_rules::place::Place;
use pgrx::pg_sys;
use pgrx::pg_sys::Datum;

use crate::catalog;
use crate::spi;
use next::SideScan;

/// The table's columns, in the order of `sql/20_task.sql`.
#[derive(Clone, Copy)]
#[repr(i16)]
pub enum Column {
    Id = 1,
    WakeupAt = 2,
    CreatedAt = 3,
    UpdatedAt = 4,
    LockedAt = 5,
    Fence = 6,
    LockedBy = 7,
    Tried = 8,
    Priority = 9,
    Queue = 10,
    Step = 11,
    Error = 12,
    Errors = 13,
    Options = 14,
}

/// How many columns the table has, unless it is that of an older version (they only add to its end) or of a user who has added some.
const COLUMNS: i32 = Column::Options as i32;

/// Triggers of our own for DELETE: what the first does, memory does at the end of a claim; what the second does is done by whoever deletes.
const OWN_DELETE_TRIGGERS: [&CStr; 2] = [c"task_delete", c"task_gone"];

/// The collation "C" in `pg_collation.dat`: the queue's.
const C_COLLATION: u32 = 950;

/// The table, open, with a snapshot in which everything that has committed by now is visible.
pub struct TaskTable {
    relation: pg_sys::Relation,
    slot: *mut pg_sys::TupleTableSlot,
    /// For new rows, once there was one.
    next: Option<*mut pg_sys::TupleTableSlot>,
    /// For the entries of new rows, once there was one.
    indexes: Option<Indexes>,
    /// They are those for rows without error and options.
    indexes_are_some: bool,
    /// Its blocks when it was opened. While it is open its lock keeps it from being truncated.
    blocks: u32,
    /// The primary key and a scan of it, once one was needed.
    by_id: Option<(pg_sys::Relation, pg_sys::IndexScanDesc)>,
    /// The indexes of groups and of keys, once they were needed.
    by_group: Option<SideScan>,
    by_key: Option<SideScan>,
    snapshot: pg_sys::Snapshot,
}

/// What a read of a lane has brought.
pub struct Due {
    /// The rows' keys and places.
    pub rows: Vec<(RowKey, Place)>,
    /// Those that have a group or a key, by their number among the rows.
    pub named: Vec<(usize, Option<Group>, Option<Key>)>,
}

/// What became of a delete.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Deleted {
    /// The row is deleted.
    Yes,
    /// It is not at its place, or someone is changing it: SQL finds out.
    LeftToSql,
}

impl TaskTable {
    /// Opens the table in a transaction that only reads it.
    pub fn to_read() -> Self {
        Self::open(pg_sys::AccessShareLock)
    }

    /// Opens the table in a transaction that may write to it. The lock of a writer is taken at once: asked for after a look into an index it is a
    /// deadlock with REINDEX, which waits for the index with the table locked.
    pub fn to_write() -> Self {
        Self::open(pg_sys::RowExclusiveLock)
    }

    /// Takes the lock of a writer for what reads by statements before it writes, as `to_write` does for what reads below the executor.
    pub fn lock_to_write() {
        catalog::lock(c"task", pg_sys::RowExclusiveLock);
    }

    fn open(lock: u32) -> Self {
        // SAFETY: inside a transaction. The relation is closed in `close`, or by the transaction's abort; the snapshot likewise.
        unsafe {
            let relation = pg_sys::table_open(catalog::oid(c"task"), lock as pg_sys::LOCKMODE);
            pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
            Self {
                relation,
                slot: pg_sys::table_slot_create(relation, std::ptr::null_mut()),
                blocks: pg_sys::RelationGetNumberOfBlocksInFork(relation, pg_sys::ForkNumber::MAIN_FORKNUM),
                next: None,
                indexes: None,
                indexes_are_some: false,
                by_id: None,
                by_group: None,
                by_key: None,
                snapshot: pg_sys::GetActiveSnapshot(),
            }
        }
    }

    /// From here on rows are read as they are now: what has been committed since the table was opened is visible.
    pub fn look_anew(&mut self) {
        // SAFETY: the snapshot on top is the one that `open` or this function pushed; the scan that reads under it is ended first.
        unsafe {
            if let Some((index, scan)) = self.by_id.take() {
                pg_sys::index_endscan(scan);
                pg_sys::index_close(index, pg_sys::NoLock as i32);
            }
            for side in [self.by_group.take(), self.by_key.take()].into_iter().flatten() {
                side.close();
            }
            pg_sys::PopActiveSnapshot();
            pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
            self.snapshot = pg_sys::GetActiveSnapshot();
            self.blocks =
                pg_sys::RelationGetNumberOfBlocksInFork(self.relation, pg_sys::ForkNumber::MAIN_FORKNUM);
        }
    }

    /// Closes it. What was written becomes visible to what follows in this transaction.
    pub fn close(self) {
        // SAFETY: opened by `open`, in the reverse order; the locks are kept until the transaction ends.
        unsafe {
            if let Some((index, scan)) = self.by_id {
                pg_sys::index_endscan(scan);
                pg_sys::index_close(index, pg_sys::NoLock as i32);
            }
            for side in [self.by_group, self.by_key].into_iter().flatten() {
                side.close();
            }
            if let Some(indexes) = self.indexes {
                indexes.close();
            }
            if let Some(next) = self.next {
                pg_sys::ExecDropSingleTupleTableSlot(next);
            }
            pg_sys::ExecDropSingleTupleTableSlot(self.slot);
            pg_sys::PopActiveSnapshot();
            pg_sys::table_close(self.relation, pg_sys::NoLock as i32);
            pg_sys::CommandCounterIncrement();
        }
    }

    /// Whether the table has every column of `Column`, and is not that of an older version.
    pub fn has_all_columns(&self) -> bool {
        // SAFETY: the relation is open.
        unsafe { (*(*self.relation).rd_att).natts >= COLUMNS }
    }

    /// Whether deletes may go below the executor: nothing of the user's is to be done with them.
    pub fn can_delete(&self) -> bool {
        const FOR_DELETE: i16 = 1 << 3;
        // SAFETY: the relation is open; its cache entry is valid for as long as it is.
        unsafe {
            let relation = &*self.relation;
            self.has_only_triggers(FOR_DELETE, &OWN_DELETE_TRIGGERS)
                && relation.rd_rules.is_null()
                && !(*relation.rd_rel).relrowsecurity
        }
    }

    /// The row of a task, if it is there: tried at its place first.
    pub fn row(&mut self, id: &TaskId, place: Place) -> Option<TaskRow<'_>> {
        if place.is_known() && self.fetch_at(place) && self.current().id() == Some(*id) {
            return Some(self.current());
        }
        self.fetch_by_id(id).then(|| self.current())
    }

    /// Deletes the row of a task if it is at its place and has the fence. It is the current row then.
    pub fn delete(&mut self, id: &TaskId, place: Place, fence: i64) -> Deleted {
        if !self.fetch_exactly(id, place, fence) {
            return Deleted::LeftToSql;
        }
        let mut tid = item_pointer(place);
        let mut failure = pg_sys::TM_FailureData::default();
        // SAFETY: the place was just read under this snapshot; the access method checks it again under the buffer's lock. Without
        // waiting: another transaction's change is reported, nothing is written then.
        let result = unsafe {
            let delete =
                (*(*self.relation).rd_tableam).tuple_delete.expect("every table access method can delete");
            let (relation, snapshot) = (self.relation, self.snapshot);
            let command = pg_sys::GetCurrentCommandId(true);
            let (tid, failure) = (&raw mut tid, &raw mut failure);
            pg_sys::ffi::pg_guard_ffi_boundary(|| {
                delete(relation, tid, command, snapshot, std::ptr::null_mut(), false, failure, false)
            })
        };
        if result == pg_sys::TM_Result::TM_Ok { Deleted::Yes } else { Deleted::LeftToSql }
    }

    /// The first rows of a lane at or after a key, in the order of the index, with their places; and which of them have a group or a key.
    pub fn due(&mut self, lane: &LaneKey, from: &RowKey, limit: usize, now: Micros) -> Due {
        let mut rows = Vec::with_capacity(limit);
        let mut named = Vec::new();
        let queue = spi::text(lane.queue.as_str()).unwrap_or(Datum::null());
        // SAFETY: the keys name the index's columns in order, each with the comparison function and the value of its type; they and
        // what they point to outlive the scan, which is ended before this returns.
        unsafe {
            let index = pg_sys::index_open(catalog::oid(c"task_due"), pg_sys::AccessShareLock as i32);
            let mut id = from.id;
            let mut members = [pg_sys::ScanKeyData::default(), pg_sys::ScanKeyData::default()];
            let member = pg_sys::SK_ROW_MEMBER as i32;
            let at_least = pg_sys::BTGreaterEqualStrategyNumber as u16;
            key(&mut members[0], member, 3, at_least, pg_sys::F_TIMESTAMPTZ_CMP, 0, Datum::from(from.due));
            let last = member | pg_sys::SK_ROW_END as i32;
            key(&mut members[1], last, 4, at_least, pg_sys::F_UUID_CMP, 0, Datum::from(id.as_mut_ptr()));
            let mut keys = [pg_sys::ScanKeyData::default(); 3];
            let equal = pg_sys::BTEqualStrategyNumber as u16;
            key(&mut keys[0], 0, 1, equal, pg_sys::F_TEXTEQ, C_COLLATION, queue);
            key(&mut keys[1], 0, 2, equal, pg_sys::F_INT2EQ, 0, Datum::from(lane.priority));
            // The header of a row comparison: its members say how to compare.
            keys[2] = pg_sys::ScanKeyData {
                sk_flags: pg_sys::SK_ROW_HEADER as i32,
                sk_attno: 3,
                sk_strategy: at_least,
                sk_argument: Datum::from(members.as_mut_ptr()),
                ..Default::default()
            };
            let scan = begin_scan(self.relation, index, self.snapshot, 3);
            pg_sys::index_rescan(scan, keys.as_mut_ptr(), 3, std::ptr::null_mut(), 0);
            let forward = pg_sys::ScanDirection::ForwardScanDirection;
            while rows.len() < limit && pg_sys::index_getnext_slot(scan, forward, self.slot) {
                let row = self.current();
                if let (Some(id), Some(due)) = (row.id(), row.int8(Column::WakeupAt)) {
                    if row.datum(Column::Options).is_some() {
                        // One that is held comes back at its own time.
                        named.push((rows.len(), row.group(), row.key().filter(|_| !row.is_held(now))));
                    }
                    rows.push((RowKey { due, id }, row.place()));
                }
            }
            pg_sys::index_endscan(scan);
            pg_sys::index_close(index, pg_sys::NoLock as i32);
        }
        Due { rows, named }
    }

    /// Whether the row of a task is at its place and has the fence: then it is in the slot.
    fn fetch_exactly(&mut self, id: &TaskId, place: Place, fence: i64) -> bool {
        place.is_known() && self.fetch_at(place) && {
            let row = self.current();
            row.id() == Some(*id) && row.int8(Column::Fence) == Some(fence)
        }
    }

    fn fetch_at(&mut self, place: Place) -> bool {
        let mut tid = item_pointer(place);
        // A table that was truncated or rewritten since has fewer blocks; one that has grown is left to the index.
        if place.block >= self.blocks {
            return false;
        }
        // SAFETY: any position of a block that exists may be asked for; whether a visible row is there is the answer.
        unsafe {
            let relation = self.relation;
            let fetch = (*(*relation).rd_tableam)
                .tuple_fetch_row_version
                .expect("every table access method can fetch");
            let (snapshot, slot, tid) = (self.snapshot, self.slot, &raw mut tid);
            pg_sys::ffi::pg_guard_ffi_boundary(|| fetch(relation, tid, snapshot, slot))
        }
    }

    fn fetch_by_id(&mut self, id: &TaskId) -> bool {
        // SAFETY: the key is a uuid and the index's only column; key and scan are used before the id goes away.
        unsafe {
            let (_, scan) = *self.by_id.get_or_insert_with(|| {
                let index = pg_sys::index_open(catalog::oid(c"task_pkey"), pg_sys::AccessShareLock as i32);
                (index, begin_scan(self.relation, index, self.snapshot, 1))
            });
            let mut keys = [pg_sys::ScanKeyData::default()];
            let equal = pg_sys::BTEqualStrategyNumber as u16;
            key(&mut keys[0], 0, 1, equal, pg_sys::F_UUID_EQ, 0, spi::uuid(id));
            pg_sys::index_rescan(scan, keys.as_mut_ptr(), 1, std::ptr::null_mut(), 0);
            pg_sys::index_getnext_slot(scan, pg_sys::ScanDirection::ForwardScanDirection, self.slot)
        }
    }

    /// The row that was read last.
    pub fn current(&self) -> TaskRow<'_> {
        // SAFETY: the slot holds a row of the table.
        unsafe { self.row_in(self.slot) }
    }

    /// # Safety
    /// The slot holds a row of the table.
    unsafe fn row_in(&self, slot: *mut pg_sys::TupleTableSlot) -> TaskRow<'_> {
        // SAFETY: the caller's.
        unsafe {
            let columns = COLUMNS.min((*(*self.relation).rd_att).natts);
            if i32::from((*slot).tts_nvalid) < columns {
                pg_sys::slot_getsomeattrs_int(slot, columns);
            }
        }
        TaskRow { slot, table: PhantomData }
    }
}

/// A row in the table's buffer: what it points to is there until the next row is read.
#[derive(Clone, Copy)]
pub struct TaskRow<'a> {
    slot: *mut pg_sys::TupleTableSlot,
    table: PhantomData<&'a TaskTable>,
}

impl TaskRow<'_> {
    /// A column as it lies in the buffer. One that an older version of the table does not have is NULL.
    pub fn datum(&self, column: Column) -> Option<Datum> {
        let index = column as usize - 1;
        // SAFETY: the slot's values were filled for as many columns as it says.
        unsafe {
            let is_there = index < (*self.slot).tts_nvalid as usize && !*(*self.slot).tts_isnull.add(index);
            is_there.then(|| *(*self.slot).tts_values.add(index))
        }
    }

    /// The task's id.
    pub fn id(&self) -> Option<TaskId> {
        // SAFETY: the column is a uuid.
        self.datum(Column::Id).map(|id| unsafe { spi::uuid_from(id) })
    }

    /// A `bigint` or `timestamptz`.
    pub fn int8(&self, column: Column) -> Option<i64> {
        self.datum(column).map(|value| value.value() as i64)
    }

    /// An `integer`.
    pub fn int4(&self, column: Column) -> Option<i32> {
        self.datum(column).map(|value| value.value() as i32)
    }

    /// A `smallint`.
    pub fn int2(&self, column: Column) -> Option<i16> {
        self.datum(column).map(|value| value.value() as i16)
    }

    /// Where the row is.
    pub fn place(&self) -> Place {
        // SAFETY: the slot holds a row that was read from the table.
        place_of(unsafe { &(*self.slot).tts_tid })
    }
}

/// The place that an item pointer names.
pub fn place_of(tid: &pg_sys::ItemPointerData) -> Place {
    Place {
        block: u32::from(tid.ip_blkid.bi_hi) << 16 | u32::from(tid.ip_blkid.bi_lo),
        position: tid.ip_posid,
    }
}

fn item_pointer(place: Place) -> pg_sys::ItemPointerData {
    pg_sys::ItemPointerData {
        ip_blkid: pg_sys::BlockIdData { bi_hi: (place.block >> 16) as u16, bi_lo: place.block as u16 },
        ip_posid: place.position,
    }
}

/// # Safety
/// `function` compares the type of the column and of `argument`; the entry is used while what `argument` points to is there.
unsafe fn key(
    entry: &mut pg_sys::ScanKeyData,
    flags: i32,
    column: i16,
    strategy: u16,
    function: u32,
    collation: u32,
    argument: Datum,
) {
    // SAFETY: fills the entry that it is given; the function's look-up record lives in the current memory context.
    unsafe {
        pg_sys::ScanKeyEntryInitialize(
            entry,
            flags,
            column,
            strategy,
            pg_sys::InvalidOid,
            pg_sys::Oid::from(collation),
            pg_sys::Oid::from(function),
            argument,
        );
    }
}

/// # Safety
/// Both relations are open, the index belongs to the table, and the snapshot stays active as long as the scan.
unsafe fn begin_scan(
    table: pg_sys::Relation,
    index: pg_sys::Relation,
    snapshot: pg_sys::Snapshot,
    keys: i32,
) -> pg_sys::IndexScanDesc {
    // SAFETY: as above.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        return pg_sys::index_beginscan(table, index, snapshot, keys, 0);
        #[cfg(feature = "pg18")]
        return pg_sys::index_beginscan(table, index, snapshot, std::ptr::null_mut(), keys, 0);
    }
}
