//! Groups: which task of one is the oldest. Read in an index that has an entry for tasks with a group only.

use pg_task_rules::Micros;
use pg_task_rules::TaskId;
use pg_task_rules::names::Group;
use pg_task_rules::names::QueueName;
use pgrx::pg_sys;
use pgrx::pg_sys::Datum;

use super::Column;
use super::TaskRow;
use super::TaskTable;
use super::begin_scan;
use super::key;
use crate::options;
use crate::spi;

/// The oldest task of a group that is not done.
#[derive(Clone, Copy, Debug)]
pub struct Oldest {
    /// Its id.
    pub id: TaskId,
    /// When it is due.
    pub due: Micros,
    /// Its queue.
    pub queue: QueueName,
    /// Its priority.
    pub priority: i16,
    /// It has an error: the group waits until it is resumed or cancelled.
    pub is_parked: bool,
}

/// The index of groups, a scan of it, and a place for its rows: the row that a claim has read stays where it is.
pub struct ByGroup {
    index: pg_sys::Relation,
    scan: pg_sys::IndexScanDesc,
    slot: *mut pg_sys::TupleTableSlot,
}

impl ByGroup {
    /// Ends the scan.
    ///
    /// # Safety
    /// The snapshot under which it was begun is still active.
    pub unsafe fn close(self) {
        // SAFETY: opened by `oldest`.
        unsafe {
            pg_sys::index_endscan(self.scan);
            pg_sys::index_close(self.index, pg_sys::NoLock as i32);
            pg_sys::ExecDropSingleTupleTableSlot(self.slot);
        }
    }
}

impl TaskTable {
    /// The oldest task of a group. What this transaction has done counts.
    pub fn oldest(&mut self, group: Group) -> Option<Oldest> {
        // SAFETY: the key is an int8 and the index's first column; the scan is used and the row read before the slot is filled again.
        let row = unsafe {
            let (relation, snapshot) = (self.relation, self.snapshot);
            let by_group = self.by_group.get_or_insert_with(|| {
                let schema = pg_sys::get_namespace_oid(c"pg_task".as_ptr(), false);
                let index = pg_sys::get_relname_relid(c"task_group".as_ptr(), schema);
                let index = pg_sys::index_open(index, pg_sys::AccessShareLock as i32);
                let scan = begin_scan(relation, index, snapshot, 1);
                ByGroup { index, scan, slot: pg_sys::table_slot_create(relation, std::ptr::null_mut()) }
            });
            let mut keys = [pg_sys::ScanKeyData::default()];
            let equal = pg_sys::BTEqualStrategyNumber as u16;
            key(&mut keys[0], 0, 1, equal, pg_sys::F_INT8EQ, 0, Datum::from(group.0));
            pg_sys::index_rescan(by_group.scan, keys.as_mut_ptr(), 1, std::ptr::null_mut(), 0);
            let (scan, slot) = (by_group.scan, by_group.slot);
            let forward = pg_sys::ScanDirection::ForwardScanDirection;
            if !pg_sys::index_getnext_slot(scan, forward, slot) {
                return None;
            }
            self.row_in(slot)
        };
        // SAFETY: the column is a text.
        let queue = row.datum(Column::Queue).map(|queue| unsafe { spi::text_from(queue) })?;
        Some(Oldest {
            id: row.id()?,
            due: row.int8(Column::WakeupAt)?,
            queue: QueueName::new(&queue)?,
            priority: row.int2(Column::Priority)?,
            is_parked: row.datum(Column::Error).is_some(),
        })
    }
}

impl TaskRow<'_> {
    /// The task's group, if it has one.
    pub fn group(&self) -> Option<Group> {
        // SAFETY: the column is a jsonb.
        self.datum(Column::Options).and_then(|options| unsafe { options::group(options) })
    }
}
