//! Groups and keys: which task of one is the next. Read in indexes that have entries for tasks with a group, or a key, only.

use std::ffi::CStr;

use pg_task_rules::Micros;
use pg_task_rules::TaskId;
use pg_task_rules::names::Group;
use pg_task_rules::names::Key;
use pg_task_rules::names::QueueName;
use pgrx::pg_sys;
use pgrx::pg_sys::Datum;

use super::Column;
use super::TaskRow;
use super::TaskTable;
use super::begin_scan;
use super::key;
use crate::catalog;
use crate::options;
use crate::shmem;
use crate::spi;

/// Rows of a key that are looked at to find its next tasks: those that wait for others of their groups are passed over.
const MAX_LOOKED_AT: usize = 10_000;

/// A task that may be the next of its group or key.
#[derive(Clone, Copy, Debug)]
pub struct Next {
    /// Its id.
    pub id: TaskId,
    /// When it is due.
    pub due: Micros,
    /// Its queue.
    pub queue: QueueName,
    /// Its priority.
    pub priority: i16,
    /// It has an error: its group waits until it is resumed or cancelled.
    pub is_parked: bool,
    /// Its key.
    pub key: Option<Key>,
}

/// An index, a scan of it, and a place for its rows: the row that a claim has read stays where it is.
pub struct SideScan {
    index: pg_sys::Relation,
    scan: pg_sys::IndexScanDesc,
    slot: *mut pg_sys::TupleTableSlot,
}

impl SideScan {
    /// # Safety
    /// The relation is open and the snapshot active until `close`.
    unsafe fn open(relation: pg_sys::Relation, snapshot: pg_sys::Snapshot, name: &CStr, keys: i32) -> Self {
        // SAFETY: the caller's.
        unsafe {
            let index = pg_sys::index_open(catalog::oid(name), pg_sys::AccessShareLock as i32);
            let scan = begin_scan(relation, index, snapshot, keys);
            Self { index, scan, slot: pg_sys::table_slot_create(relation, std::ptr::null_mut()) }
        }
    }

    /// Begins anew with other values.
    ///
    /// # Safety
    /// As many keys as the scan was opened for, for columns of the index.
    unsafe fn restart(&self, keys: &mut [pg_sys::ScanKeyData]) {
        // SAFETY: the caller's.
        unsafe {
            let count = keys.len() as i32;
            pg_sys::index_rescan(self.scan, keys.as_mut_ptr(), count, std::ptr::null_mut(), 0);
        }
    }

    /// The next row, if there is one.
    fn step(&self) -> Option<*mut pg_sys::TupleTableSlot> {
        let forward = pg_sys::ScanDirection::ForwardScanDirection;
        // SAFETY: the scan is open, and the slot is of the table's kind.
        unsafe { pg_sys::index_getnext_slot(self.scan, forward, self.slot) }.then_some(self.slot)
    }

    /// Ends the scan.
    ///
    /// # Safety
    /// The snapshot under which it was begun is still active.
    pub unsafe fn close(self) {
        // SAFETY: opened by `open`.
        unsafe {
            pg_sys::index_endscan(self.scan);
            pg_sys::index_close(self.index, pg_sys::NoLock as i32);
            pg_sys::ExecDropSingleTupleTableSlot(self.slot);
        }
    }
}

impl TaskTable {
    /// The oldest task of a group that is not done. What this transaction has done counts.
    pub fn oldest(&mut self, group: Group) -> Option<Next> {
        // SAFETY: the key is an int8 and the index's first column; the row is read before the slot is filled again.
        unsafe {
            let (relation, snapshot) = (self.relation, self.snapshot);
            let scan =
                self.by_group.get_or_insert_with(|| SideScan::open(relation, snapshot, c"task_group", 1));
            let mut keys = [pg_sys::ScanKeyData::default()];
            let equal = pg_sys::BTEqualStrategyNumber as u16;
            key(&mut keys[0], 0, 1, equal, pg_sys::F_INT8EQ, 0, Datum::from(group.0));
            scan.restart(&mut keys);
            let slot = scan.step()?;
            self.row_in(slot).next()
        }
    }

    /// The first tasks of a key that are due: better priorities first, then by time. Those that have to wait for others of their groups are
    /// passed over, and those whose workers may still come back.
    pub fn first_of(&mut self, of: Key, want: usize, now: Micros) -> Vec<Next> {
        let mut found = Vec::with_capacity(want);
        let mut looked_at = 0;
        let mut from = Some(i16::MIN);
        while let Some(priority) = from.take() {
            // SAFETY: the keys are of the types of the index's first columns; the row is read before the slot is filled again.
            unsafe {
                let (relation, snapshot) = (self.relation, self.snapshot);
                let scan =
                    self.by_key.get_or_insert_with(|| SideScan::open(relation, snapshot, c"task_key", 2));
                let mut keys = [pg_sys::ScanKeyData::default(); 2];
                let equal = pg_sys::BTEqualStrategyNumber as u16;
                let at_least = pg_sys::BTGreaterEqualStrategyNumber as u16;
                key(&mut keys[0], 0, 1, equal, pg_sys::F_INT8EQ, 0, Datum::from(of.0));
                key(&mut keys[1], 0, 2, at_least, pg_sys::F_INT2GE, 0, Datum::from(priority));
                scan.restart(&mut keys);
            }
            while found.len() < want && looked_at < MAX_LOOKED_AT + want {
                let Some(slot) = self.by_key.as_ref().and_then(SideScan::step) else { break };
                looked_at += 1;
                // SAFETY: the slot was just filled.
                let row = unsafe { self.row_in(slot) };
                let (next, group, is_held) = (row.next(), row.group(), row.is_held(now));
                let Some(next) = next else { continue };
                if next.due > now {
                    // So are all that follow in this priority.
                    from = next.priority.checked_add(1);
                    break;
                }
                if is_held {
                    continue;
                }
                if group.is_none_or(|group| self.oldest(group).is_some_and(|oldest| oldest.id == next.id)) {
                    found.push(next);
                }
            }
        }
        found
    }
}

impl TaskRow<'_> {
    /// The task's group, if it has one.
    pub fn group(&self) -> Option<Group> {
        // SAFETY: the column is a jsonb.
        self.datum(Column::Options).and_then(|options| unsafe { options::group(options) })
    }

    /// The task's key, if it has one.
    pub fn key(&self) -> Option<Key> {
        let (options, queue) = (self.datum(Column::Options)?, self.datum(Column::Queue)?);
        // SAFETY: the columns are a jsonb and a text.
        unsafe { options::key(options, queue) }
    }

    /// Whether its worker may have lived through the restart: nobody else gets it before that is known.
    pub fn is_held(&self, now: Micros) -> bool {
        now < shmem::trust_locks_until() && self.datum(Column::LockedBy).is_some()
    }

    fn next(&self) -> Option<Next> {
        // SAFETY: the column is a text.
        let queue = self.datum(Column::Queue).map(|queue| unsafe { spi::text_from(queue) })?;
        Some(Next {
            id: self.id()?,
            due: self.int8(Column::WakeupAt)?,
            queue: QueueName::new(&queue)?,
            priority: self.int2(Column::Priority)?,
            is_parked: self.datum(Column::Error).is_some(),
            key: self.key(),
        })
    }
}
