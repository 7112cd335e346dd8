//! How one database's slot of shared memory is divided: the inbox, the board and their slices.

use std::mem::align_of;
use std::mem::size_of;

use pg_task_rules::board::Board;
use pg_task_rules::board::Entry;
use pg_task_rules::board::Gate;
use pg_task_rules::board::Head;
use pg_task_rules::board::KeySlot;
use pg_task_rules::board::Lane;
use pg_task_rules::board::Look;
use pg_task_rules::board::ProgressSlot;
use pg_task_rules::board::Sizes;
use pg_task_rules::board::WorkerSlot;
use pg_task_rules::inbox::Hint;
use pg_task_rules::inbox::Inbox;
use pg_task_rules::inbox::InboxHead;
use pg_task_rules::names::Group;
use pg_task_rules::names::QueueName;

/// Offsets of the parts, in bytes from the start of the slot's area.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    sizes: Sizes,
    inbox_len: usize,
    head: usize,
    inbox_head: usize,
    inbox: usize,
    workers: usize,
    lanes: usize,
    queues: usize,
    gates: usize,
    group_buckets: usize,
    keys: usize,
    key_buckets: usize,
    looks: usize,
    progress: usize,
    buckets: usize,
    entries: usize,
    /// The size of the area.
    pub total: usize,
}

impl Layout {
    /// The layout for the given capacities.
    pub fn new(ready_capacity: usize, max_workers: usize, inbox_capacity: usize) -> Self {
        let sizes = Sizes::new(ready_capacity, max_workers);
        let mut at = 0;
        let mut part = |size: usize, align: usize, count: usize| {
            // A part begins on a cache line of its own; every type here is aligned to less than that.
            debug_assert!(align <= 128);
            let start = at;
            at = (start + size * count).next_multiple_of(128);
            start
        };
        macro_rules! of {
            ($type:ty, $count:expr) => {
                part(size_of::<$type>(), align_of::<$type>(), $count)
            };
        }
        let head = of!(Head, 1);
        let inbox_head = of!(InboxHead, 1);
        let inbox = of!(Hint, inbox_capacity);
        let workers = of!(WorkerSlot, sizes.workers);
        let lanes = of!(Lane, sizes.lanes);
        let queues = of!(QueueName, sizes.queues);
        let gates = of!(Gate, sizes.gates());
        let group_buckets = of!(u32, sizes.group_buckets());
        let keys = of!(KeySlot, sizes.keys());
        let key_buckets = of!(u32, sizes.group_buckets());
        let looks = of!(Look, sizes.looks());
        let progress = of!(ProgressSlot, sizes.progress());
        let buckets = of!(u32, sizes.buckets());
        let entries = of!(Entry, sizes.entries);
        Self {
            sizes,
            inbox_len: inbox_capacity,
            head,
            inbox_head,
            inbox,
            workers,
            lanes,
            queues,
            gates,
            group_buckets,
            keys,
            key_buckets,
            looks,
            progress,
            buckets,
            entries,
            total: at,
        }
    }

    /// Writes an empty inbox and board into an area.
    ///
    /// # Safety
    /// `area` points to [`Layout::total`] writable bytes, aligned to 128, that nobody else uses meanwhile.
    pub unsafe fn initialise(&self, area: *mut u8) {
        // SAFETY: every part lies inside the area and is aligned (see `new`); `write` does not read what was there.
        unsafe {
            area.add(self.head).cast::<Head>().write(Head::EMPTY);
            area.add(self.inbox_head).cast::<InboxHead>().write(InboxHead::EMPTY);
            fill(area.add(self.inbox), Hint::EMPTY, self.inbox_len);
            fill(area.add(self.workers), WorkerSlot::EMPTY, self.sizes.workers);
            fill(area.add(self.lanes), Lane::EMPTY, self.sizes.lanes);
            fill(area.add(self.queues), QueueName::EMPTY, self.sizes.queues);
            fill(area.add(self.gates), Gate::OPEN, self.sizes.gates());
            fill(area.add(self.group_buckets), u32::MAX, self.sizes.group_buckets());
            fill(area.add(self.keys), KeySlot::EMPTY, self.sizes.keys());
            fill(area.add(self.key_buckets), u32::MAX, self.sizes.group_buckets());
            fill(area.add(self.looks), Look::Group(Group(0)), self.sizes.looks());
            fill(area.add(self.progress), ProgressSlot::EMPTY, self.sizes.progress());
            fill(area.add(self.buckets), u32::MAX, self.sizes.buckets());
            fill(area.add(self.entries), Entry::EMPTY, self.sizes.entries);
            self.board(area).reset();
        }
    }

    /// The board in an area.
    ///
    /// # Safety
    /// `area` was initialised with this layout, and the caller holds the slot's board lock for as long as the board is used.
    pub unsafe fn board<'a>(&self, area: *mut u8) -> Board<'a> {
        // SAFETY: the parts are disjoint, initialised and aligned; the lock makes this the only reference to them.
        unsafe {
            Board {
                head: &mut *area.add(self.head).cast(),
                entries: std::slice::from_raw_parts_mut(area.add(self.entries).cast(), self.sizes.entries),
                buckets: std::slice::from_raw_parts_mut(area.add(self.buckets).cast(), self.sizes.buckets()),
                lanes: std::slice::from_raw_parts_mut(area.add(self.lanes).cast(), self.sizes.lanes),
                workers: std::slice::from_raw_parts_mut(area.add(self.workers).cast(), self.sizes.workers),
                queues: std::slice::from_raw_parts_mut(area.add(self.queues).cast(), self.sizes.queues),
                gates: std::slice::from_raw_parts_mut(area.add(self.gates).cast(), self.sizes.gates()),
                group_buckets: std::slice::from_raw_parts_mut(
                    area.add(self.group_buckets).cast(),
                    self.sizes.group_buckets(),
                ),
                keys: std::slice::from_raw_parts_mut(area.add(self.keys).cast(), self.sizes.keys()),
                key_buckets: std::slice::from_raw_parts_mut(
                    area.add(self.key_buckets).cast(),
                    self.sizes.group_buckets(),
                ),
                looks: std::slice::from_raw_parts_mut(area.add(self.looks).cast(), self.sizes.looks()),
                progress: std::slice::from_raw_parts_mut(
                    area.add(self.progress).cast(),
                    self.sizes.progress(),
                ),
            }
        }
    }

    /// The inbox in an area.
    ///
    /// # Safety
    /// As for [`Layout::board`], with the slot's inbox lock.
    pub unsafe fn inbox<'a>(&self, area: *mut u8) -> Inbox<'a> {
        // SAFETY: as in `board`.
        unsafe {
            Inbox {
                head: &mut *area.add(self.inbox_head).cast(),
                ring: std::slice::from_raw_parts_mut(area.add(self.inbox).cast(), self.inbox_len),
            }
        }
    }
}

/// # Safety
/// `start` points to room for `count` aligned values.
unsafe fn fill<T: Copy>(start: *mut u8, value: T, count: usize) {
    for index in 0..count {
        // SAFETY: within the room that the caller vouches for.
        unsafe { start.cast::<T>().add(index).write(value) };
    }
}
